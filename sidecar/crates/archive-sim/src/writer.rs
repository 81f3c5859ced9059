//! Writes the blocks of a plan, block by block, and the demo's program folders.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use rand::Rng;
use serde_json::json;

use crate::car::{Cid, FrameStyle, NO_REWARDS};
use crate::cbor::Node;
use crate::chain::{self, BlockPlan};
use crate::epoch::Epoch;
use crate::plan::MetadataFormat;
use crate::programs::{PROGRAMS, program_id};
use crate::transaction::Kept;
use crate::truth::{Placed, Summary, TruthWriter};
use crate::wire::Keys;
use crate::{Plan, SLOTS_PER_EPOCH, SimError, base58, bincode, layouts, logs, metadata, wire};

/// Frames of the chains that are longer than need be, in bytes.
const TINY_FRAME: usize = 60;

/// Writes the archive of `plan` into `folder`, with `truth/` and `programs/` beside it. `truth/summary.json` comes last: where
/// it is, everything is.
pub fn write(folder: &Path, plan: &Plan) -> Result<Summary, SimError> {
    plan.check()?;
    let truth_folder = folder.join("truth");
    fs::create_dir_all(&truth_folder)?;
    let mut truth = TruthWriter::create(&truth_folder, plan)?;
    for (name, idl) in PROGRAMS {
        let slots = (plan.first_slot, plan.last_slot);
        let programs = folder.join("programs");
        let mut versions = vec![(0, idl.to_owned())];
        if name == layouts::PROGRAM {
            for (place, since) in layouts::since(plan).into_iter().enumerate().skip(1) {
                versions.push((since, layouts::idl(idl, place + 1)?));
            }
        }
        write_program(&programs, name, &versions, slots, Some("demo"))?;
    }
    let mut parent = plan.from_slot - 1;
    let mut height = chain::FIRST_HEIGHT;
    for number in plan.from_slot / SLOTS_PER_EPOCH..=(plan.to_slot - 1) / SLOTS_PER_EPOCH {
        let mut epoch = Epoch::create(folder, number, plan.indexes)?;
        epoch.pieces = plan.pieces;
        let first = (number * SLOTS_PER_EPOCH).max(plan.from_slot);
        for slot in first..((number + 1) * SLOTS_PER_EPOCH).min(plan.to_slot) {
            if chain::has_block(plan, slot) {
                let place = BlockPlace {
                    slot,
                    parent,
                    height,
                };
                write_block(&mut epoch, plan, place, &mut truth)?;
                parent = slot;
                height += 1;
            } else {
                truth.count("skipped_slots", slot, 1);
            }
        }
        epoch.finish()?;
    }
    truth.finish(&truth_folder)
}

/// A block's place in the chain.
#[derive(Clone, Copy)]
struct BlockPlace {
    slot: u64,
    parent: u64,
    height: u64,
}

fn write_block(
    epoch: &mut Epoch,
    plan: &Plan,
    place: BlockPlace,
    truth: &mut TruthWriter,
) -> Result<(), SimError> {
    let slot = place.slot;
    let offset = epoch.car.offset;
    let mut traps = chain::Traps::default();
    let mut block = chain::block(plan, slot, &mut traps);
    for (trap, times) in traps {
        truth.count(trap, slot, times);
    }
    truth.block(slot, block.entries.len() as u64);
    let mut entries = Vec::with_capacity(block.entries.len());
    let mut index = 0;
    let sizes = std::mem::take(&mut block.entries);
    for size in sizes {
        let mut links = Vec::with_capacity(size);
        for _ in 0..size {
            let cid = write_transaction(epoch, plan, slot, index, &mut block, truth)?;
            links.push(cid);
            index += 1;
        }
        let mut entry = Node::array_in_style(4, unusual(plan, slot, &mut block, truth));
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
            let style = FrameStyle {
                bytes: plan.frame_bytes,
                old: false,
            };
            let chained = epoch.car.data_frame(&mut node, &payload, style)?;
            truth.count("blocks_with_rewards", slot, 1);
            truth.count("chains", slot, u64::from(chained));
            epoch.car.section(&node)?.to_vec()
        }
    };
    let roomy = unusual(plan, slot, &mut block, truth);
    let node = block_node(place, block.block_time, &entries, &rewards, roomy);
    let cid = epoch.car.section(&node)?;
    epoch.end_block(slot, offset, cid);
    Ok(())
}

fn block_node(
    place: BlockPlace,
    block_time: u64,
    entries: &[Cid],
    rewards: &[u8],
    roomy: bool,
) -> Node {
    let mut node = Node::array_in_style(6, roomy);
    node.unsigned(2);
    node.unsigned(place.slot);
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
    node.links(entries);
    node.begin_array(3);
    node.unsigned(place.parent);
    node.unsigned(block_time);
    if place.slot.is_multiple_of(97) {
        node.null();
    } else {
        node.unsigned(place.height);
    }
    node.link(rewards);
    node
}

/// Draws whether the next node is encoded as only old files are.
fn unusual(plan: &Plan, slot: u64, block: &mut BlockPlan, truth: &mut TruthWriter) -> bool {
    let drawn = block.random.random_range(0..100) < plan.unusual_percent;
    truth.count("unusual_encodings", slot, u64::from(drawn));
    drawn
}

fn write_transaction(
    epoch: &mut Epoch,
    plan: &Plan,
    slot: u64,
    index: u32,
    block: &mut BlockPlan,
    truth: &mut TruthWriter,
) -> Result<Cid, SimError> {
    let old = unusual(plan, slot, block, truth);
    let transaction = &block.transactions[index as usize];
    let keys = Keys::of(transaction);
    let outcome = logs::run(transaction, &keys);
    truth.transaction(&Placed {
        slot,
        index,
        block_time: block.block_time,
        transaction,
        keys: &keys,
        outcome: &outcome,
    })?;
    let landing = chain::landing(plan, slot, index, keys.count());
    let sent = wire::encode(transaction, &keys, &landing.blockhash);
    let mut meta = Vec::new();
    if transaction.kept != Kept::Nothing {
        let (encoded, one_of) = match plan.metadata {
            MetadataFormat::Bincode => (
                bincode::encode(&outcome, &landing.balances, transaction.kept),
                2,
            ),
            _ => (metadata::encode(&outcome, &keys, &landing.balances), 100),
        };
        meta = encoded;
        if block.random.random_range(0..one_of) == 0 {
            truth.count("uncompressed_metadata", slot, 1);
        } else {
            meta = zstd::bulk::compress(&meta, 3)?;
        }
    }
    let place_kept = !old || block.random.random();
    let mut node = Node::array_in_style(if place_kept { 5 } else { 4 }, old);
    node.unsigned(0);
    let style = FrameStyle {
        bytes: plan.frame_bytes,
        old,
    };
    let sent_chained = epoch.car.data_frame(&mut node, &sent, style)?;
    // A few more chains than sizes alone would make.
    let style = FrameStyle {
        bytes: if block.random.random_range(0..50) == 0 {
            TINY_FRAME
        } else {
            plan.frame_bytes
        },
        old,
    };
    let meta_chained = epoch.car.data_frame(&mut node, &meta, style)?;
    let chains = u64::from(sent_chained) + u64::from(meta_chained);
    truth.count("chains", slot, chains);
    node.unsigned(slot);
    if !old {
        node.unsigned(u64::from(index));
    } else if place_kept {
        node.null(); // the place is there, and says nothing
    }
    Ok(epoch.car.section(&node)?)
}

/// Writes a program's folder; `slots` are its first and last, inclusive.
pub(crate) fn write_program(
    folder: &Path,
    name: &str,
    versions: &[(u64, String)],
    (first, last): (u64, u64),
    scan_group: Option<&str>,
) -> Result<(), SimError> {
    let address = base58(&program_id(name));
    let program = folder.join(name);
    fs::create_dir_all(program.join("idl"))?;
    let mut idls = String::new();
    for (since, idl) in versions {
        let file = match since {
            0 => format!("idl/{name}.json"),
            _ => format!("idl/{name}-{since}.json"),
        };
        fs::write(program.join(&file), idl.replace("{ADDRESS}", &address))?;
        let file = json!(file);
        let _ = writeln!(idls, "  - {{from_slot: {since}, file: {file}}}");
    }
    let group = scan_group.map_or_else(String::new, |group| format!("scan_group: {group}\n"));
    let yaml = format!(
        "# A program of the archive simulator (network sim): the demo backfills it.\nprogram_id: {address}\nnetwork: sim\n\
         owner: demo\nfirst_slot: {first}\nlast_slot: {last}  # inclusive\n{group}idls:\n{idls}"
    );
    fs::write(program.join("program.yaml"), yaml)?;
    Ok(())
}
