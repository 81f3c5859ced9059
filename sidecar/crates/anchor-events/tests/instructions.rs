//! What extraction of instructions guarantees: every call of the program, once, at its place depth first, with its
//! accounts; and digests of other records that do not change beside them.
#![allow(clippy::unwrap_used)]

use anchor_events::{
    CPI_EVENT_TAG, ExtractCounts, InnerView, InstructionView, Record, RecordBatchBuilder, Source,
    TransactionView, extract, extract_instructions, record_digest, record_schema_with_accounts,
};
use arrow_array::Array as _;
use arrow_array::cast::AsArray as _;
use proptest::prelude::{
    Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

const KEYS: [[u8; 32]; 4] = [[11; 32], [22; 32], [33; 32], [44; 32]];

fn view<'a>(
    instructions: &'a [InstructionView<'a>],
    inner_instructions: &'a [InnerView<'a>],
) -> TransactionView<'a> {
    TransactionView {
        slot: 5,
        tx_index: 3,
        epoch: 0,
        archive_offset: 59,
        signature: &[9; 64],
        block_time: None,
        failed: false,
        account_keys: &KEYS,
        instructions,
        inner_instructions,
        logs: None,
    }
}

/// A call in a tree of calls: what a runtime knows before anything is recorded of it.
#[derive(Clone, Debug)]
struct Call {
    program: u8,
    accounts: Vec<u8>,
    data: Vec<u8>,
    calls: Vec<Call>,
}

fn call() -> impl Strategy<Value = Call> {
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..12),
        Just(CPI_EVENT_TAG.to_vec()),
        Just([&CPI_EVENT_TAG[..], &[1, 2, 3]].concat()),
        Just(CPI_EVENT_TAG[..7].to_vec()),
    ];
    // Now and then an account that the transaction does not have.
    let account = prop_oneof![9 => 0u8..4, 1 => any::<u8>()];
    let alone = (0u8..5, prop::collection::vec(account, 0..6), data).prop_map(
        |(program, accounts, data)| Call {
            program,
            accounts,
            data,
            calls: Vec::new(),
        },
    );
    alone.prop_recursive(4, 24, 4, |inner| {
        (inner.clone(), prop::collection::vec(inner, 0..4)).prop_map(|(mut call, calls)| {
            call.calls = calls;
            call
        })
    })
}

/// The calls in the order in which a runtime makes them, with the depth of each.
fn in_order<'a>(calls: &'a [Call], depth: usize, found: &mut Vec<(usize, &'a Call)>) {
    for call in calls {
        found.push((depth, call));
        in_order(&call.calls, depth + 1, found);
    }
}

/// What a program was told: place, path, accounts, data.
type Told = (u32, Vec<u16>, Option<Vec<u8>>, Vec<u8>);

/// What the program was told, by walking the tree.
fn expected(calls: &[Call], program: usize) -> Vec<Told> {
    let mut all = Vec::new();
    in_order(calls, 0, &mut all);
    let (mut top_level, mut inner) = (u16::MAX, 0);
    let mut found = Vec::new();
    for (place, (depth, call)) in all.into_iter().enumerate() {
        let path = if depth == 0 {
            top_level = top_level.wrapping_add(1);
            inner = 0;
            vec![top_level]
        } else {
            inner += 1;
            vec![top_level, inner - 1]
        };
        let is_event = depth > 0 && call.data.len() >= 8 && call.data[..8] == CPI_EVENT_TAG;
        if usize::from(call.program) == program && !is_event {
            let keys = call.accounts.iter().map(|account| match account {
                0..4 => Some(KEYS[usize::from(*account)].to_vec()),
                _ => None,
            });
            let accounts: Option<Vec<_>> = keys.collect();
            let place = u32::try_from(place).unwrap();
            let accounts = accounts.map(|keys| keys.concat());
            found.push((place, path, accounts, call.data.clone()));
        }
    }
    found
}

fn path_of(record: &Record) -> Vec<u16> {
    let mut path = vec![record.path.top_level];
    path.extend(record.path.inner);
    path
}

proptest! {
    #[test]
    fn every_call_is_found_once_at_its_place(calls in prop::collection::vec(call(), 0..5), program in 0usize..4) {
        let top_level: Vec<_> = calls
            .iter()
            .map(|call| InstructionView { program_index: call.program, accounts: &call.accounts, data: &call.data })
            .collect();
        let mut inner = Vec::new();
        for (place, call) in calls.iter().enumerate() {
            let mut below = Vec::new();
            in_order(&call.calls, 1, &mut below);
            inner.extend(below.into_iter().map(|(_, call)| InnerView {
                top_level_index: u8::try_from(place).unwrap(),
                program_index: call.program,
                accounts: &call.accounts,
                data: &call.data,
            }));
        }
        let transaction = view(&top_level, &inner);
        let (records, counts) = extract_instructions(&transaction, &KEYS[program]);
        let found: Vec<_> = records
            .iter()
            .map(|record| (record.event_index, path_of(record), record.accounts.clone(), record.payload.clone()))
            .collect();
        let expected = expected(&calls, program);
        prop_assert_eq!(&found, &expected);
        prop_assert!(records.iter().all(|record| record.source == Source::Instruction));
        let unknown = expected.iter().filter(|(_, _, accounts, _)| accounts.is_none()).count();
        prop_assert_eq!(counts.unknown_accounts as usize, unknown);
        // What is an instruction is no event, and the other way round: both together are the program's calls.
        let events = extract(&transaction, &KEYS[program]).records.len();
        let mut all = Vec::new();
        in_order(&calls, 0, &mut all);
        let own = all.iter().filter(|(_, call)| usize::from(call.program) == program).count();
        prop_assert_eq!(records.len() + events, own);
    }

    #[test]
    fn whatever_was_recorded_places_are_unique(
        top in prop::collection::vec(any::<u8>(), 0..4),
        inner in prop::collection::vec((any::<u8>(), any::<u8>()), 0..12),
    ) {
        let top: Vec<_> = top
            .into_iter()
            .map(|program_index| InstructionView { program_index: program_index % 4, accounts: &[], data: &[] })
            .collect();
        let inner: Vec<_> = inner
            .into_iter()
            .map(|(top_level_index, program_index)| InnerView {
                top_level_index: top_level_index % 6,
                program_index: program_index % 4,
                accounts: &[],
                data: &[],
            })
            .collect();
        let transaction = view(&top, &inner);
        let mut places: Vec<u32> = KEYS
            .iter()
            .flat_map(|program| extract_instructions(&transaction, program).0)
            .map(|record| record.event_index)
            .collect();
        places.sort_unstable();
        let all = u32::try_from(top.len() + inner.len()).unwrap();
        prop_assert_eq!(places, (0..all).collect::<Vec<_>>());
    }
}

#[test]
fn a_top_level_program_outside_the_keys_is_counted() {
    let instructions = [InstructionView {
        program_index: 4,
        accounts: &[],
        data: &[1],
    }];
    let (records, counts) = extract_instructions(&view(&instructions, &[]), &KEYS[0]);
    assert!(records.is_empty());
    let expected = ExtractCounts {
        unknown_programs: 1,
        ..ExtractCounts::default()
    };
    assert_eq!(counts, expected);
}

#[test]
fn a_record_has_one_digest_whether_or_not_instructions_stand_beside_it() {
    let inner = [InnerView {
        top_level_index: 0,
        program_index: 0,
        accounts: &[1],
        data: &[&CPI_EVENT_TAG[..], &[5; 9]].concat(),
    }];
    let instructions = [InstructionView {
        program_index: 0,
        accounts: &[2, 1],
        data: &[8; 8],
    }];
    let transaction = view(&instructions, &inner);
    let events = extract(&transaction, &KEYS[0]).records;
    let (told, _) = extract_instructions(&transaction, &KEYS[0]);
    let batch = |mut builder: RecordBatchBuilder, records: &[&Record]| {
        for record in records {
            builder
                .append(&transaction, &KEYS[0], record, false)
                .unwrap();
        }
        builder.finish().unwrap()
    };
    let plain = batch(RecordBatchBuilder::new(), &[&events[0]]);
    let beside = batch(RecordBatchBuilder::with_accounts(), &[&events[0]]);
    assert_eq!(beside.schema(), record_schema_with_accounts());
    assert_eq!(
        record_digest(&plain).unwrap(),
        record_digest(&beside).unwrap()
    );

    let both = batch(RecordBatchBuilder::with_accounts(), &[&events[0], &told[0]]);
    let accounts = both.column(13).as_binary::<i32>();
    assert!(accounts.is_null(0));
    assert_eq!(accounts.value(1), [KEYS[2], KEYS[1]].concat());
    let alone = batch(RecordBatchBuilder::with_accounts(), &[&told[0]]);
    let sum = record_digest(&plain)
        .unwrap()
        .wrapping_add(record_digest(&alone).unwrap());
    assert_eq!(record_digest(&both).unwrap(), sum);
    // Accounts are part of what is digested.
    let other = Record {
        accounts: Some(KEYS[2].to_vec()),
        ..told[0].clone()
    };
    let other = batch(RecordBatchBuilder::with_accounts(), &[&other]);
    assert_ne!(
        record_digest(&other).unwrap(),
        record_digest(&alone).unwrap()
    );
}
