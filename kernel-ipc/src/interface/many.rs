//! Many calls at a time from one place: from async code by [`call_many`], from a thread without an executor by
//! [`call_many_blocking`].

use std::future::Future;
use std::iter::Fuse;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::pending::{Pending, Start};

/// Calls that are outstanding at a time: as many as a session of the default shape has slots. More would only wait for one.
const AT_A_TIME: usize = 64;

/// Makes `calls`, many at a time, and gives their results in the order of the calls. They may be of different sessions; each
/// ends on its own, with its own deadline, which begins when it is published. A call is taken from the iterator when there is room for it.
///
/// Dropping the future parks what is outstanding, and what was not begun never is.
pub fn call_many<S, I>(calls: I) -> CallMany<S, I::IntoIter>
where
    S: Start,
    I: IntoIterator<Item = Pending<S>>,
{
    CallMany { calls: calls.into_iter().fuse(), running: Vec::with_capacity(AT_A_TIME), results: Vec::new() }
}

/// The same on this thread, which runs no executor.
///
/// # Panics
/// Inside a runtime.
pub fn call_many_blocking<S: Start>(calls: impl IntoIterator<Item = Pending<S>>) -> Vec<S::Output> {
    crate::blocking(call_many(calls))
}

/// The future of [`call_many`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct CallMany<S: Start, I> {
    calls: Fuse<I>,
    /// What is under way, and which result it will be.
    running: Vec<(usize, S::Future)>,
    results: Vec<Option<S::Output>>,
}

// Nothing in it is pinned.
impl<S: Start, I> Unpin for CallMany<S, I> {}

impl<S: Start, I: Iterator<Item = Pending<S>>> Future for CallMany<S, I> {
    type Output = Vec<S::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut unpolled = 0;
        loop {
            // Those that wait, from the first time; then only those that came in for them.
            let mut at = unpolled;
            while at < this.running.len() {
                let (number, call) = &mut this.running[at];
                match Pin::new(call).poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(result) => {
                        this.results[*number] = Some(result);
                        drop(this.running.swap_remove(at));
                    }
                }
            }
            unpolled = this.running.len();
            while this.running.len() < AT_A_TIME
                && let Some(call) = this.calls.next()
            {
                this.running.push((this.results.len(), call.into_future()));
                this.results.push(None);
            }
            if this.running.is_empty() {
                let results = std::mem::take(&mut this.results);
                return Poll::Ready(results.into_iter().map(|result| result.expect("every call has ended")).collect());
            }
            if unpolled == this.running.len() {
                return Poll::Pending;
            }
        }
    }
}
