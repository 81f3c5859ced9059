//! Address lookup tables: their constant contents, and how transactions use them.
//!
//! An entry's key follows from the table and the index alone, in every archive, so a reader that learns entries from one
//! transaction may use them for the next.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::Pubkey;
use crate::programs::{PROGRAMS, key_of, program_id};

/// Tables of the demo's archive.
const TABLES: u32 = 8;

/// Where the demo's programs are: program, table, index. Each is in two tables, and table 0 holds both.
const PROGRAM_ENTRIES: [(usize, u32, u8); 4] = [(0, 0, 7), (0, 3, 40), (1, 1, 201), (1, 0, 9)];

/// A lookup table's use in a message: entry indexes and the keys they load.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    pub(crate) table: Pubkey,
    pub(crate) writable: Vec<(u8, Pubkey)>,
    pub(crate) readonly: Vec<(u8, Pubkey)>,
}

/// The key at `index` of `table`.
fn entry(table: u32, index: u8) -> (u8, Pubkey) {
    let program = PROGRAM_ENTRIES
        .iter()
        .find(|place| (place.1, place.2) == (table, index));
    let key = program.map_or_else(
        || key_of(&format!("table {table} entry {index}")),
        |place| program_id(PROGRAMS[place.0].0),
    );
    (index, key)
}

fn holds_program(table: u32, index: u8) -> bool {
    PROGRAM_ENTRIES
        .iter()
        .any(|place| (place.1, place.2) == (table, index))
}

/// Uses of one to three tables that load no demo program, though the tables may hold them at other indexes.
pub(crate) fn without_programs(random: &mut ChaCha8Rng) -> Vec<Lookup> {
    uses(random)
}

/// Uses of tables that load the demo program `program`, at any place among the loaded keys.
pub(crate) fn with_program(program: usize, random: &mut ChaCha8Rng) -> Vec<Lookup> {
    let places: Vec<_> = PROGRAM_ENTRIES
        .iter()
        .filter(|place| place.0 == program)
        .collect();
    let place = places[random.random_range(0..places.len())];
    let mut lookups = uses(random);
    let table = key_of(&format!("table {}", place.1));
    let own = entry(place.1, place.2);
    if let Some(used) = lookups.iter_mut().find(|lookup| lookup.table == table) {
        let at = random.random_range(0..=used.readonly.len());
        used.readonly.insert(at, own);
    } else {
        let at = random.random_range(0..=lookups.len());
        let lookup = Lookup {
            table,
            writable: entries(place.1, 0, random),
            readonly: vec![own],
        };
        lookups.insert(at, lookup);
    }
    lookups
}

fn uses(random: &mut ChaCha8Rng) -> Vec<Lookup> {
    let mut used = Vec::new();
    for _ in 0..random.random_range(1..4) {
        let table = random.random_range(0..TABLES);
        if !used.contains(&table) {
            used.push(table);
        }
    }
    used.into_iter()
        .map(|table| Lookup {
            table: key_of(&format!("table {table}")),
            writable: entries(table, 0, random),
            readonly: entries(table, 1, random),
        })
        // The runtime refuses a lookup that loads nothing.
        .filter(|lookup| !lookup.writable.is_empty() || !lookup.readonly.is_empty())
        .collect()
}

/// None to three entries; `parity` keeps writable and readonly ones apart, so that no key is loaded twice.
fn entries(table: u32, parity: u8, random: &mut ChaCha8Rng) -> Vec<(u8, Pubkey)> {
    let mut indexes: Vec<u8> = Vec::new();
    for _ in 0..random.random_range(0..4) {
        let index = random.random_range(0..128) * 2 + parity;
        if !indexes.contains(&index) && !holds_program(table, index) {
            indexes.push(index);
        }
    }
    indexes
        .into_iter()
        .map(|index| entry(table, index))
        .collect()
}
