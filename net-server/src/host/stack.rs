//! The service: calls of `atoll.net/1` to sessions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use kernel_ipc::component::Counters;
use kernel_ipc::events::BatchLimits;
use kernel_ipc::interface::{Granted, LeasePart, NewCap, Object};
use kernel_ipc::lease::{Mapper, StaleLease};
use kernel_ipc::runtime::{self, Changes};
use kernel_ipc::session::{Call, SessionInfo};
use kernel_ipc::{CallError, Cause, Failure, Incarnation, Rights, SessionId};
use protocol::net::{self, CloseError, EventBatch, EventsError, ListenError, SendError, SendFlags, SendName};

use super::address::Permission;
use super::kept::Keeping;
use super::listener::{Holding, Listener};
use super::restore::{self, Left};
use super::session::{Session, Shared};
use crate::core::connection::Limits;
use crate::core::events::Occurrence;

/// Bytes of events in one answer: what a window of 4 KiB has room for beside [`MAX_ACCEPTED`] capabilities.
const BATCH_BYTES: usize = 3840;
/// Connections in one answer: as many as a message has capabilities.
const MAX_ACCEPTED: usize = kernel_ipc::wire::MAX_CAPABILITIES;

/// How long a send waits for a lender that is between two epochs.
const LENDER_PATIENCE: Duration = Duration::from_secs(20);

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
    shared: Rc<Shared>,
    counters: Rc<Counters>,
    sessions: Rc<Sessions>,
    started: Instant,
}

impl Stack {
    /// A stack without sessions, of which nothing outlives this process. `mapper` must know the lenders whose leases the clients
    /// will name.
    pub fn new(options: Options, mapper: Rc<RefCell<Mapper>>, counters: Rc<Counters>) -> Stack {
        Stack::over(Shared { options, mapper, vacant: Rc::default(), holding: None, keeping: None }, counters)
    }

    /// The same, with what outlives this process: who holds listening sockets, and where connections are kept.
    pub(crate) fn lasting(
        options: Options,
        mapper: Rc<RefCell<Mapper>>,
        counters: Rc<Counters>,
        holding: Rc<dyn Holding>,
        keeping: Rc<Keeping>,
    ) -> Stack {
        let (holding, keeping) = (Some(holding), Some(keeping));
        Stack::over(Shared { options, mapper, vacant: Rc::default(), holding, keeping }, counters)
    }

    fn over(shared: Shared, counters: Rc<Counters>) -> Stack {
        let sessions = Rc::new(RefCell::default());
        drop(runtime::spawn(follow(Rc::downgrade(&sessions), shared.mapper.borrow().changes())));
        Stack { shared: Rc::new(shared), counters, sessions, started: Instant::now() }
    }

    /// Takes a socket over that was held for an earlier run: its client listens there again, or will not.
    pub(crate) fn inherit(&self, name: &str, socket: OwnedFd) {
        let Some(holding) = &self.shared.holding else { return };
        match Listener::held(name, socket, holding.clone(), self.shared.keeping.clone()) {
            Some(listener) => self.shared.vacant.add(listener),
            None => holding.let_go(name),
        }
    }

    /// Goes on with the sessions of a dead run. After its listeners were inherited, and before any call.
    pub(crate) fn restore(&self, left: Left) {
        let restored = restore::restore(&self.shared, left);
        let sessions = restored.into_iter().map(|(info, session)| (info.id, session));
        self.sessions.borrow_mut().extend(sessions);
    }

    /// Waits while a lender of these pages is between two epochs, or may not have been introduced to this run yet; whether it
    /// comes is for the pin to find out.
    async fn wait_for_lenders(&self, holder: Incarnation, pages: &[LeasePart]) {
        let until = Instant::now() + LENDER_PATIENCE;
        loop {
            let changes = self.shared.mapper.borrow().changes();
            let next = changes.next();
            let left = until.saturating_duration_since(Instant::now());
            let waits = pages.iter().any(|part| self.waits_for_lender(holder, part));
            if !waits || runtime::timeout(left, next).await.is_err() {
                return;
            }
        }
    }

    fn waits_for_lender(&self, holder: Incarnation, part: &LeasePart) -> bool {
        let mapper = self.shared.mapper.borrow();
        if mapper.is_between_epochs(part.name.lender) {
            return true;
        }
        // A client that goes on may name what it was lent before its lender has met this run: the lender was away then.
        let unknown = || mapper.pin(&part.name, holder, 0..0).err();
        self.started.elapsed() < LENDER_PATIENCE
            && matches!(unknown(), Some(StaleLease::UnknownLender | StaleLease::UnknownRegion))
    }

    /// The session of a call; made at its first call.
    fn session(&self, info: &SessionInfo) -> Rc<Session> {
        let mut sessions = self.sessions.borrow_mut();
        let make = || Session::new(info, Permission::of(&info.attenuation), self.shared.clone());
        sessions.entry(info.id).or_insert_with(make).clone()
    }
}

type Sessions = RefCell<HashMap<SessionId, Rc<Session>>>;

/// Lets connections go on whose lender has a new epoch.
async fn follow(sessions: Weak<Sessions>, changes: Rc<Changes>) {
    loop {
        changes.next().await;
        let Some(sessions) = sessions.upgrade() else { return };
        for session in sessions.borrow().values() {
            session.send_again();
        }
    }
}

/// The root of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Object)]
#[kind(net::Stack)]
pub struct Root;

/// A listener's number in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Object)]
#[kind(net::Listener)]
pub struct ListenerNumber(u64);

/// A connection's number in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Object)]
#[kind(net::Connection)]
pub struct ConnectionNumber(u64);

impl ConnectionNumber {
    pub(crate) fn of(number: u64) -> ConnectionNumber {
        ConnectionNumber(number)
    }
}

/// The kind of a connection's capability.
pub(crate) const CONNECTION_KIND: u8 = <net::Connection as kernel_ipc::interface::Kind>::NUMBER;

impl net::Handler for Stack {
    type Stack = Root;
    type Listener = ListenerNumber;
    type Connection = ConnectionNumber;

    const SURVIVES: bool = true;

    async fn listen(
        &self,
        call: &Call,
        _stack: Granted<Root>,
        address: &str,
    ) -> Result<(NewCap<ListenerNumber>, String), CallError<ListenError>> {
        let (number, bound) = self.session(call.session()).listen(address)?;
        Ok((NewCap::new(ListenerNumber(number), Rights::empty()), bound))
    }

    async fn next_events(
        &self,
        call: &Call,
        _stack: Granted<Root>,
        cursor: u64,
        max: u32,
    ) -> Result<(EventBatch, Vec<NewCap<ConnectionNumber>>), CallError<EventsError>> {
        let session = self.session(call.session());
        let events = usize::try_from(max).unwrap_or(usize::MAX);
        let limits = BatchLimits { events, bytes: BATCH_BYTES, capabilities: MAX_ACCEPTED };
        let batch = call.unless_cancelled(session.next_events(cursor, limits)).await;
        let batch = batch.ok_or(Failure::not_executed(Cause::Cancelled))??;
        let mut packed = EventBatch { next: batch.next, bytes: Vec::with_capacity(BATCH_BYTES) };
        let mut connections = Vec::new();
        for entry in &batch.events {
            // At most MAX_ACCEPTED, so it fits a byte.
            let place = u8::try_from(connections.len()).unwrap_or(u8::MAX);
            if matches!(entry.occurrence, Occurrence::Accepted { .. }) {
                connections.push(NewCap::new(ConnectionNumber(entry.connection), Rights::READ | Rights::WRITE));
                if let Some(connection) = session.connection(entry.connection) {
                    connection.granted();
                }
            }
            packed.push(&entry.event(place), usize::MAX);
        }
        Ok((packed, connections))
    }

    async fn send(
        &self,
        call: &Call,
        connection: Granted<ConnectionNumber>,
        send: SendName,
        flags: SendFlags,
        header: &[u8],
        pages: Vec<LeasePart>,
    ) -> Result<(), CallError<SendError>> {
        // Before the wait: one that ends meanwhile must not be made anew.
        let session = self.session(call.session());
        self.wait_for_lenders(call.session().client, &pages).await;
        session.send(connection.object.0, send.number, flags, send.request, header, &pages)?;
        self.counters.add_copied(header.len() as u64);
        self.counters.add_leased(pages.iter().map(|part| part.length).sum());
        Ok(())
    }

    async fn close(&self, call: &Call, connection: Granted<ConnectionNumber>) -> Result<(), CallError<CloseError>> {
        let connection = self.session(call.session()).connection(connection.object.0).ok_or(CloseError::Closed)?;
        connection.reset();
        Ok(())
    }

    fn listener_dropped(&self, session: &SessionInfo, listener: Granted<ListenerNumber>) {
        self.session(session).close_listener(listener.object.0);
    }

    fn connection_dropped(&self, session: &SessionInfo, connection: Granted<ConnectionNumber>) {
        if let Some(connection) = self.session(session).connection(connection.object.0) {
            connection.dropped();
        }
    }

    fn client_died(&self, session: &SessionInfo) {
        self.session(session).leave_listeners();
    }

    fn closed(&self, session: &SessionInfo) {
        if let Some(session) = self.sessions.borrow_mut().remove(&session.id) {
            session.end();
        }
    }
}
