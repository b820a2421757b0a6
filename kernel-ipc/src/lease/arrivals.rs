//! Leases that came as bytes: what a client beyond a socket lends to this process lies in a region of this process's own.
//!
//! * Such a lease is named like any other, as one of a lender that is nobody ([`LenderId::ARRIVED`]), and is found by the [`Mapper`]
//!   and [`Holder`] of this process, and by nobody else: it is in no table.
//! * Its holder is the client that lends it: only on that client's sessions is its name good.
//! * It lasts until the call that brought it is answered and nobody pins it any more. Nobody takes it back earlier.
//! * No name is used again, in this run or, as far as 64 random bits go, in a later one: a ledger may have kept it.
//!
//! [`Mapper`]: super::Mapper
//! [`Holder`]: super::Holder

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::{Rc, Weak};

use super::region::{OutOfRange, RegionReader, inside};
use super::view::StaleLease;
use crate::id::{Incarnation, LenderId};
use crate::sys::random::random_words;
use crate::wire::LeaseName;

/// What has arrived in one region. Clones are the same.
#[derive(Clone)]
pub struct Arrivals(Rc<Inner>);

struct Inner {
    region: RegionReader,
    /// By index and generation.
    known: RefCell<HashMap<(u32, u32), Weak<Arrived>>>,
    /// Both of the next one, in one number.
    next: Cell<u64>,
}

/// One lease that has arrived. It is known by its name until this is dropped.
pub struct Arrived {
    home: Weak<Inner>,
    region: RegionReader,
    holder: Incarnation,
    name: LeaseName,
    offset: usize,
    _keep: Rc<dyn Any>,
}

impl Arrivals {
    /// Nothing has arrived yet in this region, whose owner this process is.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn new(region: RegionReader) -> io::Result<Arrivals> {
        let [next, _] = random_words()?;
        Ok(Arrivals(Rc::new(Inner { region, known: RefCell::default(), next: Cell::new(next) })))
    }

    /// These bytes of the region are what `holder` lends. `keep` is kept as long as somebody uses them.
    ///
    /// # Errors
    /// [`OutOfRange`]
    pub fn enter(
        &self,
        holder: Incarnation,
        offset: usize,
        length: usize,
        keep: Rc<dyn Any>,
    ) -> Result<Rc<Arrived>, OutOfRange> {
        let region = self.0.region.clone();
        inside(region.len(), offset, length)?;
        let number = self.0.next.replace(self.0.next.get().wrapping_add(1));
        let (index, generation) = (number as u32, (number >> 32) as u32);
        let name = LeaseName { lender: LenderId::ARRIVED, index, generation, length: length as u64 };
        let home = Rc::downgrade(&self.0);
        let arrived = Rc::new(Arrived { home, region, holder, name, offset, _keep: keep });
        self.0.known.borrow_mut().insert((index, generation), Rc::downgrade(&arrived));
        Ok(arrived)
    }

    /// The lease of this name, if `holder` has it.
    pub(super) fn find(&self, name: &LeaseName, holder: Incarnation) -> Result<Rc<Arrived>, StaleLease> {
        let known = self.0.known.borrow().get(&(name.index, name.generation)).and_then(Weak::upgrade);
        let arrived = known.ok_or(StaleLease::Ended)?;
        if arrived.holder == holder { Ok(arrived) } else { Err(StaleLease::NotYours) }
    }
}

impl Arrived {
    /// By which it is known in this process.
    pub fn name(&self) -> LeaseName {
        self.name
    }

    pub(super) fn region(&self) -> &RegionReader {
        &self.region
    }

    /// Where in the region it begins.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn len(&self) -> usize {
        // It was a length of memory here.
        self.name.length as usize
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.known.borrow_mut().remove(&(self.name.index, self.name.generation));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::{Holder, Liveness, Mapper, Region};
    use super::*;
    use crate::id::RegionId;

    const HOLDER: Incarnation = Incarnation(7);

    fn arrivals() -> (Arrivals, Region) {
        let region = Region::create("arrived", RegionId(3), 8192).expect("memory");
        region.copy_in(4096, b"some bytes").expect("it fits");
        let memory = region.fd().as_fd().try_clone_to_owned().expect("dup");
        let reader = RegionReader::open(memory, region.id()).expect("a region");
        (Arrivals::new(reader).expect("random numbers"), region)
    }

    #[test]
    fn what_has_arrived_is_found_by_its_holder_as_long_as_somebody_uses_it() {
        let (arrivals, _region) = arrivals();
        let (mut mapper, mut holder) = (Mapper::new(), Holder::new(Incarnation(1)));
        mapper.take_in(arrivals.clone());
        holder.take_in(arrivals.clone());
        let kept: Rc<()> = Rc::new(());
        let arrived = arrivals.enter(HOLDER, 4096, 10, kept.clone()).expect("it is inside");
        let name = arrived.name();
        assert_eq!(mapper.pin(&name, Incarnation(8), 0..4).err(), Some(StaleLease::NotYours));
        assert_eq!(holder.hold_from(&name, Incarnation(8)).err(), Some(StaleLease::NotYours));
        assert_eq!(holder.hold(&name).err(), Some(StaleLease::UnknownLender), "it is a client's");
        for (start, end, what) in
            [(5, 11, "beyond its end"), (u64::MAX - 1, u64::MAX, "far beyond"), (6, 5, "backwards")]
        {
            assert_eq!(mapper.pin(&name, HOLDER, start..end).err(), Some(StaleLease::OutOfRange), "{what}");
        }
        let held = holder.hold_from(&name, HOLDER).expect("it is there");
        let mut bytes = [0; 5];
        held.copy_out(5, &mut bytes).expect("it is inside");
        assert_eq!((&bytes, held.len()), (b"bytes", 10));
        assert_eq!(held.copy_out(6, &mut bytes), Err(StaleLease::OutOfRange));
        let mut pinned = mapper.pin(&name, HOLDER, 2..10).expect("it is there");
        pinned.advance(3);
        assert_eq!((&pinned.to_vec()[..], pinned.liveness()), (&b"bytes"[..], Liveness::Live));
        // The call has been answered, and is still being written to a socket.
        drop((arrived, held));
        assert_eq!((pinned.liveness(), Rc::strong_count(&kept)), (Liveness::Live, 2));
        drop(pinned);
        assert_eq!((mapper.pin(&name, HOLDER, 0..1).err(), Rc::strong_count(&kept)), (Some(StaleLease::Ended), 1));
    }

    #[test]
    fn nothing_arrives_outside_of_its_region_and_no_name_is_used_twice() {
        let (arrivals, _region) = arrivals();
        for (offset, length) in [(8192, 1), (0, 8193), (usize::MAX, 2)] {
            assert!(arrivals.enter(HOLDER, offset, length, Rc::new(())).is_err(), "{offset} {length}");
        }
        let name = || arrivals.enter(HOLDER, 0, 1, Rc::new(())).expect("it is inside").name();
        let (one, other) = (name(), name());
        assert_ne!((one.index, one.generation), (other.index, other.generation));
        assert!(arrivals.0.known.borrow().is_empty());
    }
}
