//! Blocks drawn for estimates: the same by whichever index an epoch has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

use std::fs;
use std::path::Path;
use std::time::Duration;

use archive_sim::{Indexes, Plan, Server};
use old_faithful::{Archive, ArchiveOptions, SLOTS_PER_EPOCH, SlotRange};

async fn draws(base: &str, range: SlotRange) -> (Vec<Option<(u64, u64, u32, u64)>>, u64, u64) {
    let archive = Archive::open(base, ArchiveOptions::default()).unwrap();
    let mut sampler = archive.sampler(range, &[], 3).await.unwrap();
    let mut drawn = Vec::new();
    for _ in 0..300 {
        let Some(block) = sampler.draw().await.unwrap() else {
            drawn.push(None);
            continue;
        };
        let transactions = sampler.read(&block).await.unwrap().transactions;
        let listed = block.listed;
        drawn.push(Some((
            listed.slot,
            listed.offset,
            listed.length,
            transactions,
        )));
    }
    (drawn, sampler.bytes(), sampler.bytes_read())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_blocks_are_drawn_by_the_older_indexes() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        indexes: Indexes::Both,
        ..Plan::default()
    };
    archive_sim::write(folder.path(), &plan).unwrap();
    let (first, behind) = (plan.first_slot, plan.last_slot + 1);
    let boundary = 3 * SLOTS_PER_EPOCH;
    let (empty, behind_empty) = plan.empty_slots.unwrap();
    let ranges = [
        SlotRange::new(first, behind),
        SlotRange::new(first + 400, boundary),
        SlotRange::new(boundary, boundary + 3),
        // Whole epochs, closing nodes and all.
        SlotRange::new(boundary - SLOTS_PER_EPOCH, boundary + SLOTS_PER_EPOCH),
        SlotRange::new(empty, behind_empty),
    ];
    let base = folder.path().to_str().unwrap();
    let mut expected = Vec::new();
    for range in ranges {
        expected.push(draws(base, range).await);
    }
    assert!(expected[0].0.iter().flatten().count() > 250);
    for epoch in [2, 3] {
        let index = format!("{epoch}/epoch-{epoch}-slot-ranges.raw");
        fs::remove_file(folder.path().join(index)).unwrap();
    }
    for (range, expected) in ranges.into_iter().zip(expected) {
        let server = Server::start(folder.path(), "127.0.0.1:0", Vec::new()).unwrap();
        let base = format!("http://{}", server.address());
        let (drawn, bytes, bytes_read) = draws(&base, range).await;
        assert_eq!((&drawn, bytes), (&expected.0, expected.1), "{range:?}");
        // What it says it read is what the server sent, which counts a moment later.
        let counted = async {
            while server.bytes() < bytes_read {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(10), counted).await;
        assert_eq!(bytes_read, server.bytes(), "{range:?}");
    }
}

fn copy_car(folder: &Path, to: u64) {
    fs::create_dir(folder.join(to.to_string())).unwrap();
    let car = folder.join(format!("{to}/epoch-{to}.car"));
    fs::copy(folder.join("3/epoch-3.car"), car).unwrap();
}

#[tokio::test]
async fn what_has_no_index_or_too_many_older_ones_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        indexes: Indexes::Older,
        ..Plan::of_range(1_300_000, 1_300_019, 20)
    };
    archive_sim::write(folder.path(), &plan).unwrap();
    copy_car(folder.path(), 4);
    copy_car(folder.path(), 5);
    let archive =
        Archive::open(folder.path().to_str().unwrap(), ArchiveOptions::default()).unwrap();
    let refusal = async |range: SlotRange| {
        let error = archive.sampler(range, &[], 0).await.unwrap_err();
        (error.code(), error.to_string())
    };
    let (code, text) = refusal(SlotRange::new(1_300_000, 6 * SLOTS_PER_EPOCH)).await;
    assert_eq!(code, "io");
    assert!(
        text.contains("3 of its epochs have no slot-ranges file, from epoch 3 on"),
        "{text}"
    );
    assert!(text.contains("at most 2"), "{text}");
    // Neither kind of index.
    let (code, text) = refusal(SlotRange::new(
        4 * SLOTS_PER_EPOCH,
        4 * SLOTS_PER_EPOCH + 10,
    ))
    .await;
    assert_eq!(code, "epoch_not_found");
    assert!(
        text.contains("4/epoch-4-slot-ranges.raw is missing"),
        "{text}"
    );
}
