//! The host end of a session: receive → check → serve → answer.
//!
//! - A descriptor is copied and checked once; slot, operation, capabilities, kinds, rights and deadline are checked
//!   before any code of the service runs.
//! - One long-lived task per slot, made when the slot is first used: a call costs no allocation.
//! - Control calls are answered when they are read, never after a handler (R14).
//! - What the client breaks ends its session and nothing else.
//! - A handler always runs to its end. When the session ends, it hears of it by its cancel token; what it then answers
//!   is dropped.

use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

use super::client::ClientSession;
use super::{Call, Grant, OpenError, Response, Service, SessionInfo, now};
use crate::capability::Member;
use crate::described::DESCRIBE;
use crate::error::{Cause, Executed, Failure};
use crate::interface::Retry;
use crate::lease::{Lend, Lender};
use crate::ledger::Tag;
use crate::link::{Body, Link, in_process, shm};
use crate::logbook::{Seen, SessionLog, Watch};
use crate::runtime::{self, Sleep, Source, SourceGuard};
use crate::slots::HostSlots;
use crate::steps;
use crate::wire::{Handle, LeaseName, Shape, Status, Submission, Violation, inline_bytes};

mod cell;
mod control;
mod describe;
mod log;
mod names;
mod quiet;
mod reconnect;
mod revoke;
mod shared;
mod standard;
mod survival;
mod tickets;
mod turns;

use cell::SlotCell;
use names::Names;
pub(super) use names::extent_of;
pub use shared::Served;
pub use survival::{ComponentLedger, Heritage, Ledgers};

use quiet::Quiet;
use reconnect::{Reconnect, Reconnecting};
use shared::Shared;
use survival::{Recovering, Survival};
use turns::{Turn, Turns};

/// Most capabilities that one session may hold.
const CAPABILITIES: u32 = 1 << 14;
/// The first handle of every table.
const ROOT: Handle = Handle { index: 0, generation: 1 };
/// How often leases that a mapper still pins are looked at again.
const RECLAIM_INTERVAL: Duration = Duration::from_millis(1);

/// The host end of an open session. Dropping it ends the session.
pub struct HostSession {
    inner: Rc<dyn Serving>,
    segment: Option<OwnedFd>,
    _source: SourceGuard,
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

    fn serve<S: Service>(
        link: impl Link + 'static,
        segment: Option<OwnedFd>,
        served: Served<S>,
        (info, member): (Rc<SessionInfo>, Member),
        lender: Option<Rc<RefCell<Lender>>>,
        survival: Option<Survival>,
    ) -> HostSession {
        let shape = link.shape();
        let inner = Rc::new_cyclic(|this| Inner {
            this: this.clone(),
            link: Box::new(link),
            shape,
            service: served.service().clone(),
            shared: served.0.clone(),
            member,
            slots: RefCell::new(HostSlots::new(shape)),
            cells: (0..shape.slots).map(|_| SlotCell::new(&info)).collect(),
            info,
            survival,
            reconnect: Reconnect::default(),
            lender,
            lent: RefCell::new(Vec::new()),
            reclaiming: Cell::new(false),
            quiet: Quiet::default(),
            turns: Turns::default(),
            scratch: RefCell::new(Vec::new()),
            description: OnceCell::new(),
            ended: Cell::new(None),
            on_end: Cell::new(None),
            log: OnceCell::new(),
        });
        served.0.attach(member, inner.this.clone());
        let source = runtime::register(inner.clone());
        HostSession { inner, segment, _source: source }
    }
}

impl Drop for HostSession {
    fn drop(&mut self) {
        self.inner.close();
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
    let source: Rc<dyn Source> = host.inner.clone();
    client.is_near(&source);
    (client, host)
}

/// A session whose service's type is forgotten.
trait Serving: Source + Recovering + Reconnecting + log::Logging {
    fn info(&self) -> &SessionInfo;
    /// `None` while it lives; else what the client broke, if anything.
    fn end_reason(&self) -> Option<Option<Violation>>;
    fn client_died(&self);
    fn close(&self);
    fn refuse_after(&self, limit: Option<Duration>);
    fn on_end(&self, hook: EndHook);
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
    cells: Box<[SlotCell]>,
    /// What the next incarnation will go on from.
    survival: Option<Survival>,
    /// What the client owes after its connection was lost.
    reconnect: Reconnect,
    lender: Option<Rc<RefCell<Lender>>>,
    /// What this session has been lent and not released, by the lease's index.
    lent: RefCell<Vec<Lent>>,
    reclaiming: Cell<bool>,
    quiet: Quiet,
    turns: Turns,
    /// Payloads of calls that no slot's call object is filled with: of control calls, and questions for the description.
    scratch: RefCell<Vec<u8>>,
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
    /// Serves what has come. True if anything had.
    fn receive_all(&self) -> bool {
        let mut turn = self.turns.begin();
        // At most a ring at a time: a client that never stops calling must not keep the thread here.
        for round in 0..self.shape.ring_entries() {
            if turn.is_over() {
                break;
            }
            let Some(raw) = self.link.receive() else {
                if round > 0 {
                    break;
                }
                if let Some(violation) = self.link.broken() {
                    self.end(Some(violation));
                    return true;
                }
                let closed = self.link.is_closed_by_peer();
                if closed {
                    self.end(None);
                }
                return closed;
            };
            self.turns.received();
            let accepted = if self.awaits_offers() {
                self.offered(&raw)
            } else if self.awaits_resume() {
                self.resume(&raw)
            } else {
                match &Submission::check(&raw, self.shape) {
                    Ok(call) => self.accept(call, &mut turn),
                    Err(violation) => Err(*violation),
                }
            };
            if let Err(violation) = accepted {
                self.end(Some(violation));
            }
            if self.ended.get().is_some() {
                return true;
            }
        }
        self.turns.end(&turn, &*self.link);
        true
    }

    /// Receives one descriptor's call: it is refused at once, answered at once (control), or handed to its slot.
    fn accept(&self, call: &Submission, turn: &mut Turn) -> Result<(), Violation> {
        self.slots.borrow_mut().accept(call.slot, call.seq)?;
        steps::reach("call/read");
        if self.shape.is_control(call.slot) {
            self.control(call)?;
            self.quiet.answered(call.operation);
            return self.answer(call, Status::Done, &[], &[], &[]);
        }
        let seen = self.log_saw(call);
        match turn.admit(&self.turns, call).and_then(|()| self.check(call, seen)) {
            Ok(()) => {
                self.start(call.slot);
                Ok(())
            }
            Err(Cause::UnknownOperation) if call.operation == DESCRIBE => self.describe(call),
            Err(Cause::UnknownOperation) => self.standard(call),
            Err(cause) => {
                let failure = Failure::not_executed(cause);
                self.log_refused(call, seen, failure);
                self.answer(call, Status::Failed(failure), &[], &[], &[])
            }
        }
    }

    /// Everything that the service need not check, and the copy of the arguments into the slot's call object.
    fn check(&self, submission: &Submission, seen: Seen) -> Result<(), Cause> {
        let operation = S::INTERFACE.operation(submission.operation).ok_or(Cause::UnknownOperation)?;
        self.begun(submission, operation.retry);
        if submission.deadline != 0 && submission.deadline <= now() {
            return Err(Cause::Deadline);
        }
        let mut realm = self.shared.realm.borrow_mut();
        let target = *realm.lookup(self.member, submission.handle, operation.target_kind, operation.requires, now)?;
        if usize::from(submission.extent.capabilities) != operation.handles.len() {
            return Err(Cause::BadArguments);
        }

        let cell = &self.cells[usize::from(submission.slot)];
        let mut idle = cell.call.borrow_mut();
        let call = idle.as_mut().expect("a slot that accepts a call has no handler");
        call.operation = submission.operation;
        call.handle = submission.handle;
        call.effect.take();
        call.target = target;
        call.deadline = submission.deadline;
        call.trace = submission.trace;
        call.seen = seen;
        call.capabilities.clear();
        call.leases.clear();
        let mut uses = cell.uses.borrow_mut();
        uses.clear();
        uses.push(submission.handle.index);
        for i in 0..submission.extent.leases {
            let mut name = [0; LeaseName::BYTES];
            self.link.read_window(submission.slot, usize::from(i) * LeaseName::BYTES, &mut name);
            call.leases.push(LeaseName::from_bytes(name));
        }
        for (i, argument) in operation.handles.iter().enumerate() {
            let mut handle = [0; Handle::BYTES];
            let offset = submission.extent.capabilities_offset() + i * Handle::BYTES;
            self.link.read_window(submission.slot, offset, &mut handle);
            let handle = Handle::from_word(u64::from_le_bytes(handle));
            call.capabilities.push(*realm.lookup(self.member, handle, argument.kind, argument.requires, now)?);
            uses.push(handle.index);
        }
        uses.iter().for_each(|index| realm.begun(self.member, *index));
        self.read_payload(submission, &mut call.payload);
        self.runs(submission.slot, call);
        steps::reach("call/begun");
        Ok(())
    }

    fn read_payload(&self, submission: &Submission, payload: &mut Vec<u8>) {
        let length = submission.extent.length as usize;
        payload.clear();
        if submission.extent.is_inline() {
            payload.extend(inline_bytes(submission.inline).iter().take(length));
        } else {
            payload.resize(length, 0);
            self.link.read_window(submission.slot, submission.extent.payload_offset(), payload);
        }
    }

    /// Hands the slot's call object to the slot's task.
    fn start(&self, slot: u16) {
        let cell = &self.cells[usize::from(slot)];
        cell.cancel.reset();
        cell.ready.set(true);
        let task = cell.task.take().or_else(|| self.this.upgrade().map(|this| runtime::spawn(this.run_slot(slot))));
        if let Some(task) = &task {
            // At once, not by its waker: the task is at the place where it waits for the next call, and the way through
            // the run queue would be a tenth of a call's cost. A handler runs in its session's poll, therefore, until it
            // waits for something.
            task.run_now();
        }
        cell.task.set(task);
    }

    /// The task of one slot.
    async fn run_slot(self: Rc<Self>, slot: u16) {
        while let Some((mut call, seq)) = self.next_call(slot).await {
            let watch = Watch::begin(self.log.get(), (slot, seq), &call);
            let response = watch.over(self.service.serve(&mut call)).await;
            watch.end(call.operation, &response);
            steps::reach("call/served");
            self.finish(slot, seq, &mut call, response);
            self.was_answered(slot);
            *self.cells[usize::from(slot)].call.borrow_mut() = Some(call);
        }
        if self.cells[usize::from(slot)].ready.replace(false) {
            // The session has ended before its handler began.
            self.was_answered(slot);
        }
    }

    /// The call in progress has been answered: nothing depends on it any more.
    fn was_answered(&self, slot: u16) {
        let mut realm = self.shared.realm.borrow_mut();
        let waited_for = |index: &u32| realm.ended(self.member, *index);
        let uses = self.cells[usize::from(slot)].uses.take();
        let is_waited_for = uses.iter().map(waited_for).fold(false, |one, other| one | other);
        self.cells[usize::from(slot)].uses.replace(uses);
        drop(realm);
        if is_waited_for {
            // Before whoever waits for it answers somebody else: a revoke that has returned is heard after this.
            self.link.publish();
            self.shared.was_answered();
        }
    }

    /// The next call of a slot, with its seq; `None` when the session has ended.
    fn next_call(&self, slot: u16) -> impl Future<Output = Option<(Box<Call>, u64)>> {
        let cell = &self.cells[usize::from(slot)];
        std::future::poll_fn(move |cx| {
            if self.ended.get().is_some() {
                return Poll::Ready(None);
            }
            if cell.ready.replace(false) {
                let seq = self.slots.borrow().in_progress(slot);
                let call = cell.call.borrow_mut().take();
                return Poll::Ready(call.zip(seq));
            }
            cell.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
            Poll::Pending
        })
    }

    /// Answers with what the service said.
    fn finish(&self, slot: u16, seq: u64, call: &mut Call, response: Response) {
        let submission =
            Submission { slot, seq, operation: call.operation, trace: call.trace, ..Submission::default() };
        let status = response.operation_error.map_or(Status::Done, Status::OperationError);
        let kept = self.survival.is_some()
            && status == Status::Done
            && response.failure.is_none()
            && S::INTERFACE.operation(call.operation).is_some_and(|operation| operation.retry == Retry::Cached);
        // Looked at where it stands: most are short, and not worth moving.
        if response.failure.is_none()
            && !kept
            && response.grants.is_empty()
            && response.lends.is_empty()
            && response.payload.len() <= self.shape.window_bytes as usize
        {
            if let Err(violation) = self.answer(&submission, status, &[], &[], &response.payload) {
                self.end(Some(violation));
            }
            steps::reach("reply/published");
            return;
        }
        let Response { payload, grants, lends, failure, .. } = response;
        let mut names = Names::default();
        let outcome = match failure {
            Some(failure) => Err(failure),
            None if self.ended.get().is_some() => {
                // What it did counts for the others, though nobody hears the answer.
                self.remember(call.effect.take());
                Err(Failure::unknown(Cause::SessionClosed))
            }
            None => self.name(&submission, &payload, (call.handle.index, &grants), lends, &mut names),
        };
        steps::reach("reply/named");
        let outcome = outcome.and_then(|()| match kept {
            true => self.commit(&submission, call.handle, &call.effect, &names, &payload),
            false => Ok(()),
        });
        if !kept && outcome.is_ok() && status == Status::Done && !grants.is_empty() {
            // Its reply is not kept, but what it grants is: from before the client can use it.
            self.applied(slot, seq);
        }
        let committed = kept && outcome.is_ok();
        if outcome.is_err() {
            self.unname(&names);
            // What was done was done, whatever its caller hears.
            self.remember(call.effect.take());
        }
        let answered = match outcome {
            Ok(()) => self.answer(&submission, status, names.leases(), names.handles(), &payload),
            Err(failure) => {
                for grant in &grants {
                    self.service.dropped(&self.info, grant);
                }
                self.answer(&submission, Status::Failed(failure), &[], &[], &[])
            }
        };
        steps::reach("reply/published");
        if committed {
            self.applied(slot, seq);
            steps::reach("reply/applied");
        }
        if let Err(violation) = answered {
            self.end(Some(violation));
        }
    }

    /// Enters what a reply gives into the session's tables. After an error, [`unname`](Self::unname) what was entered.
    fn name(
        &self,
        call: &Submission,
        payload: &[u8],
        (target, grants): (u32, &[Grant]),
        lends: Vec<Lend>,
        names: &mut Names,
    ) -> Result<(), Failure> {
        let ran = |cause| Failure { cause, executed: Executed::Yes };
        let extent = extent_of(lends.len(), grants.len(), payload.len());
        if extent.is_none_or(|extent| extent.check(self.shape.window_bytes).is_err()) {
            return Err(ran(Cause::ReplyTooLarge));
        }
        for grant in grants {
            let tag = Tag::Call { slot: call.slot, seq: call.seq };
            let handle = self.shared.realm.borrow_mut().grant(self.member, target, *grant, tag);
            names.push_handle(handle.map_err(|quota| ran(quota.into()))?);
        }
        if lends.is_empty() { Ok(()) } else { self.lend(call, target, lends, names).map_err(ran) }
    }

    /// Takes back what an answer that is not given had entered.
    fn unname(&self, names: &Names) {
        for handle in names.handles() {
            let _ = self.shared.realm.borrow_mut().release(self.member, *handle);
        }
        self.take_back(names.leases()).for_each(drop);
    }

    fn lend(&self, call: &Submission, target: u32, lends: Vec<Lend>, names: &mut Names) -> Result<(), Cause> {
        let lender = self.lender.as_ref().ok_or(Cause::Refused)?;
        for lend in lends {
            let call = self.survival.as_ref().map(|_| (self.info.id, call.slot, call.seq));
            let name = lender.borrow_mut().lend_for(self.info.client, lend, call)?;
            self.has_lent(name.index, name.generation, Some(target));
            names.push_lease(name);
        }
        Ok(())
    }

    /// The client holds this lease. `by` is the entry of the call that brought it.
    fn has_lent(&self, index: u32, generation: u32, by: Option<u32>) {
        if let Some(by) = by {
            self.shared.realm.borrow_mut().lent(self.member, by);
        }
        let mut lent = self.lent.borrow_mut();
        let index = index as usize;
        if lent.len() <= index {
            lent.resize(index + 1, Lent::default());
        }
        lent[index] = Lent { generation, by: by.map_or(0, |by| by + 1) };
    }

    /// Publishes a completion; the slot is idle again.
    fn answer(
        &self,
        call: &Submission,
        status: Status,
        leases: &[LeaseName],
        capabilities: &[Handle],
        payload: &[u8],
    ) -> Result<(), Violation> {
        if self.ended.get().is_some() {
            return Ok(());
        }
        self.slots.borrow_mut().finish(call.slot);
        let completion = self.completion(call, status, leases, capabilities, payload).ok_or(Violation::Length)?;
        let payload = if completion.extent.is_inline() { &[] } else { payload };
        self.reconnect.answers(call.slot);
        self.link.send(&completion.to_raw(), call.slot, &Body { leases, capabilities, payload })
    }

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
        for cell in &self.cells {
            cell.cancel.set();
            cell.wake();
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
}

impl<S: Service> Source for Inner<S> {
    fn poll(&self) -> bool {
        if self.ended.get().is_some() {
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
