//! `net-server`.
#![deny(unsafe_code)]
