//! The proof that a slot range was read whole: what was counted, how its blocks chain, and when two such proofs
//! are one. Additive throughout, so that it does not depend on how the reading was divided. How the numbers are
//! found out belongs in the scanner.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{Pubkey, Verify};

/// The certificate of a slot range. In JSON its names are camelCase; programs are base58, digests 32 hexadecimal
/// characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// The first slot of the range.
    pub start_slot: u64,
    /// The first slot after the range.
    pub end_slot: u64,
    /// The epochs read, ascending.
    pub epochs: Vec<u64>,
    /// Where the list of slots with blocks came from.
    pub index: IndexKind,
    /// What was hashed.
    pub verify: Verify,
    /// Slots of the range that have a block according to the index.
    pub slots_with_blocks: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Transactions read.
    pub transactions: u64,
    /// Transactions whose every top-level instruction calls the vote program.
    pub votes: u64,
    /// Entries read.
    pub entries: u64,
    /// Transactions without readable metadata: none stored, or stored in a format that could not be read.
    /// Metadata is read only where the filter needs it; the others count when they are empty.
    pub missing_metadata: u64,
    /// Transactions with lookups whose loaded keys could not be had, so that they may mention a program unseen.
    /// Where learned tables decide a transaction's lookups, its metadata is not opened, and it does not count: of
    /// stored metadata which cannot be read, two scans may count differently, by what the archive had learned before.
    pub unresolved_lookups: u64,
    /// Bytes of the range's blocks in the CAR files.
    pub bytes: u64,
    /// Sections whose bytes were hashed and found to have the hash that their CID names.
    pub cids_verified: u64,
    /// The first block of the range and its parent.
    pub first_block: Option<BlockLink>,
    /// The slot of the range's last block.
    pub last_block_slot: Option<u64>,
    /// What is known of the first block after the range.
    pub tail: Tail,
    /// The first block after the range, where it was read.
    pub next_block: Option<BlockLink>,
    /// Per program, in base58.
    pub programs: BTreeMap<String, ProgramCounts>,
}

/// Where the list of slots that have blocks came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IndexKind {
    /// The epoch's slot-ranges file.
    SlotRanges,
    /// The older indexes, of one epoch at least: slots to CIDs of their blocks, and where those are.
    SlotToCid,
    /// Nowhere: a bare CAR file, read front to back.
    None,
}

impl IndexKind {
    /// What to say of two adjoining ranges. Both indexes list every block; a file without one lists none.
    fn and(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::SlotRanges, Self::SlotToCid) | (Self::SlotToCid, Self::SlotRanges) => {
                Some(Self::SlotToCid)
            }
            _ => (self == other).then_some(self),
        }
    }
}

/// What is known of the first block after a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tail {
    /// It was not looked for: the certificate is of a stretch in the middle.
    Unread,
    /// Its parent is the range's last block, or lies before the range when that has no block.
    Proven,
    /// The archive does not have it (yet): the last blocks of the range may be missing.
    Unproven,
}

/// A block and the slot of its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockLink {
    /// The block's slot.
    pub slot: u64,
    /// Its parent's slot.
    pub parent_slot: u64,
}

impl BlockLink {
    /// Whether nothing can lie between `start` and this block: its parent is before `start`. The block of slot 0
    /// is its own parent.
    pub(crate) fn begins(self, start: u64) -> bool {
        self.parent_slot < start || (self.slot == 0 && self.parent_slot == 0 && start == 0)
    }
}

/// What was found of one program. The reader fills `matched`, `matched_by_lookup_only`, `failed` and `unrecorded`;
/// whoever extracts records fills the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramCounts {
    /// Transactions that mention the program.
    pub matched: u64,
    /// Of these, the ones that mention it only through keys loaded from lookup tables.
    pub matched_by_lookup_only: u64,
    /// Of the matched, the ones with at least one record.
    pub with_records: u64,
    /// Of the matched, the ones that failed.
    pub failed: u64,
    /// Of the matched, the ones whose logs were truncated.
    pub truncated: u64,
    /// Of the matched, the ones whose metadata, logs or inner instructions the archive does not have, so that what
    /// the program said in them cannot be known.
    pub unrecorded: u64,
    /// Records.
    pub records: u64,
    /// Sum of the records' digests, modulo 2^128.
    #[serde(serialize_with = "digest_to_hex", deserialize_with = "digest_from_hex")]
    pub digest: u128,
}

impl ProgramCounts {
    /// Adds `other`'s counts and digest.
    pub fn add(&mut self, other: &Self) {
        self.matched += other.matched;
        self.matched_by_lookup_only += other.matched_by_lookup_only;
        self.with_records += other.with_records;
        self.failed += other.failed;
        self.truncated += other.truncated;
        self.unrecorded += other.unrecorded;
        self.records += other.records;
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

/// Why a certificate does not hold, or two do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The second does not begin where the first ends.
    #[error("the second certificate begins at slot {second}, the first ends at slot {first}")]
    NotAdjacent {
        /// The first's end.
        first: u64,
        /// The second's start.
        second: u64,
    },
    /// Index or verification differ.
    #[error("the certificates differ in {field}: they were not read in the same way")]
    Different {
        /// The field that differs.
        field: &'static str,
    },
    /// The range ends before it begins.
    #[error("the range {start}..{end} ends before it begins")]
    Reversed {
        /// The range's start.
        start: u64,
        /// The range's end.
        end: u64,
    },
    /// A block's parent is not the block read before it.
    #[error(
        "block {slot} has parent {parent}, but the block read before it is {before}: a block is missing"
    )]
    ParentMismatch {
        /// The block.
        slot: u64,
        /// Its parent.
        parent: u64,
        /// The block that was read before it.
        before: u64,
    },
    /// A block's parent lies in a stretch where no block was found.
    #[error(
        "block {slot} has parent {parent}, which lies in slots {start}..{slot}, where no block was found"
    )]
    Gap {
        /// The block.
        slot: u64,
        /// Its parent.
        parent: u64,
        /// The start of the stretch without blocks.
        start: u64,
    },
    /// The index lists another number of blocks than were read.
    #[error("the index lists {listed} blocks, {read} were read")]
    BlockCount {
        /// Listed by the index.
        listed: u64,
        /// Read.
        read: u64,
    },
    /// First and last block are absent, outside the range, or out of order.
    #[error("the certificate's first and last block do not fit its range and count")]
    Ends,
    /// The tail was never read.
    #[error(
        "the first block after slot {end} was never looked for, so the last blocks may be missing"
    )]
    TailUnread {
        /// The range's end.
        end: u64,
    },
    /// A proven tail without a fitting next block.
    #[error("the tail is said to be proven, but no block after slot {end} is named")]
    TailWithoutBlock {
        /// The range's end.
        end: u64,
    },
    /// A program's counts contradict each other.
    #[error("the counts of program {program} contradict each other")]
    ProgramCounts {
        /// The program, base58.
        program: String,
    },
}

impl Certificate {
    /// The certificate of an empty stretch at `start`, to which blocks are added.
    #[must_use]
    pub fn empty(start: u64, index: IndexKind, verify: Verify) -> Self {
        Self {
            start_slot: start,
            end_slot: start,
            epochs: Vec::new(),
            index,
            verify,
            slots_with_blocks: 0,
            blocks: 0,
            transactions: 0,
            votes: 0,
            entries: 0,
            missing_metadata: 0,
            unresolved_lookups: 0,
            bytes: 0,
            cids_verified: 0,
            first_block: None,
            last_block_slot: None,
            tail: Tail::Unread,
            next_block: None,
            programs: BTreeMap::new(),
        }
    }

    /// The counts of a program, added with zeros when it is not there yet.
    pub fn program_mut(&mut self, program: &Pubkey) -> &mut ProgramCounts {
        self.programs.entry(base58(program)).or_default()
    }

    /// This certificate followed by `next`: of two adjoining ranges, the certificate of both.
    ///
    /// Refused when `next` does not begin where this one ends, was read in another way, or its first block's
    /// parent is not this one's last block. A stretch without blocks changes nothing but the range.
    pub fn merge(mut self, next: Self) -> Result<Self, CertificateError> {
        if next.start_slot != self.end_slot {
            return Err(CertificateError::NotAdjacent {
                first: self.end_slot,
                second: next.start_slot,
            });
        }
        let index = self.index.and(next.index);
        let Some(index) = index else {
            return Err(CertificateError::Different { field: "index" });
        };
        if next.verify != self.verify {
            return Err(CertificateError::Different { field: "verify" });
        }
        let follower = next.first_block.or(next.next_block);
        if let Some(follower) = follower {
            self.check_follower(follower)?;
            if self.next_block.is_some_and(|seen| seen != follower) {
                return Err(CertificateError::Different { field: "nextBlock" });
            }
        }

        self.index = index;
        self.end_slot = next.end_slot;
        for epoch in next.epochs {
            if let Err(place) = self.epochs.binary_search(&epoch) {
                self.epochs.insert(place, epoch);
            }
        }
        self.slots_with_blocks += next.slots_with_blocks;
        self.blocks += next.blocks;
        self.transactions += next.transactions;
        self.votes += next.votes;
        self.entries += next.entries;
        self.missing_metadata += next.missing_metadata;
        self.unresolved_lookups += next.unresolved_lookups;
        self.bytes += next.bytes;
        self.cids_verified += next.cids_verified;
        self.first_block = self.first_block.or(next.first_block);
        self.last_block_slot = next.last_block_slot.or(self.last_block_slot);
        self.tail = next.tail;
        self.next_block = next.next_block;
        for (program, counts) in &next.programs {
            self.programs
                .entry(program.clone())
                .or_default()
                .add(counts);
        }
        Ok(self)
    }

    /// Whether this proves its range complete: [as a stretch](Self::holds_as_stretch), and the first block after
    /// it was looked for. A tail that the archive does not have yet ([`Tail::Unproven`]) is allowed here: it is
    /// for the reader of the certificate to weigh.
    pub fn holds(&self) -> Result<(), CertificateError> {
        self.holds_as_stretch()?;
        match (self.tail, self.next_block) {
            (Tail::Unread, _) => Err(CertificateError::TailUnread { end: self.end_slot }),
            (Tail::Proven, None) => Err(CertificateError::TailWithoutBlock { end: self.end_slot }),
            (Tail::Unproven, Some(_)) => Err(CertificateError::Different { field: "tail" }),
            (Tail::Proven, Some(_)) | (Tail::Unproven, None) => Ok(()),
        }
    }

    /// Whether this proves a stretch complete up to its last block: the head lies before it, every listed block
    /// was read. What checkpoints carry.
    pub fn holds_as_stretch(&self) -> Result<(), CertificateError> {
        if self.start_slot > self.end_slot {
            return Err(CertificateError::Reversed {
                start: self.start_slot,
                end: self.end_slot,
            });
        }
        if self.slots_with_blocks != self.blocks {
            return Err(CertificateError::BlockCount {
                listed: self.slots_with_blocks,
                read: self.blocks,
            });
        }
        match (self.first_block, self.last_block_slot) {
            (None, None) if self.blocks == 0 => {}
            (Some(first), Some(last))
                if self.blocks > 0
                    && first.slot >= self.start_slot
                    && first.slot <= last
                    && (self.blocks == 1) == (first.slot == last)
                    && last < self.end_slot =>
            {
                if !first.begins(self.start_slot) {
                    return Err(CertificateError::Gap {
                        slot: first.slot,
                        parent: first.parent_slot,
                        start: self.start_slot,
                    });
                }
            }
            _ => return Err(CertificateError::Ends),
        }
        if let Some(next) = self.next_block {
            self.check_follower(next)?;
        }
        for (program, counts) in &self.programs {
            let parts = [
                counts.matched_by_lookup_only,
                counts.with_records,
                counts.failed,
                counts.truncated,
                counts.unrecorded,
            ];
            if counts.matched > self.transactions
                || parts.iter().any(|part| *part > counts.matched)
                || counts.records < counts.with_records
            {
                return Err(CertificateError::ProgramCounts {
                    program: program.clone(),
                });
            }
        }
        Ok(())
    }

    /// Whether `follower` can be the first block at or after this range's end.
    fn check_follower(&self, follower: BlockLink) -> Result<(), CertificateError> {
        if follower.slot < self.end_slot {
            return Err(CertificateError::Ends);
        }
        match self.last_block_slot {
            Some(last) if follower.parent_slot != last => Err(CertificateError::ParentMismatch {
                slot: follower.slot,
                parent: follower.parent_slot,
                before: last,
            }),
            None if !follower.begins(self.start_slot) => Err(CertificateError::Gap {
                slot: follower.slot,
                parent: follower.parent_slot,
                start: self.start_slot,
            }),
            _ => Ok(()),
        }
    }
}

/// An address in base58.
pub(crate) fn base58(key: &Pubkey) -> String {
    let mut characters = [0; 44];
    let length = five8::encode_32(key, &mut characters);
    String::from_utf8_lossy(&characters[..usize::from(length)]).into_owned()
}

fn digest_to_hex<S: Serializer>(digest: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{digest:032x}"))
}

fn digest_from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(serde::de::Error::custom(
            "a digest is 32 hexadecimal characters",
        ));
    }
    u128::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
}
