//! A scan of a slot range: segments planned from the slot indexes, a few of them read at once over their own
//! connections, their blocks handed on in ascending order. Memory is bounded by the segments in flight; dropping
//! the stream ends everything.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures::Stream;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::archive::{Archive, EpochFiles, EpochIndex, MAXIMUM_SLOT};
use crate::assembler::Assembler;
use crate::certificate::{BlockLink, IndexKind};
use crate::error::ArchiveError;
use crate::filter::ProgramFilter;
use crate::index::ListedBlock;
use crate::model::{SLOTS_PER_EPOCH, ScanEvent, ScanRequest, SlotRange};
use crate::place::Place;
use crate::scanner::ScannedBlock;
use crate::segment::{Segment, SegmentReader};
use crate::transaction::TransactionReaders;

/// Blocks of one segment that wait for the consumer, at most.
const WAITING_BLOCKS: usize = 1024;
/// Memory that matches hold while they wait for the consumer, at most, in bytes: each segment in flight has an
/// equal part of it, so that none can keep another from going on. A single block may hold more.
const WAITING_BYTES: usize = 64 << 20;
/// Segments in flight per connection: those that are read, and those that wait for one before them.
const SEGMENTS_PER_CONNECTION: usize = 2;

/// The events of a scan.
pub(crate) fn stream(
    archive: Archive,
    request: ScanRequest,
) -> impl Stream<Item = Result<ScanEvent, ArchiveError>> + Send + 'static {
    futures::stream::unfold(Some(Scan::new(archive, request)), async |scan| {
        let mut scan = scan?;
        match scan.next().await {
            Ok(Some(event)) => Some((Ok(event), Some(scan))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// A block, and the right to hold its memory.
type Waiting = (ScannedBlock, Option<OwnedSemaphorePermit>);

/// A segment that is being read.
struct InFlight {
    segment: Arc<Segment>,
    /// Blocks handed on so far.
    handed_on: usize,
    blocks: Receiver<Result<Waiting, ArchiveError>>,
    task: JoinHandle<()>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What every segment's task needs.
struct Shared {
    archive: Archive,
    readers: Arc<TransactionReaders>,
    connections: Connections,
}

/// The connections of a scan: fewer while the server throttles. A segment keeps the one it has until it is read,
/// so that the one which all others wait for never lacks one.
struct Connections {
    free: Arc<Semaphore>,
    /// How many there are now, in use or not.
    count: Mutex<usize>,
    most: usize,
}

impl Connections {
    fn new(most: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(most)),
            count: Mutex::new(most),
            most,
        }
    }

    async fn free(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    /// Frees a connection, or takes it away or adds another, towards what is `allowed`: one at least.
    fn give_back(&self, connection: Option<OwnedSemaphorePermit>, allowed: usize) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if *count > allowed
            && let Some(connection) = connection
        {
            connection.forget();
            *count -= 1;
        } else if *count < allowed {
            self.free.add_permits(1);
            *count += 1;
        }
    }
}

struct Scan {
    shared: Arc<Shared>,
    assembler: Assembler,
    plan: Plan,
    window: usize,
    in_flight: VecDeque<InFlight>,
    finished: bool,
}

impl Scan {
    fn new(archive: Archive, request: ScanRequest) -> Self {
        let connections = archive.store.options.connections.clamp(1, 256);
        let ScanRequest {
            range,
            programs,
            verify,
            checkpoint_slots,
        } = request;
        Self {
            shared: Arc::new(Shared {
                archive: archive.clone(),
                readers: Arc::new(TransactionReaders::new(
                    Arc::new(ProgramFilter::new(&programs)),
                    verify,
                    Arc::clone(&archive.learned),
                )),
                connections: Connections::new(connections),
            }),
            assembler: Assembler::new(
                programs,
                checkpoint_slots,
                range.start,
                IndexKind::SlotRanges,
                verify,
            ),
            plan: Plan {
                archive,
                range,
                next_slot: range.start,
                epoch: None,
                by_older_indexes: Vec::new(),
            },
            window: connections * SEGMENTS_PER_CONNECTION,
            in_flight: VecDeque::new(),
            finished: false,
        }
    }

    /// The next event; `None` after the last.
    async fn next(&mut self) -> Result<Option<ScanEvent>, ArchiveError> {
        loop {
            if let Some(event) = self.assembler.next_event() {
                return Ok(Some(event));
            }
            if self.finished {
                return Ok(None);
            }
            self.advance().await?;
        }
    }

    /// Begins a segment, takes a block, or ends the scan.
    async fn advance(&mut self) -> Result<(), ArchiveError> {
        self.plan.check()?;
        let may_begin = !self.plan.is_done() && self.in_flight.len() < self.window;
        let Some(front) = self.in_flight.front_mut() else {
            if may_begin {
                let connection = self.shared.connections.free().await;
                return self.begin_segment(connection).await;
            }
            return self.finish().await;
        };
        tokio::select! {
            biased;
            connection = self.shared.connections.free(), if may_begin => {
                self.begin_segment(connection).await
            }
            received = front.blocks.recv() => match received {
                Some(Ok((block, _memory))) => self.take_block(block),
                Some(Err(error)) => Err(error),
                None => self.end_segment(),
            }
        }
    }

    async fn begin_segment(
        &mut self,
        connection: Option<OwnedSemaphorePermit>,
    ) -> Result<(), ArchiveError> {
        let segment = self.plan.next_segment().await?;
        for epoch in self.plan.by_older_indexes.drain(..) {
            self.assembler.by_older_indexes(epoch);
        }
        let Some(segment) = segment else {
            return Ok(());
        };
        let segment = Arc::new(segment);
        let (sender, blocks) = channel(WAITING_BLOCKS);
        let reading = read_segment(
            Arc::clone(&self.shared),
            Arc::clone(&segment),
            sender,
            connection,
        );
        self.in_flight.push_back(InFlight {
            segment,
            handed_on: 0,
            blocks,
            task: if self.shared.archive.store.in_folder {
                // Reading and scanning on one thread keeps what was read in its core's cache.
                let runtime = Handle::current();
                tokio::task::spawn_blocking(move || runtime.block_on(reading))
            } else {
                tokio::spawn(reading)
            },
        });
        Ok(())
    }

    fn take_block(&mut self, block: ScannedBlock) -> Result<(), ArchiveError> {
        let Some(front) = self.in_flight.front_mut() else {
            return Ok(());
        };
        let place = Place {
            car: &front.segment.epoch.car,
            slot: Some(block.block.slot),
            offset: block.offset,
        };
        let listed = front.segment.blocks.get(front.handed_on);
        let Some(listed) = listed.filter(|listed| listed.slot == block.block.slot) else {
            return Err(place.chain(block.block.slot, "the slot index does not list it here"));
        };
        front.handed_on += 1;
        block.count(listed.length, &self.shared.archive.store.counters);
        self.assembler.expect(listed.slot)?;
        self.assembler
            .block(block, u64::from(listed.length), &place)
    }

    /// The front segment's task has ended: all its blocks must have come.
    fn end_segment(&mut self) -> Result<(), ArchiveError> {
        match self.in_flight.pop_front() {
            Some(front) if front.handed_on < front.segment.blocks.len() => Err(ArchiveError::Io {
                file: front.segment.epoch.car.to_string(),
                reason: "the task that reads it ended without a result".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Everything was read: looks for the first block after the range.
    async fn finish(&mut self) -> Result<(), ArchiveError> {
        let tail = self.read_tail().await?;
        let end = self.plan.range.end;
        match &tail {
            Some((epoch, block)) => {
                let link = BlockLink {
                    slot: block.block.slot,
                    parent_slot: block.block.parent_slot,
                };
                let place = Place {
                    car: &epoch.car,
                    slot: Some(link.slot),
                    offset: block.offset,
                };
                self.assembler.finish(end, Some((link, &place)))?;
            }
            None => self.assembler.finish(end, None)?,
        }
        self.finished = true;
        Ok(())
    }

    /// The first block at or after the end of the range, read whole; `None` when the archive has none yet.
    async fn read_tail(&self) -> Result<Option<(Arc<EpochFiles>, ScannedBlock)>, ArchiveError> {
        let Some((epoch, listed)) = self.plan.first_block_after().await? else {
            return Ok(None);
        };
        let nothing = Arc::new(ProgramFilter::new(&[]));
        let verify = self.shared.readers.verify();
        let readers = TransactionReaders::new(nothing, verify, Arc::default());
        let segment = Segment {
            epoch: Arc::clone(&epoch),
            blocks: vec![listed],
        };
        let store = &self.shared.archive.store;
        let mut reader = SegmentReader::new(store, Arc::new(segment), Arc::new(readers));
        let block = reader.next().await?;
        Ok(block.map(|block| (epoch, block)))
    }
}

/// Reads a segment and sends its blocks. Ends when nobody wants them any more.
async fn read_segment(
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    blocks: Sender<Result<Waiting, ArchiveError>>,
    connection: Option<OwnedSemaphorePermit>,
) {
    let window = shared.connections.most * SEGMENTS_PER_CONNECTION;
    let most = u32::try_from(WAITING_BYTES / window).unwrap_or(u32::MAX);
    let memory = Arc::new(Semaphore::new(most as usize));
    let readers = Arc::clone(&shared.readers);
    let mut reader = SegmentReader::new(&shared.archive.store, segment, readers);
    if shared.archive.store.in_folder {
        reader = reader.blocking();
    }
    loop {
        match reader.next().await {
            Ok(Some(block)) => {
                let bytes = u32::try_from(block.matched_bytes).unwrap_or(most);
                let memory = Arc::clone(&memory);
                let permit = memory.acquire_many_owned(bytes.min(most)).await;
                if blocks.send(Ok((block, permit.ok()))).await.is_err() {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => {
                // Without a receiver nobody is left to tell.
                let _ = blocks.send(Err(error)).await;
                return;
            }
        }
    }
    let throttle = &shared.archive.store.throttle;
    throttle.recover();
    let allowed = throttle.connections(shared.connections.most);
    shared.connections.give_back(connection, allowed);
}

/// Which segments a range has. Epochs are opened one after another, when they are reached.
struct Plan {
    archive: Archive,
    range: SlotRange,
    next_slot: u64,
    epoch: Option<Arc<EpochFiles>>,
    /// Epochs opened that are read by the older indexes, not yet told to the assembler.
    by_older_indexes: Vec<u64>,
}

impl Plan {
    fn is_done(&self) -> bool {
        self.next_slot >= self.range.end
    }

    /// Refuses a range that ends before it begins, or beyond all epochs.
    fn check(&self) -> Result<(), ArchiveError> {
        if self.range.start > self.range.end || self.range.end > MAXIMUM_SLOT {
            return Err(ArchiveError::Io {
                file: format!("slots {}..{}", self.range.start, self.range.end),
                reason: format!(
                    "not a range of slots: it must not end before it begins, nor after slot {MAXIMUM_SLOT}"
                ),
            });
        }
        Ok(())
    }

    async fn open(&self, epoch: u64) -> Result<Arc<EpochFiles>, ArchiveError> {
        match &self.epoch {
            Some(open) if open.epoch == epoch => Ok(Arc::clone(open)),
            _ => self.archive.epoch(epoch).await,
        }
    }

    /// The next segment of the range; `None` when there is no further one.
    async fn next_segment(&mut self) -> Result<Option<Segment>, ArchiveError> {
        while !self.is_done() {
            let number = self.next_slot / SLOTS_PER_EPOCH;
            let epoch = self.open(number).await?;
            self.epoch = Some(Arc::clone(&epoch));
            if matches!(epoch.index, EpochIndex::SlotToCid(_)) {
                self.by_older_indexes.push(number);
            }
            let blocks = self.run_of_blocks(&epoch).await?;
            if let Some(last) = blocks.last() {
                self.next_slot = last.slot + 1;
                return Ok(Some(Segment { epoch, blocks }));
            }
            self.next_slot = (number + 1) * SLOTS_PER_EPOCH;
        }
        Ok(None)
    }

    /// Blocks from `next_slot` on that lie next to each other, up to a segment's size.
    async fn run_of_blocks(&self, epoch: &EpochFiles) -> Result<Vec<ListedBlock>, ArchiveError> {
        let limit = self.archive.store.options.segment_bytes;
        let mut blocks: Vec<ListedBlock> = Vec::new();
        let (mut bytes, mut slot) = (0, self.next_slot);
        while let Some(block) = epoch.index.next_block(slot).await? {
            let adjoins = blocks.last().is_none_or(|last| last.end() == block.offset);
            if block.slot >= self.range.end || !adjoins || (bytes >= limit && !blocks.is_empty()) {
                break;
            }
            bytes += u64::from(block.length);
            slot = block.slot + 1;
            blocks.push(block);
        }
        Ok(blocks)
    }

    /// The first block at or after the range's end, in this epoch or a later one; `None` when the archive does
    /// not have it. A later epoch whose files do not fit each other is on its way.
    async fn first_block_after(
        &self,
    ) -> Result<Option<(Arc<EpochFiles>, ListedBlock)>, ArchiveError> {
        let end = self.range.end;
        let needed = end.saturating_sub(1).max(self.range.start) / SLOTS_PER_EPOCH;
        for number in end / SLOTS_PER_EPOCH.. {
            let epoch = match self.open(number).await {
                Ok(epoch) => epoch,
                Err(error)
                    if error.may_be_on_its_way() && (number > needed || self.range.is_empty()) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            if let Some(block) = epoch.index.next_block(end).await? {
                return Ok(Some((epoch, block)));
            }
        }
        Ok(None)
    }
}
