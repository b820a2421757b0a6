//! Keeper and supervisor: what starts, connects, watches and ends the components of a node.
#![deny(unsafe_code)]

pub mod cluster;
pub mod crash;
pub mod ended;
pub mod keeper;
pub mod lifecycle;
pub mod manifest;
mod node;
pub mod policy;
pub mod report;
pub mod spare;
mod sys;
pub mod ties;
pub mod up;

mod check;
mod parse;
mod value;

pub use node::logs::timestamp;
