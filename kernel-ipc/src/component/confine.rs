//! A component gives up what it does not need any more.

use super::Context;
use crate::sys::confine::{Confined, confine};

impl Context {
    /// From now on this run opens no file by its path, executes nothing, traces nobody, sends no signal to another process, and of TCP may do
    /// what its place needs: call other nodes, if its system has several, and listen if it `listens`. What it has open, and its sessions,
    /// it keeps; so it does what Landlock does not cover (docs/architecture.md, "Trust"). A component says so as soon as it has opened what it needs, and before it reads the first byte of a peer.
    ///
    /// By Landlock, and for the thread that says it: a component with several reactors is not confined by this. What this kernel cannot
    /// take is said in the component's log.
    pub fn confine(&self, listens: bool) {
        let lacking = match confine(listens, self.0.welcome.is_in_cluster) {
            Ok(Confined { files: true, tcp: true, signals: true }) => return,
            Ok(Confined { tcp: true, .. }) => {
                "it can signal other processes: this kernel's Landlock is older than version 6".to_owned()
            }
            Ok(_) => {
                "it can use TCP and signal other processes: this kernel's Landlock is older than version 4".to_owned()
            }
            Err(error) => format!("it can open files, use TCP and signal other processes: Landlock: {error}"),
        };
        tracing::warn!("not confined as it should be: {lacking}");
    }
}
