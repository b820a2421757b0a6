//! A link inside one thread: a server that runs inside its client.
//!
//! Two queues and two sets of windows. The ends trust each other as far as one address space must, and still go
//! through the same checks in the session above. A call that is answered at once passes the link by, checks and all: see
//! `session/near.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::{Body, Link};
use crate::runtime::Sleep;
use crate::wire::{LeaseName, RawDescriptor, Shape, Violation};

/// What one end writes and the other reads.
#[derive(Debug)]
struct Half {
    ring: RefCell<VecDeque<RawDescriptor>>,
    windows: RefCell<Vec<u8>>,
    sent: Cell<u64>,
    closed: Cell<bool>,
}

impl Half {
    fn new(shape: Shape) -> Rc<Half> {
        Rc::new(Half {
            ring: RefCell::new(VecDeque::with_capacity(shape.ring_entries() as usize)),
            windows: RefCell::new(vec![0; usize::from(shape.all_slots()) * shape.window_bytes as usize]),
            sent: Cell::new(0),
            closed: Cell::new(false),
        })
    }
}

/// One end of a session inside one thread.
#[derive(Debug)]
pub struct InProcessLink {
    mine: Rc<Half>,
    theirs: Rc<Half>,
    shape: Shape,
}

/// Both ends of a new link: the client's and the host's.
pub fn pair(shape: Shape) -> (InProcessLink, InProcessLink) {
    let (client, host) = (Half::new(shape), Half::new(shape));
    let end = |mine: &Rc<Half>, theirs: &Rc<Half>| InProcessLink { mine: mine.clone(), theirs: theirs.clone(), shape };
    (end(&client, &host), end(&host, &client))
}

impl InProcessLink {
    fn copy_out(&self, half: &Half, slot: u16, offset: usize, bytes: &mut [u8]) {
        let window = self.shape.window_bytes as usize;
        if slot < self.shape.all_slots() && offset <= window && bytes.len() <= window - offset {
            let start = self.window(slot) + offset;
            bytes.copy_from_slice(&half.windows.borrow()[start..start + bytes.len()]);
        }
    }

    fn window(&self, slot: u16) -> usize {
        usize::from(slot) * self.shape.window_bytes as usize
    }
}

impl Link for InProcessLink {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn sent(&self) -> u64 {
        self.mine.sent.get()
    }

    fn send(&self, descriptor: &RawDescriptor, slot: u16, body: &Body<'_>) -> Result<(), Violation> {
        let mut ring = self.mine.ring.borrow_mut();
        if ring.len() >= self.shape.ring_entries() as usize {
            return Err(Violation::Overrun);
        }
        let mut windows = self.mine.windows.borrow_mut();
        let mut offset = self.window(slot);
        let mut put = |bytes: &[u8]| {
            windows[offset..offset + bytes.len()].copy_from_slice(bytes);
            offset += bytes.len();
        };
        for lease in body.leases {
            put(&LeaseName::to_bytes(*lease));
        }
        for handle in body.capabilities {
            put(&handle.to_word().to_le_bytes());
        }
        put(body.payload);
        ring.push_back(*descriptor);
        self.mine.sent.set(self.mine.sent.get() + 1);
        Ok(())
    }

    fn publish(&self) {}

    fn flush(&self) {}

    fn receive(&self) -> Option<RawDescriptor> {
        self.theirs.ring.borrow_mut().pop_front()
    }

    fn unread(&self) -> u64 {
        self.theirs.ring.borrow().len() as u64
    }

    fn read_window(&self, slot: u16, offset: usize, bytes: &mut [u8]) {
        self.copy_out(&self.theirs, slot, offset, bytes);
    }

    fn read_own_window(&self, slot: u16, offset: usize, bytes: &mut [u8]) {
        self.copy_out(&self.mine, slot, offset, bytes);
    }

    fn read_by_peer(&self) -> u64 {
        self.mine.sent.get() - self.mine.ring.borrow().len() as u64
    }

    fn close(&self) {
        self.mine.closed.set(true);
    }

    fn is_closed_by_peer(&self) -> bool {
        self.theirs.closed.get()
    }

    fn prepare_sleep(&self) -> Result<Sleep, Violation> {
        // Whoever sends to this end runs on this thread, so nothing can come while it sleeps.
        let work = !self.theirs.ring.borrow().is_empty() || self.theirs.closed.get();
        Ok(if work { Sleep::Work } else { Sleep::Nothing })
    }

    fn cancel_sleep(&self) {}

    fn system_calls(&self) -> u64 {
        0
    }
}
