//! A runtime whose turns somebody else takes: a simulation, which decides what runs next, what time it is and what the network
//! does. Several of them on one thread are several processes.
//!
//! - Tasks, timers and sources are those of every [`Runtime`]; only the loop around them is the simulation's. So whatever a
//!   loop may do, in whatever order, a simulation can do, and the same seed does it again.
//! - Time is [`clock`](super::clock)'s, random words are [`random`](crate::sys::random)'s, both set by the simulation. A
//!   connection is a [`Pipe`] of a [`Network`], which treats its bytes as a seed decides.
//! - Files and sockets of the kernel are not for what runs here.

mod network;
mod wire;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Instant;

pub(crate) use network::Listening;
pub use network::{Network, Nic, Weather};
pub use wire::Pipe;

use super::source::Sleep;
use super::{Entered, Runtime, Waiting};
use crate::sys::ring::{Ring, SharedRing};

/// The ring that simulated runtimes have because every runtime has one, and never use.
#[derive(Clone)]
pub struct UnusedRing(SharedRing);

impl UnusedRing {
    /// Makes it: once a thread is enough.
    ///
    /// # Errors
    /// The kernel's refusal of `io_uring_setup`.
    pub fn new() -> io::Result<UnusedRing> {
        Ok(UnusedRing(Rc::new(RefCell::new(Ring::new(4, None)?))))
    }
}

/// See the module's contract.
pub struct Stepped(Runtime);

impl Stepped {
    /// A process that does nothing yet. `nic`: its way to others.
    pub fn new(ring: &UnusedRing, nic: Nic) -> Stepped {
        Stepped(Runtime::with(ring.0.clone(), Waiting::Block, Some(nic)))
    }

    /// Does something as this process: spawns its first tasks, say.
    ///
    /// # Panics
    /// Inside of any runtime.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        let _entered = Entered::new(&self.0.core);
        work()
    }

    /// How many tasks are ready to run.
    pub fn ready(&self) -> usize {
        self.0.core.tasks.drain_remote();
        self.0.core.tasks.ready_count()
    }

    /// Polls the `nth` of them.
    pub fn run(&self, nth: usize) {
        let tasks = &self.0.core.tasks;
        if let Some(index) = tasks.take_ready(nth) {
            self.enter(|| tasks.run(index));
        }
    }

    /// How many sources it has.
    pub fn sources(&self) -> usize {
        self.0.core.sources.count()
    }

    /// Looks at the `nth` of them. True if it found something.
    pub fn look(&self, nth: usize) -> bool {
        self.enter(|| self.0.core.sources.poll_at(nth)).unwrap_or(false)
    }

    /// Wakes what waits for a time that is past.
    pub fn expire_timers(&self) {
        self.enter(|| self.0.core.expire_timers());
    }

    /// When the next timer is due.
    pub fn next_timer(&self) -> Option<Instant> {
        self.0.core.timers.borrow().next()
    }

    /// Does what a thread does that has nothing to do: asks every source, and takes that back. True if one of them has work
    /// after all, or made a task ready.
    pub fn nods_off(&self) -> bool {
        self.enter(|| {
            let sources = || (0..).map_while(|position| self.0.core.sources.at(position));
            let has_work = sources().fold(false, |work, source| work | (source.prepare_sleep() == Sleep::Work));
            sources().for_each(|source| source.cancel_sleep());
            has_work || self.ready() > 0
        })
    }
}
