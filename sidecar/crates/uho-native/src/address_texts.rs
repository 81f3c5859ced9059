//! Base58 of addresses, remembered: a program's events name the same pools, mints and people over and over, and to write
//! an address costs several times what it costs to find it written.

use std::cell::RefCell;

/// Addresses that a thread remembers, a power of two. 620 KiB: what a core's second cache holds.
const PLACES: usize = 1 << 13;

/// Spreads the bytes of an address over the places: an odd number without a pattern (2⁶⁴ ÷ the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// An address and its text; no text has a length of 0.
#[derive(Clone, Copy)]
struct Written {
    address: [u8; 32],
    text: [u8; 44],
    length: u8,
}

/// The addresses that were written last, each at the one place that its bytes name.
pub(crate) struct AddressTexts(Vec<Written>);

impl AddressTexts {
    fn new() -> Self {
        let nothing = Written {
            address: [0; 32],
            text: [0; 44],
            length: 0,
        };
        Self(vec![nothing; PLACES])
    }

    /// The base58 of an address.
    pub(crate) fn text(&mut self, address: &[u8; 32]) -> &[u8] {
        let last = address.last_chunk().copied().map_or(0, u64::from_le_bytes);
        let spread = last.wrapping_mul(SPREAD);
        let place = usize::try_from(spread >> (u64::BITS - PLACES.ilog2())).unwrap_or_default();
        let written = &mut self.0[place];
        if written.length == 0 || written.address != *address {
            written.length = five8::encode_32(address, &mut written.text);
            written.address = *address;
        }
        &written.text[..usize::from(written.length)]
    }
}

/// Calls `write` with what this thread remembers.
pub(crate) fn with_address_texts<T>(write: impl FnOnce(&mut AddressTexts) -> T) -> T {
    thread_local! {
        static TEXTS: RefCell<AddressTexts> = RefCell::new(AddressTexts::new());
    }
    TEXTS.with_borrow_mut(write)
}
