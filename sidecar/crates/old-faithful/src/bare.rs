//! A bare CAR file, read front to back without an index: for pieces of an archive, and files at hand.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::Stream;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::assembler::Assembler;
use crate::car::{CarFault, SectionFeed, header_length};
use crate::certificate::IndexKind;
use crate::error::ArchiveError;
use crate::filter::ProgramFilter;
use crate::model::{BareScanRequest, ScanEvent};
use crate::place::Place;
use crate::scanner::{BlockScanner, ScannedBlock};
use crate::segment::feed_error;
use crate::transaction::TransactionReader;

/// Events that wait for the consumer, at most.
const WAITING_EVENTS: usize = 16;
/// Read from the file at once, in bytes.
const READ_BYTES: usize = 512 << 10;

enum State {
    Begin(PathBuf, BareScanRequest),
    Reading(Receiver<Result<ScanEvent, ArchiveError>>),
}

/// The events of a file.
pub(crate) fn stream(
    path: PathBuf,
    request: BareScanRequest,
) -> impl Stream<Item = Result<ScanEvent, ArchiveError>> + Send + 'static {
    futures::stream::unfold(State::Begin(path, request), async |state| {
        let mut events = match state {
            State::Begin(path, request) => begin(path, request),
            State::Reading(events) => events,
        };
        let event = events.recv().await?;
        Some((event, State::Reading(events)))
    })
}

/// Reads in a thread of its own, which ends when nobody receives any more.
fn begin(path: PathBuf, request: BareScanRequest) -> Receiver<Result<ScanEvent, ArchiveError>> {
    let (sender, events) = channel(WAITING_EVENTS);
    tokio::task::spawn_blocking(move || {
        if let Err(Stop::Fault(error)) = read(&path, request, &sender) {
            let _ = sender.blocking_send(Err(error));
        }
    });
    events
}

/// Why reading ended early.
enum Stop {
    Fault(ArchiveError),
    NobodyReceives,
}

impl From<ArchiveError> for Stop {
    fn from(error: ArchiveError) -> Self {
        Self::Fault(error)
    }
}

fn read(
    path: &Path,
    request: BareScanRequest,
    sender: &Sender<Result<ScanEvent, ArchiveError>>,
) -> Result<(), Stop> {
    let car: Arc<str> = path
        .file_name()
        .map_or_else(
            || path.display().to_string(),
            |name| name.to_string_lossy().into_owned(),
        )
        .into();
    let mut file = std::fs::File::open(path).map_err(|error| failed(&car, &error))?;
    let mut buffer = vec![0; READ_BYTES];
    let mut count = 0;
    let header = loop {
        let read = file
            .read(&mut buffer[count..])
            .map_err(|error| failed(&car, &error))?;
        count += read;
        match header_length(&buffer[..count]) {
            Ok(Some(length)) => break length,
            Ok(None) if read > 0 && count < READ_BYTES => {}
            Ok(None) => return Err(malformed(&car, 0, "it ends inside its header").into()),
            Err(CarFault::Malformed(reason)) => return Err(malformed(&car, 0, reason).into()),
            Err(CarFault::TooLarge(_)) => {
                return Err(malformed(&car, 0, "its header is too large").into());
            }
        }
    };

    let filter = Arc::new(ProgramFilter::new(&request.programs));
    let mut transactions = TransactionReader::new(filter, request.verify, Arc::default());
    let mut scanner = BlockScanner::new(request.verify);
    let mut feed = SectionFeed::new(header as u64);
    let mut sum = Sum {
        car: Arc::clone(&car),
        request,
        assembler: None,
        end: header as u64,
        last_slot: 0,
    };
    let mut from = header;
    loop {
        let mut ready = Vec::new();
        feed.push(&buffer[from..count], |section| {
            ready.extend(scanner.section(&section, &car, &mut transactions)?);
            Ok(())
        })
        .map_err(|error| feed_error(&car, error))?;
        for block in ready {
            sum.block(*block)?;
            sum.send(sender)?;
        }
        from = 0;
        count = file
            .read(&mut buffer)
            .map_err(|error| failed(&car, &error))?;
        if count == 0 {
            break;
        }
    }

    if !feed.is_at_boundary() {
        return Err(malformed(
            &car,
            feed.offset(),
            "it ends inside a section: it was cut off",
        )
        .into());
    }
    if scanner.is_inside_block() {
        return Err(malformed(
            &car,
            feed.offset(),
            "it ends inside a block: it was cut off",
        )
        .into());
    }
    sum.finish(scanner.cids_since_block())?;
    sum.send(sender)
}

fn failed(car: &Arc<str>, error: &std::io::Error) -> ArchiveError {
    ArchiveError::Io {
        file: car.to_string(),
        reason: error.to_string(),
    }
}

fn malformed(car: &Arc<str>, offset: u64, reason: &str) -> ArchiveError {
    ArchiveError::CarMalformed {
        car: Arc::clone(car),
        offset,
        reason: reason.to_owned(),
    }
}

/// Sums up the file: where its range begins is known with its first block.
struct Sum {
    car: Arc<str>,
    request: BareScanRequest,
    assembler: Option<Assembler>,
    /// The first byte after the last block.
    end: u64,
    last_slot: u64,
}

impl Sum {
    fn block(&mut self, block: ScannedBlock) -> Result<(), ArchiveError> {
        let slot = block.block.slot;
        let assembler = self.assembler.get_or_insert_with(|| {
            let programs = self.request.programs.clone();
            Assembler::new(programs, 0, slot, IndexKind::None, self.request.verify)
        });
        let place = Place {
            car: &self.car,
            slot: Some(slot),
            offset: block.offset,
        };
        let bytes = block.end - self.end;
        self.end = block.end;
        self.last_slot = slot;
        assembler.expect(slot)?;
        assembler.block(block, bytes, &place)
    }

    fn finish(&mut self, cids: u64) -> Result<(), ArchiveError> {
        let Some(assembler) = self.assembler.as_mut() else {
            return Err(malformed(&self.car, self.end, "it holds no block"));
        };
        assembler.count_cids(cids);
        assembler.finish(self.last_slot + 1, None)
    }

    fn send(&mut self, sender: &Sender<Result<ScanEvent, ArchiveError>>) -> Result<(), Stop> {
        let events = self.assembler.iter_mut();
        for event in events.flat_map(|assembler| std::iter::from_fn(|| assembler.next_event())) {
            sender
                .blocking_send(Ok(event))
                .map_err(|_| Stop::NobodyReceives)?;
        }
        Ok(())
    }
}
