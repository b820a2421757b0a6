//! A mapper: gives leased bytes to the kernel, from its own read-only mapping.
//!
//! * It pins every lease whose bytes the kernel reads; a pin is a count in a segment that only the mapper writes.
//! * It believes a lender's table only as far as the regions that were introduced for that lender, and a request only
//!   as far as the lease's holder is the peer of the session that named it.
//! * What has [arrived](Arrivals) over a socket is this process's own: it is kept, and needs no pin that others see.
//! * A pin lives until the kernel has let go: for a zero-copy send that is its notification, not its completion.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::arrivals::{Arrivals, Arrived};
use super::pins::{BadSegment, PinSegment};
use super::protocol::{self, PinFailed};
use super::region::RegionReader;
use super::status::StatusWord;
use super::view::{StaleLease, View};
use crate::id::{Epoch, Incarnation, LenderId, RegionId};
use crate::runtime::Changes;
use crate::steps;
use crate::sys::segment::SegmentReader;
use crate::wire::LeaseName;

/// Every lender from whose leases this process sends.
#[derive(Default)]
pub struct Mapper {
    // A handful: a search through a vector is faster than hashing.
    lenders: Vec<Rc<Introduced>>,
    changed: Rc<Changes>,
    arrivals: Option<Arrivals>,
}

struct Introduced {
    view: View,
    pins: Rc<PinSegment>,
    /// The same lender's next epoch, once it is introduced.
    next: RefCell<Option<Rc<Introduced>>>,
    /// The lender is gone for good.
    retired: Cell<bool>,
}

impl Introduced {
    fn new(view: View, pins: Rc<PinSegment>) -> Rc<Introduced> {
        Rc::new(Introduced { view, pins, next: RefCell::new(None), retired: Cell::new(false) })
    }
}

/// Whether bytes of a pinned lease may be submitted once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// They may.
    Live,
    /// The lender is between two epochs: [`Mapper::changes`] tells when to ask again.
    Waiting,
    /// The lease was taken back, or its lender is gone for good.
    Ended,
}

impl Mapper {
    /// A mapper that knows no lender.
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns a lender: its table, the regions from which it may lend, and where its leases are pinned.
    ///
    /// Only after the lender has attached `pins`; otherwise it would not look there. `status` is the lender's line of the
    /// keeper's page; without one the caller watches the lender's life itself.
    ///
    /// # Errors
    /// [`BadSegment`] if the table, or the pin segment, is not what the broker said. Nothing changed.
    pub fn introduce(
        &mut self,
        lender: LenderId,
        epoch: Epoch,
        table: SegmentReader,
        regions: &[(RegionId, RegionReader)],
        pins: PinSegment,
        status: Option<StatusWord>,
    ) -> Result<(), BadSegment> {
        let view = View::check(lender, epoch, table, regions, status)?;
        if pins.lender() != lender || pins.capacity() < view.capacity() {
            return Err(BadSegment("the pin segment is of another lender, or too small"));
        }
        // Pins taken through an older introduction keep it alive until they are dropped.
        self.retire(lender);
        self.lenders.push(Introduced::new(view, Rc::new(pins)));
        Ok(())
    }

    /// A known lender has a new epoch: its table is another one, its regions and the pins of its leases are the same.
    /// `false`: the lender is unknown.
    ///
    /// # Errors
    /// [`BadSegment`] if the table is not what the broker said. Nothing changed.
    pub fn reintroduce(
        &mut self,
        lender: LenderId,
        epoch: Epoch,
        table: &OwnedFd,
        status: Option<StatusWord>,
    ) -> std::io::Result<bool> {
        let Some(known) = self.lenders.iter_mut().find(|known| known.view.lender == lender) else { return Ok(false) };
        let view = known.view.of_next_epoch(epoch, table, status)?;
        if known.pins.capacity() < view.capacity() {
            return Err(BadSegment("the new table is larger than the pin segment").into());
        }
        // Pins taken through the old table go on, and count in the same segment.
        let next = Introduced::new(view, known.pins.clone());
        known.next.replace(Some(next.clone()));
        *known = next;
        self.changed.happen();
        Ok(true)
    }

    /// Whether a known lender is between two epochs: what is named of it has to wait.
    pub fn is_between_epochs(&self, lender: LenderId) -> bool {
        self.find(lender).is_some_and(|known| !known.view.lender_lives())
    }

    /// Tells when some lender has a new table or region: for a send that met a lender between its epochs, or before it was
    /// introduced.
    pub fn changes(&self) -> Rc<Changes> {
        self.changed.clone()
    }

    /// Adds a region from which a known lender may lend: its upstream has a new epoch. `false`: the lender is unknown.
    pub fn add_region(&mut self, lender: LenderId, region: RegionReader) -> bool {
        let known = self.find(lender).map(|known| known.view.add_region(region)).is_some();
        self.changed.happen();
        known
    }

    /// From now on clients may also name what has arrived here.
    pub fn take_in(&mut self, arrivals: Arrivals) {
        self.arrivals = Some(arrivals);
    }

    /// Forgets a region, for every lender. Pins of it keep it mapped until they are dropped.
    pub fn remove_region(&mut self, region: RegionId) {
        for known in &self.lenders {
            known.view.remove_region(region);
        }
    }

    /// Forgets a lender, which is gone for good. Pins of its leases go on.
    pub fn retire(&mut self, lender: LenderId) {
        for known in self.lenders.extract_if(.., |known| known.view.lender == lender) {
            known.retired.set(true);
        }
        self.changed.happen();
    }

    /// N0 to N6: pins the lease that `holder` named and returns the bytes `range` of it, for the kernel.
    ///
    /// `holder` is the incarnation at the other end of the session that named the lease. Costs a SeqCst fence and
    /// allocates nothing.
    ///
    /// # Errors
    /// See [`StaleLease`].
    pub fn pin(&self, name: &LeaseName, holder: Incarnation, range: Range<u64>) -> Result<Pinned, StaleLease> {
        let len = range.end.checked_sub(range.start).ok_or(StaleLease::OutOfRange)?;
        if let Some(arrivals) = self.arrivals.as_ref().filter(|_| name.lender == LenderId::ARRIVED) {
            return Pinned::arrived(arrivals.find(name, holder)?, range);
        }
        let known = self.find(name.lender).ok_or(StaleLease::UnknownLender)?;
        let at = known.view.locate(name, holder, range.start, len)?;
        let (index, generation) = (name.index, name.generation);
        let view = &known.view;
        let lender_lives = || {
            steps::reach("pin/stored");
            view.lender_lives()
        };
        protocol::pin(known.pins.memory(), view.table(), index, generation, lender_lives).map_err(
            |failed| match failed {
                PinFailed::Changed => StaleLease::Ended,
                PinFailed::LenderGone => StaleLease::LenderGone,
                PinFailed::Overflow => StaleLease::TooManyPins,
            },
        )?;
        steps::reach("pin/taken");
        let by = By::Pin { index, generation, known: known.clone() };
        Ok(Pinned { region: at.region, offset: at.offset, len: at.len, by })
    }

    fn find(&self, lender: LenderId) -> Option<&Rc<Introduced>> {
        self.lenders.iter().find(|known| known.view.lender == lender)
    }
}

/// Bytes of a lease, pinned: the lender does not reuse them while this exists. Dropping it is N8.
pub struct Pinned {
    pub(crate) region: RegionReader,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    by: By,
}

/// What keeps the bytes of a pinned lease where they are.
enum By {
    Pin { index: u32, generation: u32, known: Rc<Introduced> },
    Arrived { _arrived: Rc<Arrived> },
}

impl Pinned {
    fn arrived(arrived: Rc<Arrived>, range: Range<u64>) -> Result<Pinned, StaleLease> {
        // No cast truncates what is inside of the lease.
        if range.end > arrived.len() as u64 {
            return Err(StaleLease::OutOfRange);
        }
        let (offset, len) = (arrived.offset() + range.start as usize, (range.end - range.start) as usize);
        Ok(Pinned { region: arrived.region().clone(), offset, len, by: By::Arrived { _arrived: arrived } })
    }

    /// N7: asked before each *further* submission of the same bytes. When it has ended, the connection is reset: what was
    /// submitted already may finish, nothing new may start.
    ///
    /// It is asked of the lender's present epoch: a pin holds in every epoch, and a lender that survives lends on.
    pub fn liveness(&self) -> Liveness {
        let (index, generation, mut known) = match &self.by {
            By::Pin { index, generation, known } => (*index, *generation, known.clone()),
            // Nobody takes it back.
            By::Arrived { .. } => return Liveness::Live,
        };
        loop {
            let next = known.next.borrow().clone();
            match next {
                Some(next) => known = next,
                None => break,
            }
        }
        let unchanged = protocol::unchanged(known.view.table(), index, generation);
        if known.retired.get() || (!unchanged && known.view.lender_lives()) {
            Liveness::Ended
        } else if known.view.lender_lives() {
            Liveness::Live
        } else {
            Liveness::Waiting
        }
    }

    /// A copy of its bytes, each as it is at some moment: their owner may be writing.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.region.copy_out(self.offset, &mut bytes).expect("it was inside the region when it was pinned");
        bytes
    }

    /// How long it is, in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Leaves out the first `bytes`, which have been sent; all of them, if there are fewer.
    pub fn advance(&mut self, bytes: usize) {
        let bytes = bytes.min(self.len);
        self.offset += bytes;
        self.len -= bytes;
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let By::Pin { index, known, .. } = &self.by {
            protocol::unpin(known.pins.memory(), *index);
            steps::reach("pin/dropped");
        }
    }
}
