//! The record digest: a number that two sets of records share exactly when they are the same records.
//!
//! It is a sum modulo 2¹²⁸ over rows, so it does not depend on the order of rows, on how they are cut
//! into batches, or on the parallelism that read them, and digests of disjoint ranges add up. Per row:
//! the first 16 bytes, little endian, of SHA-256 over every column in schema order, each as its length
//! (u32, little endian) and its value's bytes; a null is the length `0xFFFFFFFF` and nothing. Integers
//! are little endian at their width, booleans one byte, lists of u16 their items in order. A batch may have the
//! column `accounts` behind the record columns: it is hashed like the others where it is not null, and where it is
//! null not at all, so that a record has one digest whether or not instructions were asked for beside it.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{
    Array, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray, PrimitiveArray, RecordBatch,
};
use arrow_schema::DataType;
use sha2::{Digest as _, Sha256};

use crate::records::{ACCOUNTS, RecordError, record_schema};

const NULL_LENGTH: u32 = u32::MAX;
/// Most rows have fewer, in bytes.
const USUAL_ROW_BYTES: usize = 512;

/// The digest of a batch of records. Fails when the batch does not have the record schema (nullability
/// and metadata aside).
pub fn record_digest(batch: &RecordBatch) -> Result<u128, RecordError> {
    let rows = RowDigests::new(batch)?;
    Ok(rows.iter().fold(0u128, u128::wrapping_add))
}

/// The digests of a batch's rows one by one, for callers who keep a sum per program.
pub struct RowDigests<'a> {
    rows: usize,
    columns: Vec<Column<'a>>,
    accounts: Option<Column<'a>>,
}

enum Column<'a> {
    U8(&'a PrimitiveArray<UInt8Type>),
    U32(&'a PrimitiveArray<UInt32Type>),
    U64(&'a PrimitiveArray<UInt64Type>),
    I64(&'a PrimitiveArray<Int64Type>),
    Boolean(&'a BooleanArray),
    Fixed(&'a FixedSizeBinaryArray),
    Bytes(&'a BinaryArray),
    Path(&'a ListArray, &'a PrimitiveArray<UInt16Type>),
}

impl<'a> RowDigests<'a> {
    /// Prepares a batch; fails when it does not have the record schema.
    pub fn new(batch: &'a RecordBatch) -> Result<Self, RecordError> {
        let schema = record_schema();
        let found = batch.schema_ref();
        let mut columns = Vec::with_capacity(schema.fields().len());
        for (position, field) in schema.fields().iter().enumerate() {
            let mismatch = || RecordError::Schema {
                position,
                expected: format!("{}: {}", field.name(), field.data_type()),
            };
            let named = found
                .fields()
                .get(position)
                .is_some_and(|other| other.name() == field.name());
            if !named {
                return Err(mismatch());
            }
            let column = Column::of(field.data_type(), batch.column(position).as_ref());
            columns.push(column.ok_or_else(mismatch)?);
        }
        let position = schema.fields().len();
        let accounts = match found.fields().get(position) {
            Some(field) if field.name() == ACCOUNTS => {
                let column = Column::of(&DataType::Binary, batch.column(position).as_ref());
                Some(column.ok_or_else(|| RecordError::Schema {
                    position,
                    expected: format!("{ACCOUNTS}: {}", DataType::Binary),
                })?)
            }
            _ => None,
        };
        Ok(Self {
            rows: batch.num_rows(),
            columns,
            accounts,
        })
    }

    /// The digests of the rows, in their order.
    pub fn iter(&self) -> impl Iterator<Item = u128> {
        let mut text = Vec::with_capacity(USUAL_ROW_BYTES);
        (0..self.rows).map(move |row| {
            // Hashed in one go: a hasher spends more on many small updates than on the bytes.
            text.clear();
            for column in &self.columns {
                column.write(row, &mut text);
            }
            if let Some(accounts) = self.accounts.as_ref().filter(|of| of.array().is_valid(row)) {
                accounts.write(row, &mut text);
            }
            let hash = Sha256::digest(&text);
            let mut first = [0; 16];
            first.copy_from_slice(&hash[..16]);
            u128::from_le_bytes(first)
        })
    }
}

impl<'a> Column<'a> {
    /// The array as the expected type. The name and nullability of a list's items do not matter: Parquet
    /// and other Arrow writers choose their own.
    fn of(expected: &DataType, array: &'a dyn Array) -> Option<Self> {
        match expected {
            DataType::UInt8 => array.as_primitive_opt().map(Self::U8),
            DataType::UInt32 => array.as_primitive_opt().map(Self::U32),
            DataType::UInt64 => array.as_primitive_opt().map(Self::U64),
            DataType::Int64 => array.as_primitive_opt().map(Self::I64),
            DataType::Boolean => array.as_boolean_opt().map(Self::Boolean),
            DataType::Binary => array.as_binary_opt().map(Self::Bytes),
            DataType::FixedSizeBinary(width) => array
                .as_fixed_size_binary_opt()
                .filter(|fixed| fixed.value_length() == *width)
                .map(Self::Fixed),
            DataType::List(_) => {
                let list = array.as_list_opt::<i32>()?;
                Some(Self::Path(list, list.values().as_primitive_opt()?))
            }
            _ => None,
        }
    }

    fn write(&self, row: usize, text: &mut Vec<u8>) {
        if self.array().is_null(row) {
            text.extend_from_slice(&NULL_LENGTH.to_le_bytes());
            return;
        }
        match self {
            Self::U8(values) => sized(text, &values.value(row).to_le_bytes()),
            Self::U32(values) => sized(text, &values.value(row).to_le_bytes()),
            Self::U64(values) => sized(text, &values.value(row).to_le_bytes()),
            Self::I64(values) => sized(text, &values.value(row).to_le_bytes()),
            Self::Boolean(values) => sized(text, &[u8::from(values.value(row))]),
            Self::Fixed(values) => sized(text, values.value(row)),
            Self::Bytes(values) => sized(text, values.value(row)),
            Self::Path(list, items) => {
                let start = offset(list.value_offsets()[row]);
                let end = offset(list.value_offsets()[row + 1]);
                text.extend_from_slice(&length((end - start) * size_of::<u16>()));
                for item in start..end {
                    text.extend_from_slice(&items.value(item).to_le_bytes());
                }
            }
        }
    }

    fn array(&self) -> &dyn Array {
        match self {
            Self::U8(array) => *array,
            Self::U32(array) => *array,
            Self::U64(array) => *array,
            Self::I64(array) => *array,
            Self::Boolean(array) => *array,
            Self::Fixed(array) => *array,
            Self::Bytes(array) => *array,
            Self::Path(array, _) => *array,
        }
    }
}

fn sized(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend_from_slice(&length(bytes.len()));
    text.extend_from_slice(bytes);
}

/// Arrow's 32-bit offsets bound every value, so the length fits.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(NULL_LENGTH).to_le_bytes()
}

/// Arrow guarantees that offsets are not negative.
fn offset(value: i32) -> usize {
    usize::try_from(value).unwrap_or_default()
}
