//! Types that are copied from memory as they lie there (zero-copy: `bytemuck`), field after field with the
//! padding between them, instead of being written by Borsh.
//!
//! Where a field lies follows from the order of fields and from alignments, as C has them (`repr(C)`): each
//! field begins at a multiple of its alignment, and the whole is padded to a multiple of the largest. Without a
//! `repr` the compiler orders fields as it likes, so such a type is refused. What is aligned to what is the
//! program's machine's business: 8 bytes at most.

use anchor_lang_idl::types::{IdlRepr, IdlSerialization, IdlTypeDef};

use super::error::TypeFault;
use super::layout::{Arena, FieldFault, NodeId};

/// How a type's fields lie in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    packed: bool,
    /// What the whole is aligned to at least.
    least_align: usize,
}

/// How a type lies in memory, if it is copied from there; none for Borsh.
pub(super) fn of(definition: &IdlTypeDef) -> Result<Option<Memory>, TypeFault> {
    match &definition.serialization {
        IdlSerialization::Bytemuck | IdlSerialization::BytemuckUnsafe => {
            order(definition).map(Some)
        }
        _ => Ok(None),
    }
}

/// How a type lies in memory that is part of one copied from there.
pub(super) fn order(definition: &IdlTypeDef) -> Result<Memory, TypeFault> {
    let unordered = || Err(TypeFault::Unordered(definition.name.clone()));
    let modifier = match &definition.repr {
        Some(IdlRepr::C(modifier)) => modifier,
        // Without padding to save there is nothing to reorder for.
        Some(IdlRepr::Rust(modifier)) if modifier.packed => modifier,
        Some(IdlRepr::Transparent) => {
            return Ok(Memory {
                packed: false,
                least_align: 1,
            });
        }
        _ => return unordered(),
    };
    let least_align = modifier.align.unwrap_or(1);
    if !least_align.is_power_of_two() {
        return unordered();
    }
    Ok(Memory {
        packed: modifier.packed,
        least_align,
    })
}

impl Memory {
    /// The alignment of the whole, given the largest of its fields.
    pub(super) fn align(self, largest: usize) -> usize {
        let natural = if self.packed { 1 } else { largest };
        natural.max(self.least_align)
    }

    /// The bytes without meaning before and after each field.
    pub(super) fn padding(
        self,
        owner: &str,
        members: &[(String, NodeId)],
        arena: &Arena,
    ) -> Result<Vec<(usize, usize)>, FieldFault> {
        let mut padding = Vec::with_capacity(members.len());
        let mut offset = 0usize;
        let mut largest = 1;
        for (name, node) in members {
            let Some(align) = arena.align(*node) else {
                let fault = TypeFault::Unplaced {
                    owner: owner.to_owned(),
                    field: name.clone(),
                };
                return Err((name.clone(), fault));
            };
            let align = if self.packed { 1 } else { align };
            largest = largest.max(align);
            let before = to_multiple(offset, align);
            padding.push((before, 0));
            offset = offset
                .saturating_add(before)
                .saturating_add(arena.least(*node));
        }
        if let Some((_, after)) = padding.last_mut() {
            *after = to_multiple(offset, self.align(largest));
        }
        Ok(padding)
    }
}

/// What is missing to a multiple of `align`, a power of two.
fn to_multiple(offset: usize, align: usize) -> usize {
    offset.wrapping_neg() & (align - 1)
}
