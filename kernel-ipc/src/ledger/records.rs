//! The ledger of a component: a ring of records, in the order in which they happened.
//!
//! ```text
//! header, one page
//!   0 magic "ATOLL-R1" | 8 version u64 | 16 ring bytes u64 | 24 trimmed: position u64
//!
//! record, at a multiple of 64, never across the ring's end
//!   0 commit: position + 1, last | 8 bytes of the whole record u64 | 16 session u64, 0 none | 24 slot u64 | 32 seq u64
//!  40 bytes of the effect u64, all ones: a filler before the ring's end | 48 CRC-32C of bytes 8..48 and the effect u64
//!  64 effect
//! ```
//!
//! A position counts bytes since the component's first record and never repeats, so a word of an earlier lap commits
//! nothing. Records up to `trimmed` are done with: their effects are durable elsewhere, and their calls applied.

use std::sync::atomic::Ordering::{Relaxed, Release};

use super::{Kept, Poisoned};
use crate::id::SessionId;
use crate::sys::crc32c;

const MAGIC: u64 = u64::from_le_bytes(*b"ATOLL-R1");
const VERSION: u64 = 1;
/// By which it is known: magic and version.
pub(crate) const FORMAT: [u64; 2] = [MAGIC, VERSION];
const LINE: usize = 64;
/// In the place of an effect's length: nothing more until the ring's end.
const FILLER: u64 = u64::MAX;

mod header {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const RING: usize = 16;
    pub const TRIMMED: usize = 24;
    /// A page.
    pub const BYTES: usize = 4096;
}

mod field {
    pub const COMMIT: usize = 0;
    pub const BYTES: usize = 8;
    pub const SESSION: usize = 16;
    pub const SLOT: usize = 24;
    pub const SEQ: usize = 32;
    pub const EFFECT: usize = 40;
    pub const CRC: usize = 48;
}

/// The ring has no room: make older effects durable, [`trim`](Records::trim), and try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the component's ledger is full")
    }
}

impl std::error::Error for Full {}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The call that did it: session, slot and seq. `None`: the component itself.
    pub call: Option<(SessionId, u16, u64)>,
    /// What was done, in the component's words.
    pub effect: Vec<u8>,
    /// Where the record after it begins.
    pub end: u64,
}

/// The ring, mapped by its component.
#[derive(Debug)]
pub struct Records<M> {
    memory: M,
    ring: u64,
    /// Where the next record goes.
    next: u64,
    /// The same in the ring: [`next`](Self::next) without its laps.
    offset: u64,
    trimmed: u64,
}

impl<M: Kept> Records<M> {
    /// Bytes of memory for a ring of `ring` bytes.
    pub fn bytes(ring: usize) -> usize {
        header::BYTES + ring
    }

    /// Begins a ring in fresh memory, as large as the memory allows.
    ///
    /// # Errors
    /// [`Poisoned`]: the memory is too small, or not fresh.
    pub fn create(memory: M) -> Result<Self, Poisoned> {
        let ring = memory.bytes().saturating_sub(header::BYTES) / LINE * LINE;
        if ring < 2 * LINE {
            return Err(Poisoned("its memory is too small"));
        }
        if memory.load(header::MAGIC) != 0 {
            return Err(Poisoned("its memory has been used"));
        }
        memory.store(header::VERSION, VERSION, Relaxed);
        memory.store(header::RING, ring as u64, Relaxed);
        memory.store(header::MAGIC, MAGIC, Release);
        Ok(Self { memory, ring: ring as u64, next: 0, offset: 0, trimmed: 0 })
    }

    /// Maps the ring that a dead incarnation left, and gives its committed records, oldest first. What follows the last
    /// of them did not happen.
    ///
    /// # Errors
    /// [`Poisoned`]: says what is impossible. What was not durable is lost then.
    pub fn recover(memory: M) -> Result<(Self, Vec<Record>), Poisoned> {
        if memory.bytes() < header::BYTES
            || memory.load(header::MAGIC) != MAGIC
            || memory.load(header::VERSION) != VERSION
        {
            return Err(Poisoned("it has no header"));
        }
        let (ring, trimmed) = (memory.load(header::RING), memory.load(header::TRIMMED));
        let room = (memory.bytes() - header::BYTES) as u64;
        if ring < 2 * LINE as u64 || ring > room || ring % LINE as u64 != 0 || trimmed % LINE as u64 != 0 {
            return Err(Poisoned("impossible measures"));
        }
        // Nobody has written so much; positions from there on would wrap.
        if trimmed > u64::MAX / 2 {
            return Err(Poisoned("impossible positions"));
        }
        let mut this = Self { memory, ring, next: trimmed, offset: trimmed % ring, trimmed };
        let mut records = Vec::new();
        while this.next - trimmed < ring && this.memory.load(this.at() + field::COMMIT) == this.next + 1 {
            let (record, whole) = this.record()?;
            this.advance(whole);
            if this.next - trimmed > ring {
                return Err(Poisoned("more records than fit"));
            }
            records.extend(record);
        }
        Ok((this, records))
    }

    /// Appends a record and commits it: it has happened. Gives the position behind it, for [`trim`](Self::trim).
    ///
    /// # Errors
    /// [`Full`]; nothing was stored.
    #[inline]
    pub fn append(&mut self, call: Option<(SessionId, u16, u64)>, effect: &[&[u8]]) -> Result<u64, Full> {
        let length: usize = effect.iter().map(|part| part.len()).sum();
        let whole = (LINE + length).next_multiple_of(LINE) as u64;
        let to_end = self.ring - self.offset;
        let filler = if whole > to_end { to_end } else { 0 };
        if whole > self.ring || self.next + filler + whole - self.trimmed > self.ring {
            return Err(Full);
        }
        if filler > 0 {
            self.store(filler, None, FILLER, &[]);
        }
        self.store(whole, call, length as u64, effect);
        Ok(self.next)
    }

    /// Forgets the records before `position`, which an [`append`](Self::append) gave.
    pub fn trim(&mut self, position: u64) {
        if (self.trimmed..=self.next).contains(&position) {
            self.trimmed = position;
            self.memory.store(header::TRIMMED, position, Release);
        }
    }

    /// Where the next record goes.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Bytes that an append may take now, its header and a filler not counted.
    pub fn room(&self) -> u64 {
        self.ring - (self.next - self.trimmed)
    }

    fn store(&mut self, whole: u64, call: Option<(SessionId, u16, u64)>, length: u64, effect: &[&[u8]]) {
        let at = self.at();
        let (session, slot, seq) = call.map_or((0, 0, 0), |(session, slot, seq)| (session.get(), slot.into(), seq));
        let fields = [whole, session, slot, seq, length];
        for (field, value) in fields.into_iter().enumerate() {
            self.memory.store(at + field::BYTES + 8 * field, value, Relaxed);
        }
        let mut to = at + LINE;
        for part in effect {
            self.memory.write(to, part);
            to += part.len();
        }
        let crc = effect.iter().fold(crc_of(&fields), |crc, part| crc32c::append(crc, part));
        self.memory.store(at + field::CRC, crc.into(), Relaxed);
        self.memory.store(at + field::COMMIT, self.next + 1, Release);
        self.advance(whole);
        // The ring is larger than the cache, and the answer of a call waits until its stores have left for it: the next record's lines come
        // while other things are done.
        let next = self.at();
        self.memory.prepare(next);
        self.memory.prepare(next + LINE);
    }

    /// The committed record that is next, if it is none of the fillers, and how long it is.
    fn record(&self) -> Result<(Option<Record>, u64), Poisoned> {
        let at = self.at();
        let word = |offset| self.memory.load(at + offset);
        let fields = [field::BYTES, field::SESSION, field::SLOT, field::SEQ, field::EFFECT].map(word);
        let [whole, session, slot, seq, length] = fields;
        let to_end = self.ring - self.offset;
        let filler = length == FILLER;
        let fits = whole >= LINE as u64
            && whole % LINE as u64 == 0
            && whole <= to_end
            && (filler || length <= whole - LINE as u64);
        if !fits {
            return Err(Poisoned("a record of an impossible length"));
        }
        let mut effect = vec![0; if filler { 0 } else { length as usize }];
        self.memory.read(at + LINE, &mut effect);
        if u64::from(crc32c::append(crc_of(&fields), &effect)) != word(field::CRC) {
            return Err(Poisoned("a record's checksum is wrong"));
        }
        let slot = u16::try_from(slot).map_err(|_| Poisoned("a record of an impossible slot"))?;
        let call = (session != 0).then_some((SessionId(session), slot, seq));
        Ok(((!filler).then_some(Record { call, effect, end: self.next + whole }), whole))
    }

    /// Where the next record is in the memory.
    #[inline]
    fn at(&self) -> usize {
        header::BYTES + self.offset as usize
    }

    /// The next record is behind this one, which ends at the ring's end at the latest.
    #[inline]
    fn advance(&mut self, whole: u64) {
        self.next += whole;
        self.offset += whole;
        if self.offset >= self.ring {
            self.offset -= self.ring;
        }
    }
}

fn crc_of(fields: &[u64; 5]) -> u32 {
    crc32c::append(0, fields.map(u64::to_le_bytes).as_flattened())
}
