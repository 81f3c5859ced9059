//! A transaction: what programs do in it, and the bytes, logs and inner instructions that follow.
//!
//! The model is a tree of calls. Logs are written as the runtime writes them while it walks the tree, inner instructions
//! are its nodes depth first, and what each program *said* is noted beside, so that the truth does not come from
//! parsing logs.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::events::Payload;
use crate::{Pubkey, base58};

/// What an instruction's data begins with when it carries an event: Anchor's `EVENT_IX_TAG`, little endian.
const EVENT_TAG: [u8; 8] = [0xe4, 0x45, 0xa5, 0x2e, 0x51, 0xcb, 0x9a, 0x1d];

/// One invocation of a program.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) program: Pubkey,
    pub(crate) accounts: Vec<Pubkey>,
    pub(crate) data: Vec<u8>,
    pub(crate) steps: Vec<Step>,
    pub(crate) fails: bool,
}

/// What a program does while it runs.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// `Program log: …`
    Log(String),
    /// `Program data: …`, an event by `emit!`.
    Emit(Payload),
    /// An event by `emit_cpi!`: a call to itself whose data is tag and payload.
    EmitCpi(Payload),
    /// `Program return: …`
    Return(Vec<u8>),
    Call(Call),
}

impl Call {
    pub(crate) fn new(program: Pubkey, steps: Vec<Step>) -> Self {
        Self {
            program,
            accounts: Vec::new(),
            data: vec![1, 2, 3, 4, 5, 6, 7, 8],
            steps,
            fails: false,
        }
    }
}

/// Something a program said: by a log line (its index among all lines), or by CPI.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) program: Pubkey,
    pub(crate) log_line: Option<usize>,
    pub(crate) payload: Payload,
}

/// An inner instruction as metadata records it.
#[derive(Debug, Clone)]
pub(crate) struct InnerInstruction {
    pub(crate) program_index: u8,
    pub(crate) accounts: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) stack_height: u32,
}

/// What running a transaction left.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) failed: bool,
    pub(crate) logs: Vec<String>,
    pub(crate) inner: Vec<(u8, Vec<InnerInstruction>)>,
    pub(crate) said: Vec<Said>,
    pub(crate) truncated: bool,
    pub(crate) deepest: u32,
}

/// A lookup table's use in a message: `(table index, entry indexes)` as writable and readonly.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    pub(crate) table: Pubkey,
    pub(crate) writable: Vec<(u8, Pubkey)>,
    pub(crate) readonly: Vec<(u8, Pubkey)>,
}

/// A transaction before it has bytes.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) signature: [u8; 64],
    pub(crate) payer: Pubkey,
    pub(crate) calls: Vec<Call>,
    /// None: a legacy transaction.
    pub(crate) lookups: Option<Vec<Lookup>>,
    /// Logs are cut after so many lines.
    pub(crate) log_lines_kept: Option<usize>,
}

/// A transaction's account keys: static ones, then loaded writable, then loaded readonly.
pub(crate) struct Keys {
    pub(crate) statics: Vec<Pubkey>,
    pub(crate) loaded_writable: Vec<Pubkey>,
    pub(crate) loaded_readonly: Vec<Pubkey>,
    index: HashMap<Pubkey, u8>,
}

impl Transaction {
    /// Lays out the account keys. Top-level programs are static, as the runtime demands; what a lookup loads is not.
    pub(crate) fn keys(&self) -> Keys {
        let lookups = self.lookups.as_deref().unwrap_or_default();
        let loaded_writable: Vec<Pubkey> = lookups
            .iter()
            .flat_map(|l| l.writable.iter().map(|entry| entry.1))
            .collect();
        let loaded_readonly: Vec<Pubkey> = lookups
            .iter()
            .flat_map(|l| l.readonly.iter().map(|entry| entry.1))
            .collect();
        let mut statics = vec![self.payer];
        let mut add = |key: &Pubkey, top_level: bool| {
            let loaded = loaded_writable.contains(key) || loaded_readonly.contains(key);
            if !statics.contains(key) && (top_level || !loaded) {
                statics.push(*key);
            }
        };
        for call in &self.calls {
            visit(call, &mut |inner| {
                inner.accounts.iter().for_each(|key| add(key, false));
            });
        }
        for call in &self.calls {
            visit(call, &mut |inner| add(&inner.program, false));
            add(&call.program, true);
        }
        let mut index = HashMap::new();
        for (position, key) in statics
            .iter()
            .chain(&loaded_writable)
            .chain(&loaded_readonly)
            .enumerate()
        {
            index.entry(*key).or_insert(position as u8);
        }
        Keys {
            statics,
            loaded_writable,
            loaded_readonly,
            index,
        }
    }

    /// Runs the transaction.
    pub(crate) fn run(&self, keys: &Keys) -> Outcome {
        let mut outcome = Outcome::default();
        for (position, call) in self.calls.iter().enumerate() {
            let mut inner = Vec::new();
            let completed = execute(call, 1, keys, &mut outcome, &mut inner);
            if !inner.is_empty() {
                outcome.inner.push((position as u8, inner));
            }
            if !completed {
                outcome.failed = true;
                break;
            }
        }
        if let Some(kept) = self
            .log_lines_kept
            .filter(|kept| *kept < outcome.logs.len())
        {
            outcome.logs.truncate(kept);
            outcome.logs.push("Log truncated".into());
            outcome
                .said
                .retain(|said| said.log_line.is_none_or(|line| line < kept));
            outcome.truncated = true;
        }
        outcome
    }

    /// The wire bytes.
    pub(crate) fn wire(&self, keys: &Keys, blockhash: &[u8; 32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        compact(&mut bytes, 1);
        bytes.extend(self.signature);
        if self.lookups.is_some() {
            bytes.push(0x80);
        }
        let programs = self.calls.len().min(keys.statics.len() - 1) as u8;
        bytes.extend([1, 0, programs]);
        compact(&mut bytes, keys.statics.len());
        keys.statics.iter().for_each(|key| bytes.extend(key));
        bytes.extend(blockhash);
        compact(&mut bytes, self.calls.len());
        for call in &self.calls {
            bytes.push(keys.index[&call.program]);
            compact(&mut bytes, call.accounts.len());
            call.accounts
                .iter()
                .for_each(|key| bytes.push(keys.index[key]));
            compact(&mut bytes, call.data.len());
            bytes.extend(&call.data);
        }
        if let Some(lookups) = &self.lookups {
            compact(&mut bytes, lookups.len());
            for lookup in lookups {
                bytes.extend(lookup.table);
                for entries in [&lookup.writable, &lookup.readonly] {
                    compact(&mut bytes, entries.len());
                    bytes.extend(entries.iter().map(|entry| entry.0));
                }
            }
        }
        bytes
    }
}

fn visit(call: &Call, see: &mut impl FnMut(&Call)) {
    see(call);
    for step in &call.steps {
        if let Step::Call(inner) = step {
            visit(inner, see);
        }
    }
}

/// Runs one call at `depth` (1: top level); returns whether it succeeded.
fn execute(
    call: &Call,
    depth: u32,
    keys: &Keys,
    outcome: &mut Outcome,
    inner: &mut Vec<InnerInstruction>,
) -> bool {
    let name = base58(&call.program);
    outcome.deepest = outcome.deepest.max(depth);
    outcome
        .logs
        .push(format!("Program {name} invoke [{depth}]"));
    let mut succeeded = !call.fails;
    for step in &call.steps {
        match step {
            Step::Log(text) => outcome.logs.push(format!("Program log: {text}")),
            Step::Return(bytes) => outcome
                .logs
                .push(format!("Program return: {name} {}", BASE64.encode(bytes))),
            Step::Emit(payload) => {
                let said = Said {
                    program: call.program,
                    log_line: Some(outcome.logs.len()),
                    payload: payload.clone(),
                };
                outcome.said.push(said);
                outcome
                    .logs
                    .push(format!("Program data: {}", BASE64.encode(&payload.bytes)));
            }
            Step::EmitCpi(payload) => {
                let data = [&EVENT_TAG[..], &payload.bytes].concat();
                inner.push(InnerInstruction {
                    program_index: keys.index[&call.program],
                    accounts: vec![0],
                    data,
                    stack_height: depth + 1,
                });
                outcome.said.push(Said {
                    program: call.program,
                    log_line: None,
                    payload: payload.clone(),
                });
                outcome
                    .logs
                    .push(format!("Program {name} invoke [{}]", depth + 1));
                outcome.logs.push(format!(
                    "Program {name} consumed 2013 of 180000 compute units"
                ));
                outcome.logs.push(format!("Program {name} success"));
            }
            Step::Call(callee) => {
                inner.push(InnerInstruction {
                    program_index: keys.index[&callee.program],
                    accounts: callee.accounts.iter().map(|key| keys.index[key]).collect(),
                    data: callee.data.clone(),
                    stack_height: depth + 1,
                });
                if !execute(callee, depth + 1, keys, outcome, inner) {
                    succeeded = false;
                    break;
                }
            }
        }
    }
    outcome.logs.push(format!(
        "Program {name} consumed 34567 of 200000 compute units"
    ));
    outcome.logs.push(if succeeded {
        format!("Program {name} success")
    } else {
        format!("Program {name} failed: custom program error: 0x1")
    });
    succeeded
}

/// Solana's compact-u16.
fn compact(output: &mut Vec<u8>, value: usize) {
    crate::car::uvarint(output, value as u64);
}
