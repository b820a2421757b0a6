//! A lender's ledger: which indices are lent, to whom, and what they were borrowed from, for its next incarnation.
//!
//! ```text
//! header, one page
//!   0 magic "ATOLL-LL" | 8 version u64 | 16 lender u64 | 24 capacity u64 | 32 indices ever used u64
//! entry, 128 bytes
//!   0 generation u32 << 32, state u32: 0 free, 1 lent, 2 dying; last
//!   8 holder | 16 region | 24 offset | 32 length                                        u64 each, as in the table
//!  40 session | 48 slot | 56 seq of the call that lent it; session 0: none              u64 each
//!  64 source: lender u64, index u32, generation u32, length u64; lender 0: it is the lender's own memory
//!  88 the capability that the call was made on: index u32, generation u32; generation 0: not known
//! ```
//!
//! L1: the word says *lent* before the table does. B1: it says *dying* before the range can go anywhere. B5: *free*, with
//! the generation of the next lease.

use std::sync::atomic::Ordering::{Relaxed, Release};

use super::protocol::Fields;
use crate::id::{LenderId, SessionId};
use crate::ledger::{Kept, Poisoned};
use crate::wire::{Handle, LeaseName};

const MAGIC: u64 = u64::from_le_bytes(*b"ATOLL-LL");
const VERSION: u64 = 1;
/// By which it is known: magic and version.
pub(crate) const FORMAT: [u64; 2] = [MAGIC, VERSION];
const HEADER: usize = 4096;
const ENTRY: usize = 128;

mod header {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const LENDER: usize = 16;
    pub const CAPACITY: usize = 24;
    pub const USED: usize = 32;
}

mod entry {
    pub const WORD: usize = 0;
    pub const FIELDS: usize = 8;
    pub const CALL: usize = 40;
    pub const SOURCE: usize = 64;
    pub const BY: usize = 88;
}

const FREE: u32 = 0;
const LENT: u32 = 1;
const DYING: u32 = 2;

/// The call whose reply brought a lease.
pub type Call = (SessionId, u16, u64);

/// A lease that a dead incarnation had lent, or was taking back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Its index.
    pub index: u32,
    /// Its generation.
    pub generation: u32,
    /// What the table says of it.
    pub fields: Fields,
    /// The call whose reply brought it.
    pub call: Option<Call>,
    /// The capability of that session on which the call was made, if it is known.
    pub by: Option<Handle>,
    /// The lease of another lender that it is a part of.
    pub source: Option<LeaseName>,
    /// It was being taken back.
    pub dying: bool,
}

/// The ledger, mapped by its lender.
#[derive(Debug)]
pub(super) struct LeaseLedger<M> {
    memory: M,
    capacity: u32,
    used: u32,
}

impl<M: Kept> LeaseLedger<M> {
    /// Bytes of memory for a table of this capacity. Its pages are taken as they are used.
    pub(super) const fn bytes(capacity: u32) -> usize {
        HEADER + capacity as usize * ENTRY
    }

    /// Whether nobody ever began a ledger in this memory.
    pub(super) fn is_blank(memory: &M) -> bool {
        memory.bytes() >= HEADER && memory.load(header::MAGIC) == 0
    }

    /// Begins a ledger in fresh memory.
    pub(super) fn create(memory: M, lender: LenderId, capacity: u32) -> Result<Self, Poisoned> {
        if memory.bytes() < Self::bytes(capacity) || memory.load(header::MAGIC) != 0 {
            return Err(Poisoned("its memory is too small, or not fresh"));
        }
        memory.store(header::VERSION, VERSION, Relaxed);
        memory.store(header::LENDER, lender.get(), Relaxed);
        memory.store(header::CAPACITY, capacity.into(), Relaxed);
        memory.store(header::MAGIC, MAGIC, Release);
        Ok(Self { memory, capacity, used: 0 })
    }

    /// Maps what a dead incarnation left: by index, the generation, and the lease if there is one.
    #[expect(clippy::type_complexity, reason = "a table, used once")]
    pub(super) fn recover(
        memory: M,
        lender: LenderId,
        capacity: u32,
    ) -> Result<(Self, Vec<(u32, Option<Inherited>)>), Poisoned> {
        let good = memory.bytes() >= Self::bytes(capacity)
            && memory.load(header::MAGIC) == MAGIC
            && memory.load(header::VERSION) == VERSION
            && memory.load(header::LENDER) == lender.get()
            && memory.load(header::CAPACITY) == u64::from(capacity);
        let used = memory.load(header::USED);
        let used = u32::try_from(used).ok().filter(|used| good && *used <= capacity);
        let used = used.ok_or(Poisoned("it is no ledger of this lender"))?;
        let ledger = Self { memory, capacity, used };
        let entries = (0..used).map(|index| ledger.entry(index)).collect::<Result<_, _>>()?;
        Ok((ledger, entries))
    }

    /// L1.
    pub(super) fn lent(
        &mut self,
        index: u32,
        generation: u32,
        fields: &Fields,
        call: Option<(Call, Handle)>,
        source: Option<LeaseName>,
    ) {
        debug_assert!(index < self.capacity);
        let at = entry_at(index);
        let store = |offset: usize, value: u64| self.memory.store(at + offset, value, Relaxed);
        let words = [fields.holder, fields.region, fields.offset, fields.length];
        for (word, value) in words.into_iter().enumerate() {
            store(entry::FIELDS + 8 * word, value);
        }
        let ((session, slot, seq), by) = call.unwrap_or_default();
        store(entry::BY, by.to_word());
        for (word, value) in [session.get(), slot.into(), seq].into_iter().enumerate() {
            store(entry::CALL + 8 * word, value);
        }
        let source = source.unwrap_or_default().to_bytes();
        for (word, value) in source.as_chunks::<8>().0.iter().enumerate() {
            store(entry::SOURCE + 8 * word, u64::from_le_bytes(*value));
        }
        self.memory.store(at + entry::WORD, u64::from(generation) << 32 | u64::from(LENT), Release);
        if index >= self.used {
            self.used = index + 1;
            self.memory.store(header::USED, self.used.into(), Release);
        }
    }

    /// The lease is another incarnation's from now on; `session`: one that it got on a session of its own, by no call.
    ///
    /// The call goes first: until the holder is stored the lease is the dead one's, whatever it says of calls.
    pub(super) fn held_by(&self, index: u32, holder: u64, session: Option<SessionId>) {
        let at = entry_at(index);
        if let Some(session) = session {
            self.memory.store(at + entry::BY, Handle::NONE.to_word(), Release);
            for (word, value) in [0, 0, session.get()].into_iter().enumerate() {
                self.memory.store(at + entry::CALL + 16 - 8 * word, value, Release);
            }
        }
        self.memory.store(at + entry::FIELDS, holder, Release);
    }

    /// B1.
    pub(super) fn dying(&self, index: u32, generation: u32) {
        self.memory.store(entry_at(index) + entry::WORD, u64::from(generation) << 32 | u64::from(DYING), Release);
    }

    /// B5: `next` is the generation of the next lease at this index; one that is used up keeps its last.
    pub(super) fn free(&self, index: u32, next: u32) {
        self.memory.store(entry_at(index) + entry::WORD, u64::from(next) << 32 | u64::from(FREE), Release);
    }

    fn entry(&self, index: u32) -> Result<(u32, Option<Inherited>), Poisoned> {
        let at = entry_at(index);
        let word = |offset| self.memory.load(at + offset);
        let (generation, state) = ((word(entry::WORD) >> 32) as u32, word(entry::WORD) as u32);
        let dying = match state {
            // Counted before its first lease was complete.
            FREE => return Ok((generation.max(1), None)),
            LENT => false,
            DYING => true,
            _ => return Err(Poisoned("a lease in an impossible state")),
        };
        let [holder, region, offset, length] = [8, 16, 24, 32].map(word);
        if generation == 0 || length == 0 || offset.checked_add(length).is_none() {
            return Err(Poisoned("an impossible lease"));
        }
        let mut source = [0; LeaseName::BYTES];
        self.memory.read(at + entry::SOURCE, &mut source);
        let source = LeaseName::from_bytes(source);
        let session = word(entry::CALL);
        let call = match u16::try_from(word(entry::CALL + 8)) {
            _ if session == 0 => None,
            Ok(slot) => Some((SessionId(session), slot, word(entry::CALL + 16))),
            Err(_) => return Err(Poisoned("a lease of an impossible slot")),
        };
        let by = Handle::from_word(word(entry::BY));
        let inherited = Inherited {
            index,
            generation,
            fields: Fields { holder, region, offset, length },
            call,
            by: (by.generation != 0 && call.is_some()).then_some(by),
            source: (source.lender != LenderId(0)).then_some(source),
            dying,
        };
        Ok((generation, Some(inherited)))
    }
}

fn entry_at(index: u32) -> usize {
    HEADER + index as usize * ENTRY
}
