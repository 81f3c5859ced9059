//! The truth: what a correct backfill of the archive yields, written as JSON lines beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use crate::chain::Traps;
use crate::events::{PROGRAMS, Truth, program_id};
use crate::transaction::{Keys, Outcome, Said};
use crate::{Plan, Pubkey, SimError, base58, hex};

/// What one chunk holds.
#[derive(Debug, Default, Clone, Serialize)]
pub struct ChunkSummary {
    /// Blocks in the chunk.
    pub blocks: u64,
    /// Transactions in the chunk, votes included.
    pub transactions: u64,
    /// Vote transactions.
    pub votes: u64,
    /// By program name.
    pub programs: BTreeMap<String, ProgramSummary>,
}

/// What one program did.
#[derive(Debug, Default, Clone, Serialize)]
pub struct ProgramSummary {
    /// Transactions that mention the program.
    pub matched: u64,
    /// Of these, those that name it by a lookup table only.
    pub matched_by_lookup_only: u64,
    /// Of the matched, those that failed.
    pub failed: u64,
    /// Of the matched, those whose logs are truncated.
    pub truncated: u64,
    /// Records, those of failed transactions and both of each twin included.
    pub records: u64,
    /// Events that a correct backfill loads.
    pub events: u64,
    /// Records that belong into quarantine.
    pub quarantined: u64,
}

/// What a written archive holds: `truth/summary.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// First slot of the range to backfill.
    pub first_slot: u64,
    /// Last slot of the range to backfill, inclusive.
    pub last_slot: u64,
    /// Slots in a chunk.
    pub chunk_slots: u64,
    /// How often each trap occurred in the range.
    pub traps: BTreeMap<String, u64>,
    /// Events by program and event name.
    pub events: BTreeMap<String, BTreeMap<String, u64>>,
    /// By chunk start.
    pub chunks: BTreeMap<u64, ChunkSummary>,
}

/// A transaction where it stands.
pub(crate) struct Placed<'a> {
    pub(crate) slot: u64,
    pub(crate) index: u32,
    pub(crate) block_time: u64,
    pub(crate) signature: &'a [u8; 64],
    pub(crate) keys: &'a Keys,
    pub(crate) outcome: &'a Outcome,
    pub(crate) vote: bool,
}

/// Writes the truth while the archive is written.
pub(crate) struct TruthWriter {
    events: BufWriter<File>,
    failed: BufWriter<File>,
    quarantine: BufWriter<File>,
    pub(crate) traps: Traps,
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
            traps: Traps::default(),
            summary: Summary {
                seed: plan.seed,
                first_slot: plan.first_slot,
                last_slot: plan.last_slot,
                chunk_slots: plan.chunk_slots,
                traps: BTreeMap::new(),
                events: BTreeMap::new(),
                chunks: chunks
                    .map(|start| (start, ChunkSummary::default()))
                    .collect(),
            },
        })
    }

    fn in_range(&self, slot: u64) -> bool {
        (self.summary.first_slot..=self.summary.last_slot).contains(&slot)
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

    pub(crate) fn block(&mut self, slot: u64) {
        if self.in_range(slot) {
            self.chunk(slot).blocks += 1;
        }
    }

    pub(crate) fn transaction(&mut self, placed: &Placed) -> Result<(), SimError> {
        if !self.in_range(placed.slot) {
            return Ok(());
        }
        let chunk = self.chunk(placed.slot);
        chunk.transactions += 1;
        chunk.votes += u64::from(placed.vote);
        for (name, _) in PROGRAMS {
            let program = program_id(name);
            let named = placed.keys.statics.contains(&program);
            let loaded = placed.keys.loaded_writable.contains(&program)
                || placed.keys.loaded_readonly.contains(&program);
            if named || loaded {
                self.program(name, &program, placed, !named)?;
            }
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
        let records: Vec<&Said> = {
            let mine = || outcome.said.iter().filter(|said| said.program == *program);
            mine()
                .filter(|said| said.log_line.is_some())
                .chain(mine().filter(|said| said.log_line.is_none()))
                .collect()
        };
        let folded = twins(&records);
        let mut sums = ProgramSummary {
            matched: 1,
            matched_by_lookup_only: u64::from(by_lookup_only),
            failed: u64::from(outcome.failed),
            truncated: u64::from(outcome.truncated),
            records: records.len() as u64,
            ..ProgramSummary::default()
        };
        for (event_index, said) in records.iter().enumerate() {
            if folded[event_index] {
                continue;
            }
            let mut line = json!({
                "network": "sim", "owner": "demo", "program": name,
                "slot": placed.slot, "txIndex": placed.index, "eventIndex": event_index,
                "signature": base58(placed.signature),
                "source": if said.log_line.is_some() { "log" } else { "cpi" },
                "blockTime": (placed.block_time > 0).then_some(placed.block_time),
                "failed": outcome.failed, "truncated": outcome.truncated,
            });
            match &said.payload.truth {
                Truth::Event {
                    name: event,
                    fields,
                } => {
                    line["event"] = json!(event);
                    line["fields"] = json!(fields);
                    if outcome.failed {
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
                Truth::Undecodable if !outcome.failed => {
                    sums.quarantined += 1;
                    line["discriminator"] =
                        json!(hex(&said.payload.bytes[..said.payload.bytes.len().min(8)]));
                    line["length"] = json!(said.payload.bytes.len());
                    writeln!(self.quarantine, "{line}")?;
                }
                Truth::Undecodable | Truth::Foreign => {}
            }
        }
        for (trap, times) in [
            ("lookup_only_matches", sums.matched_by_lookup_only),
            ("truncated_logs", sums.truncated),
            ("failed_transactions", sums.failed),
            (
                "failed_with_events",
                u64::from(outcome.failed && !records.is_empty()),
            ),
            ("twins", folded.iter().filter(|twin| **twin).count() as u64),
            ("undecodable", sums.quarantined),
        ] {
            self.count(trap, placed.slot, times);
        }
        let kept = self
            .chunk(placed.slot)
            .programs
            .entry(name.into())
            .or_default();
        kept.matched += sums.matched;
        kept.matched_by_lookup_only += sums.matched_by_lookup_only;
        kept.failed += sums.failed;
        kept.truncated += sums.truncated;
        kept.records += sums.records;
        kept.events += sums.events;
        kept.quarantined += sums.quarantined;
        Ok(())
    }

    pub(crate) fn finish(mut self, folder: &Path) -> Result<Summary, SimError> {
        for file in [&mut self.events, &mut self.failed, &mut self.quarantine] {
            file.flush()?;
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
