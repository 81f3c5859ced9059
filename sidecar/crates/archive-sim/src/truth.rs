//! The truth: what a correct backfill of the archive yields, written as JSON lines beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use crate::chain::{Traps, is_vote};
use crate::instructions::Told;
use crate::logs::{Heard, Outcome, Said};
use crate::programs::{PROGRAMS, Truth, program_id};
use crate::transaction::{Kept, Transaction};
use crate::wire::Keys;
use crate::{Plan, Pubkey, SimError, base58, hex};

/// What a range of slots holds.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct ChunkSummary {
    /// First slot.
    pub start: u64,
    /// Blocks.
    pub blocks: u64,
    /// Entries, those without transactions included.
    pub entries: u64,
    /// Transactions, votes included.
    pub transactions: u64,
    /// Vote transactions.
    pub votes: u64,
    /// Transactions that the archive keeps no metadata of.
    pub missing_metadata: u64,
    /// Of these, those whose lookup tables therefore cannot be resolved.
    pub unresolved_lookups: u64,
    /// By program name.
    pub programs: BTreeMap<String, ProgramSummary>,
}

/// What one program did. `records` = `records_of_failed` + `twins` + `foreign` + `events` + `quarantined`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct ProgramSummary {
    /// Transactions that mention the program.
    pub matched: u64,
    /// Of these, those that name it by a lookup table only.
    pub matched_by_lookup_only: u64,
    /// Of the matched, those in which the program said something.
    pub with_records: u64,
    /// Of the matched, those that failed.
    pub failed: u64,
    /// Of the matched, those whose logs are truncated.
    pub truncated: u64,
    /// Of the matched, those of which the archive keeps neither logs nor inner instructions.
    pub unrecorded: u64,
    /// Records, those of failed transactions and both of each twin included.
    pub records: u64,
    /// Records of failed transactions.
    pub records_of_failed: u64,
    /// Log records that are the same event as a record by CPI, in transactions that succeeded.
    pub twins: u64,
    /// Records shorter than a discriminator, in transactions that succeeded.
    pub foreign: u64,
    /// Events that a correct backfill loads.
    pub events: u64,
    /// Records that belong into quarantine.
    pub quarantined: u64,
}

impl ProgramSummary {
    fn add(&mut self, other: &Self) {
        self.matched += other.matched;
        self.matched_by_lookup_only += other.matched_by_lookup_only;
        self.with_records += other.with_records;
        self.failed += other.failed;
        self.truncated += other.truncated;
        self.unrecorded += other.unrecorded;
        self.records += other.records;
        self.records_of_failed += other.records_of_failed;
        self.twins += other.twins;
        self.foreign += other.foreign;
        self.events += other.events;
        self.quarantined += other.quarantined;
    }
}

impl ChunkSummary {
    fn add(&mut self, other: &Self) {
        self.blocks += other.blocks;
        self.entries += other.entries;
        self.transactions += other.transactions;
        self.votes += other.votes;
        self.missing_metadata += other.missing_metadata;
        self.unresolved_lookups += other.unresolved_lookups;
        for (name, program) in &other.programs {
            self.programs.entry(name.clone()).or_default().add(program);
        }
    }
}

/// What a written archive holds: `truth/summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// First slot of the range to backfill.
    pub first_slot: u64,
    /// Last slot of the range to backfill, inclusive.
    pub last_slot: u64,
    /// Slots in a chunk.
    pub chunk_slots: u64,
    /// The plan that writes these bytes again.
    pub plan: Plan,
    /// How often each trap occurs in the range.
    pub traps: BTreeMap<String, u64>,
    /// Events by program and event name.
    pub events: BTreeMap<String, BTreeMap<String, u64>>,
    /// All chunks together.
    pub total: ChunkSummary,
    /// By chunk start.
    pub chunks: BTreeMap<u64, ChunkSummary>,
}

/// A transaction where it stands.
pub(crate) struct Placed<'a> {
    pub(crate) slot: u64,
    pub(crate) index: u32,
    pub(crate) block_time: u64,
    pub(crate) transaction: &'a Transaction,
    pub(crate) keys: &'a Keys,
    pub(crate) outcome: &'a Outcome,
}

/// Writes the truth while the archive is written.
pub(crate) struct TruthWriter {
    events: BufWriter<File>,
    failed: BufWriter<File>,
    quarantine: BufWriter<File>,
    /// Every instruction of the demo's programs that the archive has, those of failed transactions included.
    instructions: BufWriter<File>,
    traps: Traps,
    summary: Summary,
}

impl TruthWriter {
    pub(crate) fn create(folder: &Path, plan: &Plan) -> Result<Self, SimError> {
        let open = |name: &str| File::create(folder.join(name)).map(BufWriter::new);
        let chunk = |slot: u64| slot / plan.chunk_slots * plan.chunk_slots;
        let chunks = (chunk(plan.first_slot)..=plan.last_slot).step_by(plan.chunk_slots as usize);
        Ok(Self {
            events: open("events.jsonl")?,
            failed: open("failed.jsonl")?,
            quarantine: open("quarantine.jsonl")?,
            instructions: open("instructions.jsonl")?,
            traps: Traps::default(),
            summary: Summary {
                seed: plan.seed,
                first_slot: plan.first_slot,
                last_slot: plan.last_slot,
                chunk_slots: plan.chunk_slots,
                traps: BTreeMap::new(),
                events: BTreeMap::new(),
                plan: plan.clone(),
                total: ChunkSummary {
                    start: plan.first_slot,
                    ..ChunkSummary::default()
                },
                chunks: chunks
                    .map(|start| {
                        let empty = ChunkSummary {
                            start,
                            ..ChunkSummary::default()
                        };
                        (start, empty)
                    })
                    .collect(),
            },
        })
    }

    fn in_range(&self, slot: u64) -> bool {
        self.summary.plan.in_range(slot)
    }

    fn chunk(&mut self, slot: u64) -> &mut ChunkSummary {
        let start = slot / self.summary.chunk_slots * self.summary.chunk_slots;
        self.summary.chunks.entry(start).or_default()
    }

    pub(crate) fn count(&mut self, trap: &'static str, slot: u64, times: u64) {
        if self.in_range(slot) {
            *self.traps.entry(trap).or_default() += times;
        }
    }

    pub(crate) fn block(&mut self, slot: u64, entries: u64) {
        if self.in_range(slot) {
            let chunk = self.chunk(slot);
            chunk.blocks += 1;
            chunk.entries += entries;
        }
    }

    pub(crate) fn transaction(&mut self, placed: &Placed) -> Result<(), SimError> {
        if !self.in_range(placed.slot) {
            return Ok(());
        }
        let transaction = placed.transaction;
        let chunk = self.chunk(placed.slot);
        chunk.transactions += 1;
        chunk.votes += u64::from(is_vote(transaction));
        if transaction.kept == Kept::Nothing {
            chunk.missing_metadata += 1;
            chunk.unresolved_lookups += u64::from(transaction.loads());
        }
        let mut mentioned = false;
        for (name, _) in PROGRAMS {
            let program = program_id(name);
            // What a table loads is known from metadata only.
            let loaded = transaction.kept != Kept::Nothing && placed.keys.is_loaded(&program);
            let named = placed.keys.is_static(&program);
            if named || loaded {
                mentioned = true;
                self.instructions(name, &program, placed)?;
                self.program(name, &program, placed, !named)?;
            }
        }
        if mentioned && transaction.kept == Kept::Everything {
            self.transaction_traps(placed);
        }
        Ok(())
    }

    fn transaction_traps(&mut self, placed: &Placed) {
        let outcome = placed.outcome;
        let own = |said: &&Said| {
            PROGRAMS
                .iter()
                .any(|program| program_id(program.0) == said.program)
        };
        let said = outcome.said.iter().filter(own).count();
        for (trap, times) in [
            ("truncated_logs", u64::from(outcome.truncated)),
            ("events_after_truncation", outcome.said_after_truncation),
            ("failed_transactions", u64::from(outcome.failed())),
            (
                "failed_with_events",
                u64::from(outcome.failed() && said > 0),
            ),
            ("nested_four_deep_or_more", u64::from(outcome.deepest > 3)),
            (
                "several_signatures",
                u64::from(!placed.transaction.cosigners.is_empty()),
            ),
        ] {
            self.count(trap, placed.slot, times);
        }
    }

    /// Writes what a program was told, as far as the archive has it: without metadata's inner instructions, those of the
    /// message alone, and there is no other place for them.
    fn instructions(
        &mut self,
        name: &str,
        program: &Pubkey,
        placed: &Placed,
    ) -> Result<(), SimError> {
        let kept = placed.transaction.kept;
        let recorded = |heard: &&Heard| kept == Kept::Everything || heard.path.len() == 1;
        let heard = placed.outcome.heard.iter();
        for heard in heard
            .filter(|heard| heard.program == *program)
            .filter(recorded)
        {
            let place = match kept {
                Kept::Everything => heard.place,
                _ => u32::from(heard.path[0]),
            };
            // Whose keys were loaded is known from metadata.
            let is_known = kept != Kept::Nothing
                || heard.accounts.iter().all(|key| placed.keys.is_static(key));
            let mut line = json!({
                "network": "sim", "owner": "demo", "program": name,
                "slot": placed.slot, "txIndex": placed.index, "instructionIndex": place, "path": heard.path,
                "signature": base58(&placed.transaction.signature),
                "blockTime": (placed.block_time > 0).then_some(placed.block_time),
                "failed": kept != Kept::Nothing && placed.outcome.failed(),
                "given": is_known.then_some(heard.accounts.len()),
            });
            match &heard.told {
                Told::Instruction {
                    name,
                    arguments,
                    accounts,
                    remaining,
                } => {
                    line["instruction"] = json!(name);
                    line["arguments"] = json!(arguments);
                    line["accounts"] = json!(is_known.then_some(accounts));
                    line["remaining"] = json!(is_known.then_some(remaining));
                }
                Told::Undecodable => {
                    let opening = &heard.data[..heard.data.len().min(8)];
                    line["discriminator"] = json!(hex(opening));
                    line["length"] = json!(heard.data.len());
                }
            }
            writeln!(self.instructions, "{line}")?;
        }
        Ok(())
    }

    fn program(
        &mut self,
        name: &str,
        program: &Pubkey,
        placed: &Placed,
        by_lookup_only: bool,
    ) -> Result<(), SimError> {
        let outcome = placed.outcome;
        let known = placed.transaction.kept != Kept::Nothing;
        let recorded = placed.transaction.kept == Kept::Everything;
        let records: Vec<&Said> = {
            let mine = || {
                outcome
                    .said
                    .iter()
                    .filter(|said| recorded && said.program == *program)
            };
            mine()
                .filter(|said| said.log_line.is_some())
                .chain(mine().filter(|said| said.log_line.is_none()))
                .collect()
        };
        let folded = twins(&records);
        let count = |yes: bool| u64::from(yes);
        let mut sums = ProgramSummary {
            matched: 1,
            matched_by_lookup_only: count(by_lookup_only),
            with_records: count(!records.is_empty()),
            failed: count(known && outcome.failed()),
            truncated: count(recorded && outcome.truncated),
            unrecorded: count(!recorded),
            records: records.len() as u64,
            ..ProgramSummary::default()
        };
        for (event_index, said) in records.iter().enumerate() {
            sums.records_of_failed += count(outcome.failed());
            if folded[event_index] {
                sums.twins += count(!outcome.failed());
                continue;
            }
            let mut line = json!({
                "network": "sim", "owner": "demo", "program": name,
                "slot": placed.slot, "txIndex": placed.index, "eventIndex": event_index,
                "signature": base58(&placed.transaction.signature),
                "source": if said.log_line.is_some() { "log" } else { "cpi" },
                "blockTime": (placed.block_time > 0).then_some(placed.block_time),
                "failed": outcome.failed(), "truncated": outcome.truncated,
            });
            match &said.payload.truth {
                Truth::Event {
                    name: event,
                    fields,
                } => {
                    line["event"] = json!(event);
                    line["fields"] = json!(fields);
                    if outcome.failed() {
                        writeln!(self.failed, "{line}")?;
                    } else {
                        sums.events += 1;
                        *self
                            .summary
                            .events
                            .entry(name.into())
                            .or_default()
                            .entry((*event).into())
                            .or_default() += 1;
                        writeln!(self.events, "{line}")?;
                    }
                }
                Truth::Undecodable if !outcome.failed() => {
                    sums.quarantined += 1;
                    line["discriminator"] =
                        json!(hex(&said.payload.bytes[..said.payload.bytes.len().min(8)]));
                    line["length"] = json!(said.payload.bytes.len());
                    writeln!(self.quarantine, "{line}")?;
                }
                Truth::Foreign => sums.foreign += count(!outcome.failed()),
                Truth::Undecodable => {}
            }
        }
        for (trap, times) in [
            ("lookup_only_matches", sums.matched_by_lookup_only),
            ("twins", sums.twins),
            ("undecodable", sums.quarantined),
        ] {
            self.count(trap, placed.slot, times);
        }
        let chunk = self.chunk(placed.slot);
        chunk.programs.entry(name.into()).or_default().add(&sums);
        Ok(())
    }

    pub(crate) fn finish(mut self, folder: &Path) -> Result<Summary, SimError> {
        for file in [
            &mut self.events,
            &mut self.failed,
            &mut self.quarantine,
            &mut self.instructions,
        ] {
            file.flush()?;
        }
        for chunk in self.summary.chunks.values() {
            self.summary.total.add(chunk);
        }
        self.summary.traps = self
            .traps
            .iter()
            .map(|(name, times)| ((*name).to_owned(), *times))
            .collect();
        std::fs::write(
            folder.join("summary.json"),
            serde_json::to_vec_pretty(&self.summary)?,
        )?;
        Ok(self.summary)
    }
}

/// Says of each record whether it is the log half of a twin: the k-th log record of a payload that CPI emits k times or more.
fn twins(records: &[&Said]) -> Vec<bool> {
    let alike = |record: &Said, by_log: bool, among: &[&Said]| {
        among
            .iter()
            .filter(|other| {
                other.log_line.is_some() == by_log && other.payload.bytes == record.payload.bytes
            })
            .count()
    };
    records
        .iter()
        .enumerate()
        .map(|(index, record)| {
            record.log_line.is_some()
                && alike(record, true, &records[..index]) < alike(record, false, records)
        })
        .collect()
}
