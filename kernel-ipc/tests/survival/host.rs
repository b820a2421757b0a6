//! The host, in a process of its own that can be killed, and who keeps what it leaves.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::lease::{Lend, Lender};
use kernel_ipc::ledger::Records;
use kernel_ipc::runtime::{self, Waiting};
use kernel_ipc::session::{
    Call, ClientSession, ComponentLedger, Grant, Heritage, HostSession, Ledgers, Offer, Request, Response, Service,
    SessionInfo,
};
use kernel_ipc::sys::segment::{self, SegmentWriter};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, Handle, Incarnation, LenderId, RegionId, Rights, SessionId};

use super::common::run_waiting;

/// Added by a handler that sleeps for a second before: longer than it takes to end its host.
pub const LONG: u64 = 6_000_699;
const ROLE: &str = "ATOLL_TEST_SURVIVING_HOST";
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
    ],
    details: Details::none,
};

#[derive(Default)]
pub struct Adder {
    list: RefCell<Vec<u64>>,
    records: RefCell<Option<ComponentLedger>>,
    lender: RefCell<Option<Rc<RefCell<Lender>>>>,
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
        let n = number(call.payload());
        if n.is_multiple_of(3) {
            // So that calls are answered out of order, and some are in the middle when the host dies.
            let pause = if n == LONG { Duration::from_secs(1) } else { Duration::from_micros(n % 700) };
            runtime::sleep(pause).await;
        }
        match call.operation() {
            ADD | ADD_ONCE => {
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
/// "EPOCH C-SEGMENT LEDGER RING LEASES TABLE".
#[test]
fn host_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.split(' ');
    let epoch: u64 = words.next().unwrap().parse().unwrap();
    let mut open = || -> OwnedFd {
        let path = words.next().unwrap();
        std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the keeper's memory").into()
    };
    let (client_segment, session, ring, leases, table) = (open(), open(), open(), open(), open());
    run_waiting(Waiting::Adaptive, async {
        let adder: Rc<Adder> = Rc::default();
        let (lender, info) = (lender(epoch, leases, table), info(1, "test", epoch));
        adder.lender.replace(Some(lender.clone()));
        let memory = SegmentWriter::open_kept(ring).unwrap();
        let host = if epoch == 1 {
            let component = Rc::new(RefCell::new(Records::create(memory).unwrap()));
            adder.records.replace(Some(component.clone()));
            let ledgers = Ledgers { session, component: Some(component) };
            HostSession::start_surviving(client_segment, root(), adder, info, Some(lender), ledgers)
        } else {
            let (records, found) = Records::recover(memory).expect("a good ring");
            let mut committed: HashMap<u16, u64> = HashMap::new();
            for record in &found {
                adder.list.borrow_mut().push(number(&record.effect));
                if let Some((_, slot, seq)) = record.call {
                    let last = committed.entry(slot).or_default();
                    *last = seq.max(*last);
                }
            }
            let component = Rc::new(RefCell::new(records));
            let committed = |slot| committed.get(&slot).copied().unwrap_or_default();
            let heritage = Heritage::check(session, SessionId(1), committed, None).expect("a good ledger");
            HostSession::go_on(client_segment, heritage, adder, info, Some(lender), Some(component))
        }
        .expect("a session");
        let mut out = std::io::stdout();
        writeln!(out, "\nsegment {}", path(host.fd().expect("shared memory"))).expect("a reader");
        out.flush().expect("a reader");
        // Until it is killed, or its parent is gone.
        let input = std::io::stdin();
        let mut fds = [nix::poll::PollFd::new(input.as_fd(), nix::poll::PollFlags::POLLIN)];
        while nix::poll::poll(&mut fds, 0u16).expect("poll") == 0 {
            runtime::sleep(Duration::from_millis(20)).await;
        }
    });
    std::process::exit(0);
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
    epoch: Cell<u64>,
    host: RefCell<Option<Child>>,
    /// The host's, to look at beside its client.
    pub segment: RefCell<Option<File>>,
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
            epoch: Cell::new(0),
            host: RefCell::new(None),
            segment: RefCell::new(None),
        }
    }

    /// Starts the next incarnation with the client's segment; gives the host's.
    fn start(&self, segment: BorrowedFd<'_>) -> OwnedFd {
        self.epoch.set(self.epoch.get() + 1);
        // The run before has taken the right to open the table for writing from everybody, its next run included, which a
        // keeper hands a descriptor.
        let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
        nix::sys::stat::fchmod(&self.table, mode).expect("own memory");
        let kept = [&self.session, &self.ring, &self.leases, &self.table].map(|memory| path(memory.as_fd()));
        let role = [&[self.epoch.get().to_string(), path(segment)], &kept[..]].concat().join(" ");
        let mut child = Command::new(std::env::current_exe().expect("own program"))
            .args(["--exact", "host::host_process", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
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

    pub fn open(&self) -> ClientSession {
        let offer = Offer::new(Shape::default()).unwrap();
        let segment = self.start(offer.fd());
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
        client.suspend();
        self.resume(client, client.offer().unwrap());
    }

    /// Starts the next host for a client that is suspended.
    pub fn resume(&self, client: &ClientSession, offer: Offer) {
        let segment = self.start(offer.fd());
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
