//! The routes: what is asked, who may ask it, and what answers.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Path, Query, Request, State};
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::encoder::Format;
use crate::error::ApiError;
use crate::estimate::{self, EstimateRequest};
use crate::memory::resident_bytes;
use crate::metrics;
use crate::request::{BackfillRequest, Fault};
use crate::service::Service;
use crate::stream::{self, StreamOptions};

/// A request for 64 programs has about 3 KiB.
const BODY_BYTES_AT_MOST: usize = 64 << 10;
/// A body has a few KiB: longer than this takes nobody who means well.
const BODY_WITHIN: Duration = Duration::from_secs(10);
const JOB_ID: HeaderName = HeaderName::from_static("uho-job-id");

/// The whole service as a router; needs no socket.
pub fn app(service: Service) -> Router {
    let guarded = Router::new()
        .route("/backfill", post(backfill))
        .route("/backfill/{id}", delete(cancel))
        .route("/estimate", post(estimate))
        .route("/archives/{network}/tip", get(tip))
        .route("/metrics", get(scrape))
        .layer(from_fn_with_state(service.clone(), authorize));
    Router::new()
        .route("/health", get(health))
        .merge(guarded)
        .fallback(async || ApiError::NotFound("no such path".to_owned()))
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_AT_MOST))
        .with_state(service)
}

async fn authorize(
    State(service): State<Service>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(secret) = service.secret() {
        let header = request.headers().get(AUTHORIZATION);
        let given = header.map_or(&b""[..], HeaderValue::as_bytes);
        let matches = given.split_at_checked(7).is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case(b"Bearer ") && secret.matches(token)
        });
        if !matches {
            return Err(ApiError::Unauthorized);
        }
    }
    Ok(next.run(request).await)
}

async fn backfill(State(service): State<Service>, request: Request) -> Result<Response, ApiError> {
    let headers = request.headers().clone();
    let begun = match read_body(request).await {
        Ok(body) => start_backfill(&service, &headers, &body).await,
        Err(error) => Err(error),
    };
    if let Err(error) = &begun {
        service.metrics().add_refused(error.code());
    }
    begun
}

/// A request's body, if it comes whole, in time, and is not too large.
async fn read_body(request: Request) -> Result<Bytes, ApiError> {
    tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, &()))
        .await
        .map_err(|_| ApiError::BodyTimeout(BODY_WITHIN.as_secs()))?
        .map_err(|rejection| ApiError::Body(rejection.status(), rejection.body_text()))
}

async fn start_backfill(
    service: &Service,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, ApiError> {
    let accept = headers
        .get(ACCEPT)
        .map(|value| value.to_str().unwrap_or("?"));
    let format = Format::negotiate(accept).ok_or(ApiError::NotAcceptable)?;
    let request = BackfillRequest::parse(body, &service.networks(), service.slots_at_most())?;
    let archive = service
        .archive(&request.network)
        .cloned()
        .ok_or_else(|| ApiError::NotFound("no such network".to_owned()))?;
    let job_id = HeaderValue::from_str(&request.job_id)
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    service
        .breaker()
        .check(resident_bytes())
        .map_err(ApiError::MemoryShort)?;
    service.restore_learned(&request.network, &archive).await;
    let job = service
        .jobs()
        .start(&request.job_id, request.range.start)
        .map_err(|refusal| ApiError::refused(refusal, &request.job_id))?;
    let options = StreamOptions {
        format,
        farewell: service.farewell(),
        metrics: service.metrics().clone(),
    };
    let scan = archive.scan(stream::scan_request(&request));
    let body = stream::start(scan, request, job, options);
    let headers = [
        (JOB_ID, job_id),
        (
            CONTENT_TYPE,
            HeaderValue::from_static(format.content_type()),
        ),
    ];
    Ok((headers, body).into_response())
}

async fn cancel(
    State(service): State<Service>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if service.jobs().cancel(&id) {
        tracing::info!(job = id, "backfill cancelled on request");
        Ok(Json(json!({"cancelled": true})))
    } else {
        Err(ApiError::NotFound("no such job is under way".to_owned()))
    }
}

async fn estimate(
    State(service): State<Service>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let body = read_body(request).await?;
    let request = EstimateRequest::parse(&body, &service.networks())?;
    let archive = service
        .archive(&request.network)
        .ok_or_else(|| ApiError::NotFound("no such network".to_owned()))?;
    service
        .breaker()
        .check(resident_bytes())
        .map_err(ApiError::MemoryShort)?;
    let _place = service
        .estimates()
        .try_acquire()
        .map_err(|_| ApiError::TooManyEstimates)?;
    service.restore_learned(&request.network, archive).await;
    let measured = service.metrics().seconds_per_byte(&request.network);
    let answer = estimate::estimate(archive, &request, measured).await?;
    Ok(Json(answer))
}

async fn tip(
    State(service): State<Service>,
    Path(network): Path<String>,
    Query(parameters): Query<HashMap<String, String>>,
) -> Result<Json<Value>, ApiError> {
    let archive = service
        .archive(&network)
        .ok_or_else(|| ApiError::NotFound("no such network is served here".to_owned()))?;
    let first_epoch = parameters
        .get("firstEpoch")
        .and_then(|text| text.parse::<u32>().ok())
        .ok_or_else(|| Fault::new("firstEpoch", "expected the number of an epoch"))?;
    let tip = archive.tip(u64::from(first_epoch)).await?;
    Ok(Json(json!({"tipSlot": tip})))
}

async fn scrape(State(service): State<Service>) -> Result<Response, ApiError> {
    let text = service
        .metrics()
        .text(service.jobs(), service.breaker())
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn health(State(service): State<Service>) -> Json<Value> {
    let resident = resident_bytes();
    Json(json!({
        "status": "ok",
        "activeJobs": service.active_jobs(),
        "acceptingJobs": service.breaker().check(resident).is_ok(),
        // Megabytes of 10⁶ bytes.
        "memoryMb": resident.map(|bytes| bytes / 1_000_000),
        "uptimeSeconds": service.uptime().as_secs(),
    }))
}
