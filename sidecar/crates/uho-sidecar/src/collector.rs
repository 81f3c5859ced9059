//! Blocks in, messages out: extracts the records of a block's matched transactions, gathers them into
//! batches of whole blocks, and counts per program what the certificate says about them.

use anchor_events::{
    ExtractCounts, InnerView, InstructionView, RecordBatchBuilder, RowDigests, TransactionView,
    extract, extract_instructions,
};
use bytes::Bytes;
use old_faithful::{Block, Certificate, MatchedTransaction, Pubkey};
use serde::Serialize;

use crate::encoder::{EncodeError, Format};
use crate::ndjson::{base58, push_transaction};

/// A batch goes out at this many records …
const BATCH_ROWS: usize = 8_192;
/// … or this many bytes, whichever comes first, at the end of the block that reached it.
const BATCH_BYTES: usize = 2 << 20;

/// What the certificate says of one program's records in a stretch.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    with_records: u64,
    truncated: u64,
    records: u64,
    digest: u128,
}

/// What was odd in the matched transactions of a stretch: nothing of it is lost in silence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Oddities {
    /// `Program data:` lines that are not base64.
    malformed_data_lines: u64,
    /// `Program data:` lines outside every invocation.
    orphan_data_lines: u64,
    /// `Program data:` lines after `Log truncated` that no program can be shown to have said.
    unattributed_data_lines: u64,
    /// `Program log:` lines that are nothing but base64: how Anchor wrote events until early 2022.
    logged_base64_lines: u64,
    /// Log lines that do not fit the stack of invocations.
    stack_mismatches: u64,
    /// Invocations without an instruction at the expected place.
    path_mismatches: u64,
    /// Instructions that name a program outside the account keys.
    unknown_programs: u64,
    /// Instructions asked for that were given an account outside the account keys.
    unknown_accounts: u64,
    /// Matched transactions whose metadata has no log: they may have said things that are not recorded.
    without_log: u64,
}

impl Oddities {
    fn add(&mut self, counts: &ExtractCounts) {
        self.malformed_data_lines += u64::from(counts.malformed_data_lines);
        self.orphan_data_lines += u64::from(counts.orphan_data_lines);
        self.unattributed_data_lines += u64::from(counts.unattributed_data_lines);
        self.logged_base64_lines += u64::from(counts.logged_base64_lines);
        self.stack_mismatches += u64::from(counts.stack_mismatches);
        self.path_mismatches += u64::from(counts.path_mismatches);
        self.unknown_programs += u64::from(counts.unknown_programs);
        self.unknown_accounts += u64::from(counts.unknown_accounts);
    }

    /// Adds a later stretch.
    pub(crate) fn merge(&mut self, next: &Self) {
        self.malformed_data_lines += next.malformed_data_lines;
        self.orphan_data_lines += next.orphan_data_lines;
        self.unattributed_data_lines += next.unattributed_data_lines;
        self.logged_base64_lines += next.logged_base64_lines;
        self.stack_mismatches += next.stack_mismatches;
        self.path_mismatches += next.path_mismatches;
        self.unknown_programs += next.unknown_programs;
        self.unknown_accounts += next.unknown_accounts;
        self.without_log += next.without_log;
    }
}

/// Gathers a stream's records between two flushes.
pub(crate) struct Collector {
    format: Format,
    include_failed: bool,
    programs: Vec<Pubkey>,
    /// Of each program, whether its instructions are records too.
    instructions: Vec<bool>,
    program_names: Vec<String>,
    builder: RecordBatchBuilder,
    /// For each row of the builder, whose record it is.
    row_programs: Vec<u16>,
    lines: Vec<u8>,
    last_slot: Option<u64>,
    sent: Vec<Sent>,
    oddities: Oddities,
}

impl Collector {
    pub(crate) fn new(format: Format, programs: Vec<Pubkey>, include_failed: bool) -> Self {
        Self {
            format,
            include_failed,
            program_names: programs.iter().map(base58).collect(),
            sent: vec![Sent::default(); programs.len()],
            instructions: vec![false; programs.len()],
            programs,
            builder: RecordBatchBuilder::new(),
            row_programs: Vec::new(),
            lines: Vec::new(),
            last_slot: None,
            oddities: Oddities::default(),
        }
    }

    /// Has the instructions of `programs` collected too; batches have the column `accounts` if there are any.
    pub(crate) fn with_instructions_of(mut self, programs: &[Pubkey]) -> Self {
        let asked = self.programs.iter().map(|own| programs.contains(own));
        self.instructions = asked.collect();
        if !programs.is_empty() {
            self.format = self.format.with_instructions(true);
            self.builder = RecordBatchBuilder::with_accounts();
        }
        self
    }

    /// The programs of the stream, in the order of the request.
    pub(crate) fn programs(&self) -> &[Pubkey] {
        &self.programs
    }

    /// Takes a block's matches.
    pub(crate) fn add(&mut self, block: &Block) -> Result<(), EncodeError> {
        for transaction in &block.matches {
            self.add_transaction(block, transaction)?;
        }
        self.last_slot = Some(block.slot);
        Ok(())
    }

    /// Records that wait for the next flush.
    pub(crate) fn waiting(&self) -> u64 {
        self.builder.rows() as u64
    }

    /// The slot of the last block that was added.
    pub(crate) fn last_slot(&self) -> Option<u64> {
        self.last_slot
    }

    /// Whether enough has gathered to be sent.
    pub(crate) fn is_full(&self) -> bool {
        self.builder.rows() >= BATCH_ROWS
            || self.builder.bytes() >= BATCH_BYTES
            || self.lines.len() >= BATCH_BYTES
    }

    /// Takes what has gathered as one message; empty when there is nothing to send.
    pub(crate) fn flush(&mut self) -> Result<Bytes, EncodeError> {
        let mut message = Bytes::from(std::mem::take(&mut self.lines));
        if self.builder.rows() > 0 {
            let batch = self.builder.finish()?;
            let digests = RowDigests::new(&batch)?;
            for (program, digest) in self.row_programs.drain(..).zip(digests.iter()) {
                let sent = &mut self.sent[usize::from(program)];
                sent.records += 1;
                sent.digest = sent.digest.wrapping_add(digest);
            }
            if self.format != Format::Ndjson {
                message = self.format.records(&batch)?;
            }
        }
        Ok(message)
    }

    /// Writes what was sent since the last call into a stretch's certificate, and returns what was odd.
    /// Everything must have been flushed.
    pub(crate) fn certify(&mut self, certificate: &mut Certificate) -> Oddities {
        for (program, sent) in self.programs.iter().zip(&mut self.sent) {
            let sent = std::mem::take(sent);
            let counts = certificate.program_mut(program);
            counts.with_records = sent.with_records;
            counts.truncated = sent.truncated;
            counts.records = sent.records;
            counts.digest = sent.digest;
        }
        std::mem::take(&mut self.oddities)
    }

    fn add_transaction(
        &mut self,
        block: &Block,
        transaction: &MatchedTransaction,
    ) -> Result<(), EncodeError> {
        let failed = transaction.failed();
        let is_sent = self.include_failed || !failed;
        let parts = transaction.parts()?;
        let metadata = parts.metadata.as_ref();
        let instructions: Vec<InstructionView<'_>> = parts
            .instructions
            .iter()
            .map(|instruction| InstructionView {
                program_index: instruction.program_index,
                accounts: instruction.accounts,
                data: instruction.data,
            })
            .collect();
        let inner_instructions: Vec<InnerView<'_>> = metadata
            .iter()
            .flat_map(|metadata| &metadata.inner_instructions)
            .map(|inner| InnerView {
                top_level_index: inner.top_level_index,
                program_index: inner.program_index,
                accounts: inner.accounts,
                data: inner.data,
            })
            .collect();
        let logs = metadata.and_then(|metadata| metadata.logs.as_deref());
        if metadata.is_some() && logs.is_none() {
            self.oddities.without_log += 1;
        }
        let view = TransactionView {
            slot: transaction.slot,
            tx_index: transaction.index,
            epoch: transaction.epoch,
            archive_offset: transaction.archive_offset,
            signature: parts.signature,
            block_time: block.block_time,
            failed,
            account_keys: &parts.account_keys,
            instructions: &instructions,
            inner_instructions: &inner_instructions,
            logs,
        };
        for (nth, mention) in transaction.mentions.iter().enumerate() {
            let place = mention.program;
            let Some(program) = self.programs.get(usize::from(place)) else {
                continue;
            };
            let mut extracted = extract(&view, program);
            if self.instructions.get(usize::from(place)) == Some(&true) {
                let (records, counts) = extract_instructions(&view, program);
                extracted.records.extend(records);
                self.oddities.add(&counts);
            }
            let sent = &mut self.sent[usize::from(place)];
            sent.truncated += u64::from(extracted.truncated);
            let mut counts = extracted.counts;
            if nth > 0 {
                // Oddities of the transaction itself are the same for each of its programs.
                counts = ExtractCounts {
                    malformed_data_lines: counts.malformed_data_lines,
                    unattributed_data_lines: counts.unattributed_data_lines,
                    logged_base64_lines: counts.logged_base64_lines,
                    ..ExtractCounts::default()
                };
            }
            self.oddities.add(&counts);
            if !is_sent {
                continue;
            }
            sent.with_records += u64::from(!extracted.records.is_empty());
            for record in &extracted.records {
                self.builder
                    .append(&view, program, record, extracted.truncated)?;
                self.row_programs.push(place);
            }
        }
        if is_sent && self.format == Format::Ndjson {
            let names = &self.program_names;
            push_transaction(block, transaction, &parts, names, &mut self.lines)?;
        }
        Ok(())
    }
}
