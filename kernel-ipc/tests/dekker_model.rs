//! Every interleaving, and every value that the memory model allows, of the protocol that wakes a sleeping peer.
//!
//! The futex is modelled as the kernel has it: a lock, and a barrier, under which the word is compared before a waiter
//! is queued. That comparison makes up for a sleeper without a fence; an eventfd, which remembers a ring and compares
//! nothing, does not.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kernel_ipc::link::dekker::{self, Producer, Sleeper};
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicU64, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bell {
    Futex,
    Event,
}

/// The words of one direction, and the kernel's part.
struct Words {
    bell: Bell,
    /// The messages themselves, which a consumer that is awake watches; the tail may lag behind them.
    published: AtomicU64,
    tail: AtomicU64,
    wants: AtomicU64,
    closed: AtomicU64,
    /// Futex: somebody waits. Event: it was not rung.
    waiting: Mutex<bool>,
    woken: Condvar,
    /// Which fences there are: to show that both are needed.
    producer_fences: bool,
    sleeper_fences: bool,
    /// A wake that finds nobody counts as an answer, as it once did: to show that it must not.
    every_wake_answers: bool,
}

impl Words {
    fn new(bell: Bell, producer_fences: bool, sleeper_fences: bool, every_wake_answers: bool) -> Arc<Words> {
        Arc::new(Words {
            bell,
            published: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            wants: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            waiting: Mutex::new(bell == Bell::Event),
            woken: Condvar::new(),
            producer_fences,
            sleeper_fences,
            every_wake_answers,
        })
    }

    /// Whether a wait would go on until it is woken; the waiter is queued then.
    fn falls_asleep(&self, expected: u64) -> bool {
        let mut waiting = self.waiting.lock().unwrap();
        if self.bell == Bell::Futex {
            // The kernel compares under the lock of its queue, with a full barrier before.
            fence(SeqCst);
            *waiting = self.tail.load(Relaxed) == expected;
        }
        *waiting
    }

    /// Sleeps.
    fn wait(&self, expected: u64) {
        if !self.falls_asleep(expected) && self.bell == Bell::Futex {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap();
        while *waiting {
            waiting = self.woken.wait(waiting).unwrap();
        }
        // The eventfd is read empty.
        *waiting = self.bell == Bell::Event;
    }
}

struct End(Arc<Words>);

impl Producer for End {
    fn store_tail(&self, tail: u64) {
        self.0.tail.store(tail, Release);
    }

    fn load_wants(&self) -> u64 {
        self.0.wants.load(Relaxed)
    }

    fn fence(&self) {
        if self.0.producer_fences {
            fence(SeqCst);
        }
    }

    /// `FUTEX_WAKE`. A full barrier comes before the kernel looks at its queue.
    fn wake(&self) -> bool {
        fence(SeqCst);
        let woken = std::mem::replace(&mut *self.0.waiting.lock().unwrap(), false);
        self.0.woken.notify_all();
        woken || self.0.bell == Bell::Event || self.0.every_wake_answers
    }
}

impl Sleeper for End {
    fn store_wants(&self, wants: u64) {
        self.0.wants.store(wants, Relaxed);
    }

    fn load_tail(&self) -> u64 {
        self.0.tail.load(Acquire)
    }

    fn fence(&self) {
        if self.0.sleeper_fences {
            fence(SeqCst);
        }
    }
}

/// A producer of `messages`, flushed one by one, and a consumer that sleeps until it has counted them all. A lost
/// wake-up is a deadlock, which the model checker reports.
fn everything_is_received(words: Arc<Words>, messages: u64) {
    let producer = thread::spawn({
        let end = End(words.clone());
        move || {
            let mut rung = 0;
            for tail in 1..=messages {
                end.0.published.store(tail, Release);
                rung = dekker::ring(&end, tail, rung);
            }
        }
    });
    let end = End(words);
    let wants = Cell::new(0);
    // It is awake at first, and finds what is there.
    let mut received = end.0.published.load(Acquire);
    while received < messages {
        wants.set(wants.get() + 1);
        let tail = dekker::announce(&end, wants.get());
        if end.0.published.load(Acquire) == received {
            end.0.wait(tail);
        }
        wants.set(wants.get() + 1);
        end.store_wants(wants.get());
        received = end.0.published.load(Acquire);
    }
    producer.join().unwrap();
}

/// A producer that closes after one message, and a consumer that has seen neither, or only the message, when it goes to sleep.
/// Closing changes the tail, so that a sleeper which is about to wait on it does not.
fn a_close_is_heard(words: Arc<Words>, changes_tail: bool) {
    let producer = thread::spawn({
        let end = End(words.clone());
        move || {
            end.0.published.store(1, Release);
            let rung = dekker::ring(&end, 1, 0);
            end.0.closed.store(1, Release);
            dekker::ring(&end, if changes_tail { 1 ^ 1 << 31 } else { 1 }, rung);
        }
    });
    let end = End(words);
    let sleeps = |wants| {
        let received = end.0.published.load(Acquire);
        let tail = dekker::announce(&end, wants);
        let has_work = end.0.published.load(Acquire) != received || end.0.closed.load(Acquire) != 0;
        !has_work && end.0.falls_asleep(tail)
    };
    let asleep = sleeps(1) || {
        end.store_wants(2);
        sleeps(3)
    };
    producer.join().unwrap();
    // Not a wait: whether somebody would have to wake it is known now.
    assert!(!asleep || !*end.0.waiting.lock().unwrap(), "asleep for ever");
}

fn model(bell: Bell, producer_fences: bool, sleeper_fences: bool, messages: u64) {
    check(messages, move || Words::new(bell, producer_fences, sleeper_fences, false));
}

fn check(messages: u64, words: impl Fn() -> Arc<Words> + Send + Sync + 'static) {
    explore(move || everything_is_received(words(), messages));
}

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(model);
}

#[test]
fn a_close_reaches_a_sleeper_because_it_changes_the_tail() {
    let close = |bell, changes_tail| {
        explore(move || a_close_is_heard(Words::new(bell, true, true, false), changes_tail));
    };
    close(Bell::Futex, true);
    close(Bell::Event, true);
    assert!(catch_unwind(|| close(Bell::Futex, false)).is_err(), "nothing was lost");
}

#[test]
fn a_wake_that_finds_nobody_must_not_count_as_an_answer() {
    let found = catch_unwind(|| check(2, || Words::new(Bell::Futex, true, true, true)));
    assert!(found.is_err(), "nothing was lost");
}

#[test]
fn no_wake_up_is_lost() {
    model(Bell::Futex, true, true, 1);
    model(Bell::Event, true, true, 1);
}

#[test]
fn no_wake_up_is_lost_when_a_sleeper_sleeps_again() {
    model(Bell::Futex, true, true, 2);
    model(Bell::Event, true, true, 2);
}

#[test]
fn without_its_fences_the_model_loses_a_wake_up() {
    for (bell, producer_fences, sleeper_fences) in
        [(Bell::Futex, false, true), (Bell::Event, false, true), (Bell::Event, true, false)]
    {
        let found = catch_unwind(AssertUnwindSafe(|| model(bell, producer_fences, sleeper_fences, 1)));
        assert!(found.is_err(), "{bell:?}, fences {producer_fences} and {sleeper_fences}: nothing was lost");
    }
}
