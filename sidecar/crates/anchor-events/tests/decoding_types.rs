//! Every type of both IDL formats, by bytes written by hand: what reads as what, and which are refused why.
// `decoder` and `decoded` are the words.
#![allow(clippy::unwrap_used, clippy::similar_names)]

mod support;

use anchor_events::{DecodePolicy, Decoder};
use arrow_array::Array as _;
use serde_json::{Value, json};
use support::{PROGRAM, Row, base58, batch, event, idl, payload, reasons, version};

/// Reads payloads of event `E` with these fields; the quarantine's reasons where they do not read.
fn read(fields: &Value, types: &[Value], payloads: &[Vec<u8>]) -> Result<Vec<Value>, Vec<String>> {
    let decoder = Decoder::new(PROGRAM, &[version(0, &idl(fields, types))]).unwrap();
    let rows: Vec<_> = payloads
        .iter()
        .map(|bytes| Row::cpi(1, payload(bytes)))
        .collect();
    let decoded = decoder
        .decode(&batch(&rows), &DecodePolicy::default())
        .unwrap();
    if decoded.quarantine.num_rows() > 0 {
        return Err(reasons(&decoded));
    }
    Ok((0..rows.len())
        .map(|row| event(&decoder, &decoded, 0, row).1)
        .collect())
}

fn refusal(fields: &Value, types: &[Value]) -> String {
    Decoder::new(PROGRAM, &[version(0, &idl(fields, types))])
        .unwrap_err()
        .to_string()
}

fn one(kind: &Value) -> Value {
    json!([{"name": "x", "type": kind}])
}

fn structure(name: &str, fields: &Value) -> Value {
    json!({"name": name, "type": {"kind": "struct", "fields": fields}})
}

/// A struct that is copied from memory.
fn copied(name: &str, repr: &Value, fields: &Value) -> Value {
    let mut definition = structure(name, fields);
    definition["serialization"] = json!("bytemuck");
    definition["repr"] = repr.clone();
    definition
}

fn defined(name: &str) -> Value {
    json!({"defined": {"name": name}})
}

#[test]
fn integers_of_256_bits_are_decimal_text_for_numeric() {
    let fields = json!([{"name": "u", "type": "u256"}, {"name": "i", "type": "i256"},
        {"name": "o", "type": {"option": "i256"}}, {"name": "v", "type": {"vec": "u256"}}]);
    let decoder = Decoder::new(PROGRAM, &[version(0, &idl(&fields, &[]))]).unwrap();
    let field = decoder.tables()[0].schema.field(6).clone();
    assert_eq!(
        (field.data_type(), field.metadata()["uho:postgres"].as_str()),
        (&arrow_schema::DataType::Utf8, "numeric")
    );
    let least = [[0; 31].to_vec(), vec![0x80]].concat();
    let mut ten_to_the_38 = 10u128.pow(38).to_le_bytes().to_vec();
    ten_to_the_38.resize(32, 0);
    let payloads = [
        [
            &[0xff; 32][..],
            &[0xff; 32],
            &[1],
            &least,
            &[1, 0, 0, 0],
            &ten_to_the_38,
        ]
        .concat(),
        [&[0; 32][..], &[0; 32], &[0], &[0; 4]].concat(),
    ];
    assert_eq!(
        read(&fields, &[], &payloads).unwrap(),
        [
            json!({
                "u": "115792089237316195423570985008687907853269984665640564039457584007913129639935", "i": "-1",
                "o": "-57896044618658097711785492504343953926634992332820282019728792003956564819968",
                "v": ["100000000000000000000000000000000000000"],
            }),
            json!({"u": "0", "i": "0", "o": null, "v": []}),
        ]
    );
}

#[test]
fn a_coption_takes_the_same_room_whether_it_is_there_or_not() {
    let fields = json!([{"name": "x", "type": {"coption": "u16"}}, {"name": "y", "type": "u8"},
        {"name": "z", "type": {"vec": {"coption": "bool"}}}]);
    let some = [
        &[1, 0, 0, 0, 7, 1, 9][..],
        &[2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 5],
    ]
    .concat();
    let none = vec![0, 0, 0, 0, 0xaa, 0xbb, 9, 0, 0, 0, 0];
    assert_eq!(
        read(&fields, &[], &[some, none]).unwrap(),
        [
            json!({"x": 263, "y": 9, "z": [true, null]}),
            json!({"x": null, "y": 9, "z": []})
        ]
    );
    let faults = read(
        &fields,
        &[],
        &[vec![0, 1, 0, 0, 0, 0, 9, 0, 0, 0, 0], vec![0; 5]],
    )
    .unwrap_err();
    assert_eq!(
        faults,
        [
            "invalid_value: field `x` at byte 8: 256 is no option tag",
            "truncated_payload: field `x` at byte 12 needs 2 bytes, 1 left",
        ]
    );
    assert_eq!(
        refusal(&one(&json!({"coption": "string"})), &[]),
        "v0.json: event `E` field `x`: a coption of values that differ in size"
    );
}

/// `Pair<T, N> { items: [T; N], inner: Single<T> }`, `Single<T>(Option<T>)`, in the newer format.
fn pair_and_single() -> [Value; 2] {
    [
        json!({
            "name": "Pair", "generics": [{"kind": "type", "name": "T"}, {"kind": "const", "name": "N", "type": "usize"}],
            "type": {"kind": "struct", "fields": [
                {"name": "items", "type": {"array": [{"generic": "T"}, {"generic": "N"}]}},
                {"name": "inner", "type": {"defined": {"name": "Single", "generics": [{"kind": "type", "type": {"generic": "T"}}]}}},
            ]},
        }),
        json!({
            "name": "Single", "generics": [{"kind": "type", "name": "T"}],
            "type": {"kind": "struct", "fields": [{"option": {"generic": "T"}}]},
        }),
    ]
}

fn pair(argument: &Value, length: &str) -> Value {
    json!({"defined": {"name": "Pair", "generics": [
        {"kind": "type", "type": argument}, {"kind": "const", "value": length}]}})
}

#[test]
fn generic_types_and_lengths_are_what_each_use_says() {
    let fields = json!([
        {"name": "a", "type": pair(&json!("u8"), "2")},
        {"name": "b", "type": pair(&pair(&json!("bool"), "1"), "1_0")},
    ]);
    let bool_pair = |value: u8| vec![value, 0];
    let mut bytes = vec![1, 2, 1, 3];
    (0..10).for_each(|_| bytes.extend(bool_pair(1)));
    bytes.push(0);
    let inner = json!({"items": [true], "inner": [null]});
    assert_eq!(
        read(&fields, &pair_and_single(), &[bytes]).unwrap(),
        [json!({
            "a": {"items": [1, 2], "inner": [3]},
            "b": {"items": vec![inner; 10], "inner": [null]},
        })]
    );
}

#[test]
fn generics_of_the_older_format_are_read_too() {
    let file = json!({
        "version": "0.1.0", "name": "old", "instructions": [],
        "events": [{"name": "E", "fields": [
            {"name": "aB", "type": {"definedWithTypeArgs": {"name": "Outer", "args": [{"type": "u16"}, {"value": "3"}]}}, "index": false},
            {"name": "t", "type": {"defined": "Tuple"}, "index": false},
            {"name": "c", "type": {"coption": "publicKey"}, "index": false},
            {"name": "w", "type": "u256", "index": false},
        ]}],
        "types": [
            {"name": "Outer", "generics": ["T", "N"], "type": {"kind": "struct", "fields": [
                {"name": "innerOne", "type": {"definedWithTypeArgs": {"name": "Inner", "args": [{"generic": "N"}, {"generic": "T"}]}}}]}},
            {"name": "Inner", "generics": ["M", "U"], "type": {"kind": "struct", "fields": [
                {"name": "list", "type": {"genericLenArray": [{"generic": "U"}, "M"]}}]}},
            {"name": "Tuple", "type": {"kind": "struct", "fields": ["u8", {"option": {"defined": "Name"}}]}},
            {"name": "Name", "type": {"kind": "alias", "value": "string"}},
        ],
    });
    let decoder = Decoder::new(PROGRAM, &[version(0, &file)]).unwrap();
    let opening = {
        use sha2::Digest as _;
        sha2::Sha256::digest(b"event:E")[..8].to_vec()
    };
    let fields = [
        &opening[..],
        &[1, 0, 2, 0, 3, 0],
        &[9, 1, 2, 0, 0, 0, b'h', b'i'],
        &[1, 0, 0, 0],
        &[0; 32],
        &[5],
        &[0; 31],
    ];
    let decoded = decoder
        .decode(
            &batch(&[Row::log(1, fields.concat())]),
            &DecodePolicy::default(),
        )
        .unwrap();
    assert_eq!(
        event(&decoder, &decoded, 0, 0).1,
        json!({"a_b": {"inner_one": {"list": [1, 2, 3]}}, "t": [9, "hi"], "c": base58(&[0; 32]), "w": "5"})
    );
}

#[test]
fn generics_that_make_no_sense_are_refused() {
    let types = pair_and_single();
    let refused = |kind: &Value| refusal(&one(kind), &types);
    for (kind, words) in [
        (
            json!({"generic": "T"}),
            "field `x`: type `T` is not defined",
        ),
        (
            json!({"array": ["u8", {"generic": "N"}]}),
            "`N` is no number",
        ),
        (
            defined("Pair"),
            "type `Pair` has 2 generic parameters, and is used with 0",
        ),
        (pair(&json!("u8"), "MAX"), "`MAX` is no number"),
        (pair(&json!("u8"), "-1"), "`-1` is no number"),
        // A number where a type belongs.
        (
            json!({"defined": {"name": "Single", "generics": [{"kind": "const", "value": "3"}]}}),
            "type `T` is not defined",
        ),
    ] {
        let message = refused(&kind);
        assert!(message.contains(words), "{message}");
    }
    let growing = json!({
        "name": "Grow", "generics": [{"kind": "type", "name": "T"}],
        "type": {"kind": "struct", "fields": [{"name": "next", "type": {"vec":
            {"defined": {"name": "Grow", "generics": [{"kind": "type", "type": {"vec": {"generic": "T"}}}]}}}}]},
    });
    let use_of_it =
        json!({"defined": {"name": "Grow", "generics": [{"kind": "type", "type": "u8"}]}});
    assert!(refusal(&one(&use_of_it), &[growing]).contains("type `Grow` contains itself"));
}

/// What costs a few bytes to say must not cost more than a few to refuse.
#[test]
fn generics_that_explode_are_refused() {
    let twice = json!({
        "name": "Twice", "generics": [{"kind": "type", "name": "T"}],
        "type": {"kind": "struct", "fields": [{"name": "l", "type": {"generic": "T"}}, {"name": "r", "type": {"generic": "T"}}]},
    });
    let applied = |name: &str, argument: &Value| json!({"defined": {"name": name, "generics": [{"kind": "type", "type": argument}]}});
    let wide = (0..20).fold(json!("u8"), |inner, _| applied("Twice", &inner));
    assert!(refusal(&one(&wide), std::slice::from_ref(&twice)).contains("too many parts"));

    // Each level wraps what it is given eight deep: 8³ without any nesting of 64 in the file.
    let mut types = Vec::new();
    let mut below = "option".to_owned();
    for level in 0..3 {
        let name = format!("Deep{level}");
        let wrap = |inner: Value| {
            if below == "option" {
                json!({"option": inner})
            } else {
                applied(&below, &inner)
            }
        };
        let field = (0..8).fold(json!({"generic": "T"}), |inner, _| wrap(inner));
        types.push(json!({
            "name": name, "generics": [{"kind": "type", "name": "T"}],
            "type": {"kind": "struct", "fields": [{"name": "x", "type": field}]},
        }));
        below = name;
    }
    let message = refusal(&one(&applied("Deep2", &json!("u8"))), &types);
    assert!(message.contains("nested more than 64 deep"), "{message}");
}

#[test]
fn types_copied_from_memory_have_padding() {
    let inner = copied(
        "Inner",
        &json!({"kind": "c"}),
        &json!([{"name": "small", "type": "u16"}, {"name": "tiny", "type": "u8"}]),
    );
    let outer = copied(
        "Outer",
        &json!({"kind": "c"}),
        &json!([
            {"name": "flag", "type": "bool"}, {"name": "wide", "type": "u128"}, {"name": "key", "type": "pubkey"},
            {"name": "list", "type": {"array": [defined("Inner"), 2]}}, {"name": "last", "type": "u32"},
        ]),
    );
    // Offsets: 0, 8 (of 16, aligned to 8), 24, 56 (two of 4 bytes), 64; 68 padded to 72.
    let mut bytes = [0xcc; 72];
    bytes[0] = 1;
    bytes[8..24].copy_from_slice(&u128::MAX.to_le_bytes());
    bytes[24..56].copy_from_slice(&[3; 32]);
    bytes[56..64].copy_from_slice(&[1, 0, 2, 0xcc, 3, 0, 4, 0xcc]);
    bytes[64..68].copy_from_slice(&5u32.to_le_bytes());
    let fields = json!([{"name": "x", "type": defined("Outer")}, {"name": "after", "type": "u8"}]);
    let types = [outer, inner];
    let whole = [&bytes[..], &[9]].concat();
    assert_eq!(
        read(&fields, &types, std::slice::from_ref(&whole)).unwrap(),
        [json!({"x": {
            "flag": true, "wide": u128::MAX.to_string(), "key": base58(&[3; 32]),
            "list": [{"small": 1, "tiny": 2}, {"small": 3, "tiny": 4}], "last": 5,
        }, "after": 9})]
    );
    for end in 0..whole.len() {
        read(&fields, &types, &[whole[..end].to_vec()]).unwrap_err();
    }
    read(&fields, &types, &[[&whole[..], &[0]].concat()]).unwrap_err();

    let packed = |repr: &Value| {
        let types = [copied(
            "P",
            repr,
            &json!([{"name": "a", "type": "u8"}, {"name": "b", "type": "u64"}]),
        )];
        (1..40).find(|size| read(&one(&defined("P")), &types, &[vec![0; *size]]).is_ok())
    };
    assert_eq!(packed(&json!({"kind": "c"})), Some(16));
    assert_eq!(packed(&json!({"kind": "c", "packed": true})), Some(9));
    assert_eq!(packed(&json!({"kind": "rust", "packed": true})), Some(9));
    assert_eq!(packed(&json!({"kind": "c", "align": 32})), Some(32));
    // Without being copied from memory, `repr` says nothing of the bytes.
    let mut borsh = structure(
        "P",
        &json!([{"name": "a", "type": "u8"}, {"name": "b", "type": "u64"}]),
    );
    borsh["repr"] = json!({"kind": "c"});
    read(&one(&defined("P")), &[borsh], &[vec![0; 9]]).unwrap();
}

#[test]
fn an_event_copied_from_memory_is_padded_itself() {
    let mut file = idl(
        &json!([{"name": "a", "type": "u8"}, {"name": "b", "type": "u32"}, {"name": "c", "type": "u8"}]),
        &[],
    );
    file["types"][0]["serialization"] = json!("bytemuckunsafe");
    file["types"][0]["repr"] = json!({"kind": "c"});
    let decoder = Decoder::new(PROGRAM, &[version(0, &file)]).unwrap();
    let row = |bytes: &[u8]| Row::cpi(1, payload(bytes));
    let decoded = decoder
        .decode(
            &batch(&[
                row(&[1, 7, 7, 7, 2, 0, 0, 0, 3, 7, 7, 7]),
                row(&[1, 2, 0, 0, 0, 3]),
            ]),
            &DecodePolicy::default(),
        )
        .unwrap();
    assert_eq!(
        event(&decoder, &decoded, 0, 0).1,
        json!({"a": 1, "b": 2, "c": 3})
    );
    assert_eq!(
        reasons(&decoded),
        ["truncated_payload: field `b` at byte 9 needs 7 bytes, 5 left"]
    );
    assert_eq!(decoded.tables[0].1.column(6).null_count(), 0);
}

#[test]
fn what_nobody_can_place_is_refused_by_event_field_and_type() {
    let prefix = "v0.json: event `E` field `x`: ";
    let within = |definition: Value, others: &[Value]| {
        let types = [&[definition][..], others].concat();
        refusal(&one(&defined("P")), &types)
            .strip_prefix(prefix)
            .unwrap()
            .to_owned()
    };
    let field = |kind: Value| json!([{"name": "f", "type": kind}]);
    assert_eq!(
        within(copied("P", &Value::Null, &field(json!("u8"))), &[]),
        "type `P` is copied from memory, but its `repr` does not fix the order of its fields"
    );
    let unplaced =
        "type `P` is copied from memory, but its field `f` has no fixed place there".to_owned();
    let side = json!({"name": "Side", "type": {"kind": "enum", "variants": [{"name": "A"}, {"name": "B"}]}});
    for kind in [
        json!("string"),
        json!({"option": "u8"}),
        json!({"vec": "u8"}),
        defined("Side"),
    ] {
        let definition = copied("P", &json!({"kind": "c"}), &field(kind));
        assert_eq!(within(definition, std::slice::from_ref(&side)), unplaced);
    }
    let inner = structure("Q", &field(json!("u8")));
    assert_eq!(
        within(
            copied("P", &json!({"kind": "c"}), &field(defined("Q"))),
            &[inner]
        ),
        "type `Q` is copied from memory, but its `repr` does not fix the order of its fields"
    );
    let mut own = structure("P", &field(json!("u8")));
    own["serialization"] = json!({"custom": "mine"});
    assert_eq!(
        within(own, &[]),
        "type `P, serialized in its own way` is not supported"
    );
    assert_eq!(
        refusal(&one(&json!("u512")), &[]),
        format!("{prefix}type `u512` is not supported")
    );
}

#[test]
fn discriminators_have_any_length_and_the_default_is_anchors() {
    let mut file = idl(&one(&json!("u8")), &[]);
    file["events"] = json!([
        {"name": "E", "discriminator": [5]},
        {"name": "Long", "discriminator": (1..=20).collect::<Vec<u8>>()},
        {"name": "Plain"},
    ]);
    for name in ["Long", "Plain"] {
        let definition = structure(name, &one(&json!("u16")));
        file["types"].as_array_mut().unwrap().push(definition);
    }
    let decoder = Decoder::new(PROGRAM, &[version(0, &file)]).unwrap();
    let plain = {
        use sha2::Digest as _;
        sha2::Sha256::digest(b"event:Plain")[..8].to_vec()
    };
    let rows = [
        Row::log(1, vec![5, 6]),
        Row::log(1, (1..=22).collect::<Vec<u8>>()),
        Row::log(1, [&plain[..], &[1, 0]].concat()),
        // Too short for any event, and for anything of Anchor's.
        Row::log(1, vec![6, 6]),
        Row::log(1, (1..=19).collect::<Vec<u8>>()),
    ];
    let decoded = decoder
        .decode(&batch(&rows), &DecodePolicy::default())
        .unwrap();
    assert_eq!((decoded.counts.decoded, decoded.counts.foreign), (3, 1));
    assert_eq!(
        event(&decoder, &decoded, 1, 0),
        ("Long".to_owned(), json!({"x": 0x1615}))
    );
    assert_eq!(reasons(&decoded).len(), 1);
}
