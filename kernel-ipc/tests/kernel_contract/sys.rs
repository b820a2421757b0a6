//! Raw mappings, children and futex calls for the contract tests.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mprotect, munmap};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// A shared mapping of the whole of a file.
pub struct Mapping {
    at: NonNull<libc::c_void>,
    len: usize,
}

pub const READ: ProtFlags = ProtFlags::PROT_READ;
pub const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

impl Mapping {
    pub fn new(file: impl AsFd, len: usize, protection: ProtFlags) -> nix::Result<Self> {
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice replaces nothing.
        let at = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, file, 0)? };
        Ok(Self { at, len })
    }

    pub fn protect(&self, protection: ProtFlags) -> nix::Result<()> {
        // SAFETY: this mapping is ours, and no reference into it exists.
        unsafe { mprotect(self.at, self.len, protection) }
    }

    /// A word of the mapping. Loading needs `READ`; storing without `READ_WRITE` kills the process.
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len);
        // SAFETY: inside the mapping, aligned; all accesses are atomic.
        unsafe { AtomicU32::from_ptr(self.at.as_ptr().cast::<u8>().add(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody uses it any more.
        let _ = unsafe { munmap(self.at, self.len) };
    }
}

/// A forked child, killed with its handle.
pub struct Child(Option<Pid>);

/// Forks. `run` must be content with system calls and memory that exists already: the parent has other threads.
pub fn child(run: impl FnOnce() -> i32) -> Child {
    // SAFETY: the child makes system calls and exits without running destructors (duty of the callers in this file's
    // one user).
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", Errno::last()),
        0 => {
            let code = run();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(code) }
        }
        pid => Child(Some(Pid::from_raw(pid))),
    }
}

impl Child {
    pub fn wait(mut self) -> WaitStatus {
        waitpid(self.0.take().expect("waited for once"), None).expect("our own child")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.0.take() {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

/// `FUTEX_WAIT`, shared between processes, with a watchdog of ten seconds.
pub fn futex_wait(word: &AtomicU32, expected: u32) -> nix::Result<()> {
    let timeout = libc::timespec { tv_sec: 10, tv_nsec: 0 };
    // SAFETY: the kernel reads the word and the timeout; both outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &raw const timeout) };
    Errno::result(result).map(drop)
}

/// `FUTEX_WAKE` of everybody, shared between processes. Returns how many woke.
pub fn futex_wake(word: *const u32) -> nix::Result<i64> {
    // SAFETY: the kernel uses the word's address as a key.
    Errno::result(unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, i32::MAX) })
}

/// `futex_waitv` on `count` times the same word, whose value is not `expected`: how the kernel answers at once.
pub fn futex_waitv(word: &AtomicU32, expected: u32, count: usize) -> nix::Result<()> {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Waiter {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }
    // FUTEX2_SIZE_U32 = 2 (linux/futex.h)
    let waiter = Waiter { value: expected.into(), address: word.as_ptr() as u64, flags: 2, reserved: 0 };
    let waiters = vec![waiter; count];
    // SAFETY: the kernel reads the array, which outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_futex_waitv, waiters.as_ptr(), count, 0u32, std::ptr::null::<libc::timespec>(), 0)
    };
    Errno::result(result).map(drop)
}

/// What a child that may die of it reads.
pub fn touch(mapping: &Mapping) -> i32 {
    i32::from(mapping.word(0).load(Ordering::Relaxed) != 0)
}

/// Submits one operation and waits for `completions` of it.
pub fn run(ring: &mut io_uring::IoUring, entry: &io_uring::squeue::Entry, completions: usize) -> Vec<(i32, u32)> {
    // SAFETY: callers keep whatever the entry points to until this returns, which is after the last completion.
    unsafe { ring.submission().push(entry).expect("an empty queue") };
    let mut seen = Vec::new();
    while seen.len() < completions {
        ring.submit_and_wait(1).expect("a ring");
        for completion in ring.completion() {
            seen.push((completion.result(), completion.flags()));
            if seen.len() == 1 && completion.result() < 0 {
                return seen;
            }
        }
    }
    seen
}

/// Submits one operation and waits for nothing.
pub fn start(ring: &mut io_uring::IoUring, entry: &io_uring::squeue::Entry) {
    // SAFETY: as in `run`; callers keep the memory until the ring is gone.
    unsafe { ring.submission().push(entry).expect("an empty queue") };
    ring.submit().expect("a ring");
}

/// Registers one range as a fixed buffer.
pub fn register_buffer(ring: &io_uring::IoUring, address: *const u8, len: usize) -> std::io::Result<()> {
    let buffer = libc::iovec { iov_base: address.cast_mut().cast(), iov_len: len };
    // SAFETY: callers keep the range mapped for as long as the ring exists.
    unsafe { ring.submitter().register_buffers(&[buffer]) }
}

/// Sends `count` copies of `fd` in one message.
pub fn send_descriptors(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>, count: usize) -> nix::Result<usize> {
    use std::os::fd::AsRawFd;
    let fds = vec![fd.as_raw_fd(); count];
    let rights = [nix::sys::socket::ControlMessage::ScmRights(&fds)];
    let bytes = [std::io::IoSlice::new(b"x")];
    nix::sys::socket::sendmsg::<()>(socket.as_raw_fd(), &bytes, &rights, nix::sys::socket::MsgFlags::empty(), None)
}

/// A descriptor that `owner` keeps open.
pub fn borrow<T>(fd: std::os::fd::RawFd, _owner: &T) -> BorrowedFd<'_> {
    // SAFETY: the caller's owner holds it for as long as the borrow lasts.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// `SO_PEERPIDFD`: the descriptor is closed again.
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> nix::Result<i32> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    const SO_PEERPIDFD: libc::c_int = 77; // asm-generic/socket.h
    let mut fd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes one int, for which there is room.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut len)
    };
    Errno::result(result)?;
    // SAFETY: the kernel has just given us this descriptor.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(fd)
}
