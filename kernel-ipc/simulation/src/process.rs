//! One simulated process: what it runs, its clock, and how it dies.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use kernel_ipc::runtime::clock;
use kernel_ipc::runtime::simulated::{Network, Stepped};
use kernel_ipc::steps;

use crate::trace::Trace;

/// What unwinds a process that dies: nobody's error.
struct Death;

/// Counts the steps to a death. One a thread, set for whoever has a turn.
pub struct Doom(Rc<Next>);

/// Who has a turn.
#[derive(Default)]
struct Next {
    steps_left: Cell<Option<u32>>,
    owner: Cell<u32>,
    dies_silently: Cell<bool>,
}

impl Doom {
    /// From now on this thread's steps are counted here.
    pub fn begin(trace: Trace, network: Network) -> Doom {
        let next: Rc<Next> = Rc::default();
        let doom = Doom(next.clone());
        steps::hear(Some(Rc::new(move |step| {
            if std::thread::panicking() {
                return;
            }
            match next.steps_left.get() {
                Some(0) => {
                    trace.note(format_args!("dies at {step}"));
                    next.steps_left.set(None);
                    // At once: what is dropped on the way out has no say any more.
                    network.crash(next.owner.get(), next.dies_silently.get());
                    resume_unwind(Box::new(Death));
                }
                more => next.steps_left.set(more.map(|more| more - 1)),
            }
        })));
        doom
    }
}

impl Drop for Doom {
    fn drop(&mut self) {
        steps::hear(None);
    }
}

/// How a turn ended.
pub enum Turn<R> {
    Done(R),
    /// The process died in it.
    Died,
    /// It panicked, and says this.
    Panicked(String),
}

/// See the module's contract.
pub struct Process {
    pub name: &'static str,
    pub owner: u32,
    pub stepped: Stepped,
    /// How far its clock is behind.
    pub behind: u64,
    pub paused_until: u64,
    pub is_alive: bool,
    /// It has nothing to do until something happens.
    pub is_quiet: bool,
    /// It dies after so many steps more.
    pub dies_in: Option<u32>,
    /// Its machine goes with it.
    pub dies_silently: bool,
}

impl Process {
    pub fn new(name: &'static str, owner: u32, stepped: Stepped, behind: u64) -> Process {
        let (paused_until, is_alive, is_quiet, dies_in, dies_silently) = (0, true, false, None, false);
        Process { name, owner, stepped, behind, paused_until, is_alive, is_quiet, dies_in, dies_silently }
    }

    /// Whether it can have a turn.
    pub fn runs(&self, now: u64) -> bool {
        self.is_alive && self.paused_until <= now
    }

    /// Gives it a turn at `now`.
    pub fn turn<R>(&mut self, now: u64, doom: &Doom, trace: &Trace, work: impl FnOnce(&Stepped) -> R) -> Turn<R> {
        trace.turn(now, self.name);
        clock::simulate(Some(now - self.behind));
        doom.0.steps_left.set(self.dies_in);
        doom.0.owner.set(self.owner);
        doom.0.dies_silently.set(self.dies_silently);
        let worked = catch_unwind(AssertUnwindSafe(|| work(&self.stepped)));
        self.dies_in = doom.0.steps_left.take();
        match worked {
            Ok(result) => Turn::Done(result),
            Err(panic) if panic.is::<Death>() => Turn::Died,
            Err(panic) => {
                let said = panic.downcast_ref::<String>().cloned();
                let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
                Turn::Panicked(said.unwrap_or_default())
            }
        }
    }

    /// When its next timer is due, by the world's clock.
    pub fn next_timer(&self) -> Option<u64> {
        let timer = clock::simulated_ns(self.stepped.next_timer()?);
        Some(timer.saturating_add(self.behind).max(self.paused_until))
    }
}
