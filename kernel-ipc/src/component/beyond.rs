//! Sessions with other nodes: those that are opened with this component's endpoints from there, and those that it opens there.
//!
//! - They are sessions over a socket, from process to process; the supervisors of both nodes only bring the two together. A *ticket*,
//!   32 random bytes, names a session before it is open: both processes have it from their supervisors, and it is its secret then.
//! - A host expects a ticket for a while, once, from one component of one node, which proves by its certificate who it is. Nobody
//!   else opens a session here, whatever they can prove.
//! - What is lent to a client beyond the node is held by an incarnation that [is beyond](Incarnation::is_beyond) it; and so is the host
//!   there of a session that was opened here.
//! - What a client there lends with a call arrives in memory of this process, which nobody else maps, before the call begins.
//! - The sessions of a component that survives do so too: their ledgers are [held](Context::hold) before a client hears of them, and
//!   say by whom and with which ticket they were opened. The next run awaits those clients, and takes back what any other one held.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::endpoint;
use super::{Context, ContextError, Inner};
use crate::broker::{
    MAX_SESSIONS_HELD, OpenedBeyond, PartyKeys, SESSION, Serve, ServeBeyond, TICKET_BYTES, ToSupervisor, Welcome,
};
use crate::lease::{Pool, Region, RegionReader};
use crate::link::socket::bulk::arrive::Intake;
use crate::link::socket::bulk::land::Landing;
use crate::link::socket::bulk::offer::Offering;
use crate::link::socket::bulk::serve::Lending;
use crate::link::socket::dial::{self, Cargo, Options, Remote};
use crate::link::socket::keys::{BadKeys, Keys, NodeName, Party};
use crate::link::socket::listen::{Admitted, Awaited, KeptSession, Listener, Peer};
use crate::link::socket::nodes::{KnownNode, Nodes};
use crate::runtime::{sleep, spawn};
use crate::session::{ClientSession, Grant, Heritage, Ledgers, Served, Service, SessionInfo, WeakSession};
use crate::sys::segment;
use crate::wire::Shape;
use crate::{Incarnation, RegionId, SessionId};

/// Clients that one component expects at a time, how many of them may be of one node, and for how long each. Of a node that announces
/// more, the one that was announced first is not expected any more: so who fails to come takes the place of nobody else's.
const EXPECTED: usize = 1024;
const EXPECTED_OF_A_NODE: usize = 64;
/// Sessions of one node that are held, of those that a component may have held.
const HELD_OF_A_NODE: usize = MAX_SESSIONS_HELD / 2;
const EXPECTED_FOR: Duration = Duration::from_secs(30);

/// Memory for what other nodes lend to this component. Taken from the machine as it is used.
const LANDED_BYTES: usize = 256 << 20;
/// And for what they lend with their calls, likewise: each node has at most 64 MiB of it at a time.
const ARRIVED_BYTES: usize = 512 << 20;
/// What lands, or arrives, begins at multiples of so many bytes.
const GRANULE: usize = 4096;

type Ticket = [u8; TICKET_BYTES];

/// A component's dealings with other nodes.
#[derive(Default)]
pub(super) struct Beyond {
    keys: RefCell<Option<Keys>>,
    /// The nodes with which it has to do.
    nodes: Nodes,
    /// Sessions that it has opened, by the node of their host.
    opened: RefCell<Vec<(NodeName, WeakSession)>>,
    /// Sockets that listen for clients of these endpoints, until each is provided.
    exports: RefCell<HashMap<String, OwnedFd>>,
    expected: RefCell<HashMap<Ticket, Expected>>,
    landing: RefCell<Option<Landing>>,
    intake: RefCell<Option<Intake>>,
    /// Hosts on other nodes with which it has had sessions.
    hosts: Cell<u64>,
    /// The regions that this run has published: it may lend from them.
    own: RefCell<HashMap<RegionId, RegionReader>>,
    /// Sessions whose ledgers are held.
    kept: RefCell<KeptPlaces>,
    /// Those that a dead run has served: how each was opened, until its endpoint is provided.
    inherited: RefCell<HashMap<SessionId, ServeBeyond>>,
    /// Their clients, which hold what they were lent.
    heirs: RefCell<HashSet<Incarnation>>,
}

/// Sessions whose ledgers are held, each with the node of its client: what one node has of them, others do not get.
#[derive(Default)]
struct KeptPlaces(HashMap<SessionId, String>);

impl KeptPlaces {
    /// Whether one more session of a client of this node can be held.
    fn has_room_for(&self, node: &str) -> bool {
        let its = self.0.values().filter(|of| *of == node).count();
        self.0.len() < MAX_SESSIONS_HELD && its < HELD_OF_A_NODE
    }
}

impl PartyKeys {
    fn keys(&self) -> Result<Keys, BadKeys> {
        Keys::chained(&self.authority, &self.chain(), &self.key)
    }
}

/// A session that a client beyond the node is about to open.
struct Expected {
    endpoint: String,
    party: Party,
    root: Grant,
    info: SessionInfo,
    /// If it is to survive: memory for its ledger, and what the next run has to know of it.
    kept: Option<(OwnedFd, Vec<u8>)>,
}

impl Beyond {
    /// Of a run that begins with these keys and sockets. Keys that are none are as if there were none yet.
    pub(super) fn new(welcome: &Welcome, exports: HashMap<String, OwnedFd>) -> Beyond {
        let keys = welcome.keys.as_ref().and_then(|keys| {
            keys.keys().inspect_err(|error| tracing::warn!("this run begins without keys: {error}")).ok()
        });
        let beyond = Beyond { keys: keys.into(), exports: exports.into(), ..Beyond::default() };
        for (node, is) in &welcome.nodes {
            beyond.nodes_learn(node, *is);
        }
        beyond
    }

    /// True: it is another one than it was.
    fn nodes_learn(&self, node: &str, is: KnownNode) -> bool {
        NodeName::new(node).is_some_and(|node| self.nodes.learn(node, is))
    }

    /// A region of this run's own is published. A guest hears only later whether it has to do with other nodes.
    pub(super) fn publishes(&self, region: &Region, is_guest: bool) {
        if self.keys.borrow().is_none() && self.exports.borrow().is_empty() && !is_guest {
            return;
        }
        let reader = region.fd().try_clone_to_owned().and_then(|memory| RegionReader::open(memory, region.id()));
        match reader {
            Ok(reader) => drop(self.own.borrow_mut().insert(region.id(), reader)),
            Err(error) => tracing::warn!("{} cannot be lent to other nodes: {error}", region.id()),
        }
    }
}

/// A new certificate, before the last one ends; or the first, of a run that began when its node could give it none.
pub(super) fn renew(cx: &Context, new: &PartyKeys) {
    let beyond = &cx.0.beyond;
    let known = beyond.keys.borrow().clone();
    let used = match known {
        Some(known) => known.renew(&new.chain(), &new.key),
        None => new.keys().map(|keys| drop(beyond.keys.replace(Some(keys)))),
    };
    if let Err(error) = used {
        return tracing::warn!("a new certificate cannot be used: {error}");
    }
    let endpoints: Vec<_> =
        cx.0.endpoints.borrow().iter().map(|(name, endpoint)| (name.clone(), endpoint.clone())).collect();
    endpoints.iter().for_each(|(name, endpoint)| endpoint.listen(cx, name));
}

/// A node is another one than it was, or none any more: with who it was nobody has to do any longer.
pub(super) fn learn(cx: &Context, node: &str, is: KnownNode) {
    let beyond = &cx.0.beyond;
    if !beyond.nodes_learn(node, is) {
        return;
    }
    let opened = std::mem::take(&mut *beyond.opened.borrow_mut());
    let (its, others) = opened.into_iter().partition(|(of, _): &(NodeName, WeakSession)| of.as_str() == node);
    *beyond.opened.borrow_mut() = others;
    for session in its.iter().filter_map(|(_, session)| session.upgrade()) {
        tracing::warn!("a session ends: its host is of a machine that is not node {node} any more");
        session.host_is_gone();
    }
}

/// Listens for clients of an endpoint on other nodes, if there may be any.
pub(super) fn listen<S: Service>(cx: &Context, endpoint: &str, served: &Served<S>) {
    let beyond = &cx.0.beyond;
    if beyond.keys.borrow().is_none() && beyond.exports.borrow().contains_key(endpoint) {
        // They come later, and so do its clients; but no later than those come back of whom somebody listens.
        tracing::warn!("{endpoint} is not served to other nodes before this run has keys");
        let (weak, endpoint, served) = (Rc::downgrade(&cx.0), endpoint.to_owned(), served.clone());
        return drop(spawn(async move {
            sleep(Options::default().give_up).await;
            if let Some(cx) = weak.upgrade().map(Context) {
                forsake(&served, awaited(&cx, &endpoint));
            }
        }));
    }
    let awaited = awaited(cx, endpoint);
    let listener = match (beyond.exports.borrow_mut().remove(endpoint), beyond.keys.borrow().clone()) {
        (Some(socket), Some(keys)) => Listener::adopt_secured(socket, keys).map_err(|error| error.to_string()),
        (None, _) if awaited.is_empty() => return,
        _ => Err("it has no socket, or no keys".to_owned()),
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            forsake(served, awaited);
            return tracing::warn!("{endpoint} is not served to other nodes: {error}");
        }
    };
    let lending = match intake(cx) {
        Ok(intake) => lending(cx).with_intake(intake),
        Err(error) => {
            tracing::warn!("{endpoint} takes no leases from other nodes: {error}");
            lending(cx)
        }
    };
    let (weak, name) = (Rc::downgrade(&cx.0), endpoint.to_owned());
    let admit = move |peer: &Peer, ticket: &Ticket| take(&Context(weak.upgrade()?), &name, peer, ticket);
    spawn(listener.among(&beyond.nodes).serve_on(served.clone(), Some(lending), Options::default(), awaited, admit));
}

/// The clients of these sessions cannot come back.
fn forsake<S: Service>(served: &Served<S>, awaited: Vec<Awaited>) {
    for session in awaited {
        session.forsake(served);
    }
}

/// What this run lends, from its own regions and those that it maps.
fn lending(cx: &Context) -> Lending {
    let weak = Rc::downgrade(&cx.0);
    let find = move |region| {
        let cx = weak.upgrade()?;
        let own = cx.beyond.own.borrow().get(&region).cloned();
        own.or_else(|| cx.introductions.region(region))
    };
    Lending::by(cx.lender(), find)
}

/// Where what clients on other nodes lend arrives; made for the first endpoint that they use.
fn intake(cx: &Context) -> std::io::Result<Intake> {
    if let Some(intake) = &*cx.0.beyond.intake.borrow() {
        return Ok(intake.clone());
    }
    let region = Region::create("arrived", cx.new_region_id(), ARRIVED_BYTES)?;
    let intake = Intake::new(Pool::new(region, GRANULE))?;
    cx.mapper().borrow_mut().take_in(intake.arrivals().clone());
    cx.holder().borrow_mut().take_in(intake.arrivals().clone());
    cx.0.beyond.intake.replace(Some(intake.clone()));
    Ok(intake)
}

/// The sessions of this endpoint whose clients may come back.
fn awaited(cx: &Context, endpoint: &str) -> Vec<Awaited> {
    let its = |_: &SessionId, wish: &mut ServeBeyond| wish.serve.endpoint == endpoint;
    let inherited: Vec<_> = cx.0.beyond.inherited.borrow_mut().extract_if(its).collect();
    let awaited = inherited.into_iter().filter_map(|(session, wish)| {
        let (serve, heritage) = cx.0.survival.sessions.borrow_mut().remove(&session)?;
        Some(Awaited {
            info: endpoint::info(&serve),
            heritage,
            component: cx.0.survival.records.borrow().clone(),
            secret: wish.ticket,
            party: party(&wish),
            ended: ended(cx, session, serve.client),
        })
    });
    awaited.collect()
}

/// Whose session it is to be.
fn party(wish: &ServeBeyond) -> Option<Party> {
    Party::component(NodeName::new(&wish.node)?, &wish.component)
}

/// What is done when a session has ended that was kept.
fn ended(cx: &Context, session: SessionId, client: Incarnation) -> Box<dyn FnOnce()> {
    let weak = Rc::downgrade(&cx.0);
    Box::new(move || {
        // A task of its own: this runs inside the session.
        let Some(cx) = weak.upgrade().map(Context) else { return };
        spawn(async move {
            cx.let_go_session(session);
            if let Some(lender) = &*cx.0.lender.borrow() {
                lender.borrow_mut().take_back_all(client);
            }
            cx.reclaim();
        });
    })
}

/// What a client begins with, if it is the one that was announced with this ticket.
fn take(cx: &Context, endpoint: &str, peer: &Peer, ticket: &Ticket) -> Option<Admitted> {
    let mut expected = cx.0.beyond.expected.borrow_mut();
    let known = expected.get(ticket)?;
    let is_its = peer.node.as_ref() == Some(&known.party.node) && peer.component == known.party.component;
    if !is_its || known.endpoint != endpoint {
        return None;
    }
    let Expected { root, info, kept, .. } = expected.remove(ticket)?;
    let kept = kept.map(|(session, note)| KeptSession {
        ledgers: Ledgers { session, component: cx.0.survival.records.borrow().clone() },
        note,
        ended: ended(cx, info.id, info.client),
    });
    Some(Admitted { root, info, kept })
}

/// The supervisor announces a client from another node. Answers it.
pub(super) async fn expect(cx: Context, wish: ServeBeyond) {
    let session = wish.serve.session;
    let message = match expected(&cx, wish).await {
        Ok(()) => ToSupervisor::Expects { session },
        Err(reason) => ToSupervisor::Refused { session, reason },
    };
    cx.send(&message, &[]);
}

async fn expected(cx: &Context, wish: ServeBeyond) -> Result<(), String> {
    let party = party(&wish).ok_or("a client without a name")?;
    let ServeBeyond { serve, ticket, .. } = &wish;
    let (name, ticket) = (serve.endpoint.clone(), *ticket);
    let endpoint = cx.0.endpoints.borrow().get(&name).cloned().ok_or("no such endpoint is provided")?;
    let (root, info) = endpoint.clone().root(serve.clone()).await?;
    let session = info.id;
    make_room(cx, &party.node);
    let mut expected = cx.0.beyond.expected.borrow_mut();
    if expected.len() >= EXPECTED || expected.contains_key(&ticket) {
        drop(expected);
        endpoint.forsaken(&info, false);
        return Err("too many clients of other nodes are about to come, or two with one ticket".into());
    }
    let kept = if endpoint.survives() { cx.keep_session(&wish) } else { None };
    expected.insert(ticket, Expected { endpoint: name, party, root, info, kept });
    drop(expected);
    spawn(forget(Rc::downgrade(&cx.0), ticket, session));
    Ok(())
}

/// If as many clients of a node are expected as may be, the first of them is not any more.
fn make_room(cx: &Context, node: &NodeName) {
    let expected = cx.0.beyond.expected.borrow();
    let its = || expected.iter().filter(|(_, known)| known.party.node == *node);
    let first = its().min_by_key(|(_, known)| known.info.id).map(|(ticket, _)| *ticket);
    if let Some(first) = first.filter(|_| its().count() >= EXPECTED_OF_A_NODE) {
        drop(expected);
        no_longer_expected(cx, &first);
    }
}

fn no_longer_expected(cx: &Context, ticket: &Ticket) {
    let forgotten = cx.0.beyond.expected.borrow_mut().remove(ticket);
    let Some(Expected { endpoint, info, .. }) = forgotten else { return };
    cx.let_go_session(info.id);
    let endpoint = cx.0.endpoints.borrow().get(&endpoint).cloned();
    if let Some(endpoint) = endpoint {
        endpoint.forsaken(&info, false);
    }
}

/// A client that has not come by now does not come any more.
async fn forget(cx: Weak<Inner>, ticket: Ticket, session: SessionId) {
    sleep(EXPECTED_FOR).await;
    let Some(cx) = cx.upgrade().map(Context) else { return };
    let is_it = cx.0.beyond.expected.borrow().get(&ticket).is_some_and(|known| known.info.id == session);
    if is_it {
        no_longer_expected(&cx, &ticket);
    }
}

/// Opens the session that the supervisor has arranged with another node's.
///
/// # Errors
/// For people.
pub(super) async fn dial(cx: &Context, interface: &str, to: &OpenedBeyond) -> Result<ClientSession, String> {
    let keys = cx.0.beyond.keys.borrow().clone().ok_or("this run has no keys")?;
    let party = NodeName::new(&to.node).and_then(|node| Party::component(node, &to.component));
    let party = party.ok_or("a host without a name")?;
    let (node, nodes) = (party.node.clone(), &cx.0.beyond.nodes);
    let remote = Remote::party(to.address, party, keys).with_ticket(to.ticket).among(nodes);
    let landing = Some(landing(cx).await.map_err(|error| error.to_string())?);
    let beyond = &cx.0.beyond;
    let host = Incarnation::host_beyond(beyond.hosts.replace(beyond.hosts.get() + 1));
    let (own, holder) = (lending(cx), cx.holder());
    let offering = Some(Offering { own, holder, holders: [cx.incarnation(), host] });
    let cargo = Cargo { landing, offering };
    let session = dial::connect_carrying(remote, interface, Shape::default(), Options::default(), cargo).await;
    let session = session.map_err(|error| format!("{} on node {}: {error}", to.component, to.node))?;
    let mut opened = cx.0.beyond.opened.borrow_mut();
    opened.retain(|(_, session)| session.upgrade().is_some());
    opened.push((node, session.downgrade()));
    Ok(session)
}

/// Where leases of other nodes land; made when there is the first such session.
async fn landing(cx: &Context) -> Result<Landing, ContextError> {
    if let Some(landing) = &*cx.0.beyond.landing.borrow() {
        return Ok(landing.clone());
    }
    // It may connect while it goes on from what its last run has left.
    cx.has_its_lender().await;
    let region = Region::create("landed", cx.new_region_id(), LANDED_BYTES)?;
    let reader = RegionReader::open(region.fd().try_clone_to_owned()?, region.id())?;
    cx.0.introductions.meet_own_region(cx.lender().borrow().id(), reader);
    cx.publish(&region, true).await?;
    let landing = Landing { pool: Pool::new(region, GRANULE), lender: cx.lender(), me: cx.incarnation() };
    // If two were made at once, the later one serves from now on, and the other its session.
    *cx.0.beyond.landing.borrow_mut() = Some(landing.clone());
    Ok(landing)
}

impl Context {
    /// Takes back what clients beyond the node held of earlier runs, but for those whose sessions go on.
    pub(super) fn take_back_beyond(&self) {
        if let Some(lender) = &*self.0.lender.borrow() {
            let (mut lender, heirs) = (lender.borrow_mut(), self.0.beyond.heirs.borrow());
            let is_over = |holder: &Incarnation| holder.is_beyond() && !heirs.contains(holder);
            for holder in lender.holders().into_iter().filter(is_over) {
                lender.take_back_all(holder);
            }
        }
    }

    /// Has memory held for the ledger of a session that is about to be opened. Held before the supervisor, and so the client, hears
    /// that it may be. `None`: it ends with this run.
    fn keep_session(&self, wish: &ServeBeyond) -> Option<(OwnedFd, Vec<u8>)> {
        let session = wish.serve.session;
        let mut kept = self.0.beyond.kept.borrow_mut();
        if !self.survives() {
            return None;
        }
        if !kept.has_room_for(&wish.node) {
            tracing::warn!("a session with {} ends with this run: too many are held already", wish.serve.client_name);
            return None;
        }
        let note = serde_json::to_vec(wish).ok().filter(|note| note.len() <= Ledgers::NOTE_BYTES)?;
        let memory = segment::memfd("atoll-session").and_then(|memory| {
            segment::set_len(&memory, Ledgers::BYTES)?;
            Ok(memory)
        });
        match memory {
            Ok(memory) => {
                self.hold(&format!("{SESSION}{session}"), memory.as_fd());
                kept.0.insert(session, wish.node.clone());
                Some((memory, note))
            }
            Err(error) => {
                tracing::warn!("a session with {} ends with this run: {error}", wish.serve.client_name);
                None
            }
        }
    }

    /// A session with a client on another node is over for this run and all after it.
    pub(super) fn let_go_session(&self, session: SessionId) {
        if self.0.beyond.kept.borrow_mut().0.remove(&session).is_some() {
            self.let_go(&format!("{SESSION}{session}"));
        }
    }

    /// A session with a client on another node that the last run has served. `None`: nobody was told of it.
    ///
    /// # Errors
    /// Why it cannot go on, for people.
    pub(super) fn inherit_beyond(
        &self,
        session: SessionId,
        memory: OwnedFd,
        committed: impl Fn(u16) -> u64,
    ) -> Result<Option<(Serve, Heritage)>, String> {
        self.0.beyond.kept.borrow_mut().0.insert(session, String::new());
        let Welcome { epoch, crash, ref provides, .. } = self.0.welcome;
        let again = memory.try_clone().map_err(|error| error.to_string())?;
        if Heritage::is_blank(again).map_err(|error| error.to_string())? {
            return Ok(None);
        }
        let heritage = Heritage::check(memory, session, committed, crash).map_err(|error| error.to_string())?;
        let note = heritage.note().map_err(|error| error.to_string())?;
        if note.is_empty() {
            return Ok(None);
        }
        let mut wish: ServeBeyond = serde_json::from_slice(&note).map_err(|error| format!("its note: {error}"))?;
        wish.serve.epoch = epoch;
        let serve = &wish.serve;
        let is_its = serve.session == session && serve.client.is_beyond() && party(&wish).is_some();
        if !is_its || !provides.iter().any(|provided| provided.name == serve.endpoint) {
            return Err("its note is not of this session, or of no endpoint".into());
        }
        let serve = serve.clone();
        self.0.beyond.kept.borrow_mut().0.insert(session, wish.node.clone());
        self.0.beyond.heirs.borrow_mut().insert(serve.client);
        self.0.beyond.inherited.borrow_mut().insert(session, wish);
        Ok(Some((serve, heritage)))
    }
}

/// What an endpoint gives a session to begin with.
pub(super) type Root = Pin<Box<dyn Future<Output = Result<(Grant, SessionInfo), String>>>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_has_not_all_the_places_for_sessions_that_are_held() {
        let mut places = KeptPlaces::default();
        let mut held = 0;
        while places.has_room_for("b") {
            held += 1;
            places.0.insert(SessionId(held), "b".into());
        }
        assert_eq!(held, HELD_OF_A_NODE as u64);
        while places.has_room_for("c") {
            held += 1;
            places.0.insert(SessionId(held), "c".into());
        }
        assert_eq!(held, MAX_SESSIONS_HELD as u64);
        assert!(!places.has_room_for("d"));
        places.0.remove(&SessionId(1));
        assert!(places.has_room_for("b") && places.has_room_for("d") && !places.has_room_for("c"));
    }
}
