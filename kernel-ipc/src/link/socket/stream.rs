//! A TCP connection as a link uses it: sends and receives that never wait.
//!
//! - Bytes are sent when they are there (`TCP_NODELAY`), and a connection whose peer does not acknowledge them ends by
//!   itself (`TCP_USER_TIMEOUT`).
//! - A connection is shut down before it is closed: whoever polls it (a ring keeps what it polls open) hears of it.
//! - It is TLS or in the clear. Which of the two, nobody above needs to know but to say so; in the clear the kernel moves leased
//!   bytes between regions and the socket, over TLS they are copied.
//! - One that ends in order is read to its end before it is closed: closing it earlier would take from the peer what it has
//!   not read yet (RFC 1122, 4.2.2.13).

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::thread::LocalKey;
use std::time::Duration;

use rustls::Connection;

use super::carrier::Carrier;
use super::keys::{Party, is_proven, issuer_of, party_of};
use super::tls::Tls;
use crate::lease::{Extent, ReaderSlice};
use crate::runtime::{self, Sleep, io::File};

/// How long the end of a connection may wait for its peer's.
const LINGER: Duration = Duration::from_secs(1);
/// Connections of one thread that are waited for so: of those on which there was a session, and of others. Whoever is refused and does
/// not leave takes no place of those.
const LINGERING_MOST: usize = 256;
const DISMISSED_MOST: usize = 64;

/// Leased bytes that are copied at a time: a record of TLS (RFC 8446, 5.1).
const RECORD: usize = 16 * 1024;

/// See the module's contract.
#[derive(Debug)]
pub struct Stream {
    carrier: Carrier,
    peer: SocketAddr,
    /// `None`: in the clear.
    tls: Option<RefCell<Tls>>,
    /// Who the peer has proven to be.
    party: Option<Party>,
    /// Who has signed that, if it was not the authority.
    issuer: Option<Rc<[u8]>>,
}

impl Stream {
    /// A connected socket, with the options that a link needs. `dead_after`: how long what was sent may stay
    /// unacknowledged.
    ///
    /// # Errors
    /// The socket is not connected any more, or not one.
    pub(super) fn new(carrier: Carrier, dead_after: Duration) -> io::Result<Stream> {
        Ok(Stream { peer: carrier.begin(dead_after)?, carrier, tls: None, party: None, issuer: None })
    }

    /// Dials. Waits for the peer's kernel, without blocking the thread.
    ///
    /// # Errors
    /// `connect(2)`'s.
    pub async fn connect(to: SocketAddr, dead_after: Duration) -> io::Result<Stream> {
        Stream::new(Carrier::connect(to).await?, dead_after)
    }

    /// The same connection over TLS, once both ends have proven who they are. `expected`: who the peer has to be. One that shows no
    /// certificate, if TLS was told to take that, is [nobody](Self::party).
    ///
    /// # Errors
    /// The connection is lost, or one end does not accept the other: `InvalidData`, which says why.
    pub async fn secured(mut self, connection: Connection, expected: Option<&Party>) -> io::Result<Stream> {
        let mut tls = Tls::new(connection);
        while tls.is_shaking_hands() || tls.has_unsent() {
            if !tls.push(|bytes| self.carrier.send(bytes))? {
                self.carrier.writable().await?;
            } else if tls.is_shaking_hands() {
                match tls.look(|room| self.carrier.receive(room)) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.carrier.readable().await?;
                    }
                    Err(error) => {
                        // The alert, so that the other end hears why.
                        let _ = tls.push(|bytes| self.carrier.send(bytes));
                        self.carrier.shutdown(Shutdown::Write);
                        let _ = runtime::timeout(LINGER, self.hear_out()).await;
                        return Err(error);
                    }
                }
            }
        }
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        if is_proven(tls.connection()) {
            self.party = Some(party_of(tls.connection()).ok_or_else(|| invalid("a certificate of no node"))?);
            self.issuer = issuer_of(tls.connection());
        }
        if expected.is_some() && self.party.as_ref() != expected {
            return Err(invalid("a certificate of another node"));
        }
        self.tls = Some(RefCell::new(tls));
        Ok(self)
    }

    /// The certificate (DER) by which the peer's own was signed; `None`: it was the authority's, or there is none.
    pub fn issuer(&self) -> Option<&Rc<[u8]>> {
        self.issuer.as_ref()
    }

    /// Who the peer has proven to be; `None` in the clear.
    pub fn party(&self) -> Option<&Party> {
        self.party.as_ref()
    }

    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The connection, for operations that wait.
    pub(super) fn carrier(&self) -> &Carrier {
        &self.carrier
    }

    /// What a thread that sleeps has to wait for.
    pub(super) fn sleep(&self) -> Sleep {
        self.carrier.sleep()
    }

    /// The socket, if the kernel moves bytes between it and memory; else they are copied.
    fn direct(&self) -> Option<&File> {
        self.carrier.file().filter(|_| self.tls.is_none())
    }

    /// Receives what is there. 0: the peer sends no more. At most one system call.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is; any other: the connection is lost.
    #[inline]
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.carrier.receive(into),
            Some(tls) => tls.borrow_mut().receive(into, |room| self.carrier.receive(room)),
        }
    }

    /// Sends as much as is taken now; what is taken may [wait](Self::has_unsent) here for the kernel, over TLS.
    ///
    /// # Errors
    /// `WouldBlock` if that is nothing; any other: the connection is lost.
    #[inline]
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.carrier.send(bytes),
            Some(tls) => tls.borrow_mut().send(bytes, |bytes| self.carrier.send(bytes)),
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

    /// Sends all of it, waiting for the kernel as often as it must. `more` comes right behind.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn send_all(&self, bytes: Vec<u8>, more: bool) -> io::Result<()> {
        match self.direct() {
            Some(file) => send_memory(file, bytes, more).await,
            None => self.send_copied(&bytes).await,
        }
    }

    /// The same of a range of a region. Over TLS the bytes are copied; else the kernel takes them from there. `keep` is kept
    /// until it has.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn send_leased<K: 'static>(&self, range: ReaderSlice, keep: K) -> io::Result<()> {
        if let Some(file) = self.direct() {
            return send_memory(file, (range, keep), false).await;
        }
        let mut bytes = vec![0; RECORD.min(range.len())];
        let mut sent = 0;
        while sent < range.len() {
            let count = bytes.len().min(range.len() - sent);
            range.copy_out(sent, &mut bytes[..count]).map_err(|_| io::ErrorKind::InvalidInput)?;
            self.send_copied(&bytes[..count]).await?;
            sent += count;
        }
        Ok(())
    }

    /// Gives way first: the kernel may take and bring bytes for as long as it likes, and nobody else would have a turn.
    async fn send_copied(&self, bytes: &[u8]) -> io::Result<()> {
        runtime::yield_now().await;
        let mut sent = 0;
        while sent < bytes.len() || self.has_unsent() {
            let is_full = match self.send(&bytes[sent..]) {
                Ok(count) => {
                    sent += count;
                    self.has_unsent()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                Err(error) => return Err(error),
            };
            if is_full {
                self.carrier.writable().await?;
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
            let count = match self.direct() {
                Some(file) => {
                    let (received, part) = runtime::io::recv(file, vec![0; N - filled], 0).await;
                    let count = received?;
                    bytes[filled..filled + count].copy_from_slice(&part[..count]);
                    count
                }
                None => self.receive_copied(&mut bytes[filled..]).await?,
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += count;
        }
        Ok(bytes)
    }

    /// Receives so many bytes to `offset` of a place, which is kept until the kernel is done, also if this is dropped.
    ///
    /// # Errors
    /// As [`receive_all`](Self::receive_all).
    pub async fn receive_leased<E>(&self, place: &Rc<E>, offset: usize, length: usize) -> io::Result<()>
    where
        E: AsRef<Extent> + 'static,
    {
        let extent = (**place).as_ref();
        let mut filled = 0;
        let mut bytes = vec![0; if self.direct().is_none() { RECORD.min(length) } else { 0 }];
        while filled < length {
            let (at, left) = (offset + filled, length - filled);
            let count = match self.direct() {
                None => {
                    let room = left.min(bytes.len());
                    let count = self.receive_copied(&mut bytes[..room]).await?;
                    extent.copy_in(at, &bytes[..count]).map_err(|_| io::ErrorKind::InvalidInput)?;
                    count
                }
                Some(file) => {
                    let room = extent.slice(at, left).map_err(|_| io::ErrorKind::InvalidInput)?;
                    runtime::io::recv(file, (room, place.clone()), libc::MSG_WAITALL).await.0?
                }
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += count;
        }
        Ok(())
    }

    /// Gives way first, as [`send_copied`](Self::send_copied).
    async fn receive_copied(&self, into: &mut [u8]) -> io::Result<usize> {
        runtime::yield_now().await;
        loop {
            match self.receive(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.carrier.readable().await?,
                received => return received,
            }
        }
    }

    /// Reads, until the peer says no more, what nobody wants to hear.
    async fn hear_out(&self) {
        let mut memory = vec![0; 4096];
        loop {
            match self.carrier.receive(&mut memory) {
                Ok(1..) => runtime::yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = self.carrier.readable().await;
                }
                _ => return,
            }
        }
    }

    /// Ends it at once.
    pub fn abort(self) {
        self.carrier.shutdown(Shutdown::Both);
    }

    /// Sends `rest` and then no more, and reads the peer's last words before the connection is closed. Does not wait. If as many
    /// connections as may be are being closed so, it ends at once: they hold descriptors for whoever is slow to leave.
    pub fn retire(self, rest: Vec<u8>) {
        self.linger(rest, Lingers::one_more(&LINGERING, LINGERING_MOST));
    }

    /// The same of a connection on which there is no session, and nothing is left to be said.
    pub fn dismiss(self) {
        self.linger(Vec::new(), Lingers::one_more(&DISMISSED, DISMISSED_MOST));
    }

    fn linger(self, rest: Vec<u8>, lingers: Option<Lingers>) {
        let is_in_the_clear = self.tls.is_none();
        if rest.is_empty() && is_in_the_clear {
            self.carrier.shutdown(Shutdown::Write);
        }
        if !runtime::is_running() {
            return;
        }
        let Some(lingers) = lingers else { return self.abort() };
        runtime::spawn(async move {
            let _lingers = lingers;
            let say_and_hear = async {
                if !(rest.is_empty() && is_in_the_clear) {
                    let _ = self.send_all(rest, false).await;
                    if let Some(tls) = &self.tls {
                        tls.borrow_mut().say_farewell();
                        let _ = self.send_copied(&[]).await;
                    }
                    self.carrier.shutdown(Shutdown::Write);
                }
                self.hear_out().await;
            };
            let _ = runtime::timeout(LINGER, say_and_hear).await;
            self.carrier.shutdown(Shutdown::Both);
        });
    }
}

thread_local! {
    static LINGERING: Cell<usize> = const { Cell::new(0) };
    static DISMISSED: Cell<usize> = const { Cell::new(0) };
}

/// One connection that is being closed, until this is dropped.
struct Lingers(&'static LocalKey<Cell<usize>>);

impl Lingers {
    fn one_more(of: &'static LocalKey<Cell<usize>>, most: usize) -> Option<Lingers> {
        let count = of.get();
        (count < most).then(|| {
            of.set(count + 1);
            Lingers(of)
        })
    }
}

impl Drop for Lingers {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn send_memory(to: &File, memory: impl runtime::IoMemory, more: bool) -> io::Result<()> {
    let length = memory.io_len();
    let flags = libc::MSG_WAITALL | if more { libc::MSG_MORE } else { 0 };
    match runtime::io::send(to, memory, flags).await.0? {
        sent if sent == length => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::runtime::{Options, Runtime};

    #[test]
    fn who_is_refused_and_does_not_leave_takes_no_place_of_sessions_that_end() {
        let runtime = Runtime::new(Options::default()).expect("io_uring");
        runtime.block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
            let mut strangers = Vec::new();
            let mut stream = || {
                strangers.push(TcpStream::connect(listener.local_addr().expect("an address")).expect("loopback"));
                let (accepted, _) = listener.accept().expect("a connection");
                Stream::new(Carrier::Socket(OwnedFd::from(accepted).into()), LINGER).expect("a connection")
            };
            for _ in 0..LINGERING_MOST + 4 {
                stream().dismiss();
            }
            assert_eq!((DISMISSED.get(), LINGERING.get()), (DISMISSED_MOST, 0));
            stream().retire(Vec::new());
            assert_eq!((DISMISSED.get(), LINGERING.get()), (DISMISSED_MOST, 1));
            // Each for a while.
            while DISMISSED.get() + LINGERING.get() > 0 {
                runtime::sleep(Duration::from_millis(5)).await;
            }
        });
    }
}
