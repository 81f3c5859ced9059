//! Writing the few shapes of DAG-CBOR that archive nodes consist of.
//!
//! Only encoding, and independent of the reader: the two must agree by the format alone.

use crate::car::Cid;

/// A node under construction: CBOR bytes, appended to.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) encoded: Vec<u8>,
    /// Whether heads of arrays and payloads are longer than they need to be, as some writers of archives made them.
    pub(crate) roomy: bool,
}

impl Node {
    /// Begins an array of `length` items.
    pub(crate) fn array(length: usize) -> Self {
        Self::array_in_style(length, false)
    }

    /// Begins an array of `length` items, with roomy heads or without.
    pub(crate) fn array_in_style(length: usize, roomy: bool) -> Self {
        let mut node = Self {
            encoded: Vec::new(),
            roomy,
        };
        node.begin_array(length);
        node
    }

    /// A head with a length of 16 bits, or 32 if need be, whatever the length: `99 00 04`.
    fn roomy_head(&mut self, major: u8, length: usize) {
        if let Ok(length) = u16::try_from(length) {
            self.encoded.push(major << 5 | 0x19);
            self.encoded.extend(length.to_be_bytes());
        } else {
            self.encoded.push(major << 5 | 0x1a);
            self.encoded.extend((length as u32).to_be_bytes());
        }
    }

    fn head(&mut self, major: u8, value: u64) {
        let major = major << 5;
        let bytes = value.to_be_bytes();
        match value {
            0..24 => self.encoded.push(major | bytes[7]),
            24..0x100 => self.encoded.extend([major | 0x18, bytes[7]]),
            0x100..0x1_0000 => {
                self.encoded.push(major | 0x19);
                self.encoded.extend(&bytes[6..]);
            }
            0x1_0000..0x1_0000_0000 => {
                self.encoded.push(major | 0x1a);
                self.encoded.extend(&bytes[4..]);
            }
            _ => {
                self.encoded.push(major | 0x1b);
                self.encoded.extend(bytes);
            }
        }
    }

    pub(crate) fn begin_array(&mut self, length: usize) {
        if self.roomy {
            self.roomy_head(4, length);
        } else {
            self.head(4, length as u64);
        }
    }

    pub(crate) fn unsigned(&mut self, value: u64) {
        self.head(0, value);
    }

    /// An integer of either sign; checksums are stored so.
    pub(crate) fn signed(&mut self, value: i64) {
        if value < 0 {
            self.head(1, (!value).cast_unsigned());
        } else {
            self.head(0, value.unsigned_abs());
        }
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        if self.roomy {
            self.roomy_head(2, value.len());
        } else {
            self.head(2, value.len() as u64);
        }
        self.encoded.extend_from_slice(value);
    }

    pub(crate) fn null(&mut self) {
        self.encoded.push(0xf6);
    }

    /// A link: tag 42 on a byte string that begins with 0x00.
    pub(crate) fn link(&mut self, cid: &[u8]) {
        self.head(6, 42);
        self.head(2, cid.len() as u64 + 1);
        self.encoded.push(0);
        self.encoded.extend_from_slice(cid);
    }

    pub(crate) fn links<'a>(
        &mut self,
        cids: impl IntoIterator<Item = &'a Cid, IntoIter: ExactSizeIterator>,
    ) {
        let cids = cids.into_iter();
        self.begin_array(cids.len());
        for cid in cids {
            self.link(cid);
        }
    }
}
