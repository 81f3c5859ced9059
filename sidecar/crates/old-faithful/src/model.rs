//! What a reader of the archive is asked for and what it answers: slot ranges, requests, blocks and matched
//! transactions. Plain data; how it is read belongs in the other modules.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::certificate::Certificate;
use crate::error::Malformed;
use crate::metadata::{LoadedKeys, Metadata, Summary};
use crate::wire::{WireInstruction, WireTransaction};

/// A 32-byte account or program address.
pub type Pubkey = [u8; 32];

/// Slots in an epoch of the archive; `epoch = slot / SLOTS_PER_EPOCH`.
pub const SLOTS_PER_EPOCH: u64 = 432_000;

/// A half-open range of slots, `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlotRange {
    /// The first slot.
    pub start: u64,
    /// The first slot after the range.
    pub end: u64,
}

impl SlotRange {
    /// A range of slots `[start, end)`.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    /// Whether `slot` lies in the range.
    #[must_use]
    pub const fn contains(&self, slot: u64) -> bool {
        self.start <= slot && slot < self.end
    }

    /// Whether the range has no slot.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start >= self.end
    }
}

/// How much of what is read is hashed and compared with its CID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Every section: nothing that was read can have been changed. The default, because without it one flipped
    /// byte of a key drops a match silently.
    #[default]
    Full,
    /// The sections of matched transactions, and every Block and Entry section.
    Matched,
    /// None.
    Off,
}

/// What to read with [`Archive::scan`](crate::Archive::scan).
#[derive(Debug, Clone)]
pub struct ScanRequest {
    /// The slots to read.
    pub range: SlotRange,
    /// The programs looked for. A transaction matches when its account keys, static or loaded, hold any of them.
    pub programs: Vec<Pubkey>,
    /// What is hashed.
    pub verify: Verify,
    /// Checkpoints fall at multiples of this number of slots, and at the end of the range. 0 = only at the end.
    pub checkpoint_slots: u64,
}

/// What to read with [`Archive::scan_car_file`](crate::Archive::scan_car_file).
#[derive(Debug, Clone)]
pub struct BareScanRequest {
    /// The programs looked for.
    pub programs: Vec<Pubkey>,
    /// What is hashed.
    pub verify: Verify,
}

/// One step of a scan.
#[derive(Debug, Clone)]
pub enum ScanEvent {
    /// A block with at least one match. Ascending slots; blocks without matches are left out.
    Block(Block),
    /// Everything before `slot` was yielded.
    Checkpoint {
        /// The first slot not yet read.
        slot: u64,
        /// The certificate of the stretch from the previous checkpoint (or the range's start) to `slot`; its tail
        /// is [`Tail::Unread`](crate::Tail::Unread).
        certificate: Certificate,
    },
    /// The scan is complete. Yielded last, and only when the certificate holds.
    Done {
        /// The certificate of the whole range, with the tail's verdict.
        certificate: Certificate,
    },
}

/// A block, with the transactions that matched.
#[derive(Debug, Clone)]
pub struct Block {
    /// The block's slot.
    pub slot: u64,
    /// The slot of the block before it.
    pub parent_slot: u64,
    /// Unix time in seconds; `None` when the block says 0 or nothing.
    pub block_time: Option<i64>,
    /// Blocks below this one; `None` in early epochs.
    pub block_height: Option<u64>,
    /// The matched transactions, in their order in the block.
    pub matches: Vec<MatchedTransaction>,
}

/// A transaction that mentions at least one of the programs asked for. Its bytes share one piece of memory with those
/// of the block's other matches; what they say is read by [`parts`](Self::parts), which copies next to nothing.
#[derive(Debug, Clone)]
pub struct MatchedTransaction {
    /// The slot of its block.
    pub slot: u64,
    /// Its place in the block, counted while reading.
    pub index: u32,
    /// Where its section begins in the epoch's CAR file, in bytes.
    pub archive_offset: u64,
    /// The epoch of the CAR file.
    pub epoch: u32,
    /// Which of the programs asked for it mentions, in the order of the request.
    pub mentions: Vec<Mention>,
    sent: Bytes,
    /// Decompressed; `None` = the archive has none that can be read.
    metadata: Option<Bytes>,
    summary: Summary,
}

/// That a transaction mentions a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mention {
    /// The program, as an index into the request's `programs`.
    pub program: u16,
    /// Whether only keys loaded from lookup tables mention it.
    pub lookup_only: bool,
}

/// Where a transaction was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionPlace {
    /// The slot of its block.
    pub slot: u64,
    /// Its place in the block, counted.
    pub index: u32,
    /// Where its section begins in the epoch's CAR file, in bytes.
    pub archive_offset: u64,
    /// The epoch of the CAR file.
    pub epoch: u32,
}

/// What a matched transaction says, borrowed from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionParts<'a> {
    /// The transaction's first signature.
    pub signature: &'a [u8; 64],
    /// The account keys instructions refer to: static, then loaded writable, then loaded readonly.
    pub account_keys: Vec<Pubkey>,
    /// How many of `account_keys` are static.
    pub static_key_count: usize,
    /// The top-level instructions.
    pub instructions: Vec<WireInstruction<'a>>,
    /// What executing it left behind; `None` = the archive has none that can be read.
    pub metadata: Option<Metadata<'a>>,
}

impl MatchedTransaction {
    /// Takes a transaction as sent and its decompressed metadata; whether that can be read, [`Self::has_metadata`]
    /// tells.
    #[must_use]
    pub fn new(
        place: TransactionPlace,
        mentions: Vec<Mention>,
        sent: Bytes,
        metadata: Option<Bytes>,
    ) -> Self {
        let read = metadata.and_then(|bytes| {
            let summary = Summary::read(&bytes, &mut LoadedKeys::default()).ok()?;
            Some((bytes, summary))
        });
        Self::with_summary(place, mentions, sent, read)
    }

    /// Takes a transaction as sent, and its decompressed metadata with what was read of it.
    pub(crate) fn with_summary(
        place: TransactionPlace,
        mentions: Vec<Mention>,
        sent: Bytes,
        metadata: Option<(Bytes, Summary)>,
    ) -> Self {
        let (metadata, summary) = metadata.unzip();
        Self {
            slot: place.slot,
            index: place.index,
            archive_offset: place.archive_offset,
            epoch: place.epoch,
            mentions,
            sent,
            metadata,
            summary: summary.unwrap_or_default(),
        }
    }

    /// What it says. Bytes that no reader handed on may be malformed.
    pub fn parts(&self) -> Result<TransactionParts<'_>, Malformed> {
        let sent = WireTransaction::parse(&self.sent)?;
        let metadata = self.metadata.as_deref().map(Metadata::parse).transpose()?;
        let loaded = metadata.iter().flat_map(Metadata::loaded).copied();
        let mut account_keys = Vec::with_capacity(sent.static_keys.len() + sent.loaded_keys());
        account_keys.extend_from_slice(sent.static_keys);
        account_keys.extend(loaded);
        Ok(TransactionParts {
            signature: sent.signature,
            account_keys,
            static_key_count: sent.static_keys.len(),
            instructions: sent.instructions().collect(),
            metadata,
        })
    }

    /// Whether the archive has metadata of it that can be read.
    pub fn has_metadata(&self) -> bool {
        self.metadata.is_some()
    }

    /// Whether the transaction is known to have failed. Without metadata nothing is known, and the answer is no.
    pub fn failed(&self) -> bool {
        self.summary.failed
    }

    /// Whether the archive has everything that was said in the transaction.
    pub fn is_recorded(&self) -> bool {
        self.summary.recorded
    }
}
