//! The certificate of a whole stream, from those of its stretches.
//!
//! The reader certifies the structure of each stretch and of the whole; what was sent is counted here.
//! The two must agree: the stretches, merged, have to say what the reader says of the whole, except for
//! the tail, which only the whole has.

use old_faithful::{Certificate, CertificateError, Pubkey};
use serde_json::Value;

use crate::collector::Oddities;

/// What a stretch's certificate cannot know: the block after the range.
const OF_THE_WHOLE_ONLY: [&str; 2] = ["tail", "nextBlock"];

/// Why a stream's certificate does not hold.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The scan ended early.
    #[error("the scan ended without a certificate")]
    Missing,
    /// Two stretches do not fit, or the whole does not hold.
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    /// The stretches do not add up to the whole.
    #[error(
        "certificate field `{field}`: the stretches add up to {stretches}, the whole says {whole}"
    )]
    Sum {
        /// The field, as in the certificate's JSON.
        field: String,
        /// Its value by merging.
        stretches: Value,
        /// Its value by the reader.
        whole: Value,
    },
    /// A certificate has no JSON form.
    #[error("certificate: {0}")]
    Json(#[from] serde_json::Error),
}

/// The stretches so far.
#[derive(Default)]
pub(crate) struct Proof {
    merged: Option<Certificate>,
    oddities: Oddities,
}

/// A proved stream.
pub(crate) struct Concluded {
    /// The whole range's certificate, with what was sent.
    pub(crate) certificate: Certificate,
    /// What was odd, over the whole range.
    pub(crate) oddities: Oddities,
    /// Records sent, of all programs.
    pub(crate) records: u64,
}

impl Proof {
    /// Adds the next stretch.
    pub(crate) fn add(&mut self, stretch: Certificate, oddities: &Oddities) -> Result<(), Broken> {
        self.oddities.merge(oddities);
        self.merged = Some(match self.merged.take() {
            None => stretch,
            Some(before) => before.merge(stretch)?,
        });
        Ok(())
    }

    /// Compares the stretches with the reader's certificate of the whole and completes that one.
    pub(crate) fn conclude(
        self,
        mut certificate: Certificate,
        programs: &[Pubkey],
    ) -> Result<Concluded, Broken> {
        let mut merged = self.merged.ok_or(Broken::Missing)?;
        let mut records = 0;
        for program in programs {
            let sent = *merged.program_mut(program);
            let counts = certificate.program_mut(program);
            counts.with_records = sent.with_records;
            counts.truncated = sent.truncated;
            counts.records = sent.records;
            counts.digest = sent.digest;
            records += sent.records;
        }
        compare(&merged, &certificate)?;
        certificate.holds()?;
        Ok(Concluded {
            certificate,
            oddities: self.oddities,
            records,
        })
    }
}

fn compare(merged: &Certificate, whole: &Certificate) -> Result<(), Broken> {
    let (merged, whole) = (serde_json::to_value(merged)?, serde_json::to_value(whole)?);
    let (Value::Object(merged), Value::Object(whole)) = (merged, whole) else {
        return Err(Broken::Missing);
    };
    for (field, value) in whole {
        let stretches = merged.get(&field).cloned().unwrap_or_default();
        if stretches != value && !OF_THE_WHOLE_ONLY.contains(&field.as_str()) {
            return Err(Broken::Sum {
                field,
                stretches,
                whole: value,
            });
        }
    }
    Ok(())
}
