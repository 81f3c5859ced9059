//! The jobs under way: who may start, how one is cancelled, and why it was.
//!
//! A job lives from the moment it is accepted until its [`Job`] is dropped, whatever ends it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::progress::Progress;

/// Why a job stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CancelReason {
    /// `DELETE /backfill/{id}`.
    Requested,
    /// The process is ending.
    ShuttingDown,
}

/// Why a job was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A job of this id is under way.
    Running,
    /// As many jobs as allowed are under way.
    Full {
        /// How many that is.
        limit: usize,
    },
    /// The process is ending.
    ShuttingDown,
}

/// The registry of jobs.
pub(crate) struct Jobs {
    limit: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    running: HashMap<String, (Cancel, Arc<Progress>)>,
    shutting_down: bool,
}

/// A way to cancel one job and to see that it was.
#[derive(Clone, Default)]
pub(crate) struct Cancel {
    token: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
}

impl Cancel {
    fn cancel(&self, reason: CancelReason) {
        // The first reason stands: a shutdown after a DELETE changes nothing for the reader.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Waits until the job is cancelled and says why.
    pub(crate) async fn cancelled(&self) -> CancelReason {
        self.token.cancelled().await;
        self.reason().unwrap_or(CancelReason::Requested)
    }

    /// Why the job was cancelled, if it was.
    pub(crate) fn reason(&self) -> Option<CancelReason> {
        self.reason.get().copied()
    }
}

/// A job under way. Dropping it frees its place.
pub(crate) struct Job {
    /// The job's id.
    pub(crate) id: String,
    /// Its cancellation.
    pub(crate) cancel: Cancel,
    /// How far it is.
    pub(crate) progress: Arc<Progress>,
    state: Arc<Mutex<State>>,
}

impl Drop for Job {
    fn drop(&mut self) {
        lock(&self.state).running.remove(&self.id);
    }
}

impl Jobs {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Arc::default(),
        }
    }

    /// Takes a place for a job that reads from `start_slot` on, or says why there is none.
    pub(crate) fn start(&self, id: &str, start_slot: u64) -> Result<Job, Refusal> {
        let mut state = lock(&self.state);
        if state.shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        if state.running.contains_key(id) {
            return Err(Refusal::Running);
        }
        if state.running.len() >= self.limit {
            return Err(Refusal::Full { limit: self.limit });
        }
        let cancel = Cancel::default();
        let progress = Arc::new(Progress::new(start_slot));
        let running = (cancel.clone(), Arc::clone(&progress));
        state.running.insert(id.to_owned(), running);
        Ok(Job {
            id: id.to_owned(),
            cancel,
            progress,
            state: Arc::clone(&self.state),
        })
    }

    /// Cancels a job; false when none of this id is under way.
    pub(crate) fn cancel(&self, id: &str) -> bool {
        let cancel = lock(&self.state).running.get(id).cloned();
        cancel
            .map(|(cancel, _)| cancel.cancel(CancelReason::Requested))
            .is_some()
    }

    /// Cancels every job and accepts none from here on.
    pub(crate) fn shut_down(&self) {
        let mut state = lock(&self.state);
        state.shutting_down = true;
        for (cancel, _) in state.running.values() {
            cancel.cancel(CancelReason::ShuttingDown);
        }
    }

    /// Whether the process is ending.
    pub(crate) fn is_shutting_down(&self) -> bool {
        lock(&self.state).shutting_down
    }

    /// How far each job under way is, and whether it was told to stop.
    pub(crate) fn progress(&self) -> Vec<(Arc<Progress>, bool)> {
        let state = lock(&self.state);
        let running = state.running.values();
        running
            .map(|(cancel, progress)| (Arc::clone(progress), cancel.reason().is_some()))
            .collect()
    }

    /// How many jobs are under way.
    pub(crate) fn active(&self) -> usize {
        lock(&self.state).running.len()
    }
}

/// A panic while the lock was held leaves the map whole: every change is one insert or remove.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{CancelReason, Jobs, Refusal};

    #[test]
    fn places_are_limited_and_freed_by_dropping() {
        let jobs = Jobs::new(2);
        let first = jobs.start("a", 0).ok().unwrap();
        let _second = jobs.start("b", 0).ok().unwrap();
        assert_eq!(jobs.start("a", 0).err(), Some(Refusal::Running));
        assert_eq!(jobs.start("c", 0).err(), Some(Refusal::Full { limit: 2 }));
        drop(first);
        assert!(jobs.start("c", 0).is_ok());
    }

    #[test]
    fn the_first_reason_stands_and_shutdown_refuses_newcomers() {
        let jobs = Jobs::new(4);
        let (deleted, other) = (
            jobs.start("a", 0).ok().unwrap(),
            jobs.start("b", 0).ok().unwrap(),
        );
        assert!(jobs.cancel("a"));
        assert!(!jobs.cancel("nobody"));
        jobs.shut_down();
        assert_eq!(deleted.cancel.reason(), Some(CancelReason::Requested));
        assert_eq!(other.cancel.reason(), Some(CancelReason::ShuttingDown));
        assert_eq!(jobs.start("c", 0).err(), Some(Refusal::ShuttingDown));
    }
}
