//! Who is speaking: follows a transaction's log lines through nested invocations.
//!
//! The runtime writes `Program <id> invoke [<depth>]` when a program starts and `Program <id> success`
//! or `Program <id> failed: …` when it ends. What a program logs itself always arrives behind
//! `Program log: `, so text that merely looks like a stack line cannot enter the stack: only lines of
//! exactly the runtime's form count. What belongs here is the stack and nothing else: which lines carry
//! records, and what they hold, is `records.rs`.

use crate::records::{Address, InnerView, InstructionView};

/// Programs the runtime verifies without invoking them: their instructions leave no log line.
const SILENT_PROGRAMS: [&[u8]; 3] = [
    b"Ed25519SigVerify111111111111111111111111111",
    b"KeccakSecp256k11111111111111111111111111111",
    b"Secp256r1SigVerify1111111111111111111111111",
];

/// One line of a transaction's log, as far as the stack cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogLine<'a> {
    /// `Program <id> invoke [<depth>]`
    Invoke {
        /// The program that starts.
        program: Address,
        /// Its depth as printed, 1 for a top-level instruction.
        depth: usize,
    },
    /// `Program <id> success` or `Program <id> failed: …`
    Close {
        /// The program that ends.
        program: Address,
    },
    /// `Program data: <base64> <base64> …`: what follows the prefix.
    Data(&'a [u8]),
    /// `Program log: <text>`: the text, which is the program's own and never the runtime's.
    Text(&'a [u8]),
    /// `Log truncated`: the runtime dropped at least one line that did not fit.
    Truncated,
    /// Anything else: return data, compute units.
    Other,
}

/// A transaction names its programs in line after line: those that were decoded are remembered.
#[derive(Default)]
pub(crate) struct ProgramNames<'a>(Vec<(&'a [u8], Address)>);

impl<'a> ProgramNames<'a> {
    /// More than a transaction has, but for one that is made to be searched for long.
    const MOST: usize = 16;

    /// The address that a name is; none when it is not one.
    fn address(&mut self, name: &'a [u8]) -> Option<Address> {
        if let Some((_, known)) = self.0.iter().find(|(known, _)| *known == name) {
            return Some(*known);
        }
        let address = parse_address(name)?;
        if self.0.len() < Self::MOST {
            self.0.push((name, address));
        }
        Some(address)
    }
}

impl<'a> LogLine<'a> {
    /// Classifies one line.
    pub(crate) fn parse(line: &'a [u8], names: &mut ProgramNames<'a>) -> Self {
        if line == b"Log truncated" {
            return Self::Truncated;
        }
        let Some(rest) = line.strip_prefix(b"Program ") else {
            return Self::Other;
        };
        if let Some(text) = rest.strip_prefix(b"log: ") {
            return Self::Text(text);
        }
        if let Some(fields) = rest.strip_prefix(b"data:") {
            return Self::Data(fields.strip_prefix(b" ").unwrap_or(fields));
        }
        let Some(space) = rest.iter().position(|byte| *byte == b' ') else {
            return Self::Other;
        };
        let (name, verb) = rest.split_at(space);
        let closes = verb == b" success" || verb.starts_with(b" failed: ");
        let depth = verb
            .strip_prefix(b" invoke [")
            .and_then(|digits| digits.strip_suffix(b"]"))
            .and_then(parse_depth);
        if !closes && depth.is_none() {
            return Self::Other;
        }
        let Some(program) = names.address(name) else {
            return Self::Other;
        };
        match depth {
            Some(depth) => Self::Invoke { program, depth },
            None => Self::Close { program },
        }
    }
}

fn parse_depth(digits: &[u8]) -> Option<usize> {
    // The runtime's own limit is 9; three digits leave room without letting a number overflow.
    if digits.is_empty() || digits.len() > 3 || digits[0] == b'0' {
        return None;
    }
    digits.iter().try_fold(0, |depth, digit| {
        digit
            .is_ascii_digit()
            .then(|| depth * 10 + usize::from(digit - b'0'))
    })
}

fn parse_address(text: &[u8]) -> Option<Address> {
    if !(32..=44).contains(&text.len()) {
        return None;
    }
    let mut address = [0; 32];
    five8::decode_32(text, &mut address).ok()?;
    Some(address)
}

/// A running invocation.
#[derive(Clone, Copy, Debug)]
struct Frame {
    program: Address,
    path: InstructionPath,
}

/// The place of an invocation in its transaction: a top-level instruction, or an entry of that
/// instruction's flat list of recorded inner instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstructionPath {
    /// Place of the top-level instruction in the message.
    pub top_level: u16,
    /// Place in that instruction's recorded inner instructions; none for the top-level instruction itself.
    pub inner: Option<u16>,
}

/// The stack of running invocations of one transaction.
pub(crate) struct LogStack<'a> {
    account_keys: &'a [Address],
    instructions: &'a [InstructionView<'a>],
    inner_instructions: &'a [InnerView<'a>],
    frames: Vec<Frame>,
    /// The next top-level instruction no invocation has been matched with.
    next_top_level: usize,
    /// The top-level instruction under way.
    top_level: usize,
    /// The next inner instruction of it no invocation has been matched with.
    next_inner: usize,
    /// Stack lines that did not fit the stack: a close that is not of the speaker, a depth that jumps.
    pub(crate) stack_mismatches: u32,
    /// Invocations for which the transaction has no instruction at the expected place.
    pub(crate) path_mismatches: u32,
}

impl<'a> LogStack<'a> {
    pub(crate) fn new(
        account_keys: &'a [Address],
        instructions: &'a [InstructionView<'a>],
        inner_instructions: &'a [InnerView<'a>],
    ) -> Self {
        Self {
            account_keys,
            instructions,
            inner_instructions,
            frames: Vec::new(),
            next_top_level: 0,
            top_level: 0,
            next_inner: 0,
            stack_mismatches: 0,
            path_mismatches: 0,
        }
    }

    /// The program speaking now and its place; none outside every invocation.
    pub(crate) fn speaker(&self) -> Option<(Address, InstructionPath)> {
        self.frames.last().map(|frame| (frame.program, frame.path))
    }

    /// A program starts. The printed depth is the authority: invocations that ended without a closing
    /// line are dropped. Returns whether the line fitted the stack.
    pub(crate) fn invoke(&mut self, program: Address, depth: usize) -> bool {
        let fits = self.frames.len() + 1 == depth;
        if !fits {
            self.stack_mismatches += 1;
            self.frames.truncate(depth - 1);
        }
        let path = if depth == 1 {
            self.enter_top_level(&program)
        } else {
            self.enter_inner(&program)
        };
        self.frames.push(Frame { program, path });
        fits
    }

    /// A program ends. Invocations above it that ended without a closing line are dropped with it; a
    /// program that is not running changes nothing. Returns whether the line fitted the stack.
    pub(crate) fn close(&mut self, program: &Address) -> bool {
        let running = self
            .frames
            .iter()
            .rposition(|frame| frame.program == *program);
        let fits = running.is_some_and(|place| place + 1 == self.frames.len());
        if !fits {
            self.stack_mismatches += 1;
        }
        if let Some(place) = running {
            self.frames.truncate(place);
        }
        fits
    }

    /// Ends the transaction: an invocation still running never got its closing line.
    pub(crate) fn finish(&mut self) {
        if !self.frames.is_empty() {
            self.stack_mismatches += 1;
        }
    }

    fn enter_top_level(&mut self, program: &Address) -> InstructionPath {
        let found = (self.next_top_level..self.instructions.len()).find(|place| {
            self.program_of(self.instructions[*place].program_index) == Some(program)
        });
        let place = found.unwrap_or(self.next_top_level);
        let skipped_speaker = (self.next_top_level..place).any(|skipped| {
            self.program_of(self.instructions[skipped].program_index)
                .is_none_or(|silent| !is_silent(silent))
        });
        if found.is_none() || skipped_speaker {
            self.path_mismatches += 1;
        }
        self.top_level = place;
        self.next_top_level = place + 1;
        self.next_inner = 0;
        InstructionPath {
            top_level: saturating_u16(place),
            inner: None,
        }
    }

    fn enter_inner(&mut self, program: &Address) -> InstructionPath {
        let recorded = self
            .inner_instructions
            .iter()
            .filter(|inner| usize::from(inner.top_level_index) == self.top_level);
        let matching = recorded
            .enumerate()
            .skip(self.next_inner)
            .find(|(_, inner)| self.program_of(inner.program_index) == Some(program));
        let place = matching.map_or(self.next_inner, |(place, _)| place);
        if matching.is_none() || place != self.next_inner {
            self.path_mismatches += 1;
        }
        self.next_inner = place + 1;
        InstructionPath {
            top_level: saturating_u16(self.top_level),
            inner: Some(saturating_u16(place)),
        }
    }

    fn program_of(&self, program_index: u8) -> Option<&Address> {
        self.account_keys.get(usize::from(program_index))
    }
}

fn is_silent(program: &Address) -> bool {
    SILENT_PROGRAMS
        .iter()
        .any(|text| parse_address(text).as_ref() == Some(program))
}

/// A transaction holds a few hundred instructions at most, so the bound is never met by a real one.
fn saturating_u16(place: usize) -> u16 {
    u16::try_from(place).unwrap_or(u16::MAX)
}
