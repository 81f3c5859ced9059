//! The little of CBOR that the archive's nodes need: heads of any length (they need not be minimal), integers of
//! either sign, byte strings, arrays, links, null. Nothing here knows what a node means.
//!
//! Heads: RFC 8949, section 3. Links: tag 42 on a byte string of 0x00 and a CID, as DAG-CBOR defines it.

use crate::error::Malformed;

/// The deepest nesting that is skipped: nodes have 3 levels.
const MAXIMUM_DEPTH: u8 = 16;

/// A link as the archive writes it: tag 42, a byte string of 37 bytes, 0x00.
const LINK_HEAD: [u8; 5] = [0xd8, 0x2a, 0x58, 0x25, 0x00];
/// A link's bytes when it is written with [`LINK_HEAD`] and a CID of 36 bytes.
const LINK_BYTES: usize = 41;

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
const SIMPLE: u8 = 7;
const NULL: u64 = 22;

/// Reads CBOR items from bytes, front to back.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Begins at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    #[inline]
    pub fn position(&self) -> usize {
        self.at
    }

    /// Whether every byte was read.
    #[inline]
    pub fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    #[inline(always)]
    fn fault(&self, reason: &'static str) -> Malformed {
        Malformed::new(reason, self.at)
    }

    #[inline(always)]
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Reads `count` bytes.
    #[inline(always)]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(count);
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => Err(self.fault("it ends inside a value")),
        }
    }

    /// Reads an item's head: its major type and its value or length.
    #[inline(always)]
    fn head(&mut self) -> Result<(u8, u64), Malformed> {
        let Some(&first) = self.bytes.get(self.at) else {
            return Err(self.fault("it ends where a value should begin"));
        };
        self.at += 1;
        let (major, low) = (first >> 5, first & 31);
        if low < 24 {
            return Ok((major, u64::from(low)));
        }
        let value = match low {
            24 => u64::from(u8::from_be_bytes(self.array_of()?)),
            25 => u64::from(u16::from_be_bytes(self.array_of()?)),
            26 => u64::from(u32::from_be_bytes(self.array_of()?)),
            27 => u64::from_be_bytes(self.array_of()?),
            _ => return Err(self.fault("indefinite lengths are not allowed")),
        };
        Ok((major, value))
    }

    #[inline(always)]
    fn array_of<const COUNT: usize>(&mut self) -> Result<[u8; COUNT], Malformed> {
        match self.bytes.get(self.at..).and_then(<[u8]>::first_chunk) {
            Some(taken) => {
                self.at += COUNT;
                Ok(*taken)
            }
            None => Err(self.fault("it ends inside a value")),
        }
    }

    /// Reads an array's head: the number of its elements, each of which takes at least a byte.
    #[inline(always)]
    pub fn array(&mut self) -> Result<usize, Malformed> {
        match self.head()? {
            (ARRAY, count) => self.bounded(count),
            _ => Err(self.fault("an array was expected")),
        }
    }

    /// Reads an array's head, or null (as `None`).
    #[inline(always)]
    pub fn optional_array(&mut self) -> Result<Option<usize>, Malformed> {
        match self.head()? {
            (ARRAY, count) => self.bounded(count).map(Some),
            (SIMPLE, NULL) => Ok(None),
            _ => Err(self.fault("an array or null was expected")),
        }
    }

    #[inline(always)]
    fn bounded(&self, count: u64) -> Result<usize, Malformed> {
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= self.left())
            .ok_or_else(|| self.fault("a length exceeds the bytes that are left"))
    }

    /// Reads an unsigned integer.
    #[inline(always)]
    pub fn unsigned(&mut self) -> Result<u64, Malformed> {
        match self.head()? {
            (UNSIGNED, value) => Ok(value),
            _ => Err(self.fault("an unsigned integer was expected")),
        }
    }

    /// Reads an unsigned integer, or null (as `None`).
    #[inline(always)]
    pub fn optional_unsigned(&mut self) -> Result<Option<u64>, Malformed> {
        match self.head()? {
            (UNSIGNED, value) => Ok(Some(value)),
            (SIMPLE, NULL) => Ok(None),
            _ => Err(self.fault("an unsigned integer or null was expected")),
        }
    }

    /// Reads 64 bits that were written as an integer of either sign, or null (as `None`).
    #[inline(always)]
    pub fn optional_bits(&mut self) -> Result<Option<u64>, Malformed> {
        match self.head()? {
            (UNSIGNED, value) => Ok(Some(value)),
            // CBOR writes −1 − n as n, which is the complement of its bits.
            (NEGATIVE, value) => Ok(Some(!value)),
            (SIMPLE, NULL) => Ok(None),
            _ => Err(self.fault("an integer or null was expected")),
        }
    }

    /// Reads a signed integer, or null (as `None`).
    pub fn optional_signed(&mut self) -> Result<Option<i64>, Malformed> {
        let (major, value) = self.head()?;
        let signed = i64::try_from(value).map_err(|_| self.fault("an integer exceeds 64 bits"));
        match (major, value) {
            (UNSIGNED, _) => signed.map(Some),
            (NEGATIVE, _) => signed.map(|value| Some(!value)),
            (SIMPLE, NULL) => Ok(None),
            _ => Err(self.fault("an integer or null was expected")),
        }
    }

    /// Reads a byte string.
    #[inline(always)]
    pub fn byte_string(&mut self) -> Result<&'a [u8], Malformed> {
        match self.head()? {
            (BYTES, count) => {
                let count = self.bounded(count)?;
                self.take(count)
            }
            _ => Err(self.fault("a byte string was expected")),
        }
    }

    /// Reads a link: its CID's bytes.
    #[inline]
    pub fn link(&mut self) -> Result<&'a [u8], Malformed> {
        if let Some(bytes) = self.bytes.get(self.at..self.at + LINK_BYTES)
            && bytes.starts_with(&LINK_HEAD)
        {
            self.at += LINK_BYTES;
            return Ok(&bytes[LINK_HEAD.len()..]);
        }
        if self.head()? != (TAG, 42) {
            return Err(self.fault("a link was expected"));
        }
        match self.byte_string()?.split_first() {
            Some((0, cid)) => Ok(cid),
            _ => Err(self.fault("a link does not begin with 0x00")),
        }
    }

    /// Reads `count` links, to be looked at later.
    pub fn links(&mut self, count: usize) -> Result<Links<'a>, Malformed> {
        let links = Links {
            cursor: *self,
            count,
        };
        for _ in 0..count {
            self.link()?;
        }
        Ok(links)
    }

    /// Reads an item of any kind and forgets it.
    pub fn skip(&mut self) -> Result<(), Malformed> {
        self.skip_nested(0)
    }

    fn skip_nested(&mut self, depth: u8) -> Result<(), Malformed> {
        if depth >= MAXIMUM_DEPTH {
            return Err(self.fault("it is nested too deeply"));
        }
        let (major, value) = self.head()?;
        match major {
            BYTES | TEXT => {
                let count = self.bounded(value)?;
                self.take(count)?;
            }
            ARRAY | MAP => {
                let count = self.bounded(value)?;
                for _ in 0..if major == MAP { count * 2 } else { count } {
                    self.skip_nested(depth + 1)?;
                }
            }
            TAG => self.skip_nested(depth + 1)?,
            _ => {}
        }
        Ok(())
    }
}

/// Links that were read once without a fault. Iterating gives their CIDs' bytes.
#[derive(Debug, Clone, Copy)]
pub struct Links<'a> {
    cursor: Cursor<'a>,
    count: usize,
}

impl Links<'static> {
    /// No links.
    pub(crate) const NONE: Self = Self {
        cursor: Cursor { bytes: &[], at: 0 },
        count: 0,
    };
}

impl<'a> Links<'a> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The links' CIDs, in order.
    #[must_use]
    pub fn iter(&self) -> LinkIterator<'a> {
        LinkIterator {
            cursor: self.cursor,
            left: self.count,
        }
    }
}

impl<'a> IntoIterator for &Links<'a> {
    type Item = &'a [u8];
    type IntoIter = LinkIterator<'a>;

    fn into_iter(self) -> LinkIterator<'a> {
        self.iter()
    }
}

/// Iterates over [`Links`].
#[derive(Debug, Clone)]
pub struct LinkIterator<'a> {
    cursor: Cursor<'a>,
    left: usize,
}

impl<'a> Iterator for LinkIterator<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        self.cursor.link().ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}
