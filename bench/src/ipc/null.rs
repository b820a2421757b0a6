//! An interface whose operations do nothing, and what serves it.

use std::cell::Cell;
use std::rc::Rc;

use kernel_ipc::interface::{Granted, Lease, Object, OperationError, interface};
use kernel_ipc::lease::Lend;
use kernel_ipc::runtime::Signal;
use kernel_ipc::session::{Call, ComponentLedger, SessionInfo};
use kernel_ipc::{CallError, Cause, Executed};

use super::lent::Store;

/// Calls that do nothing.
#[interface("atoll.null/1")]
pub trait Null {
    /// Something to call.
    type Thing;

    /// Call it.
    const READ: Rights;

    /// Does nothing.
    #[op(1, requires = READ, retry = idempotent, deadline = "5s")]
    fn null(thing: Thing) -> Result<(), NullError>;

    /// Returns the bytes.
    #[op(2, requires = READ, retry = idempotent, deadline = "5s")]
    fn echo(thing: Thing, bytes: &[u8]) -> Result<Vec<u8>, NullError>;

    /// Counts, as an operation that may not run twice.
    #[op(3, requires = READ, retry = cached, deadline = "5s")]
    fn count(thing: Thing) -> Result<u64, NullError>;

    /// Lends so many bytes.
    #[op(4, requires = READ, retry = idempotent, deadline = "5s")]
    fn lend(thing: Thing, bytes: u32) -> Result<Lease, NullError>;
}

/// Never happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum NullError {
    /// It cannot.
    Impossible = 1,
}

/// What is called.
pub struct TheThing;

impl Object for TheThing {
    type Kind = Thing;

    fn to_words(&self) -> [u64; 2] {
        [0; 2]
    }

    fn from_words(_: [u64; 2]) -> Self {
        TheThing
    }
}

/// Serves the calls, counts them, and says when the session has ended.
#[derive(Default)]
pub struct Nothing {
    /// Calls served.
    pub served: Rc<Cell<u64>>,
    /// Raised when the client has closed its session.
    pub closed: Rc<Signal>,
    /// What it lends, if it does.
    pub store: Option<Store>,
    /// Where effects are kept, if they are.
    pub effects: Option<ComponentLedger>,
}

/// Bytes of an effect: a directory entry's change has about as many.
const EFFECT: usize = 64;

impl Handler for Nothing {
    type Thing = TheThing;

    async fn null(&self, _: &Call, _: Granted<TheThing>) -> Result<(), CallError<NullError>> {
        self.served.set(self.served.get() + 1);
        Ok(())
    }

    async fn echo(&self, _: &Call, _: Granted<TheThing>, bytes: &[u8]) -> Result<Vec<u8>, CallError<NullError>> {
        self.served.set(self.served.get() + 1);
        Ok(bytes.to_vec())
    }

    async fn count(&self, call: &Call, _: Granted<TheThing>) -> Result<u64, CallError<NullError>> {
        self.served.set(self.served.get() + 1);
        if let Some(effects) = &self.effects {
            let mut ring = effects.borrow_mut();
            if ring.room() < 4096 {
                // As after a checkpoint.
                let position = ring.position();
                ring.trim(position);
            }
            call.effect(vec![7; EFFECT]);
        }
        Ok(self.served.get())
    }

    async fn lend(&self, _: &Call, _: Granted<TheThing>, bytes: u32) -> Result<Lend, CallError<NullError>> {
        self.served.set(self.served.get() + 1);
        let refused = CallError::Failed { cause: Cause::Refused, executed: Executed::No };
        self.store.as_ref().map(|store| store.lend(bytes)).ok_or(refused)
    }

    fn closed(&self, _: &SessionInfo) {
        self.closed.raise();
    }
}
