//! `drivers`.
#![deny(unsafe_code)]
