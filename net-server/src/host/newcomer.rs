//! A connection of which no client has heard.
//!
//! It is kept for the next run from the moment at which it is accepted. One that is dropped without a client is reset.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use kernel_ipc::runtime::io::File;
use kernel_ipc::steps;

use super::kept::Keeping;
use super::socket;
use crate::core::position::Position;
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
    position: Option<Position>,
}

/// What becomes of a newcomer that a client hears of.
pub(crate) struct Taken {
    pub(crate) socket: File,
    pub(crate) peer: String,
    pub(crate) local: bool,
    pub(crate) record: Option<ConnectionRecord>,
    /// Where it stands, if a run of the client before this one has used it.
    pub(crate) position: Option<Position>,
}

impl Newcomer {
    /// A connection that has just been accepted. `None`: its peer is gone already, or there is no room to keep it.
    pub(crate) fn accepted(fd: OwnedFd, keeping: Option<&Rc<Keeping>>) -> Option<Newcomer> {
        // A peer that is gone before its connection was looked at is nobody's business.
        let (peer, local) = socket::peer(&fd).ok()?;
        let (socket, peer) = (File::from(fd), peer.to_string());
        steps::reach("accept/accepted");
        let record = match keeping {
            Some(keeping) => {
                let record = ConnectionRecord::create(&keeping.ledger, &peer)?;
                // One that finds no berth goes down with this process, and its client will hear of it.
                keeping.berths.put(record.serial(), &socket);
                steps::reach("accept/kept");
                Some(record)
            }
            None => None,
        };
        Some(Newcomer { socket, peer, local, record, keeping: keeping.cloned(), taken: false, position: None })
    }

    /// One that an earlier run has accepted, or that another session has not heard of. It lies in a berth already.
    pub(crate) fn again(socket: File, record: Option<ConnectionRecord>, keeping: Option<&Rc<Keeping>>) -> Newcomer {
        let peer = record.as_ref().map(ConnectionRecord::peer);
        let (address, local) = socket::peer(&socket).map_or((None, false), |(peer, local)| (Some(peer), local));
        if let Some(record) = &record {
            record.belongs_to(0, 0);
        }
        let peer = peer.or(address.map(|address| address.to_string())).unwrap_or_default();
        Newcomer { socket, peer, local, record, keeping: keeping.cloned(), taken: false, position: None }
    }

    /// One whose client has died, and which its next run goes on with: everything but the socket is in its record.
    pub(crate) fn handed_over(
        socket: File,
        record: ConnectionRecord,
        position: Position,
        keeping: &Rc<Keeping>,
    ) -> Newcomer {
        let local = socket::peer(&socket).is_ok_and(|(_, local)| local);
        let (peer, keeping) = (record.peer(), Some(keeping.clone()));
        Newcomer { socket, peer, local, record: Some(record), keeping, taken: false, position: Some(position) }
    }

    /// A client will hear of it.
    pub(crate) fn take(mut self) -> Taken {
        self.taken = true;
        let (socket, peer) = (self.socket.clone(), std::mem::take(&mut self.peer));
        Taken { socket, peer, local: self.local, record: self.record.take(), position: self.position }
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
