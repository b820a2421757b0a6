//! The host's side: takes connections, opens sessions on them, and gives those that lost theirs the next.
//!
//! - A session is known by a number that is never used again and a secret of its client's; a connection of it has a number
//!   too, higher than any before (R20): an older one that comes late is refused, and the one in use is dropped with
//!   everything unread in it before the new one is answered.
//! - A session whose connection is lost stays for [`Options::give_up`]: its calls go on, its capabilities stand. Then it
//!   ends as if its client had closed it.
//! - A session that [is kept](Admitted::kept) goes on when its host has died.
//! - Strangers cost little: a bounded number of greetings is under way at a time, each for a bounded time, and nothing is
//!   allocated for a session before its hello was checked. Who says nothing keeps nobody out: the one that has been silent
//!   for longest gives way to a newcomer. (Very many at once do: a handshake takes some round trips, and until it has ended a
//!   node is silent too.)
//! - A listener that is [open to newcomers](Listener::to_newcomers) also hears those who prove nothing. They have a few sessions
//!   among them, each for a short time, and the oldest of these gives way to another one.
//! - A session begins with its client's knowledge: one whose welcome could not be sent ends at once.

mod kept;
mod listener;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::bulk::arrive::Berth;
use super::bulk::serve::{Lending, serve};
use super::carrier::Carrier;
pub use super::dial::Options;
use super::dial::watch;
use super::frame::{BadHello, Bulk, Hello, Refusal, SECRET_BYTES, Way, Welcome, interface_bytes};
use super::greeting::{self, Unanswered, Wanted};
use super::keys::{Keys, NodeName, Party};
use super::nodes::Nodes;
use super::stream::Stream;
use super::warnings::Warnings;
use super::{SocketLink, Standing};
use crate::id::SessionId;
use crate::lease::Lender;
use crate::runtime::{self, JoinHandle, clock};
use crate::session::{HostSession, Served, Service};
use crate::wire::VERSION;

pub use kept::{Admitted, Awaited, KeptSession};
pub use listener::{ListenError, Listener};

/// Greetings that may be under way at a time.
const GREETINGS: usize = 64;
/// Sessions that one listener has at most, newcomers' apart.
pub const SESSIONS: usize = 1024;
/// And how many of them one node may have: what it holds, others do not get.
pub const SESSIONS_OF_A_NODE: usize = 256;
/// Sessions that all newcomers together have at most, and how long one lasts.
const NEWCOMERS: usize = 16;
const NEWCOMER_STAYS: Duration = Duration::from_secs(20);

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// The node that it has proven to be; `None` in the clear, and of a newcomer.
    pub node: Option<NodeName>,
    /// The component of that node that it has proven to be; `None`: the node itself.
    pub component: Option<NodeName>,
    /// The certificate (DER) of who has signed that; `None`: the authority, or nobody.
    pub issuer: Option<Rc<[u8]>>,
}

impl Peer {
    fn party(&self) -> Option<Party> {
        self.node.clone().map(|node| Party { node, component: self.component.clone() })
    }
}

/// Ends the sessions of machines that are nodes no more.
async fn end_strangers<S: Service>(desk: Weak<Desk<S>>, nodes: Nodes) {
    loop {
        nodes.changed().await;
        let Some(desk) = desk.upgrade() else { return };
        let is_strange = |entry: &&Rc<Entry>| {
            let party = entry.party.as_ref();
            party.is_some_and(|party| !nodes.admits(&party.node, entry.issuer.borrow().as_deref()))
        };
        let strange: Vec<_> = desk.sessions.borrow().values().filter(is_strange).cloned().collect();
        for entry in strange {
            tracing::warn!("a session ends: its client is of a machine that is no node any more");
            entry.session.close();
        }
        // Of one that is awaited only the name of its node is known: another machine of that name does not know its secret.
        let is_gone = |_: &SessionId, awaited: &mut Awaited| {
            awaited.party.as_ref().is_some_and(|party| nodes.has_gone(&party.node))
        };
        let gone: Vec<_> = desk.awaited.borrow_mut().extract_if(is_gone).collect();
        for (id, awaited) in gone {
            tracing::warn!("session {id} is not awaited any more: its client is of a machine that is no node");
            awaited.forsake(&desk.served);
        }
    }
}

type Admit = Box<dyn FnMut(&Peer, &[u8; SECRET_BYTES]) -> Option<Admitted>>;

/// Where clients come to.
struct Desk<S: Service> {
    served: Served<S>,
    keys: Option<Keys>,
    /// It hears those too who prove nothing.
    newcomers: bool,
    /// Who are nodes, if it asks.
    nodes: Option<Nodes>,
    lending: Option<Lending>,
    options: Options,
    admit: RefCell<Admit>,
    sessions: RefCell<HashMap<SessionId, Rc<Entry>>>,
    /// Sessions of dead runs whose clients have not come back.
    awaited: RefCell<HashMap<SessionId, Awaited>>,
    /// Those under way, the oldest first, and some that have ended.
    greetings: RefCell<VecDeque<Greeting>>,
    warnings: Warnings,
    /// Nobody listens any more.
    closed: Cell<bool>,
}

/// A connection that is asked what it wants.
struct Greeting {
    task: JoinHandle<()>,
    /// It has said so.
    has_spoken: Rc<Cell<bool>>,
}

/// One session.
struct Entry {
    session: HostSession,
    link: SocketLink,
    secret: [u8; SECRET_BYTES],
    /// Whose it is. Nobody else can go on with it, whatever they know.
    party: Option<Party>,
    /// Who signed the certificate of the last connection.
    issuer: RefCell<Option<Rc<[u8]>>>,
    /// Of the latest connection, and of the latest one for leased bytes.
    number: Cell<u64>,
    bulk_number: Cell<u64>,
    /// Serves leased bytes.
    bulk: RefCell<Option<JoinHandle<()>>>,
    /// What its calls lend, and who brings that.
    arguments: Option<Rc<Berth>>,
    bringing: RefCell<Option<JoinHandle<()>>>,
    /// Its client has been welcomed, so it can come back.
    is_known: Cell<bool>,
}

/// Ends all sessions when nobody listens any more.
struct Closing<S: Service>(Rc<Desk<S>>);

impl<S: Service> Drop for Closing<S> {
    fn drop(&mut self) {
        self.0.closed.set(true);
        let sessions = self.0.sessions.take();
        sessions.values().for_each(|entry| entry.session.close());
    }
}

/// Ends a new session whose client was not welcomed: nobody knows its number, so nobody can come back to it.
struct Unknown(Rc<Entry>);

impl Drop for Unknown {
    fn drop(&mut self) {
        if !self.0.is_known.get() {
            self.0.session.close();
        }
    }
}

impl<S: Service> Desk<S> {
    /// Hears what a connection wants.
    fn receive(self: Rc<Self>, connection: Carrier) {
        if !self.has_place() {
            // Dropped without a word: whoever dials tries again.
            return;
        }
        let has_spoken: Rc<Cell<bool>> = Rc::default();
        let (desk, speaks) = (self.clone(), has_spoken.clone());
        let task = runtime::spawn(async move {
            match runtime::timeout(desk.options.greeting, desk.greet(connection, &speaks)).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => desk.warnings.warn(why),
                Err(runtime::Elapsed) => desk.warnings.warn("a connection that did not say what it wanted was dropped"),
            }
        });
        self.greetings.borrow_mut().push_back(Greeting { task, has_spoken });
    }

    /// Whether one more greeting may begin, perhaps because an older one ends.
    fn has_place(&self) -> bool {
        let mut greetings = self.greetings.borrow_mut();
        greetings.retain(|greeting| !greeting.task.is_finished());
        if greetings.len() < GREETINGS {
            return true;
        }
        let oldest = greetings.iter().position(|greeting| !greeting.has_spoken.get());
        let Some(silent) = oldest.and_then(|index| greetings.remove(index)) else { return false };
        drop(greetings);
        silent.task.cancel();
        self.warnings.warn("a connection that had not said what it wanted gave way to a newer one");
        true
    }

    async fn greet(self: &Rc<Self>, connection: Carrier, has_spoken: &Cell<bool>) -> Result<(), String> {
        let stream = Stream::new(connection, self.options.dead_after).map_err(|error| error.to_string())?;
        let address = stream.peer();
        let stream = match &self.keys {
            None => stream,
            Some(keys) => {
                let answer = if self.newcomers { keys.answer_anyone() } else { keys.answer() };
                let answer = answer.map_err(|error| error.to_string())?;
                let secured = stream.secured(answer, None).await;
                secured.map_err(|error| format!("{address} did not prove which node it is: {error}"))?
            }
        };
        let (node, component) = match stream.party().cloned() {
            Some(party) => (Some(party.node), party.component),
            None => (None, None),
        };
        let peer = Peer { address, node, component, issuer: stream.issuer().cloned() };
        if self.keys.is_some() && peer.node.is_none() && !self.newcomers {
            return Err(format!("{address} did not prove which node it is"));
        }
        let stranger = |node| format!("{address} is of a machine that is not node {node} of the cluster (any more)");
        if let Some(node) = peer.node.as_ref().filter(|_| !self.knows(&peer)) {
            stream.dismiss();
            return Err(stranger(node));
        }
        let wanted = greeting::hear(&stream).await;
        has_spoken.set(true);
        // It may have been removed while it said nothing.
        if let Some(node) = peer.node.as_ref().filter(|_| !self.knows(&peer)) {
            stream.dismiss();
            return Err(stranger(node));
        }
        let taken = match wanted {
            Ok(Ok(Wanted::Session(hello))) => match hello.session {
                SessionId(0) => self.open(&hello, &peer),
                _ => self.find(&hello, &peer),
            },
            Ok(Ok(Wanted::Bulk(bulk))) => match self.find_for_bulk(&bulk, &peer) {
                Ok((entry, lending)) => return self.connect_bulk(&entry, lending, stream, &bulk).await,
                Err(refusal) => Err(refusal),
            },
            Ok(Err(BadHello::Version(_))) => Err(Refusal::Version(VERSION)),
            Ok(Err(BadHello::Shape)) => Err(Refusal::Shape),
            Ok(Err(BadHello::Frame(_))) | Err(Unanswered::Frame(_)) => Err(Refusal::NoHello),
            Err(Unanswered::Io(error)) => return Err(format!("{address} left before it had greeted: {error}")),
            Err(Unanswered::Refused(_)) => unreachable!("a host hears no refusals"),
        };
        match taken {
            Ok((entry, welcome, outstanding)) => {
                let _unknown = Unknown(entry.clone());
                self.connect(&entry, stream, &welcome, outstanding).await
            }
            Err(refusal) => {
                // It may have gone already.
                let _ = greeting::refuse(&stream, refusal).await;
                stream.dismiss();
                Err(format!("{address} was refused: {refusal}"))
            }
        }
    }

    /// Whether a peer is of a machine that is a node now.
    fn knows(&self, peer: &Peer) -> bool {
        let Some(nodes) = &self.nodes else { return true };
        peer.node.as_ref().is_none_or(|node| nodes.admits(node, peer.issuer.as_deref()))
    }

    /// A new session.
    fn open(self: &Rc<Self>, hello: &Hello, peer: &Peer) -> Result<(Rc<Entry>, Welcome, u16), Refusal> {
        if interface_bytes(S::INTERFACE.name) != Ok(hello.interface) {
            return Err(Refusal::Interface);
        }
        let is_newcomer = self.newcomers && peer.node.is_none();
        // A greeting may end after its listener has.
        if self.closed.get() || (!is_newcomer && !self.has_room_for(peer)) {
            return Err(Refusal::Busy);
        }
        if is_newcomer {
            self.make_room_for_newcomer();
        }
        let admitted = (self.admit.borrow_mut())(peer, &hello.secret).ok_or(Refusal::Forbidden)?;
        let Admitted { root, info, kept } = admitted;
        let link = SocketLink::new(hello.shape);
        let session = match kept {
            None => HostSession::over(link.clone(), root, self.served.clone(), info, self.lender()),
            Some(kept) => self.begin_kept(link.clone(), (root, info), kept)?,
        };
        let entry = self.entry(session, link, hello, peer);
        self.enter(&entry, is_newcomer);
        let welcome = entry.welcome(hello);
        Ok((entry, welcome, 0))
    }

    fn lender(&self) -> Option<Rc<RefCell<Lender>>> {
        self.lending.as_ref().map(|lending| lending.lender().clone())
    }

    /// A session is served from now on, until it ends.
    fn enter(self: &Rc<Self>, entry: &Rc<Entry>, is_newcomer: bool) {
        let id = entry.session.info().id;
        self.sessions.borrow_mut().insert(id, entry.clone());
        let (desk, keeper) = (Rc::downgrade(self), Rc::downgrade(entry));
        let options = self.options;
        runtime::spawn(async move {
            if let Some(entry) = keeper.upgrade() {
                if is_newcomer {
                    let _ = runtime::timeout(NEWCOMER_STAYS, entry.keep(&options)).await;
                    entry.session.close();
                } else {
                    entry.keep(&options).await;
                }
                entry.end();
            }
            if let Some(desk) = desk.upgrade() {
                let gone = desk.sessions.borrow_mut().remove(&id);
                drop(gone);
            }
        });
    }

    /// Whether there may be one more session of this peer, which is no newcomer.
    fn has_room_for(&self, peer: &Peer) -> bool {
        let sessions = self.sessions.borrow();
        let (mut all, mut of_peer) = (0, 0);
        for entry in sessions.values() {
            all += usize::from(!self.newcomers || entry.party.is_some());
            of_peer += usize::from(entry.party.as_ref().map(|party| &party.node) == peer.node.as_ref());
        }
        all < SESSIONS && (peer.node.is_none() || of_peer < SESSIONS_OF_A_NODE)
    }

    /// Ends the oldest session of a newcomer if there are as many as there may be.
    fn make_room_for_newcomer(&self) {
        let sessions = self.sessions.borrow();
        let newcomers = || sessions.values().filter(|entry| entry.party.is_none() && entry.session.is_open());
        let oldest = newcomers().min_by_key(|entry| entry.session.info().id).cloned();
        if let Some(oldest) = oldest.filter(|_| newcomers().count() >= NEWCOMERS) {
            drop(sessions);
            oldest.session.close();
            self.warnings.warn("the session of a newcomer gave way to that of another one");
        }
    }

    /// A session that lost its connection, or its host.
    fn find(self: &Rc<Self>, hello: &Hello, peer: &Peer) -> Result<(Rc<Entry>, Welcome, u16), Refusal> {
        let known = self.sessions.borrow().get(&hello.session).cloned();
        let entry = match known {
            Some(entry) => entry,
            None => self.revive(hello, peer)?,
        };
        if !entry.is_of(peer, &hello.secret) || entry.link.shape_is_not(hello.shape) {
            return Err(Refusal::NoSuchSession);
        }
        if hello.number <= entry.number.get() {
            return Err(Refusal::StaleConnection);
        }
        entry.number.set(hello.number);
        entry.issuer.replace(peer.issuer.clone());
        entry.session.connected(hello.number);
        // What the old connection still holds is never read: the client offers it again (R20).
        entry.link.detach();
        let welcome = entry.welcome(hello);
        Ok((entry, welcome, hello.outstanding))
    }

    /// Whose leased bytes a connection is for.
    fn find_for_bulk(&self, bulk: &Bulk, peer: &Peer) -> Result<(Rc<Entry>, Lending), Refusal> {
        let entry = self.sessions.borrow().get(&bulk.session).cloned().ok_or(Refusal::NoSuchSession)?;
        if !entry.is_of(peer, &bulk.secret) {
            return Err(Refusal::NoSuchSession);
        }
        let number = entry.bulk_number(bulk.way).ok_or(Refusal::Forbidden)?;
        if bulk.number <= number.get() {
            return Err(Refusal::StaleConnection);
        }
        number.set(bulk.number);
        Ok((entry.clone(), self.lending.clone().ok_or(Refusal::Forbidden)?))
    }

    async fn connect_bulk(&self, entry: &Entry, lending: Lending, stream: Stream, bulk: &Bulk) -> Result<(), String> {
        let peer = stream.peer();
        greeting::ready(&stream).await.map_err(|error| format!("{peer} left while it was welcomed: {error}"))?;
        let is_latest = entry.bulk_number(bulk.way).is_some_and(|number| number.get() == bulk.number);
        if !is_latest || !entry.session.is_open() {
            stream.abort();
            return Ok(());
        }
        let (client, link, arguments) = (entry.session.info().client, entry.link.clone(), entry.arguments.clone());
        let (way, dead_after) = (bulk.way, self.options.dead_after);
        let carrying = runtime::spawn(async move {
            // It ends also when this is cancelled, and the kernel hears of it then.
            let stream = Aborting(Some(stream));
            let ended = match (way, arguments) {
                (Way::ToHost, Some(arguments)) => arguments.over(&stream, dead_after).await,
                _ => match serve(&stream, &lending, client).await {
                    Ok(()) => return,
                    Err(ended) => ended,
                },
            };
            if let Unanswered::Frame(what) = ended {
                link.break_with(what);
            }
        });
        let of_this_way = if bulk.way == Way::ToHost { &entry.bringing } else { &entry.bulk };
        if let Some(before) = of_this_way.replace(Some(carrying)) {
            before.cancel();
        }
        Ok(())
    }

    async fn connect(&self, entry: &Entry, stream: Stream, welcome: &Welcome, outstanding: u16) -> Result<(), String> {
        let sent = greeting::welcome(&stream, welcome).await;
        if entry.number.get() != welcome.number {
            // A later one has overtaken this.
            stream.abort();
            return Ok(());
        }
        sent.map_err(|error| format!("{} left while it was welcomed: {error}", stream.peer()))?;
        entry.is_known.set(true);
        entry.session.reconnected(outstanding);
        entry.link.attach(stream);
        Ok(())
    }
}

/// A connection that ends when nobody uses it any more.
struct Aborting(Option<Stream>);

impl Deref for Aborting {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        self.0.as_ref().expect("it is there until this is dropped")
    }
}

impl Drop for Aborting {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            stream.abort();
        }
    }
}

impl<S: Service> Desk<S> {
    /// A session that is about to be served.
    fn entry(&self, session: HostSession, link: SocketLink, hello: &Hello, peer: &Peer) -> Rc<Entry> {
        session.connected(hello.number);
        // What one node lends takes no room from another; in the clear there are none.
        let of = peer.node.as_ref().map_or("", |node| node.as_str());
        let client = session.info().client;
        let intake = self.lending.as_ref().and_then(|lending| lending.intake().cloned());
        let arguments = intake.map(|intake| Berth::new(intake, of, client, self.options.give_up));
        session.takes_in(arguments.clone());
        Rc::new(Entry {
            session,
            link,
            secret: hello.secret,
            party: peer.party(),
            issuer: peer.issuer.clone().into(),
            number: Cell::new(hello.number),
            bulk_number: Cell::new(0),
            bulk: RefCell::default(),
            arguments,
            bringing: RefCell::default(),
            is_known: Cell::new(false),
        })
    }
}

impl Entry {
    /// Of the latest connection for leased bytes that go this way; `None`: there may be none.
    fn bulk_number(&self, way: Way) -> Option<&Cell<u64>> {
        match way {
            Way::ToClient => Some(&self.bulk_number),
            Way::ToHost => self.arguments.as_ref().map(|arguments| &arguments.number),
        }
    }

    /// The session is over: no leased bytes go any more.
    fn end(&self) {
        for carrying in [&self.bulk, &self.bringing] {
            if let Some(carrying) = carrying.take() {
                carrying.cancel();
            }
        }
        if let Some(arguments) = &self.arguments {
            arguments.end();
        }
    }

    /// Whether it is open and this peer's, who knows this secret.
    fn is_of(&self, peer: &Peer, secret: &[u8; SECRET_BYTES]) -> bool {
        same(&self.secret, secret) && self.party == peer.party() && self.session.is_open()
    }

    fn welcome(&self, hello: &Hello) -> Welcome {
        let info = self.session.info();
        Welcome {
            shape: hello.shape,
            session: info.id,
            epoch: info.epoch,
            root: HostSession::ROOT,
            number: hello.number,
        }
    }

    /// Returns when the session is over.
    async fn keep(&self, options: &Options) {
        let mut cut_since = clock::now();
        while self.session.is_open() {
            match self.link.standing() {
                Standing::Connected => {
                    watch(&self.link, options).await;
                    cut_since = clock::now();
                }
                Standing::Cut => {
                    let left = options.give_up.saturating_sub(clock::now().saturating_duration_since(cut_since));
                    let waited = runtime::timeout(left, self.link.until_changed()).await;
                    if waited.is_err() && self.link.standing() == Standing::Cut {
                        tracing::warn!("the client of session {} did not come back", self.session.info().id);
                        self.session.close();
                    }
                }
                // The session sees it when it looks next.
                Standing::Closed | Standing::Broken(_) => self.link.until_changed().await,
            }
        }
    }
}

/// Whether two secrets are one, in a time that does not tell where they differ.
fn same(one: &[u8; SECRET_BYTES], other: &[u8; SECRET_BYTES]) -> bool {
    one.iter().zip(other).fold(0, |differ, (one, other)| differ | (one ^ other)) == 0
}
