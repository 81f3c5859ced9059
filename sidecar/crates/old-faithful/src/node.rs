//! The archive's seven kinds of nodes, read in place: fields borrow from the section's bytes. What nodes mean
//! together (chains of frames, blocks of entries) belongs in [`dataframe`](crate::dataframe) and the scanner.
//!
//! The shapes are those of the archive's public schema, with what real files do besides: see each field.

use crate::cbor::{Cursor, Links};
use crate::error::Malformed;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A transaction with its metadata.
    Transaction,
    /// An entry: some transactions and a hash.
    Entry,
    /// A block.
    Block,
    /// A run of blocks.
    Subset,
    /// The epoch.
    Epoch,
    /// A block's rewards.
    Rewards,
    /// A piece of a payload that did not fit into one node.
    DataFrame,
}

impl Kind {
    /// The kind of a node, from its first bytes.
    #[inline]
    pub fn of(node: &[u8]) -> Result<Self, Malformed> {
        // An array of up to 23 elements: the kind is the next byte, without parsing.
        let number = if let [0x80..=0x97, kind @ 0..=23, ..] = node {
            u64::from(*kind)
        } else {
            let mut cursor = Cursor::new(node);
            cursor.array()?;
            cursor.unsigned()?
        };
        Ok(match number {
            0 => Self::Transaction,
            1 => Self::Entry,
            2 => Self::Block,
            3 => Self::Subset,
            4 => Self::Epoch,
            5 => Self::Rewards,
            6 => Self::DataFrame,
            _ => return Err(Malformed::new("no node has this kind", 1)),
        })
    }
}

/// Reads a node's array head and kind; the number of elements after the kind.
#[inline(always)]
fn begin(cursor: &mut Cursor<'_>, kind: u64, least: usize) -> Result<usize, Malformed> {
    let count = cursor.array()?;
    if count < least + 1 {
        return Err(Malformed::new("it has too few fields", cursor.position()));
    }
    if cursor.unsigned()? != kind {
        return Err(Malformed::new("it is of another kind", cursor.position()));
    }
    Ok(count - 1)
}

/// Reads fields that this reader does not know.
#[inline(always)]
fn skip_rest(cursor: &mut Cursor<'_>, count: usize) -> Result<(), Malformed> {
    for _ in 0..count {
        cursor.skip()?;
    }
    Ok(())
}

#[inline(always)]
fn end(cursor: &Cursor<'_>) -> Result<(), Malformed> {
    if cursor.is_at_end() {
        Ok(())
    } else {
        Err(Malformed::new("bytes are left after it", cursor.position()))
    }
}

/// A payload, or a piece of one.
#[derive(Debug, Clone, Copy)]
pub struct DataFrame<'a> {
    /// The whole payload's CRC-64/ISO or FNV-1a 64, where recorded.
    pub hash: Option<u64>,
    /// The place of this piece, where recorded.
    pub index: Option<u64>,
    /// The number of pieces, where recorded.
    pub total: Option<u64>,
    /// The bytes.
    pub data: &'a [u8],
    /// The pieces that follow.
    pub next: Links<'a>,
}

impl<'a> DataFrame<'a> {
    /// Parses a node.
    pub fn parse(node: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(node);
        let frame = Self::read(&mut cursor)?;
        end(&cursor)?;
        Ok(frame)
    }

    #[inline(always)]
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        let count = begin(cursor, 6, 4)?;
        let hash = cursor.optional_bits()?;
        let index = cursor.optional_unsigned()?;
        let total = cursor.optional_unsigned()?;
        let data = cursor.byte_string()?;
        let next = if count > 4 {
            match cursor.optional_array()? {
                Some(links) => cursor.links(links)?,
                None => Links::NONE,
            }
        } else {
            Links::NONE
        };
        skip_rest(cursor, count.saturating_sub(5))?;
        Ok(Self {
            hash,
            index,
            total,
            data,
            next,
        })
    }
}

/// A transaction with its metadata.
#[derive(Debug, Clone, Copy)]
pub struct TransactionNode<'a> {
    /// The transaction as sent.
    pub data: DataFrame<'a>,
    /// Its metadata, mostly compressed; empty where the archive has none.
    pub metadata: DataFrame<'a>,
    /// The slot of its block.
    pub slot: u64,
    /// Its place in the block; very old files have none.
    pub index: Option<u64>,
}

impl<'a> TransactionNode<'a> {
    /// Parses a node.
    #[inline(always)]
    pub fn parse(node: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(node);
        let count = begin(&mut cursor, 0, 3)?;
        let data = DataFrame::read(&mut cursor)?;
        let metadata = DataFrame::read(&mut cursor)?;
        let slot = cursor.unsigned()?;
        let index = if count > 3 {
            cursor.optional_unsigned()?
        } else {
            None
        };
        skip_rest(&mut cursor, count.saturating_sub(4))?;
        end(&cursor)?;
        Ok(Self {
            data,
            metadata,
            slot,
            index,
        })
    }
}

/// An entry.
#[derive(Debug, Clone, Copy)]
pub struct EntryNode<'a> {
    /// Hashes since the entry before.
    pub num_hashes: u64,
    /// The entry's hash.
    pub hash: &'a [u8],
    /// Its transactions.
    pub transactions: Links<'a>,
}

impl<'a> EntryNode<'a> {
    /// Parses a node.
    pub fn parse(node: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(node);
        let count = begin(&mut cursor, 1, 3)?;
        let num_hashes = cursor.unsigned()?;
        let hash = cursor.byte_string()?;
        let links = cursor.array()?;
        let transactions = cursor.links(links)?;
        skip_rest(&mut cursor, count - 3)?;
        end(&cursor)?;
        Ok(Self {
            num_hashes,
            hash,
            transactions,
        })
    }
}

/// A block.
#[derive(Debug, Clone, Copy)]
pub struct BlockNode<'a> {
    /// The block's slot.
    pub slot: u64,
    /// Its entries.
    pub entries: Links<'a>,
    /// The slot of the block before it.
    pub parent_slot: u64,
    /// Unix time in seconds; `None` when the block says 0 or nothing.
    pub block_time: Option<i64>,
    /// Blocks below this one, where recorded.
    pub block_height: Option<u64>,
    /// The CID of its rewards; a CID of 4 bytes means that it has none.
    pub rewards: Option<&'a [u8]>,
}

impl<'a> BlockNode<'a> {
    /// Parses a node.
    pub fn parse(node: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(node);
        let count = begin(&mut cursor, 2, 4)?;
        let slot = cursor.unsigned()?;
        // Which shred ended with which entry; −1 = unknown. Nothing here needs it.
        cursor.skip()?;
        let links = cursor.array()?;
        let entries = cursor.links(links)?;
        let fields = cursor.array()?;
        if fields == 0 {
            return Err(Malformed::new("it names no parent", cursor.position()));
        }
        let parent_slot = cursor.unsigned()?;
        let block_time = if fields > 1 {
            cursor.optional_signed()?.filter(|time| *time != 0)
        } else {
            None
        };
        let block_height = if fields > 2 {
            cursor.optional_unsigned()?
        } else {
            None
        };
        skip_rest(&mut cursor, fields.saturating_sub(3))?;
        let rewards = if count > 4 {
            Some(cursor.link()?)
        } else {
            None
        };
        skip_rest(&mut cursor, count.saturating_sub(5))?;
        end(&cursor)?;
        Ok(Self {
            slot,
            entries,
            parent_slot,
            block_time,
            block_height,
            rewards,
        })
    }
}

/// A run of blocks; the archive writes it after them.
#[derive(Debug, Clone, Copy)]
pub struct SubsetNode<'a> {
    /// The first block's slot.
    pub first: u64,
    /// The last block's slot.
    pub last: u64,
    /// The blocks.
    pub blocks: Links<'a>,
}

impl<'a> SubsetNode<'a> {
    /// Parses a node.
    pub fn parse(node: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(node);
        let count = begin(&mut cursor, 3, 3)?;
        let first = cursor.unsigned()?;
        let last = cursor.unsigned()?;
        let links = cursor.array()?;
        let blocks = cursor.links(links)?;
        skip_rest(&mut cursor, count - 3)?;
        end(&cursor)?;
        Ok(Self {
            first,
            last,
            blocks,
        })
    }
}

/// The epoch: the archive's last node, its root.
#[derive(Debug, Clone, Copy)]
pub struct EpochNode<'a> {
    /// The epoch.
    pub epoch: u64,
    /// Its subsets.
    pub subsets: Links<'a>,
}

impl<'a> EpochNode<'a> {
    /// Parses a node.
    pub fn parse(node: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(node);
        let count = begin(&mut cursor, 4, 2)?;
        let epoch = cursor.unsigned()?;
        let links = cursor.array()?;
        let subsets = cursor.links(links)?;
        skip_rest(&mut cursor, count - 2)?;
        end(&cursor)?;
        Ok(Self { epoch, subsets })
    }
}

/// A block's rewards.
#[derive(Debug, Clone, Copy)]
pub struct RewardsNode<'a> {
    /// The block's slot.
    pub slot: u64,
    /// The rewards, mostly compressed.
    pub data: DataFrame<'a>,
}

impl<'a> RewardsNode<'a> {
    /// Parses a node.
    pub fn parse(node: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(node);
        let count = begin(&mut cursor, 5, 2)?;
        let slot = cursor.unsigned()?;
        let data = DataFrame::read(&mut cursor)?;
        skip_rest(&mut cursor, count - 2)?;
        end(&cursor)?;
        Ok(Self { slot, data })
    }
}
