//! The network server: TCP for components that have no network of their own.
//!
//! [`core`] decides, without system calls; [`host`] does it with the kernel's sockets.
#![deny(unsafe_code)]

pub mod core;
pub mod host;
mod sys;
