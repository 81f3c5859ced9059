//! Integers of 256 bits as decimal digits. Arrow's widest decimal has 76 digits, two too few, so columns of
//! them hold text.

use std::fmt;

/// Digits that a 64-bit division takes off at a time.
const CHUNK_DIGITS: usize = 19;
const CHUNK: u128 = 10_000_000_000_000_000_000;
/// 2²⁵⁶ has 78 digits.
const CHUNKS: usize = 5;

/// A 256-bit integer, shown in decimal.
pub(super) struct Decimal {
    negative: bool,
    /// Least significant first.
    magnitude: [u64; 4],
}

impl Decimal {
    /// The number of 32 bytes, little endian.
    pub(super) fn unsigned(bytes: [u8; 32]) -> Self {
        let mut magnitude = [0; 4];
        for (limb, bytes) in magnitude.iter_mut().zip(bytes.as_chunks().0) {
            *limb = u64::from_le_bytes(*bytes);
        }
        Self {
            negative: false,
            magnitude,
        }
    }

    /// The number of 32 bytes, little endian, in two's complement.
    pub(super) fn signed(bytes: [u8; 32]) -> Self {
        let mut number = Self::unsigned(bytes);
        number.negative = number.magnitude[3] >> 63 == 1;
        if number.negative {
            let mut carry = true;
            for limb in &mut number.magnitude {
                (*limb, carry) = (!*limb).overflowing_add(carry.into());
            }
        }
        number
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut magnitude = self.magnitude;
        let mut chunks = [0u64; CHUNKS];
        for chunk in &mut chunks {
            let mut rest = 0u128;
            for limb in magnitude.iter_mut().rev() {
                let wide = (rest << 64) | u128::from(*limb);
                *limb = u64::try_from(wide / CHUNK).unwrap_or_default();
                rest = wide % CHUNK;
            }
            *chunk = u64::try_from(rest).unwrap_or_default();
        }
        let first = chunks.iter().rposition(|chunk| *chunk > 0).unwrap_or(0);
        if self.negative {
            formatter.write_str("-")?;
        }
        write!(formatter, "{}", chunks[first])?;
        for chunk in chunks[..first].iter().rev() {
            write!(formatter, "{chunk:0CHUNK_DIGITS$}")?;
        }
        Ok(())
    }
}
