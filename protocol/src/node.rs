//! `atoll.node/1`: what nodes of a cluster say to each other.
//!
//! Served by the supervisor of each node on the node's own address, over TLS 1.3 ([docs/nodes.md](../../docs/nodes.md)). Who calls is
//! known from its certificate; a newcomer has none, and may do nothing but [`join`](Node).

use kernel_ipc::interface::{OperationError, Wire, interface};

use crate::control::ComponentStatus;

/// What nodes of a cluster say to each other.
#[interface("atoll.node/1")]
pub trait Node {
    /// The cluster, as the node that is asked knows it.
    type Cluster;

    /// Become a node of it, with a token.
    const JOIN: Rights = 8;
    /// Be one.
    const MEMBER: Rights = 9;

    /// Makes a node of who asks: takes the token, which is used up by it, and signs a certificate for `name` and `public_key`.
    #[op(1, requires = JOIN, retry = cached, deadline = "10s")]
    fn join(cluster: Cluster, secret: &[u8], name: &str, address: &str, public_key: &[u8])
    -> Result<Joined, JoinError>;

    /// Lists nodes by name, those behind `after` (empty: from the first).
    #[op(2, requires = MEMBER, retry = idempotent, deadline = "5s")]
    fn members(cluster: Cluster, after: &str) -> Result<MemberPage, MembersError>;

    /// Announces a session: the component `client` of the asking node, which calls it `name` in its manifest entry, is about to come
    /// with `ticket`. What it may do, the manifest of the node that is asked says. Waits for a while for a host that is starting.
    #[op(3, requires = MEMBER, retry = cached, deadline = "30s")]
    fn announce(
        cluster: Cluster,
        client: &str,
        name: &str,
        interface: &str,
        ticket: &[u8],
    ) -> Result<Announced, AnnounceError>;

    /// Says how a component of this node is.
    #[op(4, requires = MEMBER, retry = idempotent, deadline = "5s")]
    fn status(cluster: Cluster, component: &str) -> Result<ComponentStatus, StatusError>;
}

/// What a newcomer is given.
#[derive(Clone, Debug, PartialEq, Eq, Wire)]
pub struct Joined {
    /// Its certificate (X.509, DER), by which it signs those of its components.
    pub certificate: Vec<u8>,
    /// The authority's, which the token has the fingerprint of.
    pub authority: Vec<u8>,
    /// The node that has let it in.
    pub by: Member,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Wire)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// "host:port" where other nodes call it.
    pub address: String,
    /// SHA-256 of its certificate: a node of this name with another one is none of the cluster's.
    pub fingerprint: Vec<u8>,
    /// When it joined, in seconds since the Unix epoch.
    pub since_s: u64,
    /// Until when its certificate is good, likewise.
    pub until_s: u64,
    /// It has the authority's key, and lets others in.
    pub authority: bool,
}

/// Some nodes, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Wire)]
pub struct MemberPage {
    /// There are more behind the last of these.
    pub more: bool,
    /// The nodes.
    pub members: Vec<Member>,
}

/// Why a newcomer is none of the cluster's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum JoinError {
    /// This node has not the authority's key: ask the one that made the token.
    NotTheAuthority = 1,
    /// No such token was made.
    UnknownToken = 2,
    /// The token was used already. Each lets one node in.
    UsedToken = 3,
    /// The token is too old.
    ExpiredToken = 4,
    /// That is no name of a node.
    BadName = 5,
    /// A node of this name is there already.
    NameTaken = 6,
    /// That is no public key of the kind that is used here.
    BadKey = 7,
    /// That is no address at which others could call.
    BadAddress = 8,
    /// The node cannot write down that it lets the newcomer in. Its log says why.
    Failed = 9,
}

/// Where a host expects a client.
#[derive(Clone, Debug, PartialEq, Eq, Wire)]
pub struct Announced {
    /// The component that serves the endpoint.
    pub component: String,
    /// "host:port" where it listens for clients on other nodes.
    pub address: String,
}

/// Why a client from another node is not expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum AnnounceError {
    /// The asking node was removed from the cluster.
    Removed = 10,
    /// The manifest here gives no component of that node such a session, or another interface.
    NotGiven = 11,
    /// The host is not ready yet: ask again.
    NotReady = 12,
    /// The host was given up or ends, or refuses. The log of the node that is asked says why.
    Unavailable = 13,
    /// That is no ticket.
    BadTicket = 14,
}

/// Why it is not said how a component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum StatusError {
    /// The asking node was removed from the cluster.
    Removed = 10,
    /// No component of this name runs on this node.
    NoSuchComponent = 15,
}

/// Why there is no list of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum MembersError {
    /// The asking node was removed from the cluster.
    Removed = 10,
    /// The list cannot be read. The node's log says why.
    Failed = 9,
}
