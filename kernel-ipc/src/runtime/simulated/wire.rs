//! One connection: two ways, each a row of bytes that arrive in order, sooner or later, or up to some byte.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::network::Inner;

/// What flies.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Vec<u8>),
    Ending(Ending),
}

/// How what comes along a way ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The sender says no more.
    Quiet,
    /// The connection is gone.
    Reset,
}

/// The bytes from one end to the other.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// On their way, and when each arrives.
    pub(super) flying: VecDeque<(u64, Piece)>,
    /// Nothing arrives before this time.
    pub(super) held_until: u64,
    /// What is sent from now on does not arrive.
    pub(super) is_cut: bool,
    /// Bytes that were sent so, and take room for ever.
    lost: usize,
    arrived: VecDeque<u8>,
    ended: Option<Ending>,
    /// The sender has shut its end.
    is_shut: bool,
    /// The receiver has.
    is_unwanted: bool,
    readers: Vec<Waker>,
    writers: Vec<Waker>,
}

impl Way {
    fn flying_bytes(&self) -> usize {
        let bytes = |piece: &(u64, Piece)| match &piece.1 {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Ending(_) => 0,
        };
        self.flying.iter().map(bytes).sum()
    }

    /// When the last of what flies arrives.
    fn last(&self) -> u64 {
        self.flying.back().map_or(0, |(at, _)| *at)
    }

    pub(super) fn fly(&mut self, at: u64, piece: Piece) {
        self.flying.push_back((at.max(self.last()), piece));
    }

    /// When the next piece arrives, if one flies.
    pub(super) fn next(&self) -> Option<u64> {
        self.flying.front().map(|(at, _)| (*at).max(self.held_until))
    }

    /// Takes in what has arrived by now.
    pub(super) fn arrive(&mut self, now: u64) {
        while self.next().is_some_and(|at| at <= now) {
            match self.flying.pop_front() {
                Some((_, Piece::Bytes(bytes))) if !self.is_unwanted => self.arrived.extend(bytes),
                Some((_, Piece::Ending(ending))) => self.ended = Some(ending),
                _ => {}
            }
            self.readers.drain(..).for_each(Waker::wake);
            if self.ended == Some(Ending::Reset) {
                self.writers.drain(..).for_each(Waker::wake);
            }
        }
    }

    /// From now on nothing comes but the first `kept` bytes of what flies.
    pub(super) fn cut(&mut self, mut kept: usize) {
        self.is_cut = true;
        self.flying.retain_mut(|(_, piece)| match piece {
            Piece::Bytes(bytes) => {
                bytes.truncate(kept);
                kept -= bytes.len();
                !bytes.is_empty()
            }
            Piece::Ending(_) => false,
        });
    }

    pub(super) fn bytes(&self) -> usize {
        self.flying_bytes()
    }

    fn room(&self, capacity: usize) -> usize {
        capacity.saturating_sub(self.flying_bytes() + self.arrived.len() + self.lost)
    }
}

/// A connection. Its first end has dialled.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) number: u64,
    /// Whose ends these are.
    pub(super) owners: [u32; 2],
    pub(super) addresses: [SocketAddr; 2],
    /// From each end to the other.
    pub(super) ways: [RefCell<Way>; 2],
    /// Bytes that each end may have sent and that the other has not taken.
    pub(super) capacity: usize,
    /// Ends that are closed, or whose process is dead.
    pub(super) closed: [Cell<bool>; 2],
}

/// One end of a connection; clones are the same end, which is closed when the last of them is dropped.
#[derive(Clone, Debug)]
pub struct Pipe(Rc<End>);

#[derive(Debug)]
struct End {
    network: Rc<Inner>,
    wire: Rc<Wire>,
    side: usize,
}

impl Pipe {
    pub(super) fn new(network: &Rc<Inner>, wire: &Rc<Wire>, side: usize) -> Pipe {
        Pipe(Rc::new(End { network: network.clone(), wire: wire.clone(), side }))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.0.wire.addresses[1 - self.0.side]
    }

    fn outward(&self) -> &RefCell<Way> {
        &self.0.wire.ways[self.0.side]
    }

    fn inward(&self) -> &RefCell<Way> {
        &self.0.wire.ways[1 - self.0.side]
    }

    /// As `recv(2)` without waiting; perhaps not all that is there.
    ///
    /// # Errors
    /// `WouldBlock`; `ConnectionReset`.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut way = self.inward().borrow_mut();
        way.arrive(self.0.network.now());
        if way.is_unwanted || into.is_empty() {
            return Ok(0);
        }
        if way.arrived.is_empty() {
            return match way.ended {
                None => Err(io::ErrorKind::WouldBlock.into()),
                Some(Ending::Quiet) => Ok(0),
                Some(Ending::Reset) => Err(io::ErrorKind::ConnectionReset.into()),
            };
        }
        let count = self.0.network.part_of(into.len().min(way.arrived.len()));
        for (to, from) in into.iter_mut().zip(way.arrived.drain(..count)) {
            *to = from;
        }
        way.writers.drain(..).for_each(Waker::wake);
        Ok(count)
    }

    /// As `send(2)` without waiting; perhaps not all.
    ///
    /// # Errors
    /// `WouldBlock`; `BrokenPipe`; `ConnectionReset`.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let network = &self.0.network;
        let mut inward = self.inward().borrow_mut();
        inward.arrive(network.now());
        if inward.ended == Some(Ending::Reset) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        drop(inward);
        let mut way = self.outward().borrow_mut();
        if way.is_shut {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let most = bytes.len().min(way.room(self.0.wire.capacity));
        if most == 0 {
            return if bytes.is_empty() { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let count = network.part_of(most);
        if way.is_cut {
            way.lost += count;
        } else {
            let at = network.arrival();
            way.fly(at, Piece::Bytes(bytes[..count].to_vec()));
        }
        Ok(count)
    }

    /// Whether a look would find something.
    pub fn is_readable(&self) -> bool {
        let mut way = self.inward().borrow_mut();
        way.arrive(self.0.network.now());
        !way.arrived.is_empty() || way.ended.is_some() || way.is_unwanted
    }

    /// Ready when [`receive`](Self::receive) would not block.
    pub fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_readable() {
            return Poll::Ready(());
        }
        self.inward().borrow_mut().readers.push(cx.waker().clone());
        Poll::Pending
    }

    /// Ready when [`send`](Self::send) would not block.
    pub fn poll_writable(&self, cx: &Context<'_>) -> Poll<()> {
        let is_reset = self.inward().borrow().ended == Some(Ending::Reset);
        let mut way = self.outward().borrow_mut();
        if is_reset || way.is_shut || way.room(self.0.wire.capacity) > 0 {
            return Poll::Ready(());
        }
        way.writers.push(cx.waker().clone());
        drop(way);
        // A reset comes the other way.
        self.inward().borrow_mut().writers.push(cx.waker().clone());
        Poll::Pending
    }

    /// As `shutdown(2)`.
    pub fn shutdown(&self, how: Shutdown) {
        if how != Shutdown::Write {
            let mut way = self.inward().borrow_mut();
            way.is_unwanted = true;
            way.arrived.clear();
            way.readers.drain(..).for_each(Waker::wake);
        }
        if how != Shutdown::Read {
            self.end_with(Ending::Quiet);
        }
    }

    fn end_with(&self, ending: Ending) {
        let mut way = self.outward().borrow_mut();
        if !way.is_shut {
            way.is_shut = true;
            way.writers.drain(..).for_each(Waker::wake);
            if !way.is_cut {
                let at = self.0.network.arrival();
                way.fly(at, Piece::Ending(ending));
            }
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.wire.closed[self.side].replace(true) {
            return;
        }
        let mut inward = self.wire.ways[1 - self.side].borrow_mut();
        let was_read = inward.arrived.is_empty();
        inward.is_unwanted = true;
        inward.arrived.clear();
        drop(inward);
        let mut way = self.wire.ways[self.side].borrow_mut();
        if way.is_cut {
            return;
        }
        // Whoever closes a connection with something unread in it takes from the peer what flies (RFC 1122, 4.2.2.13).
        if !was_read {
            let kept = self.network.below(way.flying_bytes() + 1);
            way.cut(kept);
            let at = self.network.arrival();
            way.fly(at, Piece::Ending(Ending::Reset));
        } else if !std::mem::replace(&mut way.is_shut, true) {
            let at = self.network.arrival();
            way.fly(at, Piece::Ending(Ending::Quiet));
        }
    }
}
