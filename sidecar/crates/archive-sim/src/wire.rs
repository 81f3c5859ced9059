//! A transaction's account keys and its bytes as sent.

use std::collections::HashMap;

use crate::Pubkey;
use crate::car::uvarint;
use crate::transaction::Transaction;

/// A transaction's account keys: static ones, then loaded writable, then loaded readonly.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) statics: Vec<Pubkey>,
    pub(crate) loaded_writable: Vec<Pubkey>,
    pub(crate) loaded_readonly: Vec<Pubkey>,
    places: HashMap<Pubkey, u8>,
}

impl Keys {
    /// Lays out the account keys. Top-level programs are static, as the runtime demands; what a lookup loads is not.
    pub(crate) fn of(transaction: &Transaction) -> Self {
        let lookups = transaction.lookups.as_deref().unwrap_or_default();
        let loaded_writable: Vec<Pubkey> = lookups
            .iter()
            .flat_map(|lookup| lookup.writable.iter().map(|entry| entry.1))
            .collect();
        let loaded_readonly: Vec<Pubkey> = lookups
            .iter()
            .flat_map(|lookup| lookup.readonly.iter().map(|entry| entry.1))
            .collect();
        let mut statics = vec![transaction.payer];
        statics.extend(transaction.cosigners.iter().map(|cosigner| cosigner.1));
        let mut add = |key: &Pubkey, top_level: bool| {
            let loaded = loaded_writable.contains(key) || loaded_readonly.contains(key);
            if !statics.contains(key) && (top_level || !loaded) {
                statics.push(*key);
            }
        };
        for call in &transaction.calls {
            call.visit(&mut |inner| inner.accounts.iter().for_each(|key| add(key, false)));
        }
        for call in &transaction.calls {
            add(&call.program, true);
            call.visit(&mut |inner| add(&inner.program, false));
        }
        let mut places = HashMap::new();
        let all = statics
            .iter()
            .chain(&loaded_writable)
            .chain(&loaded_readonly);
        for (place, key) in all.enumerate() {
            places.entry(*key).or_insert(place as u8);
        }
        Self {
            statics,
            loaded_writable,
            loaded_readonly,
            places,
        }
    }

    /// A key's place among all of them. Every key of a transaction was laid out by [`Keys::of`].
    pub(crate) fn place(&self, key: &Pubkey) -> u8 {
        self.places[key]
    }

    /// How many keys there are.
    pub(crate) fn count(&self) -> usize {
        self.statics.len() + self.loaded_writable.len() + self.loaded_readonly.len()
    }

    pub(crate) fn is_static(&self, key: &Pubkey) -> bool {
        self.statics.contains(key)
    }

    pub(crate) fn is_loaded(&self, key: &Pubkey) -> bool {
        self.loaded_writable.contains(key) || self.loaded_readonly.contains(key)
    }
}

/// The bytes of a transaction. The signatures come right behind the first byte.
pub(crate) fn encode(transaction: &Transaction, keys: &Keys, blockhash: &[u8; 32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    let signers = 1 + transaction.cosigners.len();
    compact(&mut bytes, signers);
    bytes.extend(transaction.signature);
    for cosigner in &transaction.cosigners {
        bytes.extend(cosigner.0);
    }
    if transaction.lookups.is_some() {
        bytes.push(0x80);
    }
    bytes.extend(header(transaction, keys));
    compact(&mut bytes, keys.statics.len());
    keys.statics.iter().for_each(|key| bytes.extend(key));
    bytes.extend(blockhash);
    compact(&mut bytes, transaction.calls.len());
    for call in &transaction.calls {
        bytes.push(keys.place(&call.program));
        compact(&mut bytes, call.accounts.len());
        bytes.extend(call.accounts.iter().map(|key| keys.place(key)));
        compact(&mut bytes, call.data.len());
        bytes.extend(&call.data);
    }
    if let Some(lookups) = &transaction.lookups {
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

/// The message's header: signers, and readonly keys among them and among the others.
pub(crate) fn header(transaction: &Transaction, keys: &Keys) -> [u8; 3] {
    let signers = 1 + transaction.cosigners.len();
    let unsigned = keys.statics.len() - signers;
    let readonly = transaction.calls.len().min(unsigned) as u8;
    [signers as u8, 0, readonly]
}

/// Solana's compact-u16: LEB128 of at most 16 bits.
fn compact(output: &mut Vec<u8>, value: usize) {
    uvarint(output, value as u64);
}
