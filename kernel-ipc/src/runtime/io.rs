//! I/O on owned memory: an operation owns its file and its memory until its completion, also when the future is dropped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::{IoMemory, IoMemoryMut};

/// An open file or socket, shared with the operations that use it; closed when the last of them ends.
#[derive(Clone, Debug)]
pub struct File(Rc<OwnedFd>);

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> File {
        File(Rc::new(fd))
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads into `memory` (all of its length) at `offset`.
pub async fn read_at<M: IoMemoryMut>(file: &File, memory: M, offset: u64) -> (io::Result<usize>, M) {
    todo!()
}

/// As [`read_at`], into registered buffer number `buffer` (see [`Buffers`]), which must contain `memory`.
pub async fn read_fixed<M: IoMemoryMut>(file: &File, memory: M, offset: u64, buffer: u16) -> (io::Result<usize>, M) {
    todo!()
}

/// Writes `memory` at `offset`. May be short.
pub async fn write_at<M: IoMemory>(file: &File, memory: M, offset: u64) -> (io::Result<usize>, M) {
    todo!()
}

/// As [`write_at`], from registered buffer number `buffer`.
pub async fn write_fixed<M: IoMemory>(file: &File, memory: M, offset: u64, buffer: u16) -> (io::Result<usize>, M) {
    todo!()
}

/// Makes everything written before durable, with the file's metadata.
pub async fn fsync(file: &File) -> io::Result<()> {
    todo!()
}

/// Makes everything written before durable; metadata only as far as needed to read it back.
pub async fn fdatasync(file: &File) -> io::Result<()> {
    todo!()
}

/// `fallocate(2)` with `mode`.
pub async fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    todo!()
}

/// Receives up to the length of `memory`; 0 is the end of the stream.
pub async fn recv<M: IoMemoryMut>(socket: &File, memory: M, flags: i32) -> (io::Result<usize>, M) {
    todo!()
}

/// Sends; may be short (`MSG_WAITALL` asks the kernel to go on). `MSG_NOSIGNAL` is always added.
pub async fn send<M: IoMemory>(socket: &File, memory: M, flags: i32) -> (io::Result<usize>, M) {
    todo!()
}

/// Sends without copying where the path allows it. Ends twice: this future with what was sent, and then the
/// [`Notification`] when the kernel has let go of the memory, which it gives back.
pub async fn send_zc<M: IoMemory>(socket: &File, memory: M, flags: i32) -> (io::Result<usize>, Notification<M>) {
    todo!()
}

/// The second end of a [`send_zc`]. Dropping it leaves the memory with the kernel until the notification comes.
pub struct Notification<M> {
    _memory: M,
}

/// How the kernel used the memory of a [`send_zc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The pages themselves went out.
    ZeroCopy,
    /// The kernel copied after all.
    Copied,
    /// It did not say (the send failed before it used the memory).
    Unknown,
}

impl<M: IoMemory> std::future::Future for Notification<M> {
    type Output = (Usage, M);
    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        todo!()
    }
}

/// Connections of a listening socket, as they come (one multishot accept).
pub struct Accept {}

/// Accepts from `listener` until dropped. The sockets are `CLOEXEC`.
pub fn accept(listener: &File) -> Accept {
    todo!()
}

impl Accept {
    /// The next connection. After an error the next call arms a new accept.
    pub async fn next(&mut self) -> io::Result<OwnedFd> {
        todo!()
    }
}

/// `shutdown(2)`.
pub async fn shutdown(socket: &File, how: std::net::Shutdown) -> io::Result<()> {
    todo!()
}

/// Closes the file when nothing else uses it; otherwise it is closed when the last operation on it ends.
pub async fn close(file: File) -> io::Result<()> {
    todo!()
}

/// Waits until the descriptor is readable (or at its end).
pub async fn poll_readable(file: &File) -> io::Result<()> {
    todo!()
}

/// Waits until the descriptor can be written to.
pub async fn poll_writable(file: &File) -> io::Result<()> {
    todo!()
}

/// Fixed buffers of the runtime's ring: chunks of one mapping, registered when they are first used.
pub struct Buffers {}

impl Buffers {
    /// Chunks of `chunk_size` bytes (a power of two) of `memory`. Registers nothing yet.
    ///
    /// # Errors
    /// The kernel's refusal of an empty table; then everything works without fixed buffers.
    pub fn new<M: IoMemory>(memory: M, chunk_size: usize) -> io::Result<Buffers> {
        todo!()
    }

    /// The registered buffer that contains `offset..offset + length` of the memory, registering its chunk if
    /// need be; `None` when the range crosses chunks or the memory-lock limit is reached (then use plain reads).
    pub fn buffer(&self, offset: usize, length: usize) -> Option<u16> {
        todo!()
    }

    /// Chunks registered, and registrations refused.
    pub fn counts(&self) -> (u32, u32) {
        todo!()
    }
}
