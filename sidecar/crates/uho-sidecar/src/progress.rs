//! How far a stream is: what its worker has sent, readable while it runs and after it ended in any way.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use old_faithful::Certificate;
use serde::Serialize;

/// What was sent so far. In an `error` record it tells a reader what it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sent {
    /// Everything before this slot was sent and certified: the last checkpoint, at first the range's start.
    pub(crate) checkpoint_slot: u64,
    /// The last slot whose records were sent, certified or not.
    pub(crate) last_slot: Option<u64>,
    /// Records sent, those after the last checkpoint included.
    pub(crate) records: u64,
    /// Blocks read up to the last checkpoint.
    pub(crate) blocks: u64,
    /// Transactions read up to the last checkpoint.
    pub(crate) transactions: u64,
    /// Bytes of the archive read up to the last checkpoint.
    pub(crate) archive_bytes: u64,
}

/// A stream's place, shared by its worker, its supervisor and the metrics.
#[derive(Debug)]
pub(crate) struct Progress {
    begun: Instant,
    sent: Mutex<Sent>,
    waiting: AtomicUsize,
}

impl Progress {
    /// A stream that begins at `start_slot` now.
    pub(crate) fn new(start_slot: u64) -> Self {
        Self {
            begun: Instant::now(),
            sent: Mutex::new(Sent {
                checkpoint_slot: start_slot,
                ..Sent::default()
            }),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Seconds since the stream began.
    pub(crate) fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// What was sent so far.
    pub(crate) fn sent(&self) -> Sent {
        *self.lock()
    }

    /// Records went out; `last_slot` is the last block's among them.
    pub(crate) fn add_records(&self, records: u64, last_slot: Option<u64>) {
        let mut sent = self.lock();
        sent.records += records;
        sent.last_slot = last_slot.or(sent.last_slot);
    }

    /// A checkpoint went out: everything before `slot` was sent, with this stretch's certificate.
    pub(crate) fn add_stretch(&self, slot: u64, stretch: &Certificate) {
        let mut sent = self.lock();
        sent.checkpoint_slot = slot;
        sent.blocks += stretch.blocks;
        sent.transactions += stretch.transactions;
        sent.archive_bytes += stretch.bytes;
    }

    /// A message was put into the channel.
    pub(crate) fn queued(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// A message was taken out of the channel.
    pub(crate) fn taken(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Messages between the worker and the socket.
    pub(crate) fn queue_depth(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sent> {
        // Every change leaves the counts whole, also when a worker panicked.
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
