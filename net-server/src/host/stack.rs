//! The service: calls of `atoll.net/1` to sessions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::id::SessionId;
use kernel_ipc::lease::Mapper;
use kernel_ipc::session::SessionInfo;

use super::address::Permission;
use super::session::Session;
use crate::core::connection::Limits;

/// What bounds each session.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What bounds each connection.
    pub limits: Limits,
    /// Most connections of a session; more wait in the kernel's backlog.
    pub connections: usize,
    /// Events that may wait for the client before nothing more is accepted or received for it, in bytes.
    pub event_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { limits: Limits::default(), connections: 1024, event_bytes: 256 << 10 }
    }
}

impl Options {
    /// How often connections with something to watch are looked at: a quarter of the shortest time, and at most once
    /// a second.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = self.limits.stall.min(self.limits.linger) / 4;
        shortest.clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

/// The host backend's service: all its sessions.
pub struct Stack {
    options: Options,
    mapper: Rc<RefCell<Mapper>>,
    sessions: RefCell<HashMap<SessionId, Rc<Session>>>,
}

impl Stack {
    /// A stack without sessions. `mapper` must know the lenders whose leases the clients will name.
    pub fn new(options: Options, mapper: Rc<RefCell<Mapper>>) -> Rc<Stack> {
        Rc::new(Stack { options, mapper, sessions: RefCell::default() })
    }

    /// The session of a call; made at its first call.
    pub(crate) fn session(&self, info: &SessionInfo) -> Rc<Session> {
        let mut sessions = self.sessions.borrow_mut();
        let make = || {
            Session::new(info.client, Permission::of(&info.attenuation), self.options, self.mapper.clone())
        };
        sessions.entry(info.id).or_insert_with(make).clone()
    }

    /// A session has ended.
    pub(crate) fn ended(&self, info: &SessionInfo) {
        if let Some(session) = self.sessions.borrow_mut().remove(&info.id) {
            session.end();
        }
    }
}
