//! The host's side of what calls lend: it is brought here before their handlers begin.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::super::greeting::Unanswered;
use super::super::stream::Stream;
use super::fetch::{Arrival, Fetch};
use super::room::{CALL, Place, Room, Share};
use crate::error::Cause;
use crate::id::Incarnation;
use crate::lease::{Arrivals, Arrived, Pool, RegionReader};
use crate::wire::LeaseName;

/// Where the bytes of what clients lend arrive. Clones are the same.
///
/// The clients of one node have 64 MiB of it among them; whose call does not fit yet waits for others of them to be answered. A call
/// that lends more than 16 MiB fails with [`Quota`](Cause::Quota), not executed.
#[derive(Clone)]
pub struct Intake {
    room: Room,
    arrivals: Arrivals,
}

impl Intake {
    /// In this memory of this process, and in nothing else that it is used for. [`arrivals`](Self::arrivals) says what is there.
    ///
    /// # Errors
    /// The memory cannot be mapped, or there are no random numbers.
    pub fn new(pool: Pool) -> io::Result<Intake> {
        let region = pool.region();
        let reader = RegionReader::open(region.fd().try_clone_to_owned()?, region.id())?;
        Ok(Intake { room: Room::new(pool), arrivals: Arrivals::new(reader)? })
    }

    /// What has arrived, for the mapper and the holder of this process to take in.
    pub fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }
}

/// What one session's calls bring.
pub(crate) struct Berth {
    intake: Intake,
    share: Rc<Share>,
    fetch: Fetch<Place>,
    /// The session's, whose leases they are.
    client: Incarnation,
    /// For how long nothing may come.
    patience: Duration,
    /// Connections so far: the latest one's.
    pub(in crate::link::socket) number: Cell<u64>,
}

/// Does not ask for what nobody waits for any more.
struct Wanted<'a> {
    fetch: &'a Fetch<Place>,
    arrivals: Vec<Rc<Arrival<Place>>>,
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.fetch.forget(&self.arrivals);
    }
}

impl Berth {
    /// Of a session with `client`; with others of whoever is called `of` it has a share of the memory.
    pub(in crate::link::socket) fn new(intake: Intake, of: &str, client: Incarnation, patience: Duration) -> Rc<Berth> {
        let share = intake.room.share(of);
        let (fetch, number) = (Fetch::new(Rc::default()), Cell::new(0));
        Rc::new(Berth { intake, share, fetch, client, patience, number })
    }

    /// The session is over: nothing more comes.
    pub(in crate::link::socket) fn end(&self) {
        self.fetch.end();
    }

    /// Takes what comes over this connection, until it ends.
    pub(in crate::link::socket) async fn over(&self, stream: &Stream, dead_after: Duration) -> Unanswered {
        self.fetch.over(stream, dead_after, || {}).await
    }

    /// Brings what these leases of the client's cover. It is here under other names, as long as these are kept.
    ///
    /// # Errors
    /// [`Cause::StaleLease`]: the client does not lend that (any more). [`Cause::Quota`]: it is too much.
    /// [`Cause::LinkLost`]: it did not come.
    pub(crate) async fn bring(&self, names: &[LeaseName]) -> Result<Vec<Rc<Arrived>>, Cause> {
        let mut lengths = Vec::with_capacity(names.len());
        let mut sum = 0;
        for name in names {
            let length = usize::try_from(name.length).ok().filter(|length| *length <= CALL).ok_or(Cause::Quota)?;
            if length == 0 {
                return Err(Cause::StaleLease);
            }
            sum += length;
            lengths.push(length);
        }
        if sum > CALL {
            return Err(Cause::Quota);
        }
        let places = self.intake.room.take(&self.share, &lengths).await;
        if self.fetch.is_over() {
            return Err(Cause::SessionClosed);
        }
        let asked = names.iter().zip(places).map(|(name, place)| self.fetch.ask(*name, place));
        let wanted = Wanted { fetch: &self.fetch, arrivals: asked.collect() };
        for arrival in &wanted.arrivals {
            self.fetch.comes(arrival, self.patience).await?;
        }
        wanted.arrivals.iter().map(|arrival| self.enter(&arrival.place)).collect()
    }

    fn enter(&self, place: &Rc<Place>) -> Result<Rc<Arrived>, Cause> {
        let extent = (**place).as_ref();
        let entered = self.intake.arrivals.enter(self.client, extent.offset(), extent.len(), place.clone());
        entered.map_err(|_| Cause::StaleLease)
    }
}
