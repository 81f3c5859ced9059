//! What a backfill of a range would find, estimated from a few of its blocks.
//!
//! Blocks are drawn in proportion to their bytes (see [`Sampler`](old_faithful::Sampler)), so each draw's "matches per
//! byte" estimates that of the whole range without bias, and their mean's interval follows from how they vary, by
//! Student's t. Blocks that happen to agree, of a rare program above all, do not prove that there is nothing between
//! them: an interval is never narrower than that of a Poisson distribution of which as many were seen. Draws end once
//! every program's records are known as precisely as asked, or the bytes allowed are read; the looking in between
//! makes 95 % a little less, and is why at least eight blocks are read.

use std::collections::HashMap;
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use old_faithful::{Archive, Certificate, IndexKind, Pubkey, SampledBlock, SlotRange, Verify};
use serde_json::{Map, Value, json};

use crate::collector::Collector;
use crate::encoder::Format;
use crate::error::ApiError;
use crate::ndjson::base58;
use crate::request::{self, Fault};
use crate::statistics::{CONFIDENCE, Interval, Mean, poisson};

const FIELDS: [&str; 9] = [
    "network",
    "programIds",
    "programId",
    "instructionProgramIds",
    "startSlot",
    "endSlot",
    "maxBytes",
    "precision",
    "seed",
];

/// Archive bytes an estimate reads when the request does not say: about ten recent blocks.
const BYTES: u64 = 16 << 20;
const BYTES_AT_MOST: u64 = 1 << 30;
/// How narrow intervals shall be when the request does not say, as a fraction of the estimate.
const PRECISION: f64 = 0.1;
/// Fewer blocks than this end no estimate by their precision.
const BLOCKS_AT_LEAST: usize = 8;
/// Draws of a range so small that all its blocks were read.
const DRAWS_AT_MOST: usize = 4_096;
/// Records that go with an estimate: for what a row takes, and what decodes.
const RECORDS_SHOWN: u64 = 4_096;
const RECORD_BYTES_SHOWN: usize = 2 << 20;

/// A checked request for an estimate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EstimateRequest {
    /// Name of an archive this sidecar serves.
    pub(crate) network: String,
    programs: Vec<Pubkey>,
    /// Those of `programs` whose instructions are records too.
    instructions_of: Vec<Pubkey>,
    range: SlotRange,
    bytes_at_most: u64,
    precision: f64,
    seed: u64,
}

impl EstimateRequest {
    /// Reads a request body; `networks` are the names served here.
    pub(crate) fn parse(body: &[u8], networks: &[&str]) -> Result<Self, Fault> {
        let fields = request::object(body, &FIELDS)?;
        let bytes_at_most = request::integer(&fields, "maxBytes")?.unwrap_or(BYTES);
        if !(1..=BYTES_AT_MOST).contains(&bytes_at_most) {
            return Err(Fault::new(
                "maxBytes",
                format!("must be between 1 and {BYTES_AT_MOST}, got {bytes_at_most}"),
            ));
        }
        let precision = match fields.get("precision") {
            None | Some(Value::Null) => PRECISION,
            Some(value) => value
                .as_f64()
                .filter(|precision| (0.001..=1.0).contains(precision))
                .ok_or_else(|| Fault::new("precision", "expected a number from 0.001 to 1"))?,
        };
        let programs = request::programs(&fields)?;
        Ok(Self {
            network: request::network(&fields, networks)?,
            instructions_of: request::instructions_of(&fields, &programs)?,
            programs,
            range: request::range(&fields)?,
            bytes_at_most,
            precision,
            seed: request::integer(&fields, "seed")?.unwrap_or(0),
        })
    }
}

/// What one block has of one program.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    matched: u64,
    with_records: u64,
    records: u64,
}

/// What is kept of a block that was read, for when it is drawn again.
struct Measured {
    bytes: f64,
    transactions: f64,
    /// Time from asking for its bytes to having scanned them.
    seconds: f64,
    programs: Vec<Found>,
}

/// The means of "so many per byte" over the draws, and what was seen in the blocks read.
#[derive(Default)]
struct OfProgram {
    matched: Mean,
    with_records: Mean,
    records: Mean,
    seen: Found,
}

/// All that was drawn so far.
struct Draws {
    blocks: HashMap<u64, Measured>,
    count: usize,
    bytes: u64,
    /// The bytes of the range, as they are and for reckoning.
    range_bytes_exact: u64,
    range_bytes: f64,
    transactions: Mean,
    per_byte: Mean,
    seconds: Mean,
    programs: Vec<OfProgram>,
}

impl Draws {
    fn add(&mut self, slot: Option<u64>) {
        self.count += 1;
        let measured = slot.and_then(|slot| self.blocks.get(&slot));
        // A byte of no block is a draw without anything.
        let ratio = |count: f64| measured.map_or(0.0, |measured| count / measured.bytes);
        self.transactions.add(ratio(
            measured.map_or(0.0, |measured| measured.transactions),
        ));
        self.per_byte.add(ratio(1.0));
        self.seconds
            .add(ratio(measured.map_or(0.0, |measured| measured.seconds)));
        for (place, program) in self.programs.iter_mut().enumerate() {
            let found = measured.and_then(|measured| measured.programs.get(place));
            let found = found.copied().unwrap_or_default();
            program.matched.add(ratio(count(found.matched)));
            program.with_records.add(ratio(count(found.with_records)));
            program.records.add(ratio(count(found.records)));
        }
    }

    /// Transactions in the blocks read.
    fn transactions_read(&self) -> f64 {
        self.blocks.values().map(|block| block.transactions).sum()
    }

    /// The whole range's count of something, of which transactions with it were `seen` in the blocks read.
    fn total(&self, mean: &Mean, seen: u64) -> Interval {
        let of_draws = mean.interval().scaled(self.range_bytes);
        let read: f64 = self.blocks.values().map(|block| block.bytes).sum();
        if read <= 0.0 {
            return of_draws;
        }
        let (low, high) = poisson(count(seen));
        let unread = (1.0 - read / self.range_bytes).clamp(0.0, 1.0).sqrt();
        let of_poisson = if seen == 0 {
            Interval {
                estimate: 0.0,
                low: 0.0,
                high: high * unread * self.range_bytes / read,
            }
        } else {
            let by = |bound: f64| 1.0 + (bound / count(seen) - 1.0) * unread;
            Interval {
                estimate: of_draws.estimate,
                low: of_draws.estimate * by(low),
                high: of_draws.estimate * by(high),
            }
        };
        Interval {
            estimate: of_draws.estimate,
            low: of_draws.low.min(of_poisson.low),
            high: of_draws.high.max(of_poisson.high),
        }
    }

    fn is_precise(&self, precision: f64) -> bool {
        let whole = self.count >= DRAWS_AT_MOST;
        whole
            || self.blocks.len() >= BLOCKS_AT_LEAST
                && self.programs.iter().all(|program| {
                    let matched = self.total(&program.matched, program.seen.matched);
                    let records = self.total(&program.records, program.seen.with_records);
                    matched.relative_width() <= precision
                        && (records.relative_width() <= precision || program.seen.records == 0)
                })
    }
}

/// Samples the range. `measured` is what jobs before took for a byte of the network's archive, in seconds.
pub(crate) async fn estimate(
    archive: &Archive,
    request: &EstimateRequest,
    measured: Option<Interval>,
) -> Result<Value, ApiError> {
    let begun = Instant::now();
    let mut sampler = archive
        .sampler(request.range, &request.programs, request.seed)
        .await?;
    let mut draws = Draws {
        blocks: HashMap::new(),
        count: 0,
        bytes: 0,
        range_bytes_exact: sampler.bytes(),
        range_bytes: count(sampler.bytes()),
        transactions: Mean::default(),
        per_byte: Mean::default(),
        seconds: Mean::default(),
        programs: Vec::new(),
    };
    draws
        .programs
        .resize_with(request.programs.len(), OfProgram::default);
    let mut shown = Shown::new(&request.programs, &request.instructions_of)?;
    let mut ended_by = "precision";
    while sampler.bytes() > 0 && !draws.is_precise(request.precision) {
        let place = sampler.draw().await?;
        if let Some(block) = place
            && !draws.blocks.contains_key(&block.listed.slot)
        {
            let length = u64::from(block.listed.length);
            // One block is always read, so that there is an answer.
            if !draws.blocks.is_empty() && sampler.bytes_read() + length > request.bytes_at_most {
                ended_by = "bytes";
                break;
            }
            let asked = Instant::now();
            let whole = sampler.read(&block).await?;
            let seconds = asked.elapsed().as_secs_f64();
            let programs = shown.take(&whole)?;
            for (program, found) in draws.programs.iter_mut().zip(&programs) {
                program.seen.matched += found.matched;
                program.seen.with_records += found.with_records;
                program.seen.records += found.records;
            }
            draws.bytes += length;
            draws.blocks.insert(
                block.listed.slot,
                Measured {
                    bytes: count(length),
                    transactions: count(whole.transactions),
                    seconds,
                    programs,
                },
            );
        }
        draws.add(place.map(|block| block.listed.slot));
    }
    tracing::info!(
        network = request.network,
        start_slot = request.range.start,
        end_slot = request.range.end,
        blocks = draws.blocks.len(),
        bytes_read = sampler.bytes_read(),
        seconds = begun.elapsed().as_secs_f64(),
        ended_by,
        "estimate"
    );
    Ok(answer(
        request,
        &draws,
        measured,
        &json!({
            "blocks": draws.blocks.len(), "draws": draws.count, "transactions": draws.transactions_read(),
            "blockBytes": draws.bytes, "bytesRead": sampler.bytes_read(), "endedBy": ended_by,
            "seconds": begun.elapsed().as_secs_f64(),
        }),
        shown,
    ))
}

/// The estimate as JSON.
fn answer(
    request: &EstimateRequest,
    draws: &Draws,
    measured: Option<Interval>,
    sample: &Value,
    shown: Shown,
) -> Value {
    let (seconds, basis) = match measured {
        Some(per_byte) => (per_byte, "jobs"),
        None => (draws.seconds.interval(), "sample"),
    };
    let mut programs = Map::new();
    for (program, of) in request.programs.iter().zip(&draws.programs) {
        programs.insert(
            base58(program),
            json!({
                "matched": draws.total(&of.matched, of.seen.matched),
                "withRecords": draws.total(&of.with_records, of.seen.with_records),
                "records": draws.total(&of.records, of.seen.with_records),
                "seen": {
                    "matched": of.seen.matched, "withRecords": of.seen.with_records, "records": of.seen.records,
                },
            }),
        );
    }
    json!({
        "network": request.network,
        "startSlot": request.range.start,
        "endSlot": request.range.end,
        "confidence": CONFIDENCE,
        "archiveBytes": draws.range_bytes_exact,
        "blocks": draws.per_byte.interval().scaled(draws.range_bytes),
        "transactions": draws.transactions.interval().scaled(draws.range_bytes),
        "readSeconds": seconds.scaled(draws.range_bytes),
        "readSecondsBasis": basis,
        "programs": programs,
        "sample": sample,
        "recordsShown": shown.records,
        "records": shown.finish(),
    })
}

/// The records of the blocks read: counted by program, and the first of them kept.
struct Shown {
    collector: Collector,
    stream: Vec<u8>,
    records: u64,
}

impl Shown {
    fn new(programs: &[Pubkey], instructions_of: &[Pubkey]) -> Result<Self, ApiError> {
        let format = Format::Arrow.with_instructions(!instructions_of.is_empty());
        Ok(Self {
            collector: Collector::new(format, programs.to_vec(), true)
                .with_instructions_of(instructions_of),
            stream: format.opening()?.to_vec(),
            records: 0,
        })
    }

    /// What a block has of each program.
    fn take(&mut self, sampled: &SampledBlock) -> Result<Vec<Found>, ApiError> {
        let block = &sampled.block;
        self.collector.add(block)?;
        let rows = self.collector.waiting();
        let message = self.collector.flush()?;
        let mut counts = Certificate::empty(block.slot, IndexKind::SlotRanges, Verify::Full);
        self.collector.certify(&mut counts);
        let fits = self.records + rows <= RECORDS_SHOWN
            && self.stream.len() + message.len() <= RECORD_BYTES_SHOWN;
        if fits || self.records == 0 {
            self.records += rows;
            self.stream.extend_from_slice(&message);
        }
        let programs = self.collector.programs().to_vec();
        Ok((0..)
            .zip(&programs)
            .map(|(place, program)| {
                let counts = counts.program_mut(program);
                let mentions = block.matches.iter();
                Found {
                    matched: mentions
                        .filter(|found| {
                            found
                                .mentions
                                .iter()
                                .any(|mention| mention.program == place)
                        })
                        .count() as u64,
                    with_records: counts.with_records,
                    records: counts.records,
                }
            })
            .collect())
    }

    /// The records as an Arrow stream of the schema of `POST /backfill`, in base64.
    fn finish(mut self) -> String {
        self.stream
            .extend_from_slice(&crate::arrow_stream::end_of_stream());
        BASE64_STANDARD.encode(&self.stream)
    }
}

#[allow(clippy::cast_precision_loss)] // Estimates; counts below 2⁵³ are exact.
fn count(number: u64) -> f64 {
    number as f64
}
