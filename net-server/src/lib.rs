//! The network server: TCP for components that have no network of their own.
//!
//! [`core`] decides, without system calls; [`host`] does it with the kernel's sockets.
#![deny(unsafe_code)]

pub mod core;
pub mod host;
mod sys;

use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::Rights;
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

/// The component `net-host`: serves the kernel's sockets as endpoint `net`.
///
/// # Errors
/// What [`Context::config`] and [`Context::provide`] refuse.
pub async fn serve(cx: Context) -> Result<(), component::Error> {
    let config: Config = cx.config()?;
    let mut options = host::Options { connections: config.connections, ..host::Options::default() };
    options.limits.stall = Duration::from_secs(config.stall_seconds);
    let stack = host::Stack::new(options, cx.mapper(), cx.counters());
    let root = async |_: &_| Ok(NewCap::new(host::Root, Rights::all()).to_grant());
    cx.provide("net", Rc::new(Dispatcher(stack)), root)?;
    cx.ready();
    cx.stopped().await;
    Ok(())
}
