//! Transactions that mention the demo's programs. Every trap that a reader or an extractor can fall into is set here, and named.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::chain::{SYSTEM, Traps, count, transaction};
use crate::programs::{PROGRAMS, Payload, key_of, program_id};
use crate::transaction::{Call, Step, Transaction, Truncation};
use crate::{Plan, Pubkey, base58, tables};

/// A transaction that involves the demo's programs.
pub(crate) fn draw(plan: &Plan, random: &mut ChaCha8Rng, traps: &mut Traps) -> Transaction {
    let index = random.random_range(0..PROGRAMS.len());
    let mut drawn = match random.random_range(0..48) {
        0..14 => directly(plan, index, random, traps),
        14..16 => mentioned_only(index, random, traps),
        16..28 => by_lookup_only(plan, index, random, traps),
        28..32 => nested(plan, index, random, traps),
        32..36 => failing(plan, index, random, traps),
        36..40 => truncated(plan, index, random, traps),
        40..43 => both(plan, index, random, traps),
        43..45 => several_times(plan, index, random, traps),
        _ => beside_an_impostor(plan, index, random, traps),
    };
    if random.random_range(0..20) == 0 {
        let mut signature = [0; 64];
        random.fill(&mut signature);
        drawn.cosigners.push((signature, random.random()));
    }
    if drawn.lookups.is_none() && random.random_range(0..4) == 0 {
        drawn.lookups = Some(if random.random() {
            Vec::new()
        } else {
            tables::without_programs(random)
        });
    }
    drawn
}

/// A program of somebody else.
pub(crate) fn noise(random: &mut ChaCha8Rng) -> Call {
    let payload = Payload::noise(random);
    Call::new(key_of("program noise"), vec![Step::Emit(payload)])
}

fn router(steps: Vec<Step>) -> Call {
    Call::new(key_of("program router"), steps)
}

/// One call of a demo program, in which it says one to three things.
fn own(plan: &Plan, index: usize, random: &mut ChaCha8Rng, traps: &mut Traps) -> Call {
    let name = PROGRAMS[index].0;
    let program = program_id(name);
    let mut steps = vec![Step::Log("Instruction: Act".into())];
    for _ in 0..random.random_range(1..4) {
        steps.extend(said(plan, name, random, traps));
    }
    if random.random_range(0..4) == 0 {
        imitate(&mut steps, &program, random, traps);
    }
    let mut call = Call::new(program, steps);
    call.accounts = (0..random.random_range(0..5))
        .map(|_| key_of(&format!("user {}", random.random_range(0..500))))
        .collect();
    call.accounts.sort_unstable();
    call.accounts.dedup();
    call
}

/// What a demo program says once: by log, by CPI, by both, twice, or spoiled.
fn said(plan: &Plan, name: &str, random: &mut ChaCha8Rng, traps: &mut Traps) -> Vec<Step> {
    if random.random_bool(plan.undecodable_percent / 100.0) {
        let payload = Payload::undecodable(name, random);
        return vec![if random.random() {
            Step::Emit(payload)
        } else {
            Step::EmitCpi(payload)
        }];
    }
    let payload = Payload::event(name, random);
    match random.random_range(0..40) {
        0..17 => vec![Step::Emit(payload)],
        17..31 => vec![Step::EmitCpi(payload)],
        31..34 => vec![Step::Emit(payload.clone()), Step::EmitCpi(payload)],
        34 => {
            count(traps, "surplus_beside_twins", 1);
            let copy = || payload.clone();
            if random.random() {
                vec![
                    Step::Emit(copy()),
                    Step::EmitCpi(copy()),
                    Step::Emit(copy()),
                ]
            } else {
                vec![
                    Step::EmitCpi(copy()),
                    Step::Emit(copy()),
                    Step::EmitCpi(copy()),
                ]
            }
        }
        35..37 => {
            count(traps, "same_event_twice", 1);
            vec![Step::Emit(payload.clone()), Step::Emit(payload)]
        }
        37 => {
            count(traps, "several_data_fields", 1);
            vec![Step::EmitFields(payload)]
        }
        _ => {
            count(traps, "short_data", 1);
            vec![Step::Emit(Payload::foreign(random)), Step::EmitCpi(payload)]
        }
    }
}

/// Puts text between a program's steps that looks like the runtime's own lines.
fn imitate(steps: &mut Vec<Step>, program: &Pubkey, random: &mut ChaCha8Rng, traps: &mut Traps) {
    let noise = base58(&key_of("program noise"));
    let own = base58(program);
    let texts = [
        format!("Program {noise} invoke [1]"),
        format!("Program {noise} invoke [2]"),
        format!("Program {own} success"),
        format!("Program {own} failed: custom program error: 0x1"),
        "Program data: AAAAAAAAAAA=".to_owned(),
        "Log truncated".to_owned(),
        // One line of the log with a line break in it.
        format!("first\nProgram {own} success\nProgram data: AAAAAAAAAAA="),
    ];
    for _ in 0..2 {
        let text = texts[random.random_range(0..texts.len())].clone();
        steps.insert(random.random_range(1..=steps.len()), Step::Log(text));
    }
    count(traps, "imitating_log_lines", 2);
    if random.random_range(0..4) == 0 {
        // As Anchor logged events before `Program data:` existed; nothing tells it from text.
        use base64::Engine as _;
        let payload = Payload::noise(random);
        let text = base64::engine::general_purpose::STANDARD.encode(payload.bytes);
        steps.insert(1, Step::Log(text));
        count(traps, "events_logged_as_text", 1);
    }
}

fn directly(plan: &Plan, index: usize, random: &mut ChaCha8Rng, traps: &mut Traps) -> Transaction {
    let call = own(plan, index, random, traps);
    transaction(random, vec![call])
}

/// The program's key stands among the accounts, and it is never called.
fn mentioned_only(index: usize, random: &mut ChaCha8Rng, traps: &mut Traps) -> Transaction {
    count(traps, "mentioned_but_silent", 1);
    let mut call = Call::new(SYSTEM, Vec::new());
    if random.random() {
        call.accounts = vec![program_id(PROGRAMS[index].0)];
        transaction(random, vec![call])
    } else {
        let mut silent = transaction(random, vec![call]);
        silent.lookups = Some(tables::with_program(index, random));
        silent
    }
}

/// The program is called by CPI only, and named by a lookup table only.
fn by_lookup_only(
    plan: &Plan,
    index: usize,
    random: &mut ChaCha8Rng,
    traps: &mut Traps,
) -> Transaction {
    let own = own(plan, index, random, traps);
    let steps = vec![
        Step::Call(noise(random)),
        Step::Call(own),
        Step::Return(vec![1, 2, 3]),
    ];
    let mut routed = transaction(random, vec![router(steps)]);
    routed.lookups = Some(tables::with_program(index, random));
    routed
}

/// The program is called from the fourth level, with other programs speaking before and after.
fn nested(plan: &Plan, index: usize, random: &mut ChaCha8Rng, traps: &mut Traps) -> Transaction {
    let own = own(plan, index, random, traps);
    let inner = Call::new(
        key_of("program inner"),
        vec![Step::Call(own), Step::Call(noise(random))],
    );
    let middle = Call::new(
        key_of("program middle"),
        vec![
            Step::Emit(Payload::noise(random)),
            Step::Call(inner),
            Step::Emit(Payload::noise(random)),
        ],
    );
    let steps = vec![
        Step::Call(noise(random)),
        Step::Call(middle),
        Step::Log("routed".into()),
    ];
    transaction(random, vec![router(steps)])
}

/// The transaction fails after the program has spoken: in the program itself, above it, or in a later instruction.
fn failing(plan: &Plan, index: usize, random: &mut ChaCha8Rng, traps: &mut Traps) -> Transaction {
    let mut own = own(plan, index, random, traps);
    match random.random_range(0..3) {
        0 => {
            count(traps, "failed_inner_calls", 1);
            own.fails = true;
            let steps = vec![Step::Call(own), Step::Emit(Payload::noise(random))];
            transaction(random, vec![Call::new(SYSTEM, Vec::new()), router(steps)])
        }
        1 => {
            own.fails = true;
            let never_run = noise(random);
            transaction(random, vec![own, never_run])
        }
        _ => {
            let mut last = noise(random);
            last.fails = true;
            transaction(random, vec![own, last])
        }
    }
}

/// The log is cut: at a line from which nothing fits any more, or only where one long line does not fit.
fn truncated(plan: &Plan, index: usize, random: &mut ChaCha8Rng, traps: &mut Traps) -> Transaction {
    let mut own = own(plan, index, random, traps);
    if random.random_range(0..3) > 0 {
        let after = noise(random);
        let mut cut = transaction(random, vec![own, after]);
        cut.truncation = Truncation::AfterLines(random.random_range(2..9));
        return cut;
    }
    let long = Payload::long(PROGRAMS[index].0, random);
    let place = random.random_range(1..=own.steps.len());
    own.steps.insert(place, Step::Emit(long));
    let mut cut = transaction(random, vec![own]);
    cut.truncation = Truncation::LongestLine;
    cut
}

fn both(plan: &Plan, index: usize, random: &mut ChaCha8Rng, traps: &mut Traps) -> Transaction {
    count(traps, "both_programs", 1);
    let mut first = own(plan, index, random, traps);
    let second = own(plan, 1 - index, random, traps);
    if random.random() {
        transaction(random, vec![first, second])
    } else {
        // One calls the other between its own words.
        let place = random.random_range(1..=first.steps.len());
        first.steps.insert(place, Step::Call(second));
        transaction(random, vec![first])
    }
}

/// The program is called by several instructions, and by itself.
fn several_times(
    plan: &Plan,
    index: usize,
    random: &mut ChaCha8Rng,
    traps: &mut Traps,
) -> Transaction {
    count(traps, "called_several_times", 1);
    let mut outer = own(plan, index, random, traps);
    let inner = own(plan, index, random, traps);
    let place = random.random_range(1..=outer.steps.len());
    outer.steps.insert(place, Step::Call(inner));
    let again = own(plan, index, random, traps);
    let steps = vec![Step::Call(again), Step::Call(noise(random))];
    transaction(random, vec![outer, router(steps)])
}

/// Another program says a demo program's events, by log and by CPI to itself, while the demo program speaks too.
fn beside_an_impostor(
    plan: &Plan,
    index: usize,
    random: &mut ChaCha8Rng,
    traps: &mut Traps,
) -> Transaction {
    count(traps, "impostors", 1);
    let own = own(plan, index, random, traps);
    let impostor = Call::new(
        key_of("program noise"),
        vec![
            Step::Emit(Payload::noise(random)),
            Step::Call(own),
            Step::Emit(Payload::noise(random)),
            Step::EmitCpi(Payload::noise(random)),
        ],
    );
    transaction(random, vec![impostor])
}
