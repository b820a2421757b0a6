//! The room for unsafe code and raw system calls of this crate.
#![allow(unsafe_code)]

pub mod process;
