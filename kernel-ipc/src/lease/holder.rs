//! A holder that maps: copies leased bytes out, or has the kernel read them for the length of a call.
//!
//! * It pins nothing. It looks at the entry, copies, and looks again: unchanged means that every byte was the lease's.
//! * A lender's death changes nothing of that: nobody writes to what was lent, and a next incarnation takes a lease back in
//!   the same table before it gives the range to anybody. Only when the lender is gone for good do its leases end.
//! * Most holders do not map at all: they name leases to others. This is for those who verify, parse or store bytes.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::arrivals::{Arrivals, Arrived};
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
    arrivals: Option<Arrivals>,
    /// By which lender each client lends what its calls name.
    clients: HashMap<Incarnation, LenderId>,
}

impl Holder {
    /// A holder that knows no lender yet.
    pub fn new(me: Incarnation) -> Self {
        Self { me, lenders: Vec::new(), arrivals: None, clients: HashMap::new() }
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

    /// This lender is `client`, whose calls may name what it has lent to this holder. What other lenders have lent to this holder, in
    /// answers to its own calls or for the calls of others, is not that client's to name.
    pub fn lends(&mut self, lender: LenderId, client: Incarnation) {
        // Of a client's earlier run.
        self.clients.retain(|_, known| *known != lender);
        self.clients.insert(client, lender);
    }

    /// From now on clients may also lend what has arrived here.
    pub fn take_in(&mut self, arrivals: Arrivals) {
        self.arrivals = Some(arrivals);
    }

    /// Forgets a region, for every lender.
    pub fn remove_region(&mut self, region: RegionId) {
        for view in &self.lenders {
            view.remove_region(region);
        }
    }

    /// Forgets a lender, which is gone for good.
    pub fn retire(&mut self, lender: LenderId) {
        self.clients.retain(|_, known| *known != lender);
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
            by: By::Table { index: name.index, generation: name.generation, view: view.clone() },
        })
    }

    /// Finds a lease that `client` names in a call: what it has lent to this holder, or what has arrived from it.
    ///
    /// # Errors
    /// See [`StaleLease`].
    pub fn hold_from(&self, name: &LeaseName, client: Incarnation) -> Result<Held, StaleLease> {
        let Some(arrivals) = self.arrivals.as_ref().filter(|_| name.lender == LenderId::ARRIVED) else {
            let is_theirs = self.clients.get(&client) == Some(&name.lender);
            return if is_theirs { self.hold(name) } else { Err(StaleLease::NotYours) };
        };
        let arrived = arrivals.find(name, client)?;
        let (region, offset, len) = (arrived.region().clone(), arrived.offset(), arrived.len());
        Ok(Held { region, offset, len, by: By::Arrived { _arrived: arrived } })
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
    by: By,
}

/// By what it is known that the bytes are the lease's.
enum By {
    Table { index: u32, generation: u32, view: Rc<View> },
    Arrived { _arrived: Rc<Arrived> },
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
        match &self.by {
            By::Table { index, generation, view } => {
                protocol::copied_in_time(view.table(), *index, *generation) && !view.is_retired()
            }
            // Kept here, whatever becomes of its client.
            By::Arrived { .. } => true,
        }
    }

    fn check(&self) -> Result<(), StaleLease> {
        if self.still_live() {
            return Ok(());
        }
        let is_retired = matches!(&self.by, By::Table { view, .. } if view.is_retired());
        Err(if is_retired { StaleLease::LenderGone } else { StaleLease::Ended })
    }

    fn absolute(&self, start: usize, len: usize) -> Result<usize, StaleLease> {
        inside(self.len, start, len).map_err(|_| StaleLease::OutOfRange)?;
        Ok(self.offset + start)
    }
}
