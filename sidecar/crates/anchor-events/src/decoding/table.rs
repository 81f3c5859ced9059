//! One table per event name, over all versions: which columns it has, and the batches that fill it.
//!
//! Versions merge: a field that a later version adds is a column that is null before it; a field whose type
//! changes gets a second column, `<field>__<from_slot>` of the version that changed it. Names stay as the
//! IDL has them, even where a field is called like a fixed column: what SQL calls them is the warehouse's
//! business.

use std::sync::Arc;

use arrow_array::builder::{FixedSizeBinaryBuilder, StringBuilder};
use arrow_array::types::{TimestampSecondType, UInt32Type, UInt64Type};
use arrow_array::{Array as _, ArrayRef, BooleanArray, PrimitiveArray, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::columns::{Column, ColumnKind, Room, bytea, field};
use super::error::DecodeError;
use super::json::WriteFault;
use super::layout::Layout;
use super::payload::Cursor;
use super::rows::RecordRows;

/// The table of one event name.
#[derive(Debug)]
pub struct EventTable {
    /// The event's name, as in the IDL.
    pub name: String,
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
    kind: ColumnKind,
    docs: String,
}

/// Where a version's fields go in its table.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) table: usize,
    /// Per field of the layout, its column.
    columns: Vec<usize>,
    /// Columns that the version does not have.
    absent: Vec<usize>,
}

pub(super) fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Second, Some("UTC".into()))
}

fn fixed_fields() -> Vec<Field> {
    vec![
        field("slot", DataType::UInt64, false, "bigint", ""),
        field("tx_index", DataType::UInt32, false, "integer", ""),
        field("event_index", DataType::UInt32, false, "integer", ""),
        field(
            "signature",
            DataType::FixedSizeBinary(64),
            false,
            "text",
            "",
        ),
        field("source", DataType::Utf8, false, "text", ""),
        field("block_time", instant(), true, "timestamptz", ""),
    ]
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
                merged.column(
                    &field.name,
                    ColumnKind::of(&layout.shape.arena, field.node),
                    docs,
                    from_slot,
                )
            })
            .collect();
        Placement {
            table,
            columns,
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
            for column in &placement.columns {
                present[*column] = true;
            }
            placement.absent = (0..present.len())
                .filter(|column| !present[*column])
                .collect();
        }
        for table in &mut self.tables {
            let mut fields = fixed_fields();
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

    fn column(&mut self, source: &str, kind: ColumnKind, docs: &str, from_slot: u64) -> usize {
        let same = |column: &TableColumn| column.source == source && column.kind == kind;
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
                    .map_err(|fault| match fault {
                        WriteFault::Full => DecodeError::TooLarge {
                            event: shape.event.clone(),
                        },
                        WriteFault::Payload => DecodeError::Inconsistent {
                            event: shape.event.clone(),
                            row: *row,
                        },
                    })?;
            }
            for column in &placement.absent {
                columns[*column].append_null();
            }
        }

        let mut arrays = self.fixed(records)?;
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

    fn fixed(&self, records: &RecordRows<'_>) -> Result<Vec<ArrayRef>, DecodeError> {
        let rows = || self.rows.iter().map(|(row, ..)| *row);
        let mut signatures = FixedSizeBinaryBuilder::with_capacity(self.rows.len(), 64);
        let mut sources = StringBuilder::with_capacity(self.rows.len(), self.rows.len() * 3);
        for row in rows() {
            signatures.append_value(records.signature.value(row))?;
            sources.append_value(records.source_word(row));
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
        Ok(vec![
            Arc::new(PrimitiveArray::<UInt64Type>::from_iter_values(
                rows().map(|row| records.slot.value(row)),
            )),
            narrow(records.tx_index),
            narrow(records.event_index),
            Arc::new(signatures.finish()),
            Arc::new(sources.finish()),
            Arc::new(
                times
                    .collect::<PrimitiveArray<TimestampSecondType>>()
                    .with_timezone("UTC"),
            ),
        ])
    }
}
