//! A pin segment: what one mapper pins of one lender's leases, one count per index.
//!
//! * The keeper makes the memory, so that it outlives the mapper; the mapper alone writes it; the lender reads it.
//! * Counts are indexed like the lender's table and hold in every epoch of that table.
//! * Order of attaching: mapper adopts and seals → lender attaches → only then the mapper gets the table.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use super::layout::{HEADER, MAX_CAPACITY, PIN, PINS_MAGIC, VERSION, header};
use crate::id::{Epoch, Incarnation, LenderId};
use crate::sys::segment::{SegmentReader, SegmentWriter, memfd, set_len};

/// The mapper's end of a pin segment.
pub struct PinSegment {
    writer: SegmentWriter,
    lender: LenderId,
    capacity: u32,
}

impl PinSegment {
    /// Bytes of a segment that counts `capacity` leases: what the keeper makes the memory of.
    pub const fn bytes(capacity: u32) -> usize {
        HEADER + capacity as usize * PIN
    }

    /// Maps the fresh memory that the keeper made, seals it and writes its header. No lease is pinned.
    ///
    /// # Errors
    /// Of the mapping or sealing; `InvalidInput` if the memory is shorter than [`PinSegment::bytes`].
    pub fn adopt(fd: OwnedFd, mapper: Incarnation, epoch: Epoch, lender: LenderId, capacity: u32) -> io::Result<Self> {
        let writer = SegmentWriter::adopt(fd)?;
        if capacity == 0 || capacity > MAX_CAPACITY || writer.len() < Self::bytes(capacity) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the pin segment is too short for its capacity"));
        }
        writer.store_u64(header::MAGIC, PINS_MAGIC, Relaxed);
        writer.store_u64(header::VERSION, VERSION, Relaxed);
        writer.store_u64(header::PINS_MAPPER, mapper.get(), Relaxed);
        writer.store_u64(header::PINS_EPOCH, epoch.get(), Relaxed);
        writer.store_u64(header::PINS_LENDER, lender.get(), Relaxed);
        // Readers get the descriptor by a message after this, which orders all of it.
        writer.store_u64(header::PINS_CAPACITY, capacity.into(), Relaxed);
        Ok(Self { writer, lender, capacity })
    }

    /// Makes the memory as well, for a mapper that nobody's keeper looks after (tests, single-process systems).
    ///
    /// # Errors
    /// Of making or mapping the memory.
    pub fn create(mapper: Incarnation, epoch: Epoch, lender: LenderId, capacity: u32) -> io::Result<Self> {
        let memory = memfd("pins")?;
        set_len(&memory, Self::bytes(capacity))?;
        Self::adopt(memory, mapper, epoch, lender, capacity)
    }

    /// The descriptor that the lender attaches.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.writer.fd()
    }

    /// Whose leases it counts.
    pub fn lender(&self) -> LenderId {
        self.lender
    }

    /// How many leases it can count.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(super) fn memory(&self) -> &SegmentWriter {
        &self.writer
    }
}

/// The lender's end, checked.
pub(super) struct AttachedPins {
    pub(super) mapper: Incarnation,
    pub(super) epoch: Epoch,
    pub(super) memory: SegmentReader,
}

impl AttachedPins {
    /// Checks the header: a mapper's bytes, so every field is compared with what the broker said.
    pub(super) fn check(
        memory: SegmentReader,
        mapper: Incarnation,
        epoch: Epoch,
        lender: LenderId,
        capacity: u32,
    ) -> Result<Self, BadSegment> {
        if memory.len() < PinSegment::bytes(capacity) {
            return Err(BadSegment("the pin segment is too short"));
        }
        let word = |at| memory.load_u64(at, Relaxed);
        if word(header::MAGIC) != PINS_MAGIC || word(header::VERSION) != VERSION {
            return Err(BadSegment("not a pin segment of this version"));
        }
        if word(header::PINS_LENDER) != lender.get() || word(header::PINS_CAPACITY) < u64::from(capacity) {
            return Err(BadSegment("the pin segment is of another lender, or too small"));
        }
        if word(header::PINS_MAPPER) != mapper.get() || word(header::PINS_EPOCH) != epoch.get() {
            return Err(BadSegment("the pin segment is of another mapper or epoch"));
        }
        Ok(Self { mapper, epoch, memory })
    }
}

/// A segment that a peer sent is not what it should be. Refuse it, and the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSegment(pub &'static str);

impl std::fmt::Display for BadSegment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadSegment {}

impl From<BadSegment> for io::Error {
    fn from(bad: BadSegment) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, bad.0)
    }
}
