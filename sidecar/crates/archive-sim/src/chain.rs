//! What happens on the simulated chain: which slots have blocks, and what each block holds, drawn from the seed and the slot
//! alone.
//!
//! Transactions of the demo's programs, with their traps, are `demo.rs`.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::plan::MetadataFormat;
use crate::programs::{Payload, key_of};
use crate::transaction::{Call, Kept, Step, Transaction, Truncation};
use crate::{Plan, Pubkey, demo, instructions, layouts, tables};

/// How often each trap occurred, by its name.
pub(crate) type Traps = BTreeMap<&'static str, u64>;

/// `Vote111111111111111111111111111111111111111`.
pub(crate) const VOTE: Pubkey = [
    7, 97, 72, 29, 53, 116, 116, 187, 124, 77, 118, 36, 235, 211, 189, 179, 216, 53, 94, 115, 209,
    16, 67, 252, 13, 163, 83, 128, 0, 0, 0, 0,
];
/// The system program.
pub(crate) const SYSTEM: Pubkey = [0; 32];

/// The height of the archive's first block.
pub(crate) const FIRST_HEIGHT: u64 = 1_000_000;

/// A block before it is written.
pub(crate) struct BlockPlan {
    pub(crate) transactions: Vec<Transaction>,
    /// Transactions in each entry; empty entries are ticks.
    pub(crate) entries: Vec<usize>,
    pub(crate) block_time: u64,
    pub(crate) rewards: Option<Vec<u8>>,
    pub(crate) random: ChaCha8Rng,
}

/// Whether a slot has a block. The archive's first and last slot do: they prove the ends of the range between them.
pub(crate) fn has_block(plan: &Plan, slot: u64) -> bool {
    if slot == plan.from_slot || slot + 1 == plan.to_slot {
        return true;
    }
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
    // Now and then a block holds nothing but ticks.
    if random.random_range(0..200) > 0 {
        for _ in 0..random.random_range(plan.votes.0..plan.votes.1) {
            transactions.push(vote(&mut random));
        }
        for _ in 0..random.random_range(plan.unrelated.0..plan.unrelated.1) {
            transactions.push(unrelated(&mut random));
        }
        for _ in 0..random.random_range(plan.demo.0..plan.demo.1) {
            let mut drawn = demo::draw(plan, &mut random, traps);
            layouts::apply(plan, slot, &mut drawn);
            instructions::apply(&mut drawn);
            transactions.push(drawn);
        }
    }
    count(
        traps,
        "blocks_without_transactions",
        u64::from(transactions.is_empty()),
    );
    if plan.missing_metadata_percent > 0 {
        for transaction in &mut transactions {
            if random.random_range(0..100) < plan.missing_metadata_percent {
                transaction.kept = Kept::Nothing;
            }
        }
    }
    if plan.metadata != MetadataFormat::Protobuf {
        for transaction in &mut transactions {
            as_in_early_epochs(plan.metadata, transaction, &mut random);
        }
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

/// Lookup tables did not exist yet, and of some transactions less was recorded.
fn as_in_early_epochs(
    format: MetadataFormat,
    transaction: &mut Transaction,
    random: &mut ChaCha8Rng,
) {
    transaction.lookups = None;
    if format == MetadataFormat::Absent {
        transaction.kept = Kept::Nothing;
    } else if transaction.kept == Kept::Everything && random.random_range(0..12) == 0 {
        transaction.kept = Kept::Balances;
    }
}

/// What the chain adds to a transaction when it lands. It is drawn from slot and place alone, so that one transaction can be
/// shown without writing its block.
pub(crate) struct Landing {
    pub(crate) blockhash: [u8; 32],
    /// Of every key, in lamports.
    pub(crate) balances: Vec<u64>,
}

/// Draws what is added to the transaction at `index` of the block of `slot`, which has so many `keys`.
pub(crate) fn landing(plan: &Plan, slot: u64, index: u32, keys: usize) -> Landing {
    let mut random = generator(plan.seed, slot, 2 + u64::from(index));
    Landing {
        blockhash: random.random(),
        balances: (0..keys)
            .map(|_| random.random_range(0..10_000_000_000))
            .collect(),
    }
}

/// Counts a trap.
pub(crate) fn count(traps: &mut Traps, name: &'static str, times: u64) {
    *traps.entry(name).or_default() += times;
}

/// A legacy transaction of these calls.
pub(crate) fn transaction(random: &mut ChaCha8Rng, calls: Vec<Call>) -> Transaction {
    let mut signature = [0; 64];
    random.fill(&mut signature);
    Transaction {
        signature,
        payer: random.random(),
        cosigners: Vec::new(),
        calls,
        lookups: None,
        truncation: Truncation::Never,
        kept: Kept::Everything,
    }
}

/// A vote.
pub(crate) fn vote(random: &mut ChaCha8Rng) -> Transaction {
    let mut call = Call::new(VOTE, Vec::new());
    call.accounts = vec![random.random()];
    call.data = (0..100).map(|_| random.random()).collect();
    transaction(random, vec![call])
}

/// A transaction that has nothing to do with the demo's programs, though some of them look as if they had.
pub(crate) fn unrelated(random: &mut ChaCha8Rng) -> Transaction {
    let lookups = match random.random_range(0..4) {
        0 => None,
        1 => Some(Vec::new()),
        _ => Some(tables::without_programs(random)),
    };
    let call = if random.random_range(0..3) == 0 {
        let mut call = Call::new(SYSTEM, Vec::new());
        call.accounts = vec![random.random(), random.random()];
        call
    } else {
        let steps = vec![
            Step::Emit(Payload::noise(random)),
            Step::EmitCpi(Payload::noise(random)),
            Step::Log("done".into()),
        ];
        Call::new(key_of("program noise"), steps)
    };
    let mut drawn = transaction(random, vec![call]);
    drawn.lookups = lookups;
    drawn
}

/// Whether a transaction is a vote.
pub(crate) fn is_vote(transaction: &Transaction) -> bool {
    transaction.calls.iter().all(|call| call.program == VOTE)
}
