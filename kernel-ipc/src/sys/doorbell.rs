//! How a sleeping peer is woken.
//!
//! - The word is the low half of the producer's tail, so a wait that began too late fails instead of sleeping.
//! - The sleeper waits through its read-only mapping; only the writer of the word wakes.
//! - The eventfd twin is for event loops that cannot wait for a futex.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::futex::WordAddress;

/// Wakes everybody who sleeps on `word`, in any process. Returns how many they were. One system call.
pub fn wake(word: WordAddress) -> usize {
    // SAFETY: FUTEX_WAKE only uses the address as a key, and the kernel checks it.
    let woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    usize::try_from(woken).unwrap_or(0)
}

/// Sleeps while `word` holds `expected`, at most `timeout`. May return early for no reason. One system call.
pub fn wait(word: WordAddress, expected: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(t.subsec_nanos()),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: FUTEX_WAIT reads the word through the kernel, which checks the address; the time lives through the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, timeout) };
}

/// A doorbell that is a descriptor: readable once rung.
#[derive(Debug)]
pub struct EventDoorbell(OwnedFd);

impl EventDoorbell {
    /// Makes one.
    ///
    /// # Errors
    /// What `eventfd` says.
    pub fn new() -> io::Result<EventDoorbell> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        Ok(EventDoorbell(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes over a descriptor that the peer made.
    pub fn adopt(fd: OwnedFd) -> EventDoorbell {
        EventDoorbell(fd)
    }

    /// The descriptor, to be sent or polled.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Wakes the sleeper, now or when it goes to sleep next. One system call.
    pub fn ring(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of a live local are written. A full counter (EAGAIN) is rung already.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Forgets earlier rings. One system call.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes of a live local are filled. EAGAIN: it was not rung.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}
