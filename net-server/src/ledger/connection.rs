//! The record of one connection.
//!
//! ```text
//! page 0
//!   0 state: serial while in use, 0 free; last      | 8 session | 16 number
//!  24 received: bytes taken from the socket         | 32 consumed by the client
//!  40 freed end: position up to which sends are over | 48 one more than the largest number of them
//!  56 flags | 1024 trimmed: bytes before this position may be overwritten | 1032 begin of the last answer's request
//!  1040 begin of that answer in our stream | 1048 length of its head | 1056 resumed: bytes of it that were sent
//!  1088 its head, at most 2 KiB                     | 64 length of the peer's address, 72 the address, 56 bytes
//! sends, SENDS times 4608 bytes
//!   0 state: 1 in use, 0 free; last | 8 id | 16 flags u8, parts u8 << 8, header bytes u32 << 32
//!  24 begin: position of its first byte | 32 bytes | 48 request | 40 told: the client has consumed `Sent`
//!  64 parts: name 24, offset u64, length u64, at most 8 | 512 header, at most 4096 bytes
//! received bytes, 48 KiB: the byte at position p stands at p % 48 KiB
//! ```

mod handover;

use std::rc::Rc;

use kernel_ipc::LeaseName;
use kernel_ipc::interface::LeasePart;
use protocol::net::{Reason, SendFlags};

use super::Ledger;
use crate::sys::{Landing, Place};

mod at {
    pub const STATE: usize = 0;
    pub const SESSION: usize = 8;
    pub const NUMBER: usize = 16;
    pub const RECEIVED: usize = 24;
    pub const CONSUMED: usize = 32;
    pub const FREED_END: usize = 40;
    pub const FREED_ID: usize = 48;
    pub const FLAGS: usize = 56;
    pub const PEER_LENGTH: usize = 64;
    pub const PEER: usize = 72;
    pub const TRIMMED: usize = 1024;
    pub const REQUEST: usize = 1032;
    pub const ANSWER: usize = 1040;
    pub const HEAD_LENGTH: usize = 1048;
    pub const RESUMED: usize = 1056;
    pub const HEAD: usize = 1088;
}

mod send {
    pub const STATE: usize = 0;
    pub const ID: usize = 8;
    pub const SHAPE: usize = 16;
    pub const BEGIN: usize = 24;
    pub const BYTES_OF: usize = 32;
    pub const TOLD: usize = 40;
    pub const REQUEST: usize = 48;
    pub const PARTS: usize = 64;
    pub const PART_BYTES: usize = 40;
    pub const HEADER: usize = 512;
    pub const BYTES: usize = 4608;
}

/// Longest text of a peer's address.
const MAX_PEER: usize = 56;
/// Sends of a connection that the client has not been told, and has not said to know, to be over.
const SENDS: usize = 32;
/// Lease parts of a send.
const MAX_PARTS: usize = 8;
/// Copied bytes of a send.
const MAX_HEADER: usize = send::BYTES - send::HEADER;
/// Received bytes that are kept; more than the window and a receive.
const RING: usize = 48 << 10;
/// Longest head of an answer that can be gone on with.
const MAX_HEAD: usize = 2 << 10;
const SENDS_AT: usize = 4096;
const RING_AT: usize = (SENDS_AT + SENDS * send::BYTES).next_multiple_of(4096);
/// Of one record.
pub(super) const BYTES: usize = RING_AT + RING;

const _: () = assert!(send::PARTS + MAX_PARTS * send::PART_BYTES <= send::HEADER);
const _: () = assert!(at::PEER + MAX_PEER <= at::TRIMMED && at::HEAD + MAX_HEAD <= SENDS_AT);

/// What is known of a connection, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) u64);

impl Flags {
    /// Nothing more will be sent than what was accepted.
    pub(crate) const FINISHED: Flags = Flags(1);
    /// It is to be closed in order.
    pub(crate) const CLOSING: Flags = Flags(2);
    /// The client has ended it at once.
    pub(crate) const RESET: Flags = Flags(4);
    /// The client knows of it.
    pub(crate) const HEARD: Flags = Flags(8);
    /// The client knows that its peer has ended its side.
    pub(crate) const INPUT_ENDED: Flags = Flags(16);
    /// Something of it could not be kept: it does not go on.
    pub(crate) const LOST: Flags = Flags(32);
    /// It waits for the next run of its client, which goes on with it.
    pub(crate) const HANDED_OVER: Flags = Flags(1 << 16);
    /// The client has to be told how far its last run was.
    pub(crate) const RESUMED: Flags = Flags(1 << 17);
    /// It is over; the reason stands in the second byte.
    pub(crate) const OVER: Flags = Flags(64);

    /// Why it is over, if it is.
    pub(crate) fn over(self) -> Option<Reason> {
        self.has(Flags::OVER).then(|| reason(self.0 >> 8 & 0xff))
    }

    pub(crate) fn has(self, flag: Flags) -> bool {
        self.0 & flag.0 != 0
    }
}

/// A reason by its number; one that is none means a reset.
pub(crate) fn reason(number: u64) -> Reason {
    let reasons = [Reason::Closed, Reason::Reset, Reason::TimedOut, Reason::StaleLease, Reason::Overload];
    reasons.into_iter().find(|reason| *reason as u64 == number).unwrap_or(Reason::Reset)
}

/// See the drawing. A handle: dropping it changes nothing.
#[derive(Clone)]
pub(crate) struct ConnectionRecord {
    ledger: Rc<Ledger>,
    index: u32,
}

/// An accepted send that is not known to be over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptSend {
    pub(crate) id: u64,
    pub(crate) flags: SendFlags,
    /// Position of its first byte in the stream.
    pub(crate) begin: u64,
    /// All its bytes.
    pub(crate) bytes: u64,
    /// Where in the peer's stream the request begins that it answers.
    pub(crate) request: u64,
    pub(crate) header: Vec<u8>,
    pub(crate) parts: Vec<LeasePart>,
    /// The client knows that the kernel has taken it.
    pub(crate) told: bool,
}

impl KeptSend {
    pub(crate) fn end(&self) -> u64 {
        self.begin.saturating_add(self.bytes)
    }
}

impl ConnectionRecord {
    /// A record of a new connection, which is nobody's yet. `None`: there is no room.
    pub(crate) fn create(ledger: &Rc<Ledger>, peer: &str) -> Option<ConnectionRecord> {
        let index = ledger.take()?;
        let record = ConnectionRecord { ledger: ledger.clone(), index };
        let cleared = [at::SESSION, at::NUMBER, at::RECEIVED, at::CONSUMED, at::FREED_END, at::FREED_ID, at::FLAGS];
        for cleared in cleared.into_iter().chain([at::TRIMMED, at::REQUEST, at::ANSWER, at::HEAD_LENGTH, at::RESUMED]) {
            record.store(cleared, 0);
        }
        for slot in 0..SENDS {
            record.store(Self::send_at(slot) + send::STATE, 0);
        }
        let length = peer.len().min(MAX_PEER);
        record.store(at::PEER_LENGTH, length as u64);
        ledger.write(record.base() + at::PEER, peer.as_bytes().get(..length).unwrap_or_default());
        record.store(at::STATE, ledger.next_serial());
        Some(record)
    }

    /// The record at this index, if it is in use.
    pub(super) fn recover(ledger: &Rc<Ledger>, index: u32) -> Option<ConnectionRecord> {
        let record = ConnectionRecord { ledger: ledger.clone(), index };
        (record.load(at::STATE) != 0).then_some(record)
    }

    /// Names the connection in every run: no other has it.
    pub(crate) fn serial(&self) -> u64 {
        self.load(at::STATE)
    }

    /// It is this session's, under this number there; session 0: nobody's.
    pub(crate) fn belongs_to(&self, session: u64, number: u64) {
        self.store(at::SESSION, 0);
        self.store(at::NUMBER, number);
        self.store(at::SESSION, session);
    }

    pub(crate) fn session(&self) -> u64 {
        self.load(at::SESSION)
    }

    pub(crate) fn number(&self) -> u64 {
        self.load(at::NUMBER)
    }

    pub(crate) fn peer(&self) -> String {
        let length = usize::try_from(self.load(at::PEER_LENGTH)).unwrap_or(MAX_PEER).min(MAX_PEER);
        let mut bytes = vec![0; length];
        self.ledger.read(self.base() + at::PEER, &mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn flags(&self) -> Flags {
        Flags(self.load(at::FLAGS))
    }

    pub(crate) fn set(&self, flag: Flags) {
        let flags = self.flags();
        if !flags.has(flag) {
            self.store(at::FLAGS, flags.0 | flag.0);
        }
    }

    /// The connection is over; its client does not know yet.
    pub(crate) fn set_over(&self, reason: Reason) {
        self.store(at::FLAGS, self.flags().0 | Flags::OVER.0 | (reason as u64) << 8);
    }

    /// Bytes taken from the socket.
    pub(crate) fn received(&self) -> u64 {
        self.load(at::RECEIVED)
    }

    /// Bytes that the client has consumed.
    pub(crate) fn consumed(&self) -> u64 {
        self.load(at::CONSUMED)
    }

    /// The bytes up to this position are taken from the socket, and stand here.
    pub(crate) fn set_received(&self, position: u64) {
        self.store(at::RECEIVED, position);
    }

    /// The client has consumed everything up to this position.
    pub(crate) fn set_consumed(&self, position: u64) {
        if position > self.consumed() {
            self.store(at::CONSUMED, position);
        }
    }

    /// Where the next bytes go: at most `longest`, and without a break. `None`: no room. What the client has consumed is
    /// overwritten only when there is no other room.
    pub(crate) fn landing(&self, longest: usize) -> Option<Landing> {
        let (received, consumed) = (self.received(), self.consumed());
        let start = (received % RING as u64) as usize;
        let kept = usize::try_from(received.checked_sub(consumed)?).ok()?;
        let length = longest.min(RING - start).min(RING.checked_sub(kept)?);
        if length == 0 {
            return None;
        }
        let oldest = (received + length as u64).saturating_sub(RING as u64);
        if self.load(at::TRIMMED) < oldest {
            self.store(at::TRIMMED, oldest);
        }
        let at = self.base() + RING_AT + start;
        Some(Landing::Kept(Place::new(self.ledger.memory.clone(), at, length)))
    }

    /// Received bytes from one position to another; they must be among those that are kept.
    pub(crate) fn bytes(&self, from: u64, to: u64) -> Vec<u8> {
        let length = usize::try_from(to.saturating_sub(from)).unwrap_or(RING).min(RING);
        let mut bytes = vec![0; length];
        let start = (from % RING as u64) as usize;
        let first = length.min(RING - start);
        let (head, tail) = bytes.split_at_mut(first);
        self.ledger.read(self.base() + RING_AT + start, head);
        self.ledger.read(self.base() + RING_AT, tail);
        bytes
    }

    /// Whether received and consumed can be, when the socket says that `taken` bytes were taken from it: at most one receive
    /// of `longest` bytes more than is written down.
    pub(crate) fn can_have_received(&self, taken: u64, longest: usize) -> bool {
        let (received, consumed) = (self.received(), self.consumed());
        let step = taken.checked_sub(received).is_some_and(|step| step <= longest as u64);
        step && consumed <= received && taken - consumed <= RING as u64
    }

    /// Whether a send of these measures can be kept when there is room.
    pub(crate) fn can_keep(header: &[u8], parts: &[LeasePart]) -> bool {
        header.len() <= MAX_HEADER && parts.len() <= MAX_PARTS
    }

    /// Keeps a send before it is accepted. False: there is no room, or it is too long.
    pub(crate) fn keep_send(
        &self,
        id: u64,
        flags: SendFlags,
        begin: u64,
        request: u64,
        header: &[u8],
        parts: &[LeasePart],
    ) -> bool {
        let free = (0..SENDS).map(Self::send_at).find(|at| self.load(at + send::STATE) == 0);
        let (Some(at), true) = (free, Self::can_keep(header, parts)) else { return false };
        let bytes = parts.iter().map(|part| part.length).fold(header.len() as u64, u64::saturating_add);
        self.store(at + send::ID, id);
        let shape = u64::from(flags.0) | (parts.len() as u64) << 8 | (header.len() as u64) << 32;
        self.store(at + send::SHAPE, shape);
        self.store(at + send::BEGIN, begin);
        self.store(at + send::BYTES_OF, bytes);
        self.store(at + send::TOLD, 0);
        self.store(at + send::REQUEST, request);
        for (n, part) in parts.iter().enumerate() {
            let to = at + send::PARTS + n * send::PART_BYTES;
            self.ledger.write(self.base() + to, &part.name.to_bytes());
            self.store(to + 24, part.offset);
            self.store(to + 32, part.length);
        }
        self.ledger.write(self.base() + at + send::HEADER, header);
        self.store(at + send::STATE, 1);
        true
    }

    /// A kept send was refused after all.
    pub(crate) fn forget_send(&self, id: u64) {
        if let Some(at) = self.find(id) {
            self.store(at + send::STATE, 0);
        }
    }

    /// The client knows that the kernel has taken this send.
    pub(crate) fn told(&self, id: u64) {
        if let Some(at) = self.find(id) {
            self.store(at + send::TOLD, 1);
        }
    }

    /// The client knows that this send is over.
    pub(crate) fn free_send(&self, id: u64) {
        let Some(kept) = self.find(id).and_then(|at| self.send(at)) else { return };
        self.set_flags_of(&kept);
        self.remember_answer(&kept);
        self.store(at::FREED_END, kept.end().max(self.freed_end()));
        self.store(at::FREED_ID, kept.id.saturating_add(1).max(self.load(at::FREED_ID)));
        self.forget_send(id);
    }

    fn set_flags_of(&self, kept: &KeptSend) {
        if kept.flags.contains(SendFlags::FIN) || kept.flags.contains(SendFlags::CLOSE) {
            self.set(Flags::FINISHED);
        }
        if kept.flags.contains(SendFlags::CLOSE) {
            self.set(Flags::CLOSING);
        }
    }

    /// Position up to which sends are over.
    pub(crate) fn freed_end(&self) -> u64 {
        self.load(at::FREED_END)
    }

    /// The largest number of a send that was ever accepted.
    pub(crate) fn last_send(&self) -> Option<u64> {
        let freed = self.load(at::FREED_ID).checked_sub(1);
        self.sends().iter().map(|kept| kept.id).max().max(freed)
    }

    /// Sends that are not known to be over, in the order of the stream.
    pub(crate) fn sends(&self) -> Vec<KeptSend> {
        let mut sends: Vec<KeptSend> = (0..SENDS).filter_map(|slot| self.send(Self::send_at(slot))).collect();
        sends.sort_by_key(|kept| (kept.begin, kept.id));
        sends
    }

    fn send(&self, at: usize) -> Option<KeptSend> {
        if self.load(at + send::STATE) == 0 {
            return None;
        }
        let shape = self.load(at + send::SHAPE);
        let parts = (shape >> 8 & 0xff) as usize;
        let mut header = vec![0; ((shape >> 32) as usize).min(MAX_HEADER)];
        self.ledger.read(self.base() + at + send::HEADER, &mut header);
        let part = |n: usize| {
            let from = at + send::PARTS + n * send::PART_BYTES;
            let mut name = [0; LeaseName::BYTES];
            self.ledger.read(self.base() + from, &mut name);
            let (offset, length) = (self.load(from + 24), self.load(from + 32));
            LeasePart { name: LeaseName::from_bytes(name), offset, length }
        };
        Some(KeptSend {
            id: self.load(at + send::ID),
            flags: SendFlags(shape as u8),
            begin: self.load(at + send::BEGIN),
            bytes: self.load(at + send::BYTES_OF),
            request: self.load(at + send::REQUEST),
            header,
            parts: (0..parts.min(MAX_PARTS)).map(part).collect(),
            told: self.load(at + send::TOLD) != 0,
        })
    }

    fn find(&self, id: u64) -> Option<usize> {
        let mut slots = (0..SENDS).map(Self::send_at);
        slots.find(|at| self.load(at + send::STATE) != 0 && self.load(at + send::ID) == id)
    }

    /// The connection is over, and its client knows.
    pub(crate) fn free(&self) {
        self.store(at::STATE, 0);
        self.ledger.free.borrow_mut().insert(self.index);
    }

    fn send_at(slot: usize) -> usize {
        SENDS_AT + slot * send::BYTES
    }

    fn base(&self) -> usize {
        super::header::BYTES + super::SESSIONS * super::session::BYTES + self.index as usize * BYTES
    }

    fn load(&self, at: usize) -> u64 {
        self.ledger.load(self.base() + at)
    }

    fn store(&self, at: usize, value: u64) {
        self.ledger.store(self.base() + at, value);
    }
}
