//! Nested values as JSON text, written straight from payload bytes into an Arrow builder.
//!
//! Integers of 64 bits and wider are decimal strings (readers of JSON lose digits), narrower ones numbers;
//! addresses base58, bytes lower-case hex, enums `{"Name": {…}}`, none `null`. Postgres refuses U+0000 even
//! escaped: it becomes the six characters `\u0000`.

use std::fmt::{self, Write};

use super::layout::{Arena, Fields, Node, NodeId, Scalar, Shape};
use super::payload::{Cursor, Fault};
use super::wide;

/// Why a value was not written.
pub(super) enum WriteFault {
    /// The bytes are not a value.
    Payload,
    /// The sink is full.
    Full,
}

impl From<Fault> for WriteFault {
    fn from(_: Fault) -> Self {
        Self::Payload
    }
}

impl From<fmt::Error> for WriteFault {
    fn from(_: fmt::Error) -> Self {
        Self::Full
    }
}

type Written = Result<(), WriteFault>;

/// A JSON object key with its colon.
pub(super) fn key(name: &str) -> Box<str> {
    let mut text = String::with_capacity(name.len() + 3);
    // Writing to a String cannot fail.
    let _ = write_string(&mut text, name);
    text.push(':');
    text.into_boxed_str()
}

/// Writes one value.
pub(super) fn write(
    sink: &mut impl Write,
    arena: &Arena,
    id: NodeId,
    cursor: &mut Cursor<'_>,
) -> Written {
    match arena.node(id) {
        Node::Scalar(scalar) => write_scalar(sink, *scalar, cursor),
        Node::Option(inner) => {
            if cursor.option()? {
                write(sink, arena, *inner, cursor)
            } else {
                Ok(sink.write_str("null")?)
            }
        }
        Node::Coption(inner) => {
            if cursor.coption()? {
                write(sink, arena, *inner, cursor)
            } else {
                cursor.take(arena.least(*inner))?;
                Ok(sink.write_str("null")?)
            }
        }
        Node::Padded {
            before,
            inner,
            after,
        } => {
            cursor.take(*before)?;
            write(sink, arena, *inner, cursor)?;
            Ok(cursor.take(*after).map(drop)?)
        }
        Node::Vec(element) => {
            let length = cursor.length(arena.least(*element))?;
            write_elements(sink, arena, *element, length, cursor)
        }
        Node::Array(element, length) => write_elements(sink, arena, *element, *length, cursor),
        Node::Fields(fields) => write_fields(sink, arena, fields, cursor),
        Node::Enum(variants) => {
            let variant = &variants[cursor.variant(variants.len())?];
            sink.write_char('{')?;
            sink.write_str(&variant.key)?;
            write_fields(sink, arena, &variant.fields, cursor)?;
            Ok(sink.write_char('}')?)
        }
    }
}

/// A whole event as one JSON object: how two readings of a payload are compared.
pub(super) fn event(shape: &Shape, payload: &[u8]) -> Option<String> {
    let mut text = String::from("{");
    let mut cursor = Cursor::new(payload, shape.discriminator.len());
    for (place, field) in shape.fields.iter().enumerate() {
        if place > 0 {
            text.push(',');
        }
        text.push_str(&key(&field.name));
        write(&mut text, &shape.arena, field.node, &mut cursor).ok()?;
    }
    text.push('}');
    Some(text)
}

fn write_elements(
    sink: &mut impl Write,
    arena: &Arena,
    element: NodeId,
    length: usize,
    cursor: &mut Cursor<'_>,
) -> Written {
    sink.write_char('[')?;
    for place in 0..length {
        if place > 0 {
            sink.write_char(',')?;
        }
        write(sink, arena, element, cursor)?;
    }
    Ok(sink.write_char(']')?)
}

fn write_fields(
    sink: &mut impl Write,
    arena: &Arena,
    fields: &Fields,
    cursor: &mut Cursor<'_>,
) -> Written {
    match fields {
        Fields::Named(named) => {
            sink.write_char('{')?;
            for (place, (key, node)) in named.iter().enumerate() {
                if place > 0 {
                    sink.write_char(',')?;
                }
                sink.write_str(key)?;
                write(sink, arena, *node, cursor)?;
            }
            Ok(sink.write_char('}')?)
        }
        Fields::Tuple(nodes) => {
            sink.write_char('[')?;
            for (place, node) in nodes.iter().enumerate() {
                if place > 0 {
                    sink.write_char(',')?;
                }
                write(sink, arena, *node, cursor)?;
            }
            Ok(sink.write_char(']')?)
        }
    }
}

fn write_scalar(sink: &mut impl Write, scalar: Scalar, cursor: &mut Cursor<'_>) -> Written {
    match scalar {
        Scalar::Bool => sink.write_str(if cursor.boolean()? { "true" } else { "false" })?,
        Scalar::U8 => write!(sink, "{}", u8::from_le_bytes(cursor.array()?))?,
        Scalar::I8 => write!(sink, "{}", i8::from_le_bytes(cursor.array()?))?,
        Scalar::U16 => write!(sink, "{}", u16::from_le_bytes(cursor.array()?))?,
        Scalar::I16 => write!(sink, "{}", i16::from_le_bytes(cursor.array()?))?,
        Scalar::U32 => write!(sink, "{}", u32::from_le_bytes(cursor.array()?))?,
        Scalar::I32 => write!(sink, "{}", i32::from_le_bytes(cursor.array()?))?,
        Scalar::U64 => write!(sink, "\"{}\"", u64::from_le_bytes(cursor.array()?))?,
        Scalar::I64 => write!(sink, "\"{}\"", i64::from_le_bytes(cursor.array()?))?,
        Scalar::U128 => write!(sink, "\"{}\"", u128::from_le_bytes(cursor.array()?))?,
        Scalar::I128 => write!(sink, "\"{}\"", i128::from_le_bytes(cursor.array()?))?,
        Scalar::U256 => write!(sink, "\"{}\"", wide::Decimal::unsigned(cursor.array()?))?,
        Scalar::I256 => write!(sink, "\"{}\"", wide::Decimal::signed(cursor.array()?))?,
        Scalar::F32 => {
            let value = f32::from_le_bytes(cursor.array()?);
            write_float(sink, value.into(), || format!("{value:?}"))?;
        }
        Scalar::F64 => {
            let value = f64::from_le_bytes(cursor.array()?);
            write_float(sink, value, || format!("{value:?}"))?;
        }
        Scalar::Pubkey => {
            let mut text = [0; 44];
            let length = five8::encode_32(&cursor.array()?, &mut text);
            let text = std::str::from_utf8(&text[..usize::from(length)]).map_err(|_| fmt::Error)?;
            write!(sink, "\"{text}\"")?;
        }
        Scalar::String => write_string(sink, cursor.text()?)?,
        Scalar::Bytes => {
            sink.write_char('"')?;
            for byte in cursor.bytes()? {
                write!(sink, "{byte:02x}")?;
            }
            sink.write_char('"')?;
        }
    }
    Ok(())
}

/// Rust's debug form of a finite float is the shortest that reads back, and JSON.
fn write_float(sink: &mut impl Write, value: f64, finite: impl FnOnce() -> String) -> fmt::Result {
    if value.is_nan() {
        sink.write_str("\"NaN\"")
    } else if value.is_infinite() {
        sink.write_str(if value > 0.0 {
            "\"Infinity\""
        } else {
            "\"-Infinity\""
        })
    } else {
        sink.write_str(&finite())
    }
}

fn write_string(sink: &mut impl Write, text: &str) -> fmt::Result {
    sink.write_char('"')?;
    let mut plain = 0;
    for (place, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        sink.write_str(&text[plain..place])?;
        plain = place + 1;
        match byte {
            b'"' => sink.write_str("\\\"")?,
            b'\\' => sink.write_str("\\\\")?,
            0 => sink.write_str("\\\\u0000")?,
            control => write!(sink, "\\u{control:04x}")?,
        }
    }
    sink.write_str(&text[plain..])?;
    sink.write_char('"')
}
