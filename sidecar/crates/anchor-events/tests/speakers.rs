//! Who said what, against a runtime of the tests' own: random programs call each other, say events, log text
//! made to deceive, and fail; the runtime writes their log under the real one's rules, cut off where it is full.
//! What extraction makes of it has to be what was said.
#![allow(clippy::unwrap_used)]

use anchor_events::{CPI_EVENT_TAG, InnerView, InstructionView, Source, TransactionView, extract};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::{
    BoxedStrategy, Just, Strategy as _, any, prop, prop_assert, prop_assert_eq, prop_oneof,
    proptest,
};

const KEYS: [[u8; 32]; 3] = [[11; 32], [22; 32], [33; 32]];
/// The deepest stack that the runtime allows.
const MOST_DEPTH: usize = 5;

/// What a program does.
#[derive(Clone, Debug)]
enum Action {
    /// `emit!`: fields of one data line.
    Event(Vec<Vec<u8>>),
    /// `emit_cpi!`
    EventByCall(Vec<u8>),
    /// `msg!`
    Text(String),
    /// `set_return_data`
    Return(Vec<u8>),
    /// A call of another program, or of itself.
    Call(Call),
}

#[derive(Clone, Debug)]
struct Call {
    program: usize,
    actions: Vec<Action>,
    fails: bool,
}

fn name(program: usize) -> String {
    let mut text = [0; 44];
    let length = five8::encode_32(&KEYS[program], &mut text);
    String::from_utf8(text[..usize::from(length)].to_vec()).unwrap()
}

/// Text that wants to be taken for something else. Plain base64 is left out: Anchor of old logged events so, which is counted.
fn text() -> BoxedStrategy<String> {
    let program = 0..KEYS.len();
    prop_oneof![
        (program.clone(), 1..4usize)
            .prop_map(|(program, depth)| format!("Program {} invoke [{depth}]", name(program))),
        program
            .clone()
            .prop_map(|program| format!("Program {} success", name(program))),
        program.clone().prop_map(|program| format!(
            "Program {} failed: custom program error: 0x1",
            name(program)
        )),
        program.prop_map(|program| format!(
            "x\nProgram {} success\nProgram data: AQIDBAUGBwg=",
            name(program)
        )),
        Just("Program data: AQIDBAUGBwg=".to_owned()),
        Just("Log truncated".to_owned()),
        Just(String::new()),
        any::<String>().prop_map(|text| format!("{text}!")),
    ]
    .boxed()
}

fn action(depth: usize) -> BoxedStrategy<Action> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..12);
    let plain = prop_oneof![
        prop::collection::vec(bytes(), 1..3).prop_map(Action::Event),
        // The same few payloads: twins, and the same event twice.
        (0..2u8).prop_map(|byte| Action::Event(vec![vec![byte; 8]])),
        (0..2u8).prop_map(|byte| Action::EventByCall(vec![byte; 8])),
        text().prop_map(Action::Text),
        bytes().prop_map(Action::Return),
    ];
    if depth >= MOST_DEPTH {
        return plain.boxed();
    }
    prop_oneof![3 => plain, 1 => call(depth + 1).prop_map(Action::Call)].boxed()
}

fn call(depth: usize) -> BoxedStrategy<Call> {
    let actions = prop::collection::vec(action(depth), 0..5);
    (0..KEYS.len(), actions, prop::bool::weighted(0.1))
        .prop_map(|(program, actions, fails)| Call {
            program,
            actions,
            fails,
        })
        .boxed()
}

/// A log record: program, top-level place, place among the inner instructions, payload.
type Said = (usize, u16, Option<u16>, Vec<u8>);

/// The runtime: what it records, and what was truly said.
struct Runtime {
    lines: Vec<String>,
    inner: Vec<(u8, u8, Vec<u8>)>,
    said: Vec<Said>,
    called: Vec<Said>,
    top_level: u16,
    inner_count: u16,
    /// Bytes of log left; a line that does not fit is dropped, shorter ones after it may fit again.
    room: usize,
    truncated: bool,
    failed: bool,
}

impl Runtime {
    fn log(&mut self, line: String) -> bool {
        if line.len() >= self.room {
            if !std::mem::replace(&mut self.truncated, true) {
                self.lines.push("Log truncated".to_owned());
            }
            return false;
        }
        self.room -= line.len();
        self.lines.push(line);
        true
    }

    fn record_call(&mut self, program: usize, data: Vec<u8>) -> u16 {
        let top_level = u8::try_from(self.top_level).unwrap();
        self.inner
            .push((top_level, u8::try_from(program).unwrap(), data));
        self.inner_count += 1;
        self.inner_count - 1
    }

    /// Runs a call; a failure ends everything above it too.
    fn run(&mut self, call: &Call, depth: usize, place: Option<u16>) {
        let id = name(call.program);
        self.log(format!("Program {id} invoke [{depth}]"));
        for action in &call.actions {
            match action {
                Action::Event(fields) => {
                    let fields_text: Vec<_> =
                        fields.iter().map(|field| STANDARD.encode(field)).collect();
                    if self.log(format!("Program data: {}", fields_text.join(" "))) {
                        self.said
                            .push((call.program, self.top_level, place, fields.concat()));
                    }
                }
                Action::EventByCall(payload) => {
                    let data = [&CPI_EVENT_TAG[..], payload].concat();
                    let place = self.record_call(call.program, data);
                    self.called
                        .push((call.program, self.top_level, Some(place), payload.clone()));
                    self.log(format!("Program {id} invoke [{}]", depth + 1));
                    self.log(format!("Program {id} consumed 5 of 100 compute units"));
                    self.log(format!("Program {id} success"));
                }
                Action::Text(text) => {
                    self.log(format!("Program log: {text}"));
                }
                Action::Return(bytes) => {
                    self.log(format!("Program return: {id} {}", STANDARD.encode(bytes)));
                }
                Action::Call(inner) => {
                    let place = self.record_call(inner.program, vec![1, 2, 3]);
                    self.run(inner, depth + 1, Some(place));
                    if self.failed {
                        break;
                    }
                }
            }
        }
        self.log(format!("Program {id} consumed 5 of 100 compute units"));
        self.failed |= call.fails;
        let end = if self.failed {
            "failed: custom program error: 0x1770"
        } else {
            "success"
        };
        self.log(format!("Program {id} {end}"));
    }
}

fn run(calls: &[Call], room: usize) -> Runtime {
    let mut runtime = Runtime {
        lines: Vec::new(),
        inner: Vec::new(),
        said: Vec::new(),
        called: Vec::new(),
        top_level: 0,
        inner_count: 0,
        room,
        truncated: false,
        failed: false,
    };
    for (place, call) in calls.iter().enumerate() {
        runtime.top_level = u16::try_from(place).unwrap();
        runtime.inner_count = 0;
        runtime.run(call, 1, None);
        if runtime.failed {
            break;
        }
    }
    runtime
}

/// What extraction finds of a program: log records, then CPI records.
fn extracted(
    runtime: &Runtime,
    calls: &[Call],
    program: usize,
) -> (Vec<Said>, Vec<Said>, anchor_events::Extracted) {
    let instructions: Vec<_> = calls
        .iter()
        .map(|call| InstructionView {
            program_index: u8::try_from(call.program).unwrap(),
            accounts: &[],
            data: &[],
        })
        .collect();
    let inner: Vec<_> = runtime
        .inner
        .iter()
        .map(|(top_level_index, program_index, data)| InnerView {
            top_level_index: *top_level_index,
            program_index: *program_index,
            accounts: &[],
            data,
        })
        .collect();
    let logs: Vec<&[u8]> = runtime.lines.iter().map(String::as_bytes).collect();
    let transaction = TransactionView {
        slot: 5,
        tx_index: 3,
        epoch: 0,
        archive_offset: 59,
        signature: &[9; 64],
        block_time: None,
        failed: runtime.failed,
        account_keys: &KEYS,
        instructions: &instructions,
        inner_instructions: &inner,
        logs: Some(&logs),
    };
    let found = extract(&transaction, &KEYS[program]);
    let of = |source: Source| {
        let records = found
            .records
            .iter()
            .filter(move |record| record.source == source);
        records
            .map(|record| {
                (
                    program,
                    record.path.top_level,
                    record.path.inner,
                    record.payload.clone(),
                )
            })
            .collect()
    };
    (of(Source::Log), of(Source::Cpi), found.clone())
}

fn of_program(said: &[Said], program: usize) -> Vec<Said> {
    said.iter()
        .filter(|(speaker, ..)| *speaker == program)
        .cloned()
        .collect()
}

proptest! {
    #[test]
    fn whole_logs_give_exactly_what_was_said(calls in prop::collection::vec(call(1), 1..4)) {
        let runtime = run(&calls, usize::MAX);
        for program in 0..KEYS.len() {
            let (logged, called, found) = extracted(&runtime, &calls, program);
            prop_assert_eq!(logged, of_program(&runtime.said, program));
            prop_assert_eq!(called, of_program(&runtime.called, program));
            prop_assert!(!found.truncated);
            prop_assert!(!found.counts.any(), "{:?}", found.counts);
        }
    }

    /// Rows before the cut stay; after it nothing is said in another program's name.
    #[test]
    fn cut_logs_give_nothing_that_was_not_said(calls in prop::collection::vec(call(1), 1..4), room in 60..1_500usize) {
        let runtime = run(&calls, room);
        let cut = runtime.lines.iter().position(|line| line == "Log truncated");
        for program in 0..KEYS.len() {
            let (logged, called, found) = extracted(&runtime, &calls, program);
            prop_assert_eq!(called, of_program(&runtime.called, program), "calls are recorded apart from the log");
            prop_assert_eq!(found.truncated, runtime.truncated);
            let said = of_program(&runtime.said, program);
            // A subsequence, by speaker and payload: where exactly a call stands may be lost with its line.
            let mut rest = said.iter();
            for record in &logged {
                prop_assert!(rest.any(|other| other.3 == record.3), "{:?} was not said by {}", record, program);
            }
            if cut.is_none() {
                prop_assert_eq!(logged, said);
                continue;
            }
            let before: Vec<_> = {
                let mut short = run(&calls, room);
                short.lines.truncate(cut.unwrap());
                extracted(&short, &calls, program).0
            };
            prop_assert_eq!(&logged[..before.len()], &before[..]);
            prop_assert_eq!(&said[..before.len()], &before[..]);
        }
    }
}
