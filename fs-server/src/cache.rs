//! The cache of data: extents of the device that are held.
//!
//! - An entry is a range of blocks whose checksums were verified once, when it was read. Reads lend parts of it.
//! - Entries never overlap. A block that is freed leaves the cache at once; who still reads the entry keeps it alive,
//!   and the block is not dealt out again before (see [`crate::allocator`]).
//! - Bounded in bytes and entries. CLOCK: what was read since the hand last passed stays, and so does what is lent. What
//!   left the cache and is still read counts until it is dropped: it takes the device's memory as before.
//! - Where the device runs out of memory all the same, the cache lets go of what nobody reads (see [`crate::room`]).
//! - A driver that is given up takes its memory with it: the first dead entry that is seen takes all dead ones along.

use crate::allocator::Reader;
use crate::device::{BLOCK_SIZE, Device, Extent, MAX_TRANSFER_BLOCKS};
use crate::error::{Error, Structure};
use crate::room::{Holds, Roomy};
use crate::sync::Bell;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::rc::Rc;

/// A verified extent, counted for as long as somebody has it.
pub struct Kept<E> {
    extent: E,
    blocks: u32,
    total: Rc<Cell<u64>>,
}

impl<E> Kept<E> {
    fn new(extent: E, blocks: u32, total: &Rc<Cell<u64>>) -> Rc<Self> {
        total.set(total.get() + u64::from(blocks));
        Rc::new(Self { extent, blocks, total: Rc::clone(total) })
    }
}

impl<E> Drop for Kept<E> {
    fn drop(&mut self) {
        self.total.set(self.total.get() - u64::from(self.blocks));
    }
}

impl<E> std::ops::Deref for Kept<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.extent
    }
}

/// Verified bytes of a file, held for as long as this lives.
pub struct Held<E> {
    /// The extent that holds them.
    pub extent: Rc<Kept<E>>,
    /// Where they begin in it, in bytes.
    pub offset: usize,
    /// How many there are.
    pub length: usize,
}

impl<E: Extent> Held<E> {
    /// Copies the bytes out.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        self.extent.copy_out(self.offset, &mut bytes);
        bytes
    }
}

impl<E> Clone for Held<E> {
    fn clone(&self) -> Self {
        Self { extent: Rc::clone(&self.extent), ..*self }
    }
}

impl<E> std::fmt::Debug for Held<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("offset", &self.offset).field("length", &self.length).finish_non_exhaustive()
    }
}

struct Entry<E> {
    extent: Rc<Kept<E>>,
    referenced: Cell<bool>,
}

impl<E> Entry<E> {
    fn blocks(&self) -> u32 {
        self.extent.blocks
    }

    fn is_read(&self) -> bool {
        Rc::strong_count(&self.extent) > 1
    }
}

struct State<E> {
    entries: BTreeMap<u64, Entry<E>>,
    /// Ranges that are being read: first block → (blocks, token).
    loading: BTreeMap<u64, (u32, u64)>,
    hand: u64,
    tokens: u64,
}

pub(crate) struct ExtentCache<E> {
    state: RefCell<State<E>>,
    /// Blocks of all extents that somebody has, in the cache or not.
    total: Rc<Cell<u64>>,
    limit_blocks: u64,
    limit_entries: usize,
    loaded: Bell,
    verified_bytes: Cell<u64>,
}

impl<E: Extent> ExtentCache<E> {
    pub(crate) fn new(limit_bytes: u64, limit_entries: usize) -> Self {
        Self {
            state: RefCell::new(State { entries: BTreeMap::new(), loading: BTreeMap::new(), hand: 0, tokens: 0 }),
            total: Rc::default(),
            limit_blocks: (limit_bytes / BLOCK_SIZE as u64).max(u64::from(MAX_TRANSFER_BLOCKS)),
            limit_entries: limit_entries.max(16),
            loaded: Bell::default(),
            verified_bytes: Cell::new(0),
        }
    }

    /// Bytes whose checksums were verified so far.
    pub(crate) fn verified_bytes(&self) -> u64 {
        self.verified_bytes.get()
    }

    /// Bytes held, by the cache and by readers.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.total.get() * BLOCK_SIZE as u64
    }

    /// True if `block` is held or being read.
    pub(crate) fn has(&self, block: u64) -> bool {
        let state = self.state.borrow();
        covering(&state.entries, block, Entry::blocks).is_some()
            || covering(&state.loading, block, |&(blocks, _)| blocks).is_some()
    }

    /// Blocks from `block` on, at least one and at most `want`, verified against `crcs` (one each, from `block` on).
    ///
    /// # Errors
    /// The device failed, or a checksum is wrong: [`Error::Corrupt`] with the first such block.
    pub(crate) async fn get<D: Device<Extent = E>>(
        &self,
        device: &Roomy<D>,
        block: u64,
        want: u32,
        crcs: &[u32],
        structure: Structure,
    ) -> Result<Held<E>, Error> {
        loop {
            if let Some(held) = self.find(block, want) {
                return Ok(held);
            }
            if covering(&self.state.borrow().loading, block, |&(blocks, _)| blocks).is_none() {
                break;
            }
            self.loaded.heard().await;
        }
        let loading = self.begin(block, want.min(crcs.len() as u32).min(MAX_TRANSFER_BLOCKS));
        let extent = device.read_some(block, loading.blocks, 1).await?;
        let blocks = extent.blocks().min(loading.blocks);
        for index in 0..blocks as usize {
            if crcs.get(index) != Some(&extent.crc32c(index * BLOCK_SIZE, BLOCK_SIZE)) {
                return Err(Error::Corrupt { structure, block: block + index as u64, what: "checksum" });
            }
        }
        self.verified_bytes.set(self.verified_bytes.get() + u64::from(blocks) * BLOCK_SIZE as u64);
        let extent = Kept::new(extent, blocks, &self.total);
        if loading.finish() {
            let entry = Entry { extent: Rc::clone(&extent), referenced: Cell::new(true) };
            self.state.borrow_mut().entries.insert(block, entry);
        }
        Ok(Held { extent, offset: 0, length: want.min(blocks) as usize * BLOCK_SIZE })
    }

    /// Forgets everything that holds one of these blocks. Returns who still reads them.
    pub(crate) fn forget(&self, block: u64, blocks: u32) -> Vec<Reader> {
        let mut state = self.state.borrow_mut();
        let end = block + u64::from(blocks);
        let first = covering(&state.entries, block, Entry::blocks).unwrap_or(block);
        let starts: Vec<u64> = state.entries.range(first..end).map(|(&start, _)| start).collect();
        let mut readers: Vec<Reader> = Vec::new();
        for start in starts {
            let Some(entry) = state.entries.remove(&start) else { continue };
            if entry.is_read() {
                let extent: Rc<dyn Any> = entry.extent;
                readers.push(Rc::downgrade(&extent));
            }
        }
        let first = covering(&state.loading, block, |&(blocks, _)| blocks).unwrap_or(block);
        let starts: Vec<u64> = state.loading.range(first..end).map(|(&start, _)| start).collect();
        for start in starts {
            // The read goes on, but what it brings is not kept.
            state.loading.remove(&start);
        }
        drop(state);
        self.loaded.ring();
        readers
    }

    /// Forgets everything, as when the driver behind it is another one.
    pub(crate) fn clear(&self) {
        let mut state = self.state.borrow_mut();
        state.entries.clear();
        state.loading.clear();
        drop(state);
        self.loaded.ring();
    }

    fn find(&self, block: u64, want: u32) -> Option<Held<E>> {
        let mut state = self.state.borrow_mut();
        let start = covering(&state.entries, block, Entry::blocks)?;
        let entry = state.entries.get(&start)?;
        if !entry.extent.is_live() {
            state.entries.retain(|_, entry| entry.extent.is_live());
            return None;
        }
        entry.referenced.set(true);
        let skip = (block - start) as u32;
        let blocks = want.min(entry.blocks() - skip);
        Some(Held {
            extent: Rc::clone(&entry.extent),
            offset: skip as usize * BLOCK_SIZE,
            length: blocks as usize * BLOCK_SIZE,
        })
    }

    /// Notes that a range is being read, cut short where another entry begins, and makes room for it.
    fn begin(&self, block: u64, want: u32) -> Loading<'_, E> {
        let mut state = self.state.borrow_mut();
        let after = (Excluded(block), Unbounded);
        let next_entry = state.entries.range(after).next().map(|(&start, _)| start);
        let next_loading = state.loading.range(after).next().map(|(&start, _)| start);
        let limit = next_entry.into_iter().chain(next_loading).map(|next| next - block).min().unwrap_or(u64::MAX);
        let blocks = u64::from(want.max(1)).min(limit) as u32;
        state.tokens += 1;
        let token = state.tokens;
        state.loading.insert(block, (blocks, token));
        let loading: u64 = state.loading.values().map(|&(blocks, _)| u64::from(blocks)).sum();
        self.evict(&mut state, self.limit_blocks.saturating_sub(loading), self.limit_entries);
        Loading { cache: self, block, blocks, token }
    }
}

impl<E: Extent> ExtentCache<E> {
    /// Lets go of extents that nobody reads until no more than this is held. Says whether it did of any.
    fn evict(&self, state: &mut State<E>, limit_blocks: u64, limit_entries: usize) -> bool {
        let before = state.entries.len();
        let mut patience = 2 * before + 1;
        while (self.total.get() > limit_blocks || state.entries.len() >= limit_entries) && patience > 0 {
            patience -= 1;
            let Some((&start, entry)) = state.entries.range(state.hand..).next() else {
                if state.entries.is_empty() {
                    break;
                }
                state.hand = 0;
                continue;
            };
            state.hand = start + 1;
            if !entry.extent.is_live() {
                state.entries.retain(|_, entry| entry.extent.is_live());
            } else if !entry.referenced.replace(false) && !entry.is_read() {
                state.entries.remove(&start);
            }
        }
        state.entries.len() < before
    }
}

impl<E: Extent> Holds for ExtentCache<E> {
    fn let_go(&self, blocks: u64) -> bool {
        let mut state = self.state.borrow_mut();
        let limit = self.total.get().saturating_sub(blocks);
        self.evict(&mut state, limit, usize::MAX)
    }
}

/// A range that is being read. Dropped unfinished (the reader gave up) it makes way for the next.
struct Loading<'a, E: Extent> {
    cache: &'a ExtentCache<E>,
    block: u64,
    blocks: u32,
    token: u64,
}

impl<E: Extent> Loading<'_, E> {
    /// Says whether what was read may be kept: nobody freed the blocks meanwhile.
    fn finish(&self) -> bool {
        let mut state = self.cache.state.borrow_mut();
        let ours = state.loading.get(&self.block).is_some_and(|&(_, token)| token == self.token);
        if ours {
            state.loading.remove(&self.block);
        }
        ours
    }
}

impl<E: Extent> Drop for Loading<'_, E> {
    fn drop(&mut self) {
        self.finish();
        self.cache.loaded.ring();
    }
}

/// Start of the range of `map` that `block` lies in.
fn covering<V>(map: &BTreeMap<u64, V>, block: u64, blocks: impl Fn(&V) -> u32) -> Option<u64> {
    let (&start, value) = map.range(..=block).next_back()?;
    (block < start + u64::from(blocks(value))).then_some(start)
}
