//! One table per event name, over all versions: which columns it has, and the batches that fill it.
//! An instruction's table is made alike: behind its arguments it has a column per account that it names,
//! `account_<name>`, null where it was given none.
//!
//! Versions merge: a field that a later version adds is a column that is null before it; a field whose type
//! changes gets a second column, `<field>__<from_slot>` of the version that changed it. Names stay as the
//! IDL has them, even where a field is called like a fixed column: what SQL calls them is the warehouse's
//! business.

use std::sync::Arc;

use arrow_array::builder::{
    FixedSizeBinaryBuilder, ListBuilder, StringBuilder, UInt16Builder, UInt32Builder,
};
use arrow_array::types::{TimestampSecondType, UInt32Type, UInt64Type};
use arrow_array::{Array as _, ArrayRef, BooleanArray, PrimitiveArray, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::columns::{Column, ColumnKind, Room, bytea, field};
use super::error::DecodeError;
use super::instruction::{INSTRUCTION, KEY_BYTES};
use super::json::WriteFault;
use super::layout::{Layout, Scalar, Shape};
use super::payload::Cursor;
use super::rows::RecordRows;

/// What the rows of a table are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// What the program said.
    Event,
    /// What it was told.
    Instruction,
}

/// The table of one event name, or of one instruction.
#[derive(Debug)]
pub struct EventTable {
    /// The event's name, as in the IDL. Of an instruction: `instruction:` and its name.
    pub name: String,
    /// Event or instruction.
    pub kind: TableKind,
    /// Its documentation in the newest version that has any.
    pub docs: String,
    /// The fixed columns, then a nullable column per field. Every field's metadata says its Postgres type
    /// (`uho:postgres`) and its documentation (`uho:docs`), where there is any.
    pub schema: SchemaRef,
    /// The same, ending with `failed` and `truncated`.
    pub schema_with_flags: SchemaRef,
    columns: Vec<TableColumn>,
}

#[derive(Debug)]
struct TableColumn {
    name: String,
    source: String,
    /// Whether it is an account of an instruction, and no field.
    is_account: bool,
    kind: ColumnKind,
    docs: String,
}

/// Where a version's fields go in its table.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) table: usize,
    /// Per field of the layout, its column.
    columns: Vec<usize>,
    /// Per account that an instruction names, its column.
    accounts: Vec<usize>,
    /// Columns that the version does not have.
    absent: Vec<usize>,
}

pub(super) fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Second, Some("UTC".into()))
}

fn path_item() -> Field {
    Field::new("item", DataType::UInt16, false)
}

fn fixed_fields(kind: TableKind) -> Vec<Field> {
    let place = match kind {
        TableKind::Event => "event_index",
        TableKind::Instruction => "instruction_index",
    };
    let signature = DataType::FixedSizeBinary(64);
    let mut fields = vec![
        field("slot", DataType::UInt64, false, "bigint", ""),
        field("tx_index", DataType::UInt32, false, "integer", ""),
        field(place, DataType::UInt32, false, "integer", ""),
        field("signature", signature, false, "text", ""),
    ];
    match kind {
        TableKind::Event => fields.push(field("source", DataType::Utf8, false, "text", "")),
        TableKind::Instruction => {
            let path = DataType::List(Arc::new(path_item()));
            fields.push(field("instruction_path", path, false, "integer[]", ""));
            let given = DataType::UInt32;
            fields.push(field("accounts_given", given, true, "integer", ""));
            let rest = DataType::Utf8;
            fields.push(field("remaining_accounts", rest, true, "jsonb", ""));
        }
    }
    fields.push(field("block_time", instant(), true, "timestamptz", ""));
    fields
}

/// Merges the versions of events into tables, versions in ascending order.
#[derive(Default)]
pub(super) struct TableMerge {
    tables: Vec<EventTable>,
}

impl TableMerge {
    /// Adds a version's event.
    pub(super) fn add(&mut self, layout: &Layout, from_slot: u64) -> Placement {
        let name = &layout.shape.event;
        let table = self
            .tables
            .iter()
            .position(|table| table.name == *name)
            .unwrap_or_else(|| {
                self.tables.push(EventTable {
                    name: name.clone(),
                    kind: if name.starts_with(INSTRUCTION) && layout.shape.accounts.is_some() {
                        TableKind::Instruction
                    } else {
                        TableKind::Event
                    },
                    docs: String::new(),
                    schema: Arc::new(Schema::empty()),
                    schema_with_flags: Arc::new(Schema::empty()),
                    columns: Vec::new(),
                });
                self.tables.len() - 1
            });
        let merged = &mut self.tables[table];
        if !layout.docs.is_empty() {
            merged.docs.clone_from(&layout.docs);
        }
        let fields = layout.shape.fields.iter().zip(&layout.field_docs);
        let columns = fields
            .map(|(field, docs)| {
                let kind = ColumnKind::of(&layout.shape.arena, field.node);
                merged.column(&field.name, false, kind, docs, from_slot)
            })
            .collect();
        let named = layout.shape.accounts.iter().flat_map(|of| &of.named);
        let accounts = named
            .map(|account| {
                let name = format!("account_{}", account.name);
                let kind = ColumnKind::Scalar(Scalar::Pubkey);
                merged.column(&name, true, kind, &account.docs, from_slot)
            })
            .collect();
        Placement {
            table,
            columns,
            accounts,
            absent: Vec::new(),
        }
    }

    /// The tables, and what each placement lacks.
    pub(super) fn finish<'a>(
        mut self,
        placements: impl Iterator<Item = &'a mut Placement>,
    ) -> Vec<EventTable> {
        for placement in placements {
            let mut present = vec![false; self.tables[placement.table].columns.len()];
            for column in placement.columns.iter().chain(&placement.accounts) {
                present[*column] = true;
            }
            placement.absent = (0..present.len())
                .filter(|column| !present[*column])
                .collect();
        }
        for table in &mut self.tables {
            let mut fields = fixed_fields(table.kind);
            fields.extend(
                table
                    .columns
                    .iter()
                    .map(|column| column.kind.field(&column.name, &column.docs)),
            );
            table.schema = Arc::new(Schema::new(fields.clone()));
            fields.push(field("failed", DataType::Boolean, false, "boolean", ""));
            fields.push(field("truncated", DataType::Boolean, false, "boolean", ""));
            table.schema_with_flags = Arc::new(Schema::new(fields));
        }
        self.tables
    }
}

impl EventTable {
    /// Has columns of 32 and 64 bytes asked for as `bytea` where they would be base58 text.
    pub(super) fn ask_for_bytea(&mut self) {
        for schema in [&mut self.schema, &mut self.schema_with_flags] {
            let fields = schema.fields().iter().map(|field| match field.data_type() {
                DataType::FixedSizeBinary(_) => bytea(field),
                _ => field.as_ref().clone(),
            });
            *schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        }
    }

    fn column(
        &mut self,
        source: &str,
        is_account: bool,
        kind: ColumnKind,
        docs: &str,
        from_slot: u64,
    ) -> usize {
        let same = |column: &TableColumn| {
            (column.source.as_str(), column.is_account, column.kind) == (source, is_account, kind)
        };
        if let Some(place) = self.columns.iter().position(same) {
            if !docs.is_empty() {
                docs.clone_into(&mut self.columns[place].docs);
            }
            return place;
        }
        let mut name = source.to_owned();
        let mut suffix = format!("__{from_slot}");
        while self.columns.iter().any(|column| column.name == name) {
            name = format!("{source}{suffix}");
            suffix.push('_');
        }
        self.columns.push(TableColumn {
            name,
            source: source.to_owned(),
            is_account,
            kind,
            docs: docs.to_owned(),
        });
        self.columns.len() - 1
    }
}

/// The rows of one table, in the order they will have.
pub(super) struct TableRows<'a> {
    pub(super) table: &'a EventTable,
    /// Row of the record batch, layout and placement.
    pub(super) rows: Vec<(usize, &'a Layout, &'a Placement)>,
}

impl TableRows<'_> {
    /// Builds the table's batch; `flags` adds the two last columns.
    pub(super) fn build(
        &self,
        records: &RecordRows<'_>,
        flags: bool,
        room: &mut Room,
    ) -> Result<RecordBatch, DecodeError> {
        let count = self.rows.len();
        let mut columns = self
            .table
            .columns
            .iter()
            .map(|column| Column::new(column.kind, count))
            .collect::<Result<Vec<_>, _>>()?;
        for (row, layout, placement) in &self.rows {
            let shape = &layout.shape;
            let mut cursor = Cursor::new(records.payload(*row), shape.discriminator.len());
            for (field, column) in shape.fields.iter().zip(&placement.columns) {
                columns[*column]
                    .append(&shape.arena, field.node, &mut cursor, room)
                    .map_err(|fault| refused(shape, *row, &fault))?;
            }
            for (key, column) in named_keys(shape, records, *row).zip(&placement.accounts) {
                match key {
                    Some(key) => columns[*column]
                        .append_key(key)
                        .map_err(|fault| refused(shape, *row, &fault))?,
                    None => columns[*column].append_null(),
                }
            }
            for column in &placement.absent {
                columns[*column].append_null();
            }
        }

        let mut arrays = self.fixed(records, room)?;
        arrays.extend(columns.into_iter().map(Column::finish));
        let mut schema = &self.table.schema;
        if flags {
            schema = &self.table.schema_with_flags;
            for values in [records.failed, records.truncated] {
                let flags = self.rows.iter().map(|(row, ..)| Some(values.value(*row)));
                arrays.push(Arc::new(flags.collect::<BooleanArray>()));
            }
        }
        Ok(RecordBatch::try_new(schema.clone(), arrays)?)
    }

    fn fixed(
        &self,
        records: &RecordRows<'_>,
        room: &mut Room,
    ) -> Result<Vec<ArrayRef>, DecodeError> {
        let rows = || self.rows.iter().map(|(row, ..)| *row);
        let mut signatures = FixedSizeBinaryBuilder::with_capacity(self.rows.len(), 64);
        for row in rows() {
            signatures.append_value(records.signature.value(row))?;
        }
        let narrow = |values: &PrimitiveArray<UInt32Type>| -> ArrayRef {
            Arc::new(PrimitiveArray::<UInt32Type>::from_iter_values(
                rows().map(|row| values.value(row)),
            ))
        };
        let times = rows().map(|row| {
            records
                .block_time
                .is_valid(row)
                .then(|| records.block_time.value(row))
        });
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(PrimitiveArray::<UInt64Type>::from_iter_values(
                rows().map(|row| records.slot.value(row)),
            )),
            narrow(records.tx_index),
            narrow(records.event_index),
            Arc::new(signatures.finish()),
        ];
        match self.table.kind {
            TableKind::Event => {
                let mut sources =
                    StringBuilder::with_capacity(self.rows.len(), self.rows.len() * 3);
                rows().for_each(|row| sources.append_value(records.source_word(row)));
                arrays.push(Arc::new(sources.finish()));
            }
            TableKind::Instruction => arrays.extend(self.fixed_of_instructions(records, room)?),
        }
        let times = times.collect::<PrimitiveArray<TimestampSecondType>>();
        arrays.push(Arc::new(times.with_timezone("UTC")));
        Ok(arrays)
    }

    /// Path, number of accounts, and those that have no name.
    fn fixed_of_instructions(
        &self,
        records: &RecordRows<'_>,
        room: &mut Room,
    ) -> Result<[ArrayRef; 3], DecodeError> {
        let mut paths = ListBuilder::new(UInt16Builder::new()).with_field(path_item());
        let mut given = UInt32Builder::with_capacity(self.rows.len());
        let mut remaining = StringBuilder::new();
        for (row, layout, _) in &self.rows {
            paths.values().append_slice(records.path(*row));
            paths.append(true);
            let accounts = records.accounts(*row);
            // Arrow's offsets have 31 bits, so the number fits.
            let count = accounts.map(|keys| keys.len() / KEY_BYTES);
            given.append_option(count.and_then(|count| u32::try_from(count).ok()));
            let named = layout
                .shape
                .accounts
                .as_ref()
                .map_or(0, |of| of.named.len());
            let text = accounts
                .and_then(|keys| keys.get(named * KEY_BYTES..))
                .filter(|keys| !keys.is_empty())
                .map(json_of_keys);
            room.spend(text.as_ref().map_or(0, String::len))
                .map_err(|_| refused(&layout.shape, *row, &WriteFault::Full))?;
            remaining.append_option(text);
        }
        Ok([
            Arc::new(paths.finish()),
            Arc::new(given.finish()),
            Arc::new(remaining.finish()),
        ])
    }
}

fn refused(shape: &Shape, row: usize, fault: &WriteFault) -> DecodeError {
    let event = shape.event.clone();
    match fault {
        WriteFault::Full => DecodeError::TooLarge { event },
        WriteFault::Payload => DecodeError::Inconsistent { event, row },
    }
}

/// Per account that an instruction names, the key it was given: none beyond what was given, none where an optional
/// account is the program itself, and none at all where the keys are not known.
fn named_keys<'a>(
    shape: &'a Shape,
    records: &'a RecordRows<'_>,
    row: usize,
) -> impl Iterator<Item = Option<&'a [u8]>> {
    let keys = records.accounts(row).unwrap_or_default();
    let mut keys = keys.chunks_exact(KEY_BYTES);
    let named = shape.accounts.iter().flat_map(|of| &of.named);
    named.map(move |account| {
        let key = keys.next()?;
        (!account.optional || key != records.program(row)).then_some(key)
    })
}

/// Keys as a JSON list of base58 texts.
fn json_of_keys(keys: &[u8]) -> String {
    let mut text = String::from("[");
    for (place, key) in keys.as_chunks::<KEY_BYTES>().0.iter().enumerate() {
        let mut base58 = [0; 44];
        let length = five8::encode_32(key, &mut base58);
        text.push_str(if place > 0 { ",\"" } else { "\"" });
        text.extend(
            base58[..usize::from(length)]
                .iter()
                .map(|byte| char::from(*byte)),
        );
        text.push('"');
    }
    text.push(']');
    text
}
