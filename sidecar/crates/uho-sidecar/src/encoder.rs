//! The two forms of a stream behind one type, and the control records both carry.

use arrow_array::RecordBatch;
use bytes::Bytes;
use serde_json::Value;

use crate::arrow_stream;

/// What a row of the stream is; the numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A record.
    Record = 0,
    /// Names the job, first of all.
    Started = 1,
    /// Everything before a slot was sent; carries the stretch's certificate.
    Checkpoint = 2,
    /// Everything was sent; carries the merged certificate. Last of all.
    Done = 3,
    /// The stream failed. Last of all.
    Error = 4,
}

/// The form a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Arrow IPC: records, for the pipeline.
    Arrow,
    /// The same, and what was given to the instructions among them.
    ArrowWithAccounts,
    /// A JSON line per matched transaction, for people and other languages.
    Ndjson,
}

impl Format {
    /// Chooses by the `Accept` header; NDJSON when the client has no wish. None when nothing it accepts is
    /// written here.
    pub(crate) fn negotiate(accept: Option<&str>) -> Option<Self> {
        let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
            return Some(Self::Ndjson);
        };
        accept.split(',').find_map(|choice| {
            let media_type = choice.split(';').next().unwrap_or_default().trim();
            match media_type.to_ascii_lowercase().as_str() {
                "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
                "application/x-ndjson" | "application/*" | "*/*" => Some(Self::Ndjson),
                _ => None,
            }
        })
    }

    /// The form of a stream that has instructions among its records, or of one that has none.
    pub(crate) fn with_instructions(self, asked: bool) -> Self {
        match self {
            Self::Arrow | Self::ArrowWithAccounts if asked => Self::ArrowWithAccounts,
            Self::Arrow | Self::ArrowWithAccounts => Self::Arrow,
            Self::Ndjson => Self::Ndjson,
        }
    }

    /// The media type of the response.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Arrow | Self::ArrowWithAccounts => "application/vnd.apache.arrow.stream",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    /// What precedes everything else.
    pub(crate) fn opening(self) -> Result<Bytes, EncodeError> {
        match self {
            Self::Arrow => Ok(arrow_stream::schema_message(&arrow_stream::PLAIN)?),
            Self::ArrowWithAccounts => {
                Ok(arrow_stream::schema_message(&arrow_stream::WITH_ACCOUNTS)?)
            }
            Self::Ndjson => Ok(Bytes::new()),
        }
    }

    /// A batch of records; NDJSON sends transactions instead.
    pub(crate) fn records(self, batch: &RecordBatch) -> Result<Bytes, EncodeError> {
        match self {
            Self::Arrow => Ok(arrow_stream::record_message(&arrow_stream::PLAIN, batch)?),
            Self::ArrowWithAccounts => Ok(arrow_stream::record_message(
                &arrow_stream::WITH_ACCOUNTS,
                batch,
            )?),
            Self::Ndjson => Ok(Bytes::new()),
        }
    }

    /// A control record; after `done` or `error` the stream is closed.
    pub(crate) fn control(self, kind: Kind, control: &Value) -> Result<Bytes, EncodeError> {
        let mut text = control.to_string();
        let schema = match self {
            Self::Arrow => &arrow_stream::PLAIN,
            Self::ArrowWithAccounts => &arrow_stream::WITH_ACCOUNTS,
            Self::Ndjson => {
                text.push('\n');
                return Ok(text.into());
            }
        };
        let message = arrow_stream::control_message(schema, kind, &text)?;
        if matches!(kind, Kind::Done | Kind::Error) {
            return Ok([message, arrow_stream::end_of_stream()].concat().into());
        }
        Ok(message)
    }
}

/// A stream could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    /// Arrow refused a batch.
    #[error("Arrow stream: {0}")]
    Arrow(#[from] arrow_schema::ArrowError),
    /// A record batch could not be built.
    #[error(transparent)]
    Record(#[from] anchor_events::RecordError),
    /// What the reader handed on cannot be read again.
    #[error("a matched transaction: {0}")]
    Transaction(#[from] old_faithful::Malformed),
    /// A value has no JSON form.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::Format;

    #[test]
    fn the_first_form_written_here_is_chosen() {
        for (accept, expected) in [
            (None, Some(Format::Ndjson)),
            (Some("*/*"), Some(Format::Ndjson)),
            (
                Some("application/vnd.apache.arrow.stream"),
                Some(Format::Arrow),
            ),
            (
                Some("text/html, Application/Vnd.Apache.Arrow.Stream;q=0.9"),
                Some(Format::Arrow),
            ),
            (
                Some("application/x-ndjson, application/vnd.apache.arrow.stream"),
                Some(Format::Ndjson),
            ),
            (Some("text/html"), None),
        ] {
            assert_eq!(Format::negotiate(accept), expected, "{accept:?}");
        }
    }
}
