//! The `#[interface]` attribute.
#![forbid(unsafe_code)]
