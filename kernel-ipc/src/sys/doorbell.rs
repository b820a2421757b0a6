//! The eventfd twin of the doorbell: for event loops that cannot wait for a futex word.
//!
//! Unlike a futex wait it compares nothing: a ring is remembered until it is cleared.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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
        super::calls::count(|made| made.wakes += 1);
        let one = 1u64;
        // SAFETY: eight bytes of a live local are written. A full counter (EAGAIN) is rung already.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Forgets earlier rings. One system call.
    pub fn clear(&self) {
        super::calls::count(|made| made.sleeps += 1);
        let mut count = 0u64;
        // SAFETY: eight bytes of a live local are filled. EAGAIN: it was not rung.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}
