//! Whole blocks in ascending order in, events out: checks that every block follows the one before it, sums up
//! certificates, and places checkpoints. How blocks are read, and in which order, belongs in [`scan`](crate::scan).

use std::collections::{BTreeSet, VecDeque};

use crate::certificate::{BlockLink, Certificate, IndexKind, ProgramCounts, Tail};
use crate::error::ArchiveError;
use crate::model::{Pubkey, SLOTS_PER_EPOCH, ScanEvent, Verify};
use crate::place::Place;
use crate::scanner::{BlockCounts, ScannedBlock};

/// Sums up a scan.
#[derive(Debug)]
pub(crate) struct Assembler {
    programs: Vec<Pubkey>,
    /// Counts of the stretch, in the order of `programs`.
    counts: Vec<ProgramCounts>,
    checkpoint_slots: u64,
    /// From the scan's start to the last checkpoint.
    total: Certificate,
    /// From the last checkpoint on.
    stretch: Certificate,
    last_slot: Option<u64>,
    /// Epochs read by the older indexes.
    older: BTreeSet<u64>,
    events: VecDeque<ScanEvent>,
}

impl Assembler {
    /// Begins at `start`. `checkpoint_slots` 0 = only at the end.
    pub(crate) fn new(
        programs: Vec<Pubkey>,
        checkpoint_slots: u64,
        start: u64,
        index: IndexKind,
        verify: Verify,
    ) -> Self {
        Self {
            counts: vec![ProgramCounts::default(); programs.len()],
            programs,
            checkpoint_slots,
            total: Certificate::empty(start, index, verify),
            stretch: Certificate::empty(start, index, verify),
            last_slot: None,
            older: BTreeSet::new(),
            events: VecDeque::new(),
        }
    }

    /// The next event for the consumer.
    pub(crate) fn next_event(&mut self) -> Option<ScanEvent> {
        self.events.pop_front()
    }

    /// The blocks of `epoch` are listed by the older indexes.
    pub(crate) fn by_older_indexes(&mut self, epoch: u64) {
        self.older.insert(epoch);
    }

    /// The index lists a block of `slot`, the next one to come.
    pub(crate) fn expect(&mut self, slot: u64) -> Result<(), ArchiveError> {
        self.checkpoints_through(slot)?;
        self.stretch.slots_with_blocks += 1;
        Ok(())
    }

    /// Takes the next block. `bytes` is what it takes in the file.
    pub(crate) fn block(
        &mut self,
        scanned: ScannedBlock,
        bytes: u64,
        place: &Place<'_>,
    ) -> Result<(), ArchiveError> {
        let block = scanned.block;
        let link = BlockLink {
            slot: block.slot,
            parent_slot: block.parent_slot,
        };
        self.check_follows(link, place)?;
        self.last_slot = Some(block.slot);
        self.stretch.first_block.get_or_insert(link);
        self.stretch.last_block_slot = Some(block.slot);
        self.stretch.blocks += 1;
        self.stretch.bytes += bytes;
        self.count(&scanned.counts);
        for transaction in &block.matches {
            for mention in &transaction.mentions {
                let Some(counts) = self.counts.get_mut(usize::from(mention.program)) else {
                    continue;
                };
                counts.matched += 1;
                counts.matched_by_lookup_only += u64::from(mention.lookup_only);
                counts.failed += u64::from(transaction.failed());
                counts.unrecorded += u64::from(!transaction.is_recorded());
            }
        }
        if !block.matches.is_empty() {
            self.events.push_back(ScanEvent::Block(block));
        }
        Ok(())
    }

    fn count(&mut self, counts: &BlockCounts) {
        self.stretch.transactions += counts.transactions;
        self.stretch.votes += counts.votes;
        self.stretch.entries += counts.entries;
        self.stretch.missing_metadata += counts.missing_metadata;
        self.stretch.unresolved_lookups += counts.unresolved_lookups;
        self.stretch.cids_verified += counts.cids_verified;
    }

    /// Sections that belong to no block were hashed.
    pub(crate) fn count_cids(&mut self, count: u64) {
        self.stretch.cids_verified += count;
    }

    /// The range ends at `end`, and `tail` is the first block after it, where the archive has one.
    pub(crate) fn finish(
        &mut self,
        end: u64,
        tail: Option<(BlockLink, &Place<'_>)>,
    ) -> Result<(), ArchiveError> {
        self.checkpoints_through(end)?;
        if self.stretch.start_slot < end || self.total.start_slot == end {
            self.checkpoint(end)?;
        }
        let mut certificate = self.total.clone();
        certificate.tail = Tail::Unproven;
        if let Some((link, place)) = tail {
            self.check_follows(link, place)?;
            certificate.tail = Tail::Proven;
            certificate.next_block = Some(link);
        }
        certificate
            .holds()
            .map_err(|source| ArchiveError::CertificateBroken {
                start: certificate.start_slot,
                end: certificate.end_slot,
                source,
            })?;
        self.events.push_back(ScanEvent::Done { certificate });
        Ok(())
    }

    /// Whether a block can be the next one.
    fn check_follows(&self, link: BlockLink, place: &Place<'_>) -> Result<(), ArchiveError> {
        let BlockLink { slot, parent_slot } = link;
        let start = self.total.start_slot;
        match self.last_slot {
            Some(last) if slot <= last => {
                Err(place.chain(slot, format!("it comes after the block of slot {last}")))
            }
            Some(last) if parent_slot != last => Err(place.chain(
                slot,
                format!("its parent is slot {parent_slot}, but the block before it is slot {last}"),
            )),
            None if !link.begins(start) => Err(place.chain(
                slot,
                format!(
                    "its parent is slot {parent_slot}, but no block was found from slot {start} on"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Places the checkpoints up to and including `slot`.
    fn checkpoints_through(&mut self, slot: u64) -> Result<(), ArchiveError> {
        if self.checkpoint_slots == 0 {
            return Ok(());
        }
        loop {
            let begun = self.stretch.start_slot / self.checkpoint_slots;
            let next = (begun + 1).saturating_mul(self.checkpoint_slots);
            if next > slot {
                return Ok(());
            }
            self.checkpoint(next)?;
        }
    }

    fn checkpoint(&mut self, slot: u64) -> Result<(), ArchiveError> {
        let (index, verify) = (self.stretch.index, self.total.verify);
        let start = self.stretch.start_slot;
        let mut stretch =
            std::mem::replace(&mut self.stretch, Certificate::empty(slot, index, verify));
        stretch.end_slot = slot;
        // Every certificate names all programs, also those of which nothing was found.
        for (program, counts) in self.programs.iter().zip(&mut self.counts) {
            *stretch.program_mut(program) = std::mem::take(counts);
        }
        if start < slot {
            stretch.epochs = (start / SLOTS_PER_EPOCH..=(slot - 1) / SLOTS_PER_EPOCH).collect();
            if stretch
                .epochs
                .iter()
                .any(|epoch| self.older.contains(epoch))
            {
                stretch.index = IndexKind::SlotToCid;
            }
        }
        let total = std::mem::replace(&mut self.total, Certificate::empty(slot, index, verify));
        self.total =
            total
                .merge(stretch.clone())
                .map_err(|source| ArchiveError::CertificateBroken {
                    start,
                    end: slot,
                    source,
                })?;
        self.events.push_back(ScanEvent::Checkpoint {
            slot,
            certificate: stretch,
        });
        Ok(())
    }
}
