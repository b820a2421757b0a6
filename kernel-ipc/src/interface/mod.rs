//! What `#[interface]` builds on: the description of an interface, and the typed ends of a call.
//!
//! * A client holds [`Cap`]s and [`Lease`]s, which release themselves when dropped, and makes calls through the
//!   generated `Client`; each call is a [`Pending`] until it is awaited. What a call brings can be used before its answer:
//!   [`Ahead`].
//! * A host implements the generated `Handler`; it sees [`Granted`] objects and gives [`NewCap`]s and
//!   [`Lend`](crate::lease::Lend)s.
//! * [`Description`] is the interface as data.
//!
//! `docs/interfaces.md` shows how to write one and what is generated.

mod ahead;
mod client;
mod description;
mod host;
mod many;
mod pending;
mod under_way;

pub use crate::component::{Client as Connect, Connection};
pub use ahead::{Ahead, Brings};
pub use client::{Cap, Lease, LeasePart};
pub use description::{Description, HandleArgument, Operation, Retry};
pub use host::{Granted, NewCap, Object, answer, answer_at_once, refuse};
pub use kernel_ipc_macros::{Object, OperationError, Wire, interface};
pub use many::{CallMany, call_many, call_many_blocking};
pub use pending::{Arguments, Pending, Start};

use crate::codec::{Encoder, Malformed};
use crate::described::{Types, Variant};

/// A kind of object that capabilities of an interface name. Written by `#[interface]`.
pub trait Kind: 'static {
    /// Its number, unique in the interface.
    const NUMBER: u8;
}

/// The errors of an operation, written by `#[derive(OperationError)]`.
pub trait OperationError: std::error::Error + Sized + 'static {
    /// The number of this error on the wire. Never changes its meaning.
    fn number(&self) -> u16;

    /// The error's fields.
    fn encode(&self) -> Encoder;

    /// The set of errors as data: its name, and each error.
    fn describe(types: &mut Types) -> (&'static str, Vec<Variant>);

    /// The error of this number with these fields.
    ///
    /// # Errors
    /// [`Malformed`] when there is no such error.
    fn decode(number: u16, payload: &[u8]) -> Result<Self, Malformed>;
}

impl<E: OperationError> From<E> for crate::CallError<E> {
    fn from(error: E) -> Self {
        crate::CallError::Operation(error)
    }
}
