//! The arithmetic of certificates: what merges, what holds, and what it looks like in JSON.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

use old_faithful::{BlockLink, Certificate, CertificateError, IndexKind, Tail, Verify};
use serde_json::json;

const PROGRAM: [u8; 32] = [7; 32];

/// A stretch with `blocks` at these slots, the first with this parent.
fn stretch(start: u64, end: u64, parent: u64, blocks: &[u64]) -> Certificate {
    let mut certificate = Certificate::empty(start, IndexKind::SlotRanges, Verify::Full);
    certificate.end_slot = end;
    certificate.blocks = blocks.len() as u64;
    certificate.slots_with_blocks = certificate.blocks;
    certificate.transactions = 10 * certificate.blocks;
    certificate.epochs = vec![start / 432_000];
    certificate.first_block = blocks.first().map(|slot| BlockLink {
        slot: *slot,
        parent_slot: parent,
    });
    certificate.last_block_slot = blocks.last().copied();
    let counts = certificate.program_mut(&PROGRAM);
    counts.matched = blocks.len() as u64;
    counts.digest = u128::MAX - u128::from(start);
    certificate
}

fn with_tail(mut certificate: Certificate, slot: u64, parent_slot: u64) -> Certificate {
    certificate.tail = Tail::Proven;
    certificate.next_block = Some(BlockLink { slot, parent_slot });
    certificate
}

#[test]
fn merging_is_associative_and_stretches_without_blocks_change_nothing() {
    let parts = [
        stretch(100, 200, 99, &[100, 150]),
        stretch(200, 300, 0, &[]),
        stretch(300, 400, 150, &[399]),
    ];
    let [a, b, c] = parts.clone();
    let left = a
        .clone()
        .merge(b.clone())
        .unwrap()
        .merge(c.clone())
        .unwrap();
    let right = a.merge(b.merge(c).unwrap()).unwrap();
    assert_eq!(left, right);
    assert_eq!((left.blocks, left.last_block_slot), (3, Some(399)));
    assert_eq!(left.first_block.unwrap().slot, 100);
    let digest = u128::MAX.wrapping_mul(3).wrapping_sub(600);
    assert_eq!(left.programs.values().next().unwrap().digest, digest);
    assert_eq!(left.holds_as_stretch(), Ok(()));
    assert_eq!(left.holds(), Err(CertificateError::TailUnread { end: 400 }));
    assert_eq!(with_tail(left, 500, 399).holds(), Ok(()));
}

#[test]
fn what_does_not_fit_is_not_merged() {
    let first = stretch(100, 200, 99, &[100, 150]);
    let merge = |next: Certificate| first.clone().merge(next).map(drop);
    assert!(matches!(
        merge(stretch(201, 300, 150, &[250])),
        Err(CertificateError::NotAdjacent {
            first: 200,
            second: 201
        })
    ));
    assert!(matches!(
        merge(stretch(200, 300, 140, &[250])),
        Err(CertificateError::ParentMismatch {
            slot: 250,
            parent: 140,
            before: 150
        })
    ));
    let mut unverified = stretch(200, 300, 150, &[250]);
    unverified.verify = Verify::Off;
    assert_eq!(
        merge(unverified),
        Err(CertificateError::Different { field: "verify" })
    );
    let mut bare = stretch(200, 300, 150, &[250]);
    bare.index = IndexKind::None;
    assert_eq!(
        merge(bare),
        Err(CertificateError::Different { field: "index" })
    );
    // A stretch without blocks passes the question on to what follows it.
    assert!(merge(with_tail(stretch(200, 300, 0, &[]), 310, 150)).is_ok());
    assert!(merge(with_tail(stretch(200, 300, 0, &[]), 310, 250)).is_err());
    // The block that was seen after the first must be the second's first.
    let seen = with_tail(first.clone(), 260, 150);
    assert!(seen.merge(stretch(200, 300, 150, &[250])).is_err());
    // No block may hide in a stretch that was said to have none.
    let empty = stretch(100, 200, 0, &[]);
    assert!(matches!(
        empty.clone().merge(stretch(200, 300, 150, &[250])),
        Err(CertificateError::Gap { .. })
    ));
    assert!(empty.merge(stretch(200, 300, 99, &[250])).is_ok());
}

#[test]
fn certificates_that_contradict_themselves_do_not_hold() {
    let good = with_tail(stretch(100, 200, 99, &[100, 150]), 201, 150);
    assert_eq!(good.holds(), Ok(()));
    let broken: [fn(&mut Certificate); 12] = [
        |it| it.slots_with_blocks = 3,
        |it| it.blocks = 3,
        |it| it.first_block = None,
        |it| it.last_block_slot = Some(200),
        |it| it.last_block_slot = Some(100),
        |it| {
            it.first_block = Some(BlockLink {
                slot: 120,
                parent_slot: 110,
            });
        },
        |it| it.end_slot = 99,
        |it| it.tail = Tail::Unread,
        |it| it.next_block = None,
        |it| {
            it.next_block = Some(BlockLink {
                slot: 201,
                parent_slot: 100,
            });
        },
        |it| it.program_mut(&PROGRAM).with_records = 5,
        |it| it.program_mut(&PROGRAM).matched = 21,
    ];
    for (number, change) in broken.iter().enumerate() {
        let mut certificate = good.clone();
        change(&mut certificate);
        assert!(certificate.holds().is_err(), "change {number}");
    }
    let mut unproven = good;
    unproven.tail = Tail::Unproven;
    assert!(unproven.holds().is_err(), "a next block proves");
    unproven.next_block = None;
    assert_eq!(unproven.holds(), Ok(()));
}

#[test]
fn the_block_of_slot_0_is_its_own_parent() {
    assert_eq!(stretch(0, 10, 0, &[0, 5]).holds_as_stretch(), Ok(()));
    assert!(stretch(0, 10, 0, &[3]).holds_as_stretch().is_err());
}

#[test]
fn the_json_is_the_one_that_others_read() {
    let mut certificate = with_tail(
        stretch(345_600_000, 345_700_000, 7, &[345_600_010]),
        345_700_001,
        345_600_010,
    );
    certificate.programs.values_mut().next().unwrap().digest = 0xab;
    let text = serde_json::to_value(&certificate).unwrap();
    assert_eq!(
        text,
        json!({
            "startSlot": 345_600_000, "endSlot": 345_700_000, "epochs": [800], "index": "slot-ranges",
            "verify": "full", "slotsWithBlocks": 1, "blocks": 1, "transactions": 10, "votes": 0, "entries": 0,
            "missingMetadata": 0, "unresolvedLookups": 0, "bytes": 0, "cidsVerified": 0,
            "firstBlock": {"slot": 345_600_010, "parentSlot": 7}, "lastBlockSlot": 345_600_010,
            "tail": "proven", "nextBlock": {"slot": 345_700_001, "parentSlot": 345_600_010},
            "programs": {"US517G5965aydkZ46HS38QLi7UQiSojurfbQfKCELFx": {
                "matched": 1, "matchedByLookupOnly": 0, "withRecords": 0, "failed": 0, "truncated": 0, "unrecorded": 0,
                "records": 0, "digest": "000000000000000000000000000000ab"
            }}
        })
    );
    assert_eq!(
        serde_json::from_value::<Certificate>(text).unwrap(),
        certificate
    );
    let none = serde_json::to_value(IndexKind::None).unwrap();
    assert_eq!(none, json!("none"));
}
