//! Writes simulated Old Faithful archives whose contents are known, and the truth beside them.
//!
//! [`write()`] takes a [`Plan`] and leaves an archive in the real layout (`{epoch}/epoch-{epoch}.car`, `.cid`,
//! `-slot-ranges.raw`), the demo's program folders, and `truth/`: every event that a correct backfill must load. The same plan
//! writes the same bytes. [`write_large`] writes gigabytes, for measurements, and [`Server`] serves an archive over HTTP, badly
//! when asked to, and [`RpcServer`] answers for its chain as an RPC node does. Nothing here is shared with the reader or the decoder, so that agreement between the two sides
//! proves something.
//!
//! ```
//! # fn main() -> Result<(), archive_sim::SimError> {
//! let folder = tempfile::tempdir()?;
//! let plan = archive_sim::Plan::of_range(1_292_200, 1_292_549, 350);
//! let summary = archive_sim::write(folder.path(), &plan)?;
//! assert_eq!(summary.chunks.len(), 1);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
// Byte writers narrow integers all the time, on purpose, after checking lengths.
#![allow(clippy::cast_possible_truncation)]

mod bincode;
mod borsh;
mod car;
mod cbor;
mod chain;
mod compact;
mod demo;
mod epoch;
mod faults;
mod http;
mod instructions;
mod large;
mod layouts;
mod logs;
mod metadata;
mod pieces;
mod plan;
mod programs;
mod rpc;
mod serve;

mod tables;
mod transaction;
mod truth;
mod wire;
mod writer;

pub use faults::{Fault, FaultKind, Meets};
pub use large::{LARGE_CHUNK_SLOTS, LargePlan, LargeProgram, LargeSummary, write_large};
pub use plan::{Indexes, MetadataFormat, Pieces, Plan, SplitTool};
pub use rpc::{RpcFault, RpcFaultKind, RpcServer};
pub use serve::Server;

pub use truth::{ChunkSummary, ProgramSummary, Summary};
pub use writer::write;

/// A 32-byte account key.
pub(crate) type Pubkey = [u8; 32];

/// Slots of an epoch.
pub const SLOTS_PER_EPOCH: u64 = 432_000;

/// The address of one of the simulator's programs, in base58.
pub fn program_address(name: &str) -> String {
    base58(&programs::program_id(name))
}

/// Why an archive could not be written or served.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A file could not be written or served.
    #[error("cannot write or serve the archive: {0}")]
    Io(#[from] std::io::Error),
    /// The truth could not be put into JSON.
    #[error("cannot write the truth: {0}")]
    Json(#[from] serde_json::Error),
    /// The plan contradicts itself.
    #[error("the plan cannot be written: {0}")]
    Plan(String),
    /// A fault is not written as `KIND[=VALUE][@EVERY]`.
    #[error("no such fault: {0}")]
    Fault(String),
}

/// Base58, as Solana writes keys and signatures.
pub(crate) fn base58(bytes: &[u8]) -> String {
    bs58::encode(bytes).into_string()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes everything
        text
    })
}
