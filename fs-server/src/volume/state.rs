//! What a mounted volume has in memory, and the steps on it that read and write items.

use super::runs::Vnode;
use super::{NodeId, Stat};
use crate::allocator::Allocator;
use crate::device::MAX_TRANSFER_BLOCKS;
use crate::error::{Error, Structure};
use crate::format::items::{
    Entries, Entry, ExtentHead, FileExtent, FileKind, Inode, Key, MAX_COLLISIONS, RawInode, SLOT_MASK, kind,
};
use crate::format::node::MAX_VALUE;
use crate::format::{EXTENT_BLOCKS, NODE_BLOCKS};
use crate::tree::{AddressMap, Fault, Tree};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::ops::Range;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// Nodes that writing out one run of data may change.
const NODES_PER_RUN: u64 = 4;

pub(crate) struct State<S> {
    pub(crate) tree: Tree,
    pub(crate) allocator: Allocator,
    pub(crate) next_inode: u64,
    pub(crate) files: u64,
    pub(crate) directories: u64,
    /// Generation of the next checkpoint.
    pub(crate) generation: u64,
    /// Generation of the last durable checkpoint, and the slot its pack is in.
    pub(crate) durable: u64,
    pub(crate) durable_slot: usize,
    pub(crate) promised_nodes: u64,
    pub(crate) vnodes: AddressMap<Vnode<S>>,
    pub(crate) runs: u64,
    pub(crate) staged_blocks: u64,
    pub(crate) written_blocks_waiting: u64,
    /// Data blocks that the current step gives up.
    pub(crate) freed: Vec<(u64, u32)>,
    /// Truncations that have cut their file, and have not freed all that they cut off. Those that failed stay counted.
    pub(crate) truncating: u64,
    /// Checks in progress, for which nothing freed is dealt out again.
    pub(crate) pins: u32,
    pub(crate) data: Range<u64>,
    pub(crate) hash_key: [u8; 16],
    pub(crate) hash_bits: u8,
    pub(crate) copies: u64,
    /// Node places that only removals and checkpoints use.
    pub(crate) floor: u64,
    pub(crate) dirty_soft: usize,
    pub(crate) dirty_hard: usize,
}

/// What lies at a place of a file.
#[derive(Clone, Debug)]
pub(crate) enum Placed {
    Extent(FileExtent),
    /// Nothing, up to this block of the file.
    Hole(u64),
}

/// An entry that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) inode: u64,
    pub(crate) kind: FileKind,
    pub(crate) position: u64,
}

impl<S> State<S> {
    // --- room ----------------------------------------------------------------------------------------------------

    /// Node places that must stay free for the next checkpoint, if `nodes` more nodes are changed.
    pub(crate) fn places_needed(&self, nodes: u64) -> u64 {
        (self.tree.dirty() as u64 + self.promised_nodes + self.runs * NODES_PER_RUN + nodes) * self.copies
    }

    /// Data blocks that wait in memory to be given a place.
    pub(crate) fn promised_blocks(&self) -> u64 {
        self.written_blocks_waiting
    }

    pub(crate) fn has_room(&self, nodes: u64, blocks: u64, urgent: bool) -> bool {
        if self.tree.dirty() + (self.promised_nodes + nodes) as usize > self.dirty_hard && self.tree.dirty() > 0 {
            return false;
        }
        let floor = if urgent { 0 } else { self.floor };
        let places = self.places_needed(nodes) + floor;
        if self.allocator.node_places() < places {
            return false;
        }
        blocks == 0 || self.allocator.available() >= self.promised_blocks() + blocks + places * u64::from(NODE_BLOCKS)
    }

    // --- inodes --------------------------------------------------------------------------------------------------

    /// The inode that a handle means.
    pub(crate) fn inode(&self, id: NodeId) -> Result<Inode, Fault> {
        let inode = self.find_inode(id.inode)?.ok_or(Error::Stale)?;
        if inode.raw.generation.get() != id.generation {
            return Err(Error::Stale.into());
        }
        Ok(inode)
    }

    /// The directory that a handle means; not one that was removed.
    pub(crate) fn directory(&self, id: NodeId) -> Result<Inode, Fault> {
        let inode = self.inode(id)?;
        match inode.kind {
            FileKind::Directory => Ok(inode),
            FileKind::File => Err(Error::NotDirectory.into()),
        }
    }

    pub(crate) fn find_inode(&self, inode: u64) -> Result<Option<Inode>, Fault> {
        let key = Key::inode(inode);
        match self.tree.get(&key)? {
            None => Ok(None),
            Some(value) => Inode::check(value).map(Some).map_err(|what| self.corrupt(Structure::Inode, &key, what)),
        }
    }

    /// The inode that an entry or an inode refers to.
    pub(crate) fn referred_inode(&self, inode: u64) -> Result<Inode, Fault> {
        self.find_inode(inode)?
            .ok_or_else(|| self.corrupt(Structure::Inode, &Key::inode(inode), "is referred to but not there"))
    }

    pub(crate) fn put_inode(&mut self, inode: u64, raw: &RawInode) -> Result<(), Fault> {
        self.tree.put(&mut self.allocator, self.generation, &Key::inode(inode), raw.as_bytes())
    }

    pub(crate) fn stat(&self, id: u64, inode: &Inode) -> Stat {
        let raw = &inode.raw;
        let mut stat = Stat {
            id: NodeId { inode: id, generation: raw.generation.get() },
            kind: inode.kind,
            size: raw.size.get(),
            blocks: raw.blocks.get(),
            links: raw.links.get(),
            modified_ns: raw.modified_ns.get(),
            changed_ns: raw.changed_ns.get(),
            created_ns: raw.created_ns.get(),
        };
        if let Some((size, modified_ns)) = self.vnodes.get(&id).and_then(Vnode::pending) {
            stat.size = size;
            stat.modified_ns = modified_ns;
            stat.changed_ns = modified_ns;
        }
        stat
    }

    pub(crate) fn corrupt(&self, structure: Structure, key: &Key, what: &'static str) -> Fault {
        Fault::Error(Error::Corrupt { structure, block: self.tree.block_of(key), what })
    }

    // --- entries -------------------------------------------------------------------------------------------------

    pub(crate) fn hash(&self, name: &[u8]) -> u64 {
        hash_name(&self.hash_key, self.hash_bits, name)
    }

    pub(crate) fn find_entry(&self, directory: u64, name: &[u8]) -> Result<Option<Found>, Fault> {
        let hash = self.hash(name);
        let key = Key::entry(directory, hash);
        let Some(value) = self.tree.get(&key)? else { return Ok(None) };
        let mut found = None;
        // To the last one: a change that begins must not find a damaged one on its way.
        for entry in Entries(value) {
            let entry = entry.map_err(|what| self.corrupt(Structure::DirectoryEntry, &key, what))?;
            if entry.name == name {
                let position = key.offset | u64::from(entry.slot);
                found = Some(Found { inode: entry.inode, kind: entry.kind, position });
            }
        }
        Ok(found)
    }

    /// The value of the item with `name` added, and the position that the entry gets. There is no such name yet.
    pub(crate) fn with_entry(
        &self,
        directory: u64,
        name: &[u8],
        inode: u64,
        kind: FileKind,
    ) -> Result<(Key, Vec<u8>, u64), Fault> {
        let key = Key::entry(directory, self.hash(name));
        let mut value = self.tree.get(&key)?.map_or_else(Vec::new, <[u8]>::to_vec);
        let mut taken = 0_u32;
        for entry in Entries(&value) {
            let entry = entry.map_err(|what| self.corrupt(Structure::DirectoryEntry, &key, what))?;
            taken |= 1 << entry.slot;
        }
        let slot = taken.trailing_ones();
        if slot as usize >= MAX_COLLISIONS {
            return Err(Error::NoSpace.into());
        }
        Entry { inode, kind, slot: slot as u8, name }.encode(&mut value);
        if value.len() > MAX_VALUE {
            return Err(self.corrupt(Structure::DirectoryEntry, &key, "more entries than there are slots"));
        }
        Ok((key, value, key.offset | u64::from(slot)))
    }

    /// The value of the item at `position` without the entry there.
    pub(crate) fn without_entry(&self, directory: u64, position: u64) -> Result<(Key, Vec<u8>), Fault> {
        let key = Key::entry(directory, position);
        let mut value = Vec::new();
        for entry in Entries(self.tree.get(&key)?.unwrap_or_default()) {
            let entry = entry.map_err(|what| self.corrupt(Structure::DirectoryEntry, &key, what))?;
            if u64::from(entry.slot) != position & SLOT_MASK {
                entry.encode(&mut value);
            }
        }
        Ok((key, value))
    }

    /// Stores the value of an item of entries, or removes the item if nothing is left in it.
    pub(crate) fn put_entries(&mut self, key: &Key, value: &[u8]) -> Result<(), Fault> {
        if value.is_empty() {
            self.tree.remove(&mut self.allocator, self.generation, key).map(|_| ())
        } else {
            self.tree.put(&mut self.allocator, self.generation, key, value)
        }
    }

    /// One entry more (or fewer) in a directory.
    pub(crate) fn count_entry(&mut self, directory: u64, more: bool, now_ns: u64) -> Result<(), Fault> {
        let mut raw = self.referred_inode(directory)?.raw;
        let size = raw.size.get();
        raw.size = U64::new(if more { size.saturating_add(1) } else { size.saturating_sub(1) });
        raw.modified_ns = U64::new(now_ns);
        raw.changed_ns = U64::new(now_ns);
        self.put_inode(directory, &raw)
    }

    // --- extents -------------------------------------------------------------------------------------------------

    /// What lies at `block` of a file; of an extent the part from there on, up to `want` blocks.
    pub(crate) fn place(&self, inode: u64, block: u64, want: u64) -> Result<Placed, Fault> {
        let key = Key::extent(inode, block);
        if let Some((found, value)) = self.tree.at_or_before(&key)?
            && found.inode == inode
            && found.kind == kind::EXTENT
            // One that is damaged is no hole.
            && ExtentHead::read_from_prefix(value)
                .map_or(true, |(head, _)| block < found.offset.saturating_add(u64::from(head.blocks.get().max(1))))
        {
            let extent = self.check_extent(&found, value)?;
            let end = extent.end().min(block + want.max(1));
            return Ok(Placed::Extent(extent.part(block, end)));
        }
        let next = self.tree.at_or_after(&key)?;
        let next = next.filter(|(found, _)| found.inode == inode && found.kind == kind::EXTENT);
        Ok(Placed::Hole(next.map_or(u64::MAX, |(found, _)| found.offset)))
    }

    fn check_extent(&self, key: &Key, value: &[u8]) -> Result<FileExtent, Fault> {
        FileExtent::check(key.offset, value, &self.data).map_err(|what| self.corrupt(Structure::ExtentItem, key, what))
    }

    /// The extents that hold a block of `blocks`, in order, at most `limit` of them.
    pub(crate) fn extents(&self, inode: u64, blocks: &Range<u64>, limit: usize) -> Result<Vec<FileExtent>, Fault> {
        let mut found = Vec::new();
        // No extent crosses a multiple of its greatest length: none from before that can reach in here.
        let mut at = blocks.start - blocks.start % u64::from(EXTENT_BLOCKS);
        while found.len() < limit {
            let Some((key, value)) = self.tree.at_or_after(&Key::extent(inode, at))? else { break };
            if key.inode != inode || key.kind != kind::EXTENT || key.offset >= blocks.end {
                break;
            }
            let extent = self.check_extent(&key, value)?;
            at = extent.end();
            if extent.end() > blocks.start {
                found.push(extent);
            }
        }
        Ok(found)
    }

    /// Puts `new` in the place of what the file has in those blocks, and sets its size and time.
    pub(crate) fn replace_extents(
        &mut self,
        inode: u64,
        blocks: &Range<u64>,
        new: &[FileExtent],
        size: u64,
        now_ns: u64,
    ) -> Result<(), Fault> {
        let old = self.extents(inode, blocks, usize::MAX)?;
        let mut raw = self.referred_inode(inode)?.raw;
        self.tree.prepare(&Key::inode(inode), false)?;
        for extent in &old {
            self.tree.prepare(&Key::extent(inode, extent.start), true)?;
            if extent.end() > blocks.end {
                self.tree.prepare(&Key::extent(inode, blocks.end), false)?;
            }
        }
        for extent in new {
            self.tree.prepare(&Key::extent(inode, extent.start), false)?;
        }
        // What is put comes before what is removed: a removal may drop a node, and the way of a later key would then lead
        // to one that is not in memory.
        let mut count = raw.blocks.get();
        let mut gone = Vec::new();
        for extent in &old {
            let (from, to) = (extent.start.max(blocks.start), extent.end().min(blocks.end));
            self.freed.push((extent.physical + (from - extent.start), (to - from) as u32));
            count = count.saturating_sub(to - from);
            if extent.end() > blocks.end {
                self.put_extent(inode, &extent.part(to, extent.end()))?;
            }
            if extent.start < blocks.start {
                self.put_extent(inode, &extent.part(extent.start, from))?;
            } else if new.iter().all(|new| new.start != extent.start) {
                gone.push(extent.start);
            }
        }
        for extent in new {
            self.put_extent(inode, extent)?;
            count = count.saturating_add(extent.blocks());
        }
        raw.blocks = U64::new(count);
        raw.size = U64::new(size);
        raw.modified_ns = U64::new(now_ns);
        raw.changed_ns = U64::new(now_ns);
        self.put_inode(inode, &raw)?;
        for start in gone {
            self.tree.remove(&mut self.allocator, self.generation, &Key::extent(inode, start))?;
        }
        Ok(())
    }

    pub(super) fn put_extent(&mut self, inode: u64, extent: &FileExtent) -> Result<(), Fault> {
        self.tree.put(&mut self.allocator, self.generation, &Key::extent(inode, extent.start), &extent.encode())
    }
}

/// Where the entry of a name belongs: a keyed hash, so that a client cannot aim at collisions. The low bits are for the
/// slot, the top one stays clear so that a cursor after the last entry is a number too.
pub(crate) fn hash_name(key: &[u8; 16], bits: u8, name: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(key);
    hasher.write(name);
    let kept = if bits >= 64 { u64::MAX } else { !(u64::MAX >> bits) };
    (hasher.finish() & kept) >> 1 & !SLOT_MASK
}

/// A fresh inode.
pub(crate) fn new_inode(kind: FileKind, generation: u64, parent: u64, position: u64, now_ns: u64) -> RawInode {
    RawInode {
        kind: kind as u8,
        flags: [0; 3],
        links: U32::new(1),
        size: U64::new(0),
        generation: U64::new(generation),
        modified_ns: U64::new(now_ns),
        changed_ns: U64::new(now_ns),
        created_ns: U64::new(now_ns),
        blocks: U64::new(0),
        parent: U64::new(parent),
        position: U64::new(position),
        reserved: [0; 16],
    }
}

const _: () = assert!(EXTENT_BLOCKS == MAX_TRANSFER_BLOCKS, "an extent is written and read in one transfer");
