//! Sessions with other nodes: those that are opened with this component's endpoints from there, and those that it opens there.
//!
//! - They are sessions over a socket, from process to process; the supervisors of both nodes only bring the two together. A *ticket*,
//!   32 random bytes, names a session before it is open: both processes have it from their supervisors, and it is its secret then.
//! - A host expects a ticket for a while, once, from one component of one node, which proves by its certificate who it is. Nobody
//!   else opens a session here, whatever they can prove.
//! - What is lent to a client beyond the node is held by an incarnation that [is beyond](Incarnation::is_beyond) it. Its sessions end
//!   with the host's run, so the next run takes back what they held.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::{Context, ContextError};
use crate::broker::{OpenedBeyond, PartyKeys, ServeBeyond, TICKET_BYTES, ToSupervisor};
use crate::lease::{Pool, Region, RegionReader};
use crate::link::socket::bulk::land::Landing;
use crate::link::socket::bulk::serve::Lending;
use crate::link::socket::dial::{self, Options, Remote};
use crate::link::socket::keys::{BadKeys, Keys, NodeName, Party};
use crate::link::socket::listen::{Listener, Peer};
use crate::runtime::{sleep, spawn};
use crate::session::{ClientSession, Grant, Served, Service, SessionInfo};
use crate::wire::Shape;
use crate::{Incarnation, RegionId, SessionId};

/// Tickets that one component expects at a time, and for how long each.
const EXPECTED: usize = 256;
const EXPECTED_FOR: Duration = Duration::from_secs(30);

/// Memory for what other nodes lend to this component. Taken from the machine as it is used.
const LANDED_BYTES: usize = 64 << 20;
/// What lands begins at multiples of so many bytes.
const GRANULE: usize = 4096;

type Ticket = [u8; TICKET_BYTES];

/// A component's dealings with other nodes.
#[derive(Default)]
pub(super) struct Beyond {
    keys: RefCell<Option<Keys>>,
    /// Sockets that listen for clients of these endpoints, until each is provided.
    exports: RefCell<HashMap<String, OwnedFd>>,
    expected: Rc<RefCell<HashMap<Ticket, Expected>>>,
    landing: RefCell<Option<Landing>>,
    /// The regions that this run has published: it may lend from them.
    own: RefCell<HashMap<RegionId, RegionReader>>,
}

/// A session that a client beyond the node is about to open.
struct Expected {
    endpoint: String,
    party: Party,
    root: Grant,
    info: SessionInfo,
}

impl Beyond {
    /// Of a run that begins with these keys and sockets.
    pub(super) fn new(keys: Option<&PartyKeys>, exports: HashMap<String, OwnedFd>) -> Result<Beyond, BadKeys> {
        let keys = keys.map(|keys| Keys::chained(&keys.authority, &keys.chain(), &keys.key)).transpose()?;
        Ok(Beyond { keys: keys.into(), exports: exports.into(), ..Beyond::default() })
    }

    /// A new certificate, before the last one ends.
    pub(super) fn renew(&self, keys: &PartyKeys) {
        let renewed = self.keys.borrow().as_ref().map(|known| known.renew(&keys.chain(), &keys.key));
        if let Some(Err(error)) = renewed {
            tracing::warn!("a new certificate cannot be used: {error}");
        }
    }

    /// A region of this run's own is published.
    pub(super) fn publishes(&self, region: &Region) {
        if self.keys.borrow().is_none() {
            return;
        }
        let reader = region.fd().try_clone_to_owned().and_then(|memory| RegionReader::open(memory, region.id()));
        match reader {
            Ok(reader) => drop(self.own.borrow_mut().insert(region.id(), reader)),
            Err(error) => tracing::warn!("{} cannot be lent to other nodes: {error}", region.id()),
        }
    }
}

/// Listens for clients of an endpoint on other nodes, if there may be any.
pub(super) fn listen<S: Service>(cx: &Context, endpoint: &str, served: &Served<S>) {
    let beyond = &cx.0.beyond;
    let (Some(socket), Some(keys)) = (beyond.exports.borrow_mut().remove(endpoint), beyond.keys.borrow().clone())
    else {
        return;
    };
    let listener = match Listener::adopt_secured(socket, keys) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!("{endpoint} is not served to other nodes: {error}"),
    };
    let weak = Rc::downgrade(&cx.0);
    let find = move |region| {
        let cx = weak.upgrade()?;
        let own = cx.beyond.own.borrow().get(&region).cloned();
        own.or_else(|| cx.introductions.region(region))
    };
    let lending = Lending::by(cx.lender(), find);
    let (expected, name) = (beyond.expected.clone(), endpoint.to_owned());
    let admit = move |peer: &Peer, ticket: &Ticket| take(&expected, &name, peer, ticket);
    spawn(listener.serve(served.clone(), Some(lending), Options::default(), admit));
}

/// What a client begins with, if it is the one that was announced with this ticket.
fn take(
    expected: &RefCell<HashMap<Ticket, Expected>>,
    endpoint: &str,
    peer: &Peer,
    ticket: &Ticket,
) -> Option<(Grant, SessionInfo)> {
    let mut expected = expected.borrow_mut();
    let known = expected.get(ticket)?;
    let is_its = peer.node.as_ref() == Some(&known.party.node) && peer.component == known.party.component;
    if !is_its || known.endpoint != endpoint {
        return None;
    }
    expected.remove(ticket).map(|known| (known.root, known.info))
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
    let ServeBeyond { serve, node, component, ticket } = wish;
    let party = NodeName::new(&node).and_then(|node| Party::component(node, &component));
    let party = party.ok_or("a client without a name")?;
    let name = serve.endpoint.clone();
    let endpoint = cx.0.endpoints.borrow().get(&name).cloned().ok_or("no such endpoint is provided")?;
    if cx.0.beyond.expected.borrow().len() >= EXPECTED {
        return Err("too many clients of other nodes are about to come".into());
    }
    let (root, info) = endpoint.clone().root(serve).await?;
    let session = info.id;
    let mut expected = cx.0.beyond.expected.borrow_mut();
    // Looked at again: others have come meanwhile.
    if expected.len() >= EXPECTED || expected.contains_key(&ticket) {
        drop(expected);
        endpoint.forsaken(&info, false);
        return Err("too many clients of other nodes are about to come, or two with one ticket".into());
    }
    expected.insert(ticket, Expected { endpoint: name, party, root, info });
    drop(expected);
    spawn(forget(cx.0.beyond.expected.clone(), (ticket, session), endpoint));
    Ok(())
}

/// A client that has not come by now does not come any more.
async fn forget(
    expected: Rc<RefCell<HashMap<Ticket, Expected>>>,
    (ticket, session): (Ticket, SessionId),
    endpoint: Rc<dyn Endpoint>,
) {
    sleep(EXPECTED_FOR).await;
    let is_it = expected.borrow().get(&ticket).is_some_and(|known| known.info.id == session);
    let forgotten = if is_it { expected.borrow_mut().remove(&ticket) } else { None };
    if let Some(forgotten) = forgotten {
        endpoint.forsaken(&forgotten.info, false);
    }
}

/// Opens the session that the supervisor has arranged with another node's.
///
/// # Errors
/// For people.
pub(super) async fn dial(cx: &Context, interface: &str, to: &OpenedBeyond) -> Result<ClientSession, String> {
    let keys = cx.0.beyond.keys.borrow().clone().ok_or("this run has no keys")?;
    let party = NodeName::new(&to.node).and_then(|node| Party::component(node, &to.component));
    let remote = Remote::party(to.address, party.ok_or("a host without a name")?, keys).with_ticket(to.ticket);
    let landing = landing(cx).await.map_err(|error| error.to_string())?;
    let session = dial::connect_landing(remote, interface, Shape::default(), Options::default(), landing).await;
    session.map_err(|error| format!("{} on node {}: {error}", to.component, to.node))
}

/// Where leases of other nodes land; made when there is the first such session.
async fn landing(cx: &Context) -> Result<Landing, ContextError> {
    if let Some(landing) = &*cx.0.beyond.landing.borrow() {
        return Ok(landing.clone());
    }
    let region = Region::create("landed", cx.new_region_id(), LANDED_BYTES)?;
    cx.publish_region(&region).await?;
    let landing = Landing { pool: Pool::new(region, GRANULE), lender: cx.lender(), me: cx.incarnation() };
    // If two were made at once, the later one serves from now on, and the other its session.
    *cx.0.beyond.landing.borrow_mut() = Some(landing.clone());
    Ok(landing)
}

impl Context {
    /// Takes back what clients beyond the node held of earlier runs: their sessions have ended with those.
    pub(super) fn take_back_beyond(&self) {
        if let Some(lender) = &*self.0.lender.borrow() {
            let mut lender = lender.borrow_mut();
            for holder in lender.holders().into_iter().filter(|holder: &Incarnation| holder.is_beyond()) {
                lender.take_back_all(holder);
            }
        }
    }
}

/// What an endpoint gives a session to begin with.
pub(super) type Root = Pin<Box<dyn Future<Output = Result<(Grant, SessionInfo), String>>>>;
