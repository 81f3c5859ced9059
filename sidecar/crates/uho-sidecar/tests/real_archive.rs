//! Streams over the real epoch: what Anchor's own decoder found is there, and both forms agree.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use anchor_events::{record_digest, record_schema};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, UInt8Type, UInt32Type, UInt64Type};
use arrow_array::{Array as _, RecordBatch};
use arrow_ipc::reader::StreamReader;
use axum::Router;
use axum::http::Method;
use serde_json::{Value, json};
use support::{ARROW, NDJSON, PUMP_AMM, TOKEN, WHIRLPOOL, backfill, router, send, shared};

const START: u64 = 345_600_000;
const END: u64 = 345_900_000;

fn real() -> Option<Router> {
    Some(router(shared("archive/800")?.parent()?.to_str()?))
}

/// An Arrow stream read to its end: record batches without the stream's own columns, and control records.
fn read_arrow(bytes: &[u8]) -> (Vec<RecordBatch>, Vec<Value>) {
    let reader = StreamReader::try_new(bytes, None).unwrap();
    let schema = reader.schema();
    assert_eq!(schema.field(0).name(), "kind");
    assert_eq!(schema.field(14).name(), "control");
    for (found, expected) in schema.fields()[1..14].iter().zip(record_schema().fields()) {
        assert_eq!(
            (found.name(), found.data_type(), found.is_nullable()),
            (expected.name(), expected.data_type(), true)
        );
    }
    let (mut records, mut controls) = (Vec::new(), Vec::new());
    for batch in reader {
        let batch = batch.unwrap();
        let kinds = batch.column(0).as_primitive::<UInt8Type>();
        if kinds.value(0) == 0 {
            assert!(kinds.values().iter().all(|kind| *kind == 0));
            assert_eq!(batch.column(14).null_count(), batch.num_rows());
            records.push(batch.project(&(1..14).collect::<Vec<_>>()).unwrap());
        } else {
            assert_eq!(batch.num_rows(), 1, "a control row stands alone");
            assert!(
                batch.columns()[1..14]
                    .iter()
                    .all(|column| column.is_null(0))
            );
            let control: Value =
                serde_json::from_str(batch.column(14).as_string::<i32>().value(0)).unwrap();
            let number = ["record", "started", "checkpoint", "done", "error"]
                .iter()
                .position(|name| control["type"] == *name);
            assert_eq!(number, Some(usize::from(kinds.value(0))));
            controls.push(control);
        }
    }
    (records, controls)
}

fn base58<const N: usize>(bytes: &[u8]) -> String {
    assert_eq!(bytes.len(), N);
    bs58::encode(bytes).into_string()
}

#[tokio::test]
async fn every_event_of_the_oracle_is_a_record() {
    let (Some(router), Some(oracle)) = (real(), shared("oracle/events-800.jsonl")) else {
        return;
    };
    let oracle = std::fs::read_to_string(oracle).unwrap();
    let oracle: Vec<Value> = oracle
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let programs: BTreeSet<&str> = oracle
        .iter()
        .map(|event| event["program"].as_str().unwrap())
        .collect();
    let request =
        json!({"programIds": programs, "startSlot": START, "endSlot": END, "includeFailed": true});
    let (records, controls) =
        read_arrow(&support::bytes(backfill(&router, ARROW, &request).await).await);
    assert_eq!(
        controls.last().unwrap()["type"],
        "done",
        "{}",
        controls.last().unwrap()
    );

    let mut said: BTreeMap<(String, &str, String, String), usize> = BTreeMap::new();
    for batch in &records {
        for row in 0..batch.num_rows() {
            let source =
                ["log", "cpi"][usize::from(batch.column(6).as_primitive::<UInt8Type>().value(row))];
            let payload = batch.column(8).as_binary::<i32>().value(row);
            let hex: String = payload
                .iter()
                .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
            let signature = base58::<64>(batch.column(3).as_fixed_size_binary().value(row));
            let program = base58::<32>(batch.column(5).as_fixed_size_binary().value(row));
            *said.entry((program, source, signature, hex)).or_default() += 1;
        }
    }
    let text = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
    assert!(oracle.len() >= 65);
    for event in &oracle {
        let source = if event["source"] == "cpi" {
            "cpi"
        } else {
            "log"
        };
        let key = (
            text(event, "program"),
            source,
            text(event, "sig"),
            text(event, "hex"),
        );
        let left = said.get_mut(&key).filter(|left| **left > 0);
        *left.unwrap_or_else(|| panic!("not among the records: {event}")) -= 1;
    }
}

#[tokio::test]
async fn records_ascend_and_their_digests_are_the_certificates() {
    let Some(router) = real() else { return };
    let programs = [WHIRLPOOL, PUMP_AMM, TOKEN];
    let request =
        json!({"programIds": programs, "startSlot": START, "endSlot": END, "includeFailed": true});
    let (records, controls) =
        read_arrow(&support::bytes(backfill(&router, ARROW, &request).await).await);
    let done = controls.last().unwrap();
    let checkpoints: Vec<_> = controls
        .iter()
        .filter(|control| control["type"] == "checkpoint")
        .collect();
    assert_eq!(checkpoints.len(), 300, "one per 1,000 slots");
    assert_eq!(checkpoints.last().unwrap()["slot"], END);

    let mut place = None;
    let mut digest = 0u128;
    let mut rows = 0;
    for batch in &records {
        digest = digest.wrapping_add(record_digest(batch).unwrap());
        rows += batch.num_rows() as u64;
        for row in 0..batch.num_rows() {
            let program = base58::<32>(batch.column(5).as_fixed_size_binary().value(row));
            let program = programs.iter().position(|other| *other == program);
            let index =
                |column: usize| batch.column(column).as_primitive::<UInt32Type>().value(row);
            let next = (
                batch.column(0).as_primitive::<UInt64Type>().value(row),
                index(1),
                program,
                index(2),
            );
            assert!(place < Some(next), "{place:?} before {next:?}");
            place = Some(next);
        }
    }
    let of = |control: &Value, program: &str, field: &str| {
        control["certificate"]["programs"][program][field].clone()
    };
    let hex = |value: Value| u128::from_str_radix(value.as_str().unwrap(), 16).unwrap();
    let sum = programs
        .iter()
        .map(|program| hex(of(done, program, "digest")))
        .fold(0, u128::wrapping_add);
    assert_eq!(sum, digest);
    let records: u64 = programs
        .iter()
        .map(|program| of(done, program, "records").as_u64().unwrap())
        .sum();
    assert_eq!(records, rows);
    for program in programs {
        let parts = checkpoints
            .iter()
            .map(|control| hex(of(control, program, "digest")))
            .fold(0, u128::wrapping_add);
        assert_eq!(parts, hex(of(done, program, "digest")));
    }
    // As two independent readers counted them.
    let matched = |program| {
        (
            of(done, program, "matched").as_u64(),
            of(done, program, "matchedByLookupOnly").as_u64(),
        )
    };
    assert_eq!(matched(PUMP_AMM), (Some(22), Some(1)));
    assert_eq!(matched(WHIRLPOOL), (Some(46), Some(0)));
    assert_eq!(matched(TOKEN), (Some(88), Some(1)));
}

#[tokio::test]
async fn both_forms_say_the_same() {
    let Some(router) = real() else { return };
    let request = json!({"programId": PUMP_AMM, "startSlot": START, "endSlot": END, "includeFailed": true, "checkpointSlots": 100_000});
    let lines = support::lines(backfill(&router, NDJSON, &request).await).await;
    let (records, controls) =
        read_arrow(&support::bytes(backfill(&router, ARROW, &request).await).await);
    let control_lines: Vec<_> = lines
        .iter()
        .filter(|line| line["type"] != "transaction")
        .collect();
    assert_eq!(control_lines.len(), controls.len());
    for (line, control) in control_lines.iter().zip(&controls).skip(1) {
        assert_eq!(line, &control);
    }

    // A reader of NDJSON that extracts CPI events for itself finds those of the Arrow stream.
    let mut from_lines = Vec::new();
    let transactions: Vec<_> = lines
        .iter()
        .filter(|line| line["type"] == "transaction")
        .collect();
    assert_eq!(transactions.len(), 22);
    for line in &transactions {
        assert_eq!(line["programs"], json!([PUMP_AMM]));
        let keys = line["accountKeys"].as_array().unwrap();
        for call in line["innerInstructions"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|group| group["instructions"].as_array().unwrap())
        {
            let program = &keys[usize::try_from(call["programIdIndex"].as_u64().unwrap()).unwrap()];
            let data = base64::Engine::decode(
                &base64::engine::general_purpose::STANDARD,
                call["data"].as_str().unwrap(),
            )
            .unwrap();
            if program == PUMP_AMM && data.starts_with(&anchor_events::CPI_EVENT_TAG) {
                from_lines.push((
                    line["signature"].as_str().unwrap().to_owned(),
                    line["blockTime"].as_i64(),
                    data[8..].to_vec(),
                ));
            }
        }
    }
    let mut from_arrow = Vec::new();
    for batch in &records {
        for row in (0..batch.num_rows())
            .filter(|row| batch.column(6).as_primitive::<UInt8Type>().value(*row) == 1)
        {
            let times = batch.column(4).as_primitive::<Int64Type>();
            from_arrow.push((
                base58::<64>(batch.column(3).as_fixed_size_binary().value(row)),
                times.is_valid(row).then(|| times.value(row)),
                batch.column(8).as_binary::<i32>().value(row).to_vec(),
            ));
        }
    }
    assert!(!from_arrow.is_empty());
    assert_eq!(from_lines, from_arrow);
}

#[tokio::test]
async fn an_epoch_that_is_not_there_ends_the_stream_with_its_code() {
    let Some(router) = real() else { return };
    let request =
        json!({"programId": PUMP_AMM, "startSlot": 432_000_000u64, "endSlot": 432_000_010u64});
    let (_, controls) = read_arrow(&support::bytes(backfill(&router, ARROW, &request).await).await);
    assert_eq!(controls[0]["type"], "started");
    assert_eq!(controls[1]["code"], "epoch_not_found");
}

#[tokio::test]
async fn the_tip_is_the_end_of_the_newest_whole_epoch() {
    let Some(router) = real() else { return };
    for (first, tip) in [
        (800, json!(346_464_000)),
        (801, json!(346_464_000)),
        (900, Value::Null),
    ] {
        let path = format!("/archives/sim/tip?firstEpoch={first}");
        let (status, answer) =
            support::json(send(&router, Method::GET, &path, NDJSON, "").await).await;
        assert_eq!((status.as_u16(), &answer), (200, &json!({"tipSlot": tip})));
    }
}
