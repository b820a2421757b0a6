//! The two ends of a ring of descriptors, apart from the memory it lies in, so that a model can run them.
//!
//! ```text
//! producer                                       consumer
//! position - head < entries, else no room        first word has the position's lap, else nothing is there
//! rest of the line, then its first word (rel.)   first word (acquire), then the rest: a private copy
//!                                                head = position + 1 (release): the line may be written again
//! ```
//!
//! - The lap is in the low 16 bits of a line's first word: what stands there from one time round before has another one.
//! - Lines are written and read a few at a time ([`lines`](super::lines)). A line that was copied before its turn is still
//!   counted as unread until its turn comes.

use std::cell::{Cell, RefCell};

use super::lines::{Ahead, Staged};

/// The lap's bits in a descriptor's first word.
const LAP_MASK: u64 = 0xffff;

/// The producer's view of the ring.
pub trait Outgoing {
    /// Writes a line as [`sys::line`](crate::sys::line) says.
    fn store_line(&self, entry: usize, line: &[u64; 8]);
    /// A hint that a line will be written soon.
    fn prepare_line(&self, entry: usize);
    /// How many messages the consumer says it has read. Acquire: what it read comes before what is written because of it.
    fn load_head(&self) -> u64;
}

/// The consumer's view of the ring.
pub trait Incoming {
    /// Reads a line as [`sys::line`](crate::sys::line) says.
    fn load_line(&self, entry: usize, wanted: impl FnOnce(u64) -> bool) -> Option<[u64; 8]>;
    /// The first word of a line, whose rest is not read.
    fn load_first(&self, entry: usize) -> u64;
    /// Says how many messages were read. Release: the copies come before.
    fn store_head(&self, head: u64);
}

/// Where a position stands in a ring and which lap it is in.
#[derive(Clone, Copy, Debug)]
pub struct Laps {
    mask: u64,
    shift: u32,
}

impl Laps {
    /// Of a ring of so many entries: a power of two.
    pub fn of(entries: u32) -> Laps {
        debug_assert!(entries.is_power_of_two());
        Laps { mask: u64::from(entries) - 1, shift: entries.trailing_zeros() }
    }

    /// Entries of the ring.
    #[inline]
    pub fn entries(self) -> u64 {
        self.mask + 1
    }

    #[inline]
    fn entry(self, position: u64) -> usize {
        (position & self.mask) as usize
    }

    /// As [`Shape::lap`](crate::wire::Shape::lap).
    #[inline]
    fn lap(self, position: u64) -> u64 {
        u64::from(((position >> self.shift) as u16).wrapping_add(1))
    }
}

/// The producer's end.
#[derive(Debug)]
pub struct Sender {
    laps: Laps,
    /// Messages sent, and those that are not in the ring yet.
    sent: Cell<u64>,
    staged: RefCell<Staged>,
    /// What the consumer had read when we last looked.
    read_by_peer: Cell<u64>,
}

impl Sender {
    /// Nothing was sent.
    pub fn new(laps: Laps) -> Sender {
        Sender { laps, sent: Cell::new(0), staged: RefCell::default(), read_by_peer: Cell::new(0) }
    }

    /// Messages sent.
    #[inline]
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// How many of them the consumer says it has read. One that claims to have read more than was sent gets the cautious
    /// meaning: all of it.
    pub fn read_by_peer(&self, memory: &impl Outgoing) -> u64 {
        memory.load_head().min(self.sent.get())
    }

    /// Whether there is room for a message more.
    #[inline]
    pub fn has_room(&self, memory: &impl Outgoing) -> bool {
        let sent = self.sent.get();
        if sent - self.read_by_peer.get() < self.laps.entries() {
            return true;
        }
        self.read_by_peer.set(self.read_by_peer(memory));
        sent - self.read_by_peer.get() < self.laps.entries()
    }

    /// Sends a message, whose lap is 0. There [is room](Self::has_room).
    #[inline]
    pub fn send(&self, memory: &impl Outgoing, mut line: [u64; 8]) {
        let position = self.sent.get();
        line[0] |= self.laps.lap(position);
        self.sent.set(position + 1);
        let mut staged = self.staged.borrow_mut();
        if staged.is_first() {
            memory.store_line(self.laps.entry(position), &line);
        } else if staged.push(&line) {
            self.write(memory, staged.take());
        }
    }

    /// Writes what was sent and is not in the ring yet.
    #[inline]
    pub fn publish(&self, memory: &impl Outgoing) {
        let mut staged = self.staged.borrow_mut();
        if staged.end_turn() {
            self.write(memory, staged.take());
        }
    }

    /// Writes the last messages that were sent.
    fn write(&self, memory: &impl Outgoing, lines: &[[u64; 8]]) {
        let first = self.sent.get() - lines.len() as u64;
        if lines.len() > 1 {
            (first..self.sent.get()).for_each(|position| memory.prepare_line(self.laps.entry(position)));
        }
        (first..).zip(lines).for_each(|(position, line)| memory.store_line(self.laps.entry(position), line));
    }
}

/// The consumer's end.
#[derive(Debug)]
pub struct Receiver {
    laps: Laps,
    /// Messages received, and what was copied of those after them.
    received: Cell<u64>,
    ahead: RefCell<Ahead>,
}

impl Receiver {
    /// Nothing was received.
    pub fn new(laps: Laps) -> Receiver {
        Receiver { laps, received: Cell::new(0), ahead: RefCell::default() }
    }

    /// Messages received.
    #[inline]
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Takes the next message, if it is there; its lap is 0 again.
    #[inline]
    pub fn receive(&self, memory: &impl Incoming) -> Option<[u64; 8]> {
        let position = self.received.get();
        let line_at = |beyond| {
            let lap = self.laps.lap(position + beyond);
            memory.load_line(self.laps.entry(position + beyond), |first| first & LAP_MASK == lap)
        };
        let mut line = self.ahead.borrow_mut().next(line_at)?;
        line[0] &= !LAP_MASK;
        self.received.set(position + 1);
        // Stored before anything is done with the message, so that what is not counted here certainly did not run.
        memory.store_head(position + 1);
        Some(line)
    }

    /// Whether the next message is there, without taking it.
    pub fn has_message(&self, memory: &impl Incoming) -> bool {
        if !self.ahead.borrow().is_empty() {
            return true;
        }
        let position = self.received.get();
        memory.load_first(self.laps.entry(position)) & LAP_MASK == self.laps.lap(position)
    }
}
