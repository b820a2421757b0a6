//! The host end of a session.

use std::cell::RefCell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::{Grant, OpenError, Service, SessionInfo};

/// The host end of an open session. Dropping it ends the session.
#[derive(Debug)]
pub struct HostSession {}

impl HostSession {
    /// Opens a session with the client's C-segment and serves it on this thread's runtime: makes the S-segment,
    /// enters `root` as the session's first capability, and calls `service` for each call.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn start<S: Service>(
        _client_segment: OwnedFd,
        _root: Grant,
        _service: Rc<S>,
        _info: SessionInfo,
        _lender: Rc<RefCell<crate::lease::Lender>>,
    ) -> Result<HostSession, OpenError> {
        todo!()
    }

    /// The S-segment, to be sent to the client.
    pub fn fd(&self) -> BorrowedFd<'_> {
        todo!()
    }

    /// Whether the session still lives: neither side has closed it and the client broke no rule.
    pub fn is_open(&self) -> bool {
        todo!()
    }

    /// Ends the session: also what the broker asks for when the client has died. Drops its capabilities, takes back
    /// its leases, cancels its calls.
    pub fn close(&self) {
        todo!()
    }
}
