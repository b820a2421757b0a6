//! One connection: the tasks that do what the core says.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::os::fd::AsFd;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use kernel_ipc::component::waits::Event;
use kernel_ipc::interface::LeasePart;
use kernel_ipc::runtime::{self, Signal, io};
use kernel_ipc::steps;
use protocol::net::{Reason, SendError, SendFlags};

use super::chunk::Bytes;
use super::kept::Keeping;
use super::listener::Listener;
use super::newcomer::{Newcomer, Taken};
use super::session::Session;
use super::socket;
use crate::core::connection::{self as core, End, Piece, Usage};
use crate::core::events::{Entry, EventQueue, MAX_INLINE_BYTES, Occurrence};
use crate::ledger::{ConnectionRecord, Flags, KeptSend};
use crate::sys::{self, Landing};

/// Bytes of one receive. Requests are small; a larger buffer per connection would only wait.
pub(crate) const RECEIVE_BYTES: usize = 4096;

pub(crate) struct Connection {
    id: u64,
    session: Rc<Session>,
    core: RefCell<core::Connection<Bytes>>,
    /// `None` once it is closed.
    socket: RefCell<Option<io::File>>,
    /// Raised when the sender has something new to look at.
    outgoing: Signal,
    /// Raised when the receiver has.
    incoming: Signal,
    /// Capabilities to it that the client holds, or may hold when a lost answer is repeated.
    grants: Cell<u32>,
    /// Where it came in.
    listener: RefCell<Weak<Listener>>,
    /// The client has heard of it: from then on it is this session's for ever, and is received from.
    heard: Cell<bool>,
    /// It is another session's now.
    given_away: Cell<bool>,
    /// Its tasks end, whatever they wait for.
    cut: Event,
    /// The number of the send that was accepted last.
    last_send: Cell<Option<u64>>,
    /// Bytes of all sends that were ever accepted.
    accepted: Cell<u64>,
    /// What the next run will know of it.
    record: Option<ConnectionRecord>,
}

impl Connection {
    /// Takes a connection over and tells its client; its two tasks end by themselves.
    pub(crate) fn start(session: &Rc<Session>, listener: &Rc<Listener>, newcomer: Newcomer) {
        if session.has_ended() {
            return;
        }
        let Taken { socket, peer, local, record, position } = newcomer.take();
        let id = session.number();
        if let (Some(record), Some(kept)) = (&record, session.kept()) {
            record.belongs_to(kept.id(), id);
            kept.add(record.clone(), record.consumed());
        }
        session.with_events(|events| {
            events.push(Entry::new(id, Occurrence::Accepted { peer }));
            if let Some(record) = &record {
                tell_again(id, record, record.consumed(), events);
            }
        });
        let limits = session.options().limits;
        let core = match (position, &record) {
            (Some(at), Some(record)) => session.with_events(|events| {
                let left = core::Recovered::after(at, record.received() - record.consumed());
                core::Connection::recovered(id, limits, local, session.now(), left, events)
            }),
            _ => core::Connection::new(id, limits, local, session.now()),
        };
        steps::reach("accept/told");
        let connection = Connection::over(session, id, core, Some(socket), record);
        connection.came_in_at(listener);
        connection.run();
    }

    /// A connection that is about to [`run`](Self::run).
    pub(crate) fn over(
        session: &Rc<Session>,
        id: u64,
        core: core::Connection<Bytes>,
        socket: Option<io::File>,
        record: Option<ConnectionRecord>,
    ) -> Rc<Connection> {
        let kept_end =
            |record: &ConnectionRecord| record.sends().iter().map(KeptSend::end).fold(record.freed_end(), u64::max);
        let connection = Rc::new(Connection {
            id,
            session: session.clone(),
            core: RefCell::new(core),
            socket: RefCell::new(socket),
            outgoing: Signal::default(),
            incoming: Signal::default(),
            grants: Cell::new(0),
            listener: RefCell::default(),
            heard: Cell::new(false),
            given_away: Cell::new(false),
            cut: Event::default(),
            last_send: Cell::new(record.as_ref().and_then(ConnectionRecord::last_send)),
            accepted: Cell::new(record.as_ref().map_or(0, kept_end)),
            record,
        });
        session.add(id, connection.clone());
        connection
    }

    /// Starts its two tasks.
    pub(crate) fn run(self: &Rc<Self>) {
        drop(runtime::spawn(self.clone().receive()));
        drop(runtime::spawn(self.clone().drive()));
    }

    /// It came in here.
    pub(crate) fn came_in_at(&self, listener: &Rc<Listener>) {
        *self.listener.borrow_mut() = Rc::downgrade(listener);
    }

    /// The client has known of it since a run before this one, and holds so many capabilities to it.
    pub(crate) fn is_heard(&self, grants: u32) {
        self.heard.set(true);
        self.grants.set(grants);
    }

    /// The client has said that it knows of it.
    pub(crate) fn heard(&self) {
        if !self.heard.replace(true) {
            if let Some(record) = &self.record {
                record.set(Flags::HEARD);
            }
            // A batch that was answered by a dead run has brought its capability.
            self.grants.set(self.grants.get().max(1));
            self.incoming.raise();
        }
    }

    /// If the client has not heard of it: the connection, from which nothing was taken, for another session, and where it came
    /// in. In this one it is over.
    pub(crate) fn take_unheard(&self) -> Option<(Rc<Listener>, Newcomer)> {
        if self.heard.get() {
            return None;
        }
        let listener = self.listener.borrow().upgrade()?;
        let socket = self.socket.borrow_mut().take()?;
        if let Some(kept) = self.session.kept() {
            kept.give_away(self.id);
        }
        self.given_away.set(true);
        self.cut.happen();
        self.incoming.raise();
        self.outgoing.raise();
        Some((listener, Newcomer::again(socket, self.record.clone(), self.session.keeping())))
    }

    /// The client has died, and knows of it. What has been told to end goes on to its end; anything else is taken from this
    /// session, and made ready for the client's next run as soon as the kernel does nothing more for it.
    pub(crate) fn leave_to_next(self: &Rc<Self>) {
        if self.core.borrow().is_finishing() {
            return self.given_away.set(true);
        }
        let listener = self.listener.borrow().upgrade();
        let keeping = self.session.keeping().cloned();
        let (Some(record), Some(listener), Some(keeping)) = (self.record.clone(), listener, keeping) else { return };
        if self.given_away.replace(true) {
            return;
        }
        if let Some(kept) = self.session.kept() {
            kept.give_away(self.id);
        }
        self.cut.happen();
        self.incoming.raise();
        self.outgoing.raise();
        let Some(socket) = self.socket.borrow_mut().take() else { return };
        // A zero-copy send is not cut off, and its pages are the kernel's until the peer has them: that takes as long as the
        // peer does, and what is queued reaches it meanwhile.
        let patience = self.session.options().limits.stall;
        drop(runtime::spawn(async move {
            let since = Instant::now();
            // This one, and the one that lies in the berth.
            while socket.users() > 2 && since.elapsed() < patience {
                let pause = (since.elapsed() / 8).clamp(Duration::from_millis(1), Duration::from_millis(100));
                runtime::sleep(pause).await;
            }
            let quiet = socket.users() <= 2;
            hand_over(socket, record, quiet.then_some(&*listener), &keeping);
        }));
    }

    /// A capability to it was given to the client.
    pub(crate) fn granted(&self) {
        self.grants.set(self.grants.get() + 1);
    }

    /// The client gave one back; with the last one the connection closes.
    pub(crate) fn dropped(&self) {
        self.grants.set(self.grants.get().saturating_sub(1));
        if self.grants.get() == 0 {
            self.close();
        }
    }

    /// Whether a send with this number was accepted before: its answer was lost.
    pub(crate) fn has_accepted(&self, send: u64) -> bool {
        self.last_send.get().is_some_and(|last| send <= last)
    }

    pub(crate) fn may_send(&self) -> Result<(), SendError> {
        self.core.borrow().may_send()
    }

    /// Accepts a send whose parts are pinned in `chunks`: it is kept first.
    pub(crate) fn send(
        &self,
        send: u64,
        flags: SendFlags,
        request: u64,
        header: &[u8],
        parts: &[LeasePart],
        chunks: Vec<Bytes>,
    ) -> Result<(), SendError> {
        self.may_send()?;
        if let Some(record) = &self.record
            && !ConnectionRecord::can_keep(header, parts)
        {
            record.set(Flags::LOST);
        } else if let Some(record) = &self.record
            && !record.keep_send(send, flags, self.accepted.get(), request, header, parts)
        {
            return Err(SendError::Full);
        }
        steps::reach("send/kept");
        let bytes = parts.iter().map(|part| part.length).fold(header.len() as u64, u64::saturating_add);
        self.accepted.set(self.accepted.get().saturating_add(bytes));
        self.last_send.set(Some(send));
        self.core.borrow_mut().send(send, flags, chunks, self.session.now())?;
        self.heard();
        self.outgoing.raise();
        steps::reach("send/accepted");
        Ok(())
    }

    /// Closes in order.
    pub(crate) fn close(&self) {
        if self.given_away.get() {
            return;
        }
        self.heard();
        self.note(Flags::CLOSING);
        let now = self.session.now();
        self.session.with_events(|events| self.core.borrow_mut().close(now, events));
        self.outgoing.raise();
        self.incoming.raise();
        self.session.watch_time();
    }

    /// Ends at once.
    pub(crate) fn reset(&self) {
        if self.given_away.get() {
            return;
        }
        self.note(Flags::RESET);
        self.session.with_events(|events| self.core.borrow_mut().reset(Reason::Closed, events));
        self.outgoing.raise();
        self.incoming.raise();
    }

    /// The client has consumed so many bytes.
    pub(crate) fn consumed(&self, bytes: usize) {
        self.core.borrow_mut().consumed(bytes);
        self.incoming.raise();
    }

    fn note(&self, flag: Flags) {
        if let Some(record) = self.record.as_ref().filter(|_| !self.given_away.get()) {
            record.set(flag);
        }
    }

    /// A lender has a new epoch.
    pub(crate) fn send_again(&self) {
        self.outgoing.raise();
    }

    /// The client takes its events again.
    pub(crate) fn receive_again(&self) {
        self.incoming.raise();
    }

    /// Watches time; false if there is nothing to watch.
    pub(crate) fn tick(&self) -> bool {
        if !self.core.borrow().needs_ticks() {
            return false;
        }
        let (now, undelivered) = (self.session.now(), self.undelivered());
        self.session.with_events(|events| self.core.borrow_mut().tick(now, undelivered, events));
        self.outgoing.raise();
        true
    }

    /// Bytes that the kernel has and the peer has not acknowledged.
    pub(crate) fn undelivered(&self) -> u64 {
        // A socket that cannot say has nothing more to deliver.
        self.socket.borrow().as_ref().map_or(0, |socket| sys::undelivered(socket.as_fd()).unwrap_or(0))
    }

    /// Receives while the core wants to.
    async fn receive(self: Rc<Self>) {
        loop {
            if self.cut.has_happened() {
                return;
            }
            let Some(socket) = self.socket.borrow().clone() else { return };
            let wait = self.session.is_behind() || !self.heard.get();
            if !self.core.borrow_mut().begin_receive(wait) {
                if self.core.borrow().is_deaf() {
                    return;
                }
                drop(socket);
                self.incoming.wait().await;
                continue;
            }
            let landing = self.landing();
            let received = until(io::recv(&socket, landing, 0), &self.cut).await;
            let Some((result, landed)) = received else { return };
            drop(socket);
            let received = match result {
                Ok(length) => Ok(self.landed(length, landed)),
                Err(error) => Err(error),
            };
            let open = self.session.with_events(|events| {
                let mut core = self.core.borrow_mut();
                match received {
                    Ok(bytes) => core.received(&bytes, events),
                    Err(_) => core.receive_failed(events),
                }
                core.is_open()
            });
            if !open {
                self.outgoing.raise();
            }
        }
    }

    /// Where the next bytes go. What comes when the connection is ending is thrown away, and counts nowhere.
    fn landing(&self) -> Landing {
        let kept = self.record.as_ref().filter(|_| self.core.borrow().is_open());
        // The window is smaller than what has room.
        kept.and_then(|record| record.landing(RECEIVE_BYTES)).unwrap_or_else(|| Landing::Fresh(vec![0; RECEIVE_BYTES]))
    }

    /// The bytes that have come.
    fn landed(&self, length: usize, landed: Landing) -> Vec<u8> {
        match (landed, &self.record) {
            (Landing::Fresh(mut bytes), _) => {
                bytes.truncate(length);
                bytes
            }
            (Landing::Kept(_), Some(record)) => {
                let before = record.received();
                record.set_received(before + length as u64);
                steps::reach("receive/kept");
                record.bytes(before, before + length as u64)
            }
            (Landing::Kept(_), None) => Vec::new(),
        }
    }

    /// Sends what there is to send, and takes the steps of the end.
    async fn drive(self: Rc<Self>) {
        loop {
            if self.cut.has_happened() {
                self.session.remove(self.id, None, Reason::Closed);
                return;
            }
            while let Some(end) = self.next_end() {
                match end {
                    End::ShutdownWrite | End::Abort => {
                        match &*self.socket.borrow() {
                            Some(socket) if end == End::Abort => sys::reset(socket.as_fd()),
                            Some(socket) => socket::finish(socket),
                            None => {}
                        }
                        self.incoming.raise();
                    }
                    End::Close => {
                        self.socket.borrow_mut().take();
                        self.incoming.raise();
                    }
                }
            }
            let over = self.core.borrow().over();
            if let Some(reason) = over {
                self.session.remove(self.id, self.record.as_ref(), reason);
                return;
            }
            let piece = self.session.with_events(|events| self.core.borrow_mut().next_piece(events));
            let socket = self.socket.borrow().clone();
            match (piece, socket) {
                (Some(piece), Some(socket)) => drop(until(self.submit(&socket, piece), &self.cut).await),
                _ => {
                    // What `next_piece` found out may be a step of the end.
                    if !self.has_end() {
                        self.outgoing.wait().await;
                    }
                }
            }
        }
    }

    fn next_end(&self) -> Option<End> {
        self.session.with_events(|events| self.core.borrow_mut().next_end(|| self.undelivered(), events))
    }

    fn has_end(&self) -> bool {
        self.core.borrow().has_end()
    }

    /// Gives one piece to the kernel and tells the core how it went.
    async fn submit(self: &Rc<Self>, socket: &io::File, mut piece: Piece<Bytes>) {
        let flags = if piece.more { libc::MSG_MORE } else { 0 };
        let (result, notifies) = match piece.chunks.first() {
            Some(pages) if piece.zero_copy => {
                let (result, notification) = io::send_zc(socket, pages.clone(), flags).await;
                let (connection, send) = (self.clone(), piece.send);
                drop(runtime::spawn(async move {
                    let (usage, pages) = notification.await;
                    drop(pages);
                    steps::reach("send/notified");
                    connection.notified(send, usage);
                }));
                (result, true)
            }
            _ => {
                let (result, chunks) = io::send_vectored(socket, std::mem::take(&mut piece.chunks), flags).await;
                piece.chunks = chunks;
                (result, false)
            }
        };
        steps::reach("send/sent");
        let now = self.session.now();
        let result = result.map_err(|_| ());
        self.session.with_events(|events| self.core.borrow_mut().sent(piece, result, notifies, now, events));
    }

    fn notified(&self, send: u64, usage: io::Usage) {
        let usage = match usage {
            io::Usage::ZeroCopy => Usage::ZeroCopy,
            io::Usage::Copied => Usage::Copied,
            io::Usage::Unused => Usage::Unknown,
        };
        self.session.with_events(|events| self.core.borrow_mut().notified(send, usage, events));
        self.outgoing.raise();
    }
}

/// What a future gives, unless the event comes first.
async fn until<T>(future: impl Future<Output = T>, event: &Event) -> Option<T> {
    let (mut future, mut event) = (pin!(future), pin!(event.wait()));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => event.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Tells what a client has to hear of a connection beside that it is there, from a position of the peer's stream on.
pub(crate) fn tell_again(id: u64, record: &ConnectionRecord, from: u64, events: &mut EventQueue) {
    if let Some((request, sent, head)) = record.resumed() {
        events.push(Entry::new(id, Occurrence::Resumed { request, sent, head }));
    }
    tell_received(id, record, from, events);
}

/// Tells what was received from a position on.
pub(crate) fn tell_received(id: u64, record: &ConnectionRecord, from: u64, events: &mut EventQueue) {
    for piece in record.bytes(from, record.received()).chunks(MAX_INLINE_BYTES) {
        events.push(Entry::new(id, Occurrence::Received(piece.to_vec())));
    }
}

/// A client has died and may go on with this connection in its next run, which listens at `listener`; else it is reset.
/// Nobody uses it any more.
pub(crate) fn hand_over(
    socket: io::File,
    record: ConnectionRecord,
    listener: Option<&Listener>,
    keeping: &Rc<Keeping>,
) {
    let position = sys::socket_state(socket.as_fd()).ok().and_then(|state| state.position());
    match (listener, position) {
        (Some(listener), Some(at)) if record.hand_over(&at) => {
            listener.add_unheard(Newcomer::handed_over(socket, record, at, keeping));
        }
        // Dropped without a client, it is reset.
        (listener, position) => {
            // One that was over already has no position.
            if position.is_some() {
                let why = if listener.is_some() { "its record does not say how" } else { "nobody listens there" };
                tracing::warn!("connection {} cannot go on without its client: {why}", record.number());
            }
            drop(Newcomer::again(socket, Some(record), Some(keeping)));
        }
    }
}
