//! A TCP connection as a link uses it: sends and receives that never wait.
//!
//! - Bytes are sent when they are there (`TCP_NODELAY`), and a connection whose peer does not acknowledge them ends by
//!   itself (`TCP_USER_TIMEOUT`).
//! - A connection is shut down before it is closed: whoever polls it (a ring keeps what it polls open) hears of it.
//! - One that ends in order is read to its end before it is closed: closing it earlier would take from the peer what it has
//!   not read yet (RFC 1122, 4.2.2.13).

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, getsockopt, setsockopt, sockopt,
};

use crate::runtime::{self, IoMemory, io::File};
use crate::sys::calls;

/// How long the end of a connection may wait for its peer's.
const LINGER: Duration = Duration::from_secs(1);

/// See the module's contract.
#[derive(Debug)]
pub struct Stream {
    file: File,
    peer: SocketAddr,
}

impl Stream {
    /// A connected socket, with the options that a link needs. `dead_after`: how long what was sent may stay
    /// unacknowledged.
    ///
    /// # Errors
    /// The socket is not connected any more, or not one.
    pub fn new(file: File, dead_after: Duration) -> io::Result<Stream> {
        setsockopt(&file, sockopt::TcpNoDelay, &true)?;
        let timeout = u32::try_from(dead_after.as_millis()).unwrap_or(u32::MAX);
        setsockopt(&file, sockopt::TcpUserTimeout, &timeout)?;
        let peer: SockaddrStorage = socket::getpeername(file.as_fd().as_raw_fd())?;
        let peer = address(&peer).ok_or(io::ErrorKind::Unsupported)?;
        Ok(Stream { file, peer })
    }

    /// Dials. Waits for the peer's kernel, without blocking the thread.
    ///
    /// # Errors
    /// `connect(2)`'s.
    pub async fn connect(to: SocketAddr, dead_after: Duration) -> io::Result<Stream> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(family, SockType::Stream, flags, None)?;
        let begun = socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to));
        let file = File::from(socket);
        match begun {
            Ok(()) => {}
            Err(Errno::EINPROGRESS) => {
                runtime::io::poll_writable(&file).await?;
                match getsockopt(&file, sockopt::SocketError)? {
                    0 => {}
                    error => return Err(io::Error::from_raw_os_error(error)),
                }
            }
            Err(error) => return Err(error.into()),
        }
        // Operations of the ring give up at once on a socket that does not block.
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?) - OFlag::O_NONBLOCK;
        fcntl(&file, FcntlArg::F_SETFL(flags))?;
        Stream::new(file, dead_after)
    }

    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The socket, for operations that wait.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The socket's number, for a ring that polls it.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_fd().as_raw_fd()
    }

    /// Receives what is there. 0: the peer sends no more. One system call.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is; any other: the connection is lost.
    #[inline]
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        calls::count(|made| made.sockets += 1);
        Ok(socket::recv(self.raw_fd(), into, MsgFlags::MSG_DONTWAIT)?)
    }

    /// Sends as much as the kernel takes now. One system call.
    ///
    /// # Errors
    /// `WouldBlock` if that is nothing; any other: the connection is lost.
    #[inline]
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        calls::count(|made| made.sockets += 1);
        Ok(socket::send(self.raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
    }

    /// Sends all of `memory`, without blocking the thread. `flags` are those of `send(2)`.
    ///
    /// # Errors
    /// The connection is lost; `WriteZero` if the kernel took only a part.
    pub async fn send_all(&self, memory: impl IoMemory, flags: i32) -> io::Result<()> {
        let length = memory.io_len();
        match runtime::io::send(&self.file, memory, flags | libc::MSG_WAITALL).await.0? {
            sent if sent == length => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Ends it at once.
    pub fn abort(self) {
        // A connection that is lost already has nothing to shut down.
        let _ = socket::shutdown(self.raw_fd(), socket::Shutdown::Both);
    }

    /// Sends `rest` and then no more, and reads the peer's last words before the socket is closed. Does not wait.
    pub fn retire(self, rest: Vec<u8>) {
        if rest.is_empty() {
            let _ = socket::shutdown(self.raw_fd(), socket::Shutdown::Write);
        }
        if !runtime::is_running() {
            return;
        }
        runtime::spawn(async move {
            let say_and_hear = async {
                if !rest.is_empty() {
                    let _ = self.send_all(rest, 0).await;
                    let _ = runtime::io::shutdown(&self.file, Shutdown::Write).await;
                }
                let mut memory = vec![0; 4096];
                while let (Ok(1..), again) = runtime::io::recv(&self.file, memory, 0).await {
                    memory = again;
                }
            };
            let _ = runtime::timeout(LINGER, say_and_hear).await;
            let _ = runtime::io::shutdown(&self.file, Shutdown::Both).await;
        });
    }
}

/// The address in the kernel's form, if it is one of the Internet's.
fn address(from: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(four) = from.as_sockaddr_in() {
        return Some(SocketAddr::new(IpAddr::V4(four.ip()), four.port()));
    }
    from.as_sockaddr_in6().map(|six| SocketAddr::new(IpAddr::V6(six.ip()), six.port()))
}

/// Where a listening socket listens.
///
/// # Errors
/// It is no socket of the Internet.
pub fn local_address(socket: &impl AsFd) -> io::Result<SocketAddr> {
    let here: SockaddrStorage = socket::getsockname(socket.as_fd().as_raw_fd())?;
    address(&here).ok_or_else(|| io::ErrorKind::Unsupported.into())
}
