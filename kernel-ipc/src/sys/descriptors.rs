//! Packets with file descriptors over a unix socket, and the few other calls that turn numbers into descriptors.
//!
//! - A received descriptor is owned at once, so that no early return can leak one, and is closed on exec.
//! - A packet or a list of descriptors that the kernel cut short is reported, never passed on.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::{mem, ptr};

use crate::broker::MAX_DESCRIPTORS;

/// A received packet.
#[derive(Debug)]
pub struct Packet {
    /// Bytes received; 0 when the peer closed the connection.
    pub length: usize,
    /// Its descriptors, in the order in which they were sent.
    pub descriptors: Vec<OwnedFd>,
    /// The kernel dropped bytes or descriptors that did not fit.
    pub truncated: bool,
}

// SAFETY: `CMSG_SPACE` only computes; it reads no memory.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE((MAX_DESCRIPTORS * size_of::<RawFd>()) as u32) } as usize;

/// Room for one `SCM_RIGHTS` message, aligned as `cmsghdr` wants it.
#[repr(C, align(8))]
struct ControlBuffer([u8; CONTROL_BYTES]);

/// Receives one packet into `buffer`. With `wait` it blocks until there is one.
///
/// # Errors
/// The error of `recvmsg`, `WouldBlock` among them.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], wait: bool) -> io::Result<Packet> {
    receive_with(socket, buffer, if wait { 0 } else { libc::MSG_DONTWAIT })
}

/// Looks at the packet at the socket's peek offset, which moves on, and leaves it where it is: its descriptors are copies.
/// Never blocks.
///
/// # Errors
/// As [`receive`].
pub fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Packet> {
    receive_with(socket, buffer, libc::MSG_DONTWAIT | libc::MSG_PEEK)
}

/// From which byte of the queue on [`peek`] looks at packets.
///
/// # Errors
/// The error of `setsockopt`.
pub fn set_peek_offset(socket: BorrowedFd<'_>, offset: i32) -> io::Result<()> {
    // SAFETY: SO_PEEK_OFF reads one int at the address given, which is `offset`, of the length given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const offset).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive_with(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> io::Result<Packet> {
    let mut control = ControlBuffer([0; CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid `msghdr` (null pointers with zero lengths).
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL_BYTES as _;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let received = loop {
        // SAFETY: `header` points to `part` and `control`, which live across the call with the lengths given.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        if received >= 0 {
            break received as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };

    let mut descriptors = Vec::new();
    // SAFETY: the kernel filled `header` and `control`; the CMSG macros stay within `msg_controllen`.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: `message` points to a whole header inside `control`.
        let (level, kind, length) =
            unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len as usize) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: only computes.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            for i in 0..length.saturating_sub(head) / size_of::<RawFd>() {
                // SAFETY: the kernel wrote `length - head` bytes of descriptors after the header; reads may be unaligned.
                let number = unsafe { ptr::read_unaligned(libc::CMSG_DATA(message).cast::<RawFd>().add(i)) };
                // SAFETY: the kernel has just installed this descriptor for us; nobody else owns it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    let truncated = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    Ok(Packet { length: received, descriptors, truncated })
}

/// Sends one packet with descriptors (at most [`MAX_DESCRIPTORS`]). With `wait` it blocks while the peer's queue is full.
///
/// # Errors
/// The error of `sendmsg`, `WouldBlock` among them; `InvalidInput` for too many descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>], wait: bool) -> io::Result<()> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let mut control = ControlBuffer([0; CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero is a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let length = size_of_val(descriptors) as u32;
        header.msg_control = (&raw mut control).cast();
        // SAFETY: only computes.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as _;
        // SAFETY: `msg_controllen` is at most `CONTROL_BYTES` (checked above), so the first header lies inside `control`.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(length) as _;
            let numbers = libc::CMSG_DATA(message).cast::<RawFd>();
            for (i, descriptor) in descriptors.iter().enumerate() {
                ptr::write_unaligned(numbers.add(i), descriptor.as_raw_fd());
            }
        }
    }
    let flags = libc::MSG_NOSIGNAL | if wait { 0 } else { libc::MSG_DONTWAIT };
    loop {
        // SAFETY: `header` points to `part` and `control`, which live across the call; `sendmsg` only reads them.
        if unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes over a descriptor that this process was started with. `None` if it is not open.
///
/// # Safety
/// Nobody else in this process may own `number`.
pub unsafe fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_SETFD changes only the close-on-exec flag.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: it is open (checked by fcntl), and the caller says that it is ours alone.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes over the control socket of a component, once per process; `None` the second time or if it is not open.
pub fn control_socket() -> Option<OwnedFd> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: descriptor 3 is by contract the control socket of a component's process, and `TAKEN` says that this is
    // the first and only taking.
    unsafe { inherited(crate::broker::CONTROL_FD) }
}
