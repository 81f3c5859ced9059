//! No bytes make a parser panic, and what is cut into pieces is put together the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

#[path = "support/build.rs"]
#[allow(dead_code, unreachable_pub)]
mod build;

use bytes::Bytes;
use old_faithful::car::{SectionFeed, header_length, uvarint};
use old_faithful::cbor::Cursor;
use old_faithful::compact::{Bucket, CompactHeader};
use old_faithful::dataframe::{Frames, check_hash, payload};
use old_faithful::index::{SLOT_RANGES_BYTES, SlotIndex};
use old_faithful::metadata::{Format, Inflater, LoadedKeys, Metadata};
use old_faithful::node::{
    BlockNode, DataFrame, EntryNode, EpochNode, Kind, RewardsNode, SubsetNode, TransactionNode,
};
use old_faithful::wire::WireTransaction;
use proptest::prelude::*;

use build::{Sent, array, byte_string, compress, link, metadata, null, number, section};

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..400)
}

/// Bytes that are right but for a few.
fn nearly(right: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = right.len();
    let changes = proptest::collection::vec((0..length, any::<u8>()), 0..4);
    (changes, 0..=length).prop_map(move |(changes, cut)| {
        let mut bytes = right.clone();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        // Every other time it is also cut off.
        if cut % 2 == 0 {
            bytes.truncate(cut);
        }
        bytes
    })
}

fn sent() -> Sent {
    Sent {
        signature: 1,
        keys: vec![[2; 32], [3; 32]],
        instructions: vec![(1, vec![0, 1], vec![9; 200]), (1, vec![], vec![])],
        lookups: Some(vec![([4; 32], vec![1, 2], vec![3])]),
    }
}

fn read_nodes(bytes: &[u8]) {
    let _ = Kind::of(bytes);
    let _ = TransactionNode::parse(bytes).map(|node| {
        let _ = payload(&node.data, &Frames::default(), |_, _| {});
        let _ = payload(&node.metadata, &Frames::default(), |_, _| {});
    });
    let _ = EntryNode::parse(bytes).map(|node| node.transactions.iter().count());
    let _ = BlockNode::parse(bytes).map(|node| node.entries.iter().count());
    let _ = SubsetNode::parse(bytes).map(|node| node.blocks.iter().count());
    let _ = EpochNode::parse(bytes).map(|node| node.subsets.iter().count());
    let _ = RewardsNode::parse(bytes);
    let _ = DataFrame::parse(bytes);
    let _ = Cursor::new(bytes).skip();
}

fn read_transaction(bytes: &[u8]) {
    if let Ok(transaction) = WireTransaction::parse(bytes) {
        assert_eq!(
            transaction.instructions().count(),
            usize::from(transaction.instruction_count)
        );
        let loaded: usize = transaction
            .lookups()
            .map(|lookup| lookup.writable.len() + lookup.readonly.len())
            .sum();
        assert_eq!(loaded, transaction.loaded_keys());
        let _ = transaction.is_vote();
    }
}

fn read_metadata(bytes: &[u8]) {
    let mut inflater = Inflater::new();
    if let Ok(inflated) = inflater.inflate(bytes) {
        let _ = Format::of(inflated);
        let _ = LoadedKeys::default().read(inflated);
        let _ = Metadata::parse(inflated);
    }
}

/// Metadata in bincode: an error, balances, inner instructions, logs, token balances, of the given layout.
fn bincode(stack_heights: bool, texts: usize, fields: usize) -> Vec<u8> {
    let count = |items: u64| items.to_le_bytes().to_vec();
    let text = |text: &str| [count(text.len() as u64), text.as_bytes().to_vec()].concat();
    let start = [
        [1_u32, 8].map(u32::to_le_bytes).concat(),
        vec![3],
        [25_u32, 6000].map(u32::to_le_bytes).concat(),
        [5000_u64, 1, 7, 1, 6].map(u64::to_le_bytes).concat(),
    ]
    .concat();
    let height = if stack_heights {
        vec![1, 2, 0, 0, 0]
    } else {
        Vec::new()
    };
    let instruction = [vec![1, 2, 0, 1, 3, 7, 8, 9], height].concat();
    let inner = [vec![1], count(1), vec![4], count(2), instruction.repeat(2)].concat();
    let logs = [vec![1], count(2), text("Program log: a"), text("b")].concat();
    let balance = [
        vec![0],
        text("mint"),
        1.5_f64.to_le_bytes().to_vec(),
        vec![9],
        text("1500000000"),
        text("owner").repeat(texts),
    ]
    .concat();
    let balances = [vec![1], count(2), balance.repeat(2)].concat();
    let rewards = vec![0];
    [start, inner, logs, balances.clone(), balances, rewards][..=fields].concat()
}

/// An index of two buckets without entries.
fn compact_header() -> Vec<u8> {
    let mut rest = 36_u64.to_le_bytes().to_vec();
    rest.extend(2_u32.to_le_bytes());
    rest.extend(b"\x01\x01\x04kind\x0bslot-to-cid");
    [
        &b"compiszd"[..],
        &u32::try_from(rest.len()).unwrap().to_le_bytes(),
        &rest,
    ]
    .concat()
}

proptest! {
    #[test]
    fn no_bytes_make_a_compact_index_panic(
        bytes in some_bytes(),
        header in nearly(compact_header()),
        table in proptest::collection::vec(any::<u8>(), 0..64),
        key in any::<u64>(),
    ) {
        let _ = CompactHeader::parse(&bytes, 36);
        if let Ok(header) = CompactHeader::parse(&header, 36) {
            let number = header.bucket_of(&key.to_le_bytes());
            prop_assert!(number < header.buckets);
            if let Ok(bucket) = Bucket::parse(&header, &table, number, 1 << 40) {
                prop_assert!(bucket.bytes <= 16 << 20);
                let _ = bucket.find(&header, &bytes, &key.to_le_bytes());
            }
        }
    }

    #[test]
    fn nearly_right_bincode_makes_no_parser_panic(
        bytes in nearly(bincode(false, 1, 5)),
        with_heights in nearly(bincode(true, 2, 5)),
    ) {
        read_metadata(&bytes);
        read_metadata(&with_heights);
    }

    #[test]
    fn no_bincode_makes_a_parser_panic(mut bytes in some_bytes(), failed in any::<bool>()) {
        bytes.splice(0..0, [u8::from(failed), 0, 0, 0]);
        read_metadata(&bytes);
    }

    #[test]
    fn bincode_reads_alike_in_every_layout(
        stack_heights in any::<bool>(),
        texts in 0_usize..3,
        fields in 0_usize..6,
    ) {
        let bytes = bincode(stack_heights, texts, fields);
        prop_assert_eq!(Format::of(&bytes), Format::Bincode);
        let metadata = Metadata::parse(&bytes).unwrap();
        prop_assert_eq!(metadata.err, Some(&bytes[4..17]));
        prop_assert_eq!((metadata.fee, metadata.inner_recorded), (5000, fields > 0));
        prop_assert_eq!(metadata.is_recorded(), fields > 1);
        let logs = (fields > 1).then(|| vec![&b"Program log: a"[..], b"b"]);
        prop_assert_eq!(&metadata.logs, &logs);
        if fields > 0 {
            prop_assert_eq!(metadata.inner_instructions.len(), 2);
            let second = metadata.inner_instructions[1];
            prop_assert_eq!((second.top_level_index, second.program_index), (4, 1));
            prop_assert_eq!((second.accounts, second.data), (&[0, 1][..], &[7, 8, 9][..]));
            prop_assert_eq!(second.stack_height, stack_heights.then_some(2));
        }
        // A byte too many, or too few inside a field, fits no layout.
        let longer = [&bytes[..], &[7]].concat();
        prop_assert!(Metadata::parse(&longer).is_err());
        prop_assert!(Metadata::parse(&bytes[..bytes.len() - 1]).is_err() || fields == 5);
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in some_bytes()) {
        read_nodes(&bytes);
        read_transaction(&bytes);
        read_metadata(&bytes);
        let _ = header_length(&bytes);
        let _ = uvarint(&bytes);
        let mut feed = SectionFeed::new(0);
        let _ = feed.push::<()>(&bytes, |_| Ok(()));
        let _ = SlotIndex::parse(0, Bytes::from(bytes), 59, 1000);
    }

    #[test]
    fn nearly_right_transactions_make_no_parser_panic(bytes in nearly(sent().bytes())) {
        read_transaction(&bytes);
    }

    #[test]
    fn nearly_right_nodes_make_no_parser_panic(
        bytes in nearly(build::transaction(&sent(), &metadata(&[[5; 32]], &[[6; 32]]), 300, 7))
    ) {
        read_nodes(&bytes);
    }

    #[test]
    fn nearly_right_blocks_make_no_parser_panic(
        bytes in nearly(build::block_node(300, 299, &[link(&[1; 32]), link(&[2; 32])]))
    ) {
        read_nodes(&bytes);
    }

    #[test]
    fn nearly_right_metadata_makes_no_parser_panic(
        bytes in nearly(metadata(&[[5; 32]], &[[6; 32]])),
        packed in nearly(compress(&metadata(&[[5; 32]; 9], &[[6; 32]; 9])))
    ) {
        read_metadata(&bytes);
        read_metadata(&packed);
    }

    #[test]
    fn nearly_right_headers_make_no_parser_panic(bytes in nearly(build::header())) {
        let _ = header_length(&bytes);
    }

    #[test]
    fn sections_are_the_same_however_bytes_arrive(
        nodes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..12),
        cuts in proptest::collection::vec(1_usize..200, 1..40),
    ) {
        let bytes: Vec<u8> = nodes.iter().flat_map(|node| section(node)).collect();
        let mut feed = SectionFeed::new(59);
        let (mut seen, mut rest) = (Vec::new(), bytes.as_slice());
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            feed.push::<()>(now, |section| {
                assert_eq!(section.hash, &build::hash(section.node));
                seen.push((section.offset, section.node.to_vec()));
                Ok(())
            })
            .unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(feed.is_at_boundary());
        prop_assert_eq!(feed.offset(), 59 + bytes.len() as u64);
        let mut offset = 59;
        for ((at, node), right) in seen.iter().zip(&nodes) {
            prop_assert_eq!((*at, node), (offset, right));
            offset += section(right).len() as u64;
        }
        prop_assert_eq!(seen.len(), nodes.len());
    }

    #[test]
    fn a_payload_in_frames_is_put_together(
        bytes in proptest::collection::vec(any::<u8>(), 1..2000),
        size in 1_usize..200,
        split in 0_usize..12,
    ) {
        let (first, frames) = chain(&bytes, size, split, true);
        let frame = DataFrame::parse(&first).unwrap();
        let mut visited = 0;
        let whole = payload(&frame, &frames, |_, _| visited += 1).unwrap();
        prop_assert_eq!(whole.as_ref(), bytes.as_slice());
        prop_assert_eq!(visited + 1, bytes.chunks(size).count());
    }

    #[test]
    fn an_index_of_any_entries_makes_no_parser_panic(
        entries in proptest::collection::vec((0_usize..432_000, 0_u64..3000, 0_u32..200), 0..20)
    ) {
        let mut epoch = build::Epoch::new(3, 0);
        for (slot, offset, length) in &entries {
            epoch.list(3 * build::SLOTS + *slot as u64, *offset, *length);
        }
        if let Ok(index) = SlotIndex::parse(3, Bytes::from(epoch.index), 59, 2000) {
            let mut slot = 0;
            let mut end = 59;
            while let Some(block) = index.next_block(slot) {
                prop_assert!(block.offset >= end && block.end() <= 2000);
                (slot, end) = (block.slot + 1, block.end());
            }
        }
    }
}

/// A payload in frames of `size` bytes. The first frame links to `split` frames, the last of these to the rest.
fn chain(bytes: &[u8], size: usize, split: usize, right: bool) -> (Vec<u8>, Frames) {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = if right { hash } else { hash ^ 1 };
    let signed = if hash >> 63 == 0 {
        number(hash)
    } else {
        build::negative(!hash)
    };
    let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
    let frame = |index: usize, next: Vec<u8>| {
        array(&[
            number(6),
            signed.clone(),
            number(index as u64),
            number(pieces.len() as u64),
            byte_string(pieces[index]),
            next,
        ])
    };
    let mut frames = Frames::default();
    let links = |range: std::ops::Range<usize>, nodes: &[Vec<u8>]| {
        let links: Vec<Vec<u8>> = range.map(|at| link(&build::hash(&nodes[at]))).collect();
        array(&links)
    };
    // Nodes are made from the last to the first, for links need hashes.
    let mut nodes = vec![Vec::new(); pieces.len()];
    let split = if split == 0 {
        pieces.len() - 1
    } else {
        split.min(pieces.len() - 1)
    };
    for index in (0..pieces.len()).rev() {
        let next = if index == 0 && pieces.len() > 1 {
            links(1..split + 1, &nodes)
        } else if index == split && split + 1 < pieces.len() {
            links(split + 1..pieces.len(), &nodes)
        } else {
            null()
        };
        nodes[index] = frame(index, next);
        if index > 0 {
            frames.insert(build::hash(&nodes[index]), &nodes[index]);
        }
    }
    (nodes.swap_remove(0), frames)
}

#[test]
fn a_payload_whose_hash_differs_is_refused() {
    let (first, frames) = chain(&[7; 100], 30, 2, false);
    let frame = DataFrame::parse(&first).unwrap();
    assert!(payload(&frame, &frames, |_, _| {}).is_err());
    let (first, frames) = chain(&[7; 100], 30, 2, true);
    let frame = DataFrame::parse(&first).unwrap();
    assert!(
        payload(&frame, &Frames::default(), |_, _| {}).is_err(),
        "a frame is missing"
    );
    assert!(payload(&frame, &frames, |_, _| {}).is_ok());
}

#[test]
fn both_hashes_of_the_archive_are_known() {
    // The check values of both functions for the digits 1 to 9.
    let digits = b"123456789";
    assert!(
        check_hash(Some(0xb909_56c7_75a4_1001), digits).is_ok(),
        "CRC-64/ISO"
    );
    assert!(check_hash(Some(0xb909_56c7_75a4_1002), digits).is_err());
    assert!(check_hash(None, digits).is_ok());
    assert!(
        check_hash(Some(0xaf63_dc4c_8601_ec8c), b"a").is_ok(),
        "FNV-1a 64"
    );
}

#[test]
fn heads_need_not_be_minimal_and_fields_may_be_absent() {
    // An array head of three bytes, a kind of two, a hash that is negative, a frame of five elements.
    let frame = [
        &[0x99, 0, 5, 0x18, 6, 0x20, 0xf6, 0xf6][..],
        &byte_string(b"abc"),
    ]
    .concat();
    let parsed = DataFrame::parse(&frame).unwrap();
    assert_eq!((parsed.data, parsed.hash), (&b"abc"[..], Some(u64::MAX)));
    let node = [&[0x99, 0, 4, 0][..], &frame, &frame, &[0x19, 0, 9]].concat();
    assert_eq!(Kind::of(&node), Ok(Kind::Transaction));
    let parsed = TransactionNode::parse(&node).unwrap();
    assert_eq!((parsed.slot, parsed.index), (9, None));
    let with_null = array(&[number(0), frame.clone(), frame, number(9), null()]);
    assert_eq!(TransactionNode::parse(&with_null).unwrap().index, None);
}

#[test]
fn an_index_of_another_size_is_refused() {
    for size in [0, 12, SLOT_RANGES_BYTES - 1, SLOT_RANGES_BYTES + 12] {
        assert!(SlotIndex::parse(0, Bytes::from(vec![0; size]), 59, 100).is_err());
    }
    assert!(SlotIndex::parse(0, Bytes::from(vec![0; SLOT_RANGES_BYTES]), 59, 100).is_ok());
}
