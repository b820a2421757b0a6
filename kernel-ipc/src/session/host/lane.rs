//! The handlers of one slot, one after the other: a future that is made when the slot is first used and lasts as long as the
//! session, so that a call allocates nothing.
//!
//! - Whoever hands a slot its call polls the lane at once: a handler runs in its session's poll, or in its caller's in this
//!   thread, until it waits for something. From then on it is polled by a task, which is woken as any other.
//! - The lane is out of its cell while it is polled.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::Inner;
use super::cell::SlotCell;
use crate::logbook::Watch;
use crate::runtime::{self, JoinHandle};
use crate::session::{Call, Response, Service};
use crate::steps;

/// Where a slot's lane is while nobody polls it, and the task that does when it is woken.
#[derive(Default)]
pub(super) struct Lane {
    idle: Cell<Option<Running>>,
    /// Somebody polls it, further out on the stack: what it was handed meanwhile it finds by itself.
    is_out: Cell<bool>,
    task: RefCell<Option<JoinHandle<()>>>,
}

struct Running {
    future: Pin<Box<dyn Future<Output = ()>>>,
    /// Of the task.
    waker: Waker,
}

impl Lane {
    /// Polls it where it stands. Ready: it has ended, or was never begun.
    fn poll(&self) -> Poll<()> {
        if self.is_out.get() {
            return Poll::Pending;
        }
        let Some(mut running) = self.idle.take() else { return Poll::Ready(()) };
        self.is_out.set(true);
        let polled = running.future.as_mut().poll(&mut Context::from_waker(&running.waker));
        self.is_out.set(false);
        if polled.is_pending() {
            self.idle.set(Some(running));
        }
        polled
    }

    /// Lets the task poll it: to hear that the session has ended.
    pub(super) fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.waker().wake();
        }
    }

    /// Drops it; none of its slot's calls is in progress. The next call begins another one.
    pub(super) fn end(&self) {
        let task = self.task.take();
        if let Some(task) = task {
            task.cancel();
        }
    }
}

/// Polls a lane whenever it is woken, and takes it along when the runtime ends.
struct Poller<S: Service> {
    inner: Rc<Inner<S>>,
    slot: u16,
}

impl<S: Service> Future for Poller<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.inner.cells[self.slot].lane.poll()
    }
}

impl<S: Service> Drop for Poller<S> {
    fn drop(&mut self) {
        drop(self.inner.cells[self.slot].lane.idle.take());
    }
}

impl<S: Service> Inner<S> {
    /// Hands the slot's call object to the slot's lane.
    #[inline]
    pub(super) fn start(&self, slot: u16, cell: &SlotCell) {
        cell.cancel.reset();
        cell.ready.set(true);
        if cell.lane.poll().is_ready() {
            self.begin_lane(slot, cell);
        }
    }

    /// There was no lane. If the session has just ended there is no call either.
    #[cold]
    fn begin_lane(&self, slot: u16, cell: &SlotCell) {
        if !cell.ready.get() {
            return;
        }
        let Some(inner) = self.this.upgrade() else { return };
        let task = runtime::spawn(Poller { inner: inner.clone(), slot });
        let waker = task.waker();
        cell.lane.task.replace(Some(task));
        cell.lane.idle.set(Some(Running { future: Box::pin(inner.run(slot)), waker }));
        let _ = cell.lane.poll();
    }

    /// Serves the calls of a slot.
    async fn run(self: Rc<Self>, slot: u16) {
        let cell = &self.cells[slot];
        while let Some(mut call) = self.next_call(cell).await {
            // Most lend nothing, and the rest is not worth room in every lane.
            let brought = if call.leases.is_empty() { Ok(Vec::new()) } else { Box::pin(self.bring(&mut call)).await };
            let watch = self.log.get().map(|log| Watch::begin(log, (slot, call.seq), &call));
            let response = if let Err(failure) = brought {
                Response::failed(failure)
            } else {
                let mut handler = pin!(self.service.serve(&mut call));
                poll_fn(|cx| {
                    let outer = watch.as_ref().map(Watch::enters);
                    let polled = handler.as_mut().poll(cx);
                    if let (Some(watch), Some(outer)) = (&watch, outer) {
                        watch.leaves(outer, polled.is_pending());
                    }
                    polled
                })
                .await
            };
            if let Some(watch) = watch {
                watch.end(call.operation, (&response).into());
            }
            steps::reach("call/served");
            self.finish(slot, cell, &mut call, response);
            drop(brought);
            self.was_answered(cell);
            cell.call.replace(Some(call));
            self.begin_ready();
        }
        if cell.ready.replace(false) {
            // The session has ended before its handler began.
            self.was_answered(cell);
        }
    }

    /// The next call of a slot; `None` when the session has ended.
    fn next_call(&self, cell: &SlotCell) -> impl Future<Output = Option<Box<Call>>> {
        poll_fn(move |_| {
            if self.ended.get().is_some() {
                return Poll::Ready(None);
            }
            match cell.ready.replace(false) {
                true => Poll::Ready(cell.call.take()),
                false => Poll::Pending,
            }
        })
    }
}
