//! The archive is what its format says, by an own light walk, and the same seed writes the same bytes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use archive_sim::{LargePlan, Plan, write, write_large};
use sha2::{Digest, Sha256};

fn small() -> Plan {
    Plan {
        seed: 7,
        from_slot: 1_295_800,
        to_slot: 1_296_300,
        first_slot: 1_295_850,
        last_slot: 1_296_249,
        chunk_slots: 100,
        empty_slots: Some((1_296_050, 1_296_100)),
        ..Plan::default()
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Yields each section's offset, node bytes and end, checking its CID.
fn sections(car: &[u8]) -> Vec<(usize, &[u8], usize)> {
    let mut found = Vec::new();
    let mut offset = 59;
    while offset < car.len() {
        let (mut length, mut shift, mut at) = (0_usize, 0, offset);
        loop {
            let byte = car[at];
            at += 1;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        let node = &car[at + 36..at + length];
        assert_eq!(car[at..at + 4], [0x01, 0x71, 0x12, 0x20]);
        assert_eq!(
            car[at + 4..at + 36],
            Sha256::digest(node)[..],
            "CID of the section at {offset}"
        );
        found.push((offset, node, at + length));
        offset = at + length;
    }
    assert_eq!(offset, car.len(), "the last section ends with the file");
    found
}

#[test]
fn the_same_seed_writes_the_same_bytes_and_another_seed_others() {
    let (first, again, other) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    write(first.path(), &small()).unwrap();
    write(again.path(), &small()).unwrap();
    write(other.path(), &Plan { seed: 8, ..small() }).unwrap();
    assert_eq!(files(first.path()), files(again.path()));
    assert_ne!(files(first.path()), files(other.path()));
}

#[test]
fn every_section_is_whole_and_slot_ranges_end_at_block_sections() {
    let folder = tempfile::tempdir().unwrap();
    let summary = write(folder.path(), &small()).unwrap();
    let mut blocks = 0;
    for epoch in [2_u64, 3] {
        let stem = folder.path().join(epoch.to_string());
        let car = fs::read(stem.join(format!("epoch-{epoch}.car"))).unwrap();
        let ranges = fs::read(stem.join(format!("epoch-{epoch}-slot-ranges.raw"))).unwrap();
        assert_eq!(ranges.len(), 5_184_000);
        let ends: Vec<usize> = sections(&car)
            .iter()
            .filter(|(_, node, _)| node[1] == 2)
            .map(|section| section.2)
            .collect();
        let mut expected_offset = 59;
        let mut listed = Vec::new();
        for (position, range) in ranges.chunks(12).enumerate() {
            let offset = u64::from_le_bytes(range[..8].try_into().unwrap());
            let length = u32::from_le_bytes(range[8..].try_into().unwrap());
            if length > 0 {
                assert_eq!(offset, expected_offset);
                expected_offset = offset + u64::from(length);
                listed.push(usize::try_from(expected_offset).unwrap());
                let slot = epoch * 432_000 + position as u64;
                assert!(!(1_296_050..1_296_100).contains(&slot));
                blocks += u64::from((1_295_850..=1_296_249).contains(&slot));
            }
        }
        assert_eq!(listed, ends);
    }
    assert_eq!(
        blocks,
        summary
            .chunks
            .values()
            .map(|chunk| chunk.blocks)
            .sum::<u64>()
    );
}

#[test]
fn the_truth_counts_what_it_lists_and_every_trap_occurs() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        undecodable_per_mille: 30,
        ..small()
    };
    let summary = write(folder.path(), &plan).unwrap();
    let lines = |name: &str| {
        fs::read_to_string(folder.path().join("truth").join(name))
            .unwrap()
            .lines()
            .count() as u64
    };
    let events: u64 = summary.events.values().flat_map(BTreeMap::values).sum();
    assert_eq!(lines("events.jsonl"), events);
    assert_eq!(lines("quarantine.jsonl"), summary.traps["undecodable"]);
    assert!(lines("failed.jsonl") > 0);
    for (trap, times) in &summary.traps {
        assert!(
            *times > 0 || trap == "zero_block_times",
            "{trap} never occurs"
        );
    }
}

#[test]
fn a_large_archive_is_whole_counts_what_it_holds_and_repeats() {
    let (folder, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plan = LargePlan {
        bytes: 6_000_000,
        ..LargePlan::default()
    };
    let summary = write_large(folder.path(), &plan).unwrap();
    write_large(again.path(), &plan).unwrap();
    assert_eq!(files(folder.path()), files(again.path()));

    let stem = folder.path().join("3");
    let car = fs::read(stem.join("epoch-3.car")).unwrap();
    assert_eq!(car.len() as u64, summary.car_bytes);
    let mut kinds = BTreeMap::new();
    for (_, node, _) in sections(&car) {
        *kinds.entry(node[1]).or_insert(0_u64) += 1;
    }
    // The block after the chunk, with about 20 transactions, proves its end.
    assert_eq!(kinds[&2], summary.blocks + 1);
    assert!((18..=22).contains(&(kinds[&0] - summary.transactions)));
    assert_eq!((kinds[&3], kinds[&4]), (1, 1));

    let ranges = fs::read(stem.join("epoch-3-slot-ranges.raw")).unwrap();
    let listed: Vec<u64> = ranges
        .chunks(12)
        .enumerate()
        .filter(|(_, range)| range[8..] != [0; 4])
        .map(|(position, _)| 3 * 432_000 + position as u64)
        .collect();
    assert_eq!(listed.len() as u64, summary.blocks + 1);
    assert_eq!(listed[0], plan.first_slot);
    assert_eq!(*listed.last().unwrap(), plan.first_slot + 100_000);

    let orderbook = summary.programs["orderbook"];
    let percent = orderbook.transactions * 100 / summary.transactions;
    assert!((1..=3).contains(&percent), "{percent} %");
    assert!(orderbook.by_lookup_only > 0 && orderbook.events > orderbook.transactions);
    assert!(orderbook.events < orderbook.records);
}

#[test]
fn a_large_archive_that_fits_no_chunk_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for first_slot in [0, 1_300_001, 1_200_000] {
        let plan = LargePlan {
            first_slot,
            bytes: 1,
            ..LargePlan::default()
        };
        assert!(write_large(folder.path(), &plan).is_err());
    }
}
