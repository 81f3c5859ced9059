//! Sections in, whole blocks out: checks that every block is made of exactly the entries and transactions before
//! it, and holds its matches until it is known whole. No input or output here; how blocks chain belongs in
//! [`assembler`](crate::assembler).

use std::sync::Arc;

use crate::car::Section;
use crate::counters::Counters;
use crate::dataframe::{Frames, hash_matches, section_hash};
use crate::error::ArchiveError;
use crate::matches::Matches;
use crate::model::{Block, SLOTS_PER_EPOCH, Verify};
use crate::node::{BlockNode, EntryNode, Kind, TransactionNode};
use crate::place::Place;
use crate::transaction::{Position, TransactionReader, TransactionSection};

/// `DataFrame` sections kept for one block at most, in bytes. The rewards of an epoch's first block are the most
/// that real ones have.
const MAXIMUM_FRAME_BYTES: usize = 256 << 20;
/// Memory that the matches of one block may take, in bytes: about 50 times a full block.
const MAXIMUM_MATCHED_BYTES: usize = 512 << 20;

/// What was counted in a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BlockCounts {
    pub(crate) transactions: u64,
    pub(crate) votes: u64,
    pub(crate) entries: u64,
    pub(crate) missing_metadata: u64,
    pub(crate) unresolved_lookups: u64,
    pub(crate) cids_verified: u64,
    pub(crate) decompressions: u64,
    pub(crate) decompressions_avoided: u64,
}

/// A whole block.
#[derive(Debug)]
pub(crate) struct ScannedBlock {
    pub(crate) block: Block,
    pub(crate) counts: BlockCounts,
    /// Where its Block section begins in the file.
    pub(crate) offset: u64,
    /// The first byte after its Block section.
    pub(crate) end: u64,
    /// The memory that its matches hold, in bytes.
    pub(crate) matched_bytes: usize,
}

impl ScannedBlock {
    /// Adds the block to the archive's counters; `bytes` is what it takes in the file.
    pub(crate) fn count(&self, bytes: u32, counters: &Counters) {
        counters.blocks.add(1);
        counters.bytes_scanned.add(u64::from(bytes));
        counters.transactions.add(self.counts.transactions);
        counters.matches.add(self.block.matches.len() as u64);
        counters.decompressions.add(self.counts.decompressions);
        counters
            .decompressions_avoided
            .add(self.counts.decompressions_avoided);
    }
}

/// Makes blocks of sections.
#[derive(Debug)]
pub(crate) struct BlockScanner {
    verify: Verify,
    /// The slot of the block that is being read, as soon as something names it.
    slot: Option<u64>,
    frames: Frames,
    /// Hashes of the Transaction sections of this block, and how many of them entries have claimed.
    transaction_hashes: Vec<[u8; 32]>,
    claimed: usize,
    /// Hashes of the Entry sections of this block.
    entry_hashes: Vec<[u8; 32]>,
    matches: Matches,
    counts: BlockCounts,
}

impl BlockScanner {
    pub(crate) fn new(verify: Verify) -> Self {
        Self {
            verify,
            slot: None,
            frames: Frames::default(),
            transaction_hashes: Vec::new(),
            claimed: 0,
            entry_hashes: Vec::new(),
            matches: Matches::default(),
            counts: BlockCounts::default(),
        }
    }

    /// The slot of the block whose sections follow, for errors before anything names it.
    pub(crate) fn expect(&mut self, slot: u64) {
        self.slot = Some(slot);
    }

    /// Whether sections of a block were read, but not its end.
    pub(crate) fn is_inside_block(&self) -> bool {
        !self.transaction_hashes.is_empty()
            || !self.entry_hashes.is_empty()
            || !self.frames.is_empty()
    }

    /// Sections hashed since the last block.
    pub(crate) fn cids_since_block(&self) -> u64 {
        self.counts.cids_verified
    }

    /// Takes the next section of the file `car`; a block, when it was its last. Transactions are read by `transactions`.
    pub(crate) fn section(
        &mut self,
        section: &Section<'_>,
        car: &Arc<str>,
        transactions: &mut TransactionReader,
    ) -> Result<Option<Box<ScannedBlock>>, ArchiveError> {
        let place = Place {
            car,
            slot: self.slot,
            offset: section.offset,
        };
        let kind = Kind::of(section.node).map_err(|fault| place.node(fault))?;
        let hashed = match self.verify {
            Verify::Full => true,
            Verify::Matched => matches!(kind, Kind::Block | Kind::Entry),
            Verify::Off => false,
        };
        if hashed {
            if !hash_matches(section.hash, section.node) {
                return Err(place.cid());
            }
            self.counts.cids_verified += 1;
        }
        match kind {
            Kind::Transaction => self.transaction(section, &place, transactions)?,
            Kind::Entry => self.entry(section, &place)?,
            Kind::Block => {
                return self
                    .block(section, &place)
                    .map(|block| Some(Box::new(block)));
            }
            Kind::DataFrame => {
                let bytes = self.frames.insert(*section.hash, section.node);
                if bytes > MAXIMUM_FRAME_BYTES {
                    let limit = MAXIMUM_FRAME_BYTES as u64;
                    return Err(place.too_large("a block's frames", bytes as u64, limit));
                }
            }
            Kind::Rewards | Kind::Subset | Kind::Epoch => {}
        }
        Ok(None)
    }

    fn transaction(
        &mut self,
        section: &Section<'_>,
        place: &Place<'_>,
        transactions: &mut TransactionReader,
    ) -> Result<(), ArchiveError> {
        let node = TransactionNode::parse(section.node).map_err(|fault| place.node(fault))?;
        let slot = *self.slot.get_or_insert(node.slot);
        if node.slot != slot {
            let reason = format!("a transaction of slot {} lies in this block", node.slot);
            return Err(place.chain(slot, reason));
        }
        let index = self.transaction_hashes.len();
        if node.index.is_some_and(|stored| stored != index as u64) {
            let stored = node.index.unwrap_or_default();
            let reason = format!(
                "its transaction number {index}, counted from 0, says that it is number {stored}"
            );
            return Err(place.chain(slot, reason));
        }
        let position = Position {
            index: u32::try_from(index)
                .map_err(|_| place.node("a block has more transactions than can be counted"))?,
            epoch: u32::try_from(slot / SLOTS_PER_EPOCH)
                .map_err(|_| place.node("a slot is impossibly high"))?,
        };
        let whole = TransactionSection {
            section,
            node: &node,
            frames: &self.frames,
            place,
        };
        let (counts, matches) = (&mut self.counts, &mut self.matches);
        transactions.read(&whole, position, counts, matches)?;
        self.transaction_hashes.push(*section.hash);
        if matches.memory() > MAXIMUM_MATCHED_BYTES {
            let (bytes, limit) = (matches.memory() as u64, MAXIMUM_MATCHED_BYTES as u64);
            return Err(place.too_large("a block's matched transactions", bytes, limit));
        }
        Ok(())
    }

    fn entry(&mut self, section: &Section<'_>, place: &Place<'_>) -> Result<(), ArchiveError> {
        let node = EntryNode::parse(section.node).map_err(|fault| place.node(fault))?;
        for cid in &node.transactions {
            if self.transaction_hashes.get(self.claimed) != section_hash(cid) {
                return Err(place.chain(
                    place.slot.or(self.slot).unwrap_or_default(),
                    format!(
                        "entry {} lists a transaction that is not the one that comes next, number {}",
                        self.entry_hashes.len(),
                        self.claimed
                    ),
                ));
            }
            self.claimed += 1;
        }
        self.entry_hashes.push(*section.hash);
        self.counts.entries += 1;
        Ok(())
    }

    fn block(
        &mut self,
        section: &Section<'_>,
        place: &Place<'_>,
    ) -> Result<ScannedBlock, ArchiveError> {
        let node = BlockNode::parse(section.node).map_err(|fault| place.node(fault))?;
        let slot = self.slot.unwrap_or(node.slot);
        if node.slot != slot {
            return Err(place.chain(slot, format!("its Block node says slot {}", node.slot)));
        }
        let read = self.transaction_hashes.len();
        if self.claimed != read {
            let reason = format!(
                "its entries list {} transactions, {read} were read",
                self.claimed
            );
            return Err(place.chain(slot, reason));
        }
        let listed = node.entries.iter().map(section_hash);
        if !listed.eq(self.entry_hashes.iter().map(Some)) {
            let reason = format!(
                "it lists {} entries, which are not the {} that were read",
                node.entries.len(),
                self.entry_hashes.len()
            );
            return Err(place.chain(slot, reason));
        }
        let matched_bytes = self.matches.memory();
        let block = ScannedBlock {
            block: Block {
                slot,
                parent_slot: node.parent_slot,
                block_time: node.block_time,
                block_height: node.block_height,
                matches: self.matches.take(),
            },
            counts: self.counts,
            offset: section.offset,
            end: section.offset + section.length,
            matched_bytes,
        };
        self.begin_block();
        Ok(block)
    }

    fn begin_block(&mut self) {
        self.slot = None;
        self.frames.clear();
        self.transaction_hashes.clear();
        self.claimed = 0;
        self.entry_hashes.clear();
        self.counts = BlockCounts::default();
    }
}
