//! Results that are lent: the server's memory and lender, and the client's way to read them.
//!
//! * In one thread and over shared memory the client maps the server's region and copies the bytes out of it.
//! * Over a socket they land in a region of the client's own, by its own lender, and are copied out of that.

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use kernel_ipc::lease::{Holder, Lend, Lender, Pool, Region, RegionReader};
use kernel_ipc::link::socket::bulk::land::Landing;
use kernel_ipc::link::socket::bulk::serve::Lending;
use kernel_ipc::sys::segment::SegmentReader;
use kernel_ipc::{LenderId, RegionId};

use super::host::{EPOCH, info};

/// The largest result.
pub const BYTES: usize = 1 << 20;
/// Indices of a lender's table.
const LEASES: u32 = 1024;
/// What a client can hold of a server beyond a socket.
const LANDING_BYTES: usize = 8 * BYTES;

/// Memory of one process, and who lends it.
pub struct Store {
    region: Region,
    lender: Rc<RefCell<Lender>>,
}

impl Store {
    /// Memory that holds something.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn new() -> io::Result<Store> {
        let store = Store::of(LenderId(3), RegionId(4), BYTES)?;
        store.region.copy_in(0, &vec![7; BYTES]).map_err(io::Error::other)?;
        Ok(store)
    }

    fn of(lender: LenderId, region: RegionId, bytes: usize) -> io::Result<Store> {
        let lender = Rc::new(RefCell::new(Lender::new(lender, EPOCH, LEASES)?));
        Ok(Store { region: Region::create("bench-store", region, bytes)?, lender })
    }

    /// Its first so many bytes.
    pub fn lend(&self, bytes: u32) -> Lend {
        let length = u64::from(bytes).min(BYTES as u64);
        Lend { region: self.region.id(), offset: 0, length, source: None, keep: Rc::new(()) }
    }

    /// Who lends it.
    pub fn lender(&self) -> Rc<RefCell<Lender>> {
        self.lender.clone()
    }

    /// The same for clients beyond a socket.
    ///
    /// # Errors
    /// The kernel refuses a second mapping.
    pub fn lending(&self) -> io::Result<Lending> {
        Ok(Lending::new(self.lender(), [self.reader()?]))
    }

    /// What a client needs to read leases: the table and the region, in the order of [`holder`]'s arguments.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn descriptors(&self) -> io::Result<[OwnedFd; 2]> {
        Ok([self.lender.borrow().table_fd().try_clone_to_owned()?, self.region.fd().try_clone_to_owned()?])
    }

    fn reader(&self) -> io::Result<RegionReader> {
        RegionReader::open(self.region.fd().try_clone_to_owned()?, self.region.id())
    }

    /// How this process's client reads what is lent.
    ///
    /// # Errors
    /// The kernel refuses a mapping.
    pub fn holder(&self) -> io::Result<Rc<Holder>> {
        let [table, region] = self.descriptors()?;
        held(self.lender.borrow().id(), self.region.id(), table, region)
    }
}

/// How a client in another process reads what [`Store::new`] lends.
///
/// # Errors
/// The kernel refuses a mapping.
pub fn holder(table: OwnedFd, region: OwnedFd) -> io::Result<Rc<Holder>> {
    held(LenderId(3), RegionId(4), table, region)
}

fn held(lender: LenderId, region: RegionId, table: OwnedFd, memory: OwnedFd) -> io::Result<Rc<Holder>> {
    let mut holder = Holder::new(info().client);
    let regions = [(region, RegionReader::open(memory, region)?)];
    let known = holder.introduce(lender, EPOCH, SegmentReader::open(table, 1)?, &regions, None);
    known.map_err(|_| io::Error::other("the lender's table is none"))?;
    Ok(Rc::new(holder))
}

/// Where a client's leases land that come over a socket, and how it reads them.
///
/// # Errors
/// The kernel has no memory.
pub fn landing() -> io::Result<(Landing, Rc<Holder>)> {
    let store = Store::of(LenderId(5), RegionId(6), LANDING_BYTES)?;
    let holder = store.holder()?;
    let pool = Pool::new(store.region, 4096);
    Ok((Landing { pool, lender: store.lender, me: info().client }, holder))
}

/// All descriptors that a host sends with its segment.
pub fn beside<'a>(segment: BorrowedFd<'a>, store: &'a [OwnedFd; 2]) -> [BorrowedFd<'a>; 3] {
    use std::os::fd::AsFd;
    [segment, store[0].as_fd(), store[1].as_fd()]
}
