//! This node's part in its cluster, if the state directory is a node of one: it answers others on its address, and asks them for what
//! its components use there.
//!
//! - A session with a component of another node is announced by this node's supervisor to that one's, which lets its host expect it;
//!   then client and host speak to each other, and neither supervisor is needed any more.
//! - Who may open what, each node knows from its own manifest: what the other one says of rights is not asked.
//! - The operator of another node (its guests) is one here if the manifest says so of that node; else it has nothing to open here.
//!
//! Where others cannot be answered at a start, nothing is started. A supervisor that takes over a running system lets it run, says
//! so, and tries again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::{Duration, SystemTime};

use kernel_ipc::broker::{EXPORT, OpenError, OpenedBeyond, PartyKeys, Serve, ServeBeyond, TICKET_BYTES, ToComponent};
use kernel_ipc::link::socket::keys::{Keys, NodeName};
use kernel_ipc::link::socket::nodes::{KnownNode, Nodes};
use kernel_ipc::runtime::{sleep, spawn, timeout};
use kernel_ipc::sys::random::random_words;
use kernel_ipc::{Incarnation, Rights, SessionId};
use protocol::control::{ComponentStatus, State};
use protocol::node::{AnnounceError, Announced};
use serde_json::Value;

use super::peer::{Peer, Who};
use super::records::{Kind, NumbersTag};
use super::waits::{Either, either};
use super::{Component, Node, control};
use crate::check::place::OPERATOR;
use crate::cluster::authority::LEAF_FOR;
use crate::cluster::desk::{self, Local};
use crate::cluster::directory::{Directory, Embedded};
use crate::cluster::{Home, HomeError, Neighbour, NeighbourError, plain};
use crate::manifest;

/// How long another node waits for a host of ours that is starting, before it asks again.
const HOST_WITHIN: Duration = Duration::from_secs(5);
/// Between two times that another node is asked for a host.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long another node may take to say how its components are.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// The cluster, as this node has it.
pub(super) struct Cluster {
    pub(super) directory: Embedded,
    /// By which it answers, and by which it calls.
    answers: Keys,
    calls: Keys,
    neighbours: RefCell<BTreeMap<String, Rc<Neighbour>>>,
    /// The nodes on which there is something of the system.
    nodes: Nodes,
}

/// Begins to answer other nodes, on the socket of the last supervisor if there was one: nobody who calls meanwhile is refused.
///
/// # Errors
/// For people.
pub async fn answer(node: &Rc<Node>, listener: Option<OwnedFd>) -> Result<(), String> {
    let Some(directory) = node.directory.clone() else { return Ok(()) };
    let home = directory.home().clone();
    let listener = match listener {
        Some(listener) => listener,
        None => listen(home.listening().own()).await?,
    };
    let keys = home.host_keys().map_err(|error| error.to_string())?;
    let calls = home.keys().map_err(|error| error.to_string())?;
    // Last of what can fail: who tries again without the socket could not listen there beside the keeper.
    let kept = node.records.put(Kind::NodeListener, 0, 0, &NumbersTag::default(), Some(listener.as_fd()));
    node.forever.borrow_mut().push(kept.map_err(|error| format!("the keeper: {error}"))?);
    let (neighbours, nodes) = Default::default();
    let cluster = Cluster { directory, answers: keys.clone(), calls, neighbours, nodes };
    if node.cluster.set(cluster).is_err() {
        return Err("it answers other nodes already".into());
    }
    // Those that were started while nobody could be answered have none.
    node.give_keys();
    node.look_at_nodes();
    spawn(stay_known(Rc::downgrade(node)));
    let weak = Rc::downgrade(node);
    let deal = move || weak.upgrade().map_or(0, |node| node.state.deal(1));
    spawn(desk::serve(home, Here(Rc::downgrade(node)), listener, keys, deal).map_err(|error| error.to_string())?);
    Ok(())
}

/// The same for a system that runs already.
pub async fn answer_again(node: Rc<Node>, listener: Option<OwnedFd>) {
    loop {
        let again = listener.as_ref().and_then(|listener| listener.try_clone().ok());
        let Err(error) = answer(&node, again).await else { return };
        eprintln!("supervisor: this node does not answer others: {error}; tried again in {} s", AGAIN.as_secs());
        sleep(AGAIN).await;
    }
}

/// Between two attempts to answer others.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two attempts to listen where somebody else does.
const PAUSE: Duration = Duration::from_millis(50);
/// How many of them: the kernel takes down the ring of a supervisor that has died, and what it accepts on, after it is seen dead.
const ATTEMPTS: u32 = 40;
/// How often it is looked whether a certificate has to be renewed: the clock may be set, and a machine may sleep.
const LOOK: Duration = Duration::from_secs(60);

async fn listen(address: SocketAddr) -> Result<OwnedFd, String> {
    let mut attempt = 1;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && attempt < ATTEMPTS => sleep(PAUSE).await,
            bound => return bound.map(OwnedFd::from).map_err(|error| format!("cannot listen on {address}: {error}")),
        }
        attempt += 1;
    }
}

/// Shows new certificates long before the last ones end.
async fn stay_known(node: Weak<Node>) {
    // What its components show may be as old as the supervisor before this one.
    let mut since: Option<SystemTime> = None;
    loop {
        sleep(LOOK).await;
        let Some(node) = node.upgrade() else { return };
        let Some(cluster) = node.cluster.get() else { return };
        node.look_at_nodes();
        let (home, now) = (cluster.directory.home(), SystemTime::now());
        let age = since.and_then(|since| now.duration_since(since).ok());
        let is_due = age.is_none_or(|age| age > LEAF_FOR / 2);
        let renewed = home.renew_itself(now).and_then(|itself| match is_due || itself {
            true => {
                home.renew_host_keys(&cluster.answers).and_then(|()| home.renew_keys(&cluster.calls)).map(|()| true)
            }
            false => Ok(false),
        });
        match renewed {
            Ok(true) => since = Some(now),
            Ok(false) => continue,
            Err(error) => {
                eprintln!("supervisor: {error}");
                continue;
            }
        }
        node.give_keys();
    }
}

impl Node {
    /// What a component of this node uses on another one, under a name of its manifest entry.
    pub(super) fn used_elsewhere(&self, client: &Peer, name: &str) -> Option<(&manifest::Component, &manifest::Use)> {
        let Who::Component(index) = client.who else { return None };
        let used = self.components.get(index)?.entry.uses.iter().find(|used| used.name == name)?;
        Some((self.elsewhere.iter().find(|host| host.name == used.component)?, used))
    }

    /// What a guest would use on another node, by COMPONENT.ENDPOINT.
    pub(super) fn wanted_elsewhere(
        &self,
        client: &Peer,
        endpoint: &str,
    ) -> Option<(&manifest::Component, manifest::Use)> {
        let (component, name) = endpoint.split_once('.').filter(|_| client.who == Who::Guest)?;
        let host = self.elsewhere.iter().find(|host| host.name == component)?;
        let provided = host.provides.iter().find(|provided| provided.name == name)?;
        let used = manifest::Use {
            name: endpoint.to_owned(),
            component: host.name.clone(),
            endpoint: provided.name.clone(),
            interface: provided.interface.clone(),
            rights: Rights::from_bits_retain(u32::MAX),
            attenuation: Value::Null,
        };
        Some((host, used))
    }

    /// Whether guests of this node are operators of others; then this one is told by what it proves that.
    pub(super) fn equip_operator(self: &Rc<Self>, guest: &Rc<Peer>) -> Result<(), OpenError> {
        let refused = |reason: String| OpenError::Refused { reason };
        let home = self.directory.as_ref().map(|directory| directory.home());
        let home = home.filter(|home| self.operators.iter().any(|node| node == home.name().as_str()));
        let home = home.ok_or_else(|| {
            let here = self.directory.as_ref().map_or_else(String::new, |directory| directory.home().name().to_string());
            refused(format!(
                "it is on another node, and the manifest does not make this node's operator one there: add operators = [\"node:{here}\"] \
                 to its [system], on all nodes"
            ))
        })?;
        let keys = party_keys(home, OPERATOR).map_err(|error| refused(error.to_string()))?;
        self.send(guest, &ToComponent::Keys(Box::new(keys)), &[]);
        for (node, is) in self.known_nodes() {
            self.send(guest, &ToComponent::NodeIs { node, is }, &[]);
        }
        Ok(())
    }

    /// What this node's guests are called elsewhere, and its components.
    fn name_elsewhere<'a>(&self, client: &'a Peer) -> &'a str {
        if client.who == Who::Guest { OPERATOR } else { &client.name }
    }

    /// Whether something lands at a component that other nodes have lent.
    pub(super) fn uses_elsewhere(&self, entry: &manifest::Component) -> bool {
        entry.uses.iter().any(|used| self.elsewhere.iter().any(|host| host.name == used.component))
    }

    /// Gives every run that has to do with other nodes a new certificate.
    fn give_keys(self: &Rc<Self>) {
        for peer in self.living().iter().filter(|peer| peer.is_introducible()) {
            if let Some(keys) = self.component_of(peer).and_then(|component| self.keys_of(component)) {
                self.send(peer, &ToComponent::Keys(Box::new(keys)), &[]);
            }
        }
    }

    /// What the other nodes are on which there is something of the system. Of one of which nothing can be known now, nothing is said.
    pub(super) fn known_nodes(&self) -> Vec<(String, KnownNode)> {
        let Some(directory) = &self.directory else { return Vec::new() };
        let nodes = self.elsewhere.iter().filter_map(|entry| entry.node.as_deref());
        let here = directory.home().name();
        let nodes = nodes.chain(self.operators.iter().map(String::as_str).filter(|node| *node != here.as_str()));
        let mut names: Vec<_> = nodes.filter_map(NodeName::new).collect();
        names.sort_unstable();
        names.dedup();
        let known = names.into_iter().filter_map(|name| match directory.node(&name) {
            Ok(None) => Some((name.to_string(), KnownNode::Gone)),
            Ok(Some(member)) if member.authority => Some((name.to_string(), KnownNode::Authority)),
            Ok(Some(member)) => {
                let fingerprint = member.fingerprint.as_slice().try_into().ok()?;
                Some((name.to_string(), KnownNode::Certified(fingerprint)))
            }
            Err(error) => {
                eprintln!("supervisor: {error}");
                None
            }
        });
        known.collect()
    }

    /// Sees whether a node is another machine than it was, or none any more, and tells those who have to do with it, at each look: a run
    /// that was not there yet when something changed hears of it at the next one. Also when a guest comes: it may be who has removed one.
    pub(super) fn look_at_nodes(self: &Rc<Self>) {
        let Some(cluster) = self.cluster.get() else { return };
        let Look { changed, said } = Look::at(&cluster.nodes, self.known_nodes());
        for node in changed {
            eprintln!("supervisor: node {node} is not what it was: sessions with who had that name end");
            cluster.neighbours.borrow_mut().remove(&node);
        }
        for peer in self.living().iter().filter(|peer| peer.is_introducible()) {
            if self.component_of(peer).is_some_and(|component| self.has_to_do_with_others(&component.entry)) {
                said.iter().for_each(|message| self.send(peer, message, &[]));
            }
        }
    }

    /// Whether a component uses something of other nodes, or they use something of it.
    pub(super) fn has_to_do_with_others(&self, entry: &manifest::Component) -> bool {
        self.uses_elsewhere(entry) || !self.exported(entry).is_empty()
    }

    /// Endpoints of a component of this node that others use.
    fn exported(&self, entry: &manifest::Component) -> Vec<String> {
        let here = self.directory.as_ref().map(|directory| directory.home().name().as_str());
        if self.operators.iter().any(|node| Some(node.as_str()) != here) {
            return entry.provides.iter().map(|provided| provided.name.clone()).collect();
        }
        let uses = self.elsewhere.iter().flat_map(|client| &client.uses);
        let mut exported: Vec<_> =
            uses.filter(|used| used.component == entry.name).map(|used| used.endpoint.clone()).collect();
        exported.sort_unstable();
        exported.dedup();
        exported
    }

    /// Sees to it that clients on other nodes can reach the component's next run, where they could reach the last one.
    ///
    /// # Errors
    /// For people.
    pub(super) fn export(&self, component: &Component) -> Result<(), String> {
        let Some(directory) = &self.directory else { return Ok(()) };
        for endpoint in self.exported(&component.entry) {
            let name = format!("{EXPORT}{endpoint}");
            if component.holdings.again(&name).is_none() {
                component.holdings.hold(name, directory.home().listening().listen()?.into())?;
            }
        }
        Ok(())
    }

    /// By what a run of a component proves to other nodes who it is, if it has to do with them. `None` also if that cannot be made now:
    /// it serves this node meanwhile, and gets it [later](Self::give_keys).
    pub(super) fn keys_of(&self, component: &Component) -> Option<PartyKeys> {
        let entry = &component.entry;
        let home = self.directory.as_ref().filter(|_| self.has_to_do_with_others(entry))?.home();
        party_keys(home, &entry.name)
            .inspect_err(|error| eprintln!("supervisor: no new certificate for {}: {error}", entry.name))
            .ok()
    }

    /// Arranges a session of a component with a host on another node; waits for both.
    pub(super) async fn open_beyond(
        self: &Rc<Self>,
        client: &Rc<Peer>,
        request: u64,
        host: &manifest::Component,
        used: &manifest::Use,
        interface: &str,
    ) -> Result<OpenedBeyond, OpenError> {
        let gone = || OpenError::Unavailable { reason: "the client is gone, or the node is ending".into() };
        let mut said = String::new();
        loop {
            if client.ended.has_happened() || self.stopping.has_happened() {
                return Err(gone());
            }
            let arranged = either(self.announce(client, host, used, interface), client.ended.wait()).await;
            let why = match arranged {
                Either::First(Ok(mut opened)) => {
                    opened.request = request;
                    return Ok(opened);
                }
                Either::First(Err(Later::Never(error))) => return Err(error),
                Either::First(Err(Later::Again(why))) => why,
                Either::Second(()) => return Err(gone()),
            };
            if why != said {
                eprintln!("supervisor: {} waits for {}: {why}", client.name, host.name);
                said = why;
            }
            either(sleep(ASK_AGAIN), self.stopping.wait()).await;
        }
    }

    async fn announce(
        self: &Rc<Self>,
        client: &Peer,
        host: &manifest::Component,
        used: &manifest::Use,
        interface: &str,
    ) -> Result<OpenedBeyond, Later> {
        let again = |error: NeighbourError| Later::Again(error.to_string());
        let (on, neighbour) = self.neighbour(&host.name).await.map_err(Later::Again)?;
        let ticket = ticket().map_err(|error| Later::Again(error.to_string()))?;
        let said = neighbour.announce(self.name_elsewhere(client), &used.name, interface, &ticket).await;
        let unavailable =
            |reason: &str| Later::Never(OpenError::Unavailable { reason: format!("node {on} says that {reason}") });
        match said.map_err(|error| self.forget_neighbour(&on, error)).map_err(again)? {
            Ok(Announced { component, .. }) if component != used.component => {
                Err(unavailable("another component has this: its manifest is another one"))
            }
            Ok(Announced { component, address }) => match address.parse() {
                Ok(address) => Ok(OpenedBeyond { request: 0, address, node: on, component, ticket }),
                Err(_) => Err(unavailable("it is where no address is")),
            },
            Err(AnnounceError::NotReady) => Err(Later::Again(format!("node {on} is starting it"))),
            Err(AnnounceError::NotGiven) => Err(unavailable("its manifest does not give this")),
            Err(AnnounceError::Removed) => Err(unavailable("this node was removed from the cluster")),
            Err(AnnounceError::Unavailable) => {
                Err(Later::Again(format!("node {on} says that it is not available; the log there says why")))
            }
            Err(AnnounceError::BadTicket) => Err(unavailable("a ticket is none")),
        }
    }

    /// The node on which a component of the manifest is, as one that can be called.
    ///
    /// # Errors
    /// For people.
    async fn neighbour(self: &Rc<Self>, component: &str) -> Result<(String, Rc<Neighbour>), String> {
        let cluster = self.cluster.get().ok_or("this is no node of a cluster")?;
        let name = cluster.directory.place(component).ok_or("it runs nowhere")?;
        Ok((name.to_string(), self.neighbour_called(&name).await?))
    }

    /// The node of this name, as one that is called.
    ///
    /// # Errors
    /// For people.
    pub(super) async fn neighbour_called(self: &Rc<Self>, name: &NodeName) -> Result<Rc<Neighbour>, String> {
        let cluster = self.cluster.get().ok_or("this is no node of a cluster")?;
        let known = cluster.neighbours.borrow().get(name.as_str()).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let member = cluster.directory.node(name).map_err(|error| error.to_string())?;
        let member = member.ok_or_else(|| format!("there is no node {name}"))?;
        let address = member.address.parse().map_err(|_| format!("node {name} has no address"))?;
        self.look_at_nodes();
        let neighbour = Neighbour::call_among(&cluster.calls, name, address, Some(&cluster.nodes))
            .await
            .map_err(|error| error.to_string())?;
        let neighbour = Rc::new(neighbour);
        cluster.neighbours.borrow_mut().insert(name.to_string(), neighbour.clone());
        Ok(neighbour)
    }

    /// The next one who wants something of it calls it anew.
    fn forget_neighbour(&self, node: &str, error: NeighbourError) -> NeighbourError {
        if let Some(cluster) = self.cluster.get() {
            cluster.neighbours.borrow_mut().remove(node);
        }
        error
    }

    /// How a component on another node is, as that one says.
    pub(super) async fn status_elsewhere(self: &Rc<Self>, entry: &manifest::Component) -> ComponentStatus {
        let asked = async {
            let (on, neighbour) = self.neighbour(&entry.name).await?;
            let said = neighbour.status(&entry.name).await;
            said.map_err(|error| self.forget_neighbour(&on, error).to_string())?
                .map_err(|error| format!("node {on} says: {error:?}"))
        };
        let trouble = match timeout(TOLD_WITHIN, asked).await {
            Ok(Ok(said)) => {
                // What it is called and where it runs is in the manifest; the rest is another node's words.
                let [listen, trouble] = [said.listen, said.trouble].map(|words| control::shortened(&plain(&words)));
                return ComponentStatus {
                    name: entry.name.clone(),
                    place: control::place(entry),
                    listen,
                    trouble,
                    ..said
                };
            }
            Ok(Err(trouble)) => trouble,
            Err(_) => {
                let on = entry.node.as_deref().unwrap_or_default();
                // It may have gone; the next one who wants something of it calls it anew.
                if let Some(cluster) = self.cluster.get() {
                    cluster.neighbours.borrow_mut().remove(on);
                }
                format!("node {on} does not answer")
            }
        };
        ComponentStatus {
            name: entry.name.clone(),
            pid: 0,
            state: State::Waiting,
            epoch: 0,
            restarts: 0,
            place: control::place(entry),
            listen: String::new(),
            leased_bytes: 0,
            verified_bytes: 0,
            copied_bytes: 0,
            trouble: control::shortened(&trouble),
        }
    }
}

/// One look at what the nodes are.
struct Look {
    /// Those that are not what they were at the last one.
    changed: Vec<String>,
    /// What is said to whom it concerns: also what has been said before, which not all have heard who are there now.
    said: Vec<ToComponent>,
}

impl Look {
    fn at(nodes: &Nodes, known: Vec<(String, KnownNode)>) -> Look {
        let is_new = |(node, is): &&(String, KnownNode)| NodeName::new(node).is_some_and(|name| nodes.learn(name, *is));
        let changed = known.iter().filter(is_new).map(|(node, _)| node.clone()).collect();
        let said = known.into_iter().map(|(node, is)| ToComponent::NodeIs { node, is }).collect();
        Look { changed, said }
    }
}

/// Why there is no session yet, or never.
enum Later {
    Again(String),
    Never(OpenError),
}

/// By what a component of this node, or its operator, proves to others who it is.
fn party_keys(home: &Home, name: &str) -> Result<PartyKeys, HomeError> {
    let own = home.issue(Some(name))?;
    Ok(PartyKeys { authority: home.authority()?, chain: vec![own.certificate, home.certificate()?], key: own.key })
}

/// What of this node's a client on another node may have.
struct Given {
    /// Of the component that serves it.
    index: usize,
    endpoint: String,
    rights: Rights,
    attenuation: Value,
}

impl Node {
    /// What the manifest gives to `client` of `from` under the name that it has there.
    fn given(&self, from: &NodeName, client: &str, name: &str, interface: &str) -> Option<Given> {
        let here = |name: &str| self.components.iter().position(|component| component.entry.name == name);
        if client == OPERATOR && !self.operators.is_empty() {
            let (component, endpoint) = name.split_once('.')?;
            let index = here(component).filter(|_| self.operators.iter().any(|node| node == from.as_str()))?;
            let mut provides = self.components[index].entry.provides.iter();
            provides.find(|provided| provided.name == endpoint && provided.interface == interface)?;
            let (endpoint, rights) = (endpoint.to_owned(), Rights::from_bits_retain(u32::MAX));
            return Some(Given { index, endpoint, rights, attenuation: Value::Null });
        }
        let is_its =
            |entry: &&manifest::Component| entry.name == client && entry.node.as_deref() == Some(from.as_str());
        let entry = self.elsewhere.iter().find(is_its)?;
        let used = entry.uses.iter().find(|used| used.name == name && used.interface == interface)?;
        let (endpoint, attenuation) = (used.endpoint.clone(), used.attenuation.clone());
        Some(Given { index: here(&used.component)?, endpoint, rights: used.rights, attenuation })
    }
}

fn ticket() -> std::io::Result<[u8; TICKET_BYTES]> {
    let words = [random_words()?, random_words()?];
    let mut ticket = [0; TICKET_BYTES];
    for (to, from) in ticket.as_chunks_mut::<8>().0.iter_mut().zip(words.as_flattened()) {
        *to = from.to_le_bytes();
    }
    Ok(ticket)
}

/// What other nodes may ask of this one's components.
struct Here(Weak<Node>);

impl Local for Here {
    async fn announce(
        &self,
        from: &NodeName,
        client: &str,
        name: &str,
        interface: &str,
        ticket: [u8; TICKET_BYTES],
    ) -> Result<Announced, AnnounceError> {
        let node = self.0.upgrade().ok_or(AnnounceError::Unavailable)?;
        let given = node.given(from, client, name, interface).ok_or(AnnounceError::NotGiven)?;
        let Given { index, endpoint, rights, attenuation } = given;
        let component = node.components[index].entry.name.clone();
        let unavailable = |why: String| {
            eprintln!("supervisor: {component} has no session for {client} on node {from}: {why}");
            AnnounceError::Unavailable
        };
        let host = match timeout(HOST_WITHIN, node.serving_run(index)).await {
            Ok(host) => host.map_err(unavailable)?,
            Err(_) => return Err(AnnounceError::NotReady),
        };
        host.room().await.map_err(unavailable)?;
        let session = SessionId(node.state.deal(1));
        let serve = Serve {
            session,
            endpoint: endpoint.clone(),
            epoch: host.epoch,
            client: Incarnation::beyond(node.state.deal(1)),
            client_name: format!("{client}@{from}"),
            status_entry: 0,
            rights,
            attenuation,
            resumes: false,
            inherits: Vec::new(),
        };
        let wish = ServeBeyond { serve, node: from.to_string(), component: client.to_owned(), ticket };
        let message = ToComponent::ServeBeyond(Box::new(wish));
        host.ask(&host.asked.expects, session, &message, &[]).await.map_err(unavailable)?.map_err(unavailable)?;
        let socket = node.components[index].holdings.again(&format!("{EXPORT}{endpoint}"));
        let own = socket.and_then(|socket| TcpListener::from(socket).local_addr().ok());
        let own = own.ok_or_else(|| unavailable("it listens nowhere".into()))?;
        let called = node.directory.as_ref().map_or(own, |directory| directory.home().listening().called(own));
        Ok(Announced { component, address: called.to_string() })
    }

    async fn status(&self, component: &str) -> Option<ComponentStatus> {
        let node = self.0.upgrade()?;
        Some(control::status(&node, node.find(component)?).await)
    }
}

#[cfg(test)]
mod tests {
    use kernel_ipc::runtime::{Options, Runtime};

    use super::*;

    #[test]
    fn an_address_that_is_let_go_a_moment_later_is_listened_on() {
        let other = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = other.local_addr().expect("it is bound");
        let runtime = Runtime::new(Options::default()).expect("io_uring");
        runtime.block_on(async {
            spawn(async move {
                sleep(PAUSE).await;
                drop(other);
            });
            let held = listen(address).await.expect("it is let go");
            let refused = listen(address).await.expect_err("it is held");
            assert!(refused.contains("Address already in use"), "{refused}");
            drop(held);
        });
    }

    #[test]
    fn what_the_nodes_are_is_said_at_each_look_and_what_has_changed_once() {
        let nodes = Nodes::default();
        let known = |b| vec![("a".to_owned(), KnownNode::Authority), ("b".to_owned(), b)];
        let certified = KnownNode::Certified([1; 32]);
        let look = |b| {
            let Look { changed, said } = Look::at(&nodes, known(b));
            let said = said.into_iter().map(|message| match message {
                ToComponent::NodeIs { node, is } => (node, is),
                other => panic!("{other:?}"),
            });
            (changed, said.collect::<Vec<_>>())
        };
        let nothing: Vec<String> = Vec::new();
        assert_eq!(look(certified), (nothing.clone(), known(certified)));
        assert_eq!(look(certified), (nothing.clone(), known(certified)));
        assert_eq!(look(KnownNode::Gone), (vec!["b".to_owned()], known(KnownNode::Gone)));
        // A run that was about to begin has not heard that.
        assert_eq!(look(KnownNode::Gone), (nothing, known(KnownNode::Gone)));
    }
}
