//! `jsonb_hash_extended` from JSON text: the hash that Postgres makes of the `jsonb` which it reads from that text.
//!
//! Postgres goes through keys, values and elements in `jsonb`'s order (an object's keys by length, then bytes, of equal
//! keys the last one alone). The hash so far is turned (each half by a bit to the left) before that of a scalar is
//! added by exclusive or, and where an array or object begins, a mark is added without a turn. Source: `jsonb_op.c` and
//! `jsonb_util.c`. Turns and exclusive or can change places: so each value has a hash of its own, with the number of
//! turns that it gives to what stands before it, and an object's members can be put in order when they are hashed.
//!
//! Text that is no JSON is refused where that is noticed; Postgres, which reads it too, notices always.

use std::borrow::Cow;

use crate::postgres_hash;

/// Marks of what begins, in both halves.
const ARRAY: u64 = 0x4000_0000_4000_0000;
const OBJECT: u64 = 0x2000_0000_2000_0000;

/// The deepest nesting; that of an IDL's types makes at most twice their 64 levels.
const MOST_DEPTH: usize = 512;

/// Exponents beyond are none of a number that `numeric` holds.
const MOST_EXPONENT: i64 = 200_000;

/// Decimal digits in a digit of `numeric`.
const DECIMALS: i64 = 4;

/// Hashes JSON texts, with memory that is used again.
#[derive(Default)]
pub(crate) struct Hasher {
    digits: Vec<u16>,
}

impl Hasher {
    /// The hash of a text; `None` when it is no JSON.
    pub(crate) fn hash(&mut self, text: &[u8], seed: u64) -> Option<u64> {
        let mut reader = Reader {
            rest: text,
            seed,
            digits: &mut self.digits,
            members: Vec::new(),
        };
        let value = reader.value(0)?;
        reader.skip_space();
        if !reader.rest.is_empty() {
            return None;
        }
        Some(match value.kind {
            Kind::Empty => seed,
            Kind::Container => value.hash,
            // A value alone is kept as an array of one.
            Kind::Scalar => turned(ARRAY, 1) ^ value.hash,
        })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Scalar,
    /// An array or object with something in it.
    Container,
    Empty,
}

/// A value's own hash, and how often what stands before it is turned.
#[derive(Clone, Copy)]
struct Value {
    hash: u64,
    turns: u32,
    kind: Kind,
}

impl Value {
    fn scalar(hash: u64) -> Self {
        Self {
            hash,
            turns: 1,
            kind: Kind::Scalar,
        }
    }

    fn empty(mark: u64) -> Self {
        Self {
            hash: mark,
            turns: 0,
            kind: Kind::Empty,
        }
    }

    fn append(&mut self, next: Self) {
        self.hash = turned(self.hash, next.turns) ^ next.hash;
        self.turns = (self.turns + next.turns) % u32::BITS;
        self.kind = Kind::Container;
    }
}

/// Each half turned to the left by so many bits.
fn turned(hash: u64, turns: u32) -> u64 {
    let half = |half: u64| u32::try_from(half & u64::from(u32::MAX)).unwrap_or_default();
    let [high, low] = [hash >> 32, hash].map(|part| u64::from(half(part).rotate_left(turns)));
    high << 32 | low
}

struct Reader<'a, 'b> {
    rest: &'a [u8],
    seed: u64,
    digits: &'b mut Vec<u16>,
    /// Of all objects that are open, the innermost last.
    members: Vec<(Cow<'a, [u8]>, Value)>,
}

impl<'a> Reader<'a, '_> {
    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MOST_DEPTH {
            return None;
        }
        self.skip_space();
        match self.rest.first()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => {
                let text = self.string()?;
                Some(Value::scalar(postgres_hash::bytes(&text, self.seed)))
            }
            b't' => self.word(b"true", boolean(true, self.seed)),
            b'f' => self.word(b"false", boolean(false, self.seed)),
            b'n' => self.word(b"null", self.seed.wrapping_add(1)),
            _ => self.number(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        let own = self.members.len();
        self.rest = self.rest.get(1..)?;
        let mut value = Value::empty(OBJECT);
        if self.takes(b'}') {
            return Some(value);
        }
        loop {
            self.skip_space();
            let key = self.string()?;
            if !self.takes(b':') {
                return None;
            }
            let mut member = Value::scalar(postgres_hash::bytes(&key, self.seed));
            member.append(self.value(depth + 1)?);
            self.members.push((key, member));
            if !self.takes(b',') {
                break;
            }
        }
        if !self.takes(b'}') {
            return None;
        }
        let members = self.members.get_mut(own..)?;
        members.sort_by(|(one, _), (other, _)| (one.len(), one).cmp(&(other.len(), other)));
        for place in 0..members.len() {
            let (key, member) = &members[place];
            // Equal keys are still in the text's order: the last one counts.
            if members.get(place + 1).is_none_or(|(next, _)| next != key) {
                value.append(*member);
            }
        }
        self.members.truncate(own);
        Some(value)
    }

    fn array(&mut self, depth: usize) -> Option<Value> {
        self.rest = self.rest.get(1..)?;
        let mut value = Value::empty(ARRAY);
        if self.takes(b']') {
            return Some(value);
        }
        loop {
            value.append(self.value(depth + 1)?);
            if !self.takes(b',') {
                break;
            }
        }
        self.takes(b']').then_some(value)
    }

    /// A string's bytes, without its escapes.
    fn string(&mut self) -> Option<Cow<'a, [u8]>> {
        let text = self.rest.strip_prefix(b"\"")?;
        let plain = text.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if text[plain] == b'"' {
            self.rest = &text[plain + 1..];
            return Some(Cow::Borrowed(&text[..plain]));
        }
        let mut unescaped = text[..plain].to_vec();
        self.rest = &text[plain..];
        loop {
            match self.next_byte()? {
                b'"' => return Some(Cow::Owned(unescaped)),
                b'\\' => match self.next_byte()? {
                    byte @ (b'"' | b'\\' | b'/') => unescaped.push(byte),
                    b'b' => unescaped.push(8),
                    b'f' => unescaped.push(12),
                    b'n' => unescaped.push(b'\n'),
                    b'r' => unescaped.push(b'\r'),
                    b't' => unescaped.push(b'\t'),
                    b'u' => {
                        let character = self.escaped_character()?;
                        let mut bytes = [0; 4];
                        unescaped.extend_from_slice(character.encode_utf8(&mut bytes).as_bytes());
                    }
                    _ => return None,
                },
                byte => unescaped.push(byte),
            }
        }
    }

    /// What follows `\u`: four hexadecimal digits, or two such units for what one does not hold.
    fn escaped_character(&mut self) -> Option<char> {
        let first = self.unit()?;
        let mut units = vec![first];
        if (0xd800..0xdc00).contains(&first) {
            self.rest = self.rest.strip_prefix(b"\\u")?;
            units.push(self.unit()?);
        }
        let character = char::decode_utf16(units).next()?.ok()?;
        // Postgres refuses it.
        (character != '\0').then_some(character)
    }

    fn unit(&mut self) -> Option<u16> {
        let (digits, rest) = self.rest.split_at_checked(4)?;
        self.rest = rest;
        digits.iter().try_fold(0, |unit, byte| {
            let digit = char::from(*byte).to_digit(16)?;
            Some(unit << 4 | u16::try_from(digit).ok()?)
        })
    }

    fn number(&mut self) -> Option<Value> {
        self.takes_now(b'-');
        let whole = self.decimals();
        let fraction: &[u8] = if self.takes_now(b'.') {
            self.decimals()
        } else {
            &[]
        };
        if whole.is_empty() {
            return None;
        }
        let mut exponent = 0_i64;
        if self.takes_now(b'e') || self.takes_now(b'E') {
            let negative = self.takes_now(b'-');
            if !negative {
                self.takes_now(b'+');
            }
            let decimals = self.decimals();
            if decimals.is_empty() {
                return None;
            }
            for byte in decimals {
                exponent = exponent * 10 + i64::from(byte - b'0');
                if exponent > MOST_EXPONENT {
                    return None;
                }
            }
            exponent = if negative { -exponent } else { exponent };
        }
        // Digits of four decimals are counted from the point, which stands so many decimals after the first one.
        let point = i64::try_from(whole.len()).ok()? + exponent;
        let weight = (point - 1).div_euclid(DECIMALS);
        let mut missing = (point - 1).rem_euclid(DECIMALS) + 1;
        self.digits.clear();
        let mut digit = 0;
        for byte in whole.iter().chain(fraction) {
            digit = digit * 10 + u16::from(byte - b'0');
            missing -= 1;
            if missing == 0 {
                self.digits.push(digit);
                (digit, missing) = (0, DECIMALS);
            }
        }
        if missing < DECIMALS {
            for _ in 0..missing {
                digit *= 10;
            }
            self.digits.push(digit);
        }
        let hash = postgres_hash::numeric(self.digits, weight, self.seed);
        Some(Value::scalar(hash))
    }

    fn decimals(&mut self) -> &'a [u8] {
        let length = self
            .rest
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let (decimals, rest) = self.rest.split_at(length);
        self.rest = rest;
        decimals
    }

    fn word(&mut self, word: &[u8], hash: u64) -> Option<Value> {
        self.rest = self.rest.strip_prefix(word)?;
        Some(Value::scalar(hash))
    }

    fn next_byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*byte)
    }

    /// Takes this byte, if it is next but for space.
    fn takes(&mut self, byte: u8) -> bool {
        self.skip_space();
        self.takes_now(byte)
    }

    fn takes_now(&mut self, byte: u8) -> bool {
        let taken = self.rest.first() == Some(&byte);
        if taken {
            self.rest = &self.rest[1..];
        }
        taken
    }

    fn skip_space(&mut self) {
        while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }
}

fn boolean(value: bool, seed: u64) -> u64 {
    match (seed, value) {
        (0, true) => 2,
        (0, false) => 4,
        _ => postgres_hash::boolean(value, seed),
    }
}
