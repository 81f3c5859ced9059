//! What extraction guarantees about speakers, order, paths, oddities and the digest.
#![allow(clippy::unwrap_used)]

use anchor_events::{
    CPI_EVENT_TAG, ExtractCounts, Extracted, InnerView, InstructionView, RecordBatchBuilder,
    Source, TransactionView, extract, record_digest, record_schema,
};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{UInt16Type, UInt32Type};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::{Strategy as _, any, prop, prop_assert, prop_assert_eq, proptest};

const A: [u8; 32] = [11; 32];
const B: [u8; 32] = [22; 32];
const C: [u8; 32] = [33; 32];
const KEYS: [[u8; 32]; 3] = [A, B, C];

fn name(program: &[u8; 32]) -> String {
    let mut text = [0; 44];
    let length = five8::encode_32(program, &mut text);
    String::from_utf8(text[..usize::from(length)].to_vec()).unwrap()
}

fn invoke(program: &[u8; 32], depth: usize) -> String {
    format!("Program {} invoke [{depth}]", name(program))
}

fn success(program: &[u8; 32]) -> String {
    format!("Program {} success", name(program))
}

fn data(payload: &[u8]) -> String {
    format!("Program data: {}", STANDARD.encode(payload))
}

/// A transaction over the keys A, B, C: top-level programs and (top level, program, data) inner calls.
fn run(
    program: &[u8; 32],
    top_level: &[u8],
    inner: &[(u8, u8, Vec<u8>)],
    lines: &[String],
) -> Extracted {
    let instructions: Vec<_> = top_level
        .iter()
        .map(|program_index| InstructionView {
            program_index: *program_index,
            accounts: &[],
            data: &[],
        })
        .collect();
    let inner_instructions: Vec<_> = inner
        .iter()
        .map(|(top_level_index, program_index, data)| InnerView {
            top_level_index: *top_level_index,
            program_index: *program_index,
            accounts: &[],
            data,
        })
        .collect();
    let logs: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    extract(
        &TransactionView {
            instructions: &instructions,
            inner_instructions: &inner_instructions,
            logs: Some(&logs),
            ..empty()
        },
        program,
    )
}

fn empty() -> TransactionView<'static> {
    TransactionView {
        slot: 5,
        tx_index: 3,
        epoch: 0,
        archive_offset: 59,
        signature: &[9; 64],
        block_time: None,
        failed: false,
        account_keys: &KEYS,
        instructions: &[],
        inner_instructions: &[],
        logs: None,
    }
}

fn payloads(extracted: &Extracted) -> Vec<(u32, Source, &[u8])> {
    extracted
        .records
        .iter()
        .map(|record| (record.event_index, record.source, record.payload.as_slice()))
        .collect()
}

#[test]
fn data_belongs_to_the_innermost_running_program() {
    let lines = [
        invoke(&A, 1),
        data(&[1]),
        invoke(&B, 2),
        data(&[2]),
        invoke(&A, 3),
        data(&[3]),
        success(&A),
        data(&[4]),
        success(&B),
        data(&[5]),
        success(&A),
    ];
    let inner = [(0, 1, vec![]), (0, 0, vec![])];
    let of_a = run(&A, &[0], &inner, &lines);
    assert_eq!(
        payloads(&of_a),
        [
            (0, Source::Log, &[1][..]),
            (1, Source::Log, &[3]),
            (2, Source::Log, &[5])
        ]
    );
    let paths: Vec<_> = of_a
        .records
        .iter()
        .map(|record| (record.path.top_level, record.path.inner))
        .collect();
    assert_eq!(paths, [(0, None), (0, Some(1)), (0, None)]);
    assert!(!of_a.counts.any());
    let of_b = run(&B, &[0], &inner, &lines);
    assert_eq!(
        payloads(&of_b),
        [(0, Source::Log, &[2][..]), (1, Source::Log, &[4])]
    );
}

#[test]
fn logged_text_that_looks_like_a_stack_line_changes_nothing() {
    let lines = [
        invoke(&A, 1),
        format!("Program log: Program {} success", name(&A)),
        format!("Program log: {}", invoke(&B, 2)),
        format!("Program {} invoke [2] ", name(&B)),
        format!("Program {} invoke [02]", name(&B)),
        format!("Program {} successful", name(&A)),
        "Program failed to complete: out of compute".to_owned(),
        "Program return: x AQ==".to_owned(),
        "Program consumption: 5 units remaining".to_owned(),
        data(&[1]),
        success(&A),
    ];
    let extracted = run(&A, &[0], &[], &lines);
    assert_eq!(payloads(&extracted), [(0, Source::Log, &[1][..])]);
    assert!(!extracted.counts.any());
}

#[test]
fn fields_of_one_data_line_are_one_payload() {
    let lines = [
        invoke(&A, 1),
        "Program data: AQI= Aw== BAUG".to_owned(),
        "Program data: ".to_owned(),
        success(&A),
    ];
    let extracted = run(&A, &[0], &[], &lines);
    assert_eq!(
        payloads(&extracted),
        [
            (0, Source::Log, &[1, 2, 3, 4, 5, 6][..]),
            (1, Source::Log, &[])
        ]
    );
}

#[test]
fn log_records_come_before_cpi_records_and_twins_stay() {
    let event = [CPI_EVENT_TAG.as_slice(), &[7, 7]].concat();
    let lines = [
        invoke(&A, 1),
        data(&[7, 7]),
        invoke(&A, 2),
        success(&A),
        success(&A),
    ];
    let inner = [
        (0, 0, event.clone()),
        (0, 1, event.clone()), // another program's call with the same data
        (0, 0, CPI_EVENT_TAG[..7].to_vec()), // shorter than the tag
        (1, 0, event),
    ];
    let extracted = run(&A, &[0, 0], &inner, &lines);
    assert_eq!(
        payloads(&extracted),
        [
            (0, Source::Log, &[7, 7][..]),
            (1, Source::Cpi, &[7, 7]),
            (2, Source::Cpi, &[7, 7])
        ]
    );
    assert_eq!(extracted.records[1].path.inner, Some(0));
    assert_eq!(
        (
            extracted.records[2].path.top_level,
            extracted.records[2].path.inner
        ),
        (1, Some(0))
    );
}

#[test]
fn precompiles_leave_no_log_line_and_no_oddity() {
    let mut keys = KEYS;
    five8::decode_32("Ed25519SigVerify111111111111111111111111111", &mut keys[2]).unwrap();
    let instructions = [2u8, 0, 2, 0].map(|program_index| InstructionView {
        program_index,
        accounts: &[],
        data: &[],
    });
    let lines = [
        invoke(&A, 1),
        success(&A),
        invoke(&A, 1),
        data(&[1]),
        success(&A),
    ];
    let logs: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    let transaction = TransactionView {
        account_keys: &keys,
        instructions: &instructions,
        logs: Some(&logs),
        ..empty()
    };
    let extracted = extract(&transaction, &A);
    assert_eq!(extracted.records[0].path.top_level, 3);
    assert!(!extracted.counts.any());
}

#[test]
fn malformed_and_orphan_data_lines_are_counted_and_yield_nothing() {
    let lines = [
        data(&[1]),
        invoke(&A, 1),
        "Program data: not/base64!".to_owned(),
        success(&A),
        data(&[2]),
    ];
    let extracted = run(&A, &[0], &[], &lines);
    assert!(extracted.records.is_empty());
    assert_eq!(
        extracted.counts,
        ExtractCounts {
            malformed_data_lines: 1,
            orphan_data_lines: 2,
            ..ExtractCounts::default()
        }
    );
    // Another program's malformed line is not this one's oddity.
    assert_eq!(run(&B, &[0], &[], &lines).counts.malformed_data_lines, 0);
}

#[test]
fn events_that_old_anchor_logged_as_text_are_counted() {
    let lines = [
        invoke(&A, 1),
        format!("Program log: {}", STANDARD.encode([3; 24])),
        "Program log: Instruction: Swap".to_owned(),
        "Program log: transferring".to_owned(),
        success(&A),
    ];
    let extracted = run(&A, &[0], &[], &lines);
    assert!(extracted.records.is_empty());
    assert_eq!(extracted.counts.logged_base64_lines, 1);
    assert_eq!(run(&B, &[0], &[], &lines).counts.logged_base64_lines, 0);
}

#[test]
fn a_failure_closes_its_program() {
    let lines = [
        invoke(&A, 1),
        invoke(&B, 2),
        data(&[1]),
        format!("Program {} failed: custom program error: 0x1", name(&B)),
        data(&[2]),
        format!("Program {} failed: custom program error: 0x1", name(&A)),
    ];
    let extracted = run(&B, &[0], &[(0, 1, vec![])], &lines);
    assert_eq!(payloads(&extracted), [(0, Source::Log, &[1][..])]);
    assert!(!extracted.counts.any());
}

#[test]
fn a_program_without_a_closing_line_does_not_swallow_its_callers_data() {
    let lines = [
        invoke(&A, 1),
        invoke(&B, 2),
        success(&A),
        invoke(&A, 1),
        data(&[1]),
        success(&A),
    ];
    let extracted = run(&A, &[0, 0], &[(0, 1, vec![])], &lines);
    assert_eq!(payloads(&extracted), [(0, Source::Log, &[1][..])]);
    assert_eq!(extracted.counts.stack_mismatches, 1);

    let never_closed = [invoke(&A, 1), invoke(&B, 2), invoke(&A, 1), data(&[1])];
    let extracted = run(&A, &[0, 0], &[(0, 1, vec![])], &never_closed);
    assert_eq!(payloads(&extracted), [(0, Source::Log, &[1][..])]);
    assert_eq!(extracted.counts.stack_mismatches, 2);
}

#[test]
fn invocations_without_an_instruction_are_counted() {
    let lines = [
        invoke(&B, 1),
        success(&B),
        invoke(&A, 1),
        invoke(&C, 2),
        success(&C),
        data(&[1]),
        success(&A),
    ];
    // The message has A only, and no inner instruction was recorded.
    let extracted = run(&A, &[0], &[], &lines);
    assert_eq!(payloads(&extracted), [(0, Source::Log, &[1][..])]);
    assert_eq!(extracted.counts.path_mismatches, 3);
}

#[test]
fn after_truncation_only_proven_speakers_count() {
    // B's invocation did not fit any more; its short data line did. What closes next is B, not A.
    let dropped_invocation = [
        invoke(&A, 1),
        data(&[1]),
        "Log truncated".to_owned(),
        data(&[2]),
        success(&B),
        data(&[3]),
        success(&A),
    ];
    let extracted = run(&A, &[0], &[(0, 1, vec![])], &dropped_invocation);
    assert!(extracted.truncated);
    assert_eq!(
        payloads(&extracted),
        [(0, Source::Log, &[1][..]), (1, Source::Log, &[3])]
    );
    assert_eq!(extracted.counts.unattributed_data_lines, 1);

    // CPI records are whole whatever the log lost.
    let event = [CPI_EVENT_TAG.as_slice(), &[8]].concat();
    let extracted = run(
        &A,
        &[0],
        &[(0, 0, event)],
        &[invoke(&A, 1), "Log truncated".to_owned()],
    );
    assert_eq!(payloads(&extracted), [(0, Source::Cpi, &[8][..])]);
    assert_eq!(extracted.counts, ExtractCounts::default());
}

fn batch(records: &Extracted, slot: u64, signature: &[u8; 64]) -> RecordBatch {
    let transaction = TransactionView {
        slot,
        signature,
        block_time: Some(-1),
        ..empty()
    };
    let mut builder = RecordBatchBuilder::new();
    for record in &records.records {
        builder
            .append(&transaction, &A, record, records.truncated)
            .unwrap();
    }
    builder.finish().unwrap()
}

fn sample() -> Extracted {
    let lines = [
        invoke(&A, 1),
        invoke(&B, 2),
        invoke(&A, 3),
        data(&[1]),
        success(&A),
        success(&B),
        data(&[2, 3]),
        success(&A),
    ];
    run(&A, &[0], &[(0, 1, vec![]), (0, 0, vec![])], &lines)
}

#[test]
fn batches_have_the_record_schema_and_the_paths() {
    let batch = batch(&sample(), 5, &[9; 64]);
    assert_eq!(batch.schema(), record_schema());
    let paths = batch.column(7).as_list::<i32>();
    assert_eq!(
        paths.value(0).as_primitive::<UInt16Type>().values(),
        &[0, 1]
    );
    assert_eq!(paths.value(1).as_primitive::<UInt16Type>().values(), &[0]);
    assert_eq!(
        batch.column(2).as_primitive::<UInt32Type>().values(),
        &[0, 1]
    );
}

#[test]
fn digest_of_a_known_record_never_changes() {
    use sha2::{Digest as _, Sha256};
    let transaction = TransactionView {
        logs: None,
        ..empty()
    };
    let extracted = sample();
    let mut builder = RecordBatchBuilder::new();
    builder
        .append(&transaction, &A, &extracted.records[0], true)
        .unwrap();
    let batch = builder.finish().unwrap();

    // The definition written out, column by column, for this one record.
    let mut bytes = Vec::new();
    let mut column = |value: &[u8]| {
        bytes.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
        bytes.extend(value);
    };
    column(&5u64.to_le_bytes());
    column(&3u32.to_le_bytes());
    column(&0u32.to_le_bytes());
    column(&[9; 64]);
    bytes.extend([0xff; 4]); // block_time is null
    let mut column = |value: &[u8]| {
        bytes.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
        bytes.extend(value);
    };
    column(&A);
    column(&[0]);
    column(&[0, 0, 1, 0]);
    column(&[1]);
    column(&[0]);
    column(&[1]);
    column(&0u32.to_le_bytes());
    column(&59u64.to_le_bytes());
    let expected = u128::from_le_bytes(Sha256::digest(&bytes)[..16].try_into().unwrap());
    assert_eq!(record_digest(&batch).unwrap(), expected);
    assert_eq!(format!("{expected:032x}").len(), 32);
}

#[test]
fn digest_adds_up_over_slices_and_sees_every_column() {
    let whole = batch(&sample(), 5, &[9; 64]);
    let digest = record_digest(&whole).unwrap();
    let parts = [whole.slice(0, 1), whole.slice(1, 1)];
    let sum = parts
        .iter()
        .map(|part| record_digest(part).unwrap())
        .fold(0, u128::wrapping_add);
    assert_eq!(sum, digest);
    assert_ne!(
        record_digest(&batch(&sample(), 6, &[9; 64])).unwrap(),
        digest
    );
    assert_ne!(
        record_digest(&batch(&sample(), 5, &[8; 64])).unwrap(),
        digest
    );
    assert!(record_digest(&whole.project(&[0, 1]).unwrap()).is_err());
    assert!(
        record_digest(
            &whole
                .project(&[1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
                .unwrap()
        )
        .is_err()
    );
}

proptest! {
    /// Logs are written by strangers: no line order or content may panic, and the same transaction
    /// always gives the same records.
    #[test]
    fn any_log_is_survived(lines in prop::collection::vec(
        (0..8u8, 0..3usize, 0..12usize, prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(kind, program, depth, bytes)| {
            let program = &KEYS[program];
            match kind {
                0 | 1 => invoke(program, depth),
                2 | 3 => success(program),
                4 => data(&bytes),
                5 => "Log truncated".to_owned(),
                6 => format!("Program data: {}", String::from_utf8_lossy(&bytes)),
                _ => String::from_utf8_lossy(&bytes).into_owned(),
            }
        }), 0..40)) {
        let first = run(&A, &[0, 1, 2], &[(0, 1, vec![]), (7, 9, vec![])], &lines);
        prop_assert_eq!(&first, &run(&A, &[0, 1, 2], &[(0, 1, vec![]), (7, 9, vec![])], &lines));
        for (place, record) in first.records.iter().enumerate() {
            prop_assert_eq!(place, record.event_index as usize);
        }
    }

    /// A log that was right but for flipped bits, cut and repeated or lost lines: nothing panics, what is found is bounded by what is there,
    /// and the same again.
    #[test]
    fn a_damaged_log_is_survived(
        damages in prop::collection::vec((0..5u8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..8u8), 0..6)
    ) {
        let mut lines: Vec<Vec<u8>> = [
            invoke(&A, 1),
            "Program log: Instruction: Swap".to_owned(),
            data(&[7; 40]),
            invoke(&B, 2),
            data(&[1; 8]),
            format!("{} {}", data(&[2; 20]), STANDARD.encode([3; 9])),
            format!("Program {} consumed 2000 of 200000 compute units", name(&B)),
            success(&B),
            invoke(&C, 2),
            format!("Program {} failed: custom program error: 0x1", name(&C)),
            data(&[4; 16]),
            success(&A),
            "Log truncated".to_owned(),
        ]
        .map(String::into_bytes)
        .into();
        for (kind, line, at, bit) in damages {
            if lines.is_empty() {
                break;
            }
            let line = line.index(lines.len());
            let length = lines[line].len();
            match kind {
                0 | 1 if length > 0 => lines[line][at.index(length)] ^= 1 << bit,
                2 if length > 0 => lines[line].truncate(at.index(length)),
                3 => {
                    let to = at.index(lines.len());
                    let moved = lines[line].clone();
                    lines.insert(to, moved);
                }
                _ => {
                    lines.remove(line);
                }
            }
        }
        let views: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        let instructions = [InstructionView { program_index: 0, accounts: &[], data: &[] }];
        let transaction = TransactionView { instructions: &instructions, logs: Some(&views), ..empty() };
        for program in KEYS {
            let found = extract(&transaction, &program);
            prop_assert_eq!(&found, &extract(&transaction, &program));
            prop_assert!(found.records.len() <= lines.len());
            let payloads: usize = found.records.iter().map(|record| record.payload.len()).sum();
            prop_assert!(payloads <= lines.iter().map(Vec::len).sum());
            for (place, record) in found.records.iter().enumerate() {
                prop_assert_eq!(place, record.event_index as usize);
            }
        }
    }
}
