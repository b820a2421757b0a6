//! Starting components, and starting them again.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::broker::{Channel, ProvideInfo, REGIONS_PER_INCARNATION, UseInfo, Welcome};
use kernel_ipc::component::waits::Event;
use kernel_ipc::runtime::{JoinHandle, sleep, spawn, timeout};
use kernel_ipc::steps;
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId};
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::candidate::promote;
use super::peer::{Identity, Peer, Who};
use super::records::{Kept, Kind, NumbersTag};
use super::together::until_its_turn;
use super::waits::{Either, either};
use super::{Component, Fence, Node, Phase, messages, pulse};
use crate::keeper::MAX_DEAD;
use crate::keeper::wire::{Ask, Request};
use crate::lifecycle::{self, Cause, Decision};
use crate::up::Progress;

/// How long a component may take from its start until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long one on trial may take: meanwhile nobody serves.
const TRIED_WITHIN: Duration = Duration::from_secs(20);

/// How long the rest of a dead component's output is waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Starts every component after those that it uses, from where the last supervisor had come to; if that `is_up`, all have
/// been started before, and are only tended.
///
/// # Errors
/// What is wrong with the first one that does not start, with its last lines.
pub async fn start_all(node: &Rc<Node>, is_up: bool) -> Result<(), String> {
    for index in 0..node.components.len() {
        let component = &node.components[index];
        let phase = component.phase.get();
        if is_up || matches!(phase, Phase::Ready | Phase::Restarting | Phase::Failed) {
            let run = component.peer.borrow().clone();
            let stage = match (phase, run) {
                (Phase::Ready, Some(run)) => Stage::Serves(run),
                // One before it was judged when it died; of this one there was no process yet.
                (Phase::Starting, Some(run))
                    if run.ended.has_happened() && run.epoch.get() == component.epoch.get() =>
                {
                    Stage::Died(run, None)
                }
                (Phase::Failed, _) => Stage::GivenUp,
                (Phase::Held, _) => Stage::Held,
                _ => Stage::Starts(Duration::ZERO),
            };
            spawn(tend(node.clone(), index, stage));
            continue;
        }
        let name = node.components[index].entry.name.clone();
        node.report(&Progress::Starting { component: name.clone() });
        let started = either(launch(node, index), node.stopping.wait()).await;
        match started {
            Either::First(Ok(peer)) => {
                node.report(&Progress::Ready { component: name });
                spawn(tend(node.clone(), index, Stage::Serves(peer)));
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

/// Where a component stands that was ready once.
pub enum Stage {
    /// This run serves, or did when it was last looked at.
    Serves(Rc<Peer>),
    /// This run is dead, and served for so long.
    Died(Rc<Peer>, Option<Duration>),
    /// It is to be started after a pause.
    Starts(Duration),
    /// It stays down until an operator wants it.
    GivenUp,
    /// An operator has stopped it; likewise.
    Held,
}

/// Watches a component, and starts it again when it dies.
pub async fn tend(node: Rc<Node>, index: usize, mut stage: Stage) {
    let component = &node.components[index];
    loop {
        if node.stopping.has_happened() && !matches!(stage, Stage::Serves(_)) {
            return; // Whoever stops the node says how this ended.
        }
        stage = match stage {
            Stage::Serves(run) => {
                either(run.ended.wait(), pulse::attend(&node, &run, component.entry.hung_after_seconds)).await;
                run.ended.wait().await;
                last_words(&run).await;
                let served = run.ready_at.get().map(|at| at.elapsed());
                Stage::Died(run, served)
            }
            Stage::Died(run, served) => {
                let next = judge(&node, component, &run, served);
                if let Stage::Starts(_) = next {
                    node.take_along(index, &run).await;
                }
                next
            }
            Stage::GivenUp => {
                if component.phase.get() != Phase::Failed {
                    component.log.note("given up: it died too often");
                }
                component.programs.roll_back("it was given up meanwhile: it died too often");
                node.give_up(index);
                component.set_phase(Phase::Failed);
                until_wanted(&node, index).await;
                component.restarts.borrow_mut().forget();
                component.wanted.set(false);
                Stage::Starts(Duration::ZERO)
            }
            Stage::Held => {
                component.set_phase(Phase::Held);
                until(&node, index, |component| !component.hold.is_stopped()).await;
                let last = component.peer.borrow().clone();
                if let Some(last) = last {
                    node.take_along(index, &last).await;
                }
                Stage::Starts(Duration::ZERO)
            }
            Stage::Starts(pause) => {
                component.set_phase(Phase::Restarting);
                sleep_unless_wanted(&node, index, pause).await;
                component.wanted.set(false);
                until_its_turn(&node, index).await;
                if node.stopping.has_happened() {
                    return;
                }
                if component.hold.is_stopped() {
                    stage = Stage::Held;
                    continue;
                }
                component.wanted.set(false);
                component.starts.set(component.starts.get() + 1);
                start_again(&node, index).await
            }
        };
    }
}

/// What to do about a death.
fn judge(node: &Node, component: &Component, run: &Rc<Peer>, served: Option<Duration>) -> Stage {
    let is_killed = run.wait_status.get() == Some(libc::SIGKILL) && !run.at_fault.get();
    let handed_over = is_killed && component.programs.is_about_to_change();
    if component.programs.is_on_trial(run.epoch.get()) || handed_over {
        let (_, end) = explain(run);
        component.log.note(if handed_over { "handed over" } else { &end });
        if !handed_over {
            component.programs.roll_back(&end);
        }
        component.wanted.set(false);
        component.trouble.borrow_mut().clear();
        return Stage::Starts(Duration::ZERO);
    }
    let wanted = component.wanted.replace(false);
    let (cause, end) = match node.taken_along_with(component, run) {
        Some(other) => (Cause::Together, format!("restarted with {other}")),
        None => explain(run),
    };
    let held = component.hold.is_stopped();
    let as_asked = (wanted || held) && run.wait_status.get() == Some(0);
    if cause == Cause::Own && served.is_some() && !as_asked {
        let kept = node.keep_crash(component, run, &end);
        component.crash.set(kept.inspect_err(|error| eprintln!("supervisor: no crash bundle: {error}")).ok());
    }
    if held {
        let as_wanted = as_asked || is_killed;
        component.trouble.replace(if as_wanted { String::new() } else { end.clone() });
        component.log.note(&format!("{end}; it was to stop"));
        return Stage::Held;
    }
    let decision = match wanted {
        true => Decision::Restart(Duration::ZERO),
        false => component.restarts.borrow_mut().died(Instant::now(), cause, served),
    };
    *component.trouble.borrow_mut() = match decision {
        _ if wanted => String::new(),
        Decision::Restart(_) => end.clone(),
        Decision::GiveUp => format!("{end}; given up, because it died too often"),
    };
    component.log.note(&end);
    eprintln!("supervisor: {} {end}: {decision:?}", component.entry.name);
    match decision {
        Decision::Restart(pause) => Stage::Starts(pause),
        Decision::GiveUp => Stage::GivenUp,
    }
}

async fn start_again(node: &Rc<Node>, index: usize) -> Stage {
    match run(node, index).await {
        Ok(next) => match until_ready_or_held(node, index, &next).await {
            Ok(()) => {
                node.components[index].programs.commit_run(next.epoch.get());
                Stage::Serves(next)
            }
            Err(_) => Stage::Died(next, None),
        },
        Err(error) => {
            let component = &node.components[index];
            component.programs.roll_back(&error);
            *component.trouble.borrow_mut() = error;
            match component.restarts.borrow_mut().died(Instant::now(), Cause::Own, None) {
                Decision::Restart(_) => Stage::Starts(lifecycle::LONGEST_PAUSE),
                Decision::GiveUp => Stage::GivenUp,
            }
        }
    }
}

/// Starts a component and waits until it is ready.
async fn launch(node: &Rc<Node>, index: usize) -> Result<Rc<Peer>, String> {
    loop {
        let peer = run(node, index).await?;
        match until_ready(node, index, &peer).await {
            Ok(()) => return Ok(peer),
            Err(_) if node.taken_along_with(&node.components[index], &peer).is_some() => {
                until_its_turn(node, index).await;
            }
            Err(trouble) => return Err(trouble),
        }
    }
}

async fn sleep_unless_wanted(node: &Node, index: usize, pause: Duration) {
    if !pause.is_zero() {
        either(sleep(pause), until_wanted(node, index)).await;
    }
}

/// Waits until an operator wants it started now, or not started at all, or the node ends.
pub async fn until_wanted(node: &Node, index: usize) {
    until(node, index, |component| component.wanted.get() || component.hold.is_stopped()).await;
}

/// Waits until it is so, or the node ends.
pub async fn until(node: &Node, index: usize, is_so: impl Fn(&Component) -> bool) {
    let component = &node.components[index];
    let so = async {
        loop {
            let next = component.changes.next();
            if is_so(component) {
                return;
            }
            next.await;
        }
    };
    either(so, node.stopping.wait()).await;
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

/// The same of a run that an operator may have stopped before it was there.
async fn until_ready_or_held(node: &Rc<Node>, index: usize, run: &Rc<Peer>) -> Result<(), String> {
    if node.components[index].hold.is_stopped() {
        let _ = node.keeper.tell(Ask::Signal, run.slot, libc::SIGKILL as u64).await;
    }
    until_ready(node, index, run).await
}

/// Waits until a run is ready.
///
/// # Errors
/// How it ended instead, for people.
async fn until_ready(node: &Rc<Node>, index: usize, peer: &Rc<Peer>) -> Result<(), String> {
    let component = &node.components[index];
    let within = match component.programs.is_on_trial(peer.epoch.get()) {
        true => TRIED_WITHIN,
        false => READY_WITHIN,
    };
    match timeout(within, either(peer.ready.wait(), peer.ended.wait())).await {
        Ok(Either::First(())) => {
            peer.ready_at.set(Some(Instant::now()));
            component.ready_at.set(peer.ready_at.get());
            component.crash.set(None);
            component.set_phase(Phase::Ready);
            steps::reach("restart/ready");
            node.bury_ancestors_of(peer);
            return Ok(());
        }
        Ok(Either::Second(())) => {}
        Err(_) => {
            let what = format!("was not ready within {} s", within.as_secs());
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
    // One that the last supervisor had half started is being killed.
    while let Some(before) = node.living().into_iter().find(|peer| peer.slot == slot) {
        before.ended.wait().await;
    }
    // Whoever has to waits for its last run's fence itself (`Context::last_run_fenced`); the keeper takes so many.
    while let Some(oldest) = unfenced(node, slot, MAX_DEAD) {
        oldest.wait().await;
    }
    if node.stopping.has_happened() {
        return Err("the node is ending".into());
    }
    component.log.forget_last_lines();
    component.epoch.set(component.epoch.get() + 1);
    component.restarts_with.set(None);
    component.hold.thaw();
    let epoch = component.epoch.get();
    let incarnation = Incarnation(node.state.deal(1));
    let lender = component.estate.lender(|| LenderId(node.state.deal(1)));
    // With the lender in it, before there is anything of the run.
    component.set_phase(Phase::Starting);
    let first_region = RegionId(node.state.deal(REGIONS_PER_INCARNATION));
    node.export(component)?;
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
        reported: component.facts.borrow().iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect(),
        uses: uses(node, index),
        provides: provides(node, index),
        refuse_after_ms: component.entry.refuse_after_ms,
        reactors: component.entry.reactors,
        ancestors: Vec::new(),
        heirs: Vec::new(),
        crash: component.crash.get(),
        keys: node.keys_of(component),
        is_in_cluster: node.directory.is_some(),
        nodes: Vec::new(),
        heritage: 0,
    };
    let identity = Identity {
        who: Who::Component(index),
        name: component.entry.name.clone(),
        slot,
        epoch: Epoch(epoch),
        incarnation,
        lender,
        first_region,
    };
    steps::reach("restart/begun");
    let promoted = match component.programs.begins(epoch) {
        Some(candidate) => promote(node, &identity, candidate).await.inspect_err(|error| {
            component.programs.roll_back(&format!("it has ended before it was wanted: {error}"));
        }),
        None => Err(std::io::ErrorKind::NotFound.into()),
    };
    let is_promoted = promoted.is_ok();
    let started = match promoted {
        Ok(started) => Ok(started),
        Err(_) => spawn_process(node, index, &identity).await,
    };
    let Started { pid, fence, channel, record, output } =
        started.map_err(|error| format!("cannot start the process of {}: {error}", component.entry.name))?;
    let fence_record = Some(record.clone());
    let peer = Peer::new(identity, pid, channel, record, Some((welcome, fence)), Some(output));
    let fence = Fence { incarnation, ended: Rc::default(), record: fence_record };
    node.fences.borrow_mut().insert((slot, epoch), fence);
    node.peers.borrow_mut().insert(incarnation, peer.clone());
    *component.peer.borrow_mut() = Some(peer.clone());
    match is_promoted {
        true => drop(spawn(messages::greet_and_listen(node.clone(), peer.clone()))),
        false => drop(spawn(messages::listen(node.clone(), peer.clone()))),
    }
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

/// A process that is a component's run.
pub struct Started {
    /// Its number.
    pub pid: u32,
    /// The write end of its fence.
    pub fence: OwnedFd,
    /// Its control socket.
    pub channel: Rc<Channel>,
    /// What the next supervisor will know of it.
    pub record: Rc<Kept>,
    /// Captures its output.
    pub output: JoinHandle<()>,
}

async fn spawn_process(node: &Rc<Node>, index: usize, identity: &Identity) -> std::io::Result<Started> {
    let component = &node.components[index];
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let (output, written) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let program = component.programs.program()?;
    let (slot, epoch) = (identity.slot, identity.epoch.get());
    let request = Request::new(Ask::Spawn, slot, epoch)
        .with_arguments(&component.entry.run.arguments())
        .ok_or(nix::errno::Errno::E2BIG)?;
    // Before there is a process: it must not lose its other end of anything.
    let number = identity.incarnation.get();
    let record = node.records.put(Kind::Peer, slot, number, &identity.tag(0, false), Some(ours.as_fd()))?;
    let printed = node.records.put(Kind::Output, slot, epoch, &NumbersTag::default(), Some(output.as_fd()))?;
    steps::reach("restart/recorded");
    let given = [program.as_fd(), theirs.as_fd(), written.as_fd(), written.as_fd()];
    let (spawned, fence) = node.keeper.ask(request, &given).await?;
    steps::reach("restart/spawned");
    let fence = fence.ok_or_else(|| std::io::Error::other("no fence"))?;
    Ok(Started {
        pid: spawned.a as u32,
        fence,
        channel: Rc::new(Channel::new(ours)),
        record: Rc::new(record),
        output: capture(component, output, printed),
    })
}

/// Copies what a run prints into its component's log.
pub fn capture(component: &Component, output: OwnedFd, record: Kept) -> JoinHandle<()> {
    let log = component.log.clone();
    spawn(async move {
        log.capture(output).await;
        drop(record);
    })
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
