//! The `atoll` binary.
#![forbid(unsafe_code)]

fn main() {}
