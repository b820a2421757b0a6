//! A driver and a client in one thread, over a real session, introduced to each other as the broker would.
#![allow(dead_code, reason = "each test uses its part")]

use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use drivers::block::{Device, FileDriver, Image, ImageConfig, Parts, Recorder, UnderWay};
use kernel_ipc::interface::{Connect, Connection, Lease, LeasePart, NewCap};
use kernel_ipc::lease::{Holder, Lend, Lender, Mapper, PinSegment, Region, RegionReader};
use kernel_ipc::rights::Rights;
use kernel_ipc::runtime::{self, Options, Runtime};
use kernel_ipc::session::{HostSession, Offer, Service, SessionInfo};
use kernel_ipc::sys::segment::SegmentReader;
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId, SessionId};
use protocol::block::{self, BLOCK_SIZE};

pub mod conformance;

/// The driver's run, and the epoch of everything here.
const DRIVER: Incarnation = Incarnation(1);
const EPOCH: Epoch = Epoch(1);
const LEASES: u32 = 1024;

/// Runs a test in a runtime of its own, with a watchdog.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = Runtime::new(Options::default()).expect("io_uring");
    runtime.block_on(async { runtime::timeout(Duration::from_secs(100), future).await.expect("the watchdog barked") })
}

/// The driver's end: what it lends from, and whom it may write from.
pub struct Host {
    pub lender: Rc<RefCell<Lender>>,
    pub mapper: Rc<RefCell<Mapper>>,
    pub region: Region,
}

impl Host {
    /// An end with a region of `chunks` MiB.
    pub fn new(chunks: usize) -> Host {
        Host {
            lender: Rc::new(RefCell::new(Lender::new(LenderId(1), EPOCH, LEASES).expect("memory for a table"))),
            mapper: Rc::default(),
            region: Region::create("disk", RegionId(1), chunks << 20).expect("memory for a region"),
        }
    }
}

/// A client's end: its session, the bytes that it is lent, and a region of its own to write from.
pub struct Guest {
    pub device: block::Client,
    pub me: Incarnation,
    holder: Holder,
    lender: RefCell<Lender>,
    region: Region,
    next: std::cell::Cell<usize>,
    _session: HostSession,
}

/// Blocks that a guest can have staged at a time.
const STAGED_BLOCKS: usize = 1024;

impl Guest {
    /// Opens a session with `service` whose root has `rights`.
    pub fn connect<S: Service>(host: &Host, service: &Rc<S>, number: u64, rights: Rights) -> Guest {
        let me = Incarnation(100 + number);
        let info = SessionInfo {
            id: SessionId(number),
            epoch: EPOCH,
            client: me,
            client_name: format!("guest-{number}"),
            attenuation: serde_json::Value::Null,
        };
        let offer = Offer::new(Shape::default()).expect("a segment");
        let root = NewCap::new(Device, rights).to_grant();
        let segment = offer.fd().try_clone_to_owned().expect("a descriptor");
        let session = HostSession::start(segment, root, Rc::clone(service), info, Some(Rc::clone(&host.lender)))
            .expect("a session");
        let segment = session.fd().expect("shared memory").try_clone_to_owned().expect("a descriptor");
        let client = offer.open(segment, SessionId(number), EPOCH).expect("a session");

        let lender = Lender::new(LenderId(100 + number), EPOCH, LEASES).expect("memory for a table");
        let region =
            Region::create("guest", RegionId(100 + number), STAGED_BLOCKS * BLOCK_SIZE as usize).expect("memory");
        let mut guest = Guest {
            device: block::Client::from_connection(Connection::fixed(client)),
            me,
            holder: Holder::new(me),
            lender: RefCell::new(lender),
            region,
            next: std::cell::Cell::new(0),
            _session: session,
        };
        guest.introduce(host);
        guest
    }

    /// The broker's work: the driver learns where the guest lends from, the guest where the driver does.
    fn introduce(&mut self, host: &Host) {
        let open = |fd: std::os::fd::BorrowedFd<'_>| {
            SegmentReader::open(fd.try_clone_to_owned().expect("a descriptor"), 1).expect("a sealed segment")
        };
        let map = |region: &Region| {
            RegionReader::open(region.fd().try_clone_to_owned().expect("a descriptor"), region.id()).expect("sealed")
        };
        let mut lender = self.lender.borrow_mut();
        let pins = PinSegment::create(DRIVER, EPOCH, lender.id(), LEASES).expect("memory for pins");
        lender.attach_pins(DRIVER, EPOCH, open(pins.fd())).expect("a good segment");
        let regions = [(self.region.id(), map(&self.region))];
        host.mapper
            .borrow_mut()
            .introduce(lender.id(), EPOCH, open(lender.table_fd()), &regions, pins, None)
            .expect("a good table");
        let regions = [(host.region.id(), map(&host.region))];
        let host = host.lender.borrow();
        self.holder.introduce(host.id(), EPOCH, open(host.table_fd()), &regions, None).expect("a good table");
    }

    /// Whole blocks of `bytes` in this guest's region, lent to itself. Reuses the oldest ones after a while.
    pub fn stage(&self, bytes: &[u8]) -> LeasePart {
        let size = BLOCK_SIZE as usize;
        assert_eq!(bytes.len() % size, 0);
        let blocks = bytes.len() / size;
        let first = if self.next.get() + blocks > STAGED_BLOCKS { 0 } else { self.next.get() };
        self.next.set(first + blocks);
        self.region.copy_in(first * size, bytes).expect("inside");
        self.lend((first * size) as u64, bytes.len() as u64, self.me)
    }

    /// A lease of any range of this guest's region for any holder.
    pub fn lend(&self, offset: u64, length: u64, holder: Incarnation) -> LeasePart {
        let lend = Lend { region: self.region.id(), offset, length, source: None, keep: Rc::new(()) };
        LeasePart::whole(self.lender.borrow_mut().lend(holder, lend).expect("a free lease"))
    }

    /// Takes a lease of `stage` or `lend` back.
    pub fn take_back(&self, part: &LeasePart) {
        self.lender.borrow_mut().take_back(part.name.index, part.name.generation).expect("it was lent");
    }

    /// The bytes of a lease.
    pub fn bytes(&self, lease: &Lease) -> Vec<u8> {
        let mut bytes = vec![0; lease.len() as usize];
        self.holder.read(&lease.name(), 0, &mut bytes).expect("a live lease");
        bytes
    }
}

/// A driver over the file at `path`, and its first guest, who may do everything.
pub async fn file_driver(path: &Path, size: Option<u64>) -> (Host, Rc<block::Dispatcher<FileDriver>>, Guest) {
    file_driver_with(&ImageConfig { path: path.to_owned(), size, create: size.is_some(), read_only: false }, 8).await
}

/// As [`file_driver`], with everything to choose.
pub async fn file_driver_with(config: &ImageConfig, chunks: usize) -> (Host, Rc<block::Dispatcher<FileDriver>>, Guest) {
    driver_over(Image::open(config).await.expect("an image"), None, chunks)
}

/// A driver over an image, and its first guest.
pub fn driver_over(
    image: Image,
    record: Option<Recorder>,
    chunks: usize,
) -> (Host, Rc<block::Dispatcher<FileDriver>>, Guest) {
    let host = Host::new(chunks);
    let driver = FileDriver::new(Parts {
        image,
        region: host.region.clone(),
        in_flight: 4 << 20,
        mapper: Rc::clone(&host.mapper),
        counters: Rc::default(),
        under_way: UnderWay::default(),
        record,
    })
    .expect("a driver");
    let service = Rc::new(block::Dispatcher(driver));
    let guest = Guest::connect(&host, &service, 1, Rights::all());
    (host, service, guest)
}
