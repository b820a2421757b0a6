//! A service that opens nodes, sooner or later, and both ends of a session with it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, HandleArgument, Operation, Retry};
use kernel_ipc::link::{Link, in_process, shm, socket};
use kernel_ipc::runtime::Changes;
use kernel_ipc::session::{self, Call, ClientSession, Grant, HostSession, Offer, Response, Service, SessionInfo};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Cause, Executed, Failure, Rights};

use super::common::{info, run};

/// Opens nodes: flags, kind, and how many.
pub const OPEN: u16 = 1;
/// The target's number.
pub const READ: u16 = 2;
/// The numbers of target and argument in one word, then the payload.
pub const JOIN: u16 = 3;
/// Needs a right that nothing here has.
pub const WRITE: u16 = 4;

/// Flags of an `OPEN`: it waits until the gate is open.
pub const WAITS: u8 = 1;
/// It does not hear that it is cancelled.
pub const DEAF: u8 = 2;

/// Kinds of what is opened.
pub const NODE: u8 = 1;
pub const OTHER: u8 = 2;
/// In the place of a kind: an error of the operation, and a failure.
pub const DENY: u8 = 3;
pub const REFUSE: u8 = 4;

/// Enough for a chain of calls.
pub const SHAPE: Shape = Shape { slots: 32, window_bytes: 4096 };

const fn operation(number: u16, name: &'static str, requires: Rights) -> Operation {
    Operation {
        number,
        name,
        target_kind: NODE,
        requires,
        retry: Retry::Cached,
        deadline: None,
        at_once: false,
        handles: &[],
        signature: "",
    }
}

const TREE: Description = Description {
    name: "tree/1",
    kinds: &["Node", "Other"],
    rights: &[("read", Rights::READ), ("write", Rights::WRITE)],
    operations: &[
        operation(OPEN, "open", Rights::READ),
        operation(READ, "read", Rights::READ),
        Operation {
            handles: &[HandleArgument { name: "other", kind: NODE, requires: Rights::READ }],
            ..operation(JOIN, "join", Rights::READ)
        },
        operation(WRITE, "write", Rights::WRITE),
    ],
    details: Details::none,
};

#[derive(Default)]
pub struct Tree {
    begun: RefCell<Vec<u16>>,
    dropped: Cell<u64>,
    /// How deep each object is below the root, by its number.
    depths: RefCell<Vec<u64>>,
    is_open: Cell<bool>,
    gate: Changes,
}

impl Tree {
    /// The operations that were begun.
    pub fn begun(&self) -> Vec<u16> {
        self.begun.borrow().clone()
    }

    /// Capabilities that are gone.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    pub fn last_object(&self) -> u64 {
        self.depths.borrow().len() as u64
    }

    pub fn depth(&self, object: u64) -> u64 {
        object.checked_sub(1).map_or(0, |at| self.depths.borrow()[at as usize])
    }

    pub fn open_gate(&self) {
        self.is_open.set(true);
        self.gate.happen();
    }

    pub fn close_gate(&self) {
        self.is_open.set(false);
    }

    async fn through_the_gate(&self) {
        while !self.is_open.get() {
            self.gate.next().await;
        }
    }
}

pub fn number(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Service for Tree {
    const INTERFACE: &'static Description = &TREE;

    async fn serve(&self, call: &mut Call) -> Response {
        self.begun.borrow_mut().push(call.operation());
        let of_target = call.target().object[0];
        match call.operation() {
            OPEN => {
                let (flags, kind, count) = match *call.payload() {
                    [flags, kind, count] => (flags, kind, count),
                    [flags, kind] => (flags, kind, 0),
                    _ => (0, NODE, 1),
                };
                if flags & WAITS != 0 {
                    let gate = self.through_the_gate();
                    if flags & DEAF != 0 {
                        gate.await;
                    } else if call.unless_cancelled(gate).await.is_none() {
                        return Response::failed(no(Cause::Cancelled));
                    }
                }
                match kind {
                    DENY => Response { operation_error: Some(42), ..Response::default() },
                    REFUSE => {
                        let cause = Cause::busy_for(std::time::Duration::from_micros(5));
                        Response::failed(Failure { cause, executed: Executed::Unknown })
                    }
                    kind => {
                        let grant = |_| {
                            let depth = self.depth(of_target) + 1;
                            self.depths.borrow_mut().push(depth);
                            Grant { object: [self.last_object(), 0], kind, rights: Rights::READ, badge: 0 }
                        };
                        Response { grants: (0..count).map(grant).collect(), ..Response::default() }
                    }
                }
            }
            READ => Response { payload: of_target.to_le_bytes().as_slice().into(), ..Response::default() },
            JOIN => {
                let other = call.capability(0).expect("the session has checked it").object[0];
                let both = of_target << 32 | other;
                let payload = [&both.to_le_bytes(), call.payload()].concat();
                Response { payload: payload.into(), ..Response::default() }
            }
            _ => Response::default(),
        }
    }

    fn dropped(&self, _: &SessionInfo, _: &Grant) {
        self.dropped.set(self.dropped.get() + 1);
    }
}

pub fn root() -> Grant {
    Grant { object: [0, 0], kind: NODE, rights: Rights::READ, badge: 0 }
}

pub fn no(cause: Cause) -> Failure {
    Failure { cause, executed: Executed::No }
}

/// Both ends of a session, and its service.
pub struct Fixture {
    pub client: ClientSession,
    pub host: HostSession,
    pub tree: Rc<Tree>,
}

#[derive(Clone, Copy, Debug)]
pub enum Carrier {
    Shared,
    Near,
    Socket,
}

const CARRIERS: [Carrier; 3] = [Carrier::Shared, Carrier::Near, Carrier::Socket];

impl Carrier {
    fn open(self, tree: &Rc<Tree>) -> (ClientSession, HostSession) {
        let info = info(1);
        match self {
            Carrier::Near => session::in_process(SHAPE, root(), tree.clone(), info, None),
            Carrier::Socket => {
                let (client, host) = socket::pair(SHAPE).expect("loopback");
                let host = HostSession::over(host, root(), tree.clone(), info.clone(), None);
                (ClientSession::over(client, HostSession::ROOT, info.id, info.epoch), host)
            }
            Carrier::Shared => {
                let offer = Offer::new(SHAPE).expect("a segment");
                let segment = offer.fd().try_clone_to_owned().expect("dup");
                let host = HostSession::start(segment, root(), tree.clone(), info.clone(), None).expect("opened");
                let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
                (offer.open(segment, info.id, info.epoch).expect("opened"), host)
            }
        }
    }

    /// A session whose client is a bare link, in the hands of the test.
    fn open_bare(self, tree: &Rc<Tree>) -> (Box<dyn Link>, HostSession) {
        let info = info(1);
        match self {
            Carrier::Near => {
                let (client, host) = in_process::pair(SHAPE);
                (Box::new(client), HostSession::over(host, root(), tree.clone(), info, None))
            }
            Carrier::Socket => {
                let (client, host) = socket::pair(SHAPE).expect("loopback");
                (Box::new(client), HostSession::over(host, root(), tree.clone(), info, None))
            }
            Carrier::Shared => {
                let segment = shm::client_segment(SHAPE).expect("memory");
                let fd = segment.fd().try_clone_to_owned().expect("dup");
                let host = HostSession::start(fd, root(), tree.clone(), info.clone(), None).expect("opened");
                let fd = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
                let (client, _) = shm::ShmLink::client(segment, SHAPE, fd, info.id, info.epoch).expect("a link");
                (Box::new(client), host)
            }
        }
    }
}

/// Runs a test over each carrier.
pub fn over_each_carrier(test: impl AsyncFn(Fixture)) {
    for carrier in CARRIERS {
        println!("{carrier:?}");
        run(async {
            let tree: Rc<Tree> = Rc::default();
            let (client, host) = carrier.open(&tree);
            test(Fixture { client, host, tree }).await;
        });
    }
}

/// The same with a client that is a bare link.
pub fn over_each_bare_link(test: impl AsyncFn(&dyn Link, HostSession, Rc<Tree>)) {
    for carrier in CARRIERS {
        println!("{carrier:?}");
        run(async {
            let tree: Rc<Tree> = Rc::default();
            let (client, host) = carrier.open_bare(&tree);
            test(&*client, host, tree).await;
        });
    }
}
