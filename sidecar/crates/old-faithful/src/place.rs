//! Where in an archive something was found: what turns a parser's fault into an error that a person can act on.

use std::fmt::Display;
use std::sync::Arc;

use crate::dataframe::{MAXIMUM_PAYLOAD_BYTES, PayloadFault};
use crate::error::ArchiveError;

/// A section of a CAR file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) car: &'a Arc<str>,
    pub(crate) slot: Option<u64>,
    pub(crate) offset: u64,
}

impl Place<'_> {
    pub(crate) fn node(&self, reason: impl Display) -> ArchiveError {
        ArchiveError::NodeMalformed {
            car: Arc::clone(self.car),
            slot: self.slot,
            offset: self.offset,
            reason: reason.to_string(),
        }
    }

    pub(crate) fn payload(&self, fault: PayloadFault) -> ArchiveError {
        match fault {
            PayloadFault::TooLarge(bytes) => {
                self.too_large("a payload", bytes as u64, MAXIMUM_PAYLOAD_BYTES as u64)
            }
            PayloadFault::Malformed(_) | PayloadFault::Hash => self.node(fault),
        }
    }

    pub(crate) fn chain(&self, slot: u64, reason: impl Into<String>) -> ArchiveError {
        ArchiveError::ChainBroken {
            car: Arc::clone(self.car),
            slot,
            offset: self.offset,
            reason: reason.into(),
        }
    }

    pub(crate) fn cid(&self) -> ArchiveError {
        ArchiveError::CidMismatch {
            car: Arc::clone(self.car),
            slot: self.slot,
            offset: self.offset,
        }
    }

    pub(crate) fn too_large(&self, what: &'static str, bytes: u64, limit: u64) -> ArchiveError {
        ArchiveError::TooLarge {
            car: Arc::clone(self.car),
            what,
            offset: self.offset,
            bytes,
            limit,
        }
    }
}
