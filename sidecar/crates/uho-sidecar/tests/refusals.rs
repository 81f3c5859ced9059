//! Who is refused, why, and in which words.
#![allow(clippy::unwrap_used)]

mod support;

use axum::body::Body;
use axum::http::header::RETRY_AFTER;
use axum::http::{Method, Request, StatusCode};
use futures::StreamExt as _;
use serde_json::{Value, json};
use support::{NDJSON, PUMP_AMM, backfill, router, send, silent_archive};
use tower::ServiceExt as _;

fn request(job_id: &str) -> Value {
    json!({"programId": PUMP_AMM, "startSlot": 0, "endSlot": 10, "jobId": job_id})
}

#[tokio::test]
async fn nothing_but_health_answers_without_the_secret() {
    let router = router(std::env::temp_dir().to_str().unwrap());
    for (method, path) in [
        (Method::POST, "/backfill"),
        (Method::DELETE, "/backfill/a"),
        (Method::GET, "/archives/sim/tip?firstEpoch=0"),
        (Method::GET, "/metrics"),
    ] {
        for authorization in [
            None,
            Some("Bearer wrong"),
            Some("Bearer "),
            Some("correct horse"),
            Some("Basic correct horse"),
        ] {
            let mut request = Request::builder().method(&method).uri(path);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let response = router
                .clone()
                .oneshot(request.body(Body::empty()).unwrap())
                .await
                .unwrap();
            let (status, body) = support::json(response).await;
            assert_eq!(
                (status, body["code"].as_str()),
                (StatusCode::UNAUTHORIZED, Some("unauthorized")),
                "{method} {path}"
            );
        }
    }
    let health = Request::builder()
        .uri("/health")
        .body(Body::empty())
        .unwrap();
    let (status, body) = support::json(router.oneshot(health).await.unwrap()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (body["status"].as_str(), body["activeJobs"].as_u64()),
        (Some("ok"), Some(0))
    );
    assert!(body["memoryMb"].as_u64().unwrap() > 0 && body["uptimeSeconds"].is_u64());
}

#[tokio::test]
#[allow(clippy::too_many_lines)] // One table; splitting it would hide a missing case.
async fn refusals_are_json_with_a_code() {
    let router = router(std::env::temp_dir().to_str().unwrap());
    let body = |changes: Value| {
        let mut body = request("a");
        for (name, value) in changes.as_object().unwrap() {
            body[name] = value.clone();
        }
        body.to_string()
    };
    let post = Method::POST;
    for (method, path, accept, body, status, code, message) in [
        (
            &post,
            "/backfill",
            NDJSON,
            body(json!({"programId": "11"})),
            400,
            "invalid_request",
            "programId: expected 32 bytes, got 2",
        ),
        (
            &post,
            "/backfill",
            NDJSON,
            body(json!({"startSlot": 10})),
            400,
            "invalid_request",
            "startSlot: must be below endSlot",
        ),
        (
            &post,
            "/backfill",
            NDJSON,
            body(json!({"network": "devnet"})),
            400,
            "invalid_request",
            "network: not served here; expected one of sim",
        ),
        (
            &post,
            "/backfill",
            "text/html",
            body(json!({})),
            406,
            "not_acceptable",
            "accept: expected",
        ),
        (
            &post,
            "/backfill",
            NDJSON,
            " ".repeat(100_000),
            413,
            "body_too_large",
            "body: ",
        ),
        (
            &Method::GET,
            "/backfill",
            NDJSON,
            String::new(),
            405,
            "method_not_allowed",
            "",
        ),
        (
            &Method::GET,
            "/elsewhere",
            NDJSON,
            String::new(),
            404,
            "not_found",
            "no such path",
        ),
        (
            &Method::DELETE,
            "/backfill/nobody",
            NDJSON,
            String::new(),
            404,
            "not_found",
            "no such job",
        ),
        (
            &Method::GET,
            "/archives/devnet/tip?firstEpoch=0",
            NDJSON,
            String::new(),
            404,
            "not_found",
            "no such network",
        ),
        (
            &Method::GET,
            "/archives/sim/tip",
            NDJSON,
            String::new(),
            400,
            "invalid_request",
            "firstEpoch: expected",
        ),
        (
            &Method::GET,
            "/archives/sim/tip?firstEpoch=-1",
            NDJSON,
            String::new(),
            400,
            "invalid_request",
            "firstEpoch: expected",
        ),
    ] {
        let (found, answer) =
            support::json(send(&router, method.clone(), path, accept, body).await).await;
        assert_eq!(
            (found.as_u16(), answer["code"].as_str()),
            (status, Some(code)),
            "{method} {path}: {answer}"
        );
        assert!(
            answer["message"].as_str().unwrap().starts_with(message),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn jobs_are_named_limited_and_cancelled() {
    let router = router(&silent_archive());
    let first = backfill(&router, NDJSON, &request("first")).await;
    assert_eq!(first.headers()["uho-job-id"], "first");
    let (status, answer) = support::json(backfill(&router, NDJSON, &request("first")).await).await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (StatusCode::CONFLICT, Some("job_running"))
    );

    let second = backfill(&router, NDJSON, &request("second")).await;
    assert_eq!(second.status(), StatusCode::OK);
    let third = backfill(&router, NDJSON, &request("third")).await;
    assert!(third.headers().contains_key(RETRY_AFTER));
    let (status, answer) = support::json(third).await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (StatusCode::TOO_MANY_REQUESTS, Some("too_many_jobs"))
    );

    let (status, answer) =
        support::json(send(&router, Method::DELETE, "/backfill/first", NDJSON, "").await).await;
    assert_eq!(
        (status, answer),
        (StatusCode::OK, json!({"cancelled": true}))
    );
    let lines = support::lines(first).await;
    assert_eq!(lines.first().unwrap()["type"], "started");
    assert_eq!(lines.first().unwrap()["jobId"], "first");
    assert_eq!(lines.last().unwrap()["code"], "cancelled");

    // A reader that leaves frees its place, though the archive never said a word.
    let mut body = second.into_body().into_data_stream();
    assert!(body.next().await.is_some());
    drop(body);
    for _ in 0..100 {
        let health = support::json(send(&router, Method::GET, "/health", NDJSON, "").await).await;
        if health.1["activeJobs"] == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the job outlived its reader by a second");
}
