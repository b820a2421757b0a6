//! What whoever looks inside the node asks of the supervisor: open sessions with their ledgers, and that components trace.

use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::SessionId;
use kernel_ipc::broker::{SessionFacts, ToComponent};
use kernel_ipc::ledger::Holdings;
use kernel_ipc::sys::segment::SegmentWriter;

use super::peer::{Peer, Who};
use super::survival::Surviving;
use super::{Host, Node, control};

impl Node {
    /// Answers with the open session that has the next greater number, and what it holds from an index on.
    pub(super) fn show_session(self: &Rc<Self>, to: &Rc<Peer>, request: u64, after: SessionId, from: u32) {
        let next = self.sessions.borrow().keys().filter(|session| **session > after).min().copied();
        let session = next.and_then(|session| self.session_facts(session, from)).map(Box::new);
        self.send(to, &ToComponent::Session { request, session }, &[]);
    }

    fn session_facts(&self, session: SessionId, from: u32) -> Option<SessionFacts> {
        let sessions = self.sessions.borrow();
        let known = sessions.get(&session)?;
        let surviving = known.surviving.as_ref();
        let component = |index: usize| self.components.get(index).map(|component| &component.entry);
        let (host, endpoint) = match (&known.host, &known.endpoint, surviving) {
            (Host::Supervisor(_), _, _) => (None, "control".to_owned()),
            (_, Some((index, endpoint)), _) => (component(*index), endpoint.clone()),
            (_, None, Some(of)) => (component(of.component), of.serve.endpoint.clone()),
            (Host::Peer(host), None, None) => {
                let host = self.peer(*host);
                (host.and_then(|host| Some(&self.component_of(&host)?.entry)), String::new())
            }
            (Host::Awaited, None, None) => (None, String::new()),
        };
        let provided = host.and_then(|entry| entry.provides.iter().find(|provided| provided.name == endpoint));
        let interface = match (&known.host, provided) {
            (Host::Supervisor(_), _) => control::INTERFACE.to_owned(),
            (_, provided) => provided.map_or_else(String::new, |provided| provided.interface.clone()),
        };
        let client = match surviving {
            Some(of) => of.serve.client_name.clone(),
            None => self.peer(known.client).map_or_else(String::new, |client| client.name.clone()),
        };
        Some(SessionFacts {
            session,
            host: host.map(|entry| entry.name.clone()),
            endpoint,
            interface,
            client,
            suspended: matches!(known.host, Host::Awaited),
            holdings: surviving.map(|surviving| holdings(surviving, session, from)),
        })
    }

    /// All components write spans from now on, for so long.
    pub(super) fn trace_all(self: &Rc<Self>, every: u32, for_ms: u32) {
        let until = Instant::now() + Duration::from_millis(for_ms.into());
        self.tracing.set((every != 0).then_some((every, until)));
        let peers = self.living();
        let hears = |peer: &&Rc<Peer>| matches!(peer.who, Who::Component(_)) && peer.greeting.borrow().is_none();
        for peer in peers.iter().filter(hears) {
            self.send(peer, &ToComponent::Trace { every, for_ms }, &[]);
        }
    }

    /// So does one that is greeted meanwhile.
    pub(super) fn trace_too(self: &Rc<Self>, peer: &Rc<Peer>) {
        let Some((every, until)) = self.tracing.get().filter(|_| matches!(peer.who, Who::Component(_))) else { return };
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        match u32::try_from(left) {
            Ok(for_ms @ 1..) => self.send(peer, &ToComponent::Trace { every, for_ms }, &[]),
            _ => self.tracing.set(None),
        }
    }
}

/// What a ledger says. What its host has written is believed no further than that.
fn holdings(surviving: &Surviving, session: SessionId, from: u32) -> Result<Holdings, String> {
    let memory = surviving.ledger.again().and_then(SegmentWriter::open_kept).map_err(|error| error.to_string())?;
    Holdings::look(memory, session, from, SessionFacts::PART).map_err(|poisoned| poisoned.to_string())
}
