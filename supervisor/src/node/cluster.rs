//! This node's part in its cluster, if the state directory is a node of one: it answers others on its address.
//!
//! Where that cannot be done at a start, nothing is started. A supervisor that takes over a running system lets it run, says so, and
//! tries again.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

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

/// The same for a system that runs already.
pub async fn answer_again(node: Rc<Node>, listener: Option<OwnedFd>) {
    loop {
        let again = listener.as_ref().and_then(|listener| listener.try_clone().ok());
        let Err(error) = answer(&node, again) else { return };
        eprintln!("supervisor: this node does not answer others: {error}; tried again in {} s", AGAIN.as_secs());
        sleep(AGAIN).await;
    }
}

/// Between two attempts to answer others.
const AGAIN: Duration = Duration::from_secs(30);
/// How often it is looked whether a certificate has to be renewed: the clock may be set, and a machine may sleep.
const LOOK: Duration = Duration::from_secs(60);

/// Shows a new certificate long before the last one ends.
async fn stay_known(home: Home, keys: Keys) {
    let mut since = SystemTime::now();
    loop {
        sleep(LOOK).await;
        let now = SystemTime::now();
        let is_due = now.duration_since(since).map_or(true, |age| age > LEAF_FOR / 2);
        let renewed = home.renew_itself(now).and_then(|itself| match is_due || itself {
            true => home.renew_host_keys(&keys).map(|()| true),
            false => Ok(false),
        });
        match renewed {
            Ok(true) => since = now,
            Ok(false) => {}
            Err(error) => eprintln!("supervisor: {error}"),
        }
    }
}
