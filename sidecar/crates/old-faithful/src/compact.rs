//! A compact index: values of one size behind hashes of their keys, in buckets. The keys themselves are not stored,
//! so that an absent key may answer with the value of another. Only the layout is known here; what it is used for
//! belongs in [`slot_to_cid`](crate::slot_to_cid).
//!
//! `compiszd`, u32 length of the rest of the header; value size u64, buckets u32, version u8, {key, value} pairs. Then
//! 16 bytes a bucket, and the buckets: {hash, value} entries as an Eytzinger tree.

use xxhash_rust::xxh64::xxh64;

const MAGIC: &[u8; 8] = b"compiszd";
/// The header's largest size in bytes. Real ones have about 120.
pub const MAXIMUM_HEADER_BYTES: usize = 4096;
/// A bucket's line in the table, in bytes.
pub const BUCKET_LINE_BYTES: usize = 16;
/// The bytes of a hash that are kept.
const HASH_BYTES: usize = 3;
/// Buckets of an index at most: of those that real ones have, ten times as many.
pub const MAXIMUM_BUCKETS: u32 = 4_000_000;
/// The largest bucket in bytes. Real ones have about 10,000 entries.
pub const MAXIMUM_BUCKET_BYTES: u64 = 16 << 20;

/// An index file's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactHeader {
    /// The size of a value in bytes.
    pub value_bytes: usize,
    /// How many buckets there are.
    pub buckets: u32,
    /// Where the table of buckets begins in the file.
    pub table_offset: u64,
    /// What the file says of itself, by name.
    pub pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads a header's fields, front to back.
struct Header<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Header<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let Some(taken) = self.bytes.get(self.at..self.at + count) else {
            return Err(format!(
                "its header ends at byte {}, within a field that begins at byte {}",
                self.bytes.len(),
                self.at
            ));
        };
        self.at += count;
        Ok(taken)
    }

    fn array<const COUNT: usize>(&mut self) -> Result<[u8; COUNT], String> {
        let taken = self.take(COUNT)?;
        taken
            .try_into()
            .map_err(|_| self.wrong(COUNT, "a field is short"))
    }

    /// A byte that says how long a text is, and the text.
    fn text(&mut self) -> Result<Vec<u8>, String> {
        let [length] = self.array()?;
        self.take(usize::from(length)).map(<[u8]>::to_vec)
    }

    /// What is wrong with the field of `count` bytes that was just read.
    fn wrong(&self, count: usize, reason: impl std::fmt::Display) -> String {
        format!("{reason} (byte {})", self.at - count)
    }
}

impl CompactHeader {
    /// Reads the header at the beginning of a file. `values` is the size that its values must have, in bytes.
    pub fn parse(beginning: &[u8], values: usize) -> Result<Self, String> {
        let mut header = Header {
            bytes: beginning,
            at: 0,
        };
        if header.take(MAGIC.len())? != MAGIC {
            return Err("it is no compact index: byte 0 does not begin compiszd".to_owned());
        }
        let length = u32::from_le_bytes(header.array()?) as usize;
        if length > MAXIMUM_HEADER_BYTES - header.at {
            return Err(format!(
                "its header of {length} bytes, by the length at byte 8, is too large"
            ));
        }
        let table_offset = header.at + length;
        header.bytes = beginning.get(..table_offset).ok_or_else(|| {
            format!(
                "it ends at byte {}, inside its header, which by the length at byte 8 ends at byte {table_offset}",
                beginning.len()
            )
        })?;
        let value_bytes = u64::from_le_bytes(header.array()?);
        if value_bytes != values as u64 {
            return Err(header.wrong(
                8,
                format!("its values have {value_bytes} bytes instead of {values}"),
            ));
        }
        let buckets = u32::from_le_bytes(header.array()?);
        if buckets == 0 || buckets > MAXIMUM_BUCKETS {
            return Err(header.wrong(4, format!("it has {buckets} buckets")));
        }
        let [version, pairs] = header.array()?;
        if version != 1 {
            let reason = format!("it is of version {version}, only 1 is known");
            return Err(header.wrong(2, reason));
        }
        let pairs = (0..pairs)
            .map(|_| Ok((header.text()?, header.text()?)))
            .collect::<Result<_, String>>()?;
        Ok(Self {
            value_bytes: values,
            buckets,
            table_offset: table_offset as u64,
            pairs,
        })
    }

    /// What the file says of itself under `name`.
    #[must_use]
    pub fn pair(&self, name: &str) -> Option<&[u8]> {
        let pair = self.pairs.iter().find(|(key, _)| key == name.as_bytes());
        pair.map(|(_, value)| value.as_slice())
    }

    /// The bytes of the table of buckets.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.buckets) * BUCKET_LINE_BYTES as u64
    }

    /// The bucket that `key` is in, if it is in any.
    #[must_use]
    pub fn bucket_of(&self, key: &[u8]) -> u32 {
        u32::try_from(xxh64(key, 0) % u64::from(self.buckets)).unwrap_or_default()
    }

    fn entry_bytes(&self) -> usize {
        HASH_BYTES + self.value_bytes
    }
}

/// Where a bucket is, and how its keys are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    domain: u32,
    /// Where its entries begin in the file.
    pub offset: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Bucket {
    /// Reads the line of bucket `number` out of the table. `file_bytes` is the file's size.
    pub fn parse(
        header: &CompactHeader,
        table: &[u8],
        number: u32,
        file_bytes: u64,
    ) -> Result<Self, String> {
        let at = number as usize * BUCKET_LINE_BYTES;
        let wrong = |reason: String| {
            let place = header.table_offset + at as u64;
            Err(format!(
                "bucket {number}, by its line at byte {place}, {reason}"
            ))
        };
        let line = table
            .get(at..)
            .and_then(<[u8]>::first_chunk::<BUCKET_LINE_BYTES>);
        let Some(
            &[
                d0,
                d1,
                d2,
                d3,
                e0,
                e1,
                e2,
                e3,
                hash,
                _,
                o0,
                o1,
                o2,
                o3,
                o4,
                o5,
            ],
        ) = line
        else {
            return wrong("has none: the table ends before it".to_owned());
        };
        if usize::from(hash) != HASH_BYTES {
            return wrong(format!(
                "keeps {hash} bytes of a hash instead of {HASH_BYTES}"
            ));
        }
        let entries = u32::from_le_bytes([e0, e1, e2, e3]);
        let bytes = u64::from(entries) * header.entry_bytes() as u64;
        let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, 0, 0]);
        if bytes > MAXIMUM_BUCKET_BYTES {
            return wrong(format!("has {entries} entries, {bytes} bytes"));
        }
        if offset < header.table_offset + header.table_bytes() || offset + bytes > file_bytes {
            return wrong(format!(
                "lies at bytes {offset}..{}, outside of the file's {file_bytes}",
                offset + bytes
            ));
        }
        Ok(Self {
            domain: u32::from_le_bytes([d0, d1, d2, d3]),
            offset,
            bytes,
        })
    }

    /// The value of `key` among the bucket's `entries`: its own, or, when the key is absent, nothing or another's.
    #[must_use]
    pub fn find<'a>(
        &self,
        header: &CompactHeader,
        entries: &'a [u8],
        key: &[u8],
    ) -> Option<&'a [u8]> {
        let mut block = [0; 32];
        block[..4].copy_from_slice(&self.domain.to_le_bytes());
        let hashed = xxh64(&[&block[..], key].concat(), 0) & 0xff_ffff;
        let (mut node, size) = (0_usize, header.entry_bytes());
        loop {
            let entry = entries.get(node.checked_mul(size)?..)?.get(..size)?;
            let &[h0, h1, h2] = entry.first_chunk()?;
            let found = u64::from(u32::from_le_bytes([h0, h1, h2, 0]));
            if found == hashed {
                return entry.get(HASH_BYTES..);
            }
            node = 2 * node + if found < hashed { 2 } else { 1 };
        }
    }
}
