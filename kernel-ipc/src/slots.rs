//! The slot machine of both ends: which call is where. No system calls, no memory that anybody shares.
//!
//! A slot carries one call at a time; `seq` numbers the calls of a slot and never wraps (R10). A new call is any seq
//! above the slot's last (R11), and acknowledges the reply before it. Every accepted call ends with exactly one
//! completion, and until then its slot is not used again, whatever its caller does (R13).
//!
//! ```text
//! client  Free ──begin──> Wanted ──complete──> Answered ──take──> Free
//!                           │ park, post
//!                           v
//!                 Parked, Posted ──complete──> Free          (what the late answer brought is released, R15)
//! host    Idle(last) ──accept: seq > last──> Busy ──finish──> Idle(seq)
//! ```

use crate::error::{Cause, Failure};
use crate::wire::{ExpectedHandle, Handle, Shape, Violation};

/// What the client knows of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// No call.
    Free,
    /// A caller waits.
    Wanted,
    /// The caller has gone; the answer is still to come.
    Parked,
    /// A one-way message: nobody waits, and it is to happen all the same.
    Posted,
    /// The answer is here; the caller has not taken it yet.
    Answered,
}

#[derive(Clone, Copy, Debug)]
struct ClientSlot {
    state: ClientState,
    /// Of the slot's latest call.
    seq: u64,
    /// Where in the ring that call stands.
    position: u64,
}

/// What a completion means to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A caller waits for it.
    Deliver,
    /// Nobody waits: release what it brought.
    Discard,
    /// Nobody waits, but it counts whether the message failed: release what it brought.
    Settle,
}

/// The client's slots.
#[derive(Debug)]
pub struct ClientSlots {
    slots: Box<[ClientSlot]>,
    /// Free normal slots; the one that was used last is on top, because its window is warm.
    free: Vec<u16>,
    free_control: Vec<u16>,
    shape: Shape,
}

impl ClientSlots {
    /// All slots free.
    pub fn new(shape: Shape) -> ClientSlots {
        let slot = ClientSlot { state: ClientState::Free, seq: 0, position: 0 };
        ClientSlots {
            slots: vec![slot; usize::from(shape.all_slots())].into(),
            free: (0..shape.slots).rev().collect(),
            free_control: (shape.slots..shape.all_slots()).rev().collect(),
            shape,
        }
    }

    /// Begins a call on a free normal slot: its slot and seq. `None`: every one is busy or parked. `position` is where
    /// the call will stand in the ring.
    pub fn begin(&mut self, position: u64) -> Option<(u16, u64)> {
        let slot = self.free.pop()?;
        Some((slot, self.begin_on(slot, position)))
    }

    /// As [`begin`](Self::begin), on a control slot.
    pub fn begin_control(&mut self, position: u64) -> Option<(u16, u64)> {
        let slot = self.free_control.pop()?;
        let seq = self.begin_on(slot, position);
        Some((slot, seq))
    }

    /// An answer has come.
    ///
    /// # Errors
    /// [`Violation::Unexpected`] unless the call is outstanding: the host lies.
    pub fn complete(&mut self, slot: u16, seq: u64) -> Result<Ended, Violation> {
        let entry = self.slots.get_mut(usize::from(slot)).ok_or(Violation::Slot)?;
        if entry.seq != seq {
            return Err(Violation::Unexpected);
        }
        match entry.state {
            ClientState::Wanted => {
                entry.state = ClientState::Answered;
                Ok(Ended::Deliver)
            }
            ClientState::Parked => {
                self.free(slot);
                Ok(Ended::Discard)
            }
            ClientState::Posted => {
                self.free(slot);
                Ok(Ended::Settle)
            }
            ClientState::Free | ClientState::Answered => Err(Violation::Unexpected),
        }
    }

    /// The caller has taken its answer; the slot is free.
    pub fn take(&mut self, slot: u16) {
        debug_assert_eq!(self.state(slot), ClientState::Answered);
        self.free(slot);
    }

    /// The call that was just begun is over, or was not made: nobody waits, and no answer will come.
    pub fn give_back(&mut self, slot: u16) {
        debug_assert_eq!(self.state(slot), ClientState::Wanted);
        self.free(slot);
    }

    /// The caller no longer waits. True when the answer is still to come, so a cancel should go out; false when it
    /// was there already: then the slot is free, and the caller releases what the answer brought.
    pub fn park(&mut self, slot: u16) -> bool {
        match self.state(slot) {
            ClientState::Wanted => {
                self.slots[usize::from(slot)].state = ClientState::Parked;
                true
            }
            ClientState::Answered => {
                self.free(slot);
                false
            }
            ClientState::Free | ClientState::Parked | ClientState::Posted => false,
        }
    }

    /// Nobody waits for the answer from now on. True when it is still to come; false when it was there already: then the
    /// slot is free, and the caller releases what the answer brought.
    pub fn post(&mut self, slot: u16) -> bool {
        let to_come = self.state(slot) == ClientState::Wanted;
        match to_come {
            true => self.slots[usize::from(slot)].state = ClientState::Posted,
            false => self.take(slot),
        }
        to_come
    }

    /// The session has ended: each call that waits is answered by that. Gives the slots and ring positions of those
    /// with a caller, and of one-way messages, whose slots are free.
    pub fn end(&mut self) -> Vec<(u16, u64)> {
        let mut waiting = Vec::new();
        for slot in 0..self.shape.all_slots() {
            let entry = &mut self.slots[usize::from(slot)];
            let position = entry.position;
            match entry.state {
                ClientState::Wanted => {
                    entry.state = ClientState::Answered;
                    waiting.push((slot, position));
                }
                ClientState::Posted => {
                    self.free(slot);
                    waiting.push((slot, position));
                }
                ClientState::Parked => self.free(slot),
                ClientState::Free | ClientState::Answered => {}
            }
        }
        waiting
    }

    /// Slots of all kinds whose call is still to be answered, wanted or not, and where the call stands in the ring.
    pub fn outstanding(&self) -> Vec<(u16, u64)> {
        let open =
            |entry: &ClientSlot| matches!(entry.state, ClientState::Wanted | ClientState::Parked | ClientState::Posted);
        (0..).zip(&*self.slots).filter(|(_, entry)| open(entry)).map(|(slot, entry)| (slot, entry.position)).collect()
    }

    /// An outstanding call stands elsewhere now: in another ring.
    pub fn moved(&mut self, slot: u16, position: u64) {
        self.slots[usize::from(slot)].position = position;
    }

    /// What the client knows of a slot.
    pub fn state(&self, slot: u16) -> ClientState {
        self.slots[usize::from(slot)].state
    }

    /// Seq of the slot's latest call.
    pub fn seq(&self, slot: u16) -> u64 {
        self.slots[usize::from(slot)].seq
    }

    /// Whether a normal slot is free.
    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    fn begin_on(&mut self, slot: u16, position: u64) -> u64 {
        let entry = &mut self.slots[usize::from(slot)];
        debug_assert_eq!(entry.state, ClientState::Free);
        // 2^64 calls on one slot take longer than any machine lives.
        *entry = ClientSlot { state: ClientState::Wanted, seq: entry.seq + 1, position };
        entry.seq
    }

    fn free(&mut self, slot: u16) {
        self.slots[usize::from(slot)].state = ClientState::Free;
        let list = if self.shape.is_control(slot) { &mut self.free_control } else { &mut self.free };
        list.push(slot);
    }
}

/// The host's slots: a row of last seqs, and which are busy; and what the last answers were to calls that depend on them.
#[derive(Debug)]
pub struct HostSlots {
    slots: Box<[HostSlot]>,
    /// By slot, as far as one was used that had something to remember.
    answers: Vec<LastAnswer>,
}

#[derive(Clone, Copy, Debug, Default)]
struct HostSlot {
    last: u64,
    busy: bool,
}

/// What the answer to the slot's call of this seq was. That of any other call brought nothing.
#[derive(Debug, Default)]
struct LastAnswer {
    seq: u64,
    brought: Vec<Handle>,
    failure: Option<Failure>,
}

/// What is known of a capability that a call [expects](ExpectedHandle) from an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brought {
    /// The earlier call is under way.
    NotYet,
    /// This is its handle.
    Here(Handle),
    /// It does not come: how a call that expects it fails.
    Never(Failure),
}

impl Brought {
    /// What an answer means to a call that expects its capability of this number.
    pub fn by(answer: Result<&[Handle], Failure>, number: u16) -> Brought {
        match answer.map(|brought| brought.get(usize::from(number))) {
            Ok(Some(handle)) => Brought::Here(*handle),
            Ok(None) => Brought::Never(Failure::not_executed(Cause::NotBrought)),
            Err(failure) => Brought::Never(failure.of_dependent()),
        }
    }
}

impl HostSlots {
    /// All slots idle; nothing was ever called.
    pub fn new(shape: Shape) -> HostSlots {
        HostSlots { slots: vec![HostSlot::default(); usize::from(shape.all_slots())].into(), answers: Vec::new() }
    }

    /// What a ledger says of a slot: the last call that began on it, whose answer is not owed any more.
    pub fn recovered(&mut self, slot: u16, last: u64) {
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            *entry = HostSlot { last, busy: false };
        }
    }

    /// A call has arrived. From now on the host owes it one completion.
    ///
    /// # Errors
    /// [`Violation::Slot`] for a slot that does not exist; [`Violation::Seq`] for a busy one, or a seq that is not
    /// above its last.
    pub fn accept(&mut self, slot: u16, seq: u64) -> Result<(), Violation> {
        let entry = self.slots.get_mut(usize::from(slot)).ok_or(Violation::Slot)?;
        if entry.busy || seq <= entry.last {
            return Err(Violation::Seq);
        }
        *entry = HostSlot { last: seq, busy: true };
        Ok(())
    }

    /// The call's completion is about to be published: at once the client may use the slot again.
    pub fn finish(&mut self, slot: u16) {
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            debug_assert!(entry.busy);
            entry.busy = false;
        }
    }

    /// The slot's last call is answered by capabilities, or has failed: for calls that depend on it. Any other answer brings
    /// nothing, and nothing has to be said.
    pub fn answered(&mut self, slot: u16, seq: u64, answer: Result<&[Handle], Failure>) {
        let index = usize::from(slot);
        if self.answers.len() <= index {
            self.answers.resize_with(index + 1, LastAnswer::default);
        }
        let last = &mut self.answers[index];
        last.seq = seq;
        last.failure = answer.err();
        last.brought.clear();
        last.brought.extend(answer.unwrap_or_default());
    }

    /// What is known of a capability that a call expects. Only the last call of each slot can bring one: a client uses a slot
    /// again when it has the answer, and knows then what that brought.
    pub fn brought(&self, expected: ExpectedHandle) -> Brought {
        let ExpectedHandle { slot, seq, number } = expected;
        match self.last(slot) {
            Some((last, busy)) if last as u32 == seq && last != 0 => match self.answers.get(usize::from(slot)) {
                _ if busy => Brought::NotYet,
                Some(answer) if answer.seq == last => {
                    Brought::by(answer.failure.map_or(Ok(&answer.brought), Err), number)
                }
                _ => Brought::by(Ok(&[]), number),
            },
            _ => Brought::by(Ok(&[]), number),
        }
    }

    /// Seq of the last call that was accepted on this slot, and whether it is in progress still. `None`: no such slot.
    pub fn last(&self, slot: u16) -> Option<(u64, bool)> {
        self.slots.get(usize::from(slot)).map(|entry| (entry.last, entry.busy))
    }

    /// Seq of the call that is in progress on this slot, if one is.
    pub fn in_progress(&self, slot: u16) -> Option<u64> {
        self.slots.get(usize::from(slot)).filter(|entry| entry.busy).map(|entry| entry.last)
    }
}
