//! Memory that may be given to the kernel for the length of an operation.
//!
//! A pair (memory, anything) is memory too: what stands beside it (the right to a range, say) is kept until the kernel
//! is done, also when the operation's future is dropped.

/// Memory that an I/O operation can own and the kernel can read while it runs.
///
/// # Safety
/// 1. `io_ptr()..io_ptr() + io_len()` is mapped and stays readable, at the same address, for as long as the
///    value exists, also while the value itself is moved.
/// 2. Nothing in this process holds a reference to those bytes that the operation could contradict.
pub unsafe trait IoMemory: 'static {
    /// The first byte.
    fn io_ptr(&self) -> *const u8;
    /// How many bytes there are. Does not change while an operation runs.
    fn io_len(&self) -> usize;
}

/// Memory that the kernel may also write: reads from files and sockets land here.
///
/// # Safety
/// As [`IoMemory`]; and the bytes are writable and initialised, and no Rust reference to them is used by
/// anything else for as long as the value exists.
pub unsafe trait IoMemoryMut: IoMemory {
    /// The first byte, for writing. The same address as [`IoMemory::io_ptr`].
    fn io_mut_ptr(&mut self) -> *mut u8;
}

// SAFETY: a vector's bytes live on the heap (duty 1) and are owned by it (duty 2).
unsafe impl IoMemory for Vec<u8> {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: the first `len` bytes of a vector are initialised, writable and owned.
unsafe impl IoMemoryMut for Vec<u8> {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
}

// SAFETY: as for `Vec`.
unsafe impl IoMemory for Box<[u8]> {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: as for `Vec`.
unsafe impl IoMemoryMut for Box<[u8]> {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
}

// SAFETY: a string literal's bytes live as long as the program and are never written.
unsafe impl IoMemory for &'static [u8] {
    fn io_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn io_len(&self) -> usize {
        self.len()
    }
}

// SAFETY: the memory's own promise. What comes with it is kept, and not looked at.
unsafe impl<M: IoMemory, K: 'static> IoMemory for (M, K) {
    fn io_ptr(&self) -> *const u8 {
        self.0.io_ptr()
    }
    fn io_len(&self) -> usize {
        self.0.io_len()
    }
}

// SAFETY: as above.
unsafe impl<M: IoMemoryMut, K: 'static> IoMemoryMut for (M, K) {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        self.0.io_mut_ptr()
    }
}
