//! A component on many cores: N reactors, each a thread with a runtime and instances of the services of its own.
//!
//! - Sessions are spread over the reactors. A session is served by one of them at a time, with everything that a call touches:
//!   its segments, its table of capabilities, its service. So they share nothing on the way of a call, and services stay
//!   `Rc` and `Cell`.
//! - The first reactor is the component's own thread: it has the control socket, runs the component's program, and says where
//!   sessions go: new ones to whoever has the fewest, open ones elsewhere when the load is [uneven](balance) or somebody asks.
//! - The others get *orders* and answer with *news*, by [mailboxes](crate::runtime::mailbox) (the first one's own part of the
//!   sessions too: there is one way). Those of one pair arrive in their order, and a session has a place at any time, to which
//!   what concerns it is said; so what is said during a [move](Context::move_session) waits until that is over.
//! - What there is once in a component is the first reactor's and nobody else's: its ledgers, its lease table, its sessions as
//!   a client. So a component with several of them lends nothing and does not survive, and says so when it tries to.

mod balance;
mod local;
mod moves;
mod place;
mod rest;
mod share;

use std::any::Any;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::{Context, ContextError, Inner};
use crate::SessionId;
use crate::broker::{Serve, ToSupervisor};
use crate::runtime::{Mailbox, spawn};
use crate::session::{Grant, Movable, Parted, Service, SessionInfo};

use balance::Load;
use share::{Branch, OnEach};

pub(super) use local::Threads;
pub use moves::MoveError;
pub(super) use place::{Places, Question};

/// One of a component's reactors, for whoever makes an instance of a service for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reactor {
    /// From 0; that is the component's own thread.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

/// Makes a reactor's part of an endpoint, on the reactor's thread.
type Make = Arc<dyn Fn(Reactor) -> Rc<dyn Branch> + Send + Sync>;

/// What a reactor is told.
enum Order {
    /// It serves this endpoint too from now on.
    Provide { endpoint: String, make: Make },
    /// Open a session; answer `Opened`. With the client's segment.
    Open { serve: Box<Serve>, segment: OwnedFd },
    /// The client of a session is gone.
    Gone { session: SessionId, died: bool },
    /// Give a session up to be moved; answer `Left`.
    Leave { session: SessionId },
    /// Serve a session that another one has given up; answer `Arrived`.
    Arrive(Box<Moved>),
    /// Answer `Beat`: with the load of the period that ends now, if one does.
    Beat { ends_period: bool },
    /// End: close all sessions.
    Stop,
}

/// What a reactor says.
enum News {
    /// A session is open: with the host's segment. Or why it is not, for people.
    Opened { session: SessionId, opened: Result<OwnedFd, String> },
    /// A session has ended by itself; with what its client has broken, if anything.
    Ended { session: SessionId, violation: Option<String> },
    /// A session is on its way; or stays, and why.
    Left { session: SessionId, left: Result<Box<Moved>, MoveError> },
    /// It is served.
    Arrived { session: SessionId },
    /// It lives, and has had this to do, if a period has ended.
    Beat(Load),
    /// It cannot go on, and says why.
    Failed(String),
}

/// News, and of which reactor.
type Said = (u32, News);

/// A session between two reactors.
struct Moved {
    endpoint: String,
    parted: Parted,
    /// Of its service.
    state: Box<dyn Any + Send>,
}

impl Context {
    /// How many reactors this component has, by its manifest entry.
    pub fn reactors(&self) -> u32 {
        self.0.welcome.reactors
    }

    /// As [`provide`](Context::provide), with an instance of the service on each reactor: `make` is called on each of their
    /// threads, and gives an instance with what says how a session's first capability is. Instances share what `make` lets
    /// them share, which should be nothing that a call touches.
    ///
    /// With more than one reactor sessions cannot be lent anything, nor give capabilities to each other (`Refused`).
    ///
    /// # Errors
    /// [`ContextError::UnknownEndpoint`] as for `provide`; [`ContextError::OneReactor`] if the service survives, and there are
    /// several reactors.
    pub fn provide_on_each<S, F>(
        &self,
        name: &str,
        make: impl Fn(Reactor) -> (Rc<S>, F) + Send + Sync + 'static,
    ) -> Result<(), ContextError>
    where
        S: Service + Movable,
        F: AsyncFn(&SessionInfo) -> Result<Grant, String> + 'static,
    {
        let Some(places) = &self.0.places else {
            let (service, root) = make(Reactor { index: 0, count: 1 });
            return self.provide(name, service, root);
        };
        self.knows_endpoint::<S>(name)?;
        if S::SURVIVES {
            return Err(self.one_reactor(&format!("endpoint {name} survives")));
        }
        let make: Make = Arc::new(move |reactor| {
            let (service, root) = make(reactor);
            Rc::new(OnEach::new(service, root))
        });
        places.to_all(|| Order::Provide { endpoint: name.to_owned(), make: make.clone() });
        let interface = S::INTERFACE.name.to_owned();
        self.send(&ToSupervisor::Provides { endpoint: name.to_owned(), interface, survives: false }, &[]);
        Ok(())
    }

    /// What a component with several reactors cannot have.
    pub(super) fn one_reactor(&self, what: &str) -> ContextError {
        ContextError::OneReactor { what: what.to_owned(), reactors: self.reactors() }
    }
}

/// Begins the first reactor's part, and hears what all of them say. False: there is one only. Once, in the runtime.
pub(super) fn begin(cx: &Context) -> bool {
    let Some(places) = &cx.0.places else { return false };
    let news = places.threads.begin(cx.0.logbook.clone());
    spawn(listen(Rc::downgrade(&cx.0), news));
    true
}

/// Hears what the reactors say, until the component ends.
async fn listen(cx: Weak<Inner>, news: Mailbox<Said>) {
    loop {
        let (reactor, said) = news.next().await;
        let Some(cx) = cx.upgrade().map(Context) else { return };
        let Some(places) = &cx.0.places else { return };
        match said {
            News::Opened { session, opened } => places.opened(&cx, session, opened),
            News::Ended { session, violation } => places.ended(&cx, session, violation),
            News::Left { session, left } => places.left(session, left),
            News::Arrived { session } => places.arrived(session),
            News::Beat(load) => places.beats(&cx, reactor, load),
            News::Failed(reason) => {
                cx.0.failure.replace(Some(format!("reactor {reactor}: {reason}")));
                cx.0.failed.happen();
            }
        }
    }
}
