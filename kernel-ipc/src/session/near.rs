//! What passes between the two ends of a session in one thread when a call is a function call.
//!
//! The link between them still is: whatever is not answered before its handler waits for something goes over it, and so does
//! everything but calls.

use super::{Brief, Request};
use crate::error::Failure;
use crate::runtime::Source;
use crate::wire::{Extent, Submission};

/// A host in the very thread of its client.
pub(super) trait Near: Source {
    /// Begins a call, unless something that came before it is still to be read from the link, or it is none of the
    /// interface's: with every check that it would go through if it had come over the link. `call` has no inline payload, and a
    /// deadline that is not looked at before the call waits for something: [`LATER`](super::call::LATER), or none.
    ///
    /// An answer that is there when it returns and brings nothing but its payload goes to `answered`: the number of the
    /// operation's error, if it ended with one, and the encoded result, or the error's fields.
    fn call(&self, call: &Submission, request: &Request<'_>, answered: &mut dyn FnMut(Option<u16>, &[u8])) -> Called;

    /// Makes a call of an operation that is answered [`at_once`](crate::interface::Operation::at_once), which needs no slot. `None`:
    /// it needs one, because something that came before it is still to be read from the link, or such a call has called again.
    fn call_at_once(&self, request: &Request<'_>, extent: Extent) -> Option<Result<Brief, Failure>>;
}

/// What became of a call that was made so.
#[derive(Clone, Copy)]
pub(super) enum Called {
    /// It was not begun: it has to go over the link.
    NotBegun,
    /// It is in progress, or its answer is on the link.
    Begun {
        /// Of the call, as on the wire.
        deadline: u64,
    },
    /// It is answered, and its slot idle again.
    Answered,
    /// It was refused, and its slot is idle again.
    Refused(Failure),
}
