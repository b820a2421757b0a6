//! A holder that maps: copies leased bytes out, or has the kernel read them for the length of a call.
//!
//! * It pins nothing. It looks at the entry, copies, and looks again: unchanged means that every byte was the lease's.
//! * A lender's death changes nothing of that: nobody writes to what was lent, and a next incarnation takes a lease back in
//!   the same table before it gives the range to anybody. Only when the lender is gone for good do its leases end.
//! * Most holders do not map at all: they name leases to others. This is for those who verify, parse or store bytes.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::pins::BadSegment;
use super::protocol;
use super::region::{OutOfRange, ReaderSlice, Region, RegionReader, inside};
use super::status::StatusWord;
use super::view::{StaleLease, View};
use crate::id::{Epoch, Incarnation, LenderId, RegionId};
use crate::sys::segment::SegmentReader;
use crate::wire::LeaseName;

/// What one incarnation has been lent, by every lender that it may read.
pub struct Holder {
    me: Incarnation,
    lenders: Vec<Rc<View>>,
}

impl Holder {
    /// A holder that knows no lender yet.
    pub fn new(me: Incarnation) -> Self {
        Self { me, lenders: Vec::new() }
    }

    /// Learns a lender: its table, and the regions from which it may lend. Forgets what it knew of the same lender.
    ///
    /// # Errors
    /// [`BadSegment`] if the table is not what the broker said. Nothing changed.
    pub fn introduce(
        &mut self,
        lender: LenderId,
        epoch: Epoch,
        table: SegmentReader,
        regions: &[(RegionId, RegionReader)],
        status: Option<StatusWord>,
    ) -> Result<(), BadSegment> {
        let view = View::check(lender, epoch, table, regions, status)?;
        self.retire(lender);
        self.lenders.push(Rc::new(view));
        Ok(())
    }

    /// A known lender has a new epoch: its table is another one, its regions are the same. `false`: the lender is unknown.
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
        let Some(known) = self.lenders.iter_mut().find(|view| view.lender == lender) else { return Ok(false) };
        *known = Rc::new(known.of_next_epoch(epoch, table, status)?);
        Ok(true)
    }

    /// What all lenders' tables say that this holder has now.
    pub fn held(&self) -> Vec<LeaseName> {
        self.lenders.iter().flat_map(|view| view.held_by(self.me)).collect()
    }

    /// Adds a region from which a known lender may lend. `false`: the lender is unknown.
    pub fn add_region(&mut self, lender: LenderId, region: RegionReader) -> bool {
        self.find(lender).map(|view| view.add_region(region)).is_some()
    }

    /// Forgets a region, for every lender.
    pub fn remove_region(&mut self, region: RegionId) {
        for view in &self.lenders {
            view.remove_region(region);
        }
    }

    /// Forgets a lender, which is gone for good.
    pub fn retire(&mut self, lender: LenderId) {
        for view in self.lenders.extract_if(.., |view| view.lender == lender) {
            view.retire();
        }
    }

    /// Finds a lease that this holder was given: all of what the table says of it, whatever the name's length is.
    ///
    /// # Errors
    /// See [`StaleLease`].
    pub fn hold(&self, name: &LeaseName) -> Result<Held, StaleLease> {
        let view = self.find(name.lender).ok_or(StaleLease::UnknownLender)?;
        let all = view.locate_all(name, self.me)?;
        Ok(Held {
            region: all.region,
            offset: all.offset,
            len: all.len,
            index: name.index,
            generation: name.generation,
            view: view.clone(),
        })
    }

    /// Copies the lease's bytes from `start` on until `bytes` is full.
    ///
    /// # Errors
    /// See [`StaleLease`]; then `bytes` holds garbage.
    pub fn read(&self, name: &LeaseName, start: usize, bytes: &mut [u8]) -> Result<(), StaleLease> {
        self.hold(name)?.copy_out(start, bytes)
    }

    fn find(&self, lender: LenderId) -> Option<&Rc<View>> {
        self.lenders.iter().find(|view| view.lender == lender)
    }
}

/// A lease that was found live, and where its bytes are. Holds nothing in place: see [`Held::still_live`].
pub struct Held {
    region: RegionReader,
    offset: usize,
    len: usize,
    index: u32,
    generation: u32,
    view: Rc<View>,
}

impl Held {
    /// The region, mapped here.
    pub fn region(&self) -> &RegionReader {
        &self.region
    }

    /// Where in the region the lease begins.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// How long the lease is, in bytes: what the lender's table said.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies from `start` on until `bytes` is full.
    ///
    /// # Errors
    /// See [`StaleLease`]; then `bytes` holds garbage.
    pub fn copy_out(&self, start: usize, bytes: &mut [u8]) -> Result<(), StaleLease> {
        self.region.copy_out(self.absolute(start, bytes.len())?, bytes).map_err(|_| StaleLease::OutOfRange)?;
        self.check()
    }

    /// Shows the bytes of `range` (counted from the lease's start) in chunks. Only after `Ok` were they the lease's.
    ///
    /// # Errors
    /// See [`StaleLease`].
    pub fn for_each_chunk(&self, range: Range<usize>, look: impl FnMut(&[u8])) -> Result<(), StaleLease> {
        let len = range.end.checked_sub(range.start).ok_or(StaleLease::OutOfRange)?;
        let start = self.absolute(range.start, len)?;
        self.region.for_each_chunk(start..start + len, look).map_err(|_| StaleLease::OutOfRange)?;
        self.check()
    }

    /// The CRC-32C of `range` (counted from the lease's start), continuing from `crc`. Each byte is read once.
    ///
    /// # Errors
    /// See [`StaleLease`].
    pub fn crc32c(&self, crc: u32, range: Range<usize>) -> Result<u32, StaleLease> {
        let len = range.end.checked_sub(range.start).ok_or(StaleLease::OutOfRange)?;
        let start = self.absolute(range.start, len)?;
        let crc = self.region.crc32c(crc, start..start + len).map_err(|_| StaleLease::OutOfRange)?;
        self.check().map(|()| crc)
    }

    /// Copies `range` (counted from the lease's start) to `offset` of one's own region, and returns the CRC-32C of what
    /// was copied, continuing from `crc`. Only after `Ok` were the bytes the lease's.
    ///
    /// # Errors
    /// See [`StaleLease`]; [`StaleLease::OutOfRange`] also if they do not fit `into`.
    pub fn copy_and_crc(&self, crc: u32, range: Range<usize>, into: &Region, offset: usize) -> Result<u32, StaleLease> {
        let len = range.end.checked_sub(range.start).ok_or(StaleLease::OutOfRange)?;
        let start = self.absolute(range.start, len)?;
        let copied = into.copy_and_crc(crc, &self.region, start..start + len, offset);
        let crc = copied.map_err(|_| StaleLease::OutOfRange)?;
        self.check().map(|()| crc)
    }

    /// A part of the lease for the kernel to read, while the call that lent it is outstanding: that call is the pin.
    ///
    /// # Errors
    /// [`OutOfRange`]
    pub fn slice(&self, start: usize, len: usize) -> Result<ReaderSlice, OutOfRange> {
        self.region.slice(self.absolute(start, len).map_err(|_| OutOfRange)?, len)
    }

    /// Whether the lease is still the one that was found, and its lender is not gone for good: asked after the bytes were
    /// used.
    pub fn still_live(&self) -> bool {
        protocol::copied_in_time(self.view.table(), self.index, self.generation) && !self.view.is_retired()
    }

    fn check(&self) -> Result<(), StaleLease> {
        if self.still_live() {
            return Ok(());
        }
        Err(if self.view.is_retired() { StaleLease::LenderGone } else { StaleLease::Ended })
    }

    fn absolute(&self, start: usize, len: usize) -> Result<usize, StaleLease> {
        inside(self.len, start, len).map_err(|_| StaleLease::OutOfRange)?;
        Ok(self.offset + start)
    }
}
