//! The matches of the block that is being read: their bytes gather in one buffer, and leave it in one piece of memory
//! that all of them share. A piece for each would be made on one thread and given back on another, thousands of times a
//! second, which threads cannot do without waiting for one another.

use std::ops::Range;

use bytes::Bytes;

use crate::metadata::Summary;
use crate::model::{MatchedTransaction, Mention, TransactionPlace};

/// A buffer that grew larger is given back, in bytes.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

#[derive(Debug)]
struct Found {
    place: TransactionPlace,
    mentions: Vec<Mention>,
    sent: Range<usize>,
    metadata: Option<(Range<usize>, Summary)>,
}

/// Matches in the order of their block.
#[derive(Debug, Default)]
pub(crate) struct Matches {
    found: Vec<Found>,
    bytes: Vec<u8>,
}

impl Matches {
    /// Takes a transaction as sent, and its decompressed metadata where that can be read.
    pub(crate) fn add(
        &mut self,
        place: TransactionPlace,
        mentions: Vec<Mention>,
        sent: &[u8],
        metadata: Option<(&[u8], Summary)>,
    ) {
        let sent = self.keep(sent);
        let metadata = metadata.map(|(bytes, summary)| (self.keep(bytes), summary));
        self.found.push(Found {
            place,
            mentions,
            sent,
            metadata,
        });
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    /// The memory that they take, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.bytes.len() + self.found.len() * size_of::<MatchedTransaction>()
    }

    /// Hands them on, and begins anew.
    pub(crate) fn take(&mut self) -> Vec<MatchedTransaction> {
        let bytes = Bytes::copy_from_slice(&self.bytes);
        let found = self.found.drain(..).map(|found| {
            let metadata = found.metadata;
            MatchedTransaction::with_summary(
                found.place,
                found.mentions,
                bytes.slice(found.sent),
                metadata.map(|(range, summary)| (bytes.slice(range), summary)),
            )
        });
        let found = found.collect();
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BUFFER_BYTES);
        found
    }
}
