//! The interfaces of the kit, one file each. No logic: types, operations, errors, and the checks
//! that turn foreign bytes into values.
//!
//! * Numbers (operations, errors, enum values, rights) are explicit and never change meaning.
//!   Inside one interface an error number means the same in every operation.
//! * Lengths are bytes, positions are bytes or 4-KiB blocks as their names say, times are
//!   nanoseconds since the Unix epoch.
//! * A client sees `Cap<Object>` and `Lease`, a handler `Granted<Object>`, `NewCap<Object>` and
//!   `Lend`; both come from one trait per interface.
#![forbid(unsafe_code)]

pub mod block;
pub mod control;
pub mod fs;
pub mod net;
