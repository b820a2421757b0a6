//! What a call may cost at most: system calls and allocations, counted.

mod common;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc;

use common::allocations::{Counting, allocations};
use common::*;
use kernel_ipc::interface::{Connect, Connection, Granted, NewCap, Object, OperationError, interface};
use kernel_ipc::runtime::{self, Options, Runtime, Signal, SystemCalls, Waiting, system_calls};
use kernel_ipc::session::{Call, ClientSession, HostSession, Offer, SessionInfo, in_process};
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Epoch, Rights, SessionId};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One operation.
#[interface("atoll.cost/1")]
pub trait Cost {
    /// Something to call.
    type Counter;

    /// Call it.
    const READ: Rights;

    /// Adds two numbers.
    #[op(1, requires = READ, retry = idempotent, deadline = "60s")]
    fn add(counter: Counter, a: u64, b: u64) -> Result<u64, CostError>;
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum CostError {
    /// The sum is no number.
    Overflow = 1,
}

struct Nothing;

impl Object for Nothing {
    type Kind = Counter;

    fn to_words(&self) -> [u64; 2] {
        [0; 2]
    }

    fn from_words(_: [u64; 2]) -> Self {
        Nothing
    }
}

#[derive(Default)]
struct Server {
    served: Rc<Cell<u64>>,
    closed: Rc<Signal>,
}

impl Handler for Server {
    type Counter = Nothing;

    async fn add(&self, _: &Call, _: Granted<Nothing>, a: u64, b: u64) -> Result<u64, CallError<CostError>> {
        self.served.set(self.served.get() + 1);
        Ok(a.checked_add(b).ok_or(CostError::Overflow)?)
    }

    fn closed(&self, _: &SessionInfo) {
        self.closed.raise();
    }
}

fn host(segment: OwnedFd, server: Server) -> HostSession {
    let root = NewCap::new(Nothing, Rights::READ).to_grant();
    HostSession::start(segment, root, Rc::new(Dispatcher(server)), info(1), None).expect("a session")
}

/// What a host's thread was asked to do, and what it needed for it.
struct Account {
    calls: u64,
    system_calls: SystemCalls,
    allocations: u64,
}

/// Serves one session to its end.
fn serve(waiting: Waiting, client_segment: OwnedFd, segment: &mpsc::Sender<OwnedFd>) -> Account {
    let runtime = Runtime::new(Options { waiting, ..Options::default() }).expect("a ring");
    runtime.block_on(async {
        let server = Server::default();
        let (served, closed) = (server.served.clone(), server.closed.clone());
        let session = host(client_segment, server);
        let before = (system_calls(), allocations());
        let fd = session.fd().expect("shared memory").try_clone_to_owned().expect("dup");
        segment.send(fd).expect("the client waits");
        closed.wait().await;
        let system_calls = system_calls().since(before.0);
        Account { calls: served.get(), system_calls, allocations: allocations() - before.1 }
    })
}

/// `calls` calls on `session`, `depth` at a time.
async fn call(session: ClientSession, calls: u64, depth: u64) {
    let client = Rc::new(Client::from_connection(Connection::fixed(session)));
    let callers: Vec<_> = (0..depth)
        .map(|number| {
            let client = client.clone();
            runtime::spawn(async move {
                for n in 0..calls / depth {
                    assert_eq!(client.add(client.root(), n, number).await, Ok(n + number));
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("not cancelled");
    }
}

/// The account of a host in a thread of its own that serves `calls`, `depth` outstanding.
fn account(waiting: Waiting, calls: u64, depth: u64) -> Account {
    let offer = Offer::new(Shape { slots: depth.max(16) as u16, ..Shape::default() }).expect("a segment");
    let client_segment = offer.fd().try_clone_to_owned().expect("dup");
    let (send, receive) = mpsc::channel();
    let host = std::thread::spawn(move || serve(waiting, client_segment, &send));
    let segment = receive.recv().expect("the host opens the session");
    run_waiting(waiting, async {
        let session = offer.open(segment, SessionId(1), Epoch(1)).expect("a session");
        call(session, calls, depth).await;
    });
    host.join().expect("the host does not panic")
}

#[test]
fn a_server_with_32_calls_outstanding_makes_a_quarter_of_a_system_call_for_each_at_most() {
    for waiting in [Waiting::Adaptive, Waiting::Block] {
        // The best of three: a client that the machine keeps from calling has not 32 outstanding.
        let accounts = (0..3).map(|_| account(waiting, 64_000, 32));
        let least = accounts.min_by_key(|account| account.system_calls.total()).expect("three");
        let each = least.system_calls.total() as f64 / least.calls as f64;
        println!("{waiting:?}: {each:.3} system calls for each call, {:?}", least.system_calls);
        assert_eq!(least.calls, 64_000);
        assert!(each <= 0.25, "{waiting:?}: {:?} for {} calls", least.system_calls, least.calls);
        assert!(each > 0.0, "nothing is counted");
    }
}

#[test]
fn a_call_allocates_nothing_on_either_side() {
    // Also one that sleeps. What a session allocates at its first calls is the same for many calls as for few, but for
    // vectors that grow with how many calls are found at once.
    let (few, many) = (account(Waiting::Block, 3_200, 32), account(Waiting::Block, 64_000, 32));
    let grown = many.allocations.saturating_sub(few.allocations);
    assert!(grown < 50, "{grown} allocations for {} calls more", many.calls - few.calls);

    run_waiting(Waiting::Spin, async {
        let offer = Offer::new(Shape::default()).expect("a segment");
        let host = host(offer.fd().try_clone_to_owned().expect("dup"), Server::default());
        let fd = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
        let shared = offer.open(fd, SessionId(1), Epoch(1)).expect("a session");
        let root = NewCap::new(Nothing, Rights::READ).to_grant();
        let service = Rc::new(Dispatcher(Server::default()));
        let (near, _host) = in_process(Shape::default(), root, service, info(2), None);
        for session in [shared, near] {
            let client = Client::from_connection(Connection::fixed(session));
            // So many that some went the long way in one process too: it makes its timer then.
            for n in 0..1000 {
                client.add(client.root(), n, 1).await.expect("added");
            }
            let before = (allocations(), system_calls());
            for n in 0..1000 {
                client.add(client.root(), n, 1).await.expect("added");
            }
            assert_eq!(allocations() - before.0, 0, "client and host together, in 1000 calls");
            assert_eq!(system_calls().since(before.1).total(), 0);
        }
    });
}
