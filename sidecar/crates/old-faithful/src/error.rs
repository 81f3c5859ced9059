//! The one error of reading an archive. What a parser finds wrong inside a node ([`Malformed`]) becomes an
//! [`ArchiveError`] where the file, the slot and the offset are known.

use std::sync::Arc;

use crate::certificate::CertificateError;

/// Why bytes are not what they should be. The reader adds where they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (byte {at} of the node)")]
pub struct Malformed {
    /// What is wrong.
    pub reason: &'static str,
    /// Where in the parsed bytes, in bytes from their start.
    pub at: usize,
}

impl Malformed {
    /// A fault with its place in the parsed bytes.
    #[must_use]
    #[cold]
    pub const fn new(reason: &'static str, at: usize) -> Self {
        Self { reason, at }
    }
}

/// Why the archive could not be read, or why what was read proves nothing.
///
/// [`code`](Self::code) is stable and meant for programs; the message is meant for people.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The range needs an epoch that the archive does not have (`epoch_not_found`).
    #[error(
        "epoch {epoch} is not in the archive: {file} is missing. Choose a range that ends before it, or wait until it is published"
    )]
    EpochNotFound {
        /// The epoch.
        epoch: u64,
        /// The missing file, relative to the archive's base.
        file: String,
    },
    /// The epoch's slot-ranges file has the wrong size or lists impossible ranges (`index_invalid`).
    #[error(
        "the slot index of epoch {epoch} cannot be used: {reason}. Fetch it again from the archive"
    )]
    IndexInvalid {
        /// The epoch.
        epoch: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The epoch's CAR file is there in pieces only, and a piece or the file that describes them is not as it should be
    /// (`pieces_invalid`).
    #[error(
        "epoch {epoch} cannot be read from its pieces, {file}: {reason}. Fetch the file again from where the pieces come from"
    )]
    PiecesInvalid {
        /// The epoch.
        epoch: u64,
        /// The file at fault, relative to the archive's base.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Bytes that are no CAR header or section (`car_malformed`).
    #[error(
        "{car} is damaged at byte {offset}: {reason}. Fetch the file again, or use another mirror"
    )]
    CarMalformed {
        /// The CAR file.
        car: Arc<str>,
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A section whose node cannot be read (`node_malformed`).
    #[error("{car} holds a node that cannot be read, in the section at byte {offset}, slot {}: {reason}", Slot(*.slot))]
    NodeMalformed {
        /// The CAR file.
        car: Arc<str>,
        /// The slot, where known.
        slot: Option<u64>,
        /// Where the section begins, in bytes from the start of the file.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A section's bytes do not have the hash that its CID names (`cid_mismatch`).
    #[error(
        "{car} is damaged: the section at byte {offset}, slot {}, does not have the SHA-256 that its CID names. Fetch the file again, or use another mirror",
        Slot(*.slot)
    )]
    CidMismatch {
        /// The CAR file.
        car: Arc<str>,
        /// The slot, where known.
        slot: Option<u64>,
        /// Where the section begins, in bytes from the start of the file.
        offset: u64,
    },
    /// Blocks do not follow each other, or a block is not made of the entries and transactions around it
    /// (`chain_broken`).
    #[error("{car} is not complete at slot {slot} (byte {offset}): {reason}")]
    ChainBroken {
        /// The CAR file.
        car: Arc<str>,
        /// The slot at which the chain breaks.
        slot: u64,
        /// Where the Block section, or the section at fault, begins in the file.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// Everything was read, but the certificate does not hold (`certificate_broken`).
    #[error("slots {start}..{end} were read, but prove nothing: {source}")]
    CertificateBroken {
        /// The first slot of the range.
        start: u64,
        /// The first slot after the range.
        end: u64,
        /// What does not hold.
        source: CertificateError,
    },
    /// The store did not answer, or refused (`fetch_failed`).
    #[error("{file} could not be fetched at byte {offset}, after {attempts} attempts: {reason}")]
    FetchFailed {
        /// The file, relative to the archive's base.
        file: String,
        /// The first byte that is missing.
        offset: u64,
        /// Requests made in vain.
        attempts: u32,
        /// The last one's fault.
        reason: String,
    },
    /// The bytes ended before they should, again and again (`early_eof`).
    #[error(
        "{file} ended early at byte {offset} of {expected}, after {attempts} attempts: an early end is never the end of the epoch"
    )]
    EarlyEof {
        /// The file, relative to the archive's base.
        file: String,
        /// The first byte that is missing.
        offset: u64,
        /// Where the bytes should end.
        expected: u64,
        /// Requests made.
        attempts: u32,
    },
    /// The file's size or `ETag` changed while it was read (`object_changed`).
    #[error(
        "{file} changed while it was read ({reason}): nothing read of it can be trusted, start again"
    )]
    ObjectChanged {
        /// The file, relative to the archive's base.
        file: String,
        /// What changed.
        reason: String,
    },
    /// Something is larger than any honest archive has (`too_large`).
    #[error(
        "{car} holds {what} of {bytes} bytes at byte {offset}, more than the {limit} that are allowed"
    )]
    TooLarge {
        /// The CAR file.
        car: Arc<str>,
        /// What is too large.
        what: &'static str,
        /// The offset of its section in the file.
        offset: u64,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file could not be opened or read, or the archive's address is none (`io`).
    #[error("{file}: {reason}")]
    Io {
        /// The file or address, without credentials.
        file: String,
        /// What happened.
        reason: String,
    },
}

/// A slot that may not be known yet: a block's slot comes with its first transaction or at its end.
struct Slot(Option<u64>);

impl std::fmt::Display for Slot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(slot) => write!(formatter, "{slot}"),
            None => formatter.write_str("unknown"),
        }
    }
}

impl ArchiveError {
    /// Whether an epoch whose files are still being published fails like this.
    #[cfg(feature = "fetch")]
    pub(crate) fn may_be_on_its_way(&self) -> bool {
        matches!(
            self,
            Self::EpochNotFound { .. } | Self::IndexInvalid { .. } | Self::PiecesInvalid { .. }
        )
    }

    /// The stable code of the variant, in `snake_case`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::EpochNotFound { .. } => "epoch_not_found",
            Self::IndexInvalid { .. } => "index_invalid",
            Self::PiecesInvalid { .. } => "pieces_invalid",
            Self::CarMalformed { .. } => "car_malformed",
            Self::NodeMalformed { .. } => "node_malformed",
            Self::CidMismatch { .. } => "cid_mismatch",
            Self::ChainBroken { .. } => "chain_broken",
            Self::CertificateBroken { .. } => "certificate_broken",
            Self::FetchFailed { .. } => "fetch_failed",
            Self::EarlyEof { .. } => "early_eof",
            Self::ObjectChanged { .. } => "object_changed",
            Self::TooLarge { .. } => "too_large",
            Self::Io { .. } => "io",
        }
    }
}
