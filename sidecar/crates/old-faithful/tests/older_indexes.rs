//! Damage to the older pair of indexes: an error that says where, or the same answer; never another one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

mod support;

use std::path::{Path, PathBuf};

use archive_sim::{Indexes, Plan};
use old_faithful::compact::CompactHeader;
use old_faithful::{Archive, ArchiveOptions, ScanRequest, SlotRange, Verify};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::{Collected, collect};

/// Damages of each index file: every one means looking up all slots of an epoch.
const FLIPS_OF_HEADER: usize = 4;
const FLIPS_OF_TABLE: usize = 4;
const FLIPS_OF_ENTRIES: usize = 12;
const TRUNCATIONS: usize = 6;

async fn scan(folder: &Path) -> Collected {
    // A file does not grow by being asked for again.
    let options = ArchiveOptions {
        retries: 0,
        ..ArchiveOptions::default()
    };
    let archive = Archive::open(folder.to_str().unwrap(), options).unwrap();
    let request = ScanRequest {
        range: SlotRange::new(1_300_000, 1_300_060),
        programs: Vec::new(),
        verify: Verify::Full,
        checkpoint_slots: 0,
    };
    collect(archive.scan(request)).await
}

/// The files of the pair, and the epoch's root.
fn index_files(epoch: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(epoch)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "index"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 2, "{files:?}");
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_indexes_are_an_error_with_a_place_or_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan {
        seed: 5,
        indexes: Indexes::Older,
        ..Plan::of_range(1_300_000, 1_300_059, 20)
    };
    archive_sim::write(folder.path(), &plan).unwrap();
    let expected = scan(folder.path()).await.done();
    assert!(expected.blocks > 20);

    let mut random = SmallRng::seed_from_u64(5);
    let (mut errors, mut unchanged) = (0, 0);
    for file in index_files(&folder.path().join("3")) {
        let whole = std::fs::read(&file).unwrap();
        let values = if file.to_str().unwrap().contains("slot-to-cid") {
            36
        } else {
            9
        };
        let header = CompactHeader::parse(&whole, values).unwrap();
        let table = usize::try_from(header.table_offset).unwrap();
        let entries = table + usize::try_from(header.table_bytes()).unwrap();
        let mut variants: Vec<Vec<u8>> = Vec::new();
        for (count, range) in [
            (FLIPS_OF_HEADER, 0..table),
            (FLIPS_OF_TABLE, table..entries),
            (FLIPS_OF_ENTRIES, entries..whole.len()),
        ] {
            variants.extend((0..count).map(|_| {
                let mut damaged = whole.clone();
                damaged[random.random_range(range.clone())] ^= 1 << random.random_range(0..8);
                damaged
            }));
        }
        let lengths = (0..TRUNCATIONS).map(|_| random.random_range(0..whole.len()));
        variants.extend(
            [0, 10, table - 1, entries - 1, whole.len() - 1]
                .into_iter()
                .chain(lengths)
                .map(|length| whole[..length].to_vec()),
        );
        for damaged in variants {
            let at = damaged
                .iter()
                .zip(&whole)
                .position(|(one, other)| one != other);
            let what = format!("{}: {at:?}, {} bytes", file.display(), damaged.len());
            std::fs::write(&file, damaged).unwrap();
            let scanned = scan(folder.path()).await;
            match (scanned.done, scanned.error) {
                (Some(done), None) => {
                    assert_eq!(done, expected, "{what}");
                    unchanged += 1;
                }
                (None, Some(error)) => {
                    let text = error.to_string();
                    let places = ["byte", "of another epoch", "one block for the slots"];
                    assert!(
                        places.iter().any(|place| text.contains(place)),
                        "{what}: {text}"
                    );
                    assert!(
                        [
                            "index_invalid",
                            "fetch_failed",
                            "car_malformed",
                            "chain_broken",
                            "cid_mismatch"
                        ]
                        .contains(&error.code()),
                        "{what}: {text}"
                    );
                    errors += 1;
                }
                (done, error) => panic!("{what}: {done:?}, {error:?}"),
            }
        }
        std::fs::write(&file, whole).unwrap();
    }
    eprintln!("{errors} damages were errors, {unchanged} changed nothing");
    assert!(errors > 20, "{errors}");
}

#[test]
fn a_cut_or_flipped_header_is_an_error_that_names_a_byte() {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let rest = [
        &36_u64.to_le_bytes()[..],
        &2_u32.to_le_bytes(),
        &[1, 1],
        &text("kind"),
        &text("slot-to-cid"),
    ]
    .concat();
    let length = u32::try_from(rest.len()).unwrap().to_le_bytes();
    let header = [b"compiszd", &length[..], &rest].concat();
    CompactHeader::parse(&header, 36).unwrap();
    for cut in 0..header.len() {
        let error = CompactHeader::parse(&header[..cut], 36).unwrap_err();
        assert!(
            error.contains(&format!("ends at byte {cut}")),
            "{cut}: {error}"
        );
    }
    // Everything before the texts, but for low bits of the number of buckets, which may be any.
    for at in (0..26).filter(|at| !(20..24).contains(at)) {
        let mut damaged = header.clone();
        damaged[at] ^= 0x80;
        let error = CompactHeader::parse(&damaged, 36).unwrap_err();
        assert!(error.contains("byte"), "{at}: {error}");
    }
}
