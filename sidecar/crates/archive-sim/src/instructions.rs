//! What the demo's programs are told: every call of theirs gets an instruction's data and accounts, and the truth of it.
//!
//! Calls are given these after a transaction was drawn, from its signature and the call's place alone, so that nothing else
//! in an archive depends on it.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::borsh::{Encoded, array, narrow, option, string, structure, variant, wide};
use crate::programs::{PROGRAMS, key_of, program_id};
use crate::transaction::{Call, Step, Transaction};
use crate::{Pubkey, base58};

/// What became of an instruction's data in a correct backfill.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    /// It is an instruction with these arguments, and these accounts by name, of which some may be none.
    Instruction {
        name: &'static str,
        arguments: Map<String, Value>,
        accounts: Map<String, Value>,
        remaining: Vec<String>,
    },
    /// No IDL decodes it: it must be in quarantine.
    Undecodable,
}

/// Gives every call of a demo program an instruction.
pub(crate) fn apply(transaction: &mut Transaction) {
    let signature = transaction.signature;
    let mut place = 0;
    for call in &mut transaction.calls {
        tell(call, &signature, &mut place);
    }
}

fn tell(call: &mut Call, signature: &[u8; 64], place: &mut u32) {
    *place += 1;
    let named = PROGRAMS
        .iter()
        .find(|(name, _)| program_id(name) == call.program);
    if let Some((name, _)) = named {
        let seed = Sha256::new()
            .chain_update(signature)
            .chain_update(place.to_le_bytes());
        let mut random = ChaCha8Rng::from_seed(seed.finalize().into());
        let drawn = Builder::draw(name, call.program, &mut random);
        (call.data, call.accounts, call.told) = drawn.finish(&mut random);
    }
    for step in &mut call.steps {
        if let Step::Call(inner) = step {
            tell(inner, signature, place);
        }
    }
}

/// Builds data, accounts and truth side by side.
struct Builder {
    name: &'static str,
    program: Pubkey,
    data: Vec<u8>,
    arguments: Map<String, Value>,
    accounts: Vec<Pubkey>,
    named: Map<String, Value>,
}

impl Builder {
    fn draw(program: &str, id: Pubkey, random: &mut ChaCha8Rng) -> Self {
        let amount = match random.random_range(0..6) {
            0 => u64::MAX,
            _ => random.random_range(0..1_000_000_000_000),
        };
        let is_first = random.random_range(0..3) > 0;
        match (program, is_first) {
            ("orderbook", true) => {
                let side = random.random_range(0..2);
                let side = variant(side, ["Bid", "Ask"][side as usize], structure(vec![]));
                let limit = random.random::<bool>();
                Self::new("place_order", id, None)
                    .argument("order_id", wide!(amount))
                    .argument("side", side)
                    .argument(
                        "limit",
                        option(limit.then(|| wide!(u128::from(amount) << 64))),
                    )
                    .account("owner", user(random))
                    .account("market_base_vault", user(random))
                    .account("market_quote_vault", user(random))
                    .account("event_authority", user(random))
            }
            ("orderbook", false) => Self::new("cancel_all", id, None)
                .account("owner", user(random))
                .optional("referrer", random.random::<bool>().then(|| user(random))),
            (_, true) => {
                let memo = random
                    .random::<bool>()
                    .then(|| string("a deposit\0of mine"));
                Self::new("deposit", id, None)
                    .argument("amount", wide!(amount))
                    .argument("memo", option(memo))
                    .account("user", user(random))
                    .optional("oracle", random.random::<bool>().then(|| user(random)))
                    .account("token_mint", user(random))
                    .account("token_program", user(random))
            }
            (_, false) => {
                let weights = (0..4).map(|_| narrow!(random.random::<u16>())).collect();
                Self::new("rebalance", id, Some(&[90, 1, 2]))
                    .argument("weights", array(weights))
                    .account("authority", user(random))
            }
        }
    }

    fn new(name: &'static str, program: Pubkey, discriminator: Option<&[u8]>) -> Self {
        let anchors = Sha256::digest(format!("global:{name}"));
        Self {
            name,
            program,
            data: discriminator.unwrap_or(&anchors[..8]).to_vec(),
            arguments: Map::new(),
            accounts: Vec::new(),
            named: Map::new(),
        }
    }

    fn argument(mut self, name: &str, (bytes, value): Encoded) -> Self {
        self.data.extend(bytes);
        self.arguments.insert(name.into(), value);
        self
    }

    fn account(mut self, name: &str, key: Pubkey) -> Self {
        self.accounts.push(key);
        self.named.insert(name.into(), base58(&key).into());
        self
    }

    /// An account that may be none, which the program's own id says.
    fn optional(mut self, name: &str, key: Option<Pubkey>) -> Self {
        self.accounts.push(key.unwrap_or(self.program));
        let value = key.map_or(Value::Null, |key| base58(&key).into());
        self.named.insert(name.into(), value);
        self
    }

    fn finish(mut self, random: &mut ChaCha8Rng) -> (Vec<u8>, Vec<Pubkey>, Option<Told>) {
        let remaining: Vec<_> = (0..random.random_range(0..3))
            .map(|_| user(random))
            .collect();
        self.accounts.extend(&remaining);
        match random.random_range(0..32) {
            0 => self.data.push(7),
            1 => self.data = vec![1, 2, 3],
            2 => self.data.clear(),
            _ => {
                let told = Told::Instruction {
                    name: self.name,
                    arguments: self.arguments,
                    accounts: self.named,
                    remaining: remaining.iter().map(|key| base58(key)).collect(),
                };
                return (self.data, self.accounts, Some(told));
            }
        }
        (self.data, self.accounts, Some(Told::Undecodable))
    }
}

fn user(random: &mut ChaCha8Rng) -> Pubkey {
    key_of(&format!("user {}", random.random_range(0..500)))
}
