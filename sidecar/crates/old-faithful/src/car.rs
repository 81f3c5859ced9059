//! `CARv1` framing: the header, and sections cut out of bytes as they arrive. What sections hold belongs in
//! [`node`](crate::node).

use crate::cbor::Cursor;
use crate::error::Malformed;

/// A CID as every section of the archive has it: version 1, DAG-CBOR, SHA-256, and the hash.
pub const CID_BYTES: usize = 36;
/// What such a CID begins with.
pub const CID_PREFIX: [u8; 4] = [0x01, 0x71, 0x12, 0x20];
/// The largest section that is accepted, in bytes. Real ones are below 2 MiB.
pub const MAXIMUM_SECTION_BYTES: u64 = 32 << 20;
/// The largest header that is accepted, in bytes. Real ones have 59.
pub const MAXIMUM_HEADER_BYTES: usize = 4096;

/// Why sections cannot be cut out of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CarFault {
    /// The bytes are no sections.
    #[error("{0}")]
    Malformed(&'static str),
    /// A section is larger than [`MAXIMUM_SECTION_BYTES`].
    #[error("a section of {0} bytes")]
    TooLarge(u64),
}

/// Reads a LEB128 number: its value and length, or `None` when `bytes` end inside it.
#[inline]
pub fn uvarint(bytes: &[u8]) -> Result<Option<(u64, usize)>, CarFault> {
    // What nearly all sections' lengths are.
    if let [first @ 0x80..=0xff, second @ 0..=0x7f, ..] = *bytes {
        return Ok(Some((u64::from(first & 0x7f) | u64::from(second) << 7, 2)));
    }
    let mut value = 0_u64;
    for (place, byte) in bytes.iter().take(10).enumerate() {
        let low = u64::from(byte & 0x7f);
        if place == 9 && low > 1 {
            break;
        }
        value |= low << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some((value, place + 1)));
        }
    }
    if bytes.len() < 10 {
        Ok(None)
    } else {
        Err(CarFault::Malformed("a length has more than 64 bits"))
    }
}

/// The length of the CAR header at the start of a file: where its sections begin. `None` when `bytes` end
/// inside it.
pub fn header_length(bytes: &[u8]) -> Result<Option<usize>, CarFault> {
    let Some((length, prefix)) = uvarint(bytes)? else {
        return Ok(None);
    };
    let length = usize::try_from(length)
        .ok()
        .filter(|length| (1..=MAXIMUM_HEADER_BYTES).contains(length))
        .ok_or(CarFault::Malformed("it does not begin with a CAR header"))?;
    let Some(header) = bytes.get(prefix..prefix + length) else {
        return Ok(None);
    };
    match check_header(header) {
        Ok(true) => Ok(Some(prefix + length)),
        _ => Err(CarFault::Malformed("it does not begin with a CARv1 header")),
    }
}

/// Whether a header is `{"roots": [...], "version": 1}`.
fn check_header(header: &[u8]) -> Result<bool, Malformed> {
    const ROOTS: &[u8] = b"\xa2\x65roots";
    const VERSION: &[u8] = b"\x67version\x01";
    let mut cursor = Cursor::new(header);
    if cursor.take(ROOTS.len())? != ROOTS {
        return Ok(false);
    }
    cursor.skip()?;
    Ok(cursor.take(VERSION.len())? == VERSION && cursor.is_at_end())
}

/// A section: a CID and the node that it names.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    /// Where the section begins, in bytes from the start of the file.
    pub offset: u64,
    /// The section's length in bytes, with its own length and CID.
    pub length: u64,
    /// The hash in its CID.
    pub hash: &'a [u8; 32],
    /// The node's bytes.
    pub node: &'a [u8],
}

/// Cuts sections out of the first bytes of `bytes`; `None` when they end inside it.
#[inline]
fn cut(bytes: &[u8], offset: u64) -> Result<Option<Section<'_>>, CarFault> {
    let Some((length, prefix)) = uvarint(bytes)? else {
        return Ok(None);
    };
    if length > MAXIMUM_SECTION_BYTES {
        return Err(CarFault::TooLarge(length));
    }
    if length <= CID_BYTES as u64 {
        return Err(CarFault::Malformed(
            "a section is too short for a CID and a node",
        ));
    }
    #[allow(clippy::cast_possible_truncation)] // At most MAXIMUM_SECTION_BYTES.
    let end = prefix + length as usize;
    let available = bytes.get(prefix..end.min(bytes.len())).unwrap_or_default();
    if available.len() >= CID_PREFIX.len() && !available.starts_with(&CID_PREFIX) {
        return Err(CarFault::Malformed(
            "a section does not begin with a CID of DAG-CBOR and SHA-256",
        ));
    }
    if bytes.len() < end {
        return Ok(None);
    }
    let Some((cid, node)) = available.split_first_chunk::<CID_BYTES>() else {
        return Ok(None);
    };
    let Some((_, hash)) = cid.split_last_chunk::<32>() else {
        return Ok(None);
    };
    Ok(Some(Section {
        offset,
        length: end as u64,
        hash,
        node,
    }))
}

/// Cuts sections out of bytes that arrive in pieces of any size. Only a section that straddles pieces is copied.
#[derive(Debug)]
pub struct SectionFeed {
    /// The file offset of the first byte not yet handed on.
    offset: u64,
    /// The beginning of a section whose end has not arrived.
    carry: Vec<u8>,
}

/// What stopped [`SectionFeed::push`].
#[derive(Debug)]
pub enum FeedError<E> {
    /// The bytes at this offset are no section.
    Car(u64, CarFault),
    /// The receiver of sections refused one.
    Receiver(E),
}

impl SectionFeed {
    /// Begins at `offset` of the file, where a section must begin.
    #[must_use]
    pub fn new(offset: u64) -> Self {
        Self {
            offset,
            carry: Vec::new(),
        }
    }

    /// The file offset of the first byte not yet handed on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the bytes so far end where a section ends.
    pub fn is_at_boundary(&self) -> bool {
        self.carry.is_empty()
    }

    /// Takes the next bytes of the file and hands each section that is now whole to `receive`.
    pub fn push<E>(
        &mut self,
        mut bytes: &[u8],
        mut receive: impl FnMut(Section<'_>) -> Result<(), E>,
    ) -> Result<(), FeedError<E>> {
        while !self.carry.is_empty() && !bytes.is_empty() {
            let wanted = self
                .wanted()
                .map_err(|fault| FeedError::Car(self.offset, fault))?;
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.carry.extend_from_slice(now);
            bytes = later;
            let section = cut(&self.carry, self.offset)
                .map_err(|fault| FeedError::Car(self.offset, fault))?;
            if let Some(section) = section {
                let length = section.length;
                receive(section).map_err(FeedError::Receiver)?;
                self.offset += length;
                self.carry.clear();
            }
        }
        loop {
            let section =
                cut(bytes, self.offset).map_err(|fault| FeedError::Car(self.offset, fault))?;
            let Some(section) = section else { break };
            let length = section.length;
            receive(section).map_err(FeedError::Receiver)?;
            self.offset += length;
            #[allow(clippy::cast_possible_truncation)] // At most the length of `bytes`.
            let used = length as usize;
            bytes = &bytes[used..];
        }
        self.carry.extend_from_slice(bytes);
        Ok(())
    }

    /// How many bytes the carried section still lacks, as far as is known: never more than up to its end.
    fn wanted(&self) -> Result<usize, CarFault> {
        let Some((length, prefix)) = uvarint(&self.carry)? else {
            return Ok(1);
        };
        if length > MAXIMUM_SECTION_BYTES {
            return Err(CarFault::TooLarge(length));
        }
        #[allow(clippy::cast_possible_truncation)] // At most MAXIMUM_SECTION_BYTES.
        let end = prefix + length as usize;
        Ok(end.saturating_sub(self.carry.len()).max(1))
    }
}
