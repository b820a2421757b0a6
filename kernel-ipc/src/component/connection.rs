//! A connection to an endpoint, across its restarts.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::session::ClientSession;
use crate::{Cause, Executed, Failure};

/// Opens a session with the endpoint's living incarnation, waiting until there is one.
pub type Reopen = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<ClientSession, Failure>>>>>;

/// A client's connection to one endpoint: the session with the incarnation that lives now. This is what a generated
/// client holds. Clones are the same connection.
///
/// - A call on the root capability goes through [`session`](Connection::session), which opens a new session when the
///   host of the last one died.
/// - Any other capability or lease belongs to the [`ClientSession`] on which it came and must keep that session to be
///   used and released on; after the host's death that session answers `StaleEpoch`, not executed.
#[derive(Clone)]
pub struct Connection(Rc<Inner>);

struct Inner {
    current: RefCell<ClientSession>,
    reopen: Option<Reopen>,
    reopening: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Connection {
    /// A connection that ends with its session: nobody opens it anew.
    pub fn fixed(session: ClientSession) -> Connection {
        Connection::new(session, None)
    }

    /// A connection that opens its session anew when its host has died.
    pub fn lasting(session: ClientSession, reopen: Reopen) -> Connection {
        Connection::new(session, Some(reopen))
    }

    fn new(session: ClientSession, reopen: Option<Reopen>) -> Connection {
        Connection(Rc::new(Inner {
            current: RefCell::new(session),
            reopen,
            reopening: Cell::new(false),
            waiting: RefCell::new(Vec::new()),
        }))
    }

    /// The session that is or was in use, alive or not. Does not wait.
    pub fn last_session(&self) -> ClientSession {
        self.0.current.borrow().clone()
    }

    /// A session that lives. Waits for the host's next incarnation if the last one died; callers that wait share the
    /// one new session. No system call when the session lives.
    ///
    /// # Errors
    /// Not executed: the host is not started again, refused, or the node is ending.
    pub async fn session(&self) -> Result<ClientSession, Failure> {
        loop {
            let current = self.last_session();
            if current.is_open() {
                return Ok(current);
            }
            let Some(reopen) = &self.0.reopen else {
                return Err(Failure { cause: Cause::SessionClosed, executed: Executed::No });
            };
            if self.0.reopening.replace(true) {
                self.reopened().await;
                continue;
            }
            // Reset also when this future is dropped while it waits.
            let _guard = Reopening(&self.0);
            let session = reopen().await?;
            *self.0.current.borrow_mut() = session;
        }
    }

    /// Waits until the one who reopens has ended, with or without success.
    fn reopened(&self) -> impl Future<Output = ()> {
        std::future::poll_fn(|cx| {
            if !self.0.reopening.get() {
                return Poll::Ready(());
            }
            self.0.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
    }
}

struct Reopening<'a>(&'a Inner);

impl Drop for Reopening<'_> {
    fn drop(&mut self) {
        self.0.reopening.set(false);
        for waker in self.0.waiting.take() {
            waker.wake();
        }
    }
}
