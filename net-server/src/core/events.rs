//! What a client has still to hear: the queue behind its standing `next_events` call.
//!
//! * A cursor counts events: the client's cursor says that it has consumed every event before it.
//! * The last batch is kept until the cursor passes it, so that a client whose answer was lost asks again.
//! * Received bytes count against their connection's window until they are consumed; [`EventQueue::is_full`] asks the shell
//!   to stop accepting and receiving, whatever the windows say, when the client does not take its events at all.

use std::collections::VecDeque;

use protocol::net::{Event, Reason, Released};

/// An event that waits for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occurrence {
    /// A listener took this connection.
    Accepted {
        /// The peer's address.
        peer: String,
    },
    /// The client's last run has sent so much of an answer, which began with this header.
    Resumed {
        /// Where its request begins.
        request: u64,
        /// Bytes of it.
        sent: u64,
        /// Its beginning; at most [`MAX_INLINE_BYTES`].
        head: Vec<u8>,
    },
    /// Bytes came in; at most [`MAX_INLINE_BYTES`].
    Received(Vec<u8>),
    /// The peer sends no more.
    Finished,
    /// A send is in the kernel's hands.
    Sent {
        /// The client's number for it.
        send: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// The pages of a send are no longer read by anybody.
    Released {
        /// The client's number for it.
        send: u64,
        /// How.
        how: Released,
    },
    /// The connection is over.
    Closed(Reason),
}

/// Longest piece of received bytes that is one event: a batch has room for several.
pub const MAX_INLINE_BYTES: usize = 2 << 10;

/// One event and the connection that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The connection's number in its session.
    pub connection: u64,
    /// What happened.
    pub occurrence: Occurrence,
}

impl Entry {
    /// The event as it is written into a batch; `capability` is the place of the connection's capability beside it.
    pub fn event(&self, capability: u8) -> Event<'_> {
        let connection = self.connection;
        match &self.occurrence {
            Occurrence::Accepted { peer } => Event::Accepted { connection, capability, peer },
            Occurrence::Resumed { request, sent, head } => {
                Event::Resumed { connection, request: *request, sent: *sent, head }
            }
            Occurrence::Received(bytes) => Event::Received { connection, bytes },
            Occurrence::Finished => Event::Finished { connection },
            Occurrence::Sent { send, bytes } => Event::Sent { connection, send: *send, bytes: *bytes },
            Occurrence::Released { send, how } => Event::Released { connection, send: *send, how: *how },
            Occurrence::Closed(reason) => Event::Closed { connection, reason: *reason },
        }
    }

    /// Its size in a batch.
    pub fn size(&self) -> usize {
        self.event(0).packed_bytes()
    }

    /// Received bytes that it brings.
    pub fn received_bytes(&self) -> usize {
        match &self.occurrence {
            Occurrence::Received(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

/// A cursor that this queue has not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCursor;

/// See the module's contract.
#[derive(Debug)]
pub struct EventQueue {
    waiting: VecDeque<Entry>,
    waiting_bytes: usize,
    limit_bytes: usize,
    /// The batch that was answered last and is not known to be consumed.
    answered: Vec<Entry>,
    /// The cursor before `answered`.
    consumed: u64,
}

impl EventQueue {
    /// An empty queue that is full at `limit_bytes`.
    pub fn new(limit_bytes: usize) -> EventQueue {
        EventQueue { waiting: VecDeque::new(), waiting_bytes: 0, limit_bytes, answered: Vec::new(), consumed: 0 }
    }

    /// The queue of a dead run: what was answered before `consumed` is consumed, `answered` may not be.
    pub fn recovered(limit_bytes: usize, consumed: u64, answered: Vec<Entry>) -> EventQueue {
        EventQueue { consumed, answered, ..EventQueue::new(limit_bytes) }
    }

    /// Whether the next batch is one that was answered before.
    pub fn repeats(&self) -> bool {
        !self.answered.is_empty()
    }

    /// Adds an event. Never refuses: what is already happening must be told; see [`Self::is_full`].
    pub fn push(&mut self, connection: u64, occurrence: Occurrence) {
        let entry = Entry { connection, occurrence };
        self.waiting_bytes += entry.size();
        self.waiting.push_back(entry);
    }

    /// Whether nothing new should be taken from the network for this client.
    pub fn is_full(&self) -> bool {
        self.waiting_bytes >= self.limit_bytes
    }

    /// Whether there is something to answer, after [`Self::consume`].
    pub fn is_ready(&self) -> bool {
        !self.waiting.is_empty() || !self.answered.is_empty()
    }

    /// Takes the client's cursor; calls `consumed` for each event that it has consumed.
    ///
    /// # Errors
    /// [`BadCursor`] for a cursor that is neither the last one answered nor the one before it.
    pub fn consume(&mut self, cursor: u64, mut consumed: impl FnMut(&Entry)) -> Result<(), BadCursor> {
        if cursor == self.consumed {
            return Ok(()); // the answer was lost, or there was none: `answered` is given again
        }
        if cursor != self.next_cursor() {
            return Err(BadCursor);
        }
        for entry in self.answered.drain(..) {
            consumed(&entry);
        }
        self.consumed = cursor;
        Ok(())
    }

    /// The next batch: at most `max_events` of at most `max_bytes` in all (but always at least one), of which at most
    /// `max_accepted` carry a capability. The same batch again until it is consumed.
    pub fn batch(&mut self, max_events: usize, max_bytes: usize, max_accepted: usize) -> &[Entry] {
        if self.answered.is_empty() {
            let (mut bytes, mut accepted) = (0, 0);
            while let Some(entry) = self.waiting.front() {
                bytes += entry.size();
                accepted += usize::from(matches!(entry.occurrence, Occurrence::Accepted { .. }));
                let full = bytes > max_bytes || accepted > max_accepted || self.answered.len() >= max_events;
                if full && !self.answered.is_empty() {
                    break;
                }
                self.waiting_bytes -= entry.size();
                self.answered.extend(self.waiting.pop_front());
            }
        }
        &self.answered
    }

    /// The cursor that consumes the batch given last.
    pub fn next_cursor(&self) -> u64 {
        self.consumed + self.answered.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(queue: &mut EventQueue, connection: u64, length: usize) {
        queue.push(connection, Occurrence::Received(vec![0; length]));
    }

    #[test]
    fn events_come_in_order_and_once() {
        let mut queue = EventQueue::new(1000);
        for connection in 0..5 {
            queue.push(connection, Occurrence::Finished);
        }
        let first: Vec<u64> = queue.batch(3, 1000, 16).iter().map(|entry| entry.connection).collect();
        assert_eq!((first, queue.next_cursor()), (vec![0, 1, 2], 3));
        queue.consume(3, |_| ()).unwrap();
        let rest: Vec<u64> = queue.batch(3, 1000, 16).iter().map(|entry| entry.connection).collect();
        assert_eq!((rest, queue.next_cursor()), (vec![3, 4], 5));
        queue.consume(5, |_| ()).unwrap();
        assert!(!queue.is_ready());
    }

    #[test]
    fn a_lost_batch_is_given_again_without_what_came_later() {
        let mut queue = EventQueue::new(1000);
        received(&mut queue, 1, 10);
        let first = queue.batch(8, 1000, 16).to_vec();
        received(&mut queue, 2, 10);
        queue.consume(0, |_| panic!("nothing is consumed")).unwrap();
        assert_eq!(queue.batch(8, 1000, 16), first);
        assert_eq!(queue.next_cursor(), 1);
    }

    #[test]
    fn whoever_consumes_a_batch_consumes_every_event_of_it() {
        let mut queue = EventQueue::new(1000);
        received(&mut queue, 7, 10);
        queue.push(7, Occurrence::Finished);
        received(&mut queue, 8, 20);
        queue.batch(8, 1000, 16);
        let mut opened = Vec::new();
        queue.consume(3, |entry| opened.push((entry.connection, entry.received_bytes()))).unwrap();
        assert_eq!(opened, [(7, 10), (7, 0), (8, 20)]);
    }

    #[test]
    fn a_cursor_from_elsewhere_is_refused() {
        let mut queue = EventQueue::new(1000);
        received(&mut queue, 1, 1);
        assert_eq!(queue.consume(1, |_| ()), Err(BadCursor));
        queue.batch(8, 1000, 16);
        assert_eq!(queue.consume(2, |_| ()), Err(BadCursor));
        assert_eq!(queue.consume(u64::MAX, |_| ()), Err(BadCursor));
        queue.consume(1, |_| ()).unwrap();
        assert_eq!(queue.consume(0, |_| ()), Err(BadCursor));
    }

    #[test]
    fn a_batch_keeps_to_its_limits_but_is_never_empty() {
        let mut queue = EventQueue::new(100_000);
        received(&mut queue, 1, 5000);
        for connection in 2..9 {
            queue.push(connection, Occurrence::Accepted { peer: "[::1]:1".to_owned() });
        }
        assert_eq!(queue.batch(8, 1000, 2).len(), 1);
        queue.consume(1, |_| ()).unwrap();
        assert_eq!(queue.batch(8, 1000, 2).len(), 2);
        queue.consume(3, |_| ()).unwrap();
        assert_eq!(queue.batch(8, 100, 16).len(), 2);
    }

    #[test]
    fn a_client_that_takes_nothing_makes_the_queue_full() {
        let mut queue = EventQueue::new(100);
        assert!(!queue.is_full());
        received(&mut queue, 1, 90);
        assert!(queue.is_full());
        queue.batch(8, 1000, 16);
        assert!(!queue.is_full());
    }
}
