//! Session ends, as the executor sees them.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};

use super::{Core, WordAddress, current};

/// A session end: something that other processes write and the executor polls.
pub trait Source {
    /// Looks once, without a system call, and wakes whoever waits. True when something was found.
    fn poll(&self) -> bool;
    /// Announces to the peer that this side is about to sleep, then looks again (Dekker). The word and its
    /// mapping stay the same for as long as the source is registered.
    fn prepare_sleep(&self) -> Sleep;
    /// Takes the announcement back. Called after every `prepare_sleep`, whatever it returned.
    fn cancel_sleep(&self);
    /// The peer's death word, if there is one, and its last known value: waited for together with the doorbell.
    fn second_word(&self) -> Option<(WordAddress, u32)> {
        None
    }
}

/// What to wait for on behalf of a [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// There is work already: do not sleep.
    Work,
    /// Sleep while the word has the expected value.
    Futex {
        /// The word.
        word: WordAddress,
        /// Its value when there was no work.
        expected: u32,
    },
    /// Sleep until the descriptor is readable. The source reads it empty when it is polled.
    EventFd(RawFd),
    /// This source wakes nobody.
    Nothing,
}

/// All sources of a runtime.
#[derive(Default)]
pub(super) struct Sources {
    entries: RefCell<Vec<(u64, Rc<dyn Source>)>>,
    next_number: Cell<u64>,
}

impl Sources {
    fn insert(&self, source: Rc<dyn Source>) -> u64 {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        self.entries.borrow_mut().push((number, source));
        number
    }

    fn remove(&self, number: u64) -> Option<Rc<dyn Source>> {
        let mut entries = self.entries.borrow_mut();
        // Numbers rise, and removal keeps the order.
        let position = entries.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(entries.remove(position).1)
    }

    /// The source at a position. Sources may come and go while they are gone through: one that is missed is
    /// seen in the next turn, which comes before any sleep (a change of tasks or sources is work).
    pub fn at(&self, position: usize) -> Option<Rc<dyn Source>> {
        self.entries.borrow().get(position).map(|(_, source)| Rc::clone(source))
    }

    /// Polls each source once. True when one of them found something.
    pub fn poll_all(&self) -> bool {
        let mut found = false;
        let mut position = 0;
        while let Some(source) = self.at(position) {
            found |= source.poll();
            position += 1;
        }
        found
    }
}

/// Keeps a [`Source`] registered until it is dropped.
#[must_use = "dropping the guard unregisters the source"]
pub struct SourceGuard {
    core: Weak<Core>,
    number: u64,
}

/// Registers a source with the runtime of this thread.
///
/// # Panics
/// Outside a runtime.
pub fn register(source: Rc<dyn Source>) -> SourceGuard {
    let core = current();
    let number = core.sources.insert(source);
    SourceGuard { core: Rc::downgrade(&core), number }
}

impl Drop for SourceGuard {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.park.forget(&core);
            drop(core.sources.remove(self.number));
        }
    }
}
