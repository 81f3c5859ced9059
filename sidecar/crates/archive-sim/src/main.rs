//! `archive-sim`: writes simulated archives, and serves them.

use std::path::PathBuf;
use std::process::ExitCode;

use archive_sim::{
    Fault, Indexes, LargePlan, MetadataFormat, Pieces, Plan, RpcFault, RpcServer, Server, SimError,
    SplitTool, write, write_large,
};
use clap::{Args, Parser, Subcommand};

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
    ///
    /// Every epoch of the range gets its files; blocks before and after the range prove its ends. Beside them: truth/ (every
    /// event that must be loaded, of failed transactions, in quarantine, and how often each trap occurs) and programs/.
    Write(WriteArguments),
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
    /// Serve a written archive over HTTP, badly where told to; prints {"listening":"ADDRESS"} when it does.
    Serve {
        /// The folder to serve.
        #[arg(long)]
        dir: PathBuf,
        /// Where to listen; port 0 takes any free one.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
        /// What happens to requests for bytes of CAR files, as KIND[=VALUE][WHEN]; repeatable, the first that applies happens.
        ///
        /// close-after=BYTES (promises all, closes early), close, reset, short=BYTES (a clean early end), short-length (of the content, under
        /// a right Content-Range), status=CODE, retry-after=SECONDS (429), busy=ANSWERS (429 while more are under way), flip (one bit),
        /// slow=BYTES (a second), stall, whole (ignores the range), other-range, shifted (another's bytes), etag (another), missing,
        /// cut=BYTES (a shorter file). WHEN: @3, every third request; ~10/7, one in ten and a place in its answer, drawn by seed 7; #4096x2,
        /// the first two for that byte of the file, there. Before the kind, index: is for slot-ranges files.
        #[arg(long = "fault", value_name = "FAULT")]
        faults: Vec<Fault>,
    },
    /// Answer for a written archive's chain as an RPC node does, badly where told to; prints {"listening":"ADDRESS"}.
    ///
    /// getTransaction, getBlock, getBlocks, getSignaturesForAddress and getSlot, in batches too. The chain is drawn again
    /// from the plan that the archive was written by.
    Rpc {
        /// The folder that the archive was written into.
        #[arg(long)]
        dir: PathBuf,
        /// Where to listen; port 0 takes any free one.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
        /// Which answers are missing or altered where some shall be.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// What happens to requests and answers, as KIND[=VALUE][@EVERY]; repeatable.
        ///
        /// To every so-manieth request: status=CODE, slow=MILLISECONDS, stall. To one of so many transactions (and blocks),
        /// the same ones each time: missing, altered (one bit of an event); with =SIGNATURE to that transaction only.
        #[arg(long = "fault", value_name = "FAULT")]
        faults: Vec<RpcFault>,
    },
}

/// What `write` takes. What is not given is as in the demo's plan.
#[derive(Debug, Args)]
struct WriteArguments {
    /// The folder to write into.
    #[arg(long)]
    out: PathBuf,
    /// The same seed writes the same bytes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The range lies across the end of this epoch.
    #[arg(long, default_value_t = 2, conflicts_with_all = ["first_slot", "last_slot"])]
    first_epoch: u64,
    /// First slot of the range to backfill.
    #[arg(long, requires = "last_slot")]
    first_slot: Option<u64>,
    /// Last slot of the range to backfill, inclusive.
    #[arg(long, requires = "first_slot")]
    last_slot: Option<u64>,
    /// Slots in a chunk.
    #[arg(long, default_value_t = Plan::default().chunk_slots)]
    chunk_slots: u64,
    /// Slots START..END (END not included) without any block; the sixth chunk if not given.
    #[arg(long, value_name = "START..END", value_parser = slots)]
    empty: Option<(u64, u64)>,
    /// So many of 100 slots have no block.
    #[arg(long, default_value_t = Plan::default().skipped_percent)]
    skipped: u32,
    /// Vote transactions of a block, at most.
    #[arg(long, default_value_t = Plan::default().votes.1 - 1)]
    votes: u32,
    /// Transactions of a block that mention the demo's programs, at most; each emits about two events.
    #[arg(long, default_value_t = Plan::default().demo.1 - 1)]
    demo: u32,
    /// So many of 100 events are spoiled, so that no IDL decodes them.
    #[arg(long, default_value_t = Plan::default().undecodable_percent)]
    undecodable: f64,
    /// So many of 100 transactions have no metadata.
    #[arg(long, default_value_t = Plan::default().missing_metadata_percent)]
    missing_metadata: u32,
    /// How metadata is written; early formats come with legacy transactions only.
    #[arg(long, value_enum, default_value_t)]
    metadata: MetadataFormat,
    /// Which indexes epochs come with.
    #[arg(long, value_enum, default_value_t)]
    indexes: Indexes,
    /// Split each epoch's CAR file into pieces as this tool does, and leave the pieces and their metadata file only.
    #[arg(long, value_enum, value_name = "TOOL")]
    pieces: Option<SplitTool>,
    /// Bytes of a piece: at most for faithful-cli, at least for data-prep.
    #[arg(long, default_value_t = 1 << 20, requires = "pieces")]
    piece_bytes: u64,
    /// So many of 100 nodes are encoded as only old files are.
    #[arg(long, default_value_t = Plan::default().unusual_percent)]
    unusual: u32,
    /// Bytes of a data frame, at most; longer payloads become chains.
    #[arg(long, default_value_t = Plan::default().frame_bytes)]
    frame_bytes: usize,
    /// Slots at which `vault`'s Deposited changes its layout, twice; its program folder has the three IDL versions.
    #[arg(long, value_name = "SECOND..THIRD", value_parser = slots)]
    layout_changes: Option<(u64, u64)>,
}

impl WriteArguments {
    fn plan(&self) -> Plan {
        let plan = match (self.first_slot, self.last_slot) {
            (Some(first), Some(last)) => Plan::of_range(first, last, self.chunk_slots),
            _ => Plan::across_the_end_of(self.first_epoch, self.chunk_slots),
        };
        let below = |most: u32| most.saturating_add(1);
        Plan {
            seed: self.seed,
            empty_slots: self.empty.or(plan.empty_slots),
            skipped_percent: self.skipped,
            votes: (plan.votes.0.min(self.votes), below(self.votes)),
            demo: (plan.demo.0, below(self.demo)),
            undecodable_percent: self.undecodable,
            missing_metadata_percent: self.missing_metadata,
            metadata: self.metadata,
            indexes: self.indexes,
            pieces: self.pieces.map(|tool| Pieces {
                tool,
                bytes: self.piece_bytes,
            }),
            unusual_percent: self.unusual,
            frame_bytes: self.frame_bytes,
            layout_changes: self.layout_changes,
            ..plan
        }
    }
}

fn slots(text: &str) -> Result<(u64, u64), String> {
    let number = |part: &str| part.parse::<u64>().map_err(|error| error.to_string());
    let (start, end) = text
        .split_once("..")
        .ok_or("two slots with .. between them")?;
    Ok((number(start)?, number(end)?))
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
        Command::Write(arguments) => {
            let summary = write(&arguments.out, &arguments.plan())?;
            let programs = summary.total.programs.values();
            let events: u64 = programs.map(|program| program.events).sum();
            Ok(format!(
                "{}: {} chunks, {} transactions, {events} events",
                arguments.out.display(),
                summary.chunks.len(),
                summary.total.transactions
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
            let programs = summary.programs.values();
            let events: u64 = programs.map(|program| program.events).sum();
            Ok(format!(
                "{}: {} bytes, {} blocks, {} transactions, {events} events, all in chunk {first_slot:010}",
                out.display(),
                summary.car_bytes,
                summary.blocks,
                summary.transactions
            ))
        }
        Command::Serve {
            dir,
            listen,
            faults,
        } => {
            let server = Server::start(&dir, &listen, faults)?;
            println!(
                "{}",
                serde_json::json!({ "listening": server.address().to_string() })
            );
            server.wait();
            Ok("stopped".into())
        }
        Command::Rpc {
            dir,
            listen,
            seed,
            faults,
        } => {
            let node = RpcServer::start(&dir, &listen, seed, faults)?;
            println!(
                "{}",
                serde_json::json!({ "listening": node.address().to_string() })
            );
            node.wait();
            Ok("stopped".into())
        }
    }
}
