//! A lender across the deaths of processes: its own, and its holders'.
//!
//! - Its next incarnation goes on in the same table, which is kept like the ledger: names stay good, and who looks a lease up
//!   sees what became of it, whichever of the two wrote that. Pin segments are common to all epochs too.
//! - It starts with all its unfenced pin segments attached; before that nothing that is dying may become free.
//! - A holder whose own state survives is followed by its next incarnation, which inherits its leases.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, Release};

use super::super::kept::{Inherited, LeaseLedger};
use super::super::layout::{entry, entry_at, header};
use super::super::protocol;
use super::{Lender, Lent, Record, State};
use crate::id::{Epoch, Incarnation, LenderId, SessionId};
use crate::ledger::Poisoned;
use crate::sys::segment::SegmentWriter;
use crate::wire::Handle;

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

    /// A lender that its next incarnation can follow. The memory of its ledger and of its table is fresh and kept.
    ///
    /// # Errors
    /// See [`Lost`].
    pub fn surviving(id: LenderId, epoch: Epoch, capacity: u32, memory: OwnedFd, table: OwnedFd) -> Result<Self, Lost> {
        super::check_capacity(capacity)?;
        let table = table_in(table, capacity)?;
        if table.load_u64(header::MAGIC, Relaxed) != 0 {
            return Err(Poisoned("the table's memory is not fresh").into());
        }
        let kept = LeaseLedger::create(SegmentWriter::open_kept(memory)?, id, capacity)?;
        Ok(Self::with_table(id, epoch, capacity, table, Some(kept)))
    }

    /// Whether nobody ever began a ledger in this memory: who was to do it died before.
    ///
    /// # Errors
    /// Of mapping it.
    pub fn is_blank(memory: OwnedFd) -> io::Result<bool> {
        Ok(LeaseLedger::is_blank(&SegmentWriter::open_kept(memory)?))
    }

    /// Follows a dead incarnation. Gives what it had lent, and what it was taking back: before anything of it becomes
    /// free, every unfenced pin segment must be attached, and [`keep`](Self::keep) be told what each lease holds.
    ///
    /// # Errors
    /// See [`Lost`].
    pub fn follow(
        id: LenderId,
        epoch: Epoch,
        capacity: u32,
        memory: OwnedFd,
        table: OwnedFd,
    ) -> Result<(Self, Vec<Inherited>), Lost> {
        let (kept, entries) = LeaseLedger::recover(SegmentWriter::open_kept(memory)?, id, capacity)?;
        let table = table_in(table, capacity)?;
        let word = |at| table.load_u64(at, Relaxed);
        if word(header::TABLE_LENDER) != id.get() || word(header::TABLE_CAPACITY) != u64::from(capacity) {
            return Err(Poisoned("the table is another lender's").into());
        }
        let mut this = Self::with_table(id, epoch, capacity, table, Some(kept));
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
                    let place = (crate::id::RegionId(lease.fields.region), lease.fields.offset);
                    let (length, keep) = (lease.fields.length, Rc::new(()));
                    let lent = Lent { holder, length, place, call: lease.call, by: lease.by, keep };
                    if lease.dying {
                        protocol::kill(&this.table, index, generation);
                        this.dying.push_back(index);
                        State::Dying(lent)
                    } else {
                        // It stands there already, unless the dead incarnation came from L1 to no L3.
                        protocol::publish(&this.table, index, generation, &lease.fields);
                        this.lent += 1;
                        State::Lent(lent)
                    }
                }
            };
            this.ledger.push(Record { generation, state });
        }
        this.table.store_u64(header::TABLE_USED, this.ledger.len() as u64, Release);
        // B3 for those that were dying: continued here, whatever the dead incarnation had done.
        protocol::settle(&this.table);
        Ok((this, inherited))
    }

    /// Says what an inherited lease keeps alive.
    pub fn keep(&mut self, index: u32, keep: Rc<dyn Any>) {
        if let Some(Record { state: State::Lent(lent) | State::Dying(lent), .. }) = self.ledger.get_mut(index as usize)
        {
            lent.keep = keep;
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

    /// Which of them are at these indices: index, generation, and the capability of the session on which the call was made,
    /// if it is known.
    pub fn brought_on(&self, session: SessionId, indices: Range<usize>) -> Vec<(u32, u32, Option<Handle>)> {
        let records = (0u32..).zip(&self.ledger).skip(indices.start).take(indices.len());
        let brought = records.filter_map(|(index, record)| match &record.state {
            State::Lent(Lent { call: Some((on, _, _)), by, .. }) if *on == session => {
                Some((index, record.generation, *by))
            }
            _ => None,
        });
        brought.collect()
    }

    /// Everything that `dead` held is held by `next` from now on, under the same names: on the session `on`, if it is one of
    /// ours. Gives indices and generations.
    pub fn inherit(&mut self, dead: Incarnation, next: Incarnation, on: Option<SessionId>) -> Vec<(u32, u32)> {
        let theirs = self.lent_where(|lent| lent.holder == dead);
        // What is dying is charged to the next one as well.
        for record in &mut self.ledger {
            if let State::Lent(lent) | State::Dying(lent) = &mut record.state
                && lent.holder == dead
            {
                lent.holder = next;
                if let Some(session) = on {
                    (lent.call, lent.by) = (Some((session, 0, 0)), None);
                }
            }
        }
        for (index, _) in &theirs {
            if let Some(kept) = &self.kept {
                kept.held_by(*index, next.get(), on);
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

    /// What `holder` has from sessions that are not `open` is its own on the session `on`: a dead incarnation of this lender
    /// came to give it to that holder, and not to say on which session. Gives indices and generations.
    pub fn adopt(
        &mut self,
        holder: Incarnation,
        on: SessionId,
        is_open: impl Fn(SessionId) -> bool,
    ) -> Vec<(u32, u32)> {
        let is_orphan = |lent: &Lent| lent.holder == holder && lent.call.is_some_and(|(of, _, _)| !is_open(of));
        let orphans = self.lent_where(is_orphan);
        for (index, _) in &orphans {
            if let State::Lent(lent) = &mut self.ledger[*index as usize].state {
                (lent.call, lent.by) = (Some((on, 0, 0)), None);
            }
            if let Some(kept) = &self.kept {
                kept.held_by(*index, holder.get(), Some(on));
            }
        }
        orphans
    }

    fn lent_where(&self, wanted: impl Fn(&Lent) -> bool) -> Vec<(u32, u32)> {
        (0u32..)
            .zip(&self.ledger)
            .filter(|(_, record)| matches!(&record.state, State::Lent(lent) if wanted(lent)))
            .map(|(index, record)| (index, record.generation))
            .collect()
    }
}

/// Memory for a table, or with one.
fn table_in(memory: OwnedFd, capacity: u32) -> Result<SegmentWriter, Lost> {
    let table = SegmentWriter::open_kept_for_readers(memory)?;
    match table.len() < Lender::table_bytes(capacity) {
        true => Err(Poisoned("the table's memory is too small").into()),
        false => Ok(table),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::*;
    use super::super::{Ended, Lend};
    use super::*;
    use crate::sys::segment::{memfd, set_len};

    /// Memory for a ledger and a table, each as often as it is asked for.
    struct Memory(OwnedFd, OwnedFd);

    impl Memory {
        fn new() -> Memory {
            let [ledger, table] = [Lender::ledger_bytes(CAPACITY), Lender::table_bytes(CAPACITY)].map(|bytes| {
                let memory = memfd("leases").expect("memory");
                set_len(&memory, bytes).expect("memory");
                memory
            });
            Memory(ledger, table)
        }

        fn surviving(&self, epoch: Epoch) -> Result<Lender, Lost> {
            let [ledger, table] = [&self.0, &self.1].map(|memory| memory.try_clone().expect("dup"));
            Lender::surviving(LENDER, epoch, CAPACITY, ledger, table)
        }

        fn follow(&self, id: LenderId, epoch: Epoch) -> Result<(Lender, Vec<Inherited>), Lost> {
            let [ledger, table] = [&self.0, &self.1].map(|memory| memory.try_clone().expect("dup"));
            Lender::follow(id, epoch, CAPACITY, ledger, table)
        }
    }

    fn lend(length: u64) -> Lend {
        Lend { region: REGION, offset: 4096, length, source: None, keep: Rc::new(()) }
    }

    #[test]
    fn the_next_incarnation_has_the_same_names_and_finishes_what_was_dying() {
        let memory = Memory::new();
        assert!(Lender::is_blank(memory.0.try_clone().expect("dup")).expect("mapped"));
        let mut lender = memory.surviving(EPOCH).expect("fresh");
        let by = Handle { index: 4, generation: 6 };
        let call = Some(((SessionId(9), 3, 17), by));
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

        assert!(!Lender::is_blank(memory.0.try_clone().expect("dup")).expect("mapped"));
        let (mut next, inherited) = memory.follow(LENDER, Epoch(4)).expect("a good ledger");
        next.attach_pins(MAPPER, Epoch(1), reopen(pins.fd())).expect("good");
        let known: Vec<_> = inherited.iter().map(|lease| (lease.index, lease.generation, lease.dying)).collect();
        assert_eq!(known, [(kept.index, kept.generation, false), (pinned.index, pinned.generation, true)]);
        assert_eq!((inherited[0].call, inherited[0].by), (Some((SessionId(9), 3, 17)), Some(by)));
        assert_eq!(next.lent_on(SessionId(9)), [(kept.index, kept.generation)]);
        assert_eq!(next.lent_by(SessionId(9), 3, 17), [(kept.index, kept.generation)]);
        assert_eq!(next.lent_by(SessionId(9), 3, 18), []);
        let brought = [(kept.index, kept.generation, Some(by))];
        assert_eq!(next.brought_on(SessionId(9), 0..usize::MAX), brought);
        assert_eq!(next.brought_on(SessionId(9), kept.index as usize + 1..next.used()), []);
        assert_eq!((next.reclaim(), next.dying()), (0, 1), "the mapper's pin holds in every epoch");
        pins.memory().store_u32(super::super::super::layout::pin_at(pinned.index), 0, Relaxed);
        assert_eq!((next.reclaim(), next.dying()), (1, 0));
        let after = next.lend(BOB, lend(1)).expect("room");
        assert_eq!((after.index, after.generation), (pinned.index, pinned.generation + 1), "never the same name twice");
        assert_eq!(next.release(ALICE, kept.index, kept.generation), Ok(Ended::Free));
        assert!(memory.follow(LenderId(12), Epoch(4)).is_err(), "another lender's");
        assert!(memory.surviving(Epoch(5)).is_err(), "not fresh");
    }

    #[test]
    fn a_holders_next_incarnation_inherits_its_leases() {
        let memory = Memory::new();
        let mut lender = memory.surviving(EPOCH).expect("fresh");
        let by = Handle { index: 4, generation: 6 };
        let alices = lender.lend_for(ALICE, lend(10), Some(((SessionId(1), 0, 1), by))).expect("room");
        let bobs = lender.lend_for(BOB, lend(20), Some(((SessionId(2), 0, 1), by))).expect("room");
        let (next, on) = (Incarnation(99), SessionId(3));
        assert_eq!(lender.inherit(ALICE, next, Some(on)), [(alices.index, alices.generation)]);
        assert_eq!((lender.lent_on(SessionId(1)), lender.lent_on(on).len()), (Vec::new(), 1));
        assert_eq!(lender.lent_by(on, 0, 1), [], "no call of that session brought it");
        drop(lender);
        // Its own next incarnation knows it too.
        let (mut lender, inherited) = memory.follow(LENDER, Epoch(4)).expect("a good ledger");
        assert_eq!((inherited[0].fields.holder, inherited[0].call), (next.get(), Some((on, 0, 0))));
        // The capability was the dead one's, and went with its session.
        assert_eq!((inherited[0].by, inherited[1].by), (None, Some(by)));
        // The session is unknown to that one: it was not open yet.
        assert_eq!(lender.adopt(BOB, SessionId(4), |session| session == SessionId(2)), [], "bob's session is open");
        let orphans = lender.adopt(next, SessionId(4), |session| session == SessionId(2));
        assert_eq!(orphans, [(alices.index, alices.generation)]);
        assert_eq!(lender.lent_on(SessionId(4)), orphans);
        assert!(lender.release(ALICE, alices.index, alices.generation).is_err(), "the dead one has nothing");
        assert_eq!(lender.release(next, alices.index, alices.generation), Ok(Ended::Free));
        assert_eq!(lender.release(BOB, bobs.index, bobs.generation), Ok(Ended::Free));
    }

    #[test]
    fn who_looked_a_lease_up_before_a_death_sees_what_the_next_incarnation_does_with_it() {
        let memory = Memory::new();
        let mut lender = memory.surviving(EPOCH).expect("fresh");
        let region = super::super::super::Region::create("region", REGION, 1 << 16).expect("memory");
        region.copy_in(4096, &[7; 8]).expect("inside");
        let fd = region.fd().try_clone_to_owned().expect("dup");
        let regions = [(REGION, super::super::super::RegionReader::open(fd, REGION).expect("sealed"))];
        let page = super::super::super::StatusPage::create(2).expect("memory");
        assert!(page.lives(LENDER_LINE, EPOCH));
        let status = World::status_of(&page, LENDER_LINE);
        let mut holder = super::super::super::Holder::new(ALICE);
        holder.introduce(LENDER, EPOCH, reopen(lender.table_fd()), &regions, Some(status.clone())).expect("good");
        let name = lender.lend(ALICE, lend(8)).expect("room");
        let gone = lender.lend(ALICE, lend(8)).expect("room");
        let held = [name, gone].map(|name| holder.hold(&name).expect("live"));
        page.died(LENDER_LINE);
        drop(lender);

        let mut bytes = [0; 8];
        assert_eq!((held[0].copy_out(0, &mut bytes), bytes), (Ok(()), [7; 8]), "between the epochs");
        assert!(holder.hold(&name).is_ok() && holder.held().len() == 2);
        let (mut next, _) = memory.follow(LENDER, Epoch(4)).expect("a good ledger");
        assert!(page.lives(LENDER_LINE, Epoch(4)));
        assert!(held[0].still_live() && held[1].still_live(), "the news has not come yet");
        next.take_back(gone.index, gone.generation).expect("live");
        assert!(held[0].still_live() && !held[1].still_live());
        let table = next.table_fd().try_clone_to_owned().expect("dup");
        assert!(holder.reintroduce(LENDER, Epoch(4), &table, Some(status)).expect("good"));
        assert!(held[0].still_live() && holder.hold(&name).is_ok());
        holder.retire(LENDER);
        assert_eq!(held[0].copy_out(0, &mut bytes), Err(super::super::super::StaleLease::LenderGone));
    }
}
