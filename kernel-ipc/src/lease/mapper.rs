//! A mapper: gives leased bytes to the kernel, from its own read-only mapping.
//!
//! * It pins every lease whose bytes the kernel reads; a pin is a count in a segment that only the mapper writes.
//! * It believes a lender's table only as far as the regions that were introduced for that lender, and a request only
//!   as far as the lease's holder is the peer of the session that named it.
//! * A pin lives until the kernel has let go: for a zero-copy send that is its notification, not its completion.

use std::ops::Range;
use std::rc::Rc;

use super::pins::{BadSegment, PinSegment};
use super::protocol::{self, PinFailed};
use super::region::RegionReader;
use super::status::StatusWord;
use super::view::{StaleLease, View};
use crate::id::{Epoch, Incarnation, LenderId, RegionId};
use crate::sys::segment::SegmentReader;
use crate::wire::LeaseName;

/// Every lender from whose leases this process sends.
#[derive(Default)]
pub struct Mapper {
    // A handful: a search through a vector is faster than hashing.
    lenders: Vec<Rc<Introduced>>,
}

struct Introduced {
    view: Rc<View>,
    pins: PinSegment,
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
        self.lenders.push(Rc::new(Introduced { view, pins }));
        Ok(())
    }

    /// Adds a region from which a known lender may lend: its upstream has a new epoch. `false`: the lender is unknown.
    pub fn add_region(&mut self, lender: LenderId, region: RegionReader) -> bool {
        self.find(lender).map(|known| known.view.add_region(region)).is_some()
    }

    /// Forgets a region, for every lender. Pins of it keep it mapped until they are dropped.
    pub fn remove_region(&mut self, region: RegionId) {
        for known in &self.lenders {
            known.view.remove_region(region);
        }
    }

    /// Forgets a lender, which is gone for good. Pins of its leases go on.
    pub fn retire(&mut self, lender: LenderId) {
        self.lenders.retain(|known| known.view.lender != lender);
    }

    /// N0 to N6: pins the lease that `holder` named and returns the bytes `range` of it, for the kernel.
    ///
    /// `holder` is the incarnation at the other end of the session that named the lease. Costs a SeqCst fence and
    /// allocates nothing.
    ///
    /// # Errors
    /// See [`StaleLease`].
    pub fn pin(&self, name: &LeaseName, holder: Incarnation, range: Range<u64>) -> Result<Pinned, StaleLease> {
        let known = self.find(name.lender).ok_or(StaleLease::UnknownLender)?;
        let len = range.end.checked_sub(range.start).ok_or(StaleLease::OutOfRange)?;
        let at = known.view.locate(name, holder, range.start, len)?;
        let (index, generation) = (name.index, name.generation);
        let view = &known.view;
        protocol::pin(known.pins.memory(), view.table(), index, generation, || view.lender_lives()).map_err(
            |failed| match failed {
                PinFailed::Changed => StaleLease::Ended,
                PinFailed::LenderGone => StaleLease::LenderGone,
                PinFailed::Overflow => StaleLease::TooManyPins,
            },
        )?;
        Ok(Pinned { region: at.region, offset: at.offset, len: at.len, index, generation, known: known.clone() })
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
    index: u32,
    generation: u32,
    known: Rc<Introduced>,
}

impl Pinned {
    /// N7: whether the lease is still live, asked before each *further* submission of the same bytes. If not, the
    /// connection is reset: what was submitted already may finish, nothing new may start.
    pub fn still_live(&self) -> bool {
        protocol::unchanged(self.known.view.table(), self.index, self.generation) && self.known.view.lender_lives()
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
        protocol::unpin(self.known.pins.memory(), self.index);
    }
}
