//! What the next run of this process must know of its sessions and connections: memory that is kept for it.
//!
//! - Each fact is stored before it counts: a send before it is accepted, a batch of events before it is answered, that a
//!   client has consumed something before anything is done about it. The last store of a record is its commit word.
//! - Positions are absolute: bytes of a stream since the connection began. So a step that is done twice does nothing.
//! - Received bytes land in this memory at once, each at the place of its position; how far they go, the socket knows better
//!   than a process that is killed ([`position`](crate::core::position)).
//! - What is found here is checked like a disk. A record that makes no sense loses its connection, which is reset.
//!
//! ```text
//! header, one page
//!   0 magic "ATOLL-N1" | 8 version | 16 connections | 24 last serial | 32 connections that were ever in use
//! session, 16 KiB, SESSIONS of them                    (session.rs)
//! connection, CONNECTION_BYTES, as many as the header says   (connection.rs)
//! ```

mod connection;
mod session;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, Release};

use kernel_ipc::sys::segment::SegmentWriter;

pub(crate) use connection::{ConnectionRecord, Flags, KeptSend, reason};
pub(crate) use session::{BatchEntry, Kind, LISTENERS, MAX_ENTRIES, SessionRecord};

const MAGIC: u64 = u64::from_le_bytes(*b"ATOLL-N1");
const VERSION: u64 = 2;

mod header {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const CONNECTIONS: usize = 16;
    pub const SERIAL: usize = 24;
    pub const TOUCHED: usize = 32;
    pub const BYTES: usize = 4096;
}

/// Sessions that listen, at most.
pub(crate) const SESSIONS: usize = 16;
/// Connections, at most.
pub(crate) const MAX_CONNECTIONS: usize = 4096;

/// Why what was kept cannot be gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Poisoned(pub(crate) &'static str);

impl std::fmt::Display for Poisoned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "what the last run kept of its connections makes no sense: {}", self.0)
    }
}

/// See the module's contract.
pub(crate) struct Ledger {
    memory: Rc<SegmentWriter>,
    /// Indices of connections that are free again; the lowest is used next, so that few pages are.
    free: RefCell<BTreeSet<u32>>,
    /// Connections before this one were in use at some time. The next run does not look beyond it, and takes no page there.
    touched: Cell<u32>,
    connections: u32,
    serial: Cell<u64>,
}

impl Ledger {
    /// Bytes of memory for so many connections. Its pages are taken as they are used.
    pub(crate) fn bytes(connections: usize) -> usize {
        header::BYTES + SESSIONS * session::BYTES + connections * connection::BYTES
    }

    /// Begins in fresh memory, in which nothing is in use.
    ///
    /// # Errors
    /// It is too small, or not fresh.
    pub(crate) fn create(memory: SegmentWriter, connections: usize) -> io::Result<Recovered> {
        let fits = connections <= MAX_CONNECTIONS && memory.len() >= Ledger::bytes(connections);
        if !fits || memory.load_u64(header::MAGIC, Relaxed) != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        memory.store_u64(header::VERSION, VERSION, Relaxed);
        memory.store_u64(header::CONNECTIONS, connections as u64, Relaxed);
        memory.store_u64(header::MAGIC, MAGIC, Release);
        let ledger = Rc::new(Ledger {
            memory: Rc::new(memory),
            free: RefCell::default(),
            touched: Cell::new(0),
            connections: connections as u32,
            serial: Cell::new(0),
        });
        Ok(Recovered { ledger, sessions: Vec::new(), connections: Vec::new() })
    }

    /// Goes on with what a dead run left; gives the records that are in use.
    ///
    /// # Errors
    /// [`Poisoned`]: nothing of it can be used.
    pub(crate) fn recover(memory: SegmentWriter) -> Result<Recovered, Poisoned> {
        let word = |at| memory.load_u64(at, Relaxed);
        if memory.len() < header::BYTES || word(header::MAGIC) != MAGIC || word(header::VERSION) != VERSION {
            return Err(Poisoned("it has no header"));
        }
        let connections = usize::try_from(word(header::CONNECTIONS)).unwrap_or(usize::MAX);
        let touched = word(header::TOUCHED);
        if connections > MAX_CONNECTIONS || memory.len() < Ledger::bytes(connections) || touched > connections as u64 {
            return Err(Poisoned("impossible measures"));
        }
        let ledger = Rc::new(Ledger {
            free: RefCell::default(),
            touched: Cell::new(touched as u32),
            connections: connections as u32,
            serial: Cell::new(word(header::SERIAL)),
            memory: Rc::new(memory),
        });
        let mut recovered = Recovered { sessions: Vec::new(), connections: Vec::new(), ledger: ledger.clone() };
        for index in 0..SESSIONS as u32 {
            recovered.sessions.extend(SessionRecord::recover(&ledger, index));
        }
        for index in 0..touched as u32 {
            match ConnectionRecord::recover(&ledger, index) {
                Some(record) => recovered.connections.push(record),
                None => drop(ledger.free.borrow_mut().insert(index)),
            }
        }
        Ok(recovered)
    }

    /// Whether another connection has room.
    pub(crate) fn has_room(&self) -> bool {
        self.touched.get() < self.connections || !self.free.borrow().is_empty()
    }

    /// How many connections have a record.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.touched.get() as usize - self.free.borrow().len()
    }

    /// The index of a connection that is free now.
    fn take(&self) -> Option<u32> {
        let again = self.free.borrow_mut().pop_first();
        again.or_else(|| {
            let fresh = self.touched.get();
            (fresh < self.connections).then(|| {
                self.touched.set(fresh + 1);
                self.store(header::TOUCHED, u64::from(fresh) + 1);
                fresh
            })
        })
    }

    /// A number that no record of this memory had before.
    fn next_serial(&self) -> u64 {
        let serial = self.serial.get() + 1;
        self.serial.set(serial);
        self.store(header::SERIAL, serial);
        serial
    }

    fn load(&self, at: usize) -> u64 {
        // Whoever wrote it is dead and was reaped, or is this thread.
        self.memory.load_u64(at, Relaxed)
    }

    fn store(&self, at: usize, value: u64) {
        // In the order of the program: a process that dies leaves the stores before it.
        self.memory.store_u64(at, value, Release);
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.memory.copy_in(at, bytes).expect("a place inside a record");
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        self.memory.copy_out(at, bytes).expect("a place inside a record");
    }
}

/// What was found in memory.
pub(crate) struct Recovered {
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) sessions: Vec<SessionRecord>,
    pub(crate) connections: Vec<ConnectionRecord>,
}

#[cfg(test)]
mod tests;
