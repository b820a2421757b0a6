//! Going on with a session when its host has died and its next incarnation knows the session's ledger, or when its
//! connection is lost and the host lives.
//!
//! 1. The keeper has reaped the host. [`ClientSession::suspend`] takes every answer that is still in the old segment (R16);
//!    the old ring is never looked at again. Callers wait; new calls wait for a slot.
//! 2. [`ClientSession::offer`] makes the new segment, [`ClientSession::resume`] begins its ring with one RESUME for each
//!    call that is outstanding, wanted or parked, then sends the control calls again, which are idempotent.
//! 3. The host answers each RESUME: by the call's own completion if it is done, by NOT_SEEN if it did not happen, or by
//!    LOST if it began. What did not happen is sent again with the same seq; so is what began and may run twice. Of the
//!    rest the caller hears that nobody knows. From a call that may have run before, a later `No` is `Unknown` (R19).
//!
//! A call that is sent again is the same to its caller: same future, same deadline. One that depends on another is sent after
//! it, with the handle in the place of its name if that was answered; if that failed, it fails.
//!
//! Over a socket it is the same exchange, on the next connection ([`ClientSession::cut`], [`ClientSession::reconnected`]). The same
//! host has kept what it had sent, and answers each RESUME by the completion that the connection took with it, by NOT_SEEN, or by
//! RUNNING, after which the completion comes as it would have. Another epoch is the next incarnation, which answers by the ledger.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::earlier::AnswerBrought;
use super::waits::Answered;
use super::{ClientSession, Inner, Offer};
use crate::error::{Cause, Failure};
use crate::id::Epoch;
use crate::interface::Retry;
use crate::link::{Body, Link, shm};
use crate::runtime::{self, Changes};
use crate::session::{OpenError, Request, now};
use crate::slots::{ClientState, Ended};
use crate::steps;
use crate::trace::Outcome;
use crate::wire::{ExpectedHandle, Handle, Outstanding, RawDescriptor, Shape, Submission, Violation, flag};

/// What became of calls that were outstanding when a host died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Sent again.
    pub repeated: u64,
    /// Answered by what the dead host had left, or once more by one that lives.
    pub from_ledger: u64,
    /// Under way at a host that lives, all the time.
    pub running: u64,
}

/// What is remembered of calls, by slot of every kind.
pub(super) struct Survival {
    calls: Box<[Remembered]>,
    resumed: Cell<Resumed>,
    /// How many calls were submitted.
    submitted: Cell<u64>,
    /// A call that was offered to the present host has been answered for.
    pub(super) verdicts: Changes,
    /// What answers is the host that knew the calls, over another connection.
    host_lives: Cell<bool>,
}

#[derive(Default)]
struct Remembered {
    /// As it was submitted.
    submission: Cell<Submission>,
    retry: Cell<Retry>,
    /// How many were submitted before it.
    before: Cell<u64>,
    /// A host that died may have begun it.
    seen: Cell<bool>,
    /// The host that lives may have begun it: it was sent on a connection that is lost.
    in_doubt: Cell<bool>,
    /// It was offered to the present host, which has not answered yet.
    offered: Cell<bool>,
    /// What stood in its request window, once a host has died on it.
    window: RefCell<Option<Vec<u8>>>,
    /// The outcomes of the calls that it names.
    depends_on: RefCell<Vec<(ExpectedHandle, Rc<AnswerBrought>)>>,
}

impl Survival {
    pub(super) fn new(shape: Shape) -> Survival {
        let calls = (0..shape.all_slots()).map(|_| Remembered::default()).collect();
        Survival {
            calls,
            resumed: Cell::default(),
            submitted: Cell::new(0),
            verdicts: Changes::default(),
            host_lives: Cell::new(false),
        }
    }

    /// A call was submitted.
    pub(super) fn remember(&self, submission: &Submission, retry: Retry) {
        let call = &self.calls[usize::from(submission.slot)];
        call.submission.set(*submission);
        call.retry.set(retry);
        call.before.set(self.submitted.get());
        self.submitted.set(self.submitted.get() + 1);
        call.seen.set(false);
        call.in_doubt.set(false);
        call.offered.set(false);
        call.window.take();
        call.depends_on.take();
    }

    /// What the call that was just submitted on this slot depends on.
    #[cold]
    pub(super) fn depends(&self, slot: u16, on: Vec<(ExpectedHandle, Rc<AnswerBrought>)>) {
        self.calls[usize::from(slot)].depends_on.replace(on);
    }

    /// Whether the slot's call may have begun before what is known of the present link.
    pub(super) fn may_have_run(&self, slot: u16) -> bool {
        self.calls.get(usize::from(slot)).is_some_and(|call| call.seen.get() || call.in_doubt.get())
    }

    /// Whether a host that died may have begun the slot's call.
    pub(super) fn seen(&self, slot: u16) -> bool {
        self.calls.get(usize::from(slot)).is_some_and(|call| call.seen.get())
    }

    /// Who may have begun the slot's call is dead.
    fn host_died_on(&self, slot: u16) {
        if let Some(call) = self.calls.get(usize::from(slot)) {
            call.seen.set(call.seen.get() || call.in_doubt.replace(false));
        }
    }

    #[cold]
    fn awaits_verdict_of(&self, request: &Request<'_>) -> bool {
        let named = request.capabilities.iter().chain([&request.handle]);
        named.filter_map(|handle| handle.expected()).any(|expected| {
            let call = self.calls.get(usize::from(expected.slot));
            call.is_some_and(|call| call.offered.get() && call.submission.get().seq as u32 == expected.seq)
        })
    }

    /// A call's own completion has come.
    pub(super) fn completed(&self, slot: u16) {
        if self.calls[usize::from(slot)].offered.replace(false) {
            self.count(|resumed| resumed.from_ledger += 1);
            self.verdicts.happen();
        }
    }

    fn count(&self, count: impl FnOnce(&mut Resumed)) {
        let mut resumed = self.resumed.get();
        count(&mut resumed);
        self.resumed.set(resumed);
    }
}

impl ClientSession {
    /// Whether the session goes on in its host's next incarnation.
    pub fn survives(&self) -> bool {
        self.0.inner.survival.is_some()
    }

    /// What became of the calls that were outstanding when its hosts died.
    pub fn resumed(&self) -> Resumed {
        self.0.inner.survival.as_ref().map(|survival| survival.resumed.get()).unwrap_or_default()
    }

    /// The broker says that the host has died and will be started again: from now on callers wait. Only for a session
    /// that [`survives`](Self::survives); another one ends as by [`host_died`](Self::host_died).
    pub fn suspend(&self) {
        match self.0.inner.survival {
            Some(_) => self.0.inner.suspend(|call| &call.seen),
            None => self.host_died(),
        }
    }

    /// The connection is lost: from now on callers wait. Only for a session over a socket.
    pub(crate) fn cut(&self) {
        self.0.inner.suspend(|call| &call.in_doubt);
    }

    /// Calls that the next connection begins with.
    pub(crate) fn outstanding(&self) -> u16 {
        let inner = &self.0.inner;
        let outstanding = inner.slots.borrow().outstanding();
        let normal = outstanding.iter().filter(|(slot, _)| !inner.shape.is_control(*slot)).count();
        u16::try_from(normal).unwrap_or(u16::MAX)
    }

    /// The link has a connection again, with the host that lives, or that goes on for one that has died: that has a later epoch. It
    /// was told how many calls are outstanding. False: it is another one, or broke a rule, and the session is over.
    pub(crate) fn reconnected(&self, root: Handle, epoch: Epoch, told: u16) -> bool {
        let inner = &self.0.inner;
        let goes_on = root == inner.root && epoch >= inner.epoch.get() && told == self.outstanding();
        let lives = epoch == inner.epoch.get();
        if let Some(survival) = &inner.survival {
            survival.host_lives.set(lives);
            if goes_on && !lives {
                inner.epoch.set(epoch);
                inner.slots.borrow().outstanding().iter().for_each(|(slot, _)| survival.host_died_on(*slot));
            }
        }
        if !goes_on || inner.offer_again().is_err() {
            inner.broken();
        }
        self.is_open()
    }

    /// There will be no other connection: outstanding calls end, `Unknown` where the host may have begun them.
    pub(crate) fn link_lost(&self) {
        let read = self.0.inner.link.borrow().read_by_peer();
        self.0.inner.end(Cause::LinkLost, Cause::LinkLost, read);
    }

    /// There is a host, and it knows nothing of this session: outstanding calls end as by the death of the one that did.
    pub(crate) fn host_is_gone(&self) {
        let read = self.0.inner.link.borrow().read_by_peer();
        self.0.inner.end(Cause::PeerDied, Cause::StaleEpoch, read);
    }

    /// The new C-segment, for the host's next incarnation.
    ///
    /// # Errors
    /// What the kernel says to a new memfd.
    pub fn offer(&self) -> std::io::Result<Offer> {
        let inner = &self.0.inner;
        Ok(Offer { segment: shm::resuming_segment(inner.shape, self.outstanding())?, shape: inner.shape })
    }

    /// Goes on with the next incarnation's S-segment. `epoch` is what the broker said.
    ///
    /// # Errors
    /// See [`OpenError`]. The session is suspended still; without another try it has to be [given up](Self::give_up).
    pub fn resume(&self, offer: Offer, host_segment: OwnedFd, epoch: Epoch) -> Result<(), OpenError> {
        let inner = &self.0.inner;
        let (link, root) = shm::ShmLink::client(offer.segment, offer.shape, host_segment, inner.id, epoch)?;
        if root != inner.root {
            return Err(Violation::Segment.into());
        }
        inner.go_on(Box::new(link), epoch).map_err(OpenError::from)
    }

    /// The host is not started again: outstanding calls end, `Unknown` where a host may have begun them.
    pub fn give_up(&self) {
        self.0.inner.end(Cause::PeerDied, Cause::StaleEpoch, 0);
    }
}

impl Inner {
    /// Takes every answer that is there, then lets callers wait. Of each outstanding call that the peer can have read,
    /// `mark` is set.
    fn suspend(&self, mark: impl Fn(&Remembered) -> &Cell<bool>) {
        let Some(survival) = self.survival.as_ref().filter(|_| self.ended.get().is_none() && !self.suspended.get())
        else {
            return;
        };
        self.drain();
        if self.link.borrow().broken().is_some() {
            self.broken();
        }
        if self.ended.get().is_some() {
            return;
        }
        self.suspended.set(true);
        let link = self.link.borrow();
        let read = link.read_by_peer();
        for (slot, position) in self.slots.borrow().outstanding() {
            let call = &survival.calls[usize::from(slot)];
            let mark = mark(call);
            mark.set(mark.get() || position < read);
            let mut window = call.window.borrow_mut();
            if window.is_none() {
                let extent = call.submission.get().extent;
                let payload = if extent.is_inline() { 0 } else { extent.length as usize };
                let mut bytes = vec![0; extent.payload_offset() + payload];
                link.read_own_window(slot, 0, &mut bytes);
                *window = Some(bytes);
            }
        }
    }

    fn go_on(&self, link: Box<dyn Link>, epoch: Epoch) -> Result<(), Violation> {
        let Some(survival) = self.survival.as_ref().filter(|_| self.suspended.get()) else {
            return Err(Violation::Epoch);
        };
        *self.link.borrow_mut() = link;
        self.epoch.set(epoch);
        survival.host_lives.set(false);
        self.offer_again()
    }

    /// Offers what is outstanding to the host, and lets callers go on.
    fn offer_again(&self) -> Result<(), Violation> {
        let Some(survival) = self.survival.as_ref().filter(|_| self.suspended.get()) else {
            return Err(Violation::Epoch);
        };
        let (control, mut normal): (Vec<_>, Vec<_>) =
            self.slots.borrow().outstanding().into_iter().partition(|(slot, _)| self.shape.is_control(*slot));
        // In the order of their submission, so that the host's answers come in it too: of a call that depends on another one
        // nothing is heard before that other one is answered, sent again, or known to be under way.
        normal.sort_unstable_by_key(|(slot, _)| survival.calls[usize::from(*slot)].before.get());
        for (slot, _) in normal {
            let call = &survival.calls[usize::from(slot)];
            call.offered.set(true);
            // It stands nowhere in the new ring: nobody runs it before it was answered.
            self.slots.borrow_mut().moved(slot, u64::MAX);
            let outstanding = Outstanding { slot, seq: call.submission.get().seq };
            self.link.borrow().send(&outstanding.to_raw(flag::RESUME), slot, &Body::default())?;
        }
        for (slot, _) in control {
            self.send_again(slot)?;
        }
        self.suspended.set(false);
        self.link.borrow().flush();
        steps::reach("resume/offered");
        self.slot_is_free();
        Ok(())
    }

    /// Sends a remembered call once more, with its seq.
    fn send_again(&self, slot: u16) -> Result<(), Violation> {
        let Some(survival) = &self.survival else { return Err(Violation::Unexpected) };
        let call = &survival.calls[usize::from(slot)];
        let window = call.window.borrow();
        let payload = window.as_deref().unwrap_or_default();
        let link = self.link.borrow();
        self.slots.borrow_mut().moved(slot, link.sent());
        // The names and the payload, as they stood.
        link.send(&call.submission.get().to_raw(), slot, &Body { payload, ..Body::default() })
    }

    /// The host's answer to a RESUME that is no completion.
    pub(super) fn resumed(&self, raw: &RawDescriptor) -> Result<(), Violation> {
        let Outstanding { slot, seq } = Outstanding::check(raw, self.shape)?;
        let survival = self.survival.as_ref().ok_or(Violation::Reserved)?;
        let call = &survival.calls[usize::from(slot)];
        if call.submission.get().seq != seq || !call.offered.replace(false) {
            return Err(Violation::Unexpected);
        }
        survival.verdicts.happen();
        let again = match raw.flags() {
            flag::RUNNING if survival.host_lives.get() => {
                survival.count(|resumed| resumed.running += 1);
                return Ok(());
            }
            flag::NOT_SEEN => {
                call.in_doubt.set(false);
                // A host that lives speaks of itself only.
                call.seen.set(call.seen.get() && survival.host_lives.get());
                true
            }
            flag::LOST => {
                call.seen.set(true);
                call.retry.get() == Retry::Idempotent
            }
            _ => return Err(Violation::Reserved),
        };
        let wanted = matches!(self.slots.borrow().state(slot), ClientState::Wanted | ClientState::Posted);
        let mut failure = Failure::unknown(Cause::PeerDied);
        if again && wanted {
            match self.name_again(call) {
                Ok(()) => {
                    survival.count(|resumed| resumed.repeated += 1);
                    self.send_again(slot)?;
                    steps::reach("resume/sent-again");
                    return Ok(());
                }
                Err(of_dependent) => failure = self.truthful(slot, of_dependent),
            }
        }
        let ended = self.slots.borrow_mut().complete(slot, seq)?;
        if let Some(arguments) = self.arguments.get() {
            arguments.answered(slot);
        }
        self.log_ended(slot, || Outcome::Failed(failure));
        match ended {
            Ended::Deliver => {
                self.cells[slot].answer.replace(Answered::Failed(failure));
                self.delivered(slot);
            }
            Ended::Discard => self.slot_is_free(),
            Ended::Settle => self.settle(&Answered::Failed(failure)),
        }
        Ok(())
    }

    /// Names in a call that is sent again what it depends on as it is named now.
    ///
    /// # Errors
    /// Something of it does not come.
    fn name_again(&self, call: &Remembered) -> Result<(), Failure> {
        let submission = call.submission.get();
        let mut window = call.window.borrow_mut();
        let arguments = submission.extent.capabilities_offset()..submission.extent.payload_offset();
        let words = window.as_mut().and_then(|window| window.get_mut(arguments)).unwrap_or_default().as_chunks_mut().0;
        let mut handles: Vec<Handle> = words.iter().map(|word| Handle::from_word(u64::from_le_bytes(*word))).collect();
        let handle = self.resolve(&call.depends_on.borrow(), submission.handle, &mut handles)?;
        call.submission.set(Submission { handle, ..submission });
        for (word, handle) in words.iter_mut().zip(handles) {
            *word = handle.to_word().to_le_bytes();
        }
        Ok(())
    }

    /// Whether a request depends on a call that was offered to the present host, which may not know it: the host would not
    /// find what it names.
    #[inline]
    pub(super) fn is_early(&self, request: &Request<'_>) -> bool {
        request.is_dependent() && self.survival.as_ref().is_some_and(|survival| survival.awaits_verdict_of(request))
    }

    /// Waits until one more call that was offered to the present host has been answered for.
    ///
    /// # Errors
    /// The deadline, as on the wire, has passed.
    pub(super) async fn next_verdict(&self, deadline: u64) -> Result<(), Failure> {
        let Some(survival) = &self.survival else { return Ok(()) };
        let verdict = survival.verdicts.next();
        if deadline == 0 {
            verdict.await;
            return Ok(());
        }
        let left = Duration::from_nanos(deadline.saturating_sub(now()));
        runtime::timeout(left, verdict).await.map_err(|_| Failure::not_executed(Cause::Deadline))
    }

    /// A refusal, as the caller has to take it: one that is of this time only says nothing of the times before.
    pub(super) fn truthful(&self, slot: u16, failure: Failure) -> Failure {
        match &self.survival {
            _ if matches!(failure.cause, Cause::Poisoned { .. }) => failure,
            Some(survival) if survival.seen(slot) && failure.executed == crate::Executed::No => {
                Failure::unknown(failure.cause)
            }
            _ => failure,
        }
    }
}
