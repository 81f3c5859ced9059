//! What the node answers: the chain in the JSON of Solana's RPC.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::faults::Faults;
use super::ledger::{Block, Ledger};
use crate::base58;
use crate::chain::{self, Landing};
use crate::logs::{self, Outcome};
use crate::programs::key_of;
use crate::transaction::{Kept, Transaction};
use crate::wire::{self, Keys};

/// Signatures of an address in one answer, at most.
const MOST_SIGNATURES: usize = 1_000;
/// Slots that `getBlocks` covers, at most.
const MOST_SLOTS: u64 = 500_000;

/// Why a call has no result, as Solana's RPC says it.
#[derive(Debug)]
pub(super) struct RpcError {
    pub(super) code: i64,
    pub(super) message: String,
}

impl RpcError {
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(super) fn invalid_request() -> Self {
        Self::new(-32_600, "Invalid request")
    }

    fn invalid_parameters(what: &str) -> Self {
        Self::new(-32_602, format!("Invalid params: {what}"))
    }
}

/// Answers one call.
pub(super) fn of(
    ledger: &Ledger,
    faults: &Faults,
    method: &str,
    parameters: &[Value],
) -> Result<Value, RpcError> {
    let node = Node { ledger, faults };
    let options = parameters.last().unwrap_or(&Value::Null);
    match method {
        "getSlot" => Ok(json!(ledger.plan.to_slot - 1)),
        "getBlocks" => node.blocks(parameters),
        "getBlock" => node.block(parameters, &Show::of(options)?),
        "getTransaction" => node.transaction(parameters, &Show::of(options)?),
        "getSignaturesForAddress" => node.signatures(parameters),
        _ => Err(RpcError::new(-32_601, "Method not found")),
    }
}

/// How transactions are to be shown.
struct Show<'a> {
    base64: bool,
    details: &'a str,
    rewards: bool,
    versioned: bool,
}

impl<'a> Show<'a> {
    /// Reads a call's options. As a node does, `encoding` may stand in their place.
    fn of(options: &'a Value) -> Result<Self, RpcError> {
        let encoding = options["encoding"].as_str().or(options.as_str());
        let details = options["transactionDetails"].as_str().unwrap_or("full");
        if !["full", "signatures", "none"].contains(&details) {
            return Err(RpcError::invalid_parameters(
                "transactionDetails is full, signatures or none here",
            ));
        }
        Ok(Self {
            base64: match encoding {
                None | Some("json") => false,
                Some("base64") => true,
                _ => {
                    return Err(RpcError::invalid_parameters(
                        "encoding is json or base64 here",
                    ));
                }
            },
            details,
            rewards: options["rewards"].as_bool().unwrap_or(true),
            versioned: options["maxSupportedTransactionVersion"].is_u64(),
        })
    }
}

/// The chain, and how it is misrepresented.
struct Node<'a> {
    ledger: &'a Ledger,
    faults: &'a Faults,
}

impl Node<'_> {
    fn blocks(&self, parameters: &[Value]) -> Result<Value, RpcError> {
        let start = slot(parameters.first())?;
        let newest = self.ledger.plan.to_slot - 1;
        let end = match parameters.get(1) {
            None | Some(Value::Object(_) | Value::Null) => newest,
            given => slot(given)?,
        };
        if end.saturating_sub(start) > MOST_SLOTS {
            return Err(RpcError::invalid_parameters(
                "Slot range too large; max 500000",
            ));
        }
        let within = |slot: &&u64| (start..=end).contains(*slot);
        Ok(json!(
            self.ledger
                .slots()
                .iter()
                .filter(within)
                .collect::<Vec<_>>()
        ))
    }

    fn block(&self, parameters: &[Value], show: &Show) -> Result<Value, RpcError> {
        let slot = slot(parameters.first())?;
        let plan = &self.ledger.plan;
        if slot < plan.from_slot {
            let message = format!(
                "Block {slot} cleaned up, does not exist on node. First available block: {}",
                plan.from_slot
            );
            return Err(RpcError::new(-32_001, message));
        }
        if slot >= plan.to_slot {
            let message = format!("Block not available for slot {slot}");
            return Err(RpcError::new(-32_004, message));
        }
        let Some(block) = self
            .ledger
            .block(slot)
            .filter(|_| !self.faults.is_block_missing(slot))
        else {
            let message = format!("Slot {slot} was skipped, or missing in long-term storage");
            return Err(RpcError::new(-32_009, message));
        };
        let mut answer = json!({
            "blockhash": blockhash(slot),
            "previousBlockhash": blockhash(block.parent),
            "parentSlot": block.parent,
            "blockHeight": block.height,
            "blockTime": block.time,
        });
        if show.rewards {
            answer["rewards"] = json!([]);
        }
        match show.details {
            "full" => {
                let transactions: Result<Vec<Value>, RpcError> = (0..)
                    .zip(&block.transactions)
                    .map(|(index, transaction)| self.shown(&block, index, transaction, show))
                    .collect();
                answer["transactions"] = json!(transactions?);
            }
            "signatures" => {
                let signatures = block.transactions.iter().map(|one| base58(&one.signature));
                answer["signatures"] = signatures.collect();
            }
            _ => {}
        }
        Ok(answer)
    }

    fn transaction(&self, parameters: &[Value], show: &Show) -> Result<Value, RpcError> {
        let signature: [u8; 64] = key(parameters.first(), "a signature")?;
        let found = self
            .ledger
            .place(&signature)
            .filter(|_| !self.faults.is_missing(&signature));
        let Some((block, index)) =
            found.and_then(|(slot, index)| Some((self.ledger.block(slot)?, index)))
        else {
            return Ok(Value::Null);
        };
        let transaction = &block.transactions[index as usize];
        let mut answer = self.shown(&block, index, transaction, show)?;
        answer["slot"] = json!(block.slot);
        answer["blockTime"] = json!(block.time);
        answer["transactionIndex"] = json!(index);
        Ok(answer)
    }

    /// The newest first, as far as `limit` and `until` allow, from behind `before`.
    fn signatures(&self, parameters: &[Value]) -> Result<Value, RpcError> {
        let address: [u8; 32] = key(parameters.first(), "an address")?;
        let options = parameters.get(1).unwrap_or(&Value::Null);
        let limit = match &options["limit"] {
            Value::Null => MOST_SIGNATURES,
            limit => limit
                .as_u64()
                .map(|limit| limit as usize)
                .filter(|limit| (1..=MOST_SIGNATURES).contains(limit))
                .ok_or_else(|| RpcError::invalid_parameters("limit is a number from 1 to 1000"))?,
        };
        let bound = |name: &str| match &options[name] {
            Value::Null => Ok(None),
            given => {
                let place = self.ledger.place(&key(Some(given), name)?);
                place.map(Some).ok_or_else(|| {
                    RpcError::invalid_parameters(&format!("{name} is no transaction of this chain"))
                })
            }
        };
        let (before, until) = (bound("before")?, bound("until")?);
        let mut found = Vec::new();
        for slot in self.ledger.slots().iter().rev() {
            let out_of_bounds = before.is_some_and(|place| *slot > place.0)
                || until.is_some_and(|place| *slot < place.0);
            let Some(block) = self.ledger.block(*slot).filter(|_| !out_of_bounds) else {
                continue;
            };
            for (index, transaction) in block.transactions.iter().enumerate().rev() {
                let place = (block.slot, index as u32);
                let within = before.is_none_or(|before| place < before)
                    && until.is_none_or(|until| place > until);
                let keys = Keys::of(transaction);
                if within && (keys.is_static(&address) || keys.is_loaded(&address)) {
                    let outcome = logs::run(transaction, &keys);
                    found.push(json!({
                        "signature": base58(&transaction.signature),
                        "slot": block.slot,
                        "err": error(&outcome),
                        "memo": null,
                        "blockTime": block.time,
                        "confirmationStatus": "finalized",
                    }));
                    if found.len() == limit {
                        return Ok(json!(found));
                    }
                }
            }
        }
        Ok(json!(found))
    }

    /// A transaction of a block with its metadata.
    fn shown(
        &self,
        block: &Block,
        index: u32,
        transaction: &Transaction,
        show: &Show,
    ) -> Result<Value, RpcError> {
        let mut transaction = transaction.clone();
        self.faults.alter(&mut transaction);
        let keys = Keys::of(&transaction);
        let outcome = logs::run(&transaction, &keys);
        let landing = chain::landing(&self.ledger.plan, block.slot, index, keys.count());
        let sent = if show.base64 {
            json!([
                BASE64.encode(wire::encode(&transaction, &keys, &landing.blockhash)),
                "base64"
            ])
        } else {
            message(&transaction, &keys, &landing)
        };
        let meta = if transaction.kept == Kept::Nothing {
            Value::Null
        } else {
            metadata(&outcome, &keys, &landing)
        };
        let mut answer = json!({"transaction": sent, "meta": meta});
        match (show.versioned, transaction.lookups.is_some()) {
            (true, true) => answer["version"] = json!(0),
            (true, false) => answer["version"] = json!("legacy"),
            (false, false) => {}
            (false, true) => {
                return Err(RpcError::new(
                    -32_015,
                    "Transaction version (0) is not supported by the requesting client. Please try the request again with \
                     the following configuration parameter: \"maxSupportedTransactionVersion\": 0",
                ));
            }
        }
        Ok(answer)
    }
}

fn blockhash(slot: u64) -> String {
    base58(&key_of(&format!("blockhash {slot}")))
}

/// The error of a transaction; null if it succeeded.
fn error(outcome: &Outcome) -> Value {
    outcome.failed_instruction.map_or(
        Value::Null,
        |index| json!({"InstructionError": [index, {"Custom": 1}]}),
    )
}

fn message(transaction: &Transaction, keys: &Keys, landing: &Landing) -> Value {
    let [signers, readonly_signed, readonly_unsigned] = wire::header(transaction, keys);
    let cosigners = transaction.cosigners.iter().map(|cosigner| cosigner.0);
    let signatures: Vec<String> = std::iter::once(transaction.signature)
        .chain(cosigners)
        .map(|signature| base58(&signature))
        .collect();
    let instructions: Vec<Value> = transaction
        .calls
        .iter()
        .map(|call| {
            let accounts: Vec<u8> = call.accounts.iter().map(|key| keys.place(key)).collect();
            json!({
                "programIdIndex": keys.place(&call.program),
                "accounts": accounts,
                "data": base58(&call.data),
                "stackHeight": null,
            })
        })
        .collect();
    let mut message = json!({
        "header": {
            "numRequiredSignatures": signers,
            "numReadonlySignedAccounts": readonly_signed,
            "numReadonlyUnsignedAccounts": readonly_unsigned,
        },
        "accountKeys": keys.statics.iter().map(|key| base58(key)).collect::<Vec<_>>(),
        "recentBlockhash": base58(&landing.blockhash),
        "instructions": instructions,
    });
    if let Some(lookups) = &transaction.lookups {
        let indexes = |entries: &[(u8, [u8; 32])]| -> Vec<u8> {
            entries.iter().map(|entry| entry.0).collect()
        };
        message["addressTableLookups"] = lookups
            .iter()
            .map(|lookup| {
                json!({
                    "accountKey": base58(&lookup.table),
                    "writableIndexes": indexes(&lookup.writable),
                    "readonlyIndexes": indexes(&lookup.readonly),
                })
            })
            .collect();
    }
    json!({"signatures": signatures, "message": message})
}

fn metadata(outcome: &Outcome, keys: &Keys, landing: &Landing) -> Value {
    let failed = error(outcome);
    let inner: Vec<Value> = outcome
        .inner
        .iter()
        .map(|(index, instructions)| {
            let instructions: Vec<Value> = instructions
                .iter()
                .map(|instruction| {
                    json!({
                        "programIdIndex": instruction.program_index,
                        "accounts": instruction.accounts,
                        "data": base58(&instruction.data),
                        "stackHeight": instruction.stack_height,
                    })
                })
                .collect();
            json!({"index": index, "instructions": instructions})
        })
        .collect();
    let addresses =
        |keys: &[[u8; 32]]| -> Vec<String> { keys.iter().map(|key| base58(key)).collect() };
    let mut meta = json!({
        "err": failed,
        "status": if failed.is_null() { json!({"Ok": null}) } else { json!({"Err": failed}) },
        "fee": 5_000,
        "preBalances": landing.balances,
        "postBalances": landing.balances,
        "innerInstructions": inner,
        "logMessages": outcome.logs,
        "preTokenBalances": [],
        "postTokenBalances": [],
        "rewards": [],
        "loadedAddresses": {
            "writable": addresses(&keys.loaded_writable),
            "readonly": addresses(&keys.loaded_readonly),
        },
        "computeUnitsConsumed": 12_345,
    });
    if let Some((program, bytes)) = &outcome.returned {
        meta["returnData"] =
            json!({"programId": base58(program), "data": [BASE64.encode(bytes), "base64"]});
    }
    meta
}

fn slot(parameter: Option<&Value>) -> Result<u64, RpcError> {
    parameter
        .and_then(Value::as_u64)
        .ok_or_else(|| RpcError::invalid_parameters("a slot is a number"))
}

/// Reads base58 of exactly so many bytes.
fn key<const BYTES: usize>(parameter: Option<&Value>, what: &str) -> Result<[u8; BYTES], RpcError> {
    parameter
        .and_then(Value::as_str)
        .filter(|text| text.len() <= 2 * BYTES)
        .and_then(|text| bs58::decode(text).into_vec().ok())
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| RpcError::invalid_parameters(&format!("{what} is base58 of {BYTES} bytes")))
}
