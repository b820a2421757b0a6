//! A listener: accepts while its client has room.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use kernel_ipc::runtime::{self, JoinHandle, Signal, io};
use protocol::net::ListenError;

use super::connection::Connection;
use super::session::Session;
use super::socket;

/// Pause after a refused accept (no descriptors or memory left, or a peer that was gone at once).
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) struct Listener {
    task: RefCell<Option<JoinHandle<()>>>,
    /// Raised when there may be room again.
    room: Signal,
}

impl Listener {
    /// Listens and starts to accept.
    pub(crate) fn open(session: &Rc<Session>, address: SocketAddr) -> Result<(Rc<Listener>, SocketAddr), ListenError> {
        let (fd, bound) = socket::listener(address)?;
        let listener = Rc::new(Listener { task: RefCell::new(None), room: Signal::default() });
        // The task must not keep the session alive: the session ends the task.
        let task = runtime::spawn(accept(io::File::from(fd), listener.clone(), Rc::downgrade(session)));
        *listener.task.borrow_mut() = Some(task);
        Ok((listener, bound))
    }

    /// Stops; connections in the backlog are reset.
    pub(crate) fn close(&self) {
        if let Some(task) = self.task.borrow_mut().take() {
            task.cancel();
        }
    }

    /// There may be room again.
    pub(crate) fn look_again(&self) {
        self.room.raise();
    }
}

async fn accept(socket: io::File, listener: Rc<Listener>, session: Weak<Session>) {
    let mut accepting = io::accept(&socket);
    loop {
        let Some(room) = session.upgrade().map(|session| session.has_room()) else { return };
        if !room {
            // What the kernel has not accepted waits in its backlog, the cheapest place.
            accepting.pause();
            listener.room.wait().await;
            continue;
        }
        let accepted = accepting.next().await;
        let Some(session) = session.upgrade() else { return };
        match accepted {
            Ok(fd) => Connection::start(&session, fd),
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                drop(session);
                runtime::sleep(PAUSE).await;
            }
        }
    }
}
