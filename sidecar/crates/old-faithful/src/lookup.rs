//! Lookup tables learned while reading. A table only ever grows, and a closed one cannot be made again at its
//! address, so that (table, index) → key never changes: once seen in one transaction's metadata, it need not be
//! decompressed from another's. Kept is only whether an entry is known and which program it is, not its key.

use std::collections::HashMap;

use crate::filter::{Mentions, ProgramFilter};
use crate::model::Pubkey;
use crate::wire::WireTransaction;

/// Tables kept at most: beyond it, all are forgotten and learned anew. About 100 bytes each.
const MAXIMUM_TABLES: usize = 200_000;

/// What is known of one table.
#[derive(Debug, Default)]
struct Table {
    /// A bit for each index.
    known: [u64; 4],
    /// Indexes that are programs looked for, with the program's key.
    programs: Vec<(u8, Pubkey)>,
}

impl Table {
    fn knows(&self, index: u8) -> bool {
        self.known[usize::from(index >> 6)] >> (index & 63) & 1 == 1
    }

    fn learn(&mut self, index: u8, key: &Pubkey, filter: &ProgramFilter) {
        if self.knows(index) {
            return;
        }
        self.known[usize::from(index >> 6)] |= 1 << (index & 63);
        if filter.place(key).is_some() {
            self.programs.push((index, *key));
        }
    }
}

/// The tables learned so far.
#[derive(Debug, Default)]
pub(crate) struct LearnedTables {
    tables: HashMap<Pubkey, Table>,
}

impl LearnedTables {
    /// Whether every key that the transaction loads is known. If so, the programs among them are added to
    /// `mentions`; if not, `mentions` is left as it was.
    pub(crate) fn resolve(
        &self,
        transaction: &WireTransaction<'_>,
        filter: &ProgramFilter,
        mentions: &mut Mentions,
    ) -> bool {
        let all_known = transaction.lookups().all(|lookup| {
            let mut indexes = lookup.writable.iter().chain(lookup.readonly);
            match self.tables.get(lookup.table) {
                Some(table) => indexes.all(|index| table.knows(*index)),
                None => indexes.next().is_none(),
            }
        });
        if !all_known {
            return false;
        }
        for lookup in transaction.lookups() {
            let Some(table) = self.tables.get(lookup.table) else {
                continue;
            };
            for (index, key) in &table.programs {
                if lookup.writable.contains(index) || lookup.readonly.contains(index) {
                    mentions.look(filter, key, true);
                }
            }
        }
        true
    }

    /// Learns from a transaction whose loaded keys are `keys`: all tables' writable ones, then all tables'
    /// readonly ones. Their number must be the one that the transaction asks for.
    pub(crate) fn learn(
        &mut self,
        transaction: &WireTransaction<'_>,
        keys: &[Pubkey],
        filter: &ProgramFilter,
    ) {
        if self.tables.len() > MAXIMUM_TABLES {
            self.tables.clear();
        }
        let (mut writable, mut readonly) =
            keys.split_at(transaction.loaded_writable.min(keys.len()));
        for lookup in transaction.lookups() {
            let table = self.tables.entry(*lookup.table).or_default();
            for (indexes, keys) in [
                (lookup.writable, &mut writable),
                (lookup.readonly, &mut readonly),
            ] {
                for index in indexes {
                    let Some((key, rest)) = keys.split_first() else {
                        return;
                    };
                    table.learn(*index, key, filter);
                    *keys = rest;
                }
            }
        }
    }
}
