//! What a client's session has outstanding.

use std::rc::Rc;
use std::sync::atomic::Ordering::Release;

use super::layout::{USE, USED, USES_AT, header, using};
use super::{Logbook, reader};
use crate::SessionId;

/// A session's part of its client's logbook.
#[derive(Debug)]
pub struct UseLog {
    book: Rc<Logbook>,
    block: u16,
}

impl UseLog {
    /// Of a session that was opened with an endpoint, as `component.endpoint`. `None` if there is no room for it.
    pub fn new(book: &Rc<Logbook>, session: SessionId, endpoint: &str, interface: &str) -> Option<UseLog> {
        let Some(block) = book.free_uses.borrow_mut().pop() else {
            book.add(header::USES_MISSED, 1);
            return None;
        };
        let log = UseLog { book: book.clone(), block };
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
