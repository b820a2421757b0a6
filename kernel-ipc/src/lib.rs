//! The message-passing core.
#![deny(unsafe_code)]
