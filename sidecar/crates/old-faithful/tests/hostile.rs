//! Bytes of strangers, parser by parser: arbitrary ones, and right ones with flipped bits, cuts, repeated or lost runs and length fields that
//! lie. None makes a parser panic or allocate more than its input warrants, and every error says what is wrong, and where.
//! `PROPTEST_CASES` says how many of either kind each parser gets. One test, because it measures the memory of its process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

#[path = "support/build.rs"]
#[allow(dead_code, unreachable_pub)]
mod build;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use archive_sim::{Indexes, MetadataFormat, Pieces as Split, Plan, SplitTool};
use bytes::Bytes;
use old_faithful::Malformed;
use old_faithful::car::{FeedError, SectionFeed, header_length};
use old_faithful::compact::{Bucket, CompactHeader};
use old_faithful::dataframe::{Frames, MAXIMUM_PAYLOAD_BYTES, payload};
use old_faithful::index::SlotIndex;
use old_faithful::metadata::{Inflater, LoadedKeys, Metadata};
use old_faithful::node::{
    BlockNode, DataFrame, EntryNode, EpochNode, Kind, RewardsNode, SubsetNode, TransactionNode,
};
use old_faithful::pieces::Pieces;
use old_faithful::wire::WireTransaction;
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const EPOCH: u64 = 3;

/// What happens to right bytes.
#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Cut(Index),
    /// A number written over what is there, as wide as many bytes: mostly over a length, sooner or later.
    Number(Index, usize, u64),
    Repeat(Index, Index),
    Lose(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let number = prop_oneof![
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(1 << 63),
        Just(1 << 31),
        Just(1 << 20),
        Just(0),
        any::<u64>(),
    ];
    prop_oneof![
        3 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => any::<Index>().prop_map(Change::Cut),
        3 => (any::<Index>(), 1..=8_usize, number)
            .prop_map(|(at, width, number)| Change::Number(at, width, number)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Repeat(from, to)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Lose(from, to)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let run = |from: &Index, to: &Index, length: usize| {
        let (from, to) = (from.index(length), to.index(length));
        from.min(to)..from.max(to)
    };
    match change {
        Change::Flip(at, bit) => {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        Change::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Change::Number(at, width, number) => {
            let at = at.index(bytes.len());
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
        Change::Repeat(from, to) => {
            let run = run(from, to, bytes.len());
            let repeated = bytes[run.clone()].to_vec();
            bytes.splice(run.start..run.start, repeated);
        }
        Change::Lose(from, to) => {
            let run = run(from, to, bytes.len());
            bytes.drain(run);
        }
    }
}

/// A parser, what it reads, and what it may allocate beyond four times its input, in bytes.
struct Parser {
    name: &'static str,
    right: Vec<Vec<u8>>,
    parse: fn(&[u8]) -> Result<(), String>,
    room: usize,
    /// One case of so many: reading millions of bytes takes its time.
    one_of: u32,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn read_sections(bytes: &[u8]) -> Result<(), String> {
    let mut feed = SectionFeed::new(59);
    let pushed = feed.push::<Malformed>(bytes, |section| Kind::of(section.node).map(|_| ()));
    pushed.map_err(|error| match error {
        FeedError::Car(offset, fault) => {
            assert!((59..=59 + bytes.len() as u64).contains(&offset));
            format!("{fault} (byte {offset})")
        }
        FeedError::Receiver(malformed) => text(malformed),
    })
}

fn read_node(bytes: &[u8]) -> Result<(), String> {
    let parsed = match Kind::of(bytes).map_err(text)? {
        Kind::Transaction => TransactionNode::parse(bytes).map(|node| {
            let _ = payload(&node.data, &Frames::default(), |_, _| {});
            let _ = payload(&node.metadata, &Frames::default(), |_, _| {});
        }),
        Kind::Entry => EntryNode::parse(bytes).map(|node| _ = node.transactions.iter().count()),
        Kind::Block => BlockNode::parse(bytes).map(|node| _ = node.entries.iter().count()),
        Kind::Subset => SubsetNode::parse(bytes).map(|node| _ = node.blocks.iter().count()),
        Kind::Epoch => EpochNode::parse(bytes).map(|node| _ = node.subsets.iter().count()),
        Kind::Rewards => RewardsNode::parse(bytes).map(|_| ()),
        Kind::DataFrame => DataFrame::parse(bytes).map(|_| ()),
    };
    parsed.map_err(|malformed| {
        assert!(malformed.at <= bytes.len(), "{malformed}");
        text(malformed)
    })
}

fn read_transaction(bytes: &[u8]) -> Result<(), String> {
    let transaction = WireTransaction::parse(bytes).map_err(text)?;
    let instructions = transaction.instructions().count();
    assert_eq!(instructions, usize::from(transaction.instruction_count));
    assert!(transaction.lookups().count() <= bytes.len());
    Ok(())
}

fn read_metadata(bytes: &[u8]) -> Result<(), String> {
    let mut loaded = LoadedKeys::default();
    let counted = loaded.read(bytes);
    let owned = Bytes::copy_from_slice(bytes);
    let parsed = Metadata::parse(&owned).map_err(text);
    assert!(loaded.iter().count() * 32 <= bytes.len());
    parsed.map(|_| ()).and(counted.map_err(text))
}

fn read_compressed(bytes: &[u8]) -> Result<(), String> {
    let mut inflater = Inflater::new();
    let whole = inflater.inflate(bytes).map_err(text)?;
    assert!(whole.len() <= MAXIMUM_PAYLOAD_BYTES.max(bytes.len()));
    Ok(())
}

fn read_index(bytes: &[u8], value_bytes: usize) -> Result<(), String> {
    let header = CompactHeader::parse(&bytes[..bytes.len().min(4096)], value_bytes)?;
    let table = usize::try_from(header.table_offset).unwrap();
    let table_end = table + usize::try_from(header.table_bytes()).unwrap();
    let table = bytes.get(table..table_end).unwrap_or_default();
    for number in 0..header.buckets.min(64) {
        let bucket = Bucket::parse(&header, table, number, bytes.len() as u64)?;
        let start = usize::try_from(bucket.offset).unwrap();
        let end = start + usize::try_from(bucket.bytes).unwrap();
        let entries = bytes.get(start..end).unwrap_or_default();
        for key in 0..50_u64 {
            if let Some(found) = bucket.find(&header, entries, &key.to_le_bytes()) {
                assert_eq!(found.len(), value_bytes);
            }
        }
    }
    Ok(())
}

fn read_slot_ranges(bytes: &[u8]) -> Result<(), String> {
    let index = SlotIndex::parse(EPOCH, Bytes::copy_from_slice(bytes), 59, 1 << 30)?;
    let (mut slot, mut end) = (EPOCH * 432_000, 59);
    while let Some(block) = index.next_block(slot) {
        assert!(block.offset >= end && block.end() <= 1 << 30);
        (slot, end) = (block.slot + 1, block.end());
    }
    Ok(())
}

fn read_header(bytes: &[u8]) -> Result<(), String> {
    match header_length(bytes) {
        Ok(length) => {
            assert!(length.is_none_or(|length| length <= bytes.len()));
            Ok(())
        }
        Err(fault) => Err(format!("{fault} (byte 0)")),
    }
}

/// A small epoch, as it is written.
fn write(folder: &Path, metadata: MetadataFormat, pieces: Option<Split>) {
    let plan = Plan {
        seed: 6,
        unusual_percent: 20,
        metadata,
        indexes: Indexes::Both,
        pieces,
        ..Plan::of_range(1_300_000, 1_300_019, 20)
    };
    archive_sim::write(folder, &plan).unwrap();
}

/// Up to forty nodes of each kind of a CAR file, and the first thousands of bytes of its sections.
fn nodes_of(car: &[u8]) -> (BTreeMap<String, Vec<Vec<u8>>>, Vec<u8>) {
    let start = header_length(car).unwrap().unwrap();
    let mut nodes: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    let mut feed = SectionFeed::new(start as u64);
    feed.push::<()>(&car[start..], |section| {
        let kind = format!("{:?}", Kind::of(section.node).unwrap());
        let of_kind = nodes.entry(kind).or_default();
        if of_kind.len() < 40 {
            of_kind.push(section.node.to_vec());
        }
        Ok(())
    })
    .unwrap();
    (nodes, car[start..start + 6_000].to_vec())
}

/// The transactions and the metadata, as stored, of nodes whose payloads have one frame.
fn payloads(nodes: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut sent, mut stored) = (Vec::new(), Vec::new());
    for node in nodes {
        let node = TransactionNode::parse(node).unwrap();
        for (frame, into) in [(&node.data, &mut sent), (&node.metadata, &mut stored)] {
            if let Ok(whole) = payload(frame, &Frames::default(), |_, _| {}) {
                into.push(whole.to_vec());
            }
        }
    }
    (sent, stored)
}

fn inflated(stored: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut inflater = Inflater::new();
    let all = stored.iter();
    all.map(|stored| inflater.inflate(stored).unwrap().to_vec())
        .collect()
}

fn parsers() -> Vec<Parser> {
    let folder = tempfile::tempdir().unwrap();
    let split = Split {
        tool: SplitTool::DataPrep,
        bytes: 20_000,
    };
    let epoch = folder.path().join(EPOCH.to_string());
    write(folder.path(), MetadataFormat::Bincode, None);
    let car = fs::read(epoch.join("epoch-3.car")).unwrap();
    let bincode = inflated(&payloads(&nodes_of(&car).0["Transaction"]).1);
    write(folder.path(), MetadataFormat::Protobuf, None);
    let car = fs::read(epoch.join("epoch-3.car")).unwrap();
    let (nodes, sections) = nodes_of(&car);
    assert_eq!(nodes.len(), 7, "a kind is missing: {:?}", nodes.keys());
    let (sent, stored) = payloads(&nodes["Transaction"]);
    let protobuf = inflated(&stored);
    let ranges = fs::read(epoch.join("epoch-3-slot-ranges.raw")).unwrap();
    let index = |kind: &str| {
        let mut files = fs::read_dir(&epoch).unwrap().map(|file| file.unwrap());
        let file = files.find(|file| file.file_name().to_str().unwrap().contains(kind));
        fs::read(file.unwrap().path()).unwrap()
    };
    let (slots, cids) = (index("slot-to-cid"), index("cid-to-offset"));
    write(folder.path(), MetadataFormat::Protobuf, Some(split));
    let pieces = fs::read(epoch.join("metadata.yaml")).unwrap();

    let parser = |name, right, parse, room| Parser {
        name,
        right,
        parse,
        room,
        one_of: 1,
    };
    // A parsed line or instruction is larger than the two bytes it may be of.
    let of_metadata = 256 << 10;
    vec![
        parser(
            "CAR header",
            vec![car[..59].to_vec()],
            read_header as fn(&[u8]) -> _,
            1 << 10,
        ),
        parser("sections", vec![sections], read_sections, 16 << 10),
        parser(
            "nodes",
            nodes.into_values().flatten().collect(),
            read_node,
            64 << 10,
        ),
        parser("wire transactions", sent, read_transaction, 16 << 10),
        parser("metadata, protobuf", protobuf, read_metadata, of_metadata),
        parser("metadata, bincode", bincode, read_metadata, of_metadata),
        parser(
            "metadata, compressed",
            stored,
            read_compressed,
            MAXIMUM_PAYLOAD_BYTES + (1 << 20),
        ),
        parser(
            "slot-to-cid",
            vec![slots],
            |bytes| read_index(bytes, 36),
            64 << 10,
        ),
        parser(
            "cid-to-offset-and-size",
            vec![cids],
            |bytes| read_index(bytes, 9),
            64 << 10,
        ),
        Parser {
            one_of: 100,
            ..parser("slot-ranges", vec![ranges], read_slot_ranges, 16 << 10)
        },
        parser(
            "pieces",
            vec![pieces],
            |bytes| Pieces::parse(bytes).map(|_| ()),
            256 << 10,
        ),
    ]
}

#[test]
fn no_bytes_panic_or_allocate_beyond_the_limits_and_errors_say_where() {
    for parser in parsers() {
        let Parser {
            name,
            right,
            parse,
            room,
            one_of,
        } = &parser;
        for bytes in right {
            assert_eq!(parse(bytes), Ok(()), "{name}: right bytes are refused");
        }
        let check = |bytes: &[u8]| {
            let before = MEMORY.current_usage();
            MEMORY.reset_peak_usage();
            let parsed = parse(bytes);
            let allocated = MEMORY.peak_usage().saturating_sub(before);
            let most = 4 * bytes.len() + room;
            prop_assert!(
                allocated <= most,
                "{name}: {} bytes made it allocate {allocated}, more than {most}",
                bytes.len()
            );
            if let Err(reason) = &parsed {
                // Where: a byte, a slot, a line, a piece, or the size that is wrong.
                let place = reason.bytes().any(|byte| byte.is_ascii_digit());
                let named = ["Pieces", "car", "it "]
                    .iter()
                    .any(|word| reason.contains(word));
                prop_assert!(place || *name == "pieces" && named, "{name}: {reason}");
                prop_assert!(
                    reason.len() > 15 && reason.len() < 4_000,
                    "{name}: {reason}"
                );
            }
            Ok(parsed.is_err())
        };
        let config = Config {
            failure_persistence: None,
            ..Config::default()
        };
        let cases = (config.cases / one_of).max(4);
        let config = Config { cases, ..config };
        let refused = std::cell::Cell::new(0_u32);
        let count = |is_refused: bool| refused.set(refused.get() + u32::from(is_refused));
        let arbitrary = prop::collection::vec(any::<u8>(), 0..600);
        TestRunner::new(config.clone())
            .run(&arbitrary, |bytes| {
                count(check(&bytes)?);
                Ok(())
            })
            .unwrap();
        let nearly = (any::<Index>(), prop::collection::vec(change(), 1..4));
        TestRunner::new(config)
            .run(&nearly, |(which, changes)| {
                let mut bytes = which.get(right).clone();
                for change in &changes {
                    apply(&mut bytes, change);
                }
                count(check(&bytes)?);
                Ok(())
            })
            .unwrap();
        eprintln!(
            "{name}: {cases} arbitrary and {cases} nearly right inputs, {} refused",
            refused.get()
        );
    }
}
