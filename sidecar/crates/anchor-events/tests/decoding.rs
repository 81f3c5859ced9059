//! What decoding guarantees: exactness, versions, merging, twins, policy, the quarantine, hostile IDLs.
// `decoder` and `decoded` are the words.
#![allow(clippy::unwrap_used, clippy::similar_names)]

mod support;

use anchor_events::{DecodePolicy, Decoded, Decoder, IdlVersion, RecordError};
use arrow_array::Array as _;
use arrow_array::cast::AsArray as _;
use serde_json::{Value, json};
use support::{PROGRAM, Row, batch, event, idl, payload, reasons, version};

fn one(fields: &Value) -> Decoder {
    Decoder::new(PROGRAM, &[version(0, &idl(fields, &[]))]).unwrap()
}

fn decode(decoder: &Decoder, rows: &[Row]) -> Decoded {
    decoder
        .decode(&batch(rows), &DecodePolicy::default())
        .unwrap()
}

fn refusal(json: &Value) -> String {
    Decoder::new(PROGRAM, &[version(0, json)])
        .unwrap_err()
        .to_string()
}

fn column_names(decoder: &Decoder) -> Vec<String> {
    decoder.tables()[0]
        .schema
        .fields()
        .iter()
        .skip(6)
        .map(|field| field.name().clone())
        .collect()
}

#[test]
fn faults_name_code_field_and_offset() {
    let decoder = one(&json!([
        {"name": "amount", "type": "u64"},
        {"name": "open", "type": "bool"},
        {"name": "limit", "type": {"option": "u32"}},
        {"name": "memo", "type": "string"},
        {"name": "side", "type": {"vec": "u16"}},
    ]));
    let fixed = [0; 8];
    let cases: [(Vec<u8>, &str); 8] = [
        (
            vec![0; 5],
            "truncated_payload: field `amount` at byte 8 needs 8 bytes, 5 left",
        ),
        (
            [&fixed[..], &[2]].concat(),
            "invalid_value: field `open` at byte 16: 2 is no boolean",
        ),
        (
            [&fixed[..], &[1, 7]].concat(),
            "invalid_value: field `limit` at byte 17: 7 is no option tag",
        ),
        (
            [&fixed[..], &[1, 1, 0]].concat(),
            "truncated_payload: field `limit` at byte 18 needs 4 bytes, 1 left",
        ),
        (
            [&fixed[..], &[1, 0, 9, 0, 0, 0, b'a']].concat(),
            "truncated_payload: field `memo` at byte 22 needs 9 bytes, 1 left",
        ),
        (
            [&fixed[..], &[1, 0, 1, 0, 0, 0, 0xff, 0, 0, 0, 0]].concat(),
            "invalid_value: field `memo` at byte 22: text that is not UTF-8",
        ),
        (
            [&fixed[..], &[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]].concat(),
            "truncated_payload: field `side` at byte 26 needs 8589934590 bytes, 0 left",
        ),
        (
            [&fixed[..], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 5]].concat(),
            "trailing_bytes: 2 left at byte 26",
        ),
    ];
    for (fields, expected) in cases {
        let decoded = decode(&decoder, &[Row::log(1, payload(&fields))]);
        assert_eq!(reasons(&decoded), [expected]);
        assert_eq!(decoded.counts.undecodable, 1);
    }
}

#[test]
fn every_record_is_counted_once_and_quarantined_whole() {
    let decoder = one(&json!([{"name": "n", "type": "u64"}]));
    let good = payload(&[9; 8]);
    let rows = [
        Row::log(1, good.clone()),
        Row::log(1, vec![1, 2]), // shorter than a discriminator: not Anchor's
        Row::cpi(1, vec![1, 2, 3]), // the tag was there, so it should have been an event
        Row::cpi(1, good.clone()), // twin of the first
        Row::cpi(1, good.clone()), // surplus
        Row::log(2, vec![0xee; 9]), // unknown
        Row::log(2, vec![0xaa; 9]), // ignored
        Row {
            failed: true,
            ..Row::log(2, good.clone())
        },
        Row::log(2, payload(&[9; 7])),
    ];
    let policy = DecodePolicy {
        include_failed: false,
        ignore: vec![vec![0xaa; 8]],
    };
    let decoded = decoder.decode(&batch(&rows), &policy).unwrap();
    let counts = &decoded.counts;
    assert_eq!(
        (
            counts.records,
            counts.twins_folded,
            counts.failed_left_out,
            counts.foreign
        ),
        (9, 1, 1, 2)
    );
    assert_eq!((counts.decoded, counts.undecodable), (2, 3));
    assert_eq!(
        counts.decoded_by[&("E".to_owned(), "v0.json".to_owned())],
        2
    );
    let by: Vec<_> = counts
        .undecodable_by
        .iter()
        .map(|((hex, code), found)| (hex.as_str(), code.as_str(), found.count))
        .collect();
    assert_eq!(
        by,
        [
            ("010203", "unknown_discriminator", 1),
            ("0102030405060708", "truncated_payload", 1),
            ("eeeeeeeeeeeeeeee", "unknown_discriminator", 1),
        ]
    );
    let table = &decoded.tables[0].1;
    assert_eq!(
        table
            .column(2)
            .as_primitive::<arrow_array::types::UInt32Type>()
            .values(),
        &[3, 4],
        "the CPI keys stay"
    );
    assert_eq!(table.column(4).as_string::<i32>().value(0), "cpi");
    let quarantine = &decoded.quarantine;
    assert_eq!(
        quarantine.schema(),
        anchor_events::decoding::quarantine_schema()
    );
    assert_eq!(
        quarantine
            .column_by_name("payload")
            .unwrap()
            .as_binary::<i32>()
            .value(1),
        [0xee; 9]
    );
    assert_eq!(
        quarantine
            .column_by_name("idl")
            .unwrap()
            .as_string::<i32>()
            .value(2),
        "v0.json"
    );
    assert!(quarantine.column_by_name("block_time").unwrap().is_null(0));
}

#[test]
fn failed_transactions_become_flagged_rows_only_where_asked_for() {
    let decoder = one(&json!([{"name": "n", "type": "u8"}]));
    let rows = [
        Row {
            failed: true,
            ..Row::log(2, payload(&[1]))
        },
        Row::log(2, payload(&[2])),
    ];
    let policy = DecodePolicy {
        include_failed: true,
        ignore: Vec::new(),
    };
    let decoded = decoder.decode(&batch(&rows), &policy).unwrap();
    let table = &decoded.tables[0].1;
    assert_eq!(table.schema(), decoder.tables()[0].schema_with_flags);
    let failed = table.column_by_name("failed").unwrap().as_boolean();
    assert_eq!((failed.value(0), failed.value(1)), (true, false));
    assert_eq!(decode(&decoder, &rows).tables[0].1.num_rows(), 1);
}

#[test]
fn twins_are_within_a_transaction() {
    let decoder = one(&json!([{"name": "n", "type": "u8"}]));
    let rows = [
        Row::log(1, payload(&[1])),
        Row {
            tx_index: 1,
            ..Row::cpi(1, payload(&[1]))
        },
        Row::cpi(2, payload(&[1])),
    ];
    assert_eq!(decode(&decoder, &rows).counts.twins_folded, 0);
}

/// Versions of `E` by size: u8 at 0, u16 from 100, u32 from 200.
fn three_sizes() -> Decoder {
    let of = |kind: &str| idl(&json!([{"name": "n", "type": kind}]), &[]);
    Decoder::new(
        PROGRAM,
        &[
            version(200, &of("u32")),
            version(0, &of("u8")),
            version(100, &of("u16")),
        ],
    )
    .unwrap()
}

#[test]
fn versions_are_tried_in_force_then_older_then_newer() {
    let decoder = three_sizes();
    assert_eq!(column_names(&decoder), ["n", "n__100", "n__200"]);
    let decoded = decode(
        &decoder,
        &[
            Row::log(150, payload(&[1, 0])),
            Row::log(150, payload(&[1])),
            Row::log(150, payload(&[1, 0, 0, 0])),
        ],
    );
    let read: Vec<_> = (0..3)
        .map(|row| event(&decoder, &decoded, 0, row).1)
        .collect();
    assert_eq!(read[0], json!({"n": null, "n__100": 1, "n__200": null}));
    assert_eq!(read[1], json!({"n": 1, "n__100": null, "n__200": null}));
    assert_eq!(read[2], json!({"n": null, "n__100": null, "n__200": 1}));
    let fallback: Vec<_> = decoded
        .counts
        .fallback
        .iter()
        .map(|entry| (entry.idl.as_str(), entry.first_slot, entry.count))
        .collect();
    assert_eq!(fallback, [("v0.json", 150, 1), ("v200.json", 150, 1)]);
    // Where nothing reads it, the version in force says why.
    let decoded = decode(&decoder, &[Row::log(150, payload(&[0; 9]))]);
    assert_eq!(reasons(&decoded), ["trailing_bytes: 7 left at byte 10"]);
    assert_eq!(
        decoded
            .quarantine
            .column_by_name("idl")
            .unwrap()
            .as_string::<i32>()
            .value(0),
        "v100.json"
    );
}

#[test]
fn an_event_that_only_another_version_knows_is_a_fallback() {
    let mut without = idl(&json!([]), &[]);
    without["events"] = json!([]);
    let with = idl(&json!([{"name": "n", "type": "u8"}]), &[]);
    let decoder = Decoder::new(PROGRAM, &[version(0, &without), version(100, &with)]).unwrap();
    let decoded = decode(
        &decoder,
        &[Row::log(5, payload(&[1])), Row::log(100, payload(&[1]))],
    );
    assert_eq!(decoded.counts.decoded, 2);
    assert_eq!(decoded.counts.fallback[0].count, 1);
}

#[test]
fn two_fallbacks_that_differ_are_ambiguous_and_two_that_agree_are_not() {
    let of = |fields: Value| idl(&fields, &[]);
    let versions = |second: Value| {
        [
            version(0, &of(json!([{"name": "a", "type": "u32"}]))),
            version(10, &of(second)),
            version(20, &of(json!([{"name": "a", "type": "u64"}]))),
        ]
    };
    let row = [Row::log(30, payload(&[1, 0, 0, 0]))];
    let differing = Decoder::new(
        PROGRAM,
        &versions(json!([{"name": "a", "type": "i16"}, {"name": "b", "type": "u16"}])),
    )
    .unwrap();
    let decoded = decode(&differing, &row);
    assert_eq!(
        reasons(&decoded),
        ["ambiguous: v10.json and v0.json both read every byte, and differ"]
    );
    // The same bytes, the same value: i32 and u32 of 1.
    let agreeing = Decoder::new(PROGRAM, &versions(json!([{"name": "a", "type": "i32"}]))).unwrap();
    let decoded = decode(&agreeing, &row);
    assert_eq!(
        (
            decoded.counts.decoded,
            decoded.counts.fallback[0].idl.as_str()
        ),
        (1, "v10.json")
    );
    // The version in force needs no second opinion.
    let decoded = decode(&differing, &[Row::log(10, payload(&[1, 0, 0, 0]))]);
    assert_eq!(
        (decoded.counts.decoded, decoded.counts.fallback.len()),
        (1, 0)
    );
}

#[test]
fn added_fields_are_null_before_and_names_stay_as_in_the_file() {
    let first = idl(&json!([{"name": "slot", "type": "u64"}]), &[]);
    let second = idl(
        &json!([{"name": "slot", "type": "u64", "docs": ["when"]}, {"name": "Fee Bps", "type": {"option": "u16"}}]),
        &[],
    );
    let decoder = Decoder::new(PROGRAM, &[version(0, &first), version(10, &second)]).unwrap();
    assert_eq!(column_names(&decoder), ["slot", "Fee Bps"]);
    let field = decoder.tables()[0].schema.field(6).clone();
    assert_eq!(
        (
            field.metadata()["uho:postgres"].as_str(),
            field.metadata()["uho:docs"].as_str()
        ),
        ("numeric", "when")
    );
    let decoded = decode(
        &decoder,
        &[
            Row::log(1, payload(&[255; 8])),
            Row::log(
                11,
                payload(&[255, 255, 255, 255, 255, 255, 255, 255, 1, 5, 0]),
            ),
        ],
    );
    assert_eq!(
        event(&decoder, &decoded, 0, 0).1,
        json!({"slot": u64::MAX.to_string(), "Fee Bps": null})
    );
    assert_eq!(
        event(&decoder, &decoded, 0, 1).1,
        json!({"slot": u64::MAX.to_string(), "Fee Bps": 5})
    );
}

#[test]
fn nul_is_kept_in_text_and_escaped_in_nested_text() {
    let decoder =
        one(&json!([{"name": "t", "type": "string"}, {"name": "v", "type": {"vec": "string"}}]));
    let text = [3, 0, 0, 0, b'a', 0, b'"'];
    let decoded = decode(
        &decoder,
        &[Row::log(
            1,
            payload(&[&text[..], &[1, 0, 0, 0], &text].concat()),
        )],
    );
    let table = &decoded.tables[0].1;
    assert_eq!(table.column(6).as_string::<i32>().value(0), "a\0\"");
    assert_eq!(
        table.column(7).as_string::<i32>().value(0),
        r#"["a\\u0000\""]"#
    );
}

#[test]
fn unreachable_types_and_odd_instructions_do_not_matter() {
    let mut json = idl(
        &json!([{"name": "n", "type": "u8"}]),
        &[json!({
            "name": "Odd", "generics": [{"kind": "type", "name": "T"}],
            "type": {"kind": "struct", "fields": [{"name": "x", "type": {"generic": "T"}}, {"name": "y", "type": "u512"}]},
        })],
    );
    json["instructions"] = json!([{"nothing": "like an instruction"}]);
    json["accounts"] = json!([{"name": "A", "type": {"kind": "struct", "fields": [{"name": "c", "type": {"coption": "u8"}}]}}]);
    let mut file = b"\xef\xbb\xbf".to_vec();
    file.extend(json.to_string().into_bytes());
    let decoder = Decoder::new(
        PROGRAM,
        &[IdlVersion {
            from_slot: 0,
            label: "bom".into(),
            json: file,
        }],
    )
    .unwrap();
    assert_eq!(
        decode(&decoder, &[Row::log(1, payload(&[1]))])
            .counts
            .decoded,
        1
    );
}

#[test]
fn older_files_need_no_address_and_prefer_the_layout_given_in_events() {
    let json = json!({
        "version": "0.1.0", "name": "old",
        "instructions": [{"name": "x", "accounts": [{"name": "a", "isMut": true, "isSigner": false}], "args": []}],
        "events": [{"name": "Swapped", "fields": [{"name": "amountIn", "type": "u64", "index": false},
            {"name": "side", "type": {"defined": "Side"}, "index": false}]}],
        "types": [
            {"name": "Swapped", "type": {"kind": "struct", "fields": [{"name": "other", "type": "u8"}]}},
            {"name": "Side", "type": {"kind": "enum", "variants": [{"name": "Buy"},
                {"name": "Sell", "fields": [{"name": "minOut", "type": "u16"}]}, {"name": "Both", "fields": ["u8", "publicKey"]}]}},
        ],
    });
    let decoder = Decoder::new(PROGRAM, &[version(0, &json)]).unwrap();
    let opening = {
        use sha2::Digest as _;
        sha2::Sha256::digest(b"event:Swapped")[..8].to_vec()
    };
    let rows = [
        Row::log(1, [&opening[..], &[1, 0, 0, 0, 0, 0, 0, 0, 0]].concat()),
        Row::log(
            1,
            [&opening[..], &[1, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0]].concat(),
        ),
        Row::log(
            1,
            [&opening[..], &[1, 0, 0, 0, 0, 0, 0, 0, 2, 9], &[0; 32]].concat(),
        ),
        Row::log(1, [&opening[..], &[1, 0, 0, 0, 0, 0, 0, 0, 3]].concat()),
    ];
    let decoded = decode(&decoder, &rows);
    let sides: Vec<_> = (0..3)
        .map(|row| event(&decoder, &decoded, 0, row).1["side"].clone())
        .collect();
    assert_eq!(
        sides,
        [
            json!({"Buy": {}}),
            json!({"Sell": {"min_out": 9}}),
            json!({"Both": [9, "11111111111111111111111111111111"]})
        ]
    );
    assert_eq!(event(&decoder, &decoded, 0, 0).1["amount_in"], "1");
    assert_eq!(
        reasons(&decoded),
        ["invalid_value: field `side` at byte 16: variant 3 of 3"]
    );
}

#[test]
fn hostile_files_are_refused() {
    let defined = |name: &str| json!({"defined": {"name": name}});
    let structure = |name: &str, fields: Value| json!({"name": name, "type": {"kind": "struct", "fields": fields}});
    let field = |kind: Value| json!([{"name": "x", "type": kind}]);

    let recursive = structure("R", field(json!({"vec": defined("R")})));
    assert!(refusal(&idl(&field(defined("R")), &[recursive])).contains("type `R` contains itself"));

    let empty = structure("Empty", json!([]));
    for list in [
        json!({"vec": defined("Empty")}),
        json!({"array": [defined("Empty"), 1_000_000_000_000u64]}),
    ] {
        assert!(refusal(&idl(&field(list), std::slice::from_ref(&empty))).contains("no size"));
    }

    let deep = (0..70).fold(json!("u8"), |inner, _| json!({"option": inner}));
    assert!(refusal(&idl(&field(deep), &[])).contains("nested"));
    let chain: Vec<_> = (0..50_000)
        .map(|place| {
            structure(
                &format!("C{place}"),
                field(defined(&format!("C{}", place + 1))),
            )
        })
        .collect();
    assert!(refusal(&idl(&field(defined("C0")), &chain)).contains("nested"));

    // 2⁴⁰ leaves from forty definitions.
    let double = |place: usize| {
        let next = if place == 40 {
            json!("u8")
        } else {
            defined(&format!("D{}", place + 1))
        };
        structure(
            &format!("D{place}"),
            json!([{"name": "l", "type": next}, {"name": "r", "type": next}]),
        )
    };
    let doubling: Vec<_> = (0..=40).map(double).collect();
    assert!(refusal(&idl(&field(defined("D0")), &doubling)).contains("too many parts"));

    assert!(refusal(&idl(&json!([{"name": "x".repeat(300), "type": "u8"}]), &[])).contains("255"));
    assert!(
        refusal(&idl(
            &json!([{"name": "x", "type": "u8"}, {"name": "x", "type": "u8"}]),
            &[]
        ))
        .contains("twice")
    );
    let mut json = idl(&json!([]), &[]);
    json["events"] = json!([{"name": "E", "discriminator": []}]);
    assert!(refusal(&json).contains("empty"));
    json["events"] =
        json!([{"name": "E", "discriminator": [1]}, {"name": "F", "discriminator": [1, 2]}]);
    json["types"] = json!([structure("E", json!([])), structure("F", json!([]))]);
    assert!(refusal(&json).contains("begins like that of `E`"));
    let large = IdlVersion {
        from_slot: 0,
        label: "large".into(),
        json: vec![b' '; (16 << 20) + 1],
    };
    assert!(
        Decoder::new(PROGRAM, &[large])
            .unwrap_err()
            .to_string()
            .contains("16777216")
    );
}

#[test]
fn a_huge_array_is_only_ever_too_long() {
    let decoder =
        one(&json!([{"name": "x", "type": {"array": [{"array": ["u64", u64::MAX]}, u64::MAX]}}]));
    assert!(
        reasons(&decode(&decoder, &[Row::log(1, payload(&[0; 64]))]))[0]
            .starts_with("truncated_payload")
    );
}

#[test]
fn text_that_outgrows_its_payload_ends_the_batch_not_the_process() {
    let mut members: Vec<_> = (0..9_000).map(|place| json!({"name": format!("{place:0>250}"), "type": {"defined": {"name": "Unit"}}})).collect();
    members.push(json!({"name": "n", "type": "u8"}));
    let types = [
        json!({"name": "Unit", "type": {"kind": "struct", "fields": []}}),
        json!({"name": "Fat", "type": {"kind": "struct", "fields":
            members}}),
    ];
    let decoder = Decoder::new(
        PROGRAM,
        &[version(
            0,
            &idl(
                &json!([{"name": "x", "type": {"vec": {"defined": {"name": "Fat"}}}}]),
                &types,
            ),
        )],
    )
    .unwrap();
    let many = [&1_000u32.to_le_bytes()[..], &[0; 1_000]].concat();
    let error = decoder
        .decode(
            &batch(&[Row::log(1, payload(&many))]),
            &DecodePolicy::default(),
        )
        .unwrap_err();
    assert!(error.to_string().contains("1 GiB"), "{error}");
}

#[test]
fn batches_of_another_schema_or_program_are_refused() {
    let decoder = one(&json!([{"name": "n", "type": "u8"}]));
    let records = batch(&[Row::log(1, payload(&[1]))]);
    let error = decoder
        .decode(&records.project(&[0, 1]).unwrap(), &DecodePolicy::default())
        .unwrap_err();
    assert!(matches!(
        error,
        anchor_events::DecodeError::Records(RecordError::Schema { position: 2, .. })
    ));
    let other = Decoder::new([8; 32], &[version(0, &idl(&json!([]), &[]))]).unwrap();
    assert!(
        other
            .decode(&records, &DecodePolicy::default())
            .unwrap_err()
            .to_string()
            .contains("another program")
    );
}
