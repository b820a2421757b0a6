//! What a client has still to hear, without the calls that carry it.
//!
//! The batch that was answered last is kept until the cursor passes it, so that a client whose answer was lost asks again.

use std::collections::VecDeque;

/// What can be told.
pub trait Event {
    /// Bytes that it takes in an answer.
    fn bytes(&self) -> usize;

    /// Capabilities that travel beside it.
    fn capabilities(&self) -> usize {
        0
    }
}

/// What one answer holds.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Events.
    pub events: usize,
    /// Bytes of them all.
    pub bytes: usize,
    /// Capabilities beside them.
    pub capabilities: usize,
}

/// A cursor that this queue has not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCursor;

/// See the module's contract.
#[derive(Debug)]
pub struct Queue<E> {
    waiting: VecDeque<E>,
    waiting_bytes: usize,
    limit_bytes: usize,
    /// The batch that was answered last and is not known to be consumed.
    answered: Vec<E>,
    /// The cursor before `answered`.
    consumed: u64,
}

impl<E: Event> Queue<E> {
    /// An empty queue that is full at `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Queue<E> {
        Queue { waiting: VecDeque::new(), waiting_bytes: 0, limit_bytes, answered: Vec::new(), consumed: 0 }
    }

    /// The queue of a dead run: what was answered before `consumed` is consumed, `answered` may not be.
    pub fn recovered(limit_bytes: usize, consumed: u64, answered: Vec<E>) -> Queue<E> {
        Queue { consumed, answered, ..Queue::new(limit_bytes) }
    }

    /// Whether the next batch is one that was answered before.
    pub fn repeats(&self) -> bool {
        !self.answered.is_empty()
    }

    /// Adds an event. Never refuses: what is already happening must be told; see [`Self::is_full`].
    pub fn push(&mut self, event: E) {
        self.waiting_bytes += event.bytes();
        self.waiting.push_back(event);
    }

    /// Whether nothing new should be begun of which this client would have to be told.
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
    pub fn consume(&mut self, cursor: u64, consumed: impl FnMut(&E)) -> Result<(), BadCursor> {
        if cursor == self.consumed {
            return Ok(()); // the answer was lost, or there was none: `answered` is given again
        }
        if cursor != self.next_cursor() {
            return Err(BadCursor);
        }
        self.answered.iter().for_each(consumed);
        self.answered.clear();
        self.consumed = cursor;
        Ok(())
    }

    /// The next batch within `limits`, but always at least one event. The same batch again until it is consumed.
    pub fn batch(&mut self, limits: BatchLimits) -> &[E] {
        if self.answered.is_empty() {
            let (mut bytes, mut capabilities) = (0, 0);
            while let Some(event) = self.waiting.front() {
                bytes += event.bytes();
                capabilities += event.capabilities();
                let full =
                    bytes > limits.bytes || capabilities > limits.capabilities || self.answered.len() >= limits.events;
                if full && !self.answered.is_empty() {
                    break;
                }
                self.waiting_bytes -= event.bytes();
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

    /// Bytes, and capabilities.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Sized(usize, usize);

    impl Event for Sized {
        fn bytes(&self) -> usize {
            self.0
        }

        fn capabilities(&self) -> usize {
            self.1
        }
    }

    fn of(sizes: impl IntoIterator<Item = usize>) -> Queue<Sized> {
        let mut queue = Queue::new(1000);
        sizes.into_iter().for_each(|size| queue.push(Sized(size, 0)));
        queue
    }

    fn limits(events: usize, bytes: usize, capabilities: usize) -> BatchLimits {
        BatchLimits { events, bytes, capabilities }
    }

    fn sizes(batch: &[Sized]) -> Vec<usize> {
        batch.iter().map(|event| event.0).collect()
    }

    #[test]
    fn events_come_in_order_and_once() {
        let mut queue = of(0..5);
        assert_eq!(sizes(queue.batch(limits(3, 1000, 16))), [0, 1, 2]);
        assert_eq!(queue.next_cursor(), 3);
        queue.consume(3, |_| ()).unwrap();
        assert_eq!(sizes(queue.batch(limits(3, 1000, 16))), [3, 4]);
        assert_eq!(queue.next_cursor(), 5);
        queue.consume(5, |_| ()).unwrap();
        assert!(!queue.is_ready());
    }

    #[test]
    fn a_lost_batch_is_given_again_without_what_came_later() {
        let mut queue = of([10]);
        let first = queue.batch(limits(8, 1000, 16)).to_vec();
        queue.push(Sized(11, 0));
        queue.consume(0, |_| panic!("nothing is consumed")).unwrap();
        assert!(queue.repeats());
        assert_eq!(queue.batch(limits(8, 1000, 16)), first);
        assert_eq!(queue.next_cursor(), 1);
    }

    #[test]
    fn whoever_consumes_a_batch_consumes_every_event_of_it() {
        let mut queue = of([10, 0, 20]);
        queue.batch(limits(8, 1000, 16));
        let mut consumed = Vec::new();
        queue.consume(3, |event| consumed.push(event.0)).unwrap();
        assert_eq!(consumed, [10, 0, 20]);
    }

    #[test]
    fn a_cursor_from_elsewhere_is_refused() {
        let mut queue = of([1]);
        assert_eq!(queue.consume(1, |_| ()), Err(BadCursor));
        queue.batch(limits(8, 1000, 16));
        assert_eq!(queue.consume(2, |_| ()), Err(BadCursor));
        assert_eq!(queue.consume(u64::MAX, |_| ()), Err(BadCursor));
        queue.consume(1, |_| ()).unwrap();
        assert_eq!(queue.consume(0, |_| ()), Err(BadCursor));
    }

    #[test]
    fn a_batch_keeps_to_its_limits_but_is_never_empty() {
        let mut queue = of([5000]);
        (2..9).for_each(|_| queue.push(Sized(40, 1)));
        assert_eq!(queue.batch(limits(8, 1000, 2)).len(), 1);
        queue.consume(1, |_| ()).unwrap();
        assert_eq!(queue.batch(limits(8, 1000, 2)).len(), 2);
        queue.consume(3, |_| ()).unwrap();
        assert_eq!(queue.batch(limits(8, 100, 16)).len(), 2);
    }

    #[test]
    fn a_client_that_takes_nothing_makes_the_queue_full() {
        let mut queue = of([999]);
        assert!(!queue.is_full());
        queue.push(Sized(1, 0));
        assert!(queue.is_full());
        queue.batch(limits(1, 1000, 16));
        assert!(!queue.is_full());
    }
}
