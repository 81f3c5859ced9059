//! Metadata as the early epochs hold it: bincode, field after field without names. Fields were added at its end over
//! the years and are simply absent from older payloads, and two of them changed their layout in between, which
//! nothing in the bytes tells. The layout that uses every byte is the right one; where none does, the metadata
//! counts as missing.

use crate::error::Malformed;
use crate::metadata::{InnerInstruction, Metadata};

/// The variants of `TransactionError` that carry an instruction's place and its own error, or one byte.
const INSTRUCTION_ERROR: u32 = 8;
const ERRORS_WITH_A_BYTE: [u32; 3] = [30, 31, 35];
/// The variants of `InstructionError` that carry a number, and a text.
const CUSTOM: u32 = 25;
const BORSH_IO_ERROR: u32 = 44;
/// Variants above these are none.
const MOST_TRANSACTION_ERRORS: u32 = 64;
const MOST_INSTRUCTION_ERRORS: u32 = 128;

/// How payloads were laid out, by the years.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Whether an inner instruction ends with the depth of its call.
    stack_heights: bool,
    /// Texts of a token balance behind its amount: none, its owner, its owner and token program.
    balance_texts: usize,
}

/// The oldest first. Of payloads that several fit, all read alike.
const LAYOUTS: [Layout; 6] = {
    const fn layout(stack_heights: bool, balance_texts: usize) -> Layout {
        Layout {
            stack_heights,
            balance_texts,
        }
    }
    [
        layout(false, 0),
        layout(false, 1),
        layout(false, 2),
        layout(true, 0),
        layout(true, 1),
        layout(true, 2),
    ]
};

/// Reads metadata, whose fields borrow from `whole`.
pub(crate) fn parse(whole: &[u8]) -> Result<Metadata<'_>, Malformed> {
    let mut farthest: Option<Malformed> = None;
    for layout in LAYOUTS {
        match Reader::new(whole, layout).metadata() {
            Ok(metadata) => return Ok(metadata),
            Err(fault) if farthest.is_none_or(|other| other.at < fault.at) => {
                farthest = Some(fault);
            }
            Err(_) => {}
        }
    }
    Err(farthest.unwrap_or(Malformed::new("the metadata has no known layout", 0)))
}

struct Reader<'a> {
    whole: &'a [u8],
    at: usize,
    layout: Layout,
}

impl<'a> Reader<'a> {
    fn new(whole: &'a [u8], layout: Layout) -> Self {
        Self {
            whole,
            at: 0,
            layout,
        }
    }

    fn metadata(mut self) -> Result<Metadata<'a>, Malformed> {
        let err = self.status()?;
        let fee = self.u64()?;
        for _ in ["before", "after"] {
            let balances = self.count(8)?;
            self.take(balances * 8)?;
        }
        let inner = self.added(Self::inner_instructions)?;
        let logs = self.added(Self::texts)?;
        for _ in ["before", "after"] {
            self.added(Self::token_balances)?;
        }
        self.added(Self::rewards)?;
        self.added(|reader| {
            reader.take(32)?;
            reader.bytes().map(drop)
        })?;
        let compute_units = self.added(Self::u64)?;
        let _cost_units = self.added(Self::u64)?;
        if self.at < self.whole.len() {
            return self.fault("the metadata goes on behind its last field");
        }
        Ok(Metadata {
            err,
            fee,
            inner_recorded: inner.is_some(),
            inner_instructions: inner.unwrap_or_default(),
            logs,
            loaded_writable: Vec::new(),
            loaded_readonly: Vec::new(),
            compute_units,
        })
    }

    fn fault<T>(&self, reason: &'static str) -> Result<T, Malformed> {
        Err(Malformed::new(reason, self.at))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(count);
        match end.and_then(|end| self.whole.get(self.at..end)) {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => self.fault("the metadata ends inside a field"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let found = self.whole.get(self.at..).and_then(<[u8]>::first_chunk);
        match found {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => self.fault("the metadata ends inside a field"),
        }
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// How many items of at least `least` bytes follow: no more than there are bytes for.
    fn count(&mut self, least: usize) -> Result<usize, Malformed> {
        let count = self.u64()?;
        let left = self.whole.len() - self.at;
        match usize::try_from(count) {
            Ok(count) if count <= left / least => Ok(count),
            _ => self.fault("a list of the metadata is longer than its bytes"),
        }
    }

    /// Bytes behind their count as u64.
    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.count(1)?;
        self.take(count)
    }

    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let bytes = self.bytes()?;
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(bytes),
            Err(_) => self.fault("a text of the metadata is no UTF-8"),
        }
    }

    /// Bytes behind their count as compact-u16.
    fn short_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let mut count = 0;
        for place in 0..3 {
            let byte = self.u8()?;
            count |= usize::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return self.take(count);
            }
        }
        self.fault("a count of the metadata has more than 16 bits")
    }

    /// A value that may be absent, and says so.
    fn optional<T>(
        &mut self,
        value: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        match self.u8()? {
            0 => Ok(None),
            1 => value(self).map(Some),
            _ => self.fault("a field of the metadata is neither there nor absent"),
        }
    }

    /// A field that came with the years: payloads from before end here.
    fn added<T>(
        &mut self,
        value: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if self.at == self.whole.len() {
            return Ok(None);
        }
        self.optional(value)
    }

    /// `Result<(), TransactionError>`: the error's bytes.
    fn status(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.u32()? {
            0 => return Ok(None),
            1 => {}
            _ => return self.fault("the transaction neither succeeded nor failed"),
        }
        let start = self.at;
        match self.u32()? {
            INSTRUCTION_ERROR => {
                self.u8()?;
                match self.u32()? {
                    CUSTOM => {
                        self.u32()?;
                    }
                    BORSH_IO_ERROR => {
                        self.text()?;
                    }
                    MOST_INSTRUCTION_ERRORS.. => {
                        return self.fault("no instruction error has this number");
                    }
                    _ => {}
                }
            }
            with_a_byte if ERRORS_WITH_A_BYTE.contains(&with_a_byte) => {
                self.u8()?;
            }
            MOST_TRANSACTION_ERRORS.. => {
                return self.fault("no transaction error has this number");
            }
            _ => {}
        }
        Ok(Some(&self.whole[start..self.at]))
    }

    fn inner_instructions(&mut self) -> Result<Vec<InnerInstruction<'a>>, Malformed> {
        let groups = self.count(9)?;
        let mut inner = Vec::new();
        for _ in 0..groups {
            let top_level_index = self.u8()?;
            for _ in 0..self.count(3)? {
                inner.push(InnerInstruction {
                    top_level_index,
                    program_index: self.u8()?,
                    accounts: self.short_bytes()?,
                    data: self.short_bytes()?,
                    stack_height: if self.layout.stack_heights {
                        self.optional(Self::u32)?
                    } else {
                        None
                    },
                });
            }
        }
        Ok(inner)
    }

    fn texts(&mut self) -> Result<Vec<&'a [u8]>, Malformed> {
        let count = self.count(8)?;
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(self.text()?);
        }
        Ok(texts)
    }

    /// Account, mint, amount in three forms, and what the layout has behind it.
    fn token_balances(&mut self) -> Result<(), Malformed> {
        for _ in 0..self.count(26)? {
            self.u8()?;
            self.text()?;
            self.take(8 + 1)?;
            for _ in 0..=self.layout.balance_texts {
                self.text()?;
            }
        }
        Ok(())
    }

    /// Account, lamports, balance, kind, commission.
    fn rewards(&mut self) -> Result<(), Malformed> {
        for _ in 0..self.count(26)? {
            self.text()?;
            self.take(8 + 8)?;
            self.optional(Self::u32)?;
            self.optional(Self::u8)?;
        }
        Ok(())
    }
}
