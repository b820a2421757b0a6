//! Opening and ending sessions.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use kernel_ipc::broker::{OpenError, Serve, ToComponent};
use kernel_ipc::runtime::spawn;
use kernel_ipc::steps;
use kernel_ipc::{Epoch, Rights, SessionId};
use serde_json::Value;

use super::peer::{Peer, Who};
use super::records::{Kept, Kind, NumbersTag};
use super::survival::{Surviving, session_memory};
use super::waits::{Either, either};
use super::{Host, Node, Phase, Session, control};
use crate::keeper::wire::SUPERVISOR_SLOT;

/// The endpoint that the supervisor itself serves.
const CONTROL: &str = "control";

/// What a client may open.
struct Permission {
    /// The component that serves it.
    component: usize,
    endpoint: String,
    interface: String,
    rights: Rights,
    attenuation: Value,
    /// Which of the component's endpoints it is, and which of the client's uses; of a guest none.
    numbers: [u64; 2],
}

/// What a host has agreed to.
struct Opened {
    session: SessionId,
    host: Rc<Peer>,
    segment: OwnedFd,
}

impl Node {
    /// Answers a client's `Open`.
    pub(super) async fn open(
        self: &Rc<Self>,
        client: Rc<Peer>,
        request: u64,
        endpoint: String,
        interface: String,
        resumes: Option<SessionId>,
        segment: OwnedFd,
    ) {
        steps::reach("open/heard");
        if endpoint == CONTROL && client.who == Who::Guest {
            return self.open_control(&client, request, &interface, segment);
        }
        if let Some((host, used)) = self.used_elsewhere(&client, &endpoint) {
            let message = match self.open_beyond(&client, request, host, used, &interface).await {
                Ok(opened) => ToComponent::OpenedBeyond(Box::new(opened)),
                Err(error) => ToComponent::OpenFailed { request, error },
            };
            return self.send(&client, &message, &[]);
        }
        if let Some((host, used)) = self.wanted_elsewhere(&client, &endpoint) {
            let opened = match self.equip_operator(&client) {
                Ok(()) => self.open_beyond(&client, request, host, &used, &interface).await,
                Err(error) => Err(error),
            };
            let message = match opened {
                Ok(opened) => ToComponent::OpenedBeyond(Box::new(opened)),
                Err(error) => ToComponent::OpenFailed { request, error },
            };
            return self.send(&client, &message, &[]);
        }
        match self.open_with_host(&client, &endpoint, &interface, resumes, &segment).await {
            Ok(Opened { session, host, segment }) => {
                let known = self.sessions.borrow();
                let survives = known.get(&session).is_some_and(|session| session.surviving.is_some());
                drop(known);
                let message = ToComponent::Opened {
                    request,
                    session,
                    epoch: host.epoch,
                    host: host.incarnation,
                    status_entry: host.slot,
                    survives,
                };
                steps::reach("open/introduced");
                self.send(&client, &message, &[segment.as_fd()]);
                steps::reach("open/told");
            }
            Err(error) => {
                if let Some(session) = resumes {
                    self.give_up_resuming(&client, session);
                }
                self.send(&client, &ToComponent::OpenFailed { request, error }, &[]);
            }
        }
    }

    async fn open_with_host(
        self: &Rc<Self>,
        client: &Rc<Peer>,
        endpoint: &str,
        interface: &str,
        resumes: Option<SessionId>,
        segment: &OwnedFd,
    ) -> Result<Opened, OpenError> {
        let permission = self.permission(client, endpoint).ok_or(OpenError::Unknown)?;
        if permission.interface != interface {
            return Err(OpenError::Interface { speaks: permission.interface });
        }
        loop {
            if client.ended.has_happened() {
                return Err(OpenError::Unavailable { reason: "the client is gone".into() });
            }
            let component = &self.components[permission.component];
            if client.who == Who::Guest && component.hold.is_stopped() {
                // A component waits for its host; a person has something to say about it.
                let name = &component.entry.name;
                let reason = format!("{name} was stopped; `atoll start {name}` starts it");
                return Err(OpenError::Unavailable { reason });
            }
            let host = match either(self.serving_run(permission.component), client.ended.wait()).await {
                Either::First(host) => host.map_err(|reason| OpenError::Unavailable { reason })?,
                Either::Second(()) => return Err(OpenError::Unavailable { reason: "the client is gone".into() }),
            };
            let answer = match resumes {
                Some(session) => self.ask_to_go_on(client, &permission, &host, session, segment).await,
                None => self.ask_host(client, &permission, &host, segment).await,
            };
            match answer {
                Ok(opened) if self.is_served_by(opened.session, &host) => return Ok(opened),
                // The client broke it, or went, before it was open.
                Ok(_) if !host.ended.has_happened() => {
                    return Err(OpenError::Refused { reason: "the session ended before it was open".into() });
                }
                // The host died meanwhile, before its client could hear of the session: its next incarnation is asked,
                // with the same segment, which nobody has used.
                Ok(opened) if resumes.is_none() => self.forget_unheard(client, opened.session),
                Ok(_) => {}
                Err(_) if host.ended.has_happened() => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn ask_host(
        self: &Rc<Self>,
        client: &Rc<Peer>,
        permission: &Permission,
        host: &Rc<Peer>,
        segment: &OwnedFd,
    ) -> Result<Opened, OpenError> {
        host.room().await.map_err(|reason| OpenError::Unavailable { reason })?;
        if client.ended.has_happened() {
            return Err(OpenError::Unavailable { reason: "the client is gone".into() });
        }
        let session = SessionId(self.state.deal(1));
        let estate = &self.components[permission.component].estate;
        let ledger = match estate.has_sessions_of(&permission.endpoint) {
            true => Some(session_memory().map_err(|error| OpenError::Unavailable { reason: error.to_string() })?),
            false => None,
        };
        let serve = Serve {
            session,
            endpoint: permission.endpoint.clone(),
            epoch: host.epoch,
            client: client.incarnation,
            client_name: client.name.clone(),
            status_entry: client.slot,
            rights: permission.rights,
            attenuation: permission.attenuation.clone(),
            resumes: false,
            inherits: self.component_of(client).map_or_else(Vec::new, |component| component.estate.ancestors()),
        };
        let message = ToComponent::Serve(Box::new(serve.clone()));
        let mut given = vec![segment.as_fd()];
        given.extend(ledger.as_ref().map(AsFd::as_fd));
        // Known before the host is asked, so that whoever dies from now on, the other hears of it.
        let entry = Session {
            client: client.incarnation,
            endpoint: Some((permission.component, permission.endpoint.clone())),
            host: Host::Peer(host.incarnation),
            surviving: None,
        };
        self.sessions.borrow_mut().insert(session, entry);
        steps::reach("open/known");
        let answer = host.ask(&host.asked.serve, session, &message, &given).await;
        let failed = |error| {
            self.sessions.borrow_mut().remove(&session);
            error
        };
        let segment = match answer {
            Ok(Ok(segment)) => segment,
            Ok(Err(reason)) => return Err(failed(OpenError::Refused { reason })),
            Err(reason) => {
                // It may begin to serve when it is awake again, and must then hear that nobody wants it.
                self.send(host, &unheard(session, client), &[]);
                return Err(failed(OpenError::Unavailable { reason }));
            }
        };
        steps::reach("open/served");
        // Only what the host has begun goes on in its next run.
        if let Some(ledger) = ledger {
            let [endpoint, used] = permission.numbers;
            let tag = NumbersTag([client.incarnation.get(), endpoint, used, 0]);
            match self.records.hold(Kind::Session, host.slot, session.get(), &tag, ledger) {
                Ok(ledger) => {
                    if let Some(entry) = self.sessions.borrow_mut().get_mut(&session) {
                        entry.surviving = Some(Surviving { component: permission.component, serve, ledger });
                    }
                }
                Err(error) => {
                    self.sessions.borrow_mut().remove(&session);
                    self.send(host, &unheard(session, client), &[]);
                    return Err(OpenError::Unavailable { reason: format!("its ledger is not kept: {error}") });
                }
            }
        }
        steps::reach("open/kept");
        // The first lease on this session may be named to a mapper at once: all of them must know the lender by then.
        self.introduced_for(client, host).await;
        Ok(Opened { session, host: host.clone(), segment })
    }

    /// Whether this is a session of `client` that waits for its host's next run.
    pub(super) fn is_awaited(&self, client: &Peer, session: SessionId) -> bool {
        let sessions = self.sessions.borrow();
        let known = sessions.get(&session).filter(|known| known.client == client.incarnation);
        known.is_some_and(|known| matches!(known.host, Host::Awaited))
    }

    /// Whether there is such a session.
    pub(super) fn is_known(&self, session: SessionId) -> bool {
        self.sessions.borrow().contains_key(&session)
    }

    fn is_served_by(&self, session: SessionId, host: &Peer) -> bool {
        let sessions = self.sessions.borrow();
        let known = sessions.get(&session);
        known.is_some_and(|known| matches!(known.host, Host::Peer(of) if of == host.incarnation))
    }

    /// A session that its client has not heard of is awaited by nobody.
    fn forget_unheard(self: &Rc<Self>, client: &Rc<Peer>, session: SessionId) {
        let forgotten = self.sessions.borrow_mut().remove(&session);
        if let Some(forgotten) = forgotten {
            self.tell_next_run(forgotten.surviving, unheard(session, client));
        }
    }

    /// A session cannot go on. What its client holds by it the client may have lent on: if it survives, its next run inherits.
    fn give_up_resuming(self: &Rc<Self>, client: &Rc<Peer>, session: SessionId) {
        let known = self.sessions.borrow().get(&session).is_some_and(|known| known.client == client.incarnation);
        if !known || !self.survives(client) {
            return self.close(client, session, None);
        }
        self.forget_claim(client, session);
        let Some(ended) = self.sessions.borrow_mut().remove(&session) else { return };
        match ended.host {
            Host::Peer(host) => {
                if let Some(host) = self.peer(host) {
                    self.send(&host, &unheard(session, client), &[]);
                }
            }
            Host::Awaited => self.tell_next_run(ended.surviving, unheard(session, client)),
            Host::Supervisor(host) => host.close(),
        }
    }

    /// Asks a host's next run to go on with a session.
    async fn ask_to_go_on(
        self: &Rc<Self>,
        client: &Rc<Peer>,
        permission: &Permission,
        host: &Rc<Peer>,
        session: SessionId,
        segment: &OwnedFd,
    ) -> Result<Opened, OpenError> {
        host.room().await.map_err(|reason| OpenError::Unavailable { reason })?;
        if host.ended.has_happened() {
            // The session is awaited already, and stays so.
            return Err(OpenError::Unavailable { reason: "the host is gone".into() });
        }
        let refused = || OpenError::Refused { reason: "there is no such session to go on with".into() };
        let serve = {
            let mut sessions = self.sessions.borrow_mut();
            let entry = sessions.get_mut(&session).filter(|entry| entry.client == client.incarnation);
            let entry = entry.ok_or_else(refused)?;
            let surviving = entry.surviving.as_ref().filter(|of| of.component == permission.component);
            let serve = surviving.ok_or_else(refused)?.serve.clone();
            if !matches!(entry.host, Host::Awaited) {
                return Err(refused());
            }
            // Before it is asked: if it dies now, the session is awaited again.
            entry.host = Host::Peer(host.incarnation);
            Serve { epoch: host.epoch, resumes: true, ..serve }
        };
        let message = ToComponent::Serve(Box::new(serve));
        steps::reach("resume/known");
        match host.ask(&host.asked.serve, session, &message, &[segment.as_fd()]).await {
            Ok(Ok(segment)) => {
                steps::reach("resume/served");
                self.introduced_for(client, host).await;
                Ok(Opened { session, host: host.clone(), segment })
            }
            Ok(Err(reason)) => Err(OpenError::Refused { reason }),
            Err(reason) => Err(OpenError::Unavailable { reason }),
        }
    }

    /// Waits until a component serves, and returns its run.
    pub(super) async fn serving_run(&self, index: usize) -> Result<Rc<Peer>, String> {
        let component = &self.components[index];
        loop {
            let next = component.changes.next();
            let name = &component.entry.name;
            match component.phase.get() {
                Phase::Ready => {
                    let serves = |run: &Rc<Peer>| !run.ended.has_happened() && run.accounted.get();
                    let run = component.peer.borrow().clone().filter(serves);
                    if let Some(run) = run {
                        return Ok(run);
                    }
                }
                Phase::Failed => return Err(format!("{name} failed: {}", component.trouble.borrow())),
                Phase::Stopping | Phase::Stopped => return Err(format!("{name} is stopping")),
                Phase::Waiting | Phase::Starting | Phase::Restarting | Phase::Held => {}
            }
            match either(next, self.stopping.wait()).await {
                Either::First(()) => {}
                Either::Second(()) => return Err("the node is ending".into()),
            }
        }
    }

    /// What a client may open under this name: a component what its manifest entry says, a guest everything, with all
    /// rights.
    fn permission(&self, client: &Peer, endpoint: &str) -> Option<Permission> {
        let find = |name: &str| self.components.iter().position(|component| component.entry.name == name);
        let endpoint_of = |component: usize, name: &str| {
            self.components.get(component)?.entry.provides.iter().position(|provided| provided.name == name)
        };
        match client.who {
            Who::Component(index) => {
                let uses = &self.components.get(index)?.entry.uses;
                let at = uses.iter().position(|used| used.name == endpoint)?;
                let component = find(&uses[at].component)?;
                self.permission_by(client, component, [endpoint_of(component, &uses[at].endpoint)? as u64, at as u64])
            }
            Who::Guest => {
                let (component, endpoint) = endpoint.split_once('.')?;
                let component = find(component)?;
                self.permission_by(client, component, [endpoint_of(component, endpoint)? as u64, u64::MAX])
            }
        }
    }

    /// The same by numbers: of the component that serves, of its endpoint, of the client's use.
    fn permission_by(&self, client: &Peer, component: usize, numbers: [u64; 2]) -> Option<Permission> {
        let entry = &self.components.get(component)?.entry;
        let provided = entry.provides.get(usize::try_from(numbers[0]).ok()?)?;
        let (rights, attenuation) = match client.who {
            Who::Component(index) => {
                let used = self.components.get(index)?.entry.uses.get(usize::try_from(numbers[1]).ok()?)?;
                if used.component != entry.name || used.endpoint != provided.name {
                    return None;
                }
                (used.rights, used.attenuation.clone())
            }
            Who::Guest => (Rights::from_bits_retain(u32::MAX), Value::Null),
        };
        let (endpoint, interface) = (provided.name.clone(), provided.interface.clone());
        Some(Permission { component, endpoint, interface, rights, attenuation, numbers })
    }

    /// What the last supervisor knew of a session that survives; `numbers` are those of its record's tag.
    pub(super) fn recall_session(
        &self,
        session: SessionId,
        client: &Peer,
        component: usize,
        numbers: [u64; 2],
        ledger: Kept,
    ) -> Option<Surviving> {
        let Permission { endpoint, rights, attenuation, .. } = self.permission_by(client, component, numbers)?;
        let serve = Serve {
            session,
            endpoint,
            // Of the run that goes on with it.
            epoch: Epoch(0),
            client: client.incarnation,
            client_name: client.name.clone(),
            status_entry: client.slot,
            rights,
            attenuation,
            resumes: false,
            inherits: Vec::new(),
        };
        Some(Surviving { component, serve, ledger })
    }

    fn open_control(self: &Rc<Self>, client: &Rc<Peer>, request: u64, interface: &str, segment: OwnedFd) {
        if interface != control::INTERFACE {
            let error = OpenError::Interface { speaks: control::INTERFACE.into() };
            return self.send(client, &ToComponent::OpenFailed { request, error }, &[]);
        }
        let session = SessionId(self.state.deal(1));
        match control::serve(self, client, session, segment) {
            Ok(host) => {
                let (weak, run) = (Rc::downgrade(self), client.clone());
                host.on_end(move |_| {
                    // A task of its own: this runs inside the session, which the task drops.
                    let Some(node) = weak.upgrade() else { return };
                    if node.sessions.borrow().contains_key(&session) {
                        spawn(async move { node.close(&run, session, None) });
                    }
                });
                let opened = ToComponent::Opened {
                    request,
                    session,
                    epoch: Epoch(1),
                    host: kernel_ipc::Incarnation(0),
                    status_entry: SUPERVISOR_SLOT,
                    survives: false,
                };
                self.send(client, &opened, host.fd().as_slice());
                let host = Host::Supervisor(host);
                let entry = Session { client: client.incarnation, endpoint: None, host, surviving: None };
                self.sessions.borrow_mut().insert(session, entry);
            }
            Err(reason) => {
                let error = OpenError::Refused { reason };
                self.send(client, &ToComponent::OpenFailed { request, error }, &[]);
            }
        }
    }

    /// Sessions that a run has open as a client.
    pub(super) fn sessions_of(&self, client: &Peer) -> usize {
        self.sessions.borrow().values().filter(|session| session.client == client.incarnation).count()
    }

    /// One side ends a session in order, or because of what the other did.
    pub(super) fn close(self: &Rc<Self>, by: &Rc<Peer>, id: SessionId, violation: Option<&str>) {
        self.forget_claim(by, id);
        let mut sessions = self.sessions.borrow_mut();
        let Some(session) = sessions.get(&id) else { return };
        let is_client = session.client == by.incarnation;
        let is_host = matches!(session.host, Host::Peer(host) if host == by.incarnation);
        if !is_client && !is_host {
            return; // Not its session: nothing of it is told or changed.
        }
        let Some(session) = sessions.remove(&id) else { return };
        drop(sessions);
        if let Some(violation) = violation {
            eprintln!("supervisor: {} closes session {id}: {violation}", by.name);
        }
        match (is_client, session.host) {
            (true, Host::Peer(host)) => {
                if let Some(host) = self.peer(host) {
                    self.send(&host, &closed(id, by), &[]);
                }
            }
            (true, Host::Supervisor(host)) => host.close(),
            (true, Host::Awaited) => self.tell_next_run(session.surviving, closed(id, by)),
            (false, _) => {
                if let Some(client) = self.peer(session.client) {
                    self.send(&client, &ToComponent::HostGone { session: id, survives: false }, &[]);
                }
            }
        }
    }

    /// A run has ended: its sessions end or are awaited, and the other side of each hears of it.
    pub(super) fn end_sessions_of(self: &Rc<Self>, gone: &Rc<Peer>) {
        let (mut told, mut orphaned) = (Vec::new(), Vec::new());
        let survives = self.survives(gone);
        self.sessions.borrow_mut().retain(|&id, session| {
            let is_client = session.client == gone.incarnation;
            match &mut session.host {
                Host::Supervisor(host) if is_client => host.close(),
                Host::Peer(host) if is_client => {
                    let client = gone.incarnation;
                    told.push((*host, ToComponent::ClientGone { session: id, client, died: true, survives }));
                }
                Host::Awaited if is_client => orphaned.push((session.surviving.take(), id)),
                Host::Peer(host) if *host == gone.incarnation => {
                    let awaited = survives && session.surviving.is_some();
                    told.push((session.client, ToComponent::HostGone { session: id, survives: awaited }));
                    session.host = Host::Awaited;
                    return awaited;
                }
                _ => {}
            }
            !is_client
        });
        for (other, message) in told {
            if let Some(other) = self.peer(other) {
                self.send(&other, &message, &[]);
            }
        }
        for (surviving, id) in orphaned {
            let (client, died) = (gone.incarnation, true);
            self.tell_next_run(surviving, ToComponent::ClientGone { session: id, client, died, survives });
        }
    }

    /// The client of an awaited session is gone: the host's next run, if there is one, need not wait for it.
    pub(super) fn tell_next_run(self: &Rc<Self>, surviving: Option<Surviving>, message: ToComponent) {
        let component = surviving.and_then(|surviving| self.components.get(surviving.component));
        let run = component.and_then(|component| component.peer.borrow().clone());
        if let Some(run) = run.filter(|run| run.is_introducible()) {
            self.send(&run, &message, &[]);
        }
    }
}

/// What a host hears of a session that its client has ended.
fn closed(session: SessionId, client: &Peer) -> ToComponent {
    ToComponent::ClientGone { session, client: client.incarnation, died: false, survives: false }
}

/// What a host hears of a session that its client does not use any more, or has not heard of, and lives. What the client holds
/// by it stays the client's.
fn unheard(session: SessionId, client: &Peer) -> ToComponent {
    ToComponent::ClientGone { session, client: client.incarnation, died: false, survives: true }
}
