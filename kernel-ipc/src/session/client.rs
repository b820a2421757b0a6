//! The client end of a session: calls become slots.
//!
//! - A call takes a free slot, or waits for one in order of arrival; then it is published once and ends once.
//! - A caller that stops waiting parks its slot: the slot is used again only after its own completion (R13), and what
//!   a late reply brings is released (R15). A cancel goes out as a hint.
//! - Releases and cancels are collected and travel in batches on the control slots.
//! - When the session ends, every outstanding call ends too, and says whether it ran: `No` only if the host's
//!   submission head shows that it was never read.
//! - When the host of a session that survives has died, the session is suspended: callers wait, and its next incarnation
//!   says of each outstanding call what became of it (see [`resume`]).
//! - One session belongs to one thread. Between two polls nothing of the host's is looked at, and what is looked at is
//!   copied first.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::task::Waker;

use super::by_slot::BySlot;
use super::near::Near;
use super::{Reply, Request};
use crate::error::{Cause, Executed, Failure};
use crate::id::{Epoch, SessionId};
use crate::link::Link;
use crate::link::socket::bulk::land::Bay;
use crate::link::socket::bulk::offer::Arguments;
use crate::logbook::UseLog;
use crate::runtime::{self, JoinHandle, Sleep, Source, SourceGuard};
use crate::slots::{ClientSlots, ClientState};
use crate::trace::Outcome;
use crate::wire::{Extent, Handle, LeaseName, Shape};

mod control;
mod deadlines;
mod earlier;
mod landing;
mod log;
mod messages;
mod near;
mod offer;
mod replies;
mod resume;
mod submit;
mod waits;

use control::Pending;
use earlier::EarlierCalls;
pub use earlier::{Earlier, Expected};
use messages::Mailbox;
pub use messages::Messages;
pub(crate) use near::Begun;
pub use offer::Offer;
pub use resume::Resumed;
pub(crate) use waits::Sent;
use waits::{Answered, FreeSlot};

/// Callers of a session that may wait for a free slot, if nobody [says otherwise](ClientSession::limit_waiters).
const WAITERS: usize = 1024;

/// The client end of an open session. Cheap to clone; all clones are one session, of one thread. The session is closed
/// when the last clone is dropped.
#[derive(Clone)]
pub struct ClientSession(Rc<Registered>);

/// A session that somebody else keeps open.
#[derive(Clone)]
pub struct WeakSession(Weak<Registered>);

impl WeakSession {
    /// The session, if a clone of it is left.
    pub fn upgrade(&self) -> Option<ClientSession> {
        self.0.upgrade().map(ClientSession)
    }
}

struct Registered {
    inner: Rc<Inner>,
    _source: SourceGuard,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if !self.inner.stays_open.get() {
            self.inner.close();
        }
    }
}

impl ClientSession {
    /// A session over any link.
    pub fn over(link: impl Link + 'static, root: Handle, id: SessionId, epoch: Epoch) -> ClientSession {
        Self::with(link, root, id, epoch, false)
    }

    /// A session over a connection, which may be lost and made again: [`cut`](Self::cut) and
    /// [`reconnected`](Self::reconnected) say when.
    pub(crate) fn over_socket(link: impl Link + 'static, root: Handle, id: SessionId, epoch: Epoch) -> ClientSession {
        let session = Self::with(link, root, id, epoch, true);
        session.0.inner.is_beyond.set(true);
        session
    }

    fn with(link: impl Link + 'static, root: Handle, id: SessionId, epoch: Epoch, survives: bool) -> ClientSession {
        let shape = link.shape();
        let inner = Rc::new_cyclic(|this| Inner {
            this: this.clone(),
            link: RefCell::new(Box::new(link)),
            shape,
            root,
            id,
            epoch: Cell::new(epoch),
            slots: RefCell::new(ClientSlots::new(shape)),
            cells: BySlot::new(shape.slots, SlotCell::default),
            survival: survives.then(|| Box::new(resume::Survival::new(shape))),
            suspended: Cell::new(false),
            waiters: RefCell::new(VecDeque::new()),
            early: Cell::new(0),
            waiters_max: Cell::new(WAITERS),
            next_ticket: Cell::new(0),
            pending: RefCell::new(Pending::default()),
            has_pending: Cell::new(false),
            ended: Cell::new(None),
            timer: RefCell::new(None),
            timer_at: Cell::new(u64::MAX),
            near: OnceCell::new(),
            looked: Cell::new(0),
            stays_open: Cell::new(false),
            bay: OnceCell::new(),
            is_beyond: Cell::new(false),
            arguments: OnceCell::new(),
            on_end: Cell::new(None),
            log: OnceCell::new(),
            mailbox: Mailbox::default(),
            earlier: EarlierCalls::default(),
        });
        let source = runtime::register(inner.clone());
        ClientSession(Rc::new(Registered { inner, _source: source }))
    }

    /// How a request lies in a window.
    ///
    /// # Errors
    /// It does not fit: the bytes of a window.
    #[inline]
    pub(crate) fn extent(&self, request: &Request<'_>) -> Result<Extent, u32> {
        self.0.inner.extent(request).ok_or(self.0.inner.shape.window_bytes)
    }

    /// From now on only [`close`](Self::close), or the client's death, ends the session: what this client holds on it, its next
    /// run inherits, and a run that fails or panics drops everything on its way out.
    pub(crate) fn stays_open_when_dropped(&self) {
        self.0.inner.stays_open.set(true);
    }

    /// Makes one call. Dropping the future parks its slot and sends a cancel.
    ///
    /// # Errors
    /// A [`Failure`] that says whether the call ran. The operation's own error is a [`Reply`].
    pub async fn call(&self, request: Request<'_>) -> Result<Reply, Failure> {
        let inner = &self.0.inner;
        let (extent, deadline) = inner.admit(&request)?;
        inner.turn(&request, deadline).await?;
        self.submitted(inner.submit(&request, extent, deadline)?, deadline).await
    }

    /// Lets at most so many callers wait for a free slot, or for what became of the call that theirs depends on; one more is
    /// refused with [`Cause::Busy`] at once, without a word to the host. 1024 at first.
    pub fn limit_waiters(&self, most: usize) {
        self.0.inner.waiters_max.set(most);
    }

    /// Gives a capability back. Does not wait; releases travel in batches.
    pub fn release_handle(&self, handle: Handle) {
        self.0.inner.later(|pending| pending.handles.push(handle));
    }

    /// Gives a lease back. Does not wait; releases travel in batches.
    pub fn release_lease(&self, lease: LeaseName) {
        if self.0.inner.bay.get().is_some_and(|bay| bay.release(&lease)) {
            return;
        }
        self.0.inner.later(|pending| pending.leases.push(lease));
    }

    /// The session's first capability.
    pub fn root(&self) -> Handle {
        self.0.inner.root
    }

    /// The endpoint's epoch.
    pub fn epoch(&self) -> Epoch {
        self.0.inner.epoch.get()
    }

    /// The session's number.
    pub fn id(&self) -> SessionId {
        self.0.inner.id
    }

    /// A reference that does not keep it open.
    pub fn downgrade(&self) -> WeakSession {
        WeakSession(Rc::downgrade(&self.0))
    }

    /// Calls `hook` when the session ends, however it does; at once if it has. There is one hook: a new one replaces it.
    pub fn on_end(&self, hook: impl FnOnce() + 'static) {
        match self.is_open() {
            true => self.0.inner.on_end.set(Some(Box::new(hook))),
            false => hook(),
        }
    }

    /// Whether calls can still be made.
    pub fn is_open(&self) -> bool {
        self.0.inner.ended.get().is_none()
    }

    /// Ends the session in order. Outstanding calls end with `SessionClosed`.
    pub fn close(&self) {
        self.0.inner.close();
    }

    /// The broker says that the host has died (and was reaped: its segment is final). Takes every answer still in it,
    /// then ends the outstanding calls with `PeerDied`: `No` for those that the host never read, else `Unknown`.
    pub fn host_died(&self) {
        let inner = &self.0.inner;
        if inner.ended.get().is_none() {
            inner.drain();
            inner.end(Cause::PeerDied, Cause::StaleEpoch, inner.link.borrow().read_by_peer());
        }
    }

    /// System calls that this end has made to wake its host.
    pub fn system_calls(&self) -> u64 {
        self.0.inner.link.borrow().system_calls()
    }
}

impl std::fmt::Debug for ClientSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientSession").field("id", &self.id()).field("open", &self.is_open()).finish()
    }
}

struct Inner {
    this: Weak<Inner>,
    /// Of the present epoch.
    link: RefCell<Box<dyn Link>>,
    shape: Shape,
    root: Handle,
    id: SessionId,
    epoch: Cell<Epoch>,
    slots: RefCell<ClientSlots>,
    /// By normal slot.
    cells: BySlot<SlotCell>,
    /// What is remembered of calls so that they can be resumed; of a session whose host does not survive, nothing.
    survival: Option<Box<resume::Survival>>,
    /// The host is dead, and its next incarnation awaited; or the connection is lost, and the next one is.
    suspended: Cell<bool>,
    /// Callers without a slot, in order of arrival.
    waiters: RefCell<VecDeque<Waiter>>,
    /// Callers that wait for what is to be known of the call that theirs depends on.
    early: Cell<usize>,
    /// More of both are refused.
    waiters_max: Cell<usize>,
    next_ticket: Cell<u64>,
    /// Control calls to be made, and whether there are any.
    pending: RefCell<Pending>,
    has_pending: Cell<bool>,
    /// What a call hears that is made after the end.
    ended: Cell<Option<Cause>>,
    /// Wakes callers at their deadlines; armed for `timer_at`, the earliest of them or earlier.
    timer: RefCell<Option<JoinHandle<()>>>,
    timer_at: Cell<u64>,
    /// The host, if it is in this very thread, and how often it was looked at since the runtime's last turn.
    near: OnceCell<Weak<dyn Near>>,
    looked: Cell<u32>,
    /// It is not closed when the last clone is dropped.
    stays_open: Cell<bool>,
    /// Where leased bytes land that come over a socket.
    bay: OnceCell<Rc<Bay>>,
    /// Leases go over a socket as bytes.
    is_beyond: Cell<bool>,
    /// What calls lend over it.
    arguments: OnceCell<Rc<Arguments>>,
    /// Called once, with nothing borrowed.
    on_end: Cell<Option<Box<dyn FnOnce()>>>,
    /// What others can see of its calls.
    log: OnceCell<UseLog>,
    mailbox: Mailbox,
    earlier: EarlierCalls,
}

/// Where a caller waits for its answer.
#[derive(Default)]
struct SlotCell {
    answer: RefCell<Answered>,
    /// Of the caller that waits, or of one that did: waking it for nothing does no harm, and it is often the same.
    waker: RefCell<Option<Waker>>,
    /// As on the wire; 0: none.
    deadline: Cell<u64>,
    /// The deadline has passed.
    is_late: Cell<bool>,
    /// The call did not go over the link: the host has it.
    is_near: Cell<bool>,
}

impl SlotCell {
    /// The waker stays; it is out of the cell meanwhile, because waking may run code that comes back here.
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake_by_ref();
            self.waker.borrow_mut().get_or_insert(waker);
        }
    }
}

struct Waiter {
    ticket: u64,
    waker: Waker,
    deadline: u64,
}

impl Inner {
    /// Ready when a slot is free and it is this caller's turn.
    fn free_slot(&self, deadline: u64) -> FreeSlot<'_> {
        FreeSlot { session: self, deadline, ticket: None }
    }

    /// Whether a caller that comes now has a slot at once.
    fn has_turn(&self) -> bool {
        self.waiters.borrow().is_empty()
            && self.slots.borrow().has_free()
            && !self.suspended.get()
            && self.ended.get().is_none()
    }

    /// The host broke a rule: nothing that it says counts any more, its head included.
    fn broken(&self) {
        self.end(Cause::ProtocolViolation, Cause::ProtocolViolation, u64::MAX);
    }

    /// The host may still read what was published before it sees this.
    fn close(&self) {
        self.end(Cause::SessionClosed, Cause::SessionClosed, u64::MAX);
    }

    /// Ends the session, once: outstanding calls with `cause`, later ones with `refusal`. `read` is how many
    /// submissions the host can have read.
    fn end(&self, cause: Cause, refusal: Cause, read: u64) {
        if self.ended.get().is_some() {
            return;
        }
        self.ended.set(Some(refusal));
        self.link.borrow().close();
        let waiting = self.slots.borrow_mut().end();
        for (slot, position) in waiting {
            let seen = self.survival.as_ref().is_some_and(|survival| survival.may_have_run(slot));
            let is_near = !self.shape.is_control(slot) && self.cells[slot].is_near.get();
            let executed = if position < read || seen || is_near { Executed::Unknown } else { Executed::No };
            if !self.shape.is_control(slot) {
                let cell = &self.cells[slot];
                let failure = Failure { cause, executed };
                self.log_ended(slot, || Outcome::Failed(failure));
                let failed = Answered::Failed(failure);
                if self.slots.borrow().state(slot) == ClientState::Free {
                    self.settle(&failed);
                    continue;
                }
                cell.answer.replace(failed);
                self.delivered(slot);
            }
        }
        if let Some(survival) = &self.survival {
            survival.verdicts.happen();
        }
        let waiters = self.waiters.take();
        for waiter in waiters {
            waiter.waker.wake();
        }
        if let Some(timer) = self.timer.take() {
            timer.cancel();
        }
        if let Some(hook) = self.on_end.take() {
            hook();
        }
    }

    /// A slot has become free: it is the turn of whoever waits longest.
    fn slot_is_free(&self) {
        let waker = self.waiters.borrow().front().map(|waiter| waiter.waker.clone());
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The caller of this slot no longer waits.
    fn give_up(&self, slot: u16, seq: u64) {
        let cell = &self.cells[slot];
        cell.deadline.set(0);
        self.log_ended(slot, || Outcome::GivenUp);
        if self.slots.borrow_mut().park(slot) {
            self.later(|pending| pending.cancels.push((slot, seq)));
        } else {
            self.release(&cell.answer.take());
            self.slot_is_free();
        }
    }
}

impl Source for Inner {
    fn poll(&self) -> bool {
        self.looked.set(0);
        if self.ended.get().is_some() || self.suspended.get() {
            return false;
        }
        if self.has_pending.get() && self.send_control().is_err() {
            self.broken();
            return true;
        }
        self.link.borrow().flush();
        if self.drain() {
            return true;
        }
        if self.link.borrow().broken().is_some() {
            self.broken();
            return true;
        }
        if !self.link.borrow().is_closed_by_peer() {
            return false;
        }
        // The answers that it published before it closed.
        self.drain();
        self.end(Cause::SessionClosed, Cause::SessionClosed, self.link.borrow().read_by_peer());
        true
    }

    fn prepare_sleep(&self) -> Sleep {
        if self.ended.get().is_some() || self.suspended.get() {
            return Sleep::Nothing;
        }
        if self.has_pending.get() && self.send_control().is_err() {
            self.broken();
            return Sleep::Work;
        }
        self.link.borrow().flush();
        self.link.borrow().prepare_sleep().unwrap_or_else(|_| {
            self.broken();
            Sleep::Work
        })
    }

    fn cancel_sleep(&self) {
        self.link.borrow().cancel_sleep();
    }
}
