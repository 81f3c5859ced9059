//! Reads the Old Faithful archive of Solana: slot ranges out of CAR files over HTTP or from a folder, filtered
//! exactly by program, with a certificate that proves what was read to be complete.
#![forbid(unsafe_code)]

#[cfg(feature = "fetch")]
mod archive;
mod certificate;
mod error;
pub mod metadata;
mod model;

#[cfg(feature = "fetch")]
pub use archive::{Archive, ArchiveOptions};
pub use certificate::{BlockLink, Certificate, CertificateError, IndexKind, ProgramCounts, Tail};
pub use error::{ArchiveError, Malformed};
pub use metadata::{InnerInstruction, InnerInstructions, Metadata};
pub use model::{
    BareScanRequest, Block, Instruction, MatchedTransaction, Pubkey, SLOTS_PER_EPOCH, ScanEvent,
    ScanRequest, SlotRange, Verify,
};
