//! Calls of a client in this very thread, without the link between.
//!
//! A call goes through the checks of any other and runs on its slot. What is known when [`call`](Near::call) returns goes back
//! as its value, if it is short; everything else over the link.

use std::cell::Cell;

use super::Inner;
use super::dependent::Rest;
use crate::error::Failure;
use crate::logbook::Seen;
use crate::session::near::{Called, Near};
use crate::session::{Brief, Payload, Request, Service};
use crate::steps;
use crate::wire::{Extent, Submission};

/// Where the answer of a slot's call goes, if not over the link.
#[derive(Default)]
pub(super) struct Direct {
    /// To the caller, who has not returned yet.
    is_awaited: Cell<bool>,
    /// It is there: its operation's error, and its payload.
    answer: Cell<Option<(Option<u16>, Payload)>>,
}

impl Direct {
    /// Whether the caller is there to take an answer.
    #[inline]
    pub(super) fn is_awaited(&self) -> bool {
        self.is_awaited.get()
    }

    #[inline]
    pub(super) fn answer(&self, operation_error: Option<u16>, payload: Payload) {
        self.is_awaited.set(false);
        self.answer.set(Some((operation_error, payload)));
    }
}

impl<S: Service> Near for Inner<S> {
    fn call(&self, call: &Submission, request: &Request<'_>, answered: &mut dyn FnMut(Option<u16>, &[u8])) -> Called {
        let Some(operation) = S::INTERFACE.operation(call.operation).filter(|_| self.is_near_turn()) else {
            return Called::NotBegun;
        };
        if self.slots.borrow_mut().accept(call.slot, call.seq).is_err() {
            return Called::NotBegun;
        }
        steps::reach("call/read");
        let cell = &self.cells[call.slot];
        let mut to_serve = cell.take();
        let checked = self.check_names(cell, operation, (&mut to_serve, call), Rest::Request(request), Seen::default());
        cell.call.set(Some(to_serve));
        if let Err(cause) = checked {
            let failure = Failure::not_executed(cause);
            self.log_refused(call, Seen::default(), failure);
            self.slots.borrow_mut().finish(call.slot);
            return Called::Refused(failure);
        }
        if let Some(limit) = request.deadline {
            cell.cancel.waits(limit);
        }
        cell.direct.is_awaited.set(true);
        self.start(call.slot, cell);
        if cell.direct.is_awaited.replace(false) {
            return Called::Begun { deadline: cell.cancel.deadline() };
        }
        match cell.direct.answer.take() {
            Some((operation_error, payload)) => {
                answered(operation_error, &payload);
                Called::Answered
            }
            None => Called::Begun { deadline: cell.cancel.deadline() },
        }
    }

    fn call_at_once(&self, request: &Request<'_>, extent: Extent) -> Option<Result<Brief, Failure>> {
        let operation = S::INTERFACE.operation(request.operation)?;
        match S::ANSWERS_AT_ONCE && operation.at_once && self.is_near_turn() {
            true => self.serve_aside(operation, request, extent),
            false => None,
        }
    }
}

impl<S: Service> Inner<S> {
    /// Whether a call that is made now is the next one.
    #[inline]
    fn is_near_turn(&self) -> bool {
        self.ended.get().is_none()
            && !self.is_held.get()
            // Replies that are kept go over the link.
            && self.survival.is_none()
            && !self.dependents.are_ready()
            && self.link.unread() == 0
    }
}
