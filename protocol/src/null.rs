//! `atoll.null/1`: calls that do next to nothing, to measure what lies around them.

use kernel_ipc::interface::{Lease, OperationError, interface};

/// Calls that do next to nothing.
#[interface("atoll.null/1")]
pub trait Null {
    /// Something to call.
    type Thing;

    /// Call it.
    const READ: Rights;

    /// Does nothing.
    #[op(1, requires = READ, retry = idempotent, deadline = "5s", at_once)]
    fn null(thing: Thing) -> Result<(), NullError>;

    /// Returns the bytes.
    #[op(2, requires = READ, retry = idempotent, deadline = "5s", at_once)]
    fn echo(thing: Thing, bytes: &[u8]) -> Result<Vec<u8>, NullError>;

    /// Counts, as an operation that may not run twice.
    #[op(3, requires = READ, retry = cached, deadline = "5s", at_once)]
    fn count(thing: Thing) -> Result<u64, NullError>;

    /// Lends so many bytes.
    #[op(4, requires = READ, retry = idempotent, deadline = "5s")]
    fn lend(thing: Thing, bytes: u32) -> Result<Lease, NullError>;

    /// Computes for so many rounds, each about a nanosecond.
    #[op(5, requires = READ, retry = idempotent, deadline = "5s")]
    fn work(thing: Thing, rounds: u32) -> Result<u64, NullError>;
}

/// Never happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum NullError {
    /// It cannot.
    Impossible = 1,
}
