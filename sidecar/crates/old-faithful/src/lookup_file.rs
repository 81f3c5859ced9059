//! What an archive's scans learned of lookup tables, as bytes that another process goes on with.
//!
//! A wrong fingerprint would dismiss a transaction that matches, and nobody would notice. So the bytes are taken whole or not at all: they
//! state their length and end with the SHA-256 of all before it; they are of one network; and they name the CAR headers of the epochs that
//! were read, one of which the archive must still have. A header names its epoch's root, a hash over all that the epoch holds, so that another
//! archive at the same address is not taken for this one.
//!
//! Version 1, little endian: `uho-look` · version u32 · length u64 of everything · network {u32 length, text} · epochs {u32 count, each {epoch
//! u64, SHA-256 of its CAR header}} · tables {u32 count, each {address 32, a bit per known index 32, a fingerprint u32 per bit}} · SHA-256.

use sha2::{Digest, Sha256};

use crate::lookup::{Indexes, LearnedTables};
use crate::model::Pubkey;

const MAGIC: &[u8; 8] = b"uho-look";
/// Counts up whenever a fingerprint means something else, too.
const VERSION: u32 = 1;
/// What [`Archive::learned_tables`](crate::Archive::learned_tables) yields at most, in bytes, and what is taken back.
pub const LEARNED_TABLES_BYTES_AT_MOST: u64 = 48 << 20;
const HASH_BYTES: usize = 32;

/// The SHA-256 of a CAR header, by epoch.
pub(crate) type Headers = Vec<(u64, [u8; HASH_BYTES])>;

/// What such bytes hold.
pub(crate) struct Contents {
    pub(crate) headers: Headers,
    pub(crate) tables: Vec<(Pubkey, Indexes, Vec<u32>)>,
}

/// Everything learned, for a network; `None` when nothing was, or of epochs unknown.
pub(crate) fn write(learned: &LearnedTables, network: &str) -> Option<Vec<u8>> {
    let headers = learned.headers();
    let tables = learned.tables();
    if headers.is_empty() || tables.is_empty() {
        return None;
    }
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(u32::try_from(network.len()).ok()?.to_le_bytes());
    bytes.extend(network.as_bytes());
    bytes.extend(u32::try_from(headers.len()).ok()?.to_le_bytes());
    for (epoch, hash) in headers {
        bytes.extend(epoch.to_le_bytes());
        bytes.extend(hash);
    }
    bytes.extend(u32::try_from(tables.len()).ok()?.to_le_bytes());
    for (address, known, fingerprints) in tables {
        bytes.extend(address);
        bytes.extend(known.to_bytes());
        for fingerprint in fingerprints {
            bytes.extend(fingerprint.to_le_bytes());
        }
    }
    let length = (bytes.len() + HASH_BYTES) as u64;
    bytes[12..20].copy_from_slice(&length.to_le_bytes());
    let hash = Sha256::digest(&bytes);
    bytes.extend(hash);
    (length <= LEARNED_TABLES_BYTES_AT_MOST).then_some(bytes)
}

/// Reads what [`write`] wrote of the same network.
pub(crate) fn read(bytes: &[u8], network: &str) -> Result<Contents, String> {
    let Some((body, hash)) = bytes.split_last_chunk::<HASH_BYTES>() else {
        return Err(format!("it has {} bytes, too few for any", bytes.len()));
    };
    let mut rest = Rest(body);
    if rest.take(MAGIC.len())? != MAGIC {
        return Err("it is no file of learned lookup tables".to_owned());
    }
    let version = rest.number()?;
    if version != VERSION {
        return Err(format!("it is of version {version}, not {VERSION}"));
    }
    let length = u64::from_le_bytes(rest.array()?);
    if length != bytes.len() as u64 {
        return Err(format!("it has {} bytes, but says {length}", bytes.len()));
    }
    if Sha256::digest(body).as_slice() != hash {
        return Err("its SHA-256 is not that of its contents: it is damaged".to_owned());
    }
    let length = rest.number()? as usize;
    let of = rest.take(length)?;
    if of != network.as_bytes() {
        return Err(format!(
            "it is of the network {}",
            String::from_utf8_lossy(of)
        ));
    }
    let mut contents = Contents {
        headers: Vec::new(),
        tables: Vec::new(),
    };
    for _ in 0..rest.number()? {
        let epoch = u64::from_le_bytes(rest.array()?);
        contents.headers.push((epoch, rest.array()?));
    }
    for _ in 0..rest.number()? {
        let address = rest.array()?;
        let known = Indexes::from_bytes(rest.array()?);
        let fingerprints = known.iter().map(|_| rest.number());
        let fingerprints = fingerprints.collect::<Result<Vec<_>, _>>()?;
        contents.tables.push((address, known, fingerprints));
    }
    if rest.0.is_empty() {
        Ok(contents)
    } else {
        Err(format!("{} bytes are left over", rest.0.len()))
    }
}

/// Bytes not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (now, later) = self
            .0
            .split_at_checked(length)
            .ok_or("it ends inside a field")?;
        self.0 = later;
        Ok(now)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (now, later) = self.0.split_first_chunk().ok_or("it ends inside a field")?;
        self.0 = later;
        Ok(*now)
    }

    fn number(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }
}
