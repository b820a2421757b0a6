//! Endpoints that a component provides, and the sessions that are opened with them.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;

use super::Context;
use crate::broker::{Serve, ToSupervisor};
use crate::session::{Grant, HostSession, Service, SessionInfo};

/// Opens the host's end of a session.
pub(super) trait Endpoint {
    fn open(self: Rc<Self>, cx: Context, serve: Serve, segment: OwnedFd) -> Opening;
}

type Opening = Pin<Box<dyn Future<Output = Result<HostSession, String>>>>;

/// A service, and what says which capability a session begins with.
pub(super) struct Provided<S, F> {
    pub(super) service: Rc<S>,
    pub(super) root: F,
}

impl<S, F> Endpoint for Provided<S, F>
where
    S: Service,
    F: AsyncFn(&SessionInfo) -> Result<Grant, String> + 'static,
{
    fn open(self: Rc<Self>, cx: Context, serve: Serve, segment: OwnedFd) -> Opening {
        Box::pin(async move {
            let info = SessionInfo {
                id: serve.session,
                epoch: serve.epoch,
                client: serve.client,
                client_name: serve.client_name,
                attenuation: serve.attenuation,
            };
            let mut root = (self.root)(&info).await?;
            root.rights &= serve.rights;
            HostSession::start(segment, root, self.service.clone(), info, Some(cx.lender()))
                .map_err(|error| error.to_string())
        })
    }
}

/// Answers the supervisor's wish for a session.
pub(super) async fn serve(cx: Context, serve: Serve, segment: OwnedFd) {
    let id = serve.session;
    let endpoint = cx.0.endpoints.borrow().get(&serve.endpoint).cloned();
    let opened = match endpoint {
        Some(endpoint) => endpoint.open(cx.clone(), serve, segment).await,
        None => Err("no such endpoint is provided".to_owned()),
    };
    match opened {
        Ok(session) => {
            cx.send(&ToSupervisor::Serving { session: id }, session.fd().as_slice());
            cx.0.hosted.borrow_mut().insert(id, session);
        }
        Err(reason) => cx.send(&ToSupervisor::Refused { session: id, reason }, &[]),
    }
}
