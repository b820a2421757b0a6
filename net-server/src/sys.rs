//! Unsafe code of the network server: memory for the kernel, and one question to a socket.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use kernel_ipc::runtime::IoMemory;

use crate::core::connection::Chunk;
use crate::host::chunk::Bytes;

// SAFETY: duty 1: a header's bytes live on the heap, unmoved, as long as the `Rc` that the value holds; a pinned range is
// mapped as long as the `Rc<Pinned>` that it holds (its own implementation of this trait). `start` is at most the length, so
// the pointer stays inside or one past the end, and `length` is what is left. Duty 2: nobody changes a header after it was
// put into its `Rc`; of leased pages there are no references at all.
unsafe impl IoMemory for Bytes {
    fn io_ptr(&self) -> *const u8 {
        match self {
            Bytes::Header { bytes, start } => bytes.as_ptr().wrapping_add((*start).min(bytes.len())),
            Bytes::Pages { pinned, start } => pinned.io_ptr().wrapping_add((*start).min(pinned.len())),
        }
    }

    fn io_len(&self) -> usize {
        self.length()
    }
}

/// Takes ownership of a descriptor that `accept4` has just given.
pub(crate) fn accepted(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has made it for its only caller, who passes it on at once.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Bytes that a TCP socket has taken and its peer has not acknowledged (`SIOCOUTQ`); a FIN counts as one.
///
/// # Errors
/// The kernel's.
pub(crate) fn undelivered(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (the same number as SIOCOUTQ) writes one int to the address given, which is `bytes`; the
    // descriptor is open for the length of the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Resets a TCP connection: whatever is queued is thrown away, the peer gets a reset, operations under way end with an
/// error. (`shutdown` would send a FIN after what is queued, and a cut-off answer would look complete.)
pub(crate) fn reset(socket: BorrowedFd<'_>) {
    // SAFETY: an address of zeros is valid; its family is AF_UNSPEC.
    let mut nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    nobody.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: the address is `nobody`, of the length given; connecting to AF_UNSPEC dissolves the connection. Its result
    // does not matter: a socket that cannot be reset is closed next, with a lingering time of zero.
    unsafe {
        libc::connect(socket.as_raw_fd(), &raw const nobody, size_of::<libc::sockaddr>() as libc::socklen_t);
    }
}
