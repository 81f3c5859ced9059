//! One backfill from its scan to the body of its response.
//!
//! A worker on a thread of its own drives the scan, so that extraction and hashing never keep the
//! service from answering. It sends messages into a bounded channel: a slow reader slows the scan, a
//! reader that went away ends it. A supervisor starts the stream and ends it: whatever becomes of the
//! worker, a panic included, the reader gets a last record that says so.

use std::pin::pin;
use std::time::{Duration, Instant};

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
use crate::ndjson::base58;
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamOptions {
    /// The form the client asked for.
    pub(crate) format: Format,
    /// How long the last record waits for its reader at shutdown.
    pub(crate) farewell: Duration,
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
    let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
    tokio::spawn(supervise(scan, request, job, options, sender));
    Body::from_stream(stream::unfold(receiver, async |mut receiver| {
        let message: Bytes = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(message), receiver))
    }))
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
    let begun = Instant::now();
    let format = options.format;
    tracing::info!(
        job = job.id,
        network = request.network,
        start_slot = request.range.start,
        end_slot = request.range.end,
        programs = request.programs.len(),
        ?format,
        "backfill started"
    );
    let outcome = match announce(&request, format, &sender).await {
        Ok(()) => {
            let (cancel, messages) = (job.cancel.clone(), sender.clone());
            let runtime = Handle::current();
            tokio::task::spawn_blocking(move || {
                runtime.block_on(run(scan, request, format, &cancel, &messages))
            })
            .await
            .unwrap_or(Err(Failure::Worker))
        }
        Err(failure) => Err(failure),
    };
    let seconds = begun.elapsed().as_secs_f64();
    match outcome {
        Ok(records) => tracing::info!(job = job.id, records, seconds, "backfill done"),
        Err(failure) => {
            let text = failure.to_string();
            let message = redact(&text);
            let code = failure.code();
            tracing::warn!(job = job.id, code, %message, seconds, "backfill ended without done");
            send_error(&failure, &message, options, &job.cancel, &sender).await;
        }
    }
    // The job's place is free from here on.
    drop(job);
}

async fn announce(
    request: &BackfillRequest,
    format: Format,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), Failure> {
    let programs: Vec<String> = request.programs.iter().map(base58).collect();
    let control = json!({
        "type": "started", "jobId": request.job_id, "network": request.network, "programIds": programs,
        "startSlot": request.range.start, "endSlot": request.range.end,
    });
    let opening = [format.opening()?, format.control(Kind::Started, &control)?].concat();
    sender
        .send(opening.into())
        .await
        .map_err(|_| Failure::ReaderGone)
}

async fn send_error(
    failure: &Failure,
    message: &str,
    options: StreamOptions,
    cancel: &Cancel,
    sender: &mpsc::Sender<Bytes>,
) {
    let control = json!({"type": "error", "code": failure.code(), "message": message});
    let Ok(last) = options.format.control(Kind::Error, &control) else {
        return; // Without the record the stream still ends without `done`.
    };
    let patience = match cancel.reason() {
        Some(CancelReason::ShuttingDown) => options.farewell,
        _ => PATIENCE,
    };
    let _ = tokio::time::timeout(patience, sender.send(last)).await;
}

/// Reads the range and sends it. Returns the number of records sent, after `done`.
async fn run<S>(
    scan: S,
    request: BackfillRequest,
    format: Format,
    cancel: &Cancel,
    sender: &mpsc::Sender<Bytes>,
) -> Result<u64, Failure>
where
    S: Stream<Item = Scanned>,
{
    let mut collector = Collector::new(format, request.programs, request.include_failed);
    let mut scan = pin!(scan);
    let mut proof = Proof::default();
    loop {
        let event = tokio::select! {
            biased;
            reason = cancel.cancelled() => return Err(reason.into()),
            () = sender.closed() => return Err(Failure::ReaderGone),
            event = scan.next() => event,
        };
        match event {
            Some(Ok(ScanEvent::Block(block))) => {
                collector.add(&block)?;
                if collector.is_full() {
                    send(collector.flush()?, cancel, sender).await?;
                }
            }
            Some(Ok(ScanEvent::Checkpoint {
                slot,
                mut certificate,
            })) => {
                send(collector.flush()?, cancel, sender).await?;
                let oddities = collector.certify(&mut certificate);
                let control = json!({
                    "type": "checkpoint", "slot": slot, "certificate": certificate, "oddities": oddities,
                });
                proof.add(certificate, &oddities)?;
                send(format.control(Kind::Checkpoint, &control)?, cancel, sender).await?;
            }
            Some(Ok(ScanEvent::Done { certificate })) => {
                let concluded = proof.conclude(certificate, collector.programs())?;
                let control = json!({
                    "type": "done", "certificate": concluded.certificate, "oddities": concluded.oddities,
                });
                send(format.control(Kind::Done, &control)?, cancel, sender).await?;
                return Ok(concluded.records);
            }
            Some(Err(error)) => return Err(error.into()),
            None => {
                return Err(Broken::Missing.into());
            }
        }
    }
}

/// Sends a message unless the job is cancelled or its reader gone while the channel is full.
async fn send(
    message: Bytes,
    cancel: &Cancel,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), Failure> {
    if message.is_empty() {
        return Ok(());
    }
    tokio::select! {
        biased;
        reason = cancel.cancelled() => Err(reason.into()),
        sent = sender.send(message) => sent.map_err(|_| Failure::ReaderGone),
    }
}

#[cfg(test)]
mod tests;
