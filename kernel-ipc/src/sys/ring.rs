//! The ring of one runtime: io_uring set-up, the table of operations in flight, and sleeping in it.
//!
//! - An operation has a slot here from its submission to its *last* completion. What the kernel uses (file,
//!   memory) is owned by the operation's future, or, once that was dropped, by the slot.
//! - Nothing that belongs to the user (wakers apart) runs while the ring is borrowed: what completions free
//!   is handed out as [`Released`] and dropped by the caller.
//! - Dropping the ring cancels what is in flight or armed and waits for it; memory that the kernel will not let go of
//!   is leaked rather than reused.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, FutexWaitV, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, types};

use super::futex::{WAIT_MAX, Wait, WordAddress};

/// A ring that operations and the executor share.
pub type SharedRing = Rc<RefCell<Ring>>;

/// What a completion set free: dropped by whoever reaped, after the borrow of the ring has ended.
#[derive(Default)]
pub struct Released(Vec<Box<dyn Any>>, Vec<Waker>);

impl Released {
    /// Wakes the futures whose operations have ended and drops what nobody waits for any more.
    pub fn finish(self) {
        for waker in self.1 {
            waker.wake();
        }
    }
}

/// How completions of an operation are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One completion; a zero-copy send has a second one, the notification.
    Once,
    /// One completion, which comes by itself and soon: reading or writing a file.
    Transfer,
    /// Any number of completions, each a new descriptor.
    Accept,
}

/// What is known about an operation that has not been collected by its future.
#[derive(Debug)]
pub(super) struct Progress {
    /// The result of a [`Kind::Once`].
    pub result: Option<i32>,
    /// The result of its notification.
    pub notification: Option<i32>,
    /// No completion will follow.
    pub ended: bool,
}

struct Slot {
    kind: Kind,
    progress: Progress,
    /// Results of [`Kind::Accept`] that were not yet taken.
    accepted: VecDeque<i32>,
    waker: Option<Waker>,
    /// The future was dropped; `kept` is what it owned.
    abandoned: bool,
    kept: Option<Box<dyn Any>>,
}

/// A futex wait that sleeps in the ring, left armed until it fires.
struct Armed {
    tag: u64,
    words: Vec<WordAddress>,
    /// What the kernel copies when the entry is submitted.
    _kernel: Vec<FutexWaitV>,
}

/// A descriptor that is polled on behalf of a source, until it fires.
struct Polled {
    tag: u64,
    event: RawFd,
}

/// Upper half of a completion's user data: whose it is.
const KIND_OPERATION: u64 = 0;
const KIND_IGNORED: u64 = 1;
const KIND_FUTEX: u64 = 2;
const KIND_EVENT: u64 = 3;

/// The user data of entries whose completion means nothing.
const IGNORED: u64 = tag(KIND_IGNORED, 0);

const fn tag(kind: u64, low: u32) -> u64 {
    kind << 32 | low as u64
}

/// What the running kernel's io_uring offers beyond what Atoll needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `IORING_OP_FUTEX_WAITV` (Linux 6.7): sleeping on words and on I/O in one call.
    pub futex: bool,
    /// `IORING_OP_SEND_ZC` (Linux 6.0).
    pub send_zc: bool,
    /// `IORING_FEAT_MIN_TIMEOUT` (Linux 6.12): sleeping for several completions, but not for long.
    pub min_wait: bool,
}

/// Transfers in flight from which on their completions are taken in batches. A wake-up costs more than many a transfer.
const BATCH_FROM: usize = 8;
/// What part of the transfers in flight a batch is. More would leave the disk with too little to do meanwhile: measured at
/// depth 32, 71,000 reads a second by batches of 20, 89,000 by batches of 8.
const BATCH_PART: usize = 4;
/// How long the first completion of a batch waits for the others: twice what they took lately, within these bounds.
const BATCH_MIN: Duration = Duration::from_micros(150);
const BATCH_MAX: Duration = Duration::from_millis(2);
/// Entries that wait for the sleep of a batch to be submitted with it.
const BATCH_ENTRIES: usize = 16;

/// See the module's contract.
pub struct Ring {
    uring: IoUring,
    features: Features,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Operations whose last completion has not come.
    in_flight: usize,
    /// How many of them are transfers.
    transfers: usize,
    /// How many there were lately: their number, or an eighth less at each sleep. A batch that has just ended altogether
    /// must not end the batching.
    depth: usize,
    /// What one transfer of a batch took lately: an average with weight 1/8 for the last batch.
    pace: Duration,
    /// Entries that found the submission queue full.
    backlog: VecDeque<Entry>,
    armed: Vec<Armed>,
    polled: Vec<Polled>,
    /// Waits that were cancelled and have not completed: until then they may take a wake.
    retired: Vec<Armed>,
    next_tag: u32,
    /// Something was queued since the last `enter`.
    unsubmitted: usize,
    /// Registered buffers that exist; 0 while there is no table.
    pub(super) buffers: u16,
}

/// For how long a ring that there is no memory for is tried again: about twice this.
const LONGEST_PAUSE: Duration = Duration::from_millis(512);

/// Sets a ring up. The kernel charges its pages to the memory that its user may lock (`RLIMIT_MEMLOCK`, 8 MiB by default, of all
/// processes of that user), and so it does what is being sent without a copy: what is missing now may be back in a moment.
fn set_up(entries: u32) -> io::Result<IoUring> {
    let mut pause = Duration::from_millis(1);
    loop {
        // Deferred task work: completions appear only when this thread asks, so they never interrupt a poll
        // of sources, and one system call both submits and reaps. All flags exist in Linux 6.1.
        let uring = IoUring::builder()
            .setup_clamp()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(entries.saturating_mul(4))
            .build(entries);
        match uring {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && pause <= LONGEST_PAUSE => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            uring => return uring,
        }
    }
}

impl Ring {
    /// Makes a ring of `entries` submissions and four times as many completions. `fence` becomes its file
    /// number 0 and is closed: end-of-file on the pipe's other end then means that the ring is no more.
    ///
    /// # Errors
    /// The kernel's refusal; `OutOfMemory` also when the user's locked memory is used up, see [`set_up`].
    pub fn new(entries: u32, fence: Option<OwnedFd>) -> io::Result<Ring> {
        let uring = set_up(entries)?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        let features = Features {
            futex: probe.is_supported(opcode::FutexWaitV::CODE),
            send_zc: probe.is_supported(opcode::SendZc::CODE),
            min_wait: uring.params().is_feature_min_timeout(),
        };
        if let Some(fence) = fence {
            uring.submitter().register_files(&[fence.as_raw_fd()])?;
        }
        Ok(Ring {
            uring,
            features,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            transfers: 0,
            depth: 0,
            pace: Duration::ZERO,
            backlog: VecDeque::new(),
            armed: Vec::new(),
            polled: Vec::new(),
            retired: Vec::new(),
            next_tag: 0,
            unsubmitted: 0,
            buffers: 0,
        })
    }

    /// What the kernel offers.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Pretends that the kernel is older than 6.7.
    pub fn forget_futex(&mut self) {
        self.features.futex = false;
    }

    /// Nothing is in flight, neither operations nor sleeping waits: the thread may sleep outside the ring.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
            && self.armed.is_empty()
            && self.retired.is_empty()
            && self.polled.is_empty()
            && self.backlog.is_empty()
    }

    /// A turn would find nothing and has nothing to submit: what a thread that only calls and answers finds each time.
    pub fn is_quiet(&self) -> bool {
        self.unsubmitted == 0 && self.is_idle()
    }

    /// So many transfers have been in flight lately that it pays to sleep until several have ended, instead of looking for each.
    pub fn is_batching(&self) -> bool {
        self.features.min_wait && self.depth >= BATCH_FROM
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Submits what is queued and collects completions, without sleeping. True when there were any. `lazy`: a sleep or
    /// another turn follows soon, so that a few entries of a batch can wait for it.
    pub fn turn(&mut self, lazy: bool, released: &mut Released) -> bool {
        let wait = lazy && self.is_batching() && self.unsubmitted < BATCH_ENTRIES;
        let submission = self.uring.submission();
        let enter = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if (enter && !wait) || !self.backlog.is_empty() {
            self.enter(0, None);
        }
        self.reap(released)
    }

    /// Sleeps until a completion comes or `timeout` has passed.
    pub fn sleep(&mut self, timeout: Option<Duration>, released: &mut Released) -> bool {
        self.depth = self.transfers.max(self.depth - self.depth.div_ceil(8));
        let want = if self.is_batching() { (self.transfers / BATCH_PART).max(1) } else { 1 };
        if want == 1 {
            self.enter(want, timeout);
            return self.reap(released);
        }
        let (begin, before) = (Instant::now(), self.transfers);
        self.enter(want, timeout);
        let found = self.reap(released);
        let ended = u32::try_from(before - self.transfers).unwrap_or(u32::MAX);
        self.pace = (7 * self.pace + begin.elapsed().min(BATCH_MAX) / ended.max(1)) / 8;
        found
    }

    /// How long to wait for a batch of `want`.
    fn patience(&self, want: usize) -> Duration {
        let expected = self.pace.saturating_mul(u32::try_from(2 * want).unwrap_or(u32::MAX));
        expected.clamp(BATCH_MIN, BATCH_MAX)
    }

    /// One `io_uring_enter`, after moving the backlog into the queue as far as it goes.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) {
        self.refill();
        self.unsubmitted = 0;
        super::calls::count(|made| made.ring += 1);
        // A full queue with entries behind it: submit without waiting until everything is in.
        let want = if self.backlog.is_empty() { want } else { 0 };
        let patience = self.patience(want).as_micros() as u32;
        let result = match timeout {
            None if want > 1 => {
                let args = SubmitArgs::new().min_wait_usec(patience);
                self.uring.submitter().submit_with_args(want, &args)
            }
            None => self.uring.submitter().submit_and_wait(want),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timespec);
                let args = if want > 1 { args.min_wait_usec(patience) } else { args };
                self.uring.submitter().submit_with_args(want, &args)
            }
        };
        match result.map_err(|error| error.raw_os_error()) {
            Ok(_) => {}
            // Time is up; a signal; too little memory now, or completions to reap first: the caller reaps and comes back.
            Err(Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) => {}
            Err(errno) => panic!("io_uring_enter refused a ring of our own making: errno {errno:?}"),
        }
    }

    fn refill(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: what the entry names is owned by its slot or future (duty of `queue`'s callers).
            if unsafe { self.uring.submission().push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Queues an entry for the next `enter`.
    ///
    /// # Safety
    /// Everything that the entry points to stays valid until its last completion, except what the kernel
    /// copies at submission, which stays valid until the next `enter` (`SUBMIT_STABLE`).
    unsafe fn queue(&mut self, entry: Entry) {
        self.unsubmitted += 1;
        // Behind a backlog everything waits, so that entries keep their order.
        // SAFETY: passed on to the caller.
        if !self.backlog.is_empty() || unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
            if self.backlog.len() == 1 {
                self.enter(0, None);
            }
        }
    }

    /// Starts an operation; its slot number.
    ///
    /// # Safety
    /// Everything that `entry` points to is owned by the caller's future, which hands it to [`Ring::abandon`]
    /// if it is dropped before [`Progress::ended`].
    pub(super) unsafe fn start(&mut self, entry: Entry, kind: Kind) -> u32 {
        let slot = Slot {
            kind,
            progress: Progress { result: None, notification: None, ended: false },
            accepted: VecDeque::new(),
            waker: None,
            abandoned: false,
            kept: None,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                u32::try_from(self.slots.len() - 1).expect("memory holds less than 2^32 slots")
            }
        };
        self.in_flight += 1;
        self.transfers += usize::from(kind == Kind::Transfer);
        self.depth = self.depth.max(self.transfers);
        // SAFETY: the caller's duty.
        unsafe { self.queue(entry.user_data(tag(KIND_OPERATION, index))) };
        index
    }

    /// What is known of an operation; if `done` does not accept it, `cx` is woken when more is known.
    pub(super) fn progress<T>(
        &mut self,
        index: u32,
        cx: &mut Context<'_>,
        done: impl FnOnce(&Progress) -> Option<T>,
    ) -> Option<T> {
        let slot = &mut self.slots[index as usize];
        let result = done(&slot.progress);
        if result.is_none() {
            match &mut slot.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => slot.waker = Some(cx.waker().clone()),
            }
        }
        result
    }

    /// The next result of an accept.
    pub(super) fn next_accepted(&mut self, index: u32, cx: &mut Context<'_>) -> Option<i32> {
        if let Some(result) = self.slots[index as usize].accepted.pop_front() {
            return Some(result);
        }
        self.slots[index as usize].waker = Some(cx.waker().clone());
        None
    }

    /// Whether an accept has ended and all of its results were taken.
    pub(super) fn is_drained(&self, index: u32) -> bool {
        let slot = &self.slots[index as usize];
        slot.progress.ended && slot.accepted.is_empty()
    }

    /// Frees the slot of an operation that has ended.
    pub(super) fn collect(&mut self, index: u32) {
        debug_assert!(self.slots[index as usize].progress.ended);
        self.slots[index as usize].waker = None;
        self.free.push(index);
    }

    /// The future was dropped: the slot owns `kept` from now on, until the last completion. `cancel` asks the
    /// kernel to end the operation early. Gives `kept` back when the operation has ended already.
    pub(super) fn abandon(&mut self, index: u32, kept: Box<dyn Any>, cancel: bool) -> Option<Box<dyn Any>> {
        let slot = &mut self.slots[index as usize];
        slot.waker = None;
        for descriptor in slot.accepted.drain(..) {
            close_accepted(descriptor);
        }
        if slot.progress.ended {
            self.free.push(index);
            return Some(kept);
        }
        slot.abandoned = true;
        slot.kept = Some(kept);
        if cancel {
            self.cancel(index);
        }
        None
    }

    /// Asks the kernel to end an operation early; its results come all the same.
    pub(super) fn cancel(&mut self, index: u32) {
        let entry = opcode::AsyncCancel::new(tag(KIND_OPERATION, index)).build();
        // SAFETY: a cancel points to nothing.
        unsafe { self.queue(entry.user_data(IGNORED)) };
    }

    /// Makes the ring sleep on exactly these words and descriptors as well. What is armed from an earlier
    /// sleep stays armed: it fires at the next wake-up whatever the word's value then is, and the caller has
    /// announced itself and looked again before it sleeps.
    pub fn arm(&mut self, waits: &[Wait], events: &[RawFd]) {
        debug_assert!(waits.is_empty() || self.features.futex);
        let wanted: Vec<&[Wait]> = waits.chunks(WAIT_MAX).collect();
        let same = |armed: &Armed, chunk: &[Wait]| armed.words.iter().copied().eq(chunk.iter().map(|wait| wait.word));
        self.cancel_waits(
            |armed| !wanted.iter().any(|chunk| same(armed, chunk)),
            |polled| !events.contains(&polled.event),
        );
        for chunk in wanted {
            if self.armed.iter().any(|armed| same(armed, chunk)) {
                continue;
            }
            let tag = self.tag(KIND_FUTEX);
            let kernel: Vec<FutexWaitV> = chunk.iter().map(|wait| wait.to_kernel()).collect();
            let count = u32::try_from(kernel.len()).expect("a chunk has at most 128 words");
            let entry = opcode::FutexWaitV::new(kernel.as_ptr(), count).build().user_data(tag);
            self.armed.push(Armed { tag, words: chunk.iter().map(|wait| wait.word).collect(), _kernel: kernel });
            // SAFETY: the kernel copies the array when the entry is submitted; until then it is in `armed` or
            // `retired`. The words are only keys, see `WordAddress`.
            unsafe { self.queue(entry) };
        }
        for &event in events {
            if !self.polled.iter().any(|polled| polled.event == event) {
                let tag = self.tag(KIND_EVENT);
                self.polled.push(Polled { tag, event });
                let entry = opcode::PollAdd::new(types::Fd(event), libc::POLLIN as u32).build();
                // SAFETY: a poll points to nothing; the kernel holds the file while it runs.
                unsafe { self.queue(entry.user_data(tag)) };
            }
        }
    }

    /// Forgets what sources were waited for: one of them has gone, and its word's address or descriptor's
    /// number may soon mean something else.
    pub fn disarm(&mut self) {
        self.cancel_waits(|_| true, |_| true);
    }

    fn cancel_waits(&mut self, stale_futex: impl Fn(&Armed) -> bool, stale_event: impl Fn(&Polled) -> bool) {
        let futexes: Vec<Armed> = self.armed.extract_if(.., |armed| stale_futex(armed)).collect();
        let events: Vec<Polled> = self.polled.extract_if(.., |polled| stale_event(polled)).collect();
        let tags = futexes.iter().map(|armed| armed.tag).chain(events.iter().map(|polled| polled.tag));
        for tag in tags {
            // SAFETY: a cancel points to nothing.
            unsafe { self.queue(opcode::AsyncCancel::new(tag).build().user_data(IGNORED)) };
        }
        self.retired.extend(futexes);
    }

    fn tag(&mut self, kind: u64) -> u64 {
        self.next_tag = self.next_tag.wrapping_add(1);
        tag(kind, self.next_tag)
    }

    /// Collects completions. True when there were any.
    fn reap(&mut self, released: &mut Released) -> bool {
        let mut any = false;
        loop {
            let Some(entry) = self.uring.completion().next() else { return any };
            any = true;
            let low = entry.user_data() as u32;
            match entry.user_data() >> 32 {
                KIND_OPERATION => self.complete(low, entry.result(), entry.flags(), released),
                KIND_FUTEX => {
                    self.armed.retain(|armed| armed.tag != entry.user_data());
                    self.retired.retain(|armed| armed.tag != entry.user_data());
                }
                KIND_EVENT => self.polled.retain(|polled| polled.tag != entry.user_data()),
                _ => {}
            }
        }
    }

    fn complete(&mut self, index: u32, result: i32, flags: u32, released: &mut Released) {
        let slot = &mut self.slots[index as usize];
        // Whether more follows is said by F_MORE alone: a zero-copy send that failed may still be followed by
        // its notification (measured on AF_UNIX).
        let ended = !cqueue::more(flags);
        match slot.kind {
            Kind::Accept if slot.abandoned => close_accepted(result),
            Kind::Accept => slot.accepted.push_back(result),
            Kind::Once if cqueue::notif(flags) => slot.progress.notification = Some(result),
            Kind::Once | Kind::Transfer => slot.progress.result = Some(result),
        }
        if ended {
            slot.progress.ended = true;
            self.in_flight -= 1;
            self.transfers -= usize::from(slot.kind == Kind::Transfer);
        }
        if slot.abandoned {
            if ended {
                released.0.extend(slot.kept.take());
                self.free.push(index);
            }
        } else if let Some(waker) = slot.waker.take() {
            released.1.push(waker);
        }
    }

    /// Makes a table of `count` registered buffers, all empty.
    pub(super) fn register_table(&mut self, count: u16) -> io::Result<()> {
        if self.buffers != 0 {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        self.uring.submitter().register_buffers_sparse(u32::from(count))?;
        self.buffers = count;
        Ok(())
    }

    /// Registers `length` bytes at `start` as buffer `index`.
    ///
    /// # Safety
    /// The bytes are mapped and writable now. (The kernel pins the pages, so later they may be unmapped.)
    pub(super) unsafe fn register_buffer(&mut self, index: u16, start: *mut u8, length: usize) -> io::Result<()> {
        let buffer = libc::iovec { iov_base: start.cast(), iov_len: length };
        // SAFETY: the caller's duty; an operation that uses the buffer must name memory that its future owns.
        unsafe { self.uring.submitter().register_buffers_update(u32::from(index), &[buffer], None) }.map(drop)
    }
}

/// Ends a connection that nobody will take.
fn close_accepted(result: i32) {
    if result >= 0 {
        // SAFETY: the completion of an accept gave this descriptor to us, and nothing else has it.
        drop(unsafe { OwnedFd::from_raw_fd(result) });
    }
}

/// How long the end of a ring waits for cancelled operations before it leaks their memory.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel takes a ring apart some time after its descriptor was closed. A wait that is still armed then could
        // take the one wake that is meant for whoever uses the same word next.
        self.disarm();
        if self.in_flight > 0 {
            // SAFETY: a cancel points to nothing.
            unsafe { self.queue(opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(IGNORED)) };
        }
        let end = Instant::now() + DROP_PATIENCE;
        while self.in_flight > 0 || !self.retired.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut released = Released::default();
            self.sleep(Some(left), &mut released);
            released.finish();
        }
        for slot in &mut self.slots {
            if !slot.progress.ended {
                // The kernel may still read or write this memory: better lost than reused.
                std::mem::forget(slot.kept.take());
            }
        }
    }
}
