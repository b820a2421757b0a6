//! The table of one session, and its entries: one cache line each.

use std::rc::Rc;

use super::realm::Standing;
use super::tree::NONE;
use crate::error::Cause;
use crate::id::SessionId;
use serde::{Deserialize, Serialize};

use crate::ledger::Tag;
use crate::rights::Rights;
use crate::wire::{EXPECTED, Handle};

/// A capability without its handle: an object, rights to it, and a badge. What a host grants, and what an entry says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The object, as the host names it. Plain data: the table outlives the process.
    pub object: [u64; 2],
    /// The object's kind, numbered by the interface. Not 0.
    pub kind: u8,
    /// What the holder may do with it.
    pub rights: Rights,
    /// A word chosen by whoever minted the capability; the host sees it on every call.
    pub badge: u64,
}

/// Why nothing was inserted: the session holds as many capabilities as it may, or has used up every index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota;

impl std::fmt::Display for Quota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the session's capability quota is used up")
    }
}

impl std::error::Error for Quota {}

impl From<Quota> for Cause {
    fn from(_: Quota) -> Self {
        Cause::Quota
    }
}

/// What a ledger says of an entry: whose next incarnation has to find it. See [`SessionLedger`](crate::ledger::SessionLedger).
pub trait Entries {
    /// Stores an entry. False: its index is beyond the quota, and nothing was stored.
    #[must_use]
    fn enter(&self, handle: Handle, grant: &Grant, standing: &Standing, tag: Tag) -> bool;
    /// The entry is gone; `next` is the generation of the next one at its index.
    fn leave(&self, index: u32, next: u32);
    /// The entry has another state.
    fn amend(&self, handle: Handle, state: State);
    /// The entry stands under another one.
    fn moved(&self, index: u32, standing: &Standing);
}

/// What an index is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum State {
    /// For nothing.
    #[default]
    Free = 0,
    /// Its client holds it, and may use it.
    Live = 1,
    /// Its client holds it; it is revoked.
    Revoked = 2,
    /// Its client has given it back. It stays while something depends on it.
    Kept = 3,
    /// Given back, and revoked.
    KeptRevoked = 4,
    /// Waits for whoever redeems its ticket.
    Promised = 5,
    /// The same, revoked.
    PromisedRevoked = 6,
}

impl State {
    /// Whether it was revoked.
    pub fn is_revoked(self) -> bool {
        matches!(self, State::Revoked | State::KeptRevoked | State::PromisedRevoked)
    }

    /// The same, revoked.
    pub(super) fn revoked(self) -> State {
        match self {
            State::Free => State::Free,
            State::Live | State::Revoked => State::Revoked,
            State::Kept | State::KeptRevoked => State::KeptRevoked,
            State::Promised | State::PromisedRevoked => State::PromisedRevoked,
        }
    }

    /// The same, given back.
    pub(super) fn kept(self) -> State {
        if self.is_revoked() { State::KeptRevoked } else { State::Kept }
    }

    /// The state with this number.
    pub fn from_number(number: u8) -> Option<State> {
        use State::*;
        [Free, Live, Revoked, Kept, KeptRevoked, Promised, PromisedRevoked]
            .into_iter()
            .find(|state| *state as u8 == number)
    }
}

/// One index of the table: all that a look-up reads.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line {
    pub grant: Grant,
    /// Monotonic nanoseconds from which on the entry refuses look-ups; 0: never.
    pub expires: u64,
    /// Of the entry here, or of the next entry to come here.
    pub generation: u32,
    /// Calls accepted under this entry and not yet answered.
    pub in_flight: u32,
    /// Leases that calls on it brought and that are still out.
    pub leases: u32,
    /// Its place in the derivation tree; the next free index, while this one is free.
    pub node: u32,
    pub state: State,
    /// It was minted, or came by a ticket: it names what its parent names.
    pub is_copy: bool,
}

const _: () = assert!(size_of::<Line>() == 64);

impl Line {
    const FRESH: Line = Line {
        grant: Grant { object: [0; 2], kind: 0, rights: Rights::empty(), badge: 0 },
        expires: 0,
        generation: 1,
        in_flight: 0,
        leases: 0,
        node: NONE,
        state: State::Free,
        is_copy: false,
    };
}

/// The capabilities of one session. Private to the host; clients name entries by [`Handle`].
pub struct Table {
    pub(super) lines: Vec<Line>,
    first_free: u32,
    /// Indices that are used for something.
    used: u32,
    quota: u32,
    /// The generation after which an index is retired. Smaller in tests only.
    pub(super) last_generation: u32,
    pub(super) session: SessionId,
    pub(super) ledger: Option<Rc<dyn Entries>>,
    /// The session has ended: nothing comes in any more.
    pub(super) is_closed: bool,
    /// Of no session: its number may be given again.
    pub(super) is_vacant: bool,
}

impl Table {
    /// An empty table that will hold at most `quota` entries at a time. Allocates as entries come.
    pub(super) fn new(session: SessionId, quota: u32, ledger: Option<Rc<dyn Entries>>) -> Self {
        Self {
            lines: Vec::new(),
            first_free: NONE,
            used: 0,
            quota,
            last_generation: u32::MAX,
            session,
            ledger,
            is_closed: false,
            is_vacant: false,
        }
    }

    /// The place of a table.
    pub(super) fn vacant() -> Self {
        Self { is_closed: true, is_vacant: true, ..Self::new(SessionId(0), 0, None) }
    }

    /// The entry that `handle` names, if it is of this `kind` (0: whichever) and has all of `rights`. `now` gives monotonic
    /// nanoseconds, and is asked only about an entry that expires. O(1).
    ///
    /// # Errors
    /// [`Cause::StaleHandle`] if it names nothing (any more), [`Cause::Revoked`], [`Cause::Expired`], [`Cause::WrongKind`],
    /// [`Cause::RightsMissing`]; in this order, so a stale handle says nothing about what replaced it.
    #[inline]
    pub(super) fn lookup(
        &self,
        handle: Handle,
        kind: u8,
        rights: Rights,
        now: impl FnOnce() -> u64,
    ) -> Result<&Line, Cause> {
        let line = self.lines.get(handle.index as usize).ok_or(Cause::StaleHandle)?;
        if line.generation != handle.generation || line.state != State::Live {
            return Err(line.refusal(handle));
        }
        if line.expires != 0 && line.expires <= now() {
            return Err(Cause::Expired);
        }
        if line.grant.kind != kind && kind != 0 {
            return Err(Cause::WrongKind);
        }
        if !line.grant.rights.contains(rights) {
            return Err(Cause::RightsMissing);
        }
        Ok(line)
    }

    /// The entry that its client holds under `handle`, revoked or not, expired or not.
    pub(super) fn held(&self, handle: Handle) -> Option<&Line> {
        let line = self.lines.get(handle.index as usize).filter(|line| line.generation == handle.generation);
        line.filter(|line| matches!(line.state, State::Live | State::Revoked))
    }

    /// Takes an index for an entry.
    pub(super) fn take(&mut self) -> Result<Handle, Quota> {
        if self.used >= self.quota || self.is_closed {
            return Err(Quota);
        }
        let index = match self.first_free {
            NONE => {
                // Only when none is free, so at most one per retired index beyond the quota.
                let index = u32::try_from(self.lines.len()).ok().filter(|index| *index < EXPECTED).ok_or(Quota)?;
                self.lines.push(Line::FRESH);
                index
            }
            free => {
                self.first_free = self.lines[free as usize].node;
                free
            }
        };
        self.used += 1;
        Ok(Handle { index, generation: self.lines[index as usize].generation })
    }

    /// Gives an index back: its handle is stale for ever.
    pub(super) fn give_back(&mut self, index: u32) {
        let line = &mut self.lines[index as usize];
        let generation = line.generation;
        // An index at its last generation never comes back: its next handle would be one that was used before.
        let comes_back = generation < self.last_generation;
        let next = if comes_back { generation + 1 } else { generation };
        *line = Line { generation: next, ..Line::FRESH };
        if comes_back {
            line.node = std::mem::replace(&mut self.first_free, index);
        }
        self.used -= 1;
        if let Some(ledger) = &self.ledger {
            ledger.leave(index, generation.saturating_add(1));
        }
    }

    /// Enters what a ledger says of the next index; the line of an entry is returned.
    pub(super) fn restore(&mut self, generation: u32, is_used: bool) -> &mut Line {
        let index = self.lines.len();
        self.lines.push(Line { generation, ..Line::FRESH });
        self.used += u32::from(is_used);
        // An index that may have been used up is not used again.
        if !is_used && generation < self.last_generation {
            self.lines[index].node = std::mem::replace(&mut self.first_free, index as u32);
        }
        &mut self.lines[index]
    }

    /// How many indices are used: those of entries that are held, and of entries that only stay.
    pub(super) fn used(&self) -> u32 {
        self.used
    }
}

impl Line {
    /// Whether `handle` names the entry here, as far as this index is its.
    pub(super) fn is(&self, handle: Handle) -> bool {
        self.state != State::Free && self.generation == handle.generation
    }

    /// Why a look-up by this handle finds nothing here.
    #[cold]
    fn refusal(&self, handle: Handle) -> Cause {
        if self.generation == handle.generation && self.state == State::Revoked {
            Cause::Revoked
        } else {
            Cause::StaleHandle
        }
    }
}
