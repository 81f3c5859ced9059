//! Reading an IDL file: both formats, spelled as the newer one and read by `anchor-lang-idl`.
//!
//! Only what events reach is read, and instructions where they are asked for: accounts and types that neither
//! mentions are taken out before the library sees the file, so whatever is odd in them cannot matter. To the
//! library an instruction is an event whose fields are its arguments. Files of the older format are spelled
//! as the newer one here, with the names that the library's own conversion would give: that conversion drops
//! generic parameters and refuses tuple structs. Other gaps that this closes: byte-order marks, files without an
//! address, files of the newer format without its mark, `coption`, a layout given in `events` comes before one
//! of the same name in `types`, and a type that is not supported is refused by event, field and name. What a
//! layout is made of is `layout.rs`' business.

use std::collections::{HashMap, HashSet};

use anchor_lang_idl::types::{Idl, IdlTypeDef};
use heck::SnakeCase as _;
use serde_json::{Map, Value, json};

use super::error::{IdlError, TypeFault};
use super::instruction::{self, Accounts, INSTRUCTION};

/// The largest IDL file, in bytes.
const MOST_IDL_BYTES: usize = 16 << 20;
/// The deepest nesting of types.
pub(super) const MOST_NESTING: usize = 64;
/// How `coption`, which the library does not know, is spelled for it: as a generic type, of a name that no
/// definition can have.
pub(super) const COPTION: &str = "coption<T>";

/// One IDL file and since when it is in force.
#[derive(Clone, Debug)]
pub struct IdlVersion {
    /// The first slot at which it is in force.
    pub from_slot: u64,
    /// What messages and counts call it: its file name.
    pub label: String,
    /// The file's bytes.
    pub json: Vec<u8>,
}

/// An event or instruction as the file defines it, its type still unresolved.
pub(super) struct EventDefinition {
    /// An instruction's begins with [`INSTRUCTION`].
    pub(super) name: String,
    pub(super) discriminator: Vec<u8>,
    pub(super) body: IdlTypeDef,
    /// Of an instruction: what it is given.
    pub(super) accounts: Option<Accounts>,
}

/// The events of a file and the types they reach.
pub(super) struct EventDefinitions {
    pub(super) events: Vec<EventDefinition>,
    pub(super) types: HashMap<String, IdlTypeDef>,
}

/// Reads the events of a file, and its instructions behind them if they are asked for. `program` stands in where the
/// file has no address.
pub(super) fn read(
    program: &[u8; 32],
    version: &IdlVersion,
    instructions: bool,
) -> Result<EventDefinitions, IdlError> {
    let malformed = |reason: String| IdlError::Malformed {
        label: version.label.clone(),
        reason,
    };
    if version.json.len() > MOST_IDL_BYTES {
        return Err(malformed(format!(
            "{} bytes are more than {MOST_IDL_BYTES}",
            version.json.len()
        )));
    }
    let bytes = version
        .json
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(&version.json);
    let file: Value =
        serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let Value::Object(file) = file else {
        return Err(malformed("not a JSON object".to_owned()));
    };

    let mut reader = Reader::new(&file);
    let mut events = Vec::new();
    for event in list(&file, "events") {
        let event = reader.event(event, &version.label)?;
        if instructions && event.name.starts_with(INSTRUCTION) {
            return Err(IdlError::Refused {
                label: version.label.clone(),
                event: event.name,
                field: String::new(),
                fault: TypeFault::ReservedName,
            });
        }
        events.push(event);
    }
    if instructions {
        for told in list(&file, "instructions") {
            events.push(reader.instruction(told, &version.label)?);
        }
    }
    let reduced = reader.reduced_file(program, &events);
    let bytes = serde_json::to_vec(&reduced).map_err(|error| malformed(error.to_string()))?;
    let idl = anchor_lang_idl::convert::convert_idl(&bytes)
        .map_err(|error| malformed(error.to_string()))?;
    Ok(pair(idl, events))
}

/// The bodies of events are at the end of the types, in order.
fn pair(idl: Idl, raw: Vec<RawEvent>) -> EventDefinitions {
    let mut types = idl.types;
    let bodies = types.split_off(types.len().saturating_sub(raw.len()));
    let events = raw
        .into_iter()
        .zip(bodies)
        .map(|(event, body)| EventDefinition {
            name: event.name,
            discriminator: event.discriminator,
            body,
            accounts: event.accounts,
        })
        .collect();
    let types = types
        .into_iter()
        .map(|definition| (definition.name.clone(), definition))
        .collect();
    EventDefinitions { events, types }
}

pub(super) fn list<'a>(object: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    object
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

pub(super) fn list_of<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.as_object().map_or(&[], |object| list(object, key))
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

struct RawEvent {
    name: String,
    discriminator: Vec<u8>,
    /// The body, normalized: a type definition.
    body: Value,
    accounts: Option<Accounts>,
}

/// Collects what events reach, spelled in the newer format.
struct Reader<'a> {
    file: &'a Map<String, Value>,
    older: bool,
    definitions: HashMap<&'a str, &'a Value>,
    /// Names that one list defines twice, differently.
    contradictory: HashSet<&'a str>,
    reached: HashSet<String>,
    types: Vec<Value>,
}

impl<'a> Reader<'a> {
    fn new(file: &'a Map<String, Value>) -> Self {
        let mut definitions = HashMap::new();
        let mut contradictory = HashSet::new();
        // Older files define some types under `accounts`; a type of the same name comes first.
        for key in ["types", "accounts"] {
            let mut within = HashMap::new();
            for definition in list(file, key)
                .iter()
                .filter(|definition| definition.get("type").is_some())
            {
                let Some(name) = text(definition, "name") else {
                    continue;
                };
                if within
                    .insert(name, definition)
                    .is_some_and(|other| other != definition)
                {
                    contradictory.insert(name);
                }
                definitions.entry(name).or_insert(definition);
            }
        }
        // The newer format says so in `metadata.spec`; its first releases did not, but all have an address.
        let spec = file
            .get("metadata")
            .and_then(|metadata| text(metadata, "spec"));
        let older = spec.is_none() && !file.get("address").is_some_and(Value::is_string);
        Self {
            file,
            older,
            definitions,
            contradictory,
            reached: HashSet::new(),
            types: Vec::new(),
        }
    }

    fn event(&mut self, event: &'a Value, label: &str) -> Result<RawEvent, IdlError> {
        let malformed = |reason: &str| IdlError::Malformed {
            label: label.to_owned(),
            reason: reason.to_owned(),
        };
        let name = text(event, "name").ok_or_else(|| malformed("an event has no name"))?;
        let refused = |field: &str, fault| IdlError::Refused {
            label: label.to_owned(),
            event: name.to_owned(),
            field: field.to_owned(),
            fault,
        };
        let discriminator = match event.get("discriminator") {
            None | Some(Value::Null) => default_discriminator(name),
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|_| refused("", TypeFault::Malformed("discriminator".to_owned())))?,
        };
        let inline = event.get("fields").and_then(Value::as_array);
        let (fields, definition) = if let Some(fields) = inline {
            (fields.as_slice(), event)
        } else {
            let definition = *self
                .definitions
                .get(name)
                .ok_or_else(|| refused("", TypeFault::Undefined(name.to_owned())))?;
            self.check(name, definition)
                .map_err(|fault| refused("", fault))?;
            if !list_of(definition, "generics").is_empty() {
                let whole = TypeFault::Unsupported(format!("{name}<…>"));
                return Err(refused("", whole));
            }
            let body = definition.get("type").unwrap_or(&Value::Null);
            if text(body, "kind") != Some("struct") {
                return Err(refused("", TypeFault::NotAStruct));
            }
            (list_of(body, "fields"), definition)
        };
        let mut normalized = Vec::with_capacity(fields.len());
        for (place, field) in fields.iter().enumerate() {
            let named = text(field, "name").map_or_else(|| place.to_string(), str::to_owned);
            normalized.push(
                self.field(field, 0)
                    .map_err(|fault| refused(&named, fault))?,
            );
        }
        let body = json!({"kind": "struct", "fields": normalized});
        Ok(RawEvent {
            name: name.to_owned(),
            discriminator,
            body: respelled(name, definition, &body),
            accounts: None,
        })
    }

    /// An instruction as an event whose fields are its arguments.
    fn instruction(&mut self, told: &'a Value, label: &str) -> Result<RawEvent, IdlError> {
        let stated = text(told, "name").ok_or_else(|| IdlError::Malformed {
            label: label.to_owned(),
            reason: "an instruction has no name".to_owned(),
        })?;
        // The older format writes names in camel case; on chain they are what both become here.
        let named = if self.older {
            stated.to_snake_case()
        } else {
            stated.to_owned()
        };
        let name = format!("{INSTRUCTION}{named}");
        let refused = |field: &str, fault| IdlError::Refused {
            label: label.to_owned(),
            event: name.clone(),
            field: field.to_owned(),
            fault,
        };
        let origin = self.file.get("metadata");
        let origin = origin.and_then(|metadata| text(metadata, "origin"));
        let discriminator =
            instruction::discriminator(told, stated, origin).map_err(|fault| refused("", fault))?;
        let accounts =
            Accounts::read(told, self.older).map_err(|fault| refused("accounts", fault))?;
        let mut normalized = Vec::new();
        for (place, field) in list_of(told, "args").iter().enumerate() {
            let argument = text(field, "name").map_or_else(|| place.to_string(), str::to_owned);
            let field = self.field(field, 0);
            normalized.push(field.map_err(|fault| refused(&argument, fault))?);
        }
        let body = json!({"kind": "struct", "fields": normalized});
        Ok(RawEvent {
            discriminator,
            body: json!({"name": name, "docs": docs(told), "type": body}),
            name,
            accounts: Some(accounts),
        })
    }

    /// The file with nothing but what events reach.
    fn reduced_file(self, program: &[u8; 32], events: &[RawEvent]) -> Value {
        let mut address = [0; 44];
        let length = five8::encode_32(program, &mut address);
        let address = String::from_utf8_lossy(&address[..usize::from(length)]).into_owned();
        let mut types = self.types;
        types.extend(events.iter().map(|event| event.body.clone()));
        let events: Vec<_> = events
            .iter()
            .map(|event| json!({"name": event.name, "discriminator": event.discriminator}))
            .collect();
        let spec = self
            .file
            .get("metadata")
            .and_then(|metadata| text(metadata, "spec"))
            .unwrap_or("0.1.0");
        json!({
            "address": address, "metadata": {"name": "", "version": "", "spec": spec},
            "instructions": [], "types": types, "events": events,
        })
    }

    fn field(&mut self, field: &'a Value, depth: usize) -> Result<Value, TypeFault> {
        if let (Some(name), Some(kind)) = (text(field, "name"), field.get("type")) {
            let kind = self.kind(kind, depth)?;
            let name = if self.older {
                name.to_snake_case()
            } else {
                name.to_owned()
            };
            return Ok(json!({"name": name, "docs": docs(field), "type": kind}));
        }
        self.kind(field, depth)
    }

    fn fields(&mut self, owner: &'a Value, depth: usize) -> Result<Option<Vec<Value>>, TypeFault> {
        let Some(fields) = owner.get("fields").and_then(Value::as_array) else {
            return Ok(None);
        };
        fields
            .iter()
            .map(|field| self.field(field, depth))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// A type as the newer format spells it.
    fn kind(&mut self, kind: &'a Value, depth: usize) -> Result<Value, TypeFault> {
        if depth > MOST_NESTING {
            return Err(TypeFault::TooDeep);
        }
        if let Some(scalar) = kind.as_str() {
            return match scalar {
                "bool" | "u8" | "i8" | "u16" | "i16" | "u32" | "i32" | "f32" | "u64" | "i64"
                | "f64" | "u128" | "i128" | "u256" | "i256" | "bytes" | "string" => {
                    Ok(json!(scalar))
                }
                "pubkey" | "publicKey" => Ok(json!("pubkey")),
                other => Err(TypeFault::Unsupported(other.to_owned())),
            };
        }
        let Some((word, argument)) = kind.as_object().and_then(|object| object.iter().next())
        else {
            return Err(TypeFault::Malformed("type".to_owned()));
        };
        match word.as_str() {
            "option" | "vec" => {
                let inner = self.kind(argument, depth + 1)?;
                Ok(json!({word: inner}))
            }
            "coption" => {
                let inner = self.kind(argument, depth + 1)?;
                let generics = json!([{"kind": "type", "type": inner}]);
                Ok(json!({"defined": {"name": COPTION, "generics": generics}}))
            }
            "array" | "genericLenArray" => {
                let (Some(element), Some(length)) = (argument.get(0), argument.get(1)) else {
                    return Err(TypeFault::Malformed(word.clone()));
                };
                let generic = length.as_str().or_else(|| text(length, "generic"));
                let length = match generic {
                    Some(name) => json!({"generic": name}),
                    None if length.is_u64() => length.clone(),
                    None => return Err(TypeFault::Malformed(word.clone())),
                };
                let element = self.kind(element, depth + 1)?;
                Ok(json!({"array": [element, length]}))
            }
            "generic" => {
                let name = argument.as_str();
                let name = name.ok_or_else(|| TypeFault::Malformed(word.clone()))?;
                Ok(json!({"generic": name}))
            }
            "defined" | "definedWithTypeArgs" => {
                let name = argument.as_str().or_else(|| text(argument, "name"));
                let name = name.ok_or_else(|| TypeFault::Malformed(word.clone()))?;
                let arguments = list_of(argument, "generics").iter();
                let arguments = arguments.chain(list_of(argument, "args"));
                let arguments: Vec<_> = arguments
                    .map(|argument| self.argument(argument, depth + 1))
                    .collect::<Result<_, _>>()?;
                self.definition(name, depth + 1)?;
                Ok(json!({"defined": {"name": name, "generics": arguments}}))
            }
            other => Err(TypeFault::Unsupported(other.to_owned())),
        }
    }

    /// What a generic parameter stands for: a type or a number.
    fn argument(&mut self, argument: &'a Value, depth: usize) -> Result<Value, TypeFault> {
        if let Some(number) = text(argument, "value") {
            return Ok(json!({"kind": "const", "value": number}));
        }
        let kind = match (argument.get("type"), argument.get("generic")) {
            (Some(kind), _) => self.kind(kind, depth)?,
            (None, Some(_)) => self.kind(argument, depth)?,
            (None, None) => return Err(TypeFault::Malformed("generics".to_owned())),
        };
        Ok(json!({"kind": "type", "type": kind}))
    }

    /// Adds a definition and all it reaches.
    fn definition(&mut self, name: &str, depth: usize) -> Result<(), TypeFault> {
        if !self.reached.insert(name.to_owned()) {
            return Ok(());
        }
        if self.reached.len() > super::layout::MOST_NODES {
            return Err(TypeFault::TooManyNodes);
        }
        let definition = *self
            .definitions
            .get(name)
            .ok_or_else(|| TypeFault::Undefined(name.to_owned()))?;
        self.check(name, definition)?;
        let body = definition.get("type").unwrap_or(&Value::Null);
        let body = match text(body, "kind") {
            Some("struct") => {
                let fields = self.fields(body, depth)?.unwrap_or_default();
                json!({"kind": "struct", "fields": fields})
            }
            Some("enum") => {
                let mut variants = Vec::new();
                for variant in list_of(body, "variants") {
                    let mut normalized = Map::new();
                    normalized.insert(
                        "name".to_owned(),
                        variant.get("name").cloned().unwrap_or(Value::Null),
                    );
                    if let Some(fields) = self.fields(variant, depth)? {
                        normalized.insert("fields".to_owned(), Value::Array(fields));
                    }
                    variants.push(Value::Object(normalized));
                }
                json!({"kind": "enum", "variants": variants})
            }
            Some("alias" | "type") => {
                let target = body.get("alias").or_else(|| body.get("value"));
                let target = target.ok_or_else(|| TypeFault::Malformed(name.to_owned()))?;
                let target = self.kind(target, depth)?;
                json!({"kind": "type", "alias": target})
            }
            Some(other) => return Err(TypeFault::Unsupported(other.to_owned())),
            None => return Err(TypeFault::Malformed(name.to_owned())),
        };
        self.types.push(respelled(name, definition, &body));
        Ok(())
    }

    /// Refuses definitions whose bytes nobody describes, or that contradict themselves.
    fn check(&self, name: &str, definition: &Value) -> Result<(), TypeFault> {
        if self.contradictory.contains(name) {
            return Err(TypeFault::Contradictory(name.to_owned()));
        }
        match definition.get("serialization") {
            None | Some(Value::Null) => Ok(()),
            Some(Value::String(word))
                if ["borsh", "bytemuck", "bytemuckunsafe"].contains(&word.as_str()) =>
            {
                Ok(())
            }
            Some(Value::String(word)) => Err(TypeFault::Unsupported(format!(
                "{name}, serialized by {word}"
            ))),
            Some(_) => Err(TypeFault::Unsupported(format!(
                "{name}, serialized in its own way"
            ))),
        }
    }
}

/// A definition with another body, and generic parameters as the newer format has them.
fn respelled(name: &str, definition: &Value, body: &Value) -> Value {
    let generics: Vec<_> = list_of(definition, "generics")
        .iter()
        .map(|parameter| match parameter {
            // Older files do not say which parameters are numbers; the arguments do.
            Value::String(name) => json!({"kind": "type", "name": name}),
            other => other.clone(),
        })
        .collect();
    let mut respelled =
        json!({"name": name, "docs": docs(definition), "generics": generics, "type": body});
    for key in ["serialization", "repr"] {
        if let Some(value) = definition.get(key).filter(|value| !value.is_null()) {
            respelled[key] = value.clone();
        }
    }
    respelled
}

fn docs(owner: &Value) -> Value {
    let lines = list_of(owner, "docs").iter();
    lines.filter(|line| line.is_string()).cloned().collect()
}

/// Anchor's own: the first 8 bytes of SHA-256 over `event:<Name>`.
fn default_discriminator(name: &str) -> Vec<u8> {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(format!("event:{name}"))[..8].to_vec()
}
