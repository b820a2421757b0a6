//! What a node answers to others: `atoll.node/1`, on its own address, over TLS 1.3.
//!
//! - Who calls is known before the first byte of a call: its certificate is the authority's, or it is a newcomer, which may
//!   [join](node::Handler::join) and nothing else. A node that is not written down as one hears nothing, whatever it can show;
//!   one that is removed later hears so at its next call.
//! - Newcomers are strangers: the listener bounds how many there are and for how long, and what they send is bounded by a
//!   session's windows, as everybody's.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::SystemTime;

use kernel_ipc::broker::TICKET_BYTES;
use kernel_ipc::interface::{Granted, NewCap, Object};
use kernel_ipc::link::socket::keys::{FINGERPRINT_BYTES, Keys, NodeName, fingerprint};
use kernel_ipc::link::socket::listen::{Listener, Options, Peer};
use kernel_ipc::link::socket::warnings::Warnings;
use kernel_ipc::session::{Call, Grant, SessionInfo};
use kernel_ipc::{CallError, Epoch, Incarnation, SessionId};
use protocol::control::ComponentStatus;
use protocol::node::{
    self, AnnounceError, Announced, Cluster, Dispatcher, JOIN, JoinError, Joined, MEMBER, Member, MemberPage,
    MembersError, StatusError,
};
use serde_json::json;

use super::authority::{NODE_FOR, is_public_key};
use super::home::{Home, HomeError, is_address};
use super::seconds;
use super::token::Refused;

/// Nodes in one page of a list: a page fits into a window.
const PAGE: usize = 12;

/// Answers other nodes on this socket, which listens already, until the future is dropped. `deal` gives numbers for sessions, each
/// once.
///
/// # Errors
/// The socket is none.
pub fn serve(
    home: Home,
    local: impl Local + 'static,
    socket: OwnedFd,
    keys: Keys,
    deal: impl Fn() -> u64 + 'static,
) -> io::Result<impl Future<Output = ()> + 'static> {
    let listener = Listener::adopt_secured(socket, keys).map_err(io::Error::other)?.to_newcomers();
    let (admits, warnings) = (home.clone(), Rc::new(Warnings::default()));
    let service = Rc::new(Dispatcher(Desk(home, local, warnings.clone())));
    Ok(listener.serve(service, None, Options::default(), move |peer, _| admit(&admits, peer, &warnings, &deal)))
}

/// What a peer may do; `None`: nothing.
fn admit(home: &Home, peer: &Peer, warnings: &Warnings, deal: &impl Fn() -> u64) -> Option<(Grant, SessionInfo)> {
    if peer.component.is_some() {
        // What a component may have is between it and its host.
        return None;
    }
    let (rights, name, attenuation) = match (&peer.node, &peer.issuer) {
        (None, _) => (JOIN, format!("newcomer at {}", peer.address), json!(null)),
        (Some(node), Some(certificate)) => match home.members().has(node, certificate) {
            Ok(true) => (MEMBER, node.to_string(), json!(fingerprint(certificate))),
            Ok(false) => {
                warnings.warn(format!("{node} at {} is no node of this cluster (any more)", peer.address));
                return None;
            }
            Err(error) => {
                warnings.warn(format!("node {node} is not let in: {error}"));
                return None;
            }
        },
        // Signed by the authority itself, which signs nodes only, and those call with what they have signed.
        (Some(_), None) => return None,
    };
    let info =
        SessionInfo { id: SessionId(deal()), epoch: Epoch(1), client: Incarnation(0), client_name: name, attenuation };
    Some((NewCap::new(TheCluster, rights).to_grant(), info))
}

/// The only object.
#[derive(Object)]
#[kind(Cluster)]
struct TheCluster;

/// What a node that is up does for others.
pub trait Local {
    /// Lets a host expect a client of the node `from`, which comes with `ticket`.
    fn announce(
        &self,
        from: &NodeName,
        client: &str,
        name: &str,
        interface: &str,
        ticket: [u8; TICKET_BYTES],
    ) -> impl Future<Output = Result<Announced, AnnounceError>>;

    /// How a component of this node is; `None`: there is none of this name.
    fn status(&self, component: &str) -> impl Future<Output = Option<ComponentStatus>>;
}

struct Desk<L>(Home, L, Rc<Warnings>);

impl<L> Desk<L> {
    /// The node that calls; `None`: it is none any more.
    fn caller(&self, call: &Call) -> Option<NodeName> {
        let info = call.session();
        let name = NodeName::new(&info.client_name)?;
        let member = self.0.find_member(&name).ok()??;
        (json!(member.fingerprint) == info.attenuation).then_some(name)
    }

    fn let_in(&self, secret: &[u8], name: &str, address: &str, public_key: &[u8]) -> Result<Joined, JoinError> {
        let now = SystemTime::now();
        self.0.check_authority().map_err(|_| JoinError::NotTheAuthority)?;
        // It may be the one that was let in by this token and has not heard so: then it gets what it was given.
        let who = newcomer(name, address, public_key);
        let given = self.0.tokens().given(secret, &who, now).map_err(refused)?;
        // Before anything is said of names: a stranger need not know them.
        if given.is_none() {
            self.0.tokens().check(secret, now).map_err(refused)?;
        }
        let name = NodeName::new(name).ok_or(JoinError::BadName)?;
        let address = address.parse().ok().filter(|address| is_address(*address)).ok_or(JoinError::BadAddress)?;
        if !is_public_key(public_key) {
            return Err(JoinError::BadKey);
        }
        let known = self.0.members().find(&name).map_err(failed)?;
        let is_it =
            |certificate: &[u8]| known.as_ref().is_none_or(|known| known.fingerprint == fingerprint(certificate));
        if !given.as_deref().map_or(known.is_none(), is_it) {
            return Err(JoinError::NameTaken);
        }
        let by = self.0.members().find(self.0.name()).map_err(failed)?.ok_or(JoinError::Failed)?;
        let authority = self.0.authority().map_err(failed)?;
        let certificate = match given {
            Some(certificate) => certificate,
            None => {
                let certificate = self.0.sign(&name, public_key, now, NODE_FOR).map_err(failed)?;
                self.0.tokens().take(secret, &who, &certificate, now).map_err(refused)?;
                certificate
            }
        };
        if known.is_some() {
            return Ok(Joined { certificate, authority, by });
        }
        let member = Member {
            name: name.to_string(),
            address: address.to_string(),
            fingerprint: fingerprint(&certificate).to_vec(),
            since_s: seconds(now),
            until_s: seconds(now + NODE_FOR),
            authority: false,
        };
        self.0.members().put(&member).map_err(failed)?;
        tracing::info!("node {name} at {address} has joined");
        Ok(Joined { certificate, authority, by })
    }

    fn list(&self, call: &Call, after: &str) -> Result<MemberPage, MembersError> {
        let mut all = self.0.known().map_err(|error: HomeError| {
            tracing::warn!("there is no list of nodes: {error}");
            MembersError::Failed
        })?;
        let info = call.session();
        let is_caller =
            |member: &Member| member.name == info.client_name && json!(member.fingerprint) == info.attenuation;
        if !all.iter().any(is_caller) {
            return Err(MembersError::Removed);
        }
        all.retain(|member| member.name.as_str() > after);
        let more = all.len() > PAGE;
        all.truncate(PAGE);
        Ok(MemberPage { more, members: all })
    }
}

impl<L: Local + 'static> node::Handler for Desk<L> {
    type Cluster = TheCluster;

    async fn join(
        &self,
        call: &Call,
        _: Granted<TheCluster>,
        secret: &[u8],
        name: &str,
        address: &str,
        public_key: &[u8],
    ) -> Result<Joined, CallError<JoinError>> {
        self.let_in(secret, name, address, public_key).map_err(|error| {
            self.2.warn(format!("{} is not let in: {error:?}", call.session().client_name));
            error.into()
        })
    }

    async fn members(
        &self,
        call: &Call,
        _: Granted<TheCluster>,
        after: &str,
    ) -> Result<MemberPage, CallError<MembersError>> {
        Ok(self.list(call, after)?)
    }

    async fn announce(
        &self,
        call: &Call,
        _: Granted<TheCluster>,
        client: &str,
        name: &str,
        interface: &str,
        ticket: &[u8],
    ) -> Result<Announced, CallError<AnnounceError>> {
        let from = self.caller(call).ok_or(AnnounceError::Removed)?;
        let ticket = ticket.try_into().map_err(|_| AnnounceError::BadTicket)?;
        Ok(self.1.announce(&from, client, name, interface, ticket).await?)
    }

    async fn status(
        &self,
        call: &Call,
        _: Granted<TheCluster>,
        component: &str,
    ) -> Result<ComponentStatus, CallError<StatusError>> {
        self.caller(call).ok_or(StatusError::Removed)?;
        Ok(self.1.status(component).await.ok_or(StatusError::NoSuchComponent)?)
    }
}

/// What a newcomer says of itself, in a few bytes.
fn newcomer(name: &str, address: &str, public_key: &[u8]) -> [u8; FINGERPRINT_BYTES] {
    fingerprint(
        &[&fingerprint(name.as_bytes())[..], &fingerprint(address.as_bytes()), &fingerprint(public_key)].concat(),
    )
}

fn refused(refused: Refused) -> JoinError {
    match refused {
        Refused::Unknown => JoinError::UnknownToken,
        Refused::Used => JoinError::UsedToken,
        Refused::Expired => JoinError::ExpiredToken,
        Refused::Io(error) => failed(error),
    }
}

fn failed(error: impl std::fmt::Display) -> JoinError {
    tracing::warn!("a node cannot be let in: {error}");
    JoinError::Failed
}
