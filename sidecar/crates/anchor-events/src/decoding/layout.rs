//! Event layouts: an event's type, compiled once into a flat program that payloads are read by.
//!
//! Every type is a node of one arena; a node knows the least number of bytes it takes and, where any bytes
//! are a valid value, its fixed size. Neighbouring fields of fixed size become one step, so validating most
//! events is a comparison of lengths. Bounds on depth, size and recursion are kept here, so that reading can
//! rely on them. A generic argument is compiled once and shared by all its uses; every use still counts, with
//! all that the argument is made of. What padding a type copied from memory has is `memory.rs`' business.

use std::collections::{HashMap, HashSet};

use anchor_lang_idl::types::{
    IdlArrayLen, IdlDefinedFields, IdlEnumVariant, IdlGenericArg, IdlType, IdlTypeDef,
    IdlTypeDefGeneric, IdlTypeDefTy,
};

use super::error::TypeFault;
use super::idl::{COPTION, EventDefinition, MOST_NESTING};
use super::instruction::{Accounts, INSTRUCTION};
use super::json;
use super::memory::{self, Memory};

/// The most nodes of one event.
pub(super) const MOST_NODES: usize = 10_000;
/// The most nodes of all events of a file.
pub(super) const MOST_NODES_PER_FILE: usize = 200_000;
/// The longest name, in bytes. Bounds how much JSON text a payload byte can become.
pub(super) const LONGEST_NAME: usize = 255;

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
    U256,
    I256,
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
            Self::U256 | Self::I256 | Self::Pubkey => 32,
        }
    }

    fn entry(self) -> Entry {
        let fixed = !matches!(self, Self::String | Self::Bytes);
        Entry {
            least: self.least(),
            fixed,
            plain: fixed && self != Self::Bool,
            align: match self {
                Self::String | Self::Bytes => None,
                Self::Pubkey => Some(1),
                // Programs run where nothing is aligned to more, wide integers included.
                other => Some(other.least().min(8)),
            },
            ..Entry::new(Node::Scalar(self))
        }
    }
}

/// A type.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Node {
    Scalar(Scalar),
    Option(NodeId),
    /// A tag of 32 bits, and the value's bytes whether it is there or not.
    Coption(NodeId),
    Vec(NodeId),
    Array(NodeId, usize),
    Fields(Fields),
    Enum(Vec<Variant>),
    /// Bytes that mean nothing around a value.
    Padded {
        before: usize,
        inner: NodeId,
        after: usize,
    },
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
    /// The least bytes of a value.
    least: usize,
    /// Whether every value takes the least.
    fixed: bool,
    /// Whether the size is fixed and any bytes are a value.
    plain: bool,
    /// What its address is a multiple of, where it can be copied from memory.
    align: Option<usize>,
    /// Nodes that it is made of, shared ones at each use.
    weight: usize,
    /// Nodes on the longest way down.
    height: usize,
}

impl Entry {
    fn new(node: Node) -> Self {
        Self {
            node,
            least: 0,
            fixed: false,
            plain: false,
            align: None,
            weight: 1,
            height: 1,
        }
    }
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
        self.0[id].plain.then_some(self.0[id].least)
    }

    /// What a value's address is a multiple of; none for what cannot be copied from memory.
    pub(super) fn align(&self, id: NodeId) -> Option<usize> {
        self.0[id].align
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
    /// Of an instruction: what it is given.
    pub(super) accounts: Option<Accounts>,
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
        spent: 0,
        budget,
    };
    let whole = |fault| (String::new(), fault);
    check_name(event.name.strip_prefix(INSTRUCTION).unwrap_or(&event.name)).map_err(whole)?;
    let IdlTypeDefTy::Struct { fields } = &event.body.ty else {
        return Err(whole(TypeFault::NotAStruct));
    };
    let no_generics = Scope::new();
    let memory = memory::of(&event.body).map_err(whole)?;
    let at = At {
        depth: 0,
        memory: memory.is_some(),
        scope: &no_generics,
    };
    let members = compiler.members(&event.name, memory, fields.as_ref(), at)?;
    let layouts: Vec<_> = members
        .into_iter()
        .map(|(name, node)| FieldLayout { name, node })
        .collect();
    let field_docs = match fields {
        Some(IdlDefinedFields::Named(fields)) => {
            fields.iter().map(|field| field.docs.join("\n")).collect()
        }
        _ => vec![String::new(); layouts.len()],
    };
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
        accounts: event.accounts.clone(),
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

/// What a generic parameter stands for.
#[derive(Clone, Copy)]
enum Bound {
    Type(NodeId),
    Number(usize),
}

/// The generic parameters of a definition.
type Scope<'a> = HashMap<&'a str, Bound>;

/// Where a type is met.
#[derive(Clone, Copy)]
struct At<'s, 'a> {
    depth: usize,
    /// Whether what it is part of is copied from memory.
    memory: bool,
    scope: &'s Scope<'a>,
}

impl At<'_, '_> {
    fn deeper(self) -> Self {
        Self {
            depth: self.depth + 1,
            ..self
        }
    }
}

struct Compiler<'a> {
    types: &'a HashMap<String, IdlTypeDef>,
    arena: Arena,
    /// Definitions being expanded.
    path: Vec<&'a str>,
    /// Nodes of the event so far, shared ones at each use.
    spent: usize,
    budget: &'a mut usize,
}

impl<'a> Compiler<'a> {
    /// Adds a node. `parts` are those that it is made of.
    fn push(&mut self, mut entry: Entry, parts: &[NodeId]) -> Result<NodeId, TypeFault> {
        self.spend(1)?;
        for part in parts {
            let Entry { weight, height, .. } = self.arena.0[*part];
            entry.weight = entry.weight.saturating_add(weight);
            entry.height = entry.height.max(height + 1);
        }
        self.arena.0.push(entry);
        Ok(self.arena.0.len() - 1)
    }

    fn spend(&mut self, nodes: usize) -> Result<(), TypeFault> {
        self.spent = self.spent.saturating_add(nodes);
        let left = self.budget.checked_sub(nodes);
        *self.budget = left.ok_or(TypeFault::TooManyNodes)?;
        if self.spent > MOST_NODES {
            Err(TypeFault::TooManyNodes)
        } else {
            Ok(())
        }
    }

    fn kind(&mut self, kind: &'a IdlType, at: At<'_, 'a>) -> Result<NodeId, TypeFault> {
        if at.depth > MOST_NESTING {
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
            IdlType::U256 => Scalar::U256,
            IdlType::I256 => Scalar::I256,
            IdlType::Bytes => Scalar::Bytes,
            IdlType::String => Scalar::String,
            IdlType::Pubkey => Scalar::Pubkey,
            IdlType::Option(inner) => {
                let inner = self.kind(inner, at.deeper())?;
                let option = Entry {
                    least: 1,
                    ..Entry::new(Node::Option(inner))
                };
                return self.push(option, &[inner]);
            }
            IdlType::Vec(element) => {
                let element = self.element(element, at)?;
                let list = Entry {
                    least: 4,
                    ..Entry::new(Node::Vec(element))
                };
                return self.push(list, &[element]);
            }
            IdlType::Array(element, length) => {
                let length = array_length(length, at.scope)?;
                let element = self.element(element, at)?;
                let of = &self.arena.0[element];
                let array = Entry {
                    least: of.least.saturating_mul(length),
                    fixed: of.fixed,
                    plain: of.plain,
                    align: of.align,
                    ..Entry::new(Node::Array(element, length))
                };
                return self.push(array, &[element]);
            }
            IdlType::Generic(name) => return self.generic(name, at),
            IdlType::Defined { name, generics } if name == COPTION => {
                return self.coption(generics, at);
            }
            IdlType::Defined { name, generics } => return self.defined(name, generics, at),
            other => return Err(TypeFault::Unsupported(format!("{other:?}"))),
        };
        self.push(scalar.entry(), &[])
    }

    fn element(&mut self, element: &'a IdlType, at: At<'_, 'a>) -> Result<NodeId, TypeFault> {
        let element = self.kind(element, at.deeper())?;
        if self.arena.least(element) == 0 {
            Err(TypeFault::Sizeless)
        } else {
            Ok(element)
        }
    }

    /// A use of a generic parameter: the argument, once more.
    fn generic(&mut self, name: &str, at: At<'_, 'a>) -> Result<NodeId, TypeFault> {
        let Some(Bound::Type(node)) = at.scope.get(name) else {
            return Err(TypeFault::Undefined(name.to_owned()));
        };
        let Entry { weight, height, .. } = self.arena.0[*node];
        if at.depth.saturating_add(height) > MOST_NESTING {
            return Err(TypeFault::TooDeep);
        }
        self.spend(weight)?;
        Ok(*node)
    }

    fn coption(
        &mut self,
        arguments: &'a [IdlGenericArg],
        at: At<'_, 'a>,
    ) -> Result<NodeId, TypeFault> {
        let [IdlGenericArg::Type { ty }] = arguments else {
            return Err(TypeFault::Malformed("coption".to_owned()));
        };
        let inner = self.kind(ty, at.deeper())?;
        let of = &self.arena.0[inner];
        if !of.fixed {
            return Err(TypeFault::UnsizedCoption);
        }
        let coption = Entry {
            least: of.least.saturating_add(4),
            fixed: true,
            ..Entry::new(Node::Coption(inner))
        };
        self.push(coption, &[inner])
    }

    fn defined(
        &mut self,
        name: &'a str,
        arguments: &'a [IdlGenericArg],
        at: At<'_, 'a>,
    ) -> Result<NodeId, TypeFault> {
        if self.path.contains(&name) {
            return Err(TypeFault::Recursive(name.to_owned()));
        }
        let definition = self
            .types
            .get(name)
            .ok_or_else(|| TypeFault::Undefined(name.to_owned()))?;
        let own = memory::of(definition)?;
        let memory = at.memory || own.is_some();
        let scope = self.scope(definition, arguments, At { memory, ..at })?;
        let at = At {
            depth: at.depth,
            memory,
            scope: &scope,
        };
        self.path.push(name);
        let node = match &definition.ty {
            IdlTypeDefTy::Type { alias } => self.kind(alias, at.deeper())?,
            IdlTypeDefTy::Struct { fields } => {
                let memory = if memory {
                    Some(memory::order(definition)?)
                } else {
                    None
                };
                let members = self
                    .members(name, memory, fields.as_ref(), at)
                    .map_err(|(_, fault)| fault)?;
                self.structure(fields.as_ref(), members, memory)?
            }
            IdlTypeDefTy::Enum { variants } => self.variants(name, variants, at)?,
        };
        self.path.pop();
        Ok(node)
    }

    /// What the generic parameters of a definition stand for at one use of it.
    fn scope(
        &mut self,
        definition: &'a IdlTypeDef,
        arguments: &'a [IdlGenericArg],
        at: At<'_, 'a>,
    ) -> Result<Scope<'a>, TypeFault> {
        if definition.generics.len() != arguments.len() {
            return Err(TypeFault::Arguments {
                name: definition.name.clone(),
                parameters: definition.generics.len(),
                arguments: arguments.len(),
            });
        }
        let mut scope = Scope::with_capacity(arguments.len());
        for (parameter, argument) in definition.generics.iter().zip(arguments) {
            let (IdlTypeDefGeneric::Type { name } | IdlTypeDefGeneric::Const { name, .. }) =
                parameter;
            let bound = match argument {
                IdlGenericArg::Const { value } => number(value, at.scope)?,
                // Older files do not say whether a parameter that is passed on is a type or a number.
                IdlGenericArg::Type {
                    ty: IdlType::Generic(name),
                } if matches!(at.scope.get(name.as_str()), Some(Bound::Number(_))) => {
                    number(name, at.scope)?
                }
                IdlGenericArg::Type { ty } => Bound::Type(self.kind(ty, at.deeper())?),
            };
            scope.insert(name, bound);
        }
        Ok(scope)
    }

    fn variants(
        &mut self,
        name: &str,
        variants: &'a [IdlEnumVariant],
        at: At<'_, 'a>,
    ) -> Result<NodeId, TypeFault> {
        let mut compiled = Vec::with_capacity(variants.len());
        let mut parts = Vec::new();
        let mut least: Option<usize> = None;
        for variant in variants {
            check_name(&variant.name)?;
            // A variant is no node, but it takes room like one.
            self.spend(1)?;
            let members = self
                .members(name, None, variant.fields.as_ref(), at)
                .map_err(|(_, fault)| fault)?;
            let sizes = members.iter().map(|(_, node)| self.arena.least(*node));
            let size = sizes.fold(0, usize::saturating_add);
            least = Some(least.map_or(size, |least| least.min(size)));
            parts.extend(members.iter().map(|(_, node)| *node));
            compiled.push(Variant {
                key: json::key(&variant.name),
                fields: fields_of(variant.fields.as_ref(), members),
            });
        }
        let mut entry = Entry {
            least: least.unwrap_or(0).saturating_add(1),
            ..Entry::new(Node::Enum(compiled))
        };
        entry.weight = entry.weight.saturating_add(variants.len());
        self.push(entry, &parts)
    }

    fn structure(
        &mut self,
        fields: Option<&'a IdlDefinedFields>,
        members: Vec<(String, NodeId)>,
        memory: Option<Memory>,
    ) -> Result<NodeId, TypeFault> {
        let parts: Vec<_> = members.iter().map(|(_, node)| *node).collect();
        let of = || parts.iter().map(|node| &self.arena.0[*node]);
        let entry = Entry {
            least: of().fold(0, |sum, part| sum.saturating_add(part.least)),
            fixed: of().all(|part| part.fixed),
            plain: of().all(|part| part.plain),
            align: memory
                .map(|memory| memory.align(of().filter_map(|part| part.align).max().unwrap_or(1))),
            ..Entry::new(Node::Fields(fields_of(fields, members)))
        };
        self.push(entry, &parts)
    }

    /// The fields of a struct or variant, padded where it is copied from memory.
    fn members(
        &mut self,
        owner: &str,
        memory: Option<Memory>,
        fields: Option<&'a IdlDefinedFields>,
        at: At<'_, 'a>,
    ) -> Result<Vec<(String, NodeId)>, FieldFault> {
        let mut members = Vec::new();
        let mut add = |name: String, kind: &'a IdlType| {
            match check_name(&name).and_then(|()| self.kind(kind, at.deeper())) {
                Ok(node) => members.push((name, node)),
                Err(fault) => return Err((name, fault)),
            }
            Ok(())
        };
        match fields {
            None => {}
            Some(IdlDefinedFields::Named(fields)) => {
                for field in fields {
                    add(field.name.clone(), &field.ty)?;
                }
            }
            Some(IdlDefinedFields::Tuple(kinds)) => {
                for (place, kind) in kinds.iter().enumerate() {
                    add(place.to_string(), kind)?;
                }
            }
        }
        let Some(memory) = memory else {
            return Ok(members);
        };
        let padding = memory.padding(owner, &members, &self.arena)?;
        for ((name, node), (before, after)) in members.iter_mut().zip(padding) {
            if before > 0 || after > 0 {
                let of = &self.arena.0[*node];
                let padded = Entry {
                    least: of.least.saturating_add(before).saturating_add(after),
                    fixed: of.fixed,
                    plain: of.plain,
                    align: of.align,
                    ..Entry::new(Node::Padded {
                        before,
                        inner: *node,
                        after,
                    })
                };
                *node = self
                    .push(padded, &[*node])
                    .map_err(|fault| (name.clone(), fault))?;
            }
        }
        Ok(members)
    }
}

fn fields_of(fields: Option<&IdlDefinedFields>, members: Vec<(String, NodeId)>) -> Fields {
    if matches!(fields, Some(IdlDefinedFields::Tuple(_))) {
        return Fields::Tuple(members.into_iter().map(|(_, node)| node).collect());
    }
    let named = members.into_iter();
    Fields::Named(named.map(|(name, node)| (json::key(&name), node)).collect())
}

fn array_length(length: &IdlArrayLen, scope: &Scope<'_>) -> Result<usize, TypeFault> {
    let name = match length {
        IdlArrayLen::Value(length) => return Ok(*length),
        IdlArrayLen::Generic(name) => name,
    };
    match number(name, scope)? {
        Bound::Number(length) => Ok(length),
        Bound::Type(_) => Err(TypeFault::NoNumber(name.clone())),
    }
}

/// A number as it is written, or as a generic parameter that stands for one.
fn number(text: &str, scope: &Scope<'_>) -> Result<Bound, TypeFault> {
    if let Some(bound @ Bound::Number(_)) = scope.get(text) {
        return Ok(*bound);
    }
    let digits = text.replace('_', "");
    let parsed = digits.strip_suffix("usize").unwrap_or(&digits).parse();
    parsed
        .map(Bound::Number)
        .map_err(|_| TypeFault::NoNumber(text.to_owned()))
}
