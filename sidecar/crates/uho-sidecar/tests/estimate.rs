//! Estimates against an archive whose contents are known: how near they come, and how little they read. Larger ones,
//! of programs of different density, are in the Python tests, which have the simulator built for speed.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

mod support;

use std::collections::BTreeMap;

use archive_sim::{Indexes, Plan, Server};
use axum::Router;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::{NDJSON, router, send};

const VOTE: &str = "Vote111111111111111111111111111111111111111";

/// The id of a program of the simulator.
fn program(name: &str) -> String {
    bs58::encode(Sha256::digest(format!("archive-sim program {name}"))).into_string()
}

async fn ask(router: &Router, body: &Value) -> (StatusCode, Value) {
    let answer = send(router, Method::POST, "/estimate", "*/*", body.to_string());
    support::json(answer.await).await
}

async fn estimate(router: &Router, body: &Value) -> Value {
    let (status, answer) = ask(router, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

/// The certificate of a backfill of the whole range: what is true.
async fn certificate(router: &Router, programs: &[String], start: u64, end: u64) -> Value {
    let body = json!({
        "programIds": programs, "startSlot": start, "endSlot": end, "includeFailed": true,
    });
    let lines = support::lines(support::backfill(router, NDJSON, &body).await).await;
    lines.last().unwrap()["certificate"].clone()
}

/// Estimate and interval against the truth: the interval must hold it.
fn error(interval: &Value, truth: &Value, what: &str) -> f64 {
    let truth = truth.as_f64().unwrap();
    let field = |name: &str| interval[name].as_f64().unwrap();
    assert!(
        field("low") <= truth && truth <= field("high"),
        "{what}: {truth} is not in {interval}"
    );
    (field("estimate") - truth).abs() / truth
}

#[tokio::test]
async fn a_range_of_two_epochs_with_an_empty_stretch_is_estimated_from_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan::default();
    archive_sim::write(folder.path(), &plan).unwrap();
    let server = Server::start(folder.path(), "127.0.0.1:0", Vec::new()).unwrap();
    let router = router(&format!("http://{}", server.address()));
    let programs = vec![program("orderbook"), program("vault")];
    let (start, end) = (plan.first_slot, plan.last_slot + 1);
    let truth = certificate(&router, &programs, start, end).await;
    assert_eq!(truth["epochs"].as_array().unwrap().len(), 2);
    let body = json!({
        "programIds": programs, "startSlot": start, "endSlot": end, "precision": 0.05, "maxBytes": 64 << 20,
    });
    let before = server.bytes();
    let answer = estimate(&router, &body).await;
    // What it says it read is what the archive's server sent.
    assert_eq!(answer["sample"]["bytesRead"], server.bytes() - before);
    assert_eq!(answer["archiveBytes"], truth["bytes"]);
    assert_eq!(answer["sample"]["endedBy"], "precision");
    for program in &programs {
        let (found, true_of) = (&answer["programs"][program], &truth["programs"][program]);
        assert!(error(&found["matched"], &true_of["matched"], program) < 0.1);
        assert!(error(&found["records"], &true_of["records"], program) < 0.1);
    }
    // Another seed draws other blocks; the same one the same.
    let again = estimate(&router, &body).await;
    assert_eq!(again["programs"], answer["programs"]);
    let mut other = body.clone();
    other["seed"] = json!(7);
    assert_ne!(
        estimate(&router, &other).await["programs"],
        answer["programs"]
    );

    // A range without a block has nothing, for sure.
    let (first, behind) = plan.empty_slots.unwrap();
    let empty = json!({"programIds": programs, "startSlot": first, "endSlot": behind});
    let empty = estimate(&router, &empty).await;
    let nothing = json!({"estimate": 0.0, "low": 0.0, "high": 0.0});
    assert_eq!(
        (
            &empty["archiveBytes"],
            &empty["programs"][&programs[0]]["matched"]
        ),
        (&json!(0), &nothing)
    );
}

#[tokio::test]
async fn epochs_with_the_older_indexes_only_are_estimated_alike() {
    let (ranges, older) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plan = Plan::default();
    archive_sim::write(ranges.path(), &plan).unwrap();
    let indexes = Indexes::Older;
    let of_older = Plan {
        indexes,
        ..plan.clone()
    };
    archive_sim::write(older.path(), &of_older).unwrap();
    let body = json!({
        "programIds": [program("orderbook"), program("vault")],
        "startSlot": plan.first_slot, "endSlot": plan.last_slot + 1, "maxBytes": 1 << 30, "precision": 0.3,
    });
    let mut answers = Vec::new();
    for folder in [&ranges, &older] {
        let router = router(folder.path().to_str().unwrap());
        let answer = estimate(&router, &body).await;
        assert!(
            answer["sample"]["blocks"].as_u64().unwrap() >= 8,
            "{answer}"
        );
        answers.push(["programs", "archiveBytes", "blocks"].map(|field| answer[field].clone()));
    }
    assert_eq!(answers[0], answers[1]);

    // Without them either, the file that is missing is named.
    std::fs::remove_file(older.path().join("3/epoch-3.cid")).unwrap();
    let (status, answer) = ask(&router(older.path().to_str().unwrap()), &body).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{answer}");
    let text = answer["message"].as_str().unwrap();
    assert!(
        text.contains("3/epoch-3-slot-ranges.raw is missing"),
        "{text}"
    );
}

#[tokio::test]
async fn what_cannot_be_estimated_is_refused() {
    let router = router(std::env::temp_dir().to_str().unwrap());
    let base = json!({"programId": VOTE, "startSlot": 0, "endSlot": 10});
    let changed: BTreeMap<&str, (Value, u16, &str)> = [
        ("precision", (json!(0), 400, "precision: expected a number")),
        (
            "maxBytes",
            (json!(0), 400, "maxBytes: must be between 1 and"),
        ),
        (
            "endSlot",
            (json!(0), 400, "startSlot: must be below endSlot"),
        ),
        ("sead", (json!(0), 400, "sead: unknown field; known are")),
        ("seed", (json!(1), 502, "epoch 0")),
    ]
    .into();
    for (field, (value, status, message)) in changed {
        let mut body = base.clone();
        body[field] = value;
        let (found, answer) = ask(&router, &body).await;
        assert_eq!(found.as_u16(), status, "{field}: {answer}");
        let text = answer["message"].as_str().unwrap();
        assert!(text.contains(message), "{text}");
    }
}
