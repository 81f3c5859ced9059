//! The two demo programs, their ids and IDLs, and random events of theirs.
//!
//! Both are invented here: `orderbook` has an IDL of the older format (camelCase, no address), `vault` one of the current
//! format. Between them their events hold every kind of type.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::Pubkey;
use crate::borsh::{
    Encoded, array, boolean, bytes, float, narrow, option, pubkey, string, structure, variant,
    vector, wide,
};

/// The demo's programs: folder name and IDL (`{ADDRESS}` stands for the program id).
pub(crate) const PROGRAMS: [(&str, &str); 2] = [
    ("orderbook", include_str!("../idl/orderbook.json")),
    ("vault", include_str!("../idl/vault.json")),
];

/// A key that follows from a text: the same in every archive.
pub(crate) fn key_of(text: &str) -> Pubkey {
    Sha256::digest(format!("archive-sim {text}")).into()
}

pub(crate) fn program_id(name: &str) -> Pubkey {
    key_of(&format!("program {name}"))
}

/// What became of a payload in a correct backfill.
#[derive(Debug, Clone)]
pub(crate) enum Truth {
    /// It is an event with these fields.
    Event {
        name: &'static str,
        fields: Map<String, Value>,
    },
    /// No IDL decodes it: it must be in quarantine.
    Undecodable,
    /// Shorter than a discriminator: nobody's event.
    Foreign,
}

/// Bytes that a program said, and what they are.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    pub(crate) bytes: Vec<u8>,
    pub(crate) truth: Truth,
}

impl Payload {
    /// Bytes of another program, which nobody may take for an event of the demo's.
    pub(crate) fn noise(random: &mut ChaCha8Rng) -> Self {
        // They are a demo event's bytes on purpose: only who said them tells.
        let name = PROGRAMS[random.random_range(0..PROGRAMS.len())].0;
        Self {
            truth: Truth::Undecodable,
            ..Self::event(name, random)
        }
    }

    /// Fewer bytes than a discriminator has, or none.
    pub(crate) fn foreign(random: &mut ChaCha8Rng) -> Self {
        let bytes = (0..random.random_range(0..8))
            .map(|_| random.random())
            .collect();
        Self {
            bytes,
            truth: Truth::Foreign,
        }
    }

    /// An event so long that hardly anything else fits into a log beside it.
    pub(crate) fn long(name: &str, random: &mut ChaCha8Rng) -> Self {
        let text = "long ".repeat(random.random_range(800..1_000));
        if name == "orderbook" {
            announcement(&text, random)
        } else {
            deposited(Some(&text), random)
        }
    }

    /// A random event of the demo program `name`.
    pub(crate) fn event(name: &str, random: &mut ChaCha8Rng) -> Self {
        if name == "orderbook" {
            orderbook_event(random)
        } else {
            vault_event(random)
        }
    }

    /// An event spoiled: an unknown discriminator, a byte too many, or a byte too few.
    pub(crate) fn undecodable(name: &str, random: &mut ChaCha8Rng) -> Self {
        let mut payload = Self::event(name, random);
        match random.random_range(0..3) {
            0 => payload.bytes[..8]
                .copy_from_slice(&Sha256::digest("event:OfAVersionThatNobodyHas")[..8]),
            1 => payload.bytes.push(0),
            _ if payload.bytes.len() > 8 => {
                payload.bytes.pop();
            }
            _ => payload.bytes.push(7),
        }
        payload.truth = Truth::Undecodable;
        payload
    }
}

/// Builds Borsh bytes and JSON side by side.
struct Builder {
    name: &'static str,
    bytes: Vec<u8>,
    fields: Map<String, Value>,
}

impl Builder {
    fn new(name: &'static str) -> Self {
        let bytes = Sha256::digest(format!("event:{name}"))[..8].to_vec();
        Self {
            name,
            bytes,
            fields: Map::new(),
        }
    }

    fn field(mut self, name: &str, (bytes, value): (Vec<u8>, Value)) -> Self {
        self.bytes.extend(bytes);
        self.fields.insert(name.into(), value);
        self
    }

    fn finish(self) -> Payload {
        Payload {
            bytes: self.bytes,
            truth: Truth::Event {
                name: self.name,
                fields: self.fields,
            },
        }
    }
}

/// Extremes come up often: that is where decoders differ.
fn amount(random: &mut ChaCha8Rng) -> u64 {
    match random.random_range(0..8) {
        0 => u64::MAX,
        1 => 0,
        2 => (1 << 53) + 1,
        3 => i64::MAX as u64 + 1,
        _ => random.random_range(0..1_000_000_000_000),
    }
}

fn text(random: &mut ChaCha8Rng) -> String {
    match random.random_range(0..8) {
        0 => String::new(),
        1 => "Grüße, 世界 🚀 \"quoted\" \\ back\nline\ttab".into(),
        2 if random.random_range(0..4) == 0 => "x".repeat(random.random_range(500..2_000)),
        3 if random.random_range(0..8) == 0 => "before\0after".into(),
        _ => format!("order {}", random.random_range(0..1_000_000)),
    }
}

/// A float, often one that text mangles.
fn rate(random: &mut ChaCha8Rng) -> f64 {
    match random.random_range(0..24) {
        0 => f64::NAN,
        1 => f64::INFINITY,
        2 => f64::NEG_INFINITY,
        3 => -0.0,
        4 => f64::MAX,
        5 => 5e-324, // the least above 0
        6..12 => [0.0, 0.1, -2.5e-9, 1.0 / 3.0, 123_456.789][random.random_range(0..5)],
        _ => random.random_range(-1_000_000.0..1_000_000.0),
    }
}

fn orderbook_event(random: &mut ChaCha8Rng) -> Payload {
    match random.random_range(0..10) {
        0..5 => {
            let side = random.random_range(0..2);
            Builder::new("OrderPlaced")
                .field("order_id", wide!(amount(random)))
                .field("owner", pubkey(random))
                .field(
                    "side",
                    variant(side, ["Bid", "Ask"][side as usize], structure(vec![])),
                )
                .field(
                    "price",
                    wide!(if random.random_range(0..8) == 0 {
                        u128::MAX
                    } else {
                        u128::from(random.random::<u64>())
                    }),
                )
                .field("quantity", wide!(amount(random)))
                .field(
                    "client_id",
                    option(
                        random
                            .random::<bool>()
                            .then(|| narrow!(random.random::<u32>())),
                    ),
                )
                .field("is_post_only", boolean(random.random()))
                .finish()
        }
        5..9 => {
            let most = if random.random_range(0..50) == 0 {
                60
            } else {
                4
            };
            let fills = (0..random.random_range(0..most))
                .map(|_| {
                    structure(vec![
                        ("price", wide!(amount(random))),
                        ("maker_key", pubkey(random)),
                    ])
                })
                .collect();
            let kind = match random.random_range(0..3) {
                0 => variant(0, "Market", structure(vec![])),
                1 => {
                    let fields = vec![
                        ("price", wide!(amount(random))),
                        ("post_only", boolean(random.random())),
                    ];
                    variant(1, "Limit", structure(fields))
                }
                _ => variant(
                    2,
                    "Pegged",
                    array(vec![
                        narrow!(random.random::<i16>()),
                        narrow!(random.random::<u8>()),
                    ]),
                ),
            };
            Builder::new("OrderFilled")
                .field("order_id", wide!(amount(random)))
                .field("taker", pubkey(random))
                .field("fills", vector(fills))
                .field("fee_rate", float(rate(random)))
                .field(
                    "delta",
                    wide!(if random.random_range(0..8) == 0 {
                        i64::MIN
                    } else {
                        random.random::<i64>()
                    }),
                )
                .field("kind", kind)
                .field("slot", wide!(amount(random)))
                .finish()
        }
        _ => {
            let text = text(random);
            announcement(&text, random)
        }
    }
}

fn announcement(text: &str, random: &mut ChaCha8Rng) -> Payload {
    let data: Vec<u8> = (0..random.random_range(0..64))
        .map(|_| random.random())
        .collect();
    let root = (0..4).map(|_| narrow!(random.random::<u8>())).collect();
    Builder::new("Announcement")
        .field("text", string(text))
        .field("data", bytes(&data))
        .field("level", narrow!(random.random::<u8>()))
        .field("offset", narrow!(random.random::<i8>()))
        .field("port", narrow!(random.random::<u16>()))
        .field("shift", narrow!(random.random::<i16>()))
        .field("root", array(root))
        .finish()
}

fn position(random: &mut ChaCha8Rng) -> Encoded {
    let note = random.random::<bool>().then(|| string(&text(random)));
    structure(vec![
        ("mint", pubkey(random)),
        ("amount", wide!(amount(random))),
        ("note", option(note)),
    ])
}

fn vault_event(random: &mut ChaCha8Rng) -> Payload {
    match random.random_range(0..10) {
        0..5 => {
            let memo = random.random::<bool>().then(|| text(random));
            deposited(memo.as_deref(), random)
        }
        5..9 => {
            let strategy = match random.random_range(0..3) {
                0 => variant(0, "Passive", structure(vec![])),
                1 => {
                    let span = option(random.random::<bool>().then(|| wide!(amount(random))));
                    variant(
                        1,
                        "Grid",
                        structure(vec![
                            ("levels", narrow!(random.random::<u8>())),
                            ("span", span),
                        ]),
                    )
                }
                _ => variant(
                    2,
                    "Ladder",
                    array(vec![wide!(random.random::<i64>()), position(random)]),
                ),
            };
            let positions = (0..random.random_range(0..3))
                .map(|_| position(random))
                .collect();
            let weights = (0..4).map(|_| narrow!(random.random::<u16>())).collect();
            // Eighths are exact in 32 bits, so that their decimal text is the same at every width.
            let ratio = f32::from(random.random::<i16>()) / 8.0;
            Builder::new("Rebalanced")
                .field("vault", pubkey(random))
                .field("weights", array(weights))
                .field(
                    "pnl",
                    wide!(if random.random_range(0..8) == 0 {
                        i128::MIN + 1
                    } else {
                        random.random::<i128>()
                    }),
                )
                .field("strategy", strategy)
                .field("positions", vector(positions))
                .field("ratio", narrow!(ratio))
                .field("tick", narrow!(random.random::<i32>()))
                .field("window", narrow!(random.random::<u32>()))
                .field(
                    "limit",
                    option(random.random::<bool>().then(|| wide!(amount(random)))),
                )
                .finish()
        }
        _ => Builder::new("Heartbeat").finish(),
    }
}

fn deposited(memo: Option<&str>, random: &mut ChaCha8Rng) -> Payload {
    Builder::new("Deposited")
        .field("vault", pubkey(random))
        .field("amount", wide!(amount(random)))
        .field("shares", wide!(random.random::<u128>()))
        .field("memo", option(memo.map(string)))
        .field("signature", bytes(&random.random::<[u8; 6]>()))
        .finish()
}
