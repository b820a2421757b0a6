//! The client's end: one standing call after the other, as one stream of events.

use std::collections::VecDeque;

/// Makes the standing call again and again, each time with the cursor that the last answer gave, and gives its events
/// one by one. So the host hears that a batch is consumed when all of it was taken, and not before.
pub struct Stream<T, A> {
    ask: A,
    cursor: u64,
    batch: VecDeque<T>,
    ended: bool,
}

impl<T, E, A> Stream<T, A>
where
    A: AsyncFnMut(u64) -> Result<(u64, Vec<T>), E>,
{
    /// `ask` makes the call with a cursor, 0 at first, and gives the next cursor and the events; none of them: the host
    /// has told everything.
    pub fn new(ask: A) -> Stream<T, A> {
        Stream { ask, cursor: 0, batch: VecDeque::new(), ended: false }
    }

    /// The next event; `None` when there are no more.
    ///
    /// # Errors
    /// Those of the call. It is made again by the next `next`, with the same cursor.
    pub async fn next(&mut self) -> Result<Option<T>, E> {
        if self.batch.is_empty() && !self.ended {
            let (next, events) = (self.ask)(self.cursor).await?;
            self.cursor = next;
            self.ended = events.is_empty();
            self.batch.extend(events);
        }
        Ok(self.batch.pop_front())
    }
}
