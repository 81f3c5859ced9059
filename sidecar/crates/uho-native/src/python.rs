//! The functions and classes of the Python module, each a thin wrapper.

use std::cell::RefCell;
use std::sync::Arc;

use arrow_array::{
    Array as _, FixedSizeBinaryArray, RecordBatch, StringArray, builder::StringBuilder,
};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3_arrow::{PyArray, PyRecordBatch, PySchema};

use crate::copy;
use crate::row_digest::{self, DigestColumn};

pyo3::create_exception!(
    uho_native,
    CopyError,
    pyo3::exceptions::PyValueError,
    "A batch has no COPY form."
);

/// The Python module.
#[pymodule]
mod uho_native {
    #[pymodule_export]
    use super::CopyError;
    #[pymodule_export]
    use super::{
        add_digests, base58, copy_digest, copy_header, copy_trailer, encode_copy, record_digest,
        record_schema,
    };
    #[pymodule_export]
    use crate::certificate::{certificate_fault, merge_certificates};
    #[pymodule_export]
    use crate::decoder::{DecodeError, IdlError, PayloadError, PyDecoded, PyDecoder, PyEventTable};
}

#[pyfunction]
#[pyo3(signature = (*, accounts = false))]
fn record_schema(py: Python<'_>, accounts: bool) -> PyResult<Bound<'_, PyAny>> {
    let schema = if accounts {
        anchor_events::record_schema_with_accounts()
    } else {
        anchor_events::record_schema()
    };
    PySchema::new(schema).into_pyarrow(py)
}

#[pyfunction]
fn record_digest(py: Python<'_>, batch: PyRecordBatch) -> PyResult<String> {
    let batch: RecordBatch = batch.into_inner();
    let digest = py
        .detach(|| anchor_events::record_digest(&batch))
        .map_err(|error| value_error(&error))?;
    Ok(format!("{digest:032x}"))
}

#[pyfunction]
fn add_digests(first: &str, second: &str) -> PyResult<String> {
    let sum = parse_digest(first)?.wrapping_add(parse_digest(second)?);
    Ok(format!("{sum:032x}"))
}

fn parse_digest(text: &str) -> PyResult<u128> {
    let well_formed = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    well_formed
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
        .ok_or_else(|| value_error(&"a digest is 32 hexadecimal characters"))
}

#[pyfunction]
fn copy_header(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &copy::HEADER)
}

#[pyfunction]
fn copy_trailer(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &copy::TRAILER)
}

thread_local! {
    /// Where a thread's rows are encoded: memory that is fresh each time costs a fifth more, for its pages alone.
    static ENCODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A thread keeps no more memory than this between two calls, in bytes.
const KEPT_BYTES: usize = 16 << 20;

#[pyfunction]
fn encode_copy(py: Python<'_>, batch: PyRecordBatch) -> PyResult<Bound<'_, PyBytes>> {
    let batch: RecordBatch = batch.into_inner();
    let mut rows = ENCODED.take();
    rows.clear();
    py.detach(|| copy::encode_rows(&batch, &mut rows))
        .map_err(|error| CopyError::new_err(error.to_string()))?;
    let encoded = PyBytes::new(py, &rows);
    if rows.capacity() <= KEPT_BYTES {
        ENCODED.set(rows);
    }
    Ok(encoded)
}

#[pyfunction]
fn copy_digest(
    py: Python<'_>,
    rows: &[u8],
    columns: Vec<(String, Option<String>)>,
) -> PyResult<String> {
    let columns = columns
        .into_iter()
        .map(|(name, postgres)| DigestColumn::new(name, postgres))
        .collect::<Result<Vec<_>, _>>();
    py.detach(|| row_digest::digest(rows, &columns?))
        .map(|digest| digest.to_string())
        .map_err(|error| CopyError::new_err(error.to_string()))
}

#[pyfunction]
fn base58(py: Python<'_>, array: PyArray) -> PyResult<Py<PyAny>> {
    let (array, _) = array.into_inner();
    let values = array
        .as_any()
        .downcast_ref::<FixedSizeBinaryArray>()
        .filter(|values| matches!(values.value_length(), 32 | 64))
        .ok_or_else(|| value_error("base58 is for values of 32 or 64 bytes"))?;
    let text = py.detach(|| PyArray::from_array_ref(Arc::new(base58_of(values))));
    Ok(text.to_pyarrow(py)?.unbind())
}

fn base58_of(values: &FixedSizeBinaryArray) -> StringArray {
    let mut builder = StringBuilder::with_capacity(values.len(), values.len() * 44);
    for value in values {
        let mut text = [0; 88];
        let length = match value {
            None => {
                builder.append_null();
                continue;
            }
            Some(value) => {
                if let Ok(address) = <&[u8; 32]>::try_from(value) {
                    let mut short = [0; 44];
                    let length = five8::encode_32(address, &mut short);
                    text[..44].copy_from_slice(&short);
                    length
                } else {
                    let mut signature = [0; 64];
                    signature.copy_from_slice(value);
                    five8::encode_64(&signature, &mut text)
                }
            }
        };
        builder.append_value(String::from_utf8_lossy(&text[..usize::from(length)]));
    }
    builder.finish()
}

fn value_error(error: &(impl ToString + ?Sized)) -> PyErr {
    pyo3::exceptions::PyValueError::new_err(error.to_string())
}
