//! The Python module `uho_native`: what the pipeline does to every row, natively.
//!
//! It binds the decoder of [`anchor_events`], the binary COPY encoder of [`copy`], digests and certificates.
//! Arrow data crosses by the Arrow C data interface, without copying; the interpreter is released while
//! batches are decoded and encoded. `uho_native.pyi` beside this crate is the user's documentation.

mod certificate;
pub mod copy;
mod decoder;
mod numeric;
mod python;
