//! This node's part in its cluster, if the state directory is a node of one: it answers others on its address.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use kernel_ipc::link::socket::keys::Keys;
use kernel_ipc::runtime::{sleep, spawn};

use super::Node;
use super::records::{Kind, NumbersTag};
use crate::cluster::authority::LEAF_FOR;
use crate::cluster::{Home, desk};

/// Begins to answer other nodes, on the socket of the last supervisor if there was one: nobody who calls meanwhile is refused.
///
/// # Errors
/// For people.
pub fn answer(node: &Rc<Node>, listener: Option<OwnedFd>) -> Result<(), String> {
    let Some(home) = Home::find(node.state.path()).map_err(|error| error.to_string())? else { return Ok(()) };
    let listener = match listener {
        Some(listener) => listener,
        None => {
            let address = home.listen();
            let listener =
                TcpListener::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
            listener.into()
        }
    };
    let kept = node.records.put(Kind::NodeListener, 0, 0, &NumbersTag::default(), Some(listener.as_fd()));
    node.forever.borrow_mut().push(kept.map_err(|error| format!("the keeper: {error}"))?);
    let keys = home.host_keys().map_err(|error| error.to_string())?;
    spawn(stay_known(home.clone(), keys.clone()));
    let weak = Rc::downgrade(node);
    let deal = move || weak.upgrade().map_or(0, |node| node.state.deal(1));
    spawn(desk::serve(home, listener, keys, deal).map_err(|error| error.to_string())?);
    Ok(())
}

/// Shows a new certificate long before the last one ends.
async fn stay_known(home: Home, keys: Keys) {
    loop {
        sleep(LEAF_FOR / 2).await;
        if let Err(error) = home.renew_host_keys(&keys) {
            eprintln!("supervisor: {error}");
        }
    }
}
