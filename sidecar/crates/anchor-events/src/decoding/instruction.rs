//! Instructions as an IDL defines them: how their data begins, and the accounts they are given.
//!
//! Arguments are fields like an event's. What belongs here is what an event does not have.

use std::collections::{HashMap, HashSet};

use heck::SnakeCase as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::error::TypeFault;
use super::idl::{list_of, text};
use super::layout::LONGEST_NAME;

/// What the names of instructions begin with wherever they stand beside those of events.
pub(super) const INSTRUCTION: &str = "instruction:";

/// The most accounts that an instruction can name: more places than bytes of a transaction cannot be given.
const MOST_ACCOUNTS: usize = 1_232;

/// Bytes of an account's key.
pub(super) const KEY_BYTES: usize = 32;

/// An account that an instruction names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    /// Its name; of one in a group, the group's name, `_`, and its own; of the second of a name, that and `_2`.
    pub(super) name: String,
    pub(super) docs: String,
    /// Whether the program's own id stands for no account.
    pub(super) optional: bool,
}

/// The accounts of an instruction, groups taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Accounts {
    pub(super) named: Vec<Account>,
    /// How many a caller has to give: optional ones at the end may be left out.
    pub(super) least: usize,
}

impl Accounts {
    /// Reads an instruction's accounts.
    pub(super) fn read(instruction: &Value, older: bool) -> Result<Self, TypeFault> {
        let mut named = Vec::new();
        collect(instruction, "", older, &mut named)?;
        let mut taken = HashSet::new();
        let mut uses: HashMap<String, usize> = HashMap::new();
        for account in &mut named {
            let mut name = account.name.clone();
            while !taken.insert(name.clone()) {
                let nth = uses.entry(account.name.clone()).or_insert(1);
                *nth += 1;
                name = format!("{}_{nth}", account.name);
            }
            account.name = name;
        }
        let required = named.iter().rposition(|account| !account.optional);
        Ok(Self {
            least: required.map_or(0, |last| last + 1),
            named,
        })
    }

    /// What is read from an instruction that was given so many accounts, as far as a name matters.
    pub(super) fn names(&self, given: usize) -> impl Iterator<Item = (&str, bool)> {
        let named = self.named.iter().take(given);
        named.map(|account| (account.name.as_str(), account.optional))
    }
}

fn collect(
    owner: &Value,
    prefix: &str,
    older: bool,
    named: &mut Vec<Account>,
) -> Result<(), TypeFault> {
    for account in list_of(owner, "accounts") {
        let name =
            text(account, "name").ok_or_else(|| TypeFault::Malformed("accounts".to_owned()))?;
        let name = if older {
            name.to_snake_case()
        } else {
            name.to_owned()
        };
        let name = format!("{prefix}{name}");
        if name.len() > LONGEST_NAME {
            return Err(TypeFault::LongName);
        }
        if account.get("accounts").is_some() {
            collect(account, &format!("{name}_"), older, named)?;
            continue;
        }
        if named.len() >= MOST_ACCOUNTS {
            return Err(TypeFault::TooManyAccounts);
        }
        let flag = |key| account.get(key).and_then(Value::as_bool) == Some(true);
        let docs = list_of(account, "docs").iter().filter_map(Value::as_str);
        named.push(Account {
            name,
            docs: docs.collect::<Vec<_>>().join("\n"),
            optional: flag("optional") || flag("isOptional"),
        });
    }
    Ok(())
}

/// The bytes that an instruction's data begins with: those that the file states, else Anchor's own, the first 8 bytes
/// of SHA-256 over `global:<name>`. `origin` is what made the file: Shank's numbers are the bytes themselves.
pub(super) fn discriminator(
    instruction: &Value,
    name: &str,
    origin: Option<&str>,
) -> Result<Vec<u8>, TypeFault> {
    let malformed = |key: &str| TypeFault::Malformed(key.to_owned());
    if let Some(stated) = instruction
        .get("discriminator")
        .filter(|value| !value.is_null())
    {
        return serde_json::from_value(stated.clone()).map_err(|_| malformed("discriminator"));
    }
    let number = instruction.get("discriminant");
    if let Some(stated) = number.and_then(|number| number.get("bytes")) {
        return serde_json::from_value(stated.clone()).map_err(|_| malformed("discriminant"));
    }
    if let Some(number) = number
        && origin == Some("shank")
    {
        let value = number.get("value").and_then(Value::as_u64);
        let width = match text(number, "type") {
            Some("u8") => 1,
            Some("u16") => 2,
            Some("u32") => 4,
            Some("u64") => 8,
            _ => return Err(malformed("discriminant")),
        };
        let value = value.ok_or_else(|| malformed("discriminant"))?;
        let bytes = value.to_le_bytes();
        let (bytes, rest) = bytes.split_at(width);
        if rest.iter().any(|byte| *byte != 0) {
            return Err(malformed("discriminant"));
        }
        return Ok(bytes.to_vec());
    }
    let name = name.to_snake_case();
    Ok(Sha256::digest(format!("global:{name}"))[..8].to_vec())
}
