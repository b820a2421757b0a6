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

/// Longest that components trace for one word, in milliseconds: whoever did not hear that it is over stops by itself.
const TRACES_MAX_MS: u32 = 60_000;

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

    /// All components write spans from now on, for so long, at most [`TRACES_MAX_MS`]. One that does not read what it is told is
    /// left out: whoever says this often must not make the supervisor keep it all.
    pub(super) fn trace_all(self: &Rc<Self>, every: u32, for_ms: u32) {
        let tracing = Tracing::new(every, for_ms, Instant::now());
        self.tracing.set((every != 0).then_some(tracing));
        let for_ms = tracing.for_ms;
        let peers = self.living();
        let hears = |peer: &&Rc<Peer>| {
            matches!(peer.who, Who::Component(_)) && peer.greeting.borrow().is_none() && peer.outbox.waiting() == 0
        };
        for peer in peers.iter().filter(hears) {
            self.send(peer, &ToComponent::Trace { every, for_ms }, &[]);
        }
    }

    /// So does one that is greeted meanwhile.
    pub(super) fn trace_too(self: &Rc<Self>, peer: &Rc<Peer>) {
        let Some(tracing) = self.tracing.get().filter(|_| matches!(peer.who, Who::Component(_))) else { return };
        match tracing.left(Instant::now()) {
            Some(Tracing { every, for_ms, .. }) => self.send(peer, &ToComponent::Trace { every, for_ms }, &[]),
            None => self.tracing.set(None),
        }
    }
}

/// That components write spans, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracing {
    every: u32,
    for_ms: u32,
    until: Instant,
}

impl Tracing {
    fn new(every: u32, for_ms: u32, now: Instant) -> Tracing {
        let for_ms = for_ms.min(TRACES_MAX_MS);
        Tracing { every, for_ms, until: now + Duration::from_millis(for_ms.into()) }
    }

    /// What is left of it, if it is not over.
    fn left(&self, now: Instant) -> Option<Tracing> {
        let left = u32::try_from(self.until.saturating_duration_since(now).as_millis()).ok();
        left.filter(|for_ms| *for_ms > 0).map(|for_ms| Tracing { for_ms, ..*self })
    }
}

/// What a ledger says. What its host has written is believed no further than that.
fn holdings(surviving: &Surviving, session: SessionId, from: u32) -> Result<Holdings, String> {
    let memory = surviving.ledger.again().and_then(SegmentWriter::open_kept).map_err(|error| error.to_string())?;
    Holdings::look(memory, session, from, SessionFacts::PART).map_err(|poisoned| poisoned.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_traces_for_longer_than_a_minute_however_long_is_asked_for() {
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        let tracing = Tracing::new(100, u32::MAX, begun);
        assert_eq!(tracing.for_ms, 60_000);
        assert_eq!(tracing.left(after(59_999)).map(|left| (left.every, left.for_ms)), Some((100, 1)));
        assert!(tracing.left(after(60_000)).is_none());
        let shorter = Tracing::new(1, 3000, begun);
        assert_eq!((shorter.for_ms, shorter.left(after(1000)).map(|left| left.for_ms)), (3000, Some(2000)));
    }
}
