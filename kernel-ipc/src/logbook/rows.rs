//! What a session asks of a service, counted by operation.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering::Release;

use super::histogram::{BUCKETS, bucket};
use super::layout::{NAME, ROWS, USED, row};
use super::{Logbook, SAMPLED, SHORT_NS, monotonic, row_at};
use crate::error::Failure;
use crate::interface::Description;
use crate::session::SessionInfo;
use crate::trace::ring::Begun;
use crate::trace::{self, Kind, Open, Outcome};

/// The row of everybody who found no other.
const OTHERS: u16 = 0;
/// How the broker begins the names of guests; a component's has no space in it.
const GUEST: &str = "guest ";
/// Operations with greater numbers have no row of their own.
const NUMBERS: usize = 256;

/// When the calls of a row are measured.
#[derive(Default)]
pub(super) struct Timing {
    /// Calls that are not measured before the next one is.
    skip: Cell<u32>,
    /// Calls that were not since the last one was: it counts for them.
    skipped: Cell<u32>,
}

/// When a call was seen that is traced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// 0: it is not.
    pub(crate) trace: u64,
    /// Monotonic ns.
    pub(crate) at_ns: u64,
}

/// Such a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) seen: Seen,
    pub(crate) slot: u16,
    pub(crate) seq: u64,
    pub(crate) operation: u16,
}

/// A session's part of its host's logbook.
#[derive(Debug)]
pub struct SessionLog {
    pub(super) book: Rc<Logbook>,
    pub(super) session: u64,
    endpoint: String,
    client: String,
    /// It writes no logbook of its own.
    is_guest: bool,
    interface: &'static Description,
    /// By operation: its row, and one more; 0: not known yet. Operation 0 is of what the interface does not have.
    rows: Box<[Cell<u16>]>,
}

impl SessionLog {
    /// Of a session with `endpoint`. Goes on with what is written of it, if a last run has served it.
    pub fn new(book: &Rc<Logbook>, endpoint: &str, info: &SessionInfo, interface: &'static Description) -> SessionLog {
        let last = interface.operations.last().map_or(0, |operation| usize::from(operation.number));
        book.open.borrow_mut().insert(info.id.get());
        SessionLog {
            book: book.clone(),
            session: info.id.get(),
            endpoint: endpoint.to_owned(),
            client: info.client_name.clone(),
            is_guest: info.client_name.starts_with(GUEST),
            interface,
            rows: vec![Cell::new(0); (last + 1).min(NUMBERS)].into(),
        }
    }

    /// A call has passed every check, and its handler is about to get it. Gives its row.
    #[inline]
    pub(super) fn received(&self, operation: u16) -> u16 {
        let row = self.row(operation);
        self.book.add(row_at(row.into()) + row::RECEIVED, 1);
        row
    }

    /// A call is refused, and no handler sees it.
    pub(crate) fn refused(&self, operation: u16) {
        let known = self.interface.operation(operation).map_or(0, |operation| operation.number);
        self.book.add(row_at(self.row(known).into()) + row::REFUSED, 1);
    }

    /// A call was read, and its client says that it belongs to this trace (0: to none). What a guest says counts for nothing.
    #[cold]
    pub(crate) fn saw(&self, trace: u64) -> Seen {
        let trace = if self.is_guest { trace::of_guest() } else { Some(trace).filter(|trace| *trace != 0) };
        trace.map_or_else(Seen::default, |trace| Seen { trace, at_ns: monotonic() })
    }

    /// The handler of a call that was seen begins.
    #[cold]
    pub(super) fn span_begins(&self, call: Served) -> Open {
        self.book.begin_span(self.begun(call, monotonic()), self.names(call.operation))
    }

    /// It has ended.
    #[cold]
    pub(super) fn span_ends(&self, open: &Open, operation: u16, outcome: Outcome) {
        self.book.end_span(open, self.names(operation), outcome);
    }

    /// A call that was seen is refused.
    #[cold]
    pub(crate) fn span_refused(&self, call: Served, failure: Failure) {
        self.book.refused_span(self.begun(call, 0), self.names(call.operation), Outcome::Failed(failure));
    }

    fn begun(&self, call: Served, begun_ns: u64) -> Begun {
        let Served { seen, slot, seq, operation } = call;
        let (kind, trace, session, seen_ns) = (Kind::Served, seen.trace, self.session, seen.at_ns);
        Begun { kind, trace, session, seq, slot, operation, seen_ns, begun_ns, parent: 0 }
    }

    fn names(&self, operation: u16) -> [&str; 3] {
        let name = self.interface.operation(operation).map_or("?", |operation| operation.name);
        [&self.endpoint, &self.client, name]
    }

    /// Whether a call that begins now is measured.
    #[inline]
    pub(super) fn is_measured(&self, row: u16) -> bool {
        let timing = &self.book.rows[usize::from(row)];
        let skip = timing.skip.get();
        if skip == 0 {
            return true;
        }
        timing.skip.set(skip - 1);
        timing.skipped.set(timing.skipped.get() + 1);
        false
    }

    /// Counts how a call ended.
    #[inline]
    pub(super) fn ended(&self, row: u16, outcome: Outcome) {
        let field = match outcome {
            Outcome::Failed(_) | Outcome::GivenUp => row::FAILED,
            Outcome::OperationError(_) => row::OPERATION_ERRORS,
            Outcome::Done => row::DONE,
        };
        self.book.add(row_at(row.into()) + field, 1);
    }

    /// A call was measured.
    pub(super) fn took(&self, row: u16, ns: u64) {
        let timing = &self.book.rows[usize::from(row)];
        self.book.add(row_at(row.into()) + row::BUCKETS + 8 * bucket(ns), u64::from(timing.skipped.replace(0)) + 1);
        timing.skip.set(if ns < SHORT_NS { SAMPLED - 1 } else { 0 });
        self.took_at_least(row, ns);
    }

    /// A call has taken so long, whether it is one of those that are measured or not.
    pub(super) fn took_at_least(&self, row: u16, ns: u64) {
        let longest = row_at(row.into()) + row::LONGEST;
        if ns > self.book.load(longest) {
            self.book.store(longest, ns);
        }
    }

    /// The row of an operation.
    #[inline]
    fn row(&self, operation: u16) -> u16 {
        match self.rows.get(usize::from(operation)).map(Cell::get) {
            Some(0) => self.find_row(operation),
            Some(known) => known - 1,
            None => OTHERS,
        }
    }

    #[cold]
    fn find_row(&self, operation: u16) -> u16 {
        let row = self.written(operation).or_else(|| self.book.free_row()).inspect(|&row| {
            self.write(row, operation);
        });
        let row = row.unwrap_or_else(|| {
            // In use from now on.
            self.book.store(row_at(OTHERS.into()) + row::OPERATION, USED);
            OTHERS
        });
        self.rows[usize::from(operation)].set(row + 1);
        row
    }

    /// The row that this session had in the last run.
    fn written(&self, operation: u16) -> Option<u16> {
        let is_ours = |row: &u16| {
            let at = row_at((*row).into());
            self.book.load(at + row::OPERATION) == USED | u64::from(operation)
                && self.book.load(at + row::SESSION) == self.session
        };
        (OTHERS + 1..ROWS as u16).find(is_ours)
    }

    fn write(&self, row: u16, operation: u16) {
        let at = row_at(row.into());
        let name = self.interface.operation(operation).map_or("?", |operation| operation.name);
        self.book.write_name(at + row::ENDPOINT, &self.endpoint);
        self.book.write_name(at + row::CLIENT, &self.client);
        self.book.write_name(at + row::OPERATION_NAME, name);
        self.book.store(at + row::SESSION, self.session);
        self.book.store(at + row::OPEN, 1);
        // Release pairs with the reader's Acquire: whoever sees the row as used sees its names.
        self.book.memory.store_u64(at + row::OPERATION, USED | u64::from(operation), Release);
    }
}

impl Drop for SessionLog {
    fn drop(&mut self) {
        for row in self.rows.iter().map(Cell::get).filter(|row| *row > OTHERS + 1) {
            self.book.store(row_at((row - 1).into()) + row::OPEN, 0);
        }
        self.book.open.borrow_mut().remove(&self.session);
        self.book.foldable.set(true);
    }
}

impl Logbook {
    /// A row that nobody uses. Sums up what ended sessions of a client have left, if there is none otherwise.
    fn free_row(&self) -> Option<u16> {
        let free = || (OTHERS + 1..ROWS as u16).find(|row| self.load(row_at((*row).into()) + row::OPERATION) == 0);
        free().or_else(|| {
            if self.foldable.replace(false) {
                self.fold();
            }
            free()
        })
    }

    /// Sums up the rows of ended sessions: one for each endpoint, client and operation is left.
    fn fold(&self) {
        let mut kept: Vec<([u8; 2 * NAME], u64, usize)> = Vec::new();
        for at in (1..ROWS).map(row_at) {
            let operation = self.load(at + row::OPERATION);
            let is_open = self.open.borrow().contains(&self.load(at + row::SESSION));
            if operation == 0 || is_open || self.in_progress(at) != 0 {
                continue;
            }
            let mut names = [0; 2 * NAME];
            self.memory.copy_out(at + row::ENDPOINT, &mut names).expect("a place of the layout");
            let Some((_, _, sum)) = kept.iter().find(|(of, number, _)| *of == names && *number == operation) else {
                self.store(at + row::SESSION, 0);
                kept.push((names, operation, at));
                continue;
            };
            let counters =
                [row::RECEIVED, row::DONE, row::OPERATION_ERRORS, row::FAILED, row::REFUSED, row::LOST].into_iter();
            for field in counters.chain((0..BUCKETS).map(|bucket| row::BUCKETS + 8 * bucket)) {
                self.add(sum + field, self.load(at + field));
                self.store(at + field, 0);
            }
            self.store(sum + row::LONGEST, self.load(sum + row::LONGEST).max(self.load(at + row::LONGEST)));
            self.store(at + row::LONGEST, 0);
            self.store(at + row::OPERATION, 0);
        }
    }
}
