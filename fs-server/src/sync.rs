//! Waiting within one thread: a condition's bell, a gate for many or one, many futures at once.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// A bell: whoever waits for a condition looks again when it rings.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rings: Cell<u64>,
    sleepers: RefCell<Vec<Waker>>,
}

impl Bell {
    pub(crate) fn ring(&self) {
        self.rings.set(self.rings.get() + 1);
        for waker in self.sleepers.take() {
            waker.wake();
        }
    }

    /// Waits for a ring after this call.
    pub(crate) fn heard(&self) -> impl Future<Output = ()> + '_ {
        let seen = self.rings.get();
        poll_fn(move |cx| {
            if self.rings.get() != seen {
                return Poll::Ready(());
            }
            self.sleepers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
    }
}

/// Lets many in at once, or one alone. Who wants to be alone goes before newcomers.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    inside: Cell<usize>,
    alone: Cell<bool>,
    bell: Bell,
}

/// Being inside; leaves when dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    gate: Rc<Gate>,
    alone: bool,
}

impl Gate {
    pub(crate) async fn enter(self: &Rc<Self>) -> Entered {
        while self.alone.get() {
            self.bell.heard().await;
        }
        self.inside.set(self.inside.get() + 1);
        Entered { gate: Rc::clone(self), alone: false }
    }

    /// Whether somebody is inside alone, or is about to be.
    pub(crate) fn is_taken(&self) -> bool {
        self.alone.get()
    }

    pub(crate) async fn enter_alone(self: &Rc<Self>) -> Entered {
        while self.alone.get() {
            self.bell.heard().await;
        }
        self.alone.set(true);
        let entered = Entered { gate: Rc::clone(self), alone: true };
        while self.inside.get() > 0 {
            self.bell.heard().await;
        }
        entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.alone {
            self.gate.alone.set(false);
        } else {
            self.gate.inside.set(self.gate.inside.get() - 1);
        }
        self.gate.bell.ring();
    }
}

/// Runs two futures together.
pub(crate) async fn both<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut first, mut second) = (None, None);
    poll_fn(move |cx| {
        if first.is_none()
            && let Poll::Ready(value) = a.as_mut().poll(cx)
        {
            first = Some(value);
        }
        if second.is_none()
            && let Poll::Ready(value) = b.as_mut().poll(cx)
        {
            second = Some(value);
        }
        match (first.take(), second.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (first, second) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

/// Runs futures together, at most `width` at a time; stops starting new ones after an error and returns the first.
pub(crate) async fn all_of<E, F: Future<Output = Result<(), E>>>(
    width: usize,
    futures: impl IntoIterator<Item = F>,
) -> Result<(), E> {
    let mut waiting = futures.into_iter();
    let mut running: Vec<Pin<Box<F>>> = Vec::with_capacity(width);
    let mut outcome = Ok(());
    poll_fn(move |cx| {
        loop {
            while outcome.is_ok() && running.len() < width {
                let Some(next) = waiting.next() else { break };
                running.push(Box::pin(next));
            }
            if running.is_empty() {
                return Poll::Ready(std::mem::replace(&mut outcome, Ok(())));
            }
            let before = running.len();
            running.retain_mut(|future| match future.as_mut().poll(cx) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    if outcome.is_ok() {
                        outcome = result;
                    }
                    false
                }
            });
            if running.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Runs a future and the tasks of `tasks` on this thread until the future is done. For devices that never wait for
/// anything but each other: simulated ones, and images that are read with plain calls.
///
/// # Panics
/// Nothing can go on, though the future is not done.
pub fn block_on<T>(tasks: &Tasks, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let woken = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    let mut running: Vec<crate::device::Task> = Vec::new();
    loop {
        let progress = woken.0.swap(false, Ordering::Relaxed);
        if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
            tasks.0.borrow_mut().extend(running);
            return value;
        }
        running.append(&mut tasks.0.borrow_mut());
        let before = running.len();
        running.retain_mut(|task| task.as_mut().poll(&mut cx).is_pending());
        let finished = running.len() != before;
        assert!(
            progress || finished || woken.0.load(Ordering::Relaxed) || !tasks.0.borrow().is_empty(),
            "deadlock: nothing is ready and nothing will wake it"
        );
    }
}

/// Tasks that were spawned and run under [`block_on`].
#[derive(Default)]
pub struct Tasks(RefCell<Vec<crate::device::Task>>);

impl Tasks {
    /// Adds a task.
    pub fn spawn(&self, task: crate::device::Task) {
        self.0.borrow_mut().push(task);
    }

    /// Forgets all tasks, as a crash does.
    pub fn clear(&self) {
        // What is dropped may spawn: it is forgotten too.
        while !self.0.borrow().is_empty() {
            drop(self.0.take());
        }
    }
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tasks").field(&self.0.borrow().len()).finish()
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
