//! Learned lookup tables kept on disk, one file per network, so that a sidecar that starts again need not learn them again.
//!
//! A file is taken before its network's first job, and written aside and renamed every few minutes, while there is something new, and at the
//! end. One that is damaged, or of another archive, is never used: that is logged and counted, and the next file replaces it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use old_faithful::{Archive, LEARNED_TABLES_BYTES_AT_MOST};
use tokio::sync::OnceCell;

use crate::metrics::Metrics;

/// A file is written this often, at most, but for the end.
pub(crate) const SAVED_EVERY: Duration = Duration::from_secs(300);
/// A job waits no longer than this for a file to be compared with the archive.
const COMPARED_WITHIN: Duration = Duration::from_secs(20);

/// The folder, and how far each network's file is.
pub(crate) struct LearnedFiles {
    folder: PathBuf,
    networks: BTreeMap<String, OfNetwork>,
}

#[derive(Default)]
struct OfNetwork {
    restored: OnceCell<()>,
    /// What had been learned when the file was written; locked while it is.
    saved: Mutex<u64>,
}

impl LearnedFiles {
    /// Files of `networks` in a folder that exists.
    pub(crate) fn new<'a>(folder: PathBuf, networks: impl Iterator<Item = &'a String>) -> Self {
        Self {
            folder,
            networks: networks
                .map(|name| (name.clone(), OfNetwork::default()))
                .collect(),
        }
    }

    fn path(&self, network: &str) -> PathBuf {
        self.folder.join(format!("{network}.lookup-tables"))
    }

    /// Takes what the network's file holds; once, whoever asks first.
    pub(crate) async fn restore(&self, network: &str, archive: &Archive, metrics: &Metrics) {
        let Some(of_network) = self.networks.get(network) else {
            return;
        };
        let taking = async {
            let path = self.path(network);
            let taken = match read(&path).await {
                Ok(None) => return,
                Ok(Some(bytes)) => {
                    let comparing = archive.restore_learned_tables(network, &bytes);
                    let compared = tokio::time::timeout(COMPARED_WITHIN, comparing).await;
                    compared
                        .unwrap_or_else(|_| Err("the archive did not answer in time".to_owned()))
                }
                Err(reason) => Err(reason),
            };
            let file = path.display();
            match taken {
                Ok(tables) => {
                    // What was just read need not be written.
                    *lock(&of_network.saved) = archive.learned_changes();
                    tracing::info!(%file, network, tables, "learned lookup tables were taken over");
                    metrics.add_learned_file(network, "restored");
                }
                Err(reason) => {
                    tracing::warn!(%file, network, reason, "learned lookup tables are not used: they are learned anew");
                    metrics.add_learned_file(network, "refused");
                }
            }
        };
        of_network.restored.get_or_init(|| taking).await;
    }

    /// Writes the file of each network that learned something since it was last written. Blocks its thread.
    pub(crate) fn save(&self, archives: &BTreeMap<String, Archive>, metrics: &Metrics) {
        for (network, of_network) in &self.networks {
            let Some(archive) = archives.get(network) else {
                continue;
            };
            let mut saved = lock(&of_network.saved);
            let changes = archive.learned_changes();
            if changes == *saved {
                continue;
            }
            let Some(bytes) = archive.learned_tables(network) else {
                continue;
            };
            let path = self.path(network);
            let file = path.display();
            match write(&path, &bytes) {
                Ok(()) => {
                    *saved = changes;
                    tracing::debug!(%file, network, bytes = bytes.len(), "learned lookup tables were written");
                    metrics.add_learned_file(network, "saved");
                }
                Err(error) => {
                    tracing::warn!(%file, network, %error, "learned lookup tables could not be written");
                    metrics.add_learned_file(network, "failed");
                }
            }
        }
    }
}

fn lock(saved: &Mutex<u64>) -> std::sync::MutexGuard<'_, u64> {
    saved.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file's bytes; `None` when there is none.
async fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let path = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let bytes = match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
            Ok(metadata) => metadata.len(),
        };
        if bytes > LEARNED_TABLES_BYTES_AT_MOST {
            return Err(format!("it has {bytes} bytes, more than any such file"));
        }
        fs::read(&path).map(Some).map_err(|error| error.to_string())
    });
    reading.await.map_err(|error| error.to_string())?
}

/// Writes a file aside and renames it, so that it is there whole or as it was.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let aside = path.with_extension(format!("{}.part", std::process::id()));
    let written = File::create(&aside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&aside); // The first error is the one to tell.
    }
    written
}
