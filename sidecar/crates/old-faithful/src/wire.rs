//! Transactions as sent: legacy and version 0, read in place. Only what finding programs and handing on
//! instructions needs; nothing is decoded twice.
//!
//! The format is Solana's wire format: compact-u16 counts, signatures, message.

use crate::error::Malformed;
use crate::model::Pubkey;

/// A transaction, checked to be whole.
#[derive(Debug, Clone, Copy)]
pub struct WireTransaction<'a> {
    /// The first signature, which names the transaction.
    pub signature: &'a [u8; 64],
    /// The number of signatures.
    pub signature_count: u16,
    /// Whether the message has a version.
    pub versioned: bool,
    /// The keys written into the message.
    pub static_keys: &'a [Pubkey],
    /// The number of instructions.
    pub instruction_count: u16,
    instructions: &'a [u8],
    /// The number of lookup tables.
    pub lookup_count: u16,
    lookups: &'a [u8],
    /// Keys loaded as writable, over all tables.
    pub loaded_writable: usize,
    /// Keys loaded as readonly, over all tables.
    pub loaded_readonly: usize,
}

/// An instruction, borrowed from its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireInstruction<'a> {
    /// The called program, as an index into the keys.
    pub program_index: u8,
    /// The accounts given to it, as indexes into the keys.
    pub accounts: &'a [u8],
    /// Its data.
    pub data: &'a [u8],
}

/// The keys taken from one lookup table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireLookup<'a> {
    /// The table's address.
    pub table: &'a Pubkey,
    /// Indexes of keys loaded as writable.
    pub writable: &'a [u8],
    /// Indexes of keys loaded as readonly.
    pub readonly: &'a [u8],
}

struct Reader<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    fn at(&self) -> usize {
        self.length - self.bytes.len()
    }

    #[inline]
    fn fault(&self, reason: &'static str) -> Malformed {
        Malformed::new(reason, self.at())
    }

    #[inline]
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        match self.bytes.split_at_checked(count) {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None => Err(self.fault("the transaction ends early")),
        }
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Malformed> {
        match self.bytes.split_first() {
            Some((byte, rest)) => {
                self.bytes = rest;
                Ok(*byte)
            }
            None => Err(self.fault("the transaction ends early")),
        }
    }

    /// Solana's compact-u16: 7 bits a byte, low ones first, at most 3 bytes.
    #[inline]
    fn compact(&mut self) -> Result<u16, Malformed> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u16::from(first));
        }
        let second = self.byte()?;
        let low = u16::from(first & 0x7f) | u16::from(second & 0x7f) << 7;
        if second < 0x80 {
            return Ok(low);
        }
        match self.byte()? {
            third @ 0..=3 => Ok(low | u16::from(third) << 14),
            _ => Err(self.fault("a count of the transaction exceeds 16 bits")),
        }
    }

    #[inline]
    fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.compact()?;
        self.take(usize::from(count))
    }

    #[inline]
    fn instruction(&mut self) -> Result<WireInstruction<'a>, Malformed> {
        Ok(WireInstruction {
            program_index: self.byte()?,
            accounts: self.counted()?,
            data: self.counted()?,
        })
    }

    #[inline]
    fn lookup(&mut self) -> Result<WireLookup<'a>, Malformed> {
        let Some((table, rest)) = self.bytes.split_first_chunk::<32>() else {
            return Err(self.fault("the transaction ends early"));
        };
        self.bytes = rest;
        Ok(WireLookup {
            table,
            writable: self.counted()?,
            readonly: self.counted()?,
        })
    }
}

impl<'a> WireTransaction<'a> {
    /// Reads a transaction.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader {
            bytes,
            length: bytes.len(),
        };
        let signature_count = reader.compact()?;
        let signatures = reader.take(usize::from(signature_count) * 64)?;
        let Some(signature) = signatures.first_chunk::<64>() else {
            return Err(Malformed::new("the transaction has no signature", 0));
        };

        let versioned = reader.bytes.first().is_some_and(|byte| *byte >= 0x80);
        if versioned && reader.byte()? != 0x80 {
            return Err(Malformed::new(
                "the transaction has a version that this reader does not know",
                reader.at(),
            ));
        }
        reader.take(3)?;
        let key_count = reader.compact()?;
        let (static_keys, _) = reader.take(usize::from(key_count) * 32)?.as_chunks::<32>();
        reader.take(32)?;

        let instruction_count = reader.compact()?;
        let instructions = reader.bytes;
        for _ in 0..instruction_count {
            reader.instruction()?;
        }

        let mut lookup_count = 0;
        let mut lookups: &[u8] = &[];
        let mut loaded_writable = 0;
        let mut loaded_readonly = 0;
        if versioned {
            lookup_count = reader.compact()?;
            lookups = reader.bytes;
            for _ in 0..lookup_count {
                let lookup = reader.lookup()?;
                loaded_writable += lookup.writable.len();
                loaded_readonly += lookup.readonly.len();
            }
        }
        if !reader.bytes.is_empty() {
            return Err(Malformed::new(
                "bytes are left after the transaction",
                reader.at(),
            ));
        }
        Ok(Self {
            signature,
            signature_count,
            versioned,
            static_keys,
            instruction_count,
            instructions,
            lookup_count,
            lookups,
            loaded_writable,
            loaded_readonly,
        })
    }

    /// The top-level instructions.
    pub fn instructions(&self) -> impl Iterator<Item = WireInstruction<'a>> + use<'a> {
        let mut reader = Reader {
            bytes: self.instructions,
            length: self.instructions.len(),
        };
        (0..self.instruction_count).map_while(move |_| reader.instruction().ok())
    }

    /// The lookup tables and which of their keys are loaded.
    pub fn lookups(&self) -> impl Iterator<Item = WireLookup<'a>> + use<'a> {
        let mut reader = Reader {
            bytes: self.lookups,
            length: self.lookups.len(),
        };
        (0..self.lookup_count).map_while(move |_| reader.lookup().ok())
    }

    /// How many keys are loaded from lookup tables.
    pub fn loaded_keys(&self) -> usize {
        self.loaded_writable + self.loaded_readonly
    }

    /// Whether the transaction is a vote: it has instructions, and all of them call the vote program.
    pub fn is_vote(&self) -> bool {
        self.instruction_count > 0
            && self.instructions().all(|instruction| {
                self.static_keys.get(usize::from(instruction.program_index)) == Some(&VOTE_PROGRAM)
            })
    }
}

/// `Vote111111111111111111111111111111111111111`.
pub const VOTE_PROGRAM: Pubkey = [
    0x07, 0x61, 0x48, 0x1d, 0x35, 0x74, 0x74, 0xbb, 0x7c, 0x4d, 0x76, 0x24, 0xeb, 0xd3, 0xbd, 0xb3,
    0xd8, 0x35, 0x5e, 0x73, 0xd1, 0x10, 0x43, 0xfc, 0x0d, 0xa3, 0x53, 0x80, 0x00, 0x00, 0x00, 0x00,
];
