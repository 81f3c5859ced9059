//! The decoder's Python classes.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anchor_events::{DecodeCounts, DecodePolicy, Decoded, Decoder, IdlVersion, TableKind};
use arrow_array::RecordBatch;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use pyo3_arrow::{PyRecordBatch, PySchema};

pyo3::create_exception!(
    uho_native,
    IdlError,
    pyo3::exceptions::PyValueError,
    "A program's IDL versions make no decoder."
);
pyo3::create_exception!(
    uho_native,
    DecodeError,
    pyo3::exceptions::PyValueError,
    "A batch could not be decoded at all."
);

pyo3::create_exception!(
    uho_native,
    PayloadError,
    pyo3::exceptions::PyValueError,
    "A payload that no IDL version decodes."
);

/// Decodes a program's records by its IDL versions.
#[pyclass(module = "uho_native", name = "Decoder", frozen)]
pub(crate) struct PyDecoder(Arc<Decoder>);

#[pymethods]
impl PyDecoder {
    #[new]
    #[pyo3(signature = (program, versions, *, bytea = false, instructions = false))]
    fn new(
        py: Python<'_>,
        program: &[u8],
        versions: Vec<(u64, String, Vec<u8>)>,
        bytea: bool,
        instructions: bool,
    ) -> PyResult<Self> {
        let program: [u8; 32] = program.try_into().map_err(|_| {
            pyo3::exceptions::PyValueError::new_err(format!(
                "a program id has 32 bytes, this has {}",
                program.len()
            ))
        })?;
        let versions: Vec<_> = versions
            .into_iter()
            .map(|(from_slot, label, json)| IdlVersion {
                from_slot,
                label,
                json,
            })
            .collect();
        let decoder = py.detach(|| {
            if instructions {
                Decoder::with_instructions(program, &versions)
            } else {
                Decoder::new(program, &versions)
            }
        });
        decoder
            .map(|decoder| {
                let decoder = if bytea { decoder.with_bytea() } else { decoder };
                Self(Arc::new(decoder))
            })
            .map_err(|error| IdlError::new_err(error.to_string()))
    }

    fn tables(&self, py: Python<'_>) -> PyResult<Vec<PyEventTable>> {
        let table = |table: &anchor_events::EventTable| {
            Ok(PyEventTable {
                name: table.name.clone(),
                kind: match table.kind {
                    TableKind::Event => "event",
                    TableKind::Instruction => "instruction",
                },
                docs: table.docs.clone(),
                schema: PySchema::new(table.schema.clone())
                    .into_pyarrow(py)?
                    .unbind(),
            })
        };
        self.0.tables().iter().map(table).collect()
    }

    fn describe(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        let events = PyList::empty(py);
        for described in self.0.describe() {
            let event = PyDict::new(py);
            event.set_item("idl", described.idl)?;
            event.set_item("event", described.event)?;
            event.set_item("discriminator", described.discriminator)?;
            let fields = described.fields.into_iter();
            let fields = PyList::new(py, fields.map(|field| (field.name, field.kind)))?;
            event.set_item("fields", fields)?;
            events.append(event)?;
        }
        Ok(events.unbind())
    }

    fn explain(&self, py: Python<'_>, payload: &[u8], slot: u64) -> PyResult<Py<PyDict>> {
        let explained = self
            .0
            .explain(payload, slot)
            .map_err(PayloadError::new_err)?;
        let event = PyDict::new(py);
        event.set_item("event", explained.event)?;
        event.set_item("idl", explained.idl)?;
        event.set_item("fallback", explained.fallback)?;
        event.set_item("discriminator_bytes", explained.discriminator_bytes)?;
        let fields = explained.fields.into_iter();
        let fields = fields.map(|field| (field.name, field.start, field.end, field.json));
        event.set_item("fields", PyList::new(py, fields)?)?;
        Ok(event.unbind())
    }

    #[pyo3(signature = (batch, *, include_failed, ignore))]
    fn decode(
        &self,
        py: Python<'_>,
        batch: PyRecordBatch,
        include_failed: bool,
        ignore: Vec<Vec<u8>>,
    ) -> PyResult<PyDecoded> {
        let batch: RecordBatch = batch.into_inner();
        let policy = DecodePolicy {
            include_failed,
            ignore,
        };
        let decoded = py
            .detach(|| self.0.decode(&batch, &policy))
            .map_err(|error| DecodeError::new_err(error.to_string()))?;
        PyDecoded::new(py, decoded)
    }

    #[pyo3(signature = (batches, *, include_failed, ignore, threads = None))]
    fn decode_all(
        &self,
        py: Python<'_>,
        batches: Vec<PyRecordBatch>,
        include_failed: bool,
        ignore: Vec<Vec<u8>>,
        threads: Option<NonZeroUsize>,
    ) -> PyResult<Vec<PyDecoded>> {
        let batches: Vec<RecordBatch> =
            batches.into_iter().map(PyRecordBatch::into_inner).collect();
        let policy = DecodePolicy {
            include_failed,
            ignore,
        };
        let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let threads = threads.unwrap_or_else(cores);
        let decoded = py
            .detach(|| self.0.decode_all(&batches, &policy, threads))
            .map_err(|error| DecodeError::new_err(error.to_string()))?;
        let decoded = decoded.into_iter();
        decoded.map(|decoded| PyDecoded::new(py, decoded)).collect()
    }
}

/// The table of one event name, or of one instruction.
#[pyclass(module = "uho_native", name = "EventTable", frozen, get_all)]
pub(crate) struct PyEventTable {
    name: String,
    kind: &'static str,
    docs: String,
    schema: Py<PyAny>,
}

#[pymethods]
impl PyEventTable {
    fn __repr__(&self) -> String {
        format!("EventTable({:?})", self.name)
    }
}

/// What a batch of records became.
#[pyclass(module = "uho_native", name = "Decoded", frozen, get_all)]
pub(crate) struct PyDecoded {
    tables: Py<PyList>,
    quarantine: Py<PyAny>,
    counts: Py<PyDict>,
}

impl PyDecoded {
    fn new(py: Python<'_>, decoded: Decoded) -> PyResult<Self> {
        let tables = PyList::empty(py);
        for (table, batch) in decoded.tables {
            tables.append((table, PyRecordBatch::new(batch).into_pyarrow(py)?))?;
        }
        Ok(Self {
            tables: tables.unbind(),
            quarantine: PyRecordBatch::new(decoded.quarantine)
                .into_pyarrow(py)?
                .unbind(),
            counts: counts(py, &decoded.counts)?.unbind(),
        })
    }
}

/// The counts as a dictionary that JSON can hold: what is counted by two names is a list of entries.
fn counts<'py>(py: Python<'py>, counts: &DecodeCounts) -> PyResult<Bound<'py, PyDict>> {
    let dictionary = PyDict::new(py);
    dictionary.set_item("records", counts.records)?;
    dictionary.set_item("twins_folded", counts.twins_folded)?;
    dictionary.set_item("failed_left_out", counts.failed_left_out)?;
    dictionary.set_item("foreign", counts.foreign)?;
    dictionary.set_item("decoded", counts.decoded)?;
    dictionary.set_item("undecodable", counts.undecodable)?;
    let decoded_by = PyList::empty(py);
    for ((event, idl), count) in &counts.decoded_by {
        let entry = PyDict::new(py);
        entry.set_item("event", event)?;
        entry.set_item("idl", idl)?;
        entry.set_item("count", count)?;
        decoded_by.append(entry)?;
    }
    dictionary.set_item("decoded_by", decoded_by)?;
    let undecodable_by = PyList::empty(py);
    for ((discriminator, reason), found) in &counts.undecodable_by {
        let entry = PyDict::new(py);
        entry.set_item("discriminator", discriminator)?;
        entry.set_item("reason", reason)?;
        entry.set_item("count", found.count)?;
        entry.set_item("first_slot", found.first_slot)?;
        entry.set_item("last_slot", found.last_slot)?;
        entry.set_item("least_unexplained", found.least_unexplained)?;
        entry.set_item("most_unexplained", found.most_unexplained)?;
        undecodable_by.append(entry)?;
    }
    dictionary.set_item("undecodable_by", undecodable_by)?;
    let fallback = PyList::empty(py);
    for use_of in &counts.fallback {
        let entry = PyDict::new(py);
        entry.set_item("event", &use_of.event)?;
        entry.set_item("idl", &use_of.idl)?;
        entry.set_item("discriminator", &use_of.discriminator)?;
        entry.set_item("first_slot", use_of.first_slot)?;
        entry.set_item("last_slot", use_of.last_slot)?;
        entry.set_item("count", use_of.count)?;
        fallback.append(entry)?;
    }
    dictionary.set_item("fallback", fallback)?;
    let of = &counts.instructions;
    let instructions = PyDict::new(py);
    for (name, count) in [
        ("records", of.records),
        ("failed_left_out", of.failed_left_out),
        ("foreign", of.foreign),
        ("decoded", of.decoded),
        ("undecodable", of.undecodable),
        ("short_of_accounts", of.short_of_accounts),
        ("unknown_accounts", of.unknown_accounts),
    ] {
        instructions.set_item(name, count)?;
    }
    dictionary.set_item("instructions", instructions)?;
    Ok(dictionary)
}
