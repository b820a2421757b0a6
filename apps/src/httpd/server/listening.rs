//! Listening, and what comes of it: events to connections.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::interface::Cap;
use kernel_ipc::{CallError, runtime};
use protocol::net::{self, Event, EventBatch, ListenError, Listener, Reason};

use super::Server;
use super::peer::{self, Peer};
use super::resume::Resumed;

/// Events asked for at a time.
const MAX_EVENTS: u32 = 1024;
/// Pause between two attempts to listen.
const PAUSE: Duration = Duration::from_millis(50);
/// Attempts to listen at the start while somebody else has the port: who has just died takes a moment to let go.
const ATTEMPTS: u32 = 20;

/// The connections that there are, by the network's number.
pub(super) type Peers = RefCell<HashMap<u64, Rc<Peer>>>;

/// See [`Httpd::listen`](super::Httpd::listen).
pub(super) async fn listen(
    server: Rc<Server>,
    address: &str,
    report: Rc<dyn Fn(&str)>,
) -> Result<impl Future<Output = ()> + use<>, String> {
    let mut attempt = 0;
    let (mut listener, mut bound) = loop {
        attempt += 1;
        match server.net.listen(server.net.root(), address).await {
            Ok(listening) => break listening,
            Err(CallError::Operation(ListenError::InUse)) if attempt < ATTEMPTS => runtime::sleep(PAUSE).await,
            Err(error) => return Err(format!("cannot listen on {address}: {}", explain(&error))),
        }
    };
    report(&bound);
    Ok(async move {
        loop {
            serve_events(&server, listener).await;
            // The network server is gone, and with it every connection.
            for peer in std::mem::take(&mut *server.peers.borrow_mut()).into_values() {
                peer.closed();
            }
            (listener, bound) = listen_again(&server, &bound).await;
            report(&bound);
        }
    })
}

fn explain(error: &CallError<ListenError>) -> String {
    match error {
        CallError::Operation(ListenError::InUse) => "another program listens there".to_owned(),
        CallError::Operation(ListenError::NotAllowed) => {
            "the manifest's `tcp` for this component allows another address".to_owned()
        }
        CallError::Operation(ListenError::BadAddress) => "this is no address; write IP:PORT".to_owned(),
        CallError::Operation(ListenError::System { errno }) => {
            std::io::Error::from_raw_os_error(i32::try_from(*errno).unwrap_or(0)).to_string()
        }
        CallError::Failed { .. } => format!("{error}"),
    }
}

/// Listens where it did before, however long that takes.
async fn listen_again(server: &Server, address: &str) -> (Cap<Listener>, String) {
    let mut told = false;
    loop {
        match server.net.listen(server.net.root(), address).await {
            Ok(listening) => return listening,
            Err(error) => {
                if !told {
                    tracing::warn!("cannot listen on {address} yet: {}", explain(&error));
                    told = true;
                }
                runtime::sleep(PAUSE).await;
            }
        }
    }
}

/// Deals out events until the network server is gone. `_listener` listens as long.
async fn serve_events(server: &Rc<Server>, _listener: Cap<Listener>) {
    let mut cursor = 0;
    loop {
        match server.net.next_events(server.net.root(), cursor, MAX_EVENTS).await {
            Ok((batch, connections)) => {
                cursor = batch.next;
                deal(server, &batch, connections);
            }
            Err(error) => {
                tracing::warn!("the network's events ended: {error}");
                return;
            }
        }
    }
}

fn deal(server: &Rc<Server>, batch: &EventBatch, connections: Vec<Cap<net::Connection>>) {
    let mut connections: Vec<Option<Cap<net::Connection>>> = connections.into_iter().map(Some).collect();
    for event in batch.events() {
        let Ok(event) = event else {
            tracing::error!("the network server sent a malformed event");
            return;
        };
        match event {
            Event::Accepted { connection, capability, .. } => {
                if let Some(capability) = connections.get_mut(usize::from(capability)).and_then(Option::take) {
                    accept(server, connection, capability);
                }
            }
            Event::Resumed { connection, request, sent, head } => {
                with_peer(server, connection, |peer| peer.resumed(request, Resumed::new(sent, head)));
            }
            Event::Received { connection, bytes } => with_peer(server, connection, |peer| {
                if !peer.received(bytes) {
                    let (server, peer) = (server.clone(), peer.clone());
                    drop(runtime::spawn(async move { peer.reset(&server).await }));
                }
            }),
            Event::Finished { connection } => with_peer(server, connection, |peer| peer.finished()),
            Event::Sent { .. } => {}
            Event::Released { connection, send, .. } => with_peer(server, connection, |peer| peer.released(send)),
            Event::Closed { connection, reason } => {
                if reason == Reason::StaleLease {
                    tracing::warn!(connection, "a lease was taken back while it was being sent");
                }
                if let Some(peer) = server.peers.borrow_mut().remove(&connection) {
                    peer.closed();
                }
            }
        }
    }
}

fn with_peer(server: &Server, connection: u64, change: impl FnOnce(&Rc<Peer>)) {
    let peer = server.peers.borrow().get(&connection).cloned();
    if let Some(peer) = peer {
        change(&peer);
    }
}

fn accept(server: &Rc<Server>, connection: u64, capability: Cap<net::Connection>) {
    let peer = Rc::new(Peer::new(capability));
    let full = server.peers.borrow().len() >= server.limits.connections;
    server.peers.borrow_mut().insert(connection, peer.clone());
    let server = server.clone();
    match full {
        true => drop(runtime::spawn(peer::turn_away(server, peer))),
        false => drop(runtime::spawn(peer::serve(server, peer))),
    }
}
