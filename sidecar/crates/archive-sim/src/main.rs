//! `archive-sim`: writes simulated archives.

use std::path::PathBuf;
use std::process::ExitCode;

use archive_sim::{Plan, write};
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
}

fn main() -> ExitCode {
    let Command::Write {
        out,
        seed,
        first_slot,
        last_slot,
        chunk_slots,
        undecodable_per_mille,
    } = Arguments::parse().command;
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
    match write(&out, &plan) {
        Ok(summary) => {
            let events: u64 = summary
                .events
                .values()
                .flat_map(|events| events.values())
                .sum();
            let transactions: u64 = summary
                .chunks
                .values()
                .map(|chunk| chunk.transactions)
                .sum();
            println!(
                "{}: {} chunks, {transactions} transactions, {events} events",
                out.display(),
                summary.chunks.len()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("archive-sim: {error}");
            ExitCode::FAILURE
        }
    }
}
