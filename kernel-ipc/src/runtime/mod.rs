//! One thread, one io_uring, one executor: futures for I/O, timers and doorbells.
//!
//! - A turn of the loop: ready tasks, then sources (session ends), then completions, then timers. Tasks that
//!   became ready during a turn run in the next, so that none starves the others.
//! - Nothing to do: the waiting ladder (`waiting`) decides between spinning, yielding and sleeping. A sleeping
//!   runtime wakes for its sources, its I/O, its timers and wakers, and for nothing else.
//! - When only sources are waited for, it sleeps in `futex_waitv`; with I/O in flight, in one
//!   `io_uring_enter` that waits for both.
//! - Futures are not `Send`; wakers are.

pub mod clock;
pub mod io;
mod mailbox;
mod park;
mod ready;
mod remote;
pub(crate) mod signal;
pub mod simulated;
mod source;
mod tasks;
mod timers;
mod waiting;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

pub use self::mailbox::{Mailbox, Sender, mailbox};
pub use self::signal::{Changes, Signal};
pub use self::source::{Sleep, Source, SourceGuard, register};
pub use self::tasks::{Cancelled, JoinHandle};
pub use crate::sys::calls::{SystemCalls, made as system_calls};
pub use crate::sys::futex::WordAddress;
pub use crate::sys::memory::{IoMemory, IoMemoryMut};
pub use crate::sys::ring::Features;

use self::source::Sources;
use self::tasks::{MAIN, Tasks};
use self::timers::{TimerKey, Timers};
use self::waiting::{Ladder, Step};
use crate::sys::calls;
use crate::sys::ring::{Released, Ring, SharedRing};

/// How a thread waits when it has nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Waiting {
    /// Never sleeps: the lowest latency, one whole core.
    Spin,
    /// Climbs the ladder: spin, then yield, then park; how long each rung lasts is learned.
    #[default]
    Adaptive,
    /// Parks at once: no processor time at all while waiting.
    Block,
}

/// What a [`Runtime`] is made of.
#[derive(Debug, Default)]
pub struct Options {
    /// Submission entries of the ring; 0 means 256.
    pub entries: u32,
    /// How the thread waits.
    pub waiting: Waiting,
    /// The write end of the fence pipe: registered as a file of the ring and then closed, so that the keeper
    /// reads end-of-file only when the kernel has let go of every page this ring was given.
    pub fence: Option<OwnedFd>,
    /// Behave as on Linux before 6.7, where a ring cannot wait for futex words.
    pub without_ring_futex: bool,
}

/// The executor of one thread.
pub struct Runtime {
    core: Rc<Core>,
}

/// What futures reach through the thread's current runtime.
struct Core {
    tasks: Tasks,
    timers: RefCell<Timers>,
    sources: Sources,
    ring: SharedRing,
    ladder: RefCell<Ladder>,
    park: park::Park,
    /// Who hears of each sleep.
    rest: RefCell<Option<Rc<dyn Rest>>>,
    /// Since when nothing was found; `None` while there is work.
    idle_since: Cell<Option<Instant>>,
    /// How long that was when the clock was looked at last: near enough to learn from, and free.
    waited: Cell<Duration>,
    /// What it has for a network, if that is a simulated one.
    nic: Option<simulated::Nic>,
}

thread_local! {
    /// The runtime whose `block_on` is on this thread's stack.
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Whether this thread runs a runtime now.
pub(crate) fn is_running() -> bool {
    with_current(|_| ()).is_some()
}

/// Calls `f` with this thread's running core, if there is one.
fn with_current<R>(f: impl FnOnce(&Rc<Core>) -> R) -> Option<R> {
    CURRENT.try_with(|current| current.borrow().as_ref().map(f)).ok().flatten()
}

/// The network of this thread's runtime, if it is a simulated one.
pub(crate) fn simulated_nic() -> Option<simulated::Nic> {
    with_current(|core| core.nic.clone()).flatten()
}

fn current() -> Rc<Core> {
    with_current(Rc::clone).expect("called outside of Runtime::block_on")
}

/// Makes a core the thread's current one until dropped.
struct Entered;

impl Entered {
    fn new(core: &Rc<Core>) -> Entered {
        // At the end of a thread the cell may be gone already: then there is nobody left to look into it.
        let _ = CURRENT.try_with(|current| {
            let before = current.borrow_mut().replace(Rc::clone(core));
            assert!(before.is_none(), "block_on inside of block_on: the outer runtime could never go on");
        });
        Entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let left = CURRENT.try_with(|current| current.borrow_mut().take());
        drop(left);
    }
}

/// Looks at the sources between two looks at everything else (completions, other threads, the clock).
const LOOKS: u32 = 16;
/// Busy turns for which the ring's entries may wait while its completions are taken in batches.
const LAZY_TURNS: u32 = 64;
/// Busy turns after which timers are looked at, though nothing is idle.
const BUSY_TURNS: u32 = 32;

impl Runtime {
    /// Makes the ring. Allocates; does not block.
    ///
    /// # Errors
    /// The kernel's refusal of `io_uring_setup`.
    pub fn new(options: Options) -> std::io::Result<Runtime> {
        let entries = if options.entries == 0 { 256 } else { options.entries };
        let mut ring = Ring::new(entries, options.fence)?;
        if options.without_ring_futex {
            ring.forget_futex();
        }
        Ok(Runtime::with(Rc::new(RefCell::new(ring)), options.waiting, None))
    }

    fn with(ring: SharedRing, waiting: Waiting, nic: Option<simulated::Nic>) -> Runtime {
        let core = Core {
            tasks: Tasks::new(),
            timers: RefCell::default(),
            sources: Sources::default(),
            ring,
            ladder: RefCell::new(Ladder::new(waiting)),
            park: park::Park::default(),
            rest: RefCell::default(),
            idle_since: Cell::new(None),
            waited: Cell::new(Duration::ZERO),
            nic,
        };
        Runtime { core: Rc::new(core) }
    }

    /// Runs `future` to its end on this thread, and spawned tasks beside it. Tasks that are left keep their
    /// state until the next call, or until the runtime is dropped.
    ///
    /// # Panics
    /// Inside another `block_on` of this thread. A panic of a task unwinds through it.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let core = &self.core;
        let _entered = Entered::new(core);
        let mut future = pin!(future);
        let waker = core.tasks.main_waker();
        let mut cx = Context::from_waker(&waker);
        core.tasks.make_ready(MAIN);
        let mut turns = 0u32;
        let may_park = core.ladder.borrow().may_park();
        loop {
            core.tasks.drain_remote();
            // Only those that are ready now: what they wake runs in the next turn, after sources and I/O.
            let ready = core.tasks.ready_count();
            for _ in 0..ready {
                match core.tasks.next_ready() {
                    Some(MAIN) => {
                        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                            // What was queued goes out even if nobody calls `block_on` again.
                            core.turn_ring(false);
                            return output;
                        }
                    }
                    Some(index) => core.tasks.run(index),
                    None => break,
                }
            }
            turns = turns.wrapping_add(1);
            let lazy = may_park && !turns.is_multiple_of(LAZY_TURNS);
            let found = core.sources.poll_all() | core.turn_ring(lazy);
            if turns.is_multiple_of(BUSY_TURNS) {
                core.expire_timers();
            }
            if ready > 0 || found || core.tasks.ready_count() > 0 || core.idle() {
                core.end_of_idleness();
            }
        }
    }

    /// What the running kernel's io_uring offers.
    pub fn features(&self) -> Features {
        self.core.ring.borrow().features()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Tasks own guards and operations that look for their runtime when they are dropped.
        let entered = with_current(|_| ()).is_none().then(|| Entered::new(&self.core));
        self.core.tasks.clear();
        drop(entered);
    }
}

impl Core {
    /// Submits and collects completions, see [`Ring::turn`]. True when there were any.
    fn turn_ring(&self, lazy: bool) -> bool {
        if self.ring.borrow().is_quiet() {
            return false;
        }
        let mut released = Released::default();
        let found = self.ring.borrow_mut().turn(lazy, &mut released);
        released.finish();
        found
    }

    fn expire_timers(&self) {
        if self.timers.borrow().next().is_none() {
            return;
        }
        let now = clock::now();
        loop {
            let due = self.timers.borrow_mut().expire(now);
            match due {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// Nothing was found in this turn: what the ladder says. True when a source found something meanwhile.
    fn idle(&self) -> bool {
        if self.ladder.borrow().may_park() && self.ring.borrow().is_batching() {
            // A client that was woken by a batch of answers sends a batch of calls, one after the other.
            if self.look() {
                return true;
            }
            return self.park();
        }
        let waited = match self.idle_since.get() {
            Some(since) => since.elapsed(),
            None => {
                // Most waits of two that both spin end here, and cost no look at the clock.
                if self.ladder.borrow().may_spin() && self.look() {
                    self.ladder.borrow_mut().found(Duration::ZERO);
                    return true;
                }
                self.idle_since.set(Some(Instant::now()));
                Duration::ZERO
            }
        };
        self.waited.set(waited);
        self.expire_timers();
        if self.tasks.ready_count() > 0 {
            return false;
        }
        let step = self.ladder.borrow().step(waited);
        match step {
            Step::Pause => return self.look(),
            Step::Yield => {
                let before = Instant::now();
                std::thread::yield_now();
                calls::count(|made| made.yields += 1);
                self.ladder.borrow_mut().yielded(before.elapsed());
            }
            Step::Park => {
                let found = self.park();
                // The peer may have taken any time.
                self.waited.set(self.idle_since.get().map_or(Duration::ZERO, |since| since.elapsed()));
                return found;
            }
        }
        false
    }

    /// Sleeps, unless there is work. True when a source at rest found some: the others are looked at in every turn.
    fn park(&self) -> bool {
        park::park(self);
        self.expire_timers();
        self.sources.poll_all_at_rest()
    }

    /// Watches the sources alone for a while: the shorter the way round, the sooner an answer is seen.
    fn look(&self) -> bool {
        for _ in 0..LOOKS {
            if self.sources.poll_all() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    fn end_of_idleness(&self) {
        if self.idle_since.take().is_some() {
            self.ladder.borrow_mut().found(self.waited.get());
        }
    }
}

/// Hears of each sleep of a runtime's thread, on that thread. Called between the last look and the sleep, so it must neither
/// make a task ready nor touch a source.
pub trait Rest {
    /// There is nothing to do; the thread falls asleep now.
    fn begins(&self);

    /// It is awake again, and has not looked at anything yet.
    fn ends(&self);
}

/// Lets `rest` hear of the sleeps of this thread's runtime, instead of whoever did so before.
///
/// # Panics
/// Outside a runtime.
pub fn tell_of_rest(rest: Rc<dyn Rest>) {
    current().rest.replace(Some(rest));
}

/// Runs `future` as a task of this thread's runtime. Allocates once.
///
/// # Panics
/// Outside a runtime.
pub fn spawn<F: Future<Output = T> + 'static, T: 'static>(future: F) -> JoinHandle<T> {
    tasks::spawn_on(&current(), future)
}

/// Lets every other ready task run once.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits for `duration`.
///
/// # Panics
/// When polled outside a runtime.
pub fn sleep(duration: Duration) -> SleepUntil {
    // Thirty years are for ever, and an `Instant` can hold them.
    const FOR_EVER: Duration = Duration::from_secs(1_000_000_000);
    sleep_until(clock::now() + duration.min(FOR_EVER))
}

/// Waits until `deadline`.
///
/// # Panics
/// When polled outside a runtime.
pub fn sleep_until(deadline: Instant) -> SleepUntil {
    SleepUntil { deadline, armed: None }
}

/// The future of [`sleep`] and [`sleep_until`]. Dropping it removes the timer.
#[must_use = "futures do nothing unless they are awaited"]
pub struct SleepUntil {
    deadline: Instant,
    armed: Option<(Weak<Core>, TimerKey)>,
}

impl SleepUntil {
    /// When it ends.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for SleepUntil {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &self.armed {
            Some((core, key)) => match core.upgrade() {
                Some(core) if core.timers.borrow_mut().renew(*key, cx.waker()) => Poll::Pending,
                _ => {
                    self.armed = None;
                    Poll::Ready(())
                }
            },
            None if self.deadline <= clock::now() => Poll::Ready(()),
            None => {
                let core = current();
                let key = core.timers.borrow_mut().insert(self.deadline, cx.waker().clone());
                self.armed = Some((Rc::downgrade(&core), key));
                Poll::Pending
            }
        }
    }
}

impl Drop for SleepUntil {
    fn drop(&mut self) {
        if let Some((core, key)) = self.armed.take()
            && let Some(core) = core.upgrade()
        {
            core.timers.borrow_mut().remove(key);
        }
    }
}

/// The time was up before the future was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// `future`, unless it takes longer than `duration`; then it is dropped.
///
/// # Errors
/// [`Elapsed`] when the time was up first.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep(duration));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        sleep.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

thread_local! {
    /// The runtime of the blocking facade.
    static OWN: RefCell<Option<Rc<Runtime>>> = const { RefCell::new(None) };
}

/// Runs `future` on this thread's own runtime (made at the first call): the blocking facade. Tasks that it
/// leaves behind go on during the thread's next call.
///
/// # Panics
/// Inside a runtime, and when the kernel has no io_uring.
pub fn block_on_current<F: Future>(future: F) -> F::Output {
    let runtime = OWN.with(|own| {
        Rc::clone(own.borrow_mut().get_or_insert_with(|| {
            Rc::new(Runtime::new(Options::default()).expect("this kernel has no io_uring (it needs Linux 6.1)"))
        }))
    });
    runtime.block_on(future)
}
