//! The NDJSON form of a matched transaction: one line with what a person or another language needs to
//! extract events for themselves.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use old_faithful::{Block, InnerInstruction, MatchedTransaction, TransactionParts};
use serde::Serialize;

use crate::encoder::EncodeError;

#[derive(Serialize)]
#[serde(rename_all = "camelCase", tag = "type", rename = "transaction")]
struct TransactionLine<'a> {
    slot: u64,
    tx_index: u32,
    signature: String,
    block_time: Option<i64>,
    /// Null when it succeeded.
    err: Option<RawError>,
    /// Null when the archive has no log of it.
    logs: Option<Vec<std::borrow::Cow<'a, str>>>,
    account_keys: Vec<String>,
    instructions: Vec<InstructionLine<'a>>,
    /// Null when the archive has no metadata of it.
    inner_instructions: Option<Vec<InnerLine<'a>>>,
    epoch: u32,
    archive_offset: u64,
    programs: Vec<String>,
}

#[derive(Serialize)]
struct RawError {
    /// The error as the archive has it, in hex.
    raw: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InstructionLine<'a> {
    program_id_index: u8,
    accounts: &'a [u8],
    data: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InnerInstructionLine<'a> {
    #[serde(flatten)]
    instruction: InstructionLine<'a>,
    /// Null in epochs whose metadata does not have it.
    stack_height: Option<u32>,
}

#[derive(Serialize)]
struct InnerLine<'a> {
    index: u8,
    instructions: Vec<InnerInstructionLine<'a>>,
}

/// Appends one transaction's line. `programs` are those of the request.
pub(crate) fn push_transaction(
    block: &Block,
    transaction: &MatchedTransaction,
    parts: &TransactionParts<'_>,
    programs: &[String],
    lines: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let metadata = parts.metadata.as_ref();
    let line = TransactionLine {
        slot: transaction.slot,
        tx_index: transaction.index,
        signature: base58_signature(parts.signature),
        block_time: block.block_time,
        err: metadata
            .and_then(|metadata| metadata.err)
            .map(|raw| RawError { raw: hex(raw) }),
        logs: metadata.and_then(|metadata| {
            let lines = metadata.logs.as_ref()?.iter();
            Some(lines.map(|line| String::from_utf8_lossy(line)).collect())
        }),
        account_keys: parts.account_keys.iter().map(base58).collect(),
        instructions: parts
            .instructions
            .iter()
            .map(|instruction| InstructionLine {
                program_id_index: instruction.program_index,
                accounts: instruction.accounts,
                data: STANDARD.encode(instruction.data),
            })
            .collect(),
        inner_instructions: metadata.map(|metadata| {
            let same = |one: &InnerInstruction<'_>, next: &InnerInstruction<'_>| {
                one.top_level_index == next.top_level_index
            };
            let groups = metadata.inner_instructions.chunk_by(same);
            groups.filter_map(inner_line).collect()
        }),
        epoch: transaction.epoch,
        archive_offset: transaction.archive_offset,
        programs: transaction
            .mentions
            .iter()
            .filter_map(|mention| programs.get(usize::from(mention.program)).cloned())
            .collect(),
    };
    serde_json::to_writer(&mut *lines, &line)?;
    lines.push(b'\n');
    Ok(())
}

/// What one top-level instruction called.
fn inner_line<'a>(group: &[InnerInstruction<'a>]) -> Option<InnerLine<'a>> {
    let lines = group.iter().map(|inner| InnerInstructionLine {
        instruction: InstructionLine {
            program_id_index: inner.program_index,
            accounts: inner.accounts,
            data: STANDARD.encode(inner.data),
        },
        stack_height: inner.stack_height,
    });
    Some(InnerLine {
        index: group.first()?.top_level_index,
        instructions: lines.collect(),
    })
}

/// An address as people write it.
pub(crate) fn base58(address: &[u8; 32]) -> String {
    let mut text = [0; 44];
    let length = five8::encode_32(address, &mut text);
    String::from_utf8_lossy(&text[..usize::from(length)]).into_owned()
}

fn base58_signature(signature: &[u8; 64]) -> String {
    let mut text = [0; 88];
    let length = five8::encode_64(signature, &mut text);
    String::from_utf8_lossy(&text[..usize::from(length)]).into_owned()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
