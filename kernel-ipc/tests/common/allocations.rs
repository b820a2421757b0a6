//! Counts what each thread allocates, for the tests that make [`Counting`] their allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes that this thread has taken and not given back, and the most that they were since [`Peak::begin`].
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, and counts.
pub struct Counting;

// SAFETY: everything is passed on to the system's allocator; counting touches plain thread-local numbers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        changed(layout.size() as i64);
        // SAFETY: the caller's duties are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        changed(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn changed(by: i64) {
    // At the end of a thread the numbers may be gone already.
    let _ = LIVE.try_with(|live| live.set(live.get() + by));
    let _ = MOST.try_with(|most| most.set(most.get().max(LIVE.get())));
}

/// How often this thread has allocated.
pub fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// The most memory that this thread has at a time, from now on. One at a time.
pub struct Peak(i64);

impl Peak {
    pub fn begin() -> Peak {
        MOST.set(LIVE.get());
        Peak(LIVE.get())
    }

    /// Bytes beyond what it had at the beginning.
    pub fn bytes(&self) -> usize {
        (MOST.get() - self.0) as usize
    }
}
