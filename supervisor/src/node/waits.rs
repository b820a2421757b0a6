//! What the supervisor's tasks wait for, beside answers and events.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;

pub use kernel_ipc::runtime::Changes;

/// Lets one task at a time go on.
#[derive(Default)]
pub struct Turn {
    taken: Cell<bool>,
    freed: Changes,
}

/// Ends the turn when it is dropped.
pub struct Taken<'a>(&'a Turn);

impl Turn {
    /// Waits for the turn.
    pub async fn take(&self) -> Taken<'_> {
        while self.taken.replace(true) {
            self.freed.next().await;
        }
        Taken(self)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        self.0.freed.happen();
    }
}

/// Which of two futures was first.
pub enum Either<A, B> {
    /// The first one.
    First(A),
    /// The second one.
    Second(B),
}

/// Waits for the first of two futures; the other is dropped.
pub async fn either<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(a) = Pin::as_mut(&mut a).poll(cx) {
            return Poll::Ready(Either::First(a));
        }
        Pin::as_mut(&mut b).poll(cx).map(Either::Second)
    })
    .await
}
