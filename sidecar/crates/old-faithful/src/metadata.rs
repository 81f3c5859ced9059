//! What executing a transaction left behind: the fields of `TransactionStatusMeta` that the reader's users need.

use bytes::Bytes;

use crate::model::Pubkey;

/// A transaction's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// The error as stored (bincode of `TransactionError`); `None` = succeeded.
    pub err: Option<Bytes>,
    /// The fee, in lamports.
    pub fee: u64,
    /// The instructions called by each top-level instruction, as recorded.
    pub inner_instructions: Vec<InnerInstructions>,
    /// The log lines; `None` when they were not recorded.
    pub logs: Option<Vec<Bytes>>,
    /// Writable keys loaded from lookup tables.
    pub loaded_writable: Vec<Pubkey>,
    /// Readonly keys loaded from lookup tables.
    pub loaded_readonly: Vec<Pubkey>,
    /// Compute units used, where recorded.
    pub compute_units: Option<u64>,
}

/// The instructions that one top-level instruction called, flat, in the order of their calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InnerInstructions {
    /// The top-level instruction.
    pub index: u8,
    /// What it called.
    pub instructions: Vec<InnerInstruction>,
}

/// An instruction called by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InnerInstruction {
    /// The called program, as an index into the account keys.
    pub program_index: u8,
    /// The accounts given to it: one byte each, an index into the account keys.
    pub accounts: Bytes,
    /// The instruction's data.
    pub data: Bytes,
    /// The depth of the call, where recorded: 2 = called by a top-level instruction.
    pub stack_height: Option<u32>,
}
