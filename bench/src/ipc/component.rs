//! `builtin:null`: a component that serves calls which do nothing, on as many reactors as its manifest entry says.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use kernel_ipc::component::{self, Context};
use kernel_ipc::interface::Granted;
use kernel_ipc::lease::Lend;
use kernel_ipc::session::{Call, Movable, SessionInfo};
use kernel_ipc::{CallError, Cause, Executed, SessionId};

use super::host;
use super::null::{Dispatcher, Handler, NullError, TheThing, compute};

/// The component's program.
///
/// # Errors
/// The manifest gives it another endpoint.
pub async fn serve(cx: Context) -> Result<(), component::Error> {
    cx.provide_on_each("null", |_| (Rc::new(Dispatcher(Counts::default())), async |_: &SessionInfo| Ok(host::root())))?;
    cx.ready();
    cx.stopped().await;
    Ok(())
}

/// One reactor's instance: how often each of its sessions has counted, if it has.
#[derive(Default)]
struct Counts(RefCell<HashMap<SessionId, u64>>);

impl Handler for Counts {
    type Thing = TheThing;

    fn null(&self, _: &Call, _: Granted<TheThing>) -> Result<(), CallError<NullError>> {
        Ok(())
    }

    fn echo(&self, _: &Call, _: Granted<TheThing>, bytes: &[u8]) -> Result<Vec<u8>, CallError<NullError>> {
        Ok(bytes.to_vec())
    }

    fn count(&self, call: &Call, _: Granted<TheThing>) -> Result<u64, CallError<NullError>> {
        let mut counts = self.0.borrow_mut();
        let count = counts.entry(call.session().id).or_default();
        *count += 1;
        Ok(*count)
    }

    async fn lend(&self, _: &Call, _: Granted<TheThing>, _: u32) -> Result<Lend, CallError<NullError>> {
        Err(CallError::Failed { cause: Cause::Refused, executed: Executed::No })
    }

    async fn work(&self, _: &Call, _: Granted<TheThing>, rounds: u32) -> Result<u64, CallError<NullError>> {
        Ok(compute(rounds.into()))
    }

    fn closed(&self, session: &SessionInfo) {
        self.0.borrow_mut().remove(&session.id);
    }
}

impl Movable for Counts {
    type State = Option<u64>;

    fn leave(&self, session: &SessionInfo) -> Option<u64> {
        self.0.borrow_mut().remove(&session.id)
    }

    fn arrive(&self, session: &SessionInfo, count: Option<u64>) {
        if let Some(count) = count {
            self.0.borrow_mut().insert(session.id, count);
        }
    }
}
