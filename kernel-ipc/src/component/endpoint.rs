//! Endpoints that a component provides, and the sessions that are opened with them.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::beyond::{self, Root};
use super::{Context, Inner, Wanted};
use crate::SessionId;
use crate::broker::{Serve, ToSupervisor};
use crate::runtime::spawn;
use crate::session::{Grant, HostSession, Ledgers, Served, Service, SessionInfo, UnderWay};
use crate::steps;
use crate::wire::Violation;

/// Opens the host's end of a session.
pub(super) trait Endpoint {
    /// `ledger` is fresh memory for a session that survives.
    fn open(self: Rc<Self>, cx: Context, serve: Serve, segment: OwnedFd, ledger: Option<OwnedFd>) -> Opening;

    /// What a session over a socket begins with.
    fn root(self: Rc<Self>, serve: Serve) -> Root;

    /// The client of a session that was to go on is gone before it did.
    fn forsaken(&self, info: &SessionInfo, died: bool);

    /// Begins to leave the calls of all its sessions unread, or to read them again.
    fn hold(&self, held: bool);

    /// What is under way on them.
    fn under_way(&self) -> UnderWay;

    /// Whether its sessions go on in this component's next run, if that goes on.
    fn survives(&self) -> bool;

    /// Listens for clients on other nodes, if there may be any.
    fn listen(&self, cx: &Context, name: &str);
}

type Opening = Pin<Box<dyn Future<Output = Result<HostSession, String>>>>;

/// A service, and what says which capability a session begins with.
pub(super) struct Provided<S, F> {
    pub(super) served: Served<S>,
    pub(super) root: F,
}

impl<S, F> Endpoint for Provided<S, F>
where
    S: Service,
    F: AsyncFn(&SessionInfo) -> Result<Grant, String> + 'static,
{
    fn open(self: Rc<Self>, cx: Context, serve: Serve, segment: OwnedFd, ledger: Option<OwnedFd>) -> Opening {
        Box::pin(async move {
            let (info, lender, service) = (info(&serve), cx.lender(), self.served.clone());
            let component = cx.0.survival.records.borrow().clone();
            if serve.resumes {
                let heritage = cx.0.survival.sessions.borrow_mut().remove(&serve.session);
                let (_, heritage) = heritage.ok_or("the session cannot go on")?;
                return HostSession::go_on(segment, heritage, service, info, Some(lender), component)
                    .map_err(|error| error.to_string());
            }
            let mut root = (self.root)(&info).await?;
            root.rights &= serve.rights;
            let host = match ledger {
                Some(session) => {
                    let ledgers = Ledgers { session, component };
                    HostSession::start_surviving(segment, root, service, info, Some(lender.clone()), ledgers)
                }
                None => HostSession::start(segment, root, service, info, Some(lender.clone())),
            };
            let host = host.map_err(|error| error.to_string())?;
            // Of a client that has gone meanwhile somebody else inherits, or nobody.
            let wanted = cx.0.serving.borrow().get(&serve.session).is_some_and(|(_, wanted)| *wanted == Wanted::Yes);
            let inherits: &[_] = if wanted { &serve.inherits } else { &[] };
            for dead in inherits {
                host.holds(&lender.borrow_mut().inherit(*dead, serve.client, Some(serve.session)));
            }
            if !inherits.is_empty() {
                let is_open = |session| cx.knows(session);
                host.holds(&lender.borrow_mut().adopt(serve.client, serve.session, is_open));
            }
            Ok(host)
        })
    }

    fn root(self: Rc<Self>, serve: Serve) -> Root {
        Box::pin(async move {
            let info = info(&serve);
            let mut root = (self.root)(&info).await?;
            root.rights &= serve.rights;
            Ok((root, info))
        })
    }

    fn forsaken(&self, info: &SessionInfo, died: bool) {
        let service = self.served.service();
        if died {
            service.client_died(info);
        }
        self.served.forsake(info);
        service.closed(info);
    }

    fn hold(&self, held: bool) {
        self.served.hold(held);
    }

    fn under_way(&self) -> UnderWay {
        self.served.under_way()
    }

    fn survives(&self) -> bool {
        S::SURVIVES
    }

    fn listen(&self, cx: &Context, name: &str) {
        beyond::listen(cx, name, &self.served);
    }
}

/// What the two ends know of a session.
pub(super) fn info(serve: &Serve) -> SessionInfo {
    SessionInfo {
        id: serve.session,
        epoch: serve.epoch,
        client: serve.client,
        client_name: serve.client_name.clone(),
        attenuation: serve.attenuation.clone(),
    }
}

/// Answers the supervisor's wish for a session.
pub(super) async fn serve(cx: Context, serve: Serve, segment: OwnedFd, ledger: Option<OwnedFd>) {
    steps::reach("open/begun");
    let id = serve.session;
    let name = serve.endpoint.clone();
    let endpoint = cx.0.endpoints.borrow().get(&name).cloned();
    let opened = match endpoint {
        Some(endpoint) => endpoint.open(cx.clone(), serve, segment, ledger).await,
        None => Err("no such endpoint is provided".to_owned()),
    };
    let wanted = cx.0.serving.borrow_mut().remove(&id).map(|(_, wanted)| wanted);
    match (opened, wanted) {
        // Its client is gone already, and nobody waits for an answer.
        (Ok(session), None | Some(Wanted::No)) => session.client_died(),
        (Ok(session), Some(Wanted::ByHeirs)) => session.abandon(),
        (Ok(session), Some(Wanted::Yes)) => {
            steps::reach("open/made");
            cx.send(&ToSupervisor::Serving { session: id }, session.fd().as_slice());
            steps::reach("open/said");
            if let Some(book) = &cx.0.logbook {
                session.log_to(book, &name);
            }
            session.refuse_after(cx.0.welcome.refuse_after_ms.map(|limit| Duration::from_millis(limit.into())));
            let weak = Rc::downgrade(&cx.0);
            cx.0.hosted.borrow_mut().insert(id, session);
            if let Some(session) = cx.0.hosted.borrow().get(&id) {
                session.on_end(move |violation| ended(&weak, id, violation));
            }
        }
        (Err(reason), _) => cx.send(&ToSupervisor::Refused { session: id, reason }, &[]),
    }
}

impl Context {
    /// Whether a session is served here, or about to be, or waits for its client.
    fn knows(&self, session: SessionId) -> bool {
        self.0.hosted.borrow().contains_key(&session)
            || self.0.serving.borrow().contains_key(&session)
            || self.0.survival.sessions.borrow().contains_key(&session)
    }
}

/// A session has ended by itself: its client has closed it or broken a rule. The supervisor forgets it, and so do we.
fn ended(cx: &Weak<Inner>, id: SessionId, violation: Option<Violation>) {
    let Some(cx) = cx.upgrade().map(Context) else { return };
    // A task of its own: this runs inside the session, which the task drops.
    spawn(async move {
        let ended = cx.0.hosted.borrow_mut().remove(&id);
        // Otherwise it was the supervisor that wanted its end.
        if ended.is_some() {
            let violation = violation.map(|violation| format!("{violation:?}"));
            cx.send(&ToSupervisor::Close { session: id, violation }, &[]);
        }
    });
}
