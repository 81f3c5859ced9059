//! An archive: where it is, which epochs it has. Reading slots out of it belongs in [`scan`](crate::scan).

use std::path::Path;

use futures::Stream;

use crate::error::ArchiveError;
use crate::model::{BareScanRequest, ScanEvent, ScanRequest};

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
            backoff_ms: 200,
        }
    }
}

/// An Old Faithful archive: a folder, or an HTTP server with range requests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Archive {}

impl Archive {
    /// Opens the archive at `base`: an absolute path, `file:///path`, or `http(s)://host[:port]/base`. Nothing is
    /// read yet.
    pub fn open(base: &str, options: ArchiveOptions) -> Result<Self, ArchiveError> {
        let _ = (base, options);
        Ok(Self {})
    }

    /// The end slot (exclusive) of the newest epoch that is published whole, searched upward from `first_epoch`;
    /// `None` when the archive does not have `first_epoch`.
    #[allow(clippy::unused_async)]
    pub async fn tip(&self, first_epoch: u64) -> Result<Option<u64>, ArchiveError> {
        let _ = first_epoch;
        Ok(None)
    }

    /// Reads the slots of `request`, in ascending order. Dropping the stream cancels everything.
    pub fn scan(
        &self,
        request: ScanRequest,
    ) -> impl Stream<Item = Result<ScanEvent, ArchiveError>> + Send + 'static {
        let _ = request;
        futures::stream::empty()
    }

    /// Reads a bare CAR file without an index, front to back.
    pub fn scan_car_file(
        path: &Path,
        request: BareScanRequest,
    ) -> impl Stream<Item = Result<ScanEvent, ArchiveError>> + Send + 'static {
        let _ = (path, request);
        futures::stream::empty()
    }
}
