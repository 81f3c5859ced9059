//! The archive is what its format says, by an own light walk, and the same seed writes the same bytes.

#![allow(clippy::unwrap_used, clippy::panic)] // Tests fail loudly.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use archive_sim::{LargePlan, Plan, ProgramSummary, write, write_large};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn small() -> Plan {
    Plan {
        seed: 7,
        empty_slots: Some((1_296_050, 1_296_100)),
        undecodable_percent: 3.0,
        ..Plan::of_range(1_295_800, 1_296_299, 100)
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

/// A node's kind: the first item of its array, whose head may be longer than it needs to be.
fn kind(node: &[u8]) -> u8 {
    node[match node[0] {
        0x80..=0x97 => 1,
        0x99 => 3,
        head => panic!("a node begins with {head:#x}"),
    }]
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
            .filter(|(_, node, _)| kind(node) == 2)
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
                blocks += u64::from((1_295_800..=1_296_299).contains(&slot));
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

fn truth(folder: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("truth").join(name)).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn the_truth_counts_what_it_lists() {
    let folder = tempfile::tempdir().unwrap();
    let summary = write(folder.path(), &small()).unwrap();
    let (events, quarantine) = (
        truth(folder.path(), "events.jsonl"),
        truth(folder.path(), "quarantine.jsonl"),
    );
    let total: u64 = summary.events.values().flat_map(BTreeMap::values).sum();
    assert_eq!(events.len() as u64, total);
    assert_eq!(quarantine.len() as u64, summary.traps["undecodable"]);
    assert!(!truth(folder.path(), "failed.jsonl").is_empty());
    assert_eq!(summary.chunks.len(), 5);
    for chunk in summary.chunks.values().chain([&summary.total]) {
        for (name, program) in &chunk.programs {
            assert_eq!(
                program.records,
                program.records_of_failed
                    + program.twins
                    + program.foreign
                    + program.events
                    + program.quarantined,
                "{name} in {}",
                chunk.start
            );
        }
        let of = |lines: &[Value], start: u64| {
            let slots = start..start + summary.chunk_slots;
            let inside = |line: &&Value| slots.contains(&line["slot"].as_u64().unwrap());
            lines.iter().filter(inside).count() as u64
        };
        if chunk != &summary.total {
            let sum = |of: fn(&ProgramSummary) -> u64| chunk.programs.values().map(of).sum::<u64>();
            assert_eq!(of(&events, chunk.start), sum(|program| program.events));
            assert_eq!(
                of(&quarantine, chunk.start),
                sum(|program| program.quarantined)
            );
        }
    }
}

#[test]
fn the_truth_is_in_order_and_every_key_and_signature_is_one_only() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &small()).unwrap();
    let mut signatures = BTreeMap::new();
    for program in ["orderbook", "vault"] {
        let keys: Vec<_> = truth(folder.path(), "events.jsonl")
            .iter()
            .filter(|line| line["program"] == program)
            .map(|line| {
                let number = |name: &str| line[name].as_u64().unwrap();
                let place = (number("slot"), number("txIndex"));
                let signature = line["signature"].as_str().unwrap().to_owned();
                assert_eq!(*signatures.entry(signature).or_insert(place), place);
                assert_eq!(line["failed"], false);
                assert!(line["blockTime"].as_u64() != Some(0));
                (place, number("eventIndex"))
            })
            .collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{program}");
    }
}

#[test]
fn every_trap_and_every_event_occurs() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        missing_metadata_percent: 1,
        ..Plan::of_range(1_295_000, 1_296_999, 100)
    };
    let summary = write(folder.path(), &plan).unwrap();
    for (trap, times) in &summary.traps {
        assert!(*times > 0, "{trap} never occurs");
    }
    for trap in [
        "lookup_only_matches",
        "events_after_truncation",
        "failed_with_events",
        "unusual_encodings",
    ] {
        assert!(summary.traps.contains_key(trap), "{trap} is not counted");
    }
    assert_eq!(summary.events["orderbook"].len(), 3);
    assert_eq!(summary.events["vault"].len(), 3);
    assert!(summary.total.unresolved_lookups > 0);
    assert!(summary.total.unresolved_lookups < summary.total.missing_metadata);
}

#[test]
fn the_demos_archive_has_two_epochs_an_empty_chunk_and_blocks_around_its_range() {
    let plan = Plan::default();
    let (first, last) = (plan.first_slot / 350, plan.last_slot / 350);
    assert_eq!((last - first + 1, (plan.last_slot + 1) % 350), (24, 0));
    assert!((first..=last).any(|chunk| chunk * 350 < 1_296_000 && 1_296_000 < (chunk + 1) * 350));
    assert_eq!(plan.empty_slots, Some((1_293_950, 1_294_300)));
    assert!(plan.from_slot < plan.first_slot && plan.last_slot + 1 < plan.to_slot);
}

#[test]
fn an_epoch_without_blocks_has_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        empty_slots: Some((431_981, 864_030)),
        ..Plan::of_range(431_990, 864_100, 432_000)
    };
    write(folder.path(), &plan).unwrap();
    for epoch in 0..3 {
        let car = fs::read(folder.path().join(format!("{epoch}/epoch-{epoch}.car"))).unwrap();
        let blocks = sections(&car)
            .iter()
            .filter(|section| kind(section.1) == 2)
            .count();
        assert_eq!(blocks == 0, epoch == 1, "epoch {epoch} has {blocks} blocks");
    }
}

#[test]
fn plans_that_contradict_themselves_are_refused() {
    let good = small();
    for wrong in [
        Plan {
            from_slot: good.first_slot,
            ..small()
        },
        Plan {
            to_slot: good.last_slot + 1,
            ..small()
        },
        Plan {
            empty_slots: Some((good.from_slot, good.first_slot)),
            ..small()
        },
        Plan {
            chunk_slots: 0,
            ..small()
        },
        Plan {
            undecodable_percent: f64::NAN,
            ..small()
        },
        Plan {
            votes: (3, 3),
            ..small()
        },
    ] {
        let folder = tempfile::tempdir().unwrap();
        assert!(write(folder.path(), &wrong).is_err(), "{wrong:?}");
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
        *kinds.entry(kind(node)).or_insert(0_u64) += 1;
    }
    // The block after the chunk, with about 20 transactions, proves its end.
    assert_eq!(kinds[&2], summary.blocks + 1);
    assert!((18..=22).contains(&(kinds[&0] - summary.transactions)));
    // The block after the chunk is in a Subset of its own.
    assert_eq!((kinds[&3], kinds[&4]), (2, 1));

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
