//! Running a transaction: its log lines as the runtime writes them, its inner instructions as metadata records them, and
//! what was said.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::instructions::Told;
use crate::programs::Payload;
use crate::transaction::{Call, Step, Transaction, Truncation};
use crate::wire::Keys;
use crate::{Pubkey, base58};

/// What an instruction's data begins with when it carries an event: Anchor's `EVENT_IX_TAG`, little endian.
const EVENT_TAG: [u8; 8] = [0xe4, 0x45, 0xa5, 0x2e, 0x51, 0xcb, 0x9a, 0x1d];

/// Something a program said: by a log line (its index among all lines), or by CPI.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) program: Pubkey,
    pub(crate) log_line: Option<usize>,
    pub(crate) payload: Payload,
}

/// An instruction of a demo program, and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) program: Pubkey,
    /// Among all instructions of the transaction that metadata has, depth first.
    pub(crate) place: u32,
    /// The top-level instruction, and the place among those recorded for it.
    pub(crate) path: Vec<u16>,
    pub(crate) data: Vec<u8>,
    pub(crate) accounts: Vec<Pubkey>,
    pub(crate) told: Told,
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
    /// The top-level instruction that failed, if one did.
    pub(crate) failed_instruction: Option<u8>,
    pub(crate) logs: Vec<String>,
    pub(crate) inner: Vec<(u8, Vec<InnerInstruction>)>,
    pub(crate) said: Vec<Said>,
    pub(crate) heard: Vec<Heard>,
    pub(crate) truncated: bool,
    /// Log lines of events that are kept behind `Log truncated`.
    pub(crate) said_after_truncation: u64,
    pub(crate) deepest: u32,
    pub(crate) returned: Option<(Pubkey, Vec<u8>)>,
}

impl Outcome {
    pub(crate) fn failed(&self) -> bool {
        self.failed_instruction.is_some()
    }
}

/// A log line, and whether it opens or closes an invocation.
struct Line {
    text: String,
    stack: bool,
}

/// The transaction while it runs.
struct Runtime<'a> {
    keys: &'a Keys,
    lines: Vec<Line>,
    inner: Vec<InnerInstruction>,
    /// The top-level instruction that runs, and instructions before it, inner ones included.
    top_level: u16,
    before: u32,
    outcome: Outcome,
}

/// Runs a transaction.
pub(crate) fn run(transaction: &Transaction, keys: &Keys) -> Outcome {
    let mut runtime = Runtime {
        keys,
        lines: Vec::new(),
        inner: Vec::new(),
        top_level: 0,
        before: 0,
        outcome: Outcome::default(),
    };
    for (place, call) in transaction.calls.iter().enumerate() {
        runtime.top_level = place as u16;
        runtime.hear(call, None);
        if runtime.outcome.failed() {
            runtime.before += 1;
            continue; // it stands in the message, and never runs
        }
        let completed = runtime.execute(call, 1);
        let inner = std::mem::take(&mut runtime.inner);
        runtime.before += 1 + inner.len() as u32;
        if !inner.is_empty() {
            runtime.outcome.inner.push((place as u8, inner));
        }
        if !completed {
            runtime.outcome.failed_instruction = Some(place as u8);
        }
    }
    runtime.finish(transaction.truncation)
}

impl Runtime<'_> {
    /// Notes what a demo program is told, at the top level or as the inner instruction of this place.
    fn hear(&mut self, call: &Call, inner: Option<usize>) {
        if let Some(told) = &call.told {
            let mut path = vec![self.top_level];
            path.extend(inner.map(|place| place as u16));
            self.outcome.heard.push(Heard {
                program: call.program,
                place: self.before + inner.map_or(0, |place| 1 + place as u32),
                path,
                data: call.data.clone(),
                accounts: call.accounts.clone(),
                told: told.clone(),
            });
        }
    }

    fn log(&mut self, text: String) {
        self.lines.push(Line { text, stack: false });
    }

    fn log_stack(&mut self, text: String) {
        self.lines.push(Line { text, stack: true });
    }

    /// Runs one call at `depth` (1: top level); returns whether it succeeded.
    fn execute(&mut self, call: &Call, depth: u32) -> bool {
        let name = base58(&call.program);
        self.outcome.deepest = self.outcome.deepest.max(depth);
        self.log_stack(format!("Program {name} invoke [{depth}]"));
        let mut succeeded = !call.fails;
        for step in &call.steps {
            match step {
                Step::Log(text) => self.log(format!("Program log: {text}")),
                Step::Return(bytes) => {
                    self.outcome.returned = Some((call.program, bytes.clone()));
                    self.log(format!("Program return: {name} {}", BASE64.encode(bytes)));
                }
                Step::Emit(payload) => {
                    let line = format!("Program data: {}", BASE64.encode(&payload.bytes));
                    self.emit(call.program, payload, line);
                }
                Step::EmitFields(payload) => {
                    let (first, second) = payload.bytes.split_at(payload.bytes.len().min(8));
                    let line = format!(
                        "Program data: {} {}",
                        BASE64.encode(first),
                        BASE64.encode(second)
                    );
                    self.emit(call.program, payload, line);
                }
                Step::EmitCpi(payload) => self.emit_cpi(call.program, &name, payload, depth),
                Step::Call(callee) => {
                    self.hear(callee, Some(self.inner.len()));
                    self.inner.push(InnerInstruction {
                        program_index: self.keys.place(&callee.program),
                        accounts: callee
                            .accounts
                            .iter()
                            .map(|key| self.keys.place(key))
                            .collect(),
                        data: callee.data.clone(),
                        stack_height: depth + 1,
                    });
                    if !self.execute(callee, depth + 1) {
                        succeeded = false; // an error below cannot be caught: the whole transaction fails
                        break;
                    }
                }
            }
        }
        self.log(format!(
            "Program {name} consumed 34567 of 200000 compute units"
        ));
        self.log_stack(if succeeded {
            format!("Program {name} success")
        } else {
            format!("Program {name} failed: custom program error: 0x1")
        });
        succeeded
    }

    fn emit(&mut self, program: Pubkey, payload: &Payload, line: String) {
        self.outcome.said.push(Said {
            program,
            log_line: Some(self.lines.len()),
            payload: payload.clone(),
        });
        self.log(line);
    }

    fn emit_cpi(&mut self, program: Pubkey, name: &str, payload: &Payload, depth: u32) {
        self.outcome.deepest = self.outcome.deepest.max(depth + 1);
        self.inner.push(InnerInstruction {
            program_index: self.keys.place(&program),
            accounts: vec![0],
            data: [&EVENT_TAG[..], &payload.bytes].concat(),
            stack_height: depth + 1,
        });
        self.outcome.said.push(Said {
            program,
            log_line: None,
            payload: payload.clone(),
        });
        self.log_stack(format!("Program {name} invoke [{}]", depth + 1));
        self.log(format!(
            "Program {name} consumed 2013 of 180000 compute units"
        ));
        self.log_stack(format!("Program {name} success"));
    }

    /// Cuts the logs, and forgets what was said only in lines that are lost.
    fn finish(self, truncation: Truncation) -> Outcome {
        let Self {
            lines, mut outcome, ..
        } = self;
        let kept = kept_lines(&lines, truncation);
        let Some(first_lost) = kept.iter().position(|kept| !kept) else {
            outcome.logs = lines.into_iter().map(|line| line.text).collect();
            return outcome;
        };
        outcome.truncated = true;
        outcome.said.retain(|said| {
            said.log_line
                .is_none_or(|line| kept[line] && speaker_is_certain(&lines, &kept, line))
        });
        let after = |said: &&Said| said.log_line.is_some_and(|line| line > first_lost);
        outcome.said_after_truncation = outcome.said.iter().filter(after).count() as u64;
        for (index, line) in lines.into_iter().enumerate() {
            if index == first_lost {
                outcome.logs.push("Log truncated".into());
            }
            if kept[index] {
                outcome.logs.push(line.text);
            }
        }
        outcome
    }
}

/// Which lines the runtime keeps. Its collector drops a line that would fill the log to its limit of bytes, says so once, and
/// goes on with shorter ones (Agave's `LogCollector`).
fn kept_lines(lines: &[Line], truncation: Truncation) -> Vec<bool> {
    let limit = match truncation {
        Truncation::Never => usize::MAX,
        Truncation::AfterLines(count) => {
            return (0..lines.len()).map(|line| line < count).collect();
        }
        Truncation::LongestLine => {
            let all: usize = lines.iter().map(|line| line.text.len()).sum();
            let longest = lines.iter().map(|line| line.text.len()).max().unwrap_or(0);
            all - longest + 1
        }
    };
    let mut written = 0;
    lines
        .iter()
        .map(|line| {
            let fits = written + line.text.len() < limit;
            written += if fits { line.text.len() } else { 0 };
            fits
        })
        .collect()
}

/// Whether a kept line's speaker can be known: no invocation was opened or closed in a lost line before it, or before the next
/// line that opens or closes one.
fn speaker_is_certain(lines: &[Line], kept: &[bool], line: usize) -> bool {
    let next = (line..lines.len()).find(|index| lines[*index].stack && kept[*index]);
    let lost_before = |end: usize| (0..end).any(|index| lines[index].stack && !kept[index]);
    if lost_before(line) {
        return false;
    }
    // Lines in front of the first lost one are as sure as in any other log.
    let first_lost = kept.iter().position(|kept| !kept).unwrap_or(lines.len());
    line < first_lost || next.is_some_and(|next| !lost_before(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[(&str, bool)]) -> Vec<Line> {
        texts
            .iter()
            .map(|(text, stack)| Line {
                text: (*text).into(),
                stack: *stack,
            })
            .collect()
    }

    #[test]
    fn the_longest_line_is_dropped_and_shorter_ones_behind_it_stay() {
        let lines = lines(&[
            ("invoke", true),
            ("data data data data", false),
            ("data", false),
            ("success", true),
        ]);
        let kept = kept_lines(&lines, Truncation::LongestLine);
        assert_eq!(kept, [true, false, true, true]);
        assert!(speaker_is_certain(&lines, &kept, 2));
    }

    #[test]
    fn a_line_is_uncertain_when_the_next_close_is_lost() {
        let lines = lines(&[
            ("invoke", true),
            ("long", false),
            ("d", false),
            ("success", true),
        ]);
        assert!(!speaker_is_certain(&lines, &[true, false, true, false], 2));
        assert!(speaker_is_certain(&lines, &[true, true, true, false], 2));
    }
}
