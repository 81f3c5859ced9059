//! One transaction: does it mention a program, and if so, everything about it. Static keys are looked at first,
//! on the bytes as sent; metadata is decompressed only where its loaded keys can decide or the transaction
//! matched. How transactions make a block belongs in [`scanner`](crate::scanner).

use std::sync::Arc;

use bytes::Bytes;

use crate::car::Section;
use crate::dataframe::{
    Frames, MAXIMUM_PAYLOAD_BYTES, PayloadFault, check_hash, hash_matches, payload,
};
use crate::error::ArchiveError;
use crate::filter::{Mentions, ProgramFilter};
use crate::lookup::{Dismissals, LearnedTables, learn};
use crate::metadata::{Inflater, Metadata, loaded_keys};
use crate::model::{Instruction, MatchedTransaction, Pubkey, Verify};
use crate::node::TransactionNode;
use crate::place::Place;
use crate::scanner::BlockCounts;
use crate::wire::WireTransaction;

/// A transaction that mentions a program.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) transaction: MatchedTransaction,
    /// Roughly the memory that it holds, in bytes.
    pub(crate) bytes: usize,
}

/// Where a transaction is in its block and archive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    pub(crate) index: u32,
    pub(crate) epoch: u32,
}

/// Reads transactions, one after another, with the same buffers and everything learned so far.
#[derive(Debug)]
pub(crate) struct TransactionReader {
    filter: Arc<ProgramFilter>,
    verify: Verify,
    inflater: Inflater,
    mentions: Mentions,
    learned: Arc<LearnedTables>,
    dismissals: Dismissals,
    loaded: Vec<Pubkey>,
}

impl TransactionReader {
    pub(crate) fn new(
        filter: Arc<ProgramFilter>,
        verify: Verify,
        learned: Arc<LearnedTables>,
    ) -> Self {
        Self {
            filter,
            verify,
            inflater: Inflater::new(),
            mentions: Mentions::default(),
            learned,
            dismissals: Dismissals::default(),
            loaded: Vec::new(),
        }
    }

    /// Reads the transaction of a section, and counts it. It is handed on when it mentions a program.
    pub(crate) fn read(
        &mut self,
        section: &Section<'_>,
        node: &TransactionNode<'_>,
        position: Position,
        frames: &Frames,
        place: &Place<'_>,
        counts: &mut BlockCounts,
    ) -> Result<Option<Found>, ArchiveError> {
        let sent = payload(&node.data, frames, |_, _| {}).map_err(|fault| place.payload(fault))?;
        let transaction = WireTransaction::parse(&sent).map_err(|fault| place.node(fault))?;
        counts.transactions += 1;
        counts.votes += u64::from(transaction.is_vote());

        self.mentions.clear();
        self.loaded.clear();
        for key in transaction.static_keys {
            self.mentions.look(&self.filter, key, false);
        }
        let loads = transaction.loaded_keys() > 0;
        let mut metadata = None;
        if node.metadata.data.is_empty() && node.metadata.next.is_empty() {
            counts.missing_metadata += 1;
            counts.unresolved_lookups += u64::from(loads);
        } else {
            let undecided = loads
                && !self.filter.is_empty()
                && !self
                    .dismissals
                    .dismiss(&transaction, &self.filter, &self.learned);
            if undecided || !self.mentions.is_empty() {
                metadata =
                    self.read_metadata(&transaction, section, node, frames, place, counts)?;
            } else {
                let decided = loads && !self.filter.is_empty();
                counts.decompressions_avoided += u64::from(decided);
            }
        }
        if self.mentions.is_empty() {
            return Ok(None);
        }

        if self.verify == Verify::Matched {
            counts.cids_verified += verify_used(section, node, frames, place)?;
        }
        check_hash(node.data.hash.filter(|_| node.data.next.is_empty()), &sent)
            .map_err(|fault| place.payload(fault))?;
        // The parts that its fields are cut into take about as much again.
        let inflated = metadata.as_ref().map_or(0, |(_, bytes)| *bytes);
        let bytes = size_of::<MatchedTransaction>() + 2 * (sent.len() + inflated);
        let metadata = metadata.map(|(metadata, _)| metadata);
        let transaction =
            self.matched(&sent, node.slot, section.offset, position, metadata, place)?;
        Ok(Some(Found { transaction, bytes }))
    }

    /// Decompresses the metadata, looks at the loaded keys and learns from them. The metadata itself is read
    /// only when the transaction turns out to mention a program, and comes with its size in bytes.
    fn read_metadata(
        &mut self,
        transaction: &WireTransaction<'_>,
        section: &Section<'_>,
        node: &TransactionNode<'_>,
        frames: &Frames,
        place: &Place<'_>,
        counts: &mut BlockCounts,
    ) -> Result<Option<(Metadata, usize)>, ArchiveError> {
        counts.decompressions += 1;
        let stored =
            payload(&node.metadata, frames, |_, _| {}).map_err(|fault| place.payload(fault))?;
        check_hash(
            node.metadata.hash.filter(|_| node.metadata.next.is_empty()),
            &stored,
        )
        .map_err(|fault| place.payload(fault))?;
        let inflated = self
            .inflater
            .inflate(&stored)
            .map_err(|_| place.payload(PayloadFault::TooLarge(MAXIMUM_PAYLOAD_BYTES + 1)))?;
        let loads = transaction.loaded_keys() > 0;

        let loaded = &mut self.loaded;
        let Ok(read) = loaded_keys(inflated, |key| loaded.push(*key)) else {
            self.loaded.clear();
            counts.missing_metadata += 1;
            counts.unresolved_lookups += u64::from(loads);
            return Ok(None);
        };
        for key in &self.loaded {
            self.mentions.look(&self.filter, key, true);
        }
        if read != (transaction.loaded_writable, transaction.loaded_readonly) {
            counts.unresolved_lookups += u64::from(loads);
        } else if loads
            // What other scans will rely on is proved, whatever this one asks for.
            && (self.verify == Verify::Full || verify_used(section, node, frames, place).is_ok())
        {
            learn(&self.learned, transaction, &self.loaded);
        }
        if self.mentions.is_empty() {
            return Ok(None);
        }

        let metadata = Metadata::parse(&Bytes::copy_from_slice(inflated)).ok();
        counts.missing_metadata += u64::from(metadata.is_none());
        Ok(metadata.map(|metadata| (metadata, inflated.len())))
    }

    /// Everything about the transaction, copied out of the archive's bytes.
    fn matched(
        &mut self,
        sent: &[u8],
        slot: u64,
        archive_offset: u64,
        position: Position,
        metadata: Option<Metadata>,
        place: &Place<'_>,
    ) -> Result<MatchedTransaction, ArchiveError> {
        let sent = Bytes::copy_from_slice(sent);
        let transaction = WireTransaction::parse(&sent).map_err(|fault| place.node(fault))?;
        let instructions = transaction
            .instructions()
            .map(|instruction| Instruction {
                program_index: instruction.program_index,
                accounts: sent.slice_ref(instruction.accounts),
                data: sent.slice_ref(instruction.data),
            })
            .collect();
        let (programs, lookup_only) = self.mentions.sorted();
        let mut account_keys = transaction.static_keys.to_vec();
        if let Some(metadata) = &metadata {
            account_keys.extend_from_slice(&metadata.loaded_writable);
            account_keys.extend_from_slice(&metadata.loaded_readonly);
        }
        Ok(MatchedTransaction {
            slot,
            index: position.index,
            archive_offset,
            epoch: position.epoch,
            signature: *transaction.signature,
            static_key_count: transaction.static_keys.len(),
            account_keys,
            programs,
            lookup_only,
            instructions,
            metadata,
        })
    }
}

/// Hashes a transaction's section and those of the frames that it uses; how many.
fn verify_used(
    section: &Section<'_>,
    node: &TransactionNode<'_>,
    frames: &Frames,
    place: &Place<'_>,
) -> Result<u64, ArchiveError> {
    let mut right = hash_matches(section.hash, section.node);
    let mut count = 1;
    for frame in [&node.data, &node.metadata] {
        payload(frame, frames, |hash, node| {
            right &= hash_matches(hash, node);
            count += 1;
        })
        .map_err(|fault| place.payload(fault))?;
    }
    if right { Ok(count) } else { Err(place.cid()) }
}
