//! One transaction: does it mention a program, and if so, everything about it. Static keys are looked at first,
//! on the bytes as sent; metadata is decompressed only where its loaded keys can decide or the transaction
//! matched. How transactions make a block belongs in [`scanner`](crate::scanner).

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use crate::car::Section;
use crate::dataframe::{
    Frames, MAXIMUM_PAYLOAD_BYTES, PayloadFault, check_hash, hash_matches, payload,
};
use crate::error::ArchiveError;
use crate::filter::{Mentions, ProgramFilter};
use crate::lookup::{Dismissals, LearnedTables, learn};
use crate::matches::Matches;
use crate::metadata::{Inflater, LoadedKeys, Summary};
use crate::model::{TransactionPlace, Verify};
use crate::node::{DataFrame, TransactionNode};
use crate::place::Place;
use crate::scanner::BlockCounts;
use crate::wire::WireTransaction;

/// Where a transaction is in its block and archive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    pub(crate) index: u32,
    pub(crate) epoch: u32,
}

/// The transaction readers of a scan. A segment borrows one while it scans what has arrived, not while it waits for more: as
/// many are made as threads scan, and what one knows of lookup tables, its buffers too, serves every segment.
#[derive(Debug)]
pub(crate) struct TransactionReaders {
    filter: Arc<ProgramFilter>,
    verify: Verify,
    learned: Arc<LearnedTables>,
    idle: Mutex<Vec<TransactionReader>>,
}

impl TransactionReaders {
    pub(crate) fn new(
        filter: Arc<ProgramFilter>,
        verify: Verify,
        learned: Arc<LearnedTables>,
    ) -> Self {
        Self {
            filter,
            verify,
            learned,
            idle: Mutex::default(),
        }
    }

    /// What is hashed of what they read.
    pub(crate) fn verify(&self) -> Verify {
        self.verify
    }

    pub(crate) fn take(&self) -> TransactionReader {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        idle.unwrap_or_else(|| {
            let (filter, learned) = (Arc::clone(&self.filter), Arc::clone(&self.learned));
            TransactionReader::new(filter, self.verify, learned)
        })
    }

    pub(crate) fn give_back(&self, reader: TransactionReader) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(reader);
    }
}

/// Reads transactions, one after another, with the same buffers and everything learned so far.
#[derive(Debug)]
pub(crate) struct TransactionReader {
    filter: Arc<ProgramFilter>,
    verify: Verify,
    inflater: Inflater,
    mentions: Mentions,
    learned: Arc<LearnedTables>,
    dismissals: Dismissals,
    loaded: LoadedKeys,
}

impl TransactionReader {
    pub(crate) fn new(
        filter: Arc<ProgramFilter>,
        verify: Verify,
        learned: Arc<LearnedTables>,
    ) -> Self {
        Self {
            filter,
            verify,
            inflater: Inflater::new(),
            mentions: Mentions::default(),
            learned,
            dismissals: Dismissals::default(),
            loaded: LoadedKeys::default(),
        }
    }

    /// Reads the transaction of a section, and counts it. It joins `matches` when it mentions a program.
    pub(crate) fn read(
        &mut self,
        whole: &TransactionSection<'_>,
        position: Position,
        counts: &mut BlockCounts,
        matches: &mut Matches,
    ) -> Result<(), ArchiveError> {
        let TransactionSection {
            node,
            frames,
            place,
            ..
        } = whole;
        let sent = payload(&node.data, frames, |_, _| {}).map_err(|fault| place.payload(fault))?;
        let transaction = WireTransaction::parse(&sent).map_err(|fault| place.node(fault))?;
        counts.transactions += 1;
        counts.votes += u64::from(transaction.is_vote());

        self.mentions.clear();
        for key in transaction.static_keys {
            self.mentions.look(&self.filter, key, false);
        }
        let loads = transaction.loaded_keys() > 0;
        let missing = node.metadata.data.is_empty() && node.metadata.next.is_empty();
        if missing {
            counts.missing_metadata += 1;
            counts.unresolved_lookups += u64::from(loads);
        }
        let undecided = loads
            && !missing
            && !self.filter.is_empty()
            && !self
                .dismissals
                .dismiss(&transaction, &self.filter, &self.learned);
        if !undecided && self.mentions.is_empty() {
            let decided = loads && !missing && !self.filter.is_empty();
            counts.decompressions_avoided += u64::from(decided);
            return Ok(());
        }
        self.decide(whole, &sent, &transaction, position, counts, matches)
    }

    /// Decompresses the metadata, if there is any: learns from the loaded keys, looks at them, and copies the
    /// transaction out when it mentions a program.
    fn decide(
        &mut self,
        whole: &TransactionSection<'_>,
        sent: &[u8],
        transaction: &WireTransaction<'_>,
        position: Position,
        counts: &mut BlockCounts,
        matches: &mut Matches,
    ) -> Result<(), ArchiveError> {
        let TransactionSection {
            section,
            node,
            place,
            ..
        } = whole;
        let loads = transaction.loaded_keys() > 0;
        let mut verified = None;
        let stored;
        let mut metadata = None;
        // The keys can be read, though not all of the metadata: they decide, and a match is handed on without metadata.
        let mut only_keys = false;
        if !node.metadata.data.is_empty() || !node.metadata.next.is_empty() {
            counts.decompressions += 1;
            stored = whole.payload(&node.metadata)?;
            let inflated = self
                .inflater
                .inflate(&stored)
                .map_err(|_| place.payload(PayloadFault::TooLarge(MAXIMUM_PAYLOAD_BYTES + 1)))?;
            match Summary::read(inflated, &mut self.loaded) {
                Ok(summary) => metadata = Some((inflated, summary)),
                Err(_) => only_keys = self.loaded.read(inflated).is_ok(),
            }
            if metadata.is_none() && !only_keys {
                counts.missing_metadata += 1;
                counts.unresolved_lookups += u64::from(loads);
            } else {
                for key in self.loaded.iter() {
                    self.mentions.look(&self.filter, key, true);
                }
                if !self.loaded.are_of(transaction) {
                    counts.unresolved_lookups += u64::from(loads);
                } else if loads && !self.learned.knows(transaction) {
                    // What other scans will rely on is proved, whatever this one asks for.
                    if self.verify != Verify::Full {
                        verified = whole.verify().ok();
                    }
                    if self.verify == Verify::Full || verified.is_some() {
                        learn(&self.learned, transaction, &self.loaded);
                    }
                }
            }
        }
        if self.mentions.is_empty() {
            return Ok(());
        }

        if self.verify == Verify::Matched {
            counts.cids_verified += match verified {
                Some(count) => count,
                None => whole.verify()?,
            };
        }
        check_hash(node.data.hash.filter(|_| node.data.next.is_empty()), sent)
            .map_err(|fault| place.payload(fault))?;
        let place = TransactionPlace {
            slot: node.slot,
            index: position.index,
            archive_offset: section.offset,
            epoch: position.epoch,
        };
        matches.add(place, self.mentions.sorted(), sent, metadata);
        counts.missing_metadata += u64::from(only_keys);
        Ok(())
    }
}

/// A transaction's section with the frames that it may use.
pub(crate) struct TransactionSection<'a> {
    pub(crate) section: &'a Section<'a>,
    pub(crate) node: &'a TransactionNode<'a>,
    pub(crate) frames: &'a Frames,
    pub(crate) place: &'a Place<'a>,
}

impl<'a> TransactionSection<'a> {
    /// A payload of it, compared with the hash that its first frame names.
    fn payload(&self, first: &DataFrame<'a>) -> Result<Cow<'a, [u8]>, ArchiveError> {
        payload(first, self.frames, |_, _| {})
            .and_then(|bytes| {
                check_hash(first.hash.filter(|_| first.next.is_empty()), &bytes).map(|()| bytes)
            })
            .map_err(|fault| self.place.payload(fault))
    }

    /// Hashes the section and those of the frames that it uses; how many.
    fn verify(&self) -> Result<u64, ArchiveError> {
        let mut right = hash_matches(self.section.hash, self.section.node);
        let mut count = 1;
        for frame in [&self.node.data, &self.node.metadata] {
            payload(frame, self.frames, |hash, node| {
                right &= hash_matches(hash, node);
                count += 1;
            })
            .map_err(|fault| self.place.payload(fault))?;
        }
        if right {
            Ok(count)
        } else {
            Err(self.place.cid())
        }
    }
}
