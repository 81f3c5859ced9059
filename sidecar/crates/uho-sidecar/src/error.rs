//! Every refusal the service can answer with, and the one place where it becomes a response.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use old_faithful::ArchiveError;
use serde_json::json;

use crate::encoder::EncodeError;
use crate::jobs::Refusal;
use crate::memory::MemoryShort;
use crate::redact::redact;
use crate::request::Fault;

/// Seconds after which a client may try again that found every place taken, or memory short.
const RETRY_AFTER_SECONDS: &str = "5";

/// A request that was not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// A field of the request is wrong.
    #[error("{0}")]
    Invalid(#[from] Fault),
    /// The body could not be read: too large, or cut off.
    #[error("body: {1}")]
    Body(StatusCode, String),
    /// The bearer secret is missing or wrong.
    #[error("authorization: expected `Bearer` and the sidecar's secret")]
    Unauthorized,
    /// Nothing of that name: a path, a job, a network.
    #[error("{0}")]
    NotFound(String),
    /// The path exists, the method does not.
    #[error("this path does not take that method")]
    MethodNotAllowed,
    /// None of the formats the client accepts is written here.
    #[error("accept: expected application/x-ndjson or application/vnd.apache.arrow.stream")]
    NotAcceptable,
    /// A job of the same id is under way.
    #[error("jobId: `{0}` is under way; cancel it or choose another id")]
    JobRunning(String),
    /// As many jobs as allowed are under way.
    #[error("{0} backfills are under way, as many as allowed; try again when one has ended")]
    TooManyJobs(usize),
    /// As many estimates as allowed are under way.
    #[error("as many estimates as allowed are under way; try again when one has ended")]
    TooManyEstimates,
    /// What was sampled could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The circuit breaker is open.
    #[error(
        "the sidecar holds {} MiB of the {} MiB it may, and takes no new jobs until it holds less; those under way go \
         on. If that lasts while nothing runs, raise --memory-limit-mebibytes or start it again",
        .0.resident >> 20, .0.limit >> 20
    )]
    MemoryShort(MemoryShort),
    /// The body did not come in time.
    #[error("body: it did not come within {0} seconds")]
    BodyTimeout(u64),
    /// The process is ending.
    #[error("the sidecar is shutting down")]
    ShuttingDown,
    /// The archive could not answer.
    #[error("{0}")]
    Archive(#[from] ArchiveError),
    /// The service is at fault.
    #[error("internal fault: {0}")]
    Internal(String),
}

impl ApiError {
    pub(crate) fn refused(refusal: Refusal, job_id: &str) -> Self {
        match refusal {
            Refusal::Running => Self::JobRunning(job_id.to_owned()),
            Refusal::Full { limit } => Self::TooManyJobs(limit),
            Refusal::ShuttingDown => Self::ShuttingDown,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Body(status, _) => *status,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::JobRunning(_) => StatusCode::CONFLICT,
            Self::TooManyJobs(_) | Self::TooManyEstimates => StatusCode::TOO_MANY_REQUESTS,
            Self::ShuttingDown | Self::MemoryShort(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Archive(_) => StatusCode::BAD_GATEWAY,
            Self::Internal(_) | Self::Encode(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// A stable name of the refusal, for machines.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_request",
            Self::Body(StatusCode::PAYLOAD_TOO_LARGE, _) => "body_too_large",
            Self::Body(..) => "invalid_body",
            Self::Unauthorized => "unauthorized",
            Self::NotFound(_) => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NotAcceptable => "not_acceptable",
            Self::JobRunning(_) => "job_running",
            Self::TooManyJobs(_) => "too_many_jobs",
            Self::TooManyEstimates => "too_many_estimates",
            Self::ShuttingDown => "shutting_down",
            Self::MemoryShort(_) => "memory_short",
            Self::BodyTimeout(_) => "body_timeout",
            Self::Archive(error) => error.code(),
            Self::Internal(_) | Self::Encode(_) => "internal",
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let text = self.to_string();
        let message = redact(&text);
        tracing::info!(status = self.status().as_u16(), code = self.code(), %message, "request refused");
        let body = json!({ "code": self.code(), "message": message });
        let mut response = (self.status(), Json(body)).into_response();
        if matches!(
            self,
            Self::TooManyJobs(_) | Self::TooManyEstimates | Self::MemoryShort(_)
        ) {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        response
    }
}
