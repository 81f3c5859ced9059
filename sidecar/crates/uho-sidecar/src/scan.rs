//! `uho-sidecar scan`: reads a range once, by the service's own code but without HTTP, and tells what is there.

use std::io::Write;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use old_faithful::{Archive, ArchiveOptions, Certificate, ScanEvent, ScanRequest, SlotRange, Tail};
use serde_json::json;

use crate::collector::{Collector, Oddities};
use crate::config::ScanArguments;
use crate::encoder::Format;
use crate::proof::{Concluded, Proof};
use crate::redact::redact;

/// Slots between two checkpoints: how often the progress bar learns of bytes and transactions.
const CHECKPOINT_SLOTS: u64 = 100;
const BAR: &str = "{elapsed_precise} [{wide_bar}] {percent} % of the slots · {msg} · {eta} left";

/// What a scan found.
struct Outcome {
    concluded: Concluded,
    seconds: f64,
}

/// Reads the range and writes counts, rates and the certificate to `output`; progress goes to the terminal's standard
/// error, where there is one.
pub async fn scan(arguments: ScanArguments, output: &mut impl Write) -> anyhow::Result<()> {
    let end = arguments
        .to_slot
        .checked_add(1)
        .context("--to-slot: too large")?;
    if arguments.from_slot >= end {
        bail!("--from-slot: must not be above --to-slot");
    }
    let range = SlotRange::new(arguments.from_slot, end);
    let defaults = ArchiveOptions::default();
    let options = ArchiveOptions {
        connections: arguments
            .connections
            .map_or(defaults.connections, |connections| connections as usize),
        segment_bytes: arguments
            .segment_mebibytes
            .map_or(defaults.segment_bytes, |size| u64::from(size) << 20),
        ..defaults
    };
    let as_json = arguments.json;
    let archive = Archive::open(&arguments.archive, options)
        .map_err(|error| anyhow::anyhow!(redact(&error.to_string()).into_owned()))?;
    let bar = progress_bar(range);
    let outcome = read(&archive, arguments, range, &bar).await;
    bar.finish_and_clear();
    let outcome = outcome?;
    if as_json {
        write_json(&outcome, output)
    } else {
        write_text(&outcome, output).context("cannot write the summary")
    }
}

/// A bar over the slots; hidden where standard error is no terminal.
fn progress_bar(range: SlotRange) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(
        Some(range.end - range.start),
        ProgressDrawTarget::stderr_with_hz(4),
    );
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

async fn read(
    archive: &Archive,
    arguments: ScanArguments,
    range: SlotRange,
    bar: &ProgressBar,
) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let mut collector = Collector::new(Format::Arrow, arguments.programs.clone(), true);
    let mut proof = Proof::default();
    let (mut bytes, mut transactions, mut matches) = (0, 0, 0);
    let mut scan = pin!(archive.scan(ScanRequest {
        range,
        programs: arguments.programs,
        verify: arguments.verify.into(),
        checkpoint_slots: CHECKPOINT_SLOTS,
    }));
    while let Some(event) = scan.next().await {
        match event
            .map_err(|error| anyhow::anyhow!("{}: {}", error.code(), redact(&error.to_string())))?
        {
            ScanEvent::Block(block) => {
                matches += block.matches.len() as u64;
                collector.add(&block)?;
                if collector.is_full() {
                    collector.flush()?;
                }
            }
            ScanEvent::Checkpoint {
                slot,
                mut certificate,
            } => {
                collector.flush()?;
                let oddities = collector.certify(&mut certificate);
                bytes += certificate.bytes;
                transactions += certificate.transactions;
                bar.set_position(slot - range.start);
                bar.set_message(format!(
                    "{} ({}/s), {} transactions, {} matched",
                    HumanBytes(bytes),
                    HumanBytes(per_second(bytes, begun.elapsed().as_secs_f64())),
                    HumanCount(transactions),
                    HumanCount(matches),
                ));
                proof.add(certificate, &oddities)?;
            }
            ScanEvent::Done { certificate } => {
                return Ok(Outcome {
                    concluded: proof.conclude(certificate, collector.programs())?,
                    seconds: begun.elapsed().as_secs_f64(),
                });
            }
        }
    }
    bail!("the scan ended without a certificate")
}

fn write_json(outcome: &Outcome, output: &mut impl Write) -> anyhow::Result<()> {
    let certificate = &outcome.concluded.certificate;
    let answer = json!({
        "certificate": certificate,
        "records": outcome.concluded.records,
        "oddities": outcome.concluded.oddities,
        "seconds": outcome.seconds,
        "bytesPerSecond": per_second(certificate.bytes, outcome.seconds),
        "transactionsPerSecond": per_second(certificate.transactions, outcome.seconds),
    });
    writeln!(output, "{}", serde_json::to_string_pretty(&answer)?)?;
    Ok(())
}

fn write_text(outcome: &Outcome, output: &mut impl Write) -> std::io::Result<()> {
    let Concluded {
        certificate,
        oddities,
        records,
    } = &outcome.concluded;
    let seconds = outcome.seconds;
    let epochs: Vec<String> = certificate.epochs.iter().map(ToString::to_string).collect();
    writeln!(
        output,
        "slots {} to {} (inclusive), epoch {}",
        certificate.start_slot,
        certificate.end_slot - 1,
        epochs.join(", ")
    )?;
    for (name, count) in [
        ("blocks", certificate.blocks),
        ("entries", certificate.entries),
        ("transactions", certificate.transactions),
        ("votes among them", certificate.votes),
        ("without metadata", certificate.missing_metadata),
        ("unresolved lookups", certificate.unresolved_lookups),
        ("records", *records),
    ] {
        writeln!(output, "{name:>20} {:>18}", HumanCount(count).to_string())?;
    }
    writeln!(
        output,
        "{:>20} {:>18} in {seconds:.2} s: {}/s, {} transactions/s",
        "read",
        HumanBytes(certificate.bytes).to_string(),
        HumanBytes(per_second(certificate.bytes, seconds)),
        HumanCount(per_second(certificate.transactions, seconds)),
    )?;
    for (program, counts) in &certificate.programs {
        writeln!(output, "{program}")?;
        for (name, count) in [
            ("matched", counts.matched),
            ("by lookup only", counts.matched_by_lookup_only),
            ("failed", counts.failed),
            ("log truncated", counts.truncated),
            ("with records", counts.with_records),
            ("records", counts.records),
        ] {
            writeln!(output, "{name:>20} {:>18}", HumanCount(count).to_string())?;
        }
        writeln!(output, "{:>20} {:032x}", "record digest", counts.digest)?;
    }
    write_verdict(certificate, output)?;
    if *oddities != Oddities::default() {
        let text = serde_json::to_string(oddities).map_err(std::io::Error::other)?;
        writeln!(output, "seen and not understood: {text}")?;
    }
    Ok(())
}

/// What the certificate proves, in a sentence.
fn write_verdict(certificate: &Certificate, output: &mut impl Write) -> std::io::Result<()> {
    let verify = serde_json::to_value(certificate.verify)?;
    let hashes = HumanCount(certificate.cids_verified);
    write!(
        output,
        "complete: the chain of parents has no hole, entries, transactions and slot index agree; {hashes} hashes \
         compared (verify {})",
        verify.as_str().unwrap_or_default()
    )?;
    let tail = match certificate.tail {
        Tail::Proven => "; the block after the range names our last one",
        Tail::Unproven => "; the end is UNPROVEN: the block after the range is not published yet",
        Tail::Unread => "; the block after the range was not read",
    };
    writeln!(output, "{tail}")
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // A rate, not a count.
fn per_second(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds.max(1e-3)) as u64
}
