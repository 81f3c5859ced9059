//! Event layouts: an event's type, compiled once into a flat program that payloads are read by.
//!
//! Every type is a node of one arena; a node knows the least number of bytes it takes and, where any bytes
//! are a valid value, its fixed size. Neighbouring fields of fixed size become one step, so validating most
//! events is a comparison of lengths. Bounds on depth, size and recursion are kept here, so that reading can
//! rely on them.

use std::collections::{HashMap, HashSet};

use anchor_lang_idl::types::{
    IdlArrayLen, IdlDefinedFields, IdlEnumVariant, IdlField, IdlType, IdlTypeDef, IdlTypeDefTy,
};

use super::error::TypeFault;
use super::idl::{EventDefinition, MOST_NESTING};
use super::json;

/// The most nodes of one event.
pub(super) const MOST_NODES: usize = 10_000;
/// The most nodes of all events of a file.
pub(super) const MOST_NODES_PER_FILE: usize = 200_000;
/// The longest name, in bytes. Bounds how much JSON text a payload byte can become.
const LONGEST_NAME: usize = 255;

/// Place of a node in its arena.
pub(super) type NodeId = usize;

/// Types without parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    U128,
    I128,
    F32,
    F64,
    Pubkey,
    String,
    Bytes,
}

impl Scalar {
    /// The least size in bytes.
    fn least(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 | Self::String | Self::Bytes => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::U128 | Self::I128 => 16,
            Self::Pubkey => 32,
        }
    }

    /// The size, where any bytes of it are a value.
    fn plain(self) -> Option<usize> {
        match self {
            Self::Bool | Self::String | Self::Bytes => None,
            other => Some(other.least()),
        }
    }
}

/// A type.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Node {
    Scalar(Scalar),
    Option(NodeId),
    Vec(NodeId),
    Array(NodeId, usize),
    Fields(Fields),
    Enum(Vec<Variant>),
}

/// What a struct or variant holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fields {
    /// JSON keys (`"name":`, escaped) and types.
    Named(Vec<(Box<str>, NodeId)>),
    Tuple(Vec<NodeId>),
}

/// An enum's variant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// JSON key (`"Name":`, escaped).
    pub(super) key: Box<str>,
    pub(super) fields: Fields,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    node: Node,
    least: usize,
    plain: Option<usize>,
}

/// The nodes of one event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arena(Vec<Entry>);

impl Arena {
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.0[id].node
    }

    /// The least bytes of a value.
    pub(super) fn least(&self, id: NodeId) -> usize {
        self.0[id].least
    }

    /// The bytes of a value, where any are valid.
    pub(super) fn plain(&self, id: NodeId) -> Option<usize> {
        self.0[id].plain
    }
}

/// A field of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FieldLayout {
    pub(super) name: String,
    pub(super) node: NodeId,
}

/// What validating does, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// So many bytes, whatever they are, from this field on.
    Plain { bytes: usize, first_field: usize },
    /// A field to look at.
    Field(usize),
}

/// What payload bytes mean: equal for versions that agree.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) event: String,
    pub(super) discriminator: Vec<u8>,
    pub(super) fields: Vec<FieldLayout>,
    pub(super) steps: Vec<Step>,
    pub(super) arena: Arena,
}

/// A compiled event of one version.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) shape: Shape,
    /// The event's documentation.
    pub(super) docs: String,
    /// The fields' documentation, in order.
    pub(super) field_docs: Vec<String>,
}

/// A fault and the field it is in.
pub(super) type FieldFault = (String, TypeFault);

/// Compiles an event. `budget` is what the file may still spend on nodes.
pub(super) fn compile<'a>(
    event: &'a EventDefinition,
    types: &'a HashMap<String, IdlTypeDef>,
    budget: &mut usize,
) -> Result<Layout, FieldFault> {
    let mut compiler = Compiler {
        types,
        arena: Arena::default(),
        path: Vec::new(),
        budget,
    };
    let whole = |fault| (String::new(), fault);
    check_name(&event.name).map_err(whole)?;
    let IdlTypeDefTy::Struct { fields } = &event.body.ty else {
        return Err(whole(TypeFault::NotAStruct));
    };
    let mut layouts = Vec::new();
    let mut field_docs = Vec::new();
    let mut add = |name: String, docs: &[String], kind: &'a IdlType| {
        let result = check_name(&name).and_then(|()| compiler.kind(kind, 1));
        match result {
            Ok(node) => layouts.push(FieldLayout { name, node }),
            Err(fault) => return Err((name, fault)),
        }
        field_docs.push(docs.join("\n"));
        Ok(())
    };
    match fields {
        None => {}
        Some(IdlDefinedFields::Named(fields)) => {
            for field in fields {
                add(field.name.clone(), &field.docs, &field.ty)?;
            }
        }
        Some(IdlDefinedFields::Tuple(kinds)) => {
            for (place, kind) in kinds.iter().enumerate() {
                add(place.to_string(), &[], kind)?;
            }
        }
    }
    let arena = compiler.arena;
    let mut names = HashSet::new();
    if let Some(twice) = layouts
        .iter()
        .find(|field| !names.insert(field.name.as_str()))
    {
        return Err((twice.name.clone(), TypeFault::DuplicateField));
    }
    let shape = Shape {
        event: event.name.clone(),
        discriminator: event.discriminator.clone(),
        steps: steps(&layouts, &arena),
        fields: layouts,
        arena,
    };
    Ok(Layout {
        shape,
        docs: event.body.docs.join("\n"),
        field_docs,
    })
}

fn steps(fields: &[FieldLayout], arena: &Arena) -> Vec<Step> {
    let mut steps = Vec::new();
    for (place, field) in fields.iter().enumerate() {
        match (arena.plain(field.node), steps.last_mut()) {
            (Some(size), Some(Step::Plain { bytes, .. })) => *bytes = bytes.saturating_add(size),
            (Some(size), _) => steps.push(Step::Plain {
                bytes: size,
                first_field: place,
            }),
            (None, _) => steps.push(Step::Field(place)),
        }
    }
    steps
}

fn check_name(name: &str) -> Result<(), TypeFault> {
    if name.len() > LONGEST_NAME {
        Err(TypeFault::LongName)
    } else {
        Ok(())
    }
}

struct Compiler<'a> {
    types: &'a HashMap<String, IdlTypeDef>,
    arena: Arena,
    /// Definitions being expanded.
    path: Vec<&'a str>,
    budget: &'a mut usize,
}

impl<'a> Compiler<'a> {
    fn push(
        &mut self,
        node: Node,
        least: usize,
        plain: Option<usize>,
    ) -> Result<NodeId, TypeFault> {
        self.spend(1)?;
        self.arena.0.push(Entry { node, least, plain });
        Ok(self.arena.0.len() - 1)
    }

    fn spend(&mut self, nodes: usize) -> Result<(), TypeFault> {
        *self.budget = self
            .budget
            .checked_sub(nodes)
            .ok_or(TypeFault::TooManyNodes)?;
        if self.arena.0.len() >= MOST_NODES {
            Err(TypeFault::TooManyNodes)
        } else {
            Ok(())
        }
    }

    fn kind(&mut self, kind: &'a IdlType, depth: usize) -> Result<NodeId, TypeFault> {
        if depth > MOST_NESTING {
            return Err(TypeFault::TooDeep);
        }
        let scalar = match kind {
            IdlType::Bool => Scalar::Bool,
            IdlType::U8 => Scalar::U8,
            IdlType::I8 => Scalar::I8,
            IdlType::U16 => Scalar::U16,
            IdlType::I16 => Scalar::I16,
            IdlType::U32 => Scalar::U32,
            IdlType::I32 => Scalar::I32,
            IdlType::F32 => Scalar::F32,
            IdlType::U64 => Scalar::U64,
            IdlType::I64 => Scalar::I64,
            IdlType::F64 => Scalar::F64,
            IdlType::U128 => Scalar::U128,
            IdlType::I128 => Scalar::I128,
            IdlType::Bytes => Scalar::Bytes,
            IdlType::String => Scalar::String,
            IdlType::Pubkey => Scalar::Pubkey,
            IdlType::Option(inner) => {
                let inner = self.kind(inner, depth + 1)?;
                return self.push(Node::Option(inner), 1, None);
            }
            IdlType::Vec(element) => {
                let element = self.element(element, depth)?;
                return self.push(Node::Vec(element), 4, None);
            }
            IdlType::Array(element, IdlArrayLen::Value(length)) => {
                let element = self.element(element, depth)?;
                let least = self.arena.least(element).saturating_mul(*length);
                let plain = self
                    .arena
                    .plain(element)
                    .map(|size| size.saturating_mul(*length));
                return self.push(Node::Array(element, *length), least, plain);
            }
            IdlType::Defined { name, generics } if generics.is_empty() => {
                return self.defined(name, depth);
            }
            other => return Err(TypeFault::Unsupported(format!("{other:?}"))),
        };
        self.push(Node::Scalar(scalar), scalar.least(), scalar.plain())
    }

    fn element(&mut self, element: &'a IdlType, depth: usize) -> Result<NodeId, TypeFault> {
        let element = self.kind(element, depth + 1)?;
        if self.arena.least(element) == 0 {
            Err(TypeFault::Sizeless)
        } else {
            Ok(element)
        }
    }

    fn defined(&mut self, name: &'a str, depth: usize) -> Result<NodeId, TypeFault> {
        if self.path.contains(&name) {
            return Err(TypeFault::Recursive(name.to_owned()));
        }
        let definition = self
            .types
            .get(name)
            .ok_or_else(|| TypeFault::Undefined(name.to_owned()))?;
        self.path.push(name);
        let node = match &definition.ty {
            IdlTypeDefTy::Type { alias } => self.kind(alias, depth + 1)?,
            IdlTypeDefTy::Struct { fields } => {
                let (fields, least, plain) = self.fields(fields.as_ref(), depth)?;
                self.push(Node::Fields(fields), least, plain)?
            }
            IdlTypeDefTy::Enum { variants } => self.variants(variants, depth)?,
        };
        self.path.pop();
        Ok(node)
    }

    fn variants(
        &mut self,
        variants: &'a [IdlEnumVariant],
        depth: usize,
    ) -> Result<NodeId, TypeFault> {
        let mut compiled = Vec::with_capacity(variants.len());
        let mut least = usize::MAX;
        for variant in variants {
            check_name(&variant.name)?;
            // A variant is no node, but it takes room like one.
            self.spend(1)?;
            let (fields, size, _) = self.fields(variant.fields.as_ref(), depth)?;
            least = least.min(size);
            compiled.push(Variant {
                key: json::key(&variant.name),
                fields,
            });
        }
        let least = if compiled.is_empty() {
            1
        } else {
            least.saturating_add(1)
        };
        self.push(Node::Enum(compiled), least, None)
    }

    fn fields(
        &mut self,
        fields: Option<&'a IdlDefinedFields>,
        depth: usize,
    ) -> Result<(Fields, usize, Option<usize>), TypeFault> {
        let mut least = 0usize;
        let mut plain = Some(0usize);
        let mut add = |compiler: &mut Self, kind: &'a IdlType| -> Result<NodeId, TypeFault> {
            let node = compiler.kind(kind, depth + 1)?;
            least = least.saturating_add(compiler.arena.least(node));
            plain = plain
                .zip(compiler.arena.plain(node))
                .map(|(sum, size)| sum.saturating_add(size));
            Ok(node)
        };
        let compiled = match fields {
            None => Fields::Named(Vec::new()),
            Some(IdlDefinedFields::Named(fields)) => {
                let mut named = Vec::with_capacity(fields.len());
                for IdlField { name, ty, .. } in fields {
                    check_name(name)?;
                    named.push((json::key(name), add(self, ty)?));
                }
                Fields::Named(named)
            }
            Some(IdlDefinedFields::Tuple(kinds)) => Fields::Tuple(
                kinds
                    .iter()
                    .map(|kind| add(self, kind))
                    .collect::<Result<_, _>>()?,
            ),
        };
        Ok((compiled, least, plain))
    }
}
