//! How a server misbehaves on purpose: which faults there are, and which requests meet them.
//!
//! Every fault here was seen of real servers, or is what a broken network does. Some happen at a place of the answer: the byte that the fault
//! names, one drawn by its seed, or else the middle.

use std::ops::Range;
use std::str::FromStr;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::SimError;

/// One way to answer badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Promises all bytes, sends so many, and closes the connection: `close-after=BYTES`.
    CloseAfter(u64),
    /// Promises all bytes and closes the connection at its place: `close`.
    Close,
    /// Promises all bytes and resets the connection at its place: `reset`.
    Reset,
    /// Answers with so many bytes fewer than were asked for, its headers in agreement: a clean, early end. `short=BYTES`.
    Short(u64),
    /// The Content-Range is the one asked for, the Content-Length ends at its place: a clean, early end. `short-length`.
    ShortLength,
    /// Answers with this status and no bytes; a 503 or 429 says `Retry-After: 0`. `status=CODE`.
    Status(u16),
    /// Answers 429 and asks to be left alone for so many seconds: `retry-after=SECONDS`.
    RetryAfter(u64),
    /// Answers 429 while more than so many answers are under way: `busy=ANSWERS`.
    Busy(u64),
    /// Flips one bit at its place: `flip`.
    Flip,
    /// Sends so many bytes a second: `slow=BYTES`.
    Slow(u64),
    /// Sends the answer up to its place, and then nothing until the client gives up: `stall`.
    Stall,
    /// Ignores the range and sends the whole file: `whole`.
    Whole,
    /// Answers with another range than was asked for, and says so: `other-range`.
    OtherRange,
    /// Says that it is the range asked for, and sends another's bytes: `shifted`.
    Shifted,
    /// Names another `ETag`, as after the file was replaced: `etag`.
    OtherTag,
    /// Says that there is no such file: `missing`.
    Missing,
    /// The file is so many bytes shorter: `cut=BYTES`.
    Cut(u64),
}

/// Which requests meet a fault, of those for bytes of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meets {
    /// `@N`: each N-th. 1, all; 3, the third, the sixth, …
    Every(u64),
    /// `~N/SEED`: one in N, and the fault's place, as the seed and the request's number draw them.
    OneIn(u64, u64),
    /// `#BYTE` or `#BYTExTIMES`: the first ones for ranges that hold this byte of the file; it happens there.
    Holding(u64, u64),
}

/// A fault, and which requests meet it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// Which requests meet it.
    pub meets: Meets,
    /// It happens to slot-ranges files, not to CAR files: `index:` before the kind.
    pub index: bool,
}

impl Fault {
    /// Where in the answer the fault happens, in bytes from its start, if it happens to the request of this number (they begin at 1) for this
    /// range. `met` is how often it happened so far.
    pub(crate) fn place(&self, request: u64, range: &Range<u64>, met: u64) -> Option<u64> {
        let length = range.end - range.start;
        match self.meets {
            Meets::Every(every) => request.is_multiple_of(every).then_some(length / 2),
            Meets::OneIn(one_in, seed) => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                random.set_stream(request);
                let happens = random.random_range(0..one_in) == 0;
                happens.then(|| random.random_range(0..length.max(1)))
            }
            Meets::Holding(byte, times) => {
                (met < times && range.contains(&byte)).then(|| byte - range.start)
            }
        }
    }
}

/// `[index:]KIND[=VALUE][@EVERY | ~ONE_IN/SEED | #BYTE[xTIMES]]`: `status=503@3`, `close-after=100000`, `flip~10/7`, `reset#4096`.
impl FromStr for Fault {
    type Err = SimError;

    fn from_str(text: &str) -> Result<Self, SimError> {
        let refuse = |why: &str| SimError::Fault(format!("`{text}`: {why}"));
        let (rest, index) = match text.strip_prefix("index:") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let at = rest.find(['@', '~', '#']).unwrap_or(rest.len());
        let (what, when) = rest.split_at(at);
        let meets = meets(when).ok_or_else(|| {
            refuse("behind the kind stands @EVERY, ~ONE_IN/SEED, #BYTE or #BYTExTIMES, in numbers above 0")
        })?;
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
            "close" => plain(FaultKind::Close)?,
            "reset" => plain(FaultKind::Reset)?,
            "short" => FaultKind::Short(number()?),
            "short-length" => plain(FaultKind::ShortLength)?,
            "status" => FaultKind::Status(
                u16::try_from(number()?)
                    .ok()
                    .filter(|status| (100..600).contains(status))
                    .ok_or_else(|| refuse("a status lies between 100 and 599"))?,
            ),
            "retry-after" => FaultKind::RetryAfter(number()?),
            "busy" => FaultKind::Busy(number()?.max(1)),
            "slow" => FaultKind::Slow(number()?.max(1)),
            "flip" => plain(FaultKind::Flip)?,
            "stall" => plain(FaultKind::Stall)?,
            "whole" => plain(FaultKind::Whole)?,
            "other-range" => plain(FaultKind::OtherRange)?,
            "shifted" => plain(FaultKind::Shifted)?,
            "etag" => plain(FaultKind::OtherTag)?,
            "missing" => plain(FaultKind::Missing)?,
            "cut" => FaultKind::Cut(number()?),
            _ => {
                return Err(refuse(
                    "there are close-after=BYTES, close, reset, short=BYTES, short-length, status=CODE, retry-after=SECONDS, busy=ANSWERS, \
                     slow=BYTES, flip, stall, whole, other-range, shifted, etag, missing and cut=BYTES",
                ));
            }
        };
        Ok(Self { kind, meets, index })
    }
}

/// Reads what follows the kind.
fn meets(text: &str) -> Option<Meets> {
    let positive = |text: &str| text.parse::<u64>().ok().filter(|number| *number > 0);
    let Some(sign) = text.chars().next() else {
        return Some(Meets::Every(1));
    };
    let rest = &text[1..];
    match sign {
        '@' => positive(rest).map(Meets::Every),
        '~' => {
            let (one_in, seed) = rest.split_once('/')?;
            Some(Meets::OneIn(positive(one_in)?, seed.parse().ok()?))
        }
        _ => {
            let (byte, times) = rest.split_once('x').unwrap_or((rest, "1"));
            Some(Meets::Holding(byte.parse().ok()?, positive(times)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Fault {
        text.parse().unwrap()
    }

    #[test]
    fn faults_are_read_from_text_and_others_refused() {
        let fault = |kind, meets, index| Fault { kind, meets, index };
        for (text, expected) in [
            (
                "status=503@3",
                fault(FaultKind::Status(503), Meets::Every(3), false),
            ),
            ("flip", fault(FaultKind::Flip, Meets::Every(1), false)),
            (
                "reset~10/7",
                fault(FaultKind::Reset, Meets::OneIn(10, 7), false),
            ),
            (
                "close#4096",
                fault(FaultKind::Close, Meets::Holding(4096, 1), false),
            ),
            (
                "index:cut=12#0x3",
                fault(FaultKind::Cut(12), Meets::Holding(0, 3), true),
            ),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        for wrong in [
            "", "flip@0", "flip=1", "short", "status=9", "sing", "flip~3", "flip~0/1", "flip#",
            "flip#1x0", "car:flip",
        ] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fault_happens_where_it_says_or_its_seed_draws() {
        let range = 1_000..2_000;
        assert_eq!(read("flip@3").place(6, &range, 0), Some(500));
        assert_eq!(read("flip@3").place(7, &range, 0), None);
        assert_eq!(read("flip#1700x2").place(1, &range, 1), Some(700));
        assert_eq!(read("flip#1700x2").place(1, &range, 2), None);
        assert_eq!(read("flip#2000").place(1, &range, 0), None);
        let drawn = |seed| {
            let fault = read(&format!("flip~10/{seed}"));
            (1..=1_000)
                .map(|request| fault.place(request, &range, 0))
                .collect::<Vec<_>>()
        };
        let first = drawn(1);
        let places: Vec<u64> = first.iter().flatten().copied().collect();
        assert!((60..140).contains(&places.len()), "{}", places.len());
        assert!(places.iter().any(|place| *place < 100) && places.iter().any(|place| *place > 900));
        assert!(first == drawn(1) && first != drawn(2));
    }
}
