//! Starting components, and starting them again.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::broker::{Channel, Outbox, ProvideInfo, REGIONS_PER_INCARNATION, UseInfo, Welcome};
use kernel_ipc::component::waits::Event;
use kernel_ipc::runtime::{JoinHandle, sleep, spawn, timeout};
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId};
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::lifecycle::{self, Cause, Decision};
use super::peer::{Asked, Peer, Who};
use super::waits::{Either, either};
use super::watchdog::Watch;
use super::{Fence, Node, Phase, messages};
use crate::keeper::MAX_DEAD;
use crate::keeper::wire::{Ask, Request};
use crate::up::Progress;

/// How long a component may take from its start until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long the rest of a dead component's output is waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Starts every component after those that it uses.
///
/// # Errors
/// What is wrong with the first one that does not start, with its last lines.
pub async fn start_all(node: &Rc<Node>) -> Result<(), String> {
    for index in 0..node.components.len() {
        let name = node.components[index].entry.name.clone();
        node.report(&Progress::Starting { component: name.clone() });
        let started = either(launch(node, index), node.stopping.wait()).await;
        match started {
            Either::First(Ok(peer)) => {
                node.report(&Progress::Ready { component: name });
                spawn(tend(node.clone(), index, peer));
            }
            Either::First(Err(trouble)) => return Err(with_last_lines(node, index, &trouble)),
            Either::Second(()) => return Err("ended while it was starting".into()),
        }
    }
    Ok(())
}

fn with_last_lines(node: &Node, index: usize, trouble: &str) -> String {
    let component = &node.components[index];
    let mut reason = format!("component {}: {trouble}", component.entry.name);
    // Its own reason is in `trouble` already, and it has printed it too.
    let is_news = |line: &String| !trouble.ends_with(line.trim_start_matches("error: "));
    for line in component.log.last_lines().into_iter().filter(is_news) {
        reason.push_str("\n  | ");
        reason.push_str(&line);
    }
    reason
}

/// Watches a component that is ready, and starts it again when it dies.
async fn tend(node: Rc<Node>, index: usize, mut peer: Rc<Peer>) {
    let component = &node.components[index];
    loop {
        peer.ended.wait().await;
        last_words(&peer).await;
        let mut served = peer.ready_at.get().map(|at| at.elapsed());
        let mut died = peer;
        // Until it serves again.
        peer = loop {
            if node.stopping.has_happened() {
                return component.set_phase(Phase::Stopped);
            }
            let (cause, end) = explain(&died);
            let wanted = component.wanted.replace(false);
            let decision = match wanted {
                true => Decision::Restart(Duration::ZERO),
                false => component.restarts.borrow_mut().died(Instant::now(), cause, served.take()),
            };
            *component.trouble.borrow_mut() = match decision {
                _ if wanted => String::new(),
                Decision::Restart(_) => end.clone(),
                Decision::GiveUp => format!("{end}; given up, because it died too often"),
            };
            component.log.note(&end);
            eprintln!("supervisor: {} {end}: {decision:?}", component.entry.name);
            match decision {
                Decision::Restart(pause) => {
                    component.set_phase(Phase::Restarting);
                    sleep_unless_wanted(&node, index, pause).await;
                }
                Decision::GiveUp => {
                    component.log.note("given up: it died too often");
                    node.give_up(index);
                    component.set_phase(Phase::Failed);
                    until_wanted(&node, index).await;
                    component.restarts.borrow_mut().forget();
                }
            }
            if node.stopping.has_happened() {
                return component.set_phase(Phase::Stopped);
            }
            component.wanted.set(false);
            component.starts.set(component.starts.get() + 1);
            match run(&node, index).await {
                Ok(next) => match until_ready(&node, index, &next).await {
                    Ok(()) => break next,
                    Err(_) => died = next,
                },
                Err(error) => {
                    *component.trouble.borrow_mut() = error;
                    component.restarts.borrow_mut().died(Instant::now(), Cause::Own, None);
                    sleep(lifecycle::LONGEST_PAUSE).await;
                }
            }
        };
    }
}

/// Starts a component and waits until it is ready.
async fn launch(node: &Rc<Node>, index: usize) -> Result<Rc<Peer>, String> {
    let peer = run(node, index).await?;
    until_ready(node, index, &peer).await?;
    Ok(peer)
}

async fn sleep_unless_wanted(node: &Node, index: usize, pause: Duration) {
    if !pause.is_zero() {
        either(sleep(pause), until_wanted(node, index)).await;
    }
}

async fn until_wanted(node: &Node, index: usize) {
    let component = &node.components[index];
    let wanted = async {
        loop {
            let next = component.changes.next();
            if component.wanted.get() {
                return;
            }
            next.await;
        }
    };
    either(wanted, node.stopping.wait()).await;
}

/// How a run ended, for people, and whose doing it was.
pub fn explain(peer: &Peer) -> (Cause, String) {
    let (cause, end) = lifecycle::explain(peer.wait_status.get().unwrap_or_default());
    let cause = if peer.at_fault.get() { Cause::Own } else { cause };
    match &*peer.trouble.borrow() {
        Some(trouble) => (cause, format!("{end}: {trouble}")),
        None => (cause, end),
    }
}

/// Waits until a run is ready.
///
/// # Errors
/// How it ended instead, for people.
async fn until_ready(node: &Rc<Node>, index: usize, peer: &Rc<Peer>) -> Result<(), String> {
    let component = &node.components[index];
    match timeout(READY_WITHIN, either(peer.ready.wait(), peer.ended.wait())).await {
        Ok(Either::First(())) => {
            peer.ready_at.set(Some(Instant::now()));
            component.set_phase(Phase::Ready);
            node.bury_ancestors(component);
            return Ok(());
        }
        Ok(Either::Second(())) => {}
        Err(_) => {
            let what = format!("was not ready within {} s", READY_WITHIN.as_secs());
            node.end_for_fault(peer, &what);
            peer.ended.wait().await;
        }
    }
    last_words(peer).await;
    Err(explain(peer).1)
}

/// Waits until what a dead run printed and said is known: the news of its death may overtake it.
pub async fn last_words(peer: &Peer) {
    let output = peer.output.borrow_mut().take();
    let heard = async {
        if let Some(output) = output {
            let _ = output.await;
        }
        peer.silent.wait().await;
    };
    // A process of its own making may hold the pipe open for ever.
    let _ = timeout(LAST_WORDS, heard).await;
}

/// Starts a process for the component's next epoch.
async fn run(node: &Rc<Node>, index: usize) -> Result<Rc<Peer>, String> {
    let component = &node.components[index];
    let slot = component.slot;
    // Whoever has to waits for its last run's fence itself (`Context::last_run_fenced`); the keeper takes so many.
    while let Some(oldest) = unfenced(node, slot, MAX_DEAD) {
        oldest.wait().await;
    }
    if node.stopping.has_happened() {
        return Err("the node is ending".into());
    }
    component.set_phase(Phase::Starting);
    component.log.forget_last_lines();
    component.epoch.set(component.epoch.get() + 1);
    let epoch = component.epoch.get();

    let started = spawn_process(node, index, epoch).await;
    let (pid, fence, control, output) =
        started.map_err(|error| format!("cannot start the process of {}: {error}", component.entry.name))?;
    let incarnation = Incarnation(node.state.deal(1));
    let lender = component.estate.lender(|| LenderId(node.state.deal(1)));
    let first_region = RegionId(node.state.deal(REGIONS_PER_INCARNATION));
    let welcome = Welcome {
        name: component.entry.name.clone(),
        system: node.system.clone(),
        incarnation,
        epoch: Epoch(epoch),
        lender,
        first_region,
        status_entry: slot,
        state_dir: node.state.path().display().to_string(),
        config: component.entry.config.clone(),
        reported: component.facts.borrow().clone(),
        uses: uses(node, index),
        provides: provides(node, index),
        ancestors: Vec::new(),
        heirs: Vec::new(),
        heritage: 0,
    };
    let channel = Rc::new(Channel::new(control));
    let peer = Rc::new(Peer {
        who: Who::Component(index),
        name: component.entry.name.clone(),
        slot,
        epoch: Epoch(epoch),
        incarnation,
        lender,
        first_region,
        pid,
        outbox: Rc::new(Outbox::new(channel.clone())),
        channel,
        greeting: RefCell::new(Some((welcome, fence))),
        table: RefCell::default(),
        regions: RefCell::default(),
        ready: Event::default(),
        said_ready: Cell::new(false),
        opening: Cell::new(0),
        ended: Event::default(),
        silent: Event::default(),
        wait_status: Cell::new(None),
        ready_at: Cell::new(None),
        trouble: RefCell::default(),
        at_fault: Cell::new(false),
        output: RefCell::new(Some(output)),
        slow: Cell::new(false),
        asked: Asked::default(),
        watch: Watch::of(pid, slot),
    });
    node.fences.borrow_mut().insert((slot, epoch), Fence { incarnation, ended: Rc::default() });
    node.peers.borrow_mut().insert(incarnation, peer.clone());
    *component.peer.borrow_mut() = Some(peer.clone());
    spawn(messages::listen(node.clone(), peer.clone()));
    spawn(peer.outbox.clone().write());
    if node.stopping.has_happened() {
        // Whoever stops the node has passed it by.
        let _ = node.keeper.tell(Ask::Signal, slot, libc::SIGKILL as u64).await;
    }
    Ok(peer)
}

/// The end of the oldest fence of a slot, if more than `dead` of its epochs are not fenced.
fn unfenced(node: &Node, slot: u32, dead: usize) -> Option<Rc<Event>> {
    let fences = node.fences.borrow();
    let of_slot = || fences.iter().filter(|((of, _), _)| *of == slot);
    let oldest = of_slot().min_by_key(|((_, epoch), _)| *epoch)?;
    (of_slot().count() > dead).then(|| oldest.1.ended.clone())
}

type Started = (u32, OwnedFd, OwnedFd, JoinHandle<()>);

async fn spawn_process(node: &Rc<Node>, index: usize, epoch: u64) -> std::io::Result<Started> {
    let component = &node.components[index];
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let (output, written) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let program = nix::fcntl::open("/proc/self/exe", OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    let request = Request::new(Ask::Spawn, component.slot, epoch)
        .with_arguments(&["atoll", "serve", &component.entry.builtin])
        .ok_or(nix::errno::Errno::E2BIG)?;
    let given = [program.as_fd(), theirs.as_fd(), written.as_fd(), written.as_fd()];
    let (spawned, fence) = node.keeper.ask(request, &given).await?;
    let fence = fence.ok_or_else(|| std::io::Error::other("no fence"))?;
    let log = component.log.clone();
    let output = spawn(async move { log.capture(output).await });
    Ok((spawned.a as u32, fence, ours, output))
}

fn uses(node: &Node, index: usize) -> Vec<UseInfo> {
    let uses = node.components[index].entry.uses.iter();
    uses.map(|used| UseInfo {
        name: used.name.clone(),
        endpoint: format!("{}.{}", used.component, used.endpoint),
        interface: used.interface.clone(),
        rights: used.rights,
    })
    .collect()
}

fn provides(node: &Node, index: usize) -> Vec<ProvideInfo> {
    let provides = node.components[index].entry.provides.iter();
    provides
        .map(|provided| ProvideInfo { name: provided.name.clone(), interface: provided.interface.clone() })
        .collect()
}
