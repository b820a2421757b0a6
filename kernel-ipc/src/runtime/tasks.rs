//! Tasks, their wakers and their results.
//!
//! - A wake from the runtime's own thread marks the task in a queue; one from another thread sets a bit and
//!   rings the bell if the runtime sleeps. Neither locks nor allocates.
//! - A waker of a task that has ended may wake the next one in its slot once for nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use super::ready::TASKS_MAX;
use super::remote::Remote;
use super::{Core, with_current};
use crate::trace;

/// A task as its wakers know it.
struct TaskWaker {
    index: u32,
    remote: Arc<Remote>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let local = with_current(|core| {
            let ours = Arc::ptr_eq(&core.tasks.remote, &self.remote);
            if ours {
                core.tasks.make_ready(self.index);
            }
            ours
        });
        if local != Some(true) {
            self.remote.wake(self.index);
        }
    }
}

type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Slot {
    /// `None` while the task runs, and while the slot is free.
    future: Option<TaskFuture>,
    /// `None` while the task runs.
    waker: Option<Waker>,
    queued: bool,
    /// Rises when a task ends, so that the next one in this slot is not cancelled in its stead.
    generation: u32,
    /// The task is to be dropped when its poll returns.
    cancelled: bool,
    live: bool,
}

/// Names a task for as long as the runtime exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskId {
    index: u32,
    generation: u32,
}

/// Number of the future that `block_on` runs; the others are spawned tasks.
pub(super) const MAIN: u32 = 0;

/// All tasks of a runtime.
pub(super) struct Tasks {
    pub remote: Arc<Remote>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<u32>>,
}

impl Tasks {
    pub fn new() -> Tasks {
        let tasks = Tasks {
            remote: Arc::new(Remote::new()),
            slots: RefCell::default(),
            free: RefCell::default(),
            ready: RefCell::default(),
        };
        tasks.push_slot();
        tasks
    }

    fn push_slot(&self) -> u32 {
        let mut slots = self.slots.borrow_mut();
        assert!(slots.len() < TASKS_MAX, "more than {TASKS_MAX} tasks at a time");
        let index = slots.len() as u32;
        self.remote.reserve(index);
        let waker = self.new_waker(index);
        slots.push(Slot {
            future: None,
            waker: Some(waker),
            queued: false,
            generation: 0,
            cancelled: false,
            live: false,
        });
        index
    }

    /// Adds a task, ready to run.
    pub fn insert(&self, future: TaskFuture) -> TaskId {
        let free = self.free.borrow_mut().pop();
        let index = free.unwrap_or_else(|| self.push_slot());
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[index as usize];
        slot.future = Some(future);
        slot.live = true;
        let id = TaskId { index, generation: slot.generation };
        drop(slots);
        self.make_ready(index);
        id
    }

    /// Queues a task to run, once.
    pub fn make_ready(&self, index: u32) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[index as usize];
        if !slot.queued {
            slot.queued = true;
            self.ready.borrow_mut().push_back(index);
        }
    }

    /// Queues what other threads have woken.
    pub fn drain_remote(&self) {
        self.remote.drain(|index| self.make_ready(index));
    }

    /// Tasks that are ready now.
    pub fn ready_count(&self) -> usize {
        self.ready.borrow().len()
    }

    /// The next ready task.
    pub fn next_ready(&self) -> Option<u32> {
        let index = self.ready.borrow_mut().pop_front()?;
        self.slots.borrow_mut()[index as usize].queued = false;
        Some(index)
    }

    /// Takes the `nth` of the ready tasks, out of turn.
    pub fn take_ready(&self, nth: usize) -> Option<u32> {
        let index = self.ready.borrow_mut().remove(nth)?;
        self.slots.borrow_mut()[index as usize].queued = false;
        Some(index)
    }

    /// A waker of the main future.
    pub fn main_waker(&self) -> Waker {
        self.waker(MAIN)
    }

    /// A waker of a task.
    fn waker(&self, index: u32) -> Waker {
        let slots = self.slots.borrow();
        // A task that runs has lent its own: another one wakes as well.
        slots[index as usize].waker.clone().unwrap_or_else(|| self.new_waker(index))
    }

    fn new_waker(&self, index: u32) -> Waker {
        Waker::from(Arc::new(TaskWaker { index, remote: Arc::clone(&self.remote) }))
    }

    /// Polls a spawned task once.
    pub fn run(&self, index: u32) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[index as usize];
        // The future first: a waker of a task that has ended may wake an empty slot, whose waker is the next task's.
        let Some(mut future) = slot.future.take() else { return };
        let waker =
            slot.waker.take().expect("only a task that runs has lent its waker, and then its future is out too");
        drop(slots);

        let poll = future.as_mut().poll(&mut Context::from_waker(&waker));

        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[index as usize];
        slot.waker = Some(waker);
        if poll.is_pending() && !slot.cancelled {
            slot.future = Some(future);
            return;
        }
        drop(slots);
        // The task's memory goes before its slot, so that a cancel from its destructors finds it still there.
        drop(future);
        self.end(index);
    }

    /// Drops a task's future; if it runs at the moment, when its poll returns.
    pub fn cancel(&self, id: TaskId) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[id.index as usize];
        if slot.generation != id.generation || !slot.live {
            return;
        }
        slot.cancelled = true;
        let future = slot.future.take();
        drop(slots);
        if let Some(future) = future {
            drop(future);
            self.end(id.index);
        }
    }

    /// Drops every task.
    pub fn clear(&self) {
        let mut index = MAIN + 1;
        while let Some(id) = self.id_at(index) {
            self.cancel(id);
            index += 1;
        }
    }

    fn id_at(&self, index: u32) -> Option<TaskId> {
        self.slots.borrow().get(index as usize).map(|slot| TaskId { index, generation: slot.generation })
    }

    fn end(&self, index: u32) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[index as usize];
        slot.live = false;
        slot.cancelled = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.borrow_mut().push(index);
    }
}

/// A task that was cancelled before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

struct Outcome<T> {
    result: Cell<Option<Result<T, Cancelled>>>,
    finished: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl<T> Outcome<T> {
    fn finish(&self, result: Result<T, Cancelled>) {
        if !self.finished.replace(true) {
            self.result.set(Some(result));
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

/// Reports a task that was dropped before its end.
struct Report<T>(Rc<Outcome<T>>);

impl<T> Drop for Report<T> {
    fn drop(&mut self) {
        self.0.finish(Err(Cancelled));
    }
}

/// Waits for a task's result. Dropping it lets the task go on by itself.
pub struct JoinHandle<T> {
    outcome: Rc<Outcome<T>>,
    core: Weak<Core>,
    id: TaskId,
}

impl<T> JoinHandle<T> {
    /// Drops the task's future now, or when its poll returns if it is the caller's own. Does nothing to a
    /// task that has ended.
    pub fn cancel(&self) {
        if let Some(core) = self.core.upgrade() {
            core.tasks.cancel(self.id);
        }
    }

    /// What wakes the task. After its end it may wake another one, for nothing.
    pub(crate) fn waker(&self) -> Waker {
        self.core.upgrade().map_or_else(|| Waker::noop().clone(), |core| core.tasks.waker(self.id.index))
    }

    /// Whether the task has ended or was cancelled.
    pub fn is_finished(&self) -> bool {
        self.outcome.finished.get()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Cancelled>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.outcome.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                self.outcome.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

/// Adds `future` to the tasks of `core`.
pub(super) fn spawn_on<F: Future<Output = T> + 'static, T: 'static>(core: &Rc<Core>, future: F) -> JoinHandle<T> {
    let outcome = Rc::new(Outcome { result: Cell::new(None), finished: Cell::new(false), waker: Cell::new(None) });
    let report = Report(Rc::clone(&outcome));
    let task = async move {
        let value = future.await;
        report.0.finish(Ok(value));
    };
    // What a traced call spawns works for it.
    let id = core.tasks.insert(match trace::inherited() {
        None => Box::pin(task),
        Some(within) => Box::pin(trace::carried(within, task)),
    });
    JoinHandle { outcome, core: Rc::downgrade(core), id }
}
