//! Real IDLs load, and real events decode as Anchor's own decoder reads them.
// `decoder` and `decoded` are the words.
#![allow(clippy::unwrap_used, clippy::similar_names)]

mod support;

use anchor_events::{DecodePolicy, Decoder, IdlVersion};
use serde_json::{Map, Value};
use support::{PROGRAM, Row, batch, event, shared_data};

fn decoder(folder: &std::path::Path, file: &str) -> Result<Decoder, anchor_events::IdlError> {
    let json = std::fs::read(folder.join("idl").join(file)).unwrap();
    Decoder::new(
        PROGRAM,
        &[IdlVersion {
            from_slot: 0,
            label: file.to_owned(),
            json,
        }],
    )
}

/// Names without case and underscores: the oracle kept the camel case of older files.
fn fold_names(value: &Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            object
                .iter()
                .map(|(key, value)| (key.replace('_', "").to_lowercase(), fold_names(value)))
                .collect::<Map<_, _>>(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(fold_names).collect()),
        other => other.clone(),
    }
}

#[test]
fn real_events_decode_as_anchors_own_decoder_reads_them() {
    let Some(folder) = shared_data() else { return };
    let lines = std::fs::read_to_string(folder.join("oracle/events-800.jsonl")).unwrap();
    let mut compared = 0;
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let hex = line["hex"].as_str().unwrap();
        let payload: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        let row = Row {
            cpi: line["source"] == "cpi",
            ..Row::log(345_600_010, payload)
        };
        for expected in line["decodes"].as_array().unwrap() {
            let decoder = decoder(&folder, expected["idl"].as_str().unwrap()).unwrap();
            let decoded = decoder
                .decode(&batch(std::slice::from_ref(&row)), &DecodePolicy::default())
                .unwrap();
            assert_eq!(
                decoded.counts.decoded,
                1,
                "{line}: {:?}",
                support::reasons(&decoded)
            );
            let (name, fields) = event(&decoder, &decoded, 0, 0);
            assert_eq!(name, expected["name"].as_str().unwrap());
            assert_eq!(fold_names(&fields), fold_names(&expected["data"]), "{line}");
            compared += 1;
        }
    }
    println!(
        "{compared} decodings of {} events compared",
        lines.lines().count()
    );
    assert!(compared >= 65);
}

#[test]
fn every_real_idl_loads_or_is_refused_for_a_true_reason() {
    let Some(folder) = shared_data() else { return };
    let manifest = std::fs::read(folder.join("idl/MANIFEST.json")).unwrap();
    let manifest: Vec<Value> = serde_json::from_slice(&manifest).unwrap();
    let mut refused = Vec::new();
    for entry in &manifest {
        match decoder(&folder, entry["file"].as_str().unwrap()) {
            Ok(decoder) => assert_eq!(
                decoder.tables().len() as u64,
                entry["events"].as_u64().unwrap(),
                "{entry}"
            ),
            Err(error) => refused.push(error.to_string()),
        }
    }
    println!(
        "{} of {} IDLs load; refused: {refused:#?}",
        manifest.len() - refused.len(),
        manifest.len()
    );
    // One older test IDL names a type of another crate by its path, without defining it.
    assert_eq!(refused.len(), 1, "{refused:#?}");
    assert!(
        refused[0].contains("type `external::MyStruct` is not defined"),
        "{refused:#?}"
    );
}

#[test]
fn a_whole_history_of_versions_makes_one_decoder() {
    let Some(folder) = shared_data() else { return };
    for program in [
        "pump",
        "pump_amm",
        "lb_clmm",
        "whirlpool",
        "raydium_launchpad",
        "openbook_v2",
    ] {
        let mut files: Vec<_> = std::fs::read_dir(folder.join("idl"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(&format!("{program}__")) && name.contains("__202"))
            .collect();
        files.sort_by_key(|name| name.split("__").nth(2).unwrap().to_owned());
        let versions: Vec<_> = files
            .iter()
            .enumerate()
            .map(|(place, file)| IdlVersion {
                from_slot: 1000 * place as u64,
                label: file.clone(),
                json: std::fs::read(folder.join("idl").join(file)).unwrap(),
            })
            .collect();
        let decoder = Decoder::new(PROGRAM, &versions).unwrap();
        let second = decoder.tables().iter().flat_map(|table| {
            table
                .schema
                .fields()
                .iter()
                .filter(|field| field.name().contains("__"))
                .map(|field| format!("{}.{}", table.name, field.name()))
        });
        println!(
            "{program}: {} versions, changed types: {:?}",
            versions.len(),
            second.collect::<Vec<_>>()
        );
    }
}
