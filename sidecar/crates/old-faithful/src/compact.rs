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

impl CompactHeader {
    /// Reads the header at the beginning of a file. `values` is the size that its values must have, in bytes.
    pub fn parse(beginning: &[u8], values: usize) -> Result<Self, String> {
        let short = || "it ends inside its header".to_owned();
        let (magic, rest) = beginning.split_first_chunk::<8>().ok_or_else(short)?;
        if magic != MAGIC {
            return Err("it is no compact index: it does not begin with compiszd".to_owned());
        }
        let (length, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAXIMUM_HEADER_BYTES - 12 {
            return Err(format!("its header of {length} bytes is too large"));
        }
        let rest = rest.get(..length).ok_or_else(short)?;
        let (value_bytes, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (buckets, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (&[version, pairs], rest) = rest.split_first_chunk().ok_or_else(short)?;
        let value_bytes = u64::from_le_bytes(*value_bytes);
        if value_bytes != values as u64 {
            return Err(format!(
                "its values have {value_bytes} bytes instead of {values}"
            ));
        }
        let buckets = u32::from_le_bytes(*buckets);
        if buckets == 0 || buckets > MAXIMUM_BUCKETS {
            return Err(format!("it has {buckets} buckets"));
        }
        if version != 1 {
            return Err(format!("it is of version {version}, only 1 is known"));
        }
        let mut rest = rest;
        let mut text = || -> Result<Vec<u8>, String> {
            let (&length, after) = rest.split_first().ok_or_else(short)?;
            let text = after.get(..usize::from(length)).ok_or_else(short)?;
            rest = &after[text.len()..];
            Ok(text.to_vec())
        };
        let pairs = (0..pairs)
            .map(|_| Ok((text()?, text()?)))
            .collect::<Result<_, String>>()?;
        Ok(Self {
            value_bytes: values,
            buckets,
            table_offset: 12 + length as u64,
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
            return Err(format!("it ends before the line of bucket {number}"));
        };
        if usize::from(hash) != HASH_BYTES {
            return Err(format!(
                "bucket {number} keeps {hash} bytes of a hash instead of {HASH_BYTES}"
            ));
        }
        let entries = u32::from_le_bytes([e0, e1, e2, e3]);
        let bytes = u64::from(entries) * header.entry_bytes() as u64;
        let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, 0, 0]);
        if bytes > MAXIMUM_BUCKET_BYTES {
            return Err(format!("bucket {number} has {entries} entries"));
        }
        if offset < header.table_offset + header.table_bytes() || offset + bytes > file_bytes {
            return Err(format!(
                "bucket {number} lies at bytes {offset}..{}, outside of the file's {file_bytes}",
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
