//! A session on its way from one reactor of its component to another, each a thread of its own.
//!
//! ```text
//! hold      calls that come stay in the client's ring, where they wait anyway; those that were begun go on to their end
//! part      when none is in progress: link, slots and capabilities are taken out of this thread, as they stand
//! arrive    the other thread reads on where this one has stopped
//! ```
//!
//! - Its client notices nothing but time: same segments, same handles, same seqs. In between nobody reads its calls, nor
//!   sleeps on its doorbell, so there is no wake-up to lose: the first thing that the other thread does is to look.
//! - No call is lost and none runs twice, because none is begun: what is not read is in the ring, what was read is answered.
//! - What cannot go yet stays, and is served on: a session with calls that take long, or in which something is being revoked.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::{HostSession, Inner, Served};
use crate::capability::Restored;
use crate::link::Link;
use crate::runtime::{self, Source};
use crate::session::{Service, SessionInfo};
use crate::slots::HostSlots;

/// A service of which several instances share the sessions of one endpoint, each on a reactor of its own.
pub trait Movable {
    /// What an instance knows of one session beside its capabilities; `()` if nothing. Plain data: it goes to another thread.
    type State: Send + 'static;

    /// The session leaves this instance: no call of it is in progress, and none comes any more.
    fn leave(&self, session: &SessionInfo) -> Self::State;

    /// The session comes from another instance. Calls come after this.
    fn arrive(&self, session: &SessionInfo, state: Self::State);
}

/// A session that nobody serves at the moment. Dropped, it ends, without a word to its service.
pub struct Parted {
    info: SessionInfo,
    segment: OwnedFd,
    link: Box<dyn Link + Send>,
    slots: HostSlots,
    entries: Vec<Restored>,
    refuse_after: Option<Duration>,
}

impl Parted {
    /// What is known of the session.
    pub fn info(&self) -> &SessionInfo {
        &self.info
    }
}

impl std::fmt::Debug for Parted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parted").field("info", &self.info).field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl HostSession {
    /// Begins to leave calls unread in the client's ring, or to read them again.
    pub fn hold(&self, held: bool) {
        self.inner.hold(held);
    }

    /// Whether no call is in progress.
    pub fn is_drained(&self) -> bool {
        self.inner.is_drained()
    }

    /// How many messages it has received from its client, here.
    pub fn received(&self) -> u64 {
        self.inner.received()
    }

    /// Takes the session out of this thread, for another one where it [arrives](Self::arrive). The hook of
    /// [`on_end`](Self::on_end) and the log stay behind. Does not wait.
    ///
    /// # Errors
    /// The session itself, which is served as before: it is not over shared memory, has a ledger or leases, has calls in
    /// progress, something in it is being revoked, or it has ended.
    pub fn part(mut self) -> Result<Parted, HostSession> {
        if self.segment.is_none() || !self.inner.is_ready_to_part() {
            return Err(self);
        }
        // With it nothing in this thread looks at the session any more.
        self.source = None;
        let entries = match Rc::strong_count(&self.inner) {
            1 => self.inner.carry(),
            _ => None,
        };
        let Some(entries) = entries else {
            let source: Rc<dyn Source> = self.inner.clone();
            self.source = Some(runtime::register(source));
            return Err(self);
        };
        let segment = self.segment.take().expect("looked at before");
        let inner = self.inner.clone();
        drop(self);
        let Parts { info, link, slots, refuse_after } = inner.take_apart();
        Ok(Parted { info, segment, link, slots, entries, refuse_after })
    }

    /// Serves a session on that has parted from another thread, on this thread's runtime.
    pub fn arrive<S: Service>(parted: Parted, served: Served<S>) -> HostSession {
        let Parted { info, segment, link, slots, entries, refuse_after } = parted;
        let info = Rc::new(info);
        let member = served.0.arrive(info.clone(), &entries);
        let session = Self::serve_from(link, Some(segment), served, (info, member), None, None, slots);
        session.refuse_after(refuse_after);
        session
    }
}

/// What is left of a session's host end without its thread.
pub(super) struct Parts {
    info: SessionInfo,
    link: Box<dyn Link + Send>,
    slots: HostSlots,
    refuse_after: Option<Duration>,
}

/// For a session whose service's type is forgotten.
pub(super) trait Parting {
    fn hold(&self, held: bool);
    fn is_drained(&self) -> bool;
    fn received(&self) -> u64;
    /// Nothing is in progress, and nothing of it belongs to this thread or run for good. Its slots' lanes end.
    fn is_ready_to_part(&self) -> bool;
    /// Takes its capabilities out of the service's tables. `None`: something hangs on them.
    fn carry(&self) -> Option<Vec<Restored>>;
    /// Of its last owner.
    fn take_apart(self: Rc<Self>) -> Parts;
}

impl<S: Service> Parting for Inner<S> {
    fn hold(&self, held: bool) {
        self.is_held.set(held);
    }

    fn is_drained(&self) -> bool {
        let slots = self.slots.borrow();
        (0..self.shape.all_slots()).all(|slot| slots.in_progress(slot).is_none())
    }

    fn received(&self) -> u64 {
        self.turns.count()
    }

    fn is_ready_to_part(&self) -> bool {
        let has_lent = self.lent.borrow().iter().any(|lent| lent.generation != 0);
        let stays = self.ended.get().is_some() || self.survival.is_some() || has_lent || !self.is_drained();
        if stays {
            return false;
        }
        self.link.flush();
        for (_, cell) in self.cells.used() {
            cell.lane.end();
        }
        true
    }

    fn carry(&self) -> Option<Vec<Restored>> {
        self.shared.carry(self.member)
    }

    fn take_apart(self: Rc<Self>) -> Parts {
        let Inner { link, slots, info, turns, .. } = Rc::into_inner(self).expect("its last owner");
        let link = link.into_send().expect("shared memory belongs to no thread");
        let info = SessionInfo::clone(&info);
        Parts { info, link, slots: slots.into_inner(), refuse_after: turns.longest() }
    }
}
