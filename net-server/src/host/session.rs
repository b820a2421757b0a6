//! One client: its events, its connections, its listeners.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::Incarnation;
use kernel_ipc::interface::LeasePart;
use kernel_ipc::lease::Mapper;
use kernel_ipc::runtime::Signal;
use protocol::net::{EventsError, ListenError, SendError, SendFlags};

use super::address::Permission;
use super::chunk::Bytes;
use super::connection::Connection;
use super::listener::{Holding, Listener};
use super::stack::Options;
use super::vacant::Vacant;
use crate::core::events::{Entry, EventQueue};

/// See the module's contract. Clients cannot see each other's: each has its own numbers.
pub(crate) struct Session {
    client: Incarnation,
    client_name: String,
    permission: Permission,
    shared: Rc<Shared>,
    started: Instant,
    events: RefCell<EventQueue>,
    /// Raised when there are events.
    news: Signal,
    /// A `next_events` call is open.
    standing: Cell<bool>,
    connections: RefCell<HashMap<u64, Rc<Connection>>>,
    listeners: RefCell<HashMap<u64, Rc<Listener>>>,
    next_id: Cell<u64>,
    ticking: Cell<bool>,
    ended: Cell<bool>,
}

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) mapper: Rc<RefCell<Mapper>>,
    /// Listeners without a client.
    pub(crate) vacant: Rc<Vacant>,
    /// Who holds listening sockets for later runs.
    pub(crate) holding: Option<Rc<dyn Holding>>,
}

/// Most listeners of one session.
const MAX_LISTENERS: usize = 16;

/// What `next_events` answers: the batch stays in the queue until it is consumed.
pub(crate) struct Batch {
    pub entries: Vec<Entry>,
    pub next: u64,
}

impl Session {
    pub(crate) fn new(
        client: Incarnation,
        client_name: &str,
        permission: Permission,
        shared: Rc<Shared>,
    ) -> Rc<Session> {
        Rc::new(Session {
            client,
            client_name: client_name.to_owned(),
            permission,
            started: Instant::now(),
            events: RefCell::new(EventQueue::new(shared.options.event_bytes)),
            shared,
            news: Signal::default(),
            standing: Cell::new(false),
            connections: RefCell::default(),
            listeners: RefCell::default(),
            next_id: Cell::new(1),
            ticking: Cell::new(false),
            ended: Cell::new(false),
        })
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
        number
    }

    /// Calls `change` with the event queue, and wakes the standing call if there is something to tell.
    pub(crate) fn with_events<T>(&self, change: impl FnOnce(&mut EventQueue) -> T) -> T {
        let (result, ready) = {
            let mut events = self.events.borrow_mut();
            (change(&mut events), events.is_ready())
        };
        if ready {
            self.news.raise();
        }
        result
    }

    /// Whether the client takes its events too slowly to be told more.
    pub(crate) fn is_behind(&self) -> bool {
        self.events.borrow().is_full()
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
        let Shared { vacant, holding, .. } = &*self.shared;
        let listener = match vacant.take(&self.client_name, address) {
            Some(listener) => listener,
            None => Listener::open(&self.client_name, address, holding.clone())?,
        };
        listener.serve(self);
        let (id, bound) = (self.number(), listener.bound());
        self.listeners.borrow_mut().insert(id, listener);
        Ok((id, bound.to_string()))
    }

    /// The client has died: its listeners wait for its next run, with the connections of which this one had not heard.
    pub(crate) fn leave_listeners(&self) {
        let connections: Vec<Rc<Connection>> = self.connections.borrow().values().cloned().collect();
        let mut unheard: Vec<_> = connections.iter().filter_map(|connection| connection.take_unheard()).collect();
        for listener in std::mem::take(&mut *self.listeners.borrow_mut()).into_values() {
            let its = unheard.extract_if(.., |(of, _)| Rc::ptr_eq(of, &listener));
            listener.wait_for_next(its.map(|(_, socket)| socket));
            self.shared.vacant.add(listener);
        }
    }

    pub(crate) fn close_listener(&self, id: u64) {
        if let Some(listener) = self.listeners.borrow_mut().remove(&id) {
            listener.close();
        }
    }

    pub(crate) fn connection(&self, id: u64) -> Option<Rc<Connection>> {
        self.connections.borrow().get(&id).cloned()
    }

    /// Takes a connection in. False: the session has ended.
    pub(crate) fn add(&self, id: u64, connection: Rc<Connection>) -> bool {
        if self.ended.get() {
            return false;
        }
        self.connections.borrow_mut().insert(id, connection);
        true
    }

    pub(crate) fn remove(&self, id: u64) {
        self.connections.borrow_mut().remove(&id);
        self.wake_listeners();
    }

    /// Waits for events after `cursor`; at most `max`, of at most `max_bytes`, with at most `max_accepted` connections.
    pub(crate) async fn next_events(
        &self,
        cursor: u64,
        max: usize,
        max_bytes: usize,
        max_accepted: usize,
    ) -> Result<Batch, EventsError> {
        if self.standing.replace(true) {
            return Err(EventsError::AlreadyOpen);
        }
        let _standing = Standing(&self.standing);
        self.consume(cursor)?;
        while !self.events.borrow().is_ready() {
            self.news.wait().await;
        }
        let was_behind = self.is_behind();
        let batch = {
            let mut events = self.events.borrow_mut();
            let entries = events.batch(max.max(1), max_bytes, max_accepted).to_vec();
            Batch { entries, next: events.next_cursor() }
        };
        if was_behind && !self.is_behind() {
            self.wake_listeners();
            for connection in self.connections.borrow().values() {
                connection.receive_again();
            }
        }
        Ok(batch)
    }

    fn consume(&self, cursor: u64) -> Result<(), EventsError> {
        let connections = self.connections.borrow();
        let consumed = |entry: &Entry| {
            if let Some(connection) = connections.get(&entry.connection) {
                connection.heard();
                connection.consumed(entry.received_bytes());
            }
        };
        self.events.borrow_mut().consume(cursor, consumed).map_err(|_| EventsError::BadCursor)
    }

    /// Accepts a send: pins its leases, queues it, wakes the sender.
    pub(crate) fn send(
        self: &Rc<Self>,
        connection: u64,
        send: u64,
        flags: SendFlags,
        header: &[u8],
        pages: &[LeasePart],
    ) -> Result<(), SendError> {
        let connection = self.connection(connection).ok_or(SendError::Closed)?;
        connection.may_send()?;
        let mut chunks = Vec::with_capacity(2);
        if !header.is_empty() {
            chunks.push(Bytes::Header { bytes: Rc::new(header.to_vec()), start: 0 });
        }
        let mapper = self.shared.mapper.borrow();
        for part in pages {
            let end = part.offset.checked_add(part.length).ok_or(SendError::StaleLease)?;
            let pinned = mapper.pin(&part.name, self.client, part.offset..end).map_err(|_| SendError::StaleLease)?;
            chunks.push(Bytes::Pages { pinned: Rc::new(pinned), start: 0 });
        }
        drop(mapper);
        connection.send(send, flags, chunks)?;
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

/// Marks the standing call as over when it is answered, cancelled or dropped.
struct Standing<'a>(&'a Cell<bool>);

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
