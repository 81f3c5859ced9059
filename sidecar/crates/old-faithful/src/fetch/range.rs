//! A range of a file, as its bytes arrive. What ends early or breaks is asked for again from the exact byte, a
//! bounded number of times; a file that changed in between is an error.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::throttle::Pace;
use super::{Fault, Identity, Opened, Passing, Source, Store, fault};
use crate::counters::RetryCause;
use crate::error::ArchiveError;

/// Read from a local file at once, in bytes: so few that they are still in the core's own cache when they are scanned.
const FILE_READ_BYTES: u64 = 256 << 10;
/// Progress that makes earlier faults forgotten, in bytes: a server that closes every connection after a while
/// can still be read, one that sends next to nothing cannot.
const PROGRESS_BYTES: u64 = 1 << 20;
/// The longest wait between attempts, in milliseconds.
const LONGEST_BACKOFF_MS: u64 = 10_000;
/// The longest wait that a server may ask for, in milliseconds.
const LONGEST_WAIT_MS: u64 = 60_000;

/// The bytes last read.
enum Current {
    Bytes(Bytes),
    /// In `buffer`, this many.
    Buffer(usize),
}

/// Reads a range front to back.
pub(crate) struct RangeReader {
    store: Arc<Store>,
    file: Arc<str>,
    identity: Option<Identity>,
    at: u64,
    end: u64,
    source: Option<Source>,
    attempts: u32,
    progress: u64,
    /// What the connection brought since it was last compared with the others.
    pace: Pace,
    /// How long no bytes came.
    silent: Duration,
    current: Current,
    buffer: Vec<u8>,
    /// Whether the thread that polls may block: it serves no one else.
    may_block: bool,
}

impl RangeReader {
    /// Reads `range` of a file. With an identity, the file must have it; without one, the range is cut at the
    /// file's end when the first answer tells it.
    pub(crate) fn new(
        store: Arc<Store>,
        file: &str,
        range: Range<u64>,
        identity: Option<Identity>,
    ) -> Self {
        Self {
            store,
            file: file.into(),
            identity,
            at: range.start,
            end: range.end,
            source: None,
            attempts: 0,
            progress: 0,
            pace: Pace::default(),
            silent: Duration::ZERO,
            current: Current::Buffer(0),
            buffer: Vec::new(),
            may_block: false,
        }
    }

    /// For a reader that is polled by a thread of its own: local files are read right there.
    pub(crate) fn blocking(mut self) -> Self {
        self.may_block = true;
        self
    }

    /// Whether all of the range was read.
    pub(crate) fn is_done(&self) -> bool {
        self.at >= self.end
    }

    /// What identifies the file, once it has answered.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity.clone()
    }

    /// Whether the file exists. Asks for the range.
    pub(crate) async fn exists(&mut self) -> Result<bool, ArchiveError> {
        while self.source.is_none() && self.at < self.end {
            match self.store.request(&self.file, self.at..self.end).await {
                Ok(opened) => self.accept(opened)?,
                Err(Fault::Missing) => return Ok(false),
                Err(Fault::Refused(reason)) => return Err(self.failed(reason)),
                Err(Fault::Passing(fault)) => self.interrupted(fault).await?,
            }
        }
        Ok(true)
    }

    /// The next bytes, or `None` at the end of the range.
    pub(crate) async fn next(&mut self) -> Result<Option<&[u8]>, ArchiveError> {
        loop {
            if self.at >= self.end {
                return Ok(None);
            }
            if !self.exists().await? {
                return Err(self.failed("it is not there".to_owned()));
            }
            let count = match self.source.take() {
                Some(Source::File(file)) => self.read_file(file).await?,
                Some(Source::Stream(stream)) => match self.receive(stream).await {
                    Ok(Some(bytes)) => {
                        let count = bytes.len();
                        self.current = Current::Bytes(bytes);
                        count
                    }
                    Ok(None) => continue,
                    Err(fault) => {
                        self.interrupted(fault?).await?;
                        continue;
                    }
                },
                None => continue,
            };
            if count as u64 > self.end - self.at {
                return Err(self.failed("more bytes came than were asked for".to_owned()));
            }
            if count > 0 {
                self.store.counters.bytes_fetched.add(count as u64);
                self.at += count as u64;
                self.progress += count as u64;
                if self.progress >= PROGRESS_BYTES {
                    self.attempts = 0;
                }
                break;
            }
        }
        Ok(Some(match &self.current {
            Current::Bytes(bytes) => bytes,
            Current::Buffer(count) => &self.buffer[..*count],
        }))
    }

    /// The next bytes of a body; `None` when none came for a while, or the connection is better left for a new one.
    async fn receive(
        &mut self,
        mut stream: BoxStream<'static, object_store::Result<Bytes>>,
    ) -> Result<Option<Bytes>, Result<Passing, ArchiveError>> {
        let options = &self.store.options;
        let slow_after = Duration::from_millis(options.slow_after_ms);
        let silence = options.read_timeout().saturating_sub(self.silent);
        let asked = Instant::now();
        let received = tokio::time::timeout(silence.min(slow_after), stream.next()).await;
        self.pace.waited += asked.elapsed();
        let bytes = match received {
            Ok(Some(Ok(bytes))) => {
                self.silent = Duration::ZERO;
                self.pace.bytes += bytes.len() as u64;
                Some(bytes)
            }
            Ok(Some(Err(error))) => return Err(self.broken(&error)),
            Ok(None) => return Err(Ok(Passing::new(RetryCause::EarlyEnd, ""))),
            Err(_) => {
                self.silent += asked.elapsed();
                if self.silent >= options.read_timeout() {
                    return Err(Ok(Passing::new(RetryCause::Stall, "no bytes came in time")));
                }
                None
            }
        };
        if self.pace.waited >= slow_after
            && self.store.throttle.is_slow(std::mem::take(&mut self.pace))
        {
            // The rest is asked for anew, over another connection.
            self.store.counters.retried(RetryCause::Slow);
            self.silent = Duration::ZERO;
        } else {
            self.source = Some(Source::Stream(stream));
        }
        Ok(bytes)
    }

    fn accept(&mut self, opened: Opened) -> Result<(), ArchiveError> {
        if let Some(identity) = &self.identity {
            if let Some(reason) = identity.difference(&opened.identity) {
                return Err(ArchiveError::ObjectChanged {
                    file: self.file.to_string(),
                    reason,
                });
            }
        } else {
            self.end = self.end.min(opened.identity.size);
            self.identity = Some(opened.identity);
        }
        if opened.range != (self.at..self.end) {
            return Err(self.failed("a shorter range came than was asked for".to_owned()));
        }
        self.source = Some(opened.source);
        Ok(())
    }

    /// Reads from a local file, but never on a thread that serves connections.
    async fn read_file(&mut self, mut file: std::fs::File) -> Result<usize, ArchiveError> {
        let at = self.at;
        let wanted = usize::try_from((self.end - at).min(FILE_READ_BYTES)).unwrap_or_default();
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = move || {
            buffer.resize(wanted, 0);
            let count = file
                .seek(SeekFrom::Start(at))
                .and_then(|_| file.read(&mut buffer));
            (file, buffer, count)
        };
        let (file, buffer, count) = if self.may_block {
            read()
        } else {
            tokio::task::spawn_blocking(read)
                .await
                .map_err(|error| self.failed(error.to_string()))?
        };
        self.buffer = buffer;
        match count {
            Ok(0) => {
                let fault = Passing::new(RetryCause::EarlyEnd, "");
                self.interrupted(fault).await?;
                Ok(0)
            }
            Ok(count) => {
                self.source = Some(Source::File(file));
                self.current = Current::Buffer(count);
                Ok(count)
            }
            Err(error) => Err(self.failed(error.to_string())),
        }
    }

    fn failed(&self, reason: String) -> ArchiveError {
        ArchiveError::FetchFailed {
            file: self.file.to_string(),
            offset: self.at,
            attempts: self.attempts + 1,
            reason,
        }
    }

    /// Waits before the next attempt, or gives up.
    async fn interrupted(&mut self, fault: Passing) -> Result<(), ArchiveError> {
        self.source = None;
        self.silent = Duration::ZERO;
        self.progress = 0;
        if self.attempts >= self.store.options.retries {
            return Err(match fault.cause {
                RetryCause::EarlyEnd => ArchiveError::EarlyEof {
                    file: self.file.to_string(),
                    offset: self.at,
                    expected: self.end,
                    attempts: self.attempts + 1,
                },
                _ => self.failed(fault.reason),
            });
        }
        self.store.counters.retried(fault.cause);
        let doubled = self.store.options.backoff_ms << self.attempts.min(16);
        let longest = doubled.clamp(1, LONGEST_BACKOFF_MS);
        self.attempts += 1;
        let backoff = Duration::from_millis(longest / 2 + jitter(longest / 2));
        let asked = fault.wait.unwrap_or_default();
        let asked = asked.min(Duration::from_millis(LONGEST_WAIT_MS));
        if fault.cause == RetryCause::Throttled {
            self.store.throttle.throttled(backoff + asked);
        }
        tokio::time::sleep(backoff + asked).await;
        Ok(())
    }

    /// Why a body broke off.
    fn broken(&self, error: &object_store::Error) -> Result<Passing, ArchiveError> {
        match fault(error) {
            Fault::Passing(fault) => Ok(fault),
            Fault::Refused(reason) => Err(self.failed(reason)),
            Fault::Missing => Err(self.failed("it is not there any more".to_owned())),
        }
    }
}

/// A number below `limit` that differs from one process and call to the next: all the chance that waiting needs.
fn jitter(limit: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) % limit.max(1)
}
