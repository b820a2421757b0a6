//! The spans of one component, collected while it writes them.

use std::collections::BTreeMap;

use kernel_ipc::logbook::Reader;
use kernel_ipc::trace::{Kind, Span};

use super::super::operation;
use super::Book;

/// Most spans of one component that are kept.
const MOST: usize = 1 << 20;

/// What a component has written.
#[derive(Debug)]
pub struct Written {
    pub component: String,
    /// The run that writes, or wrote last.
    pub epoch: u64,
    /// By their ids.
    pub spans: BTreeMap<u64, Span>,
    /// Spans that were not read: more were written than the ring has room for, or one was no span.
    pub lost: u64,
}

/// Collects it from a moment on.
pub struct Tape {
    pub written: Written,
    book: Book,
    /// The position of the next span.
    next: u64,
    /// Those that had not ended: the position of each, and its id.
    open: BTreeMap<u64, u64>,
}

impl Tape {
    /// From now on; `None` for one that was never started.
    pub fn begin(book: Book) -> Option<Tape> {
        let (next, epoch) = (book.reader()?.spans_begun(), book.reader()?.epoch());
        let component = book.component.name.clone();
        let written = Written { component, epoch, spans: BTreeMap::new(), lost: 0 };
        Some(Tape { written, book, next, open: BTreeMap::new() })
    }

    fn reader(&self) -> &Reader {
        self.book.reader().expect("it had one when this began")
    }

    /// One in so many traces is written by it now.
    pub fn traced(&self) -> u64 {
        self.reader().traced()
    }

    /// Reads what is new.
    pub fn look(&mut self) {
        for position in std::mem::take(&mut self.open).into_keys() {
            // In another's place it ends as another record.
            self.take(position);
        }
        let begun = self.reader().spans_begun();
        if begun < self.next {
            // Only one that writes what it likes goes back.
            self.next = begun;
        }
        let oldest = begun.saturating_sub(Reader::SPANS).max(self.next);
        let mut lost = oldest - self.next;
        for position in oldest..begun {
            if self.written.spans.len() >= MOST || !self.take(position) {
                lost = lost.saturating_add(1);
            }
        }
        self.next = begun;
        self.written.lost = self.written.lost.saturating_add(lost);
        self.written.epoch = self.reader().epoch();
    }

    fn take(&mut self, position: u64) -> bool {
        let Some(span) = self.reader().span(position) else { return false };
        if span.ended.is_none() {
            self.open.insert(position, span.id);
        }
        self.written.spans.insert(span.id, span);
        true
    }

    /// Whether something is under way that will end soon.
    pub fn has_open(&self) -> bool {
        let Written { spans, epoch, .. } = &self.written;
        // Of those in whose place there is another by now nobody will hear the end.
        self.open.values().filter_map(|id| spans.get(id)).any(|span| {
            let waits = span.kind == Kind::Call && operation(&span.peer, span.operation).1;
            span.ended.is_none() && span.epoch == *epoch && !waits && span.kind != Kind::Served
        })
    }
}
