//! Values in Borsh, each written twice by one call: as the bytes a program says, and as the JSON that the truth says.
//!
//! No decoder is involved: a value is known before it is encoded.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use crate::{Pubkey, base58, hex};

/// A value as bytes and as JSON.
pub(crate) type Encoded = (Vec<u8>, Value);

/// An integer of 64 bits or more: JSON has it as a decimal string.
macro_rules! wide {
    ($value:expr) => {{
        let value = $value;
        (
            value.to_le_bytes().to_vec(),
            serde_json::Value::String(value.to_string()),
        )
    }};
}

/// An integer of fewer than 64 bits, or a float of 32: JSON has it as a number.
macro_rules! narrow {
    ($value:expr) => {{
        let value = $value;
        (value.to_le_bytes().to_vec(), serde_json::json!(value))
    }};
}

pub(crate) use {narrow, wide};

pub(crate) fn boolean(value: bool) -> Encoded {
    (vec![u8::from(value)], json!(value))
}

/// A float of 64 bits; what JSON cannot express is text.
pub(crate) fn float(value: f64) -> Encoded {
    let json = if value.is_nan() {
        json!("NaN")
    } else if value.is_infinite() {
        json!(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        json!(value)
    };
    (value.to_le_bytes().to_vec(), json)
}

pub(crate) fn pubkey(random: &mut ChaCha8Rng) -> Encoded {
    let key: Pubkey = random.random();
    (key.to_vec(), Value::String(base58(&key)))
}

/// A text. Postgres refuses U+0000, so the warehouse holds the six characters `\u0000` in its place, and so does the truth.
pub(crate) fn string(text: &str) -> Encoded {
    (
        [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat(),
        json!(text.replace('\0', "\\u0000")),
    )
}

pub(crate) fn bytes(value: &[u8]) -> Encoded {
    (
        [&(value.len() as u32).to_le_bytes()[..], value].concat(),
        Value::String(hex(value)),
    )
}

pub(crate) fn option(value: Option<Encoded>) -> Encoded {
    match value {
        None => (vec![0], Value::Null),
        Some((bytes, value)) => ([&[1][..], &bytes].concat(), value),
    }
}

pub(crate) fn array(items: Vec<Encoded>) -> Encoded {
    let (bytes, values): (Vec<Vec<u8>>, Vec<Value>) = items.into_iter().unzip();
    (bytes.concat(), Value::Array(values))
}

pub(crate) fn vector(items: Vec<Encoded>) -> Encoded {
    let count = (items.len() as u32).to_le_bytes();
    let (bytes, values) = array(items);
    ([&count[..], &bytes].concat(), values)
}

pub(crate) fn structure(fields: Vec<(&str, Encoded)>) -> Encoded {
    let mut bytes = Vec::new();
    let mut object = Map::new();
    for (name, (encoded, value)) in fields {
        bytes.extend(encoded);
        object.insert(name.into(), value);
    }
    (bytes, Value::Object(object))
}

/// An enum's variant with its content.
pub(crate) fn variant(index: u8, name: &str, (bytes, value): Encoded) -> Encoded {
    ([&[index][..], &bytes].concat(), json!({ name: value }))
}
