//! Calls that others can depend on before they are answered.
//!
//! - An [`Earlier`] is a call under way that has a name for each capability which its answer will bring: an [`Expected`]. A
//!   call of the same session can be made on it, or take it as an argument, at once; the host begins that when it knows what
//!   the name stands for.
//! - A name is put into a call when the call is published, and only if the earlier one is not answered: else the handle is,
//!   or the later call fails as the host would have let it fail.
//! - The answer is taken out of its slot when it comes, whoever waits for it, so that the slot is free; what it brought is
//!   kept for those that expect it.
//! - Once the answer is there, whoever holds an expected capability gives it back. Nobody holds it: then it is the caller's
//!   who gets the answer, or goes back at once if nobody does. If neither answer nor capabilities are wanted any more, the
//!   call is given up like any other.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use super::waits::{Answered, Sent};
use super::{ClientSession, Inner};
use crate::error::{Cause, Failure};
use crate::session::by_slot::bit;
use crate::session::{Reply, Request};
use crate::slots::Brought;
use crate::wire::{ExpectedHandle, Handle, MAX_CAPABILITIES};

/// A call on its way whose answer's capabilities can be named already. Awaited, it gives the answer.
pub struct Earlier(Rc<Call>);

/// A capability that an earlier call brings, before its answer is here and afterwards. Dropped, the capability is given back.
pub struct Expected {
    call: Rc<Call>,
    number: u16,
}

struct Call {
    session: ClientSession,
    slot: u16,
    seq: u64,
    state: RefCell<State>,
    /// What it brought, once it is answered.
    outcome: Rc<AnswerBrought>,
    /// Its caller waits for the answer.
    is_wanted: Cell<bool>,
    /// Who expects what.
    expected: RefCell<Vec<Weak<Expected>>>,
}

enum State {
    /// `None`: the answer is being taken out of it.
    UnderWay(Option<Sent>),
    /// For its caller.
    Answered(Option<Result<Reply, Failure>>),
}

/// What an answer brought, or how the calls fail that depend on it. Those keep it, whatever becomes of the earlier call's own books.
pub(super) type AnswerBrought = OnceCell<Result<Box<[Handle]>, Failure>>;

/// What is known of a capability of this number.
fn brought_by(outcome: &AnswerBrought, number: u16) -> Brought {
    outcome.get().map_or(Brought::NotYet, |brought| Brought::by(brought.as_deref().map_err(|failure| *failure), number))
}

/// A session's calls that others may depend on.
#[derive(Default)]
pub(super) struct EarlierCalls {
    /// By slot and the lower half of the seq.
    calls: RefCell<HashMap<(u16, u32), Weak<Call>>>,
    /// Slots with one that is not answered. A bit each.
    unanswered: Cell<u64>,
}

impl EarlierCalls {
    /// Whether the call of this slot may be one.
    #[inline]
    pub(super) fn may_be_on(&self, slot: u16) -> bool {
        self.unanswered.get() & bit(slot) != 0
    }

    fn get(&self, slot: u16, seq: u64) -> Option<Rc<Call>> {
        self.calls.borrow().get(&(slot, seq as u32))?.upgrade()
    }

    /// Where the outcome of the call will stand from which this is expected.
    pub(super) fn outcome(&self, expected: ExpectedHandle) -> Option<Rc<AnswerBrought>> {
        Some(self.get(expected.slot, expected.seq.into())?.outcome.clone())
    }

    /// What is known of a capability that is expected from one of them.
    pub(super) fn brought(&self, expected: ExpectedHandle) -> Brought {
        match self.get(expected.slot, expected.seq.into()) {
            Some(call) => brought_by(&call.outcome, expected.number),
            None => Brought::by(Ok(&[]), expected.number),
        }
    }
}

impl ClientSession {
    /// Sends a call that others can depend on. Returns when it is on its way: at once, if there is a free slot.
    ///
    /// # Errors
    /// It was not sent.
    pub async fn call_ahead(&self, request: Request<'_>) -> Result<Earlier, Failure> {
        let inner = &self.0.inner;
        let (extent, deadline) = inner.admit(&request)?;
        inner.turn(&request, deadline).await?;
        let sent = self.submitted(inner.submit(&request, extent, deadline)?, deadline);
        let (slot, seq) = sent.call();
        let call = Rc::new(Call {
            session: self.clone(),
            slot,
            seq,
            state: RefCell::new(State::UnderWay(Some(sent))),
            outcome: Rc::default(),
            is_wanted: Cell::new(true),
            expected: RefCell::default(),
        });
        let earlier = &inner.earlier;
        earlier.calls.borrow_mut().insert((slot, seq as u32), Rc::downgrade(&call));
        earlier.unanswered.set(earlier.unanswered.get() | bit(slot));
        inner.look_at_once();
        Ok(Earlier(call))
    }
}

impl Inner {
    /// The answer stands in the slot's cell: whoever waits for it has it.
    #[inline]
    pub(super) fn delivered(&self, slot: u16) {
        if self.earlier.may_be_on(slot) {
            self.take_out(slot);
        }
        self.cells[slot].wake();
    }

    #[cold]
    fn take_out(&self, slot: u16) {
        // In an ending session slots are not what they were; the call is told apart by its seq.
        let seq = self.slots.borrow().seq(slot);
        let call = self.earlier.get(slot, seq);
        if matches!(*self.cells[slot].answer.borrow(), Answered::Nothing) {
            // What it lends is still on its way.
            return;
        }
        self.earlier.unanswered.set(self.earlier.unanswered.get() & !bit(slot));
        if let Some(call) = call {
            call.take_answer(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// The deadline of the slot's call has passed: it is given up, whoever waits for it or nobody.
    #[cold]
    pub(super) fn give_up_late(&self, slot: u16) {
        let seq = self.slots.borrow().seq(slot);
        if let Some(call) = self.earlier.get(slot, seq)
            && call.take_answer(&mut Context::from_waker(Waker::noop()))
        {
            self.earlier.unanswered.set(self.earlier.unanswered.get() & !bit(slot));
        }
    }

    /// Puts handles in the place of what is known of the capabilities that a call expects: by the outcomes that it has kept, and
    /// else by the books. Gives the target.
    ///
    /// # Errors
    /// One of them does not come.
    pub(super) fn resolve(
        &self,
        kept: &[(ExpectedHandle, Rc<AnswerBrought>)],
        target: Handle,
        arguments: &mut [Handle],
    ) -> Result<Handle, Failure> {
        let brought = |expected: ExpectedHandle| {
            let of_its_call =
                |known: &&(ExpectedHandle, _)| (known.0.slot, known.0.seq) == (expected.slot, expected.seq);
            match kept.iter().find(of_its_call).map(|(_, outcome)| brought_by(outcome, expected.number)) {
                None | Some(Brought::NotYet) => self.earlier.brought(expected),
                Some(known) => known,
            }
        };
        let resolved = |handle: Handle| match handle.expected().map(brought) {
            None | Some(Brought::NotYet) => Ok(handle),
            Some(Brought::Here(here)) => Ok(here),
            Some(Brought::Never(failure)) => Err(failure),
        };
        for argument in arguments {
            *argument = resolved(*argument)?;
        }
        resolved(target)
    }

    /// The handle arguments of a call, and its target, as they are named now.
    ///
    /// # Errors
    /// One of them does not come.
    #[cold]
    pub(super) fn resolve_all(&self, request: &Request<'_>) -> Result<(Handle, [Handle; MAX_CAPABILITIES]), Failure> {
        let mut arguments = [Handle::NONE; MAX_CAPABILITIES];
        let named = &mut arguments[..request.capabilities.len()];
        named.copy_from_slice(request.capabilities);
        Ok((self.resolve(&[], request.handle, named)?, arguments))
    }
}

impl Request<'_> {
    /// Whether something that it names is no handle.
    #[inline]
    pub(super) fn is_dependent(&self) -> bool {
        self.handle.is_expected() || self.capabilities.iter().any(|handle| handle.is_expected())
    }
}

impl Call {
    /// Takes the answer, if it is there, or if it was waited for too long.
    fn take_answer(&self, cx: &mut Context<'_>) -> bool {
        let sent = match &mut *self.state.borrow_mut() {
            State::UnderWay(sent) => sent.take(),
            State::Answered(_) => return true,
        };
        // Taking the answer frees a slot, and may run code that comes back here: nothing is borrowed.
        let Some(mut sent) = sent else { return false };
        match Pin::new(&mut sent).poll(cx) {
            Poll::Pending => {
                self.state.replace(State::UnderWay(Some(sent)));
                false
            }
            Poll::Ready(answer) => {
                self.answered(answer);
                true
            }
        }
    }

    fn answered(&self, answer: Result<Reply, Failure>) {
        let outcome = match &answer {
            Ok(Reply { operation_error: Some(error), .. }) => {
                Err(Failure::not_executed(Cause::EarlierError { error: *error }))
            }
            Ok(reply) => Ok(reply.capabilities.clone().into()),
            Err(failure) => Err(failure.of_dependent()),
        };
        // Once: an answer is taken out of its slot once.
        let _ = self.outcome.set(outcome);
        self.state.replace(State::Answered(Some(answer)));
        if !self.is_wanted.get() {
            self.unwanted();
        }
    }

    /// The answer is for nobody: what it brought and nobody expects goes back.
    fn unwanted(&self) {
        let State::Answered(answer) = &mut *self.state.borrow_mut() else { return };
        let Some(Ok(reply)) = answer.take() else { return };
        // Beside an error of the operation nobody gets what he expected.
        let is_error = reply.operation_error.is_some();
        reply.leases.iter().for_each(|lease| self.session.release_lease(*lease));
        for (handle, number) in reply.capabilities.iter().zip(0..) {
            if is_error || self.holder(number).is_none() {
                self.session.release_handle(*handle);
            }
        }
    }

    fn holder(&self, number: u16) -> Option<Rc<Expected>> {
        self.expected.borrow().iter().filter_map(Weak::upgrade).find(|expected| expected.number == number)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let earlier = &self.session.0.inner.earlier;
        earlier.calls.borrow_mut().remove(&(self.slot, self.seq as u32));
        if let State::UnderWay(_) = self.state.get_mut() {
            // Its slot is parked, and what comes is given back there.
            earlier.unanswered.set(earlier.unanswered.get() & !bit(self.slot));
        }
    }
}

impl Earlier {
    /// The capability of this number that the answer brings, counted from 0. Whoever asks twice for one has the same.
    pub fn expected(&self, number: u16) -> Rc<Expected> {
        let mut expected = self.0.expected.borrow_mut();
        expected.retain(|held| held.strong_count() > 0);
        let held = expected.iter().filter_map(Weak::upgrade).find(|held| held.number == number);
        held.unwrap_or_else(|| {
            let new = Rc::new(Expected { call: self.0.clone(), number });
            expected.push(Rc::downgrade(&new));
            new
        })
    }

    /// The session that it was made on.
    pub(crate) fn session(&self) -> &ClientSession {
        &self.0.session
    }

    /// Who holds a capability that its answer has brought: the same for all who ask, before the answer is decoded and after that.
    pub(crate) fn holder(&self, handle: Handle) -> Option<Rc<Expected>> {
        let brought = self.0.outcome.get()?.as_ref().ok()?;
        let number = brought.iter().position(|known| *known == handle)?;
        Some(self.expected(u16::try_from(number).ok()?))
    }
}

/// The answer. Those of its capabilities that somebody [expects](Earlier::expected) belong to that one; its caller releases
/// the others.
impl Future for Earlier {
    type Output = Result<Reply, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.0.take_answer(cx) {
            return Poll::Pending;
        }
        match &mut *self.0.state.borrow_mut() {
            State::Answered(answer) => Poll::Ready(answer.take().expect("a call was polled after it had ended")),
            State::UnderWay(_) => Poll::Pending,
        }
    }
}

impl Drop for Earlier {
    fn drop(&mut self) {
        self.0.is_wanted.set(false);
        self.0.unwanted();
    }
}

impl Expected {
    /// How a call of the session names it now. Put into a [`Request`] it stays good until it is published.
    ///
    /// # Errors
    /// It does not come.
    pub fn handle(&self) -> Result<Handle, Failure> {
        let ExpectedHandle { slot, seq, number } = self.name();
        match brought_by(&self.call.outcome, number) {
            Brought::NotYet => Ok(ExpectedHandle { slot, seq, number }.to_handle()),
            Brought::Here(handle) => Ok(handle),
            Brought::Never(failure) => Err(failure),
        }
    }

    /// The session that it comes on.
    pub fn session(&self) -> &ClientSession {
        &self.call.session
    }

    fn name(&self) -> ExpectedHandle {
        ExpectedHandle { slot: self.call.slot, seq: self.call.seq as u32, number: self.number }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        // While the answer waits for its caller, that is whose it is from now on.
        if let State::Answered(None) = &*self.call.state.borrow()
            && let Some(Ok(brought)) = self.call.outcome.get()
            && let Some(handle) = brought.get(usize::from(self.number))
        {
            self.call.session.release_handle(*handle);
        }
    }
}

impl std::fmt::Debug for Earlier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Earlier").field("slot", &self.0.slot).field("seq", &self.0.seq).finish()
    }
}

impl std::fmt::Debug for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ExpectedHandle { slot, seq, number } = self.name();
        write!(f, "Expected({slot}.{seq}#{number})")
    }
}
