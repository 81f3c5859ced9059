//! Reads the Old Faithful archive of Solana: slot ranges out of CAR files over HTTP or from a folder, filtered
//! exactly by program, with a certificate that proves what was read to be complete.
#![forbid(unsafe_code)]

#[cfg(feature = "fetch")]
mod archive;
#[cfg(feature = "fetch")]
mod assembler;
#[cfg(feature = "fetch")]
mod bare;
pub mod car;
pub mod cbor;
mod certificate;
pub mod dataframe;
mod error;
#[cfg(feature = "fetch")]
mod fetch;
pub mod filter;
pub mod index;
#[cfg(feature = "fetch")]
mod lookup;
pub mod metadata;
mod model;
pub mod node;
#[cfg(feature = "fetch")]
mod place;
mod protobuf;
#[cfg(feature = "fetch")]
mod scan;
#[cfg(feature = "fetch")]
mod scanner;
#[cfg(feature = "fetch")]
mod segment;
#[cfg(feature = "fetch")]
mod transaction;
pub mod wire;

#[cfg(feature = "fetch")]
pub use archive::{Archive, ArchiveOptions};
pub use certificate::{BlockLink, Certificate, CertificateError, IndexKind, ProgramCounts, Tail};
pub use error::{ArchiveError, Malformed};
pub use metadata::{InnerInstruction, InnerInstructions, Metadata};
pub use model::{
    BareScanRequest, Block, Instruction, MatchedTransaction, Pubkey, SLOTS_PER_EPOCH, ScanEvent,
    ScanRequest, SlotRange, Verify,
};
