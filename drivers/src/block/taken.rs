//! Which ranges of the region are in use, by reads and by leases, also by those of the driver's last run.
//!
//! - A range is taken from before the kernel writes to it until the lease of it is free.
//! - What a dead run had under way is free: its last request has ended before the next run starts (the fence). What it
//!   had lent is not: the lender's ledger says which ranges those are.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use kernel_ipc::RegionId;
use kernel_ipc::lease::Inherited;
use protocol::block::BLOCK_SIZE;

use super::space::Space;

/// The right to a range of the region, until it is dropped.
pub(super) struct Taken {
    of: Rc<RefCell<Space>>,
    pub(super) blocks: Range<u32>,
}

impl Taken {
    /// A free range of `count` blocks.
    pub(super) fn new(space: &Rc<RefCell<Space>>, count: u32) -> Option<Taken> {
        let start = space.borrow_mut().allocate(count)?;
        Some(Taken { of: Rc::clone(space), blocks: start..start + count })
    }

    /// The range of a lease that a dead run had given.
    fn again(space: &Rc<RefCell<Space>>, lease: &Inherited, region: RegionId) -> Result<Taken, Nonsense> {
        let size = u64::from(BLOCK_SIZE);
        let [offset, length] = [lease.fields.offset, lease.fields.length];
        if lease.fields.region != region.get() || !offset.is_multiple_of(size) || !length.is_multiple_of(size) {
            return Err(Nonsense(lease.index));
        }
        let blocks = |bytes: u64| u32::try_from(bytes / size).map_err(|_| Nonsense(lease.index));
        let (start, count) = (blocks(offset)?, blocks(length)?);
        let end = start.checked_add(count).ok_or(Nonsense(lease.index))?;
        match space.borrow_mut().take(start..end) {
            true => Ok(Taken { of: Rc::clone(space), blocks: start..end }),
            false => Err(Nonsense(lease.index)),
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of.borrow_mut().free(self.blocks.clone());
    }
}

/// A lease of a dead run that this driver cannot have given: not of its region, not of whole blocks of one chunk, or of
/// blocks of another lease. Its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonsense(pub u32);

impl std::fmt::Display for Nonsense {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "lease {} is of no range that this driver lends", self.0)
    }
}

impl std::error::Error for Nonsense {}

/// Takes the ranges of leases that a dead run had given: what each of them keeps, in their order.
pub(super) fn take_again(
    space: &Rc<RefCell<Space>>,
    leases: &[Inherited],
    region: RegionId,
) -> Result<Vec<Rc<Taken>>, Nonsense> {
    leases.iter().map(|lease| Ok(Rc::new(Taken::again(space, lease, region)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_ipc::Incarnation;

    const REGION: RegionId = RegionId(7);

    fn space() -> Rc<RefCell<Space>> {
        Rc::new(RefCell::new(Space::new(2)))
    }

    fn lease(index: u32, offset: u64, length: u64) -> Inherited {
        let holder = Incarnation(1).get();
        let fields = kernel_ipc::lease::protocol::Fields { holder, region: REGION.get(), offset, length };
        Inherited { index, generation: 1, fields, call: None, by: None, source: None, dying: false }
    }

    #[test]
    fn what_is_lent_still_is_taken_until_its_lease_ends() {
        let leases = [lease(3, 0, 4096 * 200), lease(9, 4096 * 300, 4096)];
        let space = space();
        let mut kept = take_again(&space, &leases, REGION).expect("leases of this region");
        assert_eq!(space.borrow().used(), 201);
        let more: Vec<Taken> = std::iter::from_fn(|| Taken::new(&space, 1)).collect();
        assert_eq!(more.len(), 512 - 201, "every other block is free");
        assert!(more.iter().all(|taken| !(0..200).contains(&taken.blocks.start) && taken.blocks.start != 300));
        drop(kept.remove(0));
        assert_eq!(Taken::new(&space, 200).expect("free again").blocks, 0..200);
    }

    #[test]
    fn leases_that_this_driver_cannot_have_given_are_noticed() {
        let elsewhere = |lease: Inherited| {
            let fields = kernel_ipc::lease::protocol::Fields { region: 8, ..lease.fields };
            Inherited { fields, ..lease }
        };
        let wrong = [
            lease(1, 1, 4096),
            lease(1, 0, 4095),
            lease(1, 0, 0),
            lease(1, 4096 * 255, 4096 * 2),
            lease(1, 4096 * 512, 4096),
            lease(1, 4096 * 511, 4096 * 2),
            lease(1, u64::MAX - 4095, 4096),
            lease(1, 0, 4096 << 32),
            lease(1, 4096 << 32, 4096),
            elsewhere(lease(1, 0, 4096)),
        ];
        for wrong in wrong {
            assert_eq!(take_again(&space(), &[wrong], REGION).err(), Some(Nonsense(1)), "{wrong:?}");
        }
        let twice = [lease(1, 0, 4096 * 2), lease(2, 4096, 4096)];
        assert_eq!(take_again(&space(), &twice, REGION).err(), Some(Nonsense(2)));
    }
}
