//! `apps`.
#![deny(unsafe_code)]
