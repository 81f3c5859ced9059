//! Writing the few shapes of DAG-CBOR that archive nodes consist of.
//!
//! Only encoding, and independent of the reader: the two must agree by the format alone.

use crate::car::Cid;

/// A node under construction: CBOR bytes, appended to.
#[derive(Debug, Default)]
pub(crate) struct Node(pub(crate) Vec<u8>);

impl Node {
    /// Begins an array of `length` items.
    pub(crate) fn array(length: usize) -> Self {
        let mut node = Self::default();
        node.begin_array(length);
        node
    }

    fn head(&mut self, major: u8, value: u64) {
        let major = major << 5;
        let bytes = value.to_be_bytes();
        match value {
            0..24 => self.0.push(major | bytes[7]),
            24..0x100 => self.0.extend([major | 0x18, bytes[7]]),
            0x100..0x1_0000 => {
                self.0.push(major | 0x19);
                self.0.extend(&bytes[6..]);
            }
            0x1_0000..0x1_0000_0000 => {
                self.0.push(major | 0x1a);
                self.0.extend(&bytes[4..]);
            }
            _ => {
                self.0.push(major | 0x1b);
                self.0.extend(bytes);
            }
        }
    }

    pub(crate) fn begin_array(&mut self, length: usize) {
        self.head(4, length as u64);
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
        self.head(2, value.len() as u64);
        self.0.extend_from_slice(value);
    }

    pub(crate) fn null(&mut self) {
        self.0.push(0xf6);
    }

    /// A link: tag 42 on a byte string that begins with 0x00.
    pub(crate) fn link(&mut self, cid: &[u8]) {
        self.head(6, 42);
        self.head(2, cid.len() as u64 + 1);
        self.0.push(0);
        self.0.extend_from_slice(cid);
    }

    pub(crate) fn links(&mut self, cids: &[Cid]) {
        self.begin_array(cids.len());
        for cid in cids {
            self.link(cid);
        }
    }
}
