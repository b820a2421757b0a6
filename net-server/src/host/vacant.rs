//! Listeners whose client has died, and which wait for its next run.
//!
//! The kernel takes connections for them meanwhile. One that nobody takes over for [`PATIENCE`] is closed: its client was given
//! up, or does not listen there any more.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::runtime;

use super::listener::Listener;

/// How long a connection may wait for somebody to answer it before it is reset.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module's contract.
#[derive(Default)]
pub(crate) struct Vacant {
    listeners: RefCell<Vec<(u64, Rc<Listener>)>>,
    /// How often one has become vacant.
    count: Cell<u64>,
}

impl Vacant {
    /// A listener's client has died.
    pub(crate) fn add(self: &Rc<Self>, listener: Rc<Listener>) {
        let number = self.count.get();
        self.count.set(number + 1);
        self.listeners.borrow_mut().push((number, listener));
        let vacant = Rc::downgrade(self);
        drop(runtime::spawn(async move {
            runtime::sleep(PATIENCE).await;
            let Some(vacant) = vacant.upgrade() else { return };
            if let Some(listener) = vacant.take_if(|known, _| known == number) {
                tracing::warn!("nobody listens at {} for {} any more", listener.bound(), listener.client());
                listener.close();
            }
        }));
    }

    /// The listener of `client` at `address`; port 0 stands for any.
    pub(crate) fn take(&self, client: &str, address: SocketAddr) -> Option<Rc<Listener>> {
        self.take_if(|_, listener| {
            let bound = listener.bound();
            let same_port = address.port() == 0 || address.port() == bound.port();
            listener.client() == client && bound.ip() == address.ip() && same_port
        })
    }

    /// Where a connection with this own address came in.
    pub(crate) fn at(&self, own: SocketAddr) -> Option<Rc<Listener>> {
        let listeners = self.listeners.borrow();
        listeners.iter().find(|(_, listener)| listener.is_at(own)).map(|(_, listener)| listener.clone())
    }

    fn take_if(&self, fits: impl Fn(u64, &Listener) -> bool) -> Option<Rc<Listener>> {
        let mut listeners = self.listeners.borrow_mut();
        let at = listeners.iter().position(|(number, listener)| fits(*number, listener))?;
        Some(listeners.remove(at).1)
    }
}
