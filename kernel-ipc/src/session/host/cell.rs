//! One slot of the host end: its call object, and its lane.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::lane::Lane;
use super::near::Direct;
use crate::interface::Retry;
use crate::logbook::Seen;
use crate::session::call::Cancel;
use crate::session::{Call, Grant, SessionInfo};
use crate::wire::Handle;

/// What the receiving half and the task of one slot hand each other.
pub(super) struct SlotCell {
    /// The slot's one call object, while no handler has it.
    pub(super) call: Cell<Option<Box<Call>>>,
    /// The call object holds a call that is to be served.
    pub(super) ready: Cell<bool>,
    pub(super) lane: Lane,
    pub(super) cancel: Rc<Cancel>,
    /// Of the last call that began; and whether it stands until there is news, for as long as that takes.
    pub(super) retry: Cell<Retry>,
    pub(super) stands: Cell<bool>,
    /// The entry of the target of the call in progress, by index.
    pub(super) target: Cell<u32>,
    /// The entries that it names beside, by index.
    arguments: RefCell<Vec<u32>>,
    has_arguments: Cell<bool>,
    /// Where its answer goes.
    pub(super) direct: Direct,
}

impl SlotCell {
    pub(super) fn new(info: &Rc<SessionInfo>) -> SlotCell {
        let cancel = Rc::new(Cancel::default());
        let call = Call {
            operation: 0,
            seq: 0,
            handle: Handle::NONE,
            effect: RefCell::new(None),
            effect_room: RefCell::default(),
            payload: Vec::new(),
            target: Grant::default(),
            capabilities: Vec::new(),
            leases: Vec::new(),
            session: info.clone(),
            trace: 0,
            seen: Seen::default(),
            cancel: cancel.clone(),
        };
        SlotCell {
            call: Cell::new(Some(Box::new(call))),
            ready: Cell::new(false),
            lane: Lane::default(),
            cancel,
            retry: Cell::new(Retry::Idempotent),
            stands: Cell::new(false),
            target: Cell::new(0),
            arguments: RefCell::default(),
            has_arguments: Cell::new(false),
            direct: Direct::default(),
        }
    }

    /// The slot's call object, to be filled.
    #[inline]
    pub(super) fn take(&self) -> Box<Call> {
        self.call.take().expect("a slot that accepts a call has no handler")
    }

    /// Does something for each entry that the call in progress names, by index.
    #[inline]
    pub(super) fn for_each_use(&self, mut then: impl FnMut(u32)) {
        then(self.target.get());
        if self.has_arguments.get() {
            self.arguments.borrow().iter().for_each(|index| then(*index));
        }
    }

    /// The call has no arguments that are entries.
    #[inline]
    pub(super) fn names_none(&self) {
        self.has_arguments.set(false);
    }

    /// The call has these.
    pub(super) fn names(&self, arguments: impl Iterator<Item = u32>) {
        self.has_arguments.set(true);
        let mut named = self.arguments.borrow_mut();
        named.clear();
        named.extend(arguments);
    }
}
