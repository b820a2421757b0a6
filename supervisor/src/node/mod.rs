//! The supervisor of a node: manifest, broker, restarts, logs.
//!
//! - It is one thread; its tasks share a [`Node`], and nothing is borrowed across an await.
//! - It is not on the data path. It wakes when a process dies, a session is opened, a component prints, or somebody asks
//!   `atoll.control/1`; at rest it sleeps.
//! - Every process is started by the keeper, which also tells who died; this module decides what to do about it.

mod control;
mod guests;
mod holdings;
mod introductions;
mod launch;
pub mod lifecycle;
mod link;
mod logs;
mod messages;
mod peer;
mod sessions;
mod shutdown;
mod state;
mod survival;
mod waits;
mod watchdog;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use kernel_ipc::broker::{ChannelError, ToComponent};
use kernel_ipc::component::waits::Event;
use kernel_ipc::runtime::{Options, Runtime, spawn};
use kernel_ipc::{Incarnation, LenderId, SessionId};
use serde_json::Value;

use crate::ended::Ended;
use crate::keeper::wire::{Ask, Key, Request, SUPERVISOR_SLOT, TAG};
use crate::manifest::{self, Checked, Manifest, Origin};
use crate::sys::process;
use crate::up::Progress;
use holdings::Holdings;
use introductions::{Met, Pair};
use lifecycle::Restarts;
use link::Link;
use logs::Log;
use peer::{Peer, Who};
use state::State;
use survival::{Estate, Pins, Surviving};
use waits::Changes;

/// What a component is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not started yet.
    Waiting,
    /// Started, not ready.
    Starting,
    /// Serves.
    Ready,
    /// Dead; will be started again.
    Restarting,
    /// Given up.
    Failed,
    /// Asked to end.
    Stopping,
    /// Ended in order.
    Stopped,
}

/// A component of the manifest, over all its runs.
struct Component {
    entry: manifest::Component,
    slot: u32,
    phase: Cell<Phase>,
    /// Its living run.
    peer: RefCell<Option<Rc<Peer>>>,
    epoch: Cell<u64>,
    starts: Cell<u32>,
    restarts: RefCell<Restarts>,
    /// What its runs leave for the ones after them.
    estate: Estate,
    holdings: Holdings,
    /// An operator wants it started again now.
    wanted: Cell<bool>,
    /// Phase or run have changed.
    changes: Changes,
    log: Rc<Log>,
    trouble: RefCell<String>,
    /// What its runs reported, the latest of each.
    facts: RefCell<BTreeMap<String, Value>>,
}

impl Component {
    fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
        self.changes.happen();
    }
}

/// An open session.
struct Session {
    client: Incarnation,
    host: Host,
    /// If it goes on when its host dies.
    surviving: Option<Surviving>,
}

/// Who serves a session.
enum Host {
    /// A component's run.
    Peer(Incarnation),
    /// The component's next run.
    Awaited,
    /// The supervisor itself.
    Supervisor(kernel_ipc::session::HostSession),
}

/// A slot that is used again when its fence has ended.
struct Fence {
    incarnation: Incarnation,
    ended: Rc<Event>,
}

/// Everything that the supervisor knows.
struct Node {
    system: String,
    system_log: Rc<Log>,
    components: Vec<Component>,
    state: State,
    keeper: Link,
    status: OwnedFd,
    peers: RefCell<BTreeMap<Incarnation, Rc<Peer>>>,
    sessions: RefCell<HashMap<SessionId, Session>>,
    /// Which mapper has met which lender.
    met: RefCell<HashMap<(Incarnation, LenderId), Met>>,
    /// Who is being introduced to whom: mapper and lender.
    introducing: RefCell<HashMap<(Incarnation, LenderId), Pair>>,
    /// An introduction has ended, or is overdue.
    introduced: Changes,
    /// Whose pins are attached at which lenders' runs.
    attached: RefCell<HashMap<Incarnation, Vec<Incarnation>>>,
    /// The pins of every mapper that is not fenced.
    pins: RefCell<HashMap<(Incarnation, LenderId), Pins>>,
    fences: RefCell<HashMap<(u32, u64), Fence>>,
    guest_slots: RefCell<BTreeMap<u32, u64>>,
    stopping: Event,
    progress: RefCell<Option<File>>,
}

/// The record of the state directory's lock, which lasts as long as the node.
const LOCK: u32 = 1;

/// Most messages that may wait for a guest: some for each session that it may have.
const MAX_UNREAD: usize = 4 * messages::MAX_SESSIONS;

/// Runs the supervisor until the node has ended. Working directory: the state directory. Descriptor 3: the keeper's
/// socket; 4, if open: where the start is reported.
pub fn run(manifest: Option<&Path>, sets: &[String]) -> ExitCode {
    let Some(socket) = process::inherited(process::FIRST_INHERITED) else {
        eprintln!("supervisor: was not started by a keeper");
        return ExitCode::from(2);
    };
    let progress = process::inherited(process::FIRST_INHERITED + 1).map(File::from);
    let _ = nix::sys::prctl::set_name(c"atoll-superv");
    let runtime = match Runtime::new(Options::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            report(&mut progress.as_ref(), &Progress::Failed { reason: format!("io_uring: {error}") });
            return ExitCode::FAILURE;
        }
    };
    let keeper = Link::new(socket);
    match prepare(manifest, sets) {
        Ok((checked, state)) => runtime.block_on(supervise(checked, state, keeper, progress)),
        Err(reason) => {
            eprintln!("supervisor: {reason}");
            report(&mut progress.as_ref(), &Progress::Failed { reason });
            keeper.end(1);
        }
    }
    // The keeper ends this process too, as the last.
    loop {
        std::thread::park();
    }
}

/// Everything that can go wrong before the first process is started.
fn prepare(manifest: Option<&Path>, sets: &[String]) -> Result<(Checked, State), String> {
    let origin = manifest.map_or(Origin::Embedded, Origin::Path);
    let checked = Manifest::load(origin, sets).map_err(|report| report.to_string())?;
    let state = State::open(Path::new(".")).map_err(|error| error.to_string())?;
    Ended::forget(state.path()).map_err(|error| format!("state directory: {error}"))?;
    Ok((checked, state))
}

fn report(to: &mut Option<&File>, progress: &Progress) {
    if let Some(to) = to {
        let line = serde_json::to_string(progress).expect("strings only");
        // Whoever started the node may have gone.
        let _ = writeln!(to, "{line}");
    }
}

async fn supervise(checked: Checked, state: State, keeper: Link, progress: Option<File>) {
    let node = match Node::new(checked, state, keeper, progress) {
        Ok(node) => Rc::new(node),
        Err(error) => {
            eprintln!("supervisor: {error}");
            return;
        }
    };
    spawn(events(node.clone()));
    match watchdog::watch(&node) {
        Ok(watching) => spawn(watching),
        Err(error) => return node.fail(format!("the watchdog: {error}")).await,
    };
    match guests::listen(&node) {
        Ok(listening) => spawn(listening),
        Err(error) => return node.fail(format!("{}: {error}", kernel_ipc::broker::GUEST_SOCKET)).await,
    };
    match launch::start_all(&node).await {
        Ok(()) => node.report(&Progress::Up),
        Err(reason) => return node.fail(reason).await,
    }
    node.progress.borrow_mut().take();
    node.stopping.wait().await;
    let ended = Ended { troubles: shutdown::stop_all(&node).await };
    for trouble in &ended.troubles {
        eprintln!("supervisor: not in order: {trouble}");
    }
    let written = ended.write(node.state.path());
    if let Err(error) = &written {
        eprintln!("supervisor: cannot write down how the node ended: {error}");
    }
    node.keeper.end(u8::from(!ended.troubles.is_empty() || written.is_err()));
    std::future::pending().await
}

impl Node {
    fn new(checked: Checked, state: State, keeper: Link, progress: Option<File>) -> std::io::Result<Node> {
        let first_slot = SUPERVISOR_SLOT + 1;
        let system_log = Rc::new(Log::of_system(state.path()));
        let components = checked.components.into_iter().zip(first_slot..).map(|(entry, slot)| Component {
            slot,
            phase: Cell::new(Phase::Waiting),
            peer: RefCell::default(),
            epoch: Cell::new(0),
            starts: Cell::new(0),
            restarts: RefCell::default(),
            estate: Estate::default(),
            holdings: Holdings::default(),
            wanted: Cell::new(false),
            changes: Changes::default(),
            log: Rc::new(Log::new(state.path(), &entry.name, &system_log)),
            trouble: RefCell::default(),
            facts: RefCell::default(),
            entry,
        });
        let components: Vec<Component> = components.collect();
        keeper.put(Key { kind: LOCK, slot: 0, number: 0 }, &[0; TAG], Some(state.lock().as_fd()))?;
        let (_, status) = keeper.ask_blocking(Request::new(Ask::Status, 0, 0), &[])?;
        let status = status.ok_or_else(|| std::io::Error::other("no status page"))?;
        Ok(Node {
            system: checked.system,
            system_log,
            components,
            state,
            keeper,
            status,
            peers: RefCell::default(),
            sessions: RefCell::default(),
            met: RefCell::default(),
            attached: RefCell::default(),
            pins: RefCell::default(),
            introducing: RefCell::default(),
            introduced: Changes::default(),
            fences: RefCell::default(),
            guest_slots: RefCell::default(),
            stopping: Event::default(),
            progress: RefCell::new(progress),
        })
    }

    fn report(&self, progress: &Progress) {
        report(&mut self.progress.borrow().as_ref(), progress);
    }

    /// The start has failed: says why, and ends the node.
    async fn fail(self: &Rc<Self>, reason: String) {
        eprintln!("supervisor: {reason}");
        // Everything that was started ends first, so that whoever hears of the failure can start again at once.
        shutdown::stop_all(self).await;
        self.report(&Progress::Failed { reason });
        self.keeper.end(1);
        std::future::pending().await
    }

    /// The living run with this number.
    fn peer(&self, incarnation: Incarnation) -> Option<Rc<Peer>> {
        self.peers.borrow().get(&incarnation).cloned()
    }

    /// All that live, oldest first.
    fn living(&self) -> Vec<Rc<Peer>> {
        self.peers.borrow().values().cloned().collect()
    }

    /// Sends a message, now or when the peer makes room. A guest that leaves more unread than its sessions can cause is
    /// shown out. A component is not: what waits for it is bounded by what it has agreed to (see [`Peer::room`]), and that
    /// it is busy or stopped is not its fault.
    fn send(self: &Rc<Self>, peer: &Rc<Peer>, message: &ToComponent, given: &[BorrowedFd<'_>]) {
        match peer.send(message, given) {
            Ok(()) | Err(ChannelError::Closed) => {}
            Err(error) => return self.end_for_fault(peer, &error.to_string()),
        }
        if peer.who == Who::Guest && peer.outbox.waiting() > MAX_UNREAD {
            self.end_for_fault(peer, "it does not read its control socket");
        }
    }

    /// Ends a peer that broke the protocol.
    fn end_for_fault(self: &Rc<Self>, peer: &Rc<Peer>, what: &str) {
        if peer.ended.has_happened() || peer.at_fault.replace(true) {
            return; // It is ending already.
        }
        eprintln!("supervisor: {}: {what}", peer.name);
        peer.trouble.borrow_mut().get_or_insert_with(|| what.to_owned());
        match peer.who {
            Who::Component(_) => {
                let (node, slot) = (self.clone(), peer.slot);
                spawn(async move { node.keeper.tell(Ask::Signal, slot, libc::SIGKILL as u64).await });
            }
            Who::Guest => self.gone(peer),
        }
    }

    /// A run has ended: everybody who had to do with it hears of it.
    fn gone(self: &Rc<Self>, peer: &Rc<Peer>) {
        if self.peers.borrow_mut().remove(&peer.incarnation).is_none() {
            return;
        }
        peer.ended.happen();
        // With it goes the fence of one that died before it was greeted: nobody else would ever end it.
        peer.greeting.borrow_mut().take();
        peer.asked.clear();
        peer.outbox.close();
        self.end_sessions_of(peer);
        self.forget_introductions_of(peer);
        if self.survives(peer) {
            self.bequeath(peer);
        } else {
            self.forget_pins_for(peer.lender);
        }
        if peer.who == Who::Guest {
            // It may hold its end open, and say nothing more.
            peer.channel.shut_down();
            let (node, slot) = (self.clone(), peer.slot);
            spawn(async move { node.keeper.tell(Ask::GuestGone, slot, 0).await });
        }
    }
}

/// Acts on the keeper's events.
async fn events(node: Rc<Node>) {
    loop {
        match node.keeper.event().await {
            Ok(link::Event::Exited { slot, epoch, wait_status }) => {
                let living = node.living();
                if let Some(peer) = living.iter().find(|peer| peer.slot == slot && peer.epoch.get() == epoch) {
                    peer.wait_status.set(Some(wait_status));
                    node.gone(peer);
                }
            }
            Ok(link::Event::Fenced { slot, epoch }) => {
                let fence = node.fences.borrow_mut().remove(&(slot, epoch));
                if let Some(fence) = fence {
                    node.mapper_fenced(fence.incarnation);
                    fence.ended.happen();
                }
            }
            Ok(link::Event::Terminate) => {
                node.stopping.happen();
                let node = node.clone();
                spawn(async move { node.keeper.tell(Ask::Ending, 0, 0).await });
            }
            Err(error) => {
                // Without the keeper there is no node; it kills this process when it dies.
                eprintln!("supervisor: the keeper: {error}");
                std::process::exit(1);
            }
        }
    }
}
