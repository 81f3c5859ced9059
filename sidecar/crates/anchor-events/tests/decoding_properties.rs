//! Random types and values, written by a Borsh writer of the tests' own, come back equal; a byte less or
//! more is refused; no bytes under any IDL panic.
#![allow(clippy::unwrap_used)]

mod support;

use anchor_events::{DecodePolicy, Decoder, IdlVersion};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};
use serde_json::{Map, Value, json};
use support::{
    PROGRAM, Row, base58, batch, cell, event, hexadecimal, idl, instructions, payload, version,
};

/// Deterministic from a seed that proptest shrinks and reports.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> usize {
        usize::try_from(self.next() % bound).unwrap()
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        // Extremes are where sign and width go wrong.
        match self.below(6) {
            0 => [0; N],
            1 => [0xff; N],
            _ => std::array::from_fn(|_| self.next().to_le_bytes()[0]),
        }
    }
}

#[derive(Clone, Debug)]
enum Type {
    Scalar(&'static str),
    Option(Box<Type>),
    Coption(Box<Type>),
    Vec(Box<Type>),
    Array(Box<Type>, usize),
    Struct(String, Vec<Type>),
    Tuple(String, Vec<Type>),
    Enum(String, Vec<(bool, Vec<Type>)>),
    Alias(String, Box<Type>),
    /// `Name<T, N> { f0: [T; N], f1: Option<T>, f2: T }`
    Generic(String, Box<Type>, usize),
    /// Copied from memory, packed or not.
    Copied(String, bool, Vec<Type>),
}

/// Those of fixed size first.
const SCALARS: [&str; 18] = [
    "bool", "u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "u128", "i128", "f32", "f64",
    "pubkey", "u256", "i256", "string", "bytes",
];

/// A type of fixed size that can be copied from memory.
fn random_plain(random: &mut Random, depth: usize, definitions: &mut Vec<Value>) -> Type {
    match if depth >= 3 { 0 } else { random.below(8) } {
        6 => Type::Array(
            Box::new(random_plain(random, depth + 1, definitions)),
            1 + random.below(3),
        ),
        7 => {
            let kinds: Vec<_> = (0..=random.below(4))
                .map(|_| random_plain(random, depth + 1, definitions))
                .collect();
            let (name, packed) = (format!("M{:x}", random.next()), random.below(3) == 0);
            definitions.push(json!({
                "name": name, "serialization": if packed { "bytemuckunsafe" } else { "bytemuck" },
                "repr": {"kind": "c", "packed": packed}, "type": {"kind": "struct", "fields": named(&kinds)},
            }));
            Type::Copied(name, packed, kinds)
        }
        _ => Type::Scalar(SCALARS[random.below(16)]),
    }
}

/// Bytes of a value in memory and what their address is a multiple of, as C has it.
fn size_and_align(kind: &Type) -> (usize, usize) {
    match kind {
        Type::Array(inner, count) => {
            let (size, align) = size_and_align(inner);
            (size * count, align)
        }
        Type::Copied(_, packed, kinds) => {
            let (mut size, mut largest) = (0usize, 1);
            for kind in kinds {
                let (bytes, align) = size_and_align(kind);
                let align = if *packed { 1 } else { align };
                size = size.next_multiple_of(align) + bytes;
                largest = largest.max(align);
            }
            (size.next_multiple_of(largest), largest)
        }
        Type::Scalar("pubkey") => (32, 1),
        Type::Scalar("bool") => (1, 1),
        Type::Scalar(name) => {
            let bits: usize = name[1..].parse().unwrap();
            (bits / 8, (bits / 8).min(8))
        }
        other => unreachable!("{other:?}"),
    }
}

/// A random type; definitions it needs are added to the list.
fn random_type(random: &mut Random, depth: usize, definitions: &mut Vec<Value>) -> Type {
    let name = |random: &mut Random| format!("T{:x}", random.next());
    let few = |random: &mut Random, definitions: &mut Vec<Value>| {
        (0..=random.below(3))
            .map(|_| random_type(random, depth + 1, definitions))
            .collect::<Vec<_>>()
    };
    let choice = if depth >= 4 { 0 } else { random.below(17) };
    let defined = match choice {
        7 => return Type::Option(Box::new(random_type(random, depth + 1, definitions))),
        14 => return Type::Coption(Box::new(random_plain(random, depth + 1, definitions))),
        15 => return random_plain(random, 0, definitions),
        16 => {
            let argument = random_type(random, depth + 1, definitions);
            Type::Generic(name(random), Box::new(argument), 1 + random.below(3))
        }
        8 => return Type::Vec(Box::new(random_type(random, depth + 1, definitions))),
        9 => {
            return Type::Array(
                Box::new(random_type(random, depth + 1, definitions)),
                random.below(4),
            );
        }
        10 => Type::Struct(name(random), few(random, definitions)),
        11 => Type::Tuple(name(random), few(random, definitions)),
        12 => {
            let variants = (0..=random.below(4)).map(|place| {
                let kinds = if place == 0 {
                    Vec::new()
                } else {
                    few(random, definitions)
                };
                (random.below(2) == 0, kinds)
            });
            let variants = variants.collect();
            Type::Enum(name(random), variants)
        }
        13 => Type::Alias(
            name(random),
            Box::new(random_type(random, depth + 1, definitions)),
        ),
        _ => return Type::Scalar(SCALARS[random.below(18)]),
    };
    if let Type::Generic(name, ..) = &defined {
        let of_type = json!({"generic": "T"});
        definitions.push(json!({
            "name": name, "generics": [{"kind": "type", "name": "T"}, {"kind": "const", "name": "N", "type": "usize"}],
            "type": {"kind": "struct", "fields": [
                {"name": "f0", "type": {"array": [of_type, {"generic": "N"}]}},
                {"name": "f1", "type": {"option": of_type}}, {"name": "f2", "type": of_type}]},
        }));
        return defined;
    }
    let (name, body) = match &defined {
        Type::Struct(name, kinds) => (name, json!({"kind": "struct", "fields": named(kinds)})),
        Type::Tuple(name, kinds) => (
            name,
            json!({"kind": "struct", "fields": kinds.iter().map(spelled).collect::<Vec<_>>()}),
        ),
        Type::Enum(name, variants) => {
            let variants = variants.iter().enumerate().map(|(place, (tuple, kinds))| {
                let fields = if *tuple {
                    json!(kinds.iter().map(spelled).collect::<Vec<_>>())
                } else {
                    json!(named(kinds))
                };
                if kinds.is_empty() {
                    json!({"name": format!("V{place}")})
                } else {
                    json!({"name": format!("V{place}"), "fields": fields})
                }
            });
            (
                name,
                json!({"kind": "enum", "variants": variants.collect::<Vec<_>>()}),
            )
        }
        Type::Alias(name, target) => (name, json!({"kind": "type", "alias": spelled(target)})),
        _ => unreachable!(),
    };
    definitions.push(json!({"name": name, "type": body}));
    defined
}

fn named(kinds: &[Type]) -> Vec<Value> {
    kinds
        .iter()
        .enumerate()
        .map(|(place, kind)| json!({"name": format!("f{place}"), "type": spelled(kind)}))
        .collect()
}

fn spelled(kind: &Type) -> Value {
    match kind {
        Type::Scalar(name) => json!(name),
        Type::Option(inner) => json!({"option": spelled(inner)}),
        Type::Coption(inner) => json!({"coption": spelled(inner)}),
        Type::Vec(inner) => json!({"vec": spelled(inner)}),
        Type::Array(inner, length) => json!({"array": [spelled(inner), length]}),
        Type::Struct(name, _)
        | Type::Tuple(name, _)
        | Type::Enum(name, _)
        | Type::Alias(name, _)
        | Type::Copied(name, ..) => {
            json!({"defined": {"name": name}})
        }
        Type::Generic(name, argument, length) => json!({"defined": {"name": name, "generics": [
            {"kind": "type", "type": spelled(argument)}, {"kind": "const", "value": length.to_string()}]}}),
    }
}

/// A file of the newer format, spelled in the older one.
fn older(value: &Value) -> Value {
    let object = match value {
        Value::Array(items) => return items.iter().map(older).collect(),
        Value::String(word) if word == "pubkey" => return json!("publicKey"),
        Value::Object(object) => object,
        other => return other.clone(),
    };
    if let Some(defined) = object.get("defined") {
        let Some(arguments) = defined.get("generics").and_then(Value::as_array) else {
            return json!({"defined": defined["name"]});
        };
        let arguments: Vec<_> = arguments
            .iter()
            .map(|argument| match &argument["kind"] {
                Value::String(kind) if kind == "const" => json!({"value": argument["value"]}),
                _ => json!({"type": older(&argument["type"])}),
            })
            .collect();
        return json!({"definedWithTypeArgs": {"name": defined["name"], "args": arguments}});
    }
    if let Some(name) = value
        .pointer("/array/1/generic")
        .filter(|name| name.is_string())
    {
        return json!({"genericLenArray": [older(&object["array"][0]), name]});
    }
    if let Some(target) = object.get("alias") {
        return json!({"kind": "alias", "value": older(target)});
    }
    let members = object.iter().map(|(key, value)| {
        let value = match (key.as_str(), value) {
            ("generics", Value::Array(parameters)) => parameters
                .iter()
                .map(|parameter| parameter["name"].clone())
                .collect(),
            _ => older(value),
        };
        (key.clone(), value)
    });
    Value::Object(members.collect())
}

/// The IDL in the older format: event `E`, with its discriminator stated.
fn older_idl(fields: &[Type], definitions: &[Value]) -> Value {
    let fields = older(&json!(named(fields)));
    json!({
        "version": "0.1.0", "name": "n", "instructions": [], "types": older(&json!(definitions)),
        "events": [{"name": "E", "fields": fields, "discriminator": [1, 2, 3, 4, 5, 6, 7, 8]}],
    })
}

/// Writes a random value of a type without parts, and says what it should read as.
fn write_scalar(random: &mut Random, name: &str, output: &mut Vec<u8>) -> Value {
    macro_rules! number {
        ($kind:ty, $spell:expr) => {{
            let bytes = random.bytes();
            output.extend(bytes);
            $spell(<$kind>::from_le_bytes(bytes))
        }};
    }
    match name {
        "bool" => {
            let value = random.below(2) == 1;
            output.push(u8::from(value));
            json!(value)
        }
        "u8" => number!(u8, |value| json!(value)),
        "i8" => number!(i8, |value| json!(value)),
        "u16" => number!(u16, |value| json!(value)),
        "i16" => number!(i16, |value| json!(value)),
        "u32" => number!(u32, |value| json!(value)),
        "i32" => number!(i32, |value| json!(value)),
        "u64" => number!(u64, |value: u64| json!(value.to_string())),
        "i64" => number!(i64, |value: i64| json!(value.to_string())),
        "u128" => number!(u128, |value: u128| json!(value.to_string())),
        "i128" => number!(i128, |value: i128| json!(value.to_string())),
        "u256" => {
            let bytes = random.bytes::<32>();
            output.extend(bytes);
            json!(decimal(&bytes))
        }
        "i256" => {
            let bytes = random.bytes::<32>();
            output.extend(bytes);
            if bytes[31] < 128 {
                json!(decimal(&bytes))
            } else {
                // −x = ¬x + 1, and ¬x is below 2²⁵⁵, so adding 1 cannot overflow.
                let mut magnitude = bytes.map(|byte| !byte);
                for byte in &mut magnitude {
                    *byte = byte.wrapping_add(1);
                    if *byte != 0 {
                        break;
                    }
                }
                json!(format!("-{}", decimal(&magnitude)))
            }
        }
        "f32" => number!(f32, |value: f32| if value.is_finite() {
            serde_json::from_str(&format!("{value:?}")).unwrap()
        } else {
            odd_float(value.into())
        }),
        "f64" => number!(f64, |value: f64| if value.is_finite() {
            json!(value)
        } else {
            odd_float(value)
        }),
        "pubkey" => {
            let bytes = random.bytes::<32>();
            output.extend(bytes);
            json!(base58(&bytes))
        }
        "string" => {
            let alphabet = ["a", "\"", "\\", "\n", "é", "🦀", "\u{1}", "\u{7f}", " "];
            let text: String = (0..random.below(6))
                .map(|_| alphabet[random.below(9)])
                .collect();
            length(text.len(), output);
            output.extend(text.as_bytes());
            json!(text)
        }
        _ => {
            let bytes = random.bytes::<5>();
            length(5, output);
            output.extend(bytes);
            json!(hexadecimal(&bytes))
        }
    }
}

/// Writes a random value and says what it should read as.
fn write(random: &mut Random, kind: &Type, output: &mut Vec<u8>) -> Value {
    match kind {
        Type::Scalar(name) => write_scalar(random, name, output),
        Type::Option(inner) => {
            let some = random.below(2) == 1;
            output.push(u8::from(some));
            if some {
                write(random, inner, output)
            } else {
                Value::Null
            }
        }
        Type::Coption(inner) => {
            let some = random.below(2) == 1;
            output.extend(u32::from(some).to_le_bytes());
            let value = write(random, inner, output);
            if some { value } else { Value::Null }
        }
        Type::Generic(_, argument, count) => {
            let argument = argument.as_ref();
            let fields = [
                Type::Array(argument.clone().into(), *count),
                Type::Option(argument.clone().into()),
                argument.clone(),
            ];
            write_named(random, &fields, output)
        }
        Type::Copied(_, packed, kinds) => {
            let start = output.len();
            let mut object = Map::new();
            for (place, kind) in kinds.iter().enumerate() {
                if !packed {
                    let align = size_and_align(kind).1;
                    output.resize(start + (output.len() - start).next_multiple_of(align), 0xcc);
                }
                object.insert(format!("f{place}"), write(random, kind, output));
            }
            output.resize(start + size_and_align(kind).0, 0xcc);
            Value::Object(object)
        }
        Type::Vec(inner) => {
            let count = random.below(4);
            length(count, output);
            (0..count).map(|_| write(random, inner, output)).collect()
        }
        Type::Array(inner, count) => (0..*count).map(|_| write(random, inner, output)).collect(),
        Type::Struct(_, kinds) => write_named(random, kinds, output),
        Type::Tuple(_, kinds) => kinds
            .iter()
            .map(|kind| write(random, kind, output))
            .collect(),
        Type::Enum(_, variants) => {
            let place = random.below(variants.len() as u64);
            output.push(u8::try_from(place).unwrap());
            let (tuple, kinds) = &variants[place];
            let fields = if *tuple && !kinds.is_empty() {
                kinds
                    .iter()
                    .map(|kind| write(random, kind, output))
                    .collect()
            } else {
                write_named(random, kinds, output)
            };
            json!({format!("V{place}"): fields})
        }
        Type::Alias(_, target) => write(random, target, output),
    }
}

fn write_named(random: &mut Random, kinds: &[Type], output: &mut Vec<u8>) -> Value {
    let fields = kinds
        .iter()
        .enumerate()
        .map(|(place, kind)| (format!("f{place}"), write(random, kind, output)));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// Decimal digits of a little-endian number, by schoolbook multiplication.
fn decimal(bytes: &[u8; 32]) -> String {
    let mut digits = vec![0u32];
    for byte in bytes.iter().rev() {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            carry += *digit * 256;
            *digit = carry % 10;
            carry /= 10;
        }
        while carry > 0 {
            digits.push(carry % 10);
            carry /= 10;
        }
    }
    let digits = digits.iter().rev();
    digits
        .map(|digit| char::from_digit(*digit, 10).unwrap())
        .collect()
}

fn length(count: usize, output: &mut Vec<u8>) {
    output.extend(u32::try_from(count).unwrap().to_le_bytes());
}

fn odd_float(value: f64) -> Value {
    json!(if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    })
}

/// A random IDL, or none where its types have lists of elements without size, and its fields.
fn random_decoder(random: &mut Random) -> Option<(Decoder, Vec<Type>)> {
    let mut definitions = Vec::new();
    let fields: Vec<_> = (0..random.below(7))
        .map(|_| random_type(random, 0, &mut definitions))
        .collect();
    let json = if random.below(3) == 0 {
        older_idl(&fields, &definitions)
    } else {
        idl(&json!(named(&fields)), &definitions)
    };
    match Decoder::new(PROGRAM, &[version(0, &json)]) {
        Ok(decoder) => Some((decoder, fields)),
        Err(error) => {
            assert!(error.to_string().contains("no size"), "{error}: {json}");
            None
        }
    }
}

proptest! {
    #[test]
    fn random_values_round_trip_and_every_other_length_is_refused(seed in any::<u64>()) {
        let mut random = Random(seed);
        let Some((decoder, fields)) = random_decoder(&mut random) else { return Ok(()) };
        let mut bytes = Vec::new();
        let expected = write_named(&mut random, &fields, &mut bytes);
        let whole = payload(&bytes);

        let decoded = decoder.decode(&batch(&[Row::log(1, whole.clone())]), &DecodePolicy::default()).unwrap();
        prop_assert_eq!(decoded.counts.decoded, 1, "{:?}", support::reasons(&decoded));
        prop_assert_eq!(event(&decoder, &decoded, 0, 0).1, expected);

        let mut rows: Vec<_> = (8..whole.len()).map(|end| Row::cpi(1, &whole[..end])).collect();
        rows.extend([0, 1, 0xff].map(|byte| Row::cpi(2, [&whole[..], &[byte]].concat())));
        let decoded = decoder.decode(&batch(&rows), &DecodePolicy::default()).unwrap();
        prop_assert_eq!(decoded.counts.undecodable, rows.len() as u64);
    }

    /// The same fields as an event's and as arguments: the same values, whatever accounts are given.
    #[test]
    fn arguments_are_read_as_fields_are(seed in any::<u64>(), given in prop::collection::vec(any::<u8>(), 0..5)) {
        let mut random = Random(seed);
        let mut definitions = Vec::new();
        let fields: Vec<_> = (0..=random.below(6)).map(|_| random_type(&mut random, 0, &mut definitions)).collect();
        let mut file = idl(&json!(named(&fields)), &definitions);
        file["instructions"] = json!([{
            "name": "told", "discriminator": [1, 2, 3, 4, 5, 6, 7, 8], "args": named(&fields),
            "accounts": [{"name": "a"}, {"name": "b"}],
        }]);
        let Ok(decoder) = Decoder::with_instructions(PROGRAM, &[version(0, &file)]) else { return Ok(()) };
        let mut bytes = Vec::new();
        let expected = write_named(&mut random, &fields, &mut bytes);
        let keys = given.iter().flat_map(|byte| [*byte; 32]).collect();
        let rows = [(Row::log(1, payload(&bytes)), Some(keys)), (Row::log(1, payload(&[&bytes[..], &[0]].concat())), None)];
        let decoded = decoder.decode(&instructions(&rows), &DecodePolicy::default()).unwrap();
        prop_assert_eq!((decoded.counts.decoded, decoded.counts.undecodable), (1, 1));
        let (_, batch) = &decoded.tables[0];
        let schema = batch.schema();
        for (name, value) in expected.as_object().unwrap() {
            let (place, field) = schema.column_with_name(name).unwrap();
            prop_assert_eq!(&cell(field, batch.column(place), 0), value);
        }
        for (place, name) in ["account_a", "account_b"].into_iter().enumerate() {
            let (column, field) = schema.column_with_name(name).unwrap();
            let wanted = given.get(place).map(|byte| bs58::encode([*byte; 32]).into_string());
            prop_assert_eq!(cell(field, batch.column(column), 0), json!(wanted));
        }
    }

    #[test]
    fn any_bytes_under_any_idl_are_decoded_or_quarantined(
        seed in any::<u64>(),
        bytes in prop::collection::vec(prop::collection::vec(0..4u8, 0..80), 0..8),
        wild in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let Some((decoder, _)) = random_decoder(&mut Random(seed)) else { return Ok(()) };
        let mut rows: Vec<_> = bytes.iter().map(|bytes| Row::cpi(1, payload(bytes))).collect();
        rows.push(Row::log(1, payload(&wild)));
        rows.push(Row::log(1, wild));
        let decoded = decoder.decode(&batch(&rows), &DecodePolicy::default()).unwrap();
        let counts = decoded.counts;
        prop_assert_eq!(counts.records, counts.twins_folded + counts.foreign + counts.decoded + counts.undecodable);
        prop_assert_eq!(decoded.quarantine.num_rows() as u64, counts.undecodable);
    }

    #[test]
    fn any_file_makes_a_decoder_or_an_error(
        seed in any::<u64>(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut random = Random(seed);
        let mut definitions = Vec::new();
        let fields: Vec<_> = (0..3).map(|_| random_type(&mut random, 0, &mut definitions)).collect();
        let mut file = idl(&json!(named(&fields)), &definitions).to_string().into_bytes();
        let place = place.index(file.len());
        file[place] = byte;
        let of = |json: &[u8]| IdlVersion { from_slot: 0, label: "x".into(), json: json.to_vec() };
        if let Ok(decoder) = Decoder::new(PROGRAM, &[of(&file)]) {
            prop_assert!(decoder.tables().len() <= 1);
        }
        let _ = Decoder::new(PROGRAM, &[of(&file[..cut.index(file.len())])]);
    }
}

/// Words that mean something in IDLs.
const WORDS: [&str; 40] = [
    "name",
    "type",
    "kind",
    "struct",
    "enum",
    "fields",
    "variants",
    "alias",
    "value",
    "generics",
    "generic",
    "const",
    "usize",
    "defined",
    "definedWithTypeArgs",
    "args",
    "option",
    "coption",
    "vec",
    "array",
    "genericLenArray",
    "events",
    "types",
    "accounts",
    "metadata",
    "spec",
    "0.1.0",
    "address",
    "discriminator",
    "serialization",
    "bytemuck",
    "repr",
    "c",
    "packed",
    "align",
    "docs",
    "E",
    "T",
    "u8",
    "coption<T>",
];

/// JSON of any shape, made of such words.
fn random_json(random: &mut Random, depth: usize) -> Value {
    let word = |random: &mut Random| WORDS[random.below(40)];
    match random.below(if depth > 4 { 6 } else { 10 }) {
        0 => Value::Null,
        1 => json!(random.below(2) == 1),
        2 => json!([0, 1, 8, 4096, u64::MAX][random.below(5)]),
        3 => json!(-1.5),
        4 => json!(word(random).repeat(random.below(3))),
        5 => json!(word(random)),
        6 => (0..random.below(4))
            .map(|_| random_json(random, depth + 1))
            .collect(),
        _ => {
            let members = (0..random.below(4))
                .map(|_| (word(random).to_owned(), random_json(random, depth + 1)));
            Value::Object(members.collect())
        }
    }
}

/// Every place in a JSON value, as pointers.
fn places(value: &Value, pointer: &str, found: &mut Vec<String>) {
    found.push(pointer.to_owned());
    match value {
        Value::Array(items) => {
            for (place, item) in items.iter().enumerate() {
                places(item, &format!("{pointer}/{place}"), found);
            }
        }
        Value::Object(members) => {
            for (key, member) in members {
                places(member, &format!("{pointer}/{key}"), found);
            }
        }
        _ => {}
    }
}

proptest! {
    /// Parts of a file are replaced by anything, or by other parts of it, which makes types that contain
    /// themselves, events without types, arguments without parameters and the like.
    #[test]
    fn any_json_makes_a_decoder_that_reads_any_bytes_or_an_error(
        seed in any::<u64>(),
        bytes in prop::collection::vec(0..4u8, 0..80),
    ) {
        let mut random = Random(seed);
        let mut definitions = Vec::new();
        let fields: Vec<_> = (0..3).map(|_| random_type(&mut random, 0, &mut definitions)).collect();
        let mut file = if random.below(2) == 0 {
            idl(&json!(named(&fields)), &definitions)
        } else {
            older_idl(&fields, &definitions)
        };
        let group = json!({"name": "g", "accounts": [{"name": "a", "optional": true}, {"name": "b"}]});
        file["instructions"] = json!([{
            "name": "told", "discriminator": [1, 2, 3, 4, 5, 6, 7, 8], "accounts": [{"name": "a"}, group],
            "args": file.pointer("/events/0/fields").cloned().unwrap_or_else(|| json!(named(&fields))),
        }]);
        for _ in 0..=random.below(3) {
            let mut found = Vec::new();
            places(&file, "", &mut found);
            let other = file.pointer(&found[random.below(found.len() as u64)]).cloned();
            let other = if random.below(2) == 0 { other.unwrap() } else { random_json(&mut random, 0) };
            *file.pointer_mut(&found[random.below(found.len() as u64)]).unwrap() = other;
        }
        if let Ok(decoder) = Decoder::new(PROGRAM, &[version(0, &file)]) {
            let rows = [Row::cpi(1, payload(&bytes)), Row::log(2, bytes.clone())];
            let decoded = decoder.decode(&batch(&rows), &DecodePolicy::default()).unwrap();
            prop_assert_eq!(decoded.counts.records, 2);
        }
        if let Ok(decoder) = Decoder::with_instructions(PROGRAM, &[version(0, &file)]) {
            let given = bytes.iter().take(7).flat_map(|byte| [*byte; 32]).collect();
            let rows = [(Row::log(1, payload(&bytes)), Some(given)), (Row::log(2, bytes), None)];
            let decoded = decoder.decode(&instructions(&rows), &DecodePolicy::default()).unwrap();
            prop_assert_eq!(decoded.counts.instructions.records, 2);
        }
    }
}
