//! Blocks drawn from a range, for estimates: a few small reads of the index find each, and nothing else is read.
//!
//! The bytes of a range are known from the ends of its epochs. A byte is drawn, the block that holds it is read whole: a
//! block is drawn in proportion to its bytes, so that the mean of "matches per byte" over the draws, times the range's
//! bytes, is an unbiased estimate of its matches (Hansen and Hurwitz), wherever in the range its blocks are. Draws
//! follow the golden ratio: any number of them is spread evenly.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use crate::archive::{Archive, MAXIMUM_SLOT, car_name, index_name};
use crate::car::SectionFeed;
use crate::car_file::{BEGINNING_BYTES, CarFile};
use crate::error::ArchiveError;
use crate::fetch::RangeReader;
use crate::filter::ProgramFilter;
use crate::index::{ListedBlock, SLOT_RANGES_BYTES};
use crate::model::{Block, Pubkey, SLOTS_PER_EPOCH, SlotRange, Verify};
use crate::place::Place;
use crate::scanner::BlockScanner;
use crate::segment::feed_error;
use crate::slot_to_cid::SlotToCid;
use crate::transaction::TransactionReader;

/// Slots whose index entries are read at once: 24 KiB.
const WINDOW_SLOTS: u64 = 2_048;
const ENTRY_BYTES: u64 = 12;
/// Epochs whose sizes are asked for at once.
const EPOCHS_AT_ONCE: usize = 8;
/// Epochs without slot-ranges of a range, at most: of each the older index of slots is read and kept whole, about 17 MB of a full one.
const OLDER_EPOCHS: usize = 2;
/// 2⁶⁴ divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// After so many guesses by proportion, the search for a byte's block halves what is left at every other step.
const GUESSES: u32 = 4;

/// Draws blocks from a range of slots.
#[derive(Debug)]
pub struct Sampler {
    archive: Archive,
    transactions: TransactionReader,
    parts: Vec<Part>,
    bytes: u64,
    next_draw: u64,
    bytes_read: u64,
}

/// What the range has of one epoch.
#[derive(Debug)]
struct Part {
    epoch: u64,
    car: CarFile,
    header_bytes: u64,
    has_slot_ranges: bool,
    /// Slots of the range, and the bytes of their blocks.
    slots: Range<u64>,
    bytes: Range<u64>,
    /// Where the epoch has no slot-ranges file.
    older: Option<Box<SlotToCid>>,
    /// The blocks of a window of the slot-ranges file, by its number in the epoch.
    windows: HashMap<u64, Vec<ListedBlock>>,
}

/// A block that was drawn, and is yet to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawnBlock {
    /// The block's slot and bytes.
    pub listed: ListedBlock,
    part: usize,
}

/// A block that was read.
#[derive(Debug, Clone)]
pub struct SampledBlock {
    /// The block, with the transactions that matched.
    pub block: Block,
    /// All its transactions.
    pub transactions: u64,
}

impl Archive {
    /// Looks up the sizes of what `range` has of each epoch, to draw blocks from. Other draws follow another `seed`.
    pub async fn sampler(
        &self,
        range: SlotRange,
        programs: &[Pubkey],
        seed: u64,
    ) -> Result<Sampler, ArchiveError> {
        if range.is_empty() || range.end > MAXIMUM_SLOT {
            return Err(ArchiveError::Io {
                file: format!("slots {}..{}", range.start, range.end),
                reason: format!("not a range of slots that ends by slot {MAXIMUM_SLOT}"),
            });
        }
        let epochs = range.start / SLOTS_PER_EPOCH..=(range.end - 1) / SLOTS_PER_EPOCH;
        let parts: Vec<(Part, u64)> = futures::stream::iter(epochs)
            .map(|epoch| self.part(epoch, range))
            .buffered(EPOCHS_AT_ONCE)
            .try_collect()
            .await?;
        let mut bytes_read = parts.iter().map(|(_, read)| read).sum();
        let by_older = parts.iter().filter(|(part, _)| !part.has_slot_ranges);
        let by_older: Vec<u64> = by_older.map(|(part, _)| part.epoch).collect();
        if by_older.len() > OLDER_EPOCHS {
            return Err(ArchiveError::Io {
                file: format!("slots {}..{}", range.start, range.end),
                reason: format!(
                    "{} of its epochs have no slot-ranges file, from epoch {} on. By the older indexes an estimate reads about 20 MB of \
                     each such epoch, so that it takes at most {OLDER_EPOCHS} of them: choose a shorter range",
                    by_older.len(),
                    by_older[0]
                ),
            });
        }
        let mut parts: Vec<Part> = parts.into_iter().map(|(part, _)| part).collect();
        for part in &mut parts {
            bytes_read += part.narrow(self).await?;
        }
        Ok(Sampler {
            archive: self.clone(),
            transactions: TransactionReader::new(
                Arc::new(ProgramFilter::new(programs)),
                Verify::Full,
                Arc::clone(&self.learned),
            ),
            bytes: parts
                .iter()
                .map(|part| part.bytes.end - part.bytes.start)
                .sum(),
            parts,
            next_draw: seed.wrapping_mul(GOLDEN.rotate_left(32)),
            bytes_read,
        })
    }

    /// What `range` has of an epoch, all of its CAR file for now, and how many bytes were read to know it.
    async fn part(&self, epoch: u64, range: SlotRange) -> Result<(Part, u64), ArchiveError> {
        let Some(opened) = CarFile::open(&self.store, epoch, BEGINNING_BYTES).await? else {
            let file = car_name(epoch);
            return Err(ArchiveError::EpochNotFound { epoch, file });
        };
        let first_slot = epoch * SLOTS_PER_EPOCH;
        let epoch_slots = first_slot..first_slot + SLOTS_PER_EPOCH;
        let slots = range.start.max(epoch_slots.start)..range.end.min(epoch_slots.end);
        let header_bytes = self.header_bytes(epoch, &opened)?;
        let index = self.store.beginning(&index_name(epoch), 1).await?;
        let part = Part {
            epoch,
            header_bytes,
            has_slot_ranges: index.is_some(),
            bytes: 0..opened.car.bytes,
            car: opened.car,
            slots,
            older: None,
            windows: HashMap::new(),
        };
        Ok((part, opened.bytes_read + u64::from(index.is_some())))
    }
}

impl Sampler {
    /// The bytes of the range's blocks. Of an epoch that lies whole in the range, those of its CAR file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the archive read so far, of indexes and blocks.
    pub fn bytes_read(&self) -> u64 {
        let older = self.parts.iter().filter_map(|part| part.older.as_ref());
        self.bytes_read + older.map(|older| older.bytes_read()).sum::<u64>()
    }

    /// Draws a byte and finds its block; `None` when the byte belongs to none, which is a draw as well: one without
    /// matches. A block may be drawn again.
    pub async fn draw(&mut self) -> Result<Option<DrawnBlock>, ArchiveError> {
        self.next_draw = self.next_draw.wrapping_add(GOLDEN);
        // The draw as a fraction of 2⁶⁴ of the range's bytes; what is shifted out is less than that.
        let scaled = (u128::from(self.next_draw) * u128::from(self.bytes)) >> 64;
        let mut left = u64::try_from(scaled).unwrap_or(u64::MAX);
        for number in 0..self.parts.len() {
            let bytes = self.parts[number].bytes.clone();
            let length = bytes.end - bytes.start;
            if left < length {
                let listed = self.find(number, bytes.start + left).await?;
                return Ok(listed.map(|listed| DrawnBlock {
                    listed,
                    part: number,
                }));
            }
            left -= length;
        }
        Ok(None)
    }

    /// The block that holds a byte.
    async fn find(
        &mut self,
        number: usize,
        byte: u64,
    ) -> Result<Option<ListedBlock>, ArchiveError> {
        let part = &mut self.parts[number];
        if let Some(older) = &part.older {
            return older.block_at(&part.slots, part.bytes.clone(), byte).await;
        }
        let (mut slots, mut bytes) = (part.slots.clone(), part.bytes.clone());
        let mut guesses = 0;
        while slots.start < slots.end {
            guesses += 1;
            let width = slots.end - slots.start;
            let into = if guesses > GUESSES && guesses % 2 == 0 {
                width / 2
            } else {
                let scaled = u128::from(byte.saturating_sub(bytes.start)) * u128::from(width)
                    / u128::from((bytes.end - bytes.start).max(1));
                u64::try_from(scaled).unwrap_or(u64::MAX)
            };
            let guess = part.window_of(slots.start + into.min(width - 1));
            // The first block from the guessed window on; what lies between has none.
            let mut found = None;
            for window in guess..=part.window_of(slots.end - 1) {
                self.bytes_read += part.load(&self.archive, window).await?;
                let mut blocks = part
                    .blocks(window)
                    .filter(|block| slots.contains(&block.slot));
                if let Some(first) = blocks.next() {
                    found = Some((first, blocks.next_back().unwrap_or(first), window));
                    break;
                }
            }
            let before_guess = part.window_start(guess).max(slots.start);
            match found {
                None => slots.end = before_guess,
                Some((first, _, _)) if byte < first.offset => {
                    slots.end = before_guess;
                    bytes.end = first.offset;
                }
                Some((_, last, _)) if byte >= last.end() => {
                    slots.start = last.slot + 1;
                    bytes.start = last.end();
                }
                Some((_, _, window)) => {
                    let holds = |block: &ListedBlock| block.offset <= byte && byte < block.end();
                    return Ok(part.blocks(window).find(holds));
                }
            }
        }
        Ok(None)
    }

    /// Reads a block whole, and compares every section with its CID.
    pub async fn read(&mut self, drawn: &DrawnBlock) -> Result<SampledBlock, ArchiveError> {
        let (part, listed) = (&self.parts[drawn.part], drawn.listed);
        let mut scanner = BlockScanner::new(Verify::Full);
        scanner.expect(listed.slot);
        let car = &part.car.name;
        let mut bytes = part
            .car
            .read(&self.archive.store, listed.offset..listed.end());
        let mut feed = SectionFeed::new(listed.offset);
        let mut block = None;
        while let Some(bytes) = bytes.next().await? {
            feed.push(bytes, |section| {
                if let Some(whole) = scanner.section(&section, car, &mut self.transactions)? {
                    block = Some(*whole);
                }
                Ok(())
            })
            .map_err(|error| feed_error(car, error))?;
        }
        self.bytes_read += u64::from(listed.length);
        let place = Place {
            car,
            slot: Some(listed.slot),
            offset: listed.offset,
        };
        match block {
            Some(whole) if whole.end == listed.end() && whole.block.slot == listed.slot => {
                Ok(SampledBlock {
                    block: whole.block,
                    transactions: whole.counts.transactions,
                })
            }
            _ => Err(place.chain(
                listed.slot,
                "its bytes by the slot index do not hold this block, or not it alone",
            )),
        }
    }
}

impl Part {
    /// Finds the bytes of the range's blocks, none where it has none here; returns how many bytes of slot-ranges that took.
    async fn narrow(&mut self, archive: &Archive) -> Result<u64, ArchiveError> {
        let epoch = self.epoch;
        let first_slot = epoch * SLOTS_PER_EPOCH;
        // The file's header and its last nodes are less than a block of hundreds of thousands.
        let is_whole = self.slots == (first_slot..first_slot + SLOTS_PER_EPOCH);
        if !self.has_slot_ranges {
            let (store, car) = (&archive.store, self.car.clone());
            let older = SlotToCid::open(store, epoch, car, self.header_bytes).await?;
            let file = index_name(epoch);
            let older = older.ok_or(ArchiveError::EpochNotFound { epoch, file })?;
            if !is_whole {
                self.bytes = older.bytes_of(&self.slots).await?.unwrap_or_default();
            }
            self.older = Some(Box::new(older));
            return Ok(0);
        }
        if is_whole {
            return Ok(0);
        }
        let (mut first, mut last, mut read) = (None, None, 0);
        for number in self.window_numbers() {
            read += self.load(archive, number).await?;
            first = self.blocks(number).next();
            if first.is_some() {
                break;
            }
        }
        for number in self.window_numbers().rev() {
            read += self.load(archive, number).await?;
            last = self.blocks(number).next_back();
            if last.is_some() {
                break;
            }
        }
        let (Some(first), Some(last)) = (first, last) else {
            self.bytes = 0..0;
            return Ok(read);
        };
        if last.end() < first.offset || last.end() > self.car.bytes {
            return Err(self.invalid(format!(
                "the blocks of slots {} and {} are not in order within the CAR file",
                first.slot, last.slot
            )));
        }
        self.bytes = first.offset..last.end();
        Ok(read)
    }

    fn window_of(&self, slot: u64) -> u64 {
        (slot - self.epoch * SLOTS_PER_EPOCH) / WINDOW_SLOTS
    }

    fn window_start(&self, window: u64) -> u64 {
        self.epoch * SLOTS_PER_EPOCH + window * WINDOW_SLOTS
    }

    fn window_numbers(&self) -> std::ops::RangeInclusive<u64> {
        self.window_of(self.slots.start)..=self.window_of(self.slots.end - 1)
    }

    /// The blocks of a window that was loaded, those of the range.
    fn blocks(&self, window: u64) -> impl DoubleEndedIterator<Item = ListedBlock> + '_ {
        let blocks = self.windows.get(&window).map_or(&[][..], Vec::as_slice);
        blocks
            .iter()
            .copied()
            .filter(|block| self.slots.contains(&block.slot))
    }

    /// Reads a window of the index, unless it was; returns how many bytes that took.
    async fn load(&mut self, archive: &Archive, window: u64) -> Result<u64, ArchiveError> {
        if self.windows.contains_key(&window) {
            return Ok(0);
        }
        let whole = SLOT_RANGES_BYTES as u64;
        let start = window * WINDOW_SLOTS * ENTRY_BYTES;
        let end = (start + WINDOW_SLOTS * ENTRY_BYTES).min(whole);
        let file = index_name(self.epoch);
        let mut reader = RangeReader::new(Arc::clone(&archive.store), &file, start..end, None);
        if !reader.exists().await? {
            let epoch = self.epoch;
            return Err(ArchiveError::EpochNotFound { epoch, file });
        }
        let mut bytes = Vec::new();
        while let Some(part) = reader.next().await? {
            bytes.extend_from_slice(part);
        }
        if reader
            .identity()
            .is_some_and(|identity| identity.size != whole)
        {
            return Err(self.invalid(format!("it does not have {whole} bytes")));
        }
        let mut blocks: Vec<ListedBlock> = Vec::new();
        for (slot, entry) in (self.window_start(window)..).zip(bytes.chunks_exact(12)) {
            let (offset, length) = entry.split_at(8);
            let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else {
                continue; // Neither can be: the entry has 12 bytes.
            };
            let (offset, length) = (u64::from_le_bytes(offset), u32::from_le_bytes(length));
            let block = ListedBlock {
                slot,
                offset,
                length,
            };
            let follows = blocks.last().is_none_or(|last| last.end() <= offset);
            if length > 0 && (!follows || block.end() > self.car.bytes) {
                return Err(self.invalid(format!(
                    "slot {slot} begins before the one before it ends, or lies beyond the end of the CAR file"
                )));
            }
            if length > 0 {
                blocks.push(block);
            }
        }
        self.windows.insert(window, blocks);
        Ok(end - start)
    }

    fn invalid(&self, reason: String) -> ArchiveError {
        ArchiveError::IndexInvalid {
            epoch: self.epoch,
            reason,
        }
    }
}
