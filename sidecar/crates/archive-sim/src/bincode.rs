//! Writing metadata as the early epochs hold it: bincode. Fields came with the years, so payloads end in several places.

use crate::logs::{InnerInstruction, Outcome};
use crate::metadata::custom_error;
use crate::transaction::Kept;

fn count(output: &mut Vec<u8>, items: usize) {
    output.extend((items as u64).to_le_bytes());
}

fn text(output: &mut Vec<u8>, text: &str) {
    count(output, text.len());
    output.extend(text.as_bytes());
}

/// Bytes behind their length as compact-u16.
fn short(output: &mut Vec<u8>, bytes: &[u8]) {
    crate::car::uvarint(output, bytes.len() as u64);
    output.extend(bytes);
}

fn inner_instruction(output: &mut Vec<u8>, inner: &InnerInstruction) {
    output.push(inner.program_index);
    short(output, &inner.accounts);
    short(output, &inner.data);
}

/// A token balance of the years before owners were recorded, or, `owned`, after.
fn token_balance(output: &mut Vec<u8>, account: u8, owned: bool) {
    output.push(account);
    text(output, "So11111111111111111111111111111111111111112");
    output.extend(1.5_f64.to_le_bytes());
    output.push(9);
    text(output, "1500000000");
    if owned {
        text(output, "11111111111111111111111111111111");
    }
}

/// Encodes what happened in a transaction; `balances` are in lamports. How much follows the logs depends on the first balance.
pub(crate) fn encode(outcome: &Outcome, balances: &[u64], kept: Kept) -> Vec<u8> {
    let mut meta = Vec::with_capacity(512);
    match outcome.failed_instruction {
        None => meta.extend(0_u32.to_le_bytes()),
        Some(instruction) => {
            meta.extend(1_u32.to_le_bytes());
            meta.extend(custom_error(instruction));
        }
    }
    meta.extend(5_000_u64.to_le_bytes());
    for _ in ["before", "after"] {
        count(&mut meta, balances.len());
        meta.extend(balances.iter().flat_map(|balance| balance.to_le_bytes()));
    }
    let written = balances.first().map_or(0, |balance| balance % 4);
    if kept == Kept::Balances {
        // Older than both fields, or both said to be absent.
        if written.is_multiple_of(2) {
            meta.extend([0, 0]);
        }
        return meta;
    }
    meta.push(1);
    count(&mut meta, outcome.inner.len());
    for (index, inner) in &outcome.inner {
        meta.push(*index);
        count(&mut meta, inner.len());
        for instruction in inner {
            inner_instruction(&mut meta, instruction);
        }
    }
    meta.push(1);
    count(&mut meta, outcome.logs.len());
    for line in &outcome.logs {
        text(&mut meta, line);
    }
    if written == 0 {
        return meta;
    }
    for _ in ["before", "after"] {
        meta.push(1);
        count(&mut meta, 2);
        token_balance(&mut meta, 0, written == 2);
        token_balance(&mut meta, 1, written == 2);
    }
    if written == 3 {
        meta.push(0); // no rewards
    }
    meta
}
