//! The quarantine: records that no IDL version decodes, whole, with the reason.

use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, StringBuilder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::TimestampSecondType;
use arrow_array::{Array as _, ArrayRef, ListArray, PrimitiveArray, RecordBatch, UInt32Array};
use arrow_schema::{DataType, Schema, SchemaRef};
use arrow_select::take::take;

use super::columns::field;
use super::error::DecodeError;
use super::rows::RecordRows;
use super::table::instant;
use crate::records::{ACCOUNTS, record_schema};

/// A row of the quarantine.
pub(super) struct Quarantined {
    /// Row of the record batch.
    pub(super) row: usize,
    /// Code, and what exactly is wrong.
    pub(super) reason: String,
    /// Label of the version that was tried; empty when none knows the discriminator.
    pub(super) idl: String,
}

/// Leading bytes of a payload that name its event.
pub(super) fn discriminator(payload: &[u8]) -> &[u8] {
    payload.get(..8).unwrap_or(payload)
}

/// The schema of quarantine batches: the record columns, `accounts` (null but for instructions), then
/// `discriminator`, `reason` and `idl`. As in event tables, `source` is a word and `block_time` an instant.
pub fn quarantine_schema() -> SchemaRef {
    let mut fields = Vec::new();
    for column in record_schema().fields() {
        let name = column.name().as_str();
        let (kind, postgres) = match name {
            "source" => (DataType::Utf8, "text"),
            "block_time" => (instant(), "timestamptz"),
            "slot" | "archive_offset" => (column.data_type().clone(), "bigint"),
            "signature" | "program" => (column.data_type().clone(), "text"),
            "instruction_path" => (column.data_type().clone(), "integer[]"),
            "payload" => (column.data_type().clone(), "bytea"),
            "failed" | "truncated" => (column.data_type().clone(), "boolean"),
            _ => (column.data_type().clone(), "integer"),
        };
        fields.push(field(name, kind, column.is_nullable(), postgres, ""));
    }
    fields.push(field(ACCOUNTS, DataType::Binary, true, "bytea", ""));
    fields.push(field("discriminator", DataType::Binary, false, "bytea", ""));
    fields.push(field("reason", DataType::Utf8, false, "text", ""));
    fields.push(field("idl", DataType::Utf8, false, "text", ""));
    Arc::new(Schema::new(fields))
}

/// Builds the quarantine batch.
pub(super) fn build(
    batch: &RecordBatch,
    records: &RecordRows<'_>,
    quarantined: &[Quarantined],
) -> Result<RecordBatch, DecodeError> {
    let schema = quarantine_schema();
    let rows = UInt32Array::from_iter_values(
        quarantined
            .iter()
            .map(|entry| u32::try_from(entry.row).unwrap_or(0)),
    );
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (expected, array) in record_schema().fields().iter().zip(batch.columns()) {
        let column: ArrayRef = match expected.name().as_str() {
            "source" => {
                let mut words = StringBuilder::new();
                for entry in quarantined {
                    words.append_value(records.source_word(entry.row));
                }
                Arc::new(words.finish())
            }
            "block_time" => {
                let times = quarantined.iter().map(|entry| {
                    records
                        .block_time
                        .is_valid(entry.row)
                        .then(|| records.block_time.value(entry.row))
                });
                Arc::new(
                    times
                        .collect::<PrimitiveArray<TimestampSecondType>>()
                        .with_timezone("UTC"),
                )
            }
            // Other writers of Arrow name and mark list items as they like.
            "instruction_path" => {
                let taken = take(array, &rows, None)?;
                list_as(&taken, expected.data_type()).unwrap_or(taken)
            }
            _ => take(array, &rows, None)?,
        };
        columns.push(column);
    }
    let mut accounts = BinaryBuilder::new();
    for entry in quarantined {
        accounts.append_option(records.accounts(entry.row));
    }
    columns.push(Arc::new(accounts.finish()));
    let mut discriminators = BinaryBuilder::new();
    let mut reasons = StringBuilder::new();
    let mut idls = StringBuilder::new();
    for entry in quarantined {
        discriminators.append_value(discriminator(records.payload(entry.row)));
        reasons.append_value(&entry.reason);
        idls.append_value(&entry.idl);
    }
    columns.push(Arc::new(discriminators.finish()));
    columns.push(Arc::new(reasons.finish()));
    columns.push(Arc::new(idls.finish()));
    Ok(RecordBatch::try_new(schema, columns)?)
}

/// A list array with the item field that a type asks for.
fn list_as(array: &ArrayRef, kind: &DataType) -> Option<ArrayRef> {
    let DataType::List(item) = kind else {
        return None;
    };
    let (_, offsets, values, nulls) = array.as_list_opt::<i32>()?.clone().into_parts();
    Some(Arc::new(
        ListArray::try_new(item.clone(), offsets, values, nulls).ok()?,
    ))
}
