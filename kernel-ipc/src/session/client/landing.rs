//! Leases over a socket: the caller of a reply that brings some has it when the bytes have landed; what a call lends, its host can ask
//! for until it has answered.

use std::rc::Rc;

use super::waits::Answered;
use super::{ClientSession, Inner};
use crate::error::{Cause, Executed, Failure};
use crate::id::Incarnation;
use crate::link::socket::bulk::land::Bay;
use crate::link::socket::bulk::offer::Arguments;
use crate::runtime;
use crate::session::Reply;
use crate::slots::ClientState;
use crate::wire::{Completion, LeaseName};

impl ClientSession {
    /// From now on what replies lend is brought to this place, and lent from there.
    pub(crate) fn land_in(&self, bay: Rc<Bay>) {
        // Said once, before the first call.
        let _ = self.0.inner.bay.set(bay);
    }

    /// From now on calls can lend, and the host asks there for the bytes.
    pub(crate) fn lend_by(&self, arguments: Rc<Arguments>) {
        // Said once, before the first call.
        let _ = self.0.inner.arguments.set(arguments);
    }

    /// To whom a lease is lent that is for the host of this session, if that is beyond a socket.
    pub(crate) fn host_beyond(&self) -> Option<Incarnation> {
        self.0.inner.arguments.get().map(|arguments| arguments.host())
    }
}

impl Inner {
    /// Whether the reply in the slot's cell is for its caller only when what it lends has landed. It is out of the cell then.
    #[inline]
    pub(super) fn lands(&self, completion: &Completion) -> bool {
        completion.extent.leases > 0 && self.bay.get().is_some_and(|bay| self.land(bay, completion))
    }

    fn land(&self, bay: &Rc<Bay>, completion: &Completion) -> bool {
        let (slot, seq) = (completion.slot, completion.seq);
        let cell = &self.cells[slot];
        let reply = match cell.answer.take() {
            Answered::Reply(reply) => reply,
            failed => {
                cell.answer.replace(failed);
                return false;
            }
        };
        let (this, bay) = (self.this.clone(), bay.clone());
        runtime::spawn(async move {
            let landed = bay.clone().land(reply.leases.clone()).await;
            match this.upgrade() {
                Some(this) => this.landed((slot, seq), reply, landed),
                None => bay.release_all(&landed.unwrap_or_default()),
            }
        });
        true
    }

    /// Hands the answer to whoever waits for it still.
    fn landed(&self, (slot, seq): (u16, u64), reply: Reply, landed: Result<Vec<LeaseName>, Cause>) {
        // The host may use its own again: what is here is a copy.
        self.later(|pending| pending.leases.extend(&reply.leases));
        let answer = match landed {
            Ok(leases) => Answered::Reply(Reply { leases, ..reply }),
            Err(cause) => {
                self.later(|pending| pending.handles.extend(&reply.capabilities));
                Answered::Failed(Failure { cause, executed: Executed::Yes })
            }
        };
        let slots = self.slots.borrow();
        let is_awaited = slots.seq(slot) == seq && slots.state(slot) == ClientState::Answered;
        drop(slots);
        let cell = &self.cells[slot];
        if is_awaited && matches!(*cell.answer.borrow(), Answered::Nothing) {
            cell.answer.replace(answer);
            self.delivered(slot);
        } else {
            self.release(&answer);
        }
    }
}
