//! What the chain holds: blocks and transactions, drawn again from the archive's plan.
//!
//! Blocks are drawn when they are asked for; only the places of transactions are kept.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use crate::chain::{self, FIRST_HEIGHT, Traps};
use crate::transaction::Transaction;
use crate::{Plan, SimError};

/// Where a transaction stands: slot, and place in the block.
pub(super) type Place = (u64, u32);

/// What `truth/summary.json` says of how the archive was written.
#[derive(Deserialize)]
struct Written {
    plan: Plan,
}

/// The chain of one archive.
pub(super) struct Ledger {
    pub(super) plan: Plan,
    /// Slots with blocks, ascending.
    slots: Vec<u64>,
    places: HashMap<[u8; 64], Place>,
}

/// A block, drawn.
pub(super) struct Block {
    pub(super) slot: u64,
    pub(super) parent: u64,
    pub(super) height: u64,
    /// Seconds; none where the block has none.
    pub(super) time: Option<u64>,
    pub(super) transactions: Vec<Transaction>,
}

impl Ledger {
    /// Reads the plan of the archive in `folder` and draws its chain.
    pub(super) fn open(folder: &Path) -> Result<Self, SimError> {
        let summary = std::fs::read(folder.join("truth").join("summary.json"))?;
        let plan: Plan = serde_json::from_slice::<Written>(&summary)?.plan;
        plan.check()?;
        let slots: Vec<u64> = (plan.from_slot..plan.to_slot)
            .filter(|slot| chain::has_block(&plan, *slot))
            .collect();
        let mut places = HashMap::new();
        for slot in &slots {
            let block = chain::block(&plan, *slot, &mut Traps::default());
            for (index, transaction) in (0..).zip(&block.transactions) {
                places.insert(transaction.signature, (*slot, index));
            }
        }
        Ok(Self {
            plan,
            slots,
            places,
        })
    }

    /// The block of `slot`; none if the slot has none.
    pub(super) fn block(&self, slot: u64) -> Option<Block> {
        let number = self.slots.binary_search(&slot).ok()?;
        let drawn = chain::block(&self.plan, slot, &mut Traps::default());
        Some(Block {
            slot,
            parent: if number > 0 {
                self.slots[number - 1]
            } else {
                self.plan.from_slot - 1
            },
            height: FIRST_HEIGHT + number as u64,
            time: (drawn.block_time > 0).then_some(drawn.block_time),
            transactions: drawn.transactions,
        })
    }

    /// Where the transaction with this signature is.
    pub(super) fn place(&self, signature: &[u8; 64]) -> Option<Place> {
        self.places.get(signature).copied()
    }

    /// Slots with blocks, ascending.
    pub(super) fn slots(&self) -> &[u64] {
        &self.slots
    }
}
