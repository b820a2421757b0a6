//! A driver's region, a lender, a mapper and a keeper's page in one process: what the tests of this module share.

use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::{Holder, Lend, Lender, Mapper, PinSegment, Region, RegionReader, StatusPage, StatusReader, StatusWord};
use crate::id::{Epoch, Incarnation, LenderId, RegionId};
use crate::sys::segment::SegmentReader;
use crate::wire::LeaseName;

pub(super) const LENDER: LenderId = LenderId(11);
pub(super) const EPOCH: Epoch = Epoch(3);
pub(super) const REGION: RegionId = RegionId(21);
pub(super) const MAPPER: Incarnation = Incarnation(31);
pub(super) const ALICE: Incarnation = Incarnation(41);
pub(super) const BOB: Incarnation = Incarnation(42);
/// The lender's and the mapper's lines of the status page.
pub(super) const LENDER_LINE: u32 = 0;
pub(super) const MAPPER_LINE: u32 = 1;
pub(super) const CAPACITY: u32 = 8;
pub(super) const REGION_BYTES: usize = 1 << 16;

pub(super) fn reopen(fd: BorrowedFd<'_>) -> SegmentReader {
    SegmentReader::open(fd.try_clone_to_owned().expect("dup"), 1).expect("a sealed segment")
}

pub(super) struct World {
    pub(super) page: StatusPage,
    pub(super) region: Region,
    pub(super) lender: Lender,
    pub(super) mapper: Mapper,
}

impl World {
    /// Byte `i` of the region is `i % 251`; the mapper is attached and introduced; both live.
    pub(super) fn new() -> Self {
        let page = StatusPage::create(2).expect("memory");
        assert!(page.lives(LENDER_LINE, EPOCH) && page.lives(MAPPER_LINE, Epoch(1)));
        let region = Region::create("region", REGION, REGION_BYTES).expect("memory");
        let bytes: Vec<u8> = (0..REGION_BYTES).map(|i| (i % 251) as u8).collect();
        region.copy_in(0, &bytes).expect("it fits");
        let mut lender = Lender::new(LENDER, EPOCH, CAPACITY).expect("memory");
        let pins = PinSegment::create(MAPPER, Epoch(1), LENDER, CAPACITY).expect("memory");
        let status = Self::status_of(&page, MAPPER_LINE);
        lender.attach_pins_until_fenced(MAPPER, Epoch(1), reopen(pins.fd()), status).expect("a good segment");
        let mut world = Self { page, region, lender, mapper: Mapper::new() };
        let (table, regions) = (world.table(), world.regions());
        let status = Some(Self::status_of(&world.page, LENDER_LINE));
        world.mapper.introduce(LENDER, EPOCH, table, &regions, pins, status).expect("a good table");
        world
    }

    pub(super) fn status_of(page: &StatusPage, line: u32) -> StatusWord {
        let fd = page.fd().try_clone_to_owned().expect("dup");
        StatusReader::open(fd).expect("a page").endpoint(line).expect("a line")
    }

    pub(super) fn table(&self) -> SegmentReader {
        reopen(self.lender.table_fd())
    }

    pub(super) fn regions(&self) -> Vec<(RegionId, RegionReader)> {
        let fd = self.region.fd().try_clone_to_owned().expect("dup");
        vec![(REGION, RegionReader::open(fd, REGION).expect("a sealed region"))]
    }

    pub(super) fn holder(&self, who: Incarnation) -> Holder {
        let mut holder = Holder::new(who);
        let status = Some(Self::status_of(&self.page, LENDER_LINE));
        holder.introduce(LENDER, EPOCH, self.table(), &self.regions(), status).expect("a good table");
        holder
    }

    /// Lends bytes `4096 * n ..` to `who`; the second value is dropped together with the lease.
    pub(super) fn lend(&mut self, who: Incarnation, n: u64, length: u64) -> (LeaseName, std::rc::Weak<()>) {
        let keep = Rc::new(());
        let watch = Rc::downgrade(&keep);
        let lend = Lend { region: REGION, offset: 4096 * n, length, source: None, keep };
        (self.lender.lend(who, lend).expect("there is room"), watch)
    }
}
