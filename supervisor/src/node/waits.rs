//! What the supervisor's tasks wait for, beside answers and events.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;

pub use kernel_ipc::runtime::Changes;

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
