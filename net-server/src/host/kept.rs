//! What a session keeps for the next run of this process.
//!
//! - A batch of events is kept before it is answered for the first time, so that the next run can give it again, and knows
//!   what the client's next cursor says.
//! - What a client has consumed is written to the records of its connections first, and then counts as consumed: a run that
//!   dies between does it again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use protocol::net::{Reason, Released};

use super::berth::Berths;
use crate::core::events::{Entry, Occurrence};
use crate::ledger::{BatchEntry, ConnectionRecord, Flags, Kind, Ledger, SessionRecord};

/// What outlives this process, for all sessions.
pub(crate) struct Keeping {
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) berths: Berths,
}

/// See the module's contract.
pub(crate) struct KeptSession {
    record: SessionRecord,
    /// By number: those of whose end the client does not know yet.
    connections: RefCell<HashMap<u64, KeptConnection>>,
}

struct KeptConnection {
    record: ConnectionRecord,
    /// Up to which position received bytes were put into batches.
    told: u64,
}

impl KeptSession {
    pub(crate) fn new(record: SessionRecord) -> KeptSession {
        KeptSession { record, connections: RefCell::default() }
    }

    pub(crate) fn id(&self) -> u64 {
        self.record.id()
    }

    /// A number is about to be given.
    pub(crate) fn gives(&self, number: u64) {
        self.record.set_last_number(number);
    }

    pub(crate) fn listens(&self, number: u64, bound: SocketAddr) {
        // As many have room as a session may have.
        let _ = self.record.keep_listener(number, bound);
    }

    pub(crate) fn listens_no_more(&self, number: u64) {
        self.record.forget_listener(number);
    }

    /// A connection is this session's.
    pub(crate) fn add(&self, record: ConnectionRecord, told: u64) {
        self.connections.borrow_mut().insert(record.number(), KeptConnection { record, told });
    }

    /// A connection is no longer this session's, and not over.
    pub(crate) fn give_away(&self, number: u64) {
        self.connections.borrow_mut().remove(&number);
    }

    /// A connection is over, and its client will be told.
    pub(crate) fn over(&self, number: u64, reason: Reason) {
        if let Some(kept) = self.connections.borrow().get(&number) {
            kept.record.set_over(reason);
        }
    }

    /// A connection is over, and its client will never ask.
    pub(crate) fn free(&self, number: u64) {
        let kept = self.connections.borrow_mut().remove(&number);
        if let Some(kept) = kept {
            kept.record.free();
        }
    }

    /// The session is over.
    pub(crate) fn end(&self) {
        self.record.free();
    }

    /// Keeps a batch that is about to be answered for the first time.
    pub(crate) fn batch(&self, next: u64, entries: &[Entry]) {
        let mut connections = self.connections.borrow_mut();
        let mut entry = |entry: &Entry| {
            let connection = entry.connection;
            let of = |kind, send, number| BatchEntry { kind, connection, send, number, end: 0, length: 0 };
            match &entry.occurrence {
                Occurrence::Accepted { .. } => of(Kind::Accepted, 0, 0),
                Occurrence::Received(bytes) => {
                    let length = bytes.len() as u64;
                    let end = connections.get_mut(&connection).map_or(0, |kept| {
                        kept.told += length;
                        kept.told
                    });
                    BatchEntry { end, length, ..of(Kind::Received, 0, 0) }
                }
                Occurrence::Resumed { request, sent, .. } => of(Kind::Resumed, *request, *sent),
                Occurrence::Finished => of(Kind::Finished, 0, 0),
                Occurrence::Sent { send, bytes } => of(Kind::Sent, *send, *bytes),
                Occurrence::Released { send, how } => of(Kind::Released, *send, *how as u64),
                Occurrence::Closed(reason) => of(Kind::Closed, 0, *reason as u64),
            }
        };
        let entries: Vec<BatchEntry> = entries.iter().map(&mut entry).collect();
        self.record.keep_batch(next, &entries);
    }

    /// The client has consumed the batch before `cursor`.
    pub(crate) fn consumed(&self, cursor: u64) {
        if cursor == self.record.consumed() {
            return;
        }
        for entry in self.record.batch().unwrap_or_default() {
            if entry.kind == Kind::Closed {
                self.free(entry.connection);
            } else if let Some(kept) = self.connections.borrow().get(&entry.connection) {
                kept.consumed(&entry);
            }
        }
        self.record.set_consumed(cursor);
    }
}

impl KeptConnection {
    fn consumed(&self, entry: &BatchEntry) {
        match entry.kind {
            Kind::Accepted => self.record.set(Flags::HEARD),
            Kind::Received => self.record.set_consumed(entry.end),
            Kind::Resumed => self.record.resumed_told(),
            Kind::Finished => self.record.set(Flags::INPUT_ENDED),
            Kind::Sent => self.record.told(entry.send),
            Kind::Released => self.record.free_send(entry.send),
            Kind::Closed => {}
        }
    }
}

/// How pages were given back, by its number.
pub(crate) fn how(number: u64) -> Released {
    let all = [Released::Copied, Released::ZeroCopy, Released::Dropped];
    all.into_iter().find(|how| *how as u64 == number).unwrap_or(Released::Copied)
}
