//! One call, from before its handler to after it.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering::Release;
use std::task::Poll;

use super::layout::{WAIT, WAITS_AT, header, wait};
use super::reader::Place;
use super::{Served, SessionLog, monotonic};
use crate::session::{Call, Response};
use crate::trace::{self, Open, Outcome, Within};

/// The call whose handler has the thread.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Running {
    /// 0: none has it.
    pub(super) place: u64,
    pub(super) session: u64,
    pub(super) slot: u16,
}

/// Watches one call. Without a log it does nothing.
pub(crate) struct Watch<'a> {
    log: Option<&'a SessionLog>,
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

impl<'a> Watch<'a> {
    /// A handler is about to get this call.
    #[inline]
    pub(crate) fn begin(log: Option<&'a SessionLog>, (slot, seq): (u16, u64), call: &Call) -> Watch<'a> {
        let row = log.map_or(0, |log| log.received(call.operation()));
        let measured = log.is_some_and(|log| log.is_measured(row));
        let since = Cell::new(if measured { monotonic() } else { 0 });
        let span = log.filter(|_| call.seen().trace != 0).map(|log| {
            let (seen, operation) = (call.seen(), call.operation());
            Box::new(log.span_begins(Served { seen, slot, seq, operation }))
        });
        Watch { log, row, slot, trace: call.trace(), since, measured, entry: Cell::new(None), span }
    }

    /// Runs the handler. While it has the thread it is written that it does, and when it first waits, since when.
    pub(crate) async fn over<F: Future>(&self, handler: F) -> F::Output {
        let Some(log) = self.log else { return handler.await };
        let mut handler = pin!(handler);
        let place = Place { row: self.row, slot: self.slot }.to_word();
        std::future::poll_fn(|cx| {
            let before = log.book.running.replace(Running { place, session: log.session, slot: self.slot });
            log.book.store(header::RUNNING, place);
            let outer = self.enter();
            let polled = handler.as_mut().poll(cx);
            if let Some(outer) = outer {
                trace::enter(outer);
            }
            log.book.running.set(before);
            log.book.store(header::RUNNING, before.place);
            if polled.is_pending() && self.since.get() == 0 {
                self.since.set(monotonic());
            }
            if polled.is_pending() && self.entry.get().is_none() {
                self.waits(log, place);
            }
            match polled {
                Poll::Ready(output) => Poll::Ready(output),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
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
    pub(crate) fn end(self, operation: u16, response: &Response) {
        let Some(log) = self.log else { return };
        if let Some(open) = &self.span {
            log.span_ends(open, operation, outcome(response));
        }
        log.ended(self.row, response);
        if self.since.get() != 0 {
            let took = monotonic().saturating_sub(self.since.get());
            if self.measured { log.took(self.row, took) } else { log.took_at_least(self.row, took) }
        }
    }

    fn waits(&self, log: &SessionLog, place: u64) {
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

#[cold]
fn outcome(response: &Response) -> Outcome {
    match (response.failure, response.operation_error) {
        (Some(failure), _) => Outcome::Failed(failure),
        (None, Some(number)) => Outcome::OperationError(number),
        (None, None) => Outcome::Done,
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let (Some(log), Some(entry)) = (self.log, self.entry.get()) {
            log.book.store(WAITS_AT + usize::from(entry) * WAIT + wait::PLACE, 0);
            log.book.free_waits.borrow_mut().push(entry);
        }
    }
}
