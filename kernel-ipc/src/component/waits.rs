//! Two things that tasks of one thread wait for: an answer and an event.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

/// Waits for the value that the [`Answer`]'s other half is given.
pub struct Question<T>(Rc<Waited<T>>);

/// Gives one value to whoever waits for it.
pub struct Answer<T>(Weak<Waited<T>>);

struct Waited<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
    answered: Cell<bool>,
}

/// The two halves of one answer.
pub fn question<T>() -> (Question<T>, Answer<T>) {
    let cell = Rc::new(Waited { value: RefCell::new(None), waker: RefCell::new(None), answered: Cell::new(false) });
    let answer = Answer(Rc::downgrade(&cell));
    (Question(cell), answer)
}

impl<T> Answer<T> {
    /// Whether somebody waits for it still.
    pub fn is_awaited(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Gives the value.
    ///
    /// # Errors
    /// The value comes back if nobody waits for it any more.
    pub fn give(self, value: T) -> Result<(), T> {
        let Some(cell) = self.0.upgrade() else { return Err(value) };
        *cell.value.borrow_mut() = Some(value);
        Ok(())
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(cell) = self.0.upgrade() {
            cell.answered.set(true);
            if let Some(waker) = cell.waker.take() {
                waker.wake();
            }
        }
    }
}

impl<T> Future for Question<T> {
    /// `None`: the other half was dropped without an answer.
    type Output = Option<T>;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Option<T>> {
        if self.0.answered.get() {
            return Poll::Ready(self.0.value.take());
        }
        *self.0.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Something that happens once, for any number of waiters.
#[derive(Default)]
pub struct Event {
    happened: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Event {
    /// It happens; all waiters go on.
    pub fn happen(&self) {
        self.happened.set(true);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Whether it has happened.
    pub fn has_happened(&self) -> bool {
        self.happened.get()
    }

    /// Waits until it has happened.
    pub fn wait(&self) -> impl Future<Output = ()> + '_ {
        std::future::poll_fn(|cx| {
            if self.happened.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            // Once for each task: it may come back here often without its event.
            if !waiting.iter().any(|known| known.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Context;

    #[test]
    fn an_answer_reaches_whoever_waits_and_comes_back_if_nobody_does() {
        let mut cx = Context::from_waker(Waker::noop());
        let (question, answer) = question();
        let mut waiting = pin!(question);
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        answer.give(5).unwrap();
        assert_eq!(waiting.poll(&mut cx), Poll::Ready(Some(5)));

        let (question, answer) = super::question();
        assert!(answer.is_awaited());
        drop(question);
        assert!(!answer.is_awaited());
        assert_eq!(answer.give(6), Err(6));

        let (question, answer) = super::question::<i32>();
        drop(answer);
        assert_eq!(pin!(question).poll(&mut cx), Poll::Ready(None));
    }

    #[test]
    fn an_event_lets_everybody_go_on_also_those_who_come_late() {
        let mut cx = Context::from_waker(Waker::noop());
        let event = Event::default();
        let mut early = pin!(event.wait());
        assert!(early.as_mut().poll(&mut cx).is_pending());
        event.happen();
        assert!(early.poll(&mut cx).is_ready());
        assert!(pin!(event.wait()).poll(&mut cx).is_ready());
    }
}
