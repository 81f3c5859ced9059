//! Twins: an event that a program both logged and emitted by CPI is one event.
//!
//! Within a transaction, the k-th log record and the k-th CPI record of equal payload are twins. The CPI
//! record's key stays; the surplus of either side stays as rows.

use std::collections::HashMap;

use super::rows::{CPI, LOG, RecordRows};

/// For every row, whether it is folded into its twin.
pub(super) fn folded(rows: &RecordRows<'_>) -> Vec<bool> {
    let mut folded = vec![false; rows.len()];
    let mut start = 0;
    while start < rows.len() {
        let end = (start + 1..rows.len())
            .find(|row| !rows.same_transaction(start, *row))
            .unwrap_or(rows.len());
        fold_transaction(rows, start..end, &mut folded);
        start = end;
    }
    folded
}

fn fold_transaction(rows: &RecordRows<'_>, range: std::ops::Range<usize>, folded: &mut [bool]) {
    if range.len() < 2 {
        return;
    }
    let mut emitted: HashMap<&[u8], u32> = HashMap::new();
    for row in range.clone().filter(|row| rows.source(*row) == CPI) {
        *emitted.entry(rows.payload(row)).or_default() += 1;
    }
    if emitted.is_empty() {
        return;
    }
    for row in range.filter(|row| rows.source(*row) == LOG) {
        if let Some(left) = emitted.get_mut(rows.payload(row)).filter(|left| **left > 0) {
            *left -= 1;
            folded[row] = true;
        }
    }
}
