//! What a finished handler's answer goes through: what it gives is entered into the session's tables, it is committed if it
//! is kept, and published. An answer that cannot be given takes back what it had entered.

use super::cell::SlotCell;
use super::names::{Names, extent_of};
use super::{Inner, Lent};
use crate::error::{Cause, Executed, Failure};
use crate::interface::Retry;
use crate::lease::Lend;
use crate::ledger::Tag;
use crate::link::Body;
use crate::session::{Brief, Call, Grant, Response, Service};
use crate::steps;
use crate::wire::{Handle, LeaseName, Status, Submission, Violation};

impl<S: Service> Inner<S> {
    /// Answers with what the service said.
    #[inline]
    pub(super) fn finish(&self, slot: u16, cell: &SlotCell, call: &mut Call, response: Response) {
        let is_short = response.failure.is_none()
            && response.grants.is_empty()
            && response.lends.is_empty()
            && response.payload.len() <= self.shape.window_bytes as usize;
        if is_short && cell.direct.is_awaited() && self.ended.get().is_none() {
            let Response { operation_error, payload, .. } = response;
            let status = operation_error.map_or(Status::Done, Status::OperationError);
            self.is_answered((slot, call.seq), status, &[]);
            cell.direct.answer(operation_error, payload);
            steps::reach("reply/published");
        } else {
            self.send(slot, call, response, is_short);
        }
    }

    /// Answers over the link with what was said at once.
    #[inline]
    pub(super) fn finish_brief(&self, slot: u16, cell: &SlotCell, call: &mut Call, answer: Result<Brief, Failure>) {
        match &answer {
            Ok(Brief { operation_error, payload })
                if payload.len() <= self.shape.window_bytes as usize && self.ended.get().is_none() =>
            {
                let status = operation_error.map_or(Status::Done, Status::OperationError);
                let kept = self.is_kept(call.operation, status);
                self.send_short(&answered(slot, call), call, (status, payload), kept);
            }
            _ => self.finish(slot, cell, call, answer.into()),
        }
    }

    /// Sends an answer that brings nothing but its payload. The session has not ended, or it is not kept.
    #[inline]
    fn send_short(&self, to: &Submission, call: &mut Call, (status, payload): (Status, &[u8]), kept: bool) {
        if !kept {
            return self.publish(to, status, (&[], &[]), payload, false);
        }
        match self.commit(to, call.handle, &call.effect, (&[], &[]), payload) {
            Ok(()) => self.publish(to, status, (&[], &[]), payload, true),
            Err(failure) => {
                self.remember(call.effect.take());
                self.publish(to, Status::Failed(failure), (&[], &[]), &[], false);
            }
        }
    }

    /// Whether the reply of a call that ends so is kept.
    #[inline]
    fn is_kept(&self, operation: u16, status: Status) -> bool {
        self.survival.is_some()
            && status == Status::Done
            && S::INTERFACE.operation(operation).is_some_and(|operation| operation.retry == Retry::Cached)
    }

    /// The same over the link.
    fn send(&self, slot: u16, call: &mut Call, response: Response, is_short: bool) {
        let submission = answered(slot, call);
        let status = response.operation_error.map_or(Status::Done, Status::OperationError);
        let kept = response.failure.is_none() && self.is_kept(call.operation, status);
        // Looked at where it stands: most are short, and not worth moving.
        if is_short && (!kept || self.ended.get().is_none()) {
            return self.send_short(&submission, call, (status, &response.payload), kept);
        }
        let seq = call.seq;
        let Response { payload, grants, lends, failure, .. } = response;
        let mut names = Names::default();
        let outcome = match failure {
            Some(failure) => Err(failure),
            None if self.ended.get().is_some() => {
                // What it did counts for the others, though nobody hears the answer.
                self.remember(call.effect.take());
                Err(Failure::unknown(Cause::SessionClosed))
            }
            None => self.name(&submission, &payload, (call.handle, &grants), lends, &mut names),
        };
        steps::reach("reply/named");
        let outcome = outcome.and_then(|()| match kept {
            true => self.commit(&submission, call.handle, &call.effect, (names.leases(), names.handles()), &payload),
            false => Ok(()),
        });
        if !kept && outcome.is_ok() && status == Status::Done && !grants.is_empty() {
            // Its reply is not kept, but what it grants is: from before the client can use it.
            self.applied(slot, seq);
        }
        if outcome.is_err() {
            self.unname(&names);
            // What was done was done, whatever its caller hears.
            self.remember(call.effect.take());
        }
        match outcome {
            Ok(()) => self.publish(&submission, status, (names.leases(), names.handles()), &payload, kept),
            Err(failure) => {
                for grant in &grants {
                    self.service.dropped(&self.info, grant);
                }
                self.publish(&submission, Status::Failed(failure), (&[], &[]), &[], false);
            }
        }
    }

    /// Answers, and applies what was committed.
    #[inline]
    fn publish(
        &self,
        call: &Submission,
        status: Status,
        (leases, capabilities): (&[LeaseName], &[Handle]),
        payload: &[u8],
        is_committed: bool,
    ) {
        let answered = self.answer(call, status, leases, capabilities, payload);
        steps::reach("reply/published");
        if is_committed {
            self.applied(call.slot, call.seq);
            steps::reach("reply/applied");
        }
        if let Err(violation) = answered {
            self.end(Some(violation));
        }
    }

    /// Enters what a reply gives into the session's tables. After an error, [`unname`](Self::unname) what was entered.
    fn name(
        &self,
        call: &Submission,
        payload: &[u8],
        (target, grants): (Handle, &[Grant]),
        lends: Vec<Lend>,
        names: &mut Names,
    ) -> Result<(), Failure> {
        let ran = |cause| Failure { cause, executed: Executed::Yes };
        let extent = extent_of(lends.len(), grants.len(), payload.len());
        if extent.is_none_or(|extent| extent.check(self.shape.window_bytes).is_err()) {
            return Err(ran(Cause::ReplyTooLarge));
        }
        for grant in grants {
            let tag = Tag::Call { slot: call.slot, seq: call.seq };
            let handle = self.shared.realm.borrow_mut().grant(self.member, target.index, *grant, tag);
            names.push_handle(handle.map_err(|quota| ran(quota.into()))?);
        }
        if lends.is_empty() { Ok(()) } else { self.lend(call, target, lends, names).map_err(ran) }
    }

    /// Takes back what an answer that is not given had entered.
    pub(super) fn unname(&self, names: &Names) {
        for handle in names.handles() {
            let _ = self.shared.realm.borrow_mut().release(self.member, *handle);
        }
        self.take_back(names.leases()).for_each(drop);
    }

    fn lend(&self, call: &Submission, target: Handle, lends: Vec<Lend>, names: &mut Names) -> Result<(), Cause> {
        let lender = self.lender.as_ref().ok_or(Cause::Refused)?;
        for lend in lends {
            let call = self.survival.as_ref().map(|_| ((self.info.id, call.slot, call.seq), target));
            let name = lender.borrow_mut().lend_for(self.info.client, lend, call)?;
            self.has_lent(name.index, name.generation, Some(target.index));
            names.push_lease(name);
        }
        Ok(())
    }

    /// The client holds this lease from now on. `by` is the entry of the call that brought it.
    pub(super) fn has_lent(&self, index: u32, generation: u32, by: Option<u32>) {
        if let Some(by) = by {
            self.shared.realm.borrow_mut().lent(self.member, by);
        }
        self.has_out(index, generation, by);
    }

    /// The client holds this lease, and that it does is counted at the entry that it came by.
    pub(super) fn has_out(&self, index: u32, generation: u32, by: Option<u32>) {
        let mut lent = self.lent.borrow_mut();
        let index = index as usize;
        if lent.len() <= index {
            lent.resize(index + 1, Lent::default());
        }
        lent[index] = Lent { generation, by: by.map_or(0, |by| by + 1) };
    }

    /// Publishes a completion; the slot is idle again.
    pub(super) fn answer(
        &self,
        call: &Submission,
        status: Status,
        leases: &[LeaseName],
        capabilities: &[Handle],
        payload: &[u8],
    ) -> Result<(), Violation> {
        if self.ended.get().is_some() {
            return Ok(());
        }
        self.is_answered((call.slot, call.seq), status, capabilities);
        let completion = self.completion(call, status, leases, capabilities, payload).ok_or(Violation::Length)?;
        let payload = if completion.extent.is_inline() { &[] } else { payload };
        self.reconnect.answers(call.slot);
        self.link.send(&completion.to_raw(), call.slot, &Body { leases, capabilities, payload })
    }

    /// The slot is idle again, and those hear of it that depend on its call.
    #[inline]
    fn is_answered(&self, (slot, seq): (u16, u64), status: Status, capabilities: &[Handle]) {
        self.slots.borrow_mut().finish(slot);
        let brings_nothing = capabilities.is_empty() && matches!(status, Status::Done);
        if !brings_nothing || self.dependents.await_some(slot) {
            self.dependents_hear((slot, seq), status, capabilities);
        }
    }

    /// The call in progress has been answered: nothing depends on it any more.
    #[inline]
    pub(super) fn was_answered(&self, cell: &SlotCell) {
        let mut is_waited_for = false;
        let mut realm = self.shared.realm.borrow_mut();
        cell.for_each_use(|index| is_waited_for |= realm.ended(self.member, index));
        drop(realm);
        if is_waited_for {
            // Before whoever waits for it answers somebody else: a revoke that has returned is heard after this.
            self.link.publish();
            self.shared.was_answered();
        }
    }
}

/// What an answer to this call says of it.
#[inline]
fn answered(slot: u16, call: &Call) -> Submission {
    Submission { slot, seq: call.seq, operation: call.operation, trace: call.trace, ..Submission::default() }
}
