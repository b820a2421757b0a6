//! The record of one session that listens.
//!
//! ```text
//!   0 session id; 0: free; last | 8 consumed: the client's cursor | 16 next: the cursor behind the batch; last of a batch
//!  24 entries of the batch      | 32 last number given
//! 256 listeners, 16 times 32 bytes: number, last; 0: none | IPv6 address, mapped from IPv4 if it is one | port
//! 4096 batch: 256 entries of 48 bytes: kind | connection | send | number | end | length
//! ```
//!
//! A batch counts if `next` is not `consumed`. Of received bytes it has the position of their end: they stand in the
//! connection's record until they are consumed.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use super::Ledger;

mod at {
    pub const ID: usize = 0;
    pub const CONSUMED: usize = 8;
    pub const NEXT: usize = 16;
    pub const ENTRIES: usize = 24;
    pub const NUMBER: usize = 32;
    pub const LISTENERS: usize = 256;
    pub const BATCH: usize = 4096;
}

/// Most listeners of a session, and the bytes of one.
pub(crate) const LISTENERS: usize = 16;
const LISTENER: usize = 32;
/// Bytes of one entry of a batch.
const ENTRY: usize = 48;
/// Entries of a batch.
pub(crate) const MAX_ENTRIES: usize = (BYTES - at::BATCH) / ENTRY;
/// Of one record.
pub(super) const BYTES: usize = 16 << 10;

/// Kinds of [`BatchEntry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Kind {
    Accepted = 1,
    Received = 2,
    Finished = 3,
    Sent = 4,
    Released = 5,
    Closed = 6,
    Resumed = 7,
}

/// One event of a batch, as far as its connection's record does not have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchEntry {
    pub(crate) kind: Kind,
    pub(crate) connection: u64,
    pub(crate) send: u64,
    pub(crate) number: u64,
    /// Of received bytes: the position of their end.
    pub(crate) end: u64,
    pub(crate) length: u64,
}

/// See the drawing. A handle: dropping it changes nothing.
pub(crate) struct SessionRecord {
    ledger: Rc<Ledger>,
    index: u32,
}

impl SessionRecord {
    /// A record of a new session. `None`: there is no room.
    pub(crate) fn create(ledger: &Rc<Ledger>, id: u64) -> Option<SessionRecord> {
        let free = |index: &u32| SessionRecord { ledger: ledger.clone(), index: *index }.id() == 0;
        let record = SessionRecord { ledger: ledger.clone(), index: (0..super::SESSIONS as u32).find(free)? };
        for cleared in [at::CONSUMED, at::NEXT, at::ENTRIES, at::NUMBER] {
            record.store(cleared, 0);
        }
        for listener in 0..LISTENERS {
            record.store(at::LISTENERS + listener * LISTENER, 0);
        }
        record.store(at::ID, id);
        Some(record)
    }

    pub(super) fn recover(ledger: &Rc<Ledger>, index: u32) -> Option<SessionRecord> {
        let record = SessionRecord { ledger: ledger.clone(), index };
        (record.id() != 0).then_some(record)
    }

    pub(crate) fn id(&self) -> u64 {
        self.load(at::ID)
    }

    /// The last number that was given to a connection or a listener.
    pub(crate) fn last_number(&self) -> u64 {
        self.load(at::NUMBER)
    }

    /// A number is about to be given.
    pub(crate) fn set_last_number(&self, number: u64) {
        self.store(at::NUMBER, number);
    }

    /// The session listens; a number that is known says nothing new. False: there is no room.
    pub(crate) fn keep_listener(&self, number: u64, bound: SocketAddr) -> bool {
        if self.listener_at(number).is_some() {
            return true;
        }
        let Some(at) = self.listener_at(0) else { return false };
        let ip = match bound.ip() {
            IpAddr::V4(four) => four.to_ipv6_mapped(),
            IpAddr::V6(six) => six,
        };
        self.ledger.write(self.base() + at + 8, &ip.octets());
        self.store(at + 24, bound.port().into());
        self.store(at, number);
        true
    }

    /// A listener is closed.
    pub(crate) fn forget_listener(&self, number: u64) {
        if let Some(at) = self.listener_at(number) {
            self.store(at, 0);
        }
    }

    /// Where the session listens.
    pub(crate) fn listeners(&self) -> Vec<(u64, SocketAddr)> {
        let places = (0..LISTENERS).map(|n| at::LISTENERS + n * LISTENER);
        let listener = |at: usize| {
            let mut ip = [0; 16];
            self.ledger.read(self.base() + at + 8, &mut ip);
            let port = u16::try_from(self.load(at + 24)).unwrap_or(0);
            (self.load(at), SocketAddr::from((std::net::Ipv6Addr::from(ip).to_canonical(), port)))
        };
        places.map(listener).filter(|(number, _)| *number != 0).collect()
    }

    fn listener_at(&self, number: u64) -> Option<usize> {
        (0..LISTENERS).map(|n| at::LISTENERS + n * LISTENER).find(|at| self.load(*at) == number)
    }

    /// The client's cursor.
    pub(crate) fn consumed(&self) -> u64 {
        self.load(at::CONSUMED)
    }

    /// The batch before `next` is consumed, and everything was done about it.
    pub(crate) fn set_consumed(&self, cursor: u64) {
        self.store(at::CONSUMED, cursor);
    }

    /// Keeps a batch that is about to be answered for the first time.
    pub(crate) fn keep_batch(&self, next: u64, entries: &[BatchEntry]) {
        for (n, entry) in entries.iter().take(MAX_ENTRIES).enumerate() {
            let to = at::BATCH + n * ENTRY;
            let BatchEntry { kind, connection, send, number, end, length } = *entry;
            for (i, word) in [kind as u64, connection, send, number, end, length].into_iter().enumerate() {
                self.store(to + i * 8, word);
            }
        }
        self.store(at::ENTRIES, entries.len().min(MAX_ENTRIES) as u64);
        self.store(at::NEXT, next);
    }

    /// The batch that was answered last and is not consumed. `None`: it makes no sense.
    pub(crate) fn batch(&self) -> Option<Vec<BatchEntry>> {
        let (consumed, next) = (self.consumed(), self.load(at::NEXT));
        if next <= consumed {
            return Some(Vec::new());
        }
        let entries = usize::try_from(self.load(at::ENTRIES)).ok().filter(|entries| *entries <= MAX_ENTRIES)?;
        if next - consumed != entries as u64 {
            return None;
        }
        (0..entries).map(|n| self.entry(n)).collect()
    }

    fn entry(&self, n: usize) -> Option<BatchEntry> {
        let word = |i: usize| self.load(at::BATCH + n * ENTRY + i * 8);
        let first = [Kind::Accepted, Kind::Resumed, Kind::Received, Kind::Finished];
        let last = [Kind::Sent, Kind::Released, Kind::Closed];
        let kind = first.into_iter().chain(last).find(|kind| *kind as u64 == word(0))?;
        Some(BatchEntry { kind, connection: word(1), send: word(2), number: word(3), end: word(4), length: word(5) })
    }

    /// The session has ended.
    pub(crate) fn free(&self) {
        self.store(at::ID, 0);
    }

    fn base(&self) -> usize {
        super::header::BYTES + self.index as usize * BYTES
    }

    fn load(&self, at: usize) -> u64 {
        self.ledger.load(self.base() + at)
    }

    fn store(&self, at: usize, value: u64) {
        self.ledger.store(self.base() + at, value);
    }
}
