//! The node answers for the chain that the archive was written of, and misbehaves exactly where it is told to.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use archive_sim::{Plan, RpcServer, write};
use serde_json::{Value, json};

/// One chunk's archive.
struct Chain {
    folder: tempfile::TempDir,
    plan: Plan,
}

impl Chain {
    fn written() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan::of_range(1_292_200, 1_292_549, 350);
        write(folder.path(), &plan).unwrap();
        Self { folder, plan }
    }

    fn node(&self, faults: &[&str]) -> RpcServer {
        let faults = faults.iter().map(|fault| fault.parse().unwrap()).collect();
        RpcServer::start(self.folder.path(), "127.0.0.1:0", 1, faults).unwrap()
    }

    fn truth(&self) -> Vec<Value> {
        let lines = std::fs::read_to_string(self.folder.path().join("truth/events.jsonl")).unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Sends a body on a connection of its own; returns head and answer.
fn post(node: &RpcServer, body: &str) -> (String, Value) {
    let mut connection = TcpStream::connect(node.address()).unwrap();
    let length = body.len();
    let request = format!(
        "POST /?api-key=x HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    connection.write_all(request.as_bytes()).unwrap();
    connection
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (
        head.to_owned(),
        serde_json::from_str(body).unwrap_or_default(),
    )
}

#[allow(clippy::needless_pass_by_value)] // `json!` makes values
fn call(node: &RpcServer, method: &str, parameters: Value) -> Value {
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": parameters});
    let answer = post(node, &body.to_string()).1;
    assert_eq!(
        (&answer["jsonrpc"], &answer["id"]),
        (&json!("2.0"), &json!(7))
    );
    answer
}

fn transaction(node: &RpcServer, signature: &Value) -> Value {
    let options = json!({"encoding": "json", "maxSupportedTransactionVersion": 0});
    call(node, "getTransaction", json!([signature, options]))["result"].clone()
}

#[test]
fn every_transaction_of_the_truth_is_answered_with_its_place() {
    let chain = Chain::written();
    let node = chain.node(&[]);
    let truth = chain.truth();
    assert!(truth.len() > 100);
    for event in truth.iter().step_by(20) {
        let answer = transaction(&node, &event["signature"]);
        assert_eq!(answer["slot"], event["slot"]);
        assert_eq!(answer["transactionIndex"], event["txIndex"]);
        assert_eq!(answer["blockTime"], event["blockTime"]);
        assert_eq!(answer["transaction"]["signatures"][0], event["signature"]);
        assert_eq!(answer["meta"]["err"], Value::Null);

        let options =
            json!({"encoding": "base64", "maxSupportedTransactionVersion": 0, "rewards": false});
        let block = &call(&node, "getBlock", json!([event["slot"], options]))["result"];
        let index = event["txIndex"].as_u64().unwrap() as usize;
        assert_eq!(block["transactions"][index]["meta"], answer["meta"]);
        assert_eq!(block["transactions"][index]["transaction"][1], "base64");
        assert!(block.get("rewards").is_none());
    }
    let nobody = "1".repeat(64);
    assert_eq!(transaction(&node, &json!(nobody)), Value::Null);
}

#[test]
fn slots_with_blocks_are_those_that_have_one() {
    let chain = Chain::written();
    let node = chain.node(&[]);
    let (first, last) = (chain.plan.first_slot, chain.plan.last_slot);
    let blocks = call(&node, "getBlocks", json!([first, last]))["result"].clone();
    let blocks: BTreeSet<u64> = serde_json::from_value(blocks).unwrap();
    assert!(blocks.len() > 250 && blocks.len() < 350, "{}", blocks.len());
    let mut parent = None;
    for slot in first..=last {
        let answer = call(
            &node,
            "getBlock",
            json!([slot, {"transactionDetails": "none"}]),
        );
        if blocks.contains(&slot) {
            assert!(parent.is_none_or(|parent| answer["result"]["parentSlot"] == parent));
            parent = Some(slot);
        } else {
            assert_eq!(answer["error"]["code"], -32_009);
        }
    }
    assert_eq!(
        call(&node, "getSlot", json!([]))["result"],
        json!(chain.plan.to_slot - 1)
    );
    for (slot, code) in [(0, -32_001), (chain.plan.to_slot, -32_004)] {
        assert_eq!(
            call(&node, "getBlock", json!([slot]))["error"]["code"],
            code
        );
    }
}

#[test]
fn an_address_has_its_signatures_newest_first_page_by_page() {
    let chain = Chain::written();
    let node = chain.node(&[]);
    let yaml = std::fs::read_to_string(chain.folder.path().join("programs/vault/program.yaml"));
    let yaml = yaml.unwrap();
    let line = yaml.lines().find(|line| line.starts_with("program_id: "));
    let address = line.unwrap().trim_start_matches("program_id: ").to_owned();
    let mut pages = Vec::new();
    let mut before = Value::Null;
    loop {
        let page = call(
            &node,
            "getSignaturesForAddress",
            json!([address, {"limit": 40, "before": before}]),
        );
        let page = page["result"].as_array().unwrap().clone();
        let Some(oldest) = page.last() else { break };
        before = oldest["signature"].clone();
        pages.extend(page);
    }
    let slots: Vec<u64> = pages
        .iter()
        .map(|one| one["slot"].as_u64().unwrap())
        .collect();
    assert!(slots.is_sorted_by(|newer, older| newer >= older));
    let listed: BTreeSet<&str> = pages
        .iter()
        .map(|one| one["signature"].as_str().unwrap())
        .collect();
    assert_eq!(listed.len(), pages.len());
    let truth = chain.truth();
    let spoken: BTreeSet<&str> = truth
        .iter()
        .filter(|event| event["program"] == "vault")
        .map(|event| event["signature"].as_str().unwrap())
        .collect();
    assert!(spoken.is_subset(&listed));
}

#[test]
fn versioned_transactions_want_a_client_that_reads_them() {
    let chain = Chain::written();
    let node = chain.node(&[]);
    let versions: BTreeSet<String> = chain
        .truth()
        .iter()
        .step_by(10)
        .map(|event| {
            let version = &transaction(&node, &event["signature"])["version"];
            let answer = call(&node, "getTransaction", json!([event["signature"], "json"]));
            if version == 0 {
                assert_eq!(answer["error"]["code"], -32_015);
            } else {
                assert!(answer["result"].get("version").is_none());
            }
            version.to_string()
        })
        .collect();
    assert_eq!(versions, BTreeSet::from(["0".into(), "\"legacy\"".into()]));
}

#[test]
fn batches_are_answered_one_by_one_and_nonsense_refused() {
    let chain = Chain::written();
    let node = chain.node(&[]);
    let one = json!({"jsonrpc": "2.0", "id": 1, "method": "getSlot"});
    let other = json!({"jsonrpc": "2.0", "id": "b", "method": "getTime"});
    let answers = post(&node, &json!([one, other]).to_string()).1;
    assert!(answers[0]["result"].is_u64());
    assert_eq!(answers[1]["error"]["code"], -32_601);
    assert_eq!(answers[1]["id"], "b");
    for (body, code) in [
        ("{", -32_700),
        ("[]", -32_600),
        ("{}", -32_600),
        ("7", -32_600),
    ] {
        assert_eq!(post(&node, body).1["error"]["code"], code, "{body}");
    }
    let options = json!({"encoding": "jsonParsed"});
    let refused = call(&node, "getTransaction", json!(["1".repeat(64), options]));
    assert_eq!(refused["error"]["code"], -32_602);
}

#[test]
fn requests_fail_where_they_shall() {
    let chain = Chain::written();
    let slot = r#"{"jsonrpc": "2.0", "id": 1, "method": "getSlot"}"#;
    let node = chain.node(&["status=429@2", "status=502@3"]);
    let heads: Vec<String> = (0..4).map(|_| post(&node, slot).0).collect();
    let codes: Vec<&str> = heads.iter().map(|head| &head[9..12]).collect();
    assert_eq!(codes, ["200", "429", "502", "429"]);
    assert!(heads[1].contains("Retry-After: 0"));
    assert_eq!((node.requests(), node.calls()), (4, 1));

    let started = Instant::now();
    assert!(post(&chain.node(&["slow=200"]), slot).1["result"].is_u64());
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(post(&chain.node(&["stall"]), slot).0, "");
}

#[test]
fn answers_are_missing_and_altered_where_they_shall_be_and_nowhere_else() {
    let chain = Chain::written();
    let truth = chain.truth();
    let signatures: BTreeSet<&str> = truth
        .iter()
        .map(|event| event["signature"].as_str().unwrap())
        .collect();
    let right = chain.node(&[]);
    let node = chain.node(&["missing@5", "altered@7"]);
    let (mut missing, mut altered) = (0, 0);
    for signature in &signatures {
        let answer = transaction(&node, &json!(signature));
        assert_eq!(answer, transaction(&node, &json!(signature)));
        if answer.is_null() {
            missing += 1;
        } else if answer["meta"] != transaction(&right, &json!(signature))["meta"] {
            altered += 1;
        }
    }
    assert!(missing > 5 && missing < signatures.len() / 3, "{missing}");
    assert!(altered > 5 && altered < signatures.len() / 3, "{altered}");

    let only = truth[0]["signature"].as_str().unwrap();
    let node = chain.node(&[&format!("altered={only}")]);
    for signature in signatures.iter().step_by(10).chain([&only]) {
        let same = transaction(&node, &json!(signature)) == transaction(&right, &json!(signature));
        assert_eq!(same, *signature != only);
    }
}
