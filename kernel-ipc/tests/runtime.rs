//! The executor: tasks, wakers, timers, sources and sleeping.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use kernel_ipc::runtime::{self, Cancelled, Elapsed, Options, Runtime, Sleep, Source, Waiting, WordAddress};
use kernel_ipc::sys::futex;

fn runtime(waiting: Waiting) -> Runtime {
    Runtime::new(Options { waiting, ..Options::default() }).expect("a ring")
}

/// Processor time of this thread.
fn cpu_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
    Duration::new(time.tv_sec() as u64, time.tv_nsec() as u32)
}

#[test]
fn tasks_run_beside_each_other_and_their_results_come_through_join_handles() {
    let sum = runtime(Waiting::Block).block_on(async {
        let tasks: Vec<_> = (0..1000u64)
            .map(|number| {
                runtime::spawn(async move {
                    for _ in 0..number % 7 {
                        runtime::yield_now().await;
                    }
                    number
                })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.expect("nobody cancels it");
        }
        sum
    });
    assert_eq!(sum, 999 * 1000 / 2);
}

#[test]
fn sleeps_are_told_before_and_after_and_nothing_runs_between() {
    #[derive(Default)]
    struct Sleeps {
        asleep: Cell<bool>,
        count: Cell<u32>,
    }
    impl runtime::Rest for Sleeps {
        fn begins(&self) {
            assert!(!self.asleep.replace(true));
        }
        fn ends(&self) {
            assert!(self.asleep.replace(false));
            self.count.set(self.count.get() + 1);
        }
    }
    let sleeps = Rc::new(Sleeps::default());
    runtime(Waiting::Block).block_on(async {
        runtime::tell_of_rest(sleeps.clone());
        for n in 1..=5 {
            for _ in 0..10 {
                assert!(!sleeps.asleep.get());
                runtime::yield_now().await;
            }
            let before = sleeps.count.get();
            runtime::sleep(Duration::from_millis(2)).await;
            assert!(!sleeps.asleep.get() && sleeps.count.get() > before, "sleep {n}");
        }
    });
}

#[test]
fn a_task_that_never_waits_for_anything_else_does_not_starve_the_others() {
    runtime(Waiting::Block).block_on(async {
        let stop = Rc::new(Cell::new(false));
        let greedy = runtime::spawn({
            let stop = Rc::clone(&stop);
            async move {
                while !stop.get() {
                    runtime::yield_now().await;
                }
            }
        });
        runtime::sleep(Duration::from_millis(5)).await;
        stop.set(true);
        greedy.await.expect("it ends by itself");
    });
}

#[test]
fn a_cancelled_task_is_dropped_at_once_and_says_so() {
    struct Witness(Rc<Cell<bool>>);
    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    runtime(Waiting::Block).block_on(async {
        let dropped = Rc::new(Cell::new(false));
        let witness = Witness(Rc::clone(&dropped));
        let task = runtime::spawn(async move {
            std::future::pending::<()>().await;
            drop(witness);
        });
        runtime::yield_now().await;
        task.cancel();
        assert!(dropped.get());
        assert!(task.is_finished());
        assert_eq!(task.await, Err(Cancelled));
    });
}

#[test]
fn cancelling_a_task_that_has_ended_leaves_the_next_one_in_its_place_alone() {
    runtime(Waiting::Block).block_on(async {
        let first = runtime::spawn(async {});
        runtime::yield_now().await;
        let second = runtime::spawn(async {
            runtime::yield_now().await;
            2
        });
        first.cancel();
        assert_eq!(second.await, Ok(2));
        assert_eq!(first.await, Ok(()));
    });
}

#[test]
fn a_wake_of_a_task_that_has_ended_takes_nothing_from_the_next_one_in_its_place() {
    runtime(Waiting::Block).block_on(async {
        let (kept, keep) = (Rc::new(RefCell::new(None)), Rc::new(RefCell::new(None)));
        let waker = keep.clone();
        runtime::spawn(std::future::poll_fn(move |cx| {
            *waker.borrow_mut() = Some(cx.waker().clone());
            std::task::Poll::Ready(())
        }))
        .await
        .unwrap();
        // Its place is empty now, and is woken.
        let stale: Option<std::task::Waker> = keep.borrow_mut().take();
        stale.unwrap().wake();
        runtime::yield_now().await;
        let result = kept.clone();
        runtime::spawn(async move { *result.borrow_mut() = Some(7) }).await.unwrap();
        assert_eq!(*kept.borrow(), Some(7));
    });
}

#[test]
fn a_task_may_cancel_itself() {
    runtime(Waiting::Block).block_on(async {
        let own = Rc::new(RefCell::new(None::<Rc<runtime::JoinHandle<()>>>));
        let task = Rc::new(runtime::spawn({
            let own = Rc::clone(&own);
            async move {
                own.borrow().as_ref().expect("set before the first poll").cancel();
                std::future::pending().await
            }
        }));
        *own.borrow_mut() = Some(Rc::clone(&task));
        runtime::yield_now().await;
        runtime::yield_now().await;
        assert!(task.is_finished());
    });
}

#[test]
fn a_task_outlives_the_block_on_that_spawned_it_and_its_dropped_handle() {
    let runtime = runtime(Waiting::Block);
    let done = Rc::new(Cell::new(false));
    runtime.block_on(async {
        let done = Rc::clone(&done);
        drop(runtime::spawn(async move {
            runtime::sleep(Duration::from_millis(1)).await;
            done.set(true);
        }));
    });
    assert!(!done.get());
    runtime.block_on(runtime::sleep(Duration::from_millis(20)));
    assert!(done.get());
}

#[test]
fn dropping_the_runtime_drops_its_tasks() {
    let held = Rc::new(());
    let runtime = runtime(Waiting::Block);
    runtime.block_on(async {
        let held = Rc::clone(&held);
        drop(runtime::spawn(async move {
            runtime::sleep(Duration::from_secs(3600)).await;
            drop(held);
        }));
        runtime::yield_now().await;
    });
    assert_eq!(Rc::strong_count(&held), 2);
    drop(runtime);
    assert_eq!(Rc::strong_count(&held), 1);
}

#[test]
fn timers_end_in_order_of_their_deadlines_and_not_before_them() {
    runtime(Waiting::Adaptive).block_on(async {
        let start = Instant::now();
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = [15u64, 5, 10, 0]
            .map(|millis| {
                let order = Rc::clone(&order);
                runtime::spawn(async move {
                    runtime::sleep(Duration::from_millis(millis)).await;
                    assert!(start.elapsed() >= Duration::from_millis(millis));
                    order.borrow_mut().push(millis);
                })
            })
            .into();
        for task in tasks {
            task.await.expect("nobody cancels it");
        }
        assert_eq!(*order.borrow(), [0, 5, 10, 15]);
    });
}

#[test]
fn a_timeout_drops_what_took_too_long_and_lets_the_quick_pass() {
    runtime(Waiting::Block).block_on(async {
        let slow = runtime::timeout(Duration::from_millis(2), std::future::pending::<()>()).await;
        assert_eq!(slow, Err(Elapsed));
        assert_eq!(runtime::timeout(Duration::from_secs(3600), async { 7 }).await, Ok(7));
    });
}

/// Another thread wakes a task while the runtime sleeps, also on `words` that nobody rings.
fn wake_from_another_thread(options: Options, words: usize) {
    let runtime = Runtime::new(options).expect("a ring");
    runtime.block_on(async {
        let _silent: Vec<_> = (0..words).map(|_| runtime::register(Doorbell::new())).collect();
        for _ in 0..200 {
            let ready = Arc::new(AtomicBool::new(false));
            let mut waker_thread = None;
            std::future::poll_fn(|cx| {
                if ready.load(Ordering::Acquire) {
                    return Poll::Ready(());
                }
                waker_thread.get_or_insert_with(|| {
                    let (ready, waker): (_, Waker) = (Arc::clone(&ready), cx.waker().clone());
                    std::thread::spawn(move || {
                        ready.store(true, Ordering::Release);
                        waker.wake();
                    })
                });
                Poll::Pending
            })
            .await;
            waker_thread.expect("it was polled").join().expect("it does not panic");
        }
    });
}

#[test]
fn a_wake_from_another_thread_ends_the_sleep_in_every_mode() {
    for waiting in [Waiting::Spin, Waiting::Adaptive, Waiting::Block] {
        wake_from_another_thread(Options { waiting, ..Options::default() }, 0);
    }
}

#[test]
fn a_wake_from_another_thread_ends_a_sleep_on_the_words_of_peers() {
    for words in [1, 2] {
        wake_from_another_thread(Options { waiting: Waiting::Block, ..Options::default() }, words);
    }
}

/// A word that another thread counts up, as a session's doorbell would be.
struct Doorbell {
    word: Arc<AtomicU32>,
    wants_wake: Arc<AtomicU32>,
    seen: Cell<u32>,
    waker: RefCell<Option<Waker>>,
    sleeps: Cell<u32>,
}

impl Source for Doorbell {
    fn poll(&self) -> bool {
        let now = self.word.load(Ordering::Acquire);
        if now == self.seen.get() {
            return false;
        }
        self.seen.set(now);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        true
    }

    fn prepare_sleep(&self) -> Sleep {
        self.sleeps.set(self.sleeps.get() + 1);
        self.wants_wake.store(1, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.poll() {
            Sleep::Work
        } else {
            Sleep::Futex { word: WordAddress::of(&self.word), expected: self.seen.get() }
        }
    }

    fn cancel_sleep(&self) {
        self.wants_wake.store(0, Ordering::Relaxed);
    }
}

impl Doorbell {
    fn new() -> Rc<Doorbell> {
        Rc::new(Doorbell {
            word: Arc::default(),
            wants_wake: Arc::default(),
            seen: Cell::new(0),
            waker: RefCell::new(None),
            sleeps: Cell::new(0),
        })
    }

    /// A producer that rings `count` times, at most one ahead of the consumer.
    fn producer(&self, count: u32, answers: &Arc<AtomicU32>) -> std::thread::JoinHandle<()> {
        let (word, wants_wake, answers) = (Arc::clone(&self.word), Arc::clone(&self.wants_wake), Arc::clone(answers));
        std::thread::spawn(move || {
            for number in 1..=count {
                word.store(number, Ordering::Release);
                std::sync::atomic::fence(Ordering::SeqCst);
                if wants_wake.load(Ordering::Relaxed) == 1 {
                    futex::wake(WordAddress::of(&word), 1);
                }
                while answers.load(Ordering::Acquire) < number {
                    std::thread::yield_now();
                }
            }
        })
    }

    async fn reaches(&self, value: u32) {
        std::future::poll_fn(|cx| {
            if self.seen.get() >= value {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Rings are heard one by one: a lost wake would hang. `busy` keeps an operation in flight meanwhile.
fn rings_are_heard(options: Options, busy: bool) {
    let runtime = Runtime::new(options).expect("a ring");
    runtime.block_on(async {
        let doorbell = Doorbell::new();
        let _guard = runtime::register(Rc::clone(&doorbell) as Rc<dyn Source>);
        let (reader, _writer) = nix::unistd::pipe().expect("a pipe");
        let reading = busy.then(|| {
            runtime::spawn(async move {
                let file = runtime::io::File::from(reader);
                let _ = runtime::io::poll_readable(&file).await;
            })
        });
        let answers = Arc::new(AtomicU32::new(0));
        let producer = doorbell.producer(2000, &answers);
        for number in 1..=2000 {
            doorbell.reaches(number).await;
            answers.store(number, Ordering::Release);
            if number % 64 == 0 {
                // Mixes sleeps for a timer with sleeps for the word.
                runtime::sleep(Duration::from_micros(50)).await;
            }
        }
        producer.join().expect("it does not panic");
        if let Some(reading) = reading {
            reading.cancel();
        }
    });
}

#[test]
fn no_ring_of_a_doorbell_is_lost_in_any_mode() {
    for waiting in [Waiting::Adaptive, Waiting::Block] {
        for busy in [false, true] {
            rings_are_heard(Options { waiting, ..Options::default() }, busy);
        }
    }
}

#[test]
fn no_ring_of_a_doorbell_is_lost_on_a_kernel_whose_rings_know_no_futex() {
    for busy in [false, true] {
        rings_are_heard(Options { waiting: Waiting::Block, without_ring_futex: true, ..Options::default() }, busy);
    }
}

#[test]
fn more_doorbells_than_one_wait_can_name_are_all_heard() {
    for without_ring_futex in [false, true] {
        let options = Options { waiting: Waiting::Block, without_ring_futex, ..Options::default() };
        Runtime::new(options).expect("a ring").block_on(async {
            let doorbells: Vec<_> = (0..300).map(|_| Doorbell::new()).collect();
            let _guards: Vec<_> =
                doorbells.iter().map(|doorbell| runtime::register(Rc::clone(doorbell) as Rc<dyn Source>)).collect();
            for doorbell in [&doorbells[0], &doorbells[150], &doorbells[299]] {
                let answers = Arc::new(AtomicU32::new(0));
                let producer = doorbell.producer(20, &answers);
                for number in 1..=20 {
                    doorbell.reaches(number).await;
                    answers.store(number, Ordering::Release);
                }
                producer.join().expect("it does not panic");
            }
        });
    }
}

#[test]
fn a_source_that_was_dropped_is_not_polled_again() {
    runtime(Waiting::Block).block_on(async {
        let doorbell = Doorbell::new();
        let guard = runtime::register(Rc::clone(&doorbell) as Rc<dyn Source>);
        runtime::sleep(Duration::from_millis(1)).await;
        let sleeps = doorbell.sleeps.get();
        assert!(sleeps > 0);
        drop(guard);
        runtime::sleep(Duration::from_millis(1)).await;
        assert_eq!(doorbell.sleeps.get(), sleeps);
        assert_eq!(Rc::strong_count(&doorbell), 1);
    });
}

#[test]
fn an_eventfd_wakes_a_source_that_has_no_futex_word() {
    struct Event {
        event: nix::sys::eventfd::EventFd,
        heard: Cell<u64>,
        waker: RefCell<Option<Waker>>,
    }
    impl Source for Event {
        fn poll(&self) -> bool {
            let Ok(count) = self.event.read() else { return false };
            self.heard.set(self.heard.get() + count);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
            true
        }
        fn prepare_sleep(&self) -> Sleep {
            Sleep::EventFd(std::os::fd::AsRawFd::as_raw_fd(&self.event))
        }
        fn cancel_sleep(&self) {}
    }
    use nix::sys::eventfd::{EfdFlags, EventFd};
    runtime(Waiting::Block).block_on(async {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        let ringer = event_clone(&event);
        let source = Rc::new(Event { event, heard: Cell::new(0), waker: RefCell::new(None) });
        let _guard = runtime::register(Rc::clone(&source) as Rc<dyn Source>);
        let thread = std::thread::spawn(move || {
            for _ in 0..100 {
                nix::unistd::write(&ringer, &1u64.to_ne_bytes()).expect("room in the counter");
            }
        });
        std::future::poll_fn(|cx| {
            *source.waker.borrow_mut() = Some(cx.waker().clone());
            if source.heard.get() == 100 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        thread.join().expect("it does not panic");
    });
}

fn event_clone(event: &nix::sys::eventfd::EventFd) -> std::os::fd::OwnedFd {
    std::os::fd::AsFd::as_fd(event).try_clone_to_owned().expect("a descriptor")
}

/// The claim is about processor time, which a loaded machine does not lengthen: a runtime that ticked or spun
/// for half a second would use far more than this.
#[test]
fn at_rest_nothing_wakes() {
    for waiting in [Waiting::Adaptive, Waiting::Block] {
        runtime(waiting).block_on(async {
            let doorbell = Doorbell::new();
            let _guard = runtime::register(Rc::clone(&doorbell) as Rc<dyn Source>);
            runtime::sleep(Duration::from_millis(5)).await;
            let (sleeps, cpu) = (doorbell.sleeps.get(), cpu_time());
            runtime::sleep(Duration::from_millis(500)).await;
            assert!(doorbell.sleeps.get() - sleeps <= 4, "{} sleeps for one timer", doorbell.sleeps.get() - sleeps);
            assert!(cpu_time() - cpu < Duration::from_millis(50), "{:?} of processor time at rest", cpu_time() - cpu);
        });
    }
}

#[test]
fn the_blocking_facade_keeps_its_tasks_between_calls() {
    let mut task = None;
    kernel_ipc::blocking(async {
        task = Some(runtime::spawn(async {
            runtime::sleep(Duration::from_millis(1)).await;
            5
        }));
    });
    assert_eq!(kernel_ipc::blocking(task.expect("it was spawned")), Ok(5));
}
