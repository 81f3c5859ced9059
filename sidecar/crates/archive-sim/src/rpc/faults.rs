//! How a node misbehaves on purpose: requests that fail, and answers that are missing or altered.
//!
//! Faults of requests happen to every so-manieth; those of answers to the same transactions each time, whatever is asked
//! in which order: a seed decides which.

use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::programs::{PROGRAMS, program_id};
use crate::transaction::{Call, Step, Transaction};
use crate::{SimError, base58};

/// One way to answer badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RpcFaultKind {
    /// The request is answered with this status and nothing else; a 429 or 503 says `Retry-After: 0`. `status=CODE`.
    Status(u16),
    /// The request is answered so much later: `slow=MILLISECONDS`.
    Slow(Duration),
    /// The request is never answered: `stall`.
    Stall,
    /// The transaction is not known, or the block was lost: `missing`; of one transaction: `missing=SIGNATURE`.
    Missing(Option<String>),
    /// One bit of the first event that a demo program says in the transaction is another one: `altered`; of one transaction:
    /// `altered=SIGNATURE`.
    Altered(Option<String>),
}

/// A fault, and how often it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcFault {
    /// What happens.
    pub kind: RpcFaultKind,
    /// It happens to each so-manieth request, or to one of so many transactions.
    pub every: u64,
}

/// `KIND[=VALUE][@EVERY]`: `status=429@3`, `slow=200`, `missing@7`, `altered=SIGNATURE`.
impl FromStr for RpcFault {
    type Err = SimError;

    fn from_str(text: &str) -> Result<Self, SimError> {
        let refuse = |why: &str| SimError::Fault(format!("`{text}`: {why}"));
        let (what, every) = text.split_once('@').unwrap_or((text, "1"));
        let every = every
            .parse()
            .ok()
            .filter(|every| *every > 0)
            .ok_or_else(|| refuse("behind @ stands a number above 0"))?;
        let (name, value) = match what.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (what, None),
        };
        let number = || {
            value
                .and_then(|value| value.parse::<u64>().ok())
                .ok_or_else(|| refuse("it takes a number behind ="))
        };
        let signature = || value.map(ToOwned::to_owned);
        let kind = match name {
            "status" => RpcFaultKind::Status(
                u16::try_from(number()?)
                    .ok()
                    .filter(|status| (100..600).contains(status))
                    .ok_or_else(|| refuse("a status lies between 100 and 599"))?,
            ),
            "slow" => RpcFaultKind::Slow(Duration::from_millis(number()?)),
            "stall" if value.is_none() => RpcFaultKind::Stall,
            "missing" => RpcFaultKind::Missing(signature()),
            "altered" => RpcFaultKind::Altered(signature()),
            _ => {
                return Err(refuse(
                    "there are status=CODE, slow=MILLISECONDS, stall, missing[=SIGNATURE] and altered[=SIGNATURE]",
                ));
            }
        };
        Ok(Self { kind, every })
    }
}

/// All faults of a node.
pub(super) struct Faults {
    pub(super) seed: u64,
    pub(super) faults: Vec<RpcFault>,
}

impl Faults {
    /// What happens to the request of this number; numbers begin at 1.
    pub(super) fn of_request(&self, number: u64) -> Option<&RpcFaultKind> {
        self.faults
            .iter()
            .find(|fault| {
                number.is_multiple_of(fault.every)
                    && !matches!(
                        fault.kind,
                        RpcFaultKind::Missing(_) | RpcFaultKind::Altered(_)
                    )
            })
            .map(|fault| &fault.kind)
    }

    /// Whether the transaction is missing.
    pub(super) fn is_missing(&self, signature: &[u8; 64]) -> bool {
        self.any(signature, |kind| match kind {
            RpcFaultKind::Missing(only) => Some(only),
            _ => None,
        })
    }

    /// Whether the block is missing. Faults of single transactions leave their block alone.
    pub(super) fn is_block_missing(&self, slot: u64) -> bool {
        self.faults.iter().any(|fault| {
            fault.kind == RpcFaultKind::Missing(None)
                && self.is_drawn(&slot.to_le_bytes(), fault.every)
        })
    }

    /// Alters the transaction if it is one that shall be.
    pub(super) fn alter(&self, transaction: &mut Transaction) {
        let altered = self.any(&transaction.signature, |kind| match kind {
            RpcFaultKind::Altered(only) => Some(only),
            _ => None,
        });
        if altered {
            let _ = transaction.calls.iter_mut().any(alter_first_event);
        }
    }

    fn any(
        &self,
        signature: &[u8; 64],
        of_kind: impl Fn(&RpcFaultKind) -> Option<&Option<String>>,
    ) -> bool {
        self.faults.iter().any(|fault| match of_kind(&fault.kind) {
            Some(Some(only)) => *only == base58(signature),
            Some(None) => self.is_drawn(signature, fault.every),
            None => false,
        })
    }

    fn is_drawn(&self, key: &[u8], every: u64) -> bool {
        let mut digest = Sha256::new();
        digest.update(self.seed.to_le_bytes());
        digest.update(key);
        let bytes: [u8; 32] = digest.finalize().into();
        let drawn = bytes
            .iter()
            .take(8)
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        drawn.is_multiple_of(every)
    }
}

/// Flips the lowest bit behind the discriminator of the first event that a demo program says; returns whether there is one.
fn alter_first_event(call: &mut Call) -> bool {
    let ours = PROGRAMS
        .iter()
        .any(|program| program_id(program.0) == call.program);
    call.steps.iter_mut().any(|step| match step {
        Step::Emit(payload) | Step::EmitFields(payload) | Step::EmitCpi(payload)
            if ours && payload.bytes.len() > 8 =>
        {
            payload.bytes[8] ^= 1;
            true
        }
        Step::Call(inner) => alter_first_event(inner),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_from_text_and_others_refused() {
        let read = |text: &str| text.parse::<RpcFault>().unwrap();
        assert_eq!(
            read("status=429@3"),
            RpcFault {
                kind: RpcFaultKind::Status(429),
                every: 3
            }
        );
        assert_eq!(
            read("altered=abc").kind,
            RpcFaultKind::Altered(Some("abc".into()))
        );
        assert_eq!(read("missing@7").kind, RpcFaultKind::Missing(None));
        for wrong in ["", "slow", "stall=1", "status=9", "missing@0", "sing"] {
            assert!(wrong.parse::<RpcFault>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_of_the_transactions_is_missing_whatever_the_order() {
        let faults = |seed| Faults {
            seed,
            faults: vec!["missing@4".parse().unwrap()],
        };
        let missing = |seed| -> Vec<u8> {
            let is_missing = |byte: &u8| faults(seed).is_missing(&[*byte; 64]);
            (0..=255).filter(is_missing).collect()
        };
        assert!((40..90).contains(&missing(1).len()), "{:?}", missing(1));
        assert_ne!(missing(1), missing(2));
    }
}
