//! Splitting an epoch's CAR file into pieces, as the two tools do that prepare epochs for Filecoin.
//!
//! faithful-cli (`cmd-car-split.go` of rpcpool/yellowstone-faithful) cuts between blocks and closes each piece with a Subset node of its own,
//! the last with an Epoch node too, none of which it counts as content. go-fil-dataprep (`split-and-commp`, by `carlet.go` of anjor/carlet)
//! cuts between any two sections and keeps the original closing nodes.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::SimError;
use crate::car::{self, Cid, cid_of, cid_text, uvarint};
use crate::cbor::Node;
use crate::plan::{Pieces, SplitTool};

/// The header of go-fil-dataprep's pieces, with the length before it: their root is an identity CID of nothing.
const HEADER_OF_DATA_PREP: &[u8] =
    b"\x19\xa2\x65roots\x81\xd8\x2a\x45\x00\x01\x55\x00\x00\x67version\x01";

/// A block: its slot, its CID, and where it ends in the CAR file.
pub(crate) type BlockEnd = (u64, Cid, usize);

/// A piece and the line of the metadata file about it.
struct Piece {
    name: String,
    header_bytes: usize,
    content_bytes: usize,
    file: Vec<u8>,
}

/// Replaces the CAR file by its pieces and what describes them. The original header is its first `header_bytes`.
pub(crate) fn split(
    car: &Path,
    epoch: u64,
    header_bytes: usize,
    blocks: &[BlockEnd],
    how: Pieces,
) -> Result<(), SimError> {
    let folder = car.parent().unwrap_or(Path::new("."));
    let bytes = fs::read(car)?;
    let (metadata, pieces) = match how.tool {
        SplitTool::FaithfulCli => (
            format!("epoch-{epoch}-metadata.yaml"),
            by_faithful_cli(&bytes, epoch, header_bytes, blocks, how.bytes),
        ),
        SplitTool::DataPrep => (
            "metadata.yaml".to_owned(),
            by_data_prep(&bytes, epoch, header_bytes, how.bytes),
        ),
    };
    let mut yaml = format!(
        "car_pieces_meta:\n  originalCarHeaderSize: {header_bytes}\n  originalCarHeader: {}\n  carPieces:\n",
        STANDARD.encode(&bytes[1..header_bytes])
    );
    let mut table =
        "timestamp,car file,piece cid,padded piece size,header size,content size\n".to_owned();
    for piece in &pieces {
        let (commitment, padded) = (commitment(&piece.file), padded_bytes(piece.file.len()));
        // The tools name the path that they wrote to.
        let path = match how.tool {
            SplitTool::FaithfulCli => piece.name.clone(),
            SplitTool::DataPrep => format!("/warehouse/cars/{epoch}/{}", piece.name),
        };
        let (header, content) = (piece.header_bytes, piece.content_bytes);
        let _ = write!(
            yaml,
            "  - name: {path}\n    commP: {commitment}\n    paddedSize: {padded}\n    headerSize: {header}\n    contentSize: {content}\n"
        );
        let _ = writeln!(
            table,
            "2024-01-01T00:00:00Z,{path},{commitment},{padded},{header},{content}"
        );
        fs::write(folder.join(&piece.name), &piece.file)?;
    }
    fs::write(folder.join(metadata), yaml)?;
    fs::write(folder.join("metadata.csv"), table)?;
    Ok(fs::remove_file(car)?)
}

fn by_faithful_cli(
    car: &[u8],
    epoch: u64,
    header_bytes: usize,
    blocks: &[BlockEnd],
    most: u64,
) -> Vec<Piece> {
    let mut groups: Vec<Vec<&BlockEnd>> = Vec::new();
    let (mut begun, mut end) = (header_bytes, header_bytes);
    for block in blocks {
        let fits = header_bytes + (block.2 - begun) <= most as usize;
        match groups.last_mut() {
            Some(group) if fits => group.push(block),
            _ => {
                groups.push(vec![block]);
                begun = end;
            }
        }
        end = block.2;
    }
    let (mut pieces, mut subsets, mut start) = (Vec::new(), Vec::new(), header_bytes);
    let last = groups.len();
    for (number, group) in (1..).zip(groups) {
        let mut subset = Node::array(4);
        subset.unsigned(3);
        subset.unsigned(group[0].0);
        subset.unsigned(group[group.len() - 1].0);
        subset.links(group.iter().map(|block| &block.1));
        let root = cid_of(&subset.encoded);
        subsets.push(root);
        let end = group[group.len() - 1].2;
        let mut file = car::header(&root);
        let header_bytes = file.len();
        file.extend(&car[start..end]);
        append_section(&mut file, &subset);
        if number == last {
            let mut closing = Node::array(3);
            closing.unsigned(4);
            closing.unsigned(epoch);
            closing.links(&subsets);
            append_section(&mut file, &closing);
        }
        pieces.push(Piece {
            name: format!("epoch-{epoch}-{number}.car"),
            header_bytes,
            content_bytes: end - start,
            file,
        });
        start = end;
    }
    pieces
}

fn append_section(file: &mut Vec<u8>, node: &Node) {
    let cid = cid_of(&node.encoded);
    uvarint(file, (cid.len() + node.encoded.len()) as u64);
    file.extend(cid);
    file.extend(&node.encoded);
}

fn by_data_prep(car: &[u8], epoch: u64, header_bytes: usize, least: u64) -> Vec<Piece> {
    let (mut pieces, mut start, mut at) = (Vec::new(), header_bytes, header_bytes);
    loop {
        let ended = at == car.len();
        if ended || at - start >= least as usize {
            let file = [HEADER_OF_DATA_PREP, &car[start..at]].concat();
            pieces.push(Piece {
                name: format!("sp-epoch-{epoch}-{}.car", commitment(&file)),
                header_bytes: HEADER_OF_DATA_PREP.len(),
                content_bytes: at - start,
                file,
            });
            start = at;
        }
        if ended {
            return pieces;
        }
        let (mut length, mut prefix) = (0, 0);
        loop {
            let byte = car[at + prefix];
            length |= usize::from(byte & 0x7f) << (7 * prefix);
            prefix += 1;
            if byte < 0x80 {
                break;
            }
        }
        at += prefix + length;
    }
}

/// What stands for a piece's commitment: it has a commitment's form, but is made of the file's SHA-256, not of Filecoin's tree.
fn commitment(file: &[u8]) -> String {
    let mut cid = vec![0x01, 0x81, 0xe2, 0x03, 0x92, 0x20, 0x20];
    cid.extend(Sha256::digest(file));
    if let Some(last) = cid.last_mut() {
        *last &= 0x3f;
    }
    cid_text(&cid)
}

/// The size of a piece of Filecoin: a power of two, of which 127 bytes of 128 are the file's.
fn padded_bytes(file: usize) -> usize {
    (file.div_ceil(127) * 128).next_power_of_two()
}
