//! Finding the block that holds a byte by the older indexes, one look-up after another: for estimates, which need few blocks of many. Each
//! look-up reads a bucket of the index of CIDs, about 120 KB of a full epoch, and is remembered.

use std::ops::Range;

use crate::error::ArchiveError;
use crate::index::ListedBlock;
use crate::slot_to_cid::SlotToCid;

/// After so many guesses by proportion, the search halves what is left at every other step.
const GUESSES: u32 = 4;

impl SlotToCid {
    /// The bytes of the blocks of `slots`; `None` when these have none.
    pub(crate) async fn bytes_of(
        &self,
        slots: &Range<u64>,
    ) -> Result<Option<Range<u64>>, ArchiveError> {
        let positions = self.positions(slots);
        if positions.is_empty() {
            return Ok(None);
        }
        let start = self.start_of(positions.start).await?;
        let end = self.end_of(positions.end - 1).await?;
        if end < start {
            return Err(self.out_of_order(positions.end - 1));
        }
        Ok(Some(start..end))
    }

    /// The block that holds a byte, of those of `slots`, which lie within `bytes`; `None` when the byte belongs to none of them.
    pub(crate) async fn block_at(
        &self,
        slots: &Range<u64>,
        mut bytes: Range<u64>,
        byte: u64,
    ) -> Result<Option<ListedBlock>, ArchiveError> {
        let mut positions = self.positions(slots);
        let mut guesses = 0;
        while !positions.is_empty() && bytes.contains(&byte) {
            guesses += 1;
            let width = positions.len();
            let into = if guesses > GUESSES && guesses % 2 == 0 {
                width / 2
            } else {
                let scaled = u128::from(byte - bytes.start) * width as u128
                    / u128::from(bytes.end - bytes.start);
                usize::try_from(scaled).unwrap_or(usize::MAX)
            };
            let guess = positions.start + into.min(width - 1);
            let end = self.end_of(guess).await?;
            if end < bytes.start || end > bytes.end {
                return Err(self.out_of_order(guess));
            }
            if byte >= end {
                (positions.start, bytes.start) = (guess + 1, end);
                continue;
            }
            let start = self.start_of(guess).await?;
            if byte < start {
                (positions.end, bytes.end) = (guess, start);
                continue;
            }
            let length = u32::try_from(end - start).map_err(|_| self.out_of_order(guess))?;
            return Ok(Some(ListedBlock {
                slot: self.slot_at(guess),
                offset: start,
                length,
            }));
        }
        Ok(None)
    }
}
