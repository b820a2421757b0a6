//! The room for raw system calls of the floors.
#![allow(unsafe_code)]

pub mod raw_reads;
