//! One payload, explained: which event it is, and which of its bytes each field was read from.
//!
//! For people who look at a single payload; batches are decoded without any of this.

use super::json;
use super::layout::Shape;
use super::payload::Cursor;

/// A decoded payload, and where its values come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The event's name, as in the IDL.
    pub event: String,
    /// Label of the IDL version that reads it.
    pub idl: String,
    /// Whether that version is not the one in force at the slot.
    pub fallback: bool,
    /// Bytes of the discriminator, from the start of the payload.
    pub discriminator_bytes: usize,
    /// The fields, in order: they take every byte behind the discriminator.
    pub fields: Vec<FieldBytes>,
}

/// A field's value and the bytes it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldBytes {
    /// The field's name, as in the IDL.
    pub name: String,
    /// Its first byte, from the start of the payload.
    pub start: usize,
    /// The first byte behind it.
    pub end: usize,
    /// Its value as JSON, as nested values are written.
    pub json: String,
}

/// The fields of a payload that is valid for the layout; none if it is not.
pub(super) fn fields(shape: &Shape, payload: &[u8]) -> Option<Vec<FieldBytes>> {
    let mut cursor = Cursor::new(payload, shape.discriminator.len());
    let mut fields = Vec::with_capacity(shape.fields.len());
    for field in &shape.fields {
        let start = cursor.position();
        let mut json = String::new();
        json::write(&mut json, &shape.arena, field.node, &mut cursor).ok()?;
        fields.push(FieldBytes {
            name: field.name.clone(),
            start,
            end: cursor.position(),
            json,
        });
    }
    Some(fields)
}
