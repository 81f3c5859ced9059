//! Epochs whose CAR file is there in pieces only: read as if it were whole, or an error that names the file at fault.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use archive_sim::{Indexes, Pieces as Split, Plan, Server, SplitTool};
use old_faithful::pieces::Pieces;
use old_faithful::{
    Archive, ArchiveOptions, Certificate, Pubkey, SLOTS_PER_EPOCH, ScanRequest, SlotRange, Tail,
    Verify,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use support::{Collected, collect};

const EPOCH: u64 = 3;
const FIRST: u64 = 1_300_000;
const BEHIND: u64 = 1_300_060;

fn plan(pieces: Option<Split>, indexes: Indexes) -> Plan {
    Plan {
        seed: 8,
        demo: (1, 6),
        pieces,
        indexes,
        ..Plan::of_range(FIRST, BEHIND - 1, 20)
    }
}

fn programs() -> Vec<Pubkey> {
    let id = |name: &str| Sha256::digest(format!("archive-sim program {name}")).into();
    ["orderbook", "vault"].map(id).to_vec()
}

fn options() -> ArchiveOptions {
    ArchiveOptions {
        connections: 3,
        // Most segments lie across the end of a piece.
        segment_bytes: 30_000,
        retries: 2,
        backoff_ms: 1,
        read_timeout_ms: 500,
        ..ArchiveOptions::default()
    }
}

async fn scan(base: &str, verify: Verify) -> Collected {
    let archive = Archive::open(base, options()).unwrap();
    collect(archive.scan(ScanRequest {
        range: SlotRange::new(FIRST, BEHIND),
        programs: programs(),
        verify,
        checkpoint_slots: 20,
    }))
    .await
}

async fn scan_folder(folder: &Path) -> Collected {
    scan(folder.to_str().unwrap(), Verify::Full).await
}

fn write(pieces: Option<Split>, indexes: Indexes) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    archive_sim::write(folder.path(), &plan(pieces, indexes)).unwrap();
    folder
}

/// In pieces of faithful-cli, 20 KB each.
fn in_pieces() -> tempfile::TempDir {
    let split = Split {
        tool: SplitTool::FaithfulCli,
        bytes: 20_000,
    };
    write(Some(split), Indexes::SlotRanges)
}

/// The epoch's pieces, those with the most names first.
fn pieces_of(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join(EPOCH.to_string())).unwrap();
    let mut pieces: Vec<PathBuf> = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "car"))
        .collect();
    pieces.sort();
    pieces
}

fn metadata_of(folder: &Path) -> PathBuf {
    folder.join(format!("{EPOCH}/epoch-{EPOCH}-metadata.yaml"))
}

/// Of a scan of the epoch in one file: what every scan of its pieces must yield.
async fn of_the_whole() -> (String, Certificate) {
    let whole = scan_folder(write(None, Indexes::SlotRanges).path()).await;
    let blocks = format!("{:?}", whole.blocks);
    assert!(whole.blocks.iter().any(|block| !block.matches.is_empty()));
    (blocks, whole.done())
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_read_as_the_whole_from_a_folder_and_over_http() {
    let (blocks, certificate) = of_the_whole().await;
    assert_eq!(certificate.tail, Tail::Proven);
    for (tool, bytes) in [
        (SplitTool::FaithfulCli, 20_000),
        (SplitTool::FaithfulCli, 1 << 30),
        (SplitTool::DataPrep, 1),
        (SplitTool::DataPrep, 7_001),
        (SplitTool::DataPrep, 90_000),
    ] {
        let what = format!("{tool:?} {bytes}");
        let folder = write(Some(Split { tool, bytes }), Indexes::SlotRanges);
        let pieces = pieces_of(folder.path()).len();
        assert!((pieces == 1) == (bytes == 1 << 30), "{what}: {pieces}");
        assert!(!folder.path().join("3/epoch-3.car").exists());
        let server = Server::start(folder.path(), "127.0.0.1:0", Vec::new()).unwrap();
        let http = format!("http://{}", server.address());
        for base in [folder.path().to_str().unwrap(), &http] {
            let scanned = scan(base, Verify::Full).await;
            assert_eq!(format!("{:?}", scanned.blocks), blocks, "{what} {base}");
            assert_eq!(scanned.done(), certificate, "{what} {base}");
        }
        let archive = Archive::open(&http, options()).unwrap();
        let tip = archive.tip(EPOCH).await.unwrap();
        assert_eq!(tip, Some((EPOCH + 1) * SLOTS_PER_EPOCH), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_read_by_the_older_indexes_and_for_estimates() {
    let expected = scan_folder(write(None, Indexes::Older).path()).await;
    for tool in [SplitTool::FaithfulCli, SplitTool::DataPrep] {
        let split = Split {
            tool,
            bytes: 25_000,
        };
        let folder = write(Some(split), Indexes::Both);
        let range = SlotRange::new(FIRST, BEHIND);
        let archive = Archive::open(folder.path().to_str().unwrap(), options()).unwrap();
        let mut sampler = archive.sampler(range, &programs(), 1).await.unwrap();
        let mut matches = 0;
        for _ in 0..40 {
            if let Some(drawn) = sampler.draw().await.unwrap() {
                matches += sampler.read(&drawn).await.unwrap().block.matches.len();
            }
        }
        assert!(matches > 20, "{matches}");
        assert_eq!(sampler.bytes(), expected.done.as_ref().unwrap().bytes);

        fs::remove_file(folder.path().join("3/epoch-3-slot-ranges.raw")).unwrap();
        let scanned = scan_folder(folder.path()).await;
        assert_eq!(
            format!("{:?}", scanned.blocks),
            format!("{:?}", expected.blocks)
        );
        assert_eq!(Some(scanned.done()), expected.done);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_the_network_in_any_piece_changes_nothing_or_is_an_error() {
    let (blocks, certificate) = of_the_whole().await;
    let folder = in_pieces();
    let (mut whole, mut errors) = (0, 0);
    for kind in [
        "close",
        "reset",
        "short=33",
        "stall",
        "flip",
        "status=503",
        "shifted",
        "etag",
        "cut=9",
    ] {
        for seed in 0..4 {
            let fault = format!("{kind}~12/{seed}").parse().unwrap();
            let server = Server::start(folder.path(), "127.0.0.1:0", vec![fault]).unwrap();
            let scanned = scan(&format!("http://{}", server.address()), Verify::Full).await;
            let what = format!("{kind} {seed}, met {:?}", server.met());
            if scanned.error.is_some() {
                errors += 1;
                let _ = scanned.error();
            } else {
                assert_eq!(format!("{:?}", scanned.blocks), blocks, "{what}");
                assert_eq!(scanned.done(), certificate, "{what}");
                whole += 1;
            }
        }
    }
    eprintln!("{whole} scans changed nothing, {errors} were errors");
    assert!(whole >= 16 && errors >= 4, "{whole} {errors}");
}

/// The error of reading after `damage` was done to the pieces or what describes them: code and text.
async fn error_after(damage: impl FnOnce(&Path)) -> (&'static str, String) {
    let folder = in_pieces();
    damage(folder.path());
    let error = scan_folder(folder.path()).await.error();
    let (code, text) = (error.code(), error.to_string());
    // Over HTTP it is the same one, and the epoch is not told to be there.
    let server = Server::start(folder.path(), "127.0.0.1:0", Vec::new()).unwrap();
    let base = format!("http://{}", server.address());
    let over_http = scan(&base, Verify::Full).await.error();
    assert_eq!(
        (over_http.code(), over_http.to_string()),
        (code, text.clone())
    );
    let archive = Archive::open(&base, options()).unwrap();
    assert_eq!(archive.tip(EPOCH).await.unwrap(), None, "{text}");
    (code, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_is_missing_or_of_another_length_is_named() {
    let second = |folder: &Path| folder.join("3/epoch-3-2.car");
    let (code, text) = error_after(|folder| fs::remove_file(second(folder)).unwrap()).await;
    assert_eq!(code, "epoch_not_found");
    assert!(text.contains("3/epoch-3-2.car is missing"), "{text}");

    // Shorter than its content; longer by a byte, by much, by what begins as a Subset and has no room.
    let content_end = |folder: &Path| {
        let text = fs::read(metadata_of(folder)).unwrap();
        let pieces = Pieces::parse(&text).unwrap();
        usize::try_from(pieces.pieces[1].header_bytes + pieces.pieces[1].bytes).unwrap()
    };
    for change in [
        (|file: &mut Vec<u8>, end: usize| file.truncate(end - 1)) as fn(&mut Vec<u8>, usize),
        |file, _| file.truncate(40),
        |file, _| file.truncate(3),
        |file, end| {
            file.truncate(end);
            file.push(1);
        },
        |file, end| file.truncate(end + 50),
        |file, _| file.resize(200_000, 0),
        |file, end| {
            file.truncate(end);
            file.extend([0x31; 500]);
        },
        // Its header has another length than stated.
        |file, _| {
            file.remove(4);
            file.push(0);
        },
    ] {
        let (code, text) = error_after(|folder| {
            let mut file = fs::read(second(folder)).unwrap();
            change(&mut file, content_end(folder));
            fs::write(second(folder), file).unwrap();
        })
        .await;
        assert!(text.contains("3/epoch-3-2.car"), "{text}");
        assert_eq!(code, "pieces_invalid", "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_may_be_padded_as_filecoin_does() {
    let (blocks, certificate) = of_the_whole().await;
    let folder = in_pieces();
    for piece in pieces_of(folder.path()) {
        let mut file = fs::read(&piece).unwrap();
        let padded = (file.len().div_ceil(127) * 128).next_power_of_two();
        file.resize(padded / 128 * 127, 0);
        fs::write(piece, file).unwrap();
    }
    let scanned = scan_folder(folder.path()).await;
    assert_eq!(format!("{:?}", scanned.blocks), blocks);
    assert_eq!(scanned.done(), certificate);
}

/// What is written in place of something in the metadata file, and what the error says of it.
const REPLACED: [(&str, &str, &str); 23] = [
    ("carPieces:", "pieces:", "has no carPieces"),
    (
        "name: epoch-3-2.car",
        "name: ../4/epoch-4-1.car",
        "piece 2: its name",
    ),
    (
        "name: epoch-3-2.car",
        "name: /x/../epoch-3-2.car",
        "piece 2: its name",
    ),
    (
        "name: epoch-3-2.car",
        "name: ..%2fsecret.car",
        "piece 2: its name",
    ),
    (
        "name: epoch-3-2.car",
        "name: epoch-3-2.car?x=.car",
        "piece 2: its name",
    ),
    (
        "name: epoch-3-2.car",
        "name: .hidden.car",
        "piece 2: its name",
    ),
    (
        "name: epoch-3-2.car",
        "name: /etc/passwd",
        "piece 2: its name",
    ),
    (
        "name: epoch-3-2.car",
        "name: epoch-3-1.car",
        "epoch-3-1.car twice",
    ),
    ("name: epoch-3-2.car", "name: &a epoch-3-2.car", "anchors"),
    ("name: epoch-3-2.car", "name: *a", "no YAML"),
    (
        "headerSize: 59",
        "headerSize: 0",
        "piece 1: 0 bytes are no CAR header",
    ),
    (
        "headerSize: 59",
        "headerSize: 99999",
        "no CAR header's size",
    ),
    (
        "headerSize: 59",
        "headerSize: 58",
        "does not begin with a CAR header of 58",
    ),
    ("headerSize: 59", "headerSize: -59", "not a number of bytes"),
    (
        "contentSize: ",
        "contentSize: 9999999999999999",
        "not a number of bytes",
    ),
    (
        "contentSize: ",
        "contentSize: 99999999999999",
        "would have more than",
    ),
    ("contentSize: ", "contentSize: 9", "paddedSize is too small"),
    ("paddedSize: ", "paddedSize: 0 #", "paddedSize is too small"),
    (
        "originalCarHeaderSize: 59",
        "originalCarHeaderSize: 60",
        "have 59 bytes",
    ),
    (
        "originalCarHeader: om",
        "originalCarHeader: !!om",
        "aliases and tags",
    ),
    (
        "originalCarHeader: om",
        "originalCarHeader: 'om m",
        "no YAML",
    ),
    (
        "originalCarHeader: om",
        "originalCarHeader: on",
        "no CARv1 header",
    ),
    (
        "originalCarHeader: om",
        "originalCarHeader: .m",
        "no base64",
    ),
];

async fn assert_said(change: impl Fn(String) -> String, expected: &str) {
    let (code, text) = error_after(|folder| {
        let path = metadata_of(folder);
        let changed = change(fs::read_to_string(&path).unwrap());
        fs::write(path, changed).unwrap();
    })
    .await;
    assert_eq!(code, "pieces_invalid", "{text}");
    assert!(text.contains(expected), "{expected}: {text}");
    assert!(text.contains("3/epoch-3-metadata.yaml"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_field_of_the_metadata_file_is_said() {
    for (from, to, expected) in REPLACED {
        let change = |text: String| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        };
        assert_said(change, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_whole_metadata_file_is_said() {
    assert_said(|text| text.repeat(2), "car_pieces_meta is there twice").await;
    assert_said(|text| text + "---\na: b\n", "more than one document").await;
    for (file, expected) in [
        (" ".to_owned(), "nothing"),
        ("car_pieces_meta: [".to_owned(), "no YAML"),
        ("[".repeat(20), "nested too deep"),
        ("[".repeat(500_000), "no YAML"),
        (" ".repeat(2 << 20), "more than the 1048576 bytes"),
    ] {
        assert_said(|_| file.clone(), expected).await;
    }
    // A content that is stated too short or too long for its file moves what follows.
    let (code, text) = error_after(|folder| {
        let path = metadata_of(folder);
        let text = fs::read_to_string(&path).unwrap();
        let pieces = Pieces::parse(text.as_bytes()).unwrap();
        let bytes = pieces.pieces[0].bytes;
        let from = format!("contentSize: {bytes}\n");
        let to = format!("contentSize: {}\n", bytes - 1);
        fs::write(path, text.replacen(&from, &to, 1)).unwrap();
    })
    .await;
    assert_eq!(code, "pieces_invalid");
    assert!(text.contains("3/epoch-3-1.car"), "{text}");

    let (code, text) = error_after(|folder| fs::remove_file(metadata_of(folder)).unwrap()).await;
    assert_eq!(code, "pieces_invalid");
    assert!(
        text.contains("3/metadata.csv: it does not hold the CAR file's header"),
        "{text}"
    );
}

#[tokio::test]
async fn a_next_epoch_whose_pieces_are_on_their_way_leaves_the_tail_unproven() {
    let folder = write(None, Indexes::SlotRanges);
    let next = folder.path().join("4");
    fs::create_dir(&next).unwrap();
    let archive = Archive::open(folder.path().to_str().unwrap(), options()).unwrap();
    let end = (EPOCH + 1) * SLOTS_PER_EPOCH;
    for metadata in ["\n", "car_pieces_meta: {}"] {
        fs::write(next.join("metadata.yaml"), metadata).unwrap();
        let request = ScanRequest {
            range: SlotRange::new(FIRST, end),
            programs: Vec::new(),
            verify: Verify::Full,
            checkpoint_slots: 0,
        };
        let done = collect(archive.scan(request)).await.done();
        assert_eq!(done.tail, Tail::Unproven);
    }
}

fn metadata() -> &'static [u8] {
    static METADATA: OnceLock<Vec<u8>> = OnceLock::new();
    METADATA.get_or_init(|| {
        let mut text = "car_pieces_meta:\n  originalCarHeaderSize: 59\n  originalCarHeader: \
                        omVyb290c4HYKlglAAFxEiAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAGd2ZXJzaW9uAQ==\n  carPieces:\n"
            .to_owned();
        for piece in 1..4 {
            let _ = write!(
                text,
                "  - name: a/epoch-3-{piece}.car\n    commP: baga6ea4seaq\n    paddedSize: 131072\n    headerSize: 59\n    \
                 contentSize: 10000{piece}\n"
            );
        }
        text.into_bytes()
    })
}

#[test]
fn a_metadata_file_is_read_field_by_field() {
    let pieces = Pieces::parse(metadata()).unwrap();
    assert_eq!((pieces.header.len(), pieces.header[0]), (59, 58));
    let found: Vec<_> = pieces
        .pieces
        .iter()
        .map(|piece| {
            (
                piece.name.as_str(),
                piece.start,
                piece.end(),
                piece.most_bytes,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("epoch-3-1.car", 59, 100_060, Some(130_048)),
            ("epoch-3-2.car", 100_060, 200_062, Some(130_048)),
            ("epoch-3-3.car", 200_062, 300_065, Some(130_048)),
        ]
    );
    assert_eq!(pieces.bytes(), 300_065);
}

/// Whatever is read, its pieces follow each other and have harmless names.
fn check(bytes: &[u8]) {
    let Ok(pieces) = Pieces::parse(bytes) else {
        return;
    };
    let mut end = pieces.header.len() as u64;
    for piece in &pieces.pieces {
        assert_eq!(piece.start, end);
        end = piece.end();
        assert!(!piece.name.contains('/') && !piece.name.starts_with('.'));
    }
    assert!(end == pieces.bytes() && end <= 1 << 44);
}

proptest! {
    #[test]
    fn no_bytes_make_the_metadata_parser_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        text in "[a-c:\\-\\[\\]{}&*!|>'\"#%@ \n\t0-9]{0,200}",
    ) {
        check(&bytes);
        check(text.as_bytes());
    }

    #[test]
    fn nearly_right_metadata_makes_no_parser_panic(
        changes in proptest::collection::vec((0..metadata().len(), any::<u8>()), 0..4),
        cut in 0..=2 * metadata().len(),
        repeated in 0..metadata().len(),
    ) {
        let mut bytes = metadata().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        check(&bytes);
        let mut longer = bytes.clone();
        longer.extend_from_slice(&bytes[repeated..]);
        check(&longer);
        bytes.truncate(cut);
        check(&bytes);
    }
}
