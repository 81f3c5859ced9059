//! One backfill from its scan to the body of its response.
//!
//! A worker on a thread of its own drives the scan, so that extraction and hashing never keep the
//! service from answering. It sends messages into a bounded channel: a slow reader slows the scan, a
//! reader that went away ends it. A supervisor starts the stream and ends it: whatever becomes of the
//! worker, a panic included, the reader gets a last record that says so.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use old_faithful::{ArchiveError, ScanEvent, ScanRequest};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::collector::Collector;
use crate::encoder::{EncodeError, Format, Kind};
use crate::jobs::{Cancel, CancelReason, Job};
use crate::metrics::Metrics;
use crate::ndjson::base58;
use crate::progress::Progress;
use crate::proof::{Broken, Proof};
use crate::redact::redact;
use crate::request::BackfillRequest;

/// Messages (of a few megabytes at most) between the worker and the socket.
const MESSAGES_AHEAD: usize = 2;
/// How long a job that was cancelled on request waits for its reader to take the last record. At
/// shutdown it is the service's `farewell`, which is shorter.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a stream ended without `done`.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Archive(#[from] ArchiveError),
    #[error("the job was cancelled on request")]
    Cancelled,
    #[error("the sidecar is shutting down")]
    ShuttingDown,
    #[error("the reader went away")]
    ReaderGone,
    #[error(transparent)]
    Certificate(#[from] Broken),
    #[error("{0}")]
    Encode(#[from] EncodeError),
    #[error("the job's worker stopped unexpectedly")]
    Worker,
}

impl Failure {
    fn code(&self) -> &'static str {
        match self {
            Self::Archive(error) => error.code(),
            Self::Cancelled => "cancelled",
            Self::ShuttingDown => "shutting_down",
            Self::ReaderGone => "reader_gone",
            Self::Certificate(_) => "certificate_broken",
            Self::Encode(_) | Self::Worker => "internal",
        }
    }
}

impl From<CancelReason> for Failure {
    fn from(reason: CancelReason) -> Self {
        match reason {
            CancelReason::Requested => Self::Cancelled,
            CancelReason::ShuttingDown => Self::ShuttingDown,
        }
    }
}

/// What a scan yields.
pub(crate) type Scanned = Result<ScanEvent, ArchiveError>;

/// What a stream is told beside its scan.
#[derive(Clone)]
pub(crate) struct StreamOptions {
    /// The form the client asked for.
    pub(crate) format: Format,
    /// How long the last record waits for its reader at shutdown.
    pub(crate) farewell: Duration,
    /// Where what was read and sent is counted.
    pub(crate) metrics: Metrics,
}

/// What the reader asked of the archive for a request.
pub(crate) fn scan_request(request: &BackfillRequest) -> ScanRequest {
    ScanRequest {
        range: request.range,
        programs: request.programs.clone(),
        verify: request.verify,
        checkpoint_slots: request.checkpoint_slots,
    }
}

/// Starts a job and returns the body its records arrive in.
pub(crate) fn start<S>(scan: S, request: BackfillRequest, job: Job, options: StreamOptions) -> Body
where
    S: Stream<Item = Scanned> + Send + 'static,
{
    let asked = !request.instructions_of.is_empty();
    let options = StreamOptions {
        format: options.format.with_instructions(asked),
        ..options
    };
    let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
    let counted = (Arc::clone(&job.progress), options.metrics.clone());
    tokio::spawn(supervise(scan, request, job, options, sender));
    Body::from_stream(stream::unfold(
        (receiver, counted),
        async |(mut receiver, (progress, metrics))| {
            let message: Bytes = receiver.recv().await?;
            progress.taken();
            metrics.add_sent(message.len());
            let message = Ok::<_, std::convert::Infallible>(message);
            Some((message, (receiver, (progress, metrics))))
        },
    ))
}

async fn supervise<S>(
    scan: S,
    request: BackfillRequest,
    job: Job,
    options: StreamOptions,
    sender: mpsc::Sender<Bytes>,
) where
    S: Stream<Item = Scanned> + Send + 'static,
{
    let format = options.format;
    let network = request.network.clone();
    tracing::info!(
        job = job.id,
        network = request.network,
        start_slot = request.range.start,
        end_slot = request.range.end,
        programs = request.programs.len(),
        ?format,
        "backfill started"
    );
    let outcome = match announce(&request, format, &job.progress, &sender).await {
        Ok(()) => {
            let outlet = Outlet {
                cancel: job.cancel.clone(),
                progress: Arc::clone(&job.progress),
                metrics: options.metrics.clone(),
                sender: sender.clone(),
            };
            let runtime = Handle::current();
            tokio::task::spawn_blocking(move || {
                runtime.block_on(run(scan, request, format, &outlet))
            })
            .await
            .unwrap_or(Err(Failure::Worker))
        }
        Err(failure) => Err(failure),
    };
    let seconds = job.progress.seconds();
    match outcome {
        Ok(records) => {
            tracing::info!(job = job.id, records, seconds, "backfill done");
            options.metrics.add_ended("done", seconds);
            let bytes = job.progress.sent().archive_bytes;
            options.metrics.add_pace(&network, bytes, seconds);
        }
        Err(failure) => {
            let text = failure.to_string();
            let message = redact(&text);
            let code = failure.code();
            let sent = job.progress.sent();
            tracing::warn!(
                job = job.id, code, %message, seconds, checkpoint_slot = sent.checkpoint_slot, records = sent.records,
                "backfill ended without done"
            );
            options.metrics.add_ended(code, seconds);
            send_error(&failure, &message, &options, &job, &sender).await;
        }
    }
    // The job's place is free from here on.
    drop(job);
}

async fn announce(
    request: &BackfillRequest,
    format: Format,
    progress: &Progress,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), Failure> {
    let programs: Vec<String> = request.programs.iter().map(base58).collect();
    let control = json!({
        "type": "started", "jobId": request.job_id, "network": request.network, "programIds": programs,
        "startSlot": request.range.start, "endSlot": request.range.end,
    });
    let opening = [format.opening()?, format.control(Kind::Started, &control)?].concat();
    progress.queued();
    sender
        .send(opening.into())
        .await
        .map_err(|_| Failure::ReaderGone)
}

/// Ends a stream that failed: why, and what its reader has.
async fn send_error(
    failure: &Failure,
    message: &str,
    options: &StreamOptions,
    job: &Job,
    sender: &mpsc::Sender<Bytes>,
) {
    let control = json!({
        "type": "error", "code": failure.code(), "message": message, "sent": job.progress.sent(),
    });
    let Ok(last) = options.format.control(Kind::Error, &control) else {
        return; // Without the record the stream still ends without `done`.
    };
    let patience = match job.cancel.reason() {
        Some(CancelReason::ShuttingDown) => options.farewell,
        _ => PATIENCE,
    };
    let _ = tokio::time::timeout(patience, async {
        let place = sender.reserve().await.ok()?;
        job.progress.queued();
        place.send(last);
        Some(())
    })
    .await;
}

/// Where a worker's messages go, and where it says how far it is.
struct Outlet {
    cancel: Cancel,
    progress: Arc<Progress>,
    metrics: Metrics,
    sender: mpsc::Sender<Bytes>,
}

impl Outlet {
    /// Sends a message unless the job is cancelled or its reader gone while the channel is full.
    async fn send(&self, message: Bytes) -> Result<(), Failure> {
        if message.is_empty() {
            return Ok(());
        }
        tokio::select! {
            biased;
            reason = self.cancel.cancelled() => Err(reason.into()),
            place = self.sender.reserve() => {
                let place = place.map_err(|_| Failure::ReaderGone)?;
                self.progress.queued();
                place.send(message);
                Ok(())
            }
        }
    }

    /// Sends what the collector holds, all of it whole blocks.
    async fn flush(&self, collector: &mut Collector) -> Result<(), Failure> {
        let (records, last_slot) = (collector.waiting(), collector.last_slot());
        self.send(collector.flush()?).await?;
        self.progress.add_records(records, last_slot);
        Ok(())
    }

    /// Hands over what the collector holds although the job was told to stop; what a reader that takes nothing has no
    /// room for is dropped, and not counted as sent.
    fn flush_at_once(&self, collector: &mut Collector) -> Result<(), Failure> {
        let (records, last_slot) = (collector.waiting(), collector.last_slot());
        let message = collector.flush()?;
        if message.is_empty() {
            return Ok(());
        }
        if let Ok(place) = self.sender.try_reserve() {
            self.progress.queued();
            place.send(message);
            self.progress.add_records(records, last_slot);
        }
        Ok(())
    }
}

/// Reads the range and sends it. Returns the number of records sent, after `done`.
async fn run<S>(
    scan: S,
    request: BackfillRequest,
    format: Format,
    outlet: &Outlet,
) -> Result<u64, Failure>
where
    S: Stream<Item = Scanned>,
{
    let mut collector = Collector::new(format, request.programs, request.include_failed)
        .with_instructions_of(&request.instructions_of);
    let mut scan = pin!(scan);
    let mut proof = Proof::default();
    loop {
        let event = tokio::select! {
            biased;
            reason = outlet.cancel.cancelled() => {
                outlet.flush_at_once(&mut collector)?;
                return Err(reason.into());
            }
            () = outlet.sender.closed() => return Err(Failure::ReaderGone),
            event = scan.next() => event,
        };
        match event {
            Some(Ok(ScanEvent::Block(block))) => {
                collector.add(&block)?;
                if collector.is_full() {
                    outlet.flush(&mut collector).await?;
                }
            }
            Some(Ok(ScanEvent::Checkpoint {
                slot,
                mut certificate,
            })) => {
                outlet.flush(&mut collector).await?;
                let oddities = collector.certify(&mut certificate);
                let control = json!({
                    "type": "checkpoint", "slot": slot, "certificate": certificate, "oddities": oddities,
                });
                outlet
                    .send(format.control(Kind::Checkpoint, &control)?)
                    .await?;
                outlet.progress.add_stretch(slot, &certificate);
                outlet.metrics.add_stretch(&request.network, &certificate);
                proof.add(certificate, &oddities)?;
            }
            Some(Ok(ScanEvent::Done { certificate })) => {
                let concluded = proof.conclude(certificate, collector.programs())?;
                let control = json!({
                    "type": "done", "certificate": concluded.certificate, "oddities": concluded.oddities,
                });
                outlet.send(format.control(Kind::Done, &control)?).await?;
                return Ok(concluded.records);
            }
            Some(Err(error)) => return Err(error.into()),
            None => {
                return Err(Broken::Missing.into());
            }
        }
    }
}

#[cfg(test)]
mod tests;
