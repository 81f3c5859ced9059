//! What a client may ask for, checked field by field.
//!
//! The body is read by hand and not by a derived deserializer, because a refusal names the field and the
//! fault in words a person can act on. Unknown fields are refused: a misspelt `includeFailed` must not
//! silently mean its default.

use old_faithful::{Pubkey, SLOTS_PER_EPOCH, SlotRange, Verify};
use serde_json::{Map, Value};
use uuid::Uuid;

/// Programs one stream may carry.
const PROGRAMS_AT_MOST: usize = 64;
/// Slots between checkpoints when the request does not say.
const CHECKPOINT_SLOTS: u64 = 1_000;
/// Slots are JSON numbers, which other languages read as doubles: beyond 2⁵³ they would be rounded.
const SLOT_AT_MOST: u64 = 1 << 53;
const JOB_ID_AT_MOST: usize = 64;
/// Longer text is no address; measuring its base58 exactly would cost time for nothing.
const ADDRESS_TEXT_AT_MOST: usize = 88;

const FIELDS: [&str; 10] = [
    "network",
    "programIds",
    "programId",
    "instructionProgramIds",
    "startSlot",
    "endSlot",
    "includeFailed",
    "jobId",
    "checkpointSlots",
    "verify",
];

/// One field that is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {fault}")]
pub(crate) struct Fault {
    /// The field as the client wrote it.
    pub(crate) field: String,
    /// What was expected, and what came.
    pub(crate) fault: String,
}

impl Fault {
    pub(crate) fn new(field: impl Into<String>, fault: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            fault: fault.into(),
        }
    }
}

/// A checked request for a backfill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackfillRequest {
    /// Name of an archive this sidecar serves.
    pub(crate) network: String,
    /// Programs, without duplicates, in the order of the request.
    pub(crate) programs: Vec<Pubkey>,
    /// Those of `programs` whose instructions are records too.
    pub(crate) instructions_of: Vec<Pubkey>,
    /// Slots to read.
    pub(crate) range: SlotRange,
    /// Whether records of failed transactions are sent.
    pub(crate) include_failed: bool,
    /// The job's id: the client's, or a new one.
    pub(crate) job_id: String,
    /// Checkpoints fall at multiples of this.
    pub(crate) checkpoint_slots: u64,
    /// Which CIDs are recomputed.
    pub(crate) verify: Verify,
}

impl BackfillRequest {
    /// Reads a request body; `networks` are the names served here, `slots_at_most` is how long a range may be.
    pub(crate) fn parse(body: &[u8], networks: &[&str], slots_at_most: u64) -> Result<Self, Fault> {
        let fields = object(body, &FIELDS)?;
        let range = range(&fields)?;
        if range.end - range.start > slots_at_most {
            return Err(Fault::new(
                "endSlot",
                format!(
                    "a backfill reads at most {slots_at_most} slots here, this range has {}; ask for it in parts",
                    range.end - range.start
                ),
            ));
        }
        let checkpoint_slots = integer(&fields, "checkpointSlots")?.unwrap_or(CHECKPOINT_SLOTS);
        if !(1..=SLOTS_PER_EPOCH).contains(&checkpoint_slots) {
            return Err(Fault::new(
                "checkpointSlots",
                format!("must be between 1 and {SLOTS_PER_EPOCH}, got {checkpoint_slots}"),
            ));
        }
        let programs = programs(&fields)?;
        Ok(Self {
            network: network(&fields, networks)?,
            instructions_of: instructions_of(&fields, &programs)?,
            programs,
            range,
            include_failed: boolean(&fields, "includeFailed")?.unwrap_or(false),
            job_id: job_id(&fields)?,
            checkpoint_slots,
            verify: verify(&fields)?,
        })
    }
}

/// The fields of a body that is a JSON object and has no others than `known`.
pub(crate) fn object(body: &[u8], known: &[&str]) -> Result<Map<String, Value>, Fault> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Fault::new("body", format!("expected JSON, {error}")))?;
    let Value::Object(fields) = value else {
        return Err(Fault::new(
            "body",
            format!("expected an object, got {}", kind(&value)),
        ));
    };
    if let Some(unknown) = fields.keys().find(|name| !known.contains(&name.as_str())) {
        let shown: String = unknown.chars().take(40).collect();
        return Err(Fault::new(
            shown,
            format!("unknown field; known are {}", known.join(", ")),
        ));
    }
    Ok(fields)
}

pub(crate) fn range(fields: &Map<String, Value>) -> Result<SlotRange, Fault> {
    let start = required(integer(fields, "startSlot")?, "startSlot")?;
    let end = required(integer(fields, "endSlot")?, "endSlot")?;
    if end > SLOT_AT_MOST {
        return Err(Fault::new("endSlot", "must be at most 2^53"));
    }
    if start >= end {
        return Err(Fault::new("startSlot", "must be below endSlot"));
    }
    Ok(SlotRange { start, end })
}

pub(crate) fn network(fields: &Map<String, Value>, networks: &[&str]) -> Result<String, Fault> {
    let expected = || format!("expected one of {}", networks.join(", "));
    match (text(fields, "network")?, networks) {
        (Some(name), _) if networks.contains(&name) => Ok(name.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        (Some(_), _) => Err(Fault::new(
            "network",
            format!("not served here; {}", expected()),
        )),
        (None, _) => Err(Fault::new("network", format!("missing; {}", expected()))),
    }
}

pub(crate) fn programs(fields: &Map<String, Value>) -> Result<Vec<Pubkey>, Fault> {
    match (present(fields, "programId"), present(fields, "programIds")) {
        (Some(_), Some(_)) => Err(Fault::new("programId", "give this or programIds, not both")),
        (None, None) => Err(Fault::new(
            "programIds",
            "missing; expected 1 to 64 program ids",
        )),
        (Some(one), None) => Ok(vec![address(one, "programId")?]),
        (None, Some(Value::Array(many))) => {
            if many.is_empty() || many.len() > PROGRAMS_AT_MOST {
                return Err(Fault::new(
                    "programIds",
                    format!(
                        "expected 1 to {PROGRAMS_AT_MOST} program ids, got {}",
                        many.len()
                    ),
                ));
            }
            let mut programs = Vec::with_capacity(many.len());
            for (place, one) in many.iter().enumerate() {
                let field = format!("programIds[{place}]");
                let program = address(one, &field)?;
                if let Some(first) = programs.iter().position(|other| *other == program) {
                    return Err(Fault::new(
                        field,
                        format!("the same as programIds[{first}]"),
                    ));
                }
                programs.push(program);
            }
            Ok(programs)
        }
        (None, Some(other)) => Err(Fault::new(
            "programIds",
            format!("expected an array, got {}", kind(other)),
        )),
    }
}

/// Programs whose instructions are asked for: none unless the request says so.
pub(crate) fn instructions_of(
    fields: &Map<String, Value>,
    programs: &[Pubkey],
) -> Result<Vec<Pubkey>, Fault> {
    const NAME: &str = "instructionProgramIds";
    let asked = match present(fields, NAME) {
        None => return Ok(Vec::new()),
        Some(Value::Array(asked)) => asked,
        Some(other) => {
            return Err(Fault::new(
                NAME,
                format!("expected an array, got {}", kind(other)),
            ));
        }
    };
    let mut found = Vec::with_capacity(asked.len());
    for (place, one) in asked.iter().enumerate() {
        let field = format!("{NAME}[{place}]");
        let program = address(one, &field)?;
        if !programs.contains(&program) {
            return Err(Fault::new(field, "is none of the programs asked for"));
        }
        if found.contains(&program) {
            return Err(Fault::new(field, "is there twice"));
        }
        found.push(program);
    }
    Ok(found)
}

fn address(value: &Value, field: &str) -> Result<Pubkey, Fault> {
    let Value::String(text) = value else {
        return Err(Fault::new(
            field,
            format!("expected base58 text, got {}", kind(value)),
        ));
    };
    parse_address(text).map_err(|fault| Fault::new(field, fault))
}

/// Reads an address; the error says what is wrong with it.
pub(crate) fn parse_address(text: &str) -> Result<Pubkey, String> {
    if text.len() > ADDRESS_TEXT_AT_MOST {
        return Err(format!(
            "expected 32 bytes in base58, got {} characters",
            text.len()
        ));
    }
    let bytes = bs58::decode(text)
        .into_vec()
        .map_err(|_| "expected base58".to_owned())?;
    let length = bytes.len();
    Pubkey::try_from(bytes).map_err(|_| format!("expected 32 bytes, got {length}"))
}

fn job_id(fields: &Map<String, Value>) -> Result<String, Fault> {
    let Some(id) = text(fields, "jobId")? else {
        return Ok(Uuid::new_v4().to_string());
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > JOB_ID_AT_MOST || !id.bytes().all(allowed) {
        return Err(Fault::new(
            "jobId",
            format!("expected 1 to {JOB_ID_AT_MOST} characters of A-Z, a-z, 0-9, `.`, `_`, `-`"),
        ));
    }
    Ok(id.to_owned())
}

fn verify(fields: &Map<String, Value>) -> Result<Verify, Fault> {
    match text(fields, "verify")? {
        None | Some("full") => Ok(Verify::Full),
        Some("matched") => Ok(Verify::Matched),
        Some("off") => Ok(Verify::Off),
        Some(_) => Err(Fault::new("verify", "expected full, matched or off")),
    }
}

/// A field that is there and not null.
fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

fn required<T>(value: Option<T>, name: &str) -> Result<T, Fault> {
    value.ok_or_else(|| Fault::new(name, "missing"))
}

pub(crate) fn integer(fields: &Map<String, Value>, name: &str) -> Result<Option<u64>, Fault> {
    let Some(value) = present(fields, name) else {
        return Ok(None);
    };
    let got = || match value {
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    };
    value.as_u64().map(Some).ok_or_else(|| {
        Fault::new(
            name,
            format!("expected a whole number from 0, got {}", got()),
        )
    })
}

fn boolean(fields: &Map<String, Value>, name: &str) -> Result<Option<bool>, Fault> {
    match present(fields, name) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(Fault::new(
            name,
            format!("expected true or false, got {}", kind(other)),
        )),
    }
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Fault> {
    match present(fields, name) {
        None => Ok(None),
        Some(Value::String(value)) => Ok(Some(value)),
        Some(other) => Err(Fault::new(
            name,
            format!("expected text, got {}", kind(other)),
        )),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use old_faithful::Verify;
    use serde_json::{Value, json};

    use super::BackfillRequest;

    const PROGRAM: &str = "pAMMBay6oceH9fJKBRHGP5D4bD4sWpmSwMn52FMfXEA";

    fn parse(changes: &Value) -> Result<BackfillRequest, String> {
        let mut body =
            json!({"network": "sim", "programId": PROGRAM, "startSlot": 10, "endSlot": 20});
        for (name, value) in changes.as_object().unwrap() {
            body[name] = value.clone();
        }
        BackfillRequest::parse(body.to_string().as_bytes(), &["mainnet", "sim"], 1_000)
            .map_err(|fault| fault.to_string())
    }

    #[test]
    #[allow(clippy::too_many_lines)] // One table; splitting it would hide a missing case.
    fn every_refusal_names_the_field_and_the_fault() {
        let other = "whirLbMiicVdio4qvUfM5KAg6Ct8VwpYzGff3uctyCc";
        let none = Value::Null;
        for (changes, expected) in [
            (
                json!({"programId": &PROGRAM[..42]}),
                "programId: expected 32 bytes, got 31",
            ),
            (json!({"programId": "0OIl"}), "programId: expected base58"),
            (
                json!({"programId": "1".repeat(100)}),
                "programId: expected 32 bytes in base58, got 100 characters",
            ),
            (
                json!({"programId": 5}),
                "programId: expected base58 text, got a number",
            ),
            (
                json!({"programId": none}),
                "programIds: missing; expected 1 to 64 program ids",
            ),
            (
                json!({"programIds": [other]}),
                "programId: give this or programIds, not both",
            ),
            (
                json!({"programId": none, "programIds": []}),
                "programIds: expected 1 to 64 program ids, got 0",
            ),
            (
                json!({"programId": none, "programIds": vec![other; 65]}),
                "programIds: expected 1 to 64 program ids, got 65",
            ),
            (
                json!({"programId": none, "programIds": [other, PROGRAM, other]}),
                "programIds[2]: the same as programIds[0]",
            ),
            (
                json!({"programId": none, "programIds": [other, "11"]}),
                "programIds[1]: expected 32 bytes, got 2",
            ),
            (
                json!({"programId": none, "programIds": other}),
                "programIds: expected an array, got text",
            ),
            (
                json!({"instructionProgramIds": PROGRAM}),
                "instructionProgramIds: expected an array, got text",
            ),
            (
                json!({"instructionProgramIds": [PROGRAM, other]}),
                "instructionProgramIds[1]: is none of the programs asked for",
            ),
            (
                json!({"instructionProgramIds": [PROGRAM, PROGRAM]}),
                "instructionProgramIds[1]: is there twice",
            ),
            (json!({"startSlot": 20}), "startSlot: must be below endSlot"),
            (
                json!({"startSlot": -1}),
                "startSlot: expected a whole number from 0, got -1",
            ),
            (
                json!({"startSlot": 1.5}),
                "startSlot: expected a whole number from 0, got 1.5",
            ),
            (
                json!({"startSlot": "1"}),
                "startSlot: expected a whole number from 0, got text",
            ),
            (json!({"endSlot": none}), "endSlot: missing"),
            (
                json!({"endSlot": u64::MAX}),
                "endSlot: must be at most 2^53",
            ),
            (
                json!({"endSlot": 1_011}),
                "endSlot: a backfill reads at most 1000 slots here, this range has 1001; ask for it in parts",
            ),
            (
                json!({"includeFailed": "yes"}),
                "includeFailed: expected true or false, got text",
            ),
            (
                json!({"checkpointSlots": 0}),
                "checkpointSlots: must be between 1 and 432000, got 0",
            ),
            (
                json!({"verify": "some"}),
                "verify: expected full, matched or off",
            ),
            (
                json!({"jobId": "a b"}),
                "jobId: expected 1 to 64 characters of A-Z, a-z, 0-9, `.`, `_`, `-`",
            ),
            (
                json!({"network": "devnet"}),
                "network: not served here; expected one of mainnet, sim",
            ),
            (
                json!({"network": none}),
                "network: missing; expected one of mainnet, sim",
            ),
        ] {
            assert_eq!(parse(&changes).unwrap_err(), expected, "{changes}");
        }
        let unknown = parse(&json!({"includeFaild": true})).unwrap_err();
        assert!(
            unknown.starts_with("includeFaild: unknown field; known are network,"),
            "{unknown}"
        );
        let array = BackfillRequest::parse(b"[]", &["mainnet"], 1).unwrap_err();
        assert_eq!(array.to_string(), "body: expected an object, got an array");
        assert!(
            BackfillRequest::parse(b"{", &["mainnet"], 1)
                .unwrap_err()
                .to_string()
                .starts_with("body: expected JSON")
        );
    }

    #[test]
    fn defaults_are_those_documented() {
        let request = parse(&json!({})).unwrap();
        assert_eq!((request.range.start, request.range.end), (10, 20));
        assert!(!request.include_failed);
        assert!(request.instructions_of.is_empty());
        assert_eq!(request.checkpoint_slots, 1000);
        assert_eq!(request.verify, Verify::Full);
        assert_eq!(request.job_id.len(), 36);
        let body = json!({"programId": PROGRAM, "startSlot": 0, "endSlot": 1}).to_string();
        assert_eq!(
            BackfillRequest::parse(body.as_bytes(), &["only"], 1)
                .unwrap()
                .network,
            "only"
        );
    }
}
