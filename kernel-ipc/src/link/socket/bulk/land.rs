//! The client's side of what replies lend: it becomes leases of the client's own region.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use super::super::dial::{Options, Remote};
use super::super::frame::{Bulk, FrameError};
use super::fetch::{Arrival, Fetch};
use super::line::Line;
use crate::error::Cause;
use crate::id::Incarnation;
use crate::lease::{Extent, Lender, Pool};
use crate::runtime::Signal;
use crate::wire::LeaseName;

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
    fetch: Fetch<Extent>,
    line: Line,
    /// How long nothing at all may come of what is asked for.
    patience: Duration,
}

impl Bay {
    pub(in crate::link::socket) fn new(landing: Landing, patience: Duration) -> Rc<Bay> {
        let changed: Rc<Signal> = Rc::default();
        Rc::new(Bay { landing, fetch: Fetch::new(changed.clone()), line: Line::new(changed), patience })
    }

    /// The session is over: nothing more comes.
    pub(in crate::link::socket) fn end(&self) {
        self.line.end();
        self.fetch.end();
    }

    /// Brings what these leases cover here. Gives the names by which it is held here.
    ///
    /// # Errors
    /// There is no room, a lease is no more, or the host does not bring it. Nothing stays here then.
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
                self.fetch.forget(&arrivals);
            }
            landed
        })
    }

    /// Waits until all have come, and lends them.
    async fn landed(&self, arrivals: &[Rc<Arrival<Extent>>]) -> Result<Vec<LeaseName>, Cause> {
        for arrival in arrivals {
            self.fetch.comes(arrival, self.patience).await?;
        }
        let mut landed = Vec::new();
        let lent = arrivals.iter().try_for_each(|arrival| self.lend(&arrival.place).map(|name| landed.push(name)));
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
    fn ask(&self, name: LeaseName) -> Result<Rc<Arrival<Extent>>, Cause> {
        let length = usize::try_from(name.length).map_err(|_| Cause::Quota)?;
        if length == 0 || self.line.is_over() {
            return Err(Cause::StaleLease);
        }
        let extent = Rc::new(self.landing.pool.take(length).ok_or(Cause::Quota)?);
        Ok(self.fetch.ask(name, extent))
    }

    fn lend(&self, extent: &Rc<Extent>) -> Result<LeaseName, Cause> {
        let lend = extent.lend(0..extent.len()).map_err(|_| Cause::StaleLease)?;
        Ok(self.landing.lender.borrow_mut().lend(self.landing.me, lend)?)
    }

    /// Fetches until the session is over. A peer that breaks a rule is `told` of.
    pub(in crate::link::socket) async fn fetch(
        self: Rc<Self>,
        remote: Remote,
        hello: Bulk,
        options: Options,
        told: impl Fn(FrameError),
    ) {
        let carry = async |stream: &_| self.fetch.over(stream, options.dead_after, || self.line.is_of_use()).await;
        self.line.keep((remote, hello, options), || self.fetch.has_jobs(), carry, told).await;
        self.end();
    }
}
