//! One call, from before its handler to after it.

use std::cell::Cell;
use std::sync::atomic::Ordering::Release;

use super::layout::{WAIT, WAITS_AT, header, wait};
use super::reader::Place;
use super::{Served, SessionLog, monotonic};
use crate::error::Failure;
use crate::session::{Brief, Call, Response};
use crate::trace::{self, Open, Outcome, Within};

/// The call whose handler has the thread.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Running {
    /// 0: none has it.
    pub(super) place: u64,
    pub(super) session: u64,
    pub(super) slot: u16,
}

/// Watches one call.
pub(crate) struct Watch<'a> {
    log: &'a SessionLog,
    row: u16,
    slot: u16,
    trace: u64,
    /// When it was measured first; 0: not yet.
    since: Cell<u64>,
    measured: bool,
    /// Its entry of those that wait.
    entry: Cell<Option<u16>>,
    /// If it is traced.
    span: Option<Box<Open>>,
}

/// What the thread was at before a handler had it.
pub(crate) struct Before {
    running: Running,
    /// `None`: nobody asks.
    within: Option<Within>,
}

impl<'a> Watch<'a> {
    /// A handler is about to get this call.
    #[inline]
    pub(crate) fn begin(log: &'a SessionLog, (slot, seq): (u16, u64), call: &Call) -> Watch<'a> {
        let row = log.received(call.operation());
        let measured = log.is_measured(row);
        let since = Cell::new(if measured { monotonic() } else { 0 });
        let span = (call.seen().trace != 0).then(|| {
            let (seen, operation) = (call.seen(), call.operation());
            Box::new(log.span_begins(Served { seen, slot, seq, operation }))
        });
        Watch { log, row, slot, trace: call.trace(), since, measured, entry: Cell::new(None), span }
    }

    fn place(&self) -> u64 {
        Place { row: self.row, slot: self.slot }.to_word()
    }

    /// The handler has the thread from now on, and it is written that it does.
    #[inline]
    pub(crate) fn enters(&self) -> Before {
        let (book, session, place) = (&self.log.book, self.log.session, self.place());
        let running = book.running.replace(Running { place, session, slot: self.slot });
        book.store(header::RUNNING, place);
        Before { running, within: self.enter() }
    }

    /// It has it no more. When it first waits it is written since when.
    #[inline]
    pub(crate) fn leaves(&self, before: Before, is_pending: bool) {
        if let Some(outer) = before.within {
            trace::enter(outer);
        }
        self.log.book.running.set(before.running);
        self.log.book.store(header::RUNNING, before.running.place);
        if is_pending && self.since.get() == 0 {
            self.since.set(monotonic());
        }
        if is_pending && self.entry.get().is_none() {
            self.waits();
        }
    }

    /// What the handler calls belongs to its call. Gives what the thread was at; `None`: nobody asks.
    #[inline]
    fn enter(&self) -> Option<Within> {
        match &self.span {
            _ if !trace::is_on() => None,
            Some(open) => Some(trace::enter(Within::span(open))),
            None => Some(trace::enter(Within::UNTRACED)),
        }
    }

    /// The handler has answered.
    #[inline]
    pub(crate) fn end(self, operation: u16, outcome: Outcome) {
        let log = self.log;
        if let Some(open) = &self.span {
            log.span_ends(open, operation, outcome);
        }
        log.ended(self.row, outcome);
        if self.since.get() != 0 {
            let took = monotonic().saturating_sub(self.since.get());
            if self.measured { log.took(self.row, took) } else { log.took_at_least(self.row, took) }
        }
    }

    fn waits(&self) {
        let (log, place) = (self.log, self.place());
        let Some(entry) = log.book.free_waits.borrow_mut().pop() else {
            return log.book.add(header::WAITS_MISSED, 1);
        };
        let at = WAITS_AT + usize::from(entry) * WAIT;
        log.book.store(at + wait::SINCE, self.since.get());
        log.book.store(at + wait::TRACE, self.trace);
        // Release pairs with the reader's Acquire.
        log.book.memory.store_u64(at + wait::PLACE, place, Release);
        self.entry.set(Some(entry));
    }
}

impl From<&Response> for Outcome {
    #[inline]
    fn from(response: &Response) -> Outcome {
        match (response.failure, response.operation_error) {
            (Some(failure), _) => Outcome::Failed(failure),
            (None, Some(number)) => Outcome::OperationError(number),
            (None, None) => Outcome::Done,
        }
    }
}

impl From<&Result<Brief, Failure>> for Outcome {
    #[inline]
    fn from(answer: &Result<Brief, Failure>) -> Outcome {
        match answer {
            Err(failure) => Outcome::Failed(*failure),
            Ok(Brief { operation_error: Some(number), .. }) => Outcome::OperationError(*number),
            Ok(_) => Outcome::Done,
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.get() {
            self.log.book.store(WAITS_AT + usize::from(entry) * WAIT + wait::PLACE, 0);
            self.log.book.free_waits.borrow_mut().push(entry);
        }
    }
}
