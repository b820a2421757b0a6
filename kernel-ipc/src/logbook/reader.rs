//! A copy of somebody's logbook, taken without him.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::histogram::{BUCKETS, quantile};
use super::layout::{
    MAGIC, NAME, REST_BYTES, ROWS, USE, USED, USES, USES_AT, VERSION, WAIT, WAITS, WAITS_AT, header, row, using, wait,
};
use super::row_at;
use crate::sys::segment::SegmentReader;

/// Which call: a row of the logbook, and a slot of that row's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of [`Snapshot::rows`], by [`Row::index`].
    pub row: u16,
    /// The slot.
    pub slot: u16,
}

impl Place {
    /// In one word that is not 0.
    pub(super) fn to_word(self) -> u64 {
        1 << 63 | u64::from(self.slot) << 16 | u64::from(self.row)
    }

    fn from_word(word: u64) -> Option<Place> {
        (word >> 63 == 1 && usize::from(word as u16) < ROWS)
            .then_some(Place { row: word as u16, slot: (word >> 16) as u16 })
    }
}

/// A call that a handler serves, in one word that is not 0.
pub(super) fn caller(session: u64, slot: u16) -> u64 {
    session << 16 | u64::from(slot)
}

/// Somebody's logbook.
#[derive(Debug)]
pub struct Reader(SegmentReader);

impl Reader {
    /// Maps it.
    ///
    /// # Errors
    /// It is not sealed, or too small.
    pub fn open(memory: OwnedFd) -> io::Result<Reader> {
        Ok(Reader(SegmentReader::open(memory, REST_BYTES)?))
    }

    /// What stands in it now, each word at its own time; `None` if nobody has written it yet, or in another layout.
    pub fn read(&self) -> Option<Snapshot> {
        if self.0.load_u64(header::MAGIC, Acquire) != MAGIC || self.word(header::VERSION) != VERSION {
            return None;
        }
        Some(Snapshot {
            since_ns: self.word(header::SINCE),
            epoch: self.word(header::EPOCH),
            run_since_ns: self.word(header::RUN_SINCE),
            running: Place::from_word(self.word(header::RUNNING)),
            rows: (0..ROWS).filter_map(|index| self.row(index)).collect(),
            waits: (0..WAITS).filter_map(|index| self.wait(index)).collect(),
            waits_missed: self.word(header::WAITS_MISSED),
            uses: (0..USES).filter_map(|index| self.using(index)).collect(),
            uses_missed: self.word(header::USES_MISSED),
        })
    }

    pub(crate) fn memory(&self) -> &SegmentReader {
        &self.0
    }

    fn word(&self, at: usize) -> u64 {
        self.0.load_u64(at, Relaxed)
    }

    fn row(&self, index: usize) -> Option<Row> {
        let at = row_at(index);
        let operation = self.0.load_u64(at + row::OPERATION, Acquire);
        if operation & USED == 0 {
            return None;
        }
        let mut buckets = [0; BUCKETS];
        (0..BUCKETS).for_each(|bucket| buckets[bucket] = self.word(at + row::BUCKETS + 8 * bucket));
        Some(Row {
            index: index as u16,
            operation: operation as u16,
            session: self.word(at + row::SESSION),
            open: self.word(at + row::OPEN) == 1,
            endpoint: self.name(at + row::ENDPOINT),
            client: self.name(at + row::CLIENT),
            name: self.name(at + row::OPERATION_NAME),
            received: self.word(at + row::RECEIVED),
            done: self.word(at + row::DONE),
            operation_errors: self.word(at + row::OPERATION_ERRORS),
            failed: self.word(at + row::FAILED),
            refused: self.word(at + row::REFUSED),
            lost: self.word(at + row::LOST),
            longest_ns: self.word(at + row::LONGEST),
            buckets,
        })
    }

    fn wait(&self, index: usize) -> Option<(Place, u64)> {
        let at = WAITS_AT + index * WAIT;
        let place = Place::from_word(self.0.load_u64(at + wait::PLACE, Acquire))?;
        Some((place, self.word(at + wait::SINCE)))
    }

    fn using(&self, index: usize) -> Option<Use> {
        let at = USES_AT + index * USE;
        let session = self.0.load_u64(at + using::SESSION, Acquire);
        let outstanding = |slot: u16| {
            let at = at + using::SLOTS_AT + usize::from(slot) * using::SLOT;
            let operation = self.0.load_u64(at + using::OPERATION, Acquire);
            let caller = self.word(at + using::CALLER);
            (operation & USED != 0).then(|| Outstanding {
                slot,
                operation: operation as u16,
                since_ns: self.word(at + using::SINCE),
                caller: (caller != 0).then_some((caller >> 16, caller as u16)),
            })
        };
        (session != 0).then(|| Use {
            session,
            endpoint: self.name(at + using::ENDPOINT),
            interface: self.name(at + using::INTERFACE),
            outstanding: (0..using::SLOTS as u16).filter_map(outstanding).collect(),
        })
    }

    /// Text for people: what is none is shown as such.
    pub(crate) fn name(&self, at: usize) -> String {
        let mut bytes = [0; NAME];
        self.0.copy_out(at, &mut bytes).expect("a place of the layout");
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME);
        let text = String::from_utf8_lossy(&bytes[..end]);
        text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
    }
}

/// What stood in a logbook.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When the figures began, in ns since 1970.
    pub since_ns: u64,
    /// The run that writes, or wrote last.
    pub epoch: u64,
    /// When it began, in ns since 1970.
    pub run_since_ns: u64,
    /// The call whose handler had the thread.
    pub running: Option<Place>,
    /// What was asked, by session and operation.
    pub rows: Vec<Row>,
    /// Calls whose handlers waited, and since when (monotonic ns).
    pub waits: Vec<(Place, u64)>,
    /// How many waits of this run there was no room for.
    pub waits_missed: u64,
    /// The sessions that it had open as a client.
    pub uses: Vec<Use>,
    /// How many sessions of this run there was no room for.
    pub uses_missed: u64,
}

impl Snapshot {
    /// The row of a place.
    pub fn row(&self, place: Place) -> Option<&Row> {
        self.rows.iter().find(|row| row.index == place.row)
    }
}

/// What one session has asked of one operation.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which row of the logbook; 0: the one of all that found no other.
    pub index: u16,
    /// Its number; 0: what the interface does not have.
    pub operation: u16,
    /// The session; 0: those of this client that have ended.
    pub session: u64,
    /// The session is open.
    pub open: bool,
    /// The endpoint's name.
    pub endpoint: String,
    /// The client's name.
    pub client: String,
    /// The operation's name.
    pub name: String,
    /// Calls that passed every check.
    pub received: u64,
    /// Those that were answered,
    pub done: u64,
    /// ended with the operation's own error,
    pub operation_errors: u64,
    /// or with a failure of the call.
    pub failed: u64,
    /// Calls that passed not every check, besides those received.
    pub refused: u64,
    /// Those received that were under way when a run died.
    pub lost: u64,
    /// Longest time that was measured, in ns.
    pub longest_ns: u64,
    /// How long they took from receiving to answering; see [`quantile`].
    pub buckets: [u64; BUCKETS],
}

impl Row {
    /// Calls that are being served. What is read while it is written may be off by one.
    pub fn in_progress(&self) -> u64 {
        let ended =
            self.done.saturating_add(self.operation_errors).saturating_add(self.failed).saturating_add(self.lost);
        self.received.saturating_sub(ended)
    }

    /// The time that a share of the calls, in thousandths, did not exceed, in ns, to an eighth of it.
    pub fn quantile(&self, thousandths: u64) -> u64 {
        quantile(&self.buckets, thousandths).min(self.longest_ns)
    }

    /// Adds another row's figures to this one's.
    pub fn add(&mut self, other: &Row) {
        let sum = |to: &mut u64, from: u64| *to = to.saturating_add(from);
        sum(&mut self.received, other.received);
        sum(&mut self.done, other.done);
        sum(&mut self.operation_errors, other.operation_errors);
        sum(&mut self.failed, other.failed);
        sum(&mut self.refused, other.refused);
        sum(&mut self.lost, other.lost);
        self.longest_ns = self.longest_ns.max(other.longest_ns);
        self.buckets.iter_mut().zip(other.buckets).for_each(|(to, from)| sum(to, from));
        self.open |= other.open;
    }
}

/// A session as a client.
#[derive(Clone, Debug)]
pub struct Use {
    /// The session.
    pub session: u64,
    /// The endpoint, as the client knows it.
    pub endpoint: String,
    /// Its interface.
    pub interface: String,
    /// Its calls that are not answered.
    pub outstanding: Vec<Outstanding>,
}

/// A call that its caller waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// The slot.
    pub slot: u16,
    /// The operation's number.
    pub operation: u16,
    /// Monotonic ns; late by a tick of the kernel's clock at most.
    pub since_ns: u64,
    /// The session and slot whose handler made this call, if one did before it first waited elsewhere.
    pub caller: Option<(u64, u16)>,
}
