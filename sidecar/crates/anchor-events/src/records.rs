//! Records: the things one program said in one transaction, and their Arrow form.
//!
//! A program says something in two ways: a `Program data:` line in the log while it is the speaker
//! (Anchor's `emit!`), or a call to itself whose instruction data begins with Anchor's event tag
//! (`emit_cpi!`). Everything is kept here, twins and records of failed transactions included; what an
//! IDL makes of a payload is decided elsewhere. Whatever is odd is counted in [`ExtractCounts`], never
//! passed over in silence.

use std::sync::Arc;

use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, FixedSizeBinaryBuilder, Int64Builder, ListBuilder, UInt8Builder,
    UInt16Builder, UInt32Builder, UInt64Builder,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::log_stack::{InstructionPath, LogLine, LogStack, ProgramNames};

/// A Solana address: the 32 bytes of an account key or program id.
pub type Address = [u8; 32];

/// The 8 bytes that open the instruction data of an Anchor event emitted by CPI (`emit_cpi!`).
pub const CPI_EVENT_TAG: [u8; 8] = [0xe4, 0x45, 0xa5, 0x2e, 0x51, 0xcb, 0x9a, 0x1d];

/// A top-level instruction, borrowed from its transaction.
#[derive(Clone, Copy, Debug)]
pub struct InstructionView<'a> {
    /// Place of the program in the account keys.
    pub program_index: u8,
    /// Places of the accounts given to it in the account keys, a byte each.
    pub accounts: &'a [u8],
    /// Instruction data.
    pub data: &'a [u8],
}

/// A recorded inner instruction. A transaction's are one flat list: those of each top-level instruction
/// together, in the order they were recorded.
#[derive(Clone, Copy, Debug)]
pub struct InnerView<'a> {
    /// Place of the top-level instruction that led to this call.
    pub top_level_index: u8,
    /// Place of the called program in the account keys.
    pub program_index: u8,
    /// Places of the accounts given to it in the account keys, a byte each.
    pub accounts: &'a [u8],
    /// Instruction data.
    pub data: &'a [u8],
}

/// What extraction needs to know of a transaction, borrowed from whoever read it.
#[derive(Clone, Copy, Debug)]
pub struct TransactionView<'a> {
    /// Slot of the block.
    pub slot: u64,
    /// Place in the block, counted.
    pub tx_index: u32,
    /// Epoch of the archive file.
    pub epoch: u32,
    /// Byte offset of the transaction's section in the epoch's CAR file.
    pub archive_offset: u64,
    /// First signature.
    pub signature: &'a [u8; 64],
    /// Unix time of the block in seconds; none when the block does not say.
    pub block_time: Option<i64>,
    /// Whether the transaction failed.
    pub failed: bool,
    /// Static keys, then loaded writable ones, then loaded read-only ones.
    pub account_keys: &'a [Address],
    /// Top-level instructions.
    pub instructions: &'a [InstructionView<'a>],
    /// Recorded inner instructions, flat.
    pub inner_instructions: &'a [InnerView<'a>],
    /// Log lines; none when the metadata has no log.
    pub logs: Option<&'a [&'a [u8]]>,
}

/// How a record was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Source {
    /// A `Program data:` line.
    Log = 0,
    /// A call of the program to itself.
    Cpi = 1,
    /// Nothing said, but what the program was told: an instruction of its own.
    Instruction = 2,
}

/// One thing a program said, or was told, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of what a program said: its place among the program's records of the transaction, log records first,
    /// then CPI records. Of an instruction: its place among all instructions of the transaction, depth first.
    pub event_index: u32,
    /// Log line, self-call or instruction.
    pub source: Source,
    /// The instruction that said it, or the instruction itself.
    pub path: InstructionPath,
    /// The bytes said: discriminator and fields, without the CPI tag. Of an instruction: its data.
    pub payload: Vec<u8>,
    /// Of an instruction: the 32 bytes of each account given to it, in order; none where one of them is not
    /// among the transaction's keys. Of what was said: none.
    pub accounts: Option<Vec<u8>>,
}

/// What was odd in a transaction. All zero in an ordinary one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtractCounts {
    /// `Program data:` lines of the program that are not base64.
    pub malformed_data_lines: u32,
    /// `Program data:` lines outside every invocation.
    pub orphan_data_lines: u32,
    /// `Program data:` lines after `Log truncated` whose speaker the lines around them do not prove.
    pub unattributed_data_lines: u32,
    /// `Program log:` lines of the program that are nothing but base64 of 16 bytes or more. Anchor wrote events
    /// this way until early 2022, before `Program data:` existed; they are counted and not extracted, because
    /// nothing tells them from text.
    pub logged_base64_lines: u32,
    /// Stack lines that did not fit the stack.
    pub stack_mismatches: u32,
    /// Invocations in the log for which the transaction has no instruction at the expected place.
    pub path_mismatches: u32,
    /// Instructions whose program lies outside the account keys.
    pub unknown_programs: u32,
    /// Instructions of the program with an account outside the account keys: what was given to them is not known.
    pub unknown_accounts: u32,
}

impl ExtractCounts {
    /// Adds another transaction's counts.
    pub fn add(&mut self, other: &Self) {
        self.malformed_data_lines += other.malformed_data_lines;
        self.orphan_data_lines += other.orphan_data_lines;
        self.unattributed_data_lines += other.unattributed_data_lines;
        self.logged_base64_lines += other.logged_base64_lines;
        self.stack_mismatches += other.stack_mismatches;
        self.path_mismatches += other.path_mismatches;
        self.unknown_programs += other.unknown_programs;
        self.unknown_accounts += other.unknown_accounts;
    }

    /// Whether anything was odd.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// What [`extract`] found of one program in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// The program's records, by event index.
    pub records: Vec<Record>,
    /// Whether the log was truncated: records may be missing.
    pub truncated: bool,
    /// What was odd.
    pub counts: ExtractCounts,
}

/// Extracts the records of `program` from a transaction.
///
/// ```
/// use anchor_events::{InstructionView, Source, TransactionView, extract};
///
/// let program = [7; 32];
/// let name = {
///     let mut text = [0; 44];
///     let length = five8::encode_32(&program, &mut text);
///     String::from_utf8(text[..usize::from(length)].to_vec()).unwrap()
/// };
/// let lines = [format!("Program {name} invoke [1]"), "Program data: AQIDBAUGBwg=".into(), format!("Program {name} success")];
/// let logs: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
/// let transaction = TransactionView {
///     slot: 1, tx_index: 0, epoch: 0, archive_offset: 59, signature: &[0; 64], block_time: None, failed: false,
///     account_keys: &[program], instructions: &[InstructionView { program_index: 0, accounts: &[], data: &[] }],
///     inner_instructions: &[], logs: Some(&logs),
/// };
/// let extracted = extract(&transaction, &program);
/// assert_eq!(extracted.records[0].payload, [1, 2, 3, 4, 5, 6, 7, 8]);
/// assert_eq!(extracted.records[0].source, Source::Log);
/// ```
pub fn extract(transaction: &TransactionView<'_>, program: &Address) -> Extracted {
    let mut extraction = Extraction {
        program,
        found: Extracted::default(),
        undecided: Vec::new(),
    };
    if let Some(logs) = transaction.logs {
        extraction.read_logs(transaction, logs);
    }
    extraction.read_inner_instructions(transaction);
    extraction.found
}

struct Extraction<'a> {
    program: &'a Address,
    found: Extracted,
    /// Data lines after `Log truncated` (the program's own, and their places), until the next stack line
    /// shows whether an invocation was dropped from the log in between.
    undecided: Vec<(InstructionPath, &'a [u8])>,
}

impl<'a> Extraction<'a> {
    fn read_logs(&mut self, transaction: &TransactionView<'a>, logs: &[&'a [u8]]) {
        let mut stack = LogStack::new(
            transaction.account_keys,
            transaction.instructions,
            transaction.inner_instructions,
        );
        let mut names = ProgramNames::default();
        for line in logs {
            match LogLine::parse(line, &mut names) {
                LogLine::Invoke { program, depth } => {
                    let fits = stack.invoke(program, depth);
                    self.decide(fits);
                }
                LogLine::Close { program } => {
                    let fits = stack.close(&program);
                    self.decide(fits);
                }
                LogLine::Data(fields) => match stack.speaker() {
                    Some((speaker, path)) if speaker == *self.program => {
                        if self.found.truncated {
                            self.undecided.push((path, fields));
                        } else {
                            self.push_data_line(path, fields);
                        }
                    }
                    Some(_) => {}
                    None => self.found.counts.orphan_data_lines += 1,
                },
                LogLine::Text(text) => {
                    let speaker = stack.speaker();
                    if speaker.is_some_and(|(speaker, _)| speaker == *self.program)
                        && looks_like_base64(text)
                    {
                        self.found.counts.logged_base64_lines += 1;
                    }
                }
                LogLine::Truncated => self.found.truncated = true,
                LogLine::Other => {}
            }
        }
        self.decide(false);
        if !self.found.truncated {
            stack.finish();
        }
        self.found.counts.stack_mismatches = stack.stack_mismatches;
        self.found.counts.path_mismatches = stack.path_mismatches;
    }

    /// Lines shorter than the one that did not fit may follow `Log truncated`, so an invocation can be
    /// missing before a data line. If the next stack line continues the stack as known, none is.
    fn decide(&mut self, fits: bool) {
        for (path, fields) in std::mem::take(&mut self.undecided) {
            if fits {
                self.push_data_line(path, fields);
            } else {
                self.found.counts.unattributed_data_lines += 1;
            }
        }
    }

    fn push_data_line(&mut self, path: InstructionPath, fields: &[u8]) {
        match decode_fields(fields) {
            Some(payload) => self.push(Source::Log, path, payload),
            None => self.found.counts.malformed_data_lines += 1,
        }
    }

    fn read_inner_instructions(&mut self, transaction: &TransactionView<'_>) {
        for (path, inner) in with_paths(transaction.inner_instructions) {
            let Some(called) = transaction
                .account_keys
                .get(usize::from(inner.program_index))
            else {
                self.found.counts.unknown_programs += 1;
                continue;
            };
            if called != self.program {
                continue;
            }
            if let Some(payload) = inner.data.strip_prefix(&CPI_EVENT_TAG) {
                self.push(Source::Cpi, path, payload.to_vec());
            }
        }
    }

    fn push(&mut self, source: Source, path: InstructionPath, payload: Vec<u8>) {
        // A transaction's log is at most tens of kilobytes, so the count always fits.
        let event_index = u32::try_from(self.found.records.len()).unwrap_or(u32::MAX);
        self.found.records.push(Record {
            event_index,
            source,
            path,
            payload,
            accounts: None,
        });
    }
}

/// Recorded inner instructions with their paths.
pub(crate) fn with_paths<'a, 'b>(
    inner: &'b [InnerView<'a>],
) -> impl Iterator<Item = (InstructionPath, &'b InnerView<'a>)> {
    let mut place = 0u16;
    let mut top_level = None;
    inner.iter().map(move |inner| {
        if top_level != Some(inner.top_level_index) {
            top_level = Some(inner.top_level_index);
            place = 0;
        }
        let path = InstructionPath {
            top_level: u16::from(inner.top_level_index),
            inner: Some(place),
        };
        place = place.saturating_add(1);
        (path, inner)
    })
}

/// Concatenates the base64 fields of a data line; none when one of them is not base64.
fn decode_fields(fields: &[u8]) -> Option<Vec<u8>> {
    let mut payload = Vec::with_capacity(fields.len() / 4 * 3 + 3);
    for field in fields.split(|byte| *byte == b' ') {
        STANDARD.decode_vec(field, &mut payload).ok()?;
    }
    Some(payload)
}

/// Whether a text is nothing but base64 of at least 16 bytes: a discriminator and a field.
fn looks_like_base64(text: &[u8]) -> bool {
    const LEAST_TEXT: usize = 24;
    text.len() >= LEAST_TEXT
        && text.len().is_multiple_of(4)
        // Nearly all text has spaces: nothing is allocated for it.
        && !text.contains(&b' ')
        && STANDARD.decode(text).is_ok()
}

/// The Arrow schema of records: fixed names, order and types. Only `block_time` can be null.
pub fn record_schema() -> SchemaRef {
    let path_item = Field::new("item", DataType::UInt16, false);
    Arc::new(Schema::new(vec![
        Field::new("slot", DataType::UInt64, false),
        Field::new("tx_index", DataType::UInt32, false),
        Field::new("event_index", DataType::UInt32, false),
        Field::new("signature", DataType::FixedSizeBinary(64), false),
        Field::new("block_time", DataType::Int64, true),
        Field::new("program", DataType::FixedSizeBinary(32), false),
        Field::new("source", DataType::UInt8, false),
        Field::new(
            "instruction_path",
            DataType::List(Arc::new(path_item)),
            false,
        ),
        Field::new("payload", DataType::Binary, false),
        Field::new("failed", DataType::Boolean, false),
        Field::new("truncated", DataType::Boolean, false),
        Field::new("epoch", DataType::UInt32, false),
        Field::new("archive_offset", DataType::UInt64, false),
    ]))
}

/// The name of the column that the schema of streams with instructions has behind the record columns.
pub(crate) const ACCOUNTS: &str = "accounts";

/// The record schema with one more column, `accounts`: of an instruction the 32 bytes of each account given to
/// it, one behind the other; null where one of them is not known, and of what a program said.
pub fn record_schema_with_accounts() -> SchemaRef {
    let mut fields = record_schema().fields().to_vec();
    fields.push(Arc::new(Field::new(ACCOUNTS, DataType::Binary, true)));
    Arc::new(Schema::new(fields))
}

/// Why a record batch could not be built or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A batch does not have the record schema: a column is missing, misplaced or of another type.
    #[error("not a record batch: column {position} should be `{expected}`")]
    Schema {
        /// Place of the column.
        position: usize,
        /// Its name and type in the record schema.
        expected: String,
    },
    /// Arrow refused the columns.
    #[error("record batch: {0}")]
    Arrow(#[from] ArrowError),
}

/// Collects records into one Arrow batch of the record schema.
#[derive(Debug)]
pub struct RecordBatchBuilder {
    slot: UInt64Builder,
    tx_index: UInt32Builder,
    event_index: UInt32Builder,
    signature: FixedSizeBinaryBuilder,
    block_time: Int64Builder,
    program: FixedSizeBinaryBuilder,
    source: UInt8Builder,
    instruction_path: ListBuilder<UInt16Builder>,
    payload: BinaryBuilder,
    failed: BooleanBuilder,
    truncated: BooleanBuilder,
    epoch: UInt32Builder,
    archive_offset: UInt64Builder,
    /// Only where instructions are collected too.
    accounts: Option<BinaryBuilder>,
    rows: usize,
    payload_bytes: usize,
}

impl Default for RecordBatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordBatchBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::with_capacity(0, 0, false)
    }

    /// An empty builder of batches that have the column `accounts`.
    pub fn with_accounts() -> Self {
        Self::with_capacity(0, 0, true)
    }

    fn with_capacity(rows: usize, payload_bytes: usize, accounts: bool) -> Self {
        let item = Field::new("item", DataType::UInt16, false);
        let items = UInt16Builder::with_capacity(2 * rows);
        Self {
            slot: UInt64Builder::with_capacity(rows),
            tx_index: UInt32Builder::with_capacity(rows),
            event_index: UInt32Builder::with_capacity(rows),
            signature: FixedSizeBinaryBuilder::with_capacity(rows, 64),
            block_time: Int64Builder::with_capacity(rows),
            program: FixedSizeBinaryBuilder::with_capacity(rows, 32),
            source: UInt8Builder::with_capacity(rows),
            instruction_path: ListBuilder::with_capacity(items, rows).with_field(item),
            payload: BinaryBuilder::with_capacity(rows, payload_bytes),
            failed: BooleanBuilder::with_capacity(rows),
            truncated: BooleanBuilder::with_capacity(rows),
            epoch: UInt32Builder::with_capacity(rows),
            archive_offset: UInt64Builder::with_capacity(rows),
            accounts: accounts.then(|| BinaryBuilder::with_capacity(rows, 0)),
            rows: 0,
            payload_bytes: 0,
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of the rows so far, payloads and fixed columns.
    pub fn bytes(&self) -> usize {
        const FIXED_BYTES_PER_ROW: usize = 160;
        self.rows * FIXED_BYTES_PER_ROW + self.payload_bytes
    }

    /// Adds one record of `program`.
    pub fn append(
        &mut self,
        transaction: &TransactionView<'_>,
        program: &Address,
        record: &Record,
        truncated: bool,
    ) -> Result<(), RecordError> {
        self.slot.append_value(transaction.slot);
        self.tx_index.append_value(transaction.tx_index);
        self.event_index.append_value(record.event_index);
        self.signature.append_value(transaction.signature)?;
        self.block_time.append_option(transaction.block_time);
        self.program.append_value(program)?;
        self.source.append_value(record.source as u8);
        self.instruction_path
            .values()
            .append_value(record.path.top_level);
        if let Some(inner) = record.path.inner {
            self.instruction_path.values().append_value(inner);
        }
        self.instruction_path.append(true);
        self.payload.append_value(&record.payload);
        self.failed.append_value(transaction.failed);
        self.truncated.append_value(truncated);
        self.epoch.append_value(transaction.epoch);
        self.archive_offset.append_value(transaction.archive_offset);
        self.rows += 1;
        self.payload_bytes += record.payload.len();
        if let Some(accounts) = &mut self.accounts {
            accounts.append_option(record.accounts.as_ref());
            self.payload_bytes += record.accounts.as_ref().map_or(0, Vec::len);
        }
        Ok(())
    }

    /// Takes the rows as a batch and leaves the builder empty, with room for as many again.
    pub fn finish(&mut self) -> Result<RecordBatch, RecordError> {
        let next = Self::with_capacity(self.rows, self.payload_bytes, self.accounts.is_some());
        let mut full = std::mem::replace(self, next);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(full.slot.finish()),
            Arc::new(full.tx_index.finish()),
            Arc::new(full.event_index.finish()),
            Arc::new(full.signature.finish()),
            Arc::new(full.block_time.finish()),
            Arc::new(full.program.finish()),
            Arc::new(full.source.finish()),
            Arc::new(full.instruction_path.finish()),
            Arc::new(full.payload.finish()),
            Arc::new(full.failed.finish()),
            Arc::new(full.truncated.finish()),
            Arc::new(full.epoch.finish()),
            Arc::new(full.archive_offset.finish()),
        ];
        let Some(mut accounts) = full.accounts else {
            return Ok(RecordBatch::try_new(record_schema(), columns)?);
        };
        columns.push(Arc::new(accounts.finish()));
        Ok(RecordBatch::try_new(
            record_schema_with_accounts(),
            columns,
        )?)
    }
}
