//! TLS over a connection, for operations that never wait. No system calls but through what it is given.
//!
//! - What is received is decrypted at once, as much as one look brings; what there is no room for stays here, and
//!   [`holds_more`](Tls::holds_more) says so, for no descriptor becomes readable by it.
//! - What is to be sent is encrypted only when everything before it has left: at most [`AHEAD`] bytes lie here.

use std::io::{self, Read, Write};
use std::ops::Range;

use rustls::Connection;

/// Bytes that are taken from the kernel by one look, and encrypted before they are sent: some records (RFC 8446, 5.1: at most
/// 2^14 bytes each).
const AHEAD: usize = 64 * 1024;

pub(super) struct Tls {
    connection: Connection,
    /// What one look at the socket brought, and which part of it TLS has not taken: it takes no more than it has room for.
    received: Box<[u8]>,
    untaken: Range<usize>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Tls {
    pub(super) fn new(mut connection: Connection) -> Tls {
        connection.set_buffer_limit(Some(AHEAD));
        Tls { connection, received: vec![0; AHEAD].into(), untaken: 0..0 }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The two ends do not know each other yet.
    pub(super) fn is_shaking_hands(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Bytes lie here that nobody has taken, and perhaps no record is whole among them.
    pub(super) fn holds_more(&mut self) -> bool {
        !self.untaken.is_empty() || self.connection.reader().into_first_chunk().is_ok_and(|chunk| !chunk.is_empty())
    }

    /// Encrypted bytes lie here that the kernel has not taken.
    pub(super) fn has_unsent(&self) -> bool {
        self.connection.wants_write()
    }

    /// Takes decrypted bytes; looks for more once if there are none. 0: the peer sends no more.
    ///
    /// # Errors
    /// `receive`'s; `WouldBlock` if there is nothing whole; `InvalidData`: what has come was not sent by the peer, or not so.
    pub(super) fn receive(
        &mut self,
        into: &mut [u8],
        receive: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        match self.take(into) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            taken => return taken,
        }
        match self.look(receive)? {
            // Without the farewell of TLS: whether everything came, the protocol above knows.
            0 => Ok(0),
            _ => self.take(into),
        }
    }

    /// Takes what has come, as far as there is room for it. Gives how much that was.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub(super) fn look(&mut self, receive: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        if self.untaken.is_empty() {
            self.untaken = 0..receive(&mut self.received)?.min(self.received.len());
        }
        let count = self.untaken.len();
        self.decrypt()?;
        Ok(count)
    }

    /// Gives TLS what was received, until it has as much as it takes.
    fn decrypt(&mut self) -> io::Result<()> {
        while !self.untaken.is_empty() {
            let mut rest = &self.received[self.untaken.clone()];
            match self.connection.read_tls(&mut rest) {
                // It has said farewell: what comes behind that is nothing.
                Ok(0) => self.untaken = 0..0,
                Ok(count) => self.untaken.start += count,
                // It has no room, because nobody has taken what it holds.
                Err(error) if error.kind() == io::ErrorKind::Other => return Ok(()),
                Err(error) => return Err(error),
            }
            let processed = self.connection.process_new_packets();
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        Ok(())
    }

    fn take(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < into.len() {
            match self.connection.reader().read(&mut into[taken..]) {
                Ok(0) => break,
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.untaken.is_empty() => {
                    // What was good before it is taken; the next look hears of it again.
                    match self.decrypt() {
                        Err(_) if taken > 0 => break,
                        decrypted => decrypted?,
                    }
                }
                Err(_) if taken > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// Encrypts as much of `bytes` as there is room for and sends what the kernel takes. Gives how much of `bytes` was taken
    /// here: it leaves with this call or with a later one.
    ///
    /// # Errors
    /// `WouldBlock` if nothing was taken; `send`'s.
    pub(super) fn send(&mut self, bytes: &[u8], mut send: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        if !self.push(&mut send)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = self.connection.writer().write(bytes)?;
        self.push(&mut send)?;
        Ok(taken)
    }

    /// Sends what lies here. False: the kernel does not take all of it now.
    ///
    /// # Errors
    /// `send`'s.
    pub(super) fn push(&mut self, send: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<bool> {
        let mut socket = Socket(send);
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Says that no more is sent.
    pub(super) fn say_farewell(&mut self) {
        self.connection.send_close_notify();
    }
}

/// A way to send, in the form that TLS writes to.
struct Socket<S>(S);

impl<S: FnMut(&[u8]) -> io::Result<usize>> Write for Socket<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match parts {
            [one] => (self.0)(one),
            // In one system call, though it costs a copy.
            several => (self.0)(&several.iter().map(|part| &**part).collect::<Vec<_>>().concat()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
