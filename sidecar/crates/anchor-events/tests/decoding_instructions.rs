//! What decoding instructions guarantees: arguments exactly, accounts by name, versions by both, and counts apart from
//! those of events.
// `decoder` and `decoded` are the words.
#![allow(
    clippy::format_collect,
    clippy::similar_names,
    clippy::unnecessary_wraps, // What is given may be unknown.
    clippy::unwrap_used
)]

mod support;

use anchor_events::{DecodePolicy, Decoded, Decoder, TableKind};
use arrow_array::Array as _;
use arrow_array::cast::AsArray as _;
use serde_json::{Map, Value, json};
use support::{PROGRAM, Row, batch, cell, instructions, payload, reasons, version};

/// A key of one byte, and its base58.
fn key(byte: u8) -> [u8; 32] {
    [byte; 32]
}

fn base58(byte: u8) -> Value {
    json!(bs58::encode(key(byte)).into_string())
}

fn keys(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(bytes.iter().flat_map(|byte| key(*byte)).collect())
}

/// An IDL of the newer format with one event `E` and these instructions.
fn idl(instructions: &Value) -> Value {
    let mut idl = support::idl(&json!([]), &[]);
    idl["instructions"] = instructions.clone();
    idl
}

/// An instruction `swap`, whose data begins with 9, 9, of one argument, `amount: u8`.
fn swap(accounts: &Value) -> Value {
    json!([{
        "name": "swap", "discriminator": [9, 9], "accounts": accounts,
        "args": [{"name": "amount", "type": "u8"}],
    }])
}

fn decode(decoder: &Decoder, rows: &[(Row, Option<Vec<u8>>)]) -> Decoded {
    decoder
        .decode(&instructions(rows), &DecodePolicy::default())
        .unwrap()
}

/// The rows of the first table with rows, by column, keys and fixed columns that are the same for all left out.
fn rows(decoder: &Decoder, decoded: &Decoded) -> Vec<Value> {
    let (table, batch) = &decoded.tables[0];
    assert_eq!(decoder.tables()[*table].kind, TableKind::Instruction);
    let row = |row: usize| {
        let schema = batch.schema();
        let cells = schema.fields().iter().zip(batch.columns());
        let cells = cells.filter(|(field, _)| {
            ![
                "slot",
                "tx_index",
                "instruction_index",
                "signature",
                "instruction_path",
                "block_time",
            ]
            .contains(&field.name().as_str())
        });
        let cells: Map<_, _> = cells
            .map(|(field, array)| (field.name().clone(), cell(field, array, row)))
            .collect();
        Value::Object(cells)
    };
    (0..batch.num_rows()).map(row).collect()
}

fn one(accounts: &Value) -> Decoder {
    Decoder::with_instructions(PROGRAM, &[version(0, &idl(&swap(accounts)))]).unwrap()
}

#[test]
fn accounts_are_columns_by_name_and_the_rest_a_list() {
    let decoder = one(&json!([
        {"name": "user", "docs": ["Who pays"], "signer": true},
        {"name": "pool", "accounts": [{"name": "mint"}, {"name": "oracle", "optional": true}]},
        {"name": "user"},
    ]));
    let table = decoder.tables().last().unwrap();
    assert_eq!(table.name, "instruction:swap");
    let field = table.schema.field_with_name("account_user").unwrap();
    assert_eq!(field.metadata()["uho:docs"], "Who pays");
    let decoded = decode(
        &decoder,
        &[
            (Row::log(1, [9, 9, 5]), keys(&[1, 2, 3, 4, 5, 6])),
            // The program's own id stands for an optional account that is none, and for nothing else.
            (Row::log(1, [9, 9, 5]), keys(&[7, 7, 7, 7])),
            (Row::log(1, [9, 9, 5]), keys(&[1, 2])),
            (Row::log(1, [9, 9, 5]), None),
        ],
    );
    let row = |amount: u8, given: Value, remaining: Value, accounts: [Value; 4]| {
        let [user, mint, oracle, again] = accounts;
        json!({
            "accounts_given": given, "remaining_accounts": remaining, "amount": amount, "account_user": user,
            "account_pool_mint": mint, "account_pool_oracle": oracle, "account_user_2": again,
        })
    };
    let none = || Value::Null;
    assert_eq!(
        rows(&decoder, &decoded),
        [
            row(
                5,
                json!(6),
                json!([base58(5), base58(6)]),
                [1, 2, 3, 4].map(base58)
            ),
            row(
                5,
                json!(4),
                none(),
                [base58(7), base58(7), none(), base58(7)]
            ),
            row(5, json!(2), none(), [base58(1), base58(2), none(), none()]),
            row(5, none(), none(), [none(), none(), none(), none()]),
        ]
    );
    let counts = decoded.counts.instructions;
    assert_eq!((counts.records, counts.decoded), (4, 4));
    assert_eq!((counts.short_of_accounts, counts.unknown_accounts), (1, 1));
}

#[test]
fn trailing_optional_accounts_may_be_left_out() {
    let decoder = one(&json!([{"name": "a"}, {"name": "b", "optional": true}]));
    let decoded = decode(&decoder, &[(Row::log(1, [9, 9, 5]), keys(&[1]))]);
    assert_eq!(decoded.counts.instructions.short_of_accounts, 0);
    assert_eq!(rows(&decoder, &decoded)[0]["account_b"], Value::Null);
}

#[test]
fn arguments_and_accounts_of_one_name_are_two_columns() {
    let mut told = swap(&json!([{"name": "x"}]));
    told[0]["args"] = json!([{"name": "account_x", "type": "pubkey"}]);
    let decoder = Decoder::with_instructions(PROGRAM, &[version(5, &idl(&told))]).unwrap();
    let data = [&[9, 9][..], &key(3)].concat();
    let decoded = decode(&decoder, &[(Row::log(5, data), keys(&[4]))]);
    let row = &rows(&decoder, &decoded)[0];
    assert_eq!(
        (&row["account_x"], &row["account_x__5"]),
        (&base58(3), &base58(4))
    );
}

#[test]
fn data_begins_as_the_file_says_or_as_anchor_does() {
    // `sha256("global:swap_base_in")[..8]`, by another implementation.
    let anchors = [42, 236, 72, 162, 242, 24, 39, 84];
    let of = |instruction: Value, origin: Option<&str>| {
        let mut file = json!({"version": "0.1.0", "name": "n", "instructions": [instruction]});
        if let Some(origin) = origin {
            file["metadata"] = json!({"origin": origin});
        }
        let decoder = Decoder::with_instructions(PROGRAM, &[version(0, &file)]).unwrap();
        let described = decoder.describe().pop().unwrap();
        (described.event, described.discriminator)
    };
    let plain = json!({"name": "swapBaseIn", "accounts": [], "args": []});
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let named = || "instruction:swap_base_in".to_owned();
    assert_eq!(of(plain.clone(), None), (named(), hex(&anchors)));
    let mut numbered = plain.clone();
    numbered["discriminant"] = json!({"type": "u16", "value": 258});
    assert_eq!(of(numbered.clone(), Some("shank")), (named(), hex(&[2, 1])));
    assert_eq!(
        of(numbered.clone(), Some("anchor")),
        (named(), hex(&anchors))
    );
    numbered["discriminant"]["bytes"] = json!([1, 2, 3]);
    assert_eq!(of(numbered, Some("anchor")), (named(), hex(&[1, 2, 3])));
    let mut stated = plain;
    stated["discriminator"] = json!([4]);
    assert_eq!(of(stated, None), (named(), hex(&[4])));
}

#[test]
fn a_version_that_demands_more_accounts_comes_after_those_that_do_not() {
    let [first, second] = [
        json!([{"name": "a"}, {"name": "b"}]),
        json!([{"name": "a"}, {"name": "b"}, {"name": "c"}]),
    ];
    let versions =
        [(0, &first), (100, &second)].map(|(slot, accounts)| version(slot, &idl(&swap(accounts))));
    let decoder = Decoder::with_instructions(PROGRAM, &versions).unwrap();
    let decoded = decode(
        &decoder,
        &[
            (Row::log(100, [9, 9, 1]), keys(&[1, 2, 3])),
            (Row::log(100, [9, 9, 2]), keys(&[1, 2])),
            // No version demands as few: the one in force it is.
            (Row::log(100, [9, 9, 3]), keys(&[1])),
            // More than the version in force names are remaining ones, whatever later versions call them.
            (Row::log(99, [9, 9, 4]), keys(&[1, 2, 3])),
        ],
    );
    let found = rows(&decoder, &decoded);
    let cell = |row: usize, name: &str| found[row][name].clone();
    assert_eq!(cell(0, "account_c"), base58(3));
    assert_eq!(cell(1, "account_b"), base58(2));
    assert_eq!(cell(3, "remaining_accounts"), json!([base58(3)]));
    assert_eq!(decoded.counts.instructions.short_of_accounts, 1);
    let fallbacks: Vec<_> = decoded
        .counts
        .fallback
        .iter()
        .map(|used| (used.idl.as_str(), used.count))
        .collect();
    assert_eq!(fallbacks, [("v0.json", 1)]);
    let short = decoded.counts.decoded_by[&("instruction:swap".to_owned(), "v100.json".to_owned())];
    assert_eq!(short, 2);
}

#[test]
fn versions_that_name_the_accounts_given_differently_are_ambiguous() {
    let lists = [json!([{"name": "a"}]), json!([{"name": "b"}])];
    let versions = [(10, &lists[0]), (20, &lists[1])]
        .map(|(slot, accounts)| version(slot, &idl(&swap(accounts))));
    let decoder = Decoder::with_instructions(PROGRAM, &versions).unwrap();
    // No version is in force at slot 1, and both read every byte.
    let decoded = decode(
        &decoder,
        &[
            (Row::log(1, [9, 9, 5]), keys(&[1])),
            (Row::log(1, [9, 9, 5]), keys(&[])),
        ],
    );
    assert!(
        reasons(&decoded)[0]
            .starts_with("instruction_ambiguous: v10.json and v20.json both read every byte")
    );
    // Where nothing was given, nothing differs; that both demand more is counted.
    assert_eq!(decoded.counts.instructions.short_of_accounts, 1);
}

#[test]
fn what_no_version_reads_is_quarantined_whole_and_counted_apart() {
    let decoder = one(&json!([{"name": "a"}]));
    let rows = [
        (Row::log(1, [9, 9, 1, 1]), keys(&[1, 2])),
        (Row::log(2, [8, 8]), None),
        (Row::log(3, []), keys(&[])),
        (
            Row {
                failed: true,
                ..Row::log(4, [8])
            },
            None,
        ),
    ];
    let decoded = decode(&decoder, &rows);
    assert_eq!(
        reasons(&decoded),
        [
            "instruction_trailing_bytes: 1 left at byte 3",
            "instruction_unknown_discriminator: no IDL version has an instruction that begins like this",
            "instruction_unknown_discriminator: no IDL version has an instruction that begins like this",
        ]
    );
    let column = |name: &str| decoded.quarantine.column_by_name(name).unwrap();
    let accounts = column("accounts").as_binary::<i32>();
    assert_eq!(accounts.value(0), keys(&[1, 2]).unwrap());
    assert!(accounts.is_null(1));
    assert_eq!(accounts.value(2), [0u8; 0]);
    assert!(
        column("source")
            .as_string::<i32>()
            .iter()
            .all(|word| word == Some("instruction"))
    );
    let counts = &decoded.counts;
    assert_eq!(
        (counts.records, counts.undecodable, counts.failed_left_out),
        (4, 3, 1)
    );
    let of = counts.instructions;
    assert_eq!(
        (of.records, of.undecodable, of.failed_left_out, of.foreign),
        (4, 3, 1, 0)
    );
    let unknown = (
        "0808".to_owned(),
        "instruction_unknown_discriminator".to_owned(),
    );
    assert_eq!(counts.undecodable_by[&unknown].count, 1);
    let policy = DecodePolicy {
        include_failed: true,
        ignore: vec![vec![8]],
    };
    let ignored = decoder
        .decode(&instructions(&rows), &policy)
        .unwrap()
        .counts;
    assert_eq!((ignored.foreign, ignored.instructions.foreign), (2, 2));
}

#[test]
fn events_and_instructions_do_not_meet() {
    let told = json!([{"name": "E", "discriminator": [1, 2, 3, 4, 5, 6, 7, 8], "accounts": [], "args": []}]);
    let decoder = Decoder::with_instructions(PROGRAM, &[version(0, &idl(&told))]).unwrap();
    // The same bytes, said and told: each is its own table's row, and no twin of the other.
    let said = decoder
        .decode(
            &batch(&[Row::cpi(1, payload(&[]))]),
            &DecodePolicy::default(),
        )
        .unwrap();
    let heard = decode(&decoder, &[(Row::log(1, payload(&[])), keys(&[]))]);
    assert_eq!((said.tables[0].0, heard.tables[0].0), (0, 1));
    assert_eq!(
        (said.counts.instructions.records, heard.counts.twins_folded),
        (0, 0)
    );
    // Who does not ask for instructions has none, and a count of them.
    let plain = Decoder::new(PROGRAM, &[version(0, &idl(&told))]).unwrap();
    assert_eq!(plain.tables().len(), 1);
    let left = decode(&plain, &[(Row::log(1, payload(&[])), keys(&[]))]);
    assert!(left.tables.is_empty());
    assert_eq!(
        (left.counts.foreign, left.counts.instructions.foreign),
        (1, 1)
    );
}

#[test]
fn instructions_that_cannot_be_are_refused_by_name_and_only_where_asked_for() {
    let refused = |told: &Value, expected: &str| {
        let versions = [version(0, &idl(told))];
        let fault = Decoder::with_instructions(PROGRAM, &versions).unwrap_err();
        assert_eq!(fault.to_string(), expected);
        Decoder::new(PROGRAM, &versions).unwrap();
    };
    refused(
        &json!([{"name": "a", "accounts": [], "args": [{"name": "x", "type": "u7"}]}]),
        "v0.json: instruction `a` field `x`: type `u7` is not supported",
    );
    refused(
        &json!([{"name": "a", "accounts": [{}], "args": []}]),
        "v0.json: instruction `a` field `accounts`: `accounts` is malformed",
    );
    refused(
        &json!([{"name": "a", "discriminator": [], "accounts": [], "args": []}]),
        "v0.json: instruction `a`: its discriminator is empty, or begins like that of ``",
    );
    let named = json!([{"name": "a", "accounts": [], "args": []}, {"name": "a", "accounts": [], "args": []}]);
    refused(&named, "v0.json: instruction `a`: it appears twice");
    let many = vec![json!({"name": "a"}); 1_233];
    refused(
        &json!([{"name": "a", "accounts": [{"name": "g", "accounts": many}], "args": []}]),
        "v0.json: instruction `a` field `accounts`: it names more than 1,232 accounts, which no transaction has room for",
    );
    let mut hostile = idl(&json!([]));
    hostile["events"][0]["name"] = json!("instruction:swap");
    hostile["types"][0]["name"] = json!("instruction:swap");
    let fault = Decoder::with_instructions(PROGRAM, &[version(0, &hostile)]).unwrap_err();
    assert!(
        fault
            .to_string()
            .ends_with("cannot begin with `instruction:` where instructions are asked for")
    );
}

#[test]
fn accounts_that_are_no_keys_are_an_error() {
    let decoder = one(&json!([]));
    let rows = instructions(&[(Row::log(1, [9, 9, 5]), Some(vec![1; 33]))]);
    let error = decoder.decode(&rows, &DecodePolicy::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "row 0: its accounts are not 32 bytes each"
    );
}
