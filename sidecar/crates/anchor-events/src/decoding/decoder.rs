//! The decoder: which version reads a payload, and what becomes of every record.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use arrow_array::RecordBatch;

use super::columns::Room;
use super::counts::{DecodeCounts, Fallback, Undecodable};
use super::describe::{self, EventDescription};
use super::error::{DecodeError, IdlError, TypeFault};
use super::explain::{self, Explanation};
use super::idl::{self, IdlVersion};
use super::instruction::KEY_BYTES;
use super::layout::{self, Layout, Shape};
use super::payload::{self, Fault};
use super::quarantine::{self, Quarantined, discriminator};
use super::rows::{INSTRUCTION, LOG, RecordRows};
use super::table::{EventTable, Placement, TableMerge, TableRows};
use super::{fold, json};

/// The most bytes that text, lists and nested values of one decoded batch may take.
const MOST_VARIABLE_BYTES: usize = 1 << 30;
/// What the reason of a quarantined instruction begins with, before its code.
const INSTRUCTION_REASON: &str = "instruction_";
/// Anchor's discriminators have 8 bytes; shorter log data is none of its events.
const DISCRIMINATOR_BYTES: usize = 8;

/// What becomes of records that are not plainly decoded.
#[derive(Clone, Debug, Default)]
pub struct DecodePolicy {
    /// Whether records of failed transactions become rows.
    pub include_failed: bool,
    /// Payload prefixes that are known to be none of the program's events.
    pub ignore: Vec<Vec<u8>>,
}

/// What a batch of records became.
#[derive(Debug)]
pub struct Decoded {
    /// Batches with their place in [`Decoder::tables`]; only tables with rows.
    pub tables: Vec<(usize, RecordBatch)>,
    /// Records no version decodes, by [`quarantine_schema`](super::quarantine_schema).
    pub quarantine: RecordBatch,
    /// What became of every record.
    pub counts: DecodeCounts,
}

/// Decodes a program's records by its IDL versions.
#[derive(Debug)]
pub struct Decoder {
    program: [u8; 32],
    versions: Vec<Version>,
    events: Vec<Event>,
    /// Those of `events` that are events.
    of_events: Index,
    /// Those that are instructions; none where they were not asked for.
    of_instructions: Option<Index>,
    tables: Vec<EventTable>,
}

/// Which event a payload may be, by how it begins.
#[derive(Debug, Default)]
struct Index {
    /// Discriminator → the event of each version.
    by_discriminator: HashMap<Vec<u8>, Vec<Option<usize>>>,
    /// Lengths of discriminators, nearly always 8 alone.
    lengths: Vec<usize>,
}

#[derive(Debug)]
struct Version {
    from_slot: u64,
    label: String,
}

/// An event or instruction of one version.
#[derive(Debug)]
struct Event {
    version: usize,
    layout: Layout,
    placement: Placement,
    /// The first event of equal shape, or itself: what one reads, the other reads alike.
    alike: usize,
}

/// What a payload turned out to be.
enum Reading {
    /// An event, by the version in force or another one.
    Event {
        event: usize,
        fallback: bool,
        /// Whether it is an instruction that was given fewer accounts than the version demands, and no version
        /// demands fewer.
        short: bool,
    },
    Unknown,
    /// No version reads it; the fault of the first that was tried.
    Undecodable {
        event: usize,
        field: Option<usize>,
        fault: Fault,
    },
    /// Two versions that are not in force read it differently.
    Ambiguous {
        first: usize,
        second: usize,
    },
}

impl Reading {
    /// How many bytes of the payload no version could read.
    fn unexplained(&self, payload: &[u8]) -> usize {
        match self {
            Self::Event { .. } | Self::Ambiguous { .. } => 0,
            Self::Unknown => payload.len() - discriminator(payload).len(),
            Self::Undecodable { fault, .. } => fault.unexplained(payload.len()),
        }
    }
}

impl Decoder {
    /// Compiles the events of a program's IDL versions, given in any order.
    pub fn new(program: [u8; 32], versions: &[IdlVersion]) -> Result<Self, IdlError> {
        Self::compiled(program, versions, false)
    }

    /// Compiles the events and the instructions of a program's IDL versions, given in any order.
    pub fn with_instructions(program: [u8; 32], versions: &[IdlVersion]) -> Result<Self, IdlError> {
        Self::compiled(program, versions, true)
    }

    fn compiled(
        program: [u8; 32],
        versions: &[IdlVersion],
        instructions: bool,
    ) -> Result<Self, IdlError> {
        let mut ordered: Vec<&IdlVersion> = versions.iter().collect();
        ordered.sort_by_key(|version| version.from_slot);
        if ordered.is_empty() {
            return Err(IdlError::NoVersions);
        }
        if let Some(pair) = ordered
            .windows(2)
            .find(|pair| pair[0].from_slot == pair[1].from_slot)
        {
            return Err(IdlError::SameSlot {
                first: pair[0].label.clone(),
                second: pair[1].label.clone(),
                from_slot: pair[0].from_slot,
            });
        }
        let mut merge = TableMerge::default();
        let mut events = Vec::new();
        for (place, version) in ordered.iter().enumerate() {
            for layout in compile(&program, version, instructions)? {
                let placement = merge.add(&layout, version.from_slot);
                events.push(Event {
                    version: place,
                    layout,
                    placement,
                    alike: 0,
                });
            }
        }
        let tables = merge.finish(events.iter_mut().map(|event| &mut event.placement));

        let of_events = Index::of(&mut events, ordered.len(), false);
        let of_instructions = instructions.then(|| Index::of(&mut events, ordered.len(), true));
        let versions = ordered
            .into_iter()
            .map(|version| Version {
                from_slot: version.from_slot,
                label: version.label.clone(),
            })
            .collect();
        Ok(Self {
            program,
            versions,
            events,
            of_events,
            of_instructions,
            tables,
        })
    }

    /// Has tables hold addresses and signatures as `bytea`, not as base58 text. Nested ones stay base58.
    #[must_use]
    pub fn with_bytea(mut self) -> Self {
        for table in &mut self.tables {
            table.ask_for_bytea();
        }
        self
    }

    /// One table per event name over all versions, and per instruction, in the order the names first appear.
    pub fn tables(&self) -> &[EventTable] {
        &self.tables
    }

    /// Every event and instruction of every version, versions in ascending order.
    pub fn describe(&self) -> Vec<EventDescription> {
        let describe = |event: &Event| EventDescription {
            idl: self.versions[event.version].label.clone(),
            event: event.layout.shape.event.clone(),
            discriminator: hexadecimal(&event.layout.shape.discriminator),
            fields: describe::fields(&event.layout.shape),
        };
        self.events.iter().map(describe).collect()
    }

    /// Decodes one event's payload as at `slot`, and says where each value comes from; else why it does not decode,
    /// with the version that was tried first.
    pub fn explain(&self, payload: &[u8], slot: u64) -> Result<Explanation, String> {
        let reading = self.read(&self.of_events, payload, slot, None);
        if let Reading::Event {
            event, fallback, ..
        } = reading
        {
            let shape = &self.events[event].layout.shape;
            if let Some(fields) = explain::fields(shape, payload) {
                return Ok(Explanation {
                    event: shape.event.clone(),
                    idl: self.label(event).to_owned(),
                    fallback,
                    discriminator_bytes: shape.discriminator.len(),
                    fields,
                });
            }
        }
        let (_, reason, idl) = self.reason(&reading, false);
        let of_event = match reading {
            Reading::Undecodable { event, .. } => {
                format!(
                    " (event `{}` of {idl})",
                    self.events[event].layout.shape.event
                )
            }
            _ => String::new(),
        };
        Err(format!("{reason}{of_event}"))
    }

    /// Decodes a batch of the program's records. Transactions must be whole in it, which whole blocks are.
    pub fn decode(
        &self,
        records: &RecordBatch,
        policy: &DecodePolicy,
    ) -> Result<Decoded, DecodeError> {
        let rows = RecordRows::new(records)?;
        rows.check_program(&self.program)?;
        let folded = fold::folded(&rows);

        let mut tally = Tally::new(self);
        let mut tables: BTreeMap<usize, TableRows<'_>> = BTreeMap::new();
        let mut quarantined = Vec::new();
        for (row, folded) in folded.into_iter().enumerate() {
            let is_instruction = rows.source(row) == INSTRUCTION;
            tally.counts.records += 1;
            tally.counts.instructions.records += u64::from(is_instruction);
            let payload = rows.payload(row);
            if folded {
                tally.counts.twins_folded += 1;
                continue;
            }
            let index = if is_instruction {
                self.of_instructions.as_ref()
            } else {
                Some(&self.of_events)
            };
            let Some(index) = index else {
                tally.foreign(is_instruction);
                continue;
            };
            if rows.failed.value(row) && !policy.include_failed {
                tally.counts.failed_left_out += 1;
                tally.counts.instructions.failed_left_out += u64::from(is_instruction);
                continue;
            }
            if policy
                .ignore
                .iter()
                .any(|prefix| payload.starts_with(prefix))
            {
                tally.foreign(is_instruction);
                continue;
            }
            let slot = rows.slot.value(row);
            let given = is_instruction.then(|| rows.accounts(row)).flatten();
            let given = given.map(|keys| keys.len() / KEY_BYTES);
            match self.read(index, payload, slot, given) {
                Reading::Event {
                    event,
                    fallback,
                    short,
                } => {
                    tally.decoded(event, fallback.then_some(slot));
                    if is_instruction {
                        let counts = &mut tally.counts.instructions;
                        counts.decoded += 1;
                        counts.short_of_accounts += u64::from(short);
                        counts.unknown_accounts += u64::from(given.is_none());
                    }
                    let Event {
                        layout, placement, ..
                    } = &self.events[event];
                    tables
                        .entry(placement.table)
                        .or_insert_with(|| TableRows {
                            table: &self.tables[placement.table],
                            rows: Vec::new(),
                        })
                        .rows
                        .push((row, layout, placement));
                }
                Reading::Unknown
                    if payload.len() < DISCRIMINATOR_BYTES && rows.source(row) == LOG =>
                {
                    tally.foreign(false);
                }
                reading => {
                    let (code, mut reason, idl) = self.reason(&reading, is_instruction);
                    if is_instruction {
                        reason.insert_str(0, INSTRUCTION_REASON);
                    }
                    let kind = (is_instruction, code);
                    tally.undecodable(payload, kind, slot, reading.unexplained(payload));
                    quarantined.push(Quarantined { row, reason, idl });
                }
            }
        }

        let mut room = Room(MOST_VARIABLE_BYTES);
        let tables = tables
            .into_iter()
            .map(|(table, found)| {
                Ok((table, found.build(&rows, policy.include_failed, &mut room)?))
            })
            .collect::<Result<_, DecodeError>>()?;
        let quarantine = quarantine::build(records, &rows, &quarantined)?;
        Ok(Decoded {
            tables,
            quarantine,
            counts: tally.finish(),
        })
    }

    /// The version in force at a slot.
    fn in_force(&self, slot: u64) -> Option<usize> {
        self.versions
            .partition_point(|version| version.from_slot <= slot)
            .checked_sub(1)
    }

    /// What a payload is. `given`: how many accounts an instruction was given, where that is known. A version that
    /// demands more of them comes after all that do not.
    fn read(&self, index: &Index, payload: &[u8], slot: u64, given: Option<usize>) -> Reading {
        let known: Vec<&Vec<Option<usize>>> = index
            .lengths
            .iter()
            .filter_map(|length| index.by_discriminator.get(payload.get(..*length)?))
            .collect();
        if known.is_empty() {
            return Reading::Unknown;
        }
        // Within one version no discriminator begins like another, so at most one list has an event of it.
        let event_of = |version: usize| known.iter().find_map(|events| events[version]);
        let in_force = self.in_force(slot);
        let is_short = |event: usize| {
            let least = self.events[event].layout.shape.accounts.as_ref();
            given.is_some_and(|given| least.is_some_and(|of| given < of.least))
        };
        let mut first_fault = None;
        let mut short = None;
        let mut failed: Vec<usize> = Vec::new();
        if let Some(event) = in_force.and_then(event_of) {
            match payload::validate(&self.events[event].layout.shape, payload) {
                Ok(()) if is_short(event) => {
                    short = Some(Reading::Event {
                        event,
                        fallback: false,
                        short: true,
                    });
                    failed.push(self.events[event].alike);
                }
                Ok(()) => {
                    return Reading::Event {
                        event,
                        fallback: false,
                        short: false,
                    };
                }
                Err((field, fault)) => {
                    first_fault = Some(Reading::Undecodable {
                        event,
                        field,
                        fault,
                    });
                    failed.push(self.events[event].alike);
                }
            }
        }
        let older = in_force.into_iter().flat_map(|version| (0..version).rev());
        let newer = in_force.map_or(0, |version| version + 1)..self.versions.len();
        let mut exact: Option<usize> = None;
        for event in older.chain(newer).filter_map(event_of) {
            let alike = self.events[event].alike;
            if failed.contains(&alike)
                || exact.is_some_and(|first| self.events[first].alike == alike)
            {
                continue;
            }
            match payload::validate(&self.events[event].layout.shape, payload) {
                Ok(()) if is_short(event) => {
                    short.get_or_insert(Reading::Event {
                        event,
                        fallback: true,
                        short: true,
                    });
                }
                Ok(()) => match exact {
                    None => exact = Some(event),
                    Some(first) if self.differ(first, event, payload, given) => {
                        return Reading::Ambiguous {
                            first,
                            second: event,
                        };
                    }
                    Some(_) => {}
                },
                Err((field, fault)) => {
                    failed.push(alike);
                    first_fault.get_or_insert(Reading::Undecodable {
                        event,
                        field,
                        fault,
                    });
                }
            }
        }
        match (exact, short.or(first_fault)) {
            (Some(event), _) => Reading::Event {
                event,
                fallback: true,
                short: false,
            },
            (None, Some(other)) => other,
            (None, None) => Reading::Unknown,
        }
    }

    /// Whether two events read different things from a payload, or name the accounts given beside it differently.
    fn differ(&self, first: usize, second: usize, payload: &[u8], given: Option<usize>) -> bool {
        let [first, second] = [first, second].map(|event| &self.events[event].layout.shape);
        let names = |of: &'_ Shape| {
            let given = given.unwrap_or(usize::MAX);
            of.accounts.as_ref().map(|accounts| {
                accounts
                    .names(given)
                    .map(|(name, optional)| (name.to_owned(), optional))
                    .collect::<Vec<_>>()
            })
        };
        first.event != second.event
            || json::event(first, payload) != json::event(second, payload)
            || names(first) != names(second)
    }

    fn label(&self, event: usize) -> &str {
        &self.versions[self.events[event].version].label
    }

    /// Code, reason and IDL label of a record for the quarantine.
    fn reason(&self, reading: &Reading, is_instruction: bool) -> (&'static str, String, String) {
        match reading {
            Reading::Undecodable {
                event,
                field,
                fault,
            } => {
                let fields = &self.events[*event].layout.shape.fields;
                let field = field
                    .and_then(|place| fields.get(place))
                    .map(|field| field.name.as_str());
                (
                    fault.code(),
                    fault.sentence(field),
                    self.label(*event).to_owned(),
                )
            }
            Reading::Ambiguous { first, second } => {
                let [first, second] = [self.label(*first), self.label(*second)];
                let reason =
                    format!("ambiguous: {first} and {second} both read every byte, and differ");
                ("ambiguous", reason, first.to_owned())
            }
            Reading::Unknown | Reading::Event { .. } => {
                let code = "unknown_discriminator";
                let what = if is_instruction {
                    "instruction"
                } else {
                    "event"
                };
                (
                    code,
                    format!("{code}: no IDL version has an {what} that begins like this"),
                    String::new(),
                )
            }
        }
    }
}

impl Index {
    /// Indexes events, or instructions, of so many versions, and tells each which first one it is like.
    fn of(events: &mut [Event], versions: usize, instructions: bool) -> Self {
        let mut index = Self::default();
        for place in 0..events.len() {
            let shape = &events[place].layout.shape;
            if shape.accounts.is_some() != instructions {
                continue;
            }
            index.lengths.push(shape.discriminator.len());
            let of_versions = index
                .by_discriminator
                .entry(shape.discriminator.clone())
                .or_insert_with(|| vec![None; versions]);
            let alike = of_versions
                .iter()
                .flatten()
                .find(|other| events[**other].layout.shape == *shape);
            let alike = alike.map_or(place, |other| events[*other].alike);
            of_versions[events[place].version] = Some(place);
            events[place].alike = alike;
        }
        index.lengths.sort_unstable();
        index.lengths.dedup();
        index
    }
}

/// The compiled events of one version, and its instructions where they are asked for.
fn compile(
    program: &[u8; 32],
    version: &IdlVersion,
    instructions: bool,
) -> Result<Vec<Layout>, IdlError> {
    let refused = |event: &str, (field, fault)| IdlError::Refused {
        label: version.label.clone(),
        event: event.to_owned(),
        field,
        fault,
    };
    let definitions = idl::read(program, version, instructions)?;
    let mut budget = layout::MOST_NODES_PER_FILE;
    let mut layouts: Vec<Layout> = Vec::with_capacity(definitions.events.len());
    for event in &definitions.events {
        let compiled = layout::compile(event, &definitions.types, &mut budget);
        layouts.push(compiled.map_err(|fault| refused(&event.name, fault))?);
    }
    let whole = |event: &str, fault| refused(event, (String::new(), fault));
    let mut names: Vec<_> = layouts
        .iter()
        .map(|layout| layout.shape.event.as_str())
        .collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(whole(pair[0], TypeFault::DuplicateEvent));
    }
    for told in [false, true] {
        check_openings(&layouts, told).map_err(|(event, fault)| whole(&event, fault))?;
    }
    Ok(layouts)
}

/// Whether events, or instructions, can be told apart by how they begin.
fn check_openings(layouts: &[Layout], instructions: bool) -> Result<(), (String, TypeFault)> {
    let mut openings: Vec<_> = layouts
        .iter()
        .map(|layout| &layout.shape)
        .filter(|shape| shape.accounts.is_some() == instructions)
        .map(|shape| (shape.discriminator.as_slice(), shape.event.as_str()))
        .collect();
    openings.sort_unstable();
    if let Some((_, event)) = openings
        .first()
        .filter(|(discriminator, _)| discriminator.is_empty())
    {
        return Err(((*event).to_owned(), TypeFault::Discriminator(String::new())));
    }
    // Sorted, a prefix stands right before what it begins.
    if let Some(pair) = openings
        .windows(2)
        .find(|pair| pair[1].0.starts_with(pair[0].0))
    {
        let other = TypeFault::Discriminator(pair[0].1.to_owned());
        return Err((pair[1].1.to_owned(), other));
    }
    Ok(())
}

/// Counts while rows are read; names are put in once, at the end.
struct Tally<'a> {
    decoder: &'a Decoder,
    counts: DecodeCounts,
    decoded: Vec<u64>,
    fallback: BTreeMap<usize, (u64, u64, u64)>,
    /// By discriminator, and whether it is an instruction, and code.
    undecodable: HashMap<(Vec<u8>, (bool, &'static str)), Undecodable>,
}

impl<'a> Tally<'a> {
    fn new(decoder: &'a Decoder) -> Self {
        Self {
            decoder,
            counts: DecodeCounts::default(),
            decoded: vec![0; decoder.events.len()],
            fallback: BTreeMap::new(),
            undecodable: HashMap::new(),
        }
    }

    fn decoded(&mut self, event: usize, fallback_slot: Option<u64>) {
        self.counts.decoded += 1;
        self.decoded[event] += 1;
        if let Some(slot) = fallback_slot {
            let (first, last, count) = self.fallback.entry(event).or_insert((slot, slot, 0));
            *first = slot.min(*first);
            *last = slot.max(*last);
            *count += 1;
        }
    }

    fn foreign(&mut self, is_instruction: bool) {
        self.counts.foreign += 1;
        self.counts.instructions.foreign += u64::from(is_instruction);
    }

    fn undecodable(
        &mut self,
        payload: &[u8],
        kind: (bool, &'static str),
        slot: u64,
        unexplained: usize,
    ) {
        self.counts.undecodable += 1;
        self.counts.instructions.undecodable += u64::from(kind.0);
        let one = Undecodable::one(slot, unexplained as u64);
        self.undecodable
            .entry((discriminator(payload).to_vec(), kind))
            .and_modify(|found| found.add(one))
            .or_insert(one);
    }

    fn finish(self) -> DecodeCounts {
        let mut counts = self.counts;
        for (event, count) in self
            .decoded
            .into_iter()
            .enumerate()
            .filter(|(_, count)| *count > 0)
        {
            let name = self.decoder.events[event].layout.shape.event.clone();
            *counts
                .decoded_by
                .entry((name, self.decoder.label(event).to_owned()))
                .or_default() += count;
        }
        for ((discriminator, (is_instruction, code)), found) in self.undecodable {
            let prefix = if is_instruction {
                INSTRUCTION_REASON
            } else {
                ""
            };
            counts.undecodable_by.insert(
                (hexadecimal(&discriminator), format!("{prefix}{code}")),
                found,
            );
        }
        for (event, (first_slot, last_slot, count)) in self.fallback {
            let shape = &self.decoder.events[event].layout.shape;
            counts.fallback.push(Fallback {
                event: shape.event.clone(),
                idl: self.decoder.label(event).to_owned(),
                discriminator: hexadecimal(&shape.discriminator),
                first_slot,
                last_slot,
                count,
            });
        }
        counts
    }
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
