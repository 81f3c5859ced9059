//! Payloads that are larger than one node: their pieces, put together in order and checked against the payload's
//! hash. What payloads hold belongs in [`wire`](crate::wire) and [`metadata`](crate::metadata).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use crc::{CRC_64_GO_ISO, Crc, Table};
use sha2::{Digest, Sha256};

use crate::car::CID_PREFIX;
use crate::error::Malformed;
use crate::node::DataFrame;

/// The largest payload that is put together, in bytes.
pub const MAXIMUM_PAYLOAD_BYTES: usize = 64 << 20;

const CRC_64: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_GO_ISO);

/// Why a payload cannot be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadFault {
    /// Frames are missing, double, or no frames.
    #[error("{0}")]
    Malformed(Malformed),
    /// The payload does not have the hash that its first frame names.
    #[error("a payload does not have the hash that its frame names")]
    Hash,
    /// The payload is larger than [`MAXIMUM_PAYLOAD_BYTES`].
    #[error("a payload of {0} bytes")]
    TooLarge(usize),
}

impl From<Malformed> for PayloadFault {
    fn from(fault: Malformed) -> Self {
        Self::Malformed(fault)
    }
}

/// The `DataFrame` sections of one block, by the hash in their CID. Node bytes, so that they can still be hashed.
#[derive(Debug, Default)]
pub struct Frames {
    nodes: HashMap<[u8; 32], Bytes>,
    bytes: usize,
}

impl Frames {
    /// Keeps a frame. The sum of the bytes kept is returned, for the caller to bound.
    pub fn insert(&mut self, hash: [u8; 32], node: &[u8]) -> usize {
        if self
            .nodes
            .insert(hash, Bytes::copy_from_slice(node))
            .is_none()
        {
            self.bytes += node.len();
        }
        self.bytes
    }

    /// A frame's node.
    pub fn get(&self, hash: &[u8; 32]) -> Option<&Bytes> {
        self.nodes.get(hash)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.bytes = 0;
    }
}

/// The hash in the CID of a link to a section; `None` for other links.
#[inline]
pub(crate) fn section_hash(cid: &[u8]) -> Option<&[u8; 32]> {
    cid.strip_prefix(&CID_PREFIX)?.try_into().ok()
}

/// Whether a node has the SHA-256 that its CID names.
#[inline]
pub fn hash_matches(hash: &[u8; 32], node: &[u8]) -> bool {
    Sha256::digest(node).as_slice() == hash
}

/// Puts the payload of `first` together. A payload of one frame is borrowed as it is.
///
/// `visit` sees the hash and node of every further frame, so that a caller can verify what it uses.
pub fn payload<'a>(
    first: &DataFrame<'a>,
    frames: &Frames,
    mut visit: impl FnMut(&[u8; 32], &[u8]),
) -> Result<Cow<'a, [u8]>, PayloadFault> {
    const MISSING: Malformed = Malformed::new("a payload's frame is missing", 0);
    const ORDER: Malformed = Malformed::new("a payload's frames have no order", 0);

    if first.next.is_empty() {
        if first.total.is_some_and(|total| total > 1) {
            return Err(MISSING.into());
        }
        return Ok(Cow::Borrowed(first.data));
    }

    // Links are followed in order, and behind them those of the frames they lead to: usually the first frame
    // links to all, but a last one may carry further links.
    let mut pieces = vec![(first.index.unwrap_or(0), Cow::Borrowed(first.data))];
    let mut bytes = first.data.len();
    let mut waiting: Vec<[u8; 32]> = Vec::new();
    let mut seen = HashSet::new();
    let mut place = 0;
    extend(&mut waiting, first)?;
    while let Some(hash) = waiting.get(place).copied() {
        place += 1;
        if !seen.insert(hash) {
            return Err(ORDER.into());
        }
        let node = frames.get(&hash).ok_or(MISSING)?;
        visit(&hash, node);
        let frame = DataFrame::parse(node)?;
        bytes += frame.data.len();
        if bytes > MAXIMUM_PAYLOAD_BYTES {
            return Err(PayloadFault::TooLarge(bytes));
        }
        pieces.push((
            frame.index.unwrap_or(place as u64),
            Cow::Owned(frame.data.to_vec()),
        ));
        extend(&mut waiting, &frame)?;
    }
    if first
        .total
        .is_some_and(|total| total != pieces.len() as u64)
    {
        return Err(MISSING.into());
    }
    pieces.sort_by_key(|(index, _)| *index);
    if (0..)
        .zip(&pieces)
        .any(|(place, (index, _))| place != *index)
    {
        return Err(ORDER.into());
    }
    let mut whole = Vec::with_capacity(bytes);
    for (_, piece) in &pieces {
        whole.extend_from_slice(piece);
    }
    check_hash(first.hash, &whole)?;
    Ok(Cow::Owned(whole))
}

fn extend(waiting: &mut Vec<[u8; 32]>, frame: &DataFrame<'_>) -> Result<(), PayloadFault> {
    for cid in &frame.next {
        let hash = section_hash(cid).ok_or(Malformed::new("a frame's link is to no section", 0))?;
        waiting.push(*hash);
    }
    Ok(())
}

/// Compares a payload with its recorded hash: CRC-64/ISO, or FNV-1a 64 in older files.
pub fn check_hash(hash: Option<u64>, payload: &[u8]) -> Result<(), PayloadFault> {
    match hash {
        Some(hash) if CRC_64.checksum(payload) != hash && fnv_1a(payload) != hash => {
            Err(PayloadFault::Hash)
        }
        _ => Ok(()),
    }
}

fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
