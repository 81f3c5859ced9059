//! What can be wrong with an IDL or with the use of a decoder. What is wrong with a payload is not an error
//! but a row of the quarantine.

use arrow_schema::ArrowError;

use super::instruction::INSTRUCTION;
use crate::records::RecordError;

/// Why a program's IDL versions make no decoder.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdlError {
    /// There is nothing to decode by.
    #[error("the program has no IDL version")]
    NoVersions,
    /// Two versions cannot be in force from the same slot.
    #[error("{first} and {second} are both in force from slot {from_slot}")]
    SameSlot {
        /// Label of the one.
        first: String,
        /// Label of the other.
        second: String,
        /// The slot.
        from_slot: u64,
    },
    /// The file as a whole cannot be read.
    #[error("{label}: {reason}")]
    Malformed {
        /// The version.
        label: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An event of the file cannot be laid out.
    #[error("{label}: {}{}: {fault}", event_words(.event), field_words(.field))]
    Refused {
        /// The version.
        label: String,
        /// The event.
        event: String,
        /// Its field; empty when the event as a whole is meant.
        field: String,
        /// What is wrong.
        fault: TypeFault,
    },
}

fn event_words(event: &str) -> String {
    match event.strip_prefix(INSTRUCTION) {
        Some(name) => format!("instruction `{name}`"),
        None => format!("event `{event}`"),
    }
}

fn field_words(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!(" field `{field}`")
    }
}

/// Why a type cannot be laid out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeFault {
    /// The decoder has no rule for it.
    #[error("type `{0}` is not supported")]
    Unsupported(String),
    /// The file does not define it.
    #[error("type `{0}` is not defined")]
    Undefined(String),
    /// The file defines it twice, differently.
    #[error("type `{0}` is defined twice, differently")]
    Contradictory(String),
    /// The type contains itself.
    #[error("type `{0}` contains itself")]
    Recursive(String),
    /// A use of a generic type has other arguments than it has parameters.
    #[error("type `{name}` has {parameters} generic parameters, and is used with {arguments}")]
    Arguments {
        /// The type.
        name: String,
        /// How many it has.
        parameters: usize,
        /// How many it is given.
        arguments: usize,
    },
    /// An array's length, or an argument for one, is no number.
    #[error("`{0}` is no number, and no generic parameter that stands for one")]
    NoNumber(String),
    /// What takes the same room whether it is there or not needs a fixed size.
    #[error("a coption of values that differ in size")]
    UnsizedCoption,
    /// A type copied from memory does not say where its fields are.
    #[error(
        "type `{0}` is copied from memory, but its `repr` does not fix the order of its fields"
    )]
    Unordered(String),
    /// A type copied from memory has a part that cannot be.
    #[error(
        "type `{owner}` is copied from memory, but its field `{field}` has no fixed place there"
    )]
    Unplaced {
        /// The type.
        owner: String,
        /// Its field.
        field: String,
    },
    /// Types are nested too deeply.
    #[error("types are nested more than 64 deep")]
    TooDeep,
    /// The layout is too large.
    #[error("the layout has too many parts (more than 10,000 in an event or 200,000 in a file)")]
    TooManyNodes,
    /// An instruction names more accounts than a transaction has room for.
    #[error("it names more than 1,232 accounts, which no transaction has room for")]
    TooManyAccounts,
    /// A list of elements without bytes could be endless.
    #[error("a list or array has elements of no size")]
    Sizeless,
    /// A name is too long to be one.
    #[error("a name is longer than 255 bytes")]
    LongName,
    /// Two fields have one name.
    #[error("the field appears twice")]
    DuplicateField,
    /// Two events have one name.
    #[error("it appears twice")]
    DuplicateEvent,
    /// An event is called as instructions are where both are asked for.
    #[error(
        "the names of events cannot begin with `instruction:` where instructions are asked for"
    )]
    ReservedName,
    /// Two events cannot be told apart.
    #[error("its discriminator is empty, or begins like that of `{0}`")]
    Discriminator(String),
    /// The type of an event is an enum or an alias.
    #[error("an event has to be a struct")]
    NotAStruct,
    /// The file does not say what it should.
    #[error("`{0}` is malformed")]
    Malformed(String),
}

/// Why a batch could not be decoded. Payloads that do not decode are no such reason.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The batch does not have the record schema.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// What an instruction was given is no list of keys.
    #[error("row {row}: its accounts are not 32 bytes each")]
    Accounts {
        /// The first such row.
        row: usize,
    },
    /// The batch has records of another program.
    #[error("row {row} is a record of another program than the decoder's")]
    Program {
        /// The first such row.
        row: usize,
    },
    /// The decoded values would be too large: few payload bytes stand for much text.
    #[error(
        "event `{event}`: the decoded batch is larger than 1 GiB; pass fewer records at a time"
    )]
    TooLarge {
        /// The event that crossed the bound.
        event: String,
    },
    /// A payload that validated did not decode: a defect of the decoder.
    #[error("event `{event}`, row {row}: validated, but did not decode; please report this")]
    Inconsistent {
        /// The event.
        event: String,
        /// Row of the batch.
        row: usize,
    },
    /// Arrow refused the columns.
    #[error("decoded batch: {0}")]
    Arrow(#[from] ArrowError),
}
