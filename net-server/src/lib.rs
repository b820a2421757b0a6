//! The network server: TCP for components that have no network of their own.
//!
//! [`core`] decides, without system calls; [`host`] does it with the kernel's sockets.
#![deny(unsafe_code)]

pub mod core;
pub mod host;
mod ledger;
mod sys;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::Rights;
use kernel_ipc::broker::{MAX_HELD, MAX_HELD_NAME};
use kernel_ipc::component::{self, Context};
use kernel_ipc::interface::NewCap;
use kernel_ipc::sys::segment::SegmentWriter;
use protocol::net::Dispatcher;
use serde::Deserialize;

use host::berth::Berths;
use host::kept::Keeping;
use host::restore::Left;
use ledger::Ledger;

/// The manifest's `config` of a `net-host`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Most connections of one client.
    connections: usize,
    /// Seconds after which a connection whose peer takes nothing is reset.
    stall_seconds: u64,
    /// Send pages without a copy also where the kernel will copy them.
    always_zero_copy: bool,
}

impl Default for Config {
    fn default() -> Config {
        let host::Options { limits, connections, .. } = host::Options::default();
        Config { connections, stall_seconds: limits.stall.as_secs(), always_zero_copy: false }
    }
}

/// Begins, or goes on where the last run ended.
async fn go_on(cx: &Context, options: host::Options) -> Result<host::Stack, component::Error> {
    let memory = cx.kept_before(LEDGER);
    let mut held: HashMap<String, OwnedFd> = cx.held_before().into_iter().collect();
    let names = held.keys().cloned().collect();
    let holding: Rc<dyn host::listener::Holding> = Rc::new(Holder { cx: cx.clone(), names: RefCell::new(names) });
    let survived = cx.survive(EFFECT_BYTES).await?;
    let connections = options.connections.saturating_mul(2).clamp(1, ledger::MAX_CONNECTIONS);
    let recovered = match memory {
        Some(memory) => {
            let memory = SegmentWriter::open_kept(memory)?;
            Ledger::recover(memory).map_err(|poisoned| cx.forget(&poisoned.to_string()))?
        }
        None => {
            let memory = cx.keep(LEDGER, Ledger::bytes(connections)).await?;
            Ledger::create(SegmentWriter::open_kept(memory)?, connections)?
        }
    };
    let berths = Berths::open(&mut held, &*holding)?;
    let sockets = berths.look()?;
    let keeping = Rc::new(Keeping { ledger: recovered.ledger.clone(), berths });
    let stack = host::Stack::lasting(options, cx.mapper(), cx.counters(), holding, keeping.clone());
    for (name, socket) in held {
        stack.inherit(&name, socket);
    }
    stack.restore(Left { recovered, sockets, sessions: survived.sessions });
    kernel_ipc::steps::reach("restart/restored");
    // What nobody goes on with is closed by it.
    keeping.berths.sweep();
    Ok(stack)
}

/// The name of the memory in which connections are kept.
const LEDGER: &str = "connections";

/// Calls have no effects that are not in that memory, so hardly any room is needed for them.
const EFFECT_BYTES: usize = 64 << 10;

/// Whoever holds things for this component's later runs: as much as it may. What is beyond goes down with this process.
struct Holder {
    cx: Context,
    names: RefCell<HashSet<String>>,
}

impl host::listener::Holding for Holder {
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
    cx.confine(true);
    let mut options = host::Options { connections: config.connections, ..host::Options::default() };
    options.limits.stall = Duration::from_secs(config.stall_seconds);
    if config.always_zero_copy {
        options.limits.zero_copy = core::zero_copy::Policy::Always;
    }
    let stack = go_on(&cx, options).await?;
    let root = async |_: &_| Ok(NewCap::new(host::Root, Rights::all()).to_grant());
    cx.provide("net", Rc::new(Dispatcher(stack)), root)?;
    cx.ready();
    cx.stopped().await;
    Ok(())
}
