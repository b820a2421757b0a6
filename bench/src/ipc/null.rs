//! What serves calls that do nothing.

use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;

use kernel_ipc::interface::{Granted, Object};
use kernel_ipc::lease::Lend;
use kernel_ipc::runtime::Signal;
use kernel_ipc::session::{Call, ComponentLedger, SessionInfo};
use kernel_ipc::{CallError, Cause, Executed};
use protocol::null::Thing;

pub use protocol::null::{Client, Dispatcher, Handler, NullError};

use super::lent::Store;

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

/// Keeps the processor busy: about a nanosecond for each round.
pub(crate) fn compute(rounds: u64) -> u64 {
    (0..rounds).fold(1, |value: u64, round| black_box(value.wrapping_mul(6364136223846793005).wrapping_add(round)))
}

/// Bytes of an effect: a directory entry's change has about as many.
const EFFECT: usize = 64;

impl Handler for Nothing {
    type Thing = TheThing;

    fn null(&self, _: &Call, _: Granted<TheThing>) -> Result<(), CallError<NullError>> {
        self.served.set(self.served.get() + 1);
        Ok(())
    }

    fn echo(&self, _: &Call, _: Granted<TheThing>, bytes: &[u8]) -> Result<Vec<u8>, CallError<NullError>> {
        self.served.set(self.served.get() + 1);
        Ok(bytes.to_vec())
    }

    fn count(&self, call: &Call, _: Granted<TheThing>) -> Result<u64, CallError<NullError>> {
        self.served.set(self.served.get() + 1);
        if let Some(effects) = &self.effects {
            let mut ring = effects.borrow_mut();
            if ring.room() < 4096 {
                // As after a checkpoint.
                let position = ring.position();
                ring.trim(position);
            }
            let mut effect = call.effect_room();
            effect.resize(EFFECT, 7);
            call.effect(effect);
        }
        Ok(self.served.get())
    }

    async fn lend(&self, _: &Call, _: Granted<TheThing>, bytes: u32) -> Result<Lend, CallError<NullError>> {
        self.served.set(self.served.get() + 1);
        let refused = CallError::Failed { cause: Cause::Refused, executed: Executed::No };
        self.store.as_ref().map(|store| store.lend(bytes)).ok_or(refused)
    }

    async fn work(&self, _: &Call, _: Granted<TheThing>, rounds: u32) -> Result<u64, CallError<NullError>> {
        self.served.set(self.served.get() + 1);
        Ok(compute(rounds.into()))
    }

    fn closed(&self, _: &SessionInfo) {
        self.closed.raise();
    }
}
