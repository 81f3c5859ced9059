//! What to write: the slots of an archive, how much happens in them, and how often a reader is tried.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{SLOTS_PER_EPOCH, SimError};

/// How an epoch's metadata is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MetadataFormat {
    /// As today: a protocol buffer, mostly compressed.
    #[default]
    Protobuf,
    /// As the early epochs: bincode, half of it compressed, of some transactions nothing behind their balances. All transactions are legacy ones.
    Bincode,
    /// As the first epochs: there is none. All transactions are legacy ones.
    Absent,
}

/// Which indexes an epoch comes with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Indexes {
    /// The slot-ranges file.
    #[default]
    SlotRanges,
    /// The older pair: slots to CIDs, CIDs to places. A few slots without a block answer with another's.
    Older,
    /// Both.
    Both,
}

/// Whose pieces a CAR file is split into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SplitTool {
    /// `faithful-cli split-car`: pieces of whole blocks, each closed by a Subset node of its own.
    FaithfulCli,
    /// `split-and-commp` of go-fil-dataprep: pieces that are cut between any two sections.
    DataPrep,
}

/// How an epoch's CAR file is split into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pieces {
    /// Whose pieces they are.
    pub tool: SplitTool,
    /// Bytes of a piece: at most for faithful-cli, at least for go-fil-dataprep.
    pub bytes: u64,
}

/// What [`crate::write`] writes. `Default` is the demo's archive: 24 chunks of 350 slots across the end of epoch 2, the
/// sixth of them empty, and blocks on either side that prove the first chunk's head and the last chunk's tail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Everything is drawn from it.
    pub seed: u64,
    /// The first slot of the archive. It always has a block.
    pub from_slot: u64,
    /// The first slot after the archive. The slot before it always has a block.
    pub to_slot: u64,
    /// First slot of the range that the truth speaks of; there is at least one block before it.
    pub first_slot: u64,
    /// Last slot of that range, inclusive; there is at least one block after it.
    pub last_slot: u64,
    /// Slots in a chunk, for the summary.
    pub chunk_slots: u64,
    /// Slots `[start, end)` that have no block at all.
    pub empty_slots: Option<(u64, u64)>,
    /// So many of 100 slots have no block.
    pub skipped_percent: u32,
    /// Vote transactions of a block: at least and below.
    pub votes: (u32, u32),
    /// Transactions of a block that have nothing to do with the demo's programs: at least and below.
    pub unrelated: (u32, u32),
    /// Transactions of a block that mention the demo's programs: at least and below. Each says about two events.
    pub demo: (u32, u32),
    /// So many of 100 events are spoiled, so that no IDL decodes them.
    pub undecodable_percent: f64,
    /// Payloads longer than this many bytes are split into chains of frames.
    pub frame_bytes: usize,
    /// So many of 100 nodes are encoded as only old files are: longer heads than needed, frames of five elements, FNV hashes,
    /// transactions without their place.
    pub unusual_percent: u32,
    /// So many of 100 transactions have no metadata. What they did cannot be known, so the truth leaves it out.
    pub missing_metadata_percent: u32,
    /// Slots at which the layout of an event of `vault` changes: for the first and for the second time.
    pub layout_changes: Option<(u64, u64)>,
    /// How metadata is written.
    pub metadata: MetadataFormat,
    /// Which indexes epochs come with.
    pub indexes: Indexes,
    /// Whether epochs come in pieces, without the CAR file itself.
    pub pieces: Option<Pieces>,
}

/// Slots before the range, and after it, that may have blocks: 25 and 40.
const MARGIN: (u64, u64) = (25, 40);

/// Chunks of the demo's archive.
const CHUNKS: u64 = 24;

impl Default for Plan {
    fn default() -> Self {
        Self::across_the_end_of(2, 350)
    }
}

impl Plan {
    /// The demo's plan at another place: 24 chunks of `chunk_slots`, eleven of which begin and end before the end of `epoch`.
    pub fn across_the_end_of(epoch: u64, chunk_slots: u64) -> Self {
        let chunk_slots = chunk_slots.max(1);
        let boundary = (epoch + 1) * SLOTS_PER_EPOCH;
        let first_chunk = (boundary / chunk_slots).saturating_sub(10).max(1);
        let first_slot = first_chunk * chunk_slots;
        Self::of_range(
            first_slot,
            first_slot + CHUNKS * chunk_slots - 1,
            chunk_slots,
        )
    }

    /// The demo's plan over the slots from `first_slot` to `last_slot`, inclusive. The sixth chunk is empty if the range has
    /// more than six.
    pub fn of_range(first_slot: u64, last_slot: u64, chunk_slots: u64) -> Self {
        let chunk_slots = chunk_slots.max(1);
        let empty = (first_slot / chunk_slots + 5) * chunk_slots;
        Self {
            seed: 1,
            from_slot: first_slot.saturating_sub(MARGIN.0).max(1),
            to_slot: last_slot.saturating_add(MARGIN.1 + 1),
            first_slot,
            last_slot,
            chunk_slots,
            empty_slots: (empty + chunk_slots <= last_slot).then_some((empty, empty + chunk_slots)),
            skipped_percent: 8,
            votes: (2, 8),
            unrelated: (0, 3),
            demo: (0, 4),
            undecodable_percent: 0.5,
            frame_bytes: 1_500,
            unusual_percent: 2,
            missing_metadata_percent: 0,
            layout_changes: None,
            metadata: MetadataFormat::default(),
            indexes: Indexes::default(),
            pieces: None,
        }
    }

    /// Whether a slot belongs to the range that the truth speaks of.
    pub fn in_range(&self, slot: u64) -> bool {
        (self.first_slot..=self.last_slot).contains(&slot)
    }

    /// Refuses a plan that contradicts itself.
    pub(crate) fn check(&self) -> Result<(), SimError> {
        let refuse = |text: &str| Err(SimError::Plan(text.into()));
        if self.from_slot == 0 || self.from_slot >= self.first_slot {
            return refuse(
                "from_slot must be above 0 and below first_slot: the first chunk's head is proved by a block before it",
            );
        }
        if self.first_slot > self.last_slot || self.last_slot >= self.to_slot.saturating_sub(1) {
            return refuse(
                "first_slot must not be above last_slot, and to_slot at least last_slot + 2: the last chunk's tail is \
                 proved by a block after it",
            );
        }
        if self.to_slot - self.from_slot > 4 * SLOTS_PER_EPOCH {
            return refuse("more than four epochs of slots; write-large writes large archives");
        }
        if self.chunk_slots == 0 || self.frame_bytes == 0 {
            return refuse("chunk_slots and frame_bytes must be above 0");
        }
        if self.pieces.is_some_and(|pieces| pieces.bytes == 0) {
            return refuse("pieces must have bytes");
        }
        if let Some((start, end)) = self.empty_slots
            && (start >= end || start <= self.from_slot || end >= self.to_slot)
        {
            return refuse(
                "empty_slots must have a slot, and leave the archive's first and last slot alone",
            );
        }
        if self
            .layout_changes
            .is_some_and(|(second, third)| second == 0 || second >= third)
        {
            return refuse("layout_changes must be two slots above 0, the first below the second");
        }
        for (name, (least, below)) in [
            ("votes", self.votes),
            ("unrelated", self.unrelated),
            ("demo", self.demo),
        ] {
            if least >= below || below > 10_000 {
                return Err(SimError::Plan(format!(
                    "{name} must be a range of at most 10,000 that is not empty"
                )));
            }
        }
        if self.skipped_percent > 100
            || self.unusual_percent > 100
            || self.missing_metadata_percent > 100
            || !(0.0..=100.0).contains(&self.undecodable_percent)
        {
            return refuse("percentages lie between 0 and 100");
        }
        Ok(())
    }
}
