//! A reactor's part of an endpoint: its instance of the service.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;

use super::Moved;
use crate::broker::Serve;
use crate::component::endpoint;
use crate::session::{Grant, HostSession, Movable, Served, Service, SessionInfo};

/// For an endpoint whose service's type is forgotten.
pub(super) trait Branch {
    /// Opens the host's end of a session.
    fn open(self: Rc<Self>, serve: Serve, segment: OwnedFd) -> Opening;

    /// Takes a session out of this reactor. Gives it back if it stays.
    fn leave(&self, endpoint: &str, session: HostSession) -> Result<Moved, HostSession>;

    /// Serves a session that comes from another reactor's part of the same endpoint.
    fn arrive(&self, moved: Moved) -> HostSession;
}

type Opening = Pin<Box<dyn Future<Output = Result<HostSession, String>>>>;

/// A service of which each reactor has an instance, and what says which capability a session begins with.
pub(super) struct OnEach<S, F> {
    served: Served<S>,
    root: F,
}

impl<S: Service, F> OnEach<S, F> {
    pub(super) fn new(service: Rc<S>, root: F) -> OnEach<S, F> {
        OnEach { served: Served::one_of_many(service), root }
    }
}

impl<S, F> Branch for OnEach<S, F>
where
    S: Service + Movable,
    F: AsyncFn(&SessionInfo) -> Result<Grant, String> + 'static,
{
    fn open(self: Rc<Self>, serve: Serve, segment: OwnedFd) -> Opening {
        Box::pin(async move {
            let info = endpoint::info(&serve);
            let mut root = (self.root)(&info).await?;
            root.rights &= serve.rights;
            HostSession::start(segment, root, self.served.clone(), info, None).map_err(|error| error.to_string())
        })
    }

    fn leave(&self, endpoint: &str, session: HostSession) -> Result<Moved, HostSession> {
        let parted = session.part()?;
        let state = Box::new(self.served.service().leave(parted.info()));
        Ok(Moved { endpoint: endpoint.to_owned(), parted, state })
    }

    fn arrive(&self, moved: Moved) -> HostSession {
        let state = moved.state.downcast().expect("each instance of an endpoint's service is of the same type");
        self.served.service().arrive(moved.parted.info(), *state);
        HostSession::arrive(moved.parted, self.served.clone())
    }
}
