//! A node of the tree: 16 KiB, the same bytes in memory and on disk.
//!
//! ```text
//! 0        64                    64+24n        heap                     16384
//! | header | slots, by key →     | free        | ← values, any order    |
//! ```
//! - Slots are sorted by key, keys are distinct. A leaf's values are items, an inner node's are [`Pointer`]s, and its
//!   keys are lower bounds of what lies below (the first one is not consulted).
//! - `heap` is where the values begin; `dead` counts bytes of it that belong to no slot.
//! - A node that was read is a node only after [`Node::check`]; from then on its offsets are trusted.

use super::items::Key;
use super::{NODE_SIZE, Pointer};
use crate::device::crc32c;
use std::cmp::Ordering;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: u32 = u32::from_le_bytes(*b"ANOD");
const HEADER: usize = size_of::<Header>();
const SLOT: usize = size_of::<Slot>();
/// Bytes of the longest value: two of them and an inner node's worth of others fit a node.
pub const MAX_VALUE: usize = 4608;
/// Bytes that slots and values can fill.
pub const CAPACITY: usize = NODE_SIZE - HEADER;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    level: u8,
    flags: u8,
    count: U16,
    heap: U16,
    dead: U16,
    reserved0: U32,
    uuid: [u8; 16],
    address: U64,
    generation: U64,
    reserved: [u8; 16],
}
const _: () = assert!(HEADER == 64);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Slot {
    inode: U64,
    offset: U64,
    kind: u8,
    reserved0: u8,
    value: U16,
    length: U16,
    reserved: U16,
}
const _: () = assert!(SLOT == 24);

impl Slot {
    fn key(&self) -> Key {
        Key { inode: self.inode.get(), kind: self.kind, offset: self.offset.get() }
    }
}

/// Where the keys of a node lie, by what its ancestors say: at or after `start`, before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The least key there can be.
    pub start: Key,
    /// All keys are below it; `None`: there is no such bound.
    pub end: Option<Key>,
}

impl Bounds {
    /// Those of a root.
    pub const ALL: Self = Self { start: Key::MIN, end: None };
}

/// A node in memory.
#[derive(Clone)]
pub struct Node {
    bytes: Box<[u8; NODE_SIZE]>,
}

impl Node {
    /// An empty node.
    #[must_use]
    pub fn new(level: u8) -> Self {
        let mut node = Self { bytes: zeroed() };
        node.put_header(&Header {
            magic: U32::new(MAGIC),
            level,
            flags: 0,
            count: U16::new(0),
            heap: U16::new(NODE_SIZE as u16),
            dead: U16::new(0),
            reserved0: U32::new(0),
            uuid: [0; 16],
            address: U64::new(0),
            generation: U64::new(0),
            reserved: [0; 16],
        });
        node
    }

    /// Reads a node's bytes through `read`, which fills the buffer, and checks them against the pointer to it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(read: impl FnOnce(&mut [u8]), pointer: &Pointer, uuid: &[u8; 16]) -> Result<Self, &'static str> {
        let mut node = Self { bytes: zeroed() };
        read(&mut node.bytes[..]);
        if crc32c(&node.bytes[..]) != pointer.crc.get() {
            return Err("checksum");
        }
        node.check_content(pointer, uuid)?;
        Ok(node)
    }

    /// Checks everything but the checksum.
    fn check_content(&self, pointer: &Pointer, uuid: &[u8; 16]) -> Result<(), &'static str> {
        let header = self.header();
        if header.magic != MAGIC {
            return Err("no node here");
        }
        if &header.uuid != uuid {
            return Err("of another volume");
        }
        if header.address != pointer.address[0] || header.generation != pointer.generation {
            return Err("another node than the one that was meant");
        }
        if header.level != pointer.level {
            return Err("wrong level");
        }
        let (count, heap) = (self.count(), usize::from(header.heap));
        if count == 0 {
            // Not even the root's: the root directory has an inode.
            return Err(if header.level > 0 { "inner node without children" } else { "leaf without items" });
        }
        if HEADER + count * SLOT > heap || heap > NODE_SIZE {
            return Err("slots and values overlap");
        }
        let mut live = 0;
        let mut last = None;
        let mut taken = Bytes::default();
        for index in 0..count {
            let slot = self.slot(index);
            let (start, length) = (usize::from(slot.value), usize::from(slot.length));
            if start < heap || start + length > NODE_SIZE || length > MAX_VALUE {
                return Err("value outside the node");
            }
            if header.level > 0 {
                // Levels that fall by one end every way down, whatever a volume says.
                let pointer = self.bytes.get(start..start + length).map(Pointer::read_from_bytes);
                match pointer {
                    Some(Ok(pointer)) if pointer.level.wrapping_add(1) == header.level => {}
                    _ => return Err("no pointer where one belongs"),
                }
            }
            if last.is_some_and(|last| last >= slot.key()) {
                return Err("keys out of order");
            }
            if !taken.take(start, start + length) {
                return Err("values overlap");
            }
            last = Some(slot.key());
            live += length;
        }
        if live + usize::from(header.dead) != NODE_SIZE - heap {
            return Err("values do not fill their part of the node");
        }
        Ok(())
    }

    /// Checks that all keys lie within `bounds`. The first key of an inner node is not consulted, and may be anything.
    ///
    /// # Errors
    /// They do not.
    pub fn check_bounds(&self, bounds: &Bounds) -> Result<(), &'static str> {
        let first = usize::from(self.level() > 0);
        let count = self.count();
        if first < count && (self.key(first) < bounds.start || bounds.end.is_some_and(|end| self.key(count - 1) >= end))
        {
            return Err("keys outside the bounds that its parent gives");
        }
        Ok(())
    }

    /// Bounds of the child at `index` of an inner node that lies within `bounds` itself.
    #[must_use]
    pub fn child_bounds(&self, index: usize, bounds: &Bounds) -> Bounds {
        Bounds {
            start: if index > 0 { self.key(index) } else { bounds.start },
            end: if index + 1 < self.count() { Some(self.key(index + 1)) } else { bounds.end },
        }
    }

    /// Generation in which it was written.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.header().generation.get()
    }

    /// Level: 0 = leaf.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.header().level
    }

    /// Number of items.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.header().count)
    }

    /// Key of the item at `index`, which is below [`count`](Self::count).
    #[must_use]
    pub fn key(&self, index: usize) -> Key {
        self.slot(index).key()
    }

    /// Value of the item at `index`, which is below [`count`](Self::count).
    #[must_use]
    pub fn value(&self, index: usize) -> &[u8] {
        let slot = self.slot(index);
        &self.bytes[usize::from(slot.value)..][..usize::from(slot.length)]
    }

    /// Value of the item at `index`, to be changed in place.
    pub fn value_mut(&mut self, index: usize) -> &mut [u8] {
        let slot = self.slot(index);
        &mut self.bytes[usize::from(slot.value)..][..usize::from(slot.length)]
    }

    /// The pointer at `index` of an inner node.
    #[must_use]
    pub fn pointer(&self, index: usize) -> Pointer {
        Pointer::read_from_bytes(self.value(index)).unwrap_or_default()
    }

    /// Replaces the pointer at `index` of an inner node.
    pub fn set_pointer(&mut self, index: usize, pointer: &Pointer) {
        self.value_mut(index).copy_from_slice(pointer.as_bytes());
    }

    /// Index of `key`, or of the first item above it.
    ///
    /// # Errors
    /// The key is not there.
    pub fn search(&self, key: &Key) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Index of the child of an inner node below which `key` belongs. The node is not empty.
    #[must_use]
    pub fn child_index(&self, key: &Key) -> usize {
        match self.search(key) {
            Ok(index) => index,
            Err(index) => index.saturating_sub(1),
        }
    }

    /// Bytes in use by slots and values.
    #[must_use]
    pub fn used(&self) -> usize {
        let header = self.header();
        self.count() * SLOT + (NODE_SIZE - usize::from(header.heap)) - usize::from(header.dead)
    }

    /// True if an item with a value of `length` bytes fits.
    #[must_use]
    pub fn fits(&self, length: usize) -> bool {
        self.used() + SLOT + length <= CAPACITY
    }

    /// Inserts an item at `index`, where its key belongs. It fits.
    pub fn insert(&mut self, index: usize, key: &Key, value: &[u8]) {
        debug_assert!(self.fits(value.len()), "the caller asked whether it fits");
        let mut header = self.header();
        let count = usize::from(header.count);
        if HEADER + (count + 1) * SLOT + value.len() > usize::from(header.heap) {
            self.compact();
            header = self.header();
        }
        let heap = usize::from(header.heap) - value.len();
        self.bytes[heap..heap + value.len()].copy_from_slice(value);
        let start = value_start(heap, value.len());
        let at = HEADER + index * SLOT;
        self.bytes.copy_within(at..HEADER + count * SLOT, at + SLOT);
        let slot = Slot {
            inode: U64::new(key.inode),
            offset: U64::new(key.offset),
            kind: key.kind,
            reserved0: 0,
            value: U16::new(start as u16),
            length: U16::new(value.len() as u16),
            reserved: U16::new(0),
        };
        self.bytes[at..at + SLOT].copy_from_slice(slot.as_bytes());
        header.count = U16::new(count as u16 + 1);
        header.heap = U16::new(heap as u16);
        self.put_header(&header);
    }

    /// Removes the item at `index`.
    pub fn remove(&mut self, index: usize) {
        let mut header = self.header();
        let count = usize::from(header.count);
        let slot = self.slot(index);
        if slot.value == header.heap {
            header.heap = U16::new(header.heap.get() + slot.length.get());
        } else {
            header.dead = U16::new(header.dead.get() + slot.length.get());
        }
        let at = HEADER + index * SLOT;
        self.bytes.copy_within(at + SLOT..HEADER + count * SLOT, at);
        header.count = U16::new(count as u16 - 1);
        if header.count == 0 {
            header.heap = U16::new(NODE_SIZE as u16);
            header.dead = U16::new(0);
        }
        self.put_header(&header);
    }

    /// Moves the items from `index` on to the end of `to`, where they belong and fit.
    pub fn move_tail(&mut self, index: usize, to: &mut Self) {
        for from in index..self.count() {
            let end = to.count();
            to.insert(end, &self.key(from), self.value(from));
        }
        while self.count() > index {
            self.remove(self.count() - 1);
        }
    }

    /// Changes the key of the item at `index`; the order stays.
    pub fn set_key(&mut self, index: usize, key: &Key) {
        let mut slot = self.slot(index);
        slot.inode = U64::new(key.inode);
        slot.offset = U64::new(key.offset);
        slot.kind = key.kind;
        let at = HEADER + index * SLOT;
        self.bytes[at..at + SLOT].copy_from_slice(slot.as_bytes());
    }

    /// Index at which to split so that both halves and an item of `length` bytes at `index` fit.
    #[must_use]
    pub fn split_point(&self, index: usize, length: usize) -> usize {
        let total = self.used() + SLOT + length;
        let mut left = 0;
        for at in 0..self.count() {
            if at == index {
                left += SLOT + length;
            }
            let size = SLOT + usize::from(self.slot(at).length);
            if left + size > total / 2 && at > 0 {
                return at;
            }
            left += size;
        }
        self.count()
    }

    /// Gives the node its place, and returns its checksum.
    pub fn seal(&mut self, address: u64, generation: u64, uuid: &[u8; 16]) -> u32 {
        let mut header = self.header();
        header.address = U64::new(address);
        header.generation = U64::new(generation);
        header.uuid = *uuid;
        self.put_header(&header);
        // What lies between slots and values is left over from removed items: not to be published.
        let free = HEADER + self.count() * SLOT..usize::from(header.heap);
        self.bytes[free].fill(0);
        crc32c(&self.bytes[..])
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; NODE_SIZE] {
        &self.bytes
    }

    fn compact(&mut self) {
        let mut packed = Self::new(self.level());
        let mut header = self.header();
        let mut heap = NODE_SIZE;
        for index in 0..self.count() {
            let value = self.value(index);
            heap -= value.len();
            packed.bytes[heap..heap + value.len()].copy_from_slice(value);
            let mut slot = self.slot(index);
            slot.value = U16::new(value_start(heap, value.len()) as u16);
            packed.bytes[HEADER + index * SLOT..][..SLOT].copy_from_slice(slot.as_bytes());
        }
        header.heap = U16::new(heap as u16);
        header.dead = U16::new(0);
        packed.put_header(&header);
        self.bytes = packed.bytes;
    }

    fn header(&self) -> Header {
        Header::read_from_prefix(&self.bytes[..]).expect("a node is longer than its header").0
    }

    fn put_header(&mut self, header: &Header) {
        self.bytes[..HEADER].copy_from_slice(header.as_bytes());
    }

    fn slot(&self, index: usize) -> Slot {
        Slot::read_from_prefix(&self.bytes[HEADER + index * SLOT..]).expect("index is below count").0
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let items = (0..self.count()).map(|index| (self.key(index), self.value(index).len()));
        f.debug_struct("Node").field("level", &self.level()).field("items", &items.collect::<Vec<_>>()).finish()
    }
}

/// Where a value of `length` bytes begins that has its place at `heap`. An empty one has no place: where it seems to be, the
/// heap may end before it when its neighbour is removed.
fn value_start(heap: usize, length: usize) -> usize {
    if length == 0 { NODE_SIZE } else { heap }
}

/// Which bytes of a node belong to a value.
struct Bytes([u64; NODE_SIZE / 64]);

impl Default for Bytes {
    fn default() -> Self {
        Self([0; NODE_SIZE / 64])
    }
}

impl Bytes {
    /// Takes a range that lies within the node; false if a byte of it was taken.
    fn take(&mut self, start: usize, end: usize) -> bool {
        let mut at = start;
        while at < end {
            let next = (at / 64 + 1) * 64;
            let bits = (u64::MAX << (at % 64)) & (u64::MAX >> (next - next.min(end)));
            let word = &mut self.0[at / 64];
            if *word & bits != 0 {
                return false;
            }
            *word |= bits;
            at = next;
        }
        true
    }
}

fn zeroed() -> Box<[u8; NODE_SIZE]> {
    vec![0; NODE_SIZE].into_boxed_slice().try_into().expect("the length is the array's")
}
