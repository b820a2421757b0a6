//! A TCP connection as a link uses it: sends and receives that never wait.
//!
//! - Bytes are sent when they are there (`TCP_NODELAY`), and a connection whose peer does not acknowledge them ends by
//!   itself (`TCP_USER_TIMEOUT`).
//! - A connection is shut down before it is closed: whoever polls it (a ring keeps what it polls open) hears of it.
//! - It is TLS or in the clear. Which of the two, nobody above needs to know but to say so; in the clear the kernel moves leased
//!   bytes between regions and the socket, over TLS they are copied.
//! - One that ends in order is read to its end before it is closed: closing it earlier would take from the peer what it has
//!   not read yet (RFC 1122, 4.2.2.13).

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, getsockopt, setsockopt, sockopt,
};

use rustls::Connection;

use super::keys::{NodeName, is_proven, issuer_of, node_of};
use super::tls::Tls;
use crate::lease::{Extent, ReaderSlice};
use crate::runtime::{self, io::File};
use crate::sys::calls;

/// How long the end of a connection may wait for its peer's.
const LINGER: Duration = Duration::from_secs(1);

/// Leased bytes that are copied at a time: a record of TLS (RFC 8446, 5.1).
const RECORD: usize = 16 * 1024;

/// See the module's contract.
#[derive(Debug)]
pub struct Stream {
    file: File,
    peer: SocketAddr,
    /// `None`: in the clear.
    tls: Option<RefCell<Tls>>,
    /// Who the peer has proven to be.
    node: Option<NodeName>,
    /// Who has signed that, if it was not the authority.
    issuer: Option<Rc<[u8]>>,
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
        Ok(Stream { file, peer, tls: None, node: None, issuer: None })
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

    /// The same connection over TLS, once both ends have proven who they are. `expected`: who the peer has to be. One that shows no
    /// certificate, if TLS was told to take that, is [no node](Self::node).
    ///
    /// # Errors
    /// The connection is lost, or one end does not accept the other: `InvalidData`, which says why.
    pub async fn secured(mut self, connection: Connection, expected: Option<&NodeName>) -> io::Result<Stream> {
        let mut tls = Tls::new(connection);
        while tls.is_shaking_hands() || tls.has_unsent() {
            if !tls.push(|bytes| self.send_raw(bytes))? {
                runtime::io::poll_writable(&self.file).await?;
            } else if tls.is_shaking_hands() {
                match tls.look(|room| self.receive_raw(room)) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        runtime::io::poll_readable(&self.file).await?;
                    }
                    Err(error) => {
                        // The alert, so that the other end hears why.
                        let _ = tls.push(|bytes| self.send_raw(bytes));
                        let _ = socket::shutdown(self.raw_fd(), socket::Shutdown::Write);
                        let _ = runtime::timeout(LINGER, self.hear_out()).await;
                        return Err(error);
                    }
                }
            }
        }
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        if is_proven(tls.connection()) {
            self.node = Some(node_of(tls.connection()).ok_or_else(|| invalid("a certificate of no node"))?);
            self.issuer = issuer_of(tls.connection());
        }
        if expected.is_some() && self.node.as_ref() != expected {
            return Err(invalid("a certificate of another node"));
        }
        self.tls = Some(RefCell::new(tls));
        Ok(self)
    }

    /// The certificate (DER) by which the peer's own was signed; `None`: it was the authority's, or there is none.
    pub fn issuer(&self) -> Option<&Rc<[u8]>> {
        self.issuer.as_ref()
    }

    /// The node that the peer has proven to be; `None` in the clear.
    pub fn node(&self) -> Option<&NodeName> {
        self.node.as_ref()
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

    /// Receives what is there. 0: the peer sends no more. At most one system call.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is; any other: the connection is lost.
    #[inline]
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.receive_raw(into),
            Some(tls) => tls.borrow_mut().receive(into, |room| self.receive_raw(room)),
        }
    }

    /// Sends as much as is taken now; what is taken may [wait](Self::has_unsent) here for the kernel, over TLS.
    ///
    /// # Errors
    /// `WouldBlock` if that is nothing; any other: the connection is lost.
    #[inline]
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.send_raw(bytes),
            Some(tls) => tls.borrow_mut().send(bytes, |bytes| self.send_raw(bytes)),
        }
    }

    /// Whether something was taken that the kernel has not: another [`send`](Self::send), of nothing, sends it.
    #[inline]
    pub fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow().has_unsent())
    }

    /// Whether something was received that nobody has taken: a descriptor does not become readable by it.
    #[inline]
    pub fn holds_more(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow_mut().holds_more())
    }

    fn receive_raw(&self, into: &mut [u8]) -> io::Result<usize> {
        calls::count(|made| made.sockets += 1);
        Ok(socket::recv(self.raw_fd(), into, MsgFlags::MSG_DONTWAIT)?)
    }

    fn send_raw(&self, bytes: &[u8]) -> io::Result<usize> {
        calls::count(|made| made.sockets += 1);
        Ok(socket::send(self.raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
    }

    /// Sends all of it, waiting for the kernel as often as it must. `more` comes right behind.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn send_all(&self, bytes: Vec<u8>, more: bool) -> io::Result<()> {
        match self.tls {
            None => self.send_memory(bytes, more).await,
            Some(_) => self.send_by_tls(&bytes).await,
        }
    }

    /// The same of a range of a region. Over TLS the bytes are copied; else the kernel takes them from there. `keep` is kept
    /// until it has.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn send_leased<K: 'static>(&self, range: ReaderSlice, keep: K) -> io::Result<()> {
        if self.tls.is_none() {
            return self.send_memory((range, keep), false).await;
        }
        let mut bytes = vec![0; RECORD.min(range.len())];
        let mut sent = 0;
        while sent < range.len() {
            let count = bytes.len().min(range.len() - sent);
            range.copy_out(sent, &mut bytes[..count]).map_err(|_| io::ErrorKind::InvalidInput)?;
            self.send_by_tls(&bytes[..count]).await?;
            sent += count;
        }
        Ok(())
    }

    async fn send_memory(&self, memory: impl runtime::IoMemory, more: bool) -> io::Result<()> {
        let length = memory.io_len();
        let flags = libc::MSG_WAITALL | if more { libc::MSG_MORE } else { 0 };
        match runtime::io::send(&self.file, memory, flags).await.0? {
            sent if sent == length => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Gives way first: the kernel may take and bring bytes for as long as it likes, and nobody else would have a turn.
    async fn send_by_tls(&self, bytes: &[u8]) -> io::Result<()> {
        runtime::yield_now().await;
        let mut sent = 0;
        while sent < bytes.len() || self.has_unsent() {
            match self.send(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.has_unsent() {
                runtime::io::poll_writable(&self.file).await?;
            }
        }
        Ok(())
    }

    /// Receives exactly so many bytes.
    ///
    /// # Errors
    /// The connection is lost; `UnexpectedEof` if it ends before.
    pub async fn receive_all<const N: usize>(&self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        let mut filled = 0;
        while filled < N {
            let count = match self.tls {
                None => {
                    let (received, part) = runtime::io::recv(&self.file, vec![0; N - filled], 0).await;
                    let count = received?;
                    bytes[filled..filled + count].copy_from_slice(&part[..count]);
                    count
                }
                Some(_) => self.receive_by_tls(&mut bytes[filled..]).await?,
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += count;
        }
        Ok(bytes)
    }

    /// Receives so many bytes to `offset` of an extent, which is kept until the kernel is done, also if this is dropped.
    ///
    /// # Errors
    /// As [`receive_all`](Self::receive_all).
    pub async fn receive_leased(&self, extent: &Rc<Extent>, offset: usize, length: usize) -> io::Result<()> {
        let mut filled = 0;
        let mut bytes = vec![0; if self.tls.is_some() { RECORD.min(length) } else { 0 }];
        while filled < length {
            let (at, left) = (offset + filled, length - filled);
            let count = if self.tls.is_some() {
                let room = left.min(bytes.len());
                let count = self.receive_by_tls(&mut bytes[..room]).await?;
                extent.copy_in(at, &bytes[..count]).map_err(|_| io::ErrorKind::InvalidInput)?;
                count
            } else {
                let room = extent.slice(at, left).map_err(|_| io::ErrorKind::InvalidInput)?;
                runtime::io::recv(&self.file, (room, extent.clone()), libc::MSG_WAITALL).await.0?
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += count;
        }
        Ok(())
    }

    /// Gives way first, as [`send_by_tls`](Self::send_by_tls).
    async fn receive_by_tls(&self, into: &mut [u8]) -> io::Result<usize> {
        runtime::yield_now().await;
        loop {
            match self.receive(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    runtime::io::poll_readable(&self.file).await?
                }
                received => return received,
            }
        }
    }

    /// Reads, until the peer says no more, what nobody wants to hear.
    async fn hear_out(&self) {
        let mut memory = vec![0; 4096];
        while let (Ok(1..), again) = runtime::io::recv(&self.file, memory, 0).await {
            memory = again;
        }
    }

    /// Ends it at once.
    pub fn abort(self) {
        // A connection that is lost already has nothing to shut down.
        let _ = socket::shutdown(self.raw_fd(), socket::Shutdown::Both);
    }

    /// Sends `rest` and then no more, and reads the peer's last words before the socket is closed. Does not wait.
    pub fn retire(self, rest: Vec<u8>) {
        let is_in_the_clear = self.tls.is_none();
        if rest.is_empty() && is_in_the_clear {
            let _ = socket::shutdown(self.raw_fd(), socket::Shutdown::Write);
        }
        if !runtime::is_running() {
            return;
        }
        runtime::spawn(async move {
            let say_and_hear = async {
                if !(rest.is_empty() && is_in_the_clear) {
                    let _ = self.send_all(rest, false).await;
                    if let Some(tls) = &self.tls {
                        tls.borrow_mut().say_farewell();
                        let _ = self.send_by_tls(&[]).await;
                    }
                    let _ = runtime::io::shutdown(&self.file, Shutdown::Write).await;
                }
                self.hear_out().await;
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
