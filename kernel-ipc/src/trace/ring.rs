//! Writing spans: a ring of records, the oldest of which give way.

use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::fence;

use super::{Kind, Outcome};
use crate::logbook::{Logbook, NAME, REST_BYTES, monotonic};

/// Spans in the ring.
pub(crate) const SPANS: usize = 4096;
/// Where it begins in a logbook.
pub(crate) const AT: usize = REST_BYTES.next_multiple_of(64);
/// Spans ever begun: the position of the next one.
pub(crate) const BEGUN: usize = AT;
/// One in so many is traced now.
pub(crate) const EVERY: usize = AT + 8;
const FIRST: usize = AT + 64;
/// End of the ring, and of the logbook.
pub(crate) const END: usize = FIRST + SPANS * span::BYTES;

/// Offsets in a span.
pub(crate) mod span {
    use super::NAME;

    /// Its position and one more, and 0 while it is written: stored first and last.
    pub const STAMP: usize = 0;
    /// The first stamp that it had: one that is still open when its place is needed ends in another place.
    pub const ID: usize = 8;
    pub const TRACE: usize = 16;
    /// The span of this component that it belongs to; 0: none.
    pub const PARENT: usize = 24;
    pub const SESSION: usize = 32;
    pub const SEQ: usize = 40;
    /// Kind u16 | slot u16 << 16 | operation u16 << 32.
    pub const WHAT: usize = 48;
    /// The run that wrote it.
    pub const EPOCH: usize = 56;
    /// Monotonic ns: when the host read the call. Of others 0.
    pub const SEEN: usize = 64;
    /// When it was submitted, when its handler began (0: it never did), when the work began.
    pub const STARTED: usize = 72;
    /// When the answer was seen, when its handler ended, when the work ended. 0: it has not. Stored last.
    pub const ENDED: usize = 80;
    pub const OUTCOME: usize = 88;
    pub const ENDPOINT: usize = 96;
    /// Of a call that is served its client, of one that is made its interface.
    pub const PEER: usize = 128;
    /// Of a call that is served its operation; of a work what it is.
    pub const TEXT: usize = 160;
    pub const BYTES: usize = 192;

    const _: () = assert!(TEXT + NAME == BYTES && BYTES.is_multiple_of(64));
}

/// Where the record of a position stands.
pub(crate) fn record_at(position: u64) -> usize {
    FIRST + (position % SPANS as u64) as usize * span::BYTES
}

/// What is known when a span begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    pub(crate) kind: Kind,
    pub(crate) trace: u64,
    pub(crate) parent: u64,
    pub(crate) session: u64,
    pub(crate) seq: u64,
    pub(crate) slot: u16,
    pub(crate) operation: u16,
    pub(crate) seen_ns: u64,
    pub(crate) begun_ns: u64,
}

impl Default for Begun {
    fn default() -> Begun {
        let kind = Kind::Work;
        Begun { kind, trace: 0, parent: 0, session: 0, seq: 0, slot: 0, operation: 0, seen_ns: 0, begun_ns: 0 }
    }
}

/// A span that has not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    position: u64,
    begun: Begun,
}

impl Open {
    pub(crate) fn trace(&self) -> u64 {
        self.begun.trace
    }

    /// Names it among all of its component.
    pub(crate) fn id(&self) -> u64 {
        self.position.wrapping_add(1)
    }
}

impl Logbook {
    /// A span begins: its endpoint, peer and text.
    #[cold]
    pub(crate) fn begin_span(&self, begun: Begun, names: [&str; 3]) -> Open {
        let position = self.load(BEGUN);
        let open = Open { position, begun };
        self.write_span(position, &open, names, None);
        open
    }

    /// It ends now.
    #[cold]
    pub(crate) fn end_span(&self, open: &Open, names: [&str; 3], outcome: Outcome) {
        let now = monotonic();
        if self.load(BEGUN).wrapping_sub(open.position) > SPANS as u64 {
            // Another one stands in its place.
            return self.write_span(self.load(BEGUN), open, names, Some((now, outcome)));
        }
        let at = record_at(open.position);
        self.store(at + span::OUTCOME, outcome.to_word());
        // Release pairs with the reader's Acquire: whoever sees the end sees how it ended.
        self.memory().store_u64(at + span::ENDED, now, Release);
    }

    /// A span that has ended before it began: its call is refused.
    #[cold]
    pub(crate) fn refused_span(&self, begun: Begun, names: [&str; 3], outcome: Outcome) {
        let position = self.load(BEGUN);
        self.write_span(position, &Open { position, begun }, names, Some((monotonic(), outcome)));
    }

    /// Writes a record whole, over the oldest one.
    fn write_span(&self, position: u64, open: &Open, names: [&str; 3], ended: Option<(u64, Outcome)>) {
        let Begun { kind, trace, parent, session, seq, slot, operation, seen_ns, begun_ns } = open.begun;
        let at = record_at(position);
        self.store(at + span::STAMP, 0);
        // Pairs with the reader's fence: whoever reads a word of what follows does not see the old stamp behind it.
        fence(Release);
        let what = kind as u64 | u64::from(slot) << 16 | u64::from(operation) << 32;
        let (ended_ns, outcome) = ended.map_or((0, 0), |(at, outcome)| (at, outcome.to_word()));
        for (field, value) in [
            (span::ID, open.id()),
            (span::TRACE, trace),
            (span::PARENT, parent),
            (span::SESSION, session),
            (span::SEQ, seq),
            (span::WHAT, what),
            (span::EPOCH, self.epoch()),
            (span::SEEN, seen_ns),
            (span::STARTED, begun_ns),
            (span::ENDED, ended_ns),
            (span::OUTCOME, outcome),
        ] {
            self.store(at + field, value);
        }
        for (field, name) in [span::ENDPOINT, span::PEER, span::TEXT].into_iter().zip(names) {
            self.write_name(at + field, name);
        }
        // Release pairs with the reader's Acquire: whoever sees the stamp sees the record.
        self.memory().store_u64(at + span::STAMP, position.wrapping_add(1), Release);
        self.memory().store_u64(BEGUN, position.wrapping_add(1), Release);
    }

    /// Says how many are traced, for whoever waits until they are.
    pub(super) fn tell_tracing(&self, every: u32) {
        self.memory().store_u64(EVERY, every.into(), Relaxed);
    }

    /// Whether there is room for spans.
    pub(crate) fn has_spans(&self) -> bool {
        self.memory().len() >= END
    }
}
