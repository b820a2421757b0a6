//! Sessions that go on when their host has died.
//!
//! - Such a session has a [ledger](KeptSession), and in it a note by which the next run can tell who its client is.
//! - The next run [awaits](Awaited) that client for as long as a lost connection may take. It comes back as over a connection that was
//!   lost, with its secret and a higher number than any before, and hears a later epoch.

use std::rc::{Rc, Weak};

use super::super::SocketLink;
use super::super::frame::{Hello, Refusal, SECRET_BYTES};
use super::{Desk, Entry, Party, Peer, same};
use crate::runtime;
use crate::session::{ComponentLedger, Grant, Heritage, HostSession, Ledgers, Served, Service, SessionInfo};

/// What a client is given.
pub struct Admitted {
    /// The session's first capability.
    pub root: Grant,
    /// The session, by a number that no other one has.
    pub info: SessionInfo,
    /// If the session outlives this process: where it is kept.
    pub kept: Option<KeptSession>,
}

/// Where a session is kept.
pub struct KeptSession {
    /// Its ledger, and the component's.
    pub ledgers: Ledgers,
    /// What the next run has to know to make an [`Awaited`] of it.
    pub note: Vec<u8>,
    /// Called once, when the session has ended, and not when the process has.
    pub ended: Box<dyn FnOnce()>,
}

impl From<(Grant, SessionInfo)> for Admitted {
    fn from((root, info): (Grant, SessionInfo)) -> Admitted {
        Admitted { root, info, kept: None }
    }
}

/// A session that a dead run has served, and whose client may come back.
pub struct Awaited {
    /// The session; its epoch is this run's.
    pub info: SessionInfo,
    /// What its ledger says.
    pub heritage: Heritage,
    /// The component's ledger.
    pub component: Option<ComponentLedger>,
    /// Its client's secret.
    pub secret: [u8; SECRET_BYTES],
    /// Whose it is.
    pub party: Option<Party>,
    /// Called once, when the session has ended, or nobody has come for it.
    pub ended: Box<dyn FnOnce()>,
}

impl Awaited {
    /// Its client does not come any more.
    pub(crate) fn forsake<S: Service>(self, served: &Served<S>) {
        let Awaited { info, ended, .. } = self;
        served.forsake(&info);
        served.service().closed(&info);
        ended();
    }
}

/// Who has not come back by now does not come any more.
pub(super) async fn forsake_later<S: Service>(desk: Weak<Desk<S>>) {
    let Some(give_up) = desk.upgrade().map(|desk| desk.options.give_up) else { return };
    runtime::sleep(give_up).await;
    let Some(desk) = desk.upgrade() else { return };
    let awaited = desk.awaited.take();
    for session in awaited.into_values() {
        tracing::warn!("the client of session {} did not come back", session.info.id);
        session.forsake(&desk.served);
    }
}

impl<S: Service> Desk<S> {
    /// Begins a session that survives.
    pub(super) fn begin_kept(
        &self,
        link: SocketLink,
        (root, info): (Grant, SessionInfo),
        kept: KeptSession,
    ) -> Result<HostSession, Refusal> {
        let KeptSession { ledgers, note, ended } = kept;
        match HostSession::over_surviving(link, root, self.served.clone(), info, self.lender(), ledgers, &note) {
            Ok(session) => {
                session.on_end(move |_| ended());
                Ok(session)
            }
            Err(error) => {
                self.warnings.warn(format!("a session cannot be kept: {error}"));
                ended();
                Err(Refusal::Busy)
            }
        }
    }

    /// Goes on with a session of a dead run, whose client is back.
    pub(super) fn revive(self: &Rc<Self>, hello: &Hello, peer: &Peer) -> Result<Rc<Entry>, Refusal> {
        let is_its = |awaited: &Awaited| {
            same(&awaited.secret, &hello.secret)
                && awaited.party == peer.party()
                && awaited.heritage.shape() == hello.shape
        };
        let mut awaited = self.awaited.borrow_mut();
        let known = awaited.get(&hello.session).filter(|known| !self.closed.get() && is_its(known));
        let before = known.ok_or(Refusal::NoSuchSession)?.heritage.connection();
        if hello.number <= before {
            return Err(Refusal::StaleConnection);
        }
        let Some(Awaited { info, heritage, component, ended, .. }) = awaited.remove(&hello.session) else {
            return Err(Refusal::NoSuchSession);
        };
        drop(awaited);
        let link = SocketLink::new(hello.shape);
        let served = self.served.clone();
        let session = HostSession::go_on_over(link.clone(), heritage, served, info, self.lender(), component);
        session.on_end(move |_| ended());
        let entry = self.entry(session, link, hello, peer);
        // Its client knows it, whatever becomes of this connection.
        entry.is_known.set(true);
        entry.number.set(before);
        self.enter(&entry, false);
        Ok(entry)
    }
}
