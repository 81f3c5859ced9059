//! The Arrow form of a stream: one schema for records and control rows. A stream with instructions among its
//! records has one more record column, `accounts`; no other stream differs from what it was without them.
//!
//! Every message is encoded on its own, so that a stream whose worker died can still be ended properly
//! by somebody else.

use std::sync::{Arc, LazyLock};

use anchor_events::{record_schema, record_schema_with_accounts};
use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt8Array, new_null_array};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use bytes::Bytes;

use crate::encoder::Kind;

/// The schema message alone, and the end-of-stream marker: a continuation marker and a length of 0.
const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// `kind`, the record columns (null unless `kind` is 0), `control` (null when `kind` is 0).
pub(crate) static PLAIN: LazyLock<SchemaRef> = LazyLock::new(|| stream_schema(&record_schema()));

/// The same with `accounts` behind the record columns.
pub(crate) static WITH_ACCOUNTS: LazyLock<SchemaRef> =
    LazyLock::new(|| stream_schema(&record_schema_with_accounts()));

fn stream_schema(records: &Schema) -> SchemaRef {
    let mut fields = vec![Arc::new(Field::new("kind", DataType::UInt8, false))];
    fields.extend(
        records
            .fields()
            .iter()
            .map(|field| Arc::new(field.as_ref().clone().with_nullable(true))),
    );
    fields.push(Arc::new(Field::new("control", DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

/// The schema message that opens a stream.
pub(crate) fn schema_message(schema: &SchemaRef) -> Result<Bytes, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
    Ok(std::mem::take(writer.get_mut()).into())
}

/// A batch of records.
pub(crate) fn record_message(
    schema: &SchemaRef,
    records: &RecordBatch,
) -> Result<Bytes, ArrowError> {
    let rows = records.num_rows();
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    columns.push(Arc::new(UInt8Array::from_value(Kind::Record as u8, rows)));
    columns.extend(records.columns().iter().cloned());
    columns.push(new_null_array(&DataType::Utf8, rows));
    message(schema, columns)
}

/// A control row, alone in its batch.
pub(crate) fn control_message(
    schema: &SchemaRef,
    kind: Kind,
    control: &str,
) -> Result<Bytes, ArrowError> {
    let fields = schema.fields();
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(fields.len());
    columns.push(Arc::new(UInt8Array::from_value(kind as u8, 1)));
    columns.extend(
        fields[1..fields.len() - 1]
            .iter()
            .map(|field| new_null_array(field.data_type(), 1)),
    );
    columns.push(Arc::new(StringArray::from(vec![control])));
    message(schema, columns)
}

/// The marker after the last message.
pub(crate) fn end_of_stream() -> Bytes {
    Bytes::from_static(&END_OF_STREAM)
}

fn message(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<Bytes, ArrowError> {
    let batch = RecordBatch::try_new(Arc::clone(schema), columns)?;
    let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
    // A writer opens with the schema; the stream already had it.
    writer.get_mut().clear();
    writer.write(&batch)?;
    Ok(std::mem::take(writer.get_mut()).into())
}
