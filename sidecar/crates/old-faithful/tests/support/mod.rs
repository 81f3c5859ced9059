//! What several test files share: where the real data is, and how a scan is collected.
#![allow(dead_code, unreachable_pub)] // Each test file uses a part of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

use std::path::PathBuf;

use futures::{Stream, StreamExt};
use old_faithful::{
    Archive, ArchiveError, ArchiveOptions, Block, Certificate, Pubkey, ScanEvent, ScanRequest,
    SlotRange, Verify,
};

/// The folder of real data, or `None` (said so on standard error) where it is absent.
pub fn shared_data() -> Option<PathBuf> {
    let path = std::env::var_os("UHO_SHARED_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/data"),
        PathBuf::from,
    );
    let found = path.join("archive/800").is_dir().then_some(path);
    if found.is_none() {
        eprintln!("skipped: the shared data is not here (set UHO_SHARED_DATA)");
    }
    found
}

/// The real archive of epochs 800 and 801.
pub fn real_archive(options: ArchiveOptions) -> Option<Archive> {
    let path = shared_data()?.join("archive").canonicalize().unwrap();
    Some(Archive::open(path.to_str().unwrap(), options).unwrap())
}

pub fn key(base58: &str) -> Pubkey {
    let mut bytes = [0; 32];
    five8::decode_32(base58, &mut bytes).unwrap();
    bytes
}

pub const PUMP_AMM: &str = "pAMMBay6oceH9fJKBRHGP5D4bD4sWpmSwMn52FMfXEA";
pub const WHIRLPOOL: &str = "whirLbMiicVdio4qvUfM5KAg6Ct8VwpYzGff3uctyCc";
pub const LB_CLMM: &str = "LBUZKhRxPF3XUpBCjp4YzTKgLccjZhTSDM9YuVaPwxo";
pub const TOKEN: &str = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA";

/// Programs with how many transactions of epoch 800 mention them: in static keys, in loaded keys only.
pub const MENTIONS: [(&str, u64, u64); 4] = [
    (PUMP_AMM, 21, 1),
    (WHIRLPOOL, 46, 0),
    (LB_CLMM, 2, 0),
    (TOKEN, 87, 1),
];

pub fn all_programs() -> Vec<Pubkey> {
    MENTIONS.iter().map(|(program, ..)| key(program)).collect()
}

pub fn request(start: u64, end: u64) -> ScanRequest {
    ScanRequest {
        range: SlotRange { start, end },
        programs: all_programs(),
        verify: Verify::Full,
        checkpoint_slots: 1000,
    }
}

/// Everything that a scan yielded.
#[derive(Debug, Default)]
pub struct Collected {
    pub blocks: Vec<Block>,
    pub checkpoints: Vec<(u64, Certificate)>,
    pub done: Option<Certificate>,
    pub error: Option<ArchiveError>,
}

impl Collected {
    pub fn done(self) -> Certificate {
        match (self.done, self.error) {
            (Some(done), None) => done,
            (_, error) => panic!("the scan failed: {error:?}"),
        }
    }

    pub fn error(self) -> ArchiveError {
        assert!(self.done.is_none(), "the scan was done after all");
        self.error.expect("the scan ended without done or error")
    }
}

pub async fn collect(events: impl Stream<Item = Result<ScanEvent, ArchiveError>>) -> Collected {
    let mut events = std::pin::pin!(events);
    let mut collected = Collected::default();
    while let Some(event) = events.next().await {
        assert!(collected.done.is_none(), "something came after done");
        assert!(collected.error.is_none(), "something came after an error");
        match event {
            Ok(ScanEvent::Block(block)) => collected.blocks.push(block),
            Ok(ScanEvent::Checkpoint { slot, certificate }) => {
                collected.checkpoints.push((slot, certificate));
            }
            Ok(ScanEvent::Done { certificate }) => collected.done = Some(certificate),
            Err(error) => collected.error = Some(error),
        }
    }
    collected
}
