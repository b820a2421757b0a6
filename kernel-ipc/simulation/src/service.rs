//! What the host serves: a counter of effects, one operation for each retry class, and one that grants.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::runtime;
use kernel_ipc::session::{Brief, Call, Grant, Response, Service, SessionInfo};
use kernel_ipc::{Failure, Rights};

use crate::trace::Trace;

/// Adds the number in the payload to the host's list, once: the record of it is the effect.
pub const ADD: u16 = 1;
/// Has an effect outside of the host, at most once.
pub const ONCE: u16 = 2;
/// The same, and may have it again.
pub const AGAIN: u16 = 3;
/// Grants an object of the number in the payload.
pub const OPEN: u16 = 4;
/// The object's number, answered at once.
pub const READ: u16 = 5;

/// Clients over shared memory are called so.
pub const IN_MEMORY: &str = "memory";
/// And those over a connection, by whether their sessions have ledgers.
pub const KEPT: &str = "kept";
pub const OVER_SOCKET: &str = "socket";

const fn operation(number: u16, name: &'static str, retry: Retry) -> Operation {
    Operation {
        number,
        name,
        target_kind: 1,
        requires: Rights::READ,
        retry,
        deadline: None,
        at_once: number == READ,
        handles: &[],
        signature: "",
    }
}

/// The interface.
pub const COUNTER: Description = Description {
    name: "counter/1",
    kinds: &["Thing"],
    rights: &[("read", Rights::READ)],
    operations: &[
        operation(ADD, "add", Retry::Cached),
        operation(ONCE, "once", Retry::Never),
        operation(AGAIN, "again", Retry::Idempotent),
        operation(OPEN, "open", Retry::Cached),
        operation(READ, "read", Retry::Idempotent),
    ],
    details: Details::none,
};

/// What really happened, outside of every process: no crash makes it forget.
#[derive(Default)]
pub struct Truth {
    /// How often the effect of each number was had, outside of the host's ledger.
    pub effects: RefCell<BTreeMap<u64, u32>>,
    /// How often each object was granted, and how often the host heard that it is gone.
    pub granted: RefCell<BTreeMap<u64, u32>>,
    pub dropped: RefCell<BTreeMap<u64, u32>>,
    /// Calls over memory whose answers stand in their clients' sight.
    pub published: RefCell<BTreeSet<u64>>,
    /// Sessions that hosts have served and that have ended.
    pub closed: Cell<u64>,
    /// What the host has made durable: its list, up to this position of its ring.
    pub disk: RefCell<(Vec<u64>, u64)>,
}

/// One incarnation's service.
pub struct Counter {
    pub truth: Rc<Truth>,
    pub list: RefCell<Vec<u64>>,
    /// Calls over memory that were served, and perhaps not published yet.
    pub served: RefCell<Vec<u64>>,
    pub seed: u64,
    pub trace: Trace,
}

/// The first capability of every session.
pub fn root() -> Grant {
    object(0)
}

fn object(number: u64) -> Grant {
    Grant { object: [number, 0], kind: 1, rights: Rights::READ, badge: 0 }
}

/// The number in a payload.
pub fn number(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Counter {
    fn count(of: &RefCell<BTreeMap<u64, u32>>, number: u64) {
        *of.borrow_mut().entry(number).or_default() += 1;
    }

    /// How long the handler of a number waits before its effect, and behind it.
    fn pauses(&self, number: u64) -> [Duration; 2] {
        let mut random = crate::random::Random::new(self.seed, number ^ 0x5a5a);
        [0, 1].map(|_| match random.below(8) {
            0 => Duration::from_micros(random.below(500)),
            1 => Duration::from_millis(random.below(30)),
            2 => Duration::from_millis(random.below(800)),
            _ => Duration::ZERO,
        })
    }

    async fn pause(how_long: Duration) {
        if !how_long.is_zero() {
            runtime::sleep(how_long).await;
        }
    }
}

impl Service for Counter {
    const INTERFACE: &'static Description = &COUNTER;
    const SURVIVES: bool = true;
    const ANSWERS_AT_ONCE: bool = true;

    async fn serve(&self, call: &mut Call) -> Response {
        let n = number(call.payload());
        let in_memory = call.session().client_name == IN_MEMORY;
        let is_kept = in_memory || call.session().client_name == KEPT;
        let [before, behind] = self.pauses(n);
        Counter::pause(before).await;
        self.trace.note(format_args!("serves {n}, operation {}", call.operation()));
        // What is kept of a reply has less room than a window.
        let mut response = Response { payload: n.to_le_bytes().as_slice().into(), ..Response::default() };
        match call.operation() {
            ADD if is_kept => {
                let at = self.list.borrow().len() as u64;
                self.list.borrow_mut().push(n);
                call.effect(n.to_le_bytes().to_vec());
                // Longer than a descriptor holds. Nobody sees the effect before it is recorded: no pause behind it.
                response.payload = [n, at, n ^ at].map(u64::to_le_bytes).as_flattened().into();
                return response;
            }
            ADD => {
                Counter::count(&self.truth.effects, n);
                response.payload = [n, 0, n].map(u64::to_le_bytes).as_flattened().into();
            }
            OPEN => {
                Counter::count(&self.truth.granted, n);
                response.grants = vec![object(n)];
                // A session that survives commits what it grants with its reply.
                if is_kept {
                    return response;
                }
            }
            _ => {
                Counter::count(&self.truth.effects, n);
                response.payload = call.payload().into();
            }
        }
        Counter::pause(behind).await;
        if in_memory {
            self.served.borrow_mut().push(n);
        }
        response
    }

    fn serve_at_once(&self, call: &Call) -> Result<Brief, Failure> {
        let n = number(call.payload());
        self.trace.note(format_args!("serves {n}, operation {}, at once", call.operation()));
        if call.session().client_name == IN_MEMORY {
            self.served.borrow_mut().push(n);
        }
        Ok(Brief { operation_error: None, payload: call.target().object[0].to_le_bytes().as_slice().into() })
    }

    fn dropped(&self, _: &SessionInfo, capability: &Grant) {
        if capability.object[0] != 0 {
            Counter::count(&self.truth.dropped, capability.object[0]);
        }
    }

    fn closed(&self, session: &SessionInfo) {
        self.trace.note(format_args!("session {} has ended", session.id));
        self.truth.closed.set(self.truth.closed.get() + 1);
    }
}
