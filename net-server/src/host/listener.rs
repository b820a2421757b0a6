//! A listener: accepts while its client has room.
//!
//! - Its socket is held outside of this process under its address ([`Holding`]), so that the kernel's backlog goes on to take
//!   connections while this process is dead.
//! - It outlives its client's death too: it waits without one, accepts nothing, and is taken over by the client's next run.
//! - Connections that were accepted and of which no client has heard wait here for the next one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

use kernel_ipc::runtime::{self, JoinHandle, Signal, io};
use protocol::net::ListenError;

use super::connection::Connection;
use super::kept::Keeping;
use super::newcomer::Newcomer;
use super::session::Session;
use super::socket;

/// Pause after a refused accept (no descriptors or memory left, or a peer that was gone at once).
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that are accepted in a row before others have their turn.
const IN_A_ROW: u32 = 16;

/// Whoever holds sockets for this process's next run.
pub(crate) trait Holding {
    /// Holds a socket under a name.
    fn hold(&self, name: &str, socket: BorrowedFd<'_>);
    /// Lets go of it.
    fn let_go(&self, name: &str);
}

pub(crate) struct Listener {
    /// The client's name in the manifest: nobody else takes it over.
    client: String,
    bound: SocketAddr,
    /// Whose connections these are; none while its client is dead.
    session: RefCell<Weak<Session>>,
    unheard: RefCell<VecDeque<Newcomer>>,
    keeping: Option<Rc<Keeping>>,
    task: RefCell<Option<JoinHandle<()>>>,
    /// Raised when there may be room again.
    room: Signal,
    /// Its name at whoever holds it; none if nobody does.
    held: Cell<Option<Rc<dyn Holding>>>,
}

impl Listener {
    /// Listens for a client, and has the socket held.
    pub(crate) fn open(
        client: &str,
        address: SocketAddr,
        holding: Option<Rc<dyn Holding>>,
        keeping: Option<Rc<Keeping>>,
    ) -> Result<Rc<Listener>, ListenError> {
        let (fd, bound) = socket::listener(address)?;
        if let Some(holding) = &holding {
            holding.hold(&name(client, bound), fd.as_fd());
        }
        Ok(Listener::over(client.to_owned(), bound, fd, holding, keeping))
    }

    /// Takes over a socket that was held under this name. `None`: it is no listener's.
    pub(crate) fn held(
        name: &str,
        fd: OwnedFd,
        holding: Rc<dyn Holding>,
        keeping: Option<Rc<Keeping>>,
    ) -> Option<Rc<Listener>> {
        let (client, bound) = parse(name)?;
        Some(Listener::over(client.to_owned(), bound, fd, Some(holding), keeping))
    }

    fn over(
        client: String,
        bound: SocketAddr,
        fd: OwnedFd,
        holding: Option<Rc<dyn Holding>>,
        keeping: Option<Rc<Keeping>>,
    ) -> Rc<Listener> {
        let listener = Rc::new(Listener {
            client,
            bound,
            session: RefCell::default(),
            unheard: RefCell::default(),
            keeping,
            task: RefCell::new(None),
            room: Signal::default(),
            held: Cell::new(holding),
        });
        // The task keeps the listener until it is closed.
        let task = runtime::spawn(accept(io::File::from(fd), listener.clone()));
        *listener.task.borrow_mut() = Some(task);
        listener
    }

    pub(crate) fn client(&self) -> &str {
        &self.client
    }

    pub(crate) fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Its connections are this session's from now on.
    pub(crate) fn serve(&self, session: &Rc<Session>) {
        *self.session.borrow_mut() = Rc::downgrade(session);
        self.room.raise();
    }

    /// Its client has died: it waits for the next one.
    pub(crate) fn wait_for_next(&self) {
        *self.session.borrow_mut() = Weak::new();
        self.room.raise();
    }

    /// A connection that came in here and of which no client has heard.
    pub(crate) fn add_unheard(&self, newcomer: Newcomer) {
        self.unheard.borrow_mut().push_back(newcomer);
        self.room.raise();
    }

    /// Whether a connection to this address came in here.
    pub(crate) fn is_at(&self, own: SocketAddr) -> bool {
        self.bound.port() == own.port() && (self.bound.ip() == own.ip() || self.bound.ip().is_unspecified())
    }

    /// Stops, here and for later runs; connections in the backlog are reset.
    pub(crate) fn close(&self) {
        if let Some(task) = self.task.borrow_mut().take() {
            task.cancel();
        }
        self.unheard.borrow_mut().clear();
        if let Some(holding) = self.held.take() {
            holding.let_go(&name(&self.client, self.bound));
        }
    }

    /// There may be room again.
    pub(crate) fn look_again(&self) {
        self.room.raise();
    }

    fn has_room(&self) -> bool {
        let has_client = self.session.borrow().upgrade().is_some_and(|session| session.has_room());
        has_client && self.keeping.as_ref().is_none_or(|keeping| keeping.ledger.has_room())
    }

    fn give(self: &Rc<Self>, newcomer: Newcomer) {
        // Bound first: the session may take it at once.
        let session = self.session.borrow().upgrade();
        match session {
            Some(session) => Connection::start(&session, self, newcomer),
            None => self.unheard.borrow_mut().push_back(newcomer),
        }
    }
}

/// What a listener's socket is held under.
fn name(client: &str, bound: SocketAddr) -> String {
    format!("listener/{client}/{bound}")
}

fn parse(name: &str) -> Option<(&str, SocketAddr)> {
    let (client, bound) = name.strip_prefix("listener/")?.rsplit_once('/')?;
    Some((client, bound.parse().ok()?))
}

/// Accepts until the listener is closed. By its own calls and not by the ring: a ring goes on to accept while its process is
/// being killed, and what it takes then is lost.
async fn accept(socket: io::File, listener: Rc<Listener>) {
    let mut row = 0;
    loop {
        if !listener.has_room() {
            // What nobody has accepted waits in the kernel's backlog, the cheapest place, which outlives this process.
            listener.room.wait().await;
            continue;
        }
        let unheard = listener.unheard.borrow_mut().pop_front();
        if let Some(newcomer) = unheard {
            listener.give(newcomer);
            continue;
        }
        match socket::accept(&socket) {
            Ok(Some(fd)) => {
                if let Some(newcomer) = Newcomer::accepted(fd, listener.keeping.as_ref()) {
                    listener.give(newcomer);
                }
                row += 1;
                if row % IN_A_ROW == 0 {
                    runtime::yield_now().await;
                }
            }
            Ok(None) => {
                if connection_or_news(&socket, &listener.room).await.is_err() {
                    runtime::sleep(PAUSE).await;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                runtime::sleep(PAUSE).await;
            }
        }
    }
}

/// Waits until somebody connects, or it is time to look again.
async fn connection_or_news(socket: &io::File, room: &Signal) -> std::io::Result<()> {
    let (mut connection, mut news) = (pin!(io::poll_readable(socket)), pin!(room.wait()));
    poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(result),
        Poll::Pending => news.as_mut().poll(cx).map(Ok),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_listener_it_is() {
        for bound in ["127.0.0.1:8080", "[::1]:80"] {
            let bound: SocketAddr = bound.parse().unwrap();
            assert_eq!(parse(&name("httpd", bound)), Some(("httpd", bound)));
        }
        for other in ["", "listener/", "listener/httpd", "listener/httpd/8080", "berth/httpd/127.0.0.1:1"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
