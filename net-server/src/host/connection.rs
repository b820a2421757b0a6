//! One connection: the tasks that do what the core says.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};

use kernel_ipc::runtime::{self, Signal, io};
use protocol::net::{Reason, SendError, SendFlags};

use super::chunk::Bytes;
use super::listener::Listener;
use super::session::Session;
use super::socket;
use crate::core::connection::{self as core, End, Piece, Usage};
use crate::core::events::Occurrence;
use crate::sys;

/// Bytes of one receive. Requests are small; a larger buffer per connection would only wait.
const RECEIVE_BYTES: usize = 4096;

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
    listener: Weak<Listener>,
    /// The client has heard of it: from then on it is this session's for ever, and is received from.
    heard: Cell<bool>,
}

impl Connection {
    /// Takes a connection over and tells its client; its two tasks end by themselves.
    pub(crate) fn start(session: &Rc<Session>, listener: &Rc<Listener>, fd: OwnedFd) {
        // A peer that is gone before its connection was looked at is nobody's business.
        let Ok((peer, local)) = socket::peer(&fd) else { return };
        let id = session.number();
        let core = core::Connection::new(id, session.options().limits, local, session.now());
        let connection = Rc::new(Connection {
            id,
            session: session.clone(),
            core: RefCell::new(core),
            socket: RefCell::new(Some(fd.into())),
            outgoing: Signal::default(),
            incoming: Signal::default(),
            grants: Cell::new(0),
            listener: Rc::downgrade(listener),
            heard: Cell::new(false),
        });
        if !session.add(id, connection.clone()) {
            return;
        }
        session.with_events(|events| events.push(id, Occurrence::Accepted { peer: peer.to_string() }));
        drop(runtime::spawn(connection.clone().receive()));
        drop(runtime::spawn(connection.drive()));
    }

    /// The client has said that it knows of it.
    pub(crate) fn heard(&self) {
        if !self.heard.replace(true) {
            self.incoming.raise();
        }
    }

    /// If the client has not heard of it: its socket, from which nothing was taken, and where it came in. For another session;
    /// in this one it is over.
    pub(crate) fn take_unheard(&self) -> Option<(Rc<Listener>, OwnedFd)> {
        if self.heard.get() {
            return None;
        }
        let listener = self.listener.upgrade()?;
        let socket = self.socket.borrow_mut().take()?;
        // Tasks may have clones of the old descriptor.
        Some((listener, socket.as_fd().try_clone_to_owned().ok()?))
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

    pub(crate) fn may_send(&self) -> Result<(), SendError> {
        self.core.borrow().may_send()
    }

    pub(crate) fn send(&self, send: u64, flags: SendFlags, chunks: Vec<Bytes>) -> Result<(), SendError> {
        self.core.borrow_mut().send(send, flags, chunks, self.session.now())?;
        self.heard();
        self.outgoing.raise();
        Ok(())
    }

    /// Closes in order.
    pub(crate) fn close(&self) {
        self.heard();
        let now = self.session.now();
        self.session.with_events(|events| self.core.borrow_mut().close(now, events));
        self.outgoing.raise();
        self.incoming.raise();
        self.session.watch_time();
    }

    /// Ends at once.
    pub(crate) fn reset(&self) {
        self.session.with_events(|events| self.core.borrow_mut().reset(Reason::Closed, events));
        self.outgoing.raise();
        self.incoming.raise();
    }

    /// The client has consumed so many bytes.
    pub(crate) fn consumed(&self, bytes: usize) {
        self.core.borrow_mut().consumed(bytes);
        self.incoming.raise();
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

    fn undelivered(&self) -> u64 {
        // A socket that cannot say has nothing more to deliver.
        self.socket.borrow().as_ref().map_or(0, |socket| sys::undelivered(socket.as_fd()).unwrap_or(0))
    }

    /// Receives while the core wants to.
    async fn receive(self: Rc<Self>) {
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
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
            let (result, filled) = io::recv(&socket, buffer, 0).await;
            drop(socket);
            buffer = filled;
            let open = self.session.with_events(|events| {
                let mut core = self.core.borrow_mut();
                match result {
                    Ok(length) => core.received(buffer.get(..length).unwrap_or_default(), events),
                    Err(_) => core.receive_failed(events),
                }
                core.is_open()
            });
            if !open {
                self.outgoing.raise();
            }
        }
    }

    /// Sends what there is to send, and takes the steps of the end.
    async fn drive(self: Rc<Self>) {
        loop {
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
            if self.core.borrow().is_over() {
                self.session.remove(self.id);
                return;
            }
            let piece = self.session.with_events(|events| self.core.borrow_mut().next_piece(events));
            let socket = self.socket.borrow().clone();
            match (piece, socket) {
                (Some(piece), Some(socket)) => self.submit(&socket, piece).await,
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
