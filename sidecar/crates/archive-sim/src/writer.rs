//! Writes the epochs of a plan: blocks as sections, the index, the epoch's closing nodes, and the demo's program folders.

use std::fs;
use std::path::{Path, PathBuf};

use rand::Rng;
use serde_json::json;

use crate::car::{CarWriter, Cid, NO_REWARDS, cid_text};
use crate::cbor::Node;
use crate::chain::{self, BlockPlan};
use crate::events::{PROGRAMS, program_id};
use crate::transaction::Transaction;
use crate::truth::{Placed, Summary, TruthWriter};
use crate::{Plan, SLOTS_PER_EPOCH, SimError, base58, metadata};

/// An epoch being written.
pub(crate) struct Epoch {
    number: u64,
    stem: PathBuf,
    pub(crate) car: CarWriter,
    ranges: Vec<u8>,
    pub(crate) blocks: Vec<Cid>,
    first_slot: u64,
    pub(crate) last_slot: u64,
}

impl Epoch {
    pub(crate) fn create(folder: &Path, number: u64, first_slot: u64) -> Result<Self, SimError> {
        let folder = folder.join(number.to_string());
        fs::create_dir_all(&folder)?;
        let stem = folder.join(format!("epoch-{number}"));
        let car = CarWriter::create(&stem.with_extension("car"))?;
        let ranges = vec![0; SLOTS_PER_EPOCH as usize * 12];
        Ok(Self {
            number,
            stem,
            car,
            ranges,
            blocks: Vec::new(),
            first_slot,
            last_slot: first_slot,
        })
    }

    /// Lists the block of `slot`, whose sections began at `offset` and end here.
    pub(crate) fn index(&mut self, slot: u64, offset: u64) {
        let length = (self.car.offset - offset) as u32;
        let at = (slot % SLOTS_PER_EPOCH) as usize * 12;
        self.ranges[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        self.ranges[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
    }

    /// Writes the closing nodes and the files beside the CAR file; returns that one's bytes.
    pub(crate) fn finish(mut self) -> Result<u64, SimError> {
        let mut subset = Node::array(4);
        subset.unsigned(3);
        subset.unsigned(self.first_slot);
        subset.unsigned(self.last_slot);
        subset.links(&self.blocks);
        let subset = self.car.section(&subset)?;
        let mut epoch = Node::array(3);
        epoch.unsigned(4);
        epoch.unsigned(self.number);
        epoch.links(&[subset]);
        let root = self.car.section(&epoch)?;
        let bytes = self.car.offset;
        self.car.finish(&root)?;
        fs::write(self.stem.with_extension("cid"), cid_text(&root))?;
        let name = format!("epoch-{}-slot-ranges.raw", self.number);
        fs::write(self.stem.with_file_name(name), &self.ranges)?;
        Ok(bytes)
    }
}

/// Writes the archive of `plan` into `folder`, with `truth/` and `programs/` beside it.
pub fn write(folder: &Path, plan: &Plan) -> Result<Summary, SimError> {
    if plan.from_slot == 0
        || plan.from_slot >= plan.to_slot
        || plan.chunk_slots == 0
        || plan.frame_bytes == 0
    {
        return Err(SimError::Plan(
            "from_slot must be above 0 and below to_slot, chunk_slots and frame_bytes above 0"
                .into(),
        ));
    }
    let truth_folder = folder.join("truth");
    fs::create_dir_all(&truth_folder)?;
    let mut truth = TruthWriter::create(&truth_folder, plan)?;
    let mut epoch: Option<Epoch> = None;
    let mut parent = plan.from_slot - 1;
    let mut height = 1_000_000;
    for slot in plan.from_slot..plan.to_slot {
        if !chain::has_block(plan, slot) {
            truth.count("skipped_slots", slot, 1);
            continue;
        }
        if epoch
            .as_ref()
            .is_none_or(|current| current.number != slot / SLOTS_PER_EPOCH)
        {
            if let Some(finished) = epoch.take() {
                finished.finish()?;
            }
            epoch = Some(Epoch::create(folder, slot / SLOTS_PER_EPOCH, slot)?);
        }
        if let Some(current) = epoch.as_mut() {
            write_block(current, plan, slot, parent, height, &mut truth)?;
            current.last_slot = slot;
        }
        parent = slot;
        height += 1;
    }
    if let Some(finished) = epoch {
        finished.finish()?;
    }
    for (name, idl) in PROGRAMS {
        let slots = (plan.first_slot, plan.last_slot);
        write_program(&folder.join("programs"), name, idl, slots, Some("demo"))?;
    }
    truth.finish(&truth_folder)
}

fn write_block(
    epoch: &mut Epoch,
    plan: &Plan,
    slot: u64,
    parent: u64,
    height: u64,
    truth: &mut TruthWriter,
) -> Result<(), SimError> {
    let offset = epoch.car.offset;
    let mut traps = chain::Traps::default();
    let mut block = chain::block(plan, slot, &mut traps);
    for (trap, times) in traps {
        truth.count(trap, slot, times);
    }
    truth.block(slot);
    let mut entries = Vec::with_capacity(block.entries.len());
    let mut index = 0;
    let sizes = std::mem::take(&mut block.entries);
    for size in sizes {
        let mut links = Vec::with_capacity(size);
        for _ in 0..size {
            links.push(write_transaction(
                epoch, plan, slot, index, &mut block, truth,
            )?);
            index += 1;
        }
        let mut entry = Node::array(4);
        entry.unsigned(1);
        entry.unsigned(block.random.random_range(1..10_000));
        entry.bytes(&block.random.random::<[u8; 32]>());
        entry.links(&links);
        entries.push(epoch.car.section(&entry)?);
    }
    let rewards = match block.rewards.take() {
        None => NO_REWARDS.to_vec(),
        Some(payload) => {
            let mut node = Node::array(3);
            node.unsigned(5);
            node.unsigned(slot);
            let chained = epoch
                .car
                .data_frame(&mut node, &payload, plan.frame_bytes)?;
            truth.count("chains", slot, u64::from(chained));
            epoch.car.section(&node)?.to_vec()
        }
    };
    let mut node = Node::array(6);
    node.unsigned(2);
    node.unsigned(slot);
    node.begin_array(entries.len());
    for position in 0..entries.len() {
        node.begin_array(2);
        node.unsigned(position as u64);
        // Shredding is not recorded for every entry; −1 says so.
        node.signed(if position % 3 == 2 {
            -1
        } else {
            i64::from(position as u32)
        });
    }
    node.links(&entries);
    node.begin_array(3);
    node.unsigned(parent);
    node.unsigned(block.block_time);
    if slot.is_multiple_of(97) {
        node.null();
    } else {
        node.unsigned(height);
    }
    node.link(&rewards);
    let cid = epoch.car.section(&node)?;
    epoch.blocks.push(cid);
    epoch.index(slot, offset);
    Ok(())
}

fn write_transaction(
    epoch: &mut Epoch,
    plan: &Plan,
    slot: u64,
    index: u32,
    block: &mut BlockPlan,
    truth: &mut TruthWriter,
) -> Result<Cid, SimError> {
    let transaction: &Transaction = &block.transactions[index as usize];
    let keys = transaction.keys();
    let outcome = transaction.run(&keys);
    let placed = Placed {
        slot,
        index,
        block_time: block.block_time,
        signature: &transaction.signature,
        keys: &keys,
        outcome: &outcome,
        vote: chain::is_vote(transaction),
    };
    truth.transaction(&placed)?;
    let wire = transaction.wire(&keys, &block.random.random());
    let balances: Vec<u64> = (0..keys.statics.len())
        .map(|_| block.random.random_range(0..10_000_000_000))
        .collect();
    let mut meta = metadata::encode(
        &outcome,
        &keys.loaded_writable,
        &keys.loaded_readonly,
        &balances,
    );
    if block.random.random_range(0..100) == 0 {
        truth.count("uncompressed_metadata", slot, 1);
    } else {
        meta = zstd::bulk::compress(&meta, 3)?;
    }
    let mut node = Node::array(5);
    node.unsigned(0);
    let chained_wire = epoch.car.data_frame(&mut node, &wire, plan.frame_bytes)?;
    // A few more chains than sizes alone would make.
    let frame_bytes = if block.random.random_range(0..50) == 0 {
        60
    } else {
        plan.frame_bytes
    };
    let chained_meta = epoch.car.data_frame(&mut node, &meta, frame_bytes)?;
    truth.count(
        "chains",
        slot,
        u64::from(chained_wire) + u64::from(chained_meta),
    );
    node.unsigned(slot);
    node.unsigned(u64::from(index));
    Ok(epoch.car.section(&node)?)
}

/// Writes a program's folder; `slots` are its first and last, inclusive.
pub(crate) fn write_program(
    folder: &Path,
    name: &str,
    idl: &str,
    (first, last): (u64, u64),
    scan_group: Option<&str>,
) -> Result<(), SimError> {
    let address = base58(&program_id(name));
    let program = folder.join(name);
    fs::create_dir_all(program.join("idl"))?;
    fs::write(
        program.join("idl").join(format!("{name}.json")),
        idl.replace("{ADDRESS}", &address),
    )?;
    let file = json!(format!("idl/{name}.json"));
    let group = scan_group.map_or_else(String::new, |group| format!("scan_group: {group}\n"));
    let yaml = format!(
        "# A program of the archive simulator (network sim): the demo backfills it.\nprogram_id: {address}\nnetwork: sim\n\
         owner: demo\nfirst_slot: {first}\nlast_slot: {last}  # inclusive\n{group}idls:\n  - {{from_slot: 0, file: {file}}}\n"
    );
    fs::write(program.join("program.yaml"), yaml)?;
    Ok(())
}
