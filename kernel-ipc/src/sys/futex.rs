//! Futex words: the address of a 32-bit word that some process changes, and the system calls to sleep on it.
//!
//! - A wait or a wake never writes the word, so both work through a read-only mapping (measured).
//! - The kernel only reads the word, and answers `EFAULT` when nothing is mapped at its address: a
//!   [`WordAddress`] that outlives its mapping is a wrong wake-up, never unsound memory.

use std::io;
use std::ptr::NonNull;
use std::time::Duration;

/// The address of a 32-bit word in memory that is shared with a peer. A value, not a reference:
/// nothing is read through it except by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WordAddress(NonNull<u32>);

impl WordAddress {
    /// The word at `address`, or `None` when the address is null or not a multiple of four.
    pub fn new(address: *const u32) -> Option<WordAddress> {
        NonNull::new(address.cast_mut()).filter(|word| word.is_aligned()).map(WordAddress)
    }

    /// The word's address in this process.
    pub fn as_ptr(self) -> *const u32 {
        self.0.as_ptr()
    }
}
