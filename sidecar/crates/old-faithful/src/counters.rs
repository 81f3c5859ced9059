//! What reading an archive has come to, over all its scans: numbers that only grow, for whoever watches a
//! process. Proofs of what was read belong in the certificate.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Makes it larger.
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}

/// Why a request had to be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryCause {
    /// The bytes ended before they should.
    EarlyEnd,
    /// No answer, or no further bytes, came in time.
    Stall,
    /// The server asked for fewer requests: status 429 or 503.
    Throttled,
    /// Another status that may pass.
    Status,
    /// The answer was of another range than was asked for, or of the whole file.
    WrongRange,
    /// No connection, or one that broke.
    Connection,
    /// The connection was much slower than the others.
    Slow,
}

impl RetryCause {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::EarlyEnd,
        Self::Stall,
        Self::Throttled,
        Self::Status,
        Self::WrongRange,
        Self::Connection,
        Self::Slow,
    ];

    /// Its stable name, in `snake_case`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EarlyEnd => "early_end",
            Self::Stall => "stall",
            Self::Throttled => "throttled",
            Self::Status => "status",
            Self::WrongRange => "wrong_range",
            Self::Connection => "connection",
            Self::Slow => "slow",
        }
    }
}

/// The counters of an archive.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests for bytes of a file, repeated ones included; a local file is asked as a server is.
    pub requests: Counter,
    /// Bytes that came, of CAR files and of indexes.
    pub bytes_fetched: Counter,
    /// Bytes of blocks that were scanned, as the index has them.
    pub bytes_scanned: Counter,
    /// Blocks scanned.
    pub blocks: Counter,
    /// Transactions scanned.
    pub transactions: Counter,
    /// Transactions that matched.
    pub matches: Counter,
    /// Metadata decompressed.
    pub decompressions: Counter,
    /// Transactions with lookups that learned lookup tables decided, so that nothing was decompressed for them.
    pub decompressions_avoided: Counter,
    retries: [Counter; RetryCause::ALL.len()],
}

impl Counters {
    /// Requests repeated for this cause.
    pub fn retries(&self, cause: RetryCause) -> u64 {
        self.retries[cause as usize].get()
    }

    /// A request is repeated.
    pub(crate) fn retried(&self, cause: RetryCause) {
        self.retries[cause as usize].add(1);
    }
}
