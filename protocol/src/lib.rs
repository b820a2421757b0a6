//! `protocol`.
#![deny(unsafe_code)]
