//! Lookup tables learned while reading. A table only ever grows, and a closed one cannot be made again at its
//! address, so that (table, index) → key never changes: once seen in one transaction's metadata, it need not be
//! decompressed from another's.
//!
//! [`LearnedTables`] belongs to an archive and serves all its scans, whatever they look for; [`Dismissals`] is what
//! one scanner made of it for its programs, without locks. Both only ever dismiss: a transaction that is not
//! dismissed has its metadata decompressed, and the keys themselves decide.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{PoisonError, RwLock};

use ahash::RandomState;

use crate::filter::{ProgramFilter, fingerprint};
use crate::model::Pubkey;
use crate::wire::WireTransaction;

/// Memory for what an archive's scans learned together, at most, in bytes. When a part is full it is learned anew.
const MAXIMUM_BYTES: usize = 32 << 20;
/// Parts with a lock each.
const PARTS: usize = 64;
/// Roughly the memory of a table without its fingerprints, in bytes.
const TABLE_BYTES: usize = 160;
/// Tables of one scanner, at most, of about 100 bytes each. Beyond it, all are taken from the archive's anew.
const MAXIMUM_DISMISSED: usize = 20_000;

/// A bit for each index of a table.
#[derive(Debug, Clone, Copy, Default)]
struct Indexes([u64; 4]);

impl Indexes {
    #[inline]
    fn has(&self, index: u8) -> bool {
        self.0[usize::from(index >> 6)] >> (index & 63) & 1 == 1
    }

    fn add(&mut self, index: u8) {
        self.0[usize::from(index >> 6)] |= 1 << (index & 63);
    }

    /// All of them, in ascending order.
    fn iter(self) -> impl Iterator<Item = u8> {
        (0_u8..).zip(self.0).flat_map(|(word, mut bits)| {
            std::iter::from_fn(move || {
                let lowest = bits.checked_ilog2().map(|_| bits.trailing_zeros())?;
                bits &= bits - 1;
                Some(word << 6 | u8::try_from(lowest).unwrap_or_default())
            })
        })
    }

    /// How many of them come before `index`.
    fn before(&self, index: u8) -> usize {
        let word = usize::from(index >> 6);
        let below = self.0[word] & ((1 << (index & 63)) - 1);
        let bits = self.0[..word].iter().map(|bits| bits.count_ones());
        (bits.sum::<u32>() + below.count_ones()) as usize
    }
}

/// What is known of one table.
#[derive(Debug, Default)]
struct Table {
    known: Indexes,
    /// Of the known indexes' keys, in ascending order of indexes.
    fingerprints: Vec<u32>,
}

#[derive(Debug, Default)]
struct Part {
    tables: HashMap<Pubkey, Table, RandomState>,
    bytes: usize,
}

/// The tables that an archive's scans learned.
#[derive(Debug)]
pub(crate) struct LearnedTables(Vec<RwLock<Part>>);

impl Default for LearnedTables {
    fn default() -> Self {
        Self((0..PARTS).map(|_| RwLock::default()).collect())
    }
}

impl LearnedTables {
    fn part(&self, table: &Pubkey) -> &RwLock<Part> {
        &self.0[usize::from(table[31]) % PARTS]
    }

    /// Whether every key that the transaction loads was learned.
    pub(crate) fn knows(&self, transaction: &WireTransaction<'_>) -> bool {
        transaction.lookups().all(|lookup| {
            let part = self.part(lookup.table).read();
            let part = part.unwrap_or_else(PoisonError::into_inner);
            part.tables.get(lookup.table).is_some_and(|table| {
                let mut indexes = lookup.writable.iter().chain(lookup.readonly);
                indexes.all(|index| table.known.has(*index))
            })
        })
    }

    /// Learns the keys of some of a table's indexes.
    fn learn<'a>(&self, table: &Pubkey, keys: impl Iterator<Item = (u8, &'a Pubkey)>) {
        let mut part = self
            .part(table)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if part.bytes > MAXIMUM_BYTES / PARTS {
            *part = Part::default();
        }
        let Part { tables, bytes } = &mut *part;
        let table = tables.entry(*table).or_insert_with(|| {
            *bytes += TABLE_BYTES;
            Table::default()
        });
        for (index, key) in keys {
            if !table.known.has(index) {
                let place = table.known.before(index);
                table.fingerprints.insert(place, fingerprint(key));
                table.known.add(index);
                *bytes += size_of::<u32>();
            }
        }
    }

    /// The known indexes of a table whose keys are none of the filter's programs.
    fn dismissed(&self, table: &Pubkey, filter: &ProgramFilter) -> Indexes {
        let mut dismissed = Indexes::default();
        let part = self.part(table).read();
        let part = part.unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = part.tables.get(table) {
            for (index, fingerprint) in table.known.iter().zip(&table.fingerprints) {
                if !filter.may_be(*fingerprint) {
                    dismissed.add(index);
                }
            }
        }
        dismissed
    }
}

/// Indexes of a table that are none of a scanner's programs. A cache line: to look one up is all that most lookups
/// cost, in a set that no near cache holds beside the archive's bytes.
#[derive(Debug)]
#[repr(align(64))]
struct Dismissed {
    table: Pubkey,
    indexes: Indexes,
}

impl Borrow<Pubkey> for Dismissed {
    fn borrow(&self) -> &Pubkey {
        &self.table
    }
}

impl Hash for Dismissed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.table.hash(state);
    }
}

impl PartialEq for Dismissed {
    fn eq(&self, other: &Self) -> bool {
        self.table == other.table
    }
}

impl Eq for Dismissed {}

/// What one scanner knows not to be any of its programs.
#[derive(Debug, Default)]
pub(crate) struct Dismissals(HashSet<Dismissed, RandomState>);

impl Dismissals {
    /// Whether no key that the transaction loads is one of the filter's programs, for all that is known.
    pub(crate) fn dismiss(
        &mut self,
        transaction: &WireTransaction<'_>,
        filter: &ProgramFilter,
        learned: &LearnedTables,
    ) -> bool {
        transaction.lookups().all(|lookup| {
            let mut indexes = lookup.writable.iter().chain(lookup.readonly);
            if let Some(known) = self.0.get(lookup.table)
                && indexes.clone().all(|index| known.indexes.has(*index))
            {
                return true;
            }
            let indexes_known = learned.dismissed(lookup.table, filter);
            let all = indexes.all(|index| indexes_known.has(*index));
            if all {
                if self.0.len() >= MAXIMUM_DISMISSED {
                    self.0.clear();
                }
                self.0.replace(Dismissed {
                    table: *lookup.table,
                    indexes: indexes_known,
                });
            }
            all
        })
    }
}

/// Learns from a transaction whose loaded keys are `keys`: all tables' writable ones, then all tables' readonly
/// ones, as many as the transaction asks for.
pub(crate) fn learn(learned: &LearnedTables, transaction: &WireTransaction<'_>, keys: &[Pubkey]) {
    let (mut writable, mut readonly) = keys.split_at(transaction.loaded_writable.min(keys.len()));
    for lookup in transaction.lookups() {
        for (indexes, keys) in [
            (lookup.writable, &mut writable),
            (lookup.readonly, &mut readonly),
        ] {
            let (now, rest) = keys.split_at(indexes.len().min(keys.len()));
            learned.learn(lookup.table, indexes.iter().copied().zip(now));
            *keys = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Pubkey {
        let mut key = [7; 32];
        key[12..16].copy_from_slice(&number.to_le_bytes());
        key
    }

    #[test]
    fn what_is_learned_in_any_order_dismisses_all_but_the_programs() {
        let learned = LearnedTables::default();
        let table = [9; 32];
        for index in [200_u8, 3, 64, 63, 255, 0, 3] {
            let key = key(u32::from(index));
            learned.learn(&table, std::iter::once((index, &key)));
        }
        let filter = ProgramFilter::new(&[key(63), key(1)]);
        let dismissed = learned.dismissed(&table, &filter);
        let found: Vec<u8> = (0..=255).filter(|index| dismissed.has(*index)).collect();
        assert_eq!(found, [0, 3, 64, 200, 255]);
        assert!((0..=255).all(|index| !learned.dismissed(&[8; 32], &filter).has(index)));
    }

    #[test]
    fn memory_is_bounded_and_what_was_forgotten_is_not_dismissed() {
        let learned = LearnedTables::default();
        let all: Vec<(u8, Pubkey)> = (0..=255).map(|index| (index, key(index.into()))).collect();
        let mut most = 0;
        for number in 0..2_000_u32 {
            // One part.
            let mut table = [0; 32];
            table[..4].copy_from_slice(&number.to_le_bytes());
            learned.learn(&table, all.iter().map(|(index, key)| (*index, key)));
            most = most.max(
                learned.0[0]
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .bytes,
            );
        }
        assert!(
            most <= MAXIMUM_BYTES / PARTS + TABLE_BYTES + 4 * 256,
            "{most}"
        );
        let filter = ProgramFilter::new(&[]);
        assert!(!learned.dismissed(&[0; 32], &filter).has(0));
    }
}
