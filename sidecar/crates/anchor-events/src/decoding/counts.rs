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
    pub undecodable_by: BTreeMap<(String, String), Undecodable>,
    /// Rows decoded by another version than the one in force.
    pub fallback: Vec<Fallback>,
    /// How much of all this are instructions.
    pub instructions: InstructionCounts,
}

/// What of the counts are instructions: the rest are events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstructionCounts {
    /// Rows in.
    pub records: u64,
    /// Instructions of failed transactions, left out by policy.
    pub failed_left_out: u64,
    /// Ignored discriminators; all of them where the decoder was not asked for instructions.
    pub foreign: u64,
    /// Rows in tables.
    pub decoded: u64,
    /// Rows in quarantine.
    pub undecodable: u64,
    /// Decoded rows that were given fewer accounts than any version that reads their data demands.
    pub short_of_accounts: u64,
    /// Decoded rows of which one account or more cannot be resolved: none of their accounts is known.
    pub unknown_accounts: u64,
}

/// Rows in quarantine of one discriminator for one reason: what another IDL version would have to explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// How many.
    pub count: u64,
    /// Slot of the first such record.
    pub first_slot: u64,
    /// Slot of the last such record.
    pub last_slot: u64,
    /// The fewest bytes of a payload from where reading it stopped.
    pub least_unexplained: u64,
    /// The most.
    pub most_unexplained: u64,
}

impl Undecodable {
    pub(super) fn one(slot: u64, unexplained: u64) -> Self {
        Self {
            count: 1,
            first_slot: slot,
            last_slot: slot,
            least_unexplained: unexplained,
            most_unexplained: unexplained,
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.count += other.count;
        self.first_slot = self.first_slot.min(other.first_slot);
        self.last_slot = self.last_slot.max(other.last_slot);
        self.least_unexplained = self.least_unexplained.min(other.least_unexplained);
        self.most_unexplained = self.most_unexplained.max(other.most_unexplained);
    }
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
