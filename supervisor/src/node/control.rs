//! `atoll.control/1`, served by the supervisor itself over ordinary sessions.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use kernel_ipc::broker::{CounterValues, ToComponent};
use kernel_ipc::interface::{Granted, NewCap, Object};
use kernel_ipc::session::{Call, HostSession, SessionInfo};
use kernel_ipc::{CallError, Epoch, Rights, SessionId};
use protocol::control::{
    self, ComponentPage, ComponentStatus, Dispatcher, DownError, FreezeError, LogPage, LogsError, MovePlan, PlanError,
    PsError, RestartError, Signal, SignalError, State, StopError, SupervisorError, SupervisorStatus, System, Upgrade,
    UpgradeError,
};
use serde_json::Value;

use super::peer::Peer;
use super::watchdog::is_stopped;
use super::{Component, Node, Phase};
use crate::keeper::wire::Ask;

/// The interface's name with version.
pub const INTERFACE: &str = control::DESCRIPTION.name;

/// Components in one page of `ps`: a page fits into a window.
const PAGE: usize = 4;

/// How long a component may take to tell its counters. A page of those that hang must fit into the deadline of `ps`.
const COUNTED_WITHIN: Duration = Duration::from_secs(1);

/// How long a supervisor that leaves gives its answer.
const ANSWERED_WITHIN: Duration = Duration::from_millis(10);

/// Most bytes of a log in one answer.
const LOG_PAGE: u32 = 3 << 10;

/// Opens the host's end of a control session.
///
/// # Errors
/// For people.
pub fn serve(node: &Rc<Node>, client: &Peer, session: SessionId, segment: OwnedFd) -> Result<HostSession, String> {
    let info = SessionInfo {
        id: session,
        epoch: Epoch(1),
        client: client.incarnation,
        client_name: client.name.clone(),
        attenuation: Value::Null,
    };
    let root = NewCap::new(TheSystem, Rights::from_bits_retain(u32::MAX)).to_grant();
    let service = Rc::new(Dispatcher(Operator(Rc::downgrade(node))));
    // It answers with copies only: no lender.
    HostSession::start(segment, root, service, info, None).map_err(|error| error.to_string())
}

/// The only object: this node.
#[derive(Object)]
#[kind(System)]
struct TheSystem;

/// Serves the operator. The node outlives its sessions, but owns them.
struct Operator(Weak<Node>);

impl control::Handler for Operator {
    type System = TheSystem;

    async fn ps(&self, _: &Call, _: Granted<TheSystem>, cursor: u32) -> Result<ComponentPage, CallError<PsError>> {
        let Some(node) = self.0.upgrade() else { return Ok(ComponentPage::default()) };
        let first = cursor as usize;
        let all = node.components.len() + node.elsewhere.len();
        if first > all {
            return Err(CallError::Operation(PsError::BadCursor));
        }
        let mut page = ComponentPage::default();
        for component in node.components.iter().skip(first).take(PAGE) {
            page.components.push(status(&node, component).await);
        }
        let room = PAGE - page.components.len();
        let before = (first + page.components.len()).saturating_sub(node.components.len());
        for entry in node.elsewhere.iter().skip(before).take(room) {
            page.components.push(node.status_elsewhere(entry).await);
        }
        let next = first + page.components.len();
        page.next = (next < all).then_some(next as u32);
        Ok(page)
    }

    async fn logs(
        &self,
        _: &Call,
        _: Granted<TheSystem>,
        component: &str,
        cursor: u64,
        max: u32,
    ) -> Result<LogPage, CallError<LogsError>> {
        let Some(node) = self.0.upgrade() else { return Err(CallError::Operation(LogsError::Io)) };
        let log = match component {
            "" => &node.system_log,
            name => &node.find(name).ok_or(CallError::Operation(LogsError::NoSuchComponent))?.log,
        };
        match read_log(log.path(), cursor, max.min(LOG_PAGE) as usize) {
            Ok(Some(page)) => Ok(page),
            Ok(None) => Err(CallError::Operation(LogsError::BadCursor)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(LogPage { next: 0, end: true, text: Vec::new() })
            }
            Err(_) => Err(CallError::Operation(LogsError::Io)),
        }
    }

    async fn down(&self, _: &Call, _: Granted<TheSystem>) -> Result<(), CallError<DownError>> {
        let Some(node) = self.0.upgrade() else { return Err(CallError::Operation(DownError::Stopping)) };
        if node.is_ending() {
            return Err(CallError::Operation(DownError::Stopping));
        }
        node.goes_down();
        Ok(())
    }

    async fn restart(&self, _: &Call, _: Granted<TheSystem>, component: &str) -> Result<(), CallError<RestartError>> {
        let stopping = CallError::Operation(RestartError::Stopping);
        let Some(node) = self.0.upgrade().filter(|node| !node.is_ending()) else { return Err(stopping) };
        let component = node.find(component).ok_or(CallError::Operation(RestartError::NoSuchComponent))?;
        // A run that is beginning is as new as the one that is asked for.
        let begins = component.is_beginning();
        let before = component.epoch.get() - u64::from(begins);
        let index = node.components.iter().position(|known| known.slot == component.slot).expect("it was found");
        // Whoever asked may go meanwhile; what is begun is done.
        kernel_ipc::runtime::spawn(node.clone().stop_together(index, begins));
        while component.epoch.get() == before {
            let next = component.changes.next();
            if node.stopping.has_happened() {
                return Err(stopping);
            }
            next.await;
        }
        Ok(())
    }

    async fn upgrade(
        &self,
        _: &Call,
        _: Granted<TheSystem>,
        component: &str,
        program: &str,
    ) -> Result<Upgrade, CallError<UpgradeError>> {
        let stopping = CallError::Operation(UpgradeError::Stopping);
        let Some(node) = self.0.upgrade().filter(|node| !node.is_ending()) else { return Err(stopping) };
        let index = node.components.iter().position(|known| known.entry.name == component);
        let index = index.ok_or(CallError::Operation(UpgradeError::NoSuchComponent))?;
        let program = program.to_owned();
        // Whoever asked may go meanwhile; what is begun is done.
        let upgrade = kernel_ipc::runtime::spawn(async move { node.upgrade(index, &program).await });
        upgrade.await.unwrap_or(Err(UpgradeError::Stopping)).map_err(CallError::Operation)
    }

    async fn plan_move(
        &self,
        _: &Call,
        _: Granted<TheSystem>,
        component: &str,
        node: &str,
        cursor: u32,
    ) -> Result<MovePlan, CallError<PlanError>> {
        let this = self.0.upgrade().ok_or(CallError::Operation(PlanError::Stopping))?;
        this.plan_move(component, node, cursor).await.map_err(CallError::Operation)
    }

    async fn signal(
        &self,
        _: &Call,
        _: Granted<TheSystem>,
        component: &str,
        signal: Signal,
    ) -> Result<u64, CallError<SignalError>> {
        let node = self.0.upgrade().ok_or(CallError::Operation(SignalError::NotRunning))?;
        let component = node.find(component).ok_or(CallError::Operation(SignalError::NoSuchComponent))?;
        let run = component.peer.borrow().clone().filter(|run| !run.ended.has_happened());
        let run = run.ok_or(CallError::Operation(SignalError::NotRunning))?;
        let number = match signal {
            Signal::Kill => libc::SIGKILL,
            Signal::Stop => libc::SIGSTOP,
            Signal::Continue => libc::SIGCONT,
            Signal::Abort => libc::SIGABRT,
        };
        if signal == Signal::Continue {
            component.hold.thaw();
            component.keep();
        }
        // By its pidfd: never to whoever has its number after it.
        let sent = node.keeper.tell(Ask::Signal, run.slot, number as u64).await;
        sent.map(|_| run.epoch.get()).map_err(|_| CallError::Operation(SignalError::NotRunning))
    }

    async fn stop(&self, _: &Call, _: Granted<TheSystem>, component: &str) -> Result<(), CallError<StopError>> {
        let node = self.0.upgrade().ok_or(CallError::Operation(StopError::Stopping))?;
        node.stop_for_operator(component).await.map_err(CallError::Operation)
    }

    async fn start(&self, _: &Call, _: Granted<TheSystem>, component: &str) -> Result<(), CallError<RestartError>> {
        let node = self.0.upgrade().ok_or(CallError::Operation(RestartError::Stopping))?;
        node.start_for_operator(component).await.map_err(CallError::Operation)
    }

    async fn freeze(&self, _: &Call, _: Granted<TheSystem>, component: &str) -> Result<u64, CallError<FreezeError>> {
        let node = self.0.upgrade().ok_or(CallError::Operation(FreezeError::Stopping))?;
        node.freeze(component, true).await.map_err(CallError::Operation)
    }

    async fn thaw(&self, _: &Call, _: Granted<TheSystem>, component: &str) -> Result<u64, CallError<FreezeError>> {
        let node = self.0.upgrade().ok_or(CallError::Operation(FreezeError::Stopping))?;
        node.freeze(component, false).await.map_err(CallError::Operation)
    }

    async fn supervisor(
        &self,
        _: &Call,
        _: Granted<TheSystem>,
    ) -> Result<SupervisorStatus, CallError<SupervisorError>> {
        let node = self.0.upgrade().ok_or(CallError::Operation(SupervisorError::Stopping))?;
        Ok(this(&node))
    }

    async fn replace_supervisor(
        &self,
        _: &Call,
        _: Granted<TheSystem>,
    ) -> Result<SupervisorStatus, CallError<SupervisorError>> {
        let stopping = CallError::Operation(SupervisorError::Stopping);
        let node = self.0.upgrade().filter(|node| !node.stopping.has_happened()).ok_or(stopping)?;
        let leaves = this(&node);
        kernel_ipc::runtime::spawn(async move {
            // The answer goes out first; whoever misses it asks the next one.
            kernel_ipc::runtime::sleep(ANSWERED_WITHIN).await;
            node.leave();
        });
        Ok(leaves)
    }
}

/// This supervisor.
fn this(node: &Node) -> SupervisorStatus {
    let restarts = u32::try_from(node.turn.saturating_sub(1)).unwrap_or(u32::MAX);
    SupervisorStatus { pid: std::process::id(), restarts }
}

impl Node {
    pub(super) fn find(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|component| component.entry.name == name)
    }
}

/// How a component of this node is.
pub(super) async fn status(node: &Node, component: &Component) -> ComponentStatus {
    let run = component.peer.borrow().clone().filter(|run| !run.ended.has_happened());
    let stopped = run.as_ref().is_some_and(|run| is_stopped(run.pid));
    let counters = match &run {
        Some(run) if !stopped => counters(node, run).await,
        _ => CounterValues::default(),
    };
    let listen = component.fact("listen").as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
    ComponentStatus {
        name: component.entry.name.clone(),
        pid: run.as_ref().map_or(0, |run| run.pid),
        state: match component.phase.get() {
            _ if stopped && component.hold.is_frozen() => State::Frozen,
            _ if stopped => State::Stopped,
            Phase::Ready if run.as_ref().is_some_and(|run| run.watch.is_hung()) => State::Hung,
            Phase::Ready if run.as_ref().is_some_and(|run| run.pulse.is_blocked()) => State::Blocked,
            Phase::Waiting => State::Waiting,
            Phase::Starting => State::Starting,
            Phase::Ready => State::Ready,
            Phase::Restarting => State::Restarting,
            Phase::Failed => State::Quarantined,
            Phase::Stopping => State::Stopping,
            Phase::Stopped => State::Ended,
            Phase::Held if component.hold.is_stopped() => State::Down,
            // The last supervisor has held it; this one is about to start it.
            Phase::Held => State::Restarting,
        },
        epoch: component.epoch.get(),
        restarts: component.starts.get(),
        place: place(&component.entry),
        listen,
        leased_bytes: counters.leased,
        verified_bytes: counters.verified,
        copied_bytes: counters.copied,
        trouble: shortened(&component.trouble.borrow()),
    }
}

/// Asks a run; one that does not answer has counted nothing that we know of.
async fn counters(node: &Node, run: &Peer) -> CounterValues {
    if !run.is_introducible() || !run.ready.has_happened() {
        return CounterValues::default();
    }
    let request = node.state.deal(1);
    let message = ToComponent::AskCounters { request };
    run.ask_within(COUNTED_WITHIN, &run.asked.counters, request, &message, &[]).await.unwrap_or_default()
}

/// Where a component runs.
pub(super) fn place(entry: &crate::manifest::Component) -> String {
    entry.node.as_ref().map_or_else(|| "process".into(), |node| format!("node:{node}"))
}

/// A page has little room.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Whole lines of a file from `cursor` on, at most `max` bytes. `None`: the file is shorter than that.
fn read_log(path: &std::path::Path, cursor: u64, max: usize) -> io::Result<Option<LogPage>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if cursor > length {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(cursor))?;
    let mut text = vec![0; max.min(usize::try_from(length - cursor).unwrap_or(max))];
    file.read_exact(&mut text)?;
    // A line that is longer than a page is given in pieces: otherwise nothing would ever come after it.
    if let Some(last) = text.iter().rposition(|&byte| byte == b'\n') {
        text.truncate(last + 1);
    }
    let next = cursor + text.len() as u64;
    Ok(Some(LogPage { next, end: next == length, text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read_in_whole_lines_up_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        let mut cursor = 0;
        let mut pages = Vec::new();
        loop {
            let page = read_log(&path, cursor, 9).unwrap().unwrap();
            pages.push(String::from_utf8(page.text).unwrap());
            cursor = page.next;
            if page.end {
                break;
            }
        }
        assert_eq!(pages, ["one\ntwo\n", "three\n"]);
        assert!(read_log(&path, 15, 9).unwrap().is_none());
        let long = read_log(&path, 8, 3).unwrap().unwrap();
        assert_eq!((long.text.as_slice(), long.next, long.end), (&b"thr"[..], 11, false));
    }
}
