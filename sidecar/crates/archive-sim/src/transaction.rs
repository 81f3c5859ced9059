//! A transaction as a model: a tree of calls, and what each program says in it.
//!
//! What follows from the model is elsewhere: its account keys and bytes in `wire.rs`, its logs and inner instructions in
//! `logs.rs`. What each program *said* is noted while the tree runs, so that the truth does not come from parsing logs.

use crate::Pubkey;
use crate::instructions::Told;
use crate::programs::Payload;
use crate::tables::Lookup;

/// One invocation of a program.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) program: Pubkey,
    pub(crate) accounts: Vec<Pubkey>,
    pub(crate) data: Vec<u8>,
    /// What data and accounts mean, where the program is one of the demo's.
    pub(crate) told: Option<Told>,
    pub(crate) steps: Vec<Step>,
    /// Whether it returns an error after its steps.
    pub(crate) fails: bool,
}

/// What a program does while it runs.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// `Program log: …`
    Log(String),
    /// `Program data: …`, an event by `emit!`.
    Emit(Payload),
    /// `Program data: … …`: one event whose bytes are split into two fields.
    EmitFields(Payload),
    /// An event by `emit_cpi!`: a call to itself whose data is tag and payload.
    EmitCpi(Payload),
    /// `Program return: …`
    Return(Vec<u8>),
    /// A call of another program, or of itself.
    Call(Call),
}

impl Call {
    pub(crate) fn new(program: Pubkey, steps: Vec<Step>) -> Self {
        Self {
            program,
            accounts: Vec::new(),
            data: vec![1, 2, 3, 4, 5, 6, 7, 8],
            told: None,
            steps,
            fails: false,
        }
    }

    /// Sees this call and all below it, depth first.
    pub(crate) fn visit(&self, see: &mut impl FnMut(&Call)) {
        see(self);
        for step in &self.steps {
            if let Step::Call(inner) = step {
                inner.visit(see);
            }
        }
    }
}

/// How the runtime cuts a transaction's logs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Truncation {
    /// Nothing is cut.
    Never,
    /// Nothing fits any more after so many lines: `Log truncated` is the last line.
    AfterLines(usize),
    /// The longest line does not fit. The runtime writes `Log truncated` in its place, and goes on with lines that do.
    LongestLine,
}

/// What the archive keeps of a transaction's execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// All of it.
    Everything,
    /// Whether it failed, and balances: neither logs nor inner instructions.
    Balances,
    /// No metadata at all.
    Nothing,
}

/// A transaction before it has bytes.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) signature: [u8; 64],
    pub(crate) payer: Pubkey,
    /// Signatures and keys of further signers.
    pub(crate) cosigners: Vec<([u8; 64], Pubkey)>,
    pub(crate) calls: Vec<Call>,
    /// None: a legacy transaction.
    pub(crate) lookups: Option<Vec<Lookup>>,
    pub(crate) truncation: Truncation,
    pub(crate) kept: Kept,
}

impl Transaction {
    /// Whether anything is loaded from lookup tables.
    pub(crate) fn loads(&self) -> bool {
        let lookups = self.lookups.as_deref().unwrap_or_default();
        lookups
            .iter()
            .any(|lookup| !lookup.writable.is_empty() || !lookup.readonly.is_empty())
    }
}
