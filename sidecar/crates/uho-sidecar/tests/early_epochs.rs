//! What early epochs are like, read end to end: metadata in bincode or none at all, and only the older indexes.
#![allow(clippy::unwrap_used)]

mod support;

use archive_sim::{Indexes, MetadataFormat, Plan, Summary};
use serde_json::{Value, json};
use support::{ARROW, NDJSON, backfill, router};

/// Writes an archive, and reads its range through the service. The truth, and the stream's last control line.
async fn read(plan: &Plan) -> (Summary, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let summary = archive_sim::write(folder.path(), plan).unwrap();
    let body = json!({
        "programIds": summary.total.programs.keys().map(|name| archive_sim::program_address(name)).collect::<Vec<_>>(),
        "startSlot": plan.first_slot, "endSlot": plan.last_slot + 1, "checkpointSlots": 40, "includeFailed": true,
    });
    let router = router(folder.path().to_str().unwrap());
    let arrow = support::bytes(backfill(&router, ARROW, &body).await).await;
    assert!(arrow.len() > 1000);
    let lines = support::lines(backfill(&router, NDJSON, &body).await).await;
    (summary, lines)
}

/// Compares a certificate with the truth.
fn compare(summary: &Summary, done: &Value) {
    assert_eq!(done["type"], "done", "{done}");
    let certificate = &done["certificate"];
    let total = &summary.total;
    for (field, expected) in [
        ("blocks", total.blocks),
        ("entries", total.entries),
        ("transactions", total.transactions),
        ("votes", total.votes),
        ("unresolvedLookups", total.unresolved_lookups),
    ] {
        assert_eq!(certificate[field], expected, "{field}");
    }
    assert_eq!(certificate["tail"], "proven");
    for (name, program) in &total.programs {
        let found = &certificate["programs"][archive_sim::program_address(name)];
        for (field, expected) in [
            ("matched", program.matched),
            ("matchedByLookupOnly", program.matched_by_lookup_only),
            ("withRecords", program.with_records),
            ("failed", program.failed),
            ("truncated", program.truncated),
            ("unrecorded", program.unrecorded),
            ("records", program.records),
        ] {
            assert_eq!(found[field], expected, "{name}: {field}");
        }
    }
}

fn plan(metadata: MetadataFormat) -> Plan {
    Plan {
        metadata,
        ..Plan::of_range(864_000, 864_699, 350)
    }
}

#[tokio::test]
async fn metadata_in_bincode_yields_the_same_records_and_what_it_lacks_is_counted() {
    let (summary, lines) = read(&plan(MetadataFormat::Bincode)).await;
    let done = lines.last().unwrap();
    compare(&summary, done);
    assert_eq!(done["certificate"]["missingMetadata"], 0);
    let programs = summary.total.programs.values();
    assert!(
        programs
            .clone()
            .all(|program| program.records > 100 && program.unrecorded > 10 && program.failed > 10)
    );
    // Every record's transaction names its inner instructions, too.
    let inner = lines.iter().filter(|line| {
        line["innerInstructions"]
            .as_array()
            .is_some_and(|inner| !inner.is_empty())
    });
    assert!(inner.count() > 50);
}

#[tokio::test]
async fn the_older_indexes_yield_the_same_as_slot_ranges() {
    // Across the end of an epoch, with slots that answer falsely.
    let newer = Plan::of_range(1_295_800, 1_296_299, 100);
    let older = Plan {
        indexes: Indexes::Older,
        ..newer.clone()
    };
    let (_, by_ranges) = read(&newer).await;
    let (summary, by_cids) = read(&older).await;
    compare(&summary, by_cids.last().unwrap());
    assert_eq!(
        by_cids.last().unwrap()["certificate"]["index"],
        "slot-to-cid"
    );
    assert!(by_cids.len() > 100);
    for (expected, found) in by_ranges.iter().zip(&by_cids) {
        let mut expected = expected.clone();
        if let Some(certificate) = expected.get_mut("certificate") {
            certificate["index"] = json!("slot-to-cid");
        }
        if expected["type"] == "started" {
            expected["jobId"] = found["jobId"].clone();
        }
        assert_eq!(&expected, found);
    }
    assert_eq!(by_ranges.len(), by_cids.len());
}

#[tokio::test]
async fn epochs_without_metadata_are_read_and_what_is_missing_is_counted() {
    let (summary, lines) = read(&plan(MetadataFormat::Absent)).await;
    let done = lines.last().unwrap();
    compare(&summary, done);
    let certificate = &done["certificate"];
    assert_eq!(certificate["missingMetadata"], summary.total.transactions);
    for program in summary.total.programs.values() {
        assert!(program.matched > 100);
        assert_eq!((program.unrecorded, program.records), (program.matched, 0));
    }
}
