//! A call's path through components: which call was made on behalf of which, and how long each part of it took.
//!
//! - A component writes *spans* into a ring in its logbook: a call that it makes (submitted, answer seen), a call that it
//!   serves (seen, its handler began, its handler ended), a work that it says it does (a request that came over the network).
//!   A span is there from its beginning, so a run that dies leaves what it was at.
//! - A trace begins where nobody stands above: at a work, at a call that a component makes for nobody in particular, at the
//!   call of a guest, who writes no logbook. One in so many of each is traced. Its key travels in the descriptor, and what
//!   a handler calls, or spawns, belongs to the call that it serves.
//! - Off until somebody [wants it](Logbook::trace). Off, it costs one branch on a flag of the thread for each end of a call, each
//!   poll of a handler, each work and each spawn; a poll of what began so costs one branch on a word of its own.
//! - What began while it was off, or at another time that it was on, is polled plainly when it is on again: it belongs to no
//!   trace that begins later.
//! - Who reads believes nothing: a span counts only where both ends of a session say the same. See [`Span`].
//!
//! ```text
//! behind the rest of the logbook:
//!      0  spans ever begun | one in so many is traced, 0: none
//!     64  4096 spans of 192 bytes, one behind the other, then over the oldest     [`ring::span`]
//! ```

mod reader;
pub(crate) mod ring;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::{Rc, Weak};

use crate::logbook::{Logbook, monotonic};

pub use reader::{Kind, Outcome, Span};
use ring::Begun;
pub(crate) use ring::Open;

/// Where a task stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Within {
    /// 0: in none.
    trace: u64,
    /// The span of this component that it works for.
    span: u64,
    /// It works for somebody, traced or not: what it calls begins no trace.
    inside: bool,
}

impl Within {
    /// Works for a span.
    pub(crate) fn span(open: &Open) -> Within {
        Within { trace: open.trace(), span: open.id(), inside: true }
    }

    /// Works for somebody who is not traced.
    pub(crate) const UNTRACED: Within = Within { trace: 0, span: 0, inside: true };
    const NOBODY: Within = Within { trace: 0, span: 0, inside: false };
}

/// Of a thread.
struct Switch {
    on: Cell<bool>,
    /// How often it was switched on: what began under one of these times is of no trace of another.
    times_on: Cell<u64>,
    every: Cell<u32>,
    /// By [`Kind`]: beginnings that are not traced before the next one is.
    skip: [Cell<u32>; 3],
    next_trace: Cell<u64>,
    current: Cell<Within>,
}

thread_local! {
    static SWITCH: Switch = const {
        Switch {
            on: Cell::new(false),
            times_on: Cell::new(0),
            every: Cell::new(0),
            skip: [const { Cell::new(0) }; 3],
            next_trace: Cell::new(0),
            current: Cell::new(Within::NOBODY),
        }
    };
    /// Where a work is written.
    static BOOK: RefCell<Weak<Logbook>> = const { RefCell::new(Weak::new()) };
}

/// Whether this thread writes spans.
#[inline]
pub(crate) fn is_on() -> bool {
    SWITCH.with(|switch| switch.on.get())
}

/// Where the running task stands.
#[inline]
fn current() -> Within {
    SWITCH.with(|switch| switch.current.get())
}

/// From now on what runs belongs to `within`. Gives what it belonged to.
#[inline]
pub(crate) fn enter(within: Within) -> Within {
    SWITCH.with(|switch| switch.current.replace(within))
}

/// The key of a trace that begins here, if this beginning is one of those that are traced.
fn begins(kind: Kind) -> Option<u64> {
    SWITCH.with(|switch| {
        let skip = &switch.skip[kind as usize - 1];
        if skip.get() > 0 {
            skip.set(skip.get() - 1);
            return None;
        }
        skip.set(switch.every.get().saturating_sub(1));
        // 0 would be none.
        let key = switch.next_trace.get().max(1);
        switch.next_trace.set(key.wrapping_add(1));
        Some(key)
    })
}

/// The trace of a call that the running task makes, and the span that it makes it for.
pub(crate) fn of_call() -> Option<(u64, u64)> {
    match current() {
        Within { trace: 0, inside: true, .. } => None,
        Within { trace: 0, .. } => begins(Kind::Call).map(|trace| (trace, 0)),
        Within { trace, span, .. } => Some((trace, span)),
    }
}

/// The trace of a guest's call, which begins at its host.
pub(crate) fn of_guest() -> Option<u64> {
    begins(Kind::Served)
}

impl Logbook {
    /// From now on this thread writes spans of one in `every` of the traces that begin here, and of all that begin elsewhere;
    /// 0: of none. Nothing if the logbook has no room for spans, as one that an earlier version has made.
    pub fn trace(self: &Rc<Self>, every: u32) {
        if !self.has_spans() {
            return;
        }
        SWITCH.with(|switch| {
            if switch.next_trace.get() == 0 {
                // No two runs of a node begin at the same place; if they ever do, two traces look like one.
                switch
                    .next_trace
                    .set(crate::sys::random::random_words().map_or_else(|_| monotonic(), |words| words[0]));
            }
            if switch.every.replace(every) != every {
                switch.skip.iter().for_each(|skip| skip.set(0));
            }
            if !switch.on.replace(every != 0) && every != 0 {
                switch.times_on.set(switch.times_on.get() + 1);
            }
            if every == 0 {
                switch.current.set(Within::NOBODY);
            }
        });
        BOOK.set(Rc::downgrade(self));
        self.tell_tracing(every);
    }
}

/// Does `work` as one that a trace can begin with: all that it calls, and spawns, belongs to it. `name` is asked for only if
/// it is traced.
pub async fn work<F: Future>(name: impl FnOnce() -> String, work: F) -> F::Output {
    let working = if is_on() { Working::begin(name) } else { None };
    let within = working.as_ref().map_or(Within::UNTRACED, |working| Within::span(&working.open));
    let output = carried(within, work).await;
    if let Some(working) = working {
        working.end(Outcome::Done);
    }
    output
}

/// A work that is under way.
struct Working {
    book: Rc<Logbook>,
    open: Open,
    name: String,
    ended: bool,
}

impl Working {
    fn begin(name: impl FnOnce() -> String) -> Option<Working> {
        let (trace, parent) = match current() {
            Within { trace: 0, inside: true, .. } => return None,
            Within { trace: 0, .. } => (begins(Kind::Work)?, 0),
            Within { trace, span, .. } => (trace, span),
        };
        let book = BOOK.with_borrow(Weak::upgrade)?;
        let name = name();
        let begun = Begun { kind: Kind::Work, trace, parent, begun_ns: monotonic(), ..Begun::default() };
        let open = book.begin_span(begun, ["", "", &name]);
        Some(Working { book, open, name, ended: false })
    }

    fn end(mut self, outcome: Outcome) {
        self.ended = true;
        self.book.end_span(&self.open, ["", "", &self.name], outcome);
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        if !self.ended {
            self.book.end_span(&self.open, ["", "", &self.name], Outcome::GivenUp);
        }
    }
}

/// Where the task stands that is spawned now, if that is anywhere.
#[inline]
pub(crate) fn inherited() -> Option<Within> {
    Some(current()).filter(|within| within.inside)
}

/// Runs a future as a part of `within`, for as long as the thread writes spans as it does now. If it writes none, the future is
/// polled as it is.
pub(crate) fn carried<F: Future>(within: Within, future: F) -> impl Future<Output = F::Output> {
    let began = time_on();
    async move {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            if began.is_none() || began != time_on() {
                return future.as_mut().poll(cx);
            }
            let outer = enter(within);
            let polled = future.as_mut().poll(cx);
            enter(outer);
            polled
        })
        .await
    }
}

/// Which time it is that this thread writes spans; `None`: it writes none.
#[inline]
fn time_on() -> Option<u64> {
    SWITCH.with(|switch| switch.on.get().then(|| switch.times_on.get()))
}
