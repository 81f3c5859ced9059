//! Lookup tables learned while reading. A table only ever grows, and a closed one cannot be made again at its
//! address, so that (table, index) → key never changes: once seen in one transaction's metadata, it need not be
//! decompressed from another's.
//!
//! [`LearnedTables`] belongs to an archive and serves all its scans, whatever they look for; [`Dismissals`] is what
//! one reader of transactions made of it for its programs, without locks. Both only ever dismiss: a transaction that is not
//! dismissed has its metadata decompressed, and the keys themselves decide.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use ahash::RandomState;
use sha2::{Digest, Sha256};

use crate::filter::{ProgramFilter, fingerprint};
use crate::lookup_file::{Contents, Headers};
use crate::metadata::LoadedKeys;
use crate::model::Pubkey;
use crate::wire::WireTransaction;

/// Memory for what an archive's scans learned together, at most, in bytes. When a part is full it is learned anew.
const MAXIMUM_BYTES: usize = 32 << 20;
/// Parts with a lock each.
const PARTS: usize = 64;
/// Roughly the memory of a table without its fingerprints, in bytes.
const TABLE_BYTES: usize = 160;
/// Tables of one reader of transactions, at most, of about 100 bytes each. Beyond it, all are taken from the archive's anew.
const MAXIMUM_DISMISSED: usize = 20_000;

/// Epochs whose CAR headers are remembered, at most: the newest.
const MAXIMUM_HEADERS: usize = 1024;

/// A bit for each index of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Indexes([u64; 4]);

impl Indexes {
    #[inline]
    fn has(&self, index: u8) -> bool {
        self.0[usize::from(index >> 6)] >> (index & 63) & 1 == 1
    }

    fn add(&mut self, index: u8) {
        self.0[usize::from(index >> 6)] |= 1 << (index & 63);
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (eight, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            eight.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, eight) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*eight);
        }
        Self(words)
    }

    /// All of them, in ascending order.
    pub(crate) fn iter(self) -> impl Iterator<Item = u8> {
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
pub(crate) struct LearnedTables {
    parts: Vec<RwLock<Part>>,
    /// How many (table, index) pairs were learned so far, those forgotten since included.
    changes: AtomicU64,
    /// The SHA-256 of the CAR header of each epoch that was opened: whose tables they are.
    headers: Mutex<BTreeMap<u64, [u8; 32]>>,
}

impl Default for LearnedTables {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| RwLock::default()).collect(),
            changes: AtomicU64::new(0),
            headers: Mutex::default(),
        }
    }
}

impl LearnedTables {
    fn part(&self, table: &Pubkey) -> &RwLock<Part> {
        &self.parts[usize::from(table[31]) % PARTS]
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Notes an epoch that is read from now on. Where it has another header than before, the archive was replaced by another one, and what
    /// was learned of that is forgotten.
    pub(crate) fn opened(&self, epoch: u64, header: &[u8]) {
        let hash = Sha256::digest(header).into();
        let mut headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        if headers
            .insert(epoch, hash)
            .is_some_and(|known| known != hash)
        {
            headers.clear();
            headers.insert(epoch, hash);
            for part in &self.parts {
                *part.write().unwrap_or_else(PoisonError::into_inner) = Part::default();
            }
        }
        if headers.len() > MAXIMUM_HEADERS {
            headers.pop_first();
        }
    }

    pub(crate) fn headers(&self) -> Headers {
        let headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        headers
            .iter()
            .map(|(epoch, hash)| (*epoch, *hash))
            .collect()
    }

    /// Every table, by address.
    pub(crate) fn tables(&self) -> Vec<(Pubkey, Indexes, Vec<u32>)> {
        let mut all = Vec::new();
        for part in &self.parts {
            let part = part.read().unwrap_or_else(PoisonError::into_inner);
            let tables = part.tables.iter();
            all.extend(
                tables.map(|(address, table)| (*address, table.known, table.fingerprints.clone())),
            );
        }
        all.sort_unstable_by_key(|(address, ..)| *address);
        all
    }

    /// Takes what another process learned of the same archive, as far as there is room. What is known already stays.
    pub(crate) fn add(&self, contents: Contents) {
        for (address, known, fingerprints) in contents.tables {
            let part = self.part(&address).write();
            let mut part = part.unwrap_or_else(PoisonError::into_inner);
            if part.bytes > MAXIMUM_BYTES / PARTS || part.tables.contains_key(&address) {
                continue;
            }
            part.bytes += TABLE_BYTES + fingerprints.len() * size_of::<u32>();
            let pairs = fingerprints.len() as u64;
            let table = Table {
                known,
                fingerprints,
            };
            part.tables.insert(address, table);
            self.changes.fetch_add(pairs, Ordering::Relaxed);
        }
        let mut headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        for (epoch, hash) in contents.headers {
            headers.entry(epoch).or_insert(hash);
        }
        while headers.len() > MAXIMUM_HEADERS {
            headers.pop_first();
        }
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
                self.changes.fetch_add(1, Ordering::Relaxed);
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

/// Indexes of a table that are none of the programs looked for. A cache line: to look one up is all that most lookups
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

/// What one reader of transactions knows not to be any of the programs looked for.
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

/// Learns from a transaction whose loaded keys are `loaded`, as many as it asks for.
pub(crate) fn learn(
    learned: &LearnedTables,
    transaction: &WireTransaction<'_>,
    loaded: &LoadedKeys,
) {
    let (mut writable, mut readonly) = (&loaded.writable[..], &loaded.readonly[..]);
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
                learned.parts[0]
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
