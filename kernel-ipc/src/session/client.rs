//! The client end of a session.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::{OpenError, Reply, Request};
use crate::error::Failure;
use crate::id::{Epoch, SessionId};
use crate::wire::{Handle, LeaseName, Shape};

/// A session that a client has asked for: its C-segment exists, the host's S-segment is awaited.
#[derive(Debug)]
pub struct Offer {}

impl Offer {
    /// Makes the C-segment.
    ///
    /// # Errors
    /// What the kernel says to a new memfd.
    pub fn new(_shape: Shape) -> std::io::Result<Offer> {
        todo!()
    }

    /// The C-segment, to be sent to the host.
    pub fn fd(&self) -> BorrowedFd<'_> {
        todo!()
    }

    /// Opens the session with the host's S-segment. `session` and `epoch` are what the broker said: a segment of
    /// another one is refused. Registers with this thread's runtime.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(self, _host_segment: OwnedFd, _session: SessionId, _epoch: Epoch) -> Result<ClientSession, OpenError> {
        todo!()
    }
}

/// The client end of an open session. Cheap to clone; all clones are one session, of one thread.
#[derive(Clone, Debug)]
pub struct ClientSession {}

impl ClientSession {
    /// Makes one call. Dropping the future parks its slot and sends a cancel.
    ///
    /// # Errors
    /// A [`Failure`] that says whether the call ran.
    pub async fn call(&self, _request: Request<'_>) -> Result<Reply, Failure> {
        todo!()
    }

    /// Gives a capability back. Does not wait; releases travel in batches.
    pub fn release_handle(&self, _handle: Handle) {
        todo!()
    }

    /// Gives a lease back. Does not wait; releases travel in batches.
    pub fn release_lease(&self, _lease: LeaseName) {
        todo!()
    }

    /// The session's first capability.
    pub fn root(&self) -> Handle {
        todo!()
    }

    /// The endpoint's epoch.
    pub fn epoch(&self) -> Epoch {
        todo!()
    }

    /// The session's number.
    pub fn id(&self) -> SessionId {
        todo!()
    }

    /// Whether calls can still be made.
    pub fn is_open(&self) -> bool {
        todo!()
    }

    /// Ends the session in order. Outstanding calls end with `SessionClosed`.
    pub fn close(&self) {
        todo!()
    }

    /// The broker says that the host has died (and was reaped: its segment is final). Takes every answer still in it,
    /// then ends the outstanding calls with `PeerDied`: `No` for those that the host never read, else `Unknown`.
    pub fn host_died(&self) {
        todo!()
    }
}
