//! HTTP as the archive's mirrors need it: one connection per request in flight (HTTP/1.1, which is faster there
//! than one multiplexed connection), no limit for a whole body, no redirect to another host, and `Retry-After`
//! heeded. Which requests are repeated is decided in [`range`](super::range) alone.

use std::time::Duration;

use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpService,
};
use object_store::http::{HttpBuilder, HttpStore};
use object_store::{BackoffConfig, RetryConfig};
use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::{StatusCode, Url};

use super::redact;
use crate::archive::ArchiveOptions;
use crate::error::ArchiveError;

/// The longest `Retry-After` that is waited for, in seconds.
const LONGEST_WAIT: u64 = 60;
/// Redirects followed at most.
const MAXIMUM_REDIRECTS: usize = 5;

/// The files below an HTTP address.
pub(super) fn store(url: Url, options: &ArchiveOptions) -> Result<HttpStore, ArchiveError> {
    let address = redact(url.as_str());
    let failed = |reason: String| ArchiveError::Io {
        file: format!("archive address {address}"),
        reason,
    };
    // A process has one provider of cryptography; another crate may have chosen it already.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let client = reqwest::Client::builder()
        .http1_only()
        .connect_timeout(Duration::from_millis(options.connect_timeout_ms))
        .redirect(Policy::custom(stay_on_host))
        .user_agent(concat!("uho_pipelines/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| failed(error.without_url().to_string()))?;
    HttpBuilder::new()
        .with_url(url)
        .with_http_connector(Connector(client))
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 0,
            retry_timeout: Duration::ZERO,
        })
        .build()
        .map_err(|error| failed(super::innermost(&error)))
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
        let response = self.0.execute(request).await?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok(response);
        }
        let refusal = Refusal(status);
        let wait = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
        if let Some(seconds) = wait
            && refusal.may_pass()
        {
            tokio::time::sleep(Duration::from_secs(seconds.min(LONGEST_WAIT))).await;
        }
        // `Decode` is the kind that the object store never repeats by itself.
        Err(HttpError::new(HttpErrorKind::Decode, refusal))
    }
}

/// A status that is no success.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the server answered {0}")]
pub(super) struct Refusal(StatusCode);

impl Refusal {
    /// Whether the same request may succeed later.
    pub(super) fn may_pass(self) -> bool {
        self.0.is_server_error()
            || self.0 == StatusCode::TOO_MANY_REQUESTS
            || self.0 == StatusCode::REQUEST_TIMEOUT
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
