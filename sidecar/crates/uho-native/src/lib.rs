//! The Python module `uho_native`: what the pipeline does to every row, natively.
//!
//! It binds the decoder of [`anchor_events`], the binary COPY encoder of [`copy`], the digest of its rows of
//! [`row_digest`], records' digests and certificates.
//! Arrow data crosses by the Arrow C data interface, without copying; the interpreter is released while
//! batches are decoded and encoded. `uho_native.pyi` beside this crate is the user's documentation.

mod address_texts;
mod certificate;
pub mod copy;
mod decoder;
mod jsonb_hash;
mod numeric;
mod postgres_hash;
mod python;
pub mod row_digest;
