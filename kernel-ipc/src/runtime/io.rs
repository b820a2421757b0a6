//! I/O on owned memory: an operation owns its file and its memory until its completion, also when the future is dropped.
//!
//! - Memory goes in by value and comes back with the result. A dropped future's memory stays with the kernel
//!   until the operation has ended, and is dropped then.
//! - Nothing is submitted before the first poll; what a turn of the executor starts is submitted at its end,
//!   together. Nothing here blocks the thread.
//! - Dropping a read, receive, send, poll or accept asks the kernel to end it early; what it had done by then is unknown.
//!
//! All functions panic outside of `Runtime::block_on`.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::{IoMemory, IoMemoryMut, current};
use crate::sys::operation::{self, Accepting, Chunks, SharedFile, ZeroCopy};
use crate::sys::ring::SharedRing;

/// An open file or socket, shared with the operations that use it; closed when the last of them ends.
#[derive(Clone, Debug)]
pub struct File(SharedFile);

impl File {
    /// How many share it: clones, and operations that have not ended, also those whose futures were dropped.
    pub fn users(&self) -> usize {
        Rc::strong_count(&self.0)
    }
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> File {
        File(Rc::new(fd))
    }
}

impl From<std::fs::File> for File {
    fn from(file: std::fs::File) -> File {
        OwnedFd::from(file).into()
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn ring() -> SharedRing {
    Rc::clone(&current().ring)
}

fn file(file: &File) -> SharedFile {
    Rc::clone(&file.0)
}

fn with_memory<M>((result, (_, memory)): (io::Result<u32>, (SharedFile, M))) -> (io::Result<usize>, M) {
    (result.map(|count| count as usize), memory)
}

/// Reads into `memory` (all of its length) at `offset`. May be short; 0 at the end of the file.
pub async fn read_at<M: IoMemoryMut>(from: &File, memory: M, offset: u64) -> (io::Result<usize>, M) {
    with_memory(operation::read(&ring(), file(from), memory, offset, None).await)
}

/// As [`read_at`], into registered buffer number `buffer` (see [`Buffers`]), which must contain `memory`:
/// otherwise the kernel answers `EFAULT`.
pub async fn read_fixed<M: IoMemoryMut>(from: &File, memory: M, offset: u64, buffer: u16) -> (io::Result<usize>, M) {
    with_memory(operation::read(&ring(), file(from), memory, offset, Some(buffer)).await)
}

/// Writes `memory` at `offset`. May be short.
pub async fn write_at<M: IoMemory>(to: &File, memory: M, offset: u64) -> (io::Result<usize>, M) {
    with_memory(operation::write(&ring(), file(to), memory, offset, None).await)
}

/// As [`write_at`], from registered buffer number `buffer`.
pub async fn write_fixed<M: IoMemory>(to: &File, memory: M, offset: u64, buffer: u16) -> (io::Result<usize>, M) {
    with_memory(operation::write(&ring(), file(to), memory, offset, Some(buffer)).await)
}

/// Makes everything written before durable, with the file's metadata.
pub async fn fsync(of: &File) -> io::Result<()> {
    operation::sync(&ring(), file(of), false).await.0.map(drop)
}

/// Makes everything written before durable; metadata only as far as needed to read it back.
pub async fn fdatasync(of: &File) -> io::Result<()> {
    operation::sync(&ring(), file(of), true).await.0.map(drop)
}

/// `fallocate(2)` with `mode`.
pub async fn fallocate(of: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    operation::fallocate(&ring(), file(of), mode, offset, length).await.0.map(drop)
}

/// Receives up to the length of `memory`; 0 is the end of the stream.
pub async fn recv<M: IoMemoryMut>(from: &File, memory: M, flags: i32) -> (io::Result<usize>, M) {
    with_memory(operation::recv(&ring(), file(from), memory, flags).await)
}

/// Sends; may be short (`MSG_WAITALL` asks the kernel to go on). `MSG_NOSIGNAL` is always added.
pub async fn send<M: IoMemory>(to: &File, memory: M, flags: i32) -> (io::Result<usize>, M) {
    with_memory(operation::send(&ring(), file(to), memory, flags).await)
}

/// Sends several pieces of memory as one, at most nine of them; may be short, and is if there are more.
pub async fn send_vectored<M: IoMemory>(to: &File, memory: Vec<M>, flags: i32) -> (io::Result<usize>, Vec<M>) {
    with_memory(operation::send_vectored(&ring(), file(to), memory, flags).await)
}

/// Sends without copying where the path allows it. Ends twice: this future with what was sent, and then the
/// [`Notification`], when the kernel has let go of the memory, which it gives back. Dropping either leaves the
/// memory with the kernel until then; a send that has begun is never cancelled.
pub async fn send_zc<M: IoMemory>(to: &File, memory: M, flags: i32) -> (io::Result<usize>, Notification<M>) {
    send_zc_from(operation::send_zc(&ring(), file(to), memory, flags, None)).await
}

/// As [`send_zc`], from registered buffer number `buffer`.
pub async fn send_zc_fixed<M: IoMemory>(
    to: &File,
    memory: M,
    flags: i32,
    buffer: u16,
) -> (io::Result<usize>, Notification<M>) {
    send_zc_from(operation::send_zc(&ring(), file(to), memory, flags, Some(buffer))).await
}

async fn send_zc_from<M: IoMemory>(mut operation: ZeroCopy<M>) -> (io::Result<usize>, Notification<M>) {
    let sent = poll_fn(|cx| operation.poll_sent(cx)).await;
    (sent.map(|count| count as usize), Notification(operation))
}

/// How the kernel used the memory of a [`send_zc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The pages themselves went out.
    ZeroCopy,
    /// The kernel copied after all.
    Copied,
    /// There was no notification: the send failed before it used the memory.
    Unused,
}

/// The second end of a [`send_zc`]. Dropping it leaves the memory with the kernel until the notification comes.
#[must_use = "dropping it leaves the memory with the kernel"]
pub struct Notification<M: IoMemory>(ZeroCopy<M>);

impl<M: IoMemory> Future for Notification<M> {
    type Output = (Usage, M);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_released(cx).map(|(copied, memory)| {
            let usage = match copied {
                Some(false) => Usage::ZeroCopy,
                Some(true) => Usage::Copied,
                None => Usage::Unused,
            };
            (usage, memory)
        })
    }
}

/// Connections of a listening socket, as they come (one multishot accept).
pub struct Accept(Accepting);

/// Accepts from `listener` until dropped; connections that nobody took are closed then. The sockets are `CLOEXEC`.
pub fn accept(listener: &File) -> Accept {
    Accept(Accepting::new(&ring(), file(listener)))
}

impl Accept {
    /// The next connection. After an error the next call arms a new accept.
    ///
    /// # Errors
    /// `accept(2)`'s.
    pub async fn next(&mut self) -> io::Result<OwnedFd> {
        poll_fn(|cx| self.0.poll_next(cx)).await
    }

    /// Accepts no more until the next [`Self::next`]. What the kernel has accepted already is kept for it: a connection
    /// that its peer has seen established is never dropped for want of room.
    pub fn pause(&mut self) {
        self.0.pause();
    }
}

/// `shutdown(2)`.
pub async fn shutdown(socket: &File, how: std::net::Shutdown) -> io::Result<()> {
    let how = match how {
        std::net::Shutdown::Read => libc::SHUT_RD,
        std::net::Shutdown::Write => libc::SHUT_WR,
        std::net::Shutdown::Both => libc::SHUT_RDWR,
    };
    operation::shutdown(&ring(), file(socket), how).await.0.map(drop)
}

/// Closes the file without blocking the thread when nothing else uses it; otherwise it is closed when the
/// last operation on it ends, and this returns at once.
pub async fn close(file: File) -> io::Result<()> {
    match Rc::try_unwrap(file.0) {
        Ok(descriptor) => operation::close(&ring(), descriptor).await.0.map(drop),
        Err(_) => Ok(()),
    }
}

/// Waits until the descriptor is readable, or at its end, or broken.
pub async fn poll_readable(on: &File) -> io::Result<()> {
    operation::poll(&ring(), file(on), libc::POLLIN).await.0.map(drop)
}

/// Waits until the descriptor can be written to, or is broken.
pub async fn poll_writable(on: &File) -> io::Result<()> {
    operation::poll(&ring(), file(on), libc::POLLOUT).await.0.map(drop)
}

/// Fixed buffers of the runtime's ring: chunks of one mapping, registered when they are first used.
///
/// A ring has one table of buffers, so a runtime has at most one of these.
pub struct Buffers<M: IoMemoryMut>(Chunks<M>);

impl<M: IoMemoryMut> Buffers<M> {
    /// Chunks of `chunk_size` bytes (a power of two) of `memory`, a handle on the whole mapping. Registers
    /// nothing yet.
    ///
    /// # Errors
    /// The kernel's refusal of an empty table (there is one already; too many chunks): then everything works
    /// without fixed buffers.
    pub fn new(memory: M, chunk_size: usize) -> io::Result<Buffers<M>> {
        Chunks::new(&ring(), memory, chunk_size).map(Buffers)
    }

    /// The registered buffer that contains `offset..offset + length` of the memory, registering its chunk if
    /// need be (a system call, once per chunk; measured 0.7 µs per page). `None` when the range crosses chunks
    /// or a quarter of the memory-lock limit is used up: then use plain operations.
    pub fn buffer(&mut self, offset: usize, length: usize) -> Option<u16> {
        self.0.buffer(offset, length)
    }

    /// Chunks registered, and registrations refused (after the first refusal none is tried).
    pub fn counts(&self) -> (u32, u32) {
        self.0.counts()
    }
}
