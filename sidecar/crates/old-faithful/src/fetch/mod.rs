//! Bytes of an archive's files, over HTTP, from a bucket or a folder, through one object store. Knows names, ranges,
//! identity and faults; what the bytes mean belongs elsewhere.

mod http;
mod range;
mod throttle;

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore};
use reqwest::Url;

use crate::archive::ArchiveOptions;
use crate::counters::{Counters, RetryCause};
use crate::error::ArchiveError;
pub(crate) use range::RangeReader;
use throttle::Throttle;

/// What HTTP clients say of a body that ended before its stated length.
const EARLY_END_TEXTS: [&str; 2] = [
    "end of file before message length reached",
    "connection closed before message completed",
];

/// A file's size and version. Every answer about the file must name the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) size: u64,
    pub(crate) e_tag: Option<String>,
}

impl Identity {
    /// What changed between two answers about one file, if anything did.
    fn difference(&self, other: &Self) -> Option<String> {
        if self.size != other.size {
            return Some(format!(
                "its size was {} bytes and is {}",
                self.size, other.size
            ));
        }
        match (&self.e_tag, &other.e_tag) {
            (Some(before), Some(after)) if before != after => {
                Some("its ETag is another".to_owned())
            }
            _ => None,
        }
    }
}

/// An answered request, whose bytes are still to come.
pub(crate) struct Opened {
    source: Source,
    identity: Identity,
    /// What will be sent: the range asked for, cut at the file's end.
    range: std::ops::Range<u64>,
}

/// Where bytes come from.
enum Source {
    Stream(futures::stream::BoxStream<'static, object_store::Result<bytes::Bytes>>),
    File(std::fs::File),
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// There is no such file.
    Missing,
    /// Asking again would not help.
    Refused(String),
    /// Asking again may help.
    Passing(Passing),
}

/// A fault that may pass.
#[derive(Debug)]
pub(crate) struct Passing {
    pub(crate) cause: RetryCause,
    pub(crate) reason: String,
    /// How long the server asks to be left alone.
    pub(crate) wait: Option<Duration>,
}

impl Passing {
    pub(crate) fn new(cause: RetryCause, reason: impl Into<String>) -> Self {
        Self {
            cause,
            reason: reason.into(),
            wait: None,
        }
    }
}

/// The files of an archive.
pub(crate) struct Store {
    inner: Arc<dyn ObjectStore>,
    /// The address without credentials.
    address: String,
    /// Whether files lie in a folder of this machine, where reading blocks a thread.
    pub(crate) in_folder: bool,
    pub(crate) options: ArchiveOptions,
    pub(crate) counters: Counters,
    pub(crate) throttle: Throttle,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The object store's own text would show the address's credentials.
        formatter
            .debug_struct("Store")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// The files below `base`. Nothing is read yet.
    pub(crate) fn open(base: &str, options: ArchiveOptions) -> Result<Self, ArchiveError> {
        let mut in_folder = false;
        let inner: Arc<dyn ObjectStore> = if base.starts_with('/') {
            in_folder = true;
            Arc::new(local(&PathBuf::from(base))?)
        } else {
            let url = Url::parse(base)
                .map_err(|_| not_an_archive(base, "it is neither an absolute path nor a URL"))?;
            match url.scheme() {
                "file" => {
                    in_folder = true;
                    let path = url
                        .to_file_path()
                        .map_err(|()| not_an_archive(base, "it names no folder of this machine"))?;
                    Arc::new(local(&path)?)
                }
                "http" | "https" => Arc::new(http::store(url, &options)?),
                "s3" => Arc::new(http::bucket(&url, &options)?),
                _ => {
                    return Err(not_an_archive(
                        base,
                        "only file://, http://, https:// and s3:// can be read",
                    ));
                }
            }
        };
        Ok(Self {
            inner,
            address: redact(base),
            in_folder,
            options,
            counters: Counters::default(),
            throttle: Throttle::default(),
        })
    }

    /// Asks for bytes of a file.
    async fn request(&self, file: &str, range: std::ops::Range<u64>) -> Result<Opened, Fault> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let location = ObjectPath::from(file);
        self.throttle.pass().await;
        self.counters.requests.add(1);
        let answer = self.inner.get_opts(&location, options);
        let answer = tokio::time::timeout(self.options.read_timeout(), answer)
            .await
            .map_err(|_| Fault::Passing(Passing::new(RetryCause::Stall, "no answer in time")))?
            .map_err(|error| fault(&error))?;
        Ok(Opened {
            identity: Identity {
                size: answer.meta.size,
                e_tag: answer.meta.e_tag.clone(),
            },
            range: answer.range.clone(),
            source: match answer.payload {
                GetResultPayload::File(file, _) => Source::File(file),
                GetResultPayload::Stream(stream) => Source::Stream(stream.boxed()),
            },
        })
    }

    /// The first bytes of a file, `limit` at most, and what identifies it; `None` when there is no such file.
    pub(crate) async fn beginning(
        self: &Arc<Self>,
        file: &str,
        limit: u64,
    ) -> Result<Option<(Vec<u8>, Identity)>, ArchiveError> {
        let mut reader = RangeReader::new(Arc::clone(self), file, 0..limit, None);
        if !reader.exists().await? {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        while let Some(part) = reader.next().await? {
            bytes.extend_from_slice(part);
        }
        Ok(reader.identity().map(|identity| (bytes, identity)))
    }
}

fn local(path: &std::path::Path) -> Result<LocalFileSystem, ArchiveError> {
    LocalFileSystem::new_with_prefix(path).map_err(|error| ArchiveError::Io {
        file: path.display().to_string(),
        reason: format!(
            "the archive's folder cannot be opened ({}). Check the path",
            innermost(&error)
        ),
    })
}

fn not_an_archive(base: &str, reason: &str) -> ArchiveError {
    ArchiveError::Io {
        file: format!("archive address {}", redact(base)),
        reason: format!(
            "{reason}. Give /path, file:///path, http(s)://host[:port]/base or s3://bucket/prefix"
        ),
    }
}

/// An address without credentials: what follows `@` and precedes `?`.
pub(crate) fn redact(address: &str) -> String {
    let address = address.split(['?', '#']).next().unwrap_or_default();
    match address.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None if address.starts_with('/') => address.to_owned(),
        None => address.rsplit('@').next().unwrap_or_default().to_owned(),
    }
}

/// What an error of the store means. Its own text may hold the address and the answer's body, so that only the
/// innermost cause is kept.
fn fault(error: &object_store::Error) -> Fault {
    use object_store::Error;
    match error {
        Error::NotFound { .. } => Fault::Missing,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            Fault::Refused("access was refused".to_owned())
        }
        _ => match http::refusal(error) {
            Some(refusal) => refused(refusal),
            None => Fault::Passing(broken(error)),
        },
    }
}

fn refused(refusal: http::Refusal) -> Fault {
    let reason = refusal.to_string();
    match refusal.cause() {
        None => Fault::Refused(reason),
        Some(cause) => Fault::Passing(Passing {
            cause,
            reason,
            wait: refusal.wait(),
        }),
    }
}

/// No connection, or one that broke.
fn broken(error: &object_store::Error) -> Passing {
    let reason = innermost(error);
    let early = EARLY_END_TEXTS.iter().any(|text| reason.contains(text));
    let cause = if early {
        RetryCause::EarlyEnd
    } else {
        RetryCause::Connection
    };
    Passing::new(cause, reason)
}

/// The text of the cause behind all others.
fn innermost(error: &object_store::Error) -> String {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if error.source().is_none() {
        return "the store gave no reason".to_owned();
    }
    cause.to_string()
}
