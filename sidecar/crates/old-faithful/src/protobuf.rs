//! The little of protocol buffers that transaction metadata needs: fields, one after another, in place.

use crate::error::Malformed;

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// An integer, a bool or an enum.
    Number(u64),
    /// Bytes, text, a message or packed numbers.
    Bytes(&'a [u8]),
    /// Eight or four bytes of fixed size, which no field here uses.
    Fixed,
}

impl<'a> Value<'a> {
    /// The bytes of a field that must have some.
    pub(crate) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed::new("a field of the metadata should be bytes", 0)),
        }
    }

    /// The number of a field that must have one.
    pub(crate) fn number(self) -> Result<u64, Malformed> {
        match self {
            Self::Number(number) => Ok(number),
            _ => Err(Malformed::new(
                "a field of the metadata should be a number",
                0,
            )),
        }
    }
}

/// Iterates over the fields of a message: their numbers and values. Ends after the first fault.
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn fault<T>(&self, reason: &'static str) -> Result<T, Malformed> {
        Err(Malformed::new(reason, self.at))
    }

    #[inline(always)]
    fn varint(&mut self) -> Result<u64, Malformed> {
        // Nearly all numbers, lengths and tags are a single byte.
        if let Some(&byte @ ..0x80) = self.bytes.get(self.at) {
            self.at += 1;
            return Ok(u64::from(byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for place in 0..10 {
            let Some(&byte) = self.bytes.get(self.at) else {
                return self.fault("the metadata ends inside a number");
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        self.fault("a number of the metadata has more than 64 bits")
    }

    #[inline(always)]
    fn take(&mut self, count: u64) -> Result<&'a [u8], Malformed> {
        let end = usize::try_from(count)
            .ok()
            .and_then(|count| self.at.checked_add(count));
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => self.fault("the metadata ends inside a field"),
        }
    }

    #[inline(always)]
    fn field(&mut self) -> Result<(u64, Value<'a>), Malformed> {
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 {
            return self.fault("a field of the metadata has no number");
        }
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return self.fault("a field of the metadata has an unknown type"),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}
