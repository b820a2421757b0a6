//! The tree in memory: nodes that were read and nodes that were changed.
//!
//! - Everything here is synchronous. An operation that needs a node which is not in memory ends with
//!   [`Fault::Node`]; the caller reads it and starts again. A change first looks at every path it will need
//!   ([`Tree::prepare`]), so that once it begins it does not fault.
//! - A changed node has a temporary address (bit 63 set) until [`Tree::freeze`] gives it a place on disk; its parent was
//!   changed with it, up to the root. Its old place is freed.
//! - A node is only ever seen within the bounds that its ancestors give it, whatever a volume says: no key is found where
//!   it does not belong, and no two parents share a node.
//! - Frozen nodes stay in memory until they are written, even through a checkpoint that failed.

mod path;

use crate::allocator::{Allocator, Shortage};
use crate::error::Error;
use crate::format::items::Key;
use crate::format::node::{Bounds, Node};
use crate::format::{MAX_LEVELS, NODE_BLOCKS, Pointer};
use path::Path;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

const TEMPORARY: u64 = 1 << 63;
/// A node with less in it than this is merged with a neighbour, if both fit one.
const SPARSE: usize = crate::format::node::CAPACITY / 3;
/// What one step can at most add to the root of the highest tree.
const ROOT_ROOM: usize = 2048;

/// Why an operation on the tree has to be tried again, or cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This node has to be read.
    Node(Box<Missing>),
    /// The bitmap of this group has to be read.
    Bitmap(u32),
    /// It cannot be done.
    Error(Error),
}

/// A node that is not in memory, and what must be true of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) pointer: Pointer,
    pub(crate) bounds: Bounds,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Shortage> for Fault {
    fn from(shortage: Shortage) -> Self {
        match shortage {
            Shortage::Load(group) => Self::Bitmap(group),
            Shortage::Full => Self::Error(Error::NoSpace),
        }
    }
}

/// Hash of a block address: one multiplication. Addresses are ours, nobody aims them.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

pub(crate) type AddressMap<V> = HashMap<u64, V, BuildHasherDefault<AddressHasher>>;

struct Cached {
    node: Rc<Node>,
    generation: u64,
    referenced: Cell<bool>,
}

pub(crate) struct Tree {
    nodes: AddressMap<Cached>,
    root: Pointer,
    uuid: [u8; 16],
    copies: u8,
    limit: usize,
    clock: VecDeque<u64>,
    dirty: usize,
    next_temporary: u64,
    unwritten: BTreeMap<u64, (Pointer, Rc<Node>)>,
    /// Changes made so far; a closure that faults made none.
    changes: u64,
    /// A checkpoint is writing the frozen nodes, all of which it refers to.
    writing: bool,
}

impl Tree {
    /// A tree with the root `root`; keeps up to `limit` nodes in memory.
    pub(crate) fn new(root: Pointer, uuid: [u8; 16], copies: u8, limit: usize) -> Self {
        let mut this = Self {
            nodes: AddressMap::default(),
            root,
            uuid,
            copies,
            limit,
            clock: VecDeque::new(),
            dirty: 0,
            next_temporary: TEMPORARY,
            unwritten: BTreeMap::new(),
            changes: 0,
            writing: false,
        };
        if root.is_none() {
            this.root = this.add_dirty(Node::new(0));
        }
        this
    }

    pub(crate) fn root(&self) -> Pointer {
        self.root
    }

    /// Changed nodes that have no place yet.
    pub(crate) fn dirty(&self) -> usize {
        self.dirty
    }

    /// Changes made so far.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Block of the leaf that `key` belongs to, to name what is damaged; 0 if it was not written yet.
    pub(crate) fn block_of(&self, key: &Key) -> u64 {
        let leaf = self.descend(key).map(|path| path.steps[path.length - 1].0);
        leaf.ok().filter(|primary| primary & TEMPORARY == 0).unwrap_or(0)
    }

    /// True if frozen nodes wait to be written.
    pub(crate) fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    // --- looking -------------------------------------------------------------------------------------------------

    /// Value of `key`.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<&[u8]>, Fault> {
        let (mut pointer, mut bounds) = (self.root, Bounds::ALL);
        loop {
            let node = self.node(&pointer, &bounds)?;
            if pointer.level == 0 {
                return Ok(node.search(key).ok().map(|index| node.value(index)));
            }
            let index = node.child_index(key);
            bounds = node.child_bounds(index, &bounds);
            pointer = node.pointer(index);
        }
    }

    /// The first item at or after `key`.
    pub(crate) fn at_or_after(&self, key: &Key) -> Result<Option<(Key, &[u8])>, Fault> {
        let mut path = self.descend(key)?;
        let leaf = self.step(&path, path.length - 1)?;
        let index = leaf.search(key).unwrap_or_else(|index| index);
        if index < leaf.count() {
            return Ok(Some((leaf.key(index), leaf.value(index))));
        }
        while self.move_right(&mut path)? {
            let leaf = self.step(&path, path.length - 1)?;
            if leaf.count() > 0 {
                return Ok(Some((leaf.key(0), leaf.value(0))));
            }
        }
        Ok(None)
    }

    /// The last item at or before `key`.
    pub(crate) fn at_or_before(&self, key: &Key) -> Result<Option<(Key, &[u8])>, Fault> {
        let mut path = self.descend(key)?;
        let leaf = self.step(&path, path.length - 1)?;
        let index = match leaf.search(key) {
            Ok(index) => index + 1,
            Err(index) => index,
        };
        if index > 0 {
            return Ok(Some((leaf.key(index - 1), leaf.value(index - 1))));
        }
        while self.move_left(&mut path)? {
            let leaf = self.step(&path, path.length - 1)?;
            if leaf.count() > 0 {
                let last = leaf.count() - 1;
                return Ok(Some((leaf.key(last), leaf.value(last))));
            }
        }
        Ok(None)
    }

    /// Faults until everything that a change of `key` touches is in memory. `removing`: neighbours too, if the node of
    /// the key may come to be merged.
    pub(crate) fn prepare(&self, key: &Key, removing: bool) -> Result<(), Fault> {
        let path = self.descend(key)?;
        // What a step puts may split the root. Only a crafted tree is that high.
        if usize::from(self.root.level) + 1 >= MAX_LEVELS && !self.node(&self.root, &Bounds::ALL)?.fits(ROOT_ROOM) {
            return Err(Error::NoSpace.into());
        }
        if !removing {
            return Ok(());
        }
        for depth in (1..path.length).rev() {
            if self.step(&path, depth)?.used() >= SPARSE {
                break;
            }
            let parent = self.step(&path, depth - 1)?;
            let index = path.steps[depth - 1].1;
            let neighbour = if index > 0 { index - 1 } else { index + 1 };
            if neighbour < parent.count() {
                let bounds = parent.child_bounds(neighbour, &self.bounds(&path, depth - 1)?);
                self.node(&parent.pointer(neighbour), &bounds)?;
            }
        }
        Ok(())
    }

    // --- changing ------------------------------------------------------------------------------------------------

    /// Sets the value of `key`, which was prepared.
    pub(crate) fn put(
        &mut self,
        allocator: &mut Allocator,
        generation: u64,
        key: &Key,
        value: &[u8],
    ) -> Result<(), Fault> {
        let mut path = self.descend(key)?;
        self.changes += 1;
        self.make_dirty(&mut path, allocator, generation)?;
        let leaf = path.length - 1;
        let node = self.step_mut(&path, leaf)?;
        match node.search(key) {
            Ok(index) if node.value(index).len() == value.len() => {
                node.value_mut(index).copy_from_slice(value);
                Ok(())
            }
            Ok(index) => {
                node.remove(index);
                self.insert_at(&path, leaf, index, key, value)
            }
            Err(index) => self.insert_at(&path, leaf, index, key, value),
        }
    }

    /// Removes `key`, which was prepared for removing. Says whether it was there.
    pub(crate) fn remove(&mut self, allocator: &mut Allocator, generation: u64, key: &Key) -> Result<bool, Fault> {
        let mut path = self.descend(key)?;
        let Ok(index) = self.step(&path, path.length - 1)?.search(key) else { return Ok(false) };
        self.changes += 1;
        self.make_dirty(&mut path, allocator, generation)?;
        self.step_mut(&path, path.length - 1)?.remove(index);
        for depth in (1..path.length).rev() {
            if !self.merge(&path, depth, allocator, generation)? {
                break;
            }
        }
        // A root with one child is that child.
        while self.root.level > 0 {
            let root = self.node(&self.root, &Bounds::ALL)?;
            if root.count() != 1 {
                break;
            }
            let child = root.pointer(0);
            self.drop_dirty(self.root.primary());
            self.root = child;
        }
        Ok(true)
    }

    /// Gives every changed node a place on disk, children first. After a fault it goes on where it was.
    pub(crate) fn freeze(&mut self, allocator: &mut Allocator, generation: u64) -> Result<(), Fault> {
        self.root = self.freeze_below(self.root, allocator, generation)?;
        Ok(())
    }

    /// Frozen nodes that a checkpoint now writes.
    pub(crate) fn begin_writing(&mut self) -> Vec<(Pointer, Rc<Node>)> {
        self.writing = true;
        self.unwritten.values().cloned().collect()
    }

    /// These nodes are on the disk for good; none if the checkpoint failed.
    pub(crate) fn end_writing(&mut self, written: &[(Pointer, Rc<Node>)]) {
        self.writing = false;
        for (pointer, _) in written {
            self.unwritten.remove(&pointer.primary());
        }
        self.evict();
    }

    /// Takes in a node that was read.
    pub(crate) fn add_clean(&mut self, pointer: &Pointer, node: Rc<Node>) {
        self.evict();
        let cached = Cached { node, generation: pointer.generation.get(), referenced: Cell::new(true) };
        if self.nodes.insert(pointer.primary(), cached).is_none() {
            self.clock.push_back(pointer.primary());
        }
    }

    fn make_dirty(&mut self, path: &mut Path, allocator: &mut Allocator, generation: u64) -> Result<(), Fault> {
        for depth in 0..path.length {
            let primary = path.steps[depth].0;
            if primary & TEMPORARY != 0 {
                continue;
            }
            let old = match depth {
                0 => self.root,
                _ => self.step(path, depth - 1)?.pointer(path.steps[depth - 1].1),
            };
            let cached = self.nodes.remove(&primary).ok_or_else(|| lost(primary))?;
            if !self.writing {
                // Left over from a checkpoint that failed, and superseded now.
                self.unwritten.remove(&primary);
            }
            let new = self.add_dirty_rc(cached.node);
            for address in old.address.iter().map(|address| address.get()).filter(|&address| address != 0) {
                allocator.free(address, NODE_BLOCKS, generation, &[]);
            }
            path.steps[depth].0 = new.primary();
            match depth {
                0 => self.root = new,
                _ => {
                    let index = path.steps[depth - 1].1;
                    self.step_mut(path, depth - 1)?.set_pointer(index, &new);
                }
            }
        }
        Ok(())
    }

    fn add_dirty(&mut self, node: Node) -> Pointer {
        self.add_dirty_rc(Rc::new(node))
    }

    fn add_dirty_rc(&mut self, node: Rc<Node>) -> Pointer {
        let address = self.next_temporary;
        self.next_temporary += 1;
        self.dirty += 1;
        let level = node.level();
        self.nodes.insert(address, Cached { node, generation: 0, referenced: Cell::new(true) });
        Pointer {
            address: [U64::new(address), U64::new(0)],
            generation: U64::new(0),
            crc: U32::new(0),
            level,
            reserved: [0; 3],
        }
    }

    fn drop_dirty(&mut self, primary: u64) {
        if self.nodes.remove(&primary).is_some() {
            self.dirty -= 1;
        }
    }

    /// Inserts an item at `index` of the dirty node at `depth` of `path`, splitting it if need be.
    fn insert_at(&mut self, path: &Path, depth: usize, index: usize, key: &Key, value: &[u8]) -> Result<(), Fault> {
        let node = self.step_mut(path, depth)?;
        if node.level() > 0 && index == 1 && node.key(0) >= *key {
            // The bound of the first child moved down when its left neighbour was removed. Its key is not consulted, but the
            // order of keys is.
            node.set_key(0, &Key::MIN);
        }
        if node.fits(value.len()) {
            node.insert(index, key, value);
            return Ok(());
        }
        // Keys that arrive in order fill their nodes: the new one begins an empty node, instead of two half full ones.
        let at = if index == node.count() { index } else { node.split_point(index, value.len()) };
        let mut right = Node::new(node.level());
        node.move_tail(at, &mut right);
        if index < at || (index == at && node.fits(value.len()) && at != 0 && right.count() > 0) {
            node.insert(index, key, value);
        } else {
            right.insert(index - at, key, value);
        }
        let level = node.level();
        let first = right.key(0);
        let right = self.add_dirty(right);
        if depth > 0 {
            return self.insert_at(path, depth - 1, path.steps[depth - 1].1 + 1, &first, right.as_bytes());
        }
        if usize::from(level) + 2 > MAX_LEVELS {
            return Err(Fault::Error(Error::NoSpace));
        }
        let mut root = Node::new(level + 1);
        root.insert(0, &Key::MIN, self.root.as_bytes());
        root.insert(1, &first, right.as_bytes());
        self.root = self.add_dirty(root);
        Ok(())
    }

    /// After a removal from the dirty node at `depth`: drops it if it is empty, or merges it with a neighbour that is in
    /// memory. Says whether its parent lost an item.
    fn merge(&mut self, path: &Path, depth: usize, allocator: &mut Allocator, generation: u64) -> Result<bool, Fault> {
        let (primary, parent_index) = (path.steps[depth].0, path.steps[depth - 1].1);
        let node = self.step(path, depth)?;
        if node.count() == 0 {
            self.drop_dirty(primary);
            self.step_mut(path, depth - 1)?.remove(parent_index);
            return Ok(true);
        }
        let used = node.used();
        if used >= SPARSE {
            return Ok(false);
        }
        let parent = self.step(path, depth - 1)?;
        let left_index = if parent_index > 0 { parent_index - 1 } else { parent_index };
        if left_index + 1 >= parent.count() {
            return Ok(false);
        }
        let (left, right) = (parent.pointer(left_index), parent.pointer(left_index + 1));
        let neighbour_index = if left_index == parent_index { left_index + 1 } else { left_index };
        let bounds = parent.child_bounds(neighbour_index, &self.bounds(path, depth - 1)?);
        let Ok(other) = self.node(&parent.pointer(neighbour_index), &bounds) else { return Ok(false) };
        // Some room stays, or the next insertion would split what was just merged.
        if used + other.used() > crate::format::node::CAPACITY / 4 * 3 {
            return Ok(false);
        }
        let separator = parent.key(left_index + 1);
        let mut merged_path = *path;
        merged_path.length = depth + 1;
        merged_path.steps[depth - 1].1 = left_index;
        merged_path.steps[depth].0 = left.primary();
        self.make_dirty(&mut merged_path, allocator, generation)?;
        let left_primary = merged_path.steps[depth].0;
        // The first key of an inner node is not kept up to date; its bound is the parent's.
        let mut tail = match self.nodes.remove(&right.primary()) {
            Some(cached) => cached.node,
            None => return Err(lost(right.primary())),
        };
        if right.primary() & TEMPORARY != 0 {
            self.dirty -= 1;
        } else {
            for address in right.address.iter().map(|address| address.get()).filter(|&address| address != 0) {
                allocator.free(address, NODE_BLOCKS, generation, &[]);
            }
        }
        let tail = Rc::make_mut(&mut tail);
        if right.level > 0 {
            tail.set_key(0, &separator);
        }
        tail.move_tail(0, self.dirty_mut(left_primary)?);
        self.step_mut(&merged_path, depth - 1)?.remove(left_index + 1);
        Ok(true)
    }

    fn freeze_below(&mut self, pointer: Pointer, allocator: &mut Allocator, generation: u64) -> Result<Pointer, Fault> {
        let temporary = pointer.primary();
        if temporary & TEMPORARY == 0 {
            return Ok(pointer);
        }
        let count = self.dirty_mut(temporary)?.count();
        if pointer.level > 0 {
            for index in 0..count {
                let child = self.dirty_mut(temporary)?.pointer(index);
                if child.primary() & TEMPORARY != 0 {
                    let frozen = self.freeze_below(child, allocator, generation)?;
                    self.dirty_mut(temporary)?.set_pointer(index, &frozen);
                }
            }
        }
        let first = allocator.take_node(0)?;
        let mut address = [U64::new(first), U64::new(0)];
        if self.copies > 1 {
            match allocator.take_node(1) {
                Ok(second) => address[1] = U64::new(second),
                Err(shortage) => {
                    allocator.put_back(first, NODE_BLOCKS);
                    return Err(shortage.into());
                }
            }
        }
        let uuid = self.uuid;
        let crc = self.dirty_mut(temporary)?.seal(first, generation, &uuid);
        let cached = self.nodes.remove(&temporary).ok_or_else(|| lost(temporary))?;
        self.dirty -= 1;
        let frozen = Pointer {
            address,
            generation: U64::new(generation),
            crc: U32::new(crc),
            level: pointer.level,
            reserved: [0; 3],
        };
        self.unwritten.insert(first, (frozen, Rc::clone(&cached.node)));
        self.nodes.insert(first, Cached { node: cached.node, generation, referenced: Cell::new(true) });
        self.clock.push_back(first);
        Ok(frozen)
    }

    /// Forgets clean nodes until there is room for one more. CLOCK: one that was used since the hand last passed stays.
    fn evict(&mut self) {
        if self.clock.len() > 2 * self.limit + 1024 {
            // Addresses of nodes that were changed since are still on the clock.
            self.clock = self.nodes.keys().copied().filter(|address| address & TEMPORARY == 0).collect();
        }
        let mut patience = 2 * self.clock.len();
        while self.nodes.len() >= self.limit && patience > 0 {
            patience -= 1;
            let Some(primary) = self.clock.pop_front() else { return };
            match self.nodes.get(&primary) {
                None => {}
                Some(cached) if cached.referenced.replace(false) || self.unwritten.contains_key(&primary) => {
                    self.clock.push_back(primary);
                }
                Some(_) => {
                    self.nodes.remove(&primary);
                }
            }
        }
    }
}

/// A node that a path goes through is in memory; if it is not, the tree in memory is at fault, not the disk.
fn lost(primary: u64) -> Fault {
    debug_assert!(false, "node {primary:#x} of a path is not in memory");
    Fault::Error(Error::Corrupt {
        structure: crate::error::Structure::TreeNode,
        block: primary & !TEMPORARY,
        what: "left memory while it was in use",
    })
}

#[cfg(test)]
mod tests;
