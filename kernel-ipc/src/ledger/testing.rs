//! Memory whose writer can be made to die between any two of its stores.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::{Kept, Legible};

/// Memory that outlives its writer. Clones are the same memory.
#[derive(Clone, Debug)]
pub(super) struct Mortal {
    bytes: Rc<RefCell<Vec<u8>>>,
    /// Stores that the writer still makes; after them it is dead, and what it does has no effect.
    left: Rc<Cell<u64>>,
    made: Rc<Cell<u64>>,
}

impl Mortal {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes: Rc::new(RefCell::new(vec![0; bytes])), left: Rc::new(Cell::new(u64::MAX)), made: Rc::default() }
    }

    /// Another memory of the same writer: it dies in both at once.
    pub(super) fn beside(&self, bytes: usize) -> Self {
        Self { bytes: Rc::new(RefCell::new(vec![0; bytes])), ..self.clone() }
    }

    /// The writer dies after so many more stores.
    pub(super) fn dies_after(&self, stores: u64) {
        self.left.set(stores);
    }

    /// The next incarnation's memory: what the dead one stored.
    pub(super) fn inherited(&self) -> Self {
        Self { bytes: Rc::new(RefCell::new(self.bytes.borrow().clone())), ..Self::new(0) }
    }

    /// Stores that the writer has made or, dead, would have.
    pub(super) fn stores(&self) -> u64 {
        self.made.get()
    }

    pub(super) fn is_alive(&self) -> bool {
        self.left.get() > 0
    }

    pub(super) fn flip(&self, at: usize, bit: u8) {
        self.bytes.borrow_mut()[at] ^= 1 << bit;
    }

    fn may_store(&self) -> bool {
        self.made.set(self.made.get() + 1);
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }
}

impl Legible for Mortal {
    fn bytes(&self) -> usize {
        self.bytes.borrow().len()
    }

    fn load(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes.borrow()[at..at + 8].try_into().unwrap())
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.bytes.borrow()[at..at + bytes.len()]);
    }
}

impl Kept for Mortal {
    fn store(&self, at: usize, value: u64, _: Ordering) {
        if self.may_store() {
            self.bytes.borrow_mut()[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }

    /// A copy can be cut anywhere; here, before each of its words.
    fn write(&self, at: usize, bytes: &[u8]) {
        for (word, piece) in bytes.chunks(8).enumerate() {
            if self.may_store() {
                self.bytes.borrow_mut()[at + 8 * word..][..piece.len()].copy_from_slice(piece);
            }
        }
    }
}
