//! HTTP as the archive's mirrors and S3's buckets need it: one connection per request in flight (HTTP/1.1, which is faster there
//! than one multiplexed connection), no limit for a whole body, no redirect to another host, and `Retry-After`
//! handed on. Which requests are repeated, and when, is decided in [`range`](super::range) alone.

use std::time::{Duration, SystemTime};

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpService,
};
use object_store::http::{HttpBuilder, HttpStore};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, RetryConfig};
use reqwest::header::{CONTENT_RANGE, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::{StatusCode, Url};

use super::redact;
use crate::archive::ArchiveOptions;
use crate::counters::RetryCause;
use crate::error::ArchiveError;

/// Redirects followed at most.
const MAXIMUM_REDIRECTS: usize = 5;

/// The files below an HTTP address.
pub(super) fn store(url: Url, options: &ArchiveOptions) -> Result<HttpStore, ArchiveError> {
    let address = redact(url.as_str());
    HttpBuilder::new()
        .with_url(url)
        .with_http_connector(connector(&address, options)?)
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(once())
        .build()
        .map_err(|error| failed(&address, super::innermost(&error)))
}

/// The files below `s3://bucket/prefix`. Region, endpoint and credentials come from the environment, as the AWS tools
/// read it (`AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID` …; `AWS_SKIP_SIGNATURE=true` for a public bucket).
pub(super) fn bucket(
    url: &Url,
    options: &ArchiveOptions,
) -> Result<PrefixStore<AmazonS3>, ArchiveError> {
    let address = redact(url.as_str());
    let name = url
        .host_str()
        .ok_or_else(|| failed(&address, "it names no bucket".to_owned()))?;
    let store = AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .with_http_connector(connector(&address, options)?)
        .with_retry(once())
        .build()
        .map_err(|error| failed(&address, super::innermost(&error)))?;
    Ok(PrefixStore::new(store, url.path()))
}

/// A connector that hands out one client: HTTP/1.1, no redirect to another host.
fn connector(address: &str, options: &ArchiveOptions) -> Result<Connector, ArchiveError> {
    // A process has one provider of cryptography; another crate may have chosen it already.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    reqwest::Client::builder()
        .http1_only()
        .connect_timeout(Duration::from_millis(options.connect_timeout_ms))
        .redirect(Policy::custom(stay_on_host))
        .user_agent(concat!("uho_pipelines/", env!("CARGO_PKG_VERSION")))
        .build()
        .map(Connector)
        .map_err(|error| failed(address, error.without_url().to_string()))
}

/// The object store asks once: what is repeated is decided in [`range`](super::range) alone.
fn once() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: Duration::ZERO,
    }
}

fn failed(address: &str, reason: String) -> ArchiveError {
    ArchiveError::Io {
        file: format!("archive address {address}"),
        reason,
    }
}

fn stay_on_host(attempt: Attempt<'_>) -> Action {
    let same = attempt
        .previous()
        .first()
        .is_some_and(|first| first.origin() == attempt.url().origin());
    if same && attempt.previous().len() <= MAXIMUM_REDIRECTS {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

/// Hands the client made above to the object store, whatever its own options say.
#[derive(Debug)]
struct Connector(reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service(HttpClient::new(self.0.clone()))))
    }
}

/// Turns refusals into [`Refusal`], so that neither addresses nor bodies get into messages.
#[derive(Debug)]
struct Service(HttpClient);

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let asked = request.headers().get(RANGE).cloned();
        let response = self.0.execute(request).await?;
        let status = response.status();
        let refusal = if status == StatusCode::NOT_FOUND {
            return Ok(response);
        } else if !status.is_success() {
            Refusal::Status(status, retry_after(response.headers()))
        } else if let Some(asked) = asked.as_ref().and_then(|asked| asked.to_str().ok()) {
            if status != StatusCode::PARTIAL_CONTENT {
                Refusal::WholeFile
            } else if first_byte(response.headers()) != first_byte_asked(asked) {
                Refusal::OtherRange
            } else {
                return Ok(response);
            }
        } else {
            return Ok(response);
        };
        // `Decode` is the kind that the object store never repeats by itself.
        Err(HttpError::new(HttpErrorKind::Decode, refusal))
    }
}

/// How long a server asks to be left alone: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    until.duration_since(SystemTime::now()).ok()
}

/// The first byte of `bytes=A-B`.
fn first_byte_asked(range: &str) -> Option<u64> {
    let (first, _) = range.strip_prefix("bytes=")?.split_once('-')?;
    first.parse().ok()
}

/// The first byte of an answer's `bytes A-B/SIZE`.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (first, _) = value.trim().strip_prefix("bytes ")?.split_once('-')?;
    first.parse().ok()
}

/// An answer that is not what was asked for.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the server answered {0}")]
    Status(StatusCode, Option<Duration>),
    #[error("the server sends the whole file where a range was asked for")]
    WholeFile,
    #[error("another range came than was asked for")]
    OtherRange,
}

impl Refusal {
    /// Why asking again may help, if it may.
    pub(super) fn cause(self) -> Option<RetryCause> {
        match self {
            Self::Status(StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) => {
                Some(RetryCause::Throttled)
            }
            Self::Status(status, _)
                if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT =>
            {
                Some(RetryCause::Status)
            }
            Self::Status(..) => None,
            Self::WholeFile | Self::OtherRange => Some(RetryCause::WrongRange),
        }
    }

    /// How long the server asks to be left alone.
    pub(super) fn wait(self) -> Option<Duration> {
        match self {
            Self::Status(_, wait) => wait,
            Self::WholeFile | Self::OtherRange => None,
        }
    }
}

/// The refusal behind an error of the object store.
pub(super) fn refusal(error: &object_store::Error) -> Option<Refusal> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return Some(*refusal);
        }
        cause = error.source();
    }
    None
}
