//! The state all requests share: the archives, the secret, the jobs, and the limits.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use old_faithful::{Archive, ArchiveError, ArchiveOptions};
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;

use crate::jobs::Jobs;
use crate::learned::LearnedFiles;
use crate::memory::Breaker;
use crate::metrics::Metrics;

/// They read little, but each holds a block or two in memory.
const ESTIMATES_AT_ONCE: usize = 2;

/// What a service is made of; every value has a default that suits one machine.
#[derive(Debug)]
pub struct ServiceOptions {
    /// Network name → base of its archive: a path, `file://…` or `http(s)://…`.
    pub archives: Vec<(String, String)>,
    /// The bearer secret; none leaves the service open to whoever reaches it.
    pub secret: Option<Secret>,
    /// Backfills at the same time; more are answered 429.
    pub max_jobs: usize,
    /// Connections a scan keeps open to its archive.
    pub connections: Option<usize>,
    /// Bytes per range request; the reader's own choice when none.
    pub segment_bytes: Option<u64>,
    /// Slots one backfill may ask for.
    pub slots_at_most: u64,
    /// Resident memory that this process may hold, in bytes; above 80 % of it new jobs are refused. None: no limit.
    pub memory_limit: Option<u64>,
    /// A folder that exists, where what was learned of lookup tables is kept from one process to the next. None: nowhere.
    pub learned_tables_folder: Option<PathBuf>,
    /// How long a stream that was cancelled waits for its reader to take the last record.
    pub farewell: Duration,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            archives: Vec::new(),
            secret: None,
            max_jobs: 2,
            connections: None,
            segment_bytes: None,
            slots_at_most: 10_000_000,
            memory_limit: None,
            learned_tables_folder: None,
            farewell: Duration::from_secs(3),
        }
    }
}

/// A secret that prints as nothing and compares in constant time.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: &str) -> Self {
        Self(Arc::from(secret.as_bytes()))
    }

    /// Whether `other` is the secret; takes the same time however much of it matches.
    pub fn matches(&self, other: &[u8]) -> bool {
        self.0.ct_eq(other).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// The service behind the router; cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Shared>);

struct Shared {
    archives: BTreeMap<String, Archive>,
    secret: Option<Secret>,
    jobs: Jobs,
    estimates: Semaphore,
    breaker: Breaker,
    metrics: Metrics,
    learned: Option<LearnedFiles>,
    slots_at_most: u64,
    farewell: Duration,
    started: Instant,
}

impl Service {
    /// Opens the archives. Nothing is fetched yet: a wrong address shows at the first request.
    pub fn open(options: ServiceOptions) -> Result<Self, ArchiveError> {
        let defaults = ArchiveOptions::default();
        let mut archives = BTreeMap::new();
        for (network, base) in options.archives {
            let archive = Archive::open(
                &base,
                ArchiveOptions {
                    connections: options.connections.unwrap_or(defaults.connections),
                    segment_bytes: options.segment_bytes.unwrap_or(defaults.segment_bytes),
                    ..ArchiveOptions::default()
                },
            )?;
            archives.insert(network, archive);
        }
        let learned = options
            .learned_tables_folder
            .map(|folder| LearnedFiles::new(folder, archives.keys()));
        let named = archives.iter();
        let metrics = Metrics::new(
            named
                .map(|(name, archive)| (name.clone(), archive.clone()))
                .collect(),
        );
        Ok(Self(Arc::new(Shared {
            archives,
            secret: options.secret,
            jobs: Jobs::new(options.max_jobs),
            estimates: Semaphore::new(ESTIMATES_AT_ONCE),
            breaker: Breaker::new(options.memory_limit),
            metrics,
            learned,
            slots_at_most: options.slots_at_most,
            farewell: options.farewell,
            started: Instant::now(),
        })))
    }

    /// The archive of a network.
    pub(crate) fn archive(&self, network: &str) -> Option<&Archive> {
        self.0.archives.get(network)
    }

    /// The names of the networks, sorted.
    pub(crate) fn networks(&self) -> Vec<&str> {
        self.0.archives.keys().map(String::as_str).collect()
    }

    pub(crate) fn secret(&self) -> Option<&Secret> {
        self.0.secret.as_ref()
    }

    pub(crate) fn jobs(&self) -> &Jobs {
        &self.0.jobs
    }

    /// Places for estimates.
    pub(crate) fn estimates(&self) -> &Semaphore {
        &self.0.estimates
    }

    pub(crate) fn breaker(&self) -> &Breaker {
        &self.0.breaker
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Takes over what an earlier process learned of a network's lookup tables, where that is kept; once.
    pub(crate) async fn restore_learned(&self, network: &str, archive: &Archive) {
        if let Some(learned) = &self.0.learned {
            learned.restore(network, archive, self.metrics()).await;
        }
    }

    /// Whether what is learned of lookup tables is kept.
    pub(crate) fn keeps_learned(&self) -> bool {
        self.0.learned.is_some()
    }

    /// Writes what was learned of lookup tables since it was last written, where that is kept. Blocks its thread.
    pub(crate) fn save_learned(&self) {
        if let Some(learned) = &self.0.learned {
            learned.save(&self.0.archives, self.metrics());
        }
    }

    pub(crate) fn slots_at_most(&self) -> u64 {
        self.0.slots_at_most
    }

    pub(crate) fn farewell(&self) -> Duration {
        self.0.farewell
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Cancels every stream and refuses new ones; each ends with a `shutting_down` record.
    pub fn shut_down(&self) {
        self.0.jobs.shut_down();
    }

    /// Backfills under way.
    pub fn active_jobs(&self) -> usize {
        self.0.jobs.active()
    }
}
