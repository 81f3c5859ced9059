//! Every fault of the simulator's server at many random places: what is read is what a calm server has, to the
//! byte, or an error with a stable code; never `done` over a hole.
//!
//! A few places by default; `UHO_FAULT_PLACES=100` (`make faults`) for many.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use archive_sim::{Plan, Server};
use futures::StreamExt;
use old_faithful::{
    Archive, ArchiveOptions, Certificate, IndexKind, Pubkey, RetryCause, ScanRequest, SlotRange,
    Verify,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use support::{Collected, collect, key};

/// Places of each fault when nothing else is said.
const PLACES: usize = 5;
/// Scans at once.
const AT_ONCE: usize = 6;

struct Written {
    folder: tempfile::TempDir,
    programs: Vec<Pubkey>,
    range: SlotRange,
    /// Where the range's blocks lie in the CAR file.
    bytes: std::ops::Range<u64>,
}

/// An archive of 120 slots, about 1 MB, whose blocks hold every trap that the simulator knows.
fn written() -> Written {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        seed: 11,
        demo: (2, 8),
        votes: (4, 30),
        ..Plan::of_range(1_300_000, 1_300_119, 40)
    };
    archive_sim::write(folder.path(), &plan).unwrap();
    let mut programs = Vec::new();
    for entry in std::fs::read_dir(folder.path().join("programs")).unwrap() {
        let yaml = std::fs::read_to_string(entry.unwrap().path().join("program.yaml")).unwrap();
        let id = yaml
            .lines()
            .find_map(|line| line.strip_prefix("program_id: "));
        programs.push(key(id.unwrap().trim()));
    }
    programs.sort_unstable();
    let range = SlotRange::new(1_300_000, 1_300_120);
    let index = std::fs::read(folder.path().join("3/epoch-3-slot-ranges.raw")).unwrap();
    // The range is the slots 4,000 to 4,119 of epoch 3.
    let entries = index.chunks_exact(12).map(|entry| {
        let (offset, length) = entry.split_at(8);
        let offset = u64::from_le_bytes(offset.try_into().unwrap());
        (
            offset,
            offset + u64::from(u32::from_le_bytes(length.try_into().unwrap())),
        )
    });
    let listed: Vec<(u64, u64)> = entries
        .skip(4_000)
        .take(120)
        .filter(|(offset, end)| end > offset)
        .collect();
    Written {
        bytes: listed[0].0..listed[listed.len() - 1].1,
        folder,
        programs,
        range,
    }
}

fn options() -> ArchiveOptions {
    ArchiveOptions {
        connections: 3,
        segment_bytes: 60_000,
        retries: 6,
        backoff_ms: 1,
        ..ArchiveOptions::default()
    }
}

async fn scan(base: &str, written: &Written, options: ArchiveOptions) -> (Archive, Collected) {
    let archive = Archive::open(base, options).unwrap();
    let scanned = collect(archive.scan(ScanRequest {
        range: written.range,
        programs: written.programs.clone(),
        verify: Verify::Full,
        checkpoint_slots: 20,
    }));
    let scanned = scanned.await;
    (archive, scanned)
}

/// What was read: a digest of every matched transaction in order, and the certificates. Which kind of index led to
/// the blocks is no part of it.
fn result(scanned: &Collected) -> Result<(String, Vec<Certificate>), &'static str> {
    let Some(done) = &scanned.done else {
        return Err(scanned
            .error
            .as_ref()
            .expect("neither done nor an error")
            .code());
    };
    let digest = Sha256::digest(format!("{:?}", scanned.blocks));
    let checkpoints = scanned.checkpoints.iter().map(|(_, stretch)| stretch);
    let mut certificates: Vec<Certificate> = checkpoints.chain([done]).cloned().collect();
    for certificate in &mut certificates {
        certificate.index = IndexKind::SlotRanges;
    }
    done.holds().expect("a certificate that does not hold");
    Ok((format!("{digest:x}"), certificates))
}

/// Faults that pass when they happen once: the reader must get over them.
const PASSING: [&str; 11] = [
    "close",
    "reset",
    "short=1000",
    "short-length",
    "status=429",
    "status=503",
    "status=500",
    "stall",
    "whole",
    "other-range",
    "slow=2000000",
];
/// Faults after which there may be an error.
const LASTING: [&str; 10] = [
    "flip",
    "shifted",
    "etag",
    "missing",
    "cut=1",
    "status=403",
    "index:missing",
    "index:cut=12",
    "index:flip",
    "index:etag",
];
/// Faults of the index that pass.
const PASSING_INDEX: [&str; 4] = [
    "index:close",
    "index:status=503",
    "index:short-length",
    "index:reset",
];

fn places() -> usize {
    std::env::var("UHO_FAULT_PLACES").map_or(PLACES, |places| places.parse().unwrap())
}

/// The faults at random places: once, and one in four as often as anybody asks.
fn plans(written: &Written) -> Vec<(String, bool)> {
    let mut random = StdRng::seed_from_u64(0x5eed);
    let mut plans = Vec::new();
    let passing = PASSING.iter().chain(&PASSING_INDEX);
    let all = passing
        .map(|fault| (fault, true))
        .chain(LASTING.iter().map(|fault| (fault, false)));
    for (fault, passes) in all {
        let bytes = if fault.starts_with("index:") {
            0..5_184_000
        } else {
            written.bytes.clone()
        };
        for place in 0..places() {
            let byte = random.random_range(bytes.clone());
            if place % 4 == 3 {
                plans.push((format!("{fault}#{byte}x1000000"), false));
            } else {
                plans.push((format!("{fault}#{byte}"), passes));
            }
        }
    }
    plans
}

/// Stalls must be found out soon, others must not be taken for stalls on a busy machine.
fn patience(faults: &[String]) -> ArchiveOptions {
    let stalls = faults.iter().any(|fault| fault.contains("stall"));
    ArchiveOptions {
        read_timeout_ms: if stalls { 250 } else { 20_000 },
        ..options()
    }
}

async fn faulty(written: &Written, faults: &[String]) -> (Collected, Vec<u64>) {
    let parsed = faults.iter().map(|fault| fault.parse().unwrap()).collect();
    let server = Server::start(written.folder.path(), "127.0.0.1:0", parsed).unwrap();
    let base = format!("http://{}", server.address());
    let (_, scanned) = scan(&base, written, patience(faults)).await;
    (scanned, server.met())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_fault_anywhere_leaves_the_same_records_or_an_error() {
    let written = written();
    let base = written.folder.path().to_str().unwrap();
    let calm = result(&scan(base, &written, options()).await.1).unwrap();
    let written = &written;
    let outcomes = futures::stream::iter(plans(written))
        .map(async |(fault, passes)| {
            let (scanned, met) = faulty(written, std::slice::from_ref(&fault)).await;
            (fault, passes, met[0], result(&scanned))
        })
        .buffer_unordered(AT_ONCE);
    let mut outcomes = std::pin::pin!(outcomes);

    let mut counts = BTreeMap::<String, BTreeMap<&str, u32>>::new();
    while let Some((fault, passes, met, result)) = outcomes.next().await {
        let what = match result {
            Ok(read) => {
                assert!(read == calm, "{fault}: done, but something else was read");
                if met == 0 { "not met" } else { "same records" }
            }
            Err(code) => {
                assert!(!passes, "{fault}: {code}");
                code
            }
        };
        let kind = fault.split('#').next().unwrap();
        let lasts = if fault.ends_with("x1000000") {
            ", always"
        } else {
            ""
        };
        *counts
            .entry(format!("{kind}{lasts}"))
            .or_default()
            .entry(what)
            .or_default() += 1;
    }
    for (kind, outcomes) in &counts {
        eprintln!("{kind}: {outcomes:?}");
    }
    let met: u32 = counts
        .values()
        .flatten()
        .filter(|(what, _)| **what != "not met")
        .map(|(_, count)| count)
        .sum();
    let all: usize = places() * (PASSING.len() + LASTING.len() + PASSING_INDEX.len());
    assert!(
        met as usize * 10 >= all * 8,
        "only {met} of {all} faults were met"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_every_kind_at_once_leave_the_same_records_or_an_error() {
    let written = written();
    let base = written.folder.path().to_str().unwrap();
    let calm = result(&scan(base, &written, options()).await.1).unwrap();
    let (mut same, mut errors) = (0, BTreeMap::<&str, u32>::new());
    for seed in 0..places() as u64 {
        // One in three scans meets a fault that cannot pass, too.
        let mut faults: Vec<String> = PASSING
            .iter()
            .filter(|fault| **fault != "stall")
            .map(|fault| format!("{fault}~40/{seed}"))
            .collect();
        if seed % 3 == 0 {
            faults.push(format!("flip~15/{seed}"));
        }
        // By different streams of chance each.
        for (number, fault) in faults.iter_mut().enumerate() {
            fault.push_str(&number.to_string());
        }
        let (scanned, _) = faulty(&written, &faults).await;
        match result(&scanned) {
            Ok(read) => {
                assert!(
                    read == calm,
                    "seed {seed}: done, but something else was read"
                );
                same += 1;
            }
            Err(code) => {
                assert!(seed % 3 == 0, "seed {seed}: {code}");
                *errors.entry(code).or_default() += 1;
            }
        }
    }
    eprintln!("{same} with the same records, errors: {errors:?}");
    assert!(same > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_throttles_is_asked_over_fewer_connections() {
    let written = written();
    let faults = ["busy=2", "slow=2000000"].map(|fault| fault.parse().unwrap());
    let faults = faults.to_vec();
    let server = Server::start(written.folder.path(), "127.0.0.1:0", faults).unwrap();
    let options = ArchiveOptions {
        connections: 12,
        segment_bytes: 5_000,
        retries: 20,
        ..options()
    };
    let (archive, scanned) = scan(&format!("http://{}", server.address()), &written, options).await;
    result(&scanned).unwrap();
    let counters = archive.counters();
    let throttled = counters.retries(RetryCause::Throttled);
    let requests = counters.requests.get();
    assert!(throttled > 0, "the server had no reason to");
    // Without fewer connections four of five requests are refused; with them two of five, and half on a busy machine.
    assert!(
        throttled * 4 < requests * 3,
        "{throttled} of {requests} requests were throttled"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_connection_is_left_for_a_new_one_and_the_rest_goes_on() {
    let written = written();
    // The answer that holds the first block's bytes would take minutes.
    let faults = vec![format!("slow=200#{}", written.bytes.start).parse().unwrap()];
    let server = Server::start(written.folder.path(), "127.0.0.1:0", faults).unwrap();
    let base = format!("http://{}", server.address());
    let options = ArchiveOptions {
        slow_after_ms: 50,
        segment_bytes: 200_000,
        ..options()
    };
    let scanning = scan(&base, &written, options);
    let (archive, scanned) = tokio::time::timeout(Duration::from_secs(60), scanning)
        .await
        .expect("the slow connection was waited for");
    let folder = written.folder.path().to_str().unwrap();
    let calm = scan(folder, &written, self::options()).await.1;
    assert!(result(&scanned).unwrap() == result(&calm).unwrap());
    assert_eq!(server.met(), [1]);
    assert!(archive.counters().retries(RetryCause::Slow) >= 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn records_are_the_same_whatever_the_threads_connections_and_segments(
        threads in 1_usize..5, connections in 1_usize..17, segment_bytes in 1_u64..400_000,
    ) {
        static WRITTEN: std::sync::LazyLock<(Written, (String, Vec<Certificate>))> =
            std::sync::LazyLock::new(|| {
                let written = written();
                let result = read(1, 1, u64::MAX, &written);
                (written, result)
            });
        let (written, calm) = &*WRITTEN;
        prop_assert!(&read(threads, connections, segment_bytes, written) == calm);
    }
}

/// Reads the archive from its folder.
fn read(
    threads: usize,
    connections: usize,
    segment_bytes: u64,
    written: &Written,
) -> (String, Vec<Certificate>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .unwrap();
    let options = ArchiveOptions {
        connections,
        segment_bytes,
        ..ArchiveOptions::default()
    };
    let folder: &Path = written.folder.path();
    let scanned = runtime.block_on(scan(folder.to_str().unwrap(), written, options));
    result(&scanned.1).unwrap()
}
