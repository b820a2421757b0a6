//! Drivers: one file per device. They meet their clients in `protocol` only.
#![deny(unsafe_code)]

pub mod block;
mod sys;
