//! What a client had under way when it died must have landed before its next incarnation is served: a late write would
//! otherwise hit a block that the new one has given to something else.
//!
//! - Whoever changes the device holds a [`Change`] from the moment in which its call is accepted.
//! - A session is opened only when every change that was under way when it was asked for has ended. Changes are bounded
//!   (see [`budget`](super::budget)) and never wait for a client, so this ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use kernel_ipc::runtime::Changes;

/// The changes under way. Clones are the same set.
#[derive(Clone, Default)]
pub struct Drain(Rc<Inner>);

#[derive(Default)]
struct Inner {
    under_way: RefCell<BTreeSet<u64>>,
    next: Cell<u64>,
    ended: Changes,
}

/// A change under way, until it is dropped.
pub struct Change {
    drain: Drain,
    number: u64,
}

impl Drain {
    /// A change begins.
    pub fn begin(&self) -> Change {
        let number = self.0.next.replace(self.0.next.get() + 1);
        self.0.under_way.borrow_mut().insert(number);
        Change { drain: self.clone(), number }
    }

    /// Waits for every change that is under way now. What begins later is not waited for.
    pub async fn settled(&self) {
        let before = self.0.next.get();
        loop {
            let ended = self.0.ended.next();
            if self.0.under_way.borrow().first().is_none_or(|oldest| *oldest >= before) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.drain.0.under_way.borrow_mut().remove(&self.number);
        self.drain.0.ended.happen();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn what_was_under_way_is_waited_for_and_what_comes_later_is_not() {
        let mut cx = Context::from_waker(Waker::noop());
        let drain = Drain::default();
        assert!(pin!(drain.settled()).poll(&mut cx).is_ready());
        let (first, second) = (drain.begin(), drain.begin());
        let mut settled = pin!(drain.settled());
        assert!(settled.as_mut().poll(&mut cx).is_pending());
        let _later = drain.begin();
        drop(second);
        assert!(settled.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert!(settled.as_mut().poll(&mut cx).is_ready());
    }
}
