//! The lenders that a component may map, as the supervisor introduces them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::broker::Account;
use crate::lease::{Holder, Lender, Mapper, PinSegment, RegionReader, StatusWord};
use crate::sys::segment::SegmentReader;
use crate::{Epoch, Incarnation, LenderId, RegionId};

/// Keeps a [`Mapper`] and a [`Holder`] up to date.
pub(super) struct Introductions {
    me: Incarnation,
    epoch: Epoch,
    mapper: Rc<RefCell<Mapper>>,
    holder: Rc<RefCell<Holder>>,
    /// Adopted, and not yet part of the mapper.
    pins: RefCell<HashMap<LenderId, PinSegment>>,
    /// The epoch of the table of each lender that was met.
    lenders: RefCell<HashMap<LenderId, Epoch>>,
    /// Every region is mapped once, whoever lends from it.
    regions: RefCell<HashMap<RegionId, (RegionReader, Vec<LenderId>)>>,
}

impl Introductions {
    pub(super) fn new(me: Incarnation, epoch: Epoch) -> Introductions {
        Introductions {
            me,
            epoch,
            mapper: Rc::new(RefCell::new(Mapper::new())),
            holder: Rc::new(RefCell::new(Holder::new(me))),
            pins: RefCell::default(),
            lenders: RefCell::default(),
            regions: RefCell::default(),
        }
    }

    pub(super) fn mapper(&self) -> Rc<RefCell<Mapper>> {
        self.mapper.clone()
    }

    pub(super) fn holder(&self) -> Rc<RefCell<Holder>> {
        self.holder.clone()
    }

    /// Makes the keeper's memory this run's pin segment for a lender. A supervisor that does not know how far the last one
    /// had come says it again, with the same memory.
    pub(super) fn adopt_pins(&self, lender: LenderId, capacity: u32, memory: OwnedFd) -> io::Result<()> {
        if self.pins.borrow().contains_key(&lender) || self.lenders.borrow().contains_key(&lender) {
            return Ok(());
        }
        let pins = PinSegment::adopt(memory, self.me, self.epoch, lender, capacity)?;
        self.pins.borrow_mut().insert(lender, pins);
        Ok(())
    }

    /// Learns a lender: for the kernel too if a pin segment was adopted for it, else only for reading.
    pub(super) fn meet_lender(
        &self,
        (lender, of): (LenderId, Incarnation),
        epoch: Epoch,
        table: OwnedFd,
        status: Option<StatusWord>,
    ) -> io::Result<()> {
        // A lender that survived has a new table; pins and regions are what they were.
        let known = self.mapper.borrow_mut().reintroduce(lender, epoch, &table, status.clone())?;
        if self.holder.borrow_mut().reintroduce(lender, epoch, &table, status.clone())? || known {
            self.holder.borrow_mut().lends(lender, of);
            self.lenders.borrow_mut().insert(lender, epoch);
            return Ok(());
        }
        let for_kernel = match self.pins.borrow_mut().remove(&lender) {
            Some(pins) => Some((pins, SegmentReader::open(table.try_clone()?, 1)?)),
            None => None,
        };
        self.holder.borrow_mut().introduce(lender, epoch, SegmentReader::open(table, 1)?, &[], status.clone())?;
        self.holder.borrow_mut().lends(lender, of);
        if let Some((pins, table)) = for_kernel {
            self.mapper.borrow_mut().introduce(lender, epoch, table, &[], pins, status)?;
        }
        self.lenders.borrow_mut().insert(lender, epoch);
        Ok(())
    }

    /// This run lends to itself what has landed in it: it reads its own leases as it does others'.
    pub(super) fn meet_itself(&self, lender: &Lender) -> io::Result<()> {
        let table = SegmentReader::open(lender.table_fd().try_clone_to_owned()?, 1)?;
        Ok(self.holder.borrow_mut().introduce(lender.id(), lender.epoch(), table, &[], None)?)
    }

    /// And this is where it lands.
    pub(super) fn meet_own_region(&self, lender: LenderId, region: RegionReader) {
        self.holder.borrow_mut().add_region(lender, region);
    }

    /// Learns a region from which a lender may lend.
    pub(super) fn meet_region(&self, lender: LenderId, region: RegionId, memory: OwnedFd) -> io::Result<()> {
        let mut regions = self.regions.borrow_mut();
        let (reader, lenders) = match regions.entry(region) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert((RegionReader::open(memory, region)?, Vec::new())),
        };
        if lenders.contains(&lender) {
            return Ok(());
        }
        lenders.push(lender);
        self.mapper.borrow_mut().add_region(lender, reader.clone());
        self.holder.borrow_mut().add_region(lender, reader.clone());
        Ok(())
    }

    /// A region that is mapped.
    pub(super) fn region(&self, region: RegionId) -> Option<RegionReader> {
        self.regions.borrow().get(&region).map(|(reader, _)| reader.clone())
    }

    /// The lenders that were met, and the regions that are mapped for each.
    pub(super) fn account(&self, account: &mut Account) {
        account.lenders.extend(self.lenders.borrow().iter().map(|(lender, epoch)| (*lender, *epoch)));
        for (region, (_, lenders)) in &*self.regions.borrow() {
            account.regions.extend(lenders.iter().map(|lender| (*lender, *region)));
        }
    }

    /// Forgets a dead lender, if it does not survive, and the regions that it owned. What is pinned of them stays mapped
    /// until it is unpinned.
    pub(super) fn lender_gone(&self, lender: Option<LenderId>, gone: &[RegionId]) {
        if let Some(lender) = lender {
            self.pins.borrow_mut().remove(&lender);
            self.lenders.borrow_mut().remove(&lender);
            self.mapper.borrow_mut().retire(lender);
            self.holder.borrow_mut().retire(lender);
        }
        for &region in gone {
            self.mapper.borrow_mut().remove_region(region);
            self.holder.borrow_mut().remove_region(region);
        }
        self.regions.borrow_mut().retain(|region, (_, lenders)| {
            lenders.retain(|&known| Some(known) != lender);
            !lenders.is_empty() && !gone.contains(region)
        });
    }
}

/// The lender's side: a mapper's pins count from now on.
pub(super) fn attach_pins(
    lender: &RefCell<Lender>,
    mapper: Incarnation,
    epoch: Epoch,
    pins: OwnedFd,
    status: Option<StatusWord>,
) -> io::Result<()> {
    attach(&mut lender.borrow_mut(), mapper, epoch, pins, status)
}

/// The same, for a lender that nobody has yet.
pub(super) fn attach(
    lender: &mut Lender,
    mapper: Incarnation,
    epoch: Epoch,
    pins: OwnedFd,
    status: Option<StatusWord>,
) -> io::Result<()> {
    let pins = SegmentReader::open(pins, 1)?;
    match status {
        Some(status) => lender.attach_pins_until_fenced(mapper, epoch, pins, status)?,
        None => lender.attach_pins(mapper, epoch, pins)?,
    }
    Ok(())
}
