//! The ledger of one session; [`layout`](super::layout) draws it.
//!
//! A call that was under way when its host crashed is suspect: when it begins again its request is kept in the place of
//! its reply (target object 16 bytes, then as much of the payload as there is room for).
//!
//! An entry counts if it is used and the call that granted it is done: `done[slot] >= seq`, or it came with the session.
//! A cell's reply counts if its `done` is the seq that is asked for. `begun` and `done` are stored with release; the
//! stores before them are relaxed.

use std::sync::atomic::Ordering::{Relaxed, Release};

use super::layout::{
    CRASHES, IMAGE_BYTES, MAGIC, NO_SLOT, NOTE_BYTES, REQUEST, UNLIMITED, VERSION, WHICH, cell, entry, header,
};
use super::{Kept, Legible};
use crate::capability::{Entries, Grant, Restored, Standing, State};
use crate::id::SessionId;
use crate::interface::Retry;
use crate::rights::Rights;
use crate::wire::{Completion, Extent, Handle, Shape, Status};

/// Crashes of its host after which a call that was under way at each of them does not run again.
pub const CRASHES_MAX: u8 = 2;

/// Which call an entry belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// None: it is there from the session's beginning.
    Session,
    /// The call that granted it.
    Call {
        /// Its slot.
        slot: u16,
        /// Its number.
        seq: u64,
    },
}

/// Why a ledger cannot be gone on with. The session ends; nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poisoned(pub &'static str);

impl std::fmt::Display for Poisoned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the session's ledger is damaged: {}", self.0)
    }
}

impl std::error::Error for Poisoned {}

/// A session's ledger, mapped by its host.
#[derive(Debug)]
pub struct SessionLedger<M> {
    memory: M,
    shape: Shape,
    quota: u32,
}

/// The last reply of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The completion's own fields.
    pub completion: Completion,
    /// The capability that the call was made on.
    pub used: Handle,
    /// What stood in the reply window.
    pub window: Vec<u8>,
}

/// What a slot's cell says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// The operation of the last call that began.
    pub operation: u16,
    /// Its class, if the number is one.
    pub retry: Option<Retry>,
    /// Its seq; 0 if none ever began.
    pub begun: u64,
    /// Seq of the last call whose reply is kept; 0 if there is none.
    pub done: u64,
    /// Crashes of the host at which the call that began last was under way.
    pub crashes: u8,
}

/// A call that was under way when its host died.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executing {
    /// Its slot.
    pub slot: u16,
    /// What is known of it.
    pub cell: Cell,
    /// The object that it was made on, whether that is the session's first, and its payload, as far as it was kept: only of
    /// a call that was under way at a crash before.
    pub request: Option<([u64; 2], bool, Vec<u8>)>,
}

/// What a ledger holds for the next incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The session.
    pub session: SessionId,
    /// Its measures.
    pub shape: Shape,
    /// The session's first capability.
    pub root: Handle,
    /// By normal slot.
    pub cells: Vec<Cell>,
    /// By index: the generation, and the entry if it counts.
    pub entries: Vec<Restored>,
}

/// What stands at an index.
pub(super) enum Stands {
    /// Nothing.
    Free,
    /// What a call that is not done has granted.
    Uncounted,
    /// An entry.
    Entry(Grant, Standing),
}

impl<M: Legible> SessionLedger<M> {
    /// Bytes of memory for a session of this shape. Its pages are taken as they are used.
    pub fn bytes(shape: Shape, quota: u32) -> usize {
        entries_at(shape) + quota as usize * entry::BYTES
    }

    /// Maps a ledger: with it the session's first capability, and how many entries were ever used.
    pub(super) fn open(memory: M, session: SessionId) -> Result<(Self, Handle, u32), Poisoned> {
        if memory.bytes() < header::BYTES
            || memory.load(header::MAGIC) != MAGIC
            || memory.load(header::VERSION) != VERSION
        {
            return Err(Poisoned("it has no header"));
        }
        if memory.load(header::SESSION) != session.get() {
            return Err(Poisoned("it is another session's"));
        }
        let number = |at| u32::try_from(memory.load(at)).unwrap_or(u32::MAX);
        let slots = u16::try_from(memory.load(header::SLOTS)).unwrap_or(u16::MAX);
        let shape = Shape::checked(slots, number(header::WINDOW_BYTES)).ok_or(Poisoned("impossible measures"))?;
        let (quota, used) = (number(header::QUOTA), number(header::ENTRIES));
        if used > quota || memory.bytes() < Self::bytes(shape, quota) {
            return Err(Poisoned("impossible measures"));
        }
        let root = Handle::from_word(memory.load(header::ROOT));
        Ok((Self { memory, shape, quota }, root, used))
    }

    /// What a slot's cell says. The slot is one of the session's normal ones.
    ///
    /// # Errors
    /// [`Poisoned`]: something impossible.
    pub fn cell(&self, slot: u16) -> Result<Cell, Poisoned> {
        let at = self.cell_at(slot);
        let class = self.memory.load(at + cell::CLASS);
        let cell = Cell {
            operation: class as u16,
            retry: retry_of((class >> 16) as u16),
            begun: self.memory.load(at + cell::BEGUN),
            done: self.memory.load(at + cell::DONE),
            crashes: (class >> CRASHES) as u8,
        };
        let request = (class >> REQUEST) as usize;
        let impossible = class >> 40 & 0xFF != 0 || request > IMAGE_BYTES + 1 || (1..17).contains(&request);
        if impossible || cell.done > cell.begun || (cell.begun != 0 && cell.retry.is_none()) {
            return Err(Poisoned("an impossible cell"));
        }
        Ok(cell)
    }

    /// An index's generation, and what stands there.
    pub(super) fn stands(&self, index: u32, cells: &[Cell]) -> Result<(u32, Stands), Poisoned> {
        let at = self.entry_at(index);
        let word = |offset| self.memory.load(at + offset);
        let last = word(entry::WORD);
        let generation = (last >> 32) as u32;
        let state = State::from_number(last as u8).ok_or(Poisoned("an entry in an impossible state"))?;
        let counts = match (word(entry::SLOT), word(entry::SEQ)) {
            (NO_SLOT, _) => true,
            (slot, seq) => {
                let cell = usize::try_from(slot).ok().and_then(|slot| cells.get(slot));
                cell.ok_or(Poisoned("an entry of no slot"))?.done >= seq
            }
        };
        match state {
            // An index that was counted before its first entry was complete.
            State::Free if generation == 0 => return Ok((1, Stands::Free)),
            State::Free => return Ok((generation, Stands::Free)),
            State::Promised | State::PromisedRevoked => return Err(Poisoned("an entry that is never kept")),
            _ if generation == 0 => return Err(Poisoned("an entry without a generation")),
            _ if !counts => return Ok((generation, Stands::Uncounted)),
            _ => {}
        }
        let rights = word(entry::RIGHTS);
        let parent = entry::PARENTS[usize::from(last >> WHICH & 1 == 1)];
        let handle = Handle::from_word(word(parent));
        let grant = Grant {
            object: [word(entry::OBJECT), word(entry::OBJECT + 8)],
            kind: (rights >> 32) as u8,
            rights: Rights::from_bits_retain(rights as u32),
            badge: word(entry::BADGE),
        };
        let limit = match word(entry::LIMIT) {
            UNLIMITED => None,
            limit => Some(u32::try_from(limit).map_err(|_| Poisoned("an entry with an impossible limit"))?),
        };
        let standing = Standing {
            parent: (handle != Handle::NONE).then(|| (SessionId(word(parent + 8)), handle)),
            is_copy: rights >> 40 == 1,
            expires: word(entry::EXPIRES),
            limit,
            state,
        };
        if rights >> 41 != 0 || grant.kind == 0 {
            return Err(Poisoned("an entry of an impossible kind"));
        }
        Ok((generation, Stands::Entry(grant, standing)))
    }

    /// The last word of an entry: while it stays the same, so does all that stands there.
    pub(super) fn entry_word(&self, index: u32) -> u64 {
        self.memory.load(self.entry_at(index) + entry::WORD)
    }

    /// Most capabilities that the session may hold.
    pub(super) fn quota(&self) -> u32 {
        self.quota
    }

    /// By normal slot.
    ///
    /// # Errors
    /// [`Poisoned`]: something impossible.
    pub(super) fn cells(&self) -> Result<Vec<Cell>, Poisoned> {
        (0..self.shape.slots).map(|slot| self.cell(slot)).collect()
    }

    #[inline]
    fn cell_at(&self, slot: u16) -> usize {
        header::BYTES + usize::from(slot) * cell::BYTES
    }

    fn entry_at(&self, index: u32) -> usize {
        entries_at(self.shape) + index as usize * entry::BYTES
    }
}

impl<M: Kept> SessionLedger<M> {
    /// Begins a ledger in fresh memory.
    ///
    /// # Errors
    /// [`Poisoned`]: the memory is too small, or not fresh.
    pub fn create(memory: M, session: SessionId, shape: Shape, quota: u32, root: Handle) -> Result<Self, Poisoned> {
        if memory.bytes() < Self::bytes(shape, quota) {
            return Err(Poisoned("its memory is too small"));
        }
        if memory.load(header::MAGIC) != 0 {
            return Err(Poisoned("its memory has been used"));
        }
        memory.store(header::VERSION, VERSION, Relaxed);
        memory.store(header::SESSION, session.get(), Relaxed);
        memory.store(header::SLOTS, shape.slots.into(), Relaxed);
        memory.store(header::WINDOW_BYTES, shape.window_bytes.into(), Relaxed);
        memory.store(header::QUOTA, quota.into(), Relaxed);
        memory.store(header::ROOT, root.to_word(), Relaxed);
        memory.store(header::MAGIC, MAGIC, Release);
        Ok(Self { memory, shape, quota })
    }

    /// Whether nobody ever began a ledger in this memory.
    pub fn is_blank(memory: &M) -> bool {
        memory.bytes() < header::BYTES || memory.load(header::MAGIC) == 0
    }

    /// Keeps by whom and how the session was opened, if that is not known to whoever keeps the ledger; once. False: it is too
    /// long, and nothing was stored.
    #[must_use]
    pub fn note(&self, note: &[u8]) -> bool {
        if note.len() > NOTE_BYTES {
            return false;
        }
        self.memory.write(header::NOTE, note);
        self.memory.store(header::NOTE_BYTES, note.len() as u64, Release);
        true
    }

    /// What was noted; nothing: it was not, so nobody was told of the session.
    ///
    /// # Errors
    /// [`Poisoned`]: an impossible length.
    pub fn noted(&self) -> Result<Vec<u8>, Poisoned> {
        let length = usize::try_from(self.memory.load(header::NOTE_BYTES)).unwrap_or(usize::MAX);
        if length > NOTE_BYTES {
            return Err(Poisoned("a note that is too long"));
        }
        let mut note = vec![0; length];
        self.memory.read(header::NOTE, &mut note);
        Ok(note)
    }

    /// The session goes on over the connection of this number, higher than any before.
    pub fn connected(&self, number: u64) {
        self.memory.store(header::CONNECTION, number, Release);
    }

    /// The number of the session's last connection; 0: it needs none.
    pub fn connection(&self) -> u64 {
        self.memory.load(header::CONNECTION)
    }

    /// Maps the ledger that a dead incarnation left, and checks all of it. `committed` gives, for each slot, the seq of
    /// the last call of this session that has a record in the component's ring (0: none): it is done, whatever the cell
    /// says.
    ///
    /// # Errors
    /// [`Poisoned`]: says what is impossible.
    pub fn recover(
        memory: M,
        session: SessionId,
        committed: impl Fn(u16) -> u64,
    ) -> Result<(Self, Recovered), Poisoned> {
        let (ledger, root, used) = Self::open(memory, session)?;
        let shape = ledger.shape;
        // Before any entry is looked at: entries count by what is done.
        for slot in 0..shape.slots {
            let committed = committed(slot);
            if committed > ledger.memory.load(ledger.cell_at(slot) + cell::DONE) {
                ledger.done(slot, committed);
            }
        }
        let cells = ledger.cells()?;
        let mut entries = Vec::with_capacity(used as usize);
        for index in 0..used {
            entries.push(ledger.entry(index, &cells)?);
        }
        Ok((ledger, Recovered { session, shape, root, cells, entries }))
    }

    /// A call is about to run.
    #[inline]
    pub fn begin(&self, slot: u16, seq: u64, operation: u16, retry: Retry) {
        let at = self.cell_at(slot);
        let mut class = u64::from(operation) | u64::from(retry as u8) << 16;
        if self.memory.load(at + cell::BEGUN) == seq {
            // The same call once more.
            class |= self.memory.load(at + cell::CLASS) & (0xFF << CRASHES);
        }
        self.memory.store(at + cell::CLASS, class, Relaxed);
        self.memory.store(at + cell::BEGUN, seq, Release);
    }

    /// Whether the call that began last on a slot was under way at a crash.
    #[inline]
    pub fn is_suspect(&self, slot: u16) -> bool {
        self.memory.load(self.cell_at(slot) + cell::CLASS) >> CRASHES != 0
    }

    /// Keeps the request of a suspect call until its reply is kept: the object that it is made on, and its payload as far
    /// as there is room.
    pub fn keep_request(&self, slot: u16, object: [u64; 2], payload: &[u8]) {
        let at = self.cell_at(slot);
        let payload = &payload[..payload.len().min(IMAGE_BYTES - 16)];
        self.memory.write(at + cell::IMAGE, &object[0].to_le_bytes());
        self.memory.write(at + cell::IMAGE + 8, &object[1].to_le_bytes());
        self.memory.write(at + cell::IMAGE + 16, payload);
        let class = self.memory.load(at + cell::CLASS) & ((1 << REQUEST) - 1);
        self.memory.store(at + cell::CLASS, class | (payload.len() as u64 + 17) << REQUEST, Release);
    }

    /// The host has crashed, for the `number`th time: counts it for every call that was under way, once.
    pub fn crashed(&self, number: u64, cells: &mut [Cell]) {
        if self.memory.load(header::CRASH) == number {
            return;
        }
        for (slot, cell) in (0..).zip(cells).filter(|(_, cell)| cell.begun > cell.done) {
            cell.crashes = cell.crashes.saturating_add(1);
            let at = self.cell_at(slot) + cell::CLASS;
            let class = self.memory.load(at) & !(0xFF << CRASHES);
            self.memory.store(at, class | u64::from(cell.crashes) << CRASHES, Relaxed);
        }
        self.memory.store(header::CRASH, number, Release);
    }

    /// The last crash that was counted; 0: none. Every call that was under way then, and is not done, was counted with it.
    pub fn last_crash(&self) -> u64 {
        self.memory.load(header::CRASH)
    }

    /// The calls that were under way when the host of this session died, and what was [noted](Self::note) of it. Changes nothing;
    /// some of the calls may have a record in the component's ring all the same.
    ///
    /// # Errors
    /// As [`recover`](Self::recover).
    pub fn executing(memory: M, session: SessionId) -> Result<(Vec<Executing>, Vec<u8>), Poisoned> {
        let (ledger, root, used) = Self::open(memory, session)?;
        let object = |at| [ledger.memory.load(at + entry::OBJECT), ledger.memory.load(at + entry::OBJECT + 8)];
        let root = (root.index < used).then(|| object(ledger.entry_at(root.index)));
        let cells = (0..).zip(ledger.cells()?).filter(|(_, cell)| cell.begun > cell.done);
        let executing = cells.map(|(slot, cell)| {
            let at = ledger.cell_at(slot);
            let kept = (ledger.memory.load(at + cell::CLASS) >> REQUEST) as usize;
            let request = kept.checked_sub(17).map(|length| {
                let mut bytes = vec![0; 16 + length];
                ledger.memory.read(at + cell::IMAGE, &mut bytes);
                let payload = bytes.split_off(16);
                let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
                let object = [word(0), word(8)];
                (object, root == Some(object), payload)
            });
            Executing { slot, cell, request }
        });
        let executing = executing.collect();
        Ok((executing, ledger.noted()?))
    }

    /// Keeps the reply of the call that began last on the completion's slot; it counts from [`done`](Self::done) on, or
    /// from the commit of its record. False: it is too long to be kept, and nothing was stored.
    #[inline]
    #[must_use]
    pub fn prepare(&self, used: Handle, completion: &Completion, window: &[&[u8]]) -> bool {
        if window.iter().map(|part| part.len()).sum::<usize>() > IMAGE_BYTES {
            return false;
        }
        let at = self.cell_at(completion.slot);
        let class = self.memory.load(at + cell::CLASS);
        if class >> REQUEST != 0 {
            self.memory.store(at + cell::CLASS, class & ((1 << REQUEST) - 1), Relaxed);
        }
        let [_, _, extent, status, _, _, inline @ ..] = completion.to_raw().0;
        self.memory.store(at + cell::USED, used.to_word(), Relaxed);
        self.memory.store(at + cell::STATUS, status, Relaxed);
        self.memory.store(at + cell::EXTENT, extent, Relaxed);
        self.memory.store(at + cell::INLINE, inline[0], Relaxed);
        self.memory.store(at + cell::INLINE + 8, inline[1], Relaxed);
        let mut to = at + cell::IMAGE;
        for part in window {
            self.memory.write(to, part);
            to += part.len();
        }
        true
    }

    /// The call is done: its entries and its reply count.
    #[inline]
    pub fn done(&self, slot: u16, seq: u64) {
        self.memory.store(self.cell_at(slot) + cell::DONE, seq, Release);
    }

    /// The entries of one call that are there.
    pub fn granted_by(&self, slot: u16, seq: u64) -> Vec<Handle> {
        let used = self.memory.load(header::ENTRIES).min(self.quota.into()) as u32;
        let granted = (0..used).filter_map(|index| {
            let word = |offset| self.memory.load(self.entry_at(index) + offset);
            let (generation, state) = ((word(entry::WORD) >> 32) as u32, word(entry::WORD) as u8);
            let its = (word(entry::SLOT), word(entry::SEQ)) == (slot.into(), seq);
            (state != State::Free as u8 && its).then_some(Handle { index, generation })
        });
        granted.collect()
    }

    /// The kept reply of call `seq`, if it is done.
    ///
    /// # Errors
    /// [`Poisoned`]: there is one, and it is impossible.
    pub fn reply(&self, slot: u16, seq: u64) -> Result<Option<Reply>, Poisoned> {
        let at = self.cell_at(slot);
        if self.memory.load(at + cell::DONE) != seq {
            return Ok(None);
        }
        let poisoned = |_| Poisoned("an impossible reply");
        let word = |offset| self.memory.load(at + offset);
        let extent = Extent::from_word(word(cell::EXTENT)).map_err(poisoned)?;
        extent.check(self.shape.window_bytes).map_err(poisoned)?;
        let status = Status::from_word(word(cell::STATUS)).map_err(poisoned)?;
        let inline = [word(cell::INLINE), word(cell::INLINE + 8)];
        let payload = if extent.is_inline() { 0 } else { extent.length as usize };
        let mut window = vec![0; extent.payload_offset() + payload];
        if window.len() > IMAGE_BYTES {
            return Err(Poisoned("a reply that is too long"));
        }
        self.memory.read(at + cell::IMAGE, &mut window);
        let operation = word(cell::CLASS) as u16;
        let completion = Completion { slot, operation, seq, extent, status, trace: 0, inline };
        Ok(Some(Reply { completion, used: Handle::from_word(word(cell::USED)), window }))
    }

    /// An index's generation, and its entry if that counts. One whose call did not happen makes way for the next.
    fn entry(&self, index: u32, cells: &[Cell]) -> Result<Restored, Poisoned> {
        Ok(match self.stands(index, cells)? {
            (generation, Stands::Free) => Restored { generation, entry: None },
            (generation, Stands::Uncounted) => {
                let generation = generation.saturating_add(1);
                self.leave(index, generation);
                Restored { generation, entry: None }
            }
            (generation, Stands::Entry(grant, standing)) => Restored { generation, entry: Some((grant, standing)) },
        })
    }

    /// Stores what an entry was derived from, in the place that does not count.
    fn store_parent(&self, index: u32, which: usize, parent: Option<(SessionId, Handle)>) {
        let at = self.entry_at(index) + entry::PARENTS[which];
        let (session, handle) = parent.map_or((0, Handle::NONE), |(session, handle)| (session.get(), handle));
        self.memory.store(at, handle.to_word(), Relaxed);
        self.memory.store(at + 8, session, Relaxed);
    }
}

impl<M: Kept> Entries for SessionLedger<M> {
    fn enter(&self, handle: Handle, grant: &Grant, standing: &Standing, tag: Tag) -> bool {
        if handle.index >= self.quota {
            return false;
        }
        let at = self.entry_at(handle.index);
        let (slot, seq) = match tag {
            Tag::Session => (NO_SLOT, 0),
            Tag::Call { slot, seq } => (u64::from(slot), seq),
        };
        self.memory.store(at + entry::OBJECT, grant.object[0], Relaxed);
        self.memory.store(at + entry::OBJECT + 8, grant.object[1], Relaxed);
        let rights = u64::from(standing.is_copy) << 40 | u64::from(grant.kind) << 32 | u64::from(grant.rights.bits());
        self.memory.store(at + entry::RIGHTS, rights, Relaxed);
        self.memory.store(at + entry::BADGE, grant.badge, Relaxed);
        self.memory.store(at + entry::SLOT, slot, Relaxed);
        self.memory.store(at + entry::SEQ, seq, Relaxed);
        self.memory.store(at + entry::EXPIRES, standing.expires, Relaxed);
        self.memory.store(at + entry::LIMIT, standing.limit.map_or(UNLIMITED, u64::from), Relaxed);
        self.store_parent(handle.index, 0, standing.parent);
        let word = u64::from(handle.generation) << 32 | u64::from(standing.state as u8);
        self.memory.store(at + entry::WORD, word, Release);
        let used = u64::from(handle.index) + 1;
        if self.memory.load(header::ENTRIES) < used {
            self.memory.store(header::ENTRIES, used, Release);
        }
        true
    }

    fn leave(&self, index: u32, next: u32) {
        if index < self.quota {
            let word = u64::from(next) << 32 | u64::from(State::Free as u8);
            self.memory.store(self.entry_at(index) + entry::WORD, word, Release);
        }
    }

    fn amend(&self, handle: Handle, state: State) {
        if handle.index < self.quota {
            let at = self.entry_at(handle.index) + entry::WORD;
            self.memory.store(at, self.memory.load(at) & !0xFF | u64::from(state as u8), Release);
        }
    }

    /// The other parent first, then which of them counts: nothing in between is seen.
    fn moved(&self, index: u32, standing: &Standing) {
        if index < self.quota {
            let at = self.entry_at(index) + entry::WORD;
            let word = self.memory.load(at) ^ 1 << WHICH;
            self.store_parent(index, usize::from(word >> WHICH & 1 == 1), standing.parent);
            self.memory.store(at, word, Release);
        }
    }
}

fn entries_at(shape: Shape) -> usize {
    (header::BYTES + usize::from(shape.slots) * cell::BYTES).next_multiple_of(4096)
}

fn retry_of(number: u16) -> Option<Retry> {
    [Retry::Idempotent, Retry::Cached, Retry::Never].into_iter().find(|&retry| retry as u16 == number)
}
