//! The older pair of indexes, where an epoch has no slot-ranges file: slot → CID of its Block, and CID → where that
//! section is. A block's bytes run from the end of the nearest earlier block to the end of its own Block section.
//!
//! Neither index stores its keys, so that a slot without a block may answer with the CID of another slot's. Then two
//! slots answer alike, and the Block itself says which of them it is of. The index of CIDs, which has a line for every section of the
//! epoch, is read bucket by bucket: those of the blocks that are needed.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt};
use tokio::sync::Mutex;

use crate::car::uvarint;
use crate::car_file::CarFile;
use crate::compact::{Bucket, CompactHeader, MAXIMUM_HEADER_BYTES};
use crate::dataframe::hash_matches;
use crate::error::ArchiveError;
use crate::fetch::{Identity, RangeReader, Store};
use crate::index::ListedBlock;
use crate::model::SLOTS_PER_EPOCH;
use crate::node::BlockNode;

/// A CID: version, codec, hash function, length, SHA-256.
const CID_BYTES: usize = 36;
const CID_PREFIX: [u8; 4] = [0x01, 0x71, 0x12, 0x20];
/// An offset of 48 bits and a size of 24.
const PLACE_BYTES: usize = 9;
/// The slot index is read whole: 39 bytes a slot, about 17 MB of a full epoch.
const MAXIMUM_SLOT_INDEX_BYTES: u64 = 64 << 20;
/// Blocks whose places are looked up together, and how many of them at once.
const LOOKED_UP_TOGETHER: usize = 64;
const LOOKED_UP_AT_ONCE: usize = 8;
/// Places kept at most.
const KEPT_PLACES: usize = 4096;

type Cid = [u8; CID_BYTES];

/// The names of an epoch's older index files, relative to the archive's base.
pub(crate) struct Names {
    pub(crate) slot_to_cid: String,
    pub(crate) cid_to_place: String,
    root: Cid,
}

/// The file that names an epoch's root, relative to the archive's base.
pub(crate) fn root_name(epoch: u64) -> String {
    format!("{epoch}/epoch-{epoch}.cid")
}

impl Names {
    /// Of the epoch whose root file has this text.
    pub(crate) fn new(epoch: u64, root_file: &[u8]) -> Result<Self, String> {
        let text = root_file.trim_ascii_end();
        let root = parse_cid(text)
            .ok_or_else(|| format!("epoch-{epoch}.cid does not hold the root's CID in base 32"))?;
        // What parsed as a CID holds nothing but letters and digits.
        let root_text = String::from_utf8_lossy(text);
        let name = |kind: &str| format!("{epoch}/epoch-{epoch}-{root_text}-mainnet-{kind}.index");
        Ok(Self {
            slot_to_cid: name("slot-to-cid"),
            cid_to_place: name("cid-to-offset-and-size"),
            root,
        })
    }
}

/// Reads a CID in lower-case base 32: `b`, and 58 characters.
fn parse_cid(text: &[u8]) -> Option<Cid> {
    let (b'b', digits) = text.split_first()? else {
        return None;
    };
    let mut cid = Vec::with_capacity(CID_BYTES);
    let (mut buffer, mut bits) = (0_u32, 0);
    for digit in digits {
        let value = match digit {
            b'a'..=b'z' => digit - b'a',
            b'2'..=b'7' => digit - b'2' + 26,
            _ => return None,
        };
        buffer = (buffer << 5 | u32::from(value)) & 0xfff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            cid.push(u8::try_from(buffer >> bits & 0xff).ok()?);
        }
    }
    let cid = Cid::try_from(cid).ok()?;
    // The last character's spare bits are zero, so that a CID has one text.
    (cid.starts_with(&CID_PREFIX) && buffer & ((1 << bits) - 1) == 0).then_some(cid)
}

/// An index file that is read by ranges.
#[derive(Debug)]
struct IndexFile {
    store: Arc<Store>,
    epoch: u64,
    name: String,
    identity: Identity,
    header: CompactHeader,
    table: Vec<u8>,
    /// Bytes read of it so far.
    bytes_read: AtomicU64,
}

impl IndexFile {
    /// Reads header and table; `None` when there is no such file.
    async fn open(
        store: &Arc<Store>,
        epoch: u64,
        name: String,
        root: &Cid,
        value_bytes: usize,
    ) -> Result<Option<Self>, ArchiveError> {
        let beginning = store.beginning(&name, MAXIMUM_HEADER_BYTES as u64).await?;
        let Some((beginning, identity)) = beginning else {
            return Ok(None);
        };
        let header = CompactHeader::parse(&beginning, value_bytes)
            .map_err(|reason| invalid(epoch, &name, reason))?;
        let of = header.pair("epoch");
        if of.is_some_and(|of| of != epoch.to_le_bytes())
            || header.pair("rootCid").is_some_and(|of| of != root)
        {
            return Err(invalid(epoch, &name, "it is of another epoch".to_owned()));
        }
        let table_end = header.table_offset + header.table_bytes();
        if table_end > identity.size {
            let reason = format!(
                "it ends at byte {}, inside its table of buckets, which ends at byte {table_end}",
                identity.size
            );
            return Err(invalid(epoch, &name, reason));
        }
        let mut file = Self {
            store: Arc::clone(store),
            epoch,
            name,
            identity,
            header,
            table: Vec::new(),
            bytes_read: AtomicU64::new(beginning.len() as u64),
        };
        file.table = file.read(file.header.table_offset..table_end).await?;
        Ok(Some(file))
    }

    async fn read(&self, range: std::ops::Range<u64>) -> Result<Vec<u8>, ArchiveError> {
        let identity = Some(self.identity.clone());
        let bytes = read(&self.store, &self.name, range, identity).await?;
        let count = bytes.len() as u64;
        self.bytes_read.fetch_add(count, Ordering::Relaxed);
        Ok(bytes)
    }

    fn bucket(&self, number: u32) -> Result<Bucket, ArchiveError> {
        Bucket::parse(&self.header, &self.table, number, self.identity.size)
            .map_err(|reason| invalid(self.epoch, &self.name, reason))
    }
}

async fn read(
    store: &Arc<Store>,
    file: &str,
    range: std::ops::Range<u64>,
    identity: Option<Identity>,
) -> Result<Vec<u8>, ArchiveError> {
    let mut reader = RangeReader::new(Arc::clone(store), file, range, identity);
    let mut bytes = Vec::new();
    while let Some(part) = reader.next().await? {
        bytes.extend_from_slice(part);
    }
    Ok(bytes)
}

fn invalid(epoch: u64, file: &str, reason: impl std::fmt::Display) -> ArchiveError {
    ArchiveError::IndexInvalid {
        epoch,
        reason: format!("{file}: {reason}"),
    }
}

/// Where a Block section is in the CAR file.
#[derive(Debug, Clone, Copy)]
struct BlockPlace {
    offset: u64,
    bytes: u64,
}

impl BlockPlace {
    fn end(self) -> u64 {
        self.offset + self.bytes
    }
}

/// An epoch's older indexes.
#[derive(Debug)]
pub(crate) struct SlotToCid {
    epoch: u64,
    car: CarFile,
    /// Where the first block begins.
    header_bytes: u64,
    places: IndexFile,
    /// Slots that have a block, ascending, and its CID.
    listed: Vec<(u64, Cid)>,
    /// Bytes read so far, but for those of `places`.
    bytes_read: AtomicU64,
    /// Places looked up, by position in `listed`.
    known: Mutex<BTreeMap<usize, BlockPlace>>,
}

impl SlotToCid {
    /// Opens the indexes; `None` when the archive does not have them.
    pub(crate) async fn open(
        store: &Arc<Store>,
        epoch: u64,
        car: CarFile,
        header_bytes: u64,
    ) -> Result<Option<Self>, ArchiveError> {
        let root_file = root_name(epoch);
        let Some((root, _)) = store.beginning(&root_file, 256).await? else {
            return Ok(None);
        };
        let names =
            Names::new(epoch, &root).map_err(|reason| invalid(epoch, &root_file, reason))?;
        let slots = names.slot_to_cid;
        let slots = IndexFile::open(store, epoch, slots, &names.root, CID_BYTES).await?;
        let places = names.cid_to_place;
        let places = IndexFile::open(store, epoch, places, &names.root, PLACE_BYTES).await?;
        let (Some(slots), Some(places)) = (slots, places) else {
            return Ok(None);
        };
        let mut index = Self {
            epoch,
            car,
            header_bytes,
            places,
            listed: all_slots(&slots).await?,
            bytes_read: AtomicU64::new(root.len() as u64),
            known: Mutex::default(),
        };
        let of_slots = slots.bytes_read.into_inner();
        index.bytes_read.fetch_add(of_slots, Ordering::Relaxed);
        index.remove_false_answers().await?;
        Ok(Some(index))
    }

    /// The first block at or after `slot`.
    pub(crate) async fn next_block(&self, slot: u64) -> Result<Option<ListedBlock>, ArchiveError> {
        let at = self.listed.partition_point(|(listed, _)| *listed < slot);
        let Some((slot, _)) = self.listed.get(at) else {
            return Ok(None);
        };
        let offset = match at.checked_sub(1) {
            Some(before) => self.place(before).await?.end(),
            None => self.header_bytes,
        };
        let place = self.place(at).await?;
        let length = place.end().checked_sub(offset).map(u32::try_from);
        match length {
            Some(Ok(length)) if place.offset >= offset => Ok(Some(ListedBlock {
                slot: *slot,
                offset,
                length,
            })),
            _ => Err(self.invalid(format!(
                "the block of slot {slot} ends at byte {}, the one before it at byte {offset}",
                place.end()
            ))),
        }
    }

    fn invalid(&self, reason: String) -> ArchiveError {
        invalid(self.epoch, &self.places.name, reason)
    }

    /// Bytes of the archive read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed) + self.places.bytes_read.load(Ordering::Relaxed)
    }

    /// Positions in `listed` of the blocks of `slots`.
    pub(crate) fn positions(&self, slots: &Range<u64>) -> Range<usize> {
        let before = |slot| self.listed.partition_point(|(listed, _)| *listed < slot);
        before(slots.start)..before(slots.end)
    }

    pub(crate) fn slot_at(&self, at: usize) -> u64 {
        self.listed.get(at).map_or(0, |(slot, _)| *slot)
    }

    /// Where the block at a position ends. Looked up alone.
    pub(crate) async fn end_of(&self, at: usize) -> Result<u64, ArchiveError> {
        let mut known = self.known.lock().await;
        if let Some(place) = known.get(&at) {
            return Ok(place.end());
        }
        if known.len() >= KEPT_PLACES {
            known.clear();
        }
        let place = self.look_up(&self.listed[at].1).await?;
        known.insert(at, place);
        Ok(place.end())
    }

    /// Where the block at a position begins.
    pub(crate) async fn start_of(&self, at: usize) -> Result<u64, ArchiveError> {
        match at.checked_sub(1) {
            Some(before) => self.end_of(before).await,
            None => Ok(self.header_bytes),
        }
    }

    pub(crate) fn out_of_order(&self, at: usize) -> ArchiveError {
        let slot = self.slot_at(at);
        self.invalid(format!(
            "the block of slot {slot} does not lie between its neighbours"
        ))
    }

    /// Where the Block section of a listed slot is. Those after it are looked up with it.
    async fn place(&self, at: usize) -> Result<BlockPlace, ArchiveError> {
        let mut known = self.known.lock().await;
        if let Some(place) = known.get(&at) {
            return Ok(*place);
        }
        if known.len() >= KEPT_PLACES {
            known.clear();
        }
        let end = (at + LOOKED_UP_TOGETHER).min(self.listed.len());
        let found: Vec<(usize, BlockPlace)> = futures::stream::iter(at..end)
            .map(|at| async move {
                Ok::<_, ArchiveError>((at, self.look_up(&self.listed[at].1).await?))
            })
            .buffered(LOOKED_UP_AT_ONCE)
            .try_collect()
            .await?;
        known.extend(found);
        match known.get(&at) {
            Some(place) => Ok(*place),
            None => Err(self.invalid(format!("it has no line number {at}"))),
        }
    }

    async fn look_up(&self, cid: &Cid) -> Result<BlockPlace, ArchiveError> {
        let header = &self.places.header;
        let bucket = self.places.bucket(header.bucket_of(cid))?;
        let entries = self
            .places
            .read(bucket.offset..bucket.offset + bucket.bytes)
            .await?;
        let found = bucket
            .find(header, &entries, cid)
            .and_then(<[u8]>::first_chunk);
        let Some(&[o0, o1, o2, o3, o4, o5, s0, s1, s2]) = found else {
            return Err(self.invalid(format!(
                "a block that the slot index names is not in its bucket at bytes {}..{}",
                bucket.offset,
                bucket.offset + bucket.bytes
            )));
        };
        let place = BlockPlace {
            offset: u64::from_le_bytes([o0, o1, o2, o3, o4, o5, 0, 0]),
            bytes: u64::from(u32::from_le_bytes([s0, s1, s2, 0])),
        };
        if place.offset < self.header_bytes || place.end() > self.car.bytes {
            return Err(self.invalid(format!(
                "a block's bytes {}..{} lie outside of the CAR file's {}",
                place.offset,
                place.end(),
                self.car.bytes
            )));
        }
        Ok(place)
    }

    /// Of slots that answer alike, all but one have no block: the Block says which.
    async fn remove_false_answers(&mut self) -> Result<(), ArchiveError> {
        let mut slots: HashMap<Cid, Vec<u64>> = HashMap::new();
        for (slot, cid) in &self.listed {
            slots.entry(*cid).or_default().push(*slot);
        }
        slots.retain(|_, slots| slots.len() > 1);
        let mut right = HashMap::new();
        for (cid, slots) in slots {
            let slot = self.slot_of_block(&cid).await?;
            if !slots.contains(&slot) {
                return Err(self.invalid(format!(
                    "the slot index names one block for the slots {slots:?}, but it is of slot {slot}"
                )));
            }
            right.insert(cid, slot);
        }
        self.listed
            .retain(|(slot, cid)| right.get(cid).is_none_or(|right| right == slot));
        Ok(())
    }

    async fn slot_of_block(&self, cid: &Cid) -> Result<u64, ArchiveError> {
        let place = self.look_up(cid).await?;
        let section = self
            .car
            .read(&self.places.store, place.offset..place.end())
            .read_all()
            .await?;
        let count = section.len() as u64;
        self.bytes_read.fetch_add(count, Ordering::Relaxed);
        let malformed = |reason: String| ArchiveError::CarMalformed {
            car: Arc::clone(&self.car.name),
            offset: place.offset,
            reason,
        };
        let hash = cid.last_chunk().unwrap_or(&[0; 32]);
        let node = match uvarint(&section) {
            Ok(Some((length, at))) if length == (section.len() - at) as u64 => {
                section[at..].strip_prefix(cid.as_slice())
            }
            _ => None,
        };
        let node = node
            .filter(|node| hash_matches(hash, node))
            .ok_or_else(|| {
                malformed("the older indexes name a block here that is not here".to_owned())
            })?;
        let block = BlockNode::parse(node).map_err(|fault| malformed(fault.to_string()))?;
        Ok(block.slot)
    }
}

/// What every slot of the epoch answers.
async fn all_slots(index: &IndexFile) -> Result<Vec<(u64, Cid)>, ArchiveError> {
    if index.identity.size > MAXIMUM_SLOT_INDEX_BYTES {
        let reason = format!(
            "it has {} bytes, more than any epoch needs",
            index.identity.size
        );
        return Err(invalid(index.epoch, &index.name, reason));
    }
    let bytes = index.read(0..index.identity.size).await?;
    let buckets = (0..index.header.buckets)
        .map(|number| index.bucket(number))
        .collect::<Result<Vec<_>, _>>()?;
    let first = index.epoch * SLOTS_PER_EPOCH;
    let mut listed = Vec::new();
    for slot in first..first + SLOTS_PER_EPOCH {
        let key = slot.to_le_bytes();
        let bucket = &buckets[index.header.bucket_of(&key) as usize];
        let range = usize::try_from(bucket.offset)
            .ok()
            .zip(usize::try_from(bucket.bytes).ok());
        let entries = range.and_then(|(offset, length)| bytes.get(offset..offset + length));
        let found = entries.and_then(|entries| bucket.find(&index.header, entries, &key));
        if let Some(cid) = found.and_then(<[u8]>::first_chunk) {
            listed.push((slot, *cid));
        }
    }
    Ok(listed)
}
