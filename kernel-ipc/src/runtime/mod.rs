//! One thread, one io_uring, one executor: futures for I/O, timers and doorbells.

pub mod io;

use std::future::Future;
use std::os::fd::{OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

pub use crate::sys::futex::WordAddress;
pub use crate::sys::memory::{IoMemory, IoMemoryMut};

/// How a thread waits when it has nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Waiting {
    /// Never sleeps: the lowest latency, one whole core.
    Spin,
    /// Climbs the ladder: spin, then yield, then park; how long each rung lasts is learned.
    #[default]
    Adaptive,
    /// Parks at once: no processor time at all while waiting.
    Block,
}

/// What a [`Runtime`] is made of.
#[derive(Debug, Default)]
pub struct Options {
    /// Submission entries of the ring; 0 means 256.
    pub entries: u32,
    /// How the thread waits.
    pub waiting: Waiting,
    /// The write end of the fence pipe: registered as a file of the ring and then closed, so that the keeper
    /// reads end-of-file only when the kernel has let go of every page this ring was given.
    pub fence: Option<OwnedFd>,
}

/// The executor of one thread.
pub struct Runtime {}

impl Runtime {
    /// Makes the ring. Allocates; does not block.
    ///
    /// # Errors
    /// The kernel's refusal of `io_uring_setup`.
    pub fn new(options: Options) -> std::io::Result<Runtime> {
        todo!()
    }

    /// Runs `future` to its end on this thread, and spawned tasks beside it. Tasks that are left keep their
    /// state until the next call, or until the runtime is dropped.
    ///
    /// # Panics
    /// Inside another `block_on` of this thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        todo!()
    }
}

/// A session end: something that other processes write and the executor polls.
pub trait Source {
    /// Looks once, without a system call, and wakes whoever waits. True when something was found.
    fn poll(&self) -> bool;
    /// Announces to the peer that this side is about to sleep, then looks again (Dekker).
    fn prepare_sleep(&self) -> Sleep;
    /// Takes the announcement back. Called after every `prepare_sleep` that did not return [`Sleep::Work`],
    /// and also after one that did.
    fn cancel_sleep(&self);
    /// The peer's death word, if there is one, and its current value: waited for together with the doorbell.
    fn second_word(&self) -> Option<(WordAddress, u32)> {
        None
    }
}

/// What to wait for on behalf of a [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// There is work already: do not sleep.
    Work,
    /// Sleep while the word has the expected value.
    Futex {
        /// The word.
        word: WordAddress,
        /// Its value when there was no work.
        expected: u32,
    },
    /// Sleep until the descriptor is readable. The source reads it empty when it is polled.
    EventFd(RawFd),
    /// This source wakes nobody.
    Nothing,
}

/// Keeps a [`Source`] registered until it is dropped.
#[must_use = "dropping the guard unregisters the source"]
pub struct SourceGuard {}

/// Registers a source with the runtime of this thread.
///
/// # Panics
/// Outside a runtime.
pub fn register(source: Rc<dyn Source>) -> SourceGuard {
    todo!()
}

/// Runs `future` as a task of this thread's runtime. Allocates once.
///
/// # Panics
/// Outside a runtime.
pub fn spawn<F: Future<Output = T> + 'static, T: 'static>(future: F) -> JoinHandle<T> {
    todo!()
}

/// A task that was cancelled before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

/// Waits for a task's result. Dropping it lets the task go on by itself.
pub struct JoinHandle<T> {
    _result: Rc<T>,
}

impl<T> JoinHandle<T> {
    /// Drops the task's future now (before this returns, unless the task is the caller). Does nothing to a task that has ended.
    pub fn cancel(&self) {
        todo!()
    }

    /// Whether the task has ended or was cancelled.
    pub fn is_finished(&self) -> bool {
        todo!()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Cancelled>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        todo!()
    }
}

/// Lets every other ready task run once.
pub async fn yield_now() {
    todo!()
}

/// Waits for `duration`.
pub fn sleep(duration: Duration) -> SleepUntil {
    todo!()
}

/// Waits until `deadline`.
pub fn sleep_until(deadline: Instant) -> SleepUntil {
    todo!()
}

/// The future of [`sleep`] and [`sleep_until`]. Dropping it removes the timer.
pub struct SleepUntil {}

impl Future for SleepUntil {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        todo!()
    }
}

/// The time was up before the future was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// `future`, unless it takes longer than `duration`; then it is dropped.
///
/// # Errors
/// [`Elapsed`] when the time was up first.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    todo!()
}
