//! Streams over scans made up here: what a reader sees when the scan is endless, panics, lies or stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream};
use futures::{Stream, StreamExt as _, stream};
use old_faithful::{
    Block, BlockLink, Certificate, IndexKind, MatchedTransaction, Mention, ScanEvent, Tail,
    TransactionPlace, Verify,
};
use serde_json::{Value, json};

use super::{Scanned, StreamOptions, start};
use crate::encoder::Format;
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::request::BackfillRequest;

const PROGRAM: [u8; 32] = [7; 32];

fn request() -> BackfillRequest {
    let body = json!({
        "programId": crate::ndjson::base58(&PROGRAM), "startSlot": 0, "endSlot": 1_000_000, "jobId": "job",
        "includeFailed": true,
    });
    BackfillRequest::parse(body.to_string().as_bytes(), &["sim"], u64::MAX).unwrap()
}

/// A block with one transaction of the program that logs `bytes` bytes.
fn block(slot: u64, bytes: usize) -> Block {
    let name = crate::ndjson::base58(&PROGRAM);
    let lines = [
        format!("Program {name} invoke [1]"),
        format!("Program data: {}", "AAAA".repeat(bytes / 3)),
        format!("Program {name} success"),
    ];
    // A signature, a header, a key, a blockhash, an instruction without accounts and data.
    let sent = [
        &[1][..],
        &[1; 64],
        &[1, 0, 0, 1],
        &PROGRAM,
        &[0; 32],
        &[1, 0, 0, 0],
    ]
    .concat();
    let place = TransactionPlace {
        slot,
        index: 0,
        archive_offset: 59,
        epoch: 0,
    };
    let mention = Mention {
        program: 0,
        lookup_only: false,
    };
    let metadata: Vec<u8> = lines.iter().flat_map(|line| log_field(line)).collect();
    let transaction =
        MatchedTransaction::new(place, vec![mention], sent.into(), Some(metadata.into()));
    Block {
        slot,
        parent_slot: slot.saturating_sub(1),
        block_time: Some(5),
        block_height: None,
        matches: vec![transaction],
    }
}

/// A log line as metadata has it: field 6, with a length of five bytes.
fn log_field(line: &str) -> Vec<u8> {
    let mut bytes = vec![6 << 3 | 2];
    bytes.extend((0..5).map(|place| {
        let seven = u8::try_from(line.len() >> (7 * place) & 0x7f).unwrap();
        if place < 4 { seven | 0x80 } else { seven }
    }));
    bytes.extend(line.bytes());
    bytes
}

fn stretch(start: u64, end: u64) -> Certificate {
    let mut certificate = Certificate::empty(start, IndexKind::SlotRanges, Verify::Full);
    certificate.end_slot = end;
    certificate.slots_with_blocks = end - start;
    certificate.blocks = end - start;
    certificate.transactions = end - start;
    certificate.first_block = Some(BlockLink {
        slot: start,
        parent_slot: start.saturating_sub(1),
    });
    certificate.last_block_slot = Some(end - 1);
    certificate.program_mut(&PROGRAM).matched = end - start;
    certificate
}

fn whole(end: u64) -> Certificate {
    let mut certificate = stretch(0, end);
    certificate.tail = Tail::Unproven;
    certificate
}

fn open<S>(scan: S, jobs: &Jobs, format: Format) -> BodyDataStream
where
    S: Stream<Item = Scanned> + Send + 'static,
{
    let options = StreamOptions {
        format,
        farewell: Duration::from_millis(300),
        metrics: Metrics::new(Vec::new()),
    };
    let body: Body = start(scan, request(), jobs.start("job", 0).ok().unwrap(), options);
    body.into_data_stream()
}

/// Reads an NDJSON stream to its end.
async fn lines(mut body: BodyDataStream) -> Vec<Value> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        bytes.extend(chunk.unwrap());
    }
    let text = String::from_utf8(bytes).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

async fn ends_within(jobs: &Jobs, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while jobs.active() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    jobs.active() == 0
}

#[tokio::test]
async fn a_proved_scan_ends_with_done_and_what_was_sent() {
    let jobs = Jobs::new(1);
    let events = vec![
        Ok(ScanEvent::Block(block(0, 9))),
        Ok(ScanEvent::Checkpoint {
            slot: 1,
            certificate: stretch(0, 1),
        }),
        Ok(ScanEvent::Block(block(1, 9))),
        Ok(ScanEvent::Checkpoint {
            slot: 2,
            certificate: stretch(1, 2),
        }),
        Ok(ScanEvent::Done {
            certificate: whole(2),
        }),
    ];
    let lines = lines(open(stream::iter(events), &jobs, Format::Ndjson)).await;
    let types: Vec<_> = lines
        .iter()
        .map(|line| line["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        types,
        [
            "started",
            "transaction",
            "checkpoint",
            "transaction",
            "checkpoint",
            "done"
        ]
    );
    let counts = |line: &Value| {
        line["certificate"]["programs"]
            .as_object()
            .unwrap()
            .values()
            .next()
            .unwrap()
            .clone()
    };
    assert_eq!(counts(&lines[2])["records"], 1);
    assert_eq!(counts(&lines[5])["records"], 2);
    assert_eq!(counts(&lines[5])["withRecords"], 2);
    let digest =
        |line: &Value| u128::from_str_radix(counts(line)["digest"].as_str().unwrap(), 16).unwrap();
    assert_eq!(
        digest(&lines[5]),
        digest(&lines[2]).wrapping_add(digest(&lines[4]))
    );
    assert_ne!(digest(&lines[5]), 0);
    assert!(ends_within(&jobs, Duration::from_secs(1)).await);
}

#[tokio::test]
async fn stretches_that_do_not_add_up_are_never_done() {
    let jobs = Jobs::new(1);
    let events = vec![
        Ok(ScanEvent::Checkpoint {
            slot: 2,
            certificate: stretch(0, 2),
        }),
        Ok(ScanEvent::Done {
            certificate: Certificate {
                transactions: 3,
                ..whole(2)
            },
        }),
    ];
    let lines = lines(open(stream::iter(events), &jobs, Format::Ndjson)).await;
    let last = lines.last().unwrap();
    assert_eq!(
        (last["type"].as_str(), last["code"].as_str()),
        (Some("error"), Some("certificate_broken"))
    );
    assert!(
        last["message"].as_str().unwrap().contains("`transactions`"),
        "{last}"
    );
}

#[tokio::test]
async fn a_scan_that_just_ends_is_an_error() {
    let jobs = Jobs::new(1);
    let events = vec![Ok(ScanEvent::Checkpoint {
        slot: 2,
        certificate: stretch(0, 2),
    })];
    let lines = lines(open(stream::iter(events), &jobs, Format::Ndjson)).await;
    assert_eq!(lines.last().unwrap()["code"], "certificate_broken");
}

#[tokio::test]
async fn a_panic_still_ends_the_stream_with_an_error() {
    let jobs = Jobs::new(1);
    let scan = stream::iter(0..5).map(|slot| {
        assert!(slot < 3, "a fault in the reader");
        Ok(ScanEvent::Block(block(slot, 9)))
    });
    let lines = lines(open(scan, &jobs, Format::Ndjson)).await;
    let last = lines.last().unwrap();
    assert_eq!(
        (last["type"].as_str(), last["code"].as_str()),
        (Some("error"), Some("internal"))
    );
    assert!(
        !last["message"]
            .as_str()
            .unwrap()
            .contains("fault in the reader")
    );
    assert!(ends_within(&jobs, Duration::from_secs(1)).await);
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_scan() {
    let jobs = Jobs::new(1);
    let scanned = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&scanned);
    // Each block fills a message of its own, so what was scanned is what is held in memory.
    let scan = stream::iter(0..).map(move |slot| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(ScanEvent::Block(block(slot, 3 << 20)))
    });
    let mut body = open(scan, &jobs, Format::Arrow);
    assert!(body.next().await.is_some());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let held = scanned.load(Ordering::SeqCst);
    assert!((1..=4).contains(&held), "{held} blocks were read ahead");
    drop(body);
    assert!(ends_within(&jobs, Duration::from_secs(1)).await);
}

#[tokio::test]
async fn a_reader_that_leaves_ends_a_scan_without_matches() {
    let jobs = Jobs::new(1);
    let mut body = open(stream::pending(), &jobs, Format::Arrow);
    assert!(body.next().await.is_some(), "`started` comes at once");
    assert_eq!(jobs.active(), 1);
    drop(body);
    assert!(ends_within(&jobs, Duration::from_secs(1)).await);
}

#[tokio::test]
async fn cancelling_and_shutting_down_are_said() {
    for (format, shut_down, code) in [
        (Format::Ndjson, false, "cancelled"),
        (Format::Ndjson, true, "shutting_down"),
    ] {
        let jobs = Jobs::new(1);
        let mut body = open(stream::pending(), &jobs, format);
        assert!(body.next().await.is_some());
        if shut_down {
            jobs.shut_down();
        } else {
            assert!(jobs.cancel("job"));
        }
        let lines = lines(body).await;
        assert_eq!(
            (lines[0]["type"].as_str(), lines[0]["code"].as_str()),
            (Some("error"), Some(code))
        );
        assert!(ends_within(&jobs, Duration::from_secs(1)).await);
    }
}

#[tokio::test]
async fn shutting_down_does_not_wait_for_a_reader_that_stopped() {
    let jobs = Jobs::new(1);
    let scan = stream::iter(0..).map(|slot| Ok(ScanEvent::Block(block(slot, 3 << 20))));
    let mut body = open(scan, &jobs, Format::Arrow);
    assert!(body.next().await.is_some());
    tokio::time::sleep(Duration::from_millis(300)).await;
    jobs.shut_down();
    assert!(ends_within(&jobs, Duration::from_secs(1)).await);
    drop(body);
}

#[tokio::test]
async fn a_scan_that_never_yields_does_not_hold_up_the_service() {
    // This runtime has one thread, which a scan on it would take for itself.
    let jobs = Jobs::new(1);
    let busy = stream::repeat_with(|| {
        let until = Instant::now() + Duration::from_millis(100);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        Ok(ScanEvent::Block(block(0, 9)))
    });
    let mut body = open(busy, &jobs, Format::Ndjson);
    assert!(body.next().await.is_some());
    let begun = Instant::now();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    drop(body);
    assert!(ends_within(&jobs, Duration::from_secs(1)).await);
}
