//! What executing a transaction left behind: decompression, the formats it was stored in, and the fields that
//! the reader's users need. Which transactions it is read for is decided in the scanner.
//!
//! Today's format is zstd of the protocol buffer `TransactionStatusMeta`. Some payloads are not compressed. The
//! earliest epochs hold bincode instead, which [`Format::of`] tells apart; how it is laid out belongs in `bincode`.

use zstd::bulk::Decompressor;
use zstd::zstd_safe::get_frame_content_size;

use crate::bincode;
use crate::dataframe::MAXIMUM_PAYLOAD_BYTES;
use crate::error::Malformed;
use crate::model::Pubkey;
use crate::protobuf::Fields;
use crate::wire::WireTransaction;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What is first tried for a frame that does not say how large its content is, in bytes.
const UNKNOWN_CONTENT_BYTES: usize = 64 << 10;
/// Most transactions have fewer log lines, and fewer inner instructions.
const USUAL_LINES: usize = 32;
/// A buffer that grew larger is given back, in bytes.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

/// A transaction's metadata, borrowed from its decompressed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// The error as stored (bincode of `TransactionError`); `None` = succeeded.
    pub err: Option<&'a [u8]>,
    /// The fee, in lamports.
    pub fee: u64,
    /// Whether the instructions that others called were recorded.
    pub inner_recorded: bool,
    /// The instructions that others called, as recorded: one flat list.
    pub inner_instructions: Vec<InnerInstruction<'a>>,
    /// The log lines; `None` when they were not recorded.
    pub logs: Option<Vec<&'a [u8]>>,
    /// Writable keys loaded from lookup tables.
    pub loaded_writable: Vec<&'a Pubkey>,
    /// Readonly keys loaded from lookup tables.
    pub loaded_readonly: Vec<&'a Pubkey>,
    /// Compute units used, where recorded.
    pub compute_units: Option<u64>,
}

/// An instruction called by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InnerInstruction<'a> {
    /// The top-level instruction that led to it.
    pub top_level_index: u8,
    /// The called program, as an index into the account keys.
    pub program_index: u8,
    /// The accounts given to it: one byte each, an index into the account keys.
    pub accounts: &'a [u8],
    /// The instruction's data.
    pub data: &'a [u8],
    /// The depth of the call, where recorded: 2 = called by a top-level instruction.
    pub stack_height: Option<u32>,
}

/// How metadata is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// There is none.
    Absent,
    /// The protocol buffer `TransactionStatusMeta`.
    Protobuf,
    /// Bincode of the early epochs.
    Bincode,
}

impl Format {
    /// The format of decompressed metadata. Bincode begins with the tag of a `Result`, 0 or 1, which no protocol
    /// buffer does: its field numbers begin at 1.
    #[must_use]
    pub fn of(decompressed: &[u8]) -> Self {
        match decompressed.first() {
            None => Self::Absent,
            Some(0 | 1) => Self::Bincode,
            Some(_) => Self::Protobuf,
        }
    }
}

/// Metadata decompresses to more than [`MAXIMUM_PAYLOAD_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("metadata of more than {MAXIMUM_PAYLOAD_BYTES} bytes")]
pub struct TooLarge;

/// Decompresses metadata, one after another, with one context and one buffer.
pub struct Inflater {
    context: Option<Decompressor<'static>>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Inflater").finish_non_exhaustive()
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Inflater {
    /// Without a context yet: it is made when first needed.
    #[must_use]
    pub fn new() -> Self {
        Self {
            context: None,
            buffer: Vec::new(),
        }
    }

    /// The bytes of a stored payload: decompressed, or as they are when they are no zstd.
    pub fn inflate<'a>(&'a mut self, payload: &'a [u8]) -> Result<&'a [u8], TooLarge> {
        if !payload.starts_with(&ZSTD_MAGIC) {
            return Ok(payload);
        }
        if self.context.is_none() {
            self.context = Decompressor::new().ok();
        }
        let Some(context) = self.context.as_mut() else {
            return Ok(payload);
        };
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        // The size in the header is a hint only: a second frame may follow the first.
        let stated = match get_frame_content_size(payload) {
            Ok(Some(size)) => usize::try_from(size).map_err(|_| TooLarge)?,
            Ok(None) => UNKNOWN_CONTENT_BYTES,
            Err(_) => return Ok(payload),
        };
        if stated > MAXIMUM_PAYLOAD_BYTES {
            return Err(TooLarge);
        }
        let mut capacity = stated.max(64);
        loop {
            self.buffer.clear();
            if self.buffer.capacity() < capacity {
                // Growing it would hold the old buffer beside the new one.
                self.buffer = Vec::new();
                self.buffer.reserve_exact(capacity);
            }
            let fault = match context.decompress_to_buffer(payload, &mut self.buffer) {
                Ok(_) if self.buffer.len() > MAXIMUM_PAYLOAD_BYTES => return Err(TooLarge),
                Ok(_) => return Ok(&self.buffer),
                Err(fault) => fault,
            };
            // The crate reports only zstd's text for the cause.
            if !fault.to_string().contains("too small") {
                return Ok(payload);
            }
            if capacity > MAXIMUM_PAYLOAD_BYTES {
                return Err(TooLarge);
            }
            capacity = (capacity * 4).min(MAXIMUM_PAYLOAD_BYTES + 1);
        }
    }
}

/// The keys that metadata says were loaded from lookup tables; reused from one transaction to the next.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LoadedKeys {
    /// Writable ones, over all tables.
    pub writable: Vec<Pubkey>,
    /// Readonly ones, over all tables.
    pub readonly: Vec<Pubkey>,
}

impl LoadedKeys {
    /// All of them, as instructions count them: writable, then readonly.
    pub fn iter(&self) -> impl Iterator<Item = &Pubkey> {
        self.writable.iter().chain(&self.readonly)
    }

    /// Reads them, and nothing else that the metadata says. Bincode has none, for it is older than lookup tables, and is
    /// read for its layout only.
    pub fn read(&mut self, decompressed: &[u8]) -> Result<(), Malformed> {
        self.clear();
        match Format::of(decompressed) {
            Format::Absent => return Err(ABSENT),
            Format::Bincode => return bincode::parse(decompressed).map(|_| ()),
            Format::Protobuf => {}
        }
        for field in Fields::new(decompressed) {
            match field? {
                (12, value) => self.writable.push(*as_key(value.bytes()?)?),
                (13, value) => self.readonly.push(*as_key(value.bytes()?)?),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether they are as many of either kind as the transaction asks for.
    pub(crate) fn are_of(&self, transaction: &WireTransaction<'_>) -> bool {
        self.writable.len() == transaction.loaded_writable
            && self.readonly.len() == transaction.loaded_readonly
    }

    fn clear(&mut self) {
        self.writable.clear();
        self.readonly.clear();
    }
}

fn as_key(bytes: &[u8]) -> Result<&Pubkey, Malformed> {
    bytes
        .try_into()
        .map_err(|_| Malformed::new("a loaded key of the metadata does not have 32 bytes", 0))
}

/// Nothing to read.
const ABSENT: Malformed = Malformed::new("there is no metadata", 0);

impl<'a> Metadata<'a> {
    /// Reads metadata of either format.
    pub fn parse(decompressed: &'a [u8]) -> Result<Self, Malformed> {
        match Format::of(decompressed) {
            Format::Absent => Err(ABSENT),
            Format::Protobuf => Self::parse_protobuf(decompressed),
            Format::Bincode => bincode::parse(decompressed),
        }
    }

    /// Whether everything that the transaction said was recorded: its logs and the instructions that others called.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.logs.is_some() && self.inner_recorded
    }

    /// The keys loaded from lookup tables: writable, then readonly.
    pub fn loaded(&self) -> impl Iterator<Item = &'a Pubkey> {
        self.loaded_writable
            .iter()
            .chain(&self.loaded_readonly)
            .copied()
    }

    fn parse_protobuf(protobuf: &'a [u8]) -> Result<Self, Malformed> {
        let mut logs = Vec::with_capacity(USUAL_LINES);
        let mut inner_instructions = Vec::with_capacity(USUAL_LINES);
        let (mut loaded_writable, mut loaded_readonly) = (Vec::new(), Vec::new());
        let fields = Protobuf::read(
            protobuf,
            &mut logs,
            &mut inner_instructions,
            &mut loaded_writable,
            &mut loaded_readonly,
        )?;
        Ok(Self {
            err: fields.err,
            fee: fields.fee,
            inner_recorded: !fields.without_inner || !inner_instructions.is_empty(),
            inner_instructions,
            logs: (!fields.without_logs || !logs.is_empty()).then_some(logs),
            loaded_writable,
            loaded_readonly,
            compute_units: fields.compute_units,
        })
    }
}

/// What is known of metadata without keeping what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub(crate) failed: bool,
    /// Whether everything that the transaction said was recorded.
    pub(crate) recorded: bool,
}

impl Summary {
    /// Reads metadata that [`Metadata::parse`] reads, and refuses what it refuses. `loaded` gets the loaded
    /// keys, those before a fault too.
    pub(crate) fn read(decompressed: &[u8], loaded: &mut LoadedKeys) -> Result<Self, Malformed> {
        loaded.clear();
        if Format::of(decompressed) != Format::Protobuf {
            return Metadata::parse(decompressed).map(|metadata| Self {
                failed: metadata.err.is_some(),
                recorded: metadata.is_recorded(),
            });
        }
        let (mut logs, mut inner) = (Count(0), Count(0));
        let fields = Protobuf::read(
            decompressed,
            &mut logs,
            &mut inner,
            &mut loaded.writable,
            &mut loaded.readonly,
        )?;
        Ok(Self {
            failed: fields.err.is_some(),
            recorded: (!fields.without_inner || inner.0 > 0)
                && (!fields.without_logs || logs.0 > 0),
        })
    }
}

/// Counts what it is given, and keeps nothing.
struct Count(usize);

impl<T> Extend<T> for Count {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        self.0 += items.into_iter().count();
    }
}

/// The protocol buffer's fields that come once.
#[derive(Debug, Default)]
struct Protobuf<'a> {
    err: Option<&'a [u8]>,
    fee: u64,
    without_inner: bool,
    without_logs: bool,
    compute_units: Option<u64>,
}

impl<'a> Protobuf<'a> {
    /// Reads the fields; those that come more than once go where they are wanted.
    fn read(
        protobuf: &'a [u8],
        logs: &mut impl Extend<&'a [u8]>,
        inner: &mut impl Extend<InnerInstruction<'a>>,
        loaded_writable: &mut impl Extend<&'a Pubkey>,
        loaded_readonly: &mut impl Extend<&'a Pubkey>,
    ) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        for field in Fields::new(protobuf) {
            let (number, value) = field?;
            match number {
                1 => fields.err = Some(error_bytes(value.bytes()?)?),
                2 => fields.fee = value.number()?,
                5 => inner_instructions(value.bytes()?, inner)?,
                6 => logs.extend([value.bytes()?]),
                10 => fields.without_inner = value.number()? != 0,
                11 => fields.without_logs = value.number()? != 0,
                12 => loaded_writable.extend([as_key(value.bytes()?)?]),
                13 => loaded_readonly.extend([as_key(value.bytes()?)?]),
                16 => fields.compute_units = Some(value.number()?),
                _ => {}
            }
        }
        Ok(fields)
    }
}

/// `TransactionError { 1: bytes }`.
fn error_bytes(message: &[u8]) -> Result<&[u8], Malformed> {
    let mut error = &[][..];
    for field in Fields::new(message) {
        if let (1, value) = field? {
            error = value.bytes()?;
        }
    }
    Ok(error)
}

/// `InnerInstructions { 1: index, 2: repeated InnerInstruction }`, appended to `instructions`.
fn inner_instructions<'a>(
    message: &'a [u8],
    instructions: &mut impl Extend<InnerInstruction<'a>>,
) -> Result<(), Malformed> {
    // Absent = 0. It need not come before the instructions, but does.
    let mut top_level_index = 0;
    for field in Fields::new(message) {
        if let (1, value) = field? {
            top_level_index = narrow(value.number()?)?;
        }
    }
    for field in Fields::new(message) {
        if let (2, value) = field? {
            instructions.extend([inner_instruction(value.bytes()?, top_level_index)?]);
        }
    }
    Ok(())
}

/// `InnerInstruction { 1: program_id_index, 2: accounts, 3: data, 4: optional stack_height }`.
fn inner_instruction(
    message: &[u8],
    top_level_index: u8,
) -> Result<InnerInstruction<'_>, Malformed> {
    let mut instruction = InnerInstruction {
        top_level_index,
        program_index: 0,
        accounts: &[],
        data: &[],
        stack_height: None,
    };
    for field in Fields::new(message) {
        match field? {
            (1, value) => instruction.program_index = narrow(value.number()?)?,
            (2, value) => instruction.accounts = value.bytes()?,
            (3, value) => instruction.data = value.bytes()?,
            (4, value) => instruction.stack_height = u32::try_from(value.number()?).ok(),
            _ => {}
        }
    }
    Ok(instruction)
}

fn narrow(number: u64) -> Result<u8, Malformed> {
    u8::try_from(number)
        .map_err(|_| Malformed::new("an index of the metadata does not fit into a byte", 0))
}
