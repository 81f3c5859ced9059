//! Certificates in Python: JSON in, JSON out, by the arithmetic of [`old_faithful`].

use old_faithful::Certificate;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

fn parse(text: &str) -> PyResult<Certificate> {
    serde_json::from_str(text)
        .map_err(|error| PyValueError::new_err(format!("not a certificate: {error}")))
}

#[pyfunction]
pub(crate) fn merge_certificates(first: &str, second: &str) -> PyResult<String> {
    let merged = parse(first)?
        .merge(parse(second)?)
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    serde_json::to_string(&merged).map_err(|error| PyValueError::new_err(error.to_string()))
}

#[pyfunction]
pub(crate) fn certificate_fault(certificate: &str) -> PyResult<Option<String>> {
    Ok(parse(certificate)?
        .holds()
        .err()
        .map(|error| error.to_string()))
}
