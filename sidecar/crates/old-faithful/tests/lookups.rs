//! Pushing the filter down to wire bytes and learned lookup tables misses nothing: every metadata of an archive is
//! decompressed here, with nothing but the parsers, and the scans must have found the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use archive_sim::{LargePlan, Plan};
use old_faithful::car::{SectionFeed, header_length};
use old_faithful::dataframe::{Frames, payload};
use old_faithful::metadata::Inflater;
use old_faithful::node::{Kind, TransactionNode};
use old_faithful::wire::WireTransaction;
use old_faithful::{Archive, ArchiveOptions, Metadata, Pubkey, ScanRequest, SlotRange, Verify};
use support::{collect, shared_data};

/// Which transactions mention a key, by slot and place in the block, and whether only loaded keys do.
type Mentions = BTreeMap<Pubkey, BTreeSet<(u64, u32, bool)>>;

/// Everything that any transaction of a CAR file mentions.
fn slow_path(car: &Path) -> Mentions {
    let bytes = std::fs::read(car).unwrap();
    let start = header_length(&bytes).unwrap().unwrap();
    let mut feed = SectionFeed::new(start as u64);
    let (mut frames, mut inflater) = (Frames::default(), Inflater::new());
    let (mut mentions, mut index) = (Mentions::new(), 0);
    feed.push(&bytes[start..], |section| {
        match Kind::of(section.node).unwrap() {
            Kind::DataFrame => {
                frames.insert(*section.hash, section.node);
            }
            Kind::Transaction => {
                let node = TransactionNode::parse(section.node).unwrap();
                let sent = payload(&node.data, &frames, |_, _| {}).unwrap();
                let transaction = WireTransaction::parse(&sent).unwrap();
                for key in transaction.static_keys {
                    let found = mentions.entry(*key).or_default();
                    found.insert((node.slot, index, false));
                }
                let stored = payload(&node.metadata, &frames, |_, _| {}).unwrap();
                let whole = inflater.inflate(&stored).unwrap().to_vec();
                let metadata = Metadata::parse(&whole).unwrap();
                for key in metadata.loaded() {
                    if !transaction.static_keys.contains(key) {
                        let found = mentions.entry(*key).or_default();
                        found.insert((node.slot, index, true));
                    }
                }
                index += 1;
            }
            Kind::Block => {
                frames.clear();
                index = 0;
            }
            _ => {}
        }
        Ok::<(), ()>(())
    })
    .unwrap();
    mentions
}

/// Scans for several sets of the most mentioned keys, one after another with what the scans before learned, and
/// compares. Returns how many matches by loaded keys only there were, and decompressions avoided.
async fn compare(folder: &Path, car: &str, range: SlotRange) -> (usize, u64) {
    let mentions = slow_path(&folder.join(car));
    // Keys that are mentioned by loaded keys only, at times; and programs of every frequency.
    let mut keys: Vec<&Pubkey> = mentions.keys().collect();
    keys.sort_by_key(|key| {
        let by_lookup = mentions[*key].iter().filter(|(_, _, lookup)| *lookup);
        std::cmp::Reverse(by_lookup.count())
    });
    let archive = Archive::open(
        folder.to_str().unwrap(),
        ArchiveOptions {
            segment_bytes: 100_000,
            ..ArchiveOptions::default()
        },
    )
    .unwrap();
    let mut by_lookup_only = 0;
    let sets = [
        &keys[..1],
        &keys[1..3],
        &keys[2..18],
        &keys[keys.len() - 5..],
    ];
    for (programs, verify) in
        sets.into_iter()
            .zip([Verify::Full, Verify::Matched, Verify::Off, Verify::Full])
    {
        let programs: Vec<Pubkey> = programs.iter().map(|key| **key).collect();
        let scanned = collect(archive.scan(ScanRequest {
            range,
            programs: programs.clone(),
            verify,
            checkpoint_slots: 0,
        }))
        .await;
        let mut found = Mentions::new();
        for transaction in scanned.blocks.iter().flat_map(|block| &block.matches) {
            for mention in &transaction.mentions {
                let program = programs[usize::from(mention.program)];
                let mentions = found.entry(program).or_default();
                mentions.insert((transaction.slot, transaction.index, mention.lookup_only));
            }
        }
        assert_eq!(scanned.done().unresolved_lookups, 0);
        for program in &programs {
            let expected: BTreeSet<_> = mentions[program]
                .iter()
                .filter(|(slot, ..)| range.contains(*slot))
                .copied()
                .collect();
            assert_eq!(found.remove(program).unwrap_or_default(), expected);
            by_lookup_only += expected.iter().filter(|(_, _, lookup)| *lookup).count();
        }
    }
    (
        by_lookup_only,
        archive.counters().decompressions_avoided.get(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_match_of_a_simulated_archive_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        seed: 3,
        demo: (2, 8),
        ..Plan::of_range(1_300_000, 1_300_199, 100)
    };
    archive_sim::write(folder.path(), &plan).unwrap();
    let range = SlotRange::new(1_300_000, 1_300_200);
    let (by_lookup_only, _) = compare(folder.path(), "3/epoch-3.car", range).await;
    assert!(by_lookup_only > 100, "{by_lookup_only}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_match_of_a_large_archive_with_thousands_of_tables_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let plan = LargePlan {
        bytes: 12_000_000,
        ..LargePlan::default()
    };
    archive_sim::write_large(folder.path(), &plan).unwrap();
    let range = SlotRange::new(1_300_000, 1_400_000);
    let (by_lookup_only, avoided) = compare(folder.path(), "3/epoch-3.car", range).await;
    assert!(
        by_lookup_only > 100 && avoided > 100,
        "{by_lookup_only}, {avoided}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_match_of_the_real_archive_is_missed() {
    let Some(data) = shared_data() else { return };
    for epoch in [800, 801] {
        let folder = data.join("archive").canonicalize().unwrap();
        let car = format!("{epoch}/epoch-{epoch}.car");
        let range = SlotRange::new(epoch * 432_000, (epoch + 1) * 432_000);
        let (by_lookup_only, avoided) = compare(&folder, &car, range).await;
        eprintln!(
            "epoch {epoch}: {by_lookup_only} matches by loaded keys only, {avoided} decompressions avoided"
        );
        assert!(by_lookup_only > 20, "epoch {epoch}: {by_lookup_only}");
    }
}
