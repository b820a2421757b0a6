//! What the client end writes into its component's logbook.

use std::rc::Rc;

use super::{ClientSession, Inner};
use crate::logbook::{Logbook, UseLog};
use crate::session::{Request, called_at};
use crate::trace::{self, Outcome};

impl ClientSession {
    /// Writes of this session's calls into `book` from now on; `endpoint` and `interface` are what readers will see.
    pub fn log_to(&self, book: &Rc<Logbook>, endpoint: &str, interface: &str) {
        let inner = &self.0.inner;
        if inner.log.get().is_none()
            && let Some(log) = UseLog::new(book, inner.id, endpoint, interface)
        {
            let _ = inner.log.set(log);
        }
    }
}

impl Inner {
    #[inline]
    pub(super) fn log_called(&self, slot: u16, request: &Request<'_>, deadline: u64) {
        if let Some(log) = self.log.get() {
            log.called(slot, request.operation, called_at(deadline, request.deadline));
        }
    }

    /// A call is about to be published: the trace that it belongs to; 0: none.
    #[inline]
    pub(super) fn log_begins(&self, slot: u16, seq: u64, operation: u16) -> u64 {
        match self.log.get() {
            Some(log) if trace::is_on() => log.span_begins(slot, seq, operation),
            _ => 0,
        }
    }

    #[inline]
    pub(super) fn log_ended(&self, slot: u16, outcome: impl FnOnce() -> Outcome) {
        if let Some(log) = self.log.get() {
            log.ended(slot);
            log.span_ends(slot, outcome);
        }
    }
}
