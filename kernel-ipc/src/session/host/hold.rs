//! All sessions of a service held at once, so that its process can end with nothing begun that is not ended.

use std::rc::Rc;

use super::shared::Shared;
use super::{Inner, Served};
use crate::interface::Retry;
use crate::session::Service;

/// Calls that have been read and are not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnderWay {
    /// All of them but standing ones: those that can be made again, and whose callers wait for ever.
    pub calls: usize,
    /// Those that no other run can make again: their callers would not hear what became of them.
    pub once: usize,
}

impl std::ops::AddAssign for UnderWay {
    fn add_assign(&mut self, other: UnderWay) {
        self.calls += other.calls;
        self.once += other.once;
    }
}

impl<S: Service> Served<S> {
    /// Begins to leave the calls of all sessions unread, those of sessions that come meanwhile too, or to read them again.
    pub fn hold(&self, held: bool) {
        self.0.is_held.set(held);
        for inner in self.0.inners() {
            inner.is_held.set(held);
        }
    }

    /// What is under way on all sessions. What has been answered is in the clients' reach after that: over shared memory also if
    /// this process ends now.
    pub fn under_way(&self) -> UnderWay {
        let mut sum = UnderWay::default();
        for inner in self.0.inners() {
            inner.link.flush();
            sum += inner.under_way();
        }
        sum
    }
}

impl<S: Service> Shared<S> {
    /// All sessions that are served.
    fn inners(&self) -> Vec<Rc<Inner<S>>> {
        self.members.borrow().values().filter_map(|session| session.inner.upgrade()).collect()
    }
}

impl<S: Service> Inner<S> {
    fn under_way(&self) -> UnderWay {
        let mut sum = UnderWay::default();
        if self.ended.get().is_some() {
            return sum;
        }
        let slots = self.slots.borrow();
        for slot in (0..self.shape.slots).filter(|slot| slots.in_progress(*slot).is_some()) {
            let (cell, has_begun) = (&self.cells[slot], !self.dependents.has(slot));
            let once = has_begun && cell.retry.get() == Retry::Never;
            let stands = has_begun && cell.stands.get();
            sum += UnderWay { calls: usize::from(!stands), once: usize::from(once) };
        }
        sum
    }
}
