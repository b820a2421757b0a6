//! Sockets: how they are made, and what is asked of them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, accept4, bind, getpeername, getsockname,
    listen, setsockopt, shutdown, socket, sockopt,
};
use protocol::net::ListenError;

use kernel_ipc::runtime::io::File;
use std::os::fd::AsFd;

use crate::sys;

/// Makes a listening socket; says where it listens.
///
/// What is set here is inherited by every connection: no system call per connection for it.
///
/// # Errors
/// `InUse`, or the system's refusal.
pub(crate) fn listener(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), ListenError> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let make = || -> nix::Result<(OwnedFd, SocketAddr)> {
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        // Header and payload leave in one send, so there is nothing to wait for.
        setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        setsockopt(&fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        listen(&fd, Backlog::MAXCONN)?;
        let bound = to_address(&getsockname(fd.as_raw_fd())?).ok_or(Errno::EAFNOSUPPORT)?;
        Ok((fd, bound))
    };
    make().map_err(|errno| match errno {
        Errno::EADDRINUSE => ListenError::InUse,
        other => ListenError::System { errno: other as u32 },
    })
}

/// The next connection of a listener, if one waits.
///
/// # Errors
/// The system's: out of descriptors or memory. A peer that is gone already is none.
pub(crate) fn accept(listener: &File) -> io::Result<Option<OwnedFd>> {
    loop {
        // A blocking socket: what the ring gives to a thread of the kernel must wait there, and not end with EAGAIN.
        match accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(socket) => return Ok(Some(sys::accepted(socket))),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The peer's address, and whether the peer is on this machine.
///
/// # Errors
/// The peer is gone already.
pub(crate) fn peer(socket: &impl AsFd) -> io::Result<(SocketAddr, bool)> {
    let socket = socket.as_fd().as_raw_fd();
    let peer: SockaddrStorage = getpeername(socket)?;
    let own: SockaddrStorage = getsockname(socket)?;
    let (Some(peer), Some(own)) = (to_address(&peer), to_address(&own)) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    Ok((peer, peer.ip().is_loopback() || peer.ip() == own.ip()))
}

/// A socket's own address.
pub(crate) fn own_address(socket: &impl AsFd) -> Option<SocketAddr> {
    to_address(&getsockname(socket.as_fd().as_raw_fd()).ok()?)
}

/// Shuts the sending side. A socket that is gone already is as good as shut.
pub(crate) fn finish(socket: &File) {
    let _ = shutdown(socket.as_fd().as_raw_fd(), Shutdown::Write);
}

fn to_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let four = address.as_sockaddr_in().map(|four| SocketAddr::from((four.ip(), four.port())));
    four.or_else(|| address.as_sockaddr_in6().map(|six| SocketAddr::from((six.ip(), six.port()))))
}
