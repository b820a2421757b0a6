//! Calls whose capabilities can be used before they are answered.
//!
//! ```ignore
//! let opened = fs.open(fs.root(), path, READ).ahead().await?;   // on its way
//! let first = fs.read(&opened.capability(), 0, 1 << 20).await;  // behind it, and not a round trip later
//! let (file, stat) = opened.await?;
//! ```

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::pending::decoded;
use super::{Cap, Kind, OperationError};
use crate::codec::Decode;
use crate::session::{Earlier, Reply};
use crate::{CallError, Failure};

/// A result that begins with a capability.
pub trait Brings {
    /// The capability's kind.
    type Kind: Kind;
}

impl<K: Kind> Brings for Cap<K> {
    type Kind = K;
}

impl<K: Kind, T> Brings for (Cap<K>, T) {
    type Kind = K;
}

/// A call on its way: awaited, it gives what the call gives.
///
/// Dropped, the call is given up, unless somebody holds the [`capability`](Ahead::capability) that it brings. A call that is given
/// up takes those along that were made on what it was to bring and have not begun: they end with
/// [`Cancelled`](crate::Cause::Cancelled), and did not run. A call that is awaited holds what it was made on; one that was itself
/// sent [ahead](super::Pending::ahead) does not. So of a chain of those each is kept, or awaited, until the last has its answer.
#[must_use = "dropping it gives the call up"]
pub struct Ahead<O> {
    earlier: Earlier,
    decode: fn(&Earlier, Result<Reply, Failure>) -> O,
}

impl<R, E> Ahead<Result<R, CallError<E>>>
where
    R: for<'p> Decode<'p>,
    E: OperationError,
{
    pub(super) fn new(earlier: Earlier) -> Self {
        let decode = |earlier: &Earlier, answer: Result<Reply, Failure>| {
            let Reply { operation_error, payload, capabilities, leases } = answer?;
            decoded(earlier.session(), operation_error, &payload, (&capabilities, &leases), Some(earlier))
        };
        Ahead { earlier, decode }
    }
}

impl<R: Brings, E> Ahead<Result<R, CallError<E>>> {
    /// The capability with which the result begins. Calls can be made on it at once, and it can be an argument of calls of the
    /// same session. If the call fails, so do they, without having run: with its cause, or with
    /// [`EarlierError`](crate::Cause::EarlierError) if it ended with an error of its operation.
    ///
    /// It is the same that the result has: given back when both are dropped.
    pub fn capability(&self) -> Cap<R::Kind> {
        Cap::expected(self.earlier.expected(0))
    }
}

impl<O> Ahead<O> {
    /// Waits for the call on this thread, which runs no executor.
    ///
    /// # Panics
    /// Inside a runtime.
    pub fn wait(self) -> O {
        crate::blocking(self)
    }
}

impl<O> Future for Ahead<O> {
    type Output = O;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<O> {
        let this = &mut *self;
        Pin::new(&mut this.earlier).poll(cx).map(|answer| (this.decode)(&this.earlier, answer))
    }
}

impl<O> std::fmt::Debug for Ahead<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ahead").field(&self.earlier).finish()
    }
}
