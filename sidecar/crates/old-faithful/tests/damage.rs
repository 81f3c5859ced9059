//! A real CAR with one wrong bit, or cut off: under full verification never anything but an error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

mod support;

use std::io::{Seek, SeekFrom, Write};

use old_faithful::{Archive, ArchiveOptions, BareScanRequest, ScanRequest, SlotRange, Verify};
use support::{all_programs, collect, shared_data};
use tempfile::TempDir;

/// Flipped bits that are tried, spread over the file.
const FLIPS: usize = 400;

#[tokio::test]
async fn a_flipped_bit_anywhere_is_an_error() {
    let Some(data) = shared_data() else { return };
    for epoch in [800, 801] {
        let name = format!("{epoch}/epoch-{epoch}");
        let real = data.join("archive").join(&name);
        let car = std::fs::read(real.with_extension("car")).unwrap();
        let index = data.join(format!("archive/{name}-slot-ranges.raw"));
        let index = std::fs::read(index).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join(epoch.to_string())).unwrap();
        let copy = folder.path().join(format!("{name}.car"));
        std::fs::write(&copy, &car).unwrap();
        std::fs::write(
            folder.path().join(format!("{name}-slot-ranges.raw")),
            &index,
        )
        .unwrap();
        let archive =
            Archive::open(folder.path().to_str().unwrap(), ArchiveOptions::default()).unwrap();

        // Where each block ends, to read only the one that is damaged.
        let blocks: Vec<(u64, usize)> = (0..)
            .zip(index.as_chunks::<12>().0)
            .filter(|(_, entry)| entry[8..] != [0; 4])
            .map(|(slot, entry)| {
                let offset = u64::from_le_bytes(*entry.first_chunk().unwrap());
                let length = u32::from_le_bytes(*entry.last_chunk().unwrap());
                (slot, usize::try_from(offset + u64::from(length)).unwrap())
            })
            .collect();
        let (first, last) = (59, blocks.last().unwrap().1);
        let mut file = std::fs::File::options().write(true).open(&copy).unwrap();
        let mut write = |at: usize, byte: u8| {
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(&[byte]).unwrap();
        };
        for flip in 0..FLIPS {
            let at = first + (last - first) * flip / FLIPS;
            write(at, car[at] ^ 1 << (flip % 8));
            let slot = blocks.iter().find(|(_, end)| at < *end).unwrap().0 + epoch * 432_000;
            let request = ScanRequest {
                range: SlotRange {
                    start: slot,
                    end: slot + 1,
                },
                programs: all_programs(),
                verify: Verify::Full,
                checkpoint_slots: 0,
            };
            let scanned = collect(archive.scan(request)).await;
            assert!(
                scanned.done.is_none() && scanned.error.is_some(),
                "byte {at}"
            );
            assert!(scanned.blocks.is_empty(), "byte {at}");
            write(at, car[at]);
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_in_a_bare_file_is_an_error() {
    let Some(data) = shared_data() else { return };
    let car = std::fs::read(data.join("archive/0/epoch-0-2.car")).unwrap();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("piece.car");
    for flip in 0..FLIPS {
        let at = 59 + (car.len() - 59) * flip / FLIPS;
        let mut damaged = car.clone();
        damaged[at] ^= 1 << (flip % 8);
        std::fs::write(&path, &damaged).unwrap();
        let request = BareScanRequest {
            programs: all_programs(),
            verify: Verify::Full,
        };
        let scanned = collect(Archive::scan_car_file(&path, request)).await;
        assert!(
            scanned.done.is_none() && scanned.error.is_some(),
            "byte {at}"
        );
    }
}

#[tokio::test]
async fn a_real_file_that_was_cut_off_is_an_error() {
    let Some(data) = shared_data() else { return };
    let archive = data.join("archive/800");
    let car = std::fs::read(archive.join("epoch-800.car")).unwrap();
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("800")).unwrap();
    std::fs::copy(
        archive.join("epoch-800-slot-ranges.raw"),
        folder.path().join("800/epoch-800-slot-ranges.raw"),
    )
    .unwrap();
    for length in [60, 1000, 700_000, 1_243_700] {
        std::fs::write(folder.path().join("800/epoch-800.car"), &car[..length]).unwrap();
        let archive =
            Archive::open(folder.path().to_str().unwrap(), ArchiveOptions::default()).unwrap();
        let scanned = collect(archive.scan(support::request(345_600_000, 345_700_000))).await;
        assert_eq!(scanned.error().code(), "index_invalid");
        assert_eq!(archive.tip(800).await.unwrap(), None);
    }
}
