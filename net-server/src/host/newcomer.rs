//! A connection of which no client has heard.
//!
//! It is kept for the next run from the moment at which it is accepted. One that is dropped without a client is reset.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use kernel_ipc::runtime::io::File;

use super::kept::Keeping;
use super::socket;
use crate::ledger::ConnectionRecord;
use crate::sys;

/// See the module's contract.
pub(crate) struct Newcomer {
    socket: File,
    peer: String,
    /// The peer is on this machine.
    local: bool,
    record: Option<ConnectionRecord>,
    keeping: Option<Rc<Keeping>>,
    taken: bool,
}

/// What becomes of a newcomer that a client hears of.
pub(crate) struct Taken {
    pub(crate) socket: File,
    pub(crate) peer: String,
    pub(crate) local: bool,
    pub(crate) record: Option<ConnectionRecord>,
}

impl Newcomer {
    /// A connection that has just been accepted. `None`: its peer is gone already, or there is no room to keep it.
    pub(crate) fn accepted(fd: OwnedFd, keeping: Option<&Rc<Keeping>>) -> Option<Newcomer> {
        // A peer that is gone before its connection was looked at is nobody's business.
        let (peer, local) = socket::peer(&fd).ok()?;
        let (socket, peer) = (File::from(fd), peer.to_string());
        let record = match keeping {
            Some(keeping) => {
                let record = ConnectionRecord::create(&keeping.ledger, &peer)?;
                // One that finds no berth goes down with this process, and its client will hear of it.
                keeping.berths.put(record.serial(), &socket);
                Some(record)
            }
            None => None,
        };
        Some(Newcomer { socket, peer, local, record, keeping: keeping.cloned(), taken: false })
    }

    /// One that an earlier run has accepted, or that another session has not heard of. It lies in a berth already.
    pub(crate) fn again(socket: File, record: Option<ConnectionRecord>, keeping: Option<&Rc<Keeping>>) -> Newcomer {
        let peer = record.as_ref().map(ConnectionRecord::peer);
        let (address, local) = socket::peer(&socket).map_or((None, false), |(peer, local)| (Some(peer), local));
        if let Some(record) = &record {
            record.belongs_to(0, 0);
        }
        let peer = peer.or(address.map(|address| address.to_string())).unwrap_or_default();
        Newcomer { socket, peer, local, record, keeping: keeping.cloned(), taken: false }
    }

    /// A client will hear of it.
    pub(crate) fn take(mut self) -> Taken {
        self.taken = true;
        let (socket, peer) = (self.socket.clone(), std::mem::take(&mut self.peer));
        Taken { socket, peer, local: self.local, record: self.record.take() }
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        // A copy of it may lie in a berth: closing this one would not end it.
        sys::reset(self.socket.as_fd());
        if let (Some(record), Some(keeping)) = (&self.record, &self.keeping) {
            keeping.berths.forget(record.serial());
            record.free();
        }
    }
}
