//! Many things at a time, but not too many: tasks with a bound, and pieces of memory that are waited for.
//!
//! * The first failure ends the whole: nothing new is started, what runs is waited for.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

use kernel_ipc::runtime;

use crate::interrupt;
use crate::output::Failed;

/// Runs tasks, at most `limit` at a time.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

struct Inner {
    limit: usize,
    running: Cell<usize>,
    failed: RefCell<Option<Failed>>,
    waiting: Wakers,
}

impl Pool {
    pub fn new(limit: usize) -> Pool {
        let inner = Inner { limit, running: Cell::new(0), failed: RefCell::default(), waiting: Wakers::default() };
        Pool(Rc::new(inner))
    }

    /// Starts `task` as soon as there is room for it.
    ///
    /// # Errors
    /// That of a task before it. `task` was not started.
    pub async fn start(&self, task: impl Future<Output = Result<(), Failed>> + 'static) -> Result<(), Failed> {
        let inner = &self.0;
        inner.waiting.until(|| inner.running.get() < inner.limit || inner.failed.borrow().is_some()).await;
        if let Err(failed) = interrupt::check() {
            inner.failed.borrow_mut().get_or_insert(failed);
        }
        if inner.failed.borrow().is_some() {
            self.finish().await?;
        }
        inner.running.set(inner.running.get() + 1);
        let pool = self.clone();
        // Dropping the handle lets the task run on.
        drop(runtime::spawn(async move {
            if let Err(failed) = task.await {
                pool.0.failed.borrow_mut().get_or_insert(failed);
            }
            pool.0.running.set(pool.0.running.get() - 1);
            pool.0.waiting.wake();
        }));
        Ok(())
    }

    /// Waits for everything that was started.
    ///
    /// # Errors
    /// The first that a task gave.
    pub async fn finish(&self) -> Result<(), Failed> {
        let inner = &self.0;
        inner.waiting.until(|| inner.running.get() == 0).await;
        inner.failed.borrow().clone().map_or(Ok(()), Err)
    }
}

/// Places of equal size that are handed out one at a time.
#[derive(Clone)]
pub struct Places(Rc<PlacesInner>);

struct PlacesInner {
    free: RefCell<Vec<usize>>,
    waiting: Wakers,
}

impl Places {
    /// `count` places, numbered from 0.
    pub fn new(count: usize) -> Places {
        Places(Rc::new(PlacesInner { free: RefCell::new((0..count).collect()), waiting: Wakers::default() }))
    }

    /// Waits for a free place.
    pub async fn take(&self) -> Place {
        self.0.waiting.until(|| !self.0.free.borrow().is_empty()).await;
        let index = self.0.free.borrow_mut().pop().expect("waited until one is free, and nobody ran in between");
        Place { index, places: self.clone() }
    }
}

/// A place that is taken until this is dropped.
pub struct Place {
    pub index: usize,
    places: Places,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.free.borrow_mut().push(self.index);
        self.places.0.waiting.wake();
    }
}

/// Those who wait for something to change.
#[derive(Default)]
struct Wakers(RefCell<Vec<Waker>>);

impl Wakers {
    fn wake(&self) {
        self.0.take().into_iter().for_each(Waker::wake);
    }

    fn until(&self, ready: impl Fn() -> bool) -> impl Future<Output = ()> {
        poll_fn(move |cx| {
            if ready() {
                return Poll::Ready(());
            }
            self.0.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = runtime::Runtime::new(runtime::Options::default()).expect("io_uring is there");
        runtime.block_on(future)
    }

    #[test]
    fn no_more_than_the_limit_run_at_a_time() {
        let (now, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        run(async {
            let pool = Pool::new(3);
            for _ in 0..20 {
                let (now, most) = (now.clone(), most.clone());
                let task = async move {
                    now.set(now.get() + 1);
                    most.set(most.get().max(now.get()));
                    runtime::yield_now().await;
                    now.set(now.get() - 1);
                    Ok(())
                };
                pool.start(task).await.expect("nothing failed");
            }
            pool.finish().await.expect("nothing failed");
        });
        assert_eq!((now.get(), most.get()), (0, 3));
    }

    #[test]
    fn the_first_failure_ends_the_rest() {
        let started = Rc::new(Cell::new(0));
        let failed = run(async {
            let pool = Pool::new(2);
            for index in 0..100 {
                let started = started.clone();
                let task = async move {
                    started.set(started.get() + 1);
                    runtime::yield_now().await;
                    if index == 3 { Err(Failed::new("three")) } else { Ok(()) }
                };
                if let Err(failed) = pool.start(task).await {
                    return failed;
                }
            }
            pool.finish().await.expect_err("a task failed")
        });
        assert_eq!(failed.message, "three");
        assert!(started.get() < 10, "{}", started.get());
    }

    #[test]
    fn a_place_comes_back_when_it_is_dropped() {
        run(async {
            let places = Places::new(1);
            let place = places.take().await;
            let others = places.clone();
            let waiting = runtime::spawn(async move { others.take().await.index });
            runtime::yield_now().await;
            drop(place);
            assert_eq!(waiting.await.expect("not cancelled"), 0);
        });
    }
}
