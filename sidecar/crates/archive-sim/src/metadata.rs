//! Writing `TransactionStatusMeta` as protobuf.

use crate::logs::Outcome;
use crate::wire::Keys;

fn varint(output: &mut Vec<u8>, value: u64) {
    crate::car::uvarint(output, value);
}

fn number(output: &mut Vec<u8>, field: u64, value: u64) {
    varint(output, field << 3);
    varint(output, value);
}

fn delimited(output: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(output, field << 3 | 2);
    varint(output, bytes.len() as u64);
    output.extend_from_slice(bytes);
}

/// `TransactionError::InstructionError(instruction, Custom(1))` in bincode.
pub(crate) fn custom_error(instruction: u8) -> [u8; 13] {
    [8, 0, 0, 0, instruction, 25, 0, 0, 0, 1, 0, 0, 0]
}

/// Encodes what happened in a transaction; `balances` are in lamports.
pub(crate) fn encode(outcome: &Outcome, keys: &Keys, balances: &[u64]) -> Vec<u8> {
    let mut meta = Vec::with_capacity(512);
    if let Some(instruction) = outcome.failed_instruction {
        let mut error = Vec::new();
        delimited(&mut error, 1, &custom_error(instruction));
        delimited(&mut meta, 1, &error);
    }
    number(&mut meta, 2, 5_000);
    let mut packed = Vec::new();
    for balance in balances {
        varint(&mut packed, *balance);
    }
    delimited(&mut meta, 3, &packed);
    delimited(&mut meta, 4, &packed);
    for (index, inner) in &outcome.inner {
        let mut group = Vec::new();
        number(&mut group, 1, u64::from(*index));
        for instruction in inner {
            let mut encoded = Vec::new();
            number(&mut encoded, 1, u64::from(instruction.program_index));
            delimited(&mut encoded, 2, &instruction.accounts);
            delimited(&mut encoded, 3, &instruction.data);
            number(&mut encoded, 4, u64::from(instruction.stack_height));
            delimited(&mut group, 2, &encoded);
        }
        delimited(&mut meta, 5, &group);
    }
    for line in &outcome.logs {
        delimited(&mut meta, 6, line.as_bytes());
    }
    for key in &keys.loaded_writable {
        delimited(&mut meta, 12, key);
    }
    for key in &keys.loaded_readonly {
        delimited(&mut meta, 13, key);
    }
    if let Some((program, bytes)) = &outcome.returned {
        let mut returned = Vec::new();
        delimited(&mut returned, 1, program);
        delimited(&mut returned, 2, bytes);
        delimited(&mut meta, 14, &returned);
    }
    number(&mut meta, 16, 12_345);
    meta
}
