//! Sessions that outlive their host: this test program starts itself again as the host, kills it at random moments, and
//! gives the next one what a keeper would. Every call is answered, and each effect is there exactly once.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use common::{run, run_waiting};
use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::ledger::Records;
use kernel_ipc::runtime::{self, Waiting};
use kernel_ipc::session::{
    Call, ClientSession, Grant, Heritage, HostSession, Ledgers, Messages, Offer, Request, Response, Service,
    SessionInfo,
};
use kernel_ipc::sys::segment::{self, SegmentWriter};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Cause, Epoch, Executed, Handle, Incarnation, Rights, SessionId};

/// Added by a handler that sleeps for a second before: longer than it takes to end its host.
const LONG: u64 = 6_000_699;
const ROLE: &str = "ATOLL_TEST_SURVIVING_HOST";
const RING: usize = 16 << 20;
/// Where a segment says how many messages its side has published.
const TAIL: u64 = 64;

/// Appends the number in the payload to the host's list; answers with where it stands.
const ADD: u16 = 1;
/// Grants an object of the number in the payload.
const OPEN: u16 = 2;
/// The object's number.
const READ: u16 = 3;
/// As `ADD`, but never sent again.
const ADD_ONCE: u16 = 4;
/// All of the list from a place on.
const LIST: u16 = 5;
/// Fails, without an effect.
const FAIL: u16 = 6;

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
    ],
    details: Details::none,
};

#[derive(Default)]
struct Adder {
    list: RefCell<Vec<u64>>,
    records: RefCell<Option<kernel_ipc::session::ComponentLedger>>,
}

fn number(payload: &[u8]) -> u64 {
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
            OPEN => {
                let grant = Grant { object: [n, 0], kind: 1, rights: Rights::READ, badge: n };
                Response { grants: vec![grant], ..Response::default() }
            }
            READ => {
                Response { payload: call.target().object[0].to_le_bytes().as_slice().into(), ..Response::default() }
            }
            LIST => {
                let list = self.list.borrow();
                let page = list.iter().skip(n as usize).take(400).flat_map(|n| n.to_le_bytes());
                Response { payload: page.collect::<Vec<u8>>().into(), ..Response::default() }
            }
            _ => Response { operation_error: Some(42), ..Response::default() },
        }
    }
}

fn info(epoch: u64) -> SessionInfo {
    SessionInfo {
        id: SessionId(1),
        epoch: Epoch(epoch),
        client: Incarnation(1),
        client_name: "test".into(),
        attenuation: serde_json::Value::Null,
    }
}

/// The host's program, when this test program is started as one: told by its environment "EPOCH C-SEGMENT LEDGER RING".
#[test]
fn host_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.split(' ');
    let epoch: u64 = words.next().unwrap().parse().unwrap();
    let mut open = || -> OwnedFd {
        let path = words.next().unwrap();
        std::fs::OpenOptions::new().read(true).write(true).open(path).expect("the keeper's memory").into()
    };
    let (client_segment, session, ring) = (open(), open(), open());
    run_waiting(Waiting::Adaptive, async {
        let adder: Rc<Adder> = Rc::default();
        let memory = SegmentWriter::open_kept(ring).unwrap();
        let host = if epoch == 1 {
            let component = Rc::new(RefCell::new(Records::create(memory).unwrap()));
            adder.records.replace(Some(component.clone()));
            let ledgers = Ledgers { session, component: Some(component) };
            let root = Grant { object: [0, 0], kind: 1, rights: Rights::READ, badge: 0 };
            HostSession::start_surviving(client_segment, root, adder, info(epoch), None, ledgers)
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
            HostSession::go_on(client_segment, heritage, adder, info(epoch), None, Some(component))
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

/// What a keeper and a supervisor do for one session.
struct Node {
    session: OwnedFd,
    ring: OwnedFd,
    epoch: Cell<u64>,
    host: RefCell<Option<Child>>,
    /// The host's, to look at beside its client.
    segment: RefCell<Option<File>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    fn new() -> Node {
        let memory = |bytes| {
            let fd = segment::memfd("ledger").unwrap();
            segment::set_len(&fd, bytes).unwrap();
            fd
        };
        Node {
            session: memory(Ledgers::BYTES),
            ring: memory(Records::<SegmentWriter>::bytes(RING)),
            epoch: Cell::new(0),
            host: RefCell::new(None),
            segment: RefCell::new(None),
        }
    }

    /// Starts the next incarnation with the client's segment; gives the host's.
    fn start(&self, segment: BorrowedFd<'_>) -> OwnedFd {
        self.epoch.set(self.epoch.get() + 1);
        let role = [self.epoch.get().to_string(), path(segment), path(self.session.as_fd()), path(self.ring.as_fd())]
            .join(" ");
        let mut child = Command::new(std::env::current_exe().expect("own program"))
            .args(["--exact", "host_process", "--nocapture"])
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

    fn open(&self) -> ClientSession {
        let offer = Offer::new(Shape::default()).unwrap();
        let segment = self.start(offer.fd());
        offer.open_surviving(segment, SessionId(1), Epoch(self.epoch.get())).expect("a session")
    }

    fn kill(&self) {
        if let Some(mut host) = self.host.take() {
            host.kill().expect("own child");
            host.wait().expect("own child");
        }
    }

    /// Kills the host and starts the next one, as the session's client sees it.
    fn replace(&self, client: &ClientSession) {
        self.kill();
        client.suspend();
        let offer = client.offer().unwrap();
        let segment = self.start(offer.fd());
        client.resume(offer, segment, Epoch(self.epoch.get())).expect("the session goes on");
    }
}

fn request(handle: Handle, operation: u16, payload: &[u8]) -> Request<'_> {
    let retry = ADDER.operation(operation).unwrap().retry;
    Request { operation, handle, payload, capabilities: &[], leases: &[], deadline: None, retry }
}

async fn list(client: &ClientSession) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let from = (all.len() as u64).to_le_bytes();
        let reply = client.call(request(client.root(), LIST, &from)).await.expect("idempotent");
        if reply.payload.is_empty() {
            return all;
        }
        all.extend(reply.payload.chunks_exact(8).map(number));
    }
}

fn kills() -> u32 {
    std::env::var("ATOLL_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(30)
}

#[test]
fn no_call_is_lost_and_none_runs_twice_however_often_the_host_is_killed() {
    run(async {
        let node = Rc::new(Node::new());
        let client = node.open();
        let stop = Rc::new(Cell::new(false));
        let answers = Rc::new(RefCell::new(HashMap::new()));
        let next = Rc::new(Cell::new(1u64));
        let callers: Vec<_> = (0..12)
            .map(|_| {
                let (client, stop, answers, next) = (client.clone(), stop.clone(), answers.clone(), next.clone());
                runtime::spawn(async move {
                    while !stop.get() && next.get() < 100_000 {
                        let n = next.replace(next.get() + 1);
                        let reply = client.call(request(client.root(), ADD, &n.to_le_bytes())).await.expect("answered");
                        assert_eq!(number(&reply.payload[8..16]), n);
                        assert!(answers.borrow_mut().insert(n, number(&reply.payload[..8])).is_none());
                        runtime::sleep(Duration::from_millis(2)).await;
                    }
                })
            })
            .collect();
        for kill in 0..kills() {
            runtime::sleep(Duration::from_micros(u64::from(kill * 7919 % 9000))).await;
            node.replace(&client);
        }
        stop.set(true);
        for caller in callers {
            caller.await.expect("not cancelled");
        }
        let list = list(&client).await;
        let answers = answers.borrow();
        assert_eq!(list.len(), answers.len(), "as many effects as answered calls");
        for (at, n) in list.iter().enumerate() {
            assert_eq!(answers.get(n), Some(&(at as u64)), "the effect of {n} is where its answer says");
        }
    });
}

#[test]
fn messages_that_nobody_waits_for_happen_once_each_however_often_the_host_is_killed() {
    run(async {
        let node = Rc::new(Node::new());
        let client = node.open();
        let stop = Rc::new(Cell::new(false));
        let sender = runtime::spawn({
            let (client, stop) = (client.clone(), stop.clone());
            async move {
                let mut sent = 0u64;
                while !stop.get() && sent < 50_000 {
                    sent += 1;
                    client.post(request(client.root(), ADD, &sent.to_le_bytes())).await.expect("sent");
                    if sent.is_multiple_of(16) {
                        runtime::sleep(Duration::from_millis(1)).await;
                    }
                }
                sent
            }
        });
        for kill in 0..kills() {
            runtime::sleep(Duration::from_micros(u64::from(kill * 7919 % 9000))).await;
            node.replace(&client);
        }
        stop.set(true);
        let sent = sender.await.expect("not cancelled");
        assert_eq!(client.settled().await, Messages { under_way: 0, done: sent, failed: 0 });
        let mut list = list(&client).await;
        list.sort_unstable();
        assert_eq!(list, (1..=sent).collect::<Vec<u64>>());
    });
}

#[test]
fn handles_are_valid_across_deaths_and_released_ones_stay_gone() {
    run(async {
        let node = Node::new();
        let client = node.open();
        let mut handles = Vec::new();
        for n in 1..=6u64 {
            let reply = client.call(request(client.root(), OPEN, &n.to_le_bytes())).await.expect("granted");
            handles.push((n, reply.capabilities[0]));
            if n == 3 {
                client.release_handle(handles.remove(0).1);
            }
            node.replace(&client);
            for (n, handle) in &handles {
                let reply = client.call(request(*handle, READ, b"")).await.expect("still granted");
                assert_eq!(number(&reply.payload), *n);
            }
        }
        let stale = client.call(request(Handle { index: 1, generation: 1 }, READ, b"")).await.unwrap_err();
        assert_eq!((stale.cause, stale.executed), (Cause::StaleHandle, Executed::No));
    });
}

#[test]
fn what_may_not_run_twice_says_that_nobody_knows() {
    run(async {
        let node = Node::new();
        let client = node.open();
        // Sleeps in its handler when the host dies.
        let call = |n: u64| {
            let client = client.clone();
            runtime::spawn(async move { client.call(request(client.root(), ADD_ONCE, &n.to_le_bytes())).await })
        };
        let begun = call(LONG);
        runtime::yield_now().await;
        client.call(request(client.root(), READ, b"")).await.expect("so the call before it was read");
        node.replace(&client);
        let failure = begun.await.expect("not cancelled").unwrap_err();
        assert_eq!((failure.cause, failure.executed), (Cause::PeerDied, Executed::Unknown));
        // One that is refused did not run, and says so again after a death.
        let reply = client.call(request(client.root(), FAIL, b"")).await.expect("an answer");
        assert_eq!(reply.operation_error, Some(42));
    });
}

/// No interface of the tree has an operation that may not be sent again, and every other answer can be had once more: only here does
/// it matter that the old segment is looked at.
#[test]
fn an_answer_that_stood_in_the_dead_hosts_segment_is_delivered() {
    run(async {
        let node = Node::new();
        let client = node.open();
        let answers = || {
            let mut published = [0; 8];
            let segment = node.segment.borrow();
            segment.as_ref().expect("it is open").read_exact_at(&mut published, TAIL).expect("the host's segment");
            u64::from_le_bytes(published)
        };
        let before = answers();
        let called = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(client.root(), ADD_ONCE, &1u64.to_le_bytes())).await }
        });
        runtime::yield_now().await;
        runtime::yield_now().await;
        // This thread does nothing else, so nobody takes the answer before the host is dead.
        while answers() == before {
            std::thread::sleep(Duration::from_millis(1));
        }
        node.replace(&client);
        let reply = called.await.expect("not cancelled").expect("it was answered");
        assert_eq!((number(&reply.payload[..8]), number(&reply.payload[8..16])), (0, 1));
    });
}

#[test]
fn a_host_that_is_not_started_again_ends_the_session() {
    run(async {
        let node = Node::new();
        let client = node.open();
        let waits = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(client.root(), ADD, &LONG.to_le_bytes())).await }
        });
        client.call(request(client.root(), READ, b"")).await.expect("so the call before it was read");
        node.kill();
        client.suspend();
        let late = runtime::spawn({
            let client = client.clone();
            async move {
                let deadline = Some(Duration::from_millis(20));
                client.call(Request { deadline, ..request(client.root(), ADD, b"") }).await
            }
        });
        let failure = late.await.expect("not cancelled").unwrap_err();
        assert_eq!((failure.cause, failure.executed), (Cause::Deadline, Executed::No), "it never went out");
        client.give_up();
        let failure = waits.await.expect("not cancelled").unwrap_err();
        assert_eq!((failure.cause, failure.executed), (Cause::PeerDied, Executed::Unknown));
        let failure = client.call(request(client.root(), READ, b"")).await.unwrap_err();
        assert_eq!((failure.cause, failure.executed), (Cause::StaleEpoch, Executed::No));
    });
}
