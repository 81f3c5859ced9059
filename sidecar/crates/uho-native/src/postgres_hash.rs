//! Postgres's seeded 64-bit hashes of values: those behind hash partitions, which no version of it may change.
//!
//! The hash of bytes is Bob Jenkins's lookup3 (2006), as `hash_bytes_extended` of Postgres's `hashfn.c` takes a seed
//! into it; what of a value is hashed is each type's own business (`hashfunc.c`, `numeric.c`). Postgres reads words in
//! its machine's byte order: these are the hashes of a little-endian server, which nearly every one is.

const START: u32 = 0x9e37_79b9;
/// What Postgres adds to the start of every hash.
const ADDED: u32 = 3_923_095;

/// The three words that are mixed.
struct Words(u32, u32, u32);

impl Words {
    fn new(length: usize, seed: u64) -> Self {
        // Values are shorter than 4 GiB: COPY counts their bytes in 31 bits.
        let start = START
            .wrapping_add(ADDED)
            .wrapping_add(u32::try_from(length).unwrap_or(u32::MAX));
        let mut words = Self(start, start, start);
        if seed != 0 {
            words.0 = words.0.wrapping_add(high(seed));
            words.1 = words.1.wrapping_add(low(seed));
            words.mix();
        }
        words
    }

    fn add(&mut self, block: &[u8; 12]) {
        let word = |place: usize| {
            u32::from_le_bytes([
                block[place],
                block[place + 1],
                block[place + 2],
                block[place + 3],
            ])
        };
        self.0 = self.0.wrapping_add(word(0));
        self.1 = self.1.wrapping_add(word(4));
        self.2 = self.2.wrapping_add(word(8));
    }

    fn mix(&mut self) {
        let Self(a, b, c) = self;
        *a = a.wrapping_sub(*c) ^ c.rotate_left(4);
        *c = c.wrapping_add(*b);
        *b = b.wrapping_sub(*a) ^ a.rotate_left(6);
        *a = a.wrapping_add(*c);
        *c = c.wrapping_sub(*b) ^ b.rotate_left(8);
        *b = b.wrapping_add(*a);
        *a = a.wrapping_sub(*c) ^ c.rotate_left(16);
        *c = c.wrapping_add(*b);
        *b = b.wrapping_sub(*a) ^ a.rotate_left(19);
        *a = a.wrapping_add(*c);
        *c = c.wrapping_sub(*b) ^ b.rotate_left(4);
        *b = b.wrapping_add(*a);
    }

    fn finish(self) -> u64 {
        let Self(mut a, mut b, mut c) = self;
        c = (c ^ b).wrapping_sub(b.rotate_left(14));
        a = (a ^ c).wrapping_sub(c.rotate_left(11));
        b = (b ^ a).wrapping_sub(a.rotate_left(25));
        c = (c ^ b).wrapping_sub(b.rotate_left(16));
        a = (a ^ c).wrapping_sub(c.rotate_left(4));
        b = (b ^ a).wrapping_sub(a.rotate_left(14));
        c = (c ^ b).wrapping_sub(b.rotate_left(24));
        u64::from(b) << 32 | u64::from(c)
    }
}

fn high(value: u64) -> u32 {
    u32::try_from(value >> 32).unwrap_or_default()
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

/// `hashtextextended` (of a deterministic collation), `hashvarlenaextended`.
pub(crate) fn bytes(value: &[u8], seed: u64) -> u64 {
    let mut words = Words::new(value.len(), seed);
    let (blocks, rest) = value.as_chunks::<12>();
    for block in blocks {
        words.add(block);
        words.mix();
    }
    let mut last = [0; 12];
    // The lowest byte of the third word was the length's.
    let (first, third) = rest.split_at_checked(8).unwrap_or((rest, &[]));
    last[..first.len()].copy_from_slice(first);
    last[9..9 + third.len()].copy_from_slice(third);
    words.add(&last);
    words.finish()
}

/// `hash_bytes_uint32_extended`.
fn word(value: u32, seed: u64) -> u64 {
    let mut words = Words::new(4, seed);
    words.0 = words.0.wrapping_add(value);
    words.finish()
}

/// `hashcharextended` and `hashboolextended`.
pub(crate) fn boolean(value: bool, seed: u64) -> u64 {
    word(value.into(), seed)
}

/// `hashint2extended` and `hashint4extended`.
pub(crate) fn integer(value: i32, seed: u64) -> u64 {
    word(value.cast_unsigned(), seed)
}

/// `hashint8extended`, and of instants by their microseconds: that of the narrower types for values that these hold.
pub(crate) fn bigint(value: i64, seed: u64) -> u64 {
    let unsigned = value.cast_unsigned();
    let above = if value >= 0 {
        high(unsigned)
    } else {
        !high(unsigned)
    };
    word(low(unsigned) ^ above, seed)
}

/// `hashfloat8extended`, and `hashfloat4extended`, which widens: both zeros are one value, and so are all NaNs.
pub(crate) fn double(value: f64, seed: u64) -> u64 {
    if value == 0.0 {
        return seed;
    }
    let value = if value.is_nan() {
        f64::from_bits(0x7ff8_0000_0000_0000)
    } else {
        value
    };
    bytes(&value.to_le_bytes(), seed)
}

/// `hash_numeric_extended` of digits in base 10,000, most significant first, of which the first stands for a multiple
/// of 10,000 to the power of `weight`. Sign and zeros at either end change nothing.
pub(crate) fn numeric(digits: &[u16], weight: i64, seed: u64) -> u64 {
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    let digits = &digits[zeros..];
    let end = digits.iter().rev().take_while(|digit| **digit == 0).count();
    let digits = &digits[..digits.len() - end];
    if digits.is_empty() {
        return seed.wrapping_sub(1);
    }
    let weight = weight.wrapping_sub(i64::try_from(zeros).unwrap_or(i64::MAX));
    // Nearly every number fits, and needs no memory of its own.
    let mut buffer = [0; 48];
    let hash = if let Some(filled) = buffer.get_mut(..2 * digits.len()) {
        for (place, digit) in filled.as_chunks_mut().0.iter_mut().zip(digits) {
            *place = digit.to_le_bytes();
        }
        bytes(filled, seed)
    } else {
        let all: Vec<u8> = digits
            .iter()
            .flat_map(|digit| digit.to_le_bytes())
            .collect();
        bytes(&all, seed)
    };
    hash ^ weight.cast_unsigned()
}
