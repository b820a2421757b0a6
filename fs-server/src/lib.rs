//! `fs-server`.
#![deny(unsafe_code)]
