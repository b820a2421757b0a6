//! Operations of a ring as futures that own what the kernel uses.
//!
//! - An operation owns its file and its memory until its last completion. A future that is dropped earlier
//!   hands both to the ring, which keeps them until then; a future that is leaked leaks them.
//! - Memory is passed by value and comes back with the result.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use super::memory::{IoMemory, IoMemoryMut};
use super::ring::{Kind, Progress, Ring, SharedRing};

/// An open file or socket, shared with the operations that use it; closed when the last of them ends.
pub type SharedFile = Rc<OwnedFd>;

/// An operation in flight that owns `T`.
pub struct Operation<T: 'static> {
    ring: SharedRing,
    index: u32,
    owned: Option<T>,
    /// Ask the kernel to end it early when the future is dropped.
    cancel: bool,
}

// The kernel points into what `T` owns, not into `T` itself (duty 1 of `IoMemory`), so a move harms nothing.
impl<T> Unpin for Operation<T> {}

impl<T: 'static> Operation<T> {
    /// Queues `entry`; it is submitted at the end of this turn of the executor.
    ///
    /// # Safety
    /// Everything that `entry` names (descriptor, memory) is owned by `owned` at an address that does not
    /// change when `owned` is moved.
    unsafe fn start(ring: &SharedRing, entry: Entry, owned: T, cancel: bool) -> Operation<T> {
        // SAFETY: passed on to the caller.
        unsafe { Operation::start_kind(ring, entry, Kind::Once, owned, cancel) }
    }

    /// # Safety
    /// As for [`start`](Self::start).
    unsafe fn start_kind(ring: &SharedRing, entry: Entry, kind: Kind, owned: T, cancel: bool) -> Operation<T> {
        // SAFETY: `owned` goes to `abandon` in `drop` below unless the operation has ended.
        let index = unsafe { ring.borrow_mut().start(entry, kind) };
        Operation { ring: Rc::clone(ring), index, owned: Some(owned), cancel }
    }

    fn poll_progress<R>(&mut self, cx: &mut Context<'_>, done: impl FnOnce(&Progress) -> Option<R>) -> Poll<R> {
        assert!(self.owned.is_some(), "an operation was polled after it gave back what it owned");
        match self.ring.borrow_mut().progress(self.index, cx, done) {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        }
    }

    /// Takes what the operation owned, after its last completion.
    fn collect(&mut self) -> T {
        self.ring.borrow_mut().collect(self.index);
        self.owned.take().expect("poll_progress saw it")
    }
}

impl<T: 'static> Future for Operation<T> {
    type Output = (io::Result<u32>, T);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let done = |progress: &Progress| progress.result.filter(|_| progress.ended);
        match self.poll_progress(cx, done) {
            Poll::Ready(result) => Poll::Ready((to_result(result), self.collect())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: 'static> Drop for Operation<T> {
    fn drop(&mut self) {
        if let Some(owned) = self.owned.take() {
            // Bound first: what is given back is dropped after the ring's borrow has ended.
            let ended = self.ring.borrow_mut().abandon(self.index, Box::new(owned), self.cancel);
            drop(ended);
        }
    }
}

fn to_result(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// The length of an operation: what does not fit is left for the next one.
fn length(memory: &impl IoMemory) -> u32 {
    u32::try_from(memory.io_len()).unwrap_or(u32::MAX).min(i32::MAX as u32)
}

fn fd(file: &SharedFile) -> types::Fd {
    types::Fd(file.as_raw_fd())
}

/// Reads at `offset` into all of `memory`; through registered buffer `buffer` if there is one.
pub fn read<M: IoMemoryMut>(
    ring: &SharedRing,
    file: SharedFile,
    mut memory: M,
    offset: u64,
    buffer: Option<u16>,
) -> Operation<(SharedFile, M)> {
    let (start, length) = (memory.io_mut_ptr(), length(&memory));
    let entry = match buffer {
        Some(buffer) => opcode::ReadFixed::new(fd(&file), start, length, buffer).offset(offset).build(),
        None => opcode::Read::new(fd(&file), start, length).offset(offset).build(),
    };
    // SAFETY: file and memory are owned; `IoMemoryMut` promises a stable, writable address.
    unsafe { Operation::start_kind(ring, entry, Kind::Transfer, (file, memory), true) }
}

/// Writes all of `memory` at `offset`; from registered buffer `buffer` if there is one.
pub fn write<M: IoMemory>(
    ring: &SharedRing,
    file: SharedFile,
    memory: M,
    offset: u64,
    buffer: Option<u16>,
) -> Operation<(SharedFile, M)> {
    let (start, length) = (memory.io_ptr(), length(&memory));
    let entry = match buffer {
        Some(buffer) => opcode::WriteFixed::new(fd(&file), start, length, buffer).offset(offset).build(),
        None => opcode::Write::new(fd(&file), start, length).offset(offset).build(),
    };
    // SAFETY: file and memory are owned; `IoMemory` promises a stable, readable address.
    unsafe { Operation::start_kind(ring, entry, Kind::Transfer, (file, memory), false) }
}

/// `fsync`, or `fdatasync`.
pub fn sync(ring: &SharedRing, file: SharedFile, data_only: bool) -> Operation<SharedFile> {
    let flags = if data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
    let entry = opcode::Fsync::new(fd(&file)).flags(flags).build();
    // SAFETY: the entry names the file only, which is owned.
    unsafe { Operation::start(ring, entry, file, false) }
}

/// `fallocate(2)`.
pub fn fallocate(ring: &SharedRing, file: SharedFile, mode: i32, offset: u64, length: u64) -> Operation<SharedFile> {
    let entry = opcode::Fallocate::new(fd(&file), length).offset(offset).mode(mode).build();
    // SAFETY: the entry names the file only, which is owned.
    unsafe { Operation::start(ring, entry, file, false) }
}

/// `recv(2)` into `memory`.
pub fn recv<M: IoMemoryMut>(
    ring: &SharedRing,
    socket: SharedFile,
    mut memory: M,
    flags: i32,
) -> Operation<(SharedFile, M)> {
    let (start, length) = (memory.io_mut_ptr(), length(&memory));
    let entry = opcode::Recv::new(fd(&socket), start, length).flags(flags).build();
    // SAFETY: file and memory are owned; `IoMemoryMut` promises a stable, writable address.
    unsafe { Operation::start(ring, entry, (socket, memory), true) }
}

/// `send(2)` from `memory`.
pub fn send<M: IoMemory>(ring: &SharedRing, socket: SharedFile, memory: M, flags: i32) -> Operation<(SharedFile, M)> {
    let entry =
        opcode::Send::new(fd(&socket), memory.io_ptr(), length(&memory)).flags(flags | libc::MSG_NOSIGNAL).build();
    // SAFETY: file and memory are owned; `IoMemory` promises a stable, readable address.
    unsafe { Operation::start(ring, entry, (socket, memory), true) }
}

/// Most pieces of memory that one [`send_vectored`] takes: a header and the leases of one message.
const MAX_PARTS: usize = 1 + crate::wire::MAX_LEASES;

/// What `sendmsg(2)` reads, at one address until the operation has ended.
struct Message {
    header: libc::msghdr,
    parts: [libc::iovec; MAX_PARTS],
}

/// A vectored send: gives back the memory.
pub struct SendVectored<M: IoMemory>(Operation<(SharedFile, Vec<M>, Box<Message>)>);

/// `sendmsg(2)` from the first [`MAX_PARTS`] of `memory`, in order.
pub fn send_vectored<M: IoMemory>(
    ring: &SharedRing,
    socket: SharedFile,
    memory: Vec<M>,
    flags: i32,
) -> SendVectored<M> {
    // SAFETY: a message header of zeros is valid: no name, no parts, no control data.
    let header: libc::msghdr = unsafe { std::mem::zeroed() };
    let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut message = Box::new(Message { header, parts: [nothing; MAX_PARTS] });
    let mut count = 0;
    for (part, memory) in message.parts.iter_mut().zip(&memory) {
        // sendmsg only reads through the pointer, whatever its type says.
        *part = libc::iovec { iov_base: memory.io_ptr().cast_mut().cast(), iov_len: memory.io_len() };
        count += 1;
    }
    message.header.msg_iov = message.parts.as_mut_ptr();
    message.header.msg_iovlen = count;
    let entry =
        opcode::SendMsg::new(fd(&socket), &raw const message.header).flags((flags | libc::MSG_NOSIGNAL) as u32).build();
    // SAFETY: file, memory and message are owned; the message lives in its box, the memory where `IoMemory` promises.
    SendVectored(unsafe { Operation::start(ring, entry, (socket, memory, message), true) })
}

impl<M: IoMemory> Future for SendVectored<M> {
    type Output = (io::Result<u32>, (SharedFile, Vec<M>));

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|(result, (socket, memory, _message))| (result, (socket, memory)))
    }
}

/// `shutdown(2)`.
pub fn shutdown(ring: &SharedRing, socket: SharedFile, how: i32) -> Operation<SharedFile> {
    let entry = opcode::Shutdown::new(fd(&socket), how).build();
    // SAFETY: the entry names the file only, which is owned.
    unsafe { Operation::start(ring, entry, socket, false) }
}

/// `close(2)`.
pub fn close(ring: &SharedRing, file: OwnedFd) -> Operation<()> {
    let entry = opcode::Close::new(types::Fd(file.into_raw_fd())).build();
    // SAFETY: the descriptor was owned and belongs to the operation alone from here on; it is never cancelled.
    unsafe { Operation::start(ring, entry, (), false) }
}

/// Waits for `events` of `poll(2)`.
pub fn poll(ring: &SharedRing, file: SharedFile, events: i16) -> Operation<SharedFile> {
    let entry = opcode::PollAdd::new(fd(&file), events as u32).build();
    // SAFETY: the entry names the file only, which is owned.
    unsafe { Operation::start(ring, entry, file, true) }
}

/// A zero-copy send: first what was sent, then the memory, when the kernel has let go of it.
pub struct ZeroCopy<M: IoMemory>(Operation<(SharedFile, M)>);

/// `IORING_SEND_ZC_REPORT_USAGE` of linux/io_uring.h.
const REPORT_USAGE: u16 = 8;
/// `IORING_NOTIF_USAGE_ZC_COPIED`: bit 31 of a notification's result.
const ZC_COPIED: u32 = 1 << 31;

/// Sends `memory` without copying where the path allows it.
pub fn send_zc<M: IoMemory>(
    ring: &SharedRing,
    socket: SharedFile,
    memory: M,
    flags: i32,
    buffer: Option<u16>,
) -> ZeroCopy<M> {
    let entry = opcode::SendZc::new(fd(&socket), memory.io_ptr(), length(&memory))
        .flags(flags | libc::MSG_NOSIGNAL)
        .zc_flags(REPORT_USAGE)
        .buf_index(buffer)
        .build();
    // SAFETY: file and memory are owned, to the notification; `IoMemory` promises a stable, readable address.
    ZeroCopy(unsafe { Operation::start(ring, entry, (socket, memory), false) })
}

impl<M: IoMemory> ZeroCopy<M> {
    /// What was sent.
    pub fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u32>> {
        self.0.poll_progress(cx, |progress| progress.result).map(to_result)
    }

    /// The memory, and whether the kernel copied it after all (`None`: it did not say).
    pub fn poll_released(&mut self, cx: &mut Context<'_>) -> Poll<(Option<bool>, M)> {
        let done = |progress: &Progress| progress.ended.then_some(progress.notification);
        match self.0.poll_progress(cx, done) {
            Poll::Ready(notification) => {
                let copied = notification.map(|usage| usage as u32 & ZC_COPIED != 0);
                Poll::Ready((copied, self.0.collect().1))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// A multishot accept.
pub struct Accepting {
    ring: SharedRing,
    listener: SharedFile,
    /// The armed operation, if there is one.
    index: Option<u32>,
    /// The armed operation was asked to end.
    paused: bool,
}

impl Accepting {
    /// Accepts from `listener`; armed by the first poll.
    pub fn new(ring: &SharedRing, listener: SharedFile) -> Accepting {
        Accepting { ring: Rc::clone(ring), listener, index: None, paused: false }
    }

    /// The next connection.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<OwnedFd>> {
        let mut ring = self.ring.borrow_mut();
        loop {
            if let Some(index) = self.index
                && ring.is_drained(index)
            {
                // It ended (a pause, an error, or a full completion queue): arm a new one.
                ring.collect(index);
                self.index = None;
                self.paused = false;
            }
            let index = *self.index.get_or_insert_with(|| start_accept(&mut ring, &self.listener));
            match ring.next_accepted(index, cx).map(to_result) {
                Some(Ok(descriptor)) => {
                    // SAFETY: the completion gave this descriptor to us, and nothing else has it.
                    return Poll::Ready(Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) }));
                }
                Some(Err(error)) if self.paused && error.raw_os_error() == Some(libc::ECANCELED) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Pending,
            }
        }
    }

    /// Accepts no more until the next poll. What was accepted already waits for it.
    pub fn pause(&mut self) {
        if let Some(index) = self.index
            && !self.paused
        {
            self.ring.borrow_mut().cancel(index);
            self.paused = true;
        }
    }
}

fn start_accept(ring: &mut Ring, listener: &SharedFile) -> u32 {
    let entry = opcode::AcceptMulti::new(fd(listener)).flags(libc::SOCK_CLOEXEC).build();
    // SAFETY: the entry names the listener only; it is owned, and given to `abandon` below.
    unsafe { ring.start(entry, Kind::Accept) }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        if let Some(index) = self.index.take() {
            let ended = self.ring.borrow_mut().abandon(index, Box::new(Rc::clone(&self.listener)), true);
            drop(ended);
        }
    }
}

/// Registered buffers: chunks of one mapping, registered when first used.
pub struct Chunks<M: IoMemoryMut> {
    ring: SharedRing,
    memory: M,
    chunk_size: usize,
    registered: Vec<bool>,
    refused: u32,
    /// Bytes that may still be registered.
    left: usize,
}

/// Bytes that are registered at most: a quarter of what the user may lock. Rings are charged to the same account, those of all
/// the user's other processes too, and one that cannot be set up is a program that cannot run.
fn allowance() -> usize {
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK) {
        Ok((most, _)) if most != libc::RLIM_INFINITY && !nix::unistd::geteuid().is_root() => {
            usize::try_from(most / 4).unwrap_or(usize::MAX)
        }
        _ => usize::MAX,
    }
}

impl<M: IoMemoryMut> Chunks<M> {
    /// See `runtime::io::Buffers::new`.
    pub fn new(ring: &SharedRing, memory: M, chunk_size: usize) -> io::Result<Chunks<M>> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        if !chunk_size.is_power_of_two() {
            return Err(invalid());
        }
        let count = memory.io_len().div_ceil(chunk_size);
        ring.borrow_mut().register_table(u16::try_from(count).map_err(|_| invalid())?)?;
        let registered = vec![false; count];
        Ok(Chunks { ring: Rc::clone(ring), memory, chunk_size, registered, refused: 0, left: allowance() })
    }

    /// The registered buffer that contains the range, registering its chunk if need be.
    pub fn buffer(&mut self, offset: usize, length: usize) -> Option<u16> {
        let last = offset.checked_add(length)?.checked_sub(1)?;
        let chunk = offset / self.chunk_size;
        if chunk != last / self.chunk_size {
            return None;
        }
        if !*self.registered.get(chunk)? {
            let start = chunk * self.chunk_size;
            let length = self.chunk_size.min(self.memory.io_len() - start);
            if self.refused > 0 || self.left < length {
                return None;
            }
            // SAFETY: `start..start + length` lies within the memory, which is mapped and writable (IoMemoryMut).
            let result = unsafe {
                let first = self.memory.io_mut_ptr().add(start);
                self.ring.borrow_mut().register_buffer(chunk as u16, first, length)
            };
            if result.is_err() {
                self.refused += 1;
                return None;
            }
            self.left -= length;
            self.registered[chunk] = true;
        }
        Some(chunk as u16)
    }

    /// Chunks registered, and registrations refused.
    pub fn counts(&self) -> (u32, u32) {
        (self.registered.iter().filter(|registered| **registered).count() as u32, self.refused)
    }
}
