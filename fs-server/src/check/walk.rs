//! The way through the tree: once with every copy of every node verified, and again for those who look something up.

use super::Checker;
use super::blocks::Clash;
use crate::device::{Device, DeviceError, Extent};
use crate::error::{Error, Structure};
use crate::format::items::Key;
use crate::format::node::{Bounds, Node};
use crate::format::{MAX_LEVELS, NODE_BLOCKS, Pointer};
use crate::report::Progress;
use std::rc::Rc;

/// A node on the path to where the walk is.
struct Step {
    node: Rc<Node>,
    next: usize,
    bounds: Bounds,
}

/// A walk over all leaves in order.
pub(super) struct Walk {
    path: Vec<Step>,
    root: Option<Pointer>,
    /// Something could not be read: what lies below it is not known.
    pub(super) incomplete: bool,
}

/// A leaf that was verified.
pub(super) struct Leaf {
    pub(super) node: Rc<Node>,
    pub(super) block: u64,
}

impl Walk {
    pub(super) fn new(root: Pointer) -> Self {
        Self { path: Vec::with_capacity(MAX_LEVELS), root: Some(root), incomplete: false }
    }

    /// The next leaf. Each node is read once, whatever points to it.
    pub(super) async fn next<D: Device>(
        &mut self,
        checker: &mut Checker<'_, D>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<Leaf>, Error> {
        loop {
            let (pointer, parent, bounds) = match (self.root.take(), self.path.last_mut()) {
                (Some(root), _) => (root, None, Bounds::ALL),
                (None, None) => return Ok(None),
                (None, Some(step)) if step.next >= step.node.count() => {
                    self.path.pop();
                    continue;
                }
                (None, Some(step)) => {
                    let index = step.next;
                    step.next += 1;
                    let bounds = step.node.child_bounds(index, &step.bounds);
                    (step.node.pointer(index), Some(&step.node), bounds)
                }
            };
            let newest = parent.map_or(checker.generation, |parent| parent.generation());
            let Some(node) = checker.verify_node(&pointer, newest, progress).await? else {
                self.incomplete = true;
                continue;
            };
            let block = pointer.primary();
            if let Err(what) = node.check_bounds(&bounds) {
                checker.problem(Structure::TreeNode, block, what);
                // Nobody finds what it has.
                self.incomplete = true;
            }
            if pointer.level == 0 {
                return Ok(Some(Leaf { node, block }));
            }
            self.path.push(Step { node, next: 0, bounds });
        }
    }
}

impl<D: Device> Checker<'_, D> {
    /// Claims the places of a node and verifies all of its copies; `None` if there is no good one.
    async fn verify_node(
        &mut self,
        pointer: &Pointer,
        newest: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<Rc<Node>>, Error> {
        let block = pointer.primary();
        if let Err(what) = self.superblock.check_pointer(pointer, newest) {
            self.problem(Structure::TreeNode, block, what);
            return Ok(None);
        }
        let mut good = None;
        let mut bad = Vec::new();
        for address in pointer.addresses() {
            match self.blocks.claim(address, u64::from(NODE_BLOCKS)) {
                Ok(()) => {}
                Err(Clash::Free(at)) => {
                    self.problem(Structure::Bitmap, at, format!("free, though the node at {address} has it"));
                }
                Err(Clash::Twice(at)) => {
                    self.problem(Structure::TreeNode, address, format!("shares block {at} with something else"));
                    if address == block {
                        return Ok(None);
                    }
                    continue;
                }
            }
            match self.read_node(address, pointer).await? {
                Ok(node) => good = Some(node),
                Err(what) => bad.push((address, what)),
            }
            self.advance(u64::from(NODE_BLOCKS), progress);
        }
        for (address, what) in bad {
            match good {
                Some(_) => self.damaged_copy(Structure::TreeNode, address, &what),
                None => self.problem(Structure::TreeNode, address, what),
            }
        }
        self.report.nodes += u64::from(good.is_some());
        Ok(good.map(Rc::new))
    }

    /// The copy of a node at `address`, or what is wrong with it.
    async fn read_node(&self, address: u64, pointer: &Pointer) -> Result<Result<Node, String>, Error> {
        let mut found = Err(String::new());
        // A driver that is given up takes back what it lent: what is wrong then is right when it is read again.
        for _ in 0..2 {
            found = match self.read(address, NODE_BLOCKS).await? {
                Ok(extent) => Node::check(|bytes| extent.copy_out(0, bytes), pointer, &self.superblock.uuid)
                    .map_err(str::to_owned),
                Err(what) => Err(what),
            };
            if found.is_ok() {
                break;
            }
        }
        Ok(found)
    }

    /// Reads blocks; what the medium cannot give is said in words.
    pub(super) async fn read(&self, block: u64, count: u32) -> Result<Result<D::Extent, String>, Error> {
        match self.device.read(block, count).await {
            Ok(extent) => Ok(Ok(extent)),
            Err(DeviceError::Io { errno, .. }) => Ok(Err(format!("cannot be read (errno {errno})"))),
            Err(error) => Err(error.into()),
        }
    }

    /// Any good copy of a node.
    async fn any_copy(&self, pointer: &Pointer) -> Result<Option<Node>, Error> {
        if self.superblock.check_pointer(pointer, self.generation).is_err() {
            return Ok(None);
        }
        for address in pointer.addresses() {
            if let Ok(node) = self.read_node(address, pointer).await? {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }
}

/// A place in the tree, to look things up after it was verified. Keeps one path of nodes in memory, and reads no node
/// that it has already.
pub(super) struct Cursor {
    root: Pointer,
    path: Vec<(Pointer, Rc<Node>, usize)>,
}

impl Cursor {
    pub(super) fn new(root: Pointer) -> Self {
        Self { root, path: Vec::with_capacity(MAX_LEVELS) }
    }

    /// Goes to the first item at or after `key`. What cannot be read is passed over.
    pub(super) async fn seek<D: Device>(&mut self, checker: &Checker<'_, D>, key: &Key) -> Result<(), Error> {
        let mut pointer = self.root;
        for depth in 0..MAX_LEVELS {
            let known = self.path.get(depth).is_some_and(|(known, ..)| *known == pointer);
            if !known {
                self.path.truncate(depth);
                let Some(node) = checker.any_copy(&pointer).await? else { return Ok(()) };
                self.path.push((pointer, Rc::new(node), 0));
            }
            let Some((_, node, index)) = self.path.get_mut(depth) else { return Ok(()) };
            if pointer.level == 0 {
                *index = node.search(key).unwrap_or_else(|index| index);
                return Ok(());
            }
            *index = node.child_index(key);
            pointer = node.pointer(*index);
        }
        Ok(())
    }

    /// The item here and the leaf that it is in; moves on.
    pub(super) async fn next<D: Device>(
        &mut self,
        checker: &Checker<'_, D>,
    ) -> Result<Option<(Key, usize, Leaf)>, Error> {
        loop {
            let Some((pointer, node, index)) = self.path.last_mut() else { return Ok(None) };
            if *index >= node.count() {
                self.path.pop();
                let Some((_, _, above)) = self.path.last_mut() else { return Ok(None) };
                *above += 1;
                continue;
            }
            if pointer.level == 0 {
                let at = *index;
                *index += 1;
                let leaf = Leaf { node: Rc::clone(node), block: pointer.primary() };
                return Ok(Some((leaf.node.key(at), at, leaf)));
            }
            let child = node.pointer(*index);
            match checker.any_copy(&child).await? {
                Some(node) => self.path.push((child, Rc::new(node), 0)),
                None => *index += 1,
            }
        }
    }
}
