//! Reads the Old Faithful archive of Solana: slot ranges out of CAR files over HTTP or from a folder, filtered
//! exactly by program, with a certificate that proves what was read to be complete.
//!
//! [`Archive`] is the principal type; [`Archive::scan`] yields blocks with the transactions that mention one of
//! the programs asked for, in ascending order, and ends with a [`Certificate`] or an [`ArchiveError`], never with
//! silence. Without the feature `fetch` only the parsers and the certificate remain.
//!
#![cfg_attr(feature = "fetch", doc = "```no_run")]
#![cfg_attr(not(feature = "fetch"), doc = "```ignore")]
//! use futures::StreamExt;
//! use old_faithful::{Archive, ArchiveOptions, ScanEvent, ScanRequest, SlotRange, Verify};
//!
//! # async fn example(program: [u8; 32]) -> Result<(), old_faithful::ArchiveError> {
//! let archive = Archive::open("https://files.old-faithful.net", ArchiveOptions::default())?;
//! let request = ScanRequest {
//!     range: SlotRange::new(345_600_000, 345_700_000),
//!     programs: vec![program],
//!     verify: Verify::Full,
//!     checkpoint_slots: 1000,
//! };
//! let mut events = Box::pin(archive.scan(request));
//! while let Some(event) = events.next().await {
//!     match event? {
//!         ScanEvent::Block(block) => {
//!             for transaction in &block.matches {
//!                 println!("slot {}, transaction {}", block.slot, transaction.index);
//!             }
//!         }
//!         ScanEvent::Checkpoint { slot, .. } => println!("everything before slot {slot} was read"),
//!         ScanEvent::Done { certificate } => println!("{} blocks, proved complete", certificate.blocks),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What is checked, always
//!
//! * Every block's parent is the block before it; the first one's lies before the range.
//! * A block's entries are exactly the entries before it, and theirs exactly the transactions, by their CIDs.
//! * The slot index lists exactly the blocks that were read, and their bytes begin and end where it says.
//! * Under [`Verify::Full`] the SHA-256 of every section is the one in its CID.
//! * The parent of the first block after the range is the range's last block ([`Tail`]).
//!
//! # How it is made
//!
//! Bytes arrive by `fetch`, are cut into sections by [`car`], which `scanner` makes blocks of; [`node`],
//! [`dataframe`], [`wire`] and [`metadata`] read what sections hold, in place. `segment` compares a run of blocks
//! with the [`index`], `scan` reads several at once, and `assembler` chains their blocks and sums up certificates.

#![forbid(unsafe_code)]

#[cfg(feature = "fetch")]
mod archive;
#[cfg(feature = "fetch")]
mod assembler;
#[cfg(feature = "fetch")]
mod bare;
mod bincode;
#[cfg(feature = "fetch")]
mod byte_search;
pub mod car;
#[cfg(feature = "fetch")]
mod car_file;
pub mod cbor;
mod certificate;
pub mod compact;
#[cfg(feature = "fetch")]
mod counters;
pub mod dataframe;
mod error;
#[cfg(feature = "fetch")]
mod fetch;
pub mod filter;
pub mod index;
#[cfg(feature = "fetch")]
mod lookup;
#[cfg(feature = "fetch")]
mod lookup_file;
#[cfg(feature = "fetch")]
mod matches;
pub mod metadata;
mod model;
pub mod node;
#[cfg(feature = "fetch")]
pub mod pieces;
#[cfg(feature = "fetch")]
mod place;
mod protobuf;
#[cfg(feature = "fetch")]
mod sample;
#[cfg(feature = "fetch")]
mod scan;
#[cfg(feature = "fetch")]
mod scanner;
#[cfg(feature = "fetch")]
mod segment;
#[cfg(feature = "fetch")]
mod slot_to_cid;
#[cfg(feature = "fetch")]
mod transaction;
pub mod wire;

#[cfg(feature = "fetch")]
pub use archive::{Archive, ArchiveOptions};
pub use certificate::{BlockLink, Certificate, CertificateError, IndexKind, ProgramCounts, Tail};
#[cfg(feature = "fetch")]
pub use counters::{Counter, Counters, RetryCause};
pub use error::{ArchiveError, Malformed};
#[cfg(feature = "fetch")]
pub use lookup_file::LEARNED_TABLES_BYTES_AT_MOST;
pub use metadata::{InnerInstruction, Metadata};
pub use model::{
    BareScanRequest, Block, MatchedTransaction, Mention, Pubkey, SLOTS_PER_EPOCH, ScanEvent,
    ScanRequest, SlotRange, TransactionParts, TransactionPlace, Verify,
};
#[cfg(feature = "fetch")]
pub use sample::{DrawnBlock, SampledBlock, Sampler};
