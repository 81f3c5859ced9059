//! What the service counts, in the text form of `OpenMetrics`. Counters of what was read come from the
//! certificates of stretches, at the checkpoints: what they add up to is what the certificates say.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use old_faithful::{Archive, Certificate, Counters, RetryCause};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::jobs::Jobs;
use crate::memory::{Breaker, resident_bytes};
use crate::statistics::{Interval, Mean};

/// Jobs whose pace is remembered for estimates, at most, and the fewest that tell something.
const PACES_KEPT: usize = 32;
const PACES_AT_LEAST: usize = 3;
/// A job that read less than this measures how it starts, not how it reads.
const PACE_BYTES_AT_LEAST: u64 = 16 << 20;

/// The media type of the text that [`Metrics::text`] writes.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfNetwork {
    network: String,
}

/// How a job ended: `done`, or the code of its `error` record.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfOutcome {
    outcome: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfCode {
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfState {
    state: String,
}

/// What became of a file of learned lookup tables: `restored`, `refused`, `saved` or `failed`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfFile {
    network: String,
    outcome: &'static str,
}

type ByNetwork = Family<OfNetwork, Counter>;
type Rate = Gauge<f64, AtomicU64>;

/// The counters of one service; cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Shared>);

struct Shared {
    registry: Registry,
    archive_bytes: ByNetwork,
    blocks: ByNetwork,
    transactions: ByNetwork,
    votes: ByNetwork,
    matches: ByNetwork,
    lookup_only_matches: ByNetwork,
    records: ByNetwork,
    cids_verified: ByNetwork,
    missing_metadata: ByNetwork,
    unresolved_lookups: ByNetwork,
    read_seconds: Counter<f64, AtomicU64>,
    sent_bytes: Counter,
    /// Seconds per archive byte of the last jobs that were done, by network.
    pace: Mutex<HashMap<String, VecDeque<f64>>>,
    ended: Family<OfOutcome, Counter>,
    refused: Family<OfCode, Counter>,
    learned_files: Family<OfFile, Counter>,
    jobs: Family<OfState, Gauge>,
    queue_depth: Gauge,
    resident_bytes: Gauge,
    memory_limit_bytes: Gauge,
    accepting: Gauge,
    bytes_rate: Rate,
    blocks_rate: Rate,
    transactions_rate: Rate,
}

/// Registers metrics as they are made.
struct Making(Registry);

impl Making {
    fn add<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    fn add_of<M: Metric + Clone + Default>(&mut self, name: &str, help: &str, unit: Unit) -> M {
        let metric = M::default();
        self.0.register_with_unit(name, help, unit, metric.clone());
        metric
    }
}

impl Metrics {
    /// Metrics of a service of `archives`, by the names of their networks.
    pub(crate) fn new(archives: Vec<(String, Archive)>) -> Self {
        let mut making = Making(Registry::with_prefix("uho_sidecar"));
        making.0.register_collector(Box::new(Readers(archives)));
        let shared = Shared {
            archive_bytes: making.add_of("archive_read", "Archive bytes certified", Unit::Bytes),
            blocks: making.add("blocks", "Blocks read and certified"),
            transactions: making.add("transactions", "Transactions read and certified"),
            votes: making.add("votes", "Vote transactions among them"),
            matches: making.add("matches", "Matches of a transaction and a program"),
            lookup_only_matches: making
                .add("lookup_only_matches", "Matches through lookup tables only"),
            records: making.add("records", "Records sent"),
            cids_verified: making.add("cids_verified", "Sections whose hash was compared"),
            missing_metadata: making.add("missing_metadata", "Transactions without metadata"),
            unresolved_lookups: making.add(
                "unresolved_lookups",
                "Transactions whose lookups are unknown",
            ),
            read_seconds: making.add_of(
                "job",
                "Time that jobs took, of all outcomes",
                Unit::Seconds,
            ),
            pace: Mutex::default(),
            sent_bytes: making.add_of(
                "sent",
                "Bytes handed to the sockets of readers",
                Unit::Bytes,
            ),
            ended: making.add("jobs_ended", "Jobs that ended, by outcome"),
            refused: making.add("jobs_refused", "Jobs that were refused, by code"),
            learned_files: making.add(
                "learned_table_files",
                "Files of learned lookup tables that were restored, refused, saved, or failed to be saved",
            ),
            jobs: making.add("jobs", "Jobs now, by state"),
            queue_depth: making.add(
                "queue_depth",
                "Messages between workers and sockets, of all jobs",
            ),
            resident_bytes: making.add_of("resident_memory", "Resident memory", Unit::Bytes),
            memory_limit_bytes: making.add_of(
                "memory_limit",
                "The memory limit; 0: none",
                Unit::Bytes,
            ),
            accepting: making.add(
                "accepting_jobs",
                "1 unless memory is short or the process is ending",
            ),
            bytes_rate: making.add(
                "archive_read_bytes_per_second",
                "Archive bytes per second of the running jobs, each since its start",
            ),
            blocks_rate: making.add(
                "blocks_per_second",
                "Blocks per second of the running jobs, each since its start",
            ),
            transactions_rate: making.add(
                "transactions_per_second",
                "Transactions per second of the running jobs, each since its start",
            ),
            registry: Registry::default(),
        };
        Self(Arc::new(Shared {
            registry: making.0,
            ..shared
        }))
    }

    /// Counts a stretch that was read and sent.
    pub(crate) fn add_stretch(&self, network: &str, stretch: &Certificate) {
        let label = OfNetwork {
            network: network.to_owned(),
        };
        let of_programs = |count: fn(&old_faithful::ProgramCounts) -> u64| -> u64 {
            stretch.programs.values().map(count).sum()
        };
        let shared = &self.0;
        for (family, count) in [
            (&shared.archive_bytes, stretch.bytes),
            (&shared.blocks, stretch.blocks),
            (&shared.transactions, stretch.transactions),
            (&shared.votes, stretch.votes),
            (&shared.matches, of_programs(|counts| counts.matched)),
            (
                &shared.lookup_only_matches,
                of_programs(|counts| counts.matched_by_lookup_only),
            ),
            (&shared.records, of_programs(|counts| counts.records)),
            (&shared.cids_verified, stretch.cids_verified),
            (&shared.missing_metadata, stretch.missing_metadata),
            (&shared.unresolved_lookups, stretch.unresolved_lookups),
        ] {
            family.get_or_create(&label).inc_by(count);
        }
    }

    /// Counts bytes handed to a reader's socket.
    pub(crate) fn add_sent(&self, bytes: usize) {
        self.0.sent_bytes.inc_by(bytes as u64);
    }

    /// Remembers how fast a job was that read all it was asked for.
    pub(crate) fn add_pace(&self, network: &str, bytes: u64, seconds: f64) {
        if bytes < PACE_BYTES_AT_LEAST {
            return;
        }
        let mut pace = self.0.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = pace.entry(network.to_owned()).or_default();
        if pace.len() == PACES_KEPT {
            pace.pop_front();
        }
        pace.push_back(1.0 / rate(bytes, seconds));
    }

    /// Seconds per archive byte of the last jobs that were done; none when they are too few to tell.
    pub(crate) fn seconds_per_byte(&self, network: &str) -> Option<Interval> {
        let pace = self.0.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = pace
            .get(network)
            .filter(|pace| pace.len() >= PACES_AT_LEAST)?;
        let mut mean = Mean::default();
        for value in pace {
            mean.add(*value);
        }
        Some(mean.interval())
    }

    /// Counts a job that ended.
    pub(crate) fn add_ended(&self, outcome: &str, seconds: f64) {
        self.0.read_seconds.inc_by(seconds);
        let outcome = outcome.to_owned();
        self.0.ended.get_or_create(&OfOutcome { outcome }).inc();
    }

    /// Counts a job that was refused.
    pub(crate) fn add_refused(&self, code: &str) {
        let code = code.to_owned();
        self.0.refused.get_or_create(&OfCode { code }).inc();
    }

    /// Counts a file of learned lookup tables by what became of it.
    pub(crate) fn add_learned_file(&self, network: &str, outcome: &'static str) {
        let network = network.to_owned();
        let label = OfFile { network, outcome };
        self.0.learned_files.get_or_create(&label).inc();
    }

    /// Everything, as text; gauges are set to what is now.
    pub(crate) fn text(&self, jobs: &Jobs, breaker: &Breaker) -> Result<String, std::fmt::Error> {
        let shared = &self.0;
        let (mut bytes, mut blocks, mut transactions) = (0.0, 0.0, 0.0);
        let mut waiting = 0;
        let (mut reading, mut stopping) = (0, 0);
        for (progress, is_cancelled) in jobs.progress() {
            *if is_cancelled {
                &mut stopping
            } else {
                &mut reading
            } += 1;
            waiting += progress.queue_depth();
            let (sent, seconds) = (progress.sent(), progress.seconds().max(1e-3));
            bytes += rate(sent.archive_bytes, seconds);
            blocks += rate(sent.blocks, seconds);
            transactions += rate(sent.transactions, seconds);
        }
        for (state, count) in [("running", reading), ("stopping", stopping)] {
            let state = state.to_owned();
            shared.jobs.get_or_create(&OfState { state }).set(count);
        }
        shared.bytes_rate.set(bytes);
        shared.blocks_rate.set(blocks);
        shared.transactions_rate.set(transactions);
        shared.queue_depth.set(clamp(waiting as u64));
        let resident = resident_bytes();
        shared.resident_bytes.set(clamp(resident.unwrap_or(0)));
        shared
            .memory_limit_bytes
            .set(clamp(breaker.limit().unwrap_or(0)));
        let accepting = breaker.check(resident).is_ok() && !jobs.is_shutting_down();
        shared.accepting.set(i64::from(accepting));
        let mut text = String::new();
        encode(&mut text, &shared.registry)?;
        Ok(text)
    }
}

/// What the readers of the archives count themselves, for jobs that failed and estimates too.
#[derive(Debug)]
struct Readers(Vec<(String, Archive)>);

type ReaderCounter = (&'static str, &'static str, fn(&Counters) -> u64);

const READER_COUNTERS: [ReaderCounter; 8] = [
    (
        "reader_requests",
        "Requests for bytes of the archive",
        |counters| counters.requests.get(),
    ),
    (
        "reader_fetched_bytes",
        "Bytes that came from the archive",
        |counters| counters.bytes_fetched.get(),
    ),
    (
        "reader_scanned_bytes",
        "Bytes of blocks that were scanned",
        |counters| counters.bytes_scanned.get(),
    ),
    ("reader_blocks", "Blocks scanned", |counters| {
        counters.blocks.get()
    }),
    ("reader_transactions", "Transactions scanned", |counters| {
        counters.transactions.get()
    }),
    ("reader_matches", "Transactions that matched", |counters| {
        counters.matches.get()
    }),
    (
        "reader_decompressions",
        "Metadata decompressed",
        |counters| counters.decompressions.get(),
    ),
    (
        "reader_decompressions_avoided",
        "Transactions that learned lookup tables decided without decompressing",
        |counters| counters.decompressions_avoided.get(),
    ),
];

impl Collector for Readers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, help, count) in READER_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (network, archive) in &self.0 {
                let labels = [("network", network.as_str())];
                let counter = ConstCounter::new(count(archive.counters()));
                counter.encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Requests made again, by cause";
        let mut family =
            encoder.encode_descriptor("reader_retries", help, None, MetricType::Counter)?;
        for (network, archive) in &self.0 {
            for cause in RetryCause::ALL {
                let labels = [("network", network.as_str()), ("cause", cause.name())];
                let counter = ConstCounter::new(archive.counters().retries(cause));
                counter.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss)] // A rate, not a count.
fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn clamp(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
