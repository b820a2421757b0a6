//! How a request becomes a call: it is laid out, takes a slot, and is published once.

use super::Inner;
use crate::error::{Cause, Failure};
use crate::link::Body;
use crate::session::Request;
use crate::session::call::wire_deadline;
use crate::session::host::extent_of;
use crate::steps;
use crate::trace::Outcome;
use crate::wire::{Extent, Submission, inline_words};

impl Inner {
    /// How a request lies in a window; `None`: it does not fit.
    #[inline]
    pub(super) fn extent(&self, request: &Request<'_>) -> Option<Extent> {
        let extent = extent_of(request.leases.len(), request.capabilities.len(), request.payload.len());
        extent.filter(|extent| extent.check(self.shape.window_bytes).is_ok())
    }

    /// What can be said of a call before it has a slot: its extent, and its deadline as on the wire.
    pub(super) fn admit(&self, request: &Request<'_>) -> Result<(Extent, u64), Failure> {
        Ok((self.fits(request)?, wire_deadline(request.deadline)))
    }

    /// The same without the deadline.
    #[inline]
    pub(super) fn fits(&self, request: &Request<'_>) -> Result<Extent, Failure> {
        let extent = self.extent(request).ok_or(Failure::not_executed(Cause::BadArguments))?;
        if request.deadline.is_some_and(|limit| limit.is_zero()) {
            return Err(Failure::not_executed(Cause::Deadline));
        }
        if !request.leases.is_empty() && self.is_beyond.get() && self.arguments.get().is_none() {
            // Nobody could bring it to the host.
            return Err(Failure::not_executed(Cause::StaleLease));
        }
        Ok(extent)
    }

    /// Publishes a call on a free slot: which, and its seq.
    pub(super) fn submit(&self, request: &Request<'_>, extent: Extent, deadline: u64) -> Result<(u16, u64), Failure> {
        if request.is_dependent() {
            return self.submit_dependent(request, extent, deadline);
        }
        self.publish(request, extent, deadline)
    }

    /// The same of a call that names what others bring: by its handle, where that is known.
    #[cold]
    fn submit_dependent(&self, request: &Request<'_>, extent: Extent, deadline: u64) -> Result<(u16, u64), Failure> {
        let (handle, arguments) = self.resolve_all(request)?;
        let capabilities = &arguments[..request.capabilities.len()];
        let (slot, seq) = self.publish(&Request { handle, capabilities, ..*request }, extent, deadline)?;
        if let Some(survival) = &self.survival {
            let named = capabilities.iter().chain([&handle]).filter_map(|handle| handle.expected());
            let outcomes = named.filter_map(|expected| Some((expected, self.earlier.outcome(expected)?)));
            survival.depends(slot, outcomes.collect());
        }
        Ok((slot, seq))
    }

    #[inline]
    fn publish(&self, request: &Request<'_>, extent: Extent, deadline: u64) -> Result<(u16, u64), Failure> {
        let begun = self.slots.borrow_mut().begin(self.link.borrow().sent());
        let (slot, seq) = begun.ok_or(Failure::not_executed(Cause::BUSY))?;
        let submission = Submission {
            slot,
            operation: request.operation,
            seq,
            extent,
            handle: request.handle,
            deadline,
            trace: self.log_begins(slot, seq, request.operation),
            inline: inline_words(request.payload),
        };
        let payload = if extent.is_inline() { &[] } else { request.payload };
        let body = Body { leases: request.leases, capabilities: request.capabilities, payload };
        if let Some(survival) = &self.survival {
            survival.remember(&submission, request.retry);
        }
        let cell = &self.cells[slot];
        cell.deadline.set(deadline);
        cell.is_late.set(false);
        cell.is_near.set(false);
        if let Some(arguments) = self.arguments.get() {
            arguments.named(slot, request.leases);
        }
        if self.link.borrow().send(&submission.to_raw(), slot, &body).is_err() {
            self.slots.borrow_mut().park(slot);
            self.log_ended(slot, || Outcome::GivenUp);
            self.broken();
            return Err(Failure::not_executed(Cause::ProtocolViolation));
        }
        steps::reach("call/published");
        if deadline < self.timer_at.get() && deadline != 0 {
            self.arm(deadline);
        }
        self.log_called(slot, request, deadline);
        Ok((slot, seq))
    }
}
