//! The sidecar: an HTTP service that reads programs' records from the archive and streams them, in
//! order, with certificates that nothing is missing.
//!
//! [`app`] is the whole service as an Axum router and needs no socket; [`serve`] puts it behind one,
//! with signals. A backfill is one POST whose response is the stream; closing the response ends the
//! job. **A stream that ends without a `done` record failed**, however clean the end of the response.
//!
//! ```
//! use uho_sidecar::{Service, ServiceOptions, app};
//!
//! let service = Service::open(ServiceOptions {
//!     archives: vec![("mainnet".to_owned(), "https://files.old-faithful.net".to_owned())],
//!     ..ServiceOptions::default()
//! })?;
//! let router = app(service);
//! # let _ = router;
//! # Ok::<(), old_faithful::ArchiveError>(())
//! ```

#![forbid(unsafe_code)]

mod api;
mod arrow_stream;
mod collector;
pub mod config;
mod encoder;
mod error;
mod estimate;
mod jobs;
mod learned;
mod memory;
mod metrics;
mod ndjson;
mod progress;
mod proof;
mod redact;
mod request;
mod scan;
mod serve;
mod service;
mod statistics;
mod stream;

pub use api::app;
pub use redact::redact;
pub use scan::scan;
pub use serve::serve;
pub use service::{Secret, Service, ServiceOptions};
