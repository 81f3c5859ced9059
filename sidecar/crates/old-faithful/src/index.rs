//! The slot-ranges index of an epoch: for each slot the bytes of its block in the CAR file. Checked as a whole
//! before any of it is used.
//!
//! 432,000 times offset (u64) and length (u32), little endian; all zero = the slot has no block.

use bytes::Bytes;

use crate::model::SLOTS_PER_EPOCH;

/// An entry's size in bytes.
const ENTRY_BYTES: usize = 12;
/// The size of the file in bytes.
#[allow(clippy::cast_possible_truncation)] // 5,184,000.
pub const SLOT_RANGES_BYTES: usize = SLOTS_PER_EPOCH as usize * ENTRY_BYTES;

/// A slot that has a block, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedBlock {
    /// The slot.
    pub slot: u64,
    /// The first byte of the block's first section in the CAR file.
    pub offset: u64,
    /// The block's bytes; its Block section ends them.
    pub length: u32,
}

impl ListedBlock {
    /// The first byte after the block.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }
}

/// An epoch's slot-ranges file, checked.
#[derive(Debug, Clone)]
pub struct SlotIndex {
    first_slot: u64,
    bytes: Bytes,
}

impl SlotIndex {
    /// Checks the file of `epoch`: its size, and that its ranges ascend without overlap between the CAR file's
    /// header and its end. The reason is for [`ArchiveError::IndexInvalid`](crate::ArchiveError::IndexInvalid).
    pub fn parse(
        epoch: u64,
        bytes: Bytes,
        header_bytes: u64,
        car_bytes: u64,
    ) -> Result<Self, String> {
        if bytes.len() != SLOT_RANGES_BYTES {
            return Err(format!(
                "it has {} bytes instead of {SLOT_RANGES_BYTES}",
                bytes.len()
            ));
        }
        let index = Self {
            first_slot: epoch.saturating_mul(SLOTS_PER_EPOCH),
            bytes,
        };
        let mut end = header_bytes;
        for slot in 0..SLOTS_PER_EPOCH {
            let (offset, length) = index.entry(slot);
            if (offset, length) == (0, 0) {
                continue;
            }
            let slot = index.first_slot.saturating_add(slot);
            if length == 0 {
                return Err(format!("slot {slot} has an offset, but no bytes"));
            }
            if offset < end {
                return Err(format!(
                    "slot {slot} begins at byte {offset}, before byte {end} where the one before it ends"
                ));
            }
            end = offset
                .checked_add(u64::from(length))
                .filter(|end| *end <= car_bytes)
                .ok_or_else(|| {
                    format!(
                        "slot {slot} lies beyond the end of the CAR file, {car_bytes} bytes long"
                    )
                })?;
        }
        Ok(index)
    }

    fn entry(&self, place: u64) -> (u64, u32) {
        let at = usize::try_from(place)
            .unwrap_or(usize::MAX)
            .saturating_mul(ENTRY_BYTES);
        let entry = self.bytes.get(at..).unwrap_or_default();
        let offset = entry.first_chunk().copied().map(u64::from_le_bytes);
        let length = entry.get(8..).and_then(<[u8]>::first_chunk).copied();
        match (offset, length.map(u32::from_le_bytes)) {
            (Some(offset), Some(length)) => (offset, length),
            _ => (0, 0),
        }
    }

    /// The first block at or after `slot`.
    pub fn next_block(&self, slot: u64) -> Option<ListedBlock> {
        let from = slot.saturating_sub(self.first_slot);
        (from..SLOTS_PER_EPOCH).find_map(|place| {
            let (offset, length) = self.entry(place);
            (length > 0).then_some(ListedBlock {
                slot: self.first_slot + place,
                offset,
                length,
            })
        })
    }
}
