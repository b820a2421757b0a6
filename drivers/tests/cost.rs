//! What a driver may cost at most: its system calls, counted.

mod common;

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;

use common::{Host, run};
use drivers::block::{Device, FileDriver, Image, ImageConfig, Parts, UnderWay};
use kernel_ipc::interface::{Connect, Connection, Description, NewCap};
use kernel_ipc::rights::Rights;
use kernel_ipc::runtime::{self, Signal, SystemCalls, system_calls};
use kernel_ipc::session::{Call, ClientSession, HostSession, Offer, Response, Service, SessionInfo};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, Incarnation, SessionId};
use protocol::block;

const MIB: u64 = 1 << 20;
const BLOCKS: u64 = 4096;

/// A driver that says when its client is gone, and what it needed for how many reads.
struct Counted {
    driver: block::Dispatcher<FileDriver>,
    served: Cell<u64>,
    closed: Signal,
}

impl Service for Counted {
    const INTERFACE: &'static Description = block::Dispatcher::<FileDriver>::INTERFACE;

    async fn serve(&self, call: &mut Call) -> Response {
        self.served.set(self.served.get() + 1);
        self.driver.serve(call).await
    }

    fn closed(&self, session: &SessionInfo) {
        self.driver.closed(session);
        self.closed.raise();
    }
}

/// Serves the image at `path` to one session until it ends: reads served, system calls made for them.
fn serve(path: &Path, offer: std::os::fd::OwnedFd, segment: &mpsc::Sender<std::os::fd::OwnedFd>) -> (u64, SystemCalls) {
    run(async {
        let config = ImageConfig { path: path.to_owned(), size: None, create: false, read_only: true };
        let host = Host::new(8);
        let driver = FileDriver::new(Parts {
            image: Image::open(&config).await.expect("an image"),
            region: host.region.clone(),
            in_flight: 4 * MIB,
            mapper: Rc::clone(&host.mapper),
            counters: Rc::default(),
            under_way: UnderWay::default(),
            record: None,
        });
        let driver = block::Dispatcher(driver.expect("a driver"));
        let service = Rc::new(Counted { driver, served: Cell::new(0), closed: Signal::default() });
        let info = SessionInfo {
            id: SessionId(1),
            epoch: Epoch(1),
            client: Incarnation(100),
            client_name: "reader".to_owned(),
            attenuation: serde_json::Value::Null,
        };
        let root = NewCap::new(Device, Rights::all()).to_grant();
        let session = HostSession::start(offer, root, service.clone(), info, Some(host.lender)).expect("a session");
        let before = system_calls();
        let fd = session.fd().expect("shared memory").try_clone_to_owned().expect("a descriptor");
        segment.send(fd).expect("the client waits");
        service.closed.wait().await;
        (service.served.get(), system_calls().since(before))
    })
}

/// Reads `reads` blocks from all over the device, `depth` at a time.
async fn read(session: ClientSession, reads: u64, depth: u64) {
    let device = Rc::new(block::Client::from_connection(Connection::fixed(session)));
    let readers: Vec<_> = (0..depth)
        .map(|number| {
            let device = device.clone();
            runtime::spawn(async move {
                for n in 0..reads / depth {
                    let block = (n * depth + number).wrapping_mul(0x9E37_79B9_7F4A_7C15) % BLOCKS;
                    drop(device.read(device.root(), block, 1).await.expect("readable"));
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.expect("not cancelled");
    }
}

/// The account of a driver in a thread of its own.
fn account(path: &Path, reads: u64, depth: u64) -> (u64, SystemCalls) {
    let offer = Offer::new(Shape { slots: 64, ..Shape::default() }).expect("a segment");
    let fd = offer.fd().try_clone_to_owned().expect("a descriptor");
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        let driver = scope.spawn(move || serve(path, fd, &send));
        let segment = receive.recv().expect("the driver opens the session");
        run(async {
            let session = offer.open(segment, SessionId(1), Epoch(1)).expect("a session");
            read(session, reads, depth).await;
        });
        driver.join().expect("the driver does not panic")
    })
}

#[test]
fn a_driver_with_32_reads_outstanding_makes_a_quarter_of_a_system_call_for_each_at_most() {
    // On a disk, if the machine has one where the tests are built: there completions come one by one.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = directory.path().join("disk.img");
    std::fs::write(&path, vec![7; (BLOCKS * u64::from(block::BLOCK_SIZE)) as usize]).expect("room for an image");
    // The best of three: a client that the machine keeps from calling has not 32 outstanding.
    let accounts = (0..3).map(|_| account(&path, 32_000, 32)).inspect(|(served, made)| {
        assert_eq!(*served, 32_000);
        println!("{:.3} system calls for each read, {made:?}", made.total() as f64 / *served as f64);
    });
    let (served, made) = accounts.min_by_key(|(_, made)| made.total()).expect("three");
    assert!(made.total() > 0, "nothing is counted");
    assert!(made.total() * 4 <= served, "{made:?} for {served} reads");
}
