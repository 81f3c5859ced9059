//! What was learned of lookup tables, handed from one process to the next: used where it is right, refused where it is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

mod support;

use std::path::Path;

use archive_sim::{Indexes, Plan};
use old_faithful::{
    Archive, ArchiveOptions, LEARNED_TABLES_BYTES_AT_MOST, Pubkey, ScanRequest, SlotRange, Verify,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use support::{Collected, collect};

const FIRST: u64 = 1_300_000;
const BEHIND: u64 = 1_300_120;

fn write(folder: &Path, seed: u64) {
    let plan = Plan {
        seed,
        unrelated: (3, 9),
        demo: (2, 7),
        indexes: Indexes::Both,
        ..Plan::of_range(FIRST, BEHIND - 1, 40)
    };
    archive_sim::write(folder, &plan).unwrap();
}

fn open(folder: &Path) -> Archive {
    Archive::open(folder.to_str().unwrap(), ArchiveOptions::default()).unwrap()
}

fn program(name: &str) -> Pubkey {
    Sha256::digest(format!("archive-sim program {name}")).into()
}

async fn scan(archive: &Archive) -> Collected {
    collect(archive.scan(ScanRequest {
        range: SlotRange::new(FIRST, BEHIND),
        programs: vec![program("vault")],
        verify: Verify::Full,
        checkpoint_slots: 0,
    }))
    .await
}

/// What a scan yields, and how many metadata it decompressed.
async fn scanned(archive: &Archive) -> (String, u64) {
    let before = archive.counters().decompressions.get();
    let scanned = scan(archive).await;
    assert!(scanned.done.is_some(), "{:?}", scanned.error);
    let text = format!("{:?} {:?}", scanned.blocks, scanned.done);
    (text, archive.counters().decompressions.get() - before)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_decompresses_nothing_for_what_the_first_learned() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 4);
    let first = open(folder.path());
    assert_eq!(
        (first.learned_changes(), first.learned_tables("sim")),
        (0, None)
    );
    let (found, cold) = scanned(&first).await;
    let (again, warm) = scanned(&first).await;
    assert_eq!(again, found);
    assert!(warm < cold, "{warm} of {cold}");
    assert!(first.learned_changes() > 0);
    let bytes = first.learned_tables("sim").unwrap();
    assert!(bytes.len() as u64 <= LEARNED_TABLES_BYTES_AT_MOST);

    let second = open(folder.path());
    let tables = second.restore_learned_tables("sim", &bytes).await.unwrap();
    assert!(tables > 0 && second.learned_changes() > 0);
    assert_eq!(scanned(&second).await, (found, warm));
    // Nothing was there to be learned any more: what it would hand on is the same.
    assert_eq!(second.learned_tables("sim").unwrap(), bytes);
    eprintln!(
        "{cold} decompressions cold, {warm} warm, {} bytes of {tables} tables",
        bytes.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_of_another_archive_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 4);
    let first = open(folder.path());
    scanned(&first).await;
    let bytes = first.learned_tables("sim").unwrap();
    let other = open(folder.path());
    let refused = async |network: &str, bytes: &[u8], expected: &str| {
        let reason = other.restore_learned_tables(network, bytes).await;
        let reason = reason.unwrap_err();
        assert!(reason.contains(expected), "{expected}: {reason}");
        assert_eq!(other.learned_changes(), 0);
    };
    // Every bit of a byte in seven, and every cut at them.
    for at in (0..bytes.len()).step_by(7).chain(0..80) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        refused("sim", &damaged, "").await;
        refused("sim", &bytes[..at], "").await;
    }
    refused("sim", &[&bytes[..], &[0]].concat(), "bytes, but says").await;
    refused("sim", &[], "too few").await;
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    refused("sim", &damaged, "it is damaged").await;
    damaged = bytes.clone();
    damaged[8] = 2;
    refused("sim", &damaged, "of version 2").await;
    refused("main", &bytes, "of the network sim").await;

    // Another archive at the same place: its tables hold other keys, under the same names or not.
    write(folder.path(), 5);
    refused("sim", &bytes, "another archive: epoch 3 has another root").await;
    std::fs::remove_file(folder.path().join("3/epoch-3.car")).unwrap();
    refused("sim", &bytes, "does not have epoch 3 any more").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_was_replaced_makes_what_was_learned_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 4);
    let archive = open(folder.path());
    scanned(&archive).await;
    let before = archive.learned_tables("sim").unwrap();
    write(folder.path(), 5);
    let fresh = open(folder.path());
    assert_eq!(scanned(&archive).await, scanned(&fresh).await);
    let after = archive.learned_tables("sim").unwrap();
    assert_ne!(after, before);
    assert_eq!(after, fresh.learned_tables("sim").unwrap());
}

/// Bytes whose checksum is right, whatever they hold.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = (bytes.len() + 32) as u64;
    if let Some(field) = bytes.get_mut(12..20) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    let hash = Sha256::digest(&bytes);
    bytes.extend(hash);
    bytes
}

fn body() -> Vec<u8> {
    let mut body = b"uho-look\x01\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0sim\x01\0\0\0".to_vec();
    body.extend([[3; 8].as_slice(), &[9; 32]].concat());
    body.extend([2, 0, 0, 0]);
    for table in 0..2 {
        body.extend([table; 32]);
        body.extend([&[0b101][..], &[0; 31]].concat());
        body.extend([7; 8]);
    }
    body
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_of_learned_tables_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        changes in proptest::collection::vec((0..body().len(), any::<u8>()), 0..4),
        cut in 0..=body().len(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let archive = open(&std::env::temp_dir());
        let mut nearly = body();
        for (at, byte) in changes {
            nearly[at] = byte;
        }
        nearly.truncate(cut.max(20));
        for bytes in [bytes.clone(), sealed(bytes), sealed(nearly)] {
            // The archive has none of the epochs: whatever is read cannot be compared.
            let read = runtime.block_on(archive.restore_learned_tables("sim", &bytes));
            prop_assert!(!read.unwrap_err().is_empty());
        }
    }
}
