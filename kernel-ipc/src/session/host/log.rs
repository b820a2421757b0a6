//! What the host end writes into its component's logbook.

use std::rc::Rc;

use super::{HostSession, Inner};
use crate::error::Failure;
use crate::logbook::{Logbook, Seen, Served, SessionLog};
use crate::session::Service;
use crate::trace;
use crate::wire::Submission;

impl HostSession {
    /// Writes of this session's calls into `book` from now on; `endpoint` is the name that readers will see.
    pub fn log_to(&self, book: &Rc<Logbook>, endpoint: &str) {
        self.inner.log_to(book, endpoint);
    }
}

/// For a session whose service's type is forgotten.
pub(super) trait Logging {
    fn log_to(&self, book: &Rc<Logbook>, endpoint: &str);
}

impl<S: Service> Logging for Inner<S> {
    fn log_to(&self, book: &Rc<Logbook>, endpoint: &str) {
        self.log.get_or_init(|| SessionLog::new(book, endpoint, &self.info, S::INTERFACE));
    }
}

impl<S: Service> Inner<S> {
    /// A call was read: whether it is traced, and since when.
    #[inline]
    pub(super) fn log_saw(&self, call: &Submission) -> Seen {
        match self.log.get() {
            Some(log) if trace::is_on() => log.saw(call.trace),
            _ => Seen::default(),
        }
    }

    pub(super) fn log_refused(&self, call: &Submission, seen: Seen, failure: Failure) {
        if let Some(log) = self.log.get() {
            log.refused(call.operation);
            if seen.trace != 0 {
                let Submission { slot, seq, operation, .. } = *call;
                log.span_refused(Served { seen, slot, seq, operation }, failure);
            }
        }
    }
}
