//! Measurements, each beside its floor in the same run.
#![deny(unsafe_code)]

pub mod http;
pub mod ipc;
pub mod report;
