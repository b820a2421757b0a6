//! What a session's two segments hold: header, ring of descriptors, windows. Drawn once, here.
//!
//! Everything is little-endian. The **C-segment** is written by the client, the **S-segment** by the host; both have
//! the same shape, so that one carrier serves both ends.
//!
//! ```text
//! segment
//! offset  size  line  what                                       C-segment            S-segment
//!      0     8   0    magic                                      "ATOLL-C1"           "ATOLL-S1"
//!      8     4        version                                    3                    3
//!     12     2        slots (normal)                             asked                granted (the same)
//!     14     2        control slots                              4                    4
//!     16     8        epoch of the endpoint                      0 when not known     this epoch
//!     24     8        session id                                 0                    this session
//!     32     4        ring entries (a power of two, >= slots + control slots)
//!     36     4        window bytes (a power of two, 4096 ..= 65536)
//!     40     4        RESUME descriptors that open the ring      0: a new session     0
//!     44     4        zero
//!     48     8        root handle {index u32, generation u32}    0                    the session's first handle
//!     56     8        zero
//!     64     8   1    tail: messages published (its low half is the doorbell word)
//!    128     8   2    head: messages of the *other* segment that were read
//!    192     8   3    wants-wake: odd while this side sleeps or is about to; counts up
//!    200     4        state: 1 open, 2 closed
//!    204     4        credits: how many slots the peer may use     0                  slots
//!    256    64 × entries   ring
//!    windows at the next multiple of 4096: one of `window bytes` per slot, normal slots first, then control slots
//! ```
//!
//! ```text
//! descriptor: 64 bytes, eight words
//! word  bytes   submission                                completion
//!  0     0      lap u16 | flags u16 | slot u16 | operation u16      stored last (release), loaded first (acquire)
//!  1     8      seq u64                                   the same seq
//!  2    16      payload length u32 | capabilities u8 | leases u8 | zero u16
//!  3    24      handle: index u32 | generation u32        status: outcome u8 | executed u8 | number u16 | detail u32
//!  4    32      deadline u64: CLOCK_MONOTONIC ns, 0 none  zero
//!  5    40      trace u64                                 the same trace
//!  6    48      inline 16 bytes: the payload, if it is not longer
//! ```
//!
//! `lap` is the number of times the ring has been filled, plus one, so that a reader which polls the descriptor itself
//! sees when it is complete and a small call costs one cache line each way.
//!
//! ```text
//! window of one slot, in this order without gaps
//!   lease names         24 bytes each: lender u64 | index u32 | generation u32 | length u64
//!   capability handles   8 bytes each: index u32 | generation u32
//!   payload             the operation's fixed part, then its variable tail; absent when it is inline
//! ```
//!
//! In the place of a handle a call may name a capability that the answer of an earlier call is to bring: [`ExpectedHandle`].
//!
//! Values read from a peer stay [`RawDescriptor`]s until [`Submission::check`] or [`Completion::check`] has compared
//! them with the session's [`Shape`]; a value that no correct peer writes is a [`Violation`] and ends the session.

mod expected;

use serde::{Deserialize, Serialize};

use crate::error::{Cause, Executed, Failure};
use crate::id::LenderId;

pub use expected::{EXPECTED, ExpectedHandle};

/// Magic of a C-segment.
pub const MAGIC_CLIENT: u64 = u64::from_le_bytes(*b"ATOLL-C1");
/// Magic of an S-segment.
pub const MAGIC_HOST: u64 = u64::from_le_bytes(*b"ATOLL-S1");
/// Version of the layout in this file.
pub const VERSION: u32 = 3;

/// Slots reserved for control calls, after the normal ones.
pub const CONTROL_SLOTS: u16 = 4;
/// Most normal slots of a session.
pub const MAX_SLOTS: u16 = 64;
/// Most leases in one message.
pub const MAX_LEASES: usize = 8;
/// Most capability handles in one message.
pub const MAX_CAPABILITIES: usize = 16;
/// Payload bytes that fit into the descriptor itself.
pub const INLINE_BYTES: usize = 16;
/// Smallest and default window.
pub const MIN_WINDOW_BYTES: u32 = 4096;
/// Largest window.
pub const MAX_WINDOW_BYTES: u32 = 65536;
/// Payload that every message can carry whatever it names: the smallest window less a full list of names.
pub const MIN_PAYLOAD_BYTES: usize =
    MIN_WINDOW_BYTES as usize - MAX_LEASES * LeaseName::BYTES - MAX_CAPABILITIES * Handle::BYTES;

/// Offsets of the header's words in a segment.
pub mod header {
    /// `u64`.
    pub const MAGIC: usize = 0;
    /// `u32`.
    pub const VERSION: usize = 8;
    /// Normal slots in the low half, control slots in the high half of a `u32`.
    pub const SLOTS: usize = 12;
    /// `u64`.
    pub const EPOCH: usize = 16;
    /// `u64`.
    pub const SESSION: usize = 24;
    /// `u32`.
    pub const RING_ENTRIES: usize = 32;
    /// `u32`.
    pub const WINDOW_BYTES: usize = 36;
    /// `u32`.
    pub const OUTSTANDING: usize = 40;
    /// `u64`: index in the low half.
    pub const ROOT: usize = 48;
    /// `u64`, on a line of its own: written with every message.
    pub const TAIL: usize = 64;
    /// `u64`, on a line of its own: written with every batch read.
    pub const HEAD: usize = 128;
    /// `u64`, on a line with what rarely changes.
    pub const WANTS_WAKE: usize = 192;
    /// `u32`, see [`state`](super::state).
    pub const STATE: usize = 200;
    /// `u32`.
    pub const CREDITS: usize = 204;
    /// Where the ring begins.
    pub const RING: usize = 256;

    const _: () = assert!(TAIL / 64 != HEAD / 64 && HEAD / 64 != WANTS_WAKE / 64 && TAIL / 64 != 0);
    const _: () = assert!(RING.is_multiple_of(64) && CREDITS + 4 <= RING);
}

/// Values of the header's state word.
pub mod state {
    /// Calls may be made.
    pub const OPEN: u32 = 1;
    /// This side has closed the session and reads and writes no more.
    pub const CLOSED: u32 = 2;
}

/// Operations of control slots. They are answered when they are read, never after a handler.
pub mod control {
    /// Payload: 16 bytes per call, slot u64 and seq u64. A hint; the call still ends by its own completion.
    pub const CANCEL: u16 = 1;
    /// Payload: 8 bytes per handle, index u32 and generation u32.
    pub const RELEASE_HANDLES: u16 = 2;
    /// Payload: 16 bytes per lease, lender u64, index u32 and generation u32.
    pub const RELEASE_LEASES: u16 = 3;
    /// No payload.
    pub const PING: u16 = 4;
    /// Bytes of one entry of [`CANCEL`] and [`RELEASE_LEASES`].
    pub const LONG_ENTRY: usize = 16;
}

/// Flags of a descriptor. All others, and any of these in another place, are refused.
pub mod flag {
    /// A submission that offers a call of an earlier epoch, or connection, which is still outstanding. Only at the front of
    /// a ring, or of what is sent on a connection.
    pub const RESUME: u16 = 1;
    /// In answer to it: the call did not happen and never will.
    pub const NOT_SEEN: u16 = 2;
    /// In answer to it: the call had begun, and nothing more is known.
    pub const LOST: u16 = 4;
    /// In answer to it, by a host that lives and lost no more than a connection: the call is under way, and its completion
    /// follows.
    pub const RUNNING: u16 = 8;
}

/// How a client names a capability of its session. An index and nothing more: authority is in the host's table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Handle {
    /// Entry of the host's table.
    pub index: u32,
    /// Which use of that entry is meant. Never 0 in a handle that a host gave.
    pub generation: u32,
}

impl Handle {
    /// Size in a window.
    pub const BYTES: usize = 8;
    /// The handle that names nothing.
    pub const NONE: Handle = Handle { index: 0, generation: 0 };

    /// The handle as one word: index in the low half.
    pub const fn to_word(self) -> u64 {
        self.index as u64 | (self.generation as u64) << 32
    }

    /// The handle in this word.
    pub const fn from_word(word: u64) -> Handle {
        Handle { index: word as u32, generation: (word >> 32) as u32 }
    }
}

/// How a lease is named: by its lender's table, an index, and which use of that index is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeaseName {
    /// Whose table.
    pub lender: LenderId,
    /// Entry of the lender's table.
    pub index: u32,
    /// Which use of that entry.
    pub generation: u32,
    /// How many bytes it covers. A courtesy to holders that map nothing: whoever touches the bytes takes the length
    /// from the lender's table.
    pub length: u64,
}

impl LeaseName {
    /// Size in a window.
    pub const BYTES: usize = 24;

    /// The name as it stands in a window.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.lender.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.index.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// The name in these bytes. Every pattern is a name, though not one that anybody gave.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> LeaseName {
        let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
        let [i, j, k, l, m, n, o, p, length @ ..] = rest;
        LeaseName {
            lender: LenderId(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
            index: u32::from_le_bytes([i, j, k, l]),
            generation: u32::from_le_bytes([m, n, o, p]),
            length: u64::from_le_bytes(length),
        }
    }
}

/// The measures of a session, agreed when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Normal slots: calls that can be outstanding.
    pub slots: u16,
    /// Bytes of each slot's window, each way.
    pub window_bytes: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { slots: 64, window_bytes: MIN_WINDOW_BYTES }
    }
}

impl Shape {
    /// The shape, if its measures are within the limits of this file.
    pub fn checked(slots: u16, window_bytes: u32) -> Option<Shape> {
        let window_fits = (MIN_WINDOW_BYTES..=MAX_WINDOW_BYTES).contains(&window_bytes);
        ((1..=MAX_SLOTS).contains(&slots) && window_fits && window_bytes.is_power_of_two())
            .then_some(Shape { slots, window_bytes })
    }

    /// Slots of all kinds.
    pub fn all_slots(self) -> u16 {
        self.slots.saturating_add(CONTROL_SLOTS)
    }

    /// Whether this slot carries control calls.
    pub fn is_control(self, slot: u16) -> bool {
        slot >= self.slots
    }

    /// Entries of each ring: a power of two and at least as many as slots of all kinds, so that neither ring is ever
    /// too full for a correct peer.
    pub fn ring_entries(self) -> u32 {
        u32::from(self.all_slots()).next_power_of_two()
    }

    /// Offset of a ring entry in a segment. The position is masked into the ring.
    pub fn entry_offset(self, position: u64) -> usize {
        let index = position as usize & (self.ring_entries() as usize - 1);
        header::RING + index * DESCRIPTOR_BYTES
    }

    /// The lap that a descriptor at this position carries.
    pub fn lap(self, position: u64) -> u16 {
        ((position >> self.ring_entries().trailing_zeros()) as u16).wrapping_add(1)
    }

    /// Offset of a slot's window in a segment.
    pub fn window_offset(self, slot: u16) -> usize {
        let windows = (header::RING + self.ring_entries() as usize * DESCRIPTOR_BYTES).next_multiple_of(4096);
        windows + usize::from(slot) * self.window_bytes as usize
    }

    /// Bytes of a whole segment.
    pub fn segment_bytes(self) -> usize {
        self.window_offset(self.all_slots())
    }
}

/// Bytes of a descriptor: one cache line.
pub const DESCRIPTOR_BYTES: usize = 64;

/// A descriptor as it stands in a ring: an allegation until it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct RawDescriptor(pub [u64; 8]);

const _: () = assert!(size_of::<RawDescriptor>() == DESCRIPTOR_BYTES && align_of::<RawDescriptor>() == 64);
const _: () = assert!(MIN_PAYLOAD_BYTES >= 3072);

/// What a peer sent that no correct peer sends. The session ends, the process does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// The segment is not sealed, of the wrong size, or its header is not one.
    Segment,
    /// The segment belongs to another epoch.
    Epoch,
    /// A slot number beyond the session's slots.
    Slot,
    /// A call on a slot that is not idle, or a seq that is not above the slot's last.
    Seq,
    /// More names or a longer payload than the window holds.
    Length,
    /// A flag, reserved field or control operation that means nothing.
    Reserved,
    /// A completion with an impossible status.
    Status,
    /// A completion of a call that is not outstanding.
    Unexpected,
    /// More completions unread than the ring holds.
    Overrun,
}

/// How many names and bytes a message carries, and where in the slot's window they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Payload bytes.
    pub length: u32,
    /// Capability handles.
    pub capabilities: u8,
    /// Lease names.
    pub leases: u8,
}

impl Extent {
    /// Offset of the handles in the window; the leases are at 0.
    pub fn capabilities_offset(self) -> usize {
        usize::from(self.leases) * LeaseName::BYTES
    }

    /// Offset of the payload in the window.
    pub fn payload_offset(self) -> usize {
        self.capabilities_offset() + usize::from(self.capabilities) * Handle::BYTES
    }

    /// Whether the payload is in the descriptor instead of the window.
    pub fn is_inline(self) -> bool {
        self.length as usize <= INLINE_BYTES
    }

    /// Whether the message fits a window of this size.
    ///
    /// # Errors
    /// [`Violation::Length`].
    pub fn check(self, window_bytes: u32) -> Result<(), Violation> {
        let names_fit = usize::from(self.leases) <= MAX_LEASES && usize::from(self.capabilities) <= MAX_CAPABILITIES;
        let bytes = if self.is_inline() { 0 } else { self.length as usize };
        if names_fit && self.payload_offset() + bytes <= window_bytes as usize {
            Ok(())
        } else {
            Err(Violation::Length)
        }
    }

    pub(crate) fn to_word(self) -> u64 {
        u64::from(self.length) | u64::from(self.capabilities) << 32 | u64::from(self.leases) << 40
    }

    pub(crate) fn from_word(word: u64) -> Result<Extent, Violation> {
        if word >> 48 != 0 {
            return Err(Violation::Reserved);
        }
        Ok(Extent { length: word as u32, capabilities: (word >> 32) as u8, leases: (word >> 40) as u8 })
    }
}

impl RawDescriptor {
    /// Its flags.
    pub fn flags(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }
}

/// A call of an earlier epoch or connection, as client and host speak of it when they resume: by its slot and seq alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Its slot.
    pub slot: u16,
    /// Its number.
    pub seq: u64,
}

impl Outstanding {
    /// The descriptor that says this [`flag`] of the call, with lap 0.
    pub fn to_raw(self, flag: u16) -> RawDescriptor {
        RawDescriptor([first_word(flag, self.slot, 0), self.seq, 0, 0, 0, 0, 0, 0])
    }

    /// The call in a descriptor that has one flag and nothing else, and only names normal slots.
    ///
    /// # Errors
    /// The first field that is impossible.
    pub fn check(raw: &RawDescriptor, shape: Shape) -> Result<Outstanding, Violation> {
        let [first, seq, rest @ ..] = raw.0;
        let slot = (first >> 32) as u16;
        if rest != [0; 6] || first >> 48 != 0 || seq == 0 {
            return Err(Violation::Reserved);
        }
        if slot >= shape.slots {
            return Err(Violation::Slot);
        }
        Ok(Outstanding { slot, seq })
    }
}

/// A checked call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Submission {
    /// Slot that carries the call.
    pub slot: u16,
    /// The interface's operation, or [`DESCRIBE`](crate::described::DESCRIBE), or a [`control`] operation on a control slot.
    pub operation: u16,
    /// The call's number on its slot.
    pub seq: u64,
    /// Names and payload.
    pub extent: Extent,
    /// The capability that the call is made on.
    pub handle: Handle,
    /// `CLOCK_MONOTONIC` in nanoseconds, 0 for none.
    pub deadline: u64,
    /// Trace key, carried along.
    pub trace: u64,
    /// The payload, if it is at most [`INLINE_BYTES`] long.
    pub inline: [u64; 2],
}

impl Submission {
    /// The descriptor, with lap 0: the ring adds its own.
    pub fn to_raw(&self) -> RawDescriptor {
        RawDescriptor([
            first_word(0, self.slot, self.operation),
            self.seq,
            self.extent.to_word(),
            self.handle.to_word(),
            self.deadline,
            self.trace,
            self.inline[0],
            self.inline[1],
        ])
    }

    /// The call in this descriptor, if a correct client of a session of this shape could have written it. Slot state
    /// is not looked at here.
    ///
    /// # Errors
    /// The first field that is impossible.
    pub fn check(raw: &RawDescriptor, shape: Shape) -> Result<Submission, Violation> {
        let [first, seq, extent, handle, deadline, trace, inline @ ..] = raw.0;
        let (slot, operation) = checked_first_word(first, shape)?;
        let extent = Extent::from_word(extent)?;
        extent.check(shape.window_bytes)?;
        Ok(Submission { slot, operation, seq, extent, handle: Handle::from_word(handle), deadline, trace, inline })
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// With its result.
    Done,
    /// With the operation's own error of this number.
    OperationError(u16),
    /// Without a result.
    Failed(Failure),
}

impl Status {
    pub(crate) fn to_word(self) -> u64 {
        match self {
            Status::Done => 0,
            Status::OperationError(number) => 1 | u64::from(number) << 16,
            Status::Failed(Failure { cause, executed }) => {
                2 | (executed as u64) << 8 | u64::from(cause.number()) << 16 | u64::from(cause.detail()) << 32
            }
        }
    }

    pub(crate) fn from_word(word: u64) -> Result<Status, Violation> {
        let number = (word >> 16) as u16;
        match ((word >> 32) as u32, word as u8, (word >> 8) as u8) {
            (0, 0, 0) if number == 0 => Ok(Status::Done),
            (0, 1, 0) => Ok(Status::OperationError(number)),
            (detail, 2, executed @ 0..=2) => {
                let cause = Cause::from_number(number, detail).ok_or(Violation::Status)?;
                Ok(Status::Failed(Failure { cause, executed: Executed::from_number(executed) }))
            }
            _ => Err(Violation::Status),
        }
    }
}

/// A checked answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Slot of the call.
    pub slot: u16,
    /// The operation, for the reader of a trace.
    pub operation: u16,
    /// Number of the call on its slot.
    pub seq: u64,
    /// Names and payload.
    pub extent: Extent,
    /// How it ended.
    pub status: Status,
    /// Trace key, returned.
    pub trace: u64,
    /// The payload, if it is at most [`INLINE_BYTES`] long.
    pub inline: [u64; 2],
}

impl Completion {
    /// The descriptor, with lap 0: the ring adds its own.
    pub fn to_raw(&self) -> RawDescriptor {
        RawDescriptor([
            first_word(0, self.slot, self.operation),
            self.seq,
            self.extent.to_word(),
            self.status.to_word(),
            0,
            self.trace,
            self.inline[0],
            self.inline[1],
        ])
    }

    /// The answer in this descriptor, if a correct host of a session of this shape could have written it.
    ///
    /// # Errors
    /// The first field that is impossible.
    pub fn check(raw: &RawDescriptor, shape: Shape) -> Result<Completion, Violation> {
        let [first, seq, extent, status, zero, trace, inline @ ..] = raw.0;
        let (slot, operation) = checked_first_word(first, shape)?;
        let extent = Extent::from_word(extent)?;
        extent.check(shape.window_bytes)?;
        if zero != 0 {
            return Err(Violation::Reserved);
        }
        Ok(Completion { slot, operation, seq, extent, status: Status::from_word(status)?, trace, inline })
    }
}

/// The first word of a descriptor with lap 0.
fn first_word(flags: u16, slot: u16, operation: u16) -> u64 {
    u64::from(flags) << 16 | u64::from(slot) << 32 | u64::from(operation) << 48
}

fn checked_first_word(word: u64, shape: Shape) -> Result<(u16, u16), Violation> {
    let (flags, slot, operation) = ((word >> 16) as u16, (word >> 32) as u16, (word >> 48) as u16);
    if flags != 0 {
        return Err(Violation::Reserved);
    }
    if slot >= shape.all_slots() {
        return Err(Violation::Slot);
    }
    Ok((slot, operation))
}

/// Payload bytes as the two inline words of a descriptor. Longer payloads give zeros: they are in the window.
pub fn inline_words(payload: &[u8]) -> [u64; 2] {
    let mut bytes = [0u8; INLINE_BYTES];
    match bytes.get_mut(..payload.len()) {
        Some(front) => front.copy_from_slice(payload),
        None => return [0; 2],
    }
    let word = u128::from_le_bytes(bytes);
    [word as u64, (word >> 64) as u64]
}

/// The bytes of two inline words.
pub fn inline_bytes(words: [u64; 2]) -> [u8; INLINE_BYTES] {
    (u128::from(words[0]) | u128::from(words[1]) << 64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { slots: 16, window_bytes: 4096 };

    fn call() -> Submission {
        Submission {
            slot: 3,
            operation: 7,
            seq: 0x0102_0304_0506_0708,
            extent: Extent { length: 5, capabilities: 2, leases: 1 },
            handle: Handle { index: 9, generation: 4 },
            deadline: 11,
            trace: 12,
            inline: inline_words(b"hello"),
        }
    }

    #[test]
    fn a_submission_has_the_drawn_bytes() {
        let bytes: Vec<u8> = call().to_raw().0.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes[..8], [0, 0, 0, 0, 3, 0, 7, 0]);
        assert_eq!(bytes[8..16], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..24], [5, 0, 0, 0, 2, 1, 0, 0]);
        assert_eq!(bytes[24..32], [9, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!((bytes[32], bytes[40]), (11, 12));
        assert_eq!(&bytes[48..53], b"hello");
        assert_eq!(Submission::check(&call().to_raw(), SHAPE), Ok(call()));
    }

    #[test]
    fn a_completion_comes_back_as_it_was_written() {
        for status in [
            Status::Done,
            Status::OperationError(515),
            Status::Failed(Failure { cause: Cause::Refused, executed: Executed::Unknown }),
            Status::Failed(Failure { cause: Cause::Poisoned { crash: u32::MAX }, executed: Executed::No }),
        ] {
            let completion = Completion {
                slot: 19,
                operation: 1,
                seq: 2,
                extent: Extent { length: 17, capabilities: 16, leases: 8 },
                status,
                trace: 3,
                inline: [0; 2],
            };
            assert_eq!(Completion::check(&completion.to_raw(), SHAPE), Ok(completion));
        }
    }

    #[test]
    fn each_impossible_field_is_a_violation() {
        let broken = |word: usize, bits: u64| {
            let mut raw = call().to_raw();
            raw.0[word] ^= bits;
            Submission::check(&raw, SHAPE)
        };
        assert_eq!(broken(0, 1 << 16), Err(Violation::Reserved));
        assert_eq!(broken(0, 16 << 32), Ok(Submission { slot: 19, ..call() }));
        assert_eq!(broken(0, 20 << 32), Err(Violation::Slot));
        assert_eq!(broken(2, 1 << 48), Err(Violation::Reserved));
        assert_eq!(broken(2, 8 << 40), Err(Violation::Length));
        assert_eq!(broken(2, 16 << 32), Err(Violation::Length));
        assert_eq!(broken(2, 4096), Err(Violation::Length));
        assert_eq!(broken(2, u64::from(u32::MAX)), Err(Violation::Length));

        let status = |word| Status::from_word(word);
        assert_eq!(status(3), Err(Violation::Status));
        assert_eq!(status(2), Err(Violation::Status));
        assert_eq!(status(2 | 3 << 8 | 1 << 16), Err(Violation::Status));
        assert_eq!(status(1 << 32), Err(Violation::Status));
        assert_eq!(status(1 << 16), Err(Violation::Status));
    }

    #[test]
    fn names_come_back_as_they_were_written() {
        let lease = LeaseName { lender: LenderId(1 << 40), index: 2, generation: 3, length: 4 << 32 };
        assert_eq!(LeaseName::from_bytes(lease.to_bytes()), lease);
        let handle = Handle { index: 5, generation: 6 };
        assert_eq!(Handle::from_word(handle.to_word()), handle);
    }

    #[test]
    fn windows_and_ring_lie_apart_in_every_shape() {
        for slots in 1..=MAX_SLOTS {
            let shape = Shape::checked(slots, 8192).expect("within the limits");
            assert!(shape.ring_entries() >= u32::from(shape.all_slots()));
            let last = shape.entry_offset(u64::MAX);
            assert!(last + DESCRIPTOR_BYTES <= shape.window_offset(0));
            assert_eq!(shape.segment_bytes() - shape.window_offset(0), usize::from(shape.all_slots()) * 8192);
        }
        for (slots, window_bytes) in [(0, 4096), (65, 4096), (16, 2048), (16, 6000), (16, 1 << 17)] {
            assert_eq!(Shape::checked(slots, window_bytes), None);
        }
    }

    #[test]
    fn a_lap_differs_from_the_lap_before_even_where_it_wraps() {
        let entries = u64::from(SHAPE.ring_entries());
        assert_eq!(SHAPE.lap(0), 1);
        for lap in [0, 1, 65534, 65535, 65536] {
            assert_ne!(SHAPE.lap(lap * entries), SHAPE.lap((lap + 1) * entries));
        }
    }
}
