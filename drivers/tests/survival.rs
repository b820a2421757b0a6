//! What if the driver dies and its next run goes on? One thread, over a real session and real ledgers: a run that is cut off
//! answers nothing more, and the next one starts when its last request has ended, as the fence makes it.

mod common;

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use common::run;
use drivers::block::{Device, FileDriver, Image, ImageConfig, Nonsense, Parts};
use kernel_ipc::interface::{Connect, Connection, Lease, LeasePart, NewCap};
use kernel_ipc::lease::{Holder, HolderLimits, Lend, Lender, Mapper, PinSegment, Region, RegionReader};
use kernel_ipc::rights::Rights;
use kernel_ipc::runtime;
use kernel_ipc::session::{ClientSession, Heritage, HostSession, Ledgers, Offer, SessionInfo};
use kernel_ipc::sys::segment::{SegmentReader, memfd, set_len};
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Cause, Epoch, Incarnation, LenderId, RegionId, SessionId};
use protocol::block::{self, BLOCK_SIZE};

const SIZE: usize = BLOCK_SIZE as usize;
const CHUNKS: usize = 4;
const BLOCKS: u64 = 4096;
const LEASES: u32 = 2048;
const SESSION: SessionId = SessionId(1);
const CLIENT: Incarnation = Incarnation(100);
const DISK: (LenderId, RegionId) = (LenderId(1), RegionId(1));
const OURS: (LenderId, RegionId) = (LenderId(100), RegionId(100));

/// What the supervisor keeps of a driver.
struct Estate {
    image: PathBuf,
    ledger: OwnedFd,
    table: OwnedFd,
    region: OwnedFd,
    session: OwnedFd,
    epoch: std::cell::Cell<u64>,
}

/// A run of the driver.
struct Run {
    driver: Rc<block::Dispatcher<FileDriver>>,
    lender: Rc<RefCell<Lender>>,
    region: Region,
    host: HostSession,
}

/// The client's end, over all runs.
struct Client {
    session: ClientSession,
    device: block::Client,
    holder: RefCell<Holder>,
    lender: RefCell<Lender>,
    region: Region,
}

fn again(fd: &impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().expect("a descriptor")
}

fn open(fd: BorrowedFd<'_>) -> SegmentReader {
    SegmentReader::open(again(&fd), 1).expect("memory that we cannot write")
}

/// What block `n` of the disk holds.
fn pattern(n: u64) -> Vec<u8> {
    (0..SIZE as u64).map(|i| (n.wrapping_mul(2_654_435_761).wrapping_add(i) >> 5) as u8).collect()
}

impl Estate {
    fn new(directory: &tempfile::TempDir) -> Estate {
        let image = directory.path().join("disk.img");
        let bytes: Vec<u8> = (0..BLOCKS).flat_map(pattern).collect();
        std::fs::write(&image, bytes).expect("room for an image");
        let [ledger, table, region, session] =
            [Lender::ledger_bytes(LEASES), Lender::table_bytes(LEASES), CHUNKS << 20, Ledgers::BYTES].map(|bytes| {
                let memory = memfd("kept").expect("memory");
                set_len(&memory, bytes).expect("memory");
                memory
            });
        Estate { image, ledger, table, region, session, epoch: std::cell::Cell::new(0) }
    }

    /// The next run, over this client's segment; `client` is introduced to it if there is one.
    async fn start(&self, segment: OwnedFd, client: Option<&Client>) -> Result<Run, Nonsense> {
        self.epoch.set(self.epoch.get() + 1);
        let epoch = Epoch(self.epoch.get());
        let (ledger, table) = (again(&self.ledger), again(&self.table));
        let (lender, leases) = match epoch.get() {
            1 => (Lender::surviving(DISK.0, epoch, LEASES, ledger, table).expect("fresh"), Vec::new()),
            _ => Lender::follow(DISK.0, epoch, LEASES, ledger, table).expect("a good ledger"),
        };
        let lender = Rc::new(RefCell::new(lender));
        lender.borrow_mut().set_limits(HolderLimits { leases: LEASES, bytes: u64::MAX });
        let config = ImageConfig { path: self.image.clone(), size: None, create: false, read_only: false };
        // Waits until the last run's last request has ended.
        let image = Image::open(&config).await.expect("an image");
        let region = Region::kept(again(&self.region), DISK.1).expect("memory");
        let mapper: Rc<RefCell<Mapper>> = Rc::default();
        if let Some(client) = client {
            client.meet(&mapper, epoch);
        }
        let driver = FileDriver::new(Parts {
            image,
            region: region.clone(),
            in_flight: 64 << 10,
            mapper,
            counters: Rc::default(),
            under_way: drivers::block::UnderWay::default(),
            record: None,
        })
        .expect("a driver");
        driver.hold(&leases, &lender)?;
        let driver = Rc::new(block::Dispatcher(driver));
        let info = SessionInfo {
            id: SESSION,
            epoch,
            client: CLIENT,
            client_name: "client".into(),
            attenuation: serde_json::Value::Null,
        };
        let (service, lends) = (Rc::clone(&driver), Some(Rc::clone(&lender)));
        let host = if epoch.get() == 1 {
            let ledgers = Ledgers { session: again(&self.session), component: None };
            let root = NewCap::new(Device, Rights::all()).to_grant();
            HostSession::start_surviving(segment, root, service, info, lends, ledgers)
        } else {
            let heritage = Heritage::check(again(&self.session), SESSION, |_| 0, None).expect("a good ledger");
            HostSession::go_on(segment, heritage, service, info, lends, None)
        };
        Ok(Run { driver, lender, region, host: host.expect("a session") })
    }

    /// The first run, and its client.
    async fn begin(&self) -> (Run, Client) {
        let offer = Offer::new(Shape::default()).expect("a segment");
        let run = self.start(again(&offer.fd()), None).await.expect("nothing is lent");
        let segment = again(&run.host.fd().expect("shared memory"));
        let session = offer.open_surviving(segment, SESSION, Epoch(1)).expect("a session");
        let lender = Lender::new(OURS.0, Epoch(1), LEASES).expect("memory");
        let client = Client {
            device: block::Client::from_connection(Connection::fixed(session.clone())),
            session,
            holder: RefCell::new(Holder::new(CLIENT)),
            lender: RefCell::new(lender),
            region: Region::create("client", OURS.1, 1 << 20).expect("memory"),
        };
        let reader = RegionReader::open(again(&run.region.fd()), DISK.1).expect("memory that we cannot write");
        let table = open(run.lender.borrow().table_fd());
        client.holder.borrow_mut().introduce(DISK.0, Epoch(1), table, &[(DISK.1, reader)], None).expect("a good table");
        (run, client)
    }

    /// The run dies, and the next one goes on.
    async fn replace(&self, run: Run, client: &Client) -> Run {
        client.session.suspend();
        run.host.abandon();
        drop(run);
        let offer = client.session.offer().expect("a segment");
        let run = self.start(again(&offer.fd()), Some(client)).await.expect("what was lent makes sense");
        let table = again(&run.lender.borrow().table_fd());
        client.holder.borrow_mut().reintroduce(DISK.0, Epoch(self.epoch.get()), &table, None).expect("a good table");
        let segment = again(&run.host.fd().expect("shared memory"));
        client.session.resume(offer, segment, Epoch(self.epoch.get())).expect("the session goes on");
        run
    }
}

impl Client {
    /// A run of the driver learns where we write from.
    fn meet(&self, mapper: &RefCell<Mapper>, epoch: Epoch) {
        let mut lender = self.lender.borrow_mut();
        let pins = PinSegment::create(Incarnation(epoch.get()), epoch, OURS.0, LEASES).expect("memory");
        lender.attach_pins(Incarnation(epoch.get()), epoch, open(pins.fd())).expect("a good segment");
        let region = RegionReader::open(again(&self.region.fd()), OURS.1).expect("sealed");
        let table = open(lender.table_fd());
        mapper.borrow_mut().introduce(OURS.0, Epoch(1), table, &[(OURS.1, region)], pins, None).expect("a good table");
    }

    /// Blocks of our region, lent to ourselves for a write.
    fn stage(&self, at: usize, bytes: &[u8]) -> LeasePart {
        self.region.copy_in(at, bytes).expect("inside");
        let (offset, length) = (at as u64, bytes.len() as u64);
        let lend = Lend { region: OURS.1, offset, length, source: None, keep: Rc::new(()) };
        LeasePart::whole(self.lender.borrow_mut().lend(CLIENT, lend).expect("room"))
    }

    fn is(&self, lease: &Lease, block: u64, count: u32) {
        let mut bytes = vec![0; count as usize * SIZE];
        self.holder.borrow().read(&lease.name(), 0, &mut bytes).expect("a live lease");
        let right: Vec<u8> = (block..block + u64::from(count)).flat_map(pattern).collect();
        assert!(bytes == right, "{count} blocks from {block}");
    }
}

#[test]
fn what_is_lent_stays_and_what_was_under_way_is_done_again() {
    run(async {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let estate = Estate::new(&directory);
        let (mut run, client) = estate.begin().await;
        let mut held: Vec<(Lease, kernel_ipc::lease::Held, u64, u32)> = Vec::new();
        let mut seed = 7u64;
        for round in 0..12u64 {
            // More than the driver may have in the kernel's hands: some are waiting, some are with it, some are answered.
            let reads: Vec<_> = (0..24)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (count, block) = ((seed >> 40) as u32 % 5 + 1, (seed >> 20) % (BLOCKS / 2 - 8));
                    let device = client.device.clone();
                    let read = async move { device.read(device.root(), block, count).await.expect("answered") };
                    (runtime::spawn(read), block, count)
                })
                .collect();
            for _ in 0..round {
                runtime::yield_now().await;
            }
            run = estate.replace(run, &client).await;
            for (read, block, count) in reads {
                let lease = read.await.expect("not cancelled");
                client.is(&lease, block, count);
                let look = client.holder.borrow().hold(&lease.name()).expect("live");
                held.push((lease, look, block, count));
            }
            // Of what was held before, most stays, and every byte of it.
            held.retain(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                !(seed >> 33).is_multiple_of(4)
            });
            for (lease, look, block, count) in &held {
                assert!(look.still_live());
                client.is(lease, *block, *count);
            }
            // An answered call, so that what was released is known to the driver.
            client.device.info(client.device.root()).await.expect("answered");
            let lent: u32 = held.iter().map(|(.., count)| count).sum();
            assert_eq!(run.driver.0.used(), lent, "nothing else is taken, and nothing that is held is free");
        }
        // All of the rest can be had, and is nobody else's.
        let mut more = Vec::new();
        loop {
            match client.device.read(client.device.root(), 17, 1).await {
                Ok(lease) => more.push(lease),
                Err(CallError::Failed { cause: Cause::Busy { .. }, .. }) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!(run.driver.0.used() as usize, CHUNKS * 256);
        held.iter().for_each(|(lease, _, block, count)| client.is(lease, *block, *count));
        drop((held, more));
        client.device.info(client.device.root()).await.expect("answered");
        assert_eq!(run.driver.0.used(), 0);
    });
}

#[test]
fn writes_and_flushes_that_were_under_way_are_done_and_what_was_answered_is_there() {
    run(async {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let estate = Estate::new(&directory);
        let (run, client) = estate.begin().await;
        // The first run has not met us: it is replaced by one that has.
        let mut run = estate.replace(run, &client).await;
        for round in 0..8u64 {
            let writes: Vec<_> = (0..24u64)
                .map(|n| {
                    let block = BLOCKS / 2 + round * 24 + n;
                    let part = client.stage(n as usize * SIZE, &pattern(block + 1_000_000));
                    let device = client.device.clone();
                    let write = async move {
                        device.write(device.root(), block, part).await.expect("answered");
                        device.flush(device.root()).await.expect("answered");
                    };
                    runtime::spawn(write)
                })
                .collect();
            for _ in 0..round * 2 {
                runtime::yield_now().await;
            }
            run = estate.replace(run, &client).await;
            for write in writes {
                write.await.expect("not cancelled");
            }
        }
        drop(run);
        let image = std::fs::read(&estate.image).expect("an image");
        for block in 0..BLOCKS {
            let written = (BLOCKS / 2..BLOCKS / 2 + 8 * 24).contains(&block);
            let right = pattern(if written { block + 1_000_000 } else { block });
            assert!(image[block as usize * SIZE..][..SIZE] == right, "block {block}");
        }
    });
}

#[test]
fn leases_of_another_region_are_noticed_before_anything_is_served() {
    run(async {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let estate = Estate::new(&directory);
        let (run, client) = estate.begin().await;
        let lend = Lend { region: RegionId(2), offset: 0, length: 4096, source: None, keep: Rc::new(()) };
        let wrong = run.lender.borrow_mut().lend(CLIENT, lend).expect("room");
        client.session.suspend();
        run.host.abandon();
        drop(run);
        let offer = client.session.offer().expect("a segment");
        let next = estate.start(again(&offer.fd()), Some(&client)).await;
        assert_eq!(next.err(), Some(Nonsense(wrong.index)));
    });
}
