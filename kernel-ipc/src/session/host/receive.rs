//! What a call goes through before its handler: it is read once, checked, and handed to its slot.

use super::Inner;
use super::cell::SlotCell;
use super::dependent::Rest;
use super::turns::Turn;
use crate::capability::Realm;
use crate::described::DESCRIBE;
use crate::error::{Cause, Failure};
use crate::interface::Operation;
use crate::logbook::Seen;
use crate::session::call::LATER;
use crate::session::{Call, Grant, Service, now};
use crate::steps;
use crate::wire::{Handle, LeaseName, MAX_CAPABILITIES, Status, Submission, Violation, inline_bytes};

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
        let cell = &self.cells[call.slot];
        let mut to_serve = cell.take();
        let checked = self.check(cell, (&mut to_serve, call), rest, seen);
        if let Ok(operation) = checked
            && S::ANSWERS_AT_ONCE
            && operation.at_once
            && to_serve.leases.is_empty()
        {
            self.serve_at_once(call.slot, cell, to_serve);
            return Ok(());
        }
        cell.call.set(Some(to_serve));
        match checked {
            Ok(_) => {
                self.start(call.slot, cell);
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
    fn check(
        &self,
        cell: &SlotCell,
        (call, submission): (&mut Call, &Submission),
        rest: Rest<'_>,
        seen: Seen,
    ) -> Result<&'static Operation, Cause> {
        let operation = S::INTERFACE.operation(submission.operation).ok_or(Cause::UnknownOperation)?;
        self.begun(submission, operation.retry);
        if submission.deadline != 0 && submission.deadline <= now() {
            return Err(Cause::Deadline);
        }
        self.check_names(cell, operation, (call, submission), rest, seen)?;
        // No time that a client can send is the word for one that nobody has looked at.
        cell.cancel.begins(submission.deadline.min(LATER - 1));
        Ok(operation)
    }

    /// The same, but for what a call that was made this moment cannot have missed.
    pub(super) fn check_names(
        &self,
        cell: &SlotCell,
        operation: &Operation,
        (call, submission): (&mut Call, &Submission),
        rest: Rest<'_>,
        seen: Seen,
    ) -> Result<(), Cause> {
        let mut realm = self.shared.realm.borrow_mut();
        let target = *realm.lookup(self.member, submission.handle, operation.target_kind, operation.requires, now)?;
        if usize::from(submission.extent.capabilities) != operation.handles.len() {
            return Err(Cause::BadArguments);
        }
        call.operation = submission.operation;
        call.seq = submission.seq;
        call.handle = submission.handle;
        call.forget_effect();
        call.target = target;
        call.trace = submission.trace;
        call.seen = seen;
        call.cancel.begins(submission.deadline);
        call.leases.clear();
        for i in 0..submission.extent.leases {
            call.leases.push(self.lease(submission, rest, usize::from(i)));
        }
        cell.target.set(submission.handle.index);
        self.look_up_arguments(cell, operation, &realm, &mut call.capabilities, |i| self.handle(submission, rest, i))?;
        cell.for_each_use(|index| realm.begun(self.member, index));
        self.read_payload(submission, rest, &mut call.payload);
        self.runs(submission.slot, call);
        steps::reach("call/begun");
        Ok(())
    }

    /// Looks up the handle arguments of a call, which are as many as its operation has.
    #[inline]
    fn look_up_arguments(
        &self,
        cell: &SlotCell,
        operation: &Operation,
        realm: &Realm,
        capabilities: &mut Vec<Grant>,
        handle: impl Fn(usize) -> Handle,
    ) -> Result<(), Cause> {
        capabilities.clear();
        if operation.handles.is_empty() {
            cell.names_none();
            return Ok(());
        }
        let mut named = [0; MAX_CAPABILITIES];
        let named = &mut named[..operation.handles.len()];
        for (i, (argument, index)) in operation.handles.iter().zip(&mut *named).enumerate() {
            let handle = handle(i);
            capabilities.push(*realm.lookup(self.member, handle, argument.kind, argument.requires, now)?);
            *index = handle.index;
        }
        cell.names(named.iter().copied());
        Ok(())
    }

    /// The lease argument of this number.
    fn lease(&self, submission: &Submission, rest: Rest<'_>, i: usize) -> LeaseName {
        let mut name = [0; LeaseName::BYTES];
        match rest {
            Rest::Request(request) => return request.leases[i],
            _ => self.read(submission.slot, rest, i * LeaseName::BYTES, &mut name),
        }
        LeaseName::from_bytes(name)
    }

    /// The handle argument of this number.
    fn handle(&self, submission: &Submission, rest: Rest<'_>, i: usize) -> Handle {
        let mut handle = [0; Handle::BYTES];
        let offset = submission.extent.capabilities_offset() + i * Handle::BYTES;
        match rest {
            Rest::Request(request) => return request.capabilities[i],
            _ => self.read(submission.slot, rest, offset, &mut handle),
        }
        Handle::from_word(u64::from_le_bytes(handle))
    }

    #[inline]
    pub(super) fn read_payload(&self, submission: &Submission, rest: Rest<'_>, payload: &mut Vec<u8>) {
        let length = submission.extent.length as usize;
        payload.clear();
        if let Rest::Request(request) = rest {
            payload.extend_from_slice(request.payload);
        } else if submission.extent.is_inline() {
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
            Rest::Request(_) => {}
        }
    }
}
