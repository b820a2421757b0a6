//! Unsafe code of the network server: memory for the kernel, and one question to a socket.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use kernel_ipc::runtime::{IoMemory, IoMemoryMut};
use kernel_ipc::sys::segment::SegmentWriter;

use crate::core::connection::Chunk;
use crate::core::position::SocketState;
use crate::host::chunk::Bytes;

// SAFETY: duty 1: a header's bytes live on the heap, unmoved, as long as the `Rc` that the value holds; a pinned range is
// mapped as long as the `Pinned` that it holds or shares (its own implementation of this trait), which is pinned once and for all;
// before that it has no bytes for the kernel. `start` is at most the length, so
// the pointer stays inside or one past the end, and `length` is what is left. Duty 2: nobody changes a header after it was
// put into its `Rc`; of leased pages there are no references at all.
unsafe impl IoMemory for Bytes {
    fn io_ptr(&self) -> *const u8 {
        match self {
            Bytes::Header { bytes, start } => bytes.as_ptr().wrapping_add((*start).min(bytes.len())),
            Bytes::Pages { pinned, start } => {
                let pinned = pinned.pinned();
                pinned.io_ptr().wrapping_add((*start).min(pinned.len()))
            }
            Bytes::Inherited { part, start } => match part.pinned() {
                Some(pinned) => pinned.io_ptr().wrapping_add((*start).min(pinned.len())),
                None => std::ptr::NonNull::dangling().as_ptr(),
            },
        }
    }

    fn io_len(&self) -> usize {
        match self {
            Bytes::Inherited { part, .. } if part.pinned().is_none() => 0,
            _ => self.length(),
        }
    }
}

/// Where received bytes go.
pub(crate) enum Landing {
    /// A place in memory that is kept.
    Kept(Place),
    /// Memory that nobody keeps.
    Fresh(Vec<u8>),
}

/// A place in memory that is kept.
pub(crate) struct Place {
    memory: Rc<SegmentWriter>,
    start: usize,
    length: usize,
}

impl Place {
    /// `length` bytes from `start` on; nobody else looks at them while this exists.
    ///
    /// # Panics
    /// If they are not inside the memory.
    pub(crate) fn new(memory: Rc<SegmentWriter>, start: usize, length: usize) -> Place {
        assert!(start.checked_add(length).is_some_and(|end| end <= memory.len()), "a place inside the memory");
        Place { memory, start, length }
    }
}

#[cfg(test)]
impl Landing {
    /// Writes what the kernel would.
    pub(crate) fn fill(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.io_len());
        // SAFETY: the destination has at least so many writable bytes (duty 1 of `IoMemoryMut`), and a slice of ours is not
        // a part of it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.io_mut_ptr(), bytes.len()) };
    }
}

// SAFETY: duty 1: a place's range lies inside the mapping (checked in `new`), which lives as long as the `Rc` does, at one
// address; a vector's bytes live on the heap. Duty 2: there are no references to the bytes of a segment, which is reached by
// copies and atomics only; a vector owns its own.
unsafe impl IoMemory for Landing {
    fn io_ptr(&self) -> *const u8 {
        match self {
            Landing::Kept(place) => place.memory.as_mut_ptr().wrapping_add(place.start),
            Landing::Fresh(bytes) => bytes.as_ptr(),
        }
    }

    fn io_len(&self) -> usize {
        match self {
            Landing::Kept(place) => place.length,
            Landing::Fresh(bytes) => bytes.len(),
        }
    }
}

// SAFETY: the segment is mapped for writing, and its bytes are a file's and so initialised; a vector's first `len` bytes are
// both; and see above.
unsafe impl IoMemoryMut for Landing {
    fn io_mut_ptr(&mut self) -> *mut u8 {
        match self {
            Landing::Kept(place) => place.memory.as_mut_ptr().wrapping_add(place.start),
            Landing::Fresh(bytes) => bytes.as_mut_ptr(),
        }
    }
}

/// What a TCP socket says of itself, all of one moment.
///
/// # Errors
/// The kernel's.
pub(crate) fn socket_state(socket: BorrowedFd<'_>) -> io::Result<SocketState> {
    loop {
        let before = tcp_info(socket)?;
        let (unacknowledged, unread) = (queued(socket, libc::TIOCOUTQ)?, queued(socket, libc::FIONREAD)?);
        let after = tcp_info(socket)?;
        // The counters only grow: if none has, what was asked in between belongs to them.
        if before == after {
            let TcpCounters { state, acknowledged, received } = after;
            return Ok(SocketState { state, acknowledged, received, unacknowledged, unread });
        }
    }
}

#[derive(PartialEq, Eq)]
struct TcpCounters {
    state: u8,
    acknowledged: u64,
    received: u64,
}

/// `struct tcp_info` of linux/tcp.h up to the counters that are asked for: they have their places since Linux 4.1.
#[repr(C, align(8))]
struct TcpInfo {
    state: u8,
    others: [u8; 119],
    bytes_acked: u64,
    bytes_received: u64,
}

fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpCounters> {
    let mut info = TcpInfo { state: 0, others: [0; 119], bytes_acked: 0, bytes_received: 0 };
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: TCP_INFO writes at most `length` bytes of plain numbers to the address given, which is `info`, of that length.
    let result = unsafe {
        let to = (&raw mut info).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut length)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if (length as usize) < size_of::<TcpInfo>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(TcpCounters { state: info.state, acknowledged: info.bytes_acked, received: info.bytes_received })
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
    queued(socket, libc::TIOCOUTQ)
}

/// Asks a socket for the bytes of one of its queues: `TIOCOUTQ` (the same number as `SIOCOUTQ`) or `FIONREAD`.
fn queued(socket: BorrowedFd<'_>, which: libc::Ioctl) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one int to the address given, which is `bytes`; the descriptor is open for the length of
    // the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), which, &raw mut bytes) };
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
