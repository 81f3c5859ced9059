//! What the service says of itself: metrics that agree with certificates, and the breaker.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use archive_sim::Plan;
use axum::Router;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{Method, StatusCode};
use futures::StreamExt as _;
use serde_json::{Value, json};
use support::{ARROW, NDJSON, PUMP_AMM, backfill, send, silent_archive};
use uho_sidecar::{Secret, Service, ServiceOptions, app};

/// Samples by name and labels, as they stand in the text.
async fn scrape(router: &Router) -> BTreeMap<String, f64> {
    let response = send(router, Method::GET, "/metrics", "*/*", "").await;
    assert_eq!(response.status(), StatusCode::OK);
    let content_type = response.headers()[CONTENT_TYPE].to_str().unwrap();
    assert!(content_type.starts_with("application/openmetrics-text"));
    let text = String::from_utf8(support::bytes(response).await).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn router(base: &str, memory_limit: Option<u64>) -> Router {
    let options = ServiceOptions {
        archives: vec![("sim".to_owned(), base.to_owned())],
        secret: Some(Secret::new(support::SECRET)),
        memory_limit,
        ..ServiceOptions::default()
    };
    app(Service::open(options).unwrap())
}

#[tokio::test]
#[allow(clippy::cast_precision_loss)] // Small counts.
async fn metrics_are_what_the_certificates_say() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan::of_range(864_000, 864_399, 100);
    archive_sim::write(folder.path(), &plan).unwrap();
    let programs: Vec<String> = ["orderbook", "vault"]
        .map(|name| {
            let file = folder.path().join("programs").join(name);
            let text = std::fs::read_to_string(file.join("program.yaml")).unwrap();
            let line = text.lines().find(|line| line.contains("program_id"));
            line.unwrap().split(':').nth(1).unwrap().trim().to_owned()
        })
        .to_vec();
    let router = router(folder.path().to_str().unwrap(), None);
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    for (format, start, end) in [(NDJSON, 864_000, 864_150), (NDJSON, 864_150, 864_400)] {
        let body = json!({
            "programIds": programs, "startSlot": start, "endSlot": end, "checkpointSlots": 40, "includeFailed": true,
        });
        let lines = support::lines(backfill(&router, format, &body).await).await;
        let certificate = &lines.last().unwrap()["certificate"];
        assert_eq!(certificate["endSlot"], end, "{:?}", lines.last());
        for field in ["bytes", "blocks", "transactions", "votes", "cidsVerified"] {
            *totals.entry(field).or_default() += certificate[field].as_u64().unwrap();
        }
        for program in certificate["programs"].as_object().unwrap().values() {
            for field in ["matched", "matchedByLookupOnly", "records"] {
                *totals.entry(field).or_default() += program[field].as_u64().unwrap();
            }
        }
    }
    // A refused request, and a job that fails, are counted too.
    let bad = json!({"programIds": programs, "startSlot": 5, "endSlot": 5});
    backfill(&router, NDJSON, &bad).await;
    let absent = json!({"programIds": programs, "startSlot": 0, "endSlot": 5});
    support::lines(backfill(&router, NDJSON, &absent).await).await;

    let samples = scrape(&router).await;
    for (sample, field) in [
        ("archive_read_bytes_total", "bytes"),
        ("blocks_total", "blocks"),
        ("transactions_total", "transactions"),
        ("votes_total", "votes"),
        ("matches_total", "matched"),
        ("lookup_only_matches_total", "matchedByLookupOnly"),
        ("records_total", "records"),
        ("cids_verified_total", "cidsVerified"),
    ] {
        let total = totals[field];
        assert!(total > 0, "{field} would prove nothing");
        let found = samples[&format!("uho_sidecar_{sample}{{network=\"sim\"}}")];
        assert_eq!(found.to_bits(), (total as f64).to_bits(), "{sample}");
    }
    for (sample, expected) in [
        ("jobs_ended_total{outcome=\"done\"}", 2.0),
        ("jobs_ended_total{outcome=\"epoch_not_found\"}", 1.0),
        ("jobs_refused_total{code=\"invalid_request\"}", 1.0),
        ("jobs{state=\"running\"}", 0.0),
        ("queue_depth", 0.0),
        ("accepting_jobs", 1.0),
    ] {
        let found = samples[&format!("uho_sidecar_{sample}")];
        assert!((found - expected).abs() < 0.5, "{sample} is {found}");
    }
    // What the reader counted itself: everything certified went through it, and the block behind each range.
    for (sample, field) in [
        ("reader_scanned_bytes_total", "bytes"),
        ("reader_blocks_total", "blocks"),
        ("reader_transactions_total", "transactions"),
    ] {
        let scanned = samples[&format!("uho_sidecar_{sample}{{network=\"sim\"}}")];
        assert!(scanned >= totals[field] as f64, "{sample} is {scanned}");
    }
    let avoided = "uho_sidecar_reader_decompressions_avoided_total{network=\"sim\"}";
    assert!(samples[avoided] > 0.0);
    let stalls = "uho_sidecar_reader_retries_total{network=\"sim\",cause=\"stall\"}";
    assert_eq!(samples[stalls].to_bits(), 0.0_f64.to_bits());
    assert!(samples["uho_sidecar_resident_memory_bytes"] > 1e6);
    assert!(samples["uho_sidecar_sent_bytes_total"] > 1e3);
    assert!(samples["uho_sidecar_job_seconds_total"] > 0.0);
}

#[tokio::test]
async fn the_breaker_opens_drains_and_closes() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kibibytes = line.unwrap().split_whitespace().nth(1).unwrap();
        kibibytes.parse::<usize>().unwrap() * 1024
    };
    // So far above what these tests hold that nothing but the ballast moves it past 80 %, or back below 70 %.
    let limit = 4 * (resident() + (24 << 20));
    let router = router(&silent_archive(), Some(limit as u64));
    let ask = |job: &str| json!({"programId": PUMP_AMM, "startSlot": 0, "endSlot": 10, "jobId": job, "network": "sim"});
    let running = backfill(&router, ARROW, &ask("running")).await;
    assert_eq!(running.status(), StatusCode::OK);

    // Ones, not zeros: every page is written, and so resident.
    let ballast = vec![1_u8; limit * 85 / 100];
    let refused = backfill(&router, ARROW, &ask("refused")).await;
    assert!(refused.headers().contains_key(RETRY_AFTER));
    let (status, answer) = support::json(refused).await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("memory_short"))
    );
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("MiB it may"), "{message}");
    let health = |router: Router| async move {
        support::json(send(&router, Method::GET, "/health", "*/*", "").await)
            .await
            .1
    };
    assert_eq!(health(router.clone()).await["acceptingJobs"], false);
    assert_eq!(
        scrape(&router).await["uho_sidecar_accepting_jobs"].to_bits(),
        0.0_f64.to_bits()
    );
    // The job under way goes on: it is there, and its stream has not ended.
    let mut running = running.into_body().into_data_stream();
    assert!(running.next().await.is_some(), "`started`");
    assert_eq!(health(router.clone()).await["activeJobs"], 1);

    assert!(ballast.iter().all(|byte| *byte == 1));
    drop(ballast);
    let accepted = backfill(&router, ARROW, &ask("accepted")).await;
    assert_eq!(accepted.status(), StatusCode::OK);
    let health: Value = health(router.clone()).await;
    assert_eq!(
        (&health["acceptingJobs"], &health["activeJobs"]),
        (&json!(true), &json!(2))
    );
}
