//! A service to test sessions with, and both ends of one.
#![allow(dead_code, reason = "each test uses its part")]

pub mod allocations;
pub mod frames;
pub mod random;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, HandleArgument, Operation, Retry};
use kernel_ipc::lease::{Lend, Lender};
use kernel_ipc::link::socket;
use kernel_ipc::runtime::{self, Options, Runtime, Waiting};
use kernel_ipc::session::{Call, ClientSession, Grant, HostSession, Offer, Request, Response, Service, SessionInfo};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Cause, Epoch, Executed, Failure, Handle, Incarnation, LenderId, RegionId, Rights, SessionId};

pub const ECHO: u16 = 1;
pub const OPEN: u16 = 2;
pub const HANG: u16 = 3;
pub const LEND: u16 = 4;
pub const WRITE: u16 = 5;
pub const JOIN: u16 = 6;
pub const FAIL: u16 = 7;
pub const BIG: u16 = 8;
pub const SLEEP: u16 = 9;
/// Keeps the whole thread for as many milliseconds as its byte says.
pub const BLOCK: u16 = 10;
/// Fails with the cause and the `executed` of which it has the numbers.
pub const REFUSE: u16 = 11;

const fn operation(number: u16, name: &'static str, requires: Rights) -> Operation {
    Operation {
        number,
        name,
        target_kind: 1,
        requires,
        retry: Retry::Idempotent,
        deadline: None,
        at_once: false,
        handles: &[],
        signature: "",
    }
}

pub const TEST: Description = Description {
    name: "test/1",
    kinds: &["Thing", "Other"],
    rights: &[("read", Rights::READ), ("write", Rights::WRITE)],
    operations: &[
        operation(ECHO, "echo", Rights::READ),
        operation(OPEN, "open", Rights::READ),
        operation(HANG, "hang", Rights::READ),
        operation(LEND, "lend", Rights::READ),
        operation(WRITE, "write", Rights::WRITE),
        Operation {
            handles: &[HandleArgument { name: "other", kind: 2, requires: Rights::WRITE }],
            ..operation(JOIN, "join", Rights::READ)
        },
        operation(FAIL, "fail", Rights::READ),
        operation(BIG, "big", Rights::READ),
        operation(SLEEP, "sleep", Rights::READ),
        operation(BLOCK, "block", Rights::READ),
        operation(REFUSE, "refuse", Rights::READ),
    ],
    details: Details::none,
};

/// Of every session's root.
pub const BADGE: u64 = 77;

/// What happened at the host.
#[derive(Default)]
pub struct Thing {
    pub served: Cell<u64>,
    pub begun: Cell<u64>,
    pub cancelled: Cell<u64>,
    pub dropped: RefCell<Vec<Grant>>,
    pub closed: Cell<u64>,
}

pub fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + n) as u8).collect()
}

impl Service for Thing {
    const INTERFACE: &'static Description = &TEST;

    async fn serve(&self, call: &mut Call) -> Response {
        self.begun.set(self.begun.get() + 1);
        // Whatever a session names, it reaches what that session was given.
        assert!(call.target().badge == BADGE || call.target().badge == call.session().id.get());
        let response = match call.operation() {
            ECHO => Response { payload: call.payload().into(), ..Response::default() },
            OPEN => {
                let kind = call.payload().first().copied().unwrap_or(1);
                let count = call.payload().get(1).copied().unwrap_or(1);
                let grant = |n| Grant {
                    object: [7, n],
                    kind,
                    rights: Rights::READ | Rights::WRITE,
                    badge: call.session().id.get(),
                };
                Response { grants: (0..u64::from(count)).map(grant).collect(), ..Response::default() }
            }
            HANG => {
                call.until_cancelled().await;
                self.cancelled.set(self.cancelled.get() + 1);
                // What it brings is for nobody.
                let grant = Grant { object: [3, 3], kind: 1, rights: Rights::READ, badge: 0 };
                Response { grants: vec![grant], ..Response::default() }
            }
            LEND => {
                let lend = Lend { region: RegionId(5), offset: 0, length: 4096, source: None, keep: Rc::new(()) };
                Response {
                    lends: vec![lend; call.payload().first().copied().unwrap_or(1).into()],
                    ..Response::default()
                }
            }
            JOIN => {
                let other = call.capability(0).expect("the session has checked it");
                Response { payload: other.object[1].to_le_bytes().as_slice().into(), ..Response::default() }
            }
            FAIL => Response { operation_error: Some(42), payload: call.payload().into(), ..Response::default() },
            BIG => Response { payload: bytes(5000).into(), ..Response::default() },
            SLEEP => {
                let millis = call.payload().first().copied().unwrap_or(1).into();
                runtime::sleep(Duration::from_millis(millis)).await;
                Response::default()
            }
            BLOCK => {
                let millis = call.payload().first().copied().unwrap_or(0).into();
                std::thread::sleep(Duration::from_millis(millis));
                Response::default()
            }
            REFUSE => {
                let (number, executed) = match call.payload() {
                    [number, executed] => (*number, *executed),
                    _ => (0, 0),
                };
                let cause = Cause::from_number(number.into(), 0).unwrap_or(Cause::BadArguments);
                Response::failed(Failure { cause, executed: Executed::from_number(executed) })
            }
            _ => Response::failed(Failure { cause: Cause::UnknownOperation, executed: Executed::No }),
        };
        self.served.set(self.served.get() + 1);
        response
    }

    fn dropped(&self, _: &SessionInfo, capability: &Grant) {
        self.dropped.borrow_mut().push(*capability);
    }

    fn closed(&self, _: &SessionInfo) {
        self.closed.set(self.closed.get() + 1);
    }
}

pub fn root() -> Grant {
    Grant { object: [1, 2], kind: 1, rights: Rights::READ, badge: BADGE }
}

pub fn info(id: u64) -> SessionInfo {
    SessionInfo {
        id: SessionId(id),
        epoch: Epoch(1),
        client: Incarnation(100 + id),
        client_name: "client".into(),
        attenuation: serde_json::Value::Null,
    }
}

pub fn lender() -> Rc<RefCell<Lender>> {
    Rc::new(RefCell::new(Lender::new(LenderId(50), Epoch(1), 1024).expect("memory for a table")))
}

/// Both ends of a session over shared memory, in this thread's runtime.
pub fn shm(shape: Shape, id: u64, thing: &Rc<Thing>, lender: &Rc<RefCell<Lender>>) -> (ClientSession, HostSession) {
    let offer = Offer::new(shape).expect("a segment");
    let segment = offer.fd().try_clone_to_owned().expect("dup");
    let host = HostSession::start(segment, root(), thing.clone(), info(id), Some(lender.clone())).expect("opened");
    let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
    (offer.open(segment, SessionId(id), Epoch(1)).expect("opened"), host)
}

/// The same over a connection through loopback, which nobody makes again.
pub fn over_socket(
    shape: Shape,
    id: u64,
    thing: &Rc<Thing>,
    lender: Option<Rc<RefCell<Lender>>>,
) -> (ClientSession, HostSession) {
    let (client, host) = socket::pair(shape).expect("loopback");
    let host = HostSession::over(host, root(), thing.clone(), info(id), lender);
    (ClientSession::over(client, HostSession::ROOT, info(id).id, info(id).epoch), host)
}

/// Runs a test in a runtime of its own, with a watchdog.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    run_waiting(Waiting::Adaptive, future)
}

pub fn run_waiting<T>(waiting: Waiting, future: impl Future<Output = T>) -> T {
    let runtime = Runtime::new(Options { waiting, ..Options::default() }).expect("io_uring");
    runtime.block_on(async { runtime::timeout(Duration::from_secs(600), future).await.expect("the watchdog barked") })
}

pub fn request(handle: Handle, operation: u16, payload: &[u8]) -> Request<'_> {
    Request { operation, handle, payload, capabilities: &[], leases: &[], deadline: None, retry: Retry::Idempotent }
}

/// Lets everything that is ready run, both ends' sources included.
pub async fn settle() {
    for _ in 0..10 {
        runtime::yield_now().await;
    }
    // The kernel brings loopback's bytes at once, unless it has been doing so for too long already.
    runtime::sleep(Duration::from_millis(1)).await;
    for _ in 0..10 {
        runtime::yield_now().await;
    }
}
