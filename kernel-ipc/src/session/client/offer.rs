//! How a client comes to a session: it offers its segment to the host.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::ClientSession;
use crate::id::{Epoch, SessionId};
use crate::link::shm;
use crate::session::OpenError;
use crate::sys::segment::SegmentWriter;
use crate::wire::Shape;

/// A session that a client has asked for: its C-segment exists, the host's S-segment is awaited.
#[derive(Debug)]
pub struct Offer {
    pub(super) segment: SegmentWriter,
    pub(super) shape: Shape,
}

impl Offer {
    /// Makes the C-segment.
    ///
    /// # Errors
    /// What the kernel says to a new memfd.
    pub fn new(shape: Shape) -> std::io::Result<Offer> {
        Ok(Offer { segment: shm::client_segment(shape)?, shape })
    }

    /// The C-segment, to be sent to the host.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.segment.fd()
    }

    /// Opens the session with the host's S-segment. `session` and `epoch` are what the broker said: a segment of
    /// another one is refused. Registers with this thread's runtime.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(self, host_segment: OwnedFd, session: SessionId, epoch: Epoch) -> Result<ClientSession, OpenError> {
        self.open_as(host_segment, session, epoch, false)
    }

    /// The same for a host that keeps a ledger of the session: its death only suspends it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_surviving(
        self,
        host_segment: OwnedFd,
        session: SessionId,
        epoch: Epoch,
    ) -> Result<ClientSession, OpenError> {
        self.open_as(host_segment, session, epoch, true)
    }

    fn open_as(
        self,
        host_segment: OwnedFd,
        session: SessionId,
        epoch: Epoch,
        survives: bool,
    ) -> Result<ClientSession, OpenError> {
        let (link, root) = shm::ShmLink::client(self.segment, self.shape, host_segment, session, epoch)?;
        Ok(ClientSession::with(link, root, session, epoch, survives))
    }
}
