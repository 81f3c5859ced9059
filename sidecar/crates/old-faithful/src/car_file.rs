//! An epoch's CAR file as the archive has it: whole, or in pieces that follow each other ([`pieces`](crate::pieces)). Everything behind
//! here counts bytes of the whole, and reads them as if it were.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use crate::archive::car_name;
use crate::car::{CID_BYTES, CID_PREFIX, MAXIMUM_HEADER_BYTES, header_length, uvarint};
use crate::error::ArchiveError;
use crate::fetch::{Identity, RangeReader, Store};
use crate::node::Kind;
use crate::pieces::{MAXIMUM_METADATA_BYTES, Piece, Pieces};

/// Pieces looked at together.
const PIECES_AT_ONCE: usize = 8;
/// What is read behind a piece's content, to see what it is: zeros, or the beginning of a node.
const TAIL_BYTES: u64 = 64;

/// The first bytes of a CAR file that its header lies within.
pub(crate) const BEGINNING_BYTES: u64 = MAXIMUM_HEADER_BYTES as u64;

/// An epoch's CAR file, whole or in pieces. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct CarFile {
    /// What messages call it: its name relative to the archive's base, and where it is in pieces, their metadata file's.
    pub(crate) name: Arc<str>,
    /// Its size in bytes.
    pub(crate) bytes: u64,
    parts: Arc<[Part]>,
}

/// A run of the CAR file's bytes that one file of the archive has.
#[derive(Debug)]
struct Part {
    file: String,
    identity: Identity,
    /// In the CAR file.
    bytes: Range<u64>,
    /// Where the first of them is in the file.
    offset: u64,
}

/// A CAR file that was found.
pub(crate) struct Opened {
    pub(crate) car: CarFile,
    /// Its first bytes, its header among them.
    pub(crate) beginning: Vec<u8>,
    /// Bytes read to find it.
    pub(crate) bytes_read: u64,
}

/// The names of the metadata file of an epoch in pieces, relative to the archive's base: of faithful-cli, and of the tool before it.
pub(crate) fn metadata_names(epoch: u64) -> [String; 2] {
    [
        format!("{epoch}/epoch-{epoch}-metadata.yaml"),
        format!("{epoch}/metadata.yaml"),
    ]
}

impl CarFile {
    /// Looks for the CAR file of an epoch and reads `beginning` bytes of it, at most; `None` when the archive does not have it. Of one in
    /// pieces every piece is looked at: what is missing, or of another size than stated, is an error here.
    pub(crate) async fn open(
        store: &Arc<Store>,
        epoch: u64,
        beginning: u64,
    ) -> Result<Option<Opened>, ArchiveError> {
        let name = car_name(epoch);
        if let Some((beginning, identity)) = store.beginning(&name, beginning).await? {
            let bytes_read = beginning.len() as u64;
            return Ok(Some(Opened {
                car: Self {
                    name: name.as_str().into(),
                    bytes: identity.size,
                    parts: Arc::new([Part {
                        file: name,
                        bytes: 0..identity.size,
                        identity,
                        offset: 0,
                    }]),
                },
                beginning,
                bytes_read,
            }));
        }
        let limit = MAXIMUM_METADATA_BYTES as u64 + 1;
        for metadata in metadata_names(epoch) {
            if let Some((text, _)) = store.beginning(&metadata, limit).await? {
                return Self::in_pieces(store, epoch, &metadata, &text)
                    .await
                    .map(Some);
            }
        }
        let table = format!("{epoch}/metadata.csv");
        if store.beginning(&table, 1).await?.is_some() {
            let reason = format!(
                "it does not hold the CAR file's header: {} or {} of the same tool is needed beside it",
                metadata_names(epoch)[0],
                metadata_names(epoch)[1]
            );
            return Err(invalid(epoch, &table, reason));
        }
        Ok(None)
    }

    async fn in_pieces(
        store: &Arc<Store>,
        epoch: u64,
        metadata: &str,
        text: &[u8],
    ) -> Result<Opened, ArchiveError> {
        let pieces = Pieces::parse(text).map_err(|reason| invalid(epoch, metadata, reason))?;
        let bytes = pieces.bytes();
        let looked_at: Vec<(Part, u64)> = futures::stream::iter(pieces.pieces)
            .map(|piece| look_at(store, epoch, metadata, piece))
            .buffered(PIECES_AT_ONCE)
            .try_collect()
            .await?;
        let read: u64 = looked_at.iter().map(|(_, read)| read).sum();
        Ok(Opened {
            car: Self {
                name: format!("{} in pieces by {metadata}", car_name(epoch)).into(),
                bytes,
                parts: looked_at.into_iter().map(|(part, _)| part).collect(),
            },
            beginning: pieces.header,
            bytes_read: read + text.len() as u64,
        })
    }

    /// Reads a range front to back. Nothing is fetched before the first bytes are asked for.
    pub(crate) fn read(&self, store: &Arc<Store>, range: Range<u64>) -> CarReader {
        let parts = self.parts.iter().filter_map(|part| {
            let start = range.start.max(part.bytes.start);
            let end = range.end.min(part.bytes.end);
            (start < end).then(|| {
                let from = part.offset + (start - part.bytes.start);
                let range = from..from + (end - start);
                let identity = Some(part.identity.clone());
                RangeReader::new(Arc::clone(store), &part.file, range, identity)
            })
        });
        CarReader(parts.collect())
    }
}

/// Looks at a piece: its size, its header, and what follows its content.
async fn look_at(
    store: &Arc<Store>,
    epoch: u64,
    metadata: &str,
    piece: Piece,
) -> Result<(Part, u64), ArchiveError> {
    let file = format!("{epoch}/{}", piece.name);
    let Some((beginning, identity)) = store.beginning(&file, piece.header_bytes).await? else {
        return Err(ArchiveError::EpochNotFound { epoch, file });
    };
    let needed = piece.header_bytes + piece.bytes;
    if identity.size < needed {
        let reason = format!(
            "it has {} bytes, but by {metadata} a header of {} and {} of content",
            identity.size, piece.header_bytes, piece.bytes
        );
        return Err(invalid(epoch, &file, reason));
    }
    let header = header_length(&beginning);
    if !header.is_ok_and(|length| length.is_some_and(|length| length == beginning.len())) {
        let reason = format!(
            "it does not begin with a CAR header of {} bytes, as {metadata} says",
            piece.header_bytes
        );
        return Err(invalid(epoch, &file, reason));
    }
    let mut read = beginning.len() as u64;
    if identity.size > needed {
        let most = piece.most_bytes.unwrap_or(u64::MAX);
        let end = (needed + TAIL_BYTES).min(identity.size);
        let known = Some(identity.clone());
        let tail = RangeReader::new(Arc::clone(store), &file, needed..end, known);
        let tail = CarReader([tail].into()).read_all().await?;
        read += tail.len() as u64;
        if identity.size > most || !may_follow(&tail, identity.size - needed) {
            let reason = format!(
                "it has {} bytes, but by {metadata} a header of {} and {} of content, and what follows is neither a Subset nor padding",
                identity.size, piece.header_bytes, piece.bytes
            );
            return Err(invalid(epoch, &file, reason));
        }
    }
    let part = Part {
        file,
        identity,
        bytes: piece.start..piece.end(),
        offset: piece.header_bytes,
    };
    Ok((part, read))
}

/// Whether this is how what follows a piece's content begins, `left` bytes in all: the zeros that Filecoin pads with, or the section of a
/// Subset node, which faithful-cli does not count as content.
fn may_follow(tail: &[u8], left: u64) -> bool {
    if tail.iter().all(|byte| *byte == 0) {
        return true;
    }
    let Ok(Some((length, prefix))) = uvarint(tail) else {
        return false;
    };
    let cid_and_node = tail.get(prefix..).unwrap_or_default();
    let node = cid_and_node.get(CID_BYTES..).unwrap_or_default();
    length <= left.saturating_sub(prefix as u64)
        && cid_and_node.starts_with(&CID_PREFIX)
        && matches!(Kind::of(node), Ok(Kind::Subset))
}

fn invalid(epoch: u64, file: &str, reason: String) -> ArchiveError {
    ArchiveError::PiecesInvalid {
        epoch,
        file: file.to_owned(),
        reason,
    }
}

/// Reads a range of a CAR file front to back.
pub(crate) struct CarReader(VecDeque<RangeReader>);

impl CarReader {
    /// The next bytes, or `None` at the end of the range.
    pub(crate) async fn next(&mut self) -> Result<Option<&[u8]>, ArchiveError> {
        while self.0.len() > 1 && self.0.front().is_some_and(RangeReader::is_done) {
            self.0.pop_front();
        }
        match self.0.front_mut() {
            Some(reader) => reader.next().await,
            None => Ok(None),
        }
    }

    /// All bytes of the range.
    pub(crate) async fn read_all(mut self) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        while let Some(part) = self.next().await? {
            bytes.extend_from_slice(part);
        }
        Ok(bytes)
    }

    /// For a reader that is polled by a thread of its own: local files are read right there.
    pub(crate) fn blocking(self) -> Self {
        Self(self.0.into_iter().map(RangeReader::blocking).collect())
    }
}
