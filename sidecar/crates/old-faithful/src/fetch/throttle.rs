//! How hard a server is asked: less once it says that it is too much, slowly more again; and which of its
//! connections are slow beside the others. Shared by everything that reads one archive.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// All connections that a scan may have, as a share.
const WHOLE_SHARE: usize = 64;
/// The share that comes back with each segment that was read.
const RECOVERED_SHARE: usize = 2;
/// A connection is slow when the others bring so many times its bytes in the same waiting.
const SLOW_FACTOR: u128 = 8;
/// Waiting that is remembered of all connections; what came before counts half.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Bytes, and how long they were waited for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    pub(crate) bytes: u64,
    pub(crate) waited: Duration,
}

impl Pace {
    pub(crate) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.waited += other.waited;
    }
}

#[derive(Debug)]
struct State {
    share: usize,
    /// No request before.
    pause_ends: Option<Instant>,
    pace: Pace,
}

/// What is known of a server's patience.
#[derive(Debug)]
pub(crate) struct Throttle(Mutex<State>);

impl Default for Throttle {
    fn default() -> Self {
        Self(Mutex::new(State {
            share: WHOLE_SHARE,
            pause_ends: None,
            pace: Pace::default(),
        }))
    }
}

impl Throttle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the server may be asked again.
    pub(crate) async fn pass(&self) {
        loop {
            let pause_ends = self.state().pause_ends;
            match pause_ends {
                Some(end) if end > Instant::now() => tokio::time::sleep_until(end).await,
                _ => return,
            }
        }
    }

    /// The server asked for fewer requests: half the connections, and none of them asks before `pause` is over.
    /// Complaints within a pause are about the same requests.
    pub(crate) fn throttled(&self, pause: Duration) {
        let mut state = self.state();
        let now = Instant::now();
        if state.pause_ends.is_none_or(|end| end <= now) {
            state.share = (state.share / 2).max(1);
        }
        state.pause_ends = state.pause_ends.max(Some(now + pause));
    }

    /// A segment was read.
    pub(crate) fn recover(&self) {
        let mut state = self.state();
        state.share = (state.share + RECOVERED_SHARE).min(WHOLE_SHARE);
    }

    /// How many of `most` connections may be in flight; one always.
    pub(crate) fn connections(&self, most: usize) -> usize {
        (most * self.state().share).div_ceil(WHOLE_SHARE).max(1)
    }

    /// Notes what one connection brought. Whether it is slow beside what the others bring.
    pub(crate) fn is_slow(&self, own: Pace) -> bool {
        let mut state = self.state();
        let others = state.pace;
        state.pace.add(own);
        if state.pace.waited > REMEMBERED {
            state.pace.bytes /= 2;
            state.pace.waited /= 2;
        }
        let product = |bytes: u64, waited: Duration| u128::from(bytes) * waited.as_nanos();
        product(own.bytes, others.waited) * SLOW_FACTOR < product(others.bytes, own.waited)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // Tests fail loudly.

    use super::*;

    fn pace(bytes: u64, seconds: u64) -> Pace {
        Pace {
            bytes,
            waited: Duration::from_secs(seconds),
        }
    }

    #[tokio::test]
    async fn throttling_halves_connections_once_a_pause_and_they_come_back_slowly() {
        let throttle = Throttle::default();
        assert_eq!(throttle.connections(8), 8);
        throttle.throttled(Duration::from_millis(300));
        throttle.throttled(Duration::from_millis(100));
        assert_eq!(throttle.connections(8), 4);
        let begun = Instant::now();
        throttle.pass().await;
        assert!(begun.elapsed().as_millis() >= 200);
        for _ in 0..20 {
            throttle.throttled(Duration::ZERO);
        }
        assert_eq!(throttle.connections(8), 1);
        throttle.recover();
        assert_eq!(throttle.connections(8), 1);
        for _ in 0..40 {
            throttle.recover();
        }
        assert_eq!(throttle.connections(8), 8);
    }

    #[test]
    fn a_connection_is_slow_beside_faster_ones_only() {
        let throttle = Throttle::default();
        assert!(!throttle.is_slow(pace(10, 2)), "nothing to compare with");
        for _ in 0..5 {
            assert!(!throttle.is_slow(pace(1_000, 1)));
        }
        assert!(!throttle.is_slow(pace(500, 2)));
        assert!(throttle.is_slow(pace(100, 2)));
        assert!(throttle.is_slow(pace(0, 2)));
    }
}
