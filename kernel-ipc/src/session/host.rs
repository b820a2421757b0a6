//! The host end of a session: receive → check → serve → answer.
//!
//! - A descriptor is copied and checked once; slot, operation, capabilities, kinds, rights and deadline are checked
//!   before any code of the service runs.
//! - One long-lived future per slot, made when the slot is first used: a call costs no allocation.
//! - Control calls are answered when they are read, never after a handler (R14).
//! - What the client breaks ends its session and nothing else.
//! - A handler always runs to its end. When the session ends, it hears of it by its cancel token; what it then answers
//!   is dropped.

use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::by_slot::BySlot;
use super::client::ClientSession;
use super::near::Near;
use super::{Grant, OpenError, Service, SessionInfo};
use crate::capability::Member;
use crate::lease::Lender;
use crate::link::socket::bulk::arrive::Berth;
use crate::link::{Link, in_process, shm};
use crate::logbook::SessionLog;
use crate::runtime::{self, Sleep, Source, SourceGuard};
use crate::slots::HostSlots;
use crate::wire::{Handle, LeaseName, Shape, Violation};

mod answer;
mod arguments;
mod at_once;
mod cell;
mod control;
mod dependent;
mod describe;
mod hold;
mod lane;
mod log;
mod names;
mod near;
mod parting;
mod quiet;
mod receive;
mod reconnect;
mod revoke;
mod shared;
mod standard;
mod survival;
mod tickets;
mod turns;

use cell::SlotCell;
use dependent::Dependents;
pub use hold::UnderWay;
pub(super) use names::extent_of;
pub use parting::{Movable, Parted};
pub use shared::Served;
pub use survival::{ComponentLedger, Heritage, Ledgers};

use quiet::Quiet;
use reconnect::{Reconnect, Reconnecting};
use shared::Shared;
use survival::{Recovering, Survival};
use turns::Turns;

/// Most capabilities that one session may hold.
const CAPABILITIES: u32 = 1 << 14;
/// The first handle of every table.
const ROOT: Handle = Handle { index: 0, generation: 1 };

/// The host end of an open session. Dropping it ends the session.
pub struct HostSession {
    inner: Rc<dyn Serving>,
    segment: Option<OwnedFd>,
    /// `None`: what it was is on its way to another thread.
    source: Option<SourceGuard>,
}

impl HostSession {
    /// Opens a session with the client's C-segment and serves it on this thread's runtime: makes the S-segment,
    /// enters `root` as the session's first capability, and calls `service` for each call. `lender` is needed to
    /// answer with leases; the session's leases go back when it ends.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn start<S: Service>(
        client_segment: OwnedFd,
        root: Grant,
        service: impl Into<Served<S>>,
        info: SessionInfo,
        lender: Option<Rc<RefCell<Lender>>>,
    ) -> Result<HostSession, OpenError> {
        let link = shm::ShmLink::host(client_segment, info.id, info.epoch, ROOT)?;
        let segment = link.fd().try_clone_to_owned()?;
        let (served, info) = (service.into(), Rc::new(info));
        let member = served.begin(&info, root, None);
        Ok(Self::serve(link, Some(segment), served, (info, member), lender, None))
    }

    /// The S-segment, to be sent to the client. `None` for a session inside one process.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.segment.as_ref().map(|fd| fd.as_fd())
    }

    /// What is known of the session.
    pub fn info(&self) -> &SessionInfo {
        self.inner.info()
    }

    /// Whether the session still lives: neither side has closed it and the client broke no rule.
    pub fn is_open(&self) -> bool {
        self.inner.end_reason().is_none()
    }

    /// What the client did to end the session, if it broke a rule.
    pub fn violation(&self) -> Option<Violation> {
        self.inner.end_reason().flatten()
    }

    /// From now on a call that has waited longer than this to be read is refused with [`Cause::Busy`] instead of being
    /// begun; `None`, as at first: none is. How long a call has waited is known to a turn of the thread (a few calls of each
    /// of its sessions). Choose what callers wait at most, less what the service takes.
    pub fn refuse_after(&self, limit: Option<Duration>) {
        self.inner.refuse_after(limit);
    }

    /// Calls `hook` when the session ends, however it does; at once if it has. There is one hook: a new one replaces it.
    /// It runs while the session's source is looked at: it must not drop this.
    pub fn on_end(&self, hook: impl FnOnce(Option<Violation>) + 'static) {
        self.inner.on_end(Box::new(hook));
    }

    /// Ends the session: also what the broker asks for when the client has died. Drops its capabilities, takes back
    /// its leases, cancels its calls.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Ends the session because its client has died, which the service hears first.
    pub fn client_died(&self) {
        self.inner.client_died();
        self.close();
    }

    /// The first handle of every session.
    pub const ROOT: Handle = ROOT;

    /// As [`start`](Self::start), over any link. The client's first handle is [`ROOT`](Self::ROOT).
    pub fn over<S: Service>(
        link: impl Link + 'static,
        root: Grant,
        service: impl Into<Served<S>>,
        info: SessionInfo,
        lender: Option<Rc<RefCell<Lender>>>,
    ) -> HostSession {
        let (served, info) = (service.into(), Rc::new(info));
        let member = served.begin(&info, root, None);
        Self::serve(link, None, served, (info, member), lender, None)
    }

    /// The link is about to have another connection, which begins with so many outstanding calls.
    pub(crate) fn reconnected(&self, outstanding: u16) {
        self.inner.reconnected(outstanding);
    }

    /// What calls lend is brought there, and never looked for among what this process knows: their names are those of another
    /// machine. `None`: nothing is brought, and such calls fail.
    pub(crate) fn takes_in(&self, berth: Option<Rc<Berth>>) {
        self.inner.takes_in(berth);
    }

    fn serve<S: Service>(
        link: impl Link + 'static,
        segment: Option<OwnedFd>,
        served: Served<S>,
        (info, member): (Rc<SessionInfo>, Member),
        lender: Option<Rc<RefCell<Lender>>>,
        survival: Option<Survival>,
    ) -> HostSession {
        let slots = HostSlots::new(link.shape());
        Self::serve_from(Box::new(link), segment, served, (info, member), lender, survival, slots)
    }

    /// As [`serve`](Self::serve), from where these slots stand.
    fn serve_from<S: Service>(
        link: Box<dyn Link>,
        segment: Option<OwnedFd>,
        served: Served<S>,
        (info, member): (Rc<SessionInfo>, Member),
        lender: Option<Rc<RefCell<Lender>>>,
        survival: Option<Survival>,
        slots: HostSlots,
    ) -> HostSession {
        let shape = link.shape();
        let inner = Rc::new_cyclic(|this| Inner {
            this: this.clone(),
            link,
            shape,
            service: served.service().clone(),
            shared: served.0.clone(),
            member,
            slots: RefCell::new(slots),
            cells: BySlot::new(shape.slots, {
                let info = info.clone();
                move || SlotCell::new(&info)
            }),
            aside: OnceCell::new(),
            info,
            survival,
            reconnect: Reconnect::default(),
            lender,
            lent: RefCell::new(Vec::new()),
            quiet: Quiet::default(),
            turns: Turns::default(),
            dependents: Dependents::default(),
            is_held: Cell::new(false),
            scratch: RefCell::new(Vec::new()),
            copies: RefCell::new(Vec::new()),
            arguments: OnceCell::new(),
            description: OnceCell::new(),
            ended: Cell::new(None),
            on_end: Cell::new(None),
            log: OnceCell::new(),
        });
        served.0.attach(member, inner.this.clone());
        let source = runtime::register(inner.clone());
        HostSession { inner, segment, source: Some(source) }
    }
}

impl Drop for HostSession {
    fn drop(&mut self) {
        if self.source.is_some() {
            self.inner.close();
        }
    }
}

impl std::fmt::Debug for HostSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostSession").field("info", self.inner.info()).field("open", &self.is_open()).finish()
    }
}

/// Both ends of a session inside this thread: `service` runs inside its client.
pub fn in_process<S: Service>(
    shape: Shape,
    root: Grant,
    service: impl Into<Served<S>>,
    info: SessionInfo,
    lender: Option<Rc<RefCell<Lender>>>,
) -> (ClientSession, HostSession) {
    let (client, host) = in_process::pair(shape);
    let client = ClientSession::over(client, ROOT, info.id, info.epoch);
    let (served, info) = (service.into(), Rc::new(info));
    let member = served.begin(&info, root, None);
    let host = HostSession::serve(host, None, served, (info, member), lender, None);
    let near: Rc<dyn Near> = host.inner.clone();
    client.is_near(&near);
    (client, host)
}

/// A session whose service's type is forgotten.
trait Serving: Near + Recovering + Reconnecting + log::Logging + parting::Parting {
    fn info(&self) -> &SessionInfo;
    /// `None` while it lives; else what the client broke, if anything.
    fn end_reason(&self) -> Option<Option<Violation>>;
    fn client_died(&self);
    fn close(&self);
    fn refuse_after(&self, limit: Option<Duration>);
    fn on_end(&self, hook: EndHook);
    fn takes_in(&self, berth: Option<Rc<Berth>>);
}

type EndHook = Box<dyn FnOnce(Option<Violation>)>;

struct Inner<S> {
    this: Weak<Inner<S>>,
    link: Box<dyn Link>,
    shape: Shape,
    service: Rc<S>,
    info: Rc<SessionInfo>,
    slots: RefCell<HostSlots>,
    shared: Rc<Shared<S>>,
    /// This session among those of the service.
    member: Member,
    /// By normal slot.
    cells: BySlot<SlotCell>,
    /// For calls without a slot, one at a time.
    aside: OnceCell<Box<SlotCell>>,
    /// What the next incarnation will go on from.
    survival: Option<Survival>,
    /// What the client owes after its connection was lost.
    reconnect: Reconnect,
    lender: Option<Rc<RefCell<Lender>>>,
    /// What this session has been lent and not released, by the lease's index.
    lent: RefCell<Vec<Lent>>,
    quiet: Quiet,
    turns: Turns,
    /// Calls that have been read and wait for what earlier ones bring.
    dependents: Dependents,
    /// Calls stay unread in the client's ring.
    is_held: Cell<bool>,
    /// Payloads of calls that no slot's call object is filled with: of control calls, and questions for the description.
    scratch: RefCell<Vec<u8>>,
    /// What stood in the window of a call that names several things.
    copies: RefCell<Vec<u8>>,
    /// Where what calls lend is brought, of a session over a socket.
    arguments: OnceCell<Option<Rc<Berth>>>,
    /// The description, once somebody has asked.
    description: OnceCell<Box<str>>,
    ended: Cell<Option<Option<Violation>>>,
    on_end: Cell<Option<EndHook>>,
    /// What others can see of its calls.
    log: OnceCell<SessionLog>,
}

/// A lease that a session was lent.
#[derive(Clone, Copy, Default)]
struct Lent {
    /// 0: none.
    generation: u32,
    /// The entry by which it came, by index and one; 0: it is not known.
    by: u32,
}

impl Lent {
    /// The entry by which it came, by index.
    fn by(&self) -> Option<u32> {
        self.by.checked_sub(1).filter(|_| self.generation != 0)
    }
}

impl<S: Service> Inner<S> {
    /// Lets the client see what was answered, and wakes it if there is something that it waits for.
    fn flush(&self) {
        match self.quiet.is_over(self.link.sent()) {
            true => self.link.flush(),
            false => self.link.publish(),
        }
    }

    /// Ends the session, once. Callbacks run with nothing borrowed.
    fn end(&self, violation: Option<Violation>) {
        if self.ended.get().is_some() {
            return;
        }
        self.ended.set(Some(violation));
        self.link.close();
        self.dependents.clear();
        for (_, cell) in self.cells.used() {
            cell.cancel.set();
            cell.lane.wake();
        }
        if let Some(aside) = self.aside.get() {
            aside.cancel.set();
        }
        if let Some(lender) = &self.lender {
            let lender = lender.borrow().id();
            let lent: Vec<LeaseName> = (0u32..)
                .zip(&*self.lent.borrow())
                .filter(|(_, lent)| lent.generation != 0)
                .map(|(index, lent)| LeaseName { lender, index, generation: lent.generation, length: 0 })
                .collect();
            self.take_back(&lent).for_each(drop);
        }
        self.shared.left(self.member);
        self.service.closed(&self.info);
        if let Some(hook) = self.on_end.take() {
            hook(violation);
        }
    }
}

impl<S: Service> Serving for Inner<S> {
    fn info(&self) -> &SessionInfo {
        &self.info
    }

    fn end_reason(&self) -> Option<Option<Violation>> {
        self.ended.get()
    }

    fn client_died(&self) {
        if self.ended.get().is_none() {
            self.service.client_died(&self.info);
        }
    }

    fn close(&self) {
        self.end(None);
    }

    fn refuse_after(&self, limit: Option<Duration>) {
        self.turns.limit(limit);
    }

    fn on_end(&self, hook: EndHook) {
        match self.ended.get() {
            None => self.on_end.set(Some(hook)),
            Some(violation) => hook(violation),
        }
    }

    fn takes_in(&self, berth: Option<Rc<Berth>>) {
        // Said once, before the first call is read.
        let _ = self.arguments.set(berth);
    }
}

impl<S: Service> Source for Inner<S> {
    fn poll(&self) -> bool {
        if self.ended.get().is_some() {
            return false;
        }
        if self.is_held.get() {
            self.flush();
            return false;
        }
        if !self.turns.has_more() {
            self.flush();
        }
        let found = self.receive_all();
        if found {
            self.link.publish();
        }
        found
    }

    fn prepare_sleep(&self) -> Sleep {
        if self.ended.get().is_some() {
            return Sleep::Nothing;
        }
        self.flush();
        if self.is_held.get() {
            return Sleep::Nothing;
        }
        self.link.prepare_sleep().unwrap_or_else(|violation| {
            self.end(Some(violation));
            Sleep::Work
        })
    }

    fn cancel_sleep(&self) {
        self.link.cancel_sleep();
    }

    fn may_rest(&self) -> bool {
        let slots = self.slots.borrow();
        !self.turns.has_more() && (0..self.shape.all_slots()).all(|slot| slots.in_progress(slot).is_none())
    }
}
