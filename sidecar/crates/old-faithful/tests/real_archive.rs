//! Scans of real data: what two independent readers counted must be counted here too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

mod support;

use old_faithful::{
    Archive, ArchiveOptions, BareScanRequest, IndexKind, SLOTS_PER_EPOCH, ScanRequest, SlotRange,
    Tail, Verify,
};
use support::{Collected, MENTIONS, all_programs, collect, real_archive, request, shared_data};

const EPOCH_800: u64 = 800 * SLOTS_PER_EPOCH;
const EPOCH_801: u64 = 801 * SLOTS_PER_EPOCH;
const EPOCH_802: u64 = 802 * SLOTS_PER_EPOCH;

async fn scan(request: ScanRequest) -> Option<Collected> {
    let archive = real_archive(ArchiveOptions::default())?;
    Some(collect(archive.scan(request)).await)
}

#[tokio::test]
async fn epoch_800_has_its_known_counts_and_mentions() {
    let Some(scanned) = scan(request(EPOCH_800, EPOCH_801)).await else {
        return;
    };
    let slots: Vec<u64> = scanned.blocks.iter().map(|block| block.slot).collect();
    assert!(slots.is_sorted_by(|a, b| a < b), "blocks are in order");
    let matched: usize = scanned.blocks.iter().map(|block| block.matches.len()).sum();
    let done = scanned.done();
    assert_eq!((done.blocks, done.slots_with_blocks), (66, 66));
    assert_eq!((done.transactions, done.votes), (786, 94));
    assert_eq!(done.entries, 262);
    assert_eq!(done.cids_verified, 786 + 262 + 66);
    assert_eq!((done.missing_metadata, done.unresolved_lookups), (0, 0));
    assert_eq!(done.bytes, 1_243_746 - 59);
    assert_eq!(done.epochs, [800]);
    assert_eq!(done.index, IndexKind::SlotRanges);
    assert_eq!(done.last_block_slot, Some(345_845_515));
    assert_eq!(done.tail, Tail::Proven);
    assert_eq!(done.next_block.unwrap().slot, 346_032_010);
    let mut mentions = 0;
    for (program, in_static, loaded_only) in MENTIONS {
        let counts = done.programs[program];
        assert_eq!(counts.matched, in_static + loaded_only, "{program}");
        assert_eq!(counts.matched_by_lookup_only, loaded_only, "{program}");
        mentions += counts.matched;
    }
    assert!(matched as u64 <= mentions && matched > 87);
}

#[tokio::test]
async fn epoch_801_reads_the_same_from_chains_of_frames() {
    let Some(first) = scan(request(EPOCH_800, EPOCH_801)).await else {
        return;
    };
    let second = scan(request(EPOCH_801, EPOCH_802)).await.unwrap();
    assert_eq!(first.blocks.len(), second.blocks.len());
    for (first, second) in first.blocks.iter().zip(&second.blocks) {
        assert_eq!(first.slot + SLOTS_PER_EPOCH, second.slot);
        for (first, second) in first.matches.iter().zip(&second.matches) {
            assert_eq!(first.parts().unwrap(), second.parts().unwrap());
            assert_eq!(first.index, second.index);
            assert_eq!((first.epoch, second.epoch), (800, 801));
        }
    }
    let (first, second) = (first.done(), second.done());
    assert_eq!(first.programs, second.programs);
    assert_eq!(second.transactions, 786);
    assert_eq!(second.first_block.unwrap().parent_slot, 345_845_515);
    assert_eq!(second.tail, Tail::Unproven, "epoch 802 is not there");
    assert_eq!(second.next_block, None);
}

#[tokio::test]
async fn a_range_over_both_epochs_is_the_merged_certificates_of_its_checkpoints() {
    let Some(scanned) = scan(request(EPOCH_800, EPOCH_802)).await else {
        return;
    };
    let slots: Vec<u64> = scanned.checkpoints.iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots.len(), 864);
    assert_eq!(slots[0], EPOCH_800 + 1000);
    assert_eq!(slots.last(), Some(&EPOCH_802));
    let merged = scanned
        .checkpoints
        .iter()
        .map(|(_, certificate)| certificate.clone())
        .reduce(|first, second| first.merge(second).unwrap())
        .unwrap();
    assert!(merged.holds().is_err(), "its tail was never read");
    assert_eq!(merged.holds_as_stretch(), Ok(()));
    let done = scanned.done();
    assert_eq!(done.holds(), Ok(()));
    assert_eq!(done.blocks, 132);
    assert_eq!(done.epochs, [800, 801]);
    let untailed = old_faithful::Certificate {
        tail: Tail::Unread,
        next_block: None,
        ..done
    };
    assert_eq!(merged, untailed);
}

#[tokio::test]
async fn the_older_indexes_of_the_archives_own_tool_yield_the_same_as_slot_ranges() {
    let Some(data) = shared_data() else { return };
    let folder = tempfile::tempdir().unwrap();
    // All files but the slot-ranges; epoch 801, which has only those, proves the tail.
    for epoch in ["800", "801"] {
        std::fs::create_dir(folder.path().join(epoch)).unwrap();
        for file in std::fs::read_dir(data.join("archive").join(epoch)).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            if name != "epoch-800-slot-ranges.raw" {
                let link = folder.path().join(epoch).join(name);
                std::os::unix::fs::symlink(file.path().canonicalize().unwrap(), link).unwrap();
            }
        }
    }
    let archive =
        Archive::open(folder.path().to_str().unwrap(), ArchiveOptions::default()).unwrap();
    assert_eq!(archive.tip(800).await.unwrap(), Some(EPOCH_802));
    for (start, end) in [
        (EPOCH_800, EPOCH_801),
        (EPOCH_800, EPOCH_802),
        (345_603_788, 345_607_564),
        (345_700_000, 345_800_000),
    ] {
        let older = collect(archive.scan(request(start, end))).await;
        let newer = scan(request(start, end)).await.unwrap();
        assert_eq!(format!("{:?}", older.blocks), format!("{:?}", newer.blocks));
        let (older, mut newer) = (older.done(), newer.done());
        assert_eq!(older.index, IndexKind::SlotToCid);
        newer.index = IndexKind::SlotToCid;
        assert_eq!(older, newer);
    }
}

#[tokio::test]
async fn chunks_adjoin_and_add_up_to_their_epoch() {
    let Some(whole) = scan(request(345_600_000, 345_900_000)).await else {
        return;
    };
    let mut merged: Option<old_faithful::Certificate> = None;
    for start in [345_600_000, 345_700_000, 345_800_000] {
        let chunk = scan(request(start, start + 100_000)).await.unwrap().done();
        assert_eq!(chunk.tail, Tail::Proven);
        assert_eq!(
            chunk.blocks,
            [27, 26, 13][usize::try_from((start - 345_600_000) / 100_000).unwrap()]
        );
        merged = Some(match merged {
            Some(before) => before.merge(chunk).unwrap(),
            None => chunk,
        });
    }
    assert_eq!(merged.unwrap(), whole.done());
}

#[tokio::test]
async fn empty_ranges_and_ragged_ends_are_proved_by_the_next_block() {
    // Between two blocks; before the first; one block alone; no slot at all.
    for (start, end, blocks) in [
        (345_600_011, 345_603_787, 0),
        (345_600_000, 345_600_010, 0),
        (345_603_787, 345_603_788, 1),
        (345_600_500, 345_600_500, 0),
        (345_845_516, 346_032_010, 0),
        (345_841_000, 346_033_000, 3),
    ] {
        let Some(scanned) = scan(request(start, end)).await else {
            return;
        };
        assert_eq!(scanned.checkpoints.last().unwrap().0, end);
        let done = scanned.done();
        assert_eq!((done.start_slot, done.end_slot), (start, end));
        assert_eq!(done.blocks, blocks, "{start}..{end}");
        assert_eq!(done.tail, Tail::Proven, "{start}..{end}");
    }
}

#[tokio::test]
async fn an_epoch_that_the_archive_lacks_is_named() {
    let Some(scanned) = scan(request(346_200_000, EPOCH_802 + 1)).await else {
        return;
    };
    let error = scanned.error();
    assert_eq!(error.code(), "epoch_not_found");
    assert!(error.to_string().contains("802"), "{error}");
}

#[tokio::test]
async fn many_small_segments_give_the_same_as_one() {
    let Some(archive) = real_archive(ArchiveOptions {
        segment_bytes: 1,
        connections: 3,
        ..ArchiveOptions::default()
    }) else {
        return;
    };
    let small = collect(archive.scan(request(EPOCH_800, EPOCH_802))).await;
    let large = scan(request(EPOCH_800, EPOCH_802)).await.unwrap();
    assert_eq!(format!("{:?}", small.blocks), format!("{:?}", large.blocks));
    assert_eq!(small.done(), large.done());
}

#[tokio::test]
async fn verification_changes_what_is_hashed_and_nothing_else() {
    let Some(full) = scan(request(EPOCH_801, EPOCH_802)).await else {
        return;
    };
    let full = full.done();
    let mut counted = Vec::new();
    for verify in [Verify::Matched, Verify::Off] {
        let mut request = request(EPOCH_801, EPOCH_802);
        request.verify = verify;
        let mut done = scan(request).await.unwrap().done();
        counted.push(done.cids_verified);
        done.cids_verified = full.cids_verified;
        done.verify = Verify::Full;
        assert_eq!(done, full);
    }
    assert!(full.cids_verified > counted[0] && counted[0] > 262 + 66);
    assert_eq!(counted[1], 0);
}

#[tokio::test]
async fn the_tip_is_the_end_of_the_newest_epoch() {
    let Some(archive) = real_archive(ArchiveOptions::default()) else {
        return;
    };
    assert_eq!(archive.tip(800).await.unwrap(), Some(EPOCH_802));
    assert_eq!(archive.tip(801).await.unwrap(), Some(EPOCH_802));
    assert_eq!(archive.tip(802).await.unwrap(), None);
    // Epoch 0 has no slot index here.
    assert_eq!(archive.tip(0).await.unwrap(), None);
}

#[tokio::test]
async fn pieces_of_epoch_0_read_to_their_end() {
    let Some(data) = shared_data() else { return };
    let vote = old_faithful::wire::VOTE_PROGRAM;
    let mut transactions = 0;
    for (piece, start) in [(1, 0), (2, 10), (3, 20)] {
        let path = data.join(format!("archive/0/epoch-0-{piece}.car"));
        let request = BareScanRequest {
            programs: vec![vote],
            verify: Verify::Full,
        };
        let scanned = collect(Archive::scan_car_file(&path, request)).await;
        let matched: usize = scanned.blocks.iter().map(|block| block.matches.len()).sum();
        let done = scanned.done();
        assert_eq!((done.start_slot, done.end_slot), (start, start + 10));
        assert_eq!(done.blocks, 10);
        assert_eq!(done.index, IndexKind::None);
        assert_eq!(done.tail, Tail::Unproven);
        assert_eq!(
            done.votes, done.transactions,
            "the first slots hold votes only"
        );
        assert_eq!(done.missing_metadata, done.transactions);
        assert_eq!(done.unresolved_lookups, 0);
        assert_eq!(matched as u64, done.transactions);
        transactions += done.transactions;
    }
    assert!(transactions > 75);
}

#[tokio::test]
async fn whole_epochs_read_as_bare_files_too() {
    let Some(data) = shared_data() else { return };
    let Some(indexed) = scan(request(EPOCH_800, EPOCH_801)).await else {
        return;
    };
    let request = BareScanRequest {
        programs: all_programs(),
        verify: Verify::Full,
    };
    let path = data.join("archive/800/epoch-800.car");
    let bare = collect(Archive::scan_car_file(&path, request)).await;
    assert_eq!(
        format!("{:?}", bare.blocks),
        format!("{:?}", indexed.blocks)
    );
    let (bare, indexed) = (bare.done(), indexed.done());
    assert_eq!(bare.programs, indexed.programs);
    assert_eq!(
        bare.cids_verified,
        indexed.cids_verified + 2,
        "subset and epoch"
    );
}

#[tokio::test]
async fn a_range_that_ends_before_it_begins_is_refused() {
    let Some(scanned) = scan(ScanRequest {
        range: SlotRange::new(EPOCH_801, EPOCH_800),
        ..request(0, 0)
    })
    .await
    else {
        return;
    };
    assert_eq!(scanned.error().code(), "io");
}
