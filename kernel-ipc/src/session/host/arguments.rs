//! What a call lends over a socket is brought here before its handler begins: the handler finds it as it would over shared memory.

use std::rc::Rc;

use super::Inner;
use crate::error::{Cause, Failure};
use crate::lease::Arrived;
use crate::session::{Call, Service};

/// What a call has brought. Kept until it is answered; what somebody has pinned stays longer.
pub(super) type Brought = Vec<Rc<Arrived>>;

impl<S: Service> Inner<S> {
    /// Brings what the call lends, and names it in the call as it is called here.
    ///
    /// # Errors
    /// It does not come. The call does not run.
    pub(super) async fn bring(&self, call: &mut Call) -> Result<Brought, Failure> {
        let Some(berth) = self.arguments.get() else { return Ok(Vec::new()) };
        let berth = berth.clone().ok_or(Failure::not_executed(Cause::StaleLease))?;
        let brought = call.unless_cancelled(berth.bring(&call.leases)).await;
        let brought = brought.unwrap_or(Err(Cause::Cancelled)).map_err(Failure::not_executed)?;
        call.leases.clear();
        call.leases.extend(brought.iter().map(|arrived| arrived.name()));
        Ok(brought)
    }
}
