//! Memory that a ledger is written to.

use std::sync::atomic::Ordering;

use crate::sys::segment::SegmentWriter;

/// Memory with one writer. Offsets are the ledger's own and inside it.
pub trait Legible {
    /// Bytes of it.
    fn bytes(&self) -> usize;
    /// Loads the word at `at`.
    fn load(&self, at: usize) -> u64;
    /// Copies bytes out.
    fn read(&self, at: usize, bytes: &mut [u8]);
}

/// Such memory in its writer's hands, who may die between any two of its stores.
pub trait Kept: Legible {
    /// Stores the word at `at`.
    fn store(&self, at: usize, value: u64, order: Ordering);
    /// Copies bytes in, in no particular order.
    fn write(&self, at: usize, bytes: &[u8]);
    /// The line at `at` will soon be written: a hint, also for what is not there.
    fn prepare(&self, _at: usize) {}
}

impl Legible for SegmentWriter {
    fn bytes(&self) -> usize {
        self.len()
    }

    #[inline]
    fn load(&self, at: usize) -> u64 {
        // Whoever wrote it is dead and was reaped, or is this thread; or else `look` has its fences.
        self.load_u64(at, Ordering::Relaxed)
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        self.copy_out(at, bytes).expect("the ledger has checked that it fits");
    }
}

impl Kept for SegmentWriter {
    #[inline]
    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.store_u64(at, value, order);
    }

    #[inline]
    fn write(&self, at: usize, bytes: &[u8]) {
        self.copy_in(at, bytes).expect("the ledger has checked that it fits");
    }

    #[inline]
    fn prepare(&self, at: usize) {
        self.prepare_line(at);
    }
}
