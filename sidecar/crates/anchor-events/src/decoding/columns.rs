//! Columns of decoded tables: which Arrow and Postgres type a field becomes, and the typed builders that
//! payload bytes go into.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, Decimal256Builder, FixedSizeBinaryBuilder, Float32Builder,
    Float64Builder, Int8Builder, Int16Builder, Int32Builder, Int64Builder, StringBuilder,
    UInt8Builder, UInt16Builder, UInt32Builder, UInt64Builder,
};
use arrow_buffer::i256;
use arrow_schema::{ArrowError, DataType, Field};

use super::json::{self, WriteFault};
use super::layout::{Arena, Node, NodeId, Scalar};
use super::payload::Cursor;
use super::wide;

/// Metadata key of a field's Postgres type.
const POSTGRES_TYPE: &str = "uho:postgres";
/// Metadata key of a field's documentation.
const DOCS: &str = "uho:docs";

/// Decimal digits of the widest 128-bit integer.
const WIDE_DIGITS: u8 = 39;

/// What a field becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnKind {
    Scalar(Scalar),
    /// Anything nested, as JSON text.
    Json,
}

impl ColumnKind {
    /// The kind for a field's type; an optional scalar is a scalar that can be null, as all columns can.
    pub(super) fn of(arena: &Arena, node: NodeId) -> Self {
        match arena.node(node) {
            Node::Scalar(scalar) => Self::Scalar(*scalar),
            Node::Option(inner) | Node::Coption(inner) | Node::Padded { inner, .. } => {
                Self::of(arena, *inner)
            }
            _ => Self::Json,
        }
    }

    fn data_type(self) -> DataType {
        let Self::Scalar(scalar) = self else {
            return DataType::Utf8;
        };
        match scalar {
            Scalar::Bool => DataType::Boolean,
            Scalar::U8 => DataType::UInt8,
            Scalar::I8 => DataType::Int8,
            Scalar::U16 => DataType::UInt16,
            Scalar::I16 => DataType::Int16,
            Scalar::U32 => DataType::UInt32,
            Scalar::I32 => DataType::Int32,
            Scalar::U64 => DataType::UInt64,
            Scalar::I64 => DataType::Int64,
            Scalar::U128 | Scalar::I128 => DataType::Decimal256(WIDE_DIGITS, 0),
            Scalar::F32 => DataType::Float32,
            Scalar::F64 => DataType::Float64,
            Scalar::Pubkey => DataType::FixedSizeBinary(32),
            Scalar::String | Scalar::U256 | Scalar::I256 => DataType::Utf8,
            Scalar::Bytes => DataType::Binary,
        }
    }

    fn postgres(self) -> &'static str {
        let Self::Scalar(scalar) = self else {
            return "jsonb";
        };
        match scalar {
            Scalar::Bool => "boolean",
            Scalar::U8 | Scalar::I8 | Scalar::I16 => "smallint",
            Scalar::U16 | Scalar::I32 => "integer",
            Scalar::U32 | Scalar::I64 => "bigint",
            Scalar::U64 | Scalar::U128 | Scalar::I128 | Scalar::U256 | Scalar::I256 => "numeric",
            Scalar::F32 => "real",
            Scalar::F64 => "double precision",
            Scalar::Pubkey | Scalar::String => "text",
            Scalar::Bytes => "bytea",
        }
    }

    /// The Arrow field of a column of this kind.
    pub(super) fn field(self, name: &str, docs: &str) -> Field {
        field(name, self.data_type(), true, self.postgres(), docs)
    }
}

/// A field with its Postgres type.
pub(super) fn field(
    name: &str,
    kind: DataType,
    nullable: bool,
    postgres: &str,
    docs: &str,
) -> Field {
    let mut metadata = HashMap::from([(POSTGRES_TYPE.to_owned(), postgres.to_owned())]);
    if !docs.is_empty() {
        metadata.insert(DOCS.to_owned(), docs.to_owned());
    }
    Field::new(name, kind, nullable).with_metadata(metadata)
}

/// The field as `bytea`, if it is text; the values stay as they are.
pub(super) fn bytea(field: &Field) -> Field {
    let mut metadata = field.metadata().clone();
    if let Some(postgres) = metadata.get_mut(POSTGRES_TYPE)
        && postgres == "text"
    {
        "bytea".clone_into(postgres);
    }
    field.clone().with_metadata(metadata)
}

/// What a call may still put into columns of variable width. It keeps every Arrow offset in range and a
/// hostile IDL from turning few bytes into much text.
pub(super) struct Room(pub(super) usize);

impl Room {
    pub(super) fn spend(&mut self, bytes: usize) -> fmt::Result {
        self.0 = self.0.checked_sub(bytes).ok_or(fmt::Error)?;
        Ok(())
    }
}

/// JSON text on its way into a builder.
struct Sink<'a> {
    builder: &'a mut StringBuilder,
    room: &'a mut Room,
}

impl Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.room.spend(text.len())?;
        self.builder.write_str(text)
    }
}

/// A typed builder.
pub(super) enum Column {
    Bool(BooleanBuilder),
    U8(UInt8Builder),
    I8(Int8Builder),
    U16(UInt16Builder),
    I16(Int16Builder),
    U32(UInt32Builder),
    I32(Int32Builder),
    U64(UInt64Builder),
    I64(Int64Builder),
    Wide(Decimal256Builder, Signedness),
    /// 256 bits, as decimal text.
    Widest(StringBuilder, Signedness),
    F32(Float32Builder),
    F64(Float64Builder),
    Pubkey(FixedSizeBinaryBuilder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Json(StringBuilder),
}

/// How the bytes of a wide integer read.
#[derive(Clone, Copy)]
pub(super) enum Signedness {
    Unsigned,
    Signed,
}

impl Column {
    /// A builder for a number of rows.
    pub(super) fn new(kind: ColumnKind, rows: usize) -> Result<Self, ArrowError> {
        /// First guess for a text or list, in bytes; builders grow.
        const TEXT_BYTES: usize = 16;
        let ColumnKind::Scalar(scalar) = kind else {
            return Ok(Self::Json(StringBuilder::with_capacity(
                rows,
                rows.saturating_mul(TEXT_BYTES),
            )));
        };
        let wide =
            || Decimal256Builder::with_capacity(rows).with_precision_and_scale(WIDE_DIGITS, 0);
        Ok(match scalar {
            Scalar::Bool => Self::Bool(BooleanBuilder::with_capacity(rows)),
            Scalar::U8 => Self::U8(UInt8Builder::with_capacity(rows)),
            Scalar::I8 => Self::I8(Int8Builder::with_capacity(rows)),
            Scalar::U16 => Self::U16(UInt16Builder::with_capacity(rows)),
            Scalar::I16 => Self::I16(Int16Builder::with_capacity(rows)),
            Scalar::U32 => Self::U32(UInt32Builder::with_capacity(rows)),
            Scalar::I32 => Self::I32(Int32Builder::with_capacity(rows)),
            Scalar::U64 => Self::U64(UInt64Builder::with_capacity(rows)),
            Scalar::I64 => Self::I64(Int64Builder::with_capacity(rows)),
            Scalar::U128 => Self::Wide(wide()?, Signedness::Unsigned),
            Scalar::I128 => Self::Wide(wide()?, Signedness::Signed),
            Scalar::U256 | Scalar::I256 => Self::Widest(
                StringBuilder::with_capacity(rows, rows.saturating_mul(TEXT_BYTES)),
                if scalar == Scalar::I256 {
                    Signedness::Signed
                } else {
                    Signedness::Unsigned
                },
            ),
            Scalar::F32 => Self::F32(Float32Builder::with_capacity(rows)),
            Scalar::F64 => Self::F64(Float64Builder::with_capacity(rows)),
            Scalar::Pubkey => Self::Pubkey(FixedSizeBinaryBuilder::with_capacity(rows, 32)),
            Scalar::String => Self::Text(StringBuilder::with_capacity(
                rows,
                rows.saturating_mul(TEXT_BYTES),
            )),
            Scalar::Bytes => Self::Bytes(BinaryBuilder::with_capacity(
                rows,
                rows.saturating_mul(TEXT_BYTES),
            )),
        })
    }

    /// Appends the value at the cursor, of a type whose kind is this column's.
    pub(super) fn append(
        &mut self,
        arena: &Arena,
        node: NodeId,
        cursor: &mut Cursor<'_>,
        room: &mut Room,
    ) -> Result<(), WriteFault> {
        match arena.node(node) {
            Node::Option(inner) => {
                if cursor.option()? {
                    return self.append(arena, *inner, cursor, room);
                }
                self.append_null();
                return Ok(());
            }
            Node::Coption(inner) => {
                if cursor.coption()? {
                    return self.append(arena, *inner, cursor, room);
                }
                cursor.take(arena.least(*inner))?;
                self.append_null();
                return Ok(());
            }
            Node::Padded {
                before,
                inner,
                after,
            } => {
                cursor.take(*before)?;
                self.append(arena, *inner, cursor, room)?;
                cursor.take(*after)?;
                return Ok(());
            }
            _ => {}
        }
        match self {
            Self::Bool(builder) => builder.append_value(cursor.boolean()?),
            Self::U8(builder) => builder.append_value(u8::from_le_bytes(cursor.array()?)),
            Self::I8(builder) => builder.append_value(i8::from_le_bytes(cursor.array()?)),
            Self::U16(builder) => builder.append_value(u16::from_le_bytes(cursor.array()?)),
            Self::I16(builder) => builder.append_value(i16::from_le_bytes(cursor.array()?)),
            Self::U32(builder) => builder.append_value(u32::from_le_bytes(cursor.array()?)),
            Self::I32(builder) => builder.append_value(i32::from_le_bytes(cursor.array()?)),
            Self::U64(builder) => builder.append_value(u64::from_le_bytes(cursor.array()?)),
            Self::I64(builder) => builder.append_value(i64::from_le_bytes(cursor.array()?)),
            Self::Wide(builder, Signedness::Unsigned) => {
                builder.append_value(i256::from_parts(u128::from_le_bytes(cursor.array()?), 0));
            }
            Self::Wide(builder, Signedness::Signed) => {
                builder.append_value(i256::from_i128(i128::from_le_bytes(cursor.array()?)));
            }
            Self::Widest(builder, signedness) => {
                let number = match signedness {
                    Signedness::Unsigned => wide::Decimal::unsigned(cursor.array()?),
                    Signedness::Signed => wide::Decimal::signed(cursor.array()?),
                };
                write!(Sink { builder, room }, "{number}")?;
                builder.append_value("");
            }
            Self::F32(builder) => builder.append_value(f32::from_le_bytes(cursor.array()?)),
            Self::F64(builder) => builder.append_value(f64::from_le_bytes(cursor.array()?)),
            Self::Pubkey(builder) => {
                builder
                    .append_value(cursor.array::<32>()?)
                    .map_err(|_| WriteFault::Full)?;
            }
            Self::Text(builder) => {
                let text = cursor.text()?;
                room.spend(text.len())?;
                builder.append_value(text);
            }
            Self::Bytes(builder) => {
                let bytes = cursor.bytes()?;
                room.spend(bytes.len())?;
                builder.append_value(bytes);
            }
            Self::Json(builder) => {
                json::write(&mut Sink { builder, room }, arena, node, cursor)?;
                builder.append_value("");
            }
        }
        Ok(())
    }

    /// Appends an account's key, to a column of keys.
    pub(super) fn append_key(&mut self, key: &[u8]) -> Result<(), WriteFault> {
        match self {
            Self::Pubkey(builder) => builder.append_value(key).map_err(|_| WriteFault::Full),
            _ => Err(WriteFault::Payload),
        }
    }

    /// Appends a null.
    pub(super) fn append_null(&mut self) {
        match self {
            Self::Bool(builder) => builder.append_null(),
            Self::U8(builder) => builder.append_null(),
            Self::I8(builder) => builder.append_null(),
            Self::U16(builder) => builder.append_null(),
            Self::I16(builder) => builder.append_null(),
            Self::U32(builder) => builder.append_null(),
            Self::I32(builder) => builder.append_null(),
            Self::U64(builder) => builder.append_null(),
            Self::I64(builder) => builder.append_null(),
            Self::Wide(builder, _) => builder.append_null(),
            Self::F32(builder) => builder.append_null(),
            Self::F64(builder) => builder.append_null(),
            Self::Pubkey(builder) => builder.append_null(),
            Self::Bytes(builder) => builder.append_null(),
            Self::Text(builder) | Self::Json(builder) | Self::Widest(builder, _) => {
                builder.append_null();
            }
        }
    }

    /// The finished array.
    pub(super) fn finish(mut self) -> ArrayRef {
        match &mut self {
            Self::Bool(builder) => Arc::new(builder.finish()),
            Self::U8(builder) => Arc::new(builder.finish()),
            Self::I8(builder) => Arc::new(builder.finish()),
            Self::U16(builder) => Arc::new(builder.finish()),
            Self::I16(builder) => Arc::new(builder.finish()),
            Self::U32(builder) => Arc::new(builder.finish()),
            Self::I32(builder) => Arc::new(builder.finish()),
            Self::U64(builder) => Arc::new(builder.finish()),
            Self::I64(builder) => Arc::new(builder.finish()),
            Self::Wide(builder, _) => Arc::new(builder.finish()),
            Self::F32(builder) => Arc::new(builder.finish()),
            Self::F64(builder) => Arc::new(builder.finish()),
            Self::Pubkey(builder) => Arc::new(builder.finish()),
            Self::Bytes(builder) => Arc::new(builder.finish()),
            Self::Text(builder) | Self::Json(builder) | Self::Widest(builder, _) => {
                Arc::new(builder.finish())
            }
        }
    }
}
