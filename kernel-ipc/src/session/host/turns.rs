//! What one session may take of a turn, and which of its calls have waited too long to be begun.
//!
//! - In a turn of its thread a session has at most [`CALLS`] calls begun; then it is the next session's turn. So what a
//!   session waits for another is a few handlers for each, however many calls that has outstanding.
//! - The calls that wait for their turn stay unread in the client's ring: at most as many as the session has slots, in
//!   memory that the client pays for, and certain not to have run.
//! - How long they have waited is known from a *mark*: how many messages were published at the end of a turn, and when.
//!   What lies before the mark is as old as the mark, or older; what lies behind it gets a mark of its own when the old one
//!   has been passed. One clock reading for a turn that leaves something behind, none for others.
//! - Of a session with a limit, a call that has waited longer is refused as it is read: its caller could not use the
//!   answer any more, or will ask again. That costs a copy of its descriptor, so a backlog of them goes at once, and the
//!   next handlers run for calls that are fresh. A session with one call outstanding leaves nothing behind: it is never
//!   refused for what others do.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::error::Cause;
use crate::link::Link;
use crate::runtime::clock;
use crate::session::now;
use crate::wire::Submission;

/// Calls of one session that are begun in one turn, if it has more. Few, for they may take long; more than one, because
/// a turn is not free either.
const CALLS: u32 = 8;

/// What is remembered of a session from turn to turn.
#[derive(Default)]
pub(super) struct Turns {
    /// The longest that a call may wait to be read; `None`: as long as its caller does.
    limit: Cell<Option<Duration>>,
    /// Messages received in all.
    received: Cell<u64>,
    mark: Cell<Option<Mark>>,
    /// The last turn ended before the calls did, as far as is known.
    has_more: Cell<bool>,
}

/// Messages before `position` had been published at `since`.
#[derive(Clone, Copy)]
struct Mark {
    position: u64,
    since: Instant,
}

/// One turn of a session.
pub(super) struct Turn {
    left: u32,
    /// Calls before the position have waited so long, which is too long.
    overdue: Option<(u64, Duration)>,
}

impl Turns {
    pub(super) fn limit(&self, limit: Option<Duration>) {
        self.limit.set(limit);
        self.mark.set(None);
    }

    /// The longest that a call may wait to be read.
    pub(super) fn longest(&self) -> Option<Duration> {
        self.limit.get()
    }

    /// How many messages were received in all.
    pub(super) fn count(&self) -> u64 {
        self.received.get()
    }

    /// Whether to wake the client only later: while calls of it wait, it gets its answers together, as many as there are
    /// calls. A client that sleeps sends no more of them, so that ends soon.
    pub(super) fn has_more(&self) -> bool {
        self.has_more.get()
    }

    /// The session's turn begins.
    pub(super) fn begin(&self) -> Turn {
        self.has_more.set(false);
        let mut overdue = None;
        if let (Some(limit), Some(mark)) = (self.limit.get(), self.mark.get()) {
            let waited = clock::now().saturating_duration_since(mark.since);
            overdue = (waited >= limit).then_some((mark.position, waited));
        }
        Turn { left: CALLS, overdue }
    }

    /// A message was received.
    pub(super) fn received(&self) {
        self.received.set(self.received.get() + 1);
    }

    /// The turn is over, and has perhaps left something behind.
    pub(super) fn end(&self, turn: &Turn, link: &dyn Link) {
        self.has_more.set(turn.is_over());
        if self.limit.get().is_none() {
            return;
        }
        let received = self.received.get();
        match (link.unread(), self.mark.get()) {
            (0, _) => self.mark.set(None),
            (_, Some(mark)) if received < mark.position => {}
            (unread, _) => self.mark.set(Some(Mark { position: received + unread, since: clock::now() })),
        }
    }
}

impl Turn {
    /// Whether the session has had its part.
    pub(super) fn is_over(&self) -> bool {
        self.left == 0
    }

    /// The call that was just received is to be begun.
    ///
    /// # Errors
    /// It is not, and this is why.
    pub(super) fn admit(&mut self, turns: &Turns, call: &Submission) -> Result<(), Cause> {
        if let Some((before, waited)) = self.overdue {
            if turns.received.get() <= before {
                let late = call.deadline != 0 && call.deadline <= now();
                return Err(if late { Cause::Deadline } else { Cause::busy_for(waited) });
            }
            self.overdue = None;
        }
        self.left -= 1;
        Ok(())
    }
}
