//! Reading spans out of somebody's logbook, while they are written.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::fence;

use super::ring::{BEGUN, END, EVERY, SPANS, record_at, span};
use crate::Failure;
use crate::logbook::{EPOCH, Reader};
use crate::wire::Status;

/// What a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Kind {
    /// A call that the component makes.
    Call = 1,
    /// A call that it serves.
    Served = 2,
    /// What it does of itself.
    Work = 3,
}

/// How a span ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With its result.
    Done,
    /// With the operation's own error of this number.
    OperationError(u16),
    /// With a failure of the call.
    Failed(Failure),
    /// Nobody waits for it any more.
    GivenUp,
}

/// In the place of a status.
const GIVEN_UP: u64 = u64::MAX;

impl Outcome {
    pub(super) fn to_word(self) -> u64 {
        match self {
            Outcome::Done => Status::Done.to_word(),
            Outcome::OperationError(number) => Status::OperationError(number).to_word(),
            Outcome::Failed(failure) => Status::Failed(failure).to_word(),
            Outcome::GivenUp => GIVEN_UP,
        }
    }

    fn from_word(word: u64) -> Option<Outcome> {
        if word == GIVEN_UP {
            return Some(Outcome::GivenUp);
        }
        Status::from_word(word).ok().map(Outcome::from)
    }
}

impl From<Status> for Outcome {
    fn from(status: Status) -> Outcome {
        match status {
            Status::Done => Outcome::Done,
            Status::OperationError(number) => Outcome::OperationError(number),
            Status::Failed(failure) => Outcome::Failed(failure),
        }
    }
}

/// A span, as its component says. Its times are in order, and that is all that is certain: what it says of others counts
/// where they say the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its number among those of its component, over all runs; never 0. A later span has a greater one.
    pub id: u64,
    /// The trace that it belongs to.
    pub trace: u64,
    /// The span of the same component that it belongs to: an earlier one.
    pub parent: Option<u64>,
    /// What it is of.
    pub kind: Kind,
    /// Of a call: which one.
    pub call: (u64, u16, u64),
    /// Of a call: the number of its operation.
    pub operation: u16,
    /// The run that wrote it.
    pub epoch: u64,
    /// Of a call that is served: when its host read it, by the monotonic clock, in ns.
    pub seen_ns: u64,
    /// When it was submitted, when its handler began (none: it never did), when the work began.
    pub started_ns: Option<u64>,
    /// When the answer was seen, when its handler ended, when the work ended, and how; none: it has not.
    pub ended: Option<(u64, Outcome)>,
    /// Of a call: the endpoint, as the component knows it: its own name of it, or as `component.endpoint`.
    pub endpoint: String,
    /// Of a call that is served its client, of one that is made its interface.
    pub peer: String,
    /// Of a call that is served its operation's name; of a work what it is.
    pub text: String,
}

impl Span {
    /// The first that is known of it, in ns.
    pub fn first_ns(&self) -> u64 {
        match self.kind {
            Kind::Served => self.seen_ns,
            _ => self.started_ns.unwrap_or_default(),
        }
    }
}

impl Reader {
    /// Whether its component can write spans.
    pub fn has_spans(&self) -> bool {
        self.memory().len() >= END
    }

    /// The run that writes, or wrote last.
    pub fn epoch(&self) -> u64 {
        self.memory().load_u64(EPOCH, Relaxed)
    }

    /// One in so many traces that begin there is written now; 0: none.
    pub fn traced(&self) -> u64 {
        if self.has_spans() { self.memory().load_u64(EVERY, Relaxed) } else { 0 }
    }

    /// How many spans were ever begun. What stands at these positions and the [`SPANS`](Self::SPANS) before it can be read.
    pub fn spans_begun(&self) -> u64 {
        // Acquire pairs with the writer's Release.
        if self.has_spans() { self.memory().load_u64(BEGUN, Acquire) } else { 0 }
    }

    /// Spans that are kept.
    pub const SPANS: u64 = SPANS as u64;

    /// The span at a position as it is now; `None` if another one stands there, or what is none.
    pub fn span(&self, position: u64) -> Option<Span> {
        if !self.has_spans() {
            return None;
        }
        let at = record_at(position);
        let stamp = position.wrapping_add(1);
        // Acquire pairs with the writer's Release of the stamp.
        if stamp == 0 || self.memory().load_u64(at + span::STAMP, Acquire) != stamp {
            return None;
        }
        // Before the rest: whoever sees the end sees how it ended.
        let ended = self.memory().load_u64(at + span::ENDED, Acquire);
        let word = |field| self.memory().load_u64(at + field, Relaxed);
        let (what, outcome, parent) = (word(span::WHAT), word(span::OUTCOME), word(span::PARENT));
        let (started, seen) = (word(span::STARTED), word(span::SEEN));
        let kind = [Kind::Call, Kind::Served, Kind::Work].into_iter().find(|kind| *kind as u16 == what as u16)?;
        let read = Span {
            id: word(span::ID),
            trace: word(span::TRACE),
            parent: (parent != 0).then_some(parent),
            kind,
            call: (word(span::SESSION), (what >> 16) as u16, word(span::SEQ)),
            operation: (what >> 32) as u16,
            epoch: word(span::EPOCH),
            seen_ns: seen,
            started_ns: (started != 0).then_some(started),
            ended: if ended == 0 { None } else { Some((ended, Outcome::from_word(outcome)?)) },
            endpoint: self.name(at + span::ENDPOINT),
            peer: self.name(at + span::PEER),
            text: self.name(at + span::TEXT),
        };
        // Pairs with the writer's fence: a word that was written for the next record is not taken for one of this.
        fence(Acquire);
        let is_whole = self.memory().load_u64(at + span::STAMP, Relaxed) == stamp;
        (is_whole && read.is_possible(stamp)).then_some(read)
    }
}

impl Span {
    /// Whether a component that follows the rules could have written it there.
    fn is_possible(&self, stamp: u64) -> bool {
        let is_known = self.trace != 0 && self.id != 0 && self.id <= stamp;
        let has_begun = match self.kind {
            Kind::Call | Kind::Work => self.started_ns.is_some() && self.seen_ns == 0,
            Kind::Served => self.seen_ns != 0 && (self.started_ns.is_some() || self.ended.is_some()),
        };
        let times = [Some(self.first_ns()), self.started_ns, self.ended.map(|(at, _)| at)];
        let in_order = times.iter().flatten().is_sorted();
        is_known && has_begun && in_order && self.parent.is_none_or(|parent| parent < self.id)
    }
}
