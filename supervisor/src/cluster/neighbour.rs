//! Another node, as one that is called.

use std::net::SocketAddr;

use kernel_ipc::component::{Client, Connection};
use kernel_ipc::link::socket::dial::{self, DialError, Options, Remote};
use kernel_ipc::link::socket::frame::Refusal;
use kernel_ipc::link::socket::keys::{Doubt, Keys, NodeName, doubt};
use kernel_ipc::link::socket::nodes::Nodes;
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Failure};
use protocol::control::ComponentStatus;
use protocol::node::{self, AnnounceError, Announced, Member, MembersError, StatusError};

use super::members::is_possible;

/// Nodes of a cluster that another one may name.
const MOST: usize = 10_000;

/// A session with another node's supervisor.
pub struct Neighbour {
    pub(super) client: node::Client,
    name: NodeName,
    address: SocketAddr,
}

/// Why another node does not do what it was asked.
#[derive(Debug)]
pub enum NeighbourError {
    /// It cannot be reached, or breaks the protocol.
    Unreachable(NodeName, DialError),
    /// Whoever is at its address has not proven to be it.
    Impostor(NodeName, SocketAddr, String),
    /// It does not take this node's certificate.
    Mistrusted(NodeName, SocketAddr, String),
    /// It takes this node for none of the cluster's: it was removed.
    Stranger(NodeName, SocketAddr),
    /// The call did not come to an end.
    Failed(NodeName, SocketAddr, Failure),
    /// It has said of a node what cannot be true, or of too many.
    Nonsense(NodeName, SocketAddr),
    /// It cannot do it; its log says why.
    Trouble(NodeName, SocketAddr),
}

impl std::fmt::Display for NeighbourError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NeighbourError::Unreachable(node, error) => write!(f, "node {node}: {error}"),
            NeighbourError::Impostor(node, address, why) => {
                write!(f, "whoever is at {address} has not proven to be node {node}: {why}")
            }
            NeighbourError::Mistrusted(node, address, why) => {
                write!(f, "node {node} at {address} does not take this node's certificate: {why}")
            }
            NeighbourError::Stranger(node, address) => {
                write!(f, "node {node} at {address} takes this node for none of its cluster: it was removed")
            }
            NeighbourError::Failed(node, address, failure) => {
                write!(f, "node {node} at {address}: the call failed ({:?})", failure.cause)
            }
            NeighbourError::Nonsense(node, address) => {
                write!(f, "what node {node} at {address} says of the cluster makes no sense")
            }
            NeighbourError::Trouble(node, address) => {
                write!(f, "node {node} at {address} cannot do it; its log says why")
            }
        }
    }
}

impl std::error::Error for NeighbourError {}

impl Neighbour {
    /// Calls the node `name`. Nothing is left behind if that fails.
    ///
    /// # Errors
    /// See [`NeighbourError`].
    pub async fn call(keys: &Keys, name: &NodeName, address: SocketAddr) -> Result<Neighbour, NeighbourError> {
        Neighbour::call_among(keys, name, address, None).await
    }

    /// The same, if the machine there is the node of this name now.
    ///
    /// # Errors
    /// See [`NeighbourError`].
    pub async fn call_among(
        keys: &Keys,
        name: &NodeName,
        address: SocketAddr,
        nodes: Option<&Nodes>,
    ) -> Result<Neighbour, NeighbourError> {
        let remote = Remote::node(address, name.clone(), keys.clone());
        let remote = nodes.map_or_else(|| remote.clone(), |nodes| remote.clone().among(nodes));
        let session = dial::connect(remote, node::Client::INTERFACE, Shape::default(), Options::default()).await;
        let session = session.map_err(|error| {
            let doubt = match &error {
                DialError::Io(_, error) => doubt(error),
                _ => None,
            };
            match (doubt, error) {
                (Some(Doubt::Theirs), error) => NeighbourError::Impostor(name.clone(), address, reason(&error)),
                (Some(Doubt::Ours), error) => NeighbourError::Mistrusted(name.clone(), address, reason(&error)),
                (None, DialError::Refused(_, Refusal::Forbidden)) => NeighbourError::Stranger(name.clone(), address),
                (None, error) => NeighbourError::Unreachable(name.clone(), error),
            }
        })?;
        let client = node::Client::from_connection(Connection::fixed(session));
        Ok(Neighbour { client, name: name.clone(), address })
    }

    /// The nodes of the cluster, as this one knows them.
    ///
    /// # Errors
    /// See [`NeighbourError`].
    pub async fn members(&self) -> Result<Vec<Member>, NeighbourError> {
        let mut members: Vec<Member> = Vec::new();
        loop {
            let after = members.last().map_or("", |last| last.name.as_str());
            let page = self.client.members(self.client.root(), after).await;
            let page = page.map_err(|error| match error {
                CallError::Operation(MembersError::Removed) => self.stranger(),
                CallError::Operation(MembersError::Failed) => NeighbourError::Trouble(self.name.clone(), self.address),
                CallError::Failed { cause, executed } => self.failed(Failure { cause, executed }),
            })?;
            // A list that does not go on would never end.
            let goes_on = page.members.last().is_some_and(|last| last.name.as_str() > after);
            members.extend(page.members);
            if members.len() > MOST || !members.iter().all(is_possible) {
                return Err(NeighbourError::Nonsense(self.name.clone(), self.address));
            }
            if !(page.more && goes_on) {
                return Ok(members);
            }
        }
    }

    /// Announces a session of a component of this node; what the other one says to that.
    ///
    /// # Errors
    /// See [`NeighbourError`].
    pub async fn announce(
        &self,
        client: &str,
        name: &str,
        interface: &str,
        ticket: &[u8],
    ) -> Result<Result<Announced, AnnounceError>, NeighbourError> {
        self.said(self.client.announce(self.client.root(), client, name, interface, ticket).await)
    }

    /// How a component of the other node is.
    ///
    /// # Errors
    /// See [`NeighbourError`].
    pub async fn status(&self, component: &str) -> Result<Result<ComponentStatus, StatusError>, NeighbourError> {
        self.said(self.client.status(self.client.root(), component).await)
    }

    fn said<T, E>(&self, answer: Result<T, CallError<E>>) -> Result<Result<T, E>, NeighbourError> {
        match answer {
            Ok(said) => Ok(Ok(said)),
            Err(CallError::Operation(error)) => Ok(Err(error)),
            Err(CallError::Failed { cause, executed }) => Err(self.failed(Failure { cause, executed })),
        }
    }

    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn stranger(&self) -> NeighbourError {
        NeighbourError::Stranger(self.name.clone(), self.address)
    }

    pub(super) fn failed(&self, failure: Failure) -> NeighbourError {
        NeighbourError::Failed(self.name.clone(), self.address, failure)
    }
}

/// What the connection came to nothing by, without where that was. It may have words of the other end's in it.
fn reason(error: &DialError) -> String {
    let words = match error {
        DialError::Io(_, error) => error.to_string(),
        other => other.to_string(),
    };
    plain(&words)
}

/// Words of another node's, as they can be shown.
pub fn plain(words: &str) -> String {
    words.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
}
