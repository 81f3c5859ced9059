//! Extraction over real transactions, as an RPC node reports them: every event that Anchor's own decoder
//! found must be among the records, and the sample's logs must hold nothing odd.
//!
//! The data is other people's and not part of the repository: where it is absent the test says so and passes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use anchor_events::{
    Address, ExtractCounts, InnerView, InstructionView, Source, TransactionView, extract,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

fn shared(path: &str) -> Option<String> {
    let root = std::env::var_os("UHO_SHARED_DATA").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../../../shared/data"
            ))
        },
        PathBuf::from,
    );
    let file = root.join(path);
    let text = std::fs::read_to_string(&file).ok();
    if text.is_none() {
        eprintln!("skipped: {} is not here", file.display());
    }
    text
}

/// The wire form: static keys, then (program index, data) per instruction.
fn parse_wire(wire: &[u8]) -> (Vec<Address>, Vec<(u8, Vec<u8>)>) {
    let mut at = 0;
    let short = |at: &mut usize| {
        let (mut value, mut shift) = (0usize, 0);
        loop {
            let byte = wire[*at];
            *at += 1;
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    let signatures = short(&mut at);
    at += 64 * signatures + usize::from(wire[at + 64 * signatures] >= 0x80) + 3;
    let keys = short(&mut at);
    let keys: Vec<Address> = (0..keys)
        .map(|_| {
            at += 32;
            wire[at - 32..at].try_into().unwrap()
        })
        .collect();
    at += 32;
    let instructions = (0..short(&mut at))
        .map(|_| {
            let program = wire[at];
            at += 1;
            at += short(&mut at);
            let length = short(&mut at);
            at += length;
            (program, wire[at - length..at].to_vec())
        })
        .collect();
    (keys, instructions)
}

fn address(text: &str) -> Address {
    bs58::decode(text).into_vec().unwrap().try_into().unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// (program, source, signature, payload)
type Said = (Address, bool, String, Vec<u8>);

fn said_by(transaction: &Value, programs: &[Address], odd: &mut ExtractCounts) -> Vec<Said> {
    let meta = &transaction["meta"];
    let wire = STANDARD
        .decode(transaction["transaction"][0].as_str().unwrap())
        .unwrap();
    let (mut account_keys, top_level) = parse_wire(&wire);
    for side in ["writable", "readonly"] {
        let loaded = list(&meta["loadedAddresses"], side).iter();
        account_keys.extend(loaded.map(|key| address(key.as_str().unwrap())));
    }
    let inner: Vec<(u8, u8, Vec<u8>)> = list(meta, "innerInstructions")
        .iter()
        .flat_map(|group| {
            let index = u8::try_from(group["index"].as_u64().unwrap()).unwrap();
            list(group, "instructions").iter().map(move |call| {
                let program = u8::try_from(call["programIdIndex"].as_u64().unwrap()).unwrap();
                (
                    index,
                    program,
                    bs58::decode(call["data"].as_str().unwrap())
                        .into_vec()
                        .unwrap(),
                )
            })
        })
        .collect();
    let instructions: Vec<_> = top_level
        .iter()
        .map(|(program_index, data)| InstructionView {
            program_index: *program_index,
            accounts: &[],
            data,
        })
        .collect();
    let inner_instructions: Vec<_> = inner
        .iter()
        .map(|(top_level_index, program_index, data)| InnerView {
            top_level_index: *top_level_index,
            program_index: *program_index,
            accounts: &[],
            data,
        })
        .collect();
    let logs: Vec<&[u8]> = list(meta, "logMessages")
        .iter()
        .map(|line| line.as_str().unwrap().as_bytes())
        .collect();
    let signature = transaction["signature"].as_str().unwrap();
    let view = TransactionView {
        slot: transaction["slot"].as_u64().unwrap(),
        tx_index: 0,
        epoch: 800,
        archive_offset: 0,
        signature: &[0; 64],
        block_time: None,
        failed: !meta["err"].is_null(),
        account_keys: &account_keys,
        instructions: &instructions,
        inner_instructions: &inner_instructions,
        logs: Some(&logs),
    };
    let mut said = Vec::new();
    for (nth, program) in programs.iter().enumerate() {
        let extracted = extract(&view, program);
        if nth == 0 {
            odd.add(&extracted.counts);
        } else {
            odd.malformed_data_lines += extracted.counts.malformed_data_lines;
        }
        for record in extracted.records {
            said.push((
                *program,
                record.source == Source::Cpi,
                signature.to_owned(),
                record.payload,
            ));
        }
    }
    said
}

#[test]
fn every_event_that_anchors_own_decoder_found_is_a_record() {
    let (Some(transactions), Some(oracle)) = (
        shared("rpc/transactions-800.jsonl"),
        shared("oracle/events-800.jsonl"),
    ) else {
        return;
    };
    let oracle: Vec<Value> = oracle
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut programs: Vec<Address> = oracle
        .iter()
        .map(|event| address(event["program"].as_str().unwrap()))
        .collect();
    programs.sort_unstable();
    programs.dedup();

    let mut odd = ExtractCounts::default();
    let mut records: BTreeMap<Said, usize> = BTreeMap::new();
    for line in transactions.lines() {
        let transaction: Value = serde_json::from_str(line).unwrap();
        for said in said_by(&transaction, &programs, &mut odd) {
            *records.entry(said).or_default() += 1;
        }
    }
    assert!(oracle.len() >= 65);
    for event in &oracle {
        let hex = event["hex"].as_str().unwrap();
        let payload = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        let said = (
            address(event["program"].as_str().unwrap()),
            event["source"] == "cpi",
            event["sig"].as_str().unwrap().to_owned(),
            payload.collect::<Vec<u8>>(),
        );
        // Each event of the oracle needs a record of its own.
        let left = records.get_mut(&said);
        assert!(
            left.as_ref().is_some_and(|left| **left > 0),
            "not extracted: {event}"
        );
        if let Some(left) = left {
            *left -= 1;
        }
    }
    // One transaction deploys a program through the upgradeable loader, which in 2022 called the system
    // program without a line of its own: an invocation at depth 2 under nobody.
    let expected = ExtractCounts {
        stack_mismatches: 1,
        path_mismatches: 1,
        ..ExtractCounts::default()
    };
    assert_eq!(odd, expected);
}
