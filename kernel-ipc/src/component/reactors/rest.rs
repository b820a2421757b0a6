//! What the supervisor can know of a component with several reactors that does nothing: see [`pulse`](super::super::pulse), of
//! which this is the same for several threads.
//!
//! - It rests when all of them sleep, and wakes when the first of them does. A lock at each sleep, which costs a hundredth of it.
//! - How long each has slept is what its [load](super::balance) is known by: one that waits for a processor is busy too.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::broker::{ToSupervisor, say};
use crate::runtime::Rest;

/// What the threads of a component know together of their sleeps.
#[derive(Clone)]
pub(super) struct Rests(Arc<Mutex<State>>);

struct State {
    /// The control socket.
    control: OwnedFd,
    /// Threads that do not sleep.
    awake: u32,
    /// The supervisor wants to hear of the next rest.
    wanted: bool,
    /// It has heard of it.
    said: bool,
}

impl Rests {
    /// Of so many threads, all of them awake. `control`: the control socket.
    pub(super) fn new(threads: u32, control: OwnedFd) -> Rests {
        Rests(Arc::new(Mutex::new(State { control, awake: threads, wanted: false, said: false })))
    }

    /// The supervisor has asked, and every thread has answered.
    pub(super) fn wanted(&self) {
        self.state().wanted = true;
    }

    /// One thread's part.
    pub(super) fn of_thread(&self) -> Rc<Slept> {
        Rc::new(Slept { rests: self.clone(), since: Cell::default(), total: Cell::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a thread's runtime tells of its sleeps.
pub(super) struct Slept {
    rests: Rests,
    since: Cell<Option<Instant>>,
    total: Cell<Duration>,
}

impl Slept {
    /// How long the thread has slept in all. For the thread itself.
    pub(super) fn total(&self) -> Duration {
        self.total.get()
    }
}

impl State {
    /// With the lock, so that the two are heard in their order. What does not fit is not said.
    fn say(&self, message: &ToSupervisor) -> bool {
        say(self.control.as_fd(), message).is_ok()
    }
}

impl Rest for Slept {
    fn begins(&self) {
        self.since.set(Some(Instant::now()));
        let mut state = self.rests.state();
        state.awake -= 1;
        if state.awake == 0 && state.wanted {
            state.said = state.say(&ToSupervisor::Rests);
            state.wanted = !state.said;
        }
    }

    fn ends(&self) {
        let slept = self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.total.set(self.total.get() + slept);
        let mut state = self.rests.state();
        state.awake += 1;
        if state.said {
            // If there is no room for it now there will be when the next one wakes.
            state.said = !state.say(&ToSupervisor::Wakes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Channel;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    #[test]
    fn it_rests_when_the_last_one_sleeps_and_wakes_with_the_first_and_says_each_once() {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a pair");
        let supervisor = Channel::new(theirs);
        let said = || {
            let mut said = Vec::new();
            while let Ok(Some((message, _))) = supervisor.receive::<ToSupervisor>() {
                said.push(format!("{message:?}"));
            }
            said
        };
        let rests = Rests::new(2, ours);
        let (one, other) = (rests.of_thread(), rests.of_thread());
        one.begins();
        other.begins();
        other.ends();
        assert!(said().is_empty(), "nobody has asked");
        rests.wanted();
        other.begins();
        assert_eq!(said(), ["Rests"]);
        other.ends();
        one.ends();
        assert_eq!(said(), ["Wakes"]);
        one.begins();
        other.begins();
        assert!(said().is_empty(), "it was asked once");
        other.ends();
        rests.wanted();
        one.ends();
        one.begins();
        assert!(said().is_empty(), "one of them is awake");
        other.begins();
        assert_eq!(said(), ["Rests"]);
    }
}
