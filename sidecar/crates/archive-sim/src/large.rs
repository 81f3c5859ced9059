//! Writes archives of gigabytes, quickly: for measuring, not for finding mistakes.
//!
//! Most transactions are copies of templates with a signature of their own; those of the programs to be backfilled are all
//! different. Blocks follow from the seed and the slot alone, so that several threads write them side by side. Tables
//! of lookups are thousands, and what an entry of a table holds is the same wherever it is used, as on the chain.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::car::{Cid, NO_REWARDS, cid_of, frame, uvarint};
use crate::cbor::Node;
use crate::chain::{VOTE, generator};
use crate::epoch::Epoch;
use crate::plan::Indexes;
use crate::programs::{PROGRAMS, Payload, key_of, program_id};
use crate::tables::Lookup;
use crate::transaction::{Call, Kept, Step, Transaction, Truncation};
use crate::wire::Keys;
use crate::writer::write_program;
use crate::{Pubkey, SLOTS_PER_EPOCH, SimError, logs, metadata, wire};

/// Slots of the one chunk that holds all blocks.
pub const LARGE_CHUNK_SLOTS: u64 = 100_000;

/// The program of `program_percent`, and the one of one transaction in 10,000, which has the IDL of `vault`.
const FREQUENT: &str = "orderbook";
const RARE: &str = "rare";
const RARE_IN: u32 = 10_000;

const TRANSACTIONS_OF_A_BLOCK: u32 = 1_180;
const TICKS_OF_A_BLOCK: usize = 64;
const SKIPPED_PERCENT: u32 = 5;

const VOTES_PERCENT: u32 = 65;
const LOOKUPS_PERCENT: u32 = 20;
const VOTE_TEMPLATES: usize = 2_048;
const PLAIN_TEMPLATES: usize = 2_048;
/// So many that a reader which learns tables from what it has seen keeps meeting new entries.
const LOOKUP_TEMPLATES: usize = 12_288;

const TABLES: u32 = 4_096;
/// Entries that ordinary transactions use; below and above are those of the two programs.
const COMMON_ENTRIES: std::ops::Range<u8> = 16..240;
const FREQUENT_ENTRY: u8 = 7;
const RARE_ENTRY: u8 = 251;

const COMPRESSION_LEVEL: i32 = 3;

/// What to write.
#[derive(Debug, Clone, Serialize)]
pub struct LargePlan {
    /// Everything is drawn from it.
    pub seed: u64,
    /// First slot of the chunk: a multiple of [`LARGE_CHUNK_SLOTS`], and the chunk within one epoch.
    pub first_slot: u64,
    /// The CAR file has at least so many bytes, and at most a block more.
    pub bytes: u64,
    /// So many of 100 transactions are of `orderbook` and emit events.
    pub program_percent: u32,
}

impl Default for LargePlan {
    fn default() -> Self {
        Self {
            seed: 1,
            first_slot: 1_300_000,
            bytes: 1_000_000_000,
            program_percent: 2,
        }
    }
}

/// What a correct backfill of one program finds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LargeProgram {
    /// Transactions that name the program.
    pub transactions: u64,
    /// Of these, those that name it through a lookup table only.
    pub by_lookup_only: u64,
    /// Of these, those that failed.
    pub failed: u64,
    /// What it said in all of them.
    pub records: u64,
    /// What it said in those that did not fail.
    pub events: u64,
}

impl LargeProgram {
    fn add(&mut self, other: Self) {
        self.transactions += other.transactions;
        self.by_lookup_only += other.by_lookup_only;
        self.failed += other.failed;
        self.records += other.records;
        self.events += other.events;
    }
}

/// What was written. Counts are of the chunk, without the block after it.
#[derive(Debug, Serialize)]
pub struct LargeSummary {
    /// The plan.
    pub plan: LargePlan,
    /// Bytes of the CAR file.
    pub car_bytes: u64,
    /// Blocks in the chunk.
    pub blocks: u64,
    /// The last of them.
    pub last_block: u64,
    /// Transactions in the chunk.
    pub transactions: u64,
    /// By program folder.
    pub programs: BTreeMap<&'static str, LargeProgram>,
}

/// A transaction's section but for its signature and its place.
struct Template {
    /// The node up to and including its two data frames.
    node: Vec<u8>,
    /// Where the signature is in it.
    signature_at: usize,
}

struct Templates {
    votes: Vec<Template>,
    plain: Vec<Template>,
    lookups: Vec<Template>,
}

/// A block's sections, and what the epoch has to know of it.
struct Block {
    slot: u64,
    sections: Vec<u8>,
    cid: Cid,
    transactions: u64,
    programs: [LargeProgram; 2],
}

/// Writes the archive of `plan` into `folder`, with `truth/large.json` and `programs/` beside it.
pub fn write_large(folder: &Path, plan: &LargePlan) -> Result<LargeSummary, SimError> {
    let end = plan.first_slot + LARGE_CHUNK_SLOTS;
    if plan.first_slot == 0
        || !plan.first_slot.is_multiple_of(LARGE_CHUNK_SLOTS)
        || plan.first_slot / SLOTS_PER_EPOCH != end / SLOTS_PER_EPOCH
        || plan.program_percent > 15
    {
        return Err(SimError::Plan(format!(
            "first_slot must be a multiple of {LARGE_CHUNK_SLOTS} whose chunk lies within one epoch, program_percent at most 15"
        )));
    }
    let number = plan.first_slot / SLOTS_PER_EPOCH;
    let mut epoch = Epoch::create(folder, number, Indexes::SlotRanges)?;
    let templates = Templates::draw(plan.seed)?;
    let mut summary = LargeSummary {
        plan: plan.clone(),
        car_bytes: 0,
        blocks: 0,
        last_block: plan.first_slot,
        transactions: 0,
        programs: BTreeMap::new(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| -> Result<(), SimError> {
        let receivers: Vec<_> = (0..threads)
            .map(|worker| {
                let (sender, receiver) = mpsc::sync_channel(2);
                let templates = &templates;
                scope.spawn(move || {
                    let mut parent = plan.first_slot - 1;
                    for (count, slot) in slots(plan).enumerate() {
                        if count % threads == worker
                            && sender
                                .send(block(
                                    plan,
                                    templates,
                                    slot,
                                    parent,
                                    TRANSACTIONS_OF_A_BLOCK,
                                ))
                                .is_err()
                        {
                            return; // enough was written
                        }
                        parent = slot;
                    }
                });
                receiver
            })
            .collect();
        for receiver in receivers.iter().cycle() {
            let Ok(block) = receiver.recv() else {
                return Err(SimError::Plan(format!(
                    "{} bytes do not fit into one chunk of {LARGE_CHUNK_SLOTS} slots",
                    plan.bytes
                )));
            };
            let block = block?;
            append(&mut epoch, &block)?;
            summary.blocks += 1;
            summary.last_block = block.slot;
            summary.transactions += block.transactions;
            for (name, program) in [FREQUENT, RARE].into_iter().zip(block.programs) {
                summary.programs.entry(name).or_default().add(program);
            }
            if epoch.car.offset >= plan.bytes {
                return Ok(());
            }
        }
        Ok(())
    })?;
    // The first block after the chunk proves its end.
    append(
        &mut epoch,
        &block(plan, &templates, end, summary.last_block, 20)?,
    )?;
    summary.car_bytes = epoch.finish()?;
    let vault = PROGRAMS[1].1;
    for (name, idl) in [(FREQUENT, PROGRAMS[0].1), (RARE, vault)] {
        let slots = (plan.first_slot, end - 1);
        write_program(
            &folder.join("programs"),
            name,
            &[(0, idl.to_owned())],
            slots,
            None,
        )?;
    }
    let truth = folder.join("truth");
    fs::create_dir_all(&truth)?;
    let path: PathBuf = truth.join("large.json");
    fs::write(path, serde_json::to_vec_pretty(&summary)?)?;
    Ok(summary)
}

/// The slots that have a block, if all of the chunk is used.
fn slots(plan: &LargePlan) -> impl Iterator<Item = u64> {
    let (first, seed) = (plan.first_slot, plan.seed);
    (first..first + LARGE_CHUNK_SLOTS).filter(move |slot| {
        *slot == first || generator(seed, *slot, 3).random_range(0..100) >= SKIPPED_PERCENT
    })
}

fn append(epoch: &mut Epoch, block: &Block) -> Result<(), SimError> {
    let offset = epoch.car.offset;
    epoch.car.write(&block.sections)?;
    epoch.end_block(block.slot, offset, block.cid);
    Ok(())
}

fn section(output: &mut Vec<u8>, node: &[u8]) -> Cid {
    let cid = cid_of(node);
    uvarint(output, (cid.len() + node.len()) as u64);
    output.extend_from_slice(&cid);
    output.extend_from_slice(node);
    cid
}

fn block(
    plan: &LargePlan,
    templates: &Templates,
    slot: u64,
    parent: u64,
    transactions: u32,
) -> Result<Block, SimError> {
    let mut random = generator(plan.seed, slot, 4);
    let mut zstd = zstd::bulk::Compressor::new(COMPRESSION_LEVEL)?;
    let count = random.random_range(transactions * 9 / 10..=transactions * 11 / 10);
    let mut block = Block {
        slot,
        sections: Vec::with_capacity(count as usize * 1_400),
        cid: [0; 36],
        transactions: u64::from(count),
        programs: Default::default(),
    };
    let mut entries = Vec::new();
    let mut links: Vec<Cid> = Vec::new();
    let mut node = Vec::with_capacity(4_096);
    let mut entry_ends = random.random_range(1..8);
    for index in 0..count {
        let drawn = random.random_range(0..100_u32);
        let own = if random.random_range(0..RARE_IN) == 0 {
            Some(1)
        } else {
            (drawn >= 100 - plan.program_percent).then_some(0)
        };
        node.clear();
        let own_template;
        let template = if let Some(which) = own {
            let (template, program) = own_transaction(which, &mut random, &mut zstd)?;
            block.programs[which].add(program);
            own_template = template;
            &own_template
        } else {
            let among = match drawn {
                0..VOTES_PERCENT => &templates.votes,
                _ if drawn < VOTES_PERCENT + LOOKUPS_PERCENT => &templates.lookups,
                _ => &templates.plain,
            };
            &among[random.random_range(0..among.len())]
        };
        node.extend_from_slice(&template.node);
        random.fill(&mut node[template.signature_at..template.signature_at + 64]);
        let mut place = Node::default();
        place.unsigned(slot);
        place.unsigned(u64::from(index));
        node.extend_from_slice(&place.encoded);
        links.push(section(&mut block.sections, &node));
        if links.len() == entry_ends || index + 1 == count {
            entries.push(entry(&mut block.sections, &mut random, &links));
            links.clear();
            entry_ends = random.random_range(1..8);
        }
    }
    for _ in 0..TICKS_OF_A_BLOCK {
        entries.push(entry(&mut block.sections, &mut random, &[]));
    }
    block.cid = section(
        &mut block.sections,
        &block_node(slot, parent, plan.first_slot, &entries).encoded,
    );
    Ok(block)
}

fn entry(sections: &mut Vec<u8>, random: &mut ChaCha8Rng, links: &[Cid]) -> Cid {
    let mut node = Node::array(4);
    node.unsigned(1);
    node.unsigned(random.random_range(1..10_000));
    node.bytes(&random.random::<[u8; 32]>());
    node.links(links);
    section(sections, &node.encoded)
}

fn block_node(slot: u64, parent: u64, first_slot: u64, entries: &[Cid]) -> Node {
    let mut node = Node::array(6);
    node.unsigned(2);
    node.unsigned(slot);
    node.begin_array(entries.len());
    for position in 0..entries.len() {
        node.begin_array(2);
        node.unsigned(position as u64);
        node.signed(-1);
    }
    node.links(entries);
    node.begin_array(3);
    node.unsigned(parent);
    node.unsigned(1_700_000_000 + slot * 2 / 5);
    node.unsigned(1_000_000 + slot - first_slot);
    node.link(&NO_REWARDS);
    node
}

impl Template {
    fn new(
        transaction: &Transaction,
        random: &mut ChaCha8Rng,
        zstd: &mut zstd::bulk::Compressor<'_>,
    ) -> Result<Self, SimError> {
        let keys = Keys::of(transaction);
        let outcome = logs::run(transaction, &keys);
        let wire = wire::encode(transaction, &keys, &random.random());
        let accounts = keys.statics.len() + keys.loaded_writable.len() + keys.loaded_readonly.len();
        let balances: Vec<u64> = (0..accounts)
            .map(|_| random.random_range(0..10_000_000_000))
            .collect();
        let meta = metadata::encode(&outcome, &keys, &balances);
        let mut node = Node::array(5);
        node.unsigned(0);
        frame(&mut node, None, &wire, &[]);
        // The frame ends with the wire's bytes and a null; these begin with how many signatures there are.
        let signature_at = node.encoded.len() - 1 - wire.len() + 1;
        frame(&mut node, None, &zstd.compress(&meta)?, &[]);
        Ok(Self {
            node: node.encoded,
            signature_at,
        })
    }
}

impl Templates {
    fn draw(seed: u64) -> Result<Self, SimError> {
        let mut random = generator(seed, 0, 5);
        let mut zstd = zstd::bulk::Compressor::new(COMPRESSION_LEVEL)?;
        let mut draw = |count: usize, make: fn(&mut ChaCha8Rng) -> Transaction| {
            (0..count)
                .map(|_| {
                    let transaction = make(&mut random);
                    Template::new(&transaction, &mut random, &mut zstd)
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            votes: draw(VOTE_TEMPLATES, vote)?,
            plain: draw(PLAIN_TEMPLATES, |random| busy(random, Vec::new()))?,
            lookups: draw(LOOKUP_TEMPLATES, |random| {
                let lookups = (0..random.random_range(1..4))
                    .map(|_| lookup(random, None))
                    .collect();
                busy(random, lookups)
            })?,
        })
    }
}

fn transaction(random: &mut ChaCha8Rng, calls: Vec<Call>, lookups: Vec<Lookup>) -> Transaction {
    Transaction {
        signature: [0; 64],
        payer: random.random(),
        cosigners: Vec::new(),
        calls,
        lookups: (!lookups.is_empty()).then_some(lookups),
        truncation: Truncation::Never,
        kept: Kept::Everything,
    }
}

fn accounts(random: &mut ChaCha8Rng, count: usize) -> Vec<Pubkey> {
    (0..count).map(|_| random.random()).collect()
}

fn vote(random: &mut ChaCha8Rng) -> Transaction {
    let mut call = Call::new(VOTE, Vec::new());
    call.accounts = accounts(random, 2);
    call.data = (0..148).map(|_| random.random()).collect();
    transaction(random, vec![call], Vec::new())
}

/// What surrounds an event in an ordinary transaction: programs that call programs, log, and move balances.
fn surroundings(random: &mut ChaCha8Rng) -> Vec<Step> {
    let mut steps = vec![Step::Log("Instruction: Route".into())];
    for _ in 0..random.random_range(1..4) {
        let mut inner = Call::new(
            key_of(&format!("program common {}", random.random_range(0..40))),
            vec![
                Step::Log("Instruction: Transfer".into()),
                Step::Log(format!("amount {}", random.random::<u64>())),
            ],
        );
        inner.data = (0..24).map(|_| random.random()).collect();
        steps.push(Step::Call(inner));
    }
    if random.random_range(0..8) > 0 {
        steps.push(Step::Emit(Payload::noise(random)));
    }
    steps
}

fn busy(random: &mut ChaCha8Rng, lookups: Vec<Lookup>) -> Transaction {
    let mut calls = Vec::new();
    for _ in 0..random.random_range(1..4) {
        let program = key_of(&format!("program common {}", random.random_range(0..40)));
        let mut call = Call::new(program, surroundings(random));
        let count = random.random_range(3..9);
        call.accounts = accounts(random, count);
        call.data = (0..32).map(|_| random.random()).collect();
        calls.push(call);
    }
    transaction(random, calls, lookups)
}

/// The key that `entry` of `table` holds.
fn table_entry(table: u32, entry: u8) -> Pubkey {
    match entry {
        FREQUENT_ENTRY => program_id(FREQUENT),
        RARE_ENTRY => program_id(RARE),
        _ => {
            // Thousands of tables of 256 entries: a few multiplications instead of a hash each.
            let mut random = ChaCha8Rng::seed_from_u64(u64::from(table) << 8 | u64::from(entry));
            random.random()
        }
    }
}

/// A use of a lookup table: a few are used much more than most. `program` is the entry of one of the two programs.
fn lookup(random: &mut ChaCha8Rng, program: Option<u8>) -> Lookup {
    let mut table = random.random_range(0..TABLES);
    for _ in 0..2 {
        table = table * random.random_range(0..TABLES) / TABLES;
    }
    let mut draw = |count: usize| {
        let mut entries: Vec<(u8, Pubkey)> = Vec::with_capacity(count);
        while entries.len() < count {
            let entry = random.random_range(COMMON_ENTRIES);
            if entries.iter().all(|other| other.0 != entry) {
                entries.push((entry, table_entry(table, entry)));
            }
        }
        entries
    };
    let writable = draw(4);
    let mut readonly: Vec<(u8, Pubkey)> = draw(2)
        .into_iter()
        .filter(|entry| writable.iter().all(|other| other.0 != entry.0))
        .collect();
    readonly.extend(program.map(|entry| (entry, table_entry(table, entry))));
    Lookup {
        table: key_of(&format!("large table {table}")),
        writable,
        readonly,
    }
}

/// A transaction of one of the two programs (0: the frequent one, 1: the rare one).
fn own_transaction(
    which: usize,
    random: &mut ChaCha8Rng,
    zstd: &mut zstd::bulk::Compressor<'_>,
) -> Result<(Template, LargeProgram), SimError> {
    let (name, table_entry) = [(FREQUENT, FREQUENT_ENTRY), (RARE, RARE_ENTRY)][which];
    let program = program_id(name);
    let count = random.random_range(1..4);
    // All by log or all by CPI: equal payloads of both would be folded.
    let by_cpi = random.random_range(0..3) == 0;
    let mut steps = vec![Step::Log("Instruction: Act".into())];
    for _ in 0..count {
        let payload = Payload::event(name, random);
        steps.push(if by_cpi {
            Step::EmitCpi(payload)
        } else {
            Step::Emit(payload)
        });
    }
    let fails = random.random_range(0..50) == 0;
    let mut own = Call::new(program, steps);
    own.accounts = accounts(random, 8);
    own.fails = fails;
    let by_lookup_only = random.random_range(0..3) == 0;
    let transaction = if by_lookup_only {
        own.accounts.truncate(4);
        let mut steps = surroundings(random);
        steps.push(Step::Call(own));
        let router = Call::new(key_of("program router"), steps);
        let lookups = vec![lookup(random, Some(table_entry)), lookup(random, None)];
        transaction(random, vec![router], lookups)
    } else {
        transaction(random, vec![own], Vec::new())
    };
    let template = Template::new(&transaction, random, zstd)?;
    let program = LargeProgram {
        transactions: 1,
        by_lookup_only: u64::from(by_lookup_only),
        failed: u64::from(fails),
        records: count,
        events: if fails { 0 } else { count },
    };
    Ok((template, program))
}
