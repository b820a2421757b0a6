//! What the counter and its clients agree on.

use kernel_ipc::interface::{OperationError, interface};

/// A number that its clients share.
#[interface("example.counter/1")]
pub trait Counter {
    /// The number.
    type Number;
    /// Look at it.
    const READ: Rights;
    /// Add to it.
    const ADD: Rights = 8;

    /// Adds `n`, and gives the sum.
    #[op(1, requires = ADD, retry = never, deadline = "1s")]
    fn add(number: Number, n: u64) -> Result<u64, CounterError>;

    /// Gives it.
    #[op(2, requires = READ, retry = idempotent, deadline = "1s")]
    fn value(number: Number) -> Result<u64, CounterError>;
}

/// Why there is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum CounterError {
    /// The sum does not fit into 64 bits.
    TooLarge = 1,
}
