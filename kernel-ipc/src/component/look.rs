//! Looking into other components' logbooks.

use std::os::fd::OwnedFd;

use super::waits::{Answer, question};
use super::{Context, ContextError};
use crate::broker::ToSupervisor;
use crate::logbook::Reader;

/// Whose logbook was asked for, and who waits for it.
pub(super) type Asked = (String, Answer<Option<OwnedFd>>);

impl Context {
    /// The logbook of a component of this node, dead or alive; `None` if there is no such component, or it was never
    /// started. For guests.
    ///
    /// # Errors
    /// [`ContextError::Supervisor`] if that is gone, [`ContextError::Io`] if the memory cannot be mapped.
    pub async fn logbook(&self, component: &str) -> Result<Option<Reader>, ContextError> {
        let request = self.0.next_request.replace(self.0.next_request.get() + 1);
        let (shown, answer) = question();
        self.0.books.borrow_mut().insert(request, (component.to_owned(), answer));
        self.look(request, component);
        let lost = || ContextError::Supervisor("it is gone".into());
        let memory = if self.0.lost.has_happened() { None } else { shown.await };
        Ok(memory.ok_or_else(lost)?.map(Reader::open).transpose()?)
    }

    fn look(&self, request: u64, component: &str) {
        self.send(&ToSupervisor::Look { request, component: component.to_owned() }, &[]);
    }

    /// Asks again for what a dead supervisor has not shown.
    pub(super) fn look_again(&self) {
        for (request, (component, _)) in &*self.0.books.borrow() {
            self.look(*request, component);
        }
    }
}
