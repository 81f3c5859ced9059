//! Writing a `CARv1` file section by section, and the data frames inside.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::cbor::Node;

/// `01 71 12 20` and the SHA-256 of the node: `CIDv1`, dag-cbor.
pub(crate) type Cid = [u8; 36];

/// "No rewards": an identity CID of nothing.
pub(crate) const NO_REWARDS: [u8; 4] = [0x01, 0x55, 0x00, 0x00];

/// The CAR header's root CID begins here; it is written last, when the root is known.
const ROOT_OFFSET: u64 = 14;

/// Links a data frame's `next` holds at most, here; the last of them carries on.
const LINKS_OF_A_FRAME: usize = 3;

pub(crate) fn cid_of(node: &[u8]) -> Cid {
    let mut cid = [0; 36];
    cid[..4].copy_from_slice(&[0x01, 0x71, 0x12, 0x20]);
    cid[4..].copy_from_slice(&Sha256::digest(node));
    cid
}

/// A CAR file being written.
pub(crate) struct CarWriter {
    file: BufWriter<File>,
    /// Bytes written so far: where the next section begins.
    pub(crate) offset: u64,
    /// Every section's CID, where it begins and its bytes; kept only where an index of them is written.
    pub(crate) sections: Option<Vec<(Cid, u64, u32)>>,
}

impl CarWriter {
    pub(crate) fn create(path: &Path) -> std::io::Result<Self> {
        let mut writer = Self {
            file: BufWriter::with_capacity(1 << 20, File::create(path)?),
            offset: 0,
            sections: None,
        };
        writer.write(&header(&[0; 36]))?;
        Ok(writer)
    }

    /// Appends bytes: sections that are whole.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.offset += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// Appends a section and returns its CID.
    pub(crate) fn section(&mut self, node: &Node) -> std::io::Result<Cid> {
        let cid = cid_of(&node.encoded);
        let offset = self.offset;
        let mut length = Vec::with_capacity(10);
        uvarint(&mut length, (cid.len() + node.encoded.len()) as u64);
        self.write(&length)?;
        self.write(&cid)?;
        self.write(&node.encoded)?;
        if let Some(sections) = &mut self.sections {
            sections.push((cid, offset, (self.offset - offset) as u32));
        }
        Ok(cid)
    }

    /// Writes `payload` as a data frame into `node`: one frame, or, if it is longer than the style's frames, the first of a
    /// chain whose other frames are written as sections now. Returns whether it is a chain.
    pub(crate) fn data_frame(
        &mut self,
        node: &mut Node,
        payload: &[u8],
        style: FrameStyle,
    ) -> std::io::Result<bool> {
        if payload.len() <= style.bytes {
            frame_in_style(node, None, payload, &[], style);
            return Ok(false);
        }
        let chunks: Vec<&[u8]> = payload.chunks(style.bytes).collect();
        let checksum = if style.old {
            fnv_1a(payload)
        } else {
            crc64_iso(payload)
        };
        // From the last to the second: a frame that carries on must know its successors' CIDs.
        let mut following: Vec<Cid> = Vec::new();
        for (index, chunk) in chunks.iter().enumerate().skip(1).rev() {
            let carries_on = following.len() == LINKS_OF_A_FRAME;
            let next = if carries_on {
                std::mem::take(&mut following)
            } else {
                Vec::new()
            };
            let place = Some((checksum, index, chunks.len()));
            let mut section = Node {
                roomy: node.roomy,
                ..Node::default()
            };
            frame_in_style(&mut section, place, chunk, &next, style);
            following.insert(0, self.section(&section)?);
        }
        let place = Some((checksum, 0, chunks.len()));
        frame_in_style(node, place, chunks[0], &following, style);
        Ok(true)
    }

    /// Writes the header again, with the root.
    pub(crate) fn finish(mut self, root: &Cid) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(ROOT_OFFSET))?;
        self.file.write_all(root)?;
        self.file.flush()
    }
}

/// How payloads become data frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameStyle {
    /// Bytes of a frame at most.
    pub(crate) bytes: usize,
    /// As older writers made them: FNV-1a checksums, and five elements where no link follows.
    pub(crate) old: bool,
}

/// Appends a data frame to `node`; `chained` is the checksum, this frame's index and how many there are.
pub(crate) fn frame(
    node: &mut Node,
    chained: Option<(u64, usize, usize)>,
    payload: &[u8],
    next: &[Cid],
) {
    let style = FrameStyle {
        bytes: usize::MAX,
        old: false,
    };
    frame_in_style(node, chained, payload, next, style);
}

fn frame_in_style(
    node: &mut Node,
    chained: Option<(u64, usize, usize)>,
    payload: &[u8],
    next: &[Cid],
    style: FrameStyle,
) {
    let short = style.old && next.is_empty();
    node.begin_array(if short { 5 } else { 6 });
    node.unsigned(6);
    if let Some((checksum, index, total)) = chained {
        node.signed(checksum.cast_signed());
        node.unsigned(index as u64);
        node.unsigned(total as u64);
    } else {
        node.null();
        node.null();
        node.null();
    }
    node.bytes(payload);
    if !next.is_empty() {
        node.links(next);
    } else if !short {
        node.null();
    }
}

pub(crate) fn header(root: &Cid) -> Vec<u8> {
    let mut bytes = vec![58, 0xa2, 0x65];
    bytes.extend(b"roots");
    bytes.extend([0x81, 0xd8, 0x2a, 0x58, 0x25, 0x00]);
    debug_assert_eq!(bytes.len() as u64, ROOT_OFFSET);
    bytes.extend(root);
    bytes.push(0x67);
    bytes.extend(b"version");
    bytes.push(0x01);
    bytes
}

pub(crate) fn uvarint(output: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        output.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    output.push(value as u8);
}

/// CRC-64/ISO, reflected, as Go's `crc64.ISO`: polynomial `0xD800000000000000`.
pub(crate) fn crc64_iso(bytes: &[u8]) -> u64 {
    let mut crc = !0_u64;
    for byte in bytes {
        crc ^= u64::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xD800_0000_0000_0000
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

/// FNV-1a of 64 bits.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The text form of a CID: `b` and lower-case base32 without padding.
pub(crate) fn cid_text(cid: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::from("b");
    let (mut buffer, mut bits) = (0_u32, 0);
    for byte in cid {
        buffer = buffer << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(ALPHABET[(buffer >> bits & 31) as usize] as char);
        }
    }
    if bits > 0 {
        text.push(ALPHABET[(buffer << (5 - bits) & 31) as usize] as char);
    }
    text
}
