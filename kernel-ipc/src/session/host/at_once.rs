//! Calls of operations that are answered at once. Their handlers are functions: one is served where it is read, without a lane, and
//! if its client is in this very thread without a slot.

use super::Inner;
use super::cell::SlotCell;
use super::dependent::Rest;
use crate::error::{Cause, Executed, Failure};
use crate::interface::Operation;
use crate::logbook::{Seen, Watch};
use crate::session::call::LATER;
use crate::session::{Brief, Call, Request, Service};
use crate::steps;
use crate::wire::{Extent, Submission};

/// What a logbook says of a call that has none.
const NO_SLOT: u16 = u16::MAX;

impl<S: Service> Inner<S> {
    /// Serves a slot's call, which has passed its checks.
    #[inline]
    pub(super) fn serve_at_once(&self, slot: u16, cell: &SlotCell, mut call: Box<Call>) {
        cell.cancel.reset();
        let answer = self.respond(slot, &call);
        self.finish_brief(slot, cell, &mut call, answer);
        self.was_answered(cell);
        cell.call.set(Some(call));
        self.begin_ready();
    }

    /// Checks and serves a call that has no slot. `None`: it calls again while another one is served, and waits for its turn.
    #[inline]
    pub(super) fn serve_aside(
        &self,
        operation: &Operation,
        request: &Request<'_>,
        extent: Extent,
    ) -> Option<Result<Brief, Failure>> {
        let cell = self.aside.get_or_init(|| Box::new(SlotCell::new(&self.info)));
        let mut call = cell.call.take()?;
        steps::reach("call/read");
        let deadline = request.deadline.map_or(0, |limit| {
            cell.cancel.waits(limit);
            LATER
        });
        let (number, handle) = (request.operation, request.handle);
        let submission = Submission { operation: number, extent, handle, deadline, ..Submission::default() };
        let checked =
            self.check_names(cell, operation, (&mut call, &submission), Rest::Request(request), Seen::default());
        if let Err(cause) = checked {
            cell.call.set(Some(call));
            let failure = Failure::not_executed(cause);
            self.log_refused(&submission, Seen::default(), failure);
            return Some(Err(failure));
        }
        cell.cancel.reset();
        let answer = self.respond(NO_SLOT, &call);
        self.was_answered(cell);
        cell.call.set(Some(call));
        if self.ended.get().is_some() {
            // By its own handler: nobody hears an answer, as over any link.
            return Some(Err(Failure::unknown(Cause::SessionClosed)));
        }
        match &answer {
            Ok(Brief { payload, .. }) if payload.len() > self.shape.window_bytes as usize => {
                Some(Err(Failure { cause: Cause::ReplyTooLarge, executed: Executed::Yes }))
            }
            _ => Some(answer),
        }
    }

    /// Lets the handler answer, in sight of whoever looks into the logbook.
    #[inline]
    fn respond(&self, slot: u16, call: &Call) -> Result<Brief, Failure> {
        let answer = match self.log.get() {
            None => self.service.serve_at_once(call),
            Some(log) => {
                let watch = Watch::begin(log, (slot, call.seq), call);
                let outer = watch.enters();
                let answer = self.service.serve_at_once(call);
                watch.leaves(outer, false);
                watch.end(call.operation, (&answer).into());
                answer
            }
        };
        steps::reach("call/served");
        answer
    }
}
