//! One slot of the host end: its call object, its task, and what wakes it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

use crate::logbook::Seen;
use crate::runtime::JoinHandle;
use crate::session::call::Cancel;
use crate::session::{Call, Grant, SessionInfo};
use crate::wire::Handle;

/// What the receiving half and the task of one slot hand each other.
pub(super) struct SlotCell {
    /// The slot's one call object, while no handler has it.
    pub(super) call: RefCell<Option<Box<Call>>>,
    /// The call object holds a call that is to be served.
    pub(super) ready: Cell<bool>,
    /// The slot's task, while it waits for a call.
    pub(super) waker: RefCell<Option<Waker>>,
    /// The slot's task, once it was used. Taken out while it is run from here.
    pub(super) task: Cell<Option<JoinHandle<()>>>,
    pub(super) cancel: Rc<Cancel>,
    /// The entries that the call in progress names, by index: its target first.
    pub(super) uses: RefCell<Vec<u32>>,
}

impl SlotCell {
    pub(super) fn new(info: &Rc<SessionInfo>) -> SlotCell {
        let cancel = Rc::new(Cancel::default());
        let call = Call {
            operation: 0,
            handle: Handle::NONE,
            effect: RefCell::new(None),
            payload: Vec::new(),
            target: Grant::default(),
            capabilities: Vec::new(),
            leases: Vec::new(),
            session: info.clone(),
            deadline: 0,
            trace: 0,
            seen: Seen::default(),
            cancel: cancel.clone(),
        };
        SlotCell {
            call: RefCell::new(Some(Box::new(call))),
            ready: Cell::new(false),
            waker: RefCell::new(None),
            task: Cell::new(None),
            cancel,
            uses: RefCell::default(),
        }
    }

    /// Wakes the slot's task. The waker stays for the next call; it is out of the cell meanwhile, because waking may
    /// run code that comes back here.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake_by_ref();
            self.waker.borrow_mut().get_or_insert(waker);
        }
    }
}
