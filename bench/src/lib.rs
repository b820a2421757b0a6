//! Measurements, each beside its floor in the same run.
#![deny(unsafe_code)]

pub mod block;
pub mod http;
pub mod ipc;
pub mod overload;
pub mod recovery;
pub mod report;
mod svg;
mod sys;
