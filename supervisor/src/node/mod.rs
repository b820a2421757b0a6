//! The supervisor of a node: manifest, broker, restarts, logs.
//!
//! - It is one thread; its tasks share a [`Node`], and nothing is borrowed across an await.
//! - It is not on the data path. It wakes when a process dies, a session is opened, a component prints, or somebody asks
//!   `atoll.control/1`, and once a second while a component has something to do; at rest it sleeps.
//! - Every process is started by the keeper, which also tells who died; this module decides what to do about it.
//! - It can be killed at any moment: what the next supervisor has to know is a [record](records) at the keeper before anybody
//!   acts on it, or is known to those who live, and they are asked ([adoption]).

mod adoption;
mod books;
mod candidate;
mod cluster;
mod component;
mod control;
mod crashes;
mod events;
mod guests;
mod hold;
mod holdings;
mod inside;
mod introductions;
mod launch;
mod link;
pub(crate) mod logs;
mod messages;
mod peer;
mod placed;
mod plan;
mod pulse;
mod records;
mod sessions;
mod shutdown;
mod state;
mod survival;
mod together;
mod upgrade;
mod waits;
mod watchdog;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::rc::{Rc, Weak};
use std::time::Instant;

use kernel_ipc::broker::{ChannelError, ToComponent};
use kernel_ipc::component::waits::Event;
use kernel_ipc::runtime::{Options, Runtime, spawn};
use kernel_ipc::steps;
use kernel_ipc::{Incarnation, LenderId, SessionId};
use serde_json::Value;

use crate::cluster::directory::Embedded;
use crate::ended::Ended;
use crate::keeper::seat;
use crate::keeper::wire::{self, Ask, Request, SUPERVISOR_SLOT};
use crate::lifecycle::Restarts;
use crate::manifest;
use crate::sys::process;
use crate::ties::Ties;
use crate::up::Progress;
use adoption::Adoption;
use holdings::Holdings;
use introductions::{Met, Pair};
use link::{Link, Record};
use logs::Log;
use peer::{Peer, Who};
use placed::{Placed, prepare};
use records::{Kept, Kind, NumbersTag, Records};
use state::State;
use survival::{Estate, Pins, Surviving};
use waits::Changes;

/// What a component is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Phase {
    /// Not started yet.
    Waiting = 1,
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
    /// Down until an operator starts it.
    Held = 9,
}

/// A component of the manifest, over all its runs.
struct Component {
    entry: manifest::Component,
    slot: u32,
    phase: Cell<Phase>,
    /// What the next supervisor will know of it.
    record: Kept,
    /// Its living run.
    peer: RefCell<Option<Rc<Peer>>>,
    epoch: Cell<u64>,
    starts: Cell<u32>,
    restarts: RefCell<Restarts>,
    /// When its last run that was ready was so.
    ready_at: Cell<Option<Instant>>,
    /// It did not end in order.
    disorder: Cell<bool>,
    hold: hold::Hold,
    /// The number of the crash that ended its last run that was ready, until one is ready again.
    crash: Cell<Option<u64>>,
    /// What its runs leave for the ones after them.
    estate: Estate,
    book: books::Book,
    holdings: Holdings,
    /// What its runs are of.
    programs: upgrade::Programs,
    /// An operator wants it started again now.
    wanted: Cell<bool>,
    /// The component with which it is being restarted, itself if it was the first, until its next run begins.
    restarts_with: Cell<Option<usize>>,
    /// Phase or run have changed.
    changes: Changes,
    log: Rc<Log>,
    trouble: RefCell<String>,
    /// What its runs reported, the latest of each.
    facts: RefCell<BTreeMap<String, (Value, Option<Kept>)>>,
}

/// An open session.
struct Session {
    client: Incarnation,
    /// The host's component and endpoint; none: nobody has told this supervisor.
    endpoint: Option<(usize, String)>,
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
    /// So long the next supervisor has to know whose it is.
    record: Option<Rc<Kept>>,
}

/// Everything that the supervisor knows.
struct Node {
    system: String,
    system_log: Rc<Log>,
    components: Vec<Component>,
    /// Those of the manifest that run on other nodes.
    elsewhere: Vec<manifest::Component>,
    /// Nodes whose operators are operators here.
    operators: Vec<String>,
    /// What was said of the manifest's values when the node was started.
    sets: Vec<String>,
    /// Where things are, if this is a node of a cluster.
    directory: Option<Embedded>,
    /// The others, from when they are answered.
    cluster: OnceCell<cluster::Cluster>,
    ties: Ties,
    state: State,
    keeper: Rc<Link>,
    records: Rc<Records>,
    /// Records that last as long as the node.
    forever: RefCell<Vec<Kept>>,
    /// How many supervisors there have been, with this one.
    turn: u64,
    /// What is not known yet of those whom the last supervisor has left.
    adoption: RefCell<Adoption>,
    /// Somebody has accounted for itself, or is gone.
    accounted: Changes,
    status: OwnedFd,
    peers: RefCell<BTreeMap<Incarnation, Rc<Peer>>>,
    sessions: RefCell<HashMap<SessionId, Session>>,
    /// What components are to write spans of: one in so many traces, and until when.
    tracing: Cell<Option<inside::Tracing>>,
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
    /// Processes that may become runs, by slot and epoch.
    candidates: RefCell<HashMap<(u32, u64), Weak<candidate::End>>>,
    /// An operator wants it to end; what has to be put in order before that is.
    going_down: Cell<bool>,
    stopping: Event,
    progress: RefCell<Option<File>>,
}

/// Most messages that may wait for a guest: some for each session that it may have.
const MAX_UNREAD: usize = 4 * messages::MAX_SESSIONS;

/// Runs the supervisor until the node has ended. Working directory: the state directory. Descriptor 3: the keeper's
/// socket.
pub fn run(manifest: Option<&Path>, sets: &[String]) -> ExitCode {
    let Some(socket) = process::inherited() else {
        eprintln!("supervisor: was not started by a keeper");
        return ExitCode::from(2);
    };
    let _ = nix::sys::prctl::set_name(c"atoll-superv");
    steps::walk(Path::new("."), "supervisor");
    let keeper = Rc::new(Link::new(socket));
    let found = match Found::at(&keeper) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("supervisor: the keeper: {error}");
            return ExitCode::FAILURE;
        }
    };
    let goes_on = found.has(Kind::Lock);
    if goes_on {
        steps::reach("adopt/attached");
    }
    let prepared = match Runtime::new(Options::default()) {
        Ok(runtime) => prepare(manifest, sets, &found).map(|prepared| (runtime, prepared)),
        Err(error) => Err(format!("io_uring: {error}")),
    };
    match prepared {
        Ok((runtime, (placed, state))) => runtime.block_on(supervise(placed, state, keeper, found)),
        // The next one may do better; nothing ends by it.
        Err(reason) if goes_on => {
            eprintln!("supervisor: {reason}");
            return ExitCode::FAILURE;
        }
        Err(reason) => {
            eprintln!("supervisor: {reason}");
            report(&mut found.progress.as_ref(), &Progress::Failed { reason });
            keeper.end(1);
        }
    }
    // The keeper ends this process too, as the last.
    loop {
        std::thread::park();
    }
}

/// What the keeper has for a supervisor that begins.
struct Found {
    turn: u64,
    records: Vec<Record>,
    /// Where the start is reported, if that is not done.
    progress: Option<File>,
}

impl Found {
    fn at(keeper: &Link) -> std::io::Result<Found> {
        let (attached, _) = keeper.ask_blocking(Request::new(Ask::Attach, 0, wire::VERSION), &[])?;
        let mut records = keeper.records()?;
        let mut progress = None;
        for record in records.extract_if(.., |record| record.key == wire::REPORT) {
            progress = record.descriptor.map(File::from);
        }
        Ok(Found { turn: attached.a, records, progress })
    }

    fn has(&self, kind: Kind) -> bool {
        self.records.iter().any(|record| record.key.kind == kind as u32)
    }

    fn take(&mut self, kind: Kind) -> Option<Record> {
        let at = self.records.iter().position(|record| record.key.kind == kind as u32)?;
        Some(self.records.swap_remove(at))
    }
}

fn report(to: &mut Option<&File>, progress: &Progress) {
    if let Some(to) = to {
        let line = serde_json::to_string(progress).expect("strings only");
        // Whoever started the node may have gone.
        let _ = writeln!(to, "{line}");
    }
}

async fn supervise(placed: Placed, state: State, keeper: Rc<Link>, mut found: Found) {
    let goes_on = found.has(Kind::Lock);
    let (listener, is_up) = (found.take(Kind::Listener), found.has(Kind::Up));
    let node_listener = found.take(Kind::NodeListener).and_then(|listener| listener.descriptor);
    let (ending, down) = (found.take(Kind::Ending), found.take(Kind::Down));
    let begun = Node::new(placed, state, keeper, &mut found).map(Rc::new);
    let begun = begun.and_then(|node| {
        // Before there is anybody to watch.
        spawn(watchdog::watch(&node)?);
        Ok((adoption::take_over(&node, found.records)?, node))
    });
    let (left, node) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            eprintln!("supervisor: {error}");
            std::process::exit(1);
        }
    };
    if down.is_some() {
        // Before anybody can want anything else.
        node.is_to_end();
    }
    spawn(events::act_on_them(node.clone()));
    spawn({
        let records = node.records.clone();
        async move { records.tidy().await }
    });
    if let Some(ending) = &ending {
        node.ends(records::read(&ending.tag).unwrap_or_default().as_str());
    }
    if goes_on {
        steps::reach("adopt/taken");
        left.reconcile(&node).await;
        steps::reach("adopt/reconciled");
        eprintln!("supervisor: number {} has taken over", node.turn);
    }
    if let Err(error) = node.keeper.serves() {
        eprintln!("supervisor: the keeper: {error}");
    }
    if goes_on {
        steps::reach("adopt/serving");
    }
    let why = ending.and_then(|ending| records::read(&ending.tag)).filter(|why| !why.is_empty());
    if let Some(why) = why {
        return node.fail(why).await;
    }
    match listener.and_then(|listener| listener.descriptor) {
        Some(listener) => drop(spawn(guests::listen_again(&node, listener))),
        None => match guests::listen(&node) {
            Ok(listening) => drop(spawn(listening)),
            Err(error) => return node.fail(format!("{}: {error}", kernel_ipc::broker::GUEST_SOCKET)).await,
        },
    }
    if is_up {
        spawn(cluster::answer_again(node.clone(), node_listener));
    } else if let Err(reason) = cluster::answer(&node, node_listener).await {
        return node.fail(reason).await;
    }
    if down.is_some() && !is_up {
        node.ends("");
    }
    if !node.stopping.has_happened() {
        match launch::start_all(&node, is_up).await {
            Ok(()) if !is_up || node.progress.borrow().is_some() => node.is_up(),
            Ok(()) => {}
            Err(reason) => return node.fail(reason).await,
        }
        if down.is_some() {
            spawn(node.clone().go_down());
        }
    }
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
    fn new(placed: Placed, state: State, keeper: Rc<Link>, found: &mut Found) -> std::io::Result<Node> {
        let first_slot = SUPERVISOR_SLOT + 1;
        let system_log = Rc::new(Log::of_system(state.path()));
        let records = Rc::new(Records::new(keeper.clone()));
        let ties = Ties::of(&placed.here);
        let components = placed.here.into_iter().zip(first_slot..).map(|(entry, slot)| {
            let log = Rc::new(Log::new(state.path(), &entry.name, &system_log));
            Component::new(entry, slot, log, &records)
        });
        let components = components.collect::<Vec<Component>>();
        let lock = match found.take(Kind::Lock) {
            Some(lock) => records.know(lock.key, None),
            None => records.put(Kind::Lock, 0, 0, &NumbersTag::default(), Some(state.lock().as_fd()))?,
        };
        let progress = found.progress.take();
        let (_, status) = keeper.ask_blocking(Request::new(Ask::Status, 0, 0), &[])?;
        let status = status.ok_or_else(|| std::io::Error::other("no status page"))?;
        Ok(Node {
            system: placed.system,
            system_log,
            components,
            elsewhere: placed.elsewhere,
            operators: placed.operators,
            sets: placed.sets,
            directory: placed.directory,
            cluster: OnceCell::new(),
            ties,
            state,
            keeper,
            records,
            forever: RefCell::new(vec![lock]),
            turn: found.turn,
            adoption: RefCell::default(),
            accounted: Changes::default(),
            status,
            peers: RefCell::default(),
            sessions: RefCell::default(),
            tracing: Cell::default(),
            met: RefCell::default(),
            attached: RefCell::default(),
            pins: RefCell::default(),
            introducing: RefCell::default(),
            introduced: Changes::default(),
            fences: RefCell::default(),
            guest_slots: RefCell::default(),
            candidates: RefCell::default(),
            going_down: Cell::default(),
            stopping: Event::default(),
            progress: RefCell::new(progress),
        })
    }

    fn report(&self, progress: &Progress) {
        report(&mut self.progress.borrow().as_ref(), progress);
    }

    /// Everything serves.
    fn is_up(&self) {
        self.lasts(Kind::Up, &NumbersTag::default());
        self.report(&Progress::Up);
        self.reported();
    }

    /// Nobody listens to the report of the start any more.
    fn reported(&self) {
        self.progress.borrow_mut().take();
        if let Err(error) = self.keeper.take(wire::REPORT) {
            eprintln!("supervisor: the keeper: {error}");
        }
    }

    /// Puts a record that lasts as long as the node.
    fn lasts(&self, kind: Kind, tag: &(impl zerocopy::IntoBytes + zerocopy::Immutable)) {
        match self.records.put(kind, 0, 0, tag, None) {
            Ok(kept) => self.forever.borrow_mut().push(kept),
            Err(error) => eprintln!("supervisor: the keeper: {error}"),
        }
    }

    /// The node ends, whoever is its supervisor; `why` if its start has failed.
    fn ends(&self, why: &str) {
        if !self.stopping.has_happened() || !why.is_empty() {
            self.lasts(Kind::Ending, &records::cut::<{ records::NAME }>(why));
        }
        self.stopping.happen();
    }

    /// Whether an operator has nothing more to want but the end.
    fn is_ending(&self) -> bool {
        self.going_down.get() || self.stopping.has_happened()
    }

    /// The start has failed: says why, and ends the node.
    async fn fail(self: &Rc<Self>, reason: String) {
        eprintln!("supervisor: {reason}");
        self.ends(&reason);
        // Everything that was started ends first, so that whoever hears of the failure can start again at once.
        shutdown::stop_all(self).await;
        self.report(&Progress::Failed { reason });
        self.keeper.end(1);
        std::future::pending().await
    }

    /// Leaves the seat to another supervisor, which finds everything running.
    fn leave(&self) -> ! {
        eprintln!("supervisor: number {} leaves", self.turn);
        std::process::exit(seat::LEAVES)
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
}
