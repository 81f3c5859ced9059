//! A program that changes an event's layout twice under one discriminator, as real ones do.
//!
//! `vault`'s `Deposited` as it is drawn is the first layout; the second adds `fee: u64` at its end; the third has `amount`
//! in 128 bits. Payloads are changed after they were drawn, so that nothing else in an archive depends on it.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Plan;
use crate::programs::{Payload, Truth};
use crate::transaction::{Call, Step, Transaction};

/// The program that changes, and its event.
pub(crate) const PROGRAM: &str = "vault";
const EVENT: &str = "Deposited";

/// Discriminator and `vault`, then `amount`.
const AMOUNT_END: usize = 8 + 32 + 8;

/// The slots from which each layout holds, the first one first.
pub(crate) fn since(plan: &Plan) -> Vec<u64> {
    let changes = plan.layout_changes;
    std::iter::once(0)
        .chain(
            changes
                .into_iter()
                .flat_map(|(second, third)| [second, third]),
        )
        .collect()
}

/// Has a transaction of `slot` say its events in the layouts of then.
pub(crate) fn apply(plan: &Plan, slot: u64, transaction: &mut Transaction) {
    let layout = since(plan).iter().filter(|since| **since <= slot).count();
    for call in &mut transaction.calls {
        change_call(call, layout);
    }
}

fn change_call(call: &mut Call, layout: usize) {
    for step in &mut call.steps {
        match step {
            Step::Emit(payload) | Step::EmitFields(payload) | Step::EmitCpi(payload) => {
                change(payload, layout);
            }
            Step::Call(inner) => change_call(inner, layout),
            Step::Log(_) | Step::Return(_) => {}
        }
    }
}

fn change(payload: &mut Payload, layout: usize) {
    let Truth::Event { name, fields } = &mut payload.truth else {
        return;
    };
    if *name != EVENT {
        return;
    }
    if layout >= 2 {
        // Equal payloads stay equal: twins are told by their bytes.
        let mut fee = [0; 8];
        fee.copy_from_slice(&Sha256::digest(&payload.bytes)[..8]);
        payload.bytes.extend(fee);
        let fee = u64::from_le_bytes(fee).to_string();
        fields.insert("fee".into(), json!(fee));
    }
    if layout >= 3 {
        payload.bytes.splice(AMOUNT_END..AMOUNT_END, [0; 8]);
    }
}

/// The program's IDL with the layout of this number, from 1.
pub(crate) fn idl(first: &str, layout: usize) -> Result<String, serde_json::Error> {
    let mut idl: Value = serde_json::from_str(first)?;
    let types = idl["types"].as_array_mut().into_iter().flatten();
    for definition in types.filter(|definition| definition["name"] == EVENT) {
        let Some(fields) = definition["type"]["fields"].as_array_mut() else {
            continue;
        };
        if layout >= 2 {
            fields.push(json!({"name": "fee", "docs": ["What it cost"], "type": "u64"}));
        }
        for field in fields.iter_mut().filter(|_| layout >= 3) {
            if field["name"] == "amount" {
                field["type"] = json!("u128");
            }
        }
    }
    serde_json::to_string_pretty(&idl)
}
