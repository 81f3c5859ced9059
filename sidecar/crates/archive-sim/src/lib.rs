//! Writes simulated Old Faithful archives whose contents are known, and the truth beside them.
//!
//! [`write()`] takes a [`Plan`] and leaves an archive in the real layout (`{epoch}/epoch-{epoch}.car`, `.cid`,
//! `-slot-ranges.raw`), the demo's program folders, and `truth/`: every event that a correct backfill must load. The same plan
//! writes the same bytes. Nothing here is shared with the reader or the decoder, so that agreement between the two sides
//! proves something. [`write_large`] writes gigabytes for measurements, and counts what is in them.
//!
//! ```
//! # fn main() -> Result<(), archive_sim::SimError> {
//! let folder = tempfile::tempdir()?;
//! let plan = archive_sim::Plan { last_slot: 1_292_549, to_slot: 1_292_560, ..archive_sim::Plan::default() };
//! let summary = archive_sim::write(folder.path(), &plan)?;
//! assert_eq!(summary.chunks.len(), 1);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
// Byte writers narrow integers all the time, on purpose, after checking lengths.
#![allow(clippy::cast_possible_truncation)]

mod car;
mod cbor;
mod chain;
mod events;
mod large;
mod metadata;
mod transaction;
mod truth;
mod writer;

use serde::Serialize;

pub use large::{LARGE_CHUNK_SLOTS, LargePlan, LargeProgram, LargeSummary, write_large};
pub use truth::{ChunkSummary, ProgramSummary, Summary};
pub use writer::write;

/// A 32-byte account key.
pub(crate) type Pubkey = [u8; 32];

/// Slots of an epoch.
pub const SLOTS_PER_EPOCH: u64 = 432_000;

/// What to write. `Default` is the demo's archive: 24 chunks of 350 slots across the end of epoch 2, one chunk empty.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Everything is drawn from it.
    pub seed: u64,
    /// The first slot that may have a block.
    pub from_slot: u64,
    /// The first slot that no longer may.
    pub to_slot: u64,
    /// First slot of the range that the truth speaks of.
    pub first_slot: u64,
    /// Last slot of that range, inclusive. Blocks beyond it prove the last chunk's end.
    pub last_slot: u64,
    /// Slots in a chunk, for the summary.
    pub chunk_slots: u64,
    /// Slots `[start, end)` that have no block at all.
    pub empty_slots: Option<(u64, u64)>,
    /// So many of 100 slots have no block.
    pub skipped_percent: u32,
    /// So many of 1,000 events are spoiled, so that no IDL decodes them.
    pub undecodable_per_mille: u32,
    /// Payloads longer than this many bytes are split into chains of frames.
    pub frame_bytes: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 1,
            from_slot: 1_292_175,
            to_slot: 1_300_640,
            first_slot: 1_292_200,
            last_slot: 1_300_599,
            chunk_slots: 350,
            empty_slots: Some((1_293_950, 1_294_300)),
            skipped_percent: 8,
            undecodable_per_mille: 5,
            frame_bytes: 1_500,
        }
    }
}

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A file could not be written.
    #[error("cannot write the archive: {0}")]
    Io(#[from] std::io::Error),
    /// The truth could not be put into JSON.
    #[error("cannot write the truth: {0}")]
    Json(#[from] serde_json::Error),
    /// The plan contradicts itself.
    #[error("the plan cannot be written: {0}")]
    Plan(String),
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
