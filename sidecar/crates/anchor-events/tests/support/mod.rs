//! What decoding tests share: record batches made by hand, and Arrow cells as JSON.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::format_collect,
    clippy::panic,
    clippy::similar_names,
    clippy::unwrap_used
)]

use std::path::PathBuf;
use std::sync::Arc;

use anchor_events::{Decoded, Decoder, IdlVersion, record_schema, record_schema_with_accounts};
use arrow_array::builder::{ListBuilder, UInt16Builder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Decimal256Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{
    Array as _, ArrayRef, BinaryArray, BooleanArray, FixedSizeBinaryArray, Int64Array, RecordBatch,
    UInt8Array, UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field};
use serde_json::{Value, json};

pub const PROGRAM: [u8; 32] = [7; 32];

/// A record; the rest of its columns is the same for all.
#[derive(Clone, Debug)]
pub struct Row {
    pub slot: u64,
    pub tx_index: u32,
    pub cpi: bool,
    pub failed: bool,
    pub payload: Vec<u8>,
}

impl Row {
    pub fn log(slot: u64, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            slot,
            tx_index: 0,
            cpi: false,
            failed: false,
            payload: payload.into(),
        }
    }

    pub fn cpi(slot: u64, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            cpi: true,
            ..Self::log(slot, payload)
        }
    }
}

/// A record batch; event indexes count rows.
pub fn batch(rows: &[Row]) -> RecordBatch {
    let count = rows.len();
    let item = Field::new("item", DataType::UInt16, false);
    let mut paths = ListBuilder::new(UInt16Builder::new()).with_field(item);
    for row in 0..count {
        paths.append_value([Some(u16::try_from(row % 7).unwrap())]);
    }
    let u64s = |value: &dyn Fn(&Row) -> u64| -> ArrayRef {
        Arc::new(rows.iter().map(value).collect::<UInt64Array>())
    };
    let columns: Vec<ArrayRef> = vec![
        u64s(&|row| row.slot),
        Arc::new(rows.iter().map(|row| row.tx_index).collect::<UInt32Array>()),
        Arc::new((0..u32::try_from(count).unwrap()).collect::<UInt32Array>()),
        fixed(
            rows.iter()
                .map(|row| [u8::try_from(row.slot % 251).unwrap(); 64].to_vec())
                .collect(),
            64,
        ),
        Arc::new(
            rows.iter()
                .map(|row| (row.slot % 2 == 0).then_some(1_700_000_000))
                .collect::<Int64Array>(),
        ),
        fixed(vec![PROGRAM.to_vec(); count], 32),
        Arc::new(
            rows.iter()
                .map(|row| u8::from(row.cpi))
                .collect::<UInt8Array>(),
        ),
        Arc::new(paths.finish()),
        Arc::new(BinaryArray::from_iter_values(
            rows.iter().map(|row| &row.payload),
        )),
        Arc::new(
            rows.iter()
                .map(|row| Some(row.failed))
                .collect::<BooleanArray>(),
        ),
        Arc::new(
            vec![Some(false); count]
                .into_iter()
                .collect::<BooleanArray>(),
        ),
        Arc::new(vec![800; count].into_iter().collect::<UInt32Array>()),
        u64s(&|_| 59),
    ];
    RecordBatch::try_new(record_schema(), columns).unwrap()
}

fn fixed(values: Vec<Vec<u8>>, width: i32) -> ArrayRef {
    Arc::new(
        FixedSizeBinaryArray::try_from_sparse_iter_with_size(values.into_iter().map(Some), width)
            .unwrap(),
    )
}

pub fn version(from_slot: u64, json: &Value) -> IdlVersion {
    IdlVersion {
        from_slot,
        label: format!("v{from_slot}.json"),
        json: json.to_string().into_bytes(),
    }
}

/// An IDL of the newer format with one event `E` (discriminator 1..=8) of these fields.
pub fn idl(fields: &Value, types: &[Value]) -> Value {
    let mut types = types.to_vec();
    types.push(json!({"name": "E", "type": {"kind": "struct", "fields": fields}}));
    json!({
        "address": "11111111111111111111111111111111",
        "metadata": {"name": "n", "version": "0.1.0", "spec": "0.1.0"},
        "instructions": [],
        "events": [{"name": "E", "discriminator": [1, 2, 3, 4, 5, 6, 7, 8]}],
        "types": types,
    })
}

/// A payload of event `E`.
pub fn payload(fields: &[u8]) -> Vec<u8> {
    [&[1, 2, 3, 4, 5, 6, 7, 8], fields].concat()
}

/// A decoded row's fields by name; only of decoders whose fixed columns end at `block_time`.
pub fn event(decoder: &Decoder, decoded: &Decoded, place: usize, row: usize) -> (String, Value) {
    let (table, batch) = &decoded.tables[place];
    let schema = batch.schema();
    let fields = schema.fields().iter().enumerate().skip(6);
    let fields = fields
        .map(|(column, field)| (field.name().clone(), cell(field, batch.column(column), row)));
    (
        decoder.tables()[*table].name.clone(),
        Value::Object(fields.collect()),
    )
}

/// A cell, as nested JSON spells values.
pub fn cell(field: &Field, array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    let float = |value: f64, finite: Value| match value {
        value if value.is_nan() => json!("NaN"),
        f64::INFINITY => json!("Infinity"),
        f64::NEG_INFINITY => json!("-Infinity"),
        _ => finite,
    };
    match (array.data_type(), field.metadata()["uho:postgres"].as_str()) {
        (DataType::Boolean, _) => json!(array.as_boolean().value(row)),
        (DataType::UInt8, _) => json!(array.as_primitive::<UInt8Type>().value(row)),
        (DataType::Int8, _) => json!(array.as_primitive::<Int8Type>().value(row)),
        (DataType::UInt16, _) => json!(array.as_primitive::<UInt16Type>().value(row)),
        (DataType::Int16, _) => json!(array.as_primitive::<Int16Type>().value(row)),
        (DataType::UInt32, _) => json!(array.as_primitive::<UInt32Type>().value(row)),
        (DataType::Int32, _) => json!(array.as_primitive::<Int32Type>().value(row)),
        (DataType::UInt64, _) => json!(array.as_primitive::<UInt64Type>().value(row).to_string()),
        (DataType::Int64, _) => json!(array.as_primitive::<Int64Type>().value(row).to_string()),
        (DataType::Decimal256(_, _), _) => json!(
            array
                .as_primitive::<Decimal256Type>()
                .value(row)
                .to_string()
        ),
        (DataType::Float32, _) => {
            let value = array.as_primitive::<Float32Type>().value(row);
            float(
                value.into(),
                serde_json::from_str(&format!("{value:?}")).unwrap_or_default(),
            )
        }
        (DataType::Float64, _) => {
            let value = array.as_primitive::<Float64Type>().value(row);
            float(value, json!(value))
        }
        (DataType::Utf8, "jsonb") => {
            serde_json::from_str(array.as_string::<i32>().value(row)).unwrap()
        }
        (DataType::Utf8, _) => json!(array.as_string::<i32>().value(row)),
        (DataType::Binary, _) => json!(hexadecimal(array.as_binary::<i32>().value(row))),
        (DataType::FixedSizeBinary(32), _) => {
            json!(base58(
                array.as_fixed_size_binary().value(row).try_into().unwrap()
            ))
        }
        other => panic!("no column of decoded tables is {other:?}"),
    }
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn base58(bytes: &[u8; 32]) -> String {
    let mut text = [0; 44];
    let length = five8::encode_32(bytes, &mut text);
    String::from_utf8(text[..usize::from(length)].to_vec()).unwrap()
}

pub fn reasons(decoded: &Decoded) -> Vec<String> {
    let column = decoded.quarantine.column_by_name("reason").unwrap();
    column
        .as_string::<i32>()
        .iter()
        .map(|reason| reason.unwrap().to_owned())
        .collect()
}

/// The folder of real data; tests that need it skip, saying so, where it is absent.
pub fn shared_data() -> Option<PathBuf> {
    let folder = std::env::var_os("UHO_SHARED_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/data"),
        PathBuf::from,
    );
    if folder.is_dir() {
        Some(folder)
    } else {
        println!("skipped: no real data at {}", folder.display());
        None
    }
}

/// The rows as instructions of the program, each given accounts or none that are known.
pub fn instructions(rows: &[(Row, Option<Vec<u8>>)]) -> RecordBatch {
    let plain: Vec<Row> = rows.iter().map(|(row, _)| row.clone()).collect();
    let mut columns = batch(&plain).columns().to_vec();
    columns[6] = Arc::new(UInt8Array::from(vec![2u8; rows.len()]));
    let accounts = rows.iter().map(|(_, accounts)| accounts.as_ref());
    columns.push(Arc::new(accounts.collect::<BinaryArray>()));
    RecordBatch::try_new(record_schema_with_accounts(), columns).unwrap()
}
