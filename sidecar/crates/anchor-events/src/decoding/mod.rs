//! Decoding: record batches and a program's IDL versions → one Arrow table per event, and a quarantine. Where they are
//! asked for, instructions have tables like events: their arguments are the fields, and so are their accounts.
//!
//! [`Decoder`] is the principal type. A payload decodes only by **exact consumption**: every byte is used.
//! Programs change layouts under one discriminator, so versions are tried in an order: the one in force at
//! the slot, then older ones from newest to oldest, then newer ones from oldest to newest. The first exact
//! one wins; any but the one in force is counted as a fallback. Two fallbacks that are both exact and read
//! different values decode nothing: the record goes into quarantine as `ambiguous`.
//!
//! Payloads and IDLs are hostile: whatever their bytes, there is no panic and memory is bounded.

mod columns;
mod counts;
mod decoder;
mod describe;
mod error;
mod explain;
mod fold;
mod idl;
mod instruction;
mod json;
mod layout;
mod memory;
mod parallel;
mod payload;
mod quarantine;
mod rows;
mod table;
mod wide;

pub use counts::{DecodeCounts, Fallback, InstructionCounts, Undecodable};
pub use decoder::{DecodePolicy, Decoded, Decoder};
pub use describe::{EventDescription, FieldDescription};
pub use error::{DecodeError, IdlError, TypeFault};
pub use explain::{Explanation, FieldBytes};
pub use idl::IdlVersion;
pub use quarantine::quarantine_schema;
pub use table::{EventTable, TableKind};
