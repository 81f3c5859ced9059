//! Instructions: what one program was told in one transaction, at the top level and by other programs.
//!
//! They are records beside what the program said, and only where they are asked for. A call of the program to
//! itself that carries an event is that event's record and none here: every call is one of the two. Which of them
//! an IDL knows is decided elsewhere.

use crate::log_stack::InstructionPath;
use crate::records::{
    Address, CPI_EVENT_TAG, ExtractCounts, Record, Source, TransactionView, with_paths,
};

/// An instruction of a transaction, whoever's.
struct Call<'a> {
    path: InstructionPath,
    program_index: u8,
    accounts: &'a [u8],
    data: &'a [u8],
}

/// Extracts the instructions of `program` from a transaction, and counts what was odd in them. An inner
/// instruction's unknown program is counted by [`extract`](crate::extract), which looks at each of them too.
///
/// Without metadata there are no inner instructions, and every instruction's place is that among the top-level ones.
///
/// ```
/// use anchor_events::{InnerView, InstructionView, Source, TransactionView, extract_instructions};
///
/// let (router, program, user) = ([1; 32], [7; 32], [9; 32]);
/// let transaction = TransactionView {
///     slot: 1, tx_index: 0, epoch: 0, archive_offset: 59, signature: &[0; 64], block_time: None, failed: false,
///     account_keys: &[user, router, program],
///     instructions: &[InstructionView { program_index: 1, accounts: &[], data: &[] }],
///     inner_instructions: &[InnerView { top_level_index: 0, program_index: 2, accounts: &[0], data: &[5] }],
///     logs: None,
/// };
/// let (records, counts) = extract_instructions(&transaction, &program);
/// assert_eq!((records[0].event_index, records[0].source), (1, Source::Instruction));
/// assert_eq!(records[0].payload, [5]);
/// assert_eq!(records[0].accounts.as_deref(), Some(&user[..]));
/// assert!(!counts.any());
/// ```
pub fn extract_instructions(
    transaction: &TransactionView<'_>,
    program: &Address,
) -> (Vec<Record>, ExtractCounts) {
    let keys = transaction.account_keys;
    let mut counts = ExtractCounts::default();
    let mut records = Vec::new();
    for (place, call) in (0..).zip(depth_first(transaction)) {
        let is_inner = call.path.inner.is_some();
        match keys.get(usize::from(call.program_index)) {
            None if !is_inner => counts.unknown_programs += 1,
            Some(called) if called == program => {
                // Only a call by a program can carry an event.
                if is_inner && call.data.starts_with(&CPI_EVENT_TAG) {
                    continue;
                }
                let accounts = resolve(call.accounts, keys);
                counts.unknown_accounts += u32::from(accounts.is_none());
                records.push(Record {
                    event_index: place,
                    source: Source::Instruction,
                    path: call.path,
                    payload: call.data.to_vec(),
                    accounts,
                });
            }
            _ => {}
        }
    }
    (records, counts)
}

/// Every instruction of a transaction: each top-level one, then those that it led to, as they were recorded. What
/// names a top-level instruction that there is not comes last.
fn depth_first<'a>(transaction: &TransactionView<'a>) -> Vec<Call<'a>> {
    let mut inner: Vec<_> = with_paths(transaction.inner_instructions)
        .map(|(path, inner)| Call {
            path,
            program_index: inner.program_index,
            accounts: inner.accounts,
            data: inner.data,
        })
        .collect();
    // Recorded in this order already; the sort is stable, and makes places unique whatever was recorded.
    inner.sort_by_key(|call| call.path.top_level);
    let mut inner = inner.into_iter().peekable();
    let mut calls = Vec::new();
    for (top_level, instruction) in (0..=u16::MAX).zip(transaction.instructions) {
        calls.push(Call {
            path: InstructionPath {
                top_level,
                inner: None,
            },
            program_index: instruction.program_index,
            accounts: instruction.accounts,
            data: instruction.data,
        });
        while let Some(call) = inner.next_if(|call| call.path.top_level == top_level) {
            calls.push(call);
        }
    }
    calls.extend(inner);
    calls
}

/// The accounts' keys, one behind the other; none where one lies outside the transaction's keys.
fn resolve(accounts: &[u8], keys: &[Address]) -> Option<Vec<u8>> {
    let mut resolved = Vec::with_capacity(accounts.len() * size_of::<Address>());
    for place in accounts {
        resolved.extend_from_slice(keys.get(usize::from(*place))?);
    }
    Some(resolved)
}
