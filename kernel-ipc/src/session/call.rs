//! One call, as a host sees it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::{Grant, SessionInfo, nanoseconds, now};
use crate::logbook::Seen;
use crate::runtime::clock;
use crate::wire::{Handle, LeaseName};

/// One call, as a host sees it: every handle is resolved and its rights are checked.
#[derive(Debug)]
pub struct Call {
    pub(super) operation: u16,
    pub(super) seq: u64,
    pub(super) handle: Handle,
    /// What the call did to the host's state, for the component's ledger.
    pub(super) effect: RefCell<Option<Vec<u8>>>,
    /// Room for it, from an earlier call of the slot.
    pub(super) effect_room: RefCell<Vec<u8>>,
    pub(super) payload: Vec<u8>,
    pub(super) target: Grant,
    pub(super) capabilities: Vec<Grant>,
    pub(super) leases: Vec<LeaseName>,
    pub(super) session: Rc<SessionInfo>,
    pub(super) trace: u64,
    /// Whether it is traced here, and since when.
    pub(super) seen: Seen,
    pub(super) cancel: Rc<Cancel>,
}

impl Call {
    /// The operation's number: one that the interface has.
    pub fn operation(&self) -> u16 {
        self.operation
    }

    /// The encoded arguments. Copied once; nobody changes them any more.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// What the call is made on.
    pub fn target(&self) -> &Grant {
        &self.target
    }

    /// The `i`-th handle argument. The call has as many as its operation says.
    pub fn capability(&self, i: usize) -> Option<&Grant> {
        self.capabilities.get(i)
    }

    /// The `i`-th lease argument, as the client named it: not checked by anybody yet.
    pub fn lease(&self, i: usize) -> Option<LeaseName> {
        self.leases.get(i).copied()
    }

    /// All lease arguments, as the client named them.
    pub fn leases(&self) -> &[LeaseName] {
        &self.leases
    }

    /// Says what this call has done to the host's state, so that the host's next incarnation can do it again. Kept with
    /// the answer, as one, if the session survives and the operation is `cached`. Said once, and only by a handler that
    /// does not wait between the effect and its return.
    pub fn effect(&self, effect: Vec<u8>) {
        self.effect.replace(Some(effect));
    }

    /// An empty buffer to write an [`effect`](Self::effect) into: the one of an earlier call, so that short effects allocate
    /// nothing.
    pub fn effect_room(&self) -> Vec<u8> {
        self.effect_room.take()
    }

    /// What the slot's last call did is recorded, and its buffer free.
    #[inline]
    pub(super) fn forget_effect(&mut self) {
        if let Some(mut room) = self.effect.get_mut().take()
            && room.capacity() <= EFFECT_ROOM
        {
            room.clear();
            self.effect_room.replace(room);
        }
    }

    /// The session that it came on.
    pub fn session(&self) -> &Rc<SessionInfo> {
        &self.session
    }

    /// The caller's trace key.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    #[inline]
    pub(crate) fn seen(&self) -> Seen {
        self.seen
    }

    /// When the caller stops waiting.
    pub fn deadline(&self) -> Option<Instant> {
        let deadline = self.cancel.deadline();
        let left = || Duration::from_nanos(deadline.saturating_sub(now()));
        (deadline != 0).then(|| clock::now() + left().min(Duration::from_secs(1 << 32)))
    }

    /// Whether the caller has stopped waiting, or the session has ended. A hint: finishing is always allowed, and what
    /// has begun to take effect should be finished.
    pub fn cancelled(&self) -> bool {
        self.cancel.is_set.get()
    }

    /// Waits for `future`, but no longer than anybody wants the answer: `None` when the caller is gone. For handlers that wait
    /// for something to happen, such as standing calls.
    pub async fn unless_cancelled<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let (mut cancelled, mut future) = (pin!(self.until_cancelled()), pin!(future));
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => cancelled.as_mut().poll(cx).map(|()| None),
        })
        .await
    }

    /// Waits until [`cancelled`](Self::cancelled). A handler that waits for something that may never come (a standing
    /// call) waits for this too. One waiter per call.
    pub fn until_cancelled(&self) -> impl Future<Output = ()> + use<> {
        let cancel = self.cancel.clone();
        poll_fn(move |cx| {
            if cancel.is_set.get() {
                return Poll::Ready(());
            }
            cancel.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
            Poll::Pending
        })
    }
}

/// Bytes of an effect's buffer that a slot keeps at most: longer ones are worth their allocation.
const EFFECT_ROOM: usize = 1024;

/// The deadline of a call that is made in its host's thread: its caller waits for so long from when somebody first asks. Nobody
/// does of a call that is answered at once, and the clock costs as much as a tenth of it.
pub(super) const LATER: u64 = u64::MAX;

/// The cancel token of a slot, and how long the caller waits; reused by its calls one after the other.
#[derive(Debug, Default)]
pub(super) struct Cancel {
    is_set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// As on the wire, or [`LATER`].
    deadline: Cell<u64>,
    /// Of a deadline that is looked at later.
    limit: Cell<Duration>,
}

impl Cancel {
    /// A call begins that has this deadline.
    #[inline]
    pub(super) fn begins(&self, deadline: u64) {
        self.deadline.set(deadline);
    }

    /// How long its caller waits, of a deadline that is looked at later.
    #[inline]
    pub(super) fn waits(&self, limit: Duration) {
        self.limit.set(limit);
    }

    /// The call's deadline, as on the wire.
    pub(super) fn deadline(&self) -> u64 {
        if self.deadline.get() == LATER {
            self.deadline.set(wire_deadline(Some(self.limit.get())));
        }
        self.deadline.get()
    }

    pub(super) fn set(&self) {
        self.is_set.set(true);
        // Taken out before it is woken: waking may run code that comes back here.
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    #[inline]
    pub(super) fn reset(&self) {
        self.is_set.set(false);
        *self.waker.borrow_mut() = None;
    }
}

/// The wire's deadline for a caller that waits `limit` from now: late by the clock's lag, never early.
pub(super) fn wire_deadline(limit: Option<Duration>) -> u64 {
    match limit {
        None => 0,
        Some(limit) => now().saturating_add(nanoseconds(limit)).saturating_add(nanoseconds(super::CLOCK_LAG)),
    }
}
