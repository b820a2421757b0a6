//! A lender's table and regions, as somebody who uses its leases sees them.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::layout::{ENTRY, HEADER, MAX_CAPACITY, TABLE_MAGIC, TABLE_VERSION, header};
use super::pins::BadSegment;
use super::protocol;
use super::region::RegionReader;
use super::status::StatusWord;
use crate::error::Cause;
use crate::id::{Epoch, Incarnation, LenderId, RegionId};
use crate::sys::segment::SegmentReader;
use crate::wire::LeaseName;

/// Why a lease cannot be used. Nothing was sent or copied, nothing is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleLease {
    /// Nobody introduced this lender here.
    UnknownLender,
    /// The lender is dead, or between two epochs.
    LenderGone,
    /// The name is of no live lease: it ended, or never was.
    Ended,
    /// The lease is another holder's.
    NotYours,
    /// The lease is of a region that is not introduced for this lender.
    UnknownRegion,
    /// The range asked for is not inside the lease, or the lease is not inside its region.
    OutOfRange,
    /// The lease has 2^32 - 1 pins already.
    TooManyPins,
}

impl std::fmt::Display for StaleLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UnknownLender => "the lease is of an unknown lender",
            Self::LenderGone => "the lease's lender is gone",
            Self::Ended => "the lease has ended",
            Self::NotYours => "the lease is another holder's",
            Self::UnknownRegion => "the lease is of a region that is not mapped here",
            Self::OutOfRange => "the range is not inside the lease",
            Self::TooManyPins => "the lease is pinned too often",
        })
    }
}

impl std::error::Error for StaleLease {}

impl From<StaleLease> for Cause {
    fn from(_: StaleLease) -> Self {
        // One cause for all: a peer that guesses learns nothing about other holders' leases.
        Cause::StaleLease
    }
}

/// One lender: its table, its status word, its regions. Everything in the table is a peer's bytes.
pub(super) struct View {
    pub(super) lender: LenderId,
    epoch: Epoch,
    table: SegmentReader,
    capacity: u32,
    status: Option<StatusWord>,
    regions: RefCell<Vec<RegionReader>>,
    /// The lender is gone for good. Of all its epochs.
    retired: Rc<Cell<bool>>,
}

/// A range that a lease gave its holder, at the moment of looking.
pub(super) struct Located {
    pub(super) region: RegionReader,
    pub(super) offset: usize,
    pub(super) len: usize,
}

impl View {
    /// Checks the table's header against what the broker said. Without a status word the lender's life is watched
    /// by somebody else: a client's leases live as long as the call that names them.
    pub(super) fn check(
        lender: LenderId,
        epoch: Epoch,
        table: SegmentReader,
        regions: &[(RegionId, RegionReader)],
        status: Option<StatusWord>,
    ) -> Result<Self, BadSegment> {
        let entries = table.len().checked_sub(HEADER).ok_or(BadSegment("the lease table is too short"))? / ENTRY;
        let word = |at| table.load_u64(at, Relaxed);
        if word(header::MAGIC) != TABLE_MAGIC || word(header::VERSION) != TABLE_VERSION {
            return Err(BadSegment("not a lease table of this version"));
        }
        if word(header::TABLE_LENDER) != lender.get() || word(header::TABLE_EPOCH) != epoch.get() {
            return Err(BadSegment("the lease table is of another lender or epoch"));
        }
        // Whatever the header claims, an index is only good if its entry is inside the mapping.
        let capacity = word(header::TABLE_CAPACITY).min(entries as u64).min(MAX_CAPACITY.into());
        let capacity = u32::try_from(capacity).unwrap_or(MAX_CAPACITY);
        let mut readers = Vec::with_capacity(regions.len());
        for (id, region) in regions {
            if region.id() != *id {
                return Err(BadSegment("the region is not the one that was announced"));
            }
            readers.push(region.clone());
        }
        Ok(Self { lender, epoch, table, capacity, status, regions: RefCell::new(readers), retired: Rc::default() })
    }

    /// The same lender in another epoch: the same table, written by another incarnation, and the same regions.
    pub(super) fn of_next_epoch(
        &self,
        epoch: Epoch,
        table: &OwnedFd,
        status: Option<StatusWord>,
    ) -> std::io::Result<Self> {
        let table = SegmentReader::open(table.try_clone()?, 1)?;
        let next = Self::check(self.lender, epoch, table, &[], status)?;
        Ok(Self { regions: self.regions.clone(), retired: self.retired.clone(), ..next })
    }

    /// The lender is gone for good, and whoever looked up a lease of any of its epochs hears of it.
    pub(super) fn retire(&self) {
        self.retired.set(true);
    }

    /// Whether the lender is gone for good.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// The names of all live leases of a holder.
    pub(super) fn held_by(&self, holder: Incarnation) -> Vec<LeaseName> {
        let lease = |index| {
            let generation = protocol::generation(&self.table, index)?;
            let fields = protocol::look(&self.table, index, generation)?;
            let name = LeaseName { lender: self.lender, index, generation, length: fields.length };
            (fields.holder == holder.get()).then_some(name)
        };
        let used = self.table.load_u64(header::TABLE_USED, Acquire).min(self.capacity.into());
        (0..used as u32).filter_map(lease).collect()
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(super) fn table(&self) -> &SegmentReader {
        &self.table
    }

    /// N6.
    pub(super) fn lender_lives(&self) -> bool {
        self.status.as_ref().is_none_or(|word| word.lives(self.epoch))
    }

    /// Adds a region from which this lender may lend.
    pub(super) fn add_region(&self, region: RegionReader) {
        let mut regions = self.regions.borrow_mut();
        if !regions.iter().any(|known| known.id() == region.id()) {
            regions.push(region);
        }
    }

    /// Forgets a region. Its mapping stays until the last pin or slice of it is gone.
    pub(super) fn remove_region(&self, id: RegionId) {
        self.regions.borrow_mut().retain(|region| region.id() != id);
    }

    /// N0 to N2: where bytes `start .. start + len` of the named lease are, if `holder` has it.
    ///
    /// The name's own length counts for nothing: holder, region and range come from the table.
    pub(super) fn locate(
        &self,
        name: &LeaseName,
        holder: Incarnation,
        start: u64,
        len: u64,
    ) -> Result<Located, StaleLease> {
        if !self.lender_lives() {
            return Err(StaleLease::LenderGone);
        }
        let all = self.locate_all(name, holder)?;
        if start.checked_add(len).is_none_or(|end| end > all.len as u64) {
            return Err(StaleLease::OutOfRange);
        }
        // No cast truncates: both are at most `all.len`, which is a usize.
        Ok(Located { region: all.region, offset: all.offset + start as usize, len: len as usize })
    }

    /// As [`View::locate`], for all of the lease, and for somebody who looks again later and pins nothing: to him the table
    /// of a dead lender is as good as any. Nobody refills what it says to be lent before it says otherwise.
    pub(super) fn locate_all(&self, name: &LeaseName, holder: Incarnation) -> Result<Located, StaleLease> {
        if name.index >= self.capacity {
            return Err(StaleLease::Ended);
        }
        let fields = protocol::look(&self.table, name.index, name.generation).ok_or(StaleLease::Ended)?;
        if fields.holder != holder.get() {
            return Err(StaleLease::NotYours);
        }
        let regions = self.regions.borrow();
        let region =
            regions.iter().find(|region| region.id().get() == fields.region).ok_or(StaleLease::UnknownRegion)?;
        let end = fields.offset.checked_add(fields.length).ok_or(StaleLease::OutOfRange)?;
        if end > region.len() as u64 {
            return Err(StaleLease::OutOfRange);
        }
        // No cast truncates: both are at most the region's length, which is a usize.
        Ok(Located { region: region.clone(), offset: fields.offset as usize, len: fields.length as usize })
    }
}
