//! What a call goes through before its handler: it is read once, checked, and handed to its slot.

use super::Inner;
use super::dependent::Rest;
use super::turns::Turn;
use crate::described::DESCRIBE;
use crate::error::{Cause, Failure};
use crate::logbook::Seen;
use crate::runtime;
use crate::session::{Service, now};
use crate::steps;
use crate::wire::{Handle, LeaseName, Status, Submission, Violation, inline_bytes};

impl<S: Service> Inner<S> {
    /// Serves what has come. True if anything had.
    pub(super) fn receive_all(&self) -> bool {
        let mut turn = self.turns.begin();
        // At most a ring at a time: a client that never stops calling must not keep the thread here.
        for round in 0..self.shape.ring_entries() {
            if turn.is_over() {
                break;
            }
            if !self.begin_ready() || self.ended.get().is_some() {
                return true;
            }
            let Some(raw) = self.link.receive() else {
                if round > 0 {
                    break;
                }
                if let Some(violation) = self.link.broken() {
                    self.end(Some(violation));
                    return true;
                }
                let closed = self.link.is_closed_by_peer();
                if closed {
                    self.end(None);
                }
                return closed;
            };
            self.turns.received();
            let accepted = if self.awaits_offers() {
                self.offered(&raw)
            } else if self.awaits_resume() {
                self.resume(&raw)
            } else {
                match &Submission::check(&raw, self.shape) {
                    Ok(call) => self.accept(call, &mut turn),
                    Err(violation) => Err(*violation),
                }
            };
            if let Err(violation) = accepted {
                self.end(Some(violation));
            }
            if self.ended.get().is_some() {
                return true;
            }
        }
        self.turns.end(&turn, &*self.link);
        true
    }

    /// Receives one descriptor's call: it is refused at once, answered at once (control), or handed to its slot.
    fn accept(&self, call: &Submission, turn: &mut Turn) -> Result<(), Violation> {
        self.slots.borrow_mut().accept(call.slot, call.seq)?;
        steps::reach("call/read");
        if self.shape.is_control(call.slot) {
            self.control(call)?;
            self.quiet.answered(call.operation);
            return self.answer(call, Status::Done, &[], &[], &[]);
        }
        self.reconnect.reads(call.slot);
        let seen = self.log_saw(call);
        if let Err(cause) = turn.admit(&self.turns, call) {
            return self.refuse(call, seen, Failure::not_executed(cause));
        }
        if call.handle.is_expected() || call.extent.capabilities > 0 {
            return self.accept_naming(call, seen);
        }
        self.begin(call, Rest::Window, seen)
    }

    /// Begins a call whose handles are all known: it is refused or answered at once, or handed to its slot.
    pub(super) fn begin(&self, call: &Submission, rest: Rest<'_>, seen: Seen) -> Result<(), Violation> {
        match self.check(call, rest, seen) {
            Ok(()) => {
                self.start(call.slot);
                Ok(())
            }
            Err(Cause::UnknownOperation) if call.operation == DESCRIBE => self.describe(call, rest),
            Err(Cause::UnknownOperation) => self.standard(call, rest),
            Err(cause) => self.refuse(call, seen, Failure::not_executed(cause)),
        }
    }

    /// Answers a call that does not begin.
    pub(super) fn refuse(&self, call: &Submission, seen: Seen, failure: Failure) -> Result<(), Violation> {
        self.log_refused(call, seen, failure);
        self.answer(call, Status::Failed(failure), &[], &[], &[])
    }

    /// Everything that the service need not check, and the copy of the arguments into the slot's call object.
    fn check(&self, submission: &Submission, rest: Rest<'_>, seen: Seen) -> Result<(), Cause> {
        let operation = S::INTERFACE.operation(submission.operation).ok_or(Cause::UnknownOperation)?;
        self.begun(submission, operation.retry);
        if submission.deadline != 0 && submission.deadline <= now() {
            return Err(Cause::Deadline);
        }
        let mut realm = self.shared.realm.borrow_mut();
        let target = *realm.lookup(self.member, submission.handle, operation.target_kind, operation.requires, now)?;
        if usize::from(submission.extent.capabilities) != operation.handles.len() {
            return Err(Cause::BadArguments);
        }

        let cell = &self.cells[submission.slot];
        let mut idle = cell.call.borrow_mut();
        let call = idle.as_mut().expect("a slot that accepts a call has no handler");
        call.operation = submission.operation;
        call.handle = submission.handle;
        call.effect.take();
        call.target = target;
        call.deadline = submission.deadline;
        call.trace = submission.trace;
        call.seen = seen;
        call.capabilities.clear();
        call.leases.clear();
        let mut uses = cell.uses.borrow_mut();
        uses.clear();
        uses.push(submission.handle.index);
        for i in 0..submission.extent.leases {
            let mut name = [0; LeaseName::BYTES];
            self.read(submission.slot, rest, usize::from(i) * LeaseName::BYTES, &mut name);
            call.leases.push(LeaseName::from_bytes(name));
        }
        for (i, argument) in operation.handles.iter().enumerate() {
            let mut handle = [0; Handle::BYTES];
            let offset = submission.extent.capabilities_offset() + i * Handle::BYTES;
            self.read(submission.slot, rest, offset, &mut handle);
            let handle = Handle::from_word(u64::from_le_bytes(handle));
            call.capabilities.push(*realm.lookup(self.member, handle, argument.kind, argument.requires, now)?);
            uses.push(handle.index);
        }
        uses.iter().for_each(|index| realm.begun(self.member, *index));
        self.read_payload(submission, rest, &mut call.payload);
        self.runs(submission.slot, call);
        steps::reach("call/begun");
        Ok(())
    }

    pub(super) fn read_payload(&self, submission: &Submission, rest: Rest<'_>, payload: &mut Vec<u8>) {
        let length = submission.extent.length as usize;
        payload.clear();
        if submission.extent.is_inline() {
            payload.extend(inline_bytes(submission.inline).iter().take(length));
        } else {
            payload.resize(length, 0);
            self.read(submission.slot, rest, submission.extent.payload_offset(), payload);
        }
    }

    /// Copies from where the rest of a call stands.
    #[inline]
    fn read(&self, slot: u16, rest: Rest<'_>, offset: usize, bytes: &mut [u8]) {
        match rest {
            Rest::Window => self.link.read_window(slot, offset, bytes),
            Rest::Copy(copy) => bytes.copy_from_slice(&copy[offset..][..bytes.len()]),
        }
    }

    /// Hands the slot's call object to the slot's task.
    fn start(&self, slot: u16) {
        let cell = &self.cells[slot];
        cell.cancel.reset();
        cell.ready.set(true);
        let task = cell.task.take().or_else(|| self.this.upgrade().map(|this| runtime::spawn(this.run_slot(slot))));
        if let Some(task) = &task {
            // At once, not by its waker: the task is at the place where it waits for the next call, and the way through
            // the run queue would be a tenth of a call's cost. A handler runs in its session's poll, therefore, until it
            // waits for something.
            task.run_now();
        }
        cell.task.set(task);
    }
}
