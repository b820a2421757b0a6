//! What a client's session has outstanding.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering::Release;

use super::layout::{NAME, USE, USED, USES_AT, header, using};
use super::{Logbook, monotonic, reader};
use crate::SessionId;
use crate::trace::ring::Begun;
use crate::trace::{self, Kind, Open, Outcome};

/// A session's part of its client's logbook.
#[derive(Debug)]
pub struct UseLog {
    book: Rc<Logbook>,
    block: u16,
    /// Calls that are traced, and how many they are.
    spans: RefCell<Vec<(u16, Open)>>,
    traced: Cell<usize>,
}

impl UseLog {
    /// Of a session that was opened with an endpoint, as `component.endpoint`. `None` if there is no room for it.
    pub fn new(book: &Rc<Logbook>, session: SessionId, endpoint: &str, interface: &str) -> Option<UseLog> {
        let Some(block) = book.free_uses.borrow_mut().pop() else {
            book.add(header::USES_MISSED, 1);
            return None;
        };
        let log = UseLog { book: book.clone(), block, spans: RefCell::default(), traced: Cell::new(0) };
        book.write_name(log.at() + using::ENDPOINT, endpoint);
        book.write_name(log.at() + using::INTERFACE, interface);
        (0..using::SLOTS).for_each(|slot| book.store(log.slot_at(slot) + using::OPERATION, 0));
        // Release pairs with the reader's Acquire.
        book.memory.store_u64(log.at() + using::SESSION, session.get(), Release);
        Some(log)
    }

    /// A call was published; its caller has waited `since` then (monotonic ns).
    #[inline]
    pub(crate) fn called(&self, slot: u16, operation: u16, since: u64) {
        if usize::from(slot) >= using::SLOTS {
            return;
        }
        let at = self.slot_at(slot.into());
        let running = self.book.running.get();
        let caller = if running.place == 0 { 0 } else { reader::caller(running.session, running.slot) };
        self.book.store(at + using::SINCE, since);
        self.book.store(at + using::CALLER, caller);
        self.book.memory.store_u64(at + using::OPERATION, USED | u64::from(operation), Release);
    }

    /// Nobody waits for the slot's call any more.
    #[inline]
    pub(crate) fn ended(&self, slot: u16) {
        if usize::from(slot) < using::SLOTS {
            self.book.store(self.slot_at(slot.into()) + using::OPERATION, 0);
        }
    }

    /// A call is about to be published: the trace that it belongs to, 0 if it is not traced.
    #[cold]
    pub(crate) fn span_begins(&self, slot: u16, seq: u64, operation: u16) -> u64 {
        let Some((trace, parent)) = trace::of_call() else { return 0 };
        let session = self.book.load(self.at() + using::SESSION);
        let (kind, begun_ns) = (Kind::Call, monotonic());
        let begun = Begun { kind, trace, parent, session, seq, slot, operation, begun_ns, seen_ns: 0 };
        let open = self.with_names(|names| self.book.begin_span(begun, names));
        let mut spans = self.spans.borrow_mut();
        spans.push((slot, open));
        self.traced.set(spans.len());
        trace
    }

    /// Nobody waits for the slot's call any more, and this is how it ended.
    #[inline]
    pub(crate) fn span_ends(&self, slot: u16, outcome: impl FnOnce() -> Outcome) {
        if self.traced.get() != 0 {
            self.span_ended(slot, outcome());
        }
    }

    #[cold]
    fn span_ended(&self, slot: u16, outcome: Outcome) {
        let mut spans = self.spans.borrow_mut();
        if let Some(place) = spans.iter().position(|(of, _)| *of == slot) {
            let (_, open) = spans.swap_remove(place);
            self.traced.set(spans.len());
            self.with_names(|names| self.book.end_span(&open, names, outcome));
        }
    }

    /// Its endpoint and interface, as they stand in the block.
    fn with_names<T>(&self, then: impl FnOnce([&str; 3]) -> T) -> T {
        let mut names = [[0; NAME]; 2];
        for (bytes, at) in names.iter_mut().zip([using::ENDPOINT, using::INTERFACE]) {
            self.book.memory.copy_out(self.at() + at, bytes).expect("a place of the layout");
        }
        let [endpoint, interface] = names.each_ref().map(|bytes| {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME);
            std::str::from_utf8(&bytes[..end]).unwrap_or_default()
        });
        then([endpoint, interface, ""])
    }

    fn at(&self) -> usize {
        USES_AT + usize::from(self.block) * USE
    }

    fn slot_at(&self, slot: usize) -> usize {
        self.at() + using::SLOTS_AT + slot * using::SLOT
    }
}

impl Drop for UseLog {
    fn drop(&mut self) {
        self.book.store(self.at() + using::SESSION, 0);
        self.book.free_uses.borrow_mut().push(self.block);
    }
}
