//! Whether the kernel may have something of this driver when it dies: a count in memory that outlives the process.
//!
//! - It counts from before an operation is submitted until it has ended, so a dead run that left 0 has nothing that could
//!   still land in its region or on its device: the next run need not wait for its fence.
//! - Only the driver writes it, and nobody else is hurt if it is wrong.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use kernel_ipc::sys::segment::SegmentWriter;

/// Bytes of the memory: the count is its first word, little-endian.
pub const BYTES: usize = 4096;

/// The operations under way. Clones are the same count.
#[derive(Clone, Default)]
pub struct UnderWay(Rc<Inner>);

#[derive(Default)]
struct Inner {
    count: Cell<u64>,
    kept: Option<SegmentWriter>,
}

/// An operation under way, until it is dropped.
pub struct Landing(Rc<Inner>);

impl UnderWay {
    /// Counts in `memory` from now on, and says whether a dead run has left something under way there.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn kept(memory: OwnedFd) -> std::io::Result<(UnderWay, bool)> {
        let memory = SegmentWriter::open_kept(memory)?;
        let left = memory.load_u64(0, Relaxed) != 0;
        Ok((UnderWay(Rc::new(Inner { count: Cell::new(0), kept: Some(memory) })), left))
    }

    /// What a dead run had under way has landed.
    pub fn landed(&self) {
        self.0.store();
    }

    /// An operation begins.
    pub fn begin(&self) -> Landing {
        self.0.count.set(self.0.count.get() + 1);
        self.0.store();
        Landing(self.0.clone())
    }
}

impl Inner {
    fn store(&self) {
        if let Some(kept) = &self.kept {
            // Relaxed: a dead process has made its stores in their order, and this is read when it is dead.
            kept.store_u64(0, self.count.get(), Relaxed);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.store();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel_ipc::sys::segment::{memfd, set_len};

    #[test]
    fn a_run_that_died_with_something_under_way_is_known_by_it() {
        let memory = memfd("under-way").unwrap();
        set_len(&memory, BYTES).unwrap();
        let next = || UnderWay::kept(memory.try_clone().unwrap()).unwrap();
        let (first, left) = next();
        assert!(!left);
        let (one, two) = (first.begin(), first.begin());
        drop(one);
        // It dies here: nothing is dropped.
        std::mem::forget(two);
        let (second, left) = next();
        assert!(left);
        assert!(next().1, "known until it has landed");
        second.landed();
        drop(second.begin());
        assert!(!next().1);
    }
}
