//! The network server: TCP for components that have no network of their own.
//!
//! [`core`] decides, without system calls; [`host`] does it with the kernel's sockets.
#![deny(unsafe_code)]

pub mod core;
pub mod host;
mod sys;

use std::cell::RefCell;
use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::Rights;
use kernel_ipc::broker::{MAX_HELD, MAX_HELD_NAME};
use kernel_ipc::component::{self, Context};
use kernel_ipc::interface::NewCap;
use protocol::net::Dispatcher;
use serde::Deserialize;

/// The manifest's `config` of a `net-host`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Most connections of one client.
    connections: usize,
    /// Seconds after which a connection whose peer takes nothing is reset.
    stall_seconds: u64,
}

impl Default for Config {
    fn default() -> Config {
        let host::Options { limits, connections, .. } = host::Options::default();
        Config { connections, stall_seconds: limits.stall.as_secs() }
    }
}

/// Whoever holds things for this component's later runs: as much as it may. What is beyond goes down with this process.
struct Holder {
    cx: Context,
    names: RefCell<HashSet<String>>,
}

impl host::Holding for Holder {
    fn hold(&self, name: &str, socket: BorrowedFd<'_>) {
        let mut names = self.names.borrow_mut();
        if name.len() <= MAX_HELD_NAME && names.len() < MAX_HELD && names.insert(name.to_owned()) {
            self.cx.hold(name, socket);
        }
    }

    fn let_go(&self, name: &str) {
        if self.names.borrow_mut().remove(name) {
            self.cx.let_go(name);
        }
    }
}

/// The component `net-host`: serves the kernel's sockets as endpoint `net`.
///
/// # Errors
/// What [`Context::config`] and [`Context::provide`] refuse.
pub async fn serve(cx: Context) -> Result<(), component::Error> {
    let config: Config = cx.config()?;
    let mut options = host::Options { connections: config.connections, ..host::Options::default() };
    options.limits.stall = Duration::from_secs(config.stall_seconds);
    let held = cx.held_before();
    let names = held.iter().map(|(name, _)| name.clone()).collect();
    let holding = Rc::new(Holder { cx: cx.clone(), names: RefCell::new(names) });
    let stack = host::Stack::new(options, cx.mapper(), cx.counters(), Some(holding));
    for (name, socket) in held {
        stack.inherit(&name, socket);
    }
    let root = async |_: &_| Ok(NewCap::new(host::Root, Rights::all()).to_grant());
    cx.provide("net", Rc::new(Dispatcher(stack)), root)?;
    cx.ready();
    cx.stopped().await;
    Ok(())
}
