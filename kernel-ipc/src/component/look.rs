//! Looking into other components' logbooks and sessions, and having them write spans.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::waits::{Answer, question};
use super::{Context, ContextError};
use crate::SessionId;
use crate::broker::{SessionFacts, ToSupervisor};
use crate::logbook::Reader;
use crate::runtime::{self, sleep};

/// Whose logbook was asked for, and who waits for it.
pub(super) type Asked = (String, Answer<Option<OwnedFd>>);

/// Behind which session one was asked for, and who waits for it.
pub(super) type SessionAsked = (SessionId, u32, Answer<Option<Box<SessionFacts>>>);

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

    /// The open session with the next greater number, and all that it holds; `None`: there is none. For guests.
    ///
    /// # Errors
    /// [`ContextError::Supervisor`] if that is gone.
    pub async fn session_after(&self, after: SessionId) -> Result<Option<SessionFacts>, ContextError> {
        let mut facts: Option<SessionFacts> = None;
        let mut from = Some(0);
        while let Some(index) = from {
            let Some(mut part) = self.part_of_session(after, index).await? else { break };
            from = part.holdings.as_mut().and_then(|part| part.as_mut().ok()?.next.take());
            match &mut facts {
                None => facts = Some(part),
                Some(facts) if facts.session == part.session => {
                    if let (Some(Ok(all)), Some(Ok(more))) = (&mut facts.holdings, part.holdings) {
                        all.capabilities.extend(more.capabilities);
                    }
                }
                // It has ended meanwhile.
                Some(_) => break,
            }
        }
        Ok(facts)
    }

    async fn part_of_session(&self, after: SessionId, from: u32) -> Result<Option<SessionFacts>, ContextError> {
        let request = self.0.next_request.replace(self.0.next_request.get() + 1);
        let (shown, answer) = question();
        self.0.sessions_asked.borrow_mut().insert(request, (after, from, answer));
        self.look_at_session(request, after, from);
        let shown = if self.0.lost.has_happened() { None } else { shown.await };
        let facts = shown.ok_or_else(|| ContextError::Supervisor("it is gone".into()))?;
        Ok(facts.map(|facts| *facts))
    }

    fn look_at_session(&self, request: u64, after: SessionId, from: u32) {
        self.send(&ToSupervisor::LookAtSession { request, after, from }, &[]);
    }

    /// Has all components write spans of one in `every` traces for some time; 0: of none. Does not wait: when a component
    /// has begun [stands in its logbook](Reader::traced). For guests.
    pub fn trace_all(&self, every: u32, for_ms: u32) {
        self.send(&ToSupervisor::Trace { every, for_ms }, &[]);
    }

    /// This component is to write spans.
    pub(super) fn trace_for(&self, every: u32, for_ms: u32) {
        let Some(book) = &self.0.logbook else { return };
        book.trace(every);
        let end = (every != 0).then(|| {
            let book = book.clone();
            runtime::spawn(async move {
                sleep(Duration::from_millis(for_ms.into())).await;
                book.trace(0);
            })
        });
        if let Some(before) = self.0.tracing.replace(end) {
            before.cancel();
        }
    }

    /// Asks again for what a dead supervisor has not shown.
    pub(super) fn look_again(&self) {
        for (request, (after, from, _)) in &*self.0.sessions_asked.borrow() {
            self.look_at_session(*request, *after, *from);
        }
        for (request, (component, _)) in &*self.0.books.borrow() {
            self.look(*request, component);
        }
    }
}
