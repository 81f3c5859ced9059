//! `archive-sim`: writes simulated archives.

use std::path::PathBuf;
use std::process::ExitCode;

use archive_sim::{LargePlan, Plan, SimError, write, write_large};
use clap::{Parser, Subcommand};

/// Writes simulated Old Faithful archives whose contents are known, and the truth beside them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write an archive; without options the demo's: 24 chunks of 350 slots across the end of epoch 2.
    Write {
        /// The folder to write into.
        #[arg(long)]
        out: PathBuf,
        /// The same seed writes the same bytes.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// First slot of the range to backfill.
        #[arg(long, default_value_t = Plan::default().first_slot)]
        first_slot: u64,
        /// Last slot of the range to backfill, inclusive.
        #[arg(long, default_value_t = Plan::default().last_slot)]
        last_slot: u64,
        /// Slots in a chunk.
        #[arg(long, default_value_t = Plan::default().chunk_slots)]
        chunk_slots: u64,
        /// So many of 1,000 events are spoiled, so that no IDL decodes them.
        #[arg(long, default_value_t = Plan::default().undecodable_per_mille)]
        undecodable_per_mille: u32,
    },
    /// Write gigabytes quickly, for measurements: one chunk of 100,000 slots holds all blocks, from --first-slot on.
    ///
    /// 65 % votes, 20 % version-0 transactions with lookup tables, and two programs to backfill: `orderbook`, and `rare` in
    /// one transaction of 10,000. Set `UHO_NETWORKS__SIM__CHUNK_SLOTS=100000` and
    /// `UHO_NETWORKS__SIM__CHECKPOINT_SLOTS=1000`; the chunk's key is --first-slot in 10 digits, 0001300000 by default.
    WriteLarge {
        /// The folder to write into.
        #[arg(long)]
        out: PathBuf,
        /// Bytes of the archive's CAR file; a block more at most.
        #[arg(long, default_value_t = LargePlan::default().bytes)]
        bytes: u64,
        /// The same seed writes the same bytes.
        #[arg(long, default_value_t = LargePlan::default().seed)]
        seed: u64,
        /// First slot of the chunk: a multiple of 100,000 whose chunk lies within one epoch of 432,000 slots.
        #[arg(long, default_value_t = LargePlan::default().first_slot)]
        first_slot: u64,
        /// So many of 100 transactions are of `orderbook` and emit events; at most 15.
        #[arg(long, default_value_t = LargePlan::default().program_percent)]
        program_percent: u32,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("archive-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns what was written, in a line.
fn run(command: Command) -> Result<String, SimError> {
    match command {
        Command::Write {
            out,
            seed,
            first_slot,
            last_slot,
            chunk_slots,
            undecodable_per_mille,
        } => {
            let plan = Plan {
                seed,
                first_slot,
                last_slot,
                from_slot: first_slot.saturating_sub(25).max(1),
                to_slot: last_slot + 41,
                chunk_slots,
                undecodable_per_mille,
                ..Plan::default()
            };
            let summary = write(&out, &plan)?;
            let events: u64 = summary.events.values().flat_map(|e| e.values()).sum();
            let transactions: u64 = summary.chunks.values().map(|c| c.transactions).sum();
            Ok(format!(
                "{}: {} chunks, {transactions} transactions, {events} events",
                out.display(),
                summary.chunks.len()
            ))
        }
        Command::WriteLarge {
            out,
            bytes,
            seed,
            first_slot,
            program_percent,
        } => {
            let plan = LargePlan {
                seed,
                first_slot,
                bytes,
                program_percent,
            };
            let summary = write_large(&out, &plan)?;
            let events: u64 = summary.programs.values().map(|p| p.events).sum();
            Ok(format!(
                "{}: {} bytes, {} blocks, {} transactions, {events} events, all in chunk {first_slot:010}",
                out.display(),
                summary.car_bytes,
                summary.blocks,
                summary.transactions
            ))
        }
    }
}
