//! What happens on the simulated chain: the transactions of each block, drawn from the seed and the slot alone.
//!
//! Every trap that a reader can fall into is drawn here, and named.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::events::{PROGRAMS, Payload, key_of, program_id};
use crate::transaction::{Call, Lookup, Step, Transaction};
use crate::{Plan, Pubkey, base58};

/// How often each trap occurred, by its name.
pub(crate) type Traps = BTreeMap<&'static str, u64>;

/// `Vote111111111111111111111111111111111111111`.
pub(crate) const VOTE: Pubkey = [
    7, 97, 72, 29, 53, 116, 116, 187, 124, 77, 118, 36, 235, 211, 189, 179, 216, 53, 94, 115, 209,
    16, 67, 252, 13, 163, 83, 128, 0, 0, 0, 0,
];
const SYSTEM: Pubkey = [0; 32];
const TABLES: usize = 4;
/// Where the demo's programs are among a table's entries.
const PROGRAM_ENTRIES: [(usize, u8); 2] = [(0, 7), (1, 201)];

/// A block before it is written.
pub(crate) struct BlockPlan {
    pub(crate) transactions: Vec<Transaction>,
    /// Transactions in each entry; empty entries are ticks.
    pub(crate) entries: Vec<usize>,
    pub(crate) block_time: u64,
    pub(crate) rewards: Option<Vec<u8>>,
    pub(crate) random: ChaCha8Rng,
}

/// Whether a slot has a block.
pub(crate) fn has_block(plan: &Plan, slot: u64) -> bool {
    let skipped = generator(plan.seed, slot, 1).random_range(0..100) < plan.skipped_percent;
    let empty = plan
        .empty_slots
        .is_some_and(|(start, end)| (start..end).contains(&slot));
    !empty && !skipped
}

/// A generator of its own for each slot and purpose.
pub(crate) fn generator(seed: u64, slot: u64, purpose: u64) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&slot.to_le_bytes());
    bytes[16..24].copy_from_slice(&purpose.to_le_bytes());
    ChaCha8Rng::from_seed(bytes)
}

/// Draws the block of `slot`.
pub(crate) fn block(plan: &Plan, slot: u64, traps: &mut Traps) -> BlockPlan {
    let mut random = generator(plan.seed, slot, 0);
    let mut transactions = Vec::new();
    for _ in 0..random.random_range(2..8) {
        transactions.push(vote(&mut random));
    }
    for _ in 0..random.random_range(0..3) {
        transactions.push(unrelated(&mut random));
    }
    for _ in 0..random.random_range(0..4) {
        transactions.push(demo(plan, &mut random, traps));
    }
    let mut left = transactions.len();
    // The order is shuffled, so that the demo's transactions stand anywhere among the others.
    for index in (1..left).rev() {
        transactions.swap(index, random.random_range(0..=index));
    }
    let mut entries = Vec::new();
    while left > 0 {
        let size = random.random_range(0..=left.min(5));
        entries.push(size);
        left -= size;
    }
    entries.push(0);
    let zero_time = random.random_range(0..200) == 0;
    count(traps, "zero_block_times", u64::from(zero_time));
    let rewards = slot.is_multiple_of(50).then(|| {
        (0..random.random_range(10..3_000))
            .map(|_| random.random())
            .collect()
    });
    let block_time = if zero_time {
        0
    } else {
        1_700_000_000 + slot * 2 / 5
    };
    BlockPlan {
        transactions,
        entries,
        block_time,
        rewards,
        random,
    }
}

fn count(traps: &mut Traps, name: &'static str, times: u64) {
    *traps.entry(name).or_default() += times;
}

fn transaction(random: &mut ChaCha8Rng, calls: Vec<Call>) -> Transaction {
    let mut signature = [0; 64];
    random.fill(&mut signature);
    Transaction {
        signature,
        payer: random.random(),
        calls,
        lookups: None,
        log_lines_kept: None,
    }
}

fn vote(random: &mut ChaCha8Rng) -> Transaction {
    let mut call = Call::new(VOTE, Vec::new());
    call.accounts = vec![random.random()];
    call.data = (0..100).map(|_| random.random()).collect();
    transaction(random, vec![call])
}

/// A transaction that has nothing to do with the demo's programs, though some of them look as if they had.
fn unrelated(random: &mut ChaCha8Rng) -> Transaction {
    match random.random_range(0..3) {
        0 => {
            let mut call = Call::new(SYSTEM, Vec::new());
            call.accounts = vec![random.random(), random.random()];
            transaction(random, vec![call])
        }
        1 => {
            let steps = vec![Step::Emit(Payload::noise(random)), Step::Log("done".into())];
            transaction(random, vec![Call::new(key_of("program noise"), steps)])
        }
        _ => {
            let mut transaction = {
                let call = Call::new(
                    key_of("program noise"),
                    vec![Step::Emit(Payload::noise(random))],
                );
                transaction(random, vec![call])
            };
            transaction.lookups = Some(vec![lookup(random, None)]);
            transaction
        }
    }
}

/// A use of a lookup table, with the entry of one of the demo's programs if asked for.
fn lookup(random: &mut ChaCha8Rng, program: Option<usize>) -> Lookup {
    let table = program.map_or_else(
        || random.random_range(2..TABLES),
        |index| PROGRAM_ENTRIES[index].0,
    );
    let mut entry = |skip: u8| {
        let index: u8 = random.random_range(0..100);
        let index = if index == skip { index + 100 } else { index };
        (index, key_of(&format!("table {table} entry {index}")))
    };
    let special = program.map_or(255, |index| PROGRAM_ENTRIES[index].1);
    let first = entry(special);
    let mut writable = vec![first];
    let second = entry(special);
    if second.0 != first.0 {
        writable.push(second);
    }
    let readonly = program
        .map(|index| (PROGRAM_ENTRIES[index].1, program_id(PROGRAMS[index].0)))
        .into_iter()
        .collect();
    Lookup {
        table: key_of(&format!("table {table}")),
        writable,
        readonly,
    }
}

/// A transaction that involves the demo's programs.
fn demo(plan: &Plan, random: &mut ChaCha8Rng, traps: &mut Traps) -> Transaction {
    let index = random.random_range(0..PROGRAMS.len());
    let name = PROGRAMS[index].0;
    let program = program_id(name);
    let router = key_of("program router");
    let mut steps = vec![Step::Log("Instruction: Act".into())];
    for _ in 0..random.random_range(1..4) {
        steps.extend(said(plan, name, random, traps));
    }
    if random.random_range(0..4) == 0 {
        count(traps, "imitating_log_lines", 2);
        steps.insert(
            1,
            Step::Log(format!(
                "Program {} invoke [1]",
                base58(&key_of("program noise"))
            )),
        );
        steps.insert(2, Step::Log("Program data: AAAAAAAAAAA=".into()));
    }
    let own = Call::new(program, steps);
    let noise = Call::new(
        key_of("program noise"),
        vec![Step::Emit(Payload::noise(random))],
    );
    match random.random_range(0..12) {
        0..4 => transaction(random, vec![own]),
        4 => {
            count(traps, "mentioned_but_silent", 1);
            let mut call = Call::new(SYSTEM, Vec::new());
            call.accounts = vec![program];
            transaction(random, vec![call])
        }
        5..8 => {
            // The program is called by CPI only, and named by a lookup table only.
            let call = Call::new(
                router,
                vec![
                    Step::Call(noise),
                    Step::Call(own),
                    Step::Return(vec![1, 2, 3]),
                ],
            );
            let mut transaction = transaction(random, vec![call]);
            transaction.lookups = Some(vec![lookup(random, Some(index)), lookup(random, None)]);
            transaction
        }
        8 => {
            count(traps, "nested_three_deep", 1);
            let middle = Call::new(
                key_of("program middle"),
                vec![Step::Call(own), Step::Call(noise.clone())],
            );
            let call = Call::new(
                router,
                vec![
                    Step::Call(noise),
                    Step::Call(middle),
                    Step::Log("routed".into()),
                ],
            );
            transaction(random, vec![call])
        }
        9 => {
            let mut failing = own;
            failing
                .steps
                .retain(|step| !matches!(step, Step::Emit(p) | Step::EmitCpi(p) if !p.is_event()));
            failing.fails = true;
            let call = Call::new(router, vec![Step::Call(failing)]);
            transaction(random, vec![Call::new(SYSTEM, Vec::new()), call])
        }
        10 => {
            let lines = random.random_range(2..9);
            let mut transaction = transaction(random, vec![own, noise]);
            transaction.log_lines_kept = Some(lines);
            transaction
        }
        _ => {
            let other = PROGRAMS[1 - index].0;
            count(traps, "both_programs", 1);
            let second = Call::new(program_id(other), said(plan, other, random, traps));
            transaction(random, vec![own, second])
        }
    }
}

/// What a demo program says once: by log, by CPI, by both, twice, or spoiled.
fn said(plan: &Plan, name: &str, random: &mut ChaCha8Rng, traps: &mut Traps) -> Vec<Step> {
    if random.random_range(0..1_000) < plan.undecodable_per_mille {
        return vec![Step::Emit(Payload::undecodable(name, random))];
    }
    let payload = Payload::event(name, random);
    match random.random_range(0..20) {
        0..9 => vec![Step::Emit(payload)],
        9..16 => vec![Step::EmitCpi(payload)],
        16 | 17 => vec![Step::Emit(payload.clone()), Step::EmitCpi(payload)],
        18 => {
            count(traps, "same_event_twice", 1);
            vec![Step::Emit(payload.clone()), Step::Emit(payload)]
        }
        _ => {
            count(traps, "short_data", 1);
            vec![Step::Emit(Payload::foreign(random)), Step::EmitCpi(payload)]
        }
    }
}

/// Whether a transaction is a vote.
pub(crate) fn is_vote(transaction: &Transaction) -> bool {
    transaction.calls.iter().all(|call| call.program == VOTE)
}
