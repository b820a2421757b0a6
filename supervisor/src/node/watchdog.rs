//! Is a component hung? It is if it uses the processor and answers nothing meanwhile.
//!
//! - A timer on each component's processor time says when it has used another [`PERIOD`]. At rest no timer runs, and a
//!   process that is stopped, or waits for the processor, does not age.
//! - At each of these ticks it is asked something to which every healthy executor answers within one turn. At the
//!   [`SHOWN_AFTER`]th tick without an answer it is shown as hung, after as many seconds as the manifest says it is killed: a death
//!   of its own making.
//! - One that waits for ever and uses nothing is found by its [pulse](super::pulse).

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use kernel_ipc::broker::ToComponent;
use kernel_ipc::runtime::io::{File, poll_readable};
use kernel_ipc::runtime::spawn;
use nix::sys::signal::{SigEvent, SigSet, SigevNotify, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::Node;
use super::peer::{Peer, Who};

/// Processor time between two ticks.
const PERIOD: Duration = Duration::from_secs(1);
/// Ticks without an answer after which it is shown as hung.
pub const SHOWN_AFTER: u32 = 2;

/// The signal of the timers. Blocked, and read from a descriptor.
const TICK: Signal = Signal::SIGVTALRM;

/// What is known of one run.
#[derive(Default)]
pub struct Watch {
    /// Ends with the run.
    _timer: RefCell<Option<Timer>>,
    /// A question is open.
    asked: Cell<bool>,
    /// Ticks since it was asked.
    ticks: Cell<u32>,
}

impl Watch {
    /// Watches a process that was just started, in this slot. One that cannot be watched is not.
    pub fn of(pid: u32, slot: u32) -> Watch {
        let timer = timer(pid, slot).inspect_err(|error| eprintln!("supervisor: no watchdog for {pid}: {error}"));
        Watch { _timer: RefCell::new(timer.ok()), ..Watch::default() }
    }

    /// Whether it has used the processor for long, and answered nothing.
    pub fn is_hung(&self) -> bool {
        self.ticks.get() >= SHOWN_AFTER
    }
}

/// Whether somebody has stopped a process, or traces it.
pub fn is_stopped(pid: u32) -> bool {
    matches!(state(pid), Some('T' | 't'))
}

/// What a process does, as one letter of proc(5).
pub fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it is in parentheses, and may have some of its own.
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}

fn timer(pid: u32, slot: u32) -> nix::Result<Timer> {
    let pid = Pid::from_raw(i32::try_from(pid).map_err(|_| nix::errno::Errno::ESRCH)?);
    let notify = SigevNotify::SigevSignal { signal: TICK, si_value: slot as libc::intptr_t };
    let mut timer = Timer::new(ClockId::pid_cpu_clock_id(pid)?, SigEvent::new(notify))?;
    timer.set(Expiration::Interval(PERIOD.into()), TimerSetTimeFlags::empty())?;
    Ok(timer)
}

/// Watches every component, as long as the node lives. To be called before the first of them is started.
///
/// # Errors
/// The signal cannot be had.
pub fn watch(node: &Rc<Node>) -> io::Result<impl Future<Output = ()> + use<>> {
    let mask = SigSet::from_iter([TICK]);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let readable = File::from(std::os::fd::AsFd::as_fd(&signals).try_clone_to_owned()?);
    let node = Rc::downgrade(node);
    Ok(async move {
        while poll_readable(&readable).await.is_ok() {
            while let Ok(Some(signal)) = signals.read_signal() {
                tick(&node, signal.ssi_int as u32);
            }
        }
    })
}

/// Whoever runs in `slot` has used another [`PERIOD`]. (Two that do at once may be heard of as one: then a tick is lost.)
fn tick(node: &Weak<Node>, slot: u32) {
    let Some(node) = node.upgrade() else { return };
    let run = node.living().into_iter().find(|peer| peer.slot == slot && matches!(peer.who, Who::Component(_)));
    // Before it was greeted it has promised nothing; there is another limit for that.
    let Some(run) = run.filter(|run| run.is_introducible()) else { return };
    if !run.watch.asked.replace(true) {
        spawn(ask(node, run));
        return;
    }
    run.watch.ticks.set(run.watch.ticks.get() + 1);
    if run.watch.ticks.get() == SHOWN_AFTER {
        eprintln!("supervisor: {} uses the processor and answers nothing", run.name);
    }
    let seconds = node.component_of(&run).map_or(u32::MAX, |component| component.entry.hung_after_seconds);
    if run.watch.ticks.get() >= seconds {
        node.end_for_fault(&run, &format!("hung: it used the processor for {seconds} s and answered nothing"));
    }
}

/// Waits for an answer of a run, or its end: what was killed answers nothing, though its death may not have been heard of yet.
pub(super) async fn answers(node: &Node, run: &Peer) {
    let request = node.state.deal(1);
    let message = ToComponent::AskCounters { request };
    let _ = run.ask_until_gone(&run.asked.counters, request, &message, &[], || {}).await;
}

async fn ask(node: Rc<Node>, run: Rc<Peer>) {
    answers(&node, &run).await;
    run.watch.ticks.set(0);
    run.watch.asked.set(false);
}
