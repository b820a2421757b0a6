//! `supervisor`.
#![deny(unsafe_code)]
