//! What Anchor programs said, and what it means.
//!
//! Two halves, neither of which knows of archives, HTTP or databases:
//!
//! * **Extraction** ([`records`]): a transaction's logs and inner instructions → the [`Record`]s of one
//!   program → Arrow batches of the [record schema](record_schema), with an additive [digest](record_digest).
//!   Where asked for, its [instructions](extract_instructions) are records too.
//! * **Decoding** ([`decoding`]): record batches and a program's IDL versions → one Arrow table per event, and per
//!   instruction.

#![forbid(unsafe_code)]

pub mod decoding;
mod digest;
mod instructions;
mod log_stack;
pub mod records;

pub use decoding::{
    DecodeCounts, DecodeError, DecodePolicy, Decoded, Decoder, EventDescription, EventTable,
    Explanation, FieldBytes, FieldDescription, IdlError, IdlVersion, InstructionCounts, TableKind,
};
pub use digest::{RowDigests, record_digest};
pub use instructions::extract_instructions;
pub use log_stack::InstructionPath;
pub use records::{
    Address, CPI_EVENT_TAG, ExtractCounts, Extracted, InnerView, InstructionView, Record,
    RecordBatchBuilder, RecordError, Source, TransactionView, extract, record_schema,
    record_schema_with_accounts,
};
