//! A component's logbook: what it has answered, what it serves and what it waits for, where others can read it.
//!
//! - Memory with one writer, the component's thread; the supervisor makes it, the keeper keeps it over all runs, anybody
//!   of the node may read it. So nothing of it needs an answer of the component: it can be hung or dead.
//! - A service's session writes a [`SessionLog`]: counters for each operation, and times from receiving to answering. A
//!   client's session writes a [`UseLog`]: the calls that are outstanding.
//! - Everything has a fixed number of places. What finds none is summed up (calls) or counted (waits, sessions).
//! - Calls are counted one by one. Times are sampled: of an operation whose last measured call took less than
//!   [`SHORT_NS`] one call in [`SAMPLED`] is measured and counts for all of them; a longer one costs no more than it is
//!   worth, and is always measured. So is one that waits, for the longest time.
//! - Behind it spans of traces are written, while somebody wants them: see [`trace`](crate::trace).
//! - It is only for looking: a reader believes nothing of it beyond a number or a name, and a component nothing that its
//!   last run has left but figures. A logbook that makes no sense is begun anew.
//!
//! ```text
//!      0  magic "ATOLL-B1" | version | since | epoch | run since | missed waits, uses | what runs at this moment
//!   4096  rows: operation, session, counters, names, a histogram           [`layout::row`]
//!         waits: calls that are served and wait for something              [`layout::wait`]
//!         uses: sessions as a client, and what each of their slots calls   [`layout::using`]
//!         spans of traces
//! ```

mod histogram;
mod layout;
mod reader;
mod rows;
mod uses;
mod watch;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, Release};

use nix::time::{ClockId, clock_gettime};

use crate::Epoch;
use crate::sys::segment::SegmentWriter;
use crate::trace::ring;
use layout::{ROW, ROWS, ROWS_AT, USE, USED, USES, USES_AT, WAIT, WAITS, WAITS_AT, header, row, using, wait};

pub use histogram::quantile;
pub(crate) use layout::{NAME, REST_BYTES};
pub use reader::{Outstanding, Place, Reader, Row, Snapshot, Use};
pub use rows::SessionLog;
pub(crate) use rows::{Seen, Served};
pub use uses::UseLog;
pub(crate) use watch::Watch;

/// Where the run stands that writes.
pub(crate) const EPOCH: usize = header::EPOCH;

/// Bytes of a logbook. Its pages are taken as they are used.
pub const BYTES: usize = ring::END;

/// Calls of an operation that are short are measured so seldom: one of so many.
pub const SAMPLED: u32 = 16;
/// A call that takes so long is worth two looks at the clock, in ns.
pub const SHORT_NS: u64 = 10_000;

/// The writer's end, of one thread.
pub struct Logbook {
    memory: SegmentWriter,
    /// By row: what is not written.
    rows: Vec<rows::Timing>,
    /// The sessions that are open now.
    open: RefCell<BTreeSet<u64>>,
    /// A session has ended since rows were folded.
    foldable: Cell<bool>,
    free_waits: RefCell<Vec<u16>>,
    free_uses: RefCell<Vec<u16>>,
    /// The call whose handler has the thread.
    running: Cell<watch::Running>,
}

impl Logbook {
    /// Opens a component's logbook, which may be fresh, for a run that begins now. What the last run had under way counts
    /// as lost.
    ///
    /// # Errors
    /// It is too small, or cannot be mapped.
    pub fn open(memory: OwnedFd, epoch: Epoch) -> io::Result<Rc<Logbook>> {
        let memory = SegmentWriter::open_kept(memory)?;
        if memory.len() < REST_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let book = Logbook {
            memory,
            rows: (0..ROWS).map(|_| rows::Timing::default()).collect(),
            open: RefCell::default(),
            foldable: Cell::new(true),
            free_waits: RefCell::new((0..WAITS as u16).rev().collect()),
            free_uses: RefCell::new((0..USES as u16).rev().collect()),
            running: Cell::default(),
        };
        let now = realtime();
        if book.load(header::MAGIC) != layout::MAGIC || book.load(header::VERSION) != layout::VERSION {
            book.begin(now);
        }
        book.end_last_run();
        book.store(header::EPOCH, epoch.get());
        book.store(header::RUN_SINCE, now);
        Ok(Rc::new(book))
    }

    /// Forgets whatever stands there.
    fn begin(&self, now: u64) {
        self.store(header::MAGIC, 0);
        for at in (8..REST_BYTES).step_by(8).filter(|at| self.load(*at) != 0) {
            self.store(at, 0);
        }
        if self.has_spans() {
            // What stands in the ring is stamped with its position, and none of those counts any more.
            self.store(ring::BEGUN, 0);
        }
        self.store(header::VERSION, layout::VERSION);
        self.store(header::SINCE, now);
        self.memory.store_u64(header::MAGIC, layout::MAGIC, Release);
    }

    /// What was under way died with its run.
    fn end_last_run(&self) {
        for at in (0..ROWS).map(row_at).filter(|at| self.load(at + row::OPERATION) & USED != 0) {
            self.store(at + row::LOST, self.load(at + row::LOST).wrapping_add(self.in_progress(at)));
            self.store(at + row::OPEN, 0);
        }
        (0..WAITS).for_each(|index| self.store(WAITS_AT + index * WAIT + wait::PLACE, 0));
        (0..USES).for_each(|index| self.store(USES_AT + index * USE + using::SESSION, 0));
        for at in [header::RUNNING, header::WAITS_MISSED, header::USES_MISSED] {
            self.store(at, 0);
        }
        if self.has_spans() {
            self.store(ring::EVERY, 0);
        }
    }

    fn in_progress(&self, at: usize) -> u64 {
        let ended = [row::DONE, row::OPERATION_ERRORS, row::FAILED, row::LOST].map(|field| self.load(at + field));
        ended.into_iter().fold(self.load(at + row::RECEIVED), u64::wrapping_sub)
    }

    pub(crate) fn memory(&self) -> &SegmentWriter {
        &self.memory
    }

    /// The run that writes.
    pub(crate) fn epoch(&self) -> u64 {
        self.load(header::EPOCH)
    }

    pub(crate) fn load(&self, at: usize) -> u64 {
        self.memory.load_u64(at, Relaxed)
    }

    pub(crate) fn store(&self, at: usize, value: u64) {
        self.memory.store_u64(at, value, Relaxed);
    }

    /// Nobody else writes: a load and a store are enough.
    #[inline]
    fn add(&self, at: usize, more: u64) {
        self.store(at, self.load(at).wrapping_add(more));
    }

    /// A name of at most [`layout::NAME`] bytes.
    pub(crate) fn write_name(&self, at: usize, name: &str) {
        let mut bytes = [0; layout::NAME];
        let mut end = name.len().min(bytes.len());
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        bytes[..end].copy_from_slice(&name.as_bytes()[..end]);
        self.memory.copy_in(at, &bytes).expect("a place of the layout");
    }
}

impl std::fmt::Debug for Logbook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logbook").field("open", &self.open.borrow().len()).finish_non_exhaustive()
    }
}

fn row_at(row: usize) -> usize {
    ROWS_AT + row * ROW
}

/// Monotonic ns, exact.
pub fn monotonic() -> u64 {
    clock(ClockId::CLOCK_MONOTONIC)
}

fn realtime() -> u64 {
    clock(ClockId::CLOCK_REALTIME)
}

fn clock(id: ClockId) -> u64 {
    clock_gettime(id).map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
