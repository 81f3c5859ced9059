//! A segment: a run of whole blocks of one CAR file, fetched over one connection and scanned as its bytes arrive.
//! Which segments there are, and what becomes of their blocks, belongs in [`scan`](crate::scan).

use std::collections::VecDeque;
use std::sync::Arc;

use crate::archive::EpochFiles;
use crate::car::{CarFault, FeedError, MAXIMUM_SECTION_BYTES, Section, SectionFeed};
use crate::car_file::CarReader;
use crate::error::ArchiveError;
use crate::fetch::Store;
use crate::index::ListedBlock;
use crate::place::Place;
use crate::scanner::{BlockScanner, ScannedBlock};
use crate::transaction::{TransactionReader, TransactionReaders};

/// A run of blocks that lie next to each other in one CAR file.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) epoch: Arc<EpochFiles>,
    pub(crate) blocks: Vec<ListedBlock>,
}

/// Reads a segment block by block.
pub(crate) struct SegmentReader {
    bytes: CarReader,
    feed: SectionFeed,
    scanning: Scanning,
    readers: Arc<TransactionReaders>,
    ready: VecDeque<ScannedBlock>,
}

impl SegmentReader {
    /// Nothing is fetched before the first block is asked for.
    pub(crate) fn new(
        store: &Arc<Store>,
        segment: Arc<Segment>,
        readers: Arc<TransactionReaders>,
    ) -> Self {
        let epoch = &segment.epoch;
        let start = segment.blocks.first().map_or(0, |first| first.offset);
        let end = segment.blocks.last().map_or(0, ListedBlock::end);
        let bytes = epoch.file.read(store, start..end);
        let mut scanner = BlockScanner::new(readers.verify());
        if let Some(first) = segment.blocks.first() {
            scanner.expect(first.slot);
        }
        Self {
            bytes,
            feed: SectionFeed::new(start),
            scanning: Scanning {
                segment,
                scanner,
                done: 0,
            },
            readers,
            ready: VecDeque::new(),
        }
    }

    /// The next block, as soon as it is whole; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<ScannedBlock>, ArchiveError> {
        let Self {
            bytes,
            feed,
            scanning,
            readers,
            ready,
        } = self;
        loop {
            if let Some(block) = ready.pop_front() {
                return Ok(Some(block));
            }
            let Some(bytes) = bytes.next().await? else {
                break;
            };
            let mut reader = readers.take();
            let pushed = feed.push(bytes, |section| {
                if let Some(block) = scanning.section(&section, &mut reader)? {
                    ready.push_back(*block);
                }
                Ok(())
            });
            readers.give_back(reader);
            pushed.map_err(|error| feed_error(&scanning.segment.epoch.car, error))?;
        }
        match scanning.segment.blocks.get(scanning.done) {
            None => Ok(None),
            Some(listed) => Err(ArchiveError::CarMalformed {
                car: Arc::clone(&scanning.segment.epoch.car),
                offset: feed.offset(),
                reason: format!(
                    "a section runs beyond byte {}, where the slot index ends the block of slot {}",
                    listed.end(),
                    listed.slot
                ),
            }),
        }
    }

    /// For a thread of its own, which may block.
    pub(crate) fn blocking(mut self) -> Self {
        self.bytes = self.bytes.blocking();
        self
    }
}

/// The error of cutting sections out of a CAR file, or of what they hold.
pub(crate) fn feed_error(car: &Arc<str>, error: FeedError<ArchiveError>) -> ArchiveError {
    match error {
        FeedError::Receiver(error) => error,
        FeedError::Car(offset, CarFault::Malformed(reason)) => ArchiveError::CarMalformed {
            car: Arc::clone(car),
            offset,
            reason: reason.to_owned(),
        },
        FeedError::Car(offset, CarFault::TooLarge(bytes)) => ArchiveError::TooLarge {
            car: Arc::clone(car),
            what: "a section",
            offset,
            bytes,
            limit: MAXIMUM_SECTION_BYTES,
        },
    }
}

/// Compares what is scanned with what the index lists.
struct Scanning {
    segment: Arc<Segment>,
    scanner: BlockScanner,
    done: usize,
}

impl Scanning {
    fn section(
        &mut self,
        section: &Section<'_>,
        transactions: &mut TransactionReader,
    ) -> Result<Option<Box<ScannedBlock>>, ArchiveError> {
        let car = &self.segment.epoch.car;
        let place = Place {
            car,
            slot: None,
            offset: section.offset,
        };
        let Some(listed) = self.segment.blocks.get(self.done) else {
            return Err(place.node("it lies behind the last block"));
        };
        let (end, listed_end) = (section.offset + section.length, listed.end());
        if end > listed_end {
            let reason = format!(
                "a section ends at byte {end}, but the slot index ends the block at byte {listed_end}"
            );
            return Err(place.chain(listed.slot, reason));
        }
        match self.scanner.section(section, car, transactions)? {
            Some(block) if end == listed_end => {
                self.done += 1;
                if let Some(next) = self.segment.blocks.get(self.done) {
                    self.scanner.expect(next.slot);
                }
                Ok(Some(block))
            }
            Some(_) => {
                let reason = format!(
                    "its Block section ends at byte {end}, but the slot index ends the block at byte {listed_end}"
                );
                Err(place.chain(listed.slot, reason))
            }
            None if end == listed_end => {
                let reason = "the slot index ends it with a section that is no Block";
                Err(place.chain(listed.slot, reason))
            }
            None => Ok(None),
        }
    }
}
