//! The end that leased bytes go to: asks for them in chunks, a few at a time, and puts them where they belong.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::super::frame::{self, CHUNK, FrameError, HEADER_BYTES, PIECE_BYTES, Pull, kind};
use super::super::greeting::{Unanswered, receive_frame};
use super::super::stream::Stream;
use super::line::{aborted, timed_out};
use super::window::Window;
use crate::error::Cause;
use crate::lease::Extent;
use crate::runtime::{self, Signal};
use crate::wire::LeaseName;

/// What is to come on one session, into places of this kind.
pub(super) struct Fetch<E> {
    jobs: RefCell<VecDeque<Job<E>>>,
    /// There is a job, or it is over.
    changed: Rc<Signal>,
    over: Cell<bool>,
    /// Pieces that have come.
    came: Cell<u64>,
}

/// Some bytes that are to come.
struct Job<E> {
    arrival: Rc<Arrival<E>>,
    offset: usize,
    length: usize,
}

/// One lease that is to come.
pub(super) struct Arrival<E> {
    name: LeaseName,
    pub(super) place: Rc<E>,
    /// Bytes that have not come.
    left: Cell<usize>,
    /// They will not, or nobody wants them.
    is_gone: Cell<bool>,
    changed: Signal,
}

impl<E> Arrival<E> {
    /// It is not asked for any more, and what comes is dropped.
    pub(super) fn has_lost(&self) {
        self.is_gone.set(true);
        self.changed.raise();
    }
}

impl<E: AsRef<Extent> + 'static> Fetch<E> {
    pub(super) fn new(changed: Rc<Signal>) -> Fetch<E> {
        Fetch { jobs: RefCell::default(), changed, over: Cell::new(false), came: Cell::new(0) }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Whether something is to be asked for.
    pub(super) fn has_jobs(&self) -> bool {
        !self.jobs.borrow().is_empty()
    }

    /// The session is over: nothing more comes.
    pub(super) fn end(&self) {
        self.over.set(true);
        self.jobs.take().iter().for_each(|job| job.arrival.has_lost());
        self.changed.raise();
    }

    /// Asks for all bytes of a lease, which go to this place; it has that length.
    pub(super) fn ask(&self, name: LeaseName, place: Rc<E>) -> Rc<Arrival<E>> {
        let length = (*place).as_ref().len();
        let (left, is_gone, changed) = (Cell::new(length), Cell::new(false), Signal::default());
        let arrival = Rc::new(Arrival { name, place, left, is_gone, changed });
        let chunks = (0..length).step_by(CHUNK);
        self.jobs.borrow_mut().extend(chunks.map(|offset| Job {
            arrival: arrival.clone(),
            offset,
            length: CHUNK.min(length - offset),
        }));
        self.changed.raise();
        arrival
    }

    /// Nobody wants these any more: what is not asked for is not, and their places are given up, also where there is no connection; what is
    /// asked for already keeps its place until it comes or its connection ends.
    pub(super) fn forget(&self, arrivals: &[Rc<Arrival<E>>]) {
        arrivals.iter().for_each(|arrival| arrival.has_lost());
        let (wanted, gone) = self.jobs.take().into_iter().partition(|job| !job.arrival.is_gone.get());
        self.jobs.replace(wanted);
        drop::<VecDeque<Job<E>>>(gone);
    }

    /// Waits until all of it is there.
    ///
    /// # Errors
    /// [`Cause::StaleLease`]: it is no more. [`Cause::LinkLost`]: nothing at all has come for as long as `patience`.
    pub(super) async fn comes(&self, arrival: &Arrival<E>, patience: Duration) -> Result<(), Cause> {
        while arrival.left.get() > 0 && !arrival.is_gone.get() {
            let came = self.came.get();
            let waited = runtime::timeout(patience, arrival.changed.wait()).await;
            if waited.is_err() && self.came.get() == came {
                return Err(Cause::LinkLost);
            }
        }
        if arrival.is_gone.get() { Err(Cause::StaleLease) } else { Ok(()) }
    }

    /// Fetches over one connection until that ends, and says why it did. `of_use` is called for each piece that comes.
    pub(super) async fn over(&self, stream: &Stream, dead_after: Duration, of_use: impl Fn()) -> Unanswered {
        let mut under_way = UnderWay { fetch: self, asked: VecDeque::new() };
        let (mut window, mut tag) = (Window::new(), 0);
        let mut first = 0;
        loop {
            if let Err(error) = self.ask_for_more(stream, &mut under_way.asked, window.chunks(), &mut tag).await {
                return error.into();
            }
            if self.over.get() {
                return aborted();
            }
            let Some(Asked { job, .. }) = under_way.asked.front() else {
                self.changed.wait().await;
                continue;
            };
            let is_there = match runtime::timeout(dead_after, take(stream, job, first)).await {
                Ok(Ok(is_there)) => is_there,
                Ok(Err(error)) => return error,
                Err(runtime::Elapsed) => return timed_out(),
            };
            of_use();
            self.came.set(self.came.get() + 1);
            first = first.wrapping_add(1);
            let Some(Asked { job: Job { arrival, length, .. }, at, with }) = under_way.asked.pop_front() else {
                continue;
            };
            window.came(runtime::clock::now().saturating_duration_since(at), with);
            if is_there {
                arrival.left.set(arrival.left.get() - length);
                arrival.changed.raise();
            } else {
                arrival.has_lost();
            }
        }
    }

    async fn ask_for_more(
        &self,
        stream: &Stream,
        under_way: &mut VecDeque<Asked<E>>,
        most: usize,
        tag: &mut u32,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        while under_way.len() < most {
            let Some(job) = self.jobs.borrow_mut().pop_front() else { break };
            if job.arrival.is_gone.get() {
                continue;
            }
            let LeaseName { lender, index, generation, .. } = job.arrival.name;
            let length = u32::try_from(job.length).unwrap_or(u32::MAX);
            let pull = Pull { lender, index, generation, offset: job.offset as u64, length, tag: *tag };
            *tag = tag.wrapping_add(1);
            bytes.extend(frame::header(kind::PULL, frame::PULL_BYTES));
            bytes.extend(pull.to_bytes());
            under_way.push_back(Asked { job, at: runtime::clock::now(), with: under_way.len() + 1 });
        }
        match bytes.len() {
            0 => Ok(()),
            _ => stream.send_all(bytes, false).await,
        }
    }
}

/// Bytes that were asked for: when, and how many chunks were under way then, with these.
struct Asked<E> {
    job: Job<E>,
    at: Instant,
    with: usize,
}

/// What was asked for on a connection. What has not come when that ends, also because nobody uses it any more, is asked for first on
/// the next one.
struct UnderWay<'a, E> {
    fetch: &'a Fetch<E>,
    asked: VecDeque<Asked<E>>,
}

impl<E> Drop for UnderWay<'_, E> {
    fn drop(&mut self) {
        if self.fetch.over.get() {
            return self.asked.iter().for_each(|asked| asked.job.arrival.has_lost());
        }
        self.asked.retain(|asked| !asked.job.arrival.is_gone.get());
        let mut jobs = self.fetch.jobs.borrow_mut();
        self.asked.drain(..).rev().for_each(|asked| jobs.push_front(asked.job));
        drop(jobs);
        self.fetch.changed.raise();
    }
}

/// Takes the answer to what was asked for longest ago, to where it belongs. False: the lease is no more.
async fn take<E: AsRef<Extent> + 'static>(stream: &Stream, job: &Job<E>, tag: u32) -> Result<bool, Unanswered> {
    let (header, head) = receive_frame::<{ HEADER_BYTES + PIECE_BYTES }, PIECE_BYTES>(stream, kind::PIECE).await?;
    let head = u64::from_le_bytes(head);
    let is_there = match (head as u32 == tag, head >> 32, header.length - PIECE_BYTES) {
        (true, 1, 0) => false,
        (true, 0, length) if length == job.length => true,
        _ => return Err(FrameError::NotAnAnswer.into()),
    };
    if is_there {
        stream.receive_leased(&job.arrival.place, job.offset, job.length).await?;
    }
    Ok(is_there)
}
