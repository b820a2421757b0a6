//! The network server: TCP for components that have no network of their own.
#![deny(unsafe_code)]

pub mod core;
