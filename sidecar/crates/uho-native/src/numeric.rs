//! Postgres `numeric` in its binary form: whole numbers in base 10,000, most significant digit first.
//!
//! Number of digits (i16), weight of the first digit (i16, a power of 10,000), sign (0 or 0x4000), digits
//! after the point (0 here), then the digits (i16), without zeros at either end; zero has no digits.
//! Source of the format: `numeric_recv` in Postgres' `numeric.c`.

use arrow_buffer::i256;

const BASE: u64 = 10_000;
/// Digits that are taken off a number of 128 bits at a time.
const CHUNK_DIGITS: usize = 4;
const CHUNK: u128 = 10_u128.pow(16);
const NEGATIVE: u16 = 0x4000;
const HEADER_BYTES: usize = 8;

/// The most digits: 2²⁵⁶ has 78 decimal digits.
const MOST_DIGITS: usize = 20;
/// Decimal digits in a digit.
const DECIMALS: usize = 4;
/// The largest value in bytes, without its length.
pub(crate) const MOST_BYTES: usize = HEADER_BYTES + 2 * MOST_DIGITS;
/// The largest value of 64 bits in bytes, without its length.
pub(crate) const MOST_BYTES_U64: usize = HEADER_BYTES + 2 * 5;

/// Digits, least significant first.
struct Digits {
    digits: [u16; MOST_DIGITS],
    length: usize,
}

impl Digits {
    fn new() -> Self {
        Self {
            digits: [0; MOST_DIGITS],
            length: 0,
        }
    }

    fn push(&mut self, digit: u16) {
        if let Some(place) = self.digits.get_mut(self.length) {
            *place = digit;
            self.length += 1;
        }
    }

    /// Appends length and value.
    fn write(&self, negative: bool, output: &mut Vec<u8>) {
        let digits = &self.digits[..self.length];
        // Zeros at the end carry nothing: the weight of the first digit says where the number stands.
        let zeros = digits.iter().take_while(|digit| **digit == 0).count();
        let kept = &digits[zeros..];
        let narrow = |count: usize| i16::try_from(count).unwrap_or(i16::MAX);
        let length = HEADER_BYTES + 2 * kept.len();
        // One piece: most values are of a few digits, and appending each would cost more than making it.
        let mut bytes = [0; 4 + MOST_BYTES];
        bytes[..4].copy_from_slice(&i32::try_from(length).unwrap_or(i32::MAX).to_be_bytes());
        bytes[4..6].copy_from_slice(&narrow(kept.len()).to_be_bytes());
        bytes[6..8].copy_from_slice(&narrow(self.length.saturating_sub(1)).to_be_bytes());
        bytes[8..10].copy_from_slice(&(if negative { NEGATIVE } else { 0 }).to_be_bytes());
        let places = bytes[4 + HEADER_BYTES..].as_chunks_mut().0;
        for (place, digit) in places.iter_mut().zip(kept.iter().rev()) {
            *place = digit.to_be_bytes();
        }
        output.extend_from_slice(&bytes[..4 + length]);
    }
}

fn digit(value: u64) -> u16 {
    u16::try_from(value % BASE).unwrap_or_default()
}

/// Appends the length and the value of a number of at most 128 bits.
pub(crate) fn write(negative: bool, magnitude: u128, output: &mut Vec<u8>) {
    if let Ok(narrow) = u64::try_from(magnitude) {
        return write_narrow(negative, narrow, output);
    }
    let mut digits = Digits::new();
    let mut wide = magnitude;
    let mut rest = loop {
        // Division of 64 bits is many times cheaper.
        if let Ok(rest) = u64::try_from(wide) {
            break rest;
        }
        let mut chunk = u64::try_from(wide % CHUNK).unwrap_or_default();
        for _ in 0..CHUNK_DIGITS {
            digits.push(digit(chunk));
            chunk /= BASE;
        }
        wide /= CHUNK;
    };
    while rest > 0 {
        digits.push(digit(rest));
        rest /= BASE;
    }
    digits.write(negative, output);
}

/// As `write`, of what nearly every number is: all digits at once, from divisions that do not wait for each other.
fn write_narrow(negative: bool, magnitude: u64, output: &mut Vec<u8>) {
    const HALF: u64 = BASE * BASE;
    let (first, rest) = (magnitude / (HALF * HALF), magnitude % (HALF * HALF));
    let (middle, last) = (rest / HALF, rest % HALF);
    let digits = [first, middle / BASE, middle, last / BASE, last].map(digit);
    let start = digits.iter().position(|digit| *digit != 0);
    let end = digits.iter().rposition(|digit| *digit != 0);
    let (start, end) = start
        .zip(end)
        .unwrap_or((digits.len() - 1, digits.len() - 2));
    let count = end + 1 - start;
    let narrow = |count: usize| i16::try_from(count).unwrap_or(i16::MAX);
    let mut bytes = [0; 4 + MOST_BYTES_U64];
    let length = HEADER_BYTES + 2 * count;
    bytes[..4].copy_from_slice(&i32::try_from(length).unwrap_or(i32::MAX).to_be_bytes());
    bytes[4..6].copy_from_slice(&narrow(count).to_be_bytes());
    bytes[6..8].copy_from_slice(&narrow(digits.len() - 1 - start).to_be_bytes());
    bytes[8..10].copy_from_slice(&(if negative { NEGATIVE } else { 0 }).to_be_bytes());
    let places = bytes[4 + HEADER_BYTES..].as_chunks_mut().0;
    for (place, digit) in places.iter_mut().zip(&digits[start..]) {
        *place = digit.to_be_bytes();
    }
    output.extend_from_slice(&bytes[..4 + length]);
}

/// Appends the length and the value of a whole number in decimal. False, and nothing appended, for other text
/// and for more than 80 decimal digits.
pub(crate) fn write_text(text: &str, output: &mut Vec<u8>) -> bool {
    let (negative, decimals) = match text.strip_prefix('-') {
        Some(magnitude) => (true, magnitude),
        None => (false, text),
    };
    if decimals.is_empty() || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let decimals = decimals.trim_start_matches('0');
    if decimals.len() > MOST_DIGITS * DECIMALS {
        return false;
    }
    let mut digits = Digits::new();
    for chunk in decimals.as_bytes().rchunks(DECIMALS) {
        let value = |digit: u16, byte: &u8| digit * 10 + u16::from(byte - b'0');
        digits.push(chunk.iter().fold(0, value));
    }
    digits.write(negative && digits.length > 0, output);
    true
}

/// Appends the length and the value of a number of 256 bits.
pub(crate) fn write_wide(value: i256, output: &mut Vec<u8>) {
    let negative = value < i256::ZERO;
    if let Some(narrow) = value.to_i128() {
        return write(negative, narrow.unsigned_abs(), output);
    }
    let base = i256::from_i128(10_000);
    let mut digits = Digits::new();
    let mut rest = value;
    while rest != i256::ZERO {
        // The remainder has the sign of the number, which spares negating the least i256.
        let remainder = rest.wrapping_rem(base).to_i128().unwrap_or_default();
        digits.push(digit(
            u64::try_from(remainder.unsigned_abs()).unwrap_or_default(),
        ));
        rest = rest.wrapping_div(base);
    }
    digits.write(negative, output);
}
