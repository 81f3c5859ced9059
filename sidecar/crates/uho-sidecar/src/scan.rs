//! `uho-sidecar scan`: reads a range once, without HTTP, and prints what is there as text.

use std::io::Write;
use std::pin::pin;

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use old_faithful::{Archive, ArchiveOptions, ScanEvent, ScanRequest, SlotRange, Verify};

use crate::collector::Collector;
use crate::config::ScanArguments;
use crate::encoder::Format;
use crate::proof::Proof;
use crate::redact::redact;

/// Reads the range and writes its certificate, with what was said by each program, to `output`.
pub async fn scan(arguments: ScanArguments, output: &mut impl Write) -> anyhow::Result<()> {
    let end = arguments
        .to_slot
        .checked_add(1)
        .context("--to-slot: too large")?;
    if arguments.from_slot >= end {
        bail!("--from-slot: must not be above --to-slot");
    }
    let archive = Archive::open(&arguments.archive, ArchiveOptions::default())
        .map_err(|error| anyhow::anyhow!(redact(&error.to_string()).into_owned()))?;
    let mut collector = Collector::new(Format::Arrow, arguments.programs.clone(), true);
    let mut proof = Proof::default();
    let mut scan = pin!(archive.scan(ScanRequest {
        range: SlotRange {
            start: arguments.from_slot,
            end
        },
        programs: arguments.programs,
        verify: Verify::Full,
        checkpoint_slots: 1_000,
    }));
    while let Some(event) = scan.next().await {
        match event
            .map_err(|error| anyhow::anyhow!("{}: {}", error.code(), redact(&error.to_string())))?
        {
            ScanEvent::Block(block) => {
                collector.add(&block)?;
                if collector.is_full() {
                    collector.flush()?;
                }
            }
            ScanEvent::Checkpoint {
                mut certificate, ..
            } => {
                collector.flush()?;
                let oddities = collector.certify(&mut certificate);
                proof.add(certificate, &oddities)?;
            }
            ScanEvent::Done { certificate } => {
                let concluded = proof.conclude(certificate, collector.programs())?;
                writeln!(
                    output,
                    "{}",
                    serde_json::to_string_pretty(&concluded.certificate)?
                )?;
                writeln!(output, "records: {}", concluded.records)?;
                writeln!(
                    output,
                    "oddities: {}",
                    serde_json::to_string(&concluded.oddities)?
                )?;
                return Ok(());
            }
        }
    }
    bail!("the scan ended without a certificate")
}
