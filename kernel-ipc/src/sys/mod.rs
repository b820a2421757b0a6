//! The room for unsafe code and raw system calls of this crate.
#![allow(unsafe_code)]

pub mod calls;
pub mod confine;
pub mod crc32c;
pub mod descriptors;
pub mod doorbell;
pub mod futex;
mod leased;
pub mod line;
pub mod memory;
pub mod operation;
pub mod random;
pub mod ring;
pub mod segment;
pub mod watcher;
