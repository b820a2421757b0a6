//! A region and who uses which part of it, in the owner's hands.
//!
//! * An [`Extent`] is a part that is in use; dropping it gives the part back. It is memory for the kernel itself, so a
//!   read that nobody waits for any more keeps its part until the kernel has finished with it.
//! * A lease keeps its extent: `Rc<Extent>` is what goes into [`Lend::keep`].

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use super::lender::Lend;
use super::ranges::Ranges;
use super::region::{OutOfRange, Region, RegionSlice, inside};

/// A region that is given out in extents. Clones are the same pool. One thread's.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

struct Inner {
    region: Region,
    ranges: RefCell<Ranges>,
}

impl Pool {
    /// All of `region` free, given out in multiples of `granule` bytes.
    ///
    /// # Panics
    /// If `granule` is not a power of two.
    pub fn new(region: Region, granule: usize) -> Self {
        let ranges = RefCell::new(Ranges::new(region.len() as u64, granule as u64));
        Self(Rc::new(Inner { region, ranges }))
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.0.region
    }

    /// Takes `len` bytes, at least. What they hold is whatever was there before. `None`: no free part is large enough.
    pub fn take(&self, len: usize) -> Option<Extent> {
        let offset = self.0.ranges.borrow_mut().take(len as u64)?;
        // A range inside the region fits a usize.
        Some(Extent { pool: self.clone(), offset: offset as usize, len })
    }

    /// Bytes that are free, in however many pieces.
    pub fn free(&self) -> usize {
        self.0.ranges.borrow().free() as usize
    }
}

/// A part of a region that is in use, until it is dropped.
pub struct Extent {
    pool: Pool,
    offset: usize,
    len: usize,
}

impl Extent {
    /// The region that it is in.
    pub fn region(&self) -> &Region {
        &self.pool.0.region
    }

    /// Where in the region it begins.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// How long it is, in bytes: as long as was asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `bytes` to `at`, counted from the extent's start.
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing was written.
    pub fn copy_in(&self, at: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        inside(self.len, at, bytes.len())?;
        self.region().copy_in(self.offset + at, bytes)
    }

    /// Copies from `at`, counted from the extent's start, until `bytes` is full.
    ///
    /// # Errors
    /// [`OutOfRange`]; nothing was copied.
    pub fn copy_out(&self, at: usize, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        inside(self.len, at, bytes.len())?;
        self.region().copy_out(self.offset + at, bytes)
    }

    /// A part of it for the kernel. The caller keeps the extent until the kernel is done: better to give the extent
    /// itself, or to lend it.
    ///
    /// # Errors
    /// [`OutOfRange`]
    pub fn slice(&self, at: usize, len: usize) -> Result<RegionSlice, OutOfRange> {
        inside(self.len, at, len)?;
        self.region().slice(self.offset + at, len)
    }

    /// What to lend of it: `range`, counted from its start. The lease keeps the extent.
    ///
    /// # Errors
    /// [`OutOfRange`]
    pub fn lend(self: &Rc<Self>, range: Range<usize>) -> Result<Lend, OutOfRange> {
        let len = range.end.checked_sub(range.start).ok_or(OutOfRange)?;
        inside(self.len, range.start, len)?;
        Ok(Lend {
            source: None,
            region: self.region().id(),
            offset: (self.offset + range.start) as u64,
            length: len as u64,
            keep: self.clone(),
        })
    }
}

impl AsRef<Extent> for Extent {
    fn as_ref(&self) -> &Extent {
        self
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        self.pool.0.ranges.borrow_mut().give_back(self.offset as u64, self.len as u64);
    }
}
