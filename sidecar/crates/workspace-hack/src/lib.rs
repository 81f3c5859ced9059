//! Nothing: the features that are shared are in `Cargo.toml`.
