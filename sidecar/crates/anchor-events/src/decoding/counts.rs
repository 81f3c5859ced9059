//! What became of the records of a batch. Every record is counted exactly once among twins, failed,
//! foreign, decoded and undecodable.

use std::collections::BTreeMap;

/// Counts of one [`Decoder::decode`](super::Decoder::decode).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecodeCounts {
    /// Rows in.
    pub records: u64,
    /// Log records folded into the CPI record of equal payload.
    pub twins_folded: u64,
    /// Records of failed transactions, left out by policy.
    pub failed_left_out: u64,
    /// Records that are none of the program's events: ignored discriminators, and log data shorter than a
    /// discriminator.
    pub foreign: u64,
    /// Rows in tables.
    pub decoded: u64,
    /// Rows in quarantine.
    pub undecodable: u64,
    /// Decoded rows by event and label of the IDL version that decoded them.
    pub decoded_by: BTreeMap<(String, String), u64>,
    /// Rows in quarantine by discriminator (hexadecimal) and reason code.
    pub undecodable_by: BTreeMap<(String, String), u64>,
    /// Rows decoded by another version than the one in force.
    pub fallback: Vec<Fallback>,
}

/// Rows of one event that were decoded by a version which was not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The event.
    pub event: String,
    /// Label of the version that decoded them.
    pub idl: String,
    /// The discriminator, hexadecimal.
    pub discriminator: String,
    /// Slot of the first such record.
    pub first_slot: u64,
    /// Slot of the last such record.
    pub last_slot: u64,
    /// How many.
    pub count: u64,
}
