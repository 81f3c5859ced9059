//! An archive: where it is, how it is read, which epochs it has. Reading slots out of it belongs in
//! [`scan`](crate::scan).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use sha2::{Digest, Sha256};

use crate::bare;
use crate::car::{CarFault, header_length};
use crate::car_file::{BEGINNING_BYTES, CarFile, Opened, metadata_names};
use crate::counters::Counters;
use crate::error::ArchiveError;
use crate::fetch::Store;
use crate::index::{ListedBlock, SLOT_RANGES_BYTES, SlotIndex};
use crate::lookup::LearnedTables;
use crate::lookup_file;
use crate::model::{BareScanRequest, SLOTS_PER_EPOCH, ScanEvent, ScanRequest};
use crate::scan;
use crate::slot_to_cid::{Names, SlotToCid, root_name};

/// Slot numbers above this are refused: their epochs would not fit into 32 bits.
pub(crate) const MAXIMUM_SLOT: u64 = SLOTS_PER_EPOCH * u32::MAX as u64;

/// Epochs tried, from the newest on, until one can be compared with what was known of it before.
const EPOCHS_COMPARED: usize = 3;

/// How an archive is read. The defaults suit a mirror on the internet.
#[derive(Debug, Clone)]
pub struct ArchiveOptions {
    /// Segments read at once, each over its own connection.
    pub connections: usize,
    /// The size of a segment, in bytes: a run of whole blocks.
    pub segment_bytes: u64,
    /// How often a request is repeated before its fault is an error, without any progress in between.
    pub retries: u32,
    /// The longest wait for a connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// The longest silence of a connection, in milliseconds. There is no limit for a whole body.
    pub read_timeout_ms: u64,
    /// A connection that was waited for so long, in milliseconds, and is far slower than the others is left for
    /// a new one.
    pub slow_after_ms: u64,
    /// The first wait before a repeated request, in milliseconds; it doubles each time, up to 10 seconds.
    pub backoff_ms: u64,
}

impl Default for ArchiveOptions {
    fn default() -> Self {
        Self {
            connections: 4,
            segment_bytes: 32 << 20,
            retries: 5,
            connect_timeout_ms: 10_000,
            read_timeout_ms: 30_000,
            slow_after_ms: 3_000,
            backoff_ms: 200,
        }
    }
}

impl ArchiveOptions {
    pub(crate) fn read_timeout(&self) -> Duration {
        Duration::from_millis(self.read_timeout_ms)
    }
}

/// An Old Faithful archive: a folder, or an HTTP server with range requests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Archive {
    pub(crate) store: Arc<Store>,
    /// Of this archive's network, shared by all scans of it.
    pub(crate) learned: Arc<LearnedTables>,
}

/// What reading an epoch needs besides its CAR file's bytes.
#[derive(Debug)]
pub(crate) struct EpochFiles {
    pub(crate) epoch: u64,
    /// What messages call the CAR file.
    pub(crate) car: Arc<str>,
    pub(crate) file: CarFile,
    pub(crate) index: EpochIndex,
}

/// How the blocks of an epoch are found.
#[derive(Debug)]
pub(crate) enum EpochIndex {
    SlotRanges(SlotIndex),
    SlotToCid(Box<SlotToCid>),
}

impl EpochIndex {
    /// The first block at or after `slot`.
    pub(crate) async fn next_block(&self, slot: u64) -> Result<Option<ListedBlock>, ArchiveError> {
        match self {
            Self::SlotRanges(index) => Ok(index.next_block(slot)),
            Self::SlotToCid(index) => index.next_block(slot).await,
        }
    }
}

/// The epoch's CAR file, relative to the archive's base.
pub(crate) fn car_name(epoch: u64) -> String {
    format!("{epoch}/epoch-{epoch}.car")
}

/// The epoch's slot-ranges file, relative to the archive's base.
pub(crate) fn index_name(epoch: u64) -> String {
    format!("{epoch}/epoch-{epoch}-slot-ranges.raw")
}

impl Archive {
    /// Opens the archive at `base`: an absolute path, `file:///path`, `http(s)://host[:port]/base`, or
    /// `s3://bucket/prefix` (region, endpoint and credentials from the environment, as AWS's tools read it). A folder must exist; nothing else is looked at yet. Redirects are followed on the same host only.
    pub fn open(base: &str, options: ArchiveOptions) -> Result<Self, ArchiveError> {
        Ok(Self {
            store: Arc::new(Store::open(base, options)?),
            learned: Arc::default(),
        })
    }

    /// What reading this archive has come to, over all scans of it and of its clones.
    pub fn counters(&self) -> &Counters {
        &self.store.counters
    }

    /// The end slot (exclusive) of the newest epoch that is published whole, searched upward from `first_epoch`;
    /// `None` when the archive does not have `first_epoch`.
    ///
    /// Epochs are published one after another, so that about twice the logarithm of their number are asked for.
    pub async fn tip(&self, first_epoch: u64) -> Result<Option<u64>, ArchiveError> {
        if !self.is_published(first_epoch).await? {
            return Ok(None);
        }
        let (mut present, mut step) = (first_epoch, 1);
        let mut absent = loop {
            let probe = present + step;
            if !self.is_published(probe).await? {
                break probe;
            }
            present = probe;
            step *= 2;
        };
        while absent - present > 1 {
            let middle = present + (absent - present) / 2;
            if self.is_published(middle).await? {
                present = middle;
            } else {
                absent = middle;
            }
        }
        // The newest one may still be on its way: its index must fit its CAR file, and no piece of that be missing.
        match self.epoch(present).await {
            Ok(_) => Ok(Some((present + 1) * SLOTS_PER_EPOCH)),
            Err(error) if error.may_be_on_its_way() => {
                Ok((present > first_epoch).then_some(present * SLOTS_PER_EPOCH))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether an epoch has a CAR file, or what describes its pieces, and an index, which has its size.
    async fn is_published(&self, epoch: u64) -> Result<bool, ArchiveError> {
        if epoch >= MAXIMUM_SLOT / SLOTS_PER_EPOCH {
            return Ok(false);
        }
        let car = car_name(epoch);
        let index = index_name(epoch);
        let (car, index) = futures::try_join!(
            self.store.beginning(&car, 1),
            self.store.beginning(&index, 1)
        )?;
        let whole = match index {
            Some((_, identity)) => identity.size == SLOT_RANGES_BYTES as u64,
            None => self.has_older_indexes(epoch).await?,
        };
        Ok(whole && (car.is_some() || self.is_in_pieces(epoch).await?))
    }

    /// Where the sections of an epoch's CAR file begin.
    pub(crate) fn header_bytes(&self, epoch: u64, opened: &Opened) -> Result<u64, ArchiveError> {
        let reason = match header_length(&opened.beginning) {
            Ok(Some(length)) => {
                self.learned.opened(epoch, &opened.beginning[..length]);
                return Ok(length as u64);
            }
            Ok(None) => "it ends inside its header",
            Err(CarFault::Malformed(reason)) => reason,
            Err(CarFault::TooLarge(_)) => "its header is too large",
        };
        Err(ArchiveError::CarMalformed {
            car: Arc::clone(&opened.car.name),
            offset: 0,
            reason: reason.to_owned(),
        })
    }

    /// How many (table, index) pairs of lookup tables scans of this archive learned so far.
    pub fn learned_changes(&self) -> u64 {
        self.learned.changes()
    }

    /// What scans of this archive learned of lookup tables, for [`restore_learned_tables`](Self::restore_learned_tables) in another process;
    /// `None` when that is nothing. At most [`LEARNED_TABLES_BYTES_AT_MOST`](crate::LEARNED_TABLES_BYTES_AT_MOST).
    pub fn learned_tables(&self, network: &str) -> Option<Vec<u8>> {
        lookup_file::write(&self.learned, network)
    }

    /// Takes what [`learned_tables`](Self::learned_tables) of the same network and archive yielded before; how many tables that are. Bytes that
    /// are damaged in any way are refused, and so are those of another archive: an epoch that they name must have the CAR header that it had.
    /// The reason is for people.
    pub async fn restore_learned_tables(
        &self,
        network: &str,
        bytes: &[u8],
    ) -> Result<usize, String> {
        let contents = lookup_file::read(bytes, network)?;
        let mut reason = "it names no epoch".to_owned();
        for (epoch, hash) in contents.headers.iter().rev().take(EPOCHS_COMPARED) {
            let opened = match CarFile::open(&self.store, *epoch, BEGINNING_BYTES).await {
                Ok(Some(opened)) => opened,
                Ok(None) => {
                    reason = format!("the archive does not have epoch {epoch} any more");
                    continue;
                }
                Err(error) => {
                    reason = error.to_string();
                    continue;
                }
            };
            let header = header_length(&opened.beginning).ok().flatten();
            let header = opened.beginning.get(..header.unwrap_or_default());
            if Sha256::digest(header.unwrap_or_default()).as_slice() != hash {
                return Err(format!(
                    "it is of another archive: epoch {epoch} has another root"
                ));
            }
            let tables = contents.tables.len();
            self.learned.add(contents);
            return Ok(tables);
        }
        Err(format!(
            "it could not be compared with the archive: {reason}"
        ))
    }

    async fn is_in_pieces(&self, epoch: u64) -> Result<bool, ArchiveError> {
        let [newer, older] = metadata_names(epoch);
        let (newer, older) = futures::try_join!(
            self.store.beginning(&newer, 1),
            self.store.beginning(&older, 1)
        )?;
        Ok(newer.is_some() || older.is_some())
    }

    async fn has_older_indexes(&self, epoch: u64) -> Result<bool, ArchiveError> {
        let root = self.store.beginning(&root_name(epoch), 256).await?;
        let Some(Ok(names)) = root.map(|(root, _)| Names::new(epoch, &root)) else {
            return Ok(false);
        };
        let (slots, places) = futures::try_join!(
            self.store.beginning(&names.slot_to_cid, 1),
            self.store.beginning(&names.cid_to_place, 1)
        )?;
        Ok(slots.is_some() && places.is_some())
    }

    /// Opens an epoch: the CAR file's header and the whole slot-ranges file, or, where there is none, the older
    /// indexes.
    pub(crate) async fn epoch(&self, epoch: u64) -> Result<Arc<EpochFiles>, ArchiveError> {
        let index = index_name(epoch);
        let (opened, ranges) = futures::try_join!(
            CarFile::open(&self.store, epoch, BEGINNING_BYTES),
            self.store.beginning(&index, SLOT_RANGES_BYTES as u64)
        )?;
        let missing = |file: String| ArchiveError::EpochNotFound { epoch, file };
        let opened = opened.ok_or_else(|| missing(car_name(epoch)))?;
        let header_bytes = self.header_bytes(epoch, &opened)?;
        let file = opened.car;
        let car = Arc::clone(&file.name);
        let Some((ranges, ranges_identity)) = ranges else {
            let older = SlotToCid::open(&self.store, epoch, file.clone(), header_bytes).await?;
            return Ok(Arc::new(EpochFiles {
                epoch,
                car,
                file,
                index: EpochIndex::SlotToCid(Box::new(older.ok_or_else(|| missing(index))?)),
            }));
        };
        let invalid = |reason: String| ArchiveError::IndexInvalid { epoch, reason };
        if ranges_identity.size != SLOT_RANGES_BYTES as u64 {
            return Err(invalid(format!(
                "it has {} bytes instead of {SLOT_RANGES_BYTES}",
                ranges_identity.size
            )));
        }
        let index = SlotIndex::parse(epoch, Bytes::from(ranges), header_bytes, file.bytes)
            .map_err(invalid)?;
        Ok(Arc::new(EpochFiles {
            epoch,
            car,
            file,
            index: EpochIndex::SlotRanges(index),
        }))
    }

    /// Reads the slots of `request`, in ascending order. Dropping the stream cancels everything; a consumer that
    /// is slow makes the scan slow. Must be polled within a Tokio runtime. Ends after the first error.
    pub fn scan(
        &self,
        request: ScanRequest,
    ) -> impl Stream<Item = Result<ScanEvent, ArchiveError>> + Send + 'static {
        scan::stream(self.clone(), request)
    }

    /// Reads a bare CAR file without an index, front to back. The file is whole when it ends where a section and
    /// a block end; whether blocks follow cannot be known, so that its tail is always unproven. The range in the
    /// certificate is that from its first to its last block.
    pub fn scan_car_file(
        path: &Path,
        request: BareScanRequest,
    ) -> impl Stream<Item = Result<ScanEvent, ArchiveError>> + Send + 'static {
        bare::stream(path.to_owned(), request)
    }
}
