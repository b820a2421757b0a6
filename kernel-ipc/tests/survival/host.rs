//! The host, in a process of its own that can be killed, and who keeps what it leaves.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::lease::{Lend, Lender, Mapper, Pool, Region};
use kernel_ipc::ledger::Records;
use kernel_ipc::link::socket::bulk::arrive::Intake;
use kernel_ipc::link::socket::bulk::offer::Offering;
use kernel_ipc::link::socket::bulk::serve::Lending;
use kernel_ipc::link::socket::dial::{self, Cargo};
use kernel_ipc::link::socket::listen::{Admitted, Awaited, KeptSession, Listener, Options, Peer};
use kernel_ipc::runtime::{self, Waiting};
use kernel_ipc::session::{
    Call, ClientSession, ComponentLedger, Grant, Heritage, HostSession, Ledgers, Offer, Request, Response, Served,
    Service, SessionInfo,
};
use kernel_ipc::sys::segment::{self, SegmentWriter};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, Failure, Handle, Incarnation, LenderId, RegionId, Rights, SessionId};

use super::common::run_waiting;

/// Added by a handler that sleeps for a second before: longer than it takes to end its host.
pub const LONG: u64 = 6_000_699;
const ROLE: &str = "ATOLL_TEST_SURVIVING_HOST";
/// In the place of a client's segment.
const BEYOND: &str = "beyond";
const RING: usize = 16 << 20;

/// Appends the number in the payload to the host's list; answers with where it stands.
pub const ADD: u16 = 1;
/// Grants an object of the number in the payload.
pub const OPEN: u16 = 2;
/// The object's number.
pub const READ: u16 = 3;
/// As `ADD`, but never sent again.
pub const ADD_ONCE: u16 = 4;
/// All of the list from a place on.
pub const LIST: u16 = 5;
/// Fails, without an effect.
pub const FAIL: u16 = 6;
/// Lends a page.
pub const LEND: u16 = 7;
/// As `ADD`; the number is in the lease that comes with it.
pub const ADD_LEASED: u16 = 9;
/// Whether the lease at an index, of a generation, is out.
pub const IS_LENT: u16 = 8;

const fn operation(number: u16, name: &'static str, retry: Retry) -> Operation {
    Operation {
        number,
        name,
        target_kind: 1,
        requires: Rights::READ,
        retry,
        deadline: None,
        at_once: false,
        handles: &[],
        signature: "",
    }
}

const ADDER: Description = Description {
    name: "adder/1",
    kinds: &["List"],
    rights: &[("read", Rights::READ)],
    operations: &[
        operation(ADD, "add", Retry::Cached),
        operation(OPEN, "open", Retry::Cached),
        operation(READ, "read", Retry::Idempotent),
        operation(ADD_ONCE, "add_once", Retry::Never),
        operation(LIST, "list", Retry::Idempotent),
        operation(FAIL, "fail", Retry::Cached),
        operation(LEND, "lend", Retry::Cached),
        operation(IS_LENT, "is_lent", Retry::Idempotent),
        operation(ADD_LEASED, "add_leased", Retry::Cached),
    ],
    details: Details::none,
};

#[derive(Default)]
pub struct Adder {
    list: RefCell<Vec<u64>>,
    records: RefCell<Option<ComponentLedger>>,
    lender: RefCell<Option<Rc<RefCell<Lender>>>>,
    mapper: RefCell<Mapper>,
}

/// The host's lender, and how much it may lend.
const LENDER: LenderId = LenderId(7);
pub const LEASES: u32 = 64;
const PAGE: u64 = 4096;

pub fn number(payload: &[u8]) -> u64 {
    payload.try_into().map(u64::from_le_bytes).unwrap_or_default()
}

impl Service for Adder {
    const INTERFACE: &'static Description = &ADDER;

    async fn serve(&self, call: &mut Call) -> Response {
        let n = match (call.operation(), call.lease(0)) {
            (ADD_LEASED, Some(lease)) => {
                let client = call.session().client;
                match self.mapper.borrow().pin(&lease, client, lease.length - 8..lease.length) {
                    Ok(pinned) => number(&pinned.to_vec()),
                    Err(stale) => return Response::failed(Failure::not_executed(stale.into())),
                }
            }
            _ => number(call.payload()),
        };
        if n.is_multiple_of(3) {
            // So that calls are answered out of order, and some are in the middle when the host dies.
            let pause = if n == LONG { Duration::from_secs(1) } else { Duration::from_micros(n % 700) };
            runtime::sleep(pause).await;
        }
        match call.operation() {
            ADD | ADD_ONCE | ADD_LEASED => {
                let at = self.list.borrow().len() as u64;
                self.list.borrow_mut().push(n);
                call.effect(n.to_le_bytes().to_vec());
                // Long enough for the window.
                let payload = [at.to_le_bytes(), n.to_le_bytes(), at.to_le_bytes()].concat();
                Response { payload: payload.into(), ..Response::default() }
            }
            OPEN => Response { grants: vec![Grant { object: [n, 0], ..root() }], ..Response::default() },
            READ => {
                Response { payload: call.target().object[0].to_le_bytes().as_slice().into(), ..Response::default() }
            }
            LIST => {
                let list = self.list.borrow();
                let page = list.iter().skip(n as usize).take(400).flat_map(|n| n.to_le_bytes());
                Response { payload: page.collect::<Vec<u8>>().into(), ..Response::default() }
            }
            LEND => {
                let (region, offset) = (RegionId(1), n * PAGE);
                let lend = Lend { region, offset, length: PAGE, source: None, keep: Rc::new(()) };
                Response { lends: vec![lend], ..Response::default() }
            }
            IS_LENT => {
                let (index, generation) = (n as u32, (n >> 32) as u32);
                let lender = self.lender.borrow().clone().expect("it lends");
                let lent = lender.borrow().locate(call.session().client, index, generation).is_ok();
                Response { payload: [u8::from(lent)].as_slice().into(), ..Response::default() }
            }
            _ => Response { operation_error: Some(42), ..Response::default() },
        }
    }
}

/// The session of this number; its client is the incarnation of the same one.
pub fn info(id: u64, client_name: &str, epoch: u64) -> SessionInfo {
    SessionInfo {
        id: SessionId(id),
        epoch: Epoch(epoch),
        client: Incarnation(id),
        client_name: client_name.into(),
        attenuation: serde_json::Value::Null,
    }
}

/// The first capability of every session.
pub fn root() -> Grant {
    Grant { object: [0, 0], kind: 1, rights: Rights::READ | Rights::GRANT, badge: 0 }
}

/// The lender of this epoch: the first, or the one that follows it.
pub fn lender(epoch: u64, leases: OwnedFd, table: OwnedFd) -> Rc<RefCell<Lender>> {
    let lender = match epoch {
        1 => Lender::surviving(LENDER, Epoch(1), LEASES, leases, table).expect("fresh"),
        _ => Lender::follow(LENDER, Epoch(epoch), LEASES, leases, table).expect("a good ledger").0,
    };
    Rc::new(RefCell::new(lender))
}

/// The host's program, when this test program is started as one: told by its environment
/// "EPOCH C-SEGMENT LEDGER RING LEASES TABLE", or in the place of a segment [`BEYOND`]: then it listens on its standard input.
#[test]
fn host_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.split(' ');
    let epoch: u64 = words.next().unwrap().parse().unwrap();
    let mut open = || -> Option<OwnedFd> {
        let path = words.next().filter(|word| *word != BEYOND)?;
        Some(std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the keeper's memory").into())
    };
    let [client_segment, session, ring, leases, table] = [(); 5].map(|()| open());
    let [session, ring, leases, table] = [session, ring, leases, table].map(|memory| memory.expect("it is kept"));
    run_waiting(Waiting::Adaptive, async {
        let adder: Rc<Adder> = Rc::default();
        let (lender, info) = (lender(epoch, leases, table), info(1, "test", epoch));
        adder.lender.replace(Some(lender.clone()));
        let (component, committed) = follow(&adder, epoch, ring);
        let heritage = |memory: OwnedFd| {
            let committed = |slot| committed.get(&slot).copied().unwrap_or_default();
            Heritage::check(memory, SessionId(1), committed, None).expect("a good ledger")
        };
        let Some(client_segment) = client_segment else {
            return serve_beyond(adder, (component, session), info, heritage).await;
        };
        let host = if epoch == 1 {
            let ledgers = Ledgers { session, component: Some(component) };
            HostSession::start_surviving(client_segment, root(), adder, info, Some(lender), ledgers)
        } else {
            HostSession::go_on(client_segment, heritage(session), adder, info, Some(lender), Some(component))
        }
        .expect("a session");
        say(&format!("segment {}", path(host.fd().expect("shared memory"))));
        // Until it is killed, or its parent is gone.
        let input = std::io::stdin();
        let mut fds = [nix::poll::PollFd::new(input.as_fd(), nix::poll::PollFlags::POLLIN)];
        while nix::poll::poll(&mut fds, 0u16).expect("poll") == 0 {
            runtime::sleep(Duration::from_millis(20)).await;
        }
    });
    std::process::exit(0);
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\n{line}").expect("a reader");
    out.flush().expect("a reader");
}

/// The host's ring, and for each slot the last call that has a record in it.
fn follow(adder: &Adder, epoch: u64, ring: OwnedFd) -> (ComponentLedger, HashMap<u16, u64>) {
    let memory = SegmentWriter::open_kept(ring).unwrap();
    let mut committed: HashMap<u16, u64> = HashMap::new();
    let records = if epoch == 1 {
        Records::create(memory).unwrap()
    } else {
        let (records, found) = Records::recover(memory).expect("a good ring");
        for record in &found {
            adder.list.borrow_mut().push(number(&record.effect));
            if let Some((_, slot, seq)) = record.call {
                let last = committed.entry(slot).or_default();
                *last = seq.max(*last);
            }
        }
        records
    };
    let component = Rc::new(RefCell::new(records));
    adder.records.replace(Some(component.clone()));
    (component, committed)
}

/// Serves the one session over a socket, until it is killed, or its parent is gone.
async fn serve_beyond(
    adder: Rc<Adder>,
    (component, session): (ComponentLedger, OwnedFd),
    info: SessionInfo,
    heritage: impl Fn(OwnedFd) -> Heritage,
) {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).expect("a signal");
    let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("a listening socket");
    let again = move || session.try_clone().expect("a descriptor");
    let mut awaited = Vec::new();
    if !Heritage::is_blank(again()).expect("memory") {
        let heritage = heritage(again());
        let secret = heritage.note().expect("a note").try_into().expect("a secret");
        let (component, ended) = (Some(component.clone()), Box::new(|| ()));
        awaited.push(Awaited { info: info.clone(), heritage, component, secret, party: None, ended });
    }
    // Another one in each run: what had arrived died with the last.
    let intake = Region::create("intake", RegionId(2), 64 << 20).expect("memory");
    let intake = Intake::new(Pool::new(intake, 4096)).expect("memory");
    adder.mapper.borrow_mut().take_in(intake.arrivals().clone());
    let lending = adder.lender.borrow().clone().map(|lender| Lending::new(lender, []).with_intake(intake));
    let served = Served::from(adder);
    served.inherit(awaited.iter().map(|awaited| (awaited.info.clone(), &awaited.heritage)), None);
    let admit = move |_: &Peer, secret: &[u8; 32]| {
        let ledgers = Ledgers { session: again(), component: Some(component.clone()) };
        let kept = Some(KeptSession { ledgers, note: secret.to_vec(), ended: Box::new(|| ()) });
        Some(Admitted { root: root(), info: info.clone(), kept })
    };
    let listener = Listener::adopt(socket).expect("loopback");
    say("segment /dev/null");
    listener.serve_on(served, lending, Options::default(), awaited, admit).await;
}

fn path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}

/// What a keeper keeps.
pub fn memory(bytes: usize) -> OwnedFd {
    let fd = segment::memfd("ledger").unwrap();
    segment::set_len(&fd, bytes).unwrap();
    fd
}

/// What a keeper and a supervisor do for one session.
pub struct Node {
    session: OwnedFd,
    ring: OwnedFd,
    leases: OwnedFd,
    table: OwnedFd,
    /// Where its host listens, if its client is beyond a socket.
    listener: Option<TcpListener>,
    epoch: Cell<u64>,
    host: RefCell<Option<Child>>,
    /// The host's, to look at beside its client.
    pub segment: RefCell<Option<File>>,
    /// What a client beyond a socket can lend.
    pub offering: RefCell<Option<Offering>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    pub fn new() -> Node {
        Node {
            session: memory(Ledgers::BYTES),
            ring: memory(Records::<SegmentWriter>::bytes(RING)),
            leases: memory(Lender::ledger_bytes(LEASES)),
            table: memory(Lender::table_bytes(LEASES)),
            listener: None,
            epoch: Cell::new(0),
            host: RefCell::new(None),
            segment: RefCell::new(None),
            offering: RefCell::new(None),
        }
    }

    /// With a client beyond a socket.
    pub fn beyond() -> Node {
        let mut node = Node::new();
        node.listener = Some(TcpListener::bind("127.0.0.1:0").expect("loopback"));
        node
    }

    /// Starts the next incarnation with the client's segment, if it has one; gives the host's.
    fn start(&self, segment: Option<BorrowedFd<'_>>) -> OwnedFd {
        self.epoch.set(self.epoch.get() + 1);
        // The run before has taken the right to open the table for writing from everybody, its next run included, which a
        // keeper hands a descriptor.
        let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
        nix::sys::stat::fchmod(&self.table, mode).expect("own memory");
        let kept = [&self.session, &self.ring, &self.leases, &self.table].map(|memory| path(memory.as_fd()));
        let segment = segment.map_or_else(|| BEYOND.to_owned(), path);
        let role = [&[self.epoch.get().to_string(), segment], &kept[..]].concat().join(" ");
        let input = match &self.listener {
            Some(listener) => listener.try_clone().map(|listener| Stdio::from(OwnedFd::from(listener))),
            None => Ok(Stdio::piped()),
        };
        let mut child = Command::new(std::env::current_exe().expect("own program"))
            .args(["--exact", "host::host_process", "--nocapture"])
            .env(ROLE, role)
            .stdin(input.expect("a descriptor"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        self.host.replace(Some(child));
        let said =
            output.lines().map_while(Result::ok).find_map(|line| Some(line.strip_prefix("segment ")?.to_owned()));
        let segment = File::open(said.expect("the host says where its segment is")).expect("the host's segment");
        self.segment.replace(Some(segment.try_clone().expect("a descriptor")));
        segment.into()
    }

    pub async fn open(&self) -> ClientSession {
        if let Some(listener) = &self.listener {
            self.start(None);
            let address = listener.local_addr().expect("it listens");
            let cargo = Cargo { landing: None, offering: self.offering.borrow().clone() };
            let (shape, options) = (Shape::default(), Options::default());
            let session = dial::connect_carrying(address, ADDER.name, shape, options, cargo).await;
            return session.expect("a session");
        }
        let offer = Offer::new(Shape::default()).unwrap();
        let segment = self.start(Some(offer.fd()));
        offer.open_surviving(segment, SessionId(1), Epoch(self.epoch.get())).expect("a session")
    }

    pub fn kill(&self) {
        if let Some(mut host) = self.host.take() {
            host.kill().expect("own child");
            host.wait().expect("own child");
        }
    }

    /// Kills the host and starts the next one, as the session's client sees it.
    pub fn replace(&self, client: &ClientSession) {
        self.kill();
        if self.listener.is_some() {
            // The client finds out, and where the next one is.
            self.start(None);
            return;
        }
        client.suspend();
        self.resume(client, client.offer().unwrap());
    }

    /// Starts the next host for a client that is suspended.
    pub fn resume(&self, client: &ClientSession, offer: Offer) {
        let segment = self.start(Some(offer.fd()));
        client.resume(offer, segment, Epoch(self.epoch.get())).expect("the session goes on");
    }
}

pub fn request(handle: Handle, operation: u16, payload: &[u8]) -> Request<'_> {
    let retry = ADDER.operation(operation).unwrap().retry;
    Request { operation, handle, payload, capabilities: &[], leases: &[], deadline: None, retry }
}

pub fn kills() -> u32 {
    std::env::var("ATOLL_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(30)
}
