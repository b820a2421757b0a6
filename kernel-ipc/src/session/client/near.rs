//! Calls of a host in this very thread: a call is a function call there, with the checks of any other.
//!
//! - One of an operation that is answered at once is nothing but that, and takes no slot. If it can not be had at once, for one of the
//!   reasons below, or because others wait for a slot, it is a call like any other.
//! - A call that the host answers before its handler waits for anything never touches the link. It has a slot meanwhile, as any
//!   other: its handler may make calls on the same session.
//! - One that is not answered at once is an ordinary call from then on: its answer comes over the link.
//! - What was published before is read before: then the call goes over the link too, and so do traced calls, those that are
//!   made ahead, and every one when [`AT_ONCE`] have been answered in a row.

use std::rc::Rc;

use super::waits::Sent;
use super::{ClientSession, Inner};
use crate::error::{Cause, Failure};
use crate::session::Request;
use crate::session::call::{LATER, wire_deadline};
use crate::session::near::{Called, Near};
use crate::trace::{self, Outcome};
use crate::wire::{Extent, Submission};

/// Calls in a row that a host in the same thread answers at once: some ten microseconds of null calls. Then all others of the
/// thread have their turn.
const AT_ONCE: u32 = 64;

/// What has become of a call that was to be made at once.
pub(crate) enum Begun<T> {
    /// It has ended like this.
    Ended(T),
    /// It is under way.
    Sent(Sent),
    /// Nothing yet: it has to wait for a slot, or for what it depends on.
    Waits,
}

impl ClientSession {
    /// The host is in this very thread.
    pub(in crate::session) fn is_near(&self, host: &Rc<dyn Near>) {
        // There is one host for as long as a session in one process lasts.
        let _ = self.0.inner.near.set(Rc::downgrade(host));
    }

    /// Publishes a call at once, if there is a free slot and nobody waits for one. An answer that is there already goes to
    /// `ended`: the operation's error, and the payload of a reply that brought nothing else. `at_once`: its operation is answered
    /// at once.
    ///
    /// # Errors
    /// As [`call`](ClientSession::call).
    #[inline]
    pub(crate) fn begin_with<T>(
        &self,
        request: &Request<'_>,
        at_once: bool,
        ended: impl FnOnce(&ClientSession, Option<u16>, &[u8]) -> T,
    ) -> Result<Begun<T>, Failure> {
        let inner = &self.0.inner;
        let extent = inner.fits(request)?;
        let host = inner.near_for(request);
        // Nobody overtakes those who wait for a slot.
        if at_once
            && inner.waiters.borrow().is_empty()
            && let Some(host) = &host
        {
            match host.call_at_once(request, extent) {
                Some(_) if inner.ended.get().is_some() => return Err(Failure::unknown(Cause::SessionClosed)),
                Some(Ok(answer)) => return Ok(Begun::Ended(ended(self, answer.operation_error, &answer.payload))),
                Some(Err(failure)) => return Err(failure),
                None => {}
            }
        }
        if !inner.has_turn() || inner.is_early(request) {
            return Ok(Begun::Waits);
        }
        if let Some(host) = host {
            let mut begun = None;
            let mut ended = Some(ended);
            let mut answered = |error, payload: &[u8]| {
                begun = ended.take().map(|ended| Begun::Ended(ended(self, error, payload)));
            };
            match inner.call_near(&*host, request, extent, &mut answered)? {
                Some(InProgress { call, deadline }) => return Ok(Begun::Sent(self.submitted(call, deadline))),
                None => {
                    if let Some(begun) = begun {
                        return Ok(begun);
                    }
                }
            }
        }
        let deadline = wire_deadline(request.deadline);
        let sent = self.submitted(inner.submit(request, extent, deadline)?, deadline);
        inner.look_at_once();
        Ok(Begun::Sent(sent))
    }
}

/// A call that was made without the link and is not answered.
struct InProgress {
    /// Its slot and seq.
    call: (u16, u64),
    /// As on the wire.
    deadline: u64,
}

impl Inner {
    /// The host, if it is in this thread and its turn.
    fn near(&self) -> Option<Rc<dyn Near>> {
        let host = self.near.get().filter(|_| self.looked.get() < AT_ONCE)?.upgrade()?;
        self.looked.set(self.looked.get() + 1);
        Some(host)
    }

    /// Lets a host in this very thread answer what was just published.
    pub(super) fn look_at_once(&self) {
        if let Some(host) = self.near() {
            host.poll();
            self.drain();
        }
    }

    /// The same, if it can have this call without the link.
    #[inline]
    fn near_for(&self, request: &Request<'_>) -> Option<Rc<dyn Near>> {
        // What an earlier call is to bring may have to be waited for, and those who wait are found over the link.
        let is_plain = request.capabilities.is_empty() && request.leases.is_empty() && !request.handle.is_expected();
        let is_traced = self.log.get().is_some() && trace::is_on();
        self.near.get().filter(|_| is_plain && !is_traced)?;
        self.near()
    }

    /// Makes a call without the link; there is a free slot. `None`: its answer was there, and went to `answered`, or it was
    /// not made.
    ///
    /// # Errors
    /// It was refused.
    fn call_near(
        &self,
        host: &dyn Near,
        request: &Request<'_>,
        extent: Extent,
        answered: &mut dyn FnMut(Option<u16>, &[u8]),
    ) -> Result<Option<InProgress>, Failure> {
        // Where it stands in the ring is not asked of a call that is not in it.
        let Some((slot, seq)) = self.slots.borrow_mut().begin(0) else { return Ok(None) };
        let cell = &self.cells[slot];
        cell.deadline.set(0);
        cell.is_late.set(false);
        cell.is_near.set(true);
        if self.log.get().is_some() {
            self.log_called(slot, request, 0);
        }
        let (operation, handle) = (request.operation, request.handle);
        let deadline = if request.deadline.is_some() { LATER } else { 0 };
        let call = Submission { slot, operation, seq, extent, handle, deadline, ..Submission::default() };
        let called = host.call(&call, request, &mut |error, payload| {
            // Its handler may have closed the session: what became of the call stands in its cell then.
            if self.ended.get().is_none() {
                self.log_ended(slot, || error.map_or(Outcome::Done, Outcome::OperationError));
                self.slots.borrow_mut().give_back(slot);
                answered(error, payload);
                self.slot_is_free();
            }
        });
        match called {
            _ if self.ended.get().is_some() => Ok(Some(InProgress { call: (slot, seq), deadline: 0 })),
            Called::Answered => Ok(None),
            Called::Refused(failure) => {
                self.log_ended(slot, || Outcome::Failed(failure));
                self.slots.borrow_mut().give_back(slot);
                self.slot_is_free();
                Err(failure)
            }
            Called::Begun { deadline } => {
                cell.deadline.set(deadline);
                if deadline < self.timer_at.get() && deadline != 0 {
                    self.arm(deadline);
                }
                self.drain();
                Ok(Some(InProgress { call: (slot, seq), deadline }))
            }
            Called::NotBegun => {
                self.slots.borrow_mut().give_back(slot);
                Ok(None)
            }
        }
    }
}
