//! Several batches at once, on several threads: for callers that have batches waiting and cores idle.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use arrow_array::RecordBatch;

use super::decoder::{DecodePolicy, Decoded, Decoder};
use super::error::DecodeError;

impl Decoder {
    /// Decodes batches on at most so many threads, this one among them; the results are in the batches' order.
    /// Transactions must be whole in each, as for [`decode`](Decoder::decode).
    pub fn decode_all(
        &self,
        batches: &[RecordBatch],
        policy: &DecodePolicy,
        threads: NonZeroUsize,
    ) -> Result<Vec<Decoded>, DecodeError> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(batch) = batches.get(place) else {
                    return done;
                };
                done.push((place, self.decode(batch, policy)));
            }
        };
        let helpers = threads.get().min(batches.len()).saturating_sub(1);
        let mut done = thread::scope(|scope| {
            let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
            let mut done = work();
            for helper in helpers {
                match helper.join() {
                    Ok(found) => done.extend(found),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            done
        });
        done.sort_by_key(|(place, _)| *place);
        done.into_iter().map(|(_, decoded)| decoded).collect()
    }
}
