//! How a server misbehaves on purpose: which faults there are, and which requests meet them.
//!
//! Every fault here was seen of real servers, or is what a broken network does.

use std::str::FromStr;

use crate::SimError;

/// One way to answer badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Promises all bytes, sends so many, and closes the connection: `close-after=BYTES`.
    CloseAfter(u64),
    /// Answers with so many bytes fewer than were asked for, its headers in agreement: a clean, early end. `short=BYTES`.
    Short(u64),
    /// Answers with this status and no bytes; a 503 or 429 says `Retry-After: 0`. `status=CODE`.
    Status(u16),
    /// Flips one bit of the answer: `flip`.
    Flip,
    /// Sends so many bytes a second: `slow=BYTES`.
    Slow(u64),
    /// Sends half of the answer, and then nothing until the client gives up: `stall`.
    Stall,
    /// Ignores the range and sends the whole file: `whole`.
    Whole,
}

/// A fault, and how often it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// It happens to each such request for bytes of a CAR file: 1, all; 3, the third, the sixth, …
    pub every: u64,
}

impl Fault {
    /// Whether the fault happens to the request of this number; numbers begin at 1.
    pub(crate) fn happens_to(&self, request: u64) -> bool {
        request.is_multiple_of(self.every)
    }
}

/// `KIND[=VALUE][@EVERY]`: `status=503@3`, `close-after=100000`, `flip@10`.
impl FromStr for Fault {
    type Err = SimError;

    fn from_str(text: &str) -> Result<Self, SimError> {
        let refuse = |why: &str| SimError::Fault(format!("`{text}`: {why}"));
        let (what, every) = text.split_once('@').unwrap_or((text, "1"));
        let every = every
            .parse()
            .ok()
            .filter(|every| *every > 0)
            .ok_or_else(|| refuse("behind @ stands a number above 0"))?;
        let (name, value) = what.split_once('=').unwrap_or((what, ""));
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| refuse("it takes a number behind ="))
        };
        let plain = |kind| {
            if value.is_empty() {
                Ok(kind)
            } else {
                Err(refuse("it takes no value"))
            }
        };
        let kind = match name {
            "close-after" => FaultKind::CloseAfter(number()?),
            "short" => FaultKind::Short(number()?),
            "status" => FaultKind::Status(
                u16::try_from(number()?)
                    .ok()
                    .filter(|status| (100..600).contains(status))
                    .ok_or_else(|| refuse("a status lies between 100 and 599"))?,
            ),
            "slow" => FaultKind::Slow(number()?.max(1)),
            "flip" => plain(FaultKind::Flip)?,
            "stall" => plain(FaultKind::Stall)?,
            "whole" => plain(FaultKind::Whole)?,
            _ => {
                return Err(refuse(
                    "there are close-after=BYTES, short=BYTES, status=CODE, slow=BYTES, flip, stall and whole",
                ));
            }
        };
        Ok(Self { kind, every })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_from_text_and_others_refused() {
        let read = |text: &str| text.parse::<Fault>().unwrap();
        assert_eq!(
            read("status=503@3"),
            Fault {
                kind: FaultKind::Status(503),
                every: 3
            }
        );
        assert_eq!(
            read("flip"),
            Fault {
                kind: FaultKind::Flip,
                every: 1
            }
        );
        assert!(read("flip@3").happens_to(6) && !read("flip@3").happens_to(7));
        for wrong in ["", "flip@0", "flip=1", "short", "status=9", "sing"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}
