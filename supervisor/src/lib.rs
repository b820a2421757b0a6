//! The brain of a node: the manifest and its checks.
#![deny(unsafe_code)]

pub mod manifest;
pub mod policy;
pub mod report;

mod check;
mod parse;
mod value;
