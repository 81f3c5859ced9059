//! Reading over HTTP from a server that behaves as real ones do on bad days.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

#[path = "support/build.rs"]
#[allow(dead_code, unreachable_pub)]
mod build;
#[path = "support/server.rs"]
#[allow(dead_code, unreachable_pub)]
mod server;
mod support;

use std::collections::HashMap;
use std::time::Duration;

use build::{Epoch, Sent, compress, metadata, transaction};
use futures::StreamExt;
use old_faithful::{
    Archive, ArchiveOptions, Counters, RetryCause, ScanRequest, SlotRange, Tail, Verify,
};
use server::{Manner, Server};
use support::{Collected, collect};

const PROGRAM: [u8; 32] = [1; 32];
const BLOCKS: u64 = 40;

/// An epoch of [`BLOCKS`] blocks of about 60 KB each.
fn epoch() -> Epoch {
    let mut epoch = Epoch::new(0, 0);
    let sent = Sent {
        signature: 5,
        keys: vec![[3; 32], PROGRAM],
        instructions: vec![(1, vec![0], vec![7; 1000])],
        lookups: None,
    };
    let stored = compress(&metadata(&[], &[]));
    for slot in 0..BLOCKS {
        let nodes = (0..50).map(|index| transaction(&sent, &stored, slot, index));
        epoch.block(slot, &[nodes.collect()]);
    }
    epoch
}

fn files() -> HashMap<String, Vec<u8>> {
    let epoch = epoch();
    HashMap::from([
        ("0/epoch-0.car".to_owned(), epoch.car),
        ("0/epoch-0-slot-ranges.raw".to_owned(), epoch.index),
    ])
}

fn options() -> ArchiveOptions {
    ArchiveOptions {
        connections: 3,
        segment_bytes: 200_000,
        retries: 3,
        backoff_ms: 1,
        read_timeout_ms: 300,
        ..ArchiveOptions::default()
    }
}

fn request() -> ScanRequest {
    ScanRequest {
        range: SlotRange {
            start: 0,
            end: BLOCKS,
        },
        programs: vec![PROGRAM],
        verify: Verify::Full,
        checkpoint_slots: 10,
    }
}

async fn scan(script: Vec<(&'static str, Manner)>) -> (Collected, Server) {
    let server = Server::start(files(), script).await;
    let archive = Archive::open(&server.base(), options()).unwrap();
    (collect(archive.scan(request())).await, server)
}

fn times(count: usize, manner: &Manner) -> Vec<(&'static str, Manner)> {
    vec![(".car", manner.clone()); count]
}

fn assert_whole(scanned: Collected) {
    let slots: Vec<u64> = scanned.blocks.iter().map(|block| block.slot).collect();
    assert_eq!(slots, (0..BLOCKS).collect::<Vec<_>>());
    let done = scanned.done();
    assert_eq!((done.blocks, done.transactions), (BLOCKS, BLOCKS * 50));
    assert_eq!(done.tail, Tail::Unproven);
}

#[tokio::test]
async fn a_range_is_read_over_several_connections_and_each_byte_once() {
    let (scanned, server) = scan(vec![]).await;
    assert_whole(scanned);
    assert!(
        (2..=3).contains(&server.most_open()),
        "{}",
        server.most_open()
    );
    let car = epoch().car.len();
    // The CAR's header is read apart, 4 KiB at most, and the next epoch is asked for.
    assert!(
        server.bytes() <= car + 4096 + 5_184_000,
        "{}",
        server.bytes()
    );
}

#[tokio::test]
async fn connections_that_close_early_are_resumed_from_the_exact_byte() {
    for manner in [
        Manner::CloseAfter(50_001),
        Manner::ShortBy(33),
        Manner::ShortBy(150_000),
        Manner::Stall,
        Manner::Silence,
        Manner::Status(503),
        Manner::Status(429),
        Manner::Whole,
    ] {
        // The first answer is the header's.
        let script = [vec![(".car", Manner::Well)], times(3, &manner)].concat();
        let (scanned, server) = scan(script).await;
        assert_whole(scanned);
        let requests = server.requests();
        let (again, calm) = scan(vec![]).await;
        assert_whole(again);
        assert_eq!(requests, calm.requests() + 3, "{manner:?}");
    }
}

fn retries(counters: &Counters) -> Vec<(&'static str, u64)> {
    let all = RetryCause::ALL.iter();
    all.map(|cause| (cause.name(), counters.retries(*cause)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[tokio::test]
async fn what_was_read_and_asked_for_again_is_counted() {
    let script = [
        Manner::Well,
        Manner::CloseAfter(50_001),
        Manner::Stall,
        Manner::Status(429),
        Manner::Status(500),
        Manner::Whole,
    ];
    let script = script.map(|manner| (".car", manner)).to_vec();
    let server = Server::start(files(), script).await;
    let archive = Archive::open(&server.base(), options()).unwrap();
    let done = collect(archive.scan(request())).await.done();
    let counters = archive.counters();
    assert_eq!(
        retries(counters),
        [
            ("early_end", 1),
            ("stall", 1),
            ("throttled", 1),
            ("status", 1),
            ("wrong_range", 1)
        ]
    );
    assert_eq!(counters.requests.get(), server.requests() as u64);
    let scanned = [
        (counters.blocks.get(), done.blocks),
        (counters.transactions.get(), done.transactions),
        (counters.matches.get(), done.transactions),
        (counters.decompressions.get(), done.transactions),
        (counters.bytes_scanned.get(), done.bytes),
    ];
    assert!(
        scanned
            .iter()
            .all(|(counted, certified)| counted == certified),
        "{scanned:?}"
    );
    // The index and the header are fetched besides.
    assert!(counters.bytes_fetched.get() >= done.bytes + 5_184_000);
}

#[tokio::test]
async fn a_server_is_left_alone_for_as_long_as_it_asks() {
    let script = vec![(".car", Manner::Well), (".car", Manner::RetryAfter(1))];
    let begun = std::time::Instant::now();
    let (scanned, _) = scan(script).await;
    assert_whole(scanned);
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn an_end_that_always_comes_early_is_an_error() {
    for (manner, code) in [
        (Manner::ShortBy(usize::MAX), "early_eof"),
        (Manner::CloseAfter(0), "early_eof"),
        (Manner::Stall, "fetch_failed"),
        (Manner::Status(500), "fetch_failed"),
        (Manner::Whole, "fetch_failed"),
    ] {
        let (scanned, _) = scan(times(1000, &manner)).await;
        let error = scanned.error();
        assert_eq!(error.code(), code, "{manner:?}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_pass_is_not_asked_for_again() {
    for manner in [
        Manner::Status(403),
        Manner::Status(400),
        Manner::Redirect("http://localhost:9/archive/0/epoch-0.car".to_owned()),
    ] {
        let (scanned, server) = scan(times(1, &manner)).await;
        let error = scanned.error();
        assert_eq!(error.code(), "fetch_failed", "{manner:?}: {error}");
        assert_eq!(server.requests(), 2, "{manner:?}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn redirects_stay_on_the_host() {
    let elsewhere = Server::start(files(), vec![]).await;
    let to = format!("{}/0/epoch-0.car", elsewhere.base());
    let (scanned, _) = scan(times(1, &Manner::Redirect(to))).await;
    assert_eq!(scanned.error().code(), "fetch_failed");
    assert_eq!(elsewhere.requests(), 0);

    let same = Manner::Redirect("/archive/0/epoch-0.car".to_owned());
    let (scanned, _) = scan(times(3, &same)).await;
    assert_whole(scanned);
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_an_error() {
    // The first answer is the header's; a later one has another tag.
    let script = vec![
        (".car", Manner::Well),
        (".car", Manner::Well),
        (".car", Manner::OtherTag),
    ];
    let (scanned, _) = scan(script).await;
    assert_eq!(scanned.error().code(), "object_changed");
}

#[tokio::test]
async fn a_missing_epoch_is_not_found() {
    let server = Server::start(HashMap::new(), vec![]).await;
    let archive = Archive::open(&server.base(), options()).unwrap();
    let error = collect(archive.scan(request())).await.error();
    assert_eq!(error.code(), "epoch_not_found");
    assert_eq!(archive.tip(0).await.unwrap(), None);
}

#[tokio::test]
async fn the_tip_is_found_in_few_requests() {
    let mut published = HashMap::new();
    for number in 5..=47 {
        let epoch = Epoch::new(number, 0);
        published.insert(format!("{number}/epoch-{number}.car"), epoch.car);
        published.insert(
            format!("{number}/epoch-{number}-slot-ranges.raw"),
            epoch.index,
        );
    }
    // On its way: the CAR file is there, the index is not.
    published.insert("48/epoch-48.car".to_owned(), Epoch::new(48, 0).car);
    let server = Server::start(published, vec![]).await;
    let archive = Archive::open(&server.base(), options()).unwrap();
    assert_eq!(archive.tip(5).await.unwrap(), Some(48 * build::SLOTS));
    assert!(server.requests() <= 30, "{}", server.requests());
    assert_eq!(archive.tip(47).await.unwrap(), Some(48 * build::SLOTS));
    assert_eq!(archive.tip(48).await.unwrap(), None);
    assert_eq!(archive.tip(4).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_consumer_slows_the_scan_and_dropping_it_ends_it() {
    let server = Server::start(files(), vec![]).await;
    let archive = Archive::open(
        &server.base(),
        ArchiveOptions {
            segment_bytes: 1,
            ..options()
        },
    )
    .unwrap();
    let mut events = Box::pin(archive.scan(request()));
    events.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // The header, the index, and no more segments than may wait.
    let waiting = server.requests();
    assert!(waiting <= 2 + 3 * 2 + 1, "{waiting} requests");
    drop(events);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.requests(), waiting);
}

#[tokio::test]
async fn credentials_in_the_address_stay_out_of_messages() {
    let base = "http://user:secret@127.0.0.1:9/archive?token=hidden";
    let archive = Archive::open(
        base,
        ArchiveOptions {
            retries: 0,
            ..options()
        },
    )
    .unwrap();
    let error = collect(archive.scan(request())).await.error();
    assert_eq!(error.code(), "fetch_failed");
    let text = format!("{error} {error:?} {archive:?}");
    assert!(
        !text.contains("secret") && !text.contains("hidden"),
        "{text}"
    );
}
