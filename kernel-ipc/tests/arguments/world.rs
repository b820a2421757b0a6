//! A client that lends, and a host that reads and pins what it is lent, over each carrier.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::lease::{Holder, Lend, Lender, Mapper, PinSegment, Pinned, Pool, Region, RegionReader, StaleLease};
use kernel_ipc::link::socket::bulk::arrive::Intake;
use kernel_ipc::link::socket::bulk::offer::Offering;
use kernel_ipc::link::socket::bulk::serve::Lending;
use kernel_ipc::link::socket::dial::{self, Cargo, Remote};
use kernel_ipc::link::socket::keys::Keys;
use kernel_ipc::link::socket::listen::{Listener, Options, Peer};
use kernel_ipc::runtime::{self, JoinHandle};
use kernel_ipc::session::{self, Call, ClientSession, HostSession, Offer, Request, Response, Service};
use kernel_ipc::sys::crc32c;
use kernel_ipc::sys::segment::SegmentReader;
use kernel_ipc::wire::{LeaseName, Shape};
use kernel_ipc::{Cause, Epoch, Failure, Incarnation, LenderId, RegionId, Rights};

use super::authority::{Authority, node};
use super::common::{info, root};

pub const SHAPE: Shape = Shape { slots: 8, window_bytes: 4096 };
pub const HOST: Incarnation = Incarnation(200);
const REGION_BYTES: usize = 24 << 20;
/// As much as a host takes in.
pub const INTAKE_BYTES: usize = 80 << 20;

/// The sum of the part of each lease that the payload says (offset and length, for each), as its holder reads it.
pub const READ: u16 = 1;
/// The same, as the kernel would read it.
pub const PIN: u16 = 2;
/// As `PIN`, and what is pinned stays so.
pub const KEEP: u16 = 3;
/// The sum of everything that is kept.
pub const KEPT: u16 = 4;
/// Nothing is kept any more.
pub const DROP: u16 = 5;
/// As `PIN`, for the next number: counted, and never twice.
pub const COUNT: u16 = 6;

const fn operation(number: u16, name: &'static str, retry: Retry) -> Operation {
    let requires = Rights::READ;
    Operation {
        number,
        name,
        target_kind: 1,
        requires,
        retry,
        deadline: None,
        at_once: false,
        handles: &[],
        signature: "",
    }
}

#[derive(Default)]
pub struct Sink {
    pub holder: Rc<RefCell<Option<Holder>>>,
    pub mapper: RefCell<Mapper>,
    kept: RefCell<Vec<Pinned>>,
    pub served: Cell<u64>,
    pub counted: RefCell<Vec<u32>>,
}

impl Sink {
    fn sum(&self, call: &Call, name: &LeaseName, (offset, length): (u64, u64)) -> Result<u32, StaleLease> {
        let end = offset.checked_add(length).ok_or(StaleLease::OutOfRange)?;
        let client = call.session().client;
        if call.operation() == READ {
            let holder = self.holder.borrow();
            let held = holder.as_ref().ok_or(StaleLease::UnknownLender)?.hold_from(name, client)?;
            return held.crc32c(0, offset as usize..end as usize);
        }
        let pinned = self.mapper.borrow().pin(name, client, offset..end)?;
        let sum = crc32c::append(0, &pinned.to_vec());
        if call.operation() == KEEP {
            self.kept.borrow_mut().push(pinned);
        }
        Ok(sum)
    }
}

impl Service for Sink {
    const INTERFACE: &'static Description = &Description {
        name: "sink/1",
        kinds: &["Thing"],
        rights: &[("read", Rights::READ)],
        operations: &[
            operation(READ, "read", Retry::Idempotent),
            operation(PIN, "pin", Retry::Idempotent),
            operation(KEEP, "keep", Retry::Cached),
            operation(KEPT, "kept", Retry::Idempotent),
            operation(DROP, "drop", Retry::Idempotent),
            operation(COUNT, "count", Retry::Never),
        ],
        details: Details::none,
    };

    async fn serve(&self, call: &mut Call) -> Response {
        self.served.set(self.served.get() + 1);
        if call.operation() == DROP {
            self.kept.borrow_mut().clear();
            return Response::default();
        }
        let sums: Result<Vec<u32>, StaleLease> = match call.operation() {
            KEPT => Ok(self.kept.borrow().iter().map(|pinned| crc32c::append(0, &pinned.to_vec())).collect()),
            _ => {
                let (words, _) = call.payload().as_chunks::<8>();
                let parts =
                    words.chunks_exact(2).map(|part| (u64::from_le_bytes(part[0]), u64::from_le_bytes(part[1])));
                call.leases().iter().zip(parts).map(|(name, part)| self.sum(call, name, part)).collect()
            }
        };
        match sums {
            Ok(sums) => {
                if call.operation() == COUNT {
                    self.counted.borrow_mut().extend(&sums);
                }
                let payload: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
                Response { payload: payload.into(), ..Response::default() }
            }
            Err(stale) => Response::failed(Failure::not_executed(stale.into())),
        }
    }
}

/// Byte `i` of a region.
pub fn byte(i: usize) -> u8 {
    (i % 251) as u8 ^ (i >> 12) as u8
}

pub fn sum_of(offset: usize, length: usize) -> u32 {
    crc32c::append(0, &(offset..offset + length).map(byte).collect::<Vec<u8>>())
}

/// A lender with a region.
pub struct Store {
    pub lender: Rc<RefCell<Lender>>,
    pub region: Region,
}

fn reader(region: &Region) -> RegionReader {
    RegionReader::open(region.fd().try_clone_to_owned().expect("dup"), region.id()).expect("a region")
}

fn table(of: BorrowedFd<'_>) -> SegmentReader {
    SegmentReader::open(of.try_clone_to_owned().expect("dup"), 1).expect("a table")
}

impl Store {
    fn new(number: u64) -> Store {
        let region = Region::create("store", RegionId(number), REGION_BYTES).expect("memory");
        region.copy_in(0, &(0..REGION_BYTES).map(byte).collect::<Vec<u8>>()).expect("it fits");
        let lender = Lender::new(LenderId(number), Epoch(1), 256).expect("memory for a table");
        Store { lender: Rc::new(RefCell::new(lender)), region }
    }

    pub fn lend(&self, to: Incarnation, offset: usize, length: usize) -> LeaseName {
        let (region, keep) = (self.region.id(), Rc::new(()));
        let lend = Lend { region, offset: offset as u64, length: length as u64, source: None, keep };
        self.lender.borrow_mut().lend(to, lend).expect("there is room")
    }

    pub fn take_back(&self, name: &LeaseName) {
        let _ = self.lender.borrow_mut().take_back(name.index, name.generation);
    }

    fn introduce(&self, holder: &mut Holder) {
        let lender = self.lender.borrow();
        let regions = [(self.region.id(), reader(&self.region))];
        holder.introduce(lender.id(), Epoch(1), table(lender.table_fd()), &regions, None).expect("a table");
    }

    fn introduce_to_mapper(&self, mapper: &mut Mapper) {
        let mut lender = self.lender.borrow_mut();
        let pins = PinSegment::create(HOST, Epoch(1), lender.id(), 256).expect("memory");
        lender.attach_pins(HOST, Epoch(1), table(pins.fd())).expect("a pin segment");
        let regions = [(self.region.id(), reader(&self.region))];
        mapper.introduce(lender.id(), Epoch(1), table(lender.table_fd()), &regions, pins, None).expect("a table");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Shared,
    Near,
    Socket,
    Tls,
}

/// A client, with what it can lend, and its host.
pub struct Ends {
    pub client: ClientSession,
    pub me: Incarnation,
    /// The client's own.
    pub own: Store,
    /// Somebody who lends to the client.
    pub other: Store,
    pub sink: Rc<Sink>,
    _host: Option<HostSession>,
    _listening: Option<Host>,
}

/// A host that listens.
pub struct Host {
    pub address: SocketAddr,
    pub intake: Pool,
    listening: JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.listening.cancel();
    }
}

/// A sink that takes in what comes over sockets.
pub fn sink() -> (Rc<Sink>, Lending, Pool) {
    let sink: Rc<Sink> = Rc::default();
    let region = Region::create("intake", RegionId(900), INTAKE_BYTES).expect("memory");
    let pool = Pool::new(region, 4096);
    let intake = Intake::new(pool.clone()).expect("memory");
    let mut holder = Holder::new(HOST);
    holder.take_in(intake.arrivals().clone());
    sink.mapper.borrow_mut().take_in(intake.arrivals().clone());
    sink.holder.replace(Some(holder));
    let lender = Lender::new(LenderId(700), Epoch(1), 16).expect("memory for a table");
    let lending = Lending::new(Rc::new(RefCell::new(lender)), []).with_intake(intake);
    (sink, lending, pool)
}

impl Host {
    pub fn start(
        sink: &Rc<Sink>,
        lending: Option<Lending>,
        intake: Pool,
        keys: Option<Keys>,
        options: Options,
    ) -> Host {
        let listener = match keys {
            None => Listener::bind("127.0.0.1:0".parse().expect("an address")).expect("loopback"),
            Some(keys) => Listener::bind_secured("127.0.0.1:0".parse().expect("an address"), keys).expect("loopback"),
        };
        let address = listener.address();
        let last = Cell::new(0);
        let admit = move |_: &Peer, _: &_| {
            last.set(last.get() + 1);
            Some((root(), info(last.get())))
        };
        Host { address, intake, listening: runtime::spawn(listener.serve(sink.clone(), lending, options, admit)) }
    }
}

/// What a client can lend: its own, and what the other one has lent to it.
pub fn offering(own: &Store, other: &Store, me: Incarnation) -> Offering {
    let mut holder = Holder::new(me);
    other.introduce(&mut holder);
    let (own, holder) = (Lending::new(own.lender.clone(), [reader(&own.region)]), Rc::new(RefCell::new(holder)));
    Offering { own, holder, holders: [me, HOST] }
}

pub fn stores() -> (Store, Store) {
    (Store::new(50), Store::new(60))
}

impl Ends {
    pub async fn over(carrier: Carrier) -> Ends {
        let authority = (carrier == Carrier::Tls).then(Authority::new);
        match carrier {
            Carrier::Shared | Carrier::Near => Ends::sharing(carrier),
            Carrier::Socket | Carrier::Tls => {
                let (sink, lending, pool) = sink();
                let keys = authority.as_ref().map(|of| of.keys("b"));
                let host = Host::start(&sink, Some(lending), pool, keys, Options::default());
                let remote = called(host.address, authority.as_ref());
                Ends::dialled(remote, sink, Some(host), Options::default()).await
            }
        }
    }

    /// With a host that is there.
    pub async fn dialled(remote: Remote, sink: Rc<Sink>, host: Option<Host>, options: Options) -> Ends {
        let ((own, other), me) = (stores(), info(1).client);
        let client = loop {
            let cargo = Cargo { landing: None, offering: Some(offering(&own, &other, me)) };
            match dial::connect_carrying(remote.clone(), Sink::INTERFACE.name, SHAPE, options, cargo).await {
                Ok(client) => break client,
                // A relay has cut it.
                Err(dial::DialError::Io(..)) => {}
                Err(error) => panic!("{error}"),
            }
        };
        Ends { client, me, own, other, sink, _host: None, _listening: host }
    }

    fn sharing(carrier: Carrier) -> Ends {
        let ((own, other), sink) = (stores(), Rc::<Sink>::default());
        let mut holder = Holder::new(HOST);
        for store in [&own, &other] {
            store.introduce(&mut holder);
            store.introduce_to_mapper(&mut sink.mapper.borrow_mut());
        }
        let (info, me) = (info(1), info(1).client);
        holder.lends(own.lender.borrow().id(), me);
        sink.holder.replace(Some(holder));
        let (client, host) = if carrier == Carrier::Near {
            session::in_process(SHAPE, root(), sink.clone(), info, None)
        } else {
            let offer = Offer::new(SHAPE).expect("a segment");
            let segment = offer.fd().try_clone_to_owned().expect("dup");
            let (id, epoch) = (info.id, info.epoch);
            let host = HostSession::start(segment, root(), sink.clone(), info, None).expect("opened");
            let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
            (offer.open(segment, id, epoch).expect("opened"), host)
        };
        Ends { client, me, own, other, sink, _host: Some(host), _listening: None }
    }

    pub async fn sums(&self, operation: u16, leases: &[(LeaseName, (usize, usize))]) -> Result<Vec<u32>, Failure> {
        sums(&self.client, operation, leases).await
    }

    /// Memory of the host that nobody uses.
    pub fn intake(&self) -> Option<usize> {
        self._listening.as_ref().map(|host| host.intake.free())
    }
}

/// What the host says of these parts of these leases.
pub async fn sums(
    client: &ClientSession,
    operation: u16,
    leases: &[(LeaseName, (usize, usize))],
) -> Result<Vec<u32>, Failure> {
    let names: Vec<LeaseName> = leases.iter().map(|(name, _)| *name).collect();
    let words = leases.iter().flat_map(|(_, (offset, length))| [*offset as u64, *length as u64]);
    let payload: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let request = Request {
        operation,
        handle: client.root(),
        payload: &payload,
        capabilities: &[],
        leases: &names,
        deadline: None,
        retry: if operation == COUNT { Retry::Never } else { Retry::Idempotent },
    };
    let reply = client.call(request).await?;
    Ok(reply.payload.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
}

/// This address, as somebody calls it who has keys or not.
pub fn called(address: SocketAddr, authority: Option<&Authority>) -> Remote {
    match authority {
        None => address.into(),
        Some(of) => Remote::node((Ipv4Addr::LOCALHOST, address.port()).into(), node("b"), of.keys("a")),
    }
}

/// Not executed.
pub fn no(cause: Cause) -> Failure {
    Failure::not_executed(cause)
}

/// Waits until it is so. The watchdog is the limit.
pub async fn until(so: impl Fn() -> bool) {
    while !so() {
        runtime::sleep(Duration::from_millis(1)).await;
    }
}
