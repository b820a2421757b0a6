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
    /// Whether nothing but what its peer does can make it worth a look, so that one of many may be looked at less often.
    fn may_rest(&self) -> bool {
        false
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

/// With no more sources than these none is left out of a turn.
const FEW: usize = 16;
/// After so many looks in vain a source may rest.
const RESTS_AFTER: u16 = 4096;
/// Sources at rest that are looked at in a turn: few, because each is a line that another core may have written. Of a thousand
/// the last one is seen after 500 turns, about as late as if the thread had slept.
const AT_REST: usize = 2;

/// All sources of a runtime. Those in use are polled in each turn; of those that [rest](Source::may_rest) a few, in turns. All are
/// asked before the thread sleeps, and all are polled when it has slept or was kept from it.
#[derive(Default)]
pub(super) struct Sources {
    in_use: RefCell<Vec<Entry>>,
    at_rest: RefCell<Vec<Entry>>,
    /// Which of those at rest is looked at next.
    cursor: Cell<usize>,
    next_number: Cell<u64>,
}

/// A source, and how often it was polled in vain since it was of use.
struct Entry {
    number: u64,
    in_vain: Cell<u16>,
    source: Rc<dyn Source>,
}

impl Sources {
    fn insert(&self, source: Rc<dyn Source>) -> u64 {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        self.in_use.borrow_mut().push(Entry { number, in_vain: Cell::new(0), source });
        number
    }

    fn remove(&self, number: u64) -> Option<Rc<dyn Source>> {
        let entry = take(&self.in_use, number).or_else(|| take(&self.at_rest, number));
        entry.map(|entry| entry.source)
    }

    /// The source at a position. Sources may come and go while they are gone through: one that is missed is
    /// seen in the next turn, which comes before any sleep (a change of tasks or sources is work).
    pub fn at(&self, position: usize) -> Option<Rc<dyn Source>> {
        let in_use = self.in_use.borrow();
        match position.checked_sub(in_use.len()) {
            None => Some(Rc::clone(&in_use[position].source)),
            Some(position) => self.at_rest.borrow().get(position).map(|entry| Rc::clone(&entry.source)),
        }
    }

    /// Looks once at the source of a position. Gives whether it found something; `None`: there are not so many.
    pub fn poll_at(&self, position: usize) -> Option<bool> {
        self.at(position).map(|source| source.poll())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.in_use.borrow().len() + self.at_rest.borrow().len()
    }

    /// Polls each source that is in use once, and a few of the others. True when one of them found something.
    pub fn poll_all(&self) -> bool {
        let mut found = false;
        let mut position = 0;
        let next = |position: usize| {
            let in_use = self.in_use.borrow();
            in_use.get(position).map(|entry| (entry.number, Rc::clone(&entry.source)))
        };
        while let Some((number, source)) = next(position) {
            let of_use = source.poll();
            found |= of_use;
            if self.in_vain(position, number, of_use) && source.may_rest() {
                let entry = take(&self.in_use, number);
                entry.into_iter().for_each(|entry| put(&self.at_rest, entry));
            } else {
                position += 1;
            }
        }
        found | self.poll_at_rest()
    }

    /// Counts a look; whether it was one too many in vain, and there are many to look at.
    fn in_vain(&self, position: usize, number: u64, of_use: bool) -> bool {
        let in_use = self.in_use.borrow();
        // Polling may have removed sources, this one among them.
        let Some(entry) = in_use.get(position).filter(|entry| entry.number == number) else { return false };
        let in_vain = if of_use { 0 } else { entry.in_vain.get() + 1 };
        entry.in_vain.set(in_vain % RESTS_AFTER);
        in_vain == RESTS_AFTER && in_use.len() > FEW
    }

    fn poll_at_rest(&self) -> bool {
        let mut found = false;
        let looks = AT_REST.min(self.at_rest.borrow().len());
        for _ in 0..looks {
            let (number, source) = {
                let at_rest = self.at_rest.borrow();
                let position = self.cursor.get().checked_rem(at_rest.len()).unwrap_or(0);
                let Some(entry) = at_rest.get(position) else { break };
                self.cursor.set(position + 1);
                (entry.number, Rc::clone(&entry.source))
            };
            if source.poll() {
                found = true;
                self.is_of_use(number);
            }
        }
        found
    }

    /// Polls each source at rest once: any of them may have ended the thread's sleep, or kept it from one. A few a turn would be
    /// as many turns as there are sources, each with a look at all of them. True when one of them found something.
    pub fn poll_all_at_rest(&self) -> bool {
        let mut found = false;
        let mut position = 0;
        let next = |position: usize| {
            let at_rest = self.at_rest.borrow();
            at_rest.get(position).map(|entry| (entry.number, Rc::clone(&entry.source)))
        };
        while let Some((number, source)) = next(position) {
            if source.poll() {
                found = true;
                // The next one comes into its place.
                self.is_of_use(number);
            } else {
                position += 1;
            }
        }
        found
    }

    /// A source at rest found something: it is polled in each turn again.
    fn is_of_use(&self, number: u64) {
        let entry = take(&self.at_rest, number);
        entry.into_iter().for_each(|entry| put(&self.in_use, entry));
    }
}

/// Numbers rise, and both lists are kept in their order.
fn take(entries: &RefCell<Vec<Entry>>, number: u64) -> Option<Entry> {
    let mut entries = entries.borrow_mut();
    let position = entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
    Some(entries.remove(position))
}

fn put(entries: &RefCell<Vec<Entry>>, entry: Entry) {
    let mut entries = entries.borrow_mut();
    let position = entries.partition_point(|other| other.number < entry.number);
    entries.insert(position, entry);
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

#[cfg(test)]
mod tests {
    use super::super::{Options, Runtime, Signal, Waiting, yield_now};
    use super::*;

    #[derive(Default)]
    struct Bell {
        rung: Cell<bool>,
        busy: Cell<bool>,
        looks: Cell<u64>,
        asked: Cell<u64>,
        heard: Rc<Signal>,
    }

    impl Source for Bell {
        fn poll(&self) -> bool {
            self.looks.set(self.looks.get() + 1);
            if self.rung.get() {
                self.heard.raise();
            }
            self.rung.replace(false)
        }

        fn prepare_sleep(&self) -> Sleep {
            self.asked.set(self.asked.get() + 1);
            if self.rung.get() { Sleep::Work } else { Sleep::Nothing }
        }

        fn cancel_sleep(&self) {}

        fn may_rest(&self) -> bool {
            !self.busy.get()
        }
    }

    fn of(count: usize) -> (Sources, Vec<Rc<Bell>>) {
        let sources = Sources::default();
        let bells: Vec<Rc<Bell>> = (0..count).map(|_| Rc::default()).collect();
        for bell in &bells {
            sources.insert(bell.clone());
        }
        (sources, bells)
    }

    fn turns(sources: &Sources, count: usize) {
        for _ in 0..count {
            sources.poll_all();
        }
    }

    #[test]
    fn few_are_looked_at_in_each_turn() {
        let (sources, bells) = of(FEW);
        turns(&sources, 3 * usize::from(RESTS_AFTER));
        assert!(bells.iter().all(|bell| bell.looks.get() == 3 * u64::from(RESTS_AFTER)));
    }

    #[test]
    fn of_many_those_of_no_use_are_looked_at_seldom_and_never_forgotten() {
        let (sources, bells) = of(1000);
        bells[7].busy.set(true);
        for _ in 0..2 * RESTS_AFTER {
            bells[500].rung.set(true);
            sources.poll_all();
        }
        bells.iter().for_each(|bell| bell.looks.set(0));
        turns(&sources, 1000);
        assert_eq!(bells[7].looks.get(), 1000, "who has something to do is looked at");
        assert_eq!(bells[500].looks.get(), 1000, "and who was of use a moment ago");
        let others: u64 = bells.iter().map(|bell| bell.looks.get()).sum::<u64>() - 2000;
        assert!(others <= (FEW * 1000 + AT_REST * 1000) as u64, "{others} looks in 1000 turns");
        assert!(bells.iter().all(|bell| bell.looks.get() > 0), "each in its turn");
        assert_eq!((0..).map_while(|position| sources.at(position)).count(), 1000, "all are asked before a sleep");

        bells[900].rung.set(true);
        let seen = (0..).find(|_| sources.poll_all()).expect("some turn finds it");
        assert!(seen <= 500, "found after {seen} turns");
        bells[900].looks.set(0);
        turns(&sources, 10);
        assert_eq!(bells[900].looks.get(), 10, "it is in use again");
    }

    #[test]
    fn one_at_rest_that_keeps_the_thread_from_sleeping_is_found_at_once() {
        const COUNT: usize = 200;
        let runtime = Runtime::new(Options { waiting: Waiting::Block, ..Options::default() }).expect("a ring");
        runtime.block_on(async {
            let heard: Rc<Signal> = Rc::default();
            let bell = || Rc::new(Bell { heard: heard.clone(), ..Bell::default() });
            let bells: Vec<Rc<Bell>> = (0..COUNT).map(|_| bell()).collect();
            let _registered: Vec<SourceGuard> = bells.iter().map(|bell| register(bell.clone())).collect();
            for _ in 0..2 * RESTS_AFTER {
                yield_now().await;
            }
            let core = current();
            let resting = core.sources.at_rest.borrow().len();
            assert_eq!(resting, COUNT - FEW);
            // The one that was looked at last: its turn among them is the furthest away.
            let last = (core.sources.cursor.get() + resting - 1) % resting;
            bells[last].rung.set(true);
            heard.wait().await;
            let asked: u64 = bells.iter().map(|bell| bell.asked.get()).sum();
            assert!(asked > 0, "it kept the thread from sleeping");
            assert!(asked <= 4 * COUNT as u64, "asked {asked} times before it was found");
        });
    }

    #[test]
    fn a_source_is_removed_from_wherever_it_is() {
        let (sources, bells) = of(100);
        turns(&sources, 2 * usize::from(RESTS_AFTER));
        (0..100).for_each(|number| drop(sources.remove(number).expect("registered")));
        assert!(sources.at(0).is_none() && sources.remove(3).is_none());
        assert!(bells.iter().all(|bell| Rc::strong_count(bell) == 1));
        assert!(!sources.poll_all());
    }
}
