//! A bound on the bytes that are in the kernel's hands at a time, so that a dead driver's I/O ends soon.
//!
//! - First come, first served: a large request is not overtaken by small ones for ever.
//! - No system calls.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// See the module's contract. Clones share the bound.
#[derive(Clone)]
pub struct Budget(Rc<Inner>);

struct Inner {
    left: Cell<u64>,
    limit: u64,
    /// Who waits, by ticket.
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    next_ticket: Cell<u64>,
}

/// The right to have so many bytes in flight, until dropped.
pub struct Permit {
    budget: Budget,
    bytes: u64,
}

impl Budget {
    /// At most `limit` bytes at a time.
    pub fn new(limit: u64) -> Budget {
        Budget(Rc::new(Inner {
            left: Cell::new(limit),
            limit,
            waiting: RefCell::new(VecDeque::new()),
            next_ticket: Cell::new(0),
        }))
    }

    /// Waits for room for `bytes`; more than the limit counts as the limit.
    pub async fn acquire(&self, bytes: u64) -> Permit {
        let bytes = bytes.min(self.0.limit);
        if self.0.waiting.borrow().is_empty() && self.take(bytes) {
            return Permit { budget: self.clone(), bytes };
        }
        let turn = Turn { budget: self, ticket: self.0.next_ticket.get() };
        self.0.next_ticket.set(turn.ticket + 1);
        poll_fn(|cx| {
            let first = {
                let mut waiting = self.0.waiting.borrow_mut();
                match waiting.iter_mut().find(|(ticket, _)| *ticket == turn.ticket) {
                    Some((_, waker)) => waker.clone_from(cx.waker()),
                    None => waiting.push_back((turn.ticket, cx.waker().clone())),
                }
                waiting.front().is_some_and(|(ticket, _)| *ticket == turn.ticket)
            };
            if first && self.take(bytes) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        Permit { budget: self.clone(), bytes }
    }

    /// Bytes in flight.
    pub fn used(&self) -> u64 {
        self.0.limit - self.0.left.get()
    }

    fn take(&self, bytes: u64) -> bool {
        let left = self.0.left.get().checked_sub(bytes);
        left.map(|left| self.0.left.set(left)).is_some()
    }

    fn wake_first(&self) {
        let waker = self.0.waiting.borrow().front().map(|(_, waker)| waker.clone());
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A place in the queue, given up when the wait ends or is dropped.
struct Turn<'a> {
    budget: &'a Budget,
    ticket: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.budget.0.waiting.borrow_mut().retain(|(ticket, _)| *ticket != self.ticket);
        // The next one may fit into what is left.
        self.budget.wake_first();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.0.left.set(self.budget.0.left.get() + self.bytes);
        self.budget.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_ipc::runtime;

    #[test]
    fn requests_wait_for_room_and_none_is_overtaken() {
        kernel_ipc::blocking(async {
            let budget = Budget::new(100);
            let first = budget.acquire(60).await;
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = [80u64, 10, 500]
                .into_iter()
                .map(|bytes| {
                    let (budget, order) = (budget.clone(), Rc::clone(&order));
                    runtime::spawn(async move {
                        let _permit = budget.acquire(bytes).await;
                        order.borrow_mut().push(bytes);
                        runtime::yield_now().await;
                    })
                })
                .collect();
            runtime::yield_now().await;
            assert!(order.borrow().is_empty(), "10 would fit, but 80 came first");
            drop(first);
            for task in tasks {
                task.await.expect("nobody cancels it");
            }
            assert_eq!(*order.borrow(), [80, 10, 500]);
            assert_eq!(budget.used(), 0);
        });
    }

    #[test]
    fn one_who_stops_waiting_makes_room_for_the_next() {
        kernel_ipc::blocking(async {
            let budget = Budget::new(100);
            let held = budget.acquire(60).await;
            let waiting = |bytes| {
                let budget = budget.clone();
                runtime::spawn(async move { drop(budget.acquire(bytes).await) })
            };
            let (large, small) = (waiting(80), waiting(10));
            runtime::yield_now().await;
            assert!(!small.is_finished());
            large.cancel();
            assert_eq!(small.await, Ok(()));
            drop(held);
            assert_eq!(budget.used(), 0);
        });
    }
}
