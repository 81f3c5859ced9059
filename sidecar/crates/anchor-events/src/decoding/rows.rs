//! A record batch as the decoder reads it: typed columns, checked once.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{
    Array as _, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray, PrimitiveArray,
    RecordBatch,
};

use super::error::DecodeError;
use super::instruction::KEY_BYTES;
use crate::records::{ACCOUNTS, RecordError, Source, record_schema};

/// The value of `source` for a record that was logged.
pub(super) const LOG: u8 = Source::Log as u8;

/// The value of `source` for a record that was emitted by CPI.
pub(super) const CPI: u8 = Source::Cpi as u8;

/// The value of `source` for an instruction.
pub(super) const INSTRUCTION: u8 = Source::Instruction as u8;

/// Typed columns of a record batch.
pub(super) struct RecordRows<'a> {
    pub(super) slot: &'a PrimitiveArray<UInt64Type>,
    pub(super) tx_index: &'a PrimitiveArray<UInt32Type>,
    pub(super) event_index: &'a PrimitiveArray<UInt32Type>,
    pub(super) signature: &'a FixedSizeBinaryArray,
    pub(super) block_time: &'a PrimitiveArray<Int64Type>,
    pub(super) truncated: &'a BooleanArray,
    pub(super) failed: &'a BooleanArray,
    program: &'a FixedSizeBinaryArray,
    source: &'a PrimitiveArray<UInt8Type>,
    payload: &'a BinaryArray,
    path: (&'a ListArray, &'a PrimitiveArray<UInt16Type>),
    /// None where the batch comes from a stream without instructions.
    pub(super) accounts: Option<&'a BinaryArray>,
}

impl<'a> RecordRows<'a> {
    /// Checks that the batch has the record schema and no nulls but block times.
    pub(super) fn new(batch: &'a RecordBatch) -> Result<Self, DecodeError> {
        let schema = record_schema();
        let found = batch.schema_ref().fields();
        for (position, field) in schema.fields().iter().enumerate() {
            let fits = found
                .get(position)
                .is_some_and(|other| other.name() == field.name())
                && (field.is_nullable() || batch.column(position).null_count() == 0);
            if !fits {
                return Err(mismatch(position));
            }
        }
        let bytes = |position: usize, width: i32| {
            batch
                .column(position)
                .as_fixed_size_binary_opt()
                .filter(|array| array.value_length() == width)
                .ok_or_else(|| mismatch(position))
        };
        let boolean = |position: usize| {
            batch
                .column(position)
                .as_boolean_opt()
                .ok_or_else(|| mismatch(position))
        };
        let position = schema.fields().len();
        let accounts = match found.get(position) {
            Some(field) if field.name() == ACCOUNTS => Some(
                batch
                    .column(position)
                    .as_binary_opt()
                    .ok_or_else(|| mismatch(position))?,
            ),
            _ => None,
        };
        if let Some(accounts) = accounts
            && let Some(row) = (0..accounts.len())
                .find(|row| accounts.is_valid(*row) && accounts.value(*row).len() % KEY_BYTES != 0)
        {
            return Err(DecodeError::Accounts { row });
        }
        let paths = batch
            .column(7)
            .as_list_opt::<i32>()
            .ok_or_else(|| mismatch(7))?;
        Ok(Self {
            slot: batch
                .column(0)
                .as_primitive_opt()
                .ok_or_else(|| mismatch(0))?,
            tx_index: batch
                .column(1)
                .as_primitive_opt()
                .ok_or_else(|| mismatch(1))?,
            event_index: batch
                .column(2)
                .as_primitive_opt()
                .ok_or_else(|| mismatch(2))?,
            signature: bytes(3, 64)?,
            block_time: batch
                .column(4)
                .as_primitive_opt()
                .ok_or_else(|| mismatch(4))?,
            program: bytes(5, 32)?,
            source: batch
                .column(6)
                .as_primitive_opt()
                .ok_or_else(|| mismatch(6))?,
            payload: batch.column(8).as_binary_opt().ok_or_else(|| mismatch(8))?,
            failed: boolean(9)?,
            truncated: boolean(10)?,
            path: (
                paths,
                paths
                    .values()
                    .as_primitive_opt()
                    .ok_or_else(|| mismatch(7))?,
            ),
            accounts,
        })
    }

    /// The keys given to an instruction, 32 bytes each; none where they are not known.
    pub(super) fn accounts(&self, row: usize) -> Option<&'a [u8]> {
        let accounts = self.accounts?;
        accounts.is_valid(row).then(|| accounts.value(row))
    }

    /// The instruction that a record is of.
    pub(super) fn path(&self, row: usize) -> &'a [u16] {
        let (lists, items) = self.path;
        let place = |row: usize| usize::try_from(lists.value_offsets()[row]).unwrap_or_default();
        &items.values()[place(row)..place(row + 1)]
    }

    /// The program whose record a row is.
    pub(super) fn program(&self, row: usize) -> &'a [u8] {
        self.program.value(row)
    }

    pub(super) fn len(&self) -> usize {
        self.slot.len()
    }

    pub(super) fn source(&self, row: usize) -> u8 {
        self.source.value(row)
    }

    /// The source as tables spell it.
    pub(super) fn source_word(&self, row: usize) -> &'static str {
        match self.source(row) {
            CPI => "cpi",
            INSTRUCTION => "instruction",
            _ => "log",
        }
    }

    pub(super) fn payload(&self, row: usize) -> &'a [u8] {
        self.payload.value(row)
    }

    /// Refuses rows of other programs than this one.
    pub(super) fn check_program(&self, program: &[u8; 32]) -> Result<(), DecodeError> {
        match (0..self.len()).find(|row| self.program.value(*row) != program) {
            Some(row) => Err(DecodeError::Program { row }),
            None => Ok(()),
        }
    }

    pub(super) fn same_transaction(&self, first: usize, second: usize) -> bool {
        self.slot.value(first) == self.slot.value(second)
            && self.tx_index.value(first) == self.tx_index.value(second)
    }
}

fn mismatch(position: usize) -> DecodeError {
    let schema = record_schema();
    let expected = schema
        .fields()
        .get(position)
        .map(|field| format!("{}: {}", field.name(), field.data_type()))
        .unwrap_or_default();
    RecordError::Schema { position, expected }.into()
}
