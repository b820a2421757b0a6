//! The client's side: leases that a reply brings become leases of the client's own region.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use super::super::carrier::Carrier;
use super::super::dial::{Options, Remote};
use super::super::frame::{self, Bulk, CHUNK, FrameError, HEADER_BYTES, PIECE_BYTES, Pull, kind};
use super::super::greeting::{self, Unanswered, receive_frame};
use super::super::stream::Stream;
use crate::error::Cause;
use crate::id::Incarnation;
use crate::lease::{Extent, Lender, Pool};
use crate::runtime::{self, Signal};
use crate::wire::LeaseName;

/// Chunks that are asked for at a time: what the connection has under way while one is taken.
const UNDER_WAY: usize = 4;
/// Between two attempts, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(1);
const RETRY_MOST: Duration = Duration::from_millis(200);

/// Where leased bytes land, and who lends them on.
#[derive(Clone)]
pub struct Landing {
    /// Memory of this process. What it has room for, a client can hold; a reply that brings more fails with
    /// [`Quota`](Cause::Quota), executed.
    pub pool: Pool,
    /// The lender of that memory.
    pub lender: Rc<RefCell<Lender>>,
    /// Who holds what has landed: this process.
    pub me: Incarnation,
}

/// The landing of one session.
pub(crate) struct Bay {
    landing: Landing,
    jobs: RefCell<VecDeque<Job>>,
    /// There is a job, or it is over.
    changed: Signal,
    over: Cell<bool>,
    /// The present connection: who waits for it is woken by its end.
    connection: RefCell<Option<Carrier>>,
}

/// Some bytes that are to come.
struct Job {
    arrival: Rc<Arrival>,
    offset: usize,
    length: usize,
}

/// One lease that is to come.
struct Arrival {
    name: LeaseName,
    extent: Rc<Extent>,
    /// Bytes that have not come.
    left: Cell<usize>,
    /// They will not.
    is_gone: Cell<bool>,
    changed: Signal,
}

impl Arrival {
    fn has_lost(&self) {
        self.is_gone.set(true);
        self.changed.raise();
    }
}

impl Bay {
    pub(in crate::link::socket) fn new(landing: Landing) -> Rc<Bay> {
        let (jobs, changed, over) = (RefCell::default(), Signal::default(), Cell::new(false));
        Rc::new(Bay { landing, jobs, changed, over, connection: RefCell::default() })
    }

    /// The session is over: nothing more comes.
    pub(in crate::link::socket) fn end(&self) {
        self.over.set(true);
        self.jobs.take().iter().for_each(|job| job.arrival.has_lost());
        if let Some(connection) = self.connection.take() {
            // What is under way is given up by who fetches it, when it hears of this.
            connection.shutdown(Shutdown::Both);
        }
        self.changed.raise();
    }

    /// Brings what these leases cover here. Gives the names by which it is held here.
    ///
    /// # Errors
    /// There is no room, or a lease is no more. Nothing stays here then.
    pub(crate) fn land(
        self: Rc<Self>,
        names: Vec<LeaseName>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<LeaseName>, Cause>>>> {
        Box::pin(async move {
            let mut arrivals = Vec::new();
            let asked = names.iter().try_for_each(|name| self.ask(*name).map(|arrival| arrivals.push(arrival)));
            let landed = match asked {
                Ok(()) => self.landed(&arrivals).await,
                Err(cause) => Err(cause),
            };
            if landed.is_err() {
                // What has not been asked for is not, and what comes is dropped.
                arrivals.iter().for_each(|arrival| arrival.has_lost());
            }
            landed
        })
    }

    /// Waits until all have come, and lends them.
    async fn landed(&self, arrivals: &[Rc<Arrival>]) -> Result<Vec<LeaseName>, Cause> {
        for arrival in arrivals {
            while arrival.left.get() > 0 && !arrival.is_gone.get() {
                arrival.changed.wait().await;
            }
            if arrival.is_gone.get() {
                return Err(Cause::StaleLease);
            }
        }
        let mut landed = Vec::new();
        let lent = arrivals.iter().try_for_each(|arrival| self.lend(arrival).map(|name| landed.push(name)));
        if lent.is_err() {
            self.release_all(&landed);
        }
        lent.map(|()| landed)
    }

    /// Gives landed leases back.
    pub(crate) fn release_all(&self, names: &[LeaseName]) {
        for name in names {
            self.release(name);
        }
    }

    /// Gives a landed lease back. False: it is none.
    pub(crate) fn release(&self, name: &LeaseName) -> bool {
        let mut lender = self.landing.lender.borrow_mut();
        let is_ours = lender.id() == name.lender;
        if is_ours {
            // Given back twice: nothing to do. Pinned still: the lender asks again when it lends next.
            let _ = lender.release(self.landing.me, name.index, name.generation);
        }
        is_ours
    }

    /// Asks for the bytes of one lease.
    fn ask(&self, name: LeaseName) -> Result<Rc<Arrival>, Cause> {
        let length = usize::try_from(name.length).map_err(|_| Cause::Quota)?;
        if length == 0 || self.over.get() {
            return Err(Cause::StaleLease);
        }
        let extent = Rc::new(self.landing.pool.take(length).ok_or(Cause::Quota)?);
        let (left, is_gone, changed) = (Cell::new(length), Cell::new(false), Signal::default());
        let arrival = Rc::new(Arrival { name, extent, left, is_gone, changed });
        let chunks = (0..length).step_by(CHUNK);
        self.jobs.borrow_mut().extend(chunks.map(|offset| Job {
            arrival: arrival.clone(),
            offset,
            length: CHUNK.min(length - offset),
        }));
        self.changed.raise();
        Ok(arrival)
    }

    fn lend(&self, arrival: &Arrival) -> Result<LeaseName, Cause> {
        let lend = arrival.extent.lend(0..arrival.extent.len()).map_err(|_| Cause::StaleLease)?;
        Ok(self.landing.lender.borrow_mut().lend(self.landing.me, lend)?)
    }

    /// Fetches until the session is over. A peer that breaks a rule is `told` of.
    pub(in crate::link::socket) async fn fetch(
        self: Rc<Self>,
        remote: Remote,
        mut hello: Bulk,
        options: Options,
        told: impl Fn(FrameError),
    ) {
        let mut pause = RETRY_FIRST;
        loop {
            while self.jobs.borrow().is_empty() && !self.over.get() {
                self.changed.wait().await;
            }
            if self.over.get() {
                return self.end();
            }
            hello.number += 1;
            let mut under_way = VecDeque::new();
            let ended = match connect(&remote, &hello, &options).await {
                Ok(stream) => {
                    self.connection.replace(Some(stream.carrier().clone()));
                    let ended = self.fetch_over(&stream, &mut under_way, &options, &mut pause).await;
                    self.connection.take();
                    stream.abort();
                    ended
                }
                Err(error) => error,
            };
            self.again(under_way);
            if self.over.get() {
                return self.end();
            }
            match ended {
                Unanswered::Frame(what) => {
                    told(what);
                    return self.end();
                }
                Unanswered::Io(error) => tracing::debug!("leased bytes of {}: {error}", remote.address()),
                Unanswered::Refused(refusal) => tracing::debug!("leased bytes of {}: {refusal}", remote.address()),
            }
            runtime::sleep(pause).await;
            pause = (2 * pause).min(RETRY_MOST);
        }
    }

    /// What had not come is asked for first.
    fn again(&self, under_way: VecDeque<Job>) {
        let mut jobs = self.jobs.borrow_mut();
        under_way.into_iter().rev().for_each(|job| jobs.push_front(job));
    }

    /// Fetches over one connection until that ends, and says why it did.
    async fn fetch_over(
        &self,
        stream: &Stream,
        under_way: &mut VecDeque<Job>,
        options: &Options,
        pause: &mut Duration,
    ) -> Unanswered {
        let mut tag = 0;
        let mut first = 0;
        loop {
            if let Err(error) = self.ask_for_more(stream, under_way, &mut tag).await {
                return error.into();
            }
            if self.over.get() {
                return io::Error::from(io::ErrorKind::ConnectionAborted).into();
            }
            let Some(job) = under_way.front() else {
                self.changed.wait().await;
                continue;
            };
            let took = match runtime::timeout(options.dead_after, take(stream, job, first)).await {
                Ok(Ok(is_there)) => is_there,
                Ok(Err(error)) => return error,
                Err(runtime::Elapsed) => return io::Error::from(io::ErrorKind::TimedOut).into(),
            };
            *pause = RETRY_FIRST;
            first = first.wrapping_add(1);
            let Some(Job { arrival, length, .. }) = under_way.pop_front() else { continue };
            if took {
                arrival.left.set(arrival.left.get() - length);
                arrival.changed.raise();
            } else {
                arrival.has_lost();
            }
        }
    }

    async fn ask_for_more(&self, stream: &Stream, under_way: &mut VecDeque<Job>, tag: &mut u32) -> io::Result<()> {
        let mut bytes = Vec::new();
        while under_way.len() < UNDER_WAY {
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
            under_way.push_back(job);
        }
        match bytes.len() {
            0 => Ok(()),
            _ => stream.send_all(bytes, false).await,
        }
    }
}

/// Takes the answer to what was asked for longest ago, to where it belongs. False: the lease is no more.
async fn take(stream: &Stream, job: &Job, tag: u32) -> Result<bool, Unanswered> {
    let (header, head) = receive_frame::<{ HEADER_BYTES + PIECE_BYTES }, PIECE_BYTES>(stream, kind::PIECE).await?;
    let head = u64::from_le_bytes(head);
    let is_there = match (head as u32 == tag, head >> 32, header.length - PIECE_BYTES) {
        (true, 1, 0) => false,
        (true, 0, length) if length == job.length => true,
        _ => return Err(FrameError::NotAnAnswer.into()),
    };
    if is_there {
        stream.receive_leased(&job.arrival.extent, job.offset, job.length).await?;
    }
    Ok(is_there)
}

async fn connect(remote: &Remote, hello: &Bulk, options: &Options) -> Result<Stream, Unanswered> {
    let greet = async {
        let stream = remote.dial(options.dead_after).await?;
        greeting::greet_bulk(&stream, hello).await?;
        Ok(stream)
    };
    match runtime::timeout(options.greeting, greet).await {
        Ok(greeted) => greeted,
        Err(runtime::Elapsed) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}
