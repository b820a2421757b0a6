//! A link through two sealed segments, one written by each end. The layout is drawn in [`wire`](crate::wire).
//!
//! - A reader watches the next descriptor itself (its lap), copies the line once and never looks back.
//! - What may be written, read and believed of the rings is in [`ring`]. Lines are written and read a few at a time:
//!   [`publish`](Link::publish) writes what is left.
//! - The tail is stored by [`flush`](Link::flush), once per batch. It may lag behind the descriptors, never lead.
//! - Sleeping is the protocol of [`dekker`] between the sleeper's wants-wake word and the producer's tail.
//! - wants-wake counts: odd while its writer sleeps or is about to. A producer rings once per odd value, however many
//!   messages it publishes before the sleeper gets up.
//! - Closing stores the state and then changes the tail by 2^31, so that a peer that is just going to sleep does not.

use std::cell::Cell;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

use super::dekker::{self, Producer, Sleeper};
use super::{Body, Link};
use crate::id::{Epoch, SessionId};
use crate::runtime::Sleep;
use crate::session::OpenError;
use crate::sys::doorbell::EventDoorbell;
use crate::sys::futex;
use crate::sys::segment::{SegmentReader, SegmentWriter};
use crate::wire::{
    CONTROL_SLOTS, DESCRIPTOR_BYTES, Handle, LeaseName, MAGIC_CLIENT, MAGIC_HOST, RawDescriptor, Shape, VERSION,
    Violation, header, state,
};

mod lines;
#[cfg(test)]
mod models;
mod ring;

use ring::{Incoming, Laps, Outgoing, Receiver, Sender};

/// Added to the tail by [`ShmLink::close`].
const CLOSED_TAIL: u64 = 1 << 31;

/// Makes a C-segment of this shape, still without a host.
///
/// # Errors
/// What the kernel says to a new memfd.
pub fn client_segment(shape: Shape) -> std::io::Result<SegmentWriter> {
    resuming_segment(shape, 0)
}

/// The same for a session that goes on: its ring will begin with `outstanding` calls of earlier epochs.
///
/// # Errors
/// What the kernel says to a new memfd.
pub fn resuming_segment(shape: Shape, outstanding: u16) -> std::io::Result<SegmentWriter> {
    let segment = SegmentWriter::create("atoll-c", shape.segment_bytes())?;
    segment.store_u32(header::OUTSTANDING, outstanding.into(), Relaxed);
    write_header(&segment, shape, MAGIC_CLIENT);
    Ok(segment)
}

/// One end of a session over shared memory.
#[derive(Debug)]
pub struct ShmLink {
    mine: SegmentWriter,
    theirs: SegmentReader,
    shape: Shape,
    outgoing: Sender,
    incoming: Receiver,
    /// Messages sent at the last flush, which is what `mine` says.
    flushed: Cell<u64>,
    /// Our latest announcement, and the peer's that we have answered.
    wants: Cell<u64>,
    rung: Cell<u64>,
    closed: Cell<bool>,
    system_calls: Cell<u64>,
    events: Option<EventDoorbells>,
}

/// Descriptors instead of futex words.
#[derive(Debug)]
struct EventDoorbells {
    /// Ours: the peer rings it.
    mine: EventDoorbell,
    /// The peer's.
    theirs: EventDoorbell,
}

impl ShmLink {
    /// The client's end: `mine` from [`client_segment`], `host_segment` from the host. Gives the session's first handle
    /// too.
    ///
    /// # Errors
    /// [`Violation::Segment`] if the host's segment is not the counterpart of ours, [`Violation::Epoch`] if it is of
    /// another session or epoch.
    pub fn client(
        mine: SegmentWriter,
        shape: Shape,
        host_segment: OwnedFd,
        session: SessionId,
        epoch: Epoch,
    ) -> Result<(ShmLink, Handle), OpenError> {
        let theirs = open_segment(host_segment)?;
        if read_shape(&theirs, MAGIC_HOST) != Some(shape)
            || theirs.load_u32(header::CREDITS, Relaxed) != u32::from(shape.slots)
        {
            return Err(Violation::Segment.into());
        }
        if theirs.load_u64(header::EPOCH, Relaxed) != epoch.get()
            || theirs.load_u64(header::SESSION, Relaxed) != session.get()
        {
            return Err(Violation::Epoch.into());
        }
        let root = Handle::from_word(theirs.load_u64(header::ROOT, Relaxed));
        Ok((ShmLink::new(mine, theirs, shape), root))
    }

    /// The host's end: takes the shape from the client's segment and makes its own.
    ///
    /// # Errors
    /// [`Violation::Segment`] if the client's segment is none, [`Violation::Epoch`] if it was made for another epoch, or
    /// to go on with an earlier one; else what the kernel says to a new memfd.
    pub fn host(client_segment: OwnedFd, session: SessionId, epoch: Epoch, root: Handle) -> Result<ShmLink, OpenError> {
        match Self::host_resuming(client_segment, session, epoch, root)? {
            (link, 0) => Ok(link),
            _ => Err(Violation::Epoch.into()),
        }
    }

    /// The same for a session that goes on. Gives also with how many outstanding calls the client's ring begins.
    ///
    /// # Errors
    /// As [`host`](Self::host).
    pub fn host_resuming(
        client_segment: OwnedFd,
        session: SessionId,
        epoch: Epoch,
        root: Handle,
    ) -> Result<(ShmLink, u32), OpenError> {
        let theirs = open_segment(client_segment)?;
        let shape = read_shape(&theirs, MAGIC_CLIENT).ok_or(Violation::Segment)?;
        // A client that does not know the epoch says 0.
        let asked = theirs.load_u64(header::EPOCH, Relaxed);
        let outstanding = theirs.load_u32(header::OUTSTANDING, Relaxed);
        if (asked != 0 && asked != epoch.get()) || outstanding > u32::from(shape.slots) {
            return Err(Violation::Epoch.into());
        }
        let mine = SegmentWriter::create("atoll-s", shape.segment_bytes())?;
        mine.store_u64(header::EPOCH, epoch.get(), Relaxed);
        mine.store_u64(header::SESSION, session.get(), Relaxed);
        mine.store_u64(header::ROOT, root.to_word(), Relaxed);
        mine.store_u32(header::CREDITS, u32::from(shape.slots), Relaxed);
        write_header(&mine, shape, MAGIC_HOST);
        Ok((ShmLink::new(mine, theirs, shape), outstanding))
    }

    /// Rings and waits by descriptors from now on, for event loops that cannot wait for a futex. Both ends must.
    pub fn use_event_doorbells(&mut self, mine: EventDoorbell, theirs: EventDoorbell) {
        self.events = Some(EventDoorbells { mine, theirs });
    }

    /// Our segment, to be sent to the peer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mine.fd()
    }

    fn new(mine: SegmentWriter, theirs: SegmentReader, shape: Shape) -> ShmLink {
        let laps = Laps::of(shape.ring_entries());
        ShmLink {
            mine,
            theirs,
            shape,
            outgoing: Sender::new(laps),
            incoming: Receiver::new(laps),
            flushed: Cell::new(0),
            wants: Cell::new(0),
            rung: Cell::new(0),
            closed: Cell::new(false),
            system_calls: Cell::new(0),
            events: None,
        }
    }

    /// Whether the next message is there, without taking it.
    fn has_message(&self) -> bool {
        self.incoming.has_message(self)
    }
}

impl Link for ShmLink {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn sent(&self) -> u64 {
        self.outgoing.sent()
    }

    #[inline]
    fn send(&self, descriptor: &RawDescriptor, slot: u16, body: &Body<'_>) -> Result<(), Violation> {
        if !self.outgoing.has_room(self) {
            return Err(Violation::Overrun);
        }
        if !(body.leases.is_empty() && body.capabilities.is_empty() && body.payload.is_empty()) {
            write_window(&self.mine, self.shape.window_offset(slot), body);
        }
        self.outgoing.send(self, descriptor.0);
        Ok(())
    }

    #[inline]
    fn publish(&self) {
        self.outgoing.publish(self);
    }

    #[inline]
    fn flush(&self) {
        self.publish();
        let sent = self.outgoing.sent();
        if sent != self.flushed.get() && !self.closed.get() {
            self.flushed.set(sent);
            self.rung.set(dekker::ring(self, sent, self.rung.get()));
        }
    }

    #[inline]
    fn receive(&self) -> Option<RawDescriptor> {
        self.incoming.receive(self).map(RawDescriptor)
    }

    fn unread(&self) -> u64 {
        // Only counted: nothing is read because of it.
        let behind = self.theirs.load_u64(header::TAIL, Relaxed).wrapping_sub(self.incoming.received());
        // A tail may lag behind what was received.
        if behind as i64 <= 0 {
            u64::from(self.has_message())
        } else {
            behind.min(u64::from(self.shape.ring_entries()))
        }
    }

    #[inline]
    fn read_window(&self, slot: u16, offset: usize, bytes: &mut [u8]) {
        let window = self.shape.window_bytes as usize;
        if slot < self.shape.all_slots() && offset <= window && bytes.len() <= window - offset {
            // Inside the segment, whose length was compared with the shape when it was opened.
            let _ = self.theirs.copy_out(self.shape.window_offset(slot) + offset, bytes);
        }
    }

    fn read_own_window(&self, slot: u16, offset: usize, bytes: &mut [u8]) {
        let window = self.shape.window_bytes as usize;
        if slot < self.shape.all_slots() && offset <= window && bytes.len() <= window - offset {
            let _ = self.mine.copy_out(self.shape.window_offset(slot) + offset, bytes);
        }
    }

    fn read_by_peer(&self) -> u64 {
        self.outgoing.read_by_peer(self)
    }

    fn close(&self) {
        self.publish();
        if !self.closed.replace(true) {
            self.mine.store_u32(header::STATE, state::CLOSED, Release);
            self.rung.set(dekker::ring(self, self.outgoing.sent() ^ CLOSED_TAIL, self.rung.get()));
        }
    }

    fn is_closed_by_peer(&self) -> bool {
        self.theirs.load_u32(header::STATE, Acquire) != state::OPEN
    }

    fn prepare_sleep(&self) -> Result<Sleep, Violation> {
        let wants = self.wants.get() + 1 + self.wants.get() % 2;
        self.wants.set(wants);
        let tail = dekker::announce(self, wants);
        if self.has_message() || self.is_closed_by_peer() {
            return Ok(Sleep::Work);
        }
        // Everything that the tail counts has been published before it, so a tail beyond what was received, without a
        // message there, is a lie; believing it would keep this end awake for ever.
        // One behind is none, however far: a peer rings once for all that it sends in a turn, and a reader that polls can
        // have taken more than a ring of that.
        if tail.wrapping_sub(self.incoming.received()) as i64 > 0 {
            return Err(Violation::Overrun);
        }
        Ok(match &self.events {
            Some(events) => Sleep::EventFd(events.mine.fd().as_raw_fd()),
            None => Sleep::Futex { word: self.theirs.word(header::TAIL), expected: tail as u32 },
        })
    }

    fn cancel_sleep(&self) {
        if self.wants.get() % 2 == 1 {
            self.wants.set(self.wants.get() + 1);
            self.mine.store_u64(header::WANTS_WAKE, self.wants.get(), Relaxed);
        }
        if let Some(events) = &self.events {
            events.mine.clear();
            self.system_calls.set(self.system_calls.get() + 1);
        }
    }

    fn into_send(self: Box<Self>) -> Option<Box<dyn Link + Send>> {
        Some(self)
    }

    fn system_calls(&self) -> u64 {
        self.system_calls.get()
    }
}

/// Where an entry of a ring is in a segment. The ring is inside of it: the segment's length was compared with the shape.
#[inline]
fn entry_offset(entry: usize) -> usize {
    header::RING + entry * DESCRIPTOR_BYTES
}

impl Outgoing for ShmLink {
    #[inline]
    fn store_line(&self, entry: usize, line: &[u64; 8]) {
        // The line's Release makes the window visible before it.
        self.mine.store_line(entry_offset(entry), line);
    }

    #[inline]
    fn prepare_line(&self, entry: usize) {
        self.mine.prepare_line(entry_offset(entry));
    }

    #[inline]
    fn load_head(&self) -> u64 {
        // Acquire pairs with the Release in `store_head`.
        self.theirs.load_u64(header::HEAD, Acquire)
    }
}

impl Incoming for ShmLink {
    #[inline]
    fn load_line(&self, entry: usize, wanted: impl FnOnce(u64) -> bool) -> Option<[u64; 8]> {
        self.theirs.load_line(entry_offset(entry), wanted)
    }

    #[inline]
    fn load_first(&self, entry: usize) -> u64 {
        self.theirs.load_u64(entry_offset(entry), Acquire)
    }

    #[inline]
    fn store_head(&self, head: u64) {
        // Release: the copy of the message comes before the peer's permission to overwrite it.
        self.mine.store_u64(header::HEAD, head, Release);
    }
}

impl Producer for ShmLink {
    fn store_tail(&self, tail: u64) {
        self.mine.store_u64(header::TAIL, tail, Release);
    }

    fn load_wants(&self) -> u64 {
        self.theirs.load_u64(header::WANTS_WAKE, Relaxed)
    }

    fn fence(&self) {
        fence(SeqCst);
    }

    fn wake(&self) -> bool {
        self.system_calls.set(self.system_calls.get() + 1);
        match &self.events {
            // Remembered until the sleeper reads it.
            Some(events) => {
                events.theirs.ring();
                true
            }
            // All: the peer may have left an earlier wait armed beside the one it sleeps in.
            None => futex::wake(self.mine.word(header::TAIL), i32::MAX) > 0,
        }
    }
}

impl Sleeper for ShmLink {
    fn store_wants(&self, wants: u64) {
        self.mine.store_u64(header::WANTS_WAKE, wants, Relaxed);
    }

    fn load_tail(&self) -> u64 {
        self.theirs.load_u64(header::TAIL, Acquire)
    }

    fn fence(&self) {
        fence(SeqCst);
    }
}

fn write_header(segment: &SegmentWriter, shape: Shape, magic: u64) {
    segment.store_u32(header::VERSION, VERSION, Relaxed);
    segment.store_u32(header::SLOTS, u32::from(shape.slots) | u32::from(CONTROL_SLOTS) << 16, Relaxed);
    segment.store_u32(header::RING_ENTRIES, shape.ring_entries(), Relaxed);
    segment.store_u32(header::WINDOW_BYTES, shape.window_bytes, Relaxed);
    segment.store_u32(header::STATE, state::OPEN, Relaxed);
    // The segment travels to its reader in a message; that orders all of this.
    segment.store_u64(header::MAGIC, magic, Release);
}

fn open_segment(fd: OwnedFd) -> Result<SegmentReader, OpenError> {
    SegmentReader::open(fd, header::RING + DESCRIPTOR_BYTES).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => Violation::Segment.into(),
        _ => error.into(),
    })
}

/// The shape that a segment's header claims, if it is a possible one and the segment is as long as it says. Each word
/// is loaded once: the peer may change it meanwhile.
fn read_shape(segment: &SegmentReader, magic: u64) -> Option<Shape> {
    let slots = segment.load_u32(header::SLOTS, Relaxed);
    let shape = Shape::checked(slots as u16, segment.load_u32(header::WINDOW_BYTES, Relaxed))?;
    (segment.load_u64(header::MAGIC, Acquire) == magic
        && segment.load_u32(header::VERSION, Relaxed) == VERSION
        && (slots >> 16) as u16 == CONTROL_SLOTS
        && segment.load_u32(header::RING_ENTRIES, Relaxed) == shape.ring_entries()
        && segment.len() >= shape.segment_bytes())
    .then_some(shape)
}

fn write_window(segment: &SegmentWriter, window: usize, body: &Body<'_>) {
    let mut offset = window;
    let mut put = |bytes: &[u8]| {
        segment.copy_in(offset, bytes).expect("the caller has checked that the body fits the window");
        offset += bytes.len();
    };
    for lease in body.leases {
        put(&LeaseName::to_bytes(*lease));
    }
    for handle in body.capabilities {
        put(&handle.to_word().to_le_bytes());
    }
    put(body.payload);
}
