//! One client: its events, its connections, its listeners.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::events::{AlreadyOpen, Batch, BatchLimits, Producer, Standing};
use kernel_ipc::interface::LeasePart;
use kernel_ipc::lease::Mapper;
use kernel_ipc::session::SessionInfo;
use kernel_ipc::steps;
use kernel_ipc::{Incarnation, SessionId};
use protocol::net::{EventsError, ListenError, Reason, SendError, SendFlags};

use super::address::Permission;
use super::chunk::{Bytes, Held};
use super::connection::Connection;
use super::kept::{Keeping, KeptSession};
use super::listener::{Holding, Listener};
use super::stack::Options;
use super::vacant::Vacant;
use crate::core::events::{Entry, EventQueue};
use crate::ledger::{ConnectionRecord, LISTENERS, MAX_ENTRIES, SessionRecord};

/// See the module's contract. Clients cannot see each other's: each has its own numbers.
pub(crate) struct Session {
    id: SessionId,
    client: Incarnation,
    client_name: String,
    permission: Permission,
    shared: Rc<Shared>,
    started: Instant,
    events: Producer<Entry>,
    connections: RefCell<HashMap<u64, Rc<Connection>>>,
    listeners: RefCell<HashMap<u64, Rc<Listener>>>,
    next_id: Cell<u64>,
    ticking: Cell<bool>,
    ended: Cell<bool>,
    /// What the next run will know of it, from its first listener on.
    kept: OnceCell<KeptSession>,
}

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) mapper: Rc<RefCell<Mapper>>,
    /// Listeners without a client.
    pub(crate) vacant: Rc<Vacant>,
    /// Who holds listening sockets for later runs.
    pub(crate) holding: Option<Rc<dyn Holding>>,
    /// What else outlives this process.
    pub(crate) keeping: Option<Rc<Keeping>>,
}

/// Most listeners of one session.
const MAX_LISTENERS: usize = LISTENERS;

impl Session {
    pub(crate) fn new(info: &SessionInfo, permission: Permission, shared: Rc<Shared>) -> Rc<Session> {
        let events = EventQueue::new(shared.options.event_bytes);
        Session::with(info, permission, shared, events)
    }

    fn with(info: &SessionInfo, permission: Permission, shared: Rc<Shared>, events: EventQueue) -> Rc<Session> {
        Rc::new(Session {
            id: info.id,
            client: info.client,
            client_name: info.client_name.clone(),
            permission,
            started: Instant::now(),
            events: Producer::new(events),
            shared,
            connections: RefCell::default(),
            listeners: RefCell::default(),
            next_id: Cell::new(1),
            ticking: Cell::new(false),
            ended: Cell::new(false),
            kept: OnceCell::new(),
        })
    }

    /// A session of a dead run.
    pub(crate) fn restored(
        info: &SessionInfo,
        shared: Rc<Shared>,
        events: EventQueue,
        kept: KeptSession,
        last_number: u64,
    ) -> Rc<Session> {
        let session = Session::with(info, Permission::of(&info.attenuation), shared, events);
        session.next_id.set(last_number.saturating_add(1));
        let _ = session.kept.set(kept);
        session
    }

    pub(crate) fn client(&self) -> Incarnation {
        self.client
    }

    /// The listener where a connection with this own address came in.
    pub(crate) fn listener_at(&self, own: SocketAddr) -> Option<Rc<Listener>> {
        self.listeners.borrow().values().find(|listener| listener.is_at(own)).cloned()
    }

    pub(crate) fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Time on this session's clock.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A number that was not given before.
    pub(crate) fn number(&self) -> u64 {
        let number = self.next_id.get();
        self.next_id.set(number + 1);
        if let Some(kept) = self.kept.get() {
            kept.gives(number);
        }
        number
    }

    /// Calls `change` with the event queue, and wakes the standing call if there is something to tell.
    pub(crate) fn with_events<T>(&self, change: impl FnOnce(&mut EventQueue) -> T) -> T {
        self.events.with(change)
    }

    /// Whether the client takes its events too slowly to be told more.
    pub(crate) fn is_behind(&self) -> bool {
        self.events.is_full()
    }

    /// Whether another connection may be accepted.
    pub(crate) fn has_room(&self) -> bool {
        !self.is_behind() && self.connections.borrow().len() < self.shared.options.connections
    }

    pub(crate) fn listen(self: &Rc<Self>, address: &str) -> Result<(u64, String), ListenError> {
        let address = self.permission.check(address)?;
        if self.listeners.borrow().len() >= MAX_LISTENERS {
            return Err(ListenError::System { errno: libc::EMFILE as u32 });
        }
        let Shared { vacant, holding, keeping, .. } = &*self.shared;
        if let (Some(keeping), None) = (keeping, self.kept.get()) {
            let no_room = ListenError::System { errno: libc::ENOBUFS as u32 };
            let record = SessionRecord::create(&keeping.ledger, self.id.get()).ok_or(no_room)?;
            let _ = self.kept.set(KeptSession::new(record));
        }
        let listener = match vacant.take(&self.client_name, address) {
            Some(listener) => listener,
            None => Listener::open(&self.client_name, address, holding.clone(), keeping.clone())?,
        };
        let (id, bound) = (self.number(), listener.bound());
        self.serve(id, listener);
        Ok((id, bound.to_string()))
    }

    /// Serves a listener under this number.
    pub(crate) fn serve(self: &Rc<Self>, id: u64, listener: Rc<Listener>) {
        if let Some(kept) = self.kept.get() {
            kept.listens(id, listener.bound());
        }
        listener.serve(self);
        self.listeners.borrow_mut().insert(id, listener);
    }

    pub(crate) fn kept(&self) -> Option<&KeptSession> {
        self.kept.get()
    }

    pub(crate) fn keeping(&self) -> Option<&Rc<Keeping>> {
        self.shared.keeping.as_ref()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// The client has died: its listeners wait for its next run, with the connections of which this one had not heard.
    pub(crate) fn leave_listeners(&self) {
        let connections: Vec<Rc<Connection>> = self.connections.borrow().values().cloned().collect();
        for (id, listener) in std::mem::take(&mut *self.listeners.borrow_mut()) {
            if let Some(kept) = self.kept.get() {
                kept.listens_no_more(id);
            }
            listener.wait_for_next();
            self.shared.vacant.add(listener);
        }
        for connection in connections {
            match connection.take_unheard() {
                Some((listener, newcomer)) => listener.add_unheard(newcomer),
                None => connection.leave_to_next(),
            }
        }
    }

    pub(crate) fn close_listener(&self, id: u64) {
        if let Some(listener) = self.listeners.borrow_mut().remove(&id) {
            listener.close();
        }
        if let Some(kept) = self.kept.get() {
            kept.listens_no_more(id);
        }
    }

    pub(crate) fn connection(&self, id: u64) -> Option<Rc<Connection>> {
        self.connections.borrow().get(&id).cloned()
    }

    pub(crate) fn add(&self, id: u64, connection: Rc<Connection>) {
        self.connections.borrow_mut().insert(id, connection);
    }

    /// A connection is over, or another session's.
    pub(crate) fn remove(&self, id: u64, record: Option<&ConnectionRecord>, reason: Reason) {
        self.connections.borrow_mut().remove(&id);
        if let (Some(record), Some(keeping)) = (record, self.keeping()) {
            keeping.berths.forget(record.serial());
        }
        match self.kept.get() {
            Some(kept) if self.ended.get() => kept.free(id),
            Some(kept) => kept.over(id, reason),
            None => {}
        }
        self.wake_listeners();
    }

    /// Waits for events after `cursor`, as many as `limits` allow.
    pub(crate) async fn next_events(&self, cursor: u64, limits: BatchLimits) -> Result<Batch<Entry>, EventsError> {
        let standing = self.events.stand().map_err(|AlreadyOpen| EventsError::AlreadyOpen)?;
        self.consume(&standing, cursor)?;
        let limits = BatchLimits { events: limits.events.clamp(1, MAX_ENTRIES), ..limits };
        let batch = standing.batch(limits).await;
        if let Some(kept) = self.kept.get().filter(|_| !batch.repeats) {
            kept.batch(batch.next, &batch.events);
            steps::reach("events/kept");
        }
        if batch.made_room {
            self.wake_listeners();
            for connection in self.connections.borrow().values() {
                connection.receive_again();
            }
        }
        Ok(batch)
    }

    fn consume(&self, standing: &Standing<'_, Entry>, cursor: u64) -> Result<(), EventsError> {
        let connections = self.connections.borrow();
        let consumed = |entry: &Entry| {
            if let Some(connection) = connections.get(&entry.connection) {
                connection.heard();
                connection.consumed(entry.received_bytes());
            }
        };
        standing.consume(cursor, consumed).map_err(|_| EventsError::BadCursor)?;
        if let Some(kept) = self.kept.get() {
            kept.consumed(cursor);
            steps::reach("events/consumed");
        }
        Ok(())
    }

    /// Accepts a send: pins its leases, queues it, wakes the sender.
    pub(crate) fn send(
        self: &Rc<Self>,
        connection: u64,
        send: u64,
        flags: SendFlags,
        request: u64,
        header: &[u8],
        pages: &[LeasePart],
    ) -> Result<(), SendError> {
        let connection = self.connection(connection).ok_or(SendError::Closed)?;
        if connection.has_accepted(send) {
            return Ok(());
        }
        connection.may_send()?;
        let mut chunks = Vec::with_capacity(2);
        if !header.is_empty() {
            chunks.push(Bytes::Header { bytes: Rc::new(header.to_vec()), start: 0 });
        }
        let mapper = self.shared.mapper.borrow();
        for part in pages {
            let end = part.offset.checked_add(part.length).ok_or(SendError::StaleLease)?;
            let pinned = mapper.pin(&part.name, self.client, part.offset..end).map_err(|_| SendError::StaleLease)?;
            chunks.push(Bytes::Pages { pinned: Rc::new(Held::new(pinned)), start: 0 });
        }
        drop(mapper);
        connection.send(send, flags, request, header, pages, chunks)?;
        self.watch_time();
        Ok(())
    }

    /// Ends everything: the client is gone.
    pub(crate) fn end(&self) {
        self.ended.set(true);
        for listener in std::mem::take(&mut *self.listeners.borrow_mut()).into_values() {
            listener.close();
        }
        let connections: Vec<Rc<Connection>> = self.connections.borrow().values().cloned().collect();
        for connection in connections {
            connection.reset();
        }
        if let Some(kept) = self.kept.get() {
            kept.end();
        }
    }

    /// A lender has a new epoch: what waited for it may be sent.
    pub(crate) fn send_again(&self) {
        for connection in self.connections.borrow().values() {
            connection.send_again();
        }
    }

    /// Starts the session's clock work, if it does not run: one task that looks at the connections which have something to
    /// watch, and ends when there is none.
    pub(crate) fn watch_time(self: &Rc<Self>) {
        if self.ticking.replace(true) {
            return;
        }
        let session = self.clone();
        drop(kernel_ipc::runtime::spawn(async move {
            loop {
                kernel_ipc::runtime::sleep(session.options().tick()).await;
                let connections: Vec<Rc<Connection>> = session.connections.borrow().values().cloned().collect();
                let watched = connections.iter().filter(|connection| connection.tick()).count();
                if watched == 0 {
                    session.ticking.set(false);
                    return;
                }
            }
        }));
    }

    fn wake_listeners(&self) {
        for listener in self.listeners.borrow().values() {
            listener.look_again();
        }
    }
}
