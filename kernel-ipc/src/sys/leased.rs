//! Regions and pinned leases as memory for the kernel.

use super::memory::{IoMemory, IoMemoryMut};
use crate::lease::{Extent, Pinned, ReaderSlice, RegionSlice};

// SAFETY: the slice was checked to lie inside its segment, whose mapping it keeps alive and whose size is sealed (duty
// 1); no reference into a segment exists anywhere (duty 2, `sys::segment`).
unsafe impl IoMemory for RegionSlice {
    fn io_ptr(&self) -> *const u8 {
        self.writer.as_mut_ptr().wrapping_add(self.offset)
    }

    fn io_len(&self) -> usize {
        self.len
    }
}

// SAFETY: as above; the owner's mapping is writable, and its pages are initialised (zero at first).
unsafe impl IoMemoryMut for RegionSlice {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.writer.as_mut_ptr().wrapping_add(self.offset)
    }
}

// SAFETY: an extent is inside its region, whose mapping it keeps alive.
unsafe impl IoMemory for Extent {
    fn io_ptr(&self) -> *const u8 {
        self.region().memory().as_mut_ptr().wrapping_add(self.offset())
    }

    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: as above; the owner's mapping is writable, and no two extents overlap.
unsafe impl IoMemoryMut for Extent {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.region().memory().as_mut_ptr().wrapping_add(self.offset())
    }
}

// SAFETY: as for `RegionSlice`, in a read-only mapping.
unsafe impl IoMemory for ReaderSlice {
    fn io_ptr(&self) -> *const u8 {
        self.reader.as_ptr().wrapping_add(self.offset)
    }

    fn io_len(&self) -> usize {
        self.len
    }
}

// SAFETY: as for `ReaderSlice`; the pin keeps the lender from reusing the range for as long as the value exists.
unsafe impl IoMemory for Pinned {
    fn io_ptr(&self) -> *const u8 {
        self.region.memory().as_ptr().wrapping_add(self.offset)
    }

    fn io_len(&self) -> usize {
        self.len
    }
}
