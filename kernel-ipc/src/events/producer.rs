//! The host's end: a queue, and the standing call that empties it.

use std::cell::{Cell, RefCell};

use super::queue::{BadCursor, BatchLimits, Event, Queue};
use crate::runtime::{Changes, Signal};

/// The events of one client, and its standing call. One per session that wants to hear.
pub struct Producer<E> {
    queue: RefCell<Queue<E>>,
    /// Raised when there is something to tell.
    news: Signal,
    /// Happens when the queue is full no more.
    room: Changes,
    is_open: Cell<bool>,
    ended: Cell<bool>,
}

/// Another standing call of this client is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadyOpen;

/// What one answer tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<E> {
    /// In order. None only if the producer has [ended](Producer::end).
    pub events: Vec<E>,
    /// The cursor with which the client says that it has consumed them.
    pub next: u64,
    /// They were answered before.
    pub repeats: bool,
    /// The queue [was full](Producer::is_full), perhaps only since the call stands, and is full no more: who has stopped for
    /// that can go on.
    pub made_room: bool,
}

impl<E: Event + Clone> Producer<E> {
    /// For what is in `queue`, and what comes.
    pub fn new(queue: Queue<E>) -> Producer<E> {
        let is_ready = queue.is_ready();
        let producer = Producer {
            queue: RefCell::new(queue),
            news: Signal::default(),
            room: Changes::default(),
            is_open: Cell::new(false),
            ended: Cell::new(false),
        };
        if is_ready {
            producer.news.raise();
        }
        producer
    }

    /// Calls `change` with the queue, and wakes the standing call if there is something to tell then.
    pub fn with<T>(&self, change: impl FnOnce(&mut Queue<E>) -> T) -> T {
        let (result, ready) = {
            let mut queue = self.queue.borrow_mut();
            (change(&mut queue), queue.is_ready())
        };
        if ready {
            self.news.raise();
        }
        result
    }

    /// Whether the client takes its events too slowly to be told more.
    pub fn is_full(&self) -> bool {
        self.queue.borrow().is_full()
    }

    /// Adds one of many results as soon as the client has credit for it. Never returns if the client consumes no more:
    /// the task of a producer ends with its session.
    pub async fn send(&self, event: E) {
        while self.is_full() {
            self.room.next().await;
        }
        self.with(|queue| queue.push(event));
    }

    /// There will be no more: what is in the queue is told, then an empty batch, as often as it is asked for.
    pub fn end(&self) {
        self.ended.set(true);
        self.news.raise();
    }

    /// Begins to answer the standing call, until the value is dropped.
    ///
    /// # Errors
    /// [`AlreadyOpen`]: there is one.
    pub fn stand(&self) -> Result<Standing<'_, E>, AlreadyOpen> {
        match self.is_open.replace(true) {
            true => Err(AlreadyOpen),
            false => Ok(Standing(self)),
        }
    }
}

/// A standing call. Dropped when it is answered or cancelled.
pub struct Standing<'a, E>(&'a Producer<E>);

impl<E: Event + Clone> Standing<'_, E> {
    /// Takes the client's cursor; calls `consumed` for each event that it has consumed.
    ///
    /// # Errors
    /// As [`Queue::consume`].
    pub fn consume(&self, cursor: u64, consumed: impl FnMut(&E)) -> Result<(), BadCursor> {
        self.0.queue.borrow_mut().consume(cursor, consumed)
    }

    /// Waits for something to tell, and takes as much as `limits` allow.
    pub async fn batch(&self, limits: BatchLimits) -> Batch<E> {
        let producer = self.0;
        while !producer.queue.borrow().is_ready() && !producer.ended.get() {
            producer.news.wait().await;
        }
        let batch = {
            let mut queue = producer.queue.borrow_mut();
            // Only a batch makes room, so this holds if it was full at any moment since the last one.
            let was_full = queue.is_full();
            let repeats = queue.repeats();
            let events = queue.batch(limits).to_vec();
            Batch { events, next: queue.next_cursor(), repeats, made_room: was_full && !queue.is_full() }
        };
        if batch.made_room {
            producer.room.happen();
        }
        batch
    }
}

impl<E> Drop for Standing<'_, E> {
    fn drop(&mut self) {
        self.0.is_open.set(false);
    }
}
