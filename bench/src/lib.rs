//! `bench`.
#![deny(unsafe_code)]
