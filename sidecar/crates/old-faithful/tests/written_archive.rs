//! Scans of archives written here: what real data has too little of, and archives that are wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

#[path = "support/build.rs"]
#[allow(dead_code, unreachable_pub)]
mod build;
mod support;

use build::{Epoch, Sent, compress, metadata, nodes, section, transaction};
use old_faithful::{
    Archive, ArchiveOptions, BareScanRequest, Mention, Pubkey, ScanRequest, SlotRange, Tail, Verify,
};
use support::{Collected, collect};
use tempfile::TempDir;

const PROGRAM: Pubkey = [1; 32];
const OTHER: Pubkey = [2; 32];
const PAYER: Pubkey = [3; 32];
const TABLE: Pubkey = [4; 32];

fn calls(program: Pubkey) -> Sent {
    Sent {
        signature: 5,
        keys: vec![PAYER, program],
        instructions: vec![(1, vec![0], vec![1, 2, 3])],
        lookups: None,
    }
}

/// A transaction that loads `writable` and `readonly` of [`TABLE`].
fn loads(writable: &[u8], readonly: &[u8]) -> Sent {
    Sent {
        lookups: Some(vec![(TABLE, writable.to_vec(), readonly.to_vec())]),
        ..calls(OTHER)
    }
}

fn request(start: u64, end: u64) -> ScanRequest {
    ScanRequest {
        range: SlotRange { start, end },
        programs: vec![PROGRAM],
        verify: Verify::Full,
        checkpoint_slots: 0,
    }
}

async fn scan_with(epochs: &[&Epoch], request: ScanRequest) -> Collected {
    let folder = TempDir::new().unwrap();
    for epoch in epochs {
        epoch.write(folder.path());
    }
    let base = folder.path().to_str().unwrap();
    let archive = Archive::open(base, ArchiveOptions::default()).unwrap();
    collect(archive.scan(request)).await
}

/// Blocks at slots 3, 5 and 8 of epoch 0, with two transactions in each.
fn sample() -> Epoch {
    let mut epoch = Epoch::new(0, 0);
    epoch.block(0, &[]);
    for slot in [3, 5, 8] {
        let first = transaction(&calls(PROGRAM), &compress(&metadata(&[], &[])), slot, 0);
        let second = transaction(&calls(OTHER), &compress(&metadata(&[], &[])), slot, 1);
        epoch.block(slot, &[vec![first], vec![], vec![second]]);
    }
    epoch
}

/// Replaces a block's sections by what `change` makes of their nodes, with right hashes and index.
fn changed(at: u64, change: impl Fn(&mut Vec<Vec<u8>>)) -> Epoch {
    let whole = sample();
    let mut epoch = Epoch::new(0, 0);
    for slot in [0, 3, 5, 8_u64] {
        let entry = usize::try_from(slot * 12).unwrap();
        let offset = u64::from_le_bytes(whole.index[entry..entry + 8].try_into().unwrap());
        let length = u32::from_le_bytes(whole.index[entry + 8..entry + 12].try_into().unwrap());
        let from = usize::try_from(offset).unwrap();
        let mut block = nodes(&whole.car[from..from + length as usize]);
        if slot == at {
            change(&mut block);
        }
        let bytes: Vec<u8> = block.iter().flat_map(|node| section(node)).collect();
        epoch.block_bytes(slot, &bytes);
    }
    epoch
}

#[tokio::test]
async fn a_written_archive_reads_back() {
    let scanned = scan_with(&[&sample()], request(0, 9)).await;
    let block = &scanned.blocks[1];
    assert_eq!((block.slot, block.parent_slot), (5, 3));
    assert_eq!(block.block_time, Some(1_700_000_000));
    assert_eq!(block.block_height, None);
    let found = &block.matches[0];
    assert_eq!((found.index, found.slot, found.epoch), (0, 5, 0));
    let parts = found.parts().unwrap();
    assert_eq!(*parts.signature, [5; 64]);
    assert_eq!(parts.account_keys, [PAYER, PROGRAM]);
    assert_eq!(parts.instructions[0].data, [1, 2, 3]);
    let found = parts.metadata.unwrap();
    assert_eq!(found.fee, 5000);
    assert_eq!(found.logs.unwrap()[0], b"Program log: hello");
    let done = scanned.done();
    assert_eq!((done.blocks, done.transactions, done.entries), (4, 6, 9));
    assert_eq!(done.tail, Tail::Unproven);
}

#[tokio::test]
async fn a_program_in_loaded_keys_is_found_whatever_was_learned_before() {
    let loaded = [[10; 32], [11; 32], PROGRAM];
    let mut epoch = Epoch::new(0, 0);
    epoch.block(0, &[]);
    let stored = |writable: &[u8], readonly: &[u8]| {
        let keys = |indexes: &[u8]| -> Vec<Pubkey> {
            indexes
                .iter()
                .map(|index| loaded[usize::from(*index)])
                .collect()
        };
        compress(&metadata(&keys(writable), &keys(readonly)))
    };
    // Unknown, then known and without the program, then partly known, then known and with the program.
    let steps: [(&[u8], &[u8]); 5] = [
        (&[0], &[1]),
        (&[1], &[0]),
        (&[0], &[2]),
        (&[], &[2, 0]),
        (&[1], &[]),
    ];
    for (slot, (writable, readonly)) in (1..).zip(steps) {
        let node = transaction(
            &loads(writable, readonly),
            &stored(writable, readonly),
            slot,
            0,
        );
        epoch.block(slot, &[vec![node]]);
    }
    let scanned = scan_with(&[&epoch], request(0, 100)).await;
    let slots: Vec<u64> = scanned.blocks.iter().map(|block| block.slot).collect();
    assert_eq!(slots, [3, 4]);
    for block in &scanned.blocks {
        let found = &block.matches[0];
        let lookup_only = Mention {
            program: 0,
            lookup_only: true,
        };
        assert_eq!(found.mentions, [lookup_only]);
        let parts = found.parts().unwrap();
        assert_eq!(parts.static_key_count, 2);
        assert!(parts.account_keys[2..].contains(&PROGRAM));
        assert!(parts.metadata.is_some());
    }
    let done = scanned.done();
    let counts = done.programs.values().next().unwrap();
    assert_eq!((counts.matched, counts.matched_by_lookup_only), (2, 2));
    assert_eq!(done.unresolved_lookups, 0);
}

#[tokio::test]
async fn lookups_without_keys_are_counted_as_unresolved() {
    let mut epoch = Epoch::new(0, 0);
    epoch.block(0, &[]);
    let bincode = compress(&[0, 0, 0, 0, 1, 2, 3]);
    let too_few = compress(&metadata(&[[10; 32]], &[]));
    for (slot, stored) in (1..).zip([Vec::new(), bincode, too_few, b"\xff\xff".to_vec()]) {
        let with_lookup = transaction(&loads(&[0], &[1]), &stored, slot, 0);
        let without = transaction(&calls(PROGRAM), &stored, slot, 1);
        epoch.block(slot, &[vec![with_lookup, without]]);
    }
    let scanned = scan_with(&[&epoch], request(0, 100)).await;
    let metadata: Vec<bool> = scanned
        .blocks
        .iter()
        .map(|block| block.matches[0].has_metadata())
        .collect();
    assert_eq!(metadata, [false, false, true, false]);
    let done = scanned.done();
    assert_eq!(done.unresolved_lookups, 4);
    assert_eq!(done.missing_metadata, 6);
    assert_eq!(done.programs.values().next().unwrap().matched, 4);
}

#[tokio::test]
async fn metadata_that_is_not_compressed_is_read_as_it_is() {
    let mut epoch = Epoch::new(0, 0);
    epoch.block(
        0,
        &[vec![transaction(
            &calls(PROGRAM),
            &metadata(&[], &[]),
            0,
            0,
        )]],
    );
    let scanned = scan_with(&[&epoch], request(0, 1)).await;
    let parts = scanned.blocks[0].matches[0].parts().unwrap();
    assert_eq!(parts.metadata.unwrap().fee, 5000);
}

#[tokio::test]
async fn failed_transactions_are_flagged_and_counted() {
    let mut failing = build::field(1, &build::field(1, &[8, 0, 0, 0]));
    failing.extend(metadata(&[], &[]));
    let mut epoch = Epoch::new(0, 0);
    epoch.block(
        0,
        &[vec![transaction(
            &calls(PROGRAM),
            &compress(&failing),
            0,
            0,
        )]],
    );
    let scanned = scan_with(&[&epoch], request(0, 1)).await;
    let found = &scanned.blocks[0].matches[0];
    assert!(found.failed());
    assert_eq!(
        found.parts().unwrap().metadata.unwrap().err,
        Some(&[8, 0, 0, 0][..])
    );
    assert_eq!(scanned.done().programs.values().next().unwrap().failed, 1);
}

#[tokio::test]
async fn a_block_without_one_of_its_sections_breaks_the_chain() {
    // Sections of a block: transaction, entry, entry, transaction, entry, block.
    for missing in 0..5 {
        let epoch = changed(5, |block| drop(block.remove(missing)));
        for verify in [Verify::Full, Verify::Off] {
            let request = ScanRequest {
                verify,
                ..request(0, 9)
            };
            let error = scan_with(&[&epoch], request).await.error();
            assert_eq!(error.code(), "chain_broken", "section {missing}: {error}");
            assert!(error.to_string().contains("slot 5"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_block_whose_end_is_missing_breaks_the_chain() {
    let epoch = changed(5, |block| drop(block.pop()));
    let error = scan_with(&[&epoch], request(0, 9)).await.error();
    assert_eq!(error.code(), "chain_broken", "{error}");
}

#[tokio::test]
async fn sections_in_another_order_break_the_chain() {
    for (one, other) in [(0, 3), (1, 2), (0, 5)] {
        let epoch = changed(5, |block| block.swap(one, other));
        let error = scan_with(&[&epoch], request(0, 9)).await.error();
        assert_eq!(error.code(), "chain_broken", "{one} and {other}: {error}");
    }
}

#[tokio::test]
async fn a_stored_index_that_is_not_the_counted_one_breaks_the_chain() {
    let mut epoch = Epoch::new(0, 0);
    let stored = compress(&metadata(&[], &[]));
    let node = |index| transaction(&calls(PROGRAM), &stored, 0, index);
    epoch.block(0, &[vec![node(0), node(2)]]);
    let error = scan_with(&[&epoch], request(0, 1)).await.error();
    assert_eq!(error.code(), "chain_broken");
    assert!(error.to_string().contains("number 2"), "{error}");
}

#[tokio::test]
async fn a_block_that_the_index_does_not_list_breaks_the_chain() {
    for slot in [3, 5, 8] {
        let mut epoch = sample();
        epoch.block(20, &[]);
        epoch.list(slot, 0, 0);
        // For the last block of the range only the tail can tell.
        let scanned = scan_with(&[&epoch], request(0, 9)).await;
        assert_eq!(scanned.error().code(), "chain_broken", "slot {slot}");
    }
}

#[tokio::test]
async fn a_first_block_whose_parent_is_in_the_range_breaks_the_chain() {
    let mut epoch = sample();
    epoch.list(3, 0, 0);
    assert_eq!(
        scan_with(&[&epoch], request(1, 9)).await.error().code(),
        "chain_broken"
    );
    // Before the missing block, or behind it, nothing is missing.
    assert_eq!(scan_with(&[&epoch], request(4, 9)).await.done().blocks, 2);
    // An empty range is proved by the next block, or not.
    assert_eq!(
        scan_with(&[&epoch], request(2, 5)).await.error().code(),
        "chain_broken"
    );
}

#[tokio::test]
async fn an_index_that_does_not_fit_its_file_is_refused() {
    let mut short = sample();
    short.index.pop();
    let mut beyond = sample();
    beyond.list(9, beyond.car.len() as u64, 1);
    let mut overlapping = sample();
    overlapping.list(9, 100, 50);
    let mut without_bytes = sample();
    without_bytes.list(9, 100, 0);
    let mut in_header = sample();
    in_header.list(0, 1, 20);
    for epoch in [short, beyond, overlapping, without_bytes, in_header] {
        let error = scan_with(&[&epoch], request(0, 9)).await.error();
        assert_eq!(error.code(), "index_invalid", "{error}");
    }
}

#[tokio::test]
async fn matched_verification_hashes_matches_and_off_nothing() {
    // The only difference between the two kinds of transactions is the program that they call.
    let whole = sample();
    let data = |program: Pubkey| {
        let sent = calls(program).bytes();
        let place = whole
            .car
            .windows(sent.len())
            .position(|bytes| bytes == sent)
            .unwrap();
        place + sent.len() - 1
    };
    let verdict = async |at: usize, verify| {
        let mut damaged = whole.clone();
        damaged.car[at] ^= 1;
        let request = ScanRequest {
            verify,
            ..request(0, 9)
        };
        scan_with(&[&damaged], request)
            .await
            .error
            .map(|error| error.code())
    };
    for (program, under_matched) in [(PROGRAM, Some("cid_mismatch")), (OTHER, None)] {
        let at = data(program);
        assert_eq!(verdict(at, Verify::Full).await, Some("cid_mismatch"));
        assert_eq!(verdict(at, Verify::Matched).await, under_matched);
        assert_eq!(verdict(at, Verify::Off).await, None);
    }
}

#[tokio::test]
async fn a_shifted_index_is_noticed() {
    let whole = sample();
    let offset = u64::from_le_bytes(whole.index[5 * 12..5 * 12 + 8].try_into().unwrap());
    let length = u32::from_le_bytes(whole.index[5 * 12 + 8..6 * 12].try_into().unwrap());
    for (moved, longer) in [(1, 0), (0, -1), (3, -3), (40, -40)] {
        let mut epoch = whole.clone();
        let length = length.checked_add_signed(longer).unwrap();
        epoch.list(5, offset + moved, length);
        epoch.list(8, 0, 0);
        for verify in [Verify::Full, Verify::Off] {
            let request = ScanRequest {
                verify,
                ..request(0, 6)
            };
            let code = scan_with(&[&epoch], request).await.error().code();
            assert!(
                [
                    "car_malformed",
                    "chain_broken",
                    "node_malformed",
                    "too_large"
                ]
                .contains(&code),
                "moved {moved}: {code}"
            );
        }
    }
}

#[tokio::test]
async fn the_tail_is_looked_for_in_the_next_epoch() {
    let first = sample();
    let mut second = Epoch::new(1, 8);
    second.block(432_007, &[]);
    let done = scan_with(&[&first, &second], request(4, 432_000))
        .await
        .done();
    assert_eq!(done.tail, Tail::Proven);
    assert_eq!(done.next_block.unwrap().slot, 432_007);

    let mut other = Epoch::new(1, 9);
    other.block(432_007, &[]);
    let error = scan_with(&[&first, &other], request(4, 432_000))
        .await
        .error();
    assert_eq!(error.code(), "chain_broken");

    // Half published: not there yet.
    second.index.pop();
    let done = scan_with(&[&first, &second], request(4, 432_000))
        .await
        .done();
    assert_eq!(done.tail, Tail::Unproven);
    let error = scan_with(&[&first, &second], request(4, 432_001))
        .await
        .error();
    assert_eq!(error.code(), "index_invalid");

    // Epochs without any block are passed over.
    let empty = Epoch::new(1, 0);
    let mut third = Epoch::new(2, 8);
    third.block(864_000, &[]);
    let done = scan_with(&[&first, &empty, &third], request(4, 864_000))
        .await
        .done();
    assert_eq!((done.tail, done.epochs), (Tail::Proven, vec![0, 1]));
}

#[tokio::test]
async fn a_zip_bomb_is_too_large() {
    let bomb = compress(&vec![9; 65 << 20]);
    let mut epoch = Epoch::new(0, 0);
    epoch.block(0, &[vec![transaction(&calls(PROGRAM), &bomb, 0, 0)]]);
    let error = scan_with(&[&epoch], request(0, 1)).await.error();
    assert_eq!(error.code(), "too_large");
}

#[tokio::test]
async fn a_section_of_more_than_32_mib_is_too_large() {
    let mut epoch = Epoch::new(0, 0);
    let mut bytes = build::varint((32 << 20) + 1);
    bytes.resize(100, 0);
    epoch.block_bytes(0, &bytes);
    let error = scan_with(&[&epoch], request(0, 1)).await.error();
    assert_eq!(error.code(), "too_large");
}

#[tokio::test]
async fn a_bare_file_that_was_cut_off_is_an_error() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("piece.car");
    let whole = sample();
    let mut ends = Vec::new();
    for slot in [0, 3, 5, 8] {
        let entry = slot * 12;
        let offset = u64::from_le_bytes(whole.index[entry..entry + 8].try_into().unwrap());
        let length = u32::from_le_bytes(whole.index[entry + 8..entry + 12].try_into().unwrap());
        ends.push(usize::try_from(offset).unwrap() + length as usize);
    }
    for length in (0..whole.car.len()).step_by(7).chain(ends.clone()) {
        std::fs::write(&path, &whole.car[..length]).unwrap();
        let request = BareScanRequest {
            programs: vec![PROGRAM],
            verify: Verify::Full,
        };
        let scanned = collect(Archive::scan_car_file(&path, request)).await;
        if ends.contains(&length) {
            assert!(scanned.done().blocks > 0);
        } else {
            assert_eq!(scanned.error().code(), "car_malformed", "{length} bytes");
        }
    }
}

#[tokio::test]
async fn files_and_addresses_that_are_none_say_so() {
    for base in [
        "relative/path",
        "ftp://host/archive",
        "/no/such/folder",
        "nonsense",
    ] {
        let error = Archive::open(base, ArchiveOptions::default()).unwrap_err();
        assert_eq!(error.code(), "io", "{base}");
    }
    let error = Archive::open(
        "ftp://user:secret@host/x?token=hidden",
        ArchiveOptions::default(),
    )
    .unwrap_err()
    .to_string();
    assert!(
        !error.contains("secret") && !error.contains("hidden"),
        "{error}"
    );
}
