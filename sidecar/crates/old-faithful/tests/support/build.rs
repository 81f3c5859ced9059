//! Writes small archives for tests, from scratch and byte by byte, so that tests can also write wrong ones.
//! Shares no code with the reader but the hash.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail loudly.

use std::path::Path;

use sha2::{Digest, Sha256};

pub const SLOTS: u64 = 432_000;

/// A CBOR head of the least length.
pub fn head(major: u8, value: u64) -> Vec<u8> {
    let major = major << 5;
    match value {
        0..24 => vec![major | u8::try_from(value).unwrap()],
        24..0x100 => vec![major | 0x18, u8::try_from(value).unwrap()],
        0x100..0x1_0000 => {
            let mut bytes = vec![major | 0x19];
            bytes.extend_from_slice(&u16::try_from(value).unwrap().to_be_bytes());
            bytes
        }
        _ => {
            let mut bytes = vec![major | 0x1b];
            bytes.extend_from_slice(&value.to_be_bytes());
            bytes
        }
    }
}

pub fn array(items: &[Vec<u8>]) -> Vec<u8> {
    [head(4, items.len() as u64), items.concat()].concat()
}

pub fn number(value: u64) -> Vec<u8> {
    head(0, value)
}

pub fn negative(complement: u64) -> Vec<u8> {
    head(1, complement)
}

pub fn null() -> Vec<u8> {
    vec![0xf6]
}

pub fn byte_string(bytes: &[u8]) -> Vec<u8> {
    [head(2, bytes.len() as u64), bytes.to_vec()].concat()
}

pub fn link(hash: &[u8; 32]) -> Vec<u8> {
    [
        &[0xd8, 0x2a, 0x58, 0x25, 0x00, 0x01, 0x71, 0x12, 0x20][..],
        hash,
    ]
    .concat()
}

/// The link that says "no rewards".
pub fn no_rewards() -> Vec<u8> {
    vec![0xd8, 0x2a, 0x45, 0x00, 0x01, 0x55, 0x00, 0x00]
}

/// A payload of one frame.
pub fn frame(bytes: &[u8]) -> Vec<u8> {
    array(&[
        number(6),
        null(),
        null(),
        null(),
        byte_string(bytes),
        null(),
    ])
}

pub fn hash(node: &[u8]) -> [u8; 32] {
    Sha256::digest(node).into()
}

pub fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

pub fn section(node: &[u8]) -> Vec<u8> {
    let mut bytes = varint(36 + node.len());
    bytes.extend_from_slice(&[0x01, 0x71, 0x12, 0x20]);
    bytes.extend_from_slice(&hash(node));
    bytes.extend_from_slice(node);
    bytes
}

pub fn header() -> Vec<u8> {
    let mut header = b"\xa2\x65roots\x81".to_vec();
    header.extend_from_slice(&link(&[7; 32]));
    header.extend_from_slice(b"\x67version\x01");
    [varint(header.len()), header].concat()
}

/// Table, writable indexes, readonly indexes.
pub type Lookup = ([u8; 32], Vec<u8>, Vec<u8>);

/// A transaction as sent.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    pub signature: u8,
    pub keys: Vec<[u8; 32]>,
    /// Program index, accounts, data.
    pub instructions: Vec<(u8, Vec<u8>, Vec<u8>)>,
    pub lookups: Option<Vec<Lookup>>,
}

impl Sent {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&[self.signature; 64]);
        if self.lookups.is_some() {
            bytes.push(0x80);
        }
        bytes.extend_from_slice(&[1, 0, 1]);
        bytes.extend(varint(self.keys.len()));
        bytes.extend(self.keys.concat());
        bytes.extend_from_slice(&[9; 32]);
        bytes.extend(varint(self.instructions.len()));
        for (program, accounts, data) in &self.instructions {
            bytes.push(*program);
            bytes.extend(varint(accounts.len()));
            bytes.extend(accounts);
            bytes.extend(varint(data.len()));
            bytes.extend(data);
        }
        if let Some(lookups) = &self.lookups {
            bytes.extend(varint(lookups.len()));
            for (table, writable, readonly) in lookups {
                bytes.extend(table);
                bytes.extend(varint(writable.len()));
                bytes.extend(writable);
                bytes.extend(varint(readonly.len()));
                bytes.extend(readonly);
            }
        }
        bytes
    }
}

/// A protocol buffer field of bytes.
pub fn field(number: usize, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len()), bytes.to_vec()].concat()
}

/// Metadata of a transaction that paid 5,000 lamports and loaded `writable` and `readonly`.
pub fn metadata(writable: &[[u8; 32]], readonly: &[[u8; 32]]) -> Vec<u8> {
    let mut bytes = vec![0x10, 0x88, 0x27];
    bytes.extend(field(6, b"Program log: hello"));
    for key in writable {
        bytes.extend(field(12, key));
    }
    for key in readonly {
        bytes.extend(field(13, key));
    }
    bytes
}

pub fn compress(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

/// A Transaction node.
pub fn transaction(sent: &Sent, metadata: &[u8], slot: u64, index: u64) -> Vec<u8> {
    array(&[
        number(0),
        frame(&sent.bytes()),
        frame(metadata),
        number(slot),
        number(index),
    ])
}

/// An epoch's files while they are written.
#[derive(Debug, Clone)]
pub struct Epoch {
    pub number: u64,
    pub car: Vec<u8>,
    pub index: Vec<u8>,
    pub parent: u64,
}

impl Epoch {
    pub fn new(number: u64, parent: u64) -> Self {
        Self {
            number,
            car: header(),
            index: vec![0; usize::try_from(SLOTS * 12).unwrap()],
            parent,
        }
    }

    /// Writes a block of one entry per list of Transaction nodes.
    pub fn block(&mut self, slot: u64, entries: &[Vec<Vec<u8>>]) {
        let mut bytes = Vec::new();
        let mut links = Vec::new();
        for (place, nodes) in entries.iter().enumerate() {
            let mut transactions = Vec::new();
            for node in nodes {
                bytes.extend(section(node));
                transactions.push(link(&hash(node)));
            }
            let hashed = byte_string(&[u8::try_from(place).unwrap(); 32]);
            let entry = array(&[number(1), number(slot), hashed, array(&transactions)]);
            bytes.extend(section(&entry));
            links.push(link(&hash(&entry)));
        }
        bytes.extend(section(&block_node(slot, self.parent, &links)));
        self.block_bytes(slot, &bytes);
    }

    /// Writes a block as it is given.
    pub fn block_bytes(&mut self, slot: u64, bytes: &[u8]) {
        let offset = self.car.len() as u64;
        self.car.extend_from_slice(bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        self.list(slot, offset, length);
        self.parent = slot;
    }

    /// Writes an entry of the index.
    pub fn list(&mut self, slot: u64, offset: u64, length: u32) {
        let at = usize::try_from((slot - self.number * SLOTS) * 12).unwrap();
        self.index[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        self.index[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
    }

    pub fn write(&self, folder: &Path) {
        let number = self.number;
        let folder = folder.join(number.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("epoch-{number}.car")), &self.car).unwrap();
        let index = format!("epoch-{number}-slot-ranges.raw");
        std::fs::write(folder.join(index), &self.index).unwrap();
    }
}

pub fn block_node(slot: u64, parent: u64, entries: &[Vec<u8>]) -> Vec<u8> {
    let shredding: Vec<Vec<u8>> = (0..entries.len())
        .map(|place| array(&[number(place as u64), negative(0)]))
        .collect();
    array(&[
        number(2),
        number(slot),
        array(&shredding),
        array(entries),
        array(&[number(parent), number(1_700_000_000), null()]),
        no_rewards(),
    ])
}

/// The sections of a block's bytes: their nodes.
pub fn nodes(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut nodes = Vec::new();
    while !bytes.is_empty() {
        let (mut length, mut shift, mut at) = (0_usize, 0, 0);
        loop {
            length |= usize::from(bytes[at] & 0x7f) << shift;
            shift += 7;
            at += 1;
            if bytes[at - 1] < 0x80 {
                break;
            }
        }
        nodes.push(bytes[at + 36..at + length].to_vec());
        bytes = &bytes[at + length..];
    }
    nodes
}
