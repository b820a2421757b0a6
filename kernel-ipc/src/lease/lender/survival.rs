//! A lender across the deaths of processes: its own, and its holders'.
//!
//! - Its next incarnation publishes a new table with the same indices and generations: names stay good, and pins taken
//!   through the old table hold, because pin segments are common to all epochs of a table.
//! - It starts with all its unfenced pin segments attached; before that nothing that is dying may become free.
//! - A holder whose own state survives is followed by its next incarnation, which inherits its leases.

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use super::super::kept::{Inherited, LeaseLedger};
use super::super::layout::{entry, entry_at};
use super::super::protocol;
use super::{Lender, Lent, Record, State};
use crate::id::{Epoch, Incarnation, LenderId, SessionId};
use crate::ledger::Poisoned;
use crate::sys::segment::SegmentWriter;

/// Why a lender cannot go on. It is given up; whoever follows is another lender.
#[derive(Debug)]
pub enum Lost {
    /// The system refused memory.
    Io(io::Error),
    /// What the dead incarnation left makes no sense.
    Poisoned(Poisoned),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lost::Io(error) => error.fmt(f),
            Lost::Poisoned(poisoned) => write!(f, "the ledger of leases is damaged: {}", poisoned.0),
        }
    }
}

impl std::error::Error for Lost {}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        Lost::Io(error)
    }
}

impl From<Poisoned> for Lost {
    fn from(poisoned: Poisoned) -> Self {
        Lost::Poisoned(poisoned)
    }
}

impl Lender {
    /// Bytes of the ledger of a lender with this capacity.
    pub const fn ledger_bytes(capacity: u32) -> usize {
        LeaseLedger::<SegmentWriter>::bytes(capacity)
    }

    /// A lender that its next incarnation can follow. `memory` is fresh and kept by the keeper.
    ///
    /// # Errors
    /// See [`Lost`].
    pub fn surviving(id: LenderId, epoch: Epoch, capacity: u32, memory: OwnedFd) -> Result<Self, Lost> {
        let kept = LeaseLedger::create(SegmentWriter::open_kept(memory)?, id, capacity)?;
        Ok(Self::with_ledger(id, epoch, capacity, Some(kept))?)
    }

    /// Follows a dead incarnation. Gives what it had lent, and what it was taking back: before anything of it becomes
    /// free, every unfenced pin segment must be attached, and [`keep`](Self::keep) be told what each lease holds.
    ///
    /// # Errors
    /// See [`Lost`].
    pub fn follow(id: LenderId, epoch: Epoch, capacity: u32, memory: OwnedFd) -> Result<(Self, Vec<Inherited>), Lost> {
        let (kept, entries) = LeaseLedger::recover(SegmentWriter::open_kept(memory)?, id, capacity)?;
        let mut this = Self::with_ledger(id, epoch, capacity, Some(kept))?;
        let mut inherited = Vec::new();
        for (index, (generation, lease)) in (0u32..).zip(entries) {
            let state = match lease {
                None if generation < this.last_generation => {
                    this.free.push(index);
                    State::Free
                }
                // It may have been used up.
                None => State::Free,
                Some(lease) => {
                    inherited.push(lease);
                    let holder = Incarnation(lease.fields.holder);
                    let account = this.accounts.entry(holder).or_default();
                    account.leases += 1;
                    account.bytes += lease.fields.length;
                    let lent = Lent { holder, length: lease.fields.length, call: lease.call, _keep: Rc::new(()) };
                    if lease.dying {
                        protocol::kill(&this.table, index, generation);
                        this.dying.push_back(index);
                        State::Dying(lent)
                    } else {
                        protocol::publish(&this.table, index, generation, &lease.fields);
                        this.lent += 1;
                        State::Lent(lent)
                    }
                }
            };
            this.ledger.push(Record { generation, state });
        }
        // B3 for those that were dying: continued here, whatever the dead incarnation had done.
        protocol::settle(&this.table);
        Ok((this, inherited))
    }

    /// Says what an inherited lease keeps alive.
    pub fn keep(&mut self, index: u32, keep: Rc<dyn Any>) {
        if let Some(Record { state: State::Lent(lent) | State::Dying(lent), .. }) = self.ledger.get_mut(index as usize)
        {
            lent._keep = keep;
        }
    }

    /// Leases that the answer to one call brought: index and generation.
    pub fn lent_by(&self, session: SessionId, slot: u16, seq: u64) -> Vec<(u32, u32)> {
        self.lent_where(|lent| lent.call == Some((session, slot, seq)))
    }

    /// Leases that answers to calls of a session brought.
    pub fn lent_on(&self, session: SessionId) -> Vec<(u32, u32)> {
        self.lent_where(|lent| lent.call.is_some_and(|(on, _, _)| on == session))
    }

    /// Everything that `dead` held is held by `next` from now on, under the same names. Gives indices and generations.
    pub fn inherit(&mut self, dead: Incarnation, next: Incarnation) -> Vec<(u32, u32)> {
        let theirs = self.lent_where(|lent| lent.holder == dead);
        // What is dying is charged to the next one as well.
        for record in &mut self.ledger {
            if let State::Lent(lent) | State::Dying(lent) = &mut record.state
                && lent.holder == dead
            {
                lent.holder = next;
            }
        }
        for (index, _) in &theirs {
            if let Some(kept) = &self.kept {
                kept.held_by(*index, next.get());
            }
            // One word. Whoever reads the entry meanwhile sees the dead holder or the next, each of whom it was good for.
            protocol::Writable::store_u64(&self.table, entry_at(*index) + entry::HOLDER, next.get(), Relaxed);
        }
        if let Some(account) = self.accounts.remove(&dead) {
            let next = self.accounts.entry(next).or_default();
            next.leases += account.leases;
            next.bytes += account.bytes;
        }
        theirs
    }

    fn lent_where(&self, wanted: impl Fn(&Lent) -> bool) -> Vec<(u32, u32)> {
        (0u32..)
            .zip(&self.ledger)
            .filter(|(_, record)| matches!(&record.state, State::Lent(lent) if wanted(lent)))
            .map(|(index, record)| (index, record.generation))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::*;
    use super::super::{Ended, Lend};
    use super::*;
    use crate::sys::segment::{memfd, set_len};

    fn memory() -> OwnedFd {
        let memory = memfd("leases").expect("memory");
        set_len(&memory, Lender::ledger_bytes(CAPACITY)).expect("memory");
        memory
    }

    fn lend(length: u64) -> Lend {
        Lend { region: REGION, offset: 4096, length, source: None, keep: Rc::new(()) }
    }

    #[test]
    fn the_next_incarnation_has_the_same_names_and_finishes_what_was_dying() {
        let memory = memory();
        let again = || memory.try_clone().expect("dup");
        let mut lender = Lender::surviving(LENDER, EPOCH, CAPACITY, again()).expect("fresh");
        let call = Some((SessionId(9), 3, 17));
        let kept = lender.lend_for(ALICE, lend(10), call).expect("room");
        let gone = lender.lend(BOB, lend(20)).expect("room");
        lender.take_back(gone.index, gone.generation).expect("live");
        let pins = super::super::super::PinSegment::create(MAPPER, Epoch(1), LENDER, CAPACITY).expect("memory");
        lender.attach_pins(MAPPER, Epoch(1), reopen(pins.fd())).expect("good");
        let pinned = lender.lend(BOB, lend(30)).expect("room");
        assert_eq!(pinned.index, gone.index, "used again");
        pins.memory().store_u32(super::super::super::layout::pin_at(pinned.index), 1, Relaxed);
        assert_eq!(lender.take_back(pinned.index, pinned.generation), Ok(Ended::Dying));
        drop(lender);

        let (mut next, inherited) = Lender::follow(LENDER, Epoch(4), CAPACITY, again()).expect("a good ledger");
        next.attach_pins(MAPPER, Epoch(1), reopen(pins.fd())).expect("good");
        let known: Vec<_> = inherited.iter().map(|lease| (lease.index, lease.generation, lease.dying)).collect();
        assert_eq!(known, [(kept.index, kept.generation, false), (pinned.index, pinned.generation, true)]);
        assert_eq!(inherited[0].call, call);
        assert_eq!(next.lent_on(SessionId(9)), [(kept.index, kept.generation)]);
        assert_eq!(next.lent_by(SessionId(9), 3, 17), [(kept.index, kept.generation)]);
        assert_eq!(next.lent_by(SessionId(9), 3, 18), []);
        assert_eq!((next.reclaim(), next.dying()), (0, 1), "the mapper's pin holds in every epoch");
        pins.memory().store_u32(super::super::super::layout::pin_at(pinned.index), 0, Relaxed);
        assert_eq!((next.reclaim(), next.dying()), (1, 0));
        let after = next.lend(BOB, lend(1)).expect("room");
        assert_eq!((after.index, after.generation), (pinned.index, pinned.generation + 1), "never the same name twice");
        assert_eq!(next.release(ALICE, kept.index, kept.generation), Ok(Ended::Free));
        assert!(Lender::follow(LenderId(12), Epoch(4), CAPACITY, again()).is_err(), "another lender's");
        assert!(Lender::surviving(LENDER, Epoch(5), CAPACITY, again()).is_err(), "not fresh");
    }

    #[test]
    fn a_holders_next_incarnation_inherits_its_leases() {
        let mut lender = Lender::surviving(LENDER, EPOCH, CAPACITY, memory()).expect("fresh");
        let alices = lender.lend(ALICE, lend(10)).expect("room");
        let bobs = lender.lend(BOB, lend(20)).expect("room");
        let next = Incarnation(99);
        assert_eq!(lender.inherit(ALICE, next), [(alices.index, alices.generation)]);
        assert!(lender.release(ALICE, alices.index, alices.generation).is_err(), "the dead one has nothing");
        assert_eq!(lender.release(next, alices.index, alices.generation), Ok(Ended::Free));
        assert_eq!(lender.release(BOB, bobs.index, bobs.generation), Ok(Ended::Free));
    }
}
