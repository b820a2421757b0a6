//! Bytes that may be in flight, all connections together; whoever asks first is served first.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

pub(super) struct Budget {
    limit: u64,
    left: Cell<u64>,
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
}

struct Waiter {
    bytes: u64,
    granted: Cell<bool>,
    given_up: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A share of the budget; dropping it gives the bytes back.
pub(super) struct Share {
    budget: Rc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Budget {
        Budget { limit, left: Cell::new(limit), waiting: RefCell::default() }
    }

    /// Waits for a share of `bytes`; a wish for more than everything is a wish for everything.
    pub(super) async fn take(self: &Rc<Self>, bytes: u64) -> Share {
        let bytes = bytes.min(self.limit);
        if self.waiting.borrow().is_empty() && bytes <= self.left.get() {
            self.left.set(self.left.get() - bytes);
            return Share { budget: self.clone(), bytes };
        }
        let waiter =
            Rc::new(Waiter { bytes, granted: Cell::new(false), given_up: Cell::new(false), waker: RefCell::default() });
        self.waiting.borrow_mut().push_back(waiter.clone());
        let place = Place { budget: self, waiter: &waiter };
        poll_fn(|cx| {
            if waiter.granted.get() {
                return Poll::Ready(());
            }
            *waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        std::mem::forget(place);
        Share { budget: self.clone(), bytes }
    }

    fn give_back(&self, bytes: u64) {
        self.left.set(self.left.get() + bytes);
        let mut waiting = self.waiting.borrow_mut();
        while let Some(first) = waiting.front() {
            if !first.given_up.get() {
                if first.bytes > self.left.get() {
                    return;
                }
                self.left.set(self.left.get() - first.bytes);
                first.granted.set(true);
                if let Some(waker) = first.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
            waiting.pop_front();
        }
    }
}

impl Share {
    /// Gives back what it has beyond `bytes`.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        self.budget.give_back(surplus);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// A place in the queue; dropped only by a future that was dropped before it had its share.
struct Place<'a> {
    budget: &'a Budget,
    waiter: &'a Waiter,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiter.given_up.set(true);
        // Whoever stood behind may be next, and a grant that nobody takes goes back.
        self.budget.give_back(if self.waiter.granted.get() { self.waiter.bytes } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn shares_are_given_in_order_and_come_back() {
        let budget = Rc::new(Budget::new(10));
        let first = poll(pin!(budget.take(6))).unwrap();
        let (mut second, mut third) = (pin!(budget.take(6)), pin!(budget.take(1)));
        assert!(poll(second.as_mut()).is_none());
        assert!(poll(third.as_mut()).is_none(), "the small wish does not overtake the large one");
        drop(first);
        let second = poll(second.as_mut()).unwrap();
        let third = poll(third.as_mut()).unwrap();
        assert_eq!(budget.left.get(), 3);
        drop((second, third));
        assert_eq!(budget.left.get(), 10);
        let mut much = poll(pin!(budget.take(10))).unwrap();
        let mut waits = pin!(budget.take(7));
        assert!(poll(waits.as_mut()).is_none());
        much.shrink(3);
        let seven = poll(waits.as_mut()).unwrap();
        much.shrink(5);
        assert_eq!((much.bytes, budget.left.get()), (3, 0));
        drop((much, seven));
        assert_eq!(budget.left.get(), 10);
    }

    #[test]
    fn a_wish_that_is_dropped_blocks_nobody_and_loses_nothing() {
        let budget = Rc::new(Budget::new(10));
        let first = poll(pin!(budget.take(10))).unwrap();
        let mut last = pin!(budget.take(3));
        {
            let mut dropped = pin!(budget.take(9));
            assert!(poll(dropped.as_mut()).is_none());
            assert!(poll(last.as_mut()).is_none());
            drop(first);
            // Granted now, and dropped before it knows.
        }
        let last = poll(last.as_mut()).unwrap();
        drop(last);
        assert_eq!(budget.left.get(), 10);
        let whole = poll(pin!(budget.take(99))).unwrap();
        assert_eq!((whole.bytes, budget.left.get()), (10, 0));
    }
}
