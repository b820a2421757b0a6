//! Crash bundles: what is known of a death of a component's own making, in `STATE/crashes/NUMBER.json`.
//!
//! - A crash is a death of a run that served, by its own doing: an exit, a signal of its own making, a hang, a broken
//!   protocol. Who is killed from outside has not crashed.
//! - The calls that were under way come from the sessions' ledgers. A request is there from its second crash on: the
//!   first one makes it suspect, and only then is it kept.
//! - The newest [`MAX_BUNDLES`] stay.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kernel_ipc::SessionId;
use kernel_ipc::broker::{SESSION, ServeBeyond};
use kernel_ipc::ledger::{CRASHES_MAX, Executing, SessionLedger};
use kernel_ipc::sys::segment::SegmentWriter;

use super::peer::Peer;
use super::survival::Surviving;
use super::{Component, Node};
use crate::crash::{CrashBundle, CrashedCall, DIRECTORY, Request};
use crate::policy;

/// Bundles that are kept.
const MAX_BUNDLES: usize = 64;

impl Node {
    /// Keeps what is known of a crash; its number.
    pub(super) fn keep_crash(&self, component: &Component, run: &Peer, how: &str) -> io::Result<u64> {
        let directory = self.state.path().join(DIRECTORY);
        std::fs::create_dir_all(&directory)?;
        let numbers = crate::crash::numbers(self.state.path());
        let number = numbers.last().map_or(1, |last| last + 1);
        let bundle = CrashBundle {
            crash: number,
            unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            component: component.entry.name.clone(),
            epoch: run.epoch.get(),
            how: how.to_owned(),
            last_lines: component.log.last_lines(),
            calls: self.calls_under_way(component),
        };
        write(&directory, &bundle)?;
        for old in numbers.iter().rev().skip(MAX_BUNDLES - 1) {
            let _ = std::fs::remove_file(directory.join(format!("{old}.json")));
        }
        Ok(number)
    }

    fn calls_under_way(&self, component: &Component) -> Vec<CrashedCall> {
        let is_its = |surviving: &&Surviving| self.components[surviving.component].entry.name == component.entry.name;
        let sessions = self.sessions.borrow();
        let mut calls = Vec::new();
        for surviving in sessions.values().filter_map(|session| session.surviving.as_ref()).filter(is_its) {
            let Ok(memory) = surviving.ledger.again() else { continue };
            let serve = &surviving.serve;
            // A ledger that makes no sense has its report when it is gone on with.
            let (executing, _) = executing(memory, serve.session).unwrap_or_default();
            let of = (serve.client_name.as_str(), serve.endpoint.as_str());
            calls.extend(executing.into_iter().map(|call| crashed_call(component, of, call)));
        }
        // Those with clients on other nodes the component has had held itself.
        for (number, memory) in component.holdings.those(SESSION) {
            let Ok(number) = number.parse() else { continue };
            let Some((executing, note)) = executing(memory, SessionId(number)) else { continue };
            let Ok(ServeBeyond { serve, .. }) = serde_json::from_slice(&note) else { continue };
            let of = (serve.client_name.as_str(), serve.endpoint.as_str());
            calls.extend(executing.into_iter().map(|call| crashed_call(component, of, call)));
        }
        calls
    }
}

/// What was under way, and what was noted of the session.
fn executing(memory: OwnedFd, session: SessionId) -> Option<(Vec<Executing>, Vec<u8>)> {
    let memory = SegmentWriter::open_kept(memory).ok()?;
    SessionLedger::executing(memory, session).ok()
}

fn crashed_call(component: &Component, (client, endpoint): (&str, &str), call: Executing) -> CrashedCall {
    let provided = component.entry.provides.iter().find(|provided| provided.name == endpoint);
    let interface = provided.map(|provided| provided.interface.clone()).unwrap_or_default();
    let operations = policy::interface(&interface).map(|interface| interface.operations).unwrap_or_default();
    let known = operations.iter().find(|operation| operation.number == call.cell.operation);
    // This crash is counted when the next run begins.
    let crashes = call.cell.crashes.saturating_add(1);
    CrashedCall {
        client: client.to_owned(),
        endpoint: format!("{}.{endpoint}", component.entry.name),
        interface,
        operation: call.cell.operation,
        name: known.map_or_else(String::new, |operation| operation.name.to_owned()),
        seq: call.cell.begun,
        crashes,
        quarantined: crashes >= CRASHES_MAX,
        request: call.request.map(|(object, on_root, payload)| Request { object, on_root, payload }),
    }
}

/// Whole or not at all.
fn write(directory: &Path, bundle: &CrashBundle) -> io::Result<()> {
    let path: PathBuf = directory.join(format!("{}.json", bundle.crash));
    let unfinished = directory.join("unfinished");
    std::fs::write(&unfinished, serde_json::to_vec_pretty(bundle)?)?;
    std::fs::rename(unfinished, path)
}
