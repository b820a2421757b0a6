//! Bytes of a connection become frames. No system calls.
//!
//! - One buffer, of a size that is fixed when the connection begins: what a peer sends beyond it stays in the kernel.
//! - A message's body is read where it came to lie, until the next frame is asked for.

use super::frame::{self, FrameError, HEADER_BYTES, Header, kind};
use crate::wire::{DESCRIPTOR_BYTES, RawDescriptor, Shape};

/// Room for as much as a peer may send while we do something else, if frames are small.
const LEAST_BYTES: usize = 16 * 1024;

/// A frame of an open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message, whose part of the window can be [read](Inbox::read_window) now.
    Message(RawDescriptor),
    /// The peer lives.
    Heartbeat,
    /// The peer has closed the session, and had taken so many messages from this connection.
    Bye(u64),
}

/// See the module's contract.
#[derive(Debug)]
pub struct Inbox {
    shape: Shape,
    bytes: Box<[u8]>,
    /// What was received and not taken.
    start: usize,
    end: usize,
    /// The present message's slot, and where its part of the window lies.
    window: (u16, std::ops::Range<usize>),
}

impl Inbox {
    /// Room for two of the largest frames of such a session.
    pub fn new(shape: Shape) -> Inbox {
        let bytes = vec![0; LEAST_BYTES.max(2 * frame::largest(shape))].into();
        Inbox { shape, bytes, start: 0, end: 0, window: (0, 0..0) }
    }

    /// Forgets everything: what comes next is of another connection.
    pub fn clear(&mut self) {
        (self.start, self.end, self.window) = (0, 0, (0, 0..0));
    }

    /// Whether a whole frame lies here, or what can only become a wrong one.
    pub fn has_frame(&self) -> bool {
        self.beyond(self.start).is_some()
    }

    /// How many frames lie here.
    pub fn frames(&self) -> u64 {
        std::iter::successors(self.beyond(self.start), |at| self.beyond(*at)).count() as u64
    }

    /// Hands the room that is left to `receive`, which says how much it has filled. Gives that, and whether more would
    /// have fitted: then there was no more.
    ///
    /// # Errors
    /// `receive`'s.
    pub fn fill<E>(&mut self, receive: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(usize, bool), E> {
        self.window = (0, 0..0);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.start < frame::largest(self.shape) {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = &mut self.bytes[self.end..];
        let most = room.len();
        let received = receive(room)?.min(most);
        self.end += received;
        Ok((received, received < most))
    }

    /// The next frame, if all of it is here.
    ///
    /// # Errors
    /// No correct peer sends what is here. Nothing more can be taken.
    #[inline]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        self.window = (0, 0..0);
        let Some(header) = self.header(self.start) else { return Ok(None) };
        let Header { kind, length } = header?;
        let Some(body) = self.bytes[self.start + HEADER_BYTES..self.end].get(..length) else { return Ok(None) };
        let frame = match kind {
            kind::MESSAGE => {
                let (descriptor, _) = body.split_first_chunk().expect("a message's header was checked to have one");
                let descriptor = frame::descriptor(descriptor, length, self.shape)?;
                let begin = self.start + HEADER_BYTES;
                let slot = (descriptor.0[0] >> 32) as u16;
                self.window = (slot, begin + DESCRIPTOR_BYTES..begin + length);
                Frame::Message(descriptor)
            }
            kind::HEARTBEAT => Frame::Heartbeat,
            kind::BYE => Frame::Bye(body.first_chunk().map_or(0, |taken| u64::from_le_bytes(*taken))),
            // A greeting comes before this begins, and only there.
            _ => return Err(FrameError::Kind(kind)),
        };
        self.start += HEADER_BYTES + length;
        Ok(Some(frame))
    }

    /// Copies from the present message's window, if it is this slot's. What the message did not bring stays as it was.
    pub fn read_window(&self, slot: u16, offset: usize, bytes: &mut [u8]) {
        let (of, range) = &self.window;
        let there = self.bytes.get(range.clone()).and_then(|window| window.get(offset..)?.get(..bytes.len()));
        if *of == slot
            && let Some(there) = there
        {
            bytes.copy_from_slice(there);
        }
    }

    fn header(&self, at: usize) -> Option<Result<Header, FrameError>> {
        let bytes = self.bytes[at..self.end].first_chunk()?;
        Some(Header::check(*bytes, self.shape.window_bytes))
    }

    /// Where the frame at this place ends, if all of it is here. Of a wrong one nobody knows: it goes to the end.
    fn beyond(&self, at: usize) -> Option<usize> {
        match self.header(at)? {
            Ok(header) => Some(at + HEADER_BYTES + header.length).filter(|beyond| *beyond <= self.end),
            Err(_) => Some(self.end),
        }
    }
}
