//! A listening socket of this machine, and what its sessions are served with.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::super::bulk::serve::Lending;
use super::super::carrier::{Door, local_address};
use super::super::dial::{Options, is_loopback};
use super::super::frame::SECRET_BYTES;
use super::super::keys::Keys;
use super::super::nodes::Nodes;
use super::super::warnings::Warnings;
use super::kept::{Admitted, Awaited, forsake_later};
use super::{Closing, Desk, Peer, end_strangers};
use crate::runtime;
use crate::session::{Grant, Served, Service, SessionInfo};

/// How long a listener rests that the kernel has no descriptor for.
const EXHAUSTED: Duration = Duration::from_millis(10);

/// Why nobody listens.
#[derive(Debug)]
pub enum ListenError {
    /// The address can be reached from other machines, and nothing protects the bytes on their way.
    InTheClear(SocketAddr),
    /// The kernel refuses it.
    Io(io::Error),
}

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenError::InTheClear(address) => write!(
                f,
                "will not listen on {address}: other machines can reach it, and a {} has no keys to tell them apart. \
                 Use keys, or a loopback address",
                super::super::IN_THE_CLEAR
            ),
            ListenError::Io(error) => write!(f, "cannot listen: {error}"),
        }
    }
}

impl std::error::Error for ListenError {}

impl From<io::Error> for ListenError {
    fn from(error: io::Error) -> Self {
        ListenError::Io(error)
    }
}

/// A listening socket of this machine.
#[derive(Debug)]
pub struct Listener {
    door: Door,
    address: SocketAddr,
    keys: Option<Keys>,
    newcomers: bool,
    nodes: Option<Nodes>,
}

impl Listener {
    /// Listens in the clear. Port 0: any that is free.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(address: SocketAddr) -> Result<Listener, ListenError> {
        if !is_loopback(address) {
            return Err(ListenError::InTheClear(address));
        }
        if let Some(nic) = runtime::simulated_nic() {
            return Ok(Listener {
                door: Door::Simulated(nic.listen(address)?),
                address,
                keys: None,
                newcomers: false,
                nodes: None,
            });
        }
        Listener::adopt(TcpListener::bind(address)?.into())
    }

    /// Listens for nodes of the same authority, over TLS.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind_secured(address: SocketAddr, keys: Keys) -> Result<Listener, ListenError> {
        Listener::adopt_secured(TcpListener::bind(address)?.into(), keys)
    }

    /// The same with a socket that listens already.
    ///
    /// # Errors
    /// The kernel's.
    pub fn adopt_secured(socket: OwnedFd, keys: Keys) -> Result<Listener, ListenError> {
        let (address, door) = (local_address(&socket)?, Door::Socket(socket.into()));
        Ok(Listener { address, door, keys: Some(keys), newcomers: false, nodes: None })
    }

    /// Takes a socket that listens already, in the clear.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn adopt(socket: OwnedFd) -> Result<Listener, ListenError> {
        let address = local_address(&socket)?;
        if !is_loopback(address) {
            return Err(ListenError::InTheClear(address));
        }
        Ok(Listener { door: Door::Socket(socket.into()), address, keys: None, newcomers: false, nodes: None })
    }

    /// Hears also who has no certificate: `admit` is told of it as of a peer that is no node.
    pub fn to_newcomers(self) -> Listener {
        Listener { newcomers: true, ..self }
    }

    /// Hears only machines that are nodes when they come. The sessions of one that is none any more end.
    pub fn among(self, nodes: &Nodes) -> Listener {
        Listener { nodes: Some(nodes.clone()), ..self }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves sessions on this thread's runtime, until this future is dropped: then all of them end. `admit` says what this
    /// client, who chose this secret, is given; `None`: nothing. It deals out session numbers, each once. Without `lending` a handler
    /// that lends gets [`Refused`](crate::Cause::Refused).
    pub async fn serve<S: Service>(
        self,
        served: impl Into<Served<S>>,
        lending: Option<Lending>,
        options: Options,
        mut admit: impl FnMut(&Peer, &[u8; SECRET_BYTES]) -> Option<(Grant, SessionInfo)> + 'static,
    ) {
        let admit = move |peer: &Peer, secret: &[u8; SECRET_BYTES]| admit(peer, secret).map(Admitted::from);
        self.serve_on(served, lending, options, Vec::new(), admit).await;
    }

    /// The same for sessions that survive: `awaited` are those of dead runs, which [`Served::inherit`] knows already.
    pub async fn serve_on<S: Service>(
        self,
        served: impl Into<Served<S>>,
        lending: Option<Lending>,
        options: Options,
        awaited: Vec<Awaited>,
        admit: impl FnMut(&Peer, &[u8; SECRET_BYTES]) -> Option<Admitted> + 'static,
    ) {
        let awaited: HashMap<_, _> = awaited.into_iter().map(|session| (session.info.id, session)).collect();
        let desk = Rc::new(Desk {
            served: served.into(),
            keys: self.keys,
            newcomers: self.newcomers,
            nodes: self.nodes,
            lending,
            options,
            admit: RefCell::new(Box::new(admit)),
            sessions: RefCell::default(),
            awaited: awaited.into(),
            greetings: RefCell::default(),
            warnings: Warnings::default(),
            closed: Cell::new(false),
        });
        // The tasks of this listener see by it that nobody listens any more.
        let _closing = Closing(desk.clone());
        runtime::spawn(forsake_later(Rc::downgrade(&desk)));
        if let Some(nodes) = desk.nodes.clone() {
            runtime::spawn(end_strangers(Rc::downgrade(&desk), nodes));
        }
        let mut connections = self.door.arrivals();
        loop {
            match connections.next().await {
                Ok(connection) => desk.clone().receive(connection),
                Err(error) => {
                    tracing::warn!("a connection could not be taken: {error}");
                    runtime::sleep(EXHAUSTED).await;
                }
            }
        }
    }
}
