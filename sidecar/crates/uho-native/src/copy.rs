//! Postgres binary COPY from Arrow: one rule per pair of Arrow type and Postgres type.
//!
//! A field says in its metadata (`uho:postgres`) which Postgres type it becomes. The format of each type is
//! the one its `…_recv` function reads, as COPY's `FORMAT binary` carries it: a row is its number of fields
//! (i16), then per field its length in bytes (i32, −1 for null) and the value, everything big-endian. A pair
//! without a rule is an error that names the column; nothing is ever converted by guess. What a table is
//! called and which columns it has is the warehouse's business.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    ArrowPrimitiveType, Decimal256Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampSecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray, PrimitiveArray,
    RecordBatch, StringArray,
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field, TimeUnit};

use crate::address_texts::{AddressTexts, with_address_texts};
use crate::numeric;

/// Metadata key under which a field names its Postgres type.
pub const POSTGRES_TYPE: &str = "uho:postgres";

/// What opens a binary COPY stream: signature, no flags, no header extension.
pub const HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// What closes a binary COPY stream.
pub const TRAILER: [u8; 2] = [0xff, 0xff];

/// The largest output of one call, in bytes. Larger batches are to be sliced by the caller.
pub const MOST_BYTES: usize = 1 << 30;

/// Microseconds from the Unix epoch to 2000-01-01, where Postgres counts from.
const POSTGRES_EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

/// What Postgres text gets for U+0000, which it cannot hold: six characters.
const ESCAPED_NUL: &[u8] = b"\\u0000";

/// Why a batch has no COPY form.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The field does not name a Postgres type.
    #[error(
        "column `{column}` does not say its Postgres type: its field metadata has no `{POSTGRES_TYPE}`"
    )]
    Untyped {
        /// Name of the column.
        column: String,
    },
    /// No rule leads from the Arrow type to the Postgres type.
    #[error("column `{column}`: no rule writes Arrow {arrow} as Postgres {postgres}")]
    NoRule {
        /// Name of the column.
        column: String,
        /// Its Arrow type.
        arrow: String,
        /// The Postgres type it names.
        postgres: String,
    },
    /// A value lies outside the range of the Postgres type.
    #[error("column `{column}`, row {row}: the value does not fit Postgres {postgres}")]
    OutOfRange {
        /// Name of the column.
        column: String,
        /// Row of the batch.
        row: usize,
        /// The Postgres type.
        postgres: String,
    },
    /// The output would be larger than [`MOST_BYTES`].
    #[error(
        "a COPY of {rows} rows may need {bytes} bytes, more than {MOST_BYTES}: slice the batch"
    )]
    TooLarge {
        /// Rows of the batch.
        rows: usize,
        /// Upper bound of the output in bytes.
        bytes: usize,
    },
    /// Postgres tables have fewer columns.
    #[error("{0} columns are more than a Postgres table can have")]
    TooManyColumns(usize),
}

/// Appends the rows of a batch, without header and trailer, so that the parts of several batches can follow
/// one header. After an error there may be some of them.
pub fn encode_rows(batch: &RecordBatch, output: &mut Vec<u8>) -> Result<(), CopyError> {
    let fields = batch.schema_ref().fields();
    let count = i16::try_from(fields.len()).map_err(|_| CopyError::TooManyColumns(fields.len()))?;
    let columns = fields
        .iter()
        .zip(batch.columns())
        .map(|(field, array)| Column::new(field, array))
        .collect::<Result<Vec<_>, _>>()?;

    let rows = batch.num_rows();
    let bytes = columns
        .iter()
        .map(|column| {
            column
                .values
                .most_bytes()
                .saturating_add(rows.saturating_mul(4))
        })
        .fold(rows.saturating_mul(2), usize::saturating_add);
    if bytes > MOST_BYTES {
        return Err(CopyError::TooLarge { rows, bytes });
    }

    output.reserve(bytes);
    with_address_texts(|texts| {
        for row in 0..rows {
            output.extend_from_slice(&count.to_be_bytes());
            for column in &columns {
                column.write(row, texts, output)?;
            }
        }
        Ok(())
    })
}

struct Column<'a> {
    field: &'a Field,
    postgres: &'a str,
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

/// A column's values under the rule that writes them.
enum Values<'a> {
    Boolean(&'a BooleanArray),
    /// Any integer of Arrow, to an integer of Postgres of this width in bytes.
    Integer(Integers<'a>, usize),
    IntegerNumeric(Integers<'a>),
    Decimal(&'a PrimitiveArray<Decimal256Type>),
    Real(&'a PrimitiveArray<Float32Type>),
    Double(&'a PrimitiveArray<Float64Type>),
    /// Whole numbers in decimal: what is wider than Arrow's decimals.
    TextNumeric(&'a StringArray),
    Text(&'a StringArray),
    Jsonb(&'a StringArray),
    Bytea(&'a BinaryArray),
    FixedBytea(&'a FixedSizeBinaryArray),
    /// Base58 of 32 bytes: an address.
    Address(&'a FixedSizeBinaryArray),
    /// Base58 of 64 bytes: a signature.
    Signature(&'a FixedSizeBinaryArray),
    /// Instants and the number of microseconds in one unit.
    Instant(Integers<'a>, i64),
    IntegerList(&'a ListArray, &'a PrimitiveArray<UInt16Type>),
}

/// The integer arrays of Arrow, read as i128, which holds every value of each.
#[derive(Clone, Copy)]
enum Integers<'a> {
    U8(&'a PrimitiveArray<UInt8Type>),
    I8(&'a PrimitiveArray<Int8Type>),
    U16(&'a PrimitiveArray<UInt16Type>),
    I16(&'a PrimitiveArray<Int16Type>),
    U32(&'a PrimitiveArray<UInt32Type>),
    I32(&'a PrimitiveArray<Int32Type>),
    U64(&'a PrimitiveArray<UInt64Type>),
    I64(&'a PrimitiveArray<Int64Type>),
    Seconds(&'a PrimitiveArray<TimestampSecondType>),
    Milliseconds(&'a PrimitiveArray<TimestampMillisecondType>),
    Microseconds(&'a PrimitiveArray<TimestampMicrosecondType>),
}

impl<'a> Integers<'a> {
    fn new(array: &'a dyn Array) -> Option<Self> {
        fn of<T: ArrowPrimitiveType>(array: &dyn Array) -> Option<&PrimitiveArray<T>> {
            array.as_primitive_opt::<T>()
        }
        match array.data_type() {
            DataType::UInt8 => of(array).map(Self::U8),
            DataType::Int8 => of(array).map(Self::I8),
            DataType::UInt16 => of(array).map(Self::U16),
            DataType::Int16 => of(array).map(Self::I16),
            DataType::UInt32 => of(array).map(Self::U32),
            DataType::Int32 => of(array).map(Self::I32),
            DataType::UInt64 => of(array).map(Self::U64),
            DataType::Int64 => of(array).map(Self::I64),
            DataType::Timestamp(TimeUnit::Second, _) => of(array).map(Self::Seconds),
            DataType::Timestamp(TimeUnit::Millisecond, _) => of(array).map(Self::Milliseconds),
            DataType::Timestamp(TimeUnit::Microsecond, _) => of(array).map(Self::Microseconds),
            _ => None,
        }
    }

    fn value(&self, row: usize) -> i128 {
        match self {
            Self::U8(array) => array.value(row).into(),
            Self::I8(array) => array.value(row).into(),
            Self::U16(array) => array.value(row).into(),
            Self::I16(array) => array.value(row).into(),
            Self::U32(array) => array.value(row).into(),
            Self::I32(array) => array.value(row).into(),
            Self::U64(array) => array.value(row).into(),
            Self::I64(array) => array.value(row).into(),
            Self::Seconds(array) => array.value(row).into(),
            Self::Milliseconds(array) => array.value(row).into(),
            Self::Microseconds(array) => array.value(row).into(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::U8(array) => array.len(),
            Self::I8(array) => array.len(),
            Self::U16(array) => array.len(),
            Self::I16(array) => array.len(),
            Self::U32(array) => array.len(),
            Self::I32(array) => array.len(),
            Self::U64(array) => array.len(),
            Self::I64(array) => array.len(),
            Self::Seconds(array) => array.len(),
            Self::Milliseconds(array) => array.len(),
            Self::Microseconds(array) => array.len(),
        }
    }
}

impl<'a> Values<'a> {
    fn new(postgres: &str, array: &'a ArrayRef) -> Option<Self> {
        let array = array.as_ref();
        let integers = || Integers::new(array);
        match (array.data_type(), postgres) {
            (DataType::Boolean, "boolean") => array.as_boolean_opt().map(Self::Boolean),
            (kind, "smallint") if kind.is_integer() => {
                integers().map(|values| Self::Integer(values, 2))
            }
            (kind, "integer") if kind.is_integer() => {
                integers().map(|values| Self::Integer(values, 4))
            }
            (kind, "bigint") if kind.is_integer() => {
                integers().map(|values| Self::Integer(values, 8))
            }
            (kind, "numeric") if kind.is_integer() => integers().map(Self::IntegerNumeric),
            (DataType::Decimal256(_, 0), "numeric") => array.as_primitive_opt().map(Self::Decimal),
            (DataType::Float32, "real") => array.as_primitive_opt().map(Self::Real),
            (DataType::Float64, "double precision") => array.as_primitive_opt().map(Self::Double),
            (DataType::Utf8, "numeric") => array.as_string_opt().map(Self::TextNumeric),
            (DataType::Utf8, "text") => array.as_string_opt().map(Self::Text),
            (DataType::Utf8, "jsonb") => array.as_string_opt().map(Self::Jsonb),
            (DataType::Binary, "bytea") => array.as_binary_opt().map(Self::Bytea),
            (DataType::FixedSizeBinary(_), "bytea") => {
                array.as_fixed_size_binary_opt().map(Self::FixedBytea)
            }
            (DataType::FixedSizeBinary(32), "text") => {
                array.as_fixed_size_binary_opt().map(Self::Address)
            }
            (DataType::FixedSizeBinary(64), "text") => {
                array.as_fixed_size_binary_opt().map(Self::Signature)
            }
            (DataType::Timestamp(unit, Some(_)), "timestamptz") => {
                let microseconds = match unit {
                    TimeUnit::Second => 1_000_000,
                    TimeUnit::Millisecond => 1_000,
                    TimeUnit::Microsecond => 1,
                    // Postgres has no place for nanoseconds, and rounding would be a guess.
                    TimeUnit::Nanosecond => return None,
                };
                integers().map(|values| Self::Instant(values, microseconds))
            }
            (DataType::List(_), "integer[]") => {
                let lists = array.as_list_opt::<i32>()?;
                Some(Self::IntegerList(lists, lists.values().as_primitive_opt()?))
            }
            _ => None,
        }
    }

    /// An upper bound of the column's values in bytes, lengths not included.
    fn most_bytes(&self) -> usize {
        match self {
            Self::Boolean(array) => array.len(),
            Self::Integer(array, width) => array.len().saturating_mul(*width),
            Self::IntegerNumeric(array) => array.len().saturating_mul(numeric::MOST_BYTES_U64),
            Self::Decimal(array) => array.len().saturating_mul(numeric::MOST_BYTES),
            Self::TextNumeric(array) => array.len().saturating_mul(numeric::MOST_BYTES),
            Self::Real(array) => array.len().saturating_mul(4),
            Self::Double(array) => array.len().saturating_mul(8),
            Self::Instant(array, _) => array.len().saturating_mul(8),
            Self::Text(array) => {
                let text = span(array.value_offsets(), array.values());
                let nuls = count_nuls(text);
                text.len()
                    .saturating_add(nuls.saturating_mul(ESCAPED_NUL.len() - 1))
            }
            Self::Jsonb(array) => span(array.value_offsets(), array.values())
                .len()
                .saturating_add(array.len()),
            Self::Bytea(array) => span(array.value_offsets(), array.values()).len(),
            Self::FixedBytea(array) => array
                .len()
                .saturating_mul(usize::try_from(array.value_length()).unwrap_or(0)),
            Self::Address(array) => array.len().saturating_mul(44),
            Self::Signature(array) => array.len().saturating_mul(88),
            Self::IntegerList(array, items) => items
                .len()
                .saturating_mul(8)
                .saturating_add(array.len().saturating_mul(ARRAY_HEADER_BYTES)),
        }
    }
}

/// The bytes that a (possibly sliced) array of variable width refers to.
fn span<'a>(offsets: &[i32], values: &'a [u8]) -> &'a [u8] {
    let place = |offset: Option<&i32>| {
        offset
            .and_then(|offset| usize::try_from(*offset).ok())
            .unwrap_or(0)
    };
    values
        .get(place(offsets.first())..place(offsets.last()))
        .unwrap_or(values)
}

impl<'a> Column<'a> {
    fn new(field: &'a Field, array: &'a ArrayRef) -> Result<Self, CopyError> {
        let column = || field.name().clone();
        let postgres = field
            .metadata()
            .get(POSTGRES_TYPE)
            .ok_or_else(|| CopyError::Untyped { column: column() })?;
        let values = Values::new(postgres, array).ok_or_else(|| CopyError::NoRule {
            column: column(),
            arrow: array.data_type().to_string(),
            postgres: postgres.clone(),
        })?;
        Ok(Self {
            field,
            postgres,
            nulls: array.nulls(),
            values,
        })
    }

    fn write(
        &self,
        row: usize,
        texts: &mut AddressTexts,
        output: &mut Vec<u8>,
    ) -> Result<(), CopyError> {
        if self.nulls.is_some_and(|nulls| nulls.is_null(row)) {
            output.extend_from_slice(&(-1i32).to_be_bytes());
            return Ok(());
        }
        match &self.values {
            Values::Boolean(array) => put(output, &[u8::from(array.value(row))]),
            Values::Integer(array, width) => {
                let value = array.value(row);
                match width {
                    2 => put(output, &self.fit::<i16>(value, row)?.to_be_bytes()),
                    4 => put(output, &self.fit::<i32>(value, row)?.to_be_bytes()),
                    _ => put(output, &self.fit::<i64>(value, row)?.to_be_bytes()),
                }
            }
            Values::IntegerNumeric(array) => {
                let value = array.value(row);
                numeric::write(value < 0, value.unsigned_abs(), output);
            }
            Values::Decimal(array) => numeric::write_wide(array.value(row), output),
            Values::TextNumeric(array) => {
                if !numeric::write_text(array.value(row), output) {
                    return Err(self.out_of_range(row));
                }
            }
            Values::Real(array) => put(output, &array.value(row).to_be_bytes()),
            Values::Double(array) => put(output, &array.value(row).to_be_bytes()),
            Values::Text(array) => write_text(array.value(row).as_bytes(), output),
            Values::Jsonb(array) => {
                let text = array.value(row).as_bytes();
                put_length(output, text.len() + 1);
                output.push(1);
                output.extend_from_slice(text);
            }
            Values::Bytea(array) => put(output, array.value(row)),
            Values::FixedBytea(array) => put(output, array.value(row)),
            Values::Address(array) => {
                let address = array.value(row).try_into();
                put(output, address.map_or(&[], |address| texts.text(address)));
            }
            Values::Signature(array) => {
                let mut text = [0; 88];
                let length = array
                    .value(row)
                    .try_into()
                    .map_or(0, |bytes| five8::encode_64(bytes, &mut text));
                put(output, &text[..usize::from(length)]);
            }
            Values::Instant(array, microseconds) => {
                let instant = array.value(row) * i128::from(*microseconds)
                    - i128::from(POSTGRES_EPOCH_MICROSECONDS);
                put(output, &self.fit::<i64>(instant, row)?.to_be_bytes());
            }
            Values::IntegerList(array, items) => write_list(array, items, row, output),
        }
        Ok(())
    }

    fn fit<T: TryFrom<i128>>(&self, value: i128, row: usize) -> Result<T, CopyError> {
        T::try_from(value).map_err(|_| self.out_of_range(row))
    }

    fn out_of_range(&self, row: usize) -> CopyError {
        CopyError::OutOfRange {
            column: self.field.name().clone(),
            row,
            postgres: self.postgres.to_owned(),
        }
    }
}

fn put_length(output: &mut Vec<u8>, length: usize) {
    // The bound of MOST_BYTES on the whole output keeps every length below 2³¹.
    output.extend_from_slice(&i32::try_from(length).unwrap_or(i32::MAX).to_be_bytes());
}

fn put(output: &mut Vec<u8>, value: &[u8]) {
    put_length(output, value.len());
    output.extend_from_slice(value);
}

/// The compiler makes vector instructions of it; a crate would not be faster on texts this short.
#[allow(clippy::naive_bytecount)]
fn count_nuls(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == 0).count()
}

fn write_text(text: &[u8], output: &mut Vec<u8>) {
    let nuls = count_nuls(text);
    if nuls == 0 {
        return put(output, text);
    }
    put_length(output, text.len() + nuls * (ESCAPED_NUL.len() - 1));
    for (place, part) in text.split(|byte| *byte == 0).enumerate() {
        if place > 0 {
            output.extend_from_slice(ESCAPED_NUL);
        }
        output.extend_from_slice(part);
    }
}

/// Dimensions, has-nulls flag, element type, size and lower bound of the one dimension.
const ARRAY_HEADER_BYTES: usize = 20;
/// Object id of `integer` in every Postgres.
const INTEGER_OID: i32 = 23;

fn write_list(
    lists: &ListArray,
    items: &PrimitiveArray<UInt16Type>,
    row: usize,
    output: &mut Vec<u8>,
) {
    let place = |index: usize| {
        lists
            .value_offsets()
            .get(index)
            .and_then(|offset| usize::try_from(*offset).ok())
    };
    let range = place(row).unwrap_or(0)..place(row + 1).unwrap_or(0);
    let length = range.len();
    if length == 0 {
        put_length(output, 12);
        for word in [0, 0, INTEGER_OID] {
            output.extend_from_slice(&word.to_be_bytes());
        }
        return;
    }
    put_length(output, ARRAY_HEADER_BYTES + length * 8);
    for word in [
        1,
        0,
        INTEGER_OID,
        i32::try_from(length).unwrap_or(i32::MAX),
        1,
    ] {
        output.extend_from_slice(&word.to_be_bytes());
    }
    for item in range {
        put(output, &i32::from(items.value(item)).to_be_bytes());
    }
}
