//! Becoming a node of a cluster.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kernel_ipc::link::socket::keys::{Keys, NodeName, fingerprint};
use kernel_ipc::runtime::sleep;
use kernel_ipc::{CallError, Failure};
use protocol::node::{self, Joined, Member};

use super::authority::{self, Certified, NODE_FOR};
use super::home::{Home, HomeError, is_address};
use super::listening::Listening;
use super::members::is_possible;
use super::neighbour::{Neighbour, NeighbourError};
use super::seconds;
use super::token::{BadToken, Token};

/// How often a newcomer asks again whose answer was lost, and the pause before.
const ASKED_MOST: u32 = 10;
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Why a machine is no node of a cluster.
#[derive(Debug)]
pub enum JoinError {
    /// What was given as a token is none.
    Token(BadToken),
    /// The state directory cannot become a node.
    Home(HomeError),
    /// The node that made the token cannot be called.
    Neighbour(NeighbourError),
    /// It does not let this one in.
    Refused(NodeName, SocketAddr, node::JoinError),
    /// It has answered with certificates that are not what they should be.
    Answer(NodeName, SocketAddr),
}

impl std::fmt::Display for JoinError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            JoinError::Token(error) => write!(f, "that is no token: {error}"),
            JoinError::Home(error) => error.fmt(f),
            JoinError::Neighbour(error) => error.fmt(f),
            JoinError::Refused(node, address, error) => {
                write!(f, "node {node} at {address} does not let this one in: {}", words(*error))
            }
            JoinError::Answer(node, address) => {
                write!(f, "node {node} at {address} has answered with certificates that make no sense")
            }
        }
    }
}

impl std::error::Error for JoinError {}

impl From<HomeError> for JoinError {
    fn from(error: HomeError) -> Self {
        JoinError::Home(error)
    }
}

impl From<NeighbourError> for JoinError {
    fn from(error: NeighbourError) -> Self {
        JoinError::Neighbour(error)
    }
}

/// Why a node does not let another one in, for people.
fn words(error: node::JoinError) -> &'static str {
    match error {
        node::JoinError::NotTheAuthority => "it has not the key of the cluster's authority",
        node::JoinError::UnknownToken => "it has made no such token",
        node::JoinError::UsedToken => "the token was used already; each lets one node in",
        node::JoinError::ExpiredToken => "the token has expired",
        node::JoinError::BadName => "that is no name of a node",
        node::JoinError::NameTaken => "the cluster has a node of this name",
        node::JoinError::BadKey => "it takes this node's public key for none",
        node::JoinError::BadAddress => "other nodes could not call this node's address",
        node::JoinError::Failed => "it cannot write down a new node; its log says why",
    }
}

/// Makes the state directory a node called `name`, which listens so, of the cluster of the node at `address` that
/// has made this token. Needs a runtime.
///
/// # Errors
/// See [`JoinError`]. Nothing is left behind here; the token is used up if the other node has let this one in.
pub async fn join(
    state: &Path,
    name: &NodeName,
    listening: impl Into<Listening>,
    address: SocketAddr,
    token: &str,
) -> Result<Home, JoinError> {
    let token = Token::parse(token).map_err(JoinError::Token)?;
    if let Some(home) = Home::find(state)? {
        return Err(HomeError::AlreadyANode(home.name().clone()).into());
    }
    let listening = listening.into();
    if !is_address(listening.address) {
        return Err(HomeError::Address(listening.address).into());
    }
    let key = authority::new_key().map_err(HomeError::Signing)?;
    let public_key = authority::public_key(&key).map_err(HomeError::Signing)?;
    let keys = Keys::newcomer(token.authority).map_err(HomeError::Keys)?;
    let mut asked = 0;
    let Joined { certificate, authority, by: first } = loop {
        let answer = match Neighbour::call(&keys, &token.node, address).await {
            Ok(by) => ask(&by, &token, name, listening.address, &public_key).await,
            Err(error) => Err(error.into()),
        };
        match answer {
            // It was asked, and nobody knows what came of that: it lets the same one in once more.
            Err(JoinError::Neighbour(NeighbourError::Failed(..))) if asked < ASKED_MOST => asked += 1,
            Err(JoinError::Neighbour(NeighbourError::Unreachable(..))) if (1..ASKED_MOST).contains(&asked) => {
                asked += 1
            }
            answer => break answer?,
        }
        sleep(ASK_AGAIN).await;
    };
    let refused = || JoinError::Answer(token.node.clone(), address);
    if fingerprint(&authority) != token.authority || !is_possible(&first) {
        return Err(refused());
    }
    let now = SystemTime::now();
    let own = Certified { certificate, key };
    let itself = Member {
        name: name.to_string(),
        address: listening.address.to_string(),
        fingerprint: fingerprint(&own.certificate).to_vec(),
        since_s: seconds(now),
        until_s: seconds(now + NODE_FOR),
        authority: false,
    };
    // By the address at which it was reached: what it says of itself may be another network's.
    let by = (token.node.clone(), address);
    Ok(Home::move_in(state, (name, listening), by, &own, &authority, &[first, itself])?)
}

async fn ask(
    by: &Neighbour,
    token: &Token,
    name: &NodeName,
    listen: SocketAddr,
    public_key: &[u8],
) -> Result<Joined, JoinError> {
    let (client, listen) = (&by.client, listen.to_string());
    let joined = client.join(client.root(), &token.secret, name.as_str(), &listen, public_key).await;
    joined.map_err(|error| match error {
        CallError::Operation(error) => JoinError::Refused(by.name().clone(), by.address(), error),
        CallError::Failed { cause, executed } => by.failed(Failure { cause, executed }).into(),
    })
}

/// Asks the node that has let this one in who is a node now, and writes it down.
///
/// # Errors
/// See [`JoinError`].
pub async fn learn(home: &Home) -> Result<Vec<Member>, JoinError> {
    if let Some((node, address)) = home.let_in_by() {
        let neighbour = Neighbour::call(&home.keys()?, node, *address).await?;
        home.learn(&neighbour.members().await?)?;
    }
    Ok(home.known()?)
}
