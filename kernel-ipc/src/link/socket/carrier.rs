//! What a connection is made of: a socket of the kernel, or a pipe of a simulated network. All that a link does with either.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, getsockopt, setsockopt, sockopt,
};

use crate::runtime::simulated::{Listening, Pipe};
use crate::runtime::{self, Sleep, io::File};
use crate::sys::calls;

/// A connection. Clones are the same.
#[derive(Clone, Debug)]
pub(super) enum Carrier {
    /// Of the kernel's.
    Socket(File),
    /// Of a simulation's.
    Simulated(Pipe),
}

impl Carrier {
    /// Dials. Waits for the peer's kernel, without blocking the thread.
    ///
    /// # Errors
    /// `connect(2)`'s.
    pub(super) async fn connect(to: SocketAddr) -> io::Result<Carrier> {
        if let Some(nic) = runtime::simulated_nic() {
            return nic.connect(to).await.map(Carrier::Simulated);
        }
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
        Ok(Carrier::Socket(file))
    }

    /// Sets the options that a link needs. Gives who is at the other end.
    ///
    /// # Errors
    /// The socket is not connected any more, or not one.
    pub(super) fn begin(&self, dead_after: Duration) -> io::Result<SocketAddr> {
        let file = match self {
            Carrier::Socket(file) => file,
            Carrier::Simulated(pipe) => return Ok(pipe.peer()),
        };
        setsockopt(file, sockopt::TcpNoDelay, &true)?;
        let timeout = u32::try_from(dead_after.as_millis()).unwrap_or(u32::MAX);
        setsockopt(file, sockopt::TcpUserTimeout, &timeout)?;
        let peer: SockaddrStorage = socket::getpeername(raw(file))?;
        address(&peer).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The socket of the kernel, for operations that take memory.
    pub(super) fn file(&self) -> Option<&File> {
        match self {
            Carrier::Socket(file) => Some(file),
            Carrier::Simulated(_) => None,
        }
    }

    /// Receives what is there, by one system call at most. 0: the peer sends no more.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is; any other: the connection is lost.
    #[inline]
    pub(super) fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Carrier::Socket(file) => {
                calls::count(|made| made.sockets += 1);
                Ok(socket::recv(raw(file), into, MsgFlags::MSG_DONTWAIT)?)
            }
            Carrier::Simulated(pipe) => pipe.receive(into),
        }
    }

    /// Sends as much as is taken now.
    ///
    /// # Errors
    /// `WouldBlock` if that is nothing; any other: the connection is lost.
    #[inline]
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Carrier::Socket(file) => {
                calls::count(|made| made.sockets += 1);
                Ok(socket::send(raw(file), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
            }
            Carrier::Simulated(pipe) => pipe.send(bytes),
        }
    }

    /// Waits until a look would find something.
    ///
    /// # Errors
    /// The ring's.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Carrier::Socket(file) => runtime::io::poll_readable(file).await,
            Carrier::Simulated(pipe) => std::future::poll_fn(|cx| pipe.poll_readable(cx).map(Ok)).await,
        }
    }

    /// Waits until something would be taken.
    ///
    /// # Errors
    /// The ring's.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Carrier::Socket(file) => runtime::io::poll_writable(file).await,
            Carrier::Simulated(pipe) => std::future::poll_fn(|cx| pipe.poll_writable(cx).map(Ok)).await,
        }
    }

    /// What a thread that sleeps has to wait for.
    pub(super) fn sleep(&self) -> Sleep {
        match self {
            Carrier::Socket(file) => Sleep::EventFd(raw(file)),
            Carrier::Simulated(pipe) if pipe.is_readable() => Sleep::Work,
            Carrier::Simulated(_) => Sleep::Nothing,
        }
    }

    /// Ends one direction, or both.
    pub(super) fn shutdown(&self, how: Shutdown) {
        match self {
            Carrier::Socket(file) => {
                let how = match how {
                    Shutdown::Read => socket::Shutdown::Read,
                    Shutdown::Write => socket::Shutdown::Write,
                    Shutdown::Both => socket::Shutdown::Both,
                };
                // A connection that is lost already has nothing to shut down.
                let _ = socket::shutdown(raw(file), how);
            }
            Carrier::Simulated(pipe) => pipe.shutdown(how),
        }
    }
}

/// Where connections come in.
#[derive(Debug)]
pub(super) enum Door {
    Socket(File),
    Simulated(Listening),
}

impl Door {
    /// The connections, one after the other.
    pub(super) fn arrivals(&self) -> Arrivals<'_> {
        match self {
            Door::Socket(file) => Arrivals::Socket(runtime::io::accept(file)),
            Door::Simulated(listening) => Arrivals::Simulated(listening),
        }
    }
}

/// See [`Door::arrivals`].
pub(super) enum Arrivals<'a> {
    Socket(runtime::io::Accept),
    Simulated(&'a Listening),
}

impl Arrivals<'_> {
    /// The next one.
    ///
    /// # Errors
    /// `accept(2)`'s.
    pub(super) async fn next(&mut self) -> io::Result<Carrier> {
        match self {
            Arrivals::Socket(accept) => Ok(Carrier::Socket(accept.next().await?.into())),
            Arrivals::Simulated(listening) => Ok(Carrier::Simulated(listening.next().await)),
        }
    }
}

fn raw(file: &File) -> RawFd {
    file.as_fd().as_raw_fd()
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
pub(super) fn local_address(socket: &impl AsFd) -> io::Result<SocketAddr> {
    let here: SockaddrStorage = socket::getsockname(socket.as_fd().as_raw_fd())?;
    address(&here).ok_or_else(|| io::ErrorKind::Unsupported.into())
}
