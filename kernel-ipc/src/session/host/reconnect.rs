//! A client whose connection was lost comes back over another one, to a host that lives, or to one that goes on where a dead one was.
//!
//! - It offers each outstanding call by its slot and seq, as it would to a next incarnation; nothing else comes before that.
//! - What was answered is answered again with the same words, which the link has kept until the slot's next call (R22). That
//!   holds for replies of every class, and for failures: a lost connection alone never makes a call `Unknown`, and none runs
//!   twice. (A reply counts as published when the link has it, so a revoke that ended since does not change it.)
//! - What is under way is RUNNING, and its completion follows on this connection. What never arrived is NOT_SEEN, and comes
//!   with the same seq.
//! - Of a call that this host has not read itself, the dead one's ledger says what became of it ([`survival`](super::survival)),
//!   over however many connections it is asked.
//! - Control calls are not offered. The client sends again those whose answer it misses: they are idempotent.

use std::cell::Cell;

use super::Inner;
use crate::link::Body;
use crate::session::Service;
use crate::session::by_slot::bit;
use crate::wire::{Outstanding, RawDescriptor, Violation, flag};

/// What the client of a session over a socket owes.
#[derive(Default)]
pub(super) struct Reconnect {
    /// Offers that have not come yet.
    awaited: Cell<u16>,
    /// Slots that were answered on this connection while offers were awaited: theirs need no other answer. A bit each.
    answered: Cell<u64>,
    /// Slots of which only the ledger knows, because no call on them has come since the last run died. A bit each.
    inherited: Cell<u64>,
}

impl Reconnect {
    /// A call was answered on the present connection.
    #[inline]
    pub(super) fn answers(&self, slot: u16) {
        if self.awaited.get() > 0 {
            self.answered.set(self.answered.get() | bit(slot));
        }
    }

    /// A call was read on this slot.
    #[inline]
    pub(super) fn reads(&self, slot: u16) {
        self.inherited.set(self.inherited.get() & !bit(slot));
    }
}

/// A new connection, for a session whose service's type is forgotten.
pub(super) trait Reconnecting {
    /// A dead run has served all of it.
    fn inherited(&self);
    /// It begins with so many offers.
    fn reconnected(&self, outstanding: u16);
}

impl<S: Service> Reconnecting for Inner<S> {
    fn inherited(&self) {
        let all = (0..self.shape.slots).map(bit).fold(0, |all, bit| all | bit);
        self.reconnect.inherited.set(all);
    }

    fn reconnected(&self, outstanding: u16) {
        self.reconnect.awaited.set(outstanding);
        self.reconnect.answered.set(0);
        let mut slots = self.slots.borrow_mut();
        for slot in self.shape.slots..self.shape.all_slots() {
            if let Some((last, false)) = slots.last(slot) {
                // The same seq may come once more.
                slots.recovered(slot, last.saturating_sub(1));
            }
        }
    }
}

impl<S: Service> Inner<S> {
    /// Whether only offers may come now.
    pub(super) fn awaits_offers(&self) -> bool {
        self.reconnect.awaited.get() > 0
    }

    /// Answers for one call that was outstanding when the connection was lost.
    pub(super) fn offered(&self, raw: &RawDescriptor) -> Result<(), Violation> {
        if raw.flags() != flag::RESUME {
            return Err(Violation::Reserved);
        }
        self.reconnect.awaited.set(self.reconnect.awaited.get().saturating_sub(1));
        let outstanding @ Outstanding { slot, seq } = Outstanding::check(raw, self.shape)?;
        if let Some(survival) = self.survival.as_ref().filter(|_| self.reconnect.inherited.get() & bit(slot) != 0) {
            return self.resume_one(survival, outstanding);
        }
        let verdict = match self.slots.borrow().last(slot).ok_or(Violation::Slot)? {
            (last, false) if seq > last => flag::NOT_SEEN,
            (last, true) if seq == last => flag::RUNNING,
            (last, false) if seq == last && self.reconnect.answered.get() & bit(slot) != 0 => return Ok(()),
            (last, false) if seq == last && self.link.repeat(slot, seq)? => return Ok(()),
            _ => return Err(Violation::Seq),
        };
        self.link.send(&outstanding.to_raw(verdict), slot, &Body::default())
    }
}
