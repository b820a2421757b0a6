//! Calls that name capabilities which earlier calls of their session are to bring: *dependent calls*.
//!
//! - The ring is read in order, and a client uses a slot again only when it has the answer. So when a dependent call is read,
//!   the slot's present call is the one that is meant: under way, or just answered. Anything else is refused; as a call can
//!   only wait for one that was read before it, none ever waits for itself.
//! - If the earlier call is under way the dependent one waits, in its own slot: it was counted in its session's turn when it
//!   was read, and can be cancelled. At most all slots wait. It begins when the earlier call is answered, as if it had just
//!   been read: only then is it checked, and is there a target for its rights.
//! - A call that fails fails those that depend on it, with the same cause; they did not run. Of an operation's own error they
//!   hear the number.

use std::cell::{Cell, RefCell};

use super::Inner;
use crate::error::{Cause, Failure};
use crate::logbook::Seen;
use crate::runtime;
use crate::session::by_slot::bit;
use crate::session::{Request, Service};
use crate::slots::Brought;
use crate::wire::{ExpectedHandle, Handle, MAX_CAPABILITIES, Status, Submission, Violation};

/// Where the rest of a call stands: what is not in its descriptor.
#[derive(Clone, Copy)]
pub(super) enum Rest<'a> {
    /// In the client's window: it was not read yet.
    Window,
    /// In a copy of what of the window belongs to the call.
    Copy(&'a [u8]),
    /// In what its caller gave, in this thread.
    Request(&'a Request<'a>),
}

/// The dependent calls of a session that have not begun.
#[derive(Default)]
pub(super) struct Dependents {
    waiting: RefCell<Vec<Dependent>>,
    /// Slots whose answers they wait for. A bit each.
    awaited: Cell<u64>,
    /// Some wait for nothing more.
    are_ready: Cell<bool>,
    /// Somebody is beginning them.
    are_begun: Cell<bool>,
}

/// How many begin together, as many as of those that are read in a turn.
const TOGETHER: u32 = 8;

/// One of them.
pub(super) struct Dependent {
    call: Submission,
    /// What stood in the window.
    rest: Vec<u8>,
    seen: Seen,
    /// It does not begin any more, and fails like this.
    failure: Option<Failure>,
}

impl Dependents {
    /// Whether one of them waits for the answer on this slot.
    #[inline]
    pub(super) fn await_some(&self, slot: u16) -> bool {
        self.awaited.get() & bit(slot) != 0
    }

    /// Whether some wait for nothing more, and come before anything else.
    #[inline]
    pub(super) fn are_ready(&self) -> bool {
        self.are_ready.get()
    }

    /// Whether the one on this slot has not begun.
    pub(super) fn has(&self, slot: u16) -> bool {
        self.waiting.borrow().iter().any(|dependent| dependent.call.slot == slot)
    }

    /// Takes out the one on this slot.
    pub(super) fn take(&self, slot: u16) -> Option<Dependent> {
        let mut waiting = self.waiting.borrow_mut();
        let place = waiting.iter().position(|dependent| dependent.call.slot == slot)?;
        Some(waiting.remove(place))
    }

    /// The session has ended.
    pub(super) fn clear(&self) {
        self.waiting.borrow_mut().clear();
        self.awaited.set(0);
        self.are_ready.set(false);
    }

    fn push(&self, dependent: Dependent) {
        self.awaited.set(self.awaited.get() | dependent.awaits());
        self.waiting.borrow_mut().push(dependent);
    }

    /// Puts in place what a slot's answer brought.
    fn hear(&self, slot: u16, brought: impl Fn(ExpectedHandle) -> Brought) {
        let mut waiting = self.waiting.borrow_mut();
        for dependent in &mut *waiting {
            dependent.resolve(|expected| if expected.slot == slot { brought(expected) } else { Brought::NotYet });
        }
        self.awaited.set(waiting.iter().fold(0, |slots, dependent| slots | dependent.awaits()));
        self.are_ready.set(waiting.iter().any(|dependent| dependent.awaits() == 0));
    }

    /// Takes out the first that waits for nothing more.
    fn next_ready(&self) -> Option<Dependent> {
        let mut waiting = self.waiting.borrow_mut();
        let place = waiting.iter().position(|dependent| dependent.awaits() == 0);
        self.are_ready.set(place.is_some());
        Some(waiting.remove(place?))
    }
}

impl Dependent {
    /// Puts handles in the place of what `brought` knows, until something does not come.
    fn resolve(&mut self, brought: impl Fn(ExpectedHandle) -> Brought) {
        let Dependent { call, rest, failure, .. } = self;
        let mut put = |handle: &mut Handle| match handle.expected().map(&brought) {
            None | Some(Brought::NotYet) => {}
            Some(Brought::Here(here)) => *handle = here,
            Some(Brought::Never(why)) => *failure = failure.or(Some(why)),
        };
        put(&mut call.handle);
        for word in arguments(&call.extent, rest) {
            let mut handle = Handle::from_word(u64::from_le_bytes(*word));
            put(&mut handle);
            *word = handle.to_word().to_le_bytes();
        }
    }

    /// The slots that it waits for, a bit each.
    fn awaits(&self) -> u64 {
        if self.failure.is_some() {
            return 0;
        }
        let arguments =
            self.rest[self.call.extent.capabilities_offset()..self.call.extent.payload_offset()].as_chunks();
        let arguments = arguments.0.iter().map(|word| Handle::from_word(u64::from_le_bytes(*word)));
        let expected = arguments.chain([self.call.handle]).filter_map(Handle::expected);
        expected.fold(0, |slots, expected| slots | bit(expected.slot))
    }
}

/// The handle arguments in what stood in a window.
fn arguments<'a>(extent: &crate::wire::Extent, rest: &'a mut [u8]) -> &'a mut [[u8; Handle::BYTES]] {
    rest[extent.capabilities_offset()..extent.payload_offset()].as_chunks_mut().0
}

impl<S: Service> Inner<S> {
    /// Receives a call that has handle arguments, or a target that is no handle: begins it if everything that it names is
    /// there.
    #[cold]
    pub(super) fn accept_naming(&self, call: &Submission, seen: Seen) -> Result<(), Violation> {
        let mut words = [[0; Handle::BYTES]; MAX_CAPABILITIES];
        let words = &mut words[..usize::from(call.extent.capabilities).min(MAX_CAPABILITIES)];
        self.link.read_window(call.slot, call.extent.capabilities_offset(), words.as_flattened_mut());
        let is_expected = |word: &[u8; Handle::BYTES]| Handle::from_word(u64::from_le_bytes(*word)).is_expected();
        if !call.handle.is_expected() && !words.iter().any(is_expected) {
            // Should the client write a name there now, it is a handle that nothing stands behind.
            return self.begin(call, Rest::Window, seen);
        }
        let payload = if call.extent.is_inline() { 0 } else { call.extent.length as usize };
        let mut rest = self.copies.take();
        rest.resize(call.extent.payload_offset() + payload, 0);
        self.link.read_window(call.slot, 0, &mut rest);
        let mut dependent = Dependent { call: *call, rest, seen, failure: None };
        dependent.resolve(|expected| match expected.slot == call.slot || self.shape.is_control(expected.slot) {
            true => Brought::by(Ok(&[]), expected.number),
            false => self.slots.borrow().brought(expected),
        });
        if dependent.awaits() != 0 {
            self.dependents.push(dependent);
            return Ok(());
        }
        self.begin_dependent(dependent)
    }

    /// Begins a call that waits for nothing more.
    fn begin_dependent(&self, dependent: Dependent) -> Result<(), Violation> {
        let Dependent { call, rest, seen, failure } = dependent;
        let begun = match failure {
            Some(failure) => self.refuse(&call, seen, failure),
            None => self.begin(&call, Rest::Copy(&rest), seen),
        };
        self.copies.replace(rest);
        begun
    }

    /// Answers a call that has not begun and does not begin.
    pub(super) fn refuse_dependent(&self, dependent: &Dependent, cause: Cause) -> Result<(), Violation> {
        self.refuse(&dependent.call, dependent.seen, Failure::not_executed(cause))
    }

    /// Begins calls that wait for nothing more, a few at a time: before anything else of the session is read, which may give back
    /// what they name. However long a chain of them is, none runs inside of another. False: there are more.
    #[inline]
    pub(super) fn begin_ready(&self) -> bool {
        !self.dependents.are_ready.get() || self.begin_some()
    }

    #[cold]
    fn begin_some(&self) -> bool {
        if self.dependents.are_begun.replace(true) {
            return true;
        }
        for _ in 0..TOGETHER {
            let Some(dependent) = self.dependents.next_ready() else { break };
            if let Err(violation) = self.begin_dependent(dependent) {
                self.end(Some(violation));
            }
        }
        self.dependents.are_begun.set(false);
        !self.dependents.are_ready.get()
    }

    /// A call is being answered on which others depend, or may. Whoever answers it begins them, or the next who looks.
    #[cold]
    pub(super) fn dependents_hear(&self, (slot, seq): (u16, u64), status: Status, brought: &[Handle]) {
        let answer = match status {
            Status::Done => Ok(brought),
            Status::OperationError(error) => Err(Failure::not_executed(Cause::EarlierError { error })),
            Status::Failed(failure) => Err(failure),
        };
        if self.shape.is_control(slot) {
            return;
        }
        self.slots.borrow_mut().answered(slot, seq, answer);
        if !self.dependents.await_some(slot) {
            return;
        }
        self.dependents.hear(slot, |expected| Brought::by(answer, expected.number));
        if !self.dependents.are_ready.get() {
            return;
        }
        let this = self.this.clone();
        runtime::spawn(async move {
            while this.upgrade().is_some_and(|this| !this.begin_ready()) {
                runtime::yield_now().await;
            }
        });
    }
}
