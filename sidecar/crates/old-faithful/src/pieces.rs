//! The metadata file of an epoch whose CAR file was split into pieces, as Filecoin takes them: each piece is a `CARv1` file of its own,
//! and the epoch's CAR file is the original header followed by the pieces' contents, one after another.
//!
//! The format is that of the tools that write it. YAML, in one document:
//!
//! ```yaml
//! car_pieces_meta:
//!   originalCarHeaderSize: 59        # with the length before the header
//!   originalCarHeader: omVyb290c4HY… # base64, without that length
//!   carPieces:
//!   - name: epoch-3-1.car            # as it was written: a path, of which the last part counts here
//!     commP: baga6ea4seaq…           # the piece's commitment; not read
//!     paddedSize: 4294967296         # of the piece once Filecoin padded it (128 bytes for each 127)
//!     headerSize: 59                 # of the piece's own header, with the length before it
//!     contentSize: 4293918720
//! ```
//!
//! Sources: `carlet.go` of anjor/carlet (the fields), `cmd/data-prep/split-and-commp` of anjor/go-fil-dataprep (`metadata.yaml`, pieces
//! `PREFIX-COMMP.car` that are cut at any section), `cmd-car-split.go` of rpcpool/yellowstone-faithful (`epoch-E-metadata.yaml`, pieces
//! `epoch-E-N.car` of whole blocks, each with a Subset node of its own behind its content), `split-car-fetcher/fetcher.go` there (how the
//! archive's own server puts pieces together: one may be longer than header and content, never shorter), and `docs/split-epoch.sh` and
//! `docs/upload-epoch.sh` there (all of it lies in the epoch's folder). The CSV files beside them name neither the original header nor, in
//! older versions, the contents' sizes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use saphyr_parser::{Event, Parser};

use crate::car::{MAXIMUM_HEADER_BYTES, header_length};

/// The largest metadata file that is accepted, in bytes; a thousand pieces have about 250 KB.
pub const MAXIMUM_METADATA_BYTES: usize = 1 << 20;
/// The largest CAR file that is accepted in pieces, in bytes: tens of times the largest real one.
const MAXIMUM_CAR_BYTES: u64 = 1 << 44;
/// How deep the file's nodes may lie within each other; real ones lie four deep.
const MAXIMUM_DEPTH: usize = 8;

/// An epoch's CAR file in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    /// The original CAR file's header, with the length before it.
    pub header: Vec<u8>,
    /// In the order in which they follow each other.
    pub pieces: Vec<Piece>,
}

/// A piece: a `CARv1` file whose content is a part of the epoch's CAR file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The file's name in the epoch's folder.
    pub name: String,
    /// The bytes of its own header, before the content.
    pub header_bytes: u64,
    /// Where its content begins in the epoch's CAR file, in bytes.
    pub start: u64,
    /// The content's bytes.
    pub bytes: u64,
    /// The bytes that the file may have at most, padding included, where that is stated.
    pub most_bytes: Option<u64>,
}

impl Piece {
    /// Where the content ends in the epoch's CAR file.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

impl Pieces {
    /// Reads a metadata file. The reason is for
    /// [`ArchiveError::PiecesInvalid`](crate::ArchiveError::PiecesInvalid).
    pub fn parse(file: &[u8]) -> Result<Self, String> {
        if file.len() > MAXIMUM_METADATA_BYTES {
            return Err(format!(
                "it has more than the {MAXIMUM_METADATA_BYTES} bytes that are allowed"
            ));
        }
        let text = std::str::from_utf8(file)
            .map_err(|error| format!("byte {} is no UTF-8", error.valid_up_to()))?;
        let document = Document::read(text)?;
        let meta = document.field("the file", "car_pieces_meta")?;
        let header = original_header(meta)?;
        let Document::List(listed) = meta.field("car_pieces_meta", "carPieces")? else {
            return Err("carPieces is no list".to_owned());
        };
        let mut pieces: Vec<Piece> = Vec::new();
        let mut start = header.len() as u64;
        for (number, listed) in (1_usize..).zip(listed) {
            let piece =
                piece(listed, start).map_err(|reason| format!("piece {number}: {reason}"))?;
            start = piece.end();
            pieces.push(piece);
        }
        if pieces.is_empty() {
            return Err("it names no pieces".to_owned());
        }
        let mut names: Vec<&str> = pieces.iter().map(|piece| piece.name.as_str()).collect();
        names.sort_unstable();
        if let Some([name, _]) = names.windows(2).find(|names| names[0] == names[1]) {
            return Err(format!("it names the piece {name} twice"));
        }
        Ok(Self { header, pieces })
    }

    /// The bytes of the epoch's CAR file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pieces.last().map_or(0, Piece::end)
    }
}

fn original_header(meta: &Document) -> Result<Vec<u8>, String> {
    let encoded = meta
        .field("car_pieces_meta", "originalCarHeader")?
        .text("originalCarHeader")?;
    let decoded = STANDARD
        .decode(encoded)
        .map_err(|error| format!("originalCarHeader is no base64: {error}"))?;
    let mut header = Vec::with_capacity(decoded.len() + 2);
    let mut length = decoded.len();
    while length > 0x7f {
        header.push(0x80 | u8::try_from(length & 0x7f).unwrap_or_default());
        length >>= 7;
    }
    header.push(u8::try_from(length).unwrap_or_default());
    header.extend(decoded);
    let stated = meta
        .field("car_pieces_meta", "originalCarHeaderSize")?
        .number("originalCarHeaderSize")?;
    if stated != header.len() as u64 {
        return Err(format!(
            "originalCarHeaderSize is {stated}, but the header and the length before it have {} bytes",
            header.len()
        ));
    }
    match header_length(&header) {
        Ok(Some(length)) if length == header.len() => Ok(header),
        _ => Err("originalCarHeader is no CARv1 header".to_owned()),
    }
}

fn piece(listed: &Document, start: u64) -> Result<Piece, String> {
    let number = |name: &'static str| listed.field("it", name)?.number(name);
    let path = listed.field("it", "name")?.text("name")?;
    let name = file_name(path).ok_or_else(|| {
        format!(
            "its name is {path:?}, not that of a .car file of letters, digits, `.`, `-` and `_`"
        )
    })?;
    let header_bytes = number("headerSize")?;
    // The length before the header has two bytes at most.
    if header_bytes == 0 || header_bytes > MAXIMUM_HEADER_BYTES as u64 + 2 {
        return Err(format!("{header_bytes} bytes are no CAR header's size"));
    }
    let bytes = number("contentSize")?;
    if start
        .checked_add(bytes)
        .is_none_or(|end| end > MAXIMUM_CAR_BYTES)
    {
        return Err(format!(
            "with its {bytes} bytes the epoch would have more than {MAXIMUM_CAR_BYTES}"
        ));
    }
    let most_bytes = match listed.get("paddedSize") {
        Some(padded) => Some(padded.number("paddedSize")? / 128 * 127),
        None => None,
    };
    if most_bytes.is_some_and(|most| most < header_bytes + bytes) {
        return Err("its paddedSize is too small for its header and content".to_owned());
    }
    Ok(Piece {
        name: name.to_owned(),
        header_bytes,
        start,
        bytes,
        most_bytes,
    })
}

/// The last part of a path, if the path leads nowhere else and the part names a CAR file.
fn file_name(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let stem = name.strip_suffix(".car").unwrap_or_default();
    let is_plain = !stem.is_empty()
        && !stem.starts_with('.')
        && stem.bytes().all(plain)
        && path.split('/').all(|part| part != "..");
    is_plain.then_some(name)
}

/// What a YAML file holds. Anchors, aliases and tags, which no tool writes here, are refused: so nothing grows larger than the file.
enum Document {
    Text(String),
    List(Vec<Document>),
    Fields(Vec<(String, Document)>),
}

impl Document {
    fn read(text: &str) -> Result<Self, String> {
        let mut reader = Reader(Parser::new_from_str(text));
        while !matches!(reader.event()?.0, Event::DocumentStart(_)) {}
        let (event, line) = reader.event()?;
        let document = reader.node(event, line, 0)?;
        match (reader.event()?.0, reader.event()?.0) {
            (Event::DocumentEnd, Event::StreamEnd) => Ok(document),
            _ => Err("it holds more than one document".to_owned()),
        }
    }

    fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Fields(fields) => {
                let found = fields.iter().find(|(field, _)| field == name);
                found.map(|(_, value)| value)
            }
            _ => None,
        }
    }

    fn field(&self, of: &str, name: &str) -> Result<&Self, String> {
        self.get(name).ok_or_else(|| format!("{of} has no {name}"))
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(format!("{name} is no text")),
        }
    }

    fn number(&self, name: &str) -> Result<u64, String> {
        let text = self.text(name)?;
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number.ok_or_else(|| format!("{name} is {text:?}, not a number of bytes"))
    }
}

/// The events of a YAML file.
struct Reader<'a>(Parser<'a, saphyr_parser::StrInput<'a>>);

impl<'a> Reader<'a> {
    /// The next event and its line.
    fn event(&mut self) -> Result<(Event<'a>, usize), String> {
        match self.0.next() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(format!("it is no YAML: {error}")),
            None => Err("it holds nothing".to_owned()),
        }
    }

    /// The node that begins with an event.
    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Document, String> {
        if depth > MAXIMUM_DEPTH {
            return Err(format!("line {line}: it is nested too deep"));
        }
        match event {
            Event::Scalar(text, _, 0, None) => Ok(Document::Text(text.into_owned())),
            Event::SequenceStart(0, None) => {
                let mut list = Vec::new();
                loop {
                    match self.event()? {
                        (Event::SequenceEnd, _) => return Ok(Document::List(list)),
                        (event, line) => list.push(self.node(event, line, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(0, None) => {
                let mut fields: Vec<(String, Document)> = Vec::new();
                loop {
                    let (event, line) = self.event()?;
                    let name = match event {
                        Event::MappingEnd => return Ok(Document::Fields(fields)),
                        Event::Scalar(name, _, 0, None) => name.into_owned(),
                        _ => return Err(format!("line {line}: a field's name is no text")),
                    };
                    // Both tools append to a file that is there: a second run's fields follow the first's.
                    if fields.iter().any(|(field, _)| *field == name) {
                        return Err(format!("line {line}: {name} is there twice"));
                    }
                    let (event, line) = self.event()?;
                    fields.push((name, self.node(event, line, depth + 1)?));
                }
            }
            _ => Err(format!(
                "line {line}: anchors, aliases and tags are not read here"
            )),
        }
    }
}
