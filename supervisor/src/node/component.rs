//! A component, over all its runs: what is kept of it for the next supervisor.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::LenderId;
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::books::Book;
use super::hold::Hold;
use super::holdings::Holdings;
use super::logs::Log;
use super::records::{ComponentTag, FactTag, Kind, Records, cut, hash, read, text};
use super::survival::Estate;
use super::upgrade::Programs;
use super::waits::Changes;
use super::{Component, Phase};
use crate::lifecycle::{GIVE_UP_AFTER, Restarts};
use crate::manifest;

impl Component {
    /// One that nobody has started yet.
    pub(super) fn new(entry: manifest::Component, slot: u32, log: Rc<Log>, records: &Rc<Records>) -> Component {
        let key = crate::keeper::wire::Key { kind: Kind::Component as u32, slot, number: 0 };
        Component {
            slot,
            phase: Cell::new(Phase::Waiting),
            record: records.know(key, None),
            peer: RefCell::default(),
            epoch: Cell::new(0),
            starts: Cell::new(0),
            restarts: RefCell::default(),
            ready_at: Cell::new(None),
            disorder: Cell::new(false),
            hold: Hold::default(),
            crash: Cell::new(None),
            book: Book::new(slot, records.clone()),
            estate: Estate::new(slot, records.clone()),
            holdings: Holdings::new(slot, records.clone()),
            programs: Programs::new(slot, &entry.run, records.clone()),
            wanted: Cell::new(false),
            restarts_with: Cell::new(None),
            changes: Changes::default(),
            log,
            trouble: RefCell::default(),
            facts: RefCell::default(),
            entry,
        }
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
        self.keep();
        self.changes.happen();
    }

    /// Tells the keeper how it stands.
    pub(super) fn keep(&self) {
        let restarts = self.restarts.borrow();
        let mut deaths = [0; GIVE_UP_AFTER];
        deaths.iter_mut().zip(restarts.own()).for_each(|(to, from)| *to = to_clock(from));
        let tag = ComponentTag {
            epoch: self.epoch.get(),
            lender: self.estate.known_lender().map_or(0, LenderId::get),
            ready_at: self.ready_at.get().map_or(0, to_clock),
            endpoints: self.estate.endpoints_of(&self.entry),
            deaths,
            crash: self.crash.get().map_or(0, |crash| crash.saturating_add(1)),
            starts: self.starts.get(),
            phase: self.phase.get() as u32,
            row: restarts.row(),
            marks: u32::from(self.disorder.get()) | self.hold.marks(),
            trouble: cut(&self.trouble.borrow()),
            restarts_with: self.restarts_with.get().map_or(0, |index| index as u32 + 1),
        };
        if let Err(error) = self.record.tell(&tag) {
            eprintln!("supervisor: the keeper: {error}");
        }
    }

    /// How the last supervisor left it.
    pub(super) fn recall(&self, tag: &ComponentTag) {
        let deaths = tag.deaths.iter().filter(|&&death| death != 0).map(|&death| from_clock(death));
        self.restarts.replace(Restarts::known(deaths, tag.row));
        self.epoch.set(tag.epoch);
        self.starts.set(tag.starts);
        self.phase.set(Phase::from_number(tag.phase));
        self.ready_at.set((tag.ready_at != 0).then(|| from_clock(tag.ready_at)));
        self.disorder.set(tag.marks & 1 != 0);
        self.hold.recall(tag.marks);
        self.crash.set(tag.crash.checked_sub(1));
        self.trouble.replace(read(&tag.trouble).unwrap_or_default());
        self.restarts_with.set(tag.restarts_with.checked_sub(1).map(|index| index as usize));
        self.estate.recall(&self.entry, tag);
    }

    /// A run has told a fact. The next supervisor knows it too, if it is not long.
    pub(super) fn report(&self, records: &Rc<Records>, key: String, value: Value) {
        let mut facts = self.facts.borrow_mut();
        if facts.len() >= 64 && !facts.contains_key(&key) {
            return;
        }
        let tag = (text(&key), text(&value.to_string()));
        let kept = match tag {
            (Some(name), Some(said)) => {
                let tag = FactTag { key: name, value: said };
                records.put(Kind::Fact, self.slot, hash(&key), &tag, None).ok()
            }
            _ => None,
        };
        facts.insert(key, (value, kept));
    }

    /// What was reported under a key.
    pub(super) fn fact(&self, key: &str) -> Option<Value> {
        self.facts.borrow().get(key).map(|(value, _)| value.clone())
    }
}

impl Phase {
    fn from_number(number: u32) -> Phase {
        use Phase::{Failed, Held, Ready, Restarting, Starting, Stopped, Stopping, Waiting};
        let known = [Waiting, Starting, Ready, Restarting, Failed, Stopping, Stopped, Held];
        // One that makes no sense has to be started.
        known.into_iter().find(|&phase| phase as u32 == number).unwrap_or(Restarting)
    }
}

/// The monotonic clock, which all processes of a machine share.
fn clock() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

fn to_clock(instant: Instant) -> u64 {
    let at = clock().saturating_sub(instant.elapsed());
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).max(1)
}

fn from_clock(at: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(clock().saturating_sub(Duration::from_nanos(at))).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_survives_its_encoding() {
        let moment = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
        let back = from_clock(to_clock(moment));
        let difference = back.max(moment).duration_since(back.min(moment));
        assert!(difference < Duration::from_secs(1), "{difference:?}");
        // What cannot be is now.
        assert!(from_clock(u64::MAX).elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_phase_survives_its_encoding() {
        use Phase::{Failed, Held, Ready, Starting, Stopped, Stopping, Waiting};
        for phase in [Waiting, Starting, Ready, Failed, Stopping, Stopped, Held] {
            assert_eq!(Phase::from_number(phase as u32), phase);
        }
        assert_eq!(Phase::from_number(99), Phase::Restarting);
    }
}
