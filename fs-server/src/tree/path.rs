//! Ways through the tree: from the root down to a leaf, and on to the next.

use super::{Fault, Missing, TEMPORARY, Tree, lost};
use crate::format::items::Key;
use crate::format::node::{Bounds, Node};
use crate::format::{MAX_LEVELS, Pointer};
use std::rc::Rc;

/// The nodes from the root to a leaf, each with the index of the child that is next.
#[derive(Clone, Copy)]
pub(super) struct Path {
    pub(super) length: usize,
    pub(super) steps: [(u64, usize); MAX_LEVELS],
}

impl Tree {
    /// The node that `pointer` means, which lies within `bounds`.
    pub(super) fn node(&self, pointer: &Pointer, bounds: &Bounds) -> Result<&Node, Fault> {
        match self.nodes.get(&pointer.primary()) {
            // Another generation at the same address is a node that was freed there: as good as none. So is one that a
            // crafted volume refers to from two places: when it is read for the second, it is found to be wrong there.
            Some(cached)
                if cached.generation == pointer.generation.get()
                    && cached.node.level() == pointer.level
                    && cached.node.check_bounds(bounds).is_ok() =>
            {
                cached.referenced.set(true);
                Ok(&cached.node)
            }
            _ => Err(Fault::Node(Box::new(Missing { pointer: *pointer, bounds: *bounds }))),
        }
    }

    pub(super) fn descend(&self, key: &Key) -> Result<Path, Fault> {
        let mut path = Path { length: 0, steps: [(0, 0); MAX_LEVELS] };
        let (mut pointer, mut bounds) = (self.root, Bounds::ALL);
        loop {
            let node = self.node(&pointer, &bounds)?;
            let index = if pointer.level == 0 { 0 } else { node.child_index(key) };
            path.steps[path.length] = (pointer.primary(), index);
            path.length += 1;
            if pointer.level == 0 {
                return Ok(path);
            }
            bounds = node.child_bounds(index, &bounds);
            pointer = node.pointer(index);
        }
    }

    /// Bounds of the node at `depth` of a path.
    pub(super) fn bounds(&self, path: &Path, depth: usize) -> Result<Bounds, Fault> {
        let mut bounds = Bounds::ALL;
        for above in 0..depth {
            bounds = self.step(path, above)?.child_bounds(path.steps[above].1, &bounds);
        }
        Ok(bounds)
    }

    pub(super) fn step(&self, path: &Path, depth: usize) -> Result<&Node, Fault> {
        let primary = path.steps[depth].0;
        self.nodes.get(&primary).map(|cached| &*cached.node).ok_or_else(|| lost(primary))
    }

    pub(super) fn step_mut(&mut self, path: &Path, depth: usize) -> Result<&mut Node, Fault> {
        self.dirty_mut(path.steps[depth].0)
    }

    pub(super) fn dirty_mut(&mut self, primary: u64) -> Result<&mut Node, Fault> {
        debug_assert!(primary & TEMPORARY != 0, "only a dirty node is changed");
        self.nodes.get_mut(&primary).map(|cached| Rc::make_mut(&mut cached.node)).ok_or_else(|| lost(primary))
    }

    pub(super) fn move_right(&self, path: &mut Path) -> Result<bool, Fault> {
        self.move_to_neighbour(path, |index, count| (index + 1 < count).then_some(index + 1), |_| 0)
    }

    pub(super) fn move_left(&self, path: &mut Path) -> Result<bool, Fault> {
        self.move_to_neighbour(path, |index, _| index.checked_sub(1), |node| node.count().saturating_sub(1))
    }

    fn move_to_neighbour(
        &self,
        path: &mut Path,
        next: impl Fn(usize, usize) -> Option<usize>,
        entry: impl Fn(&Node) -> usize,
    ) -> Result<bool, Fault> {
        for depth in (0..path.length - 1).rev() {
            let node = self.step(path, depth)?;
            let Some(index) = next(path.steps[depth].1, node.count()) else { continue };
            path.steps[depth].1 = index;
            let mut bounds = self.bounds(path, depth)?;
            for below in depth + 1..path.length {
                let (above, index) = (self.step(path, below - 1)?, path.steps[below - 1].1);
                bounds = above.child_bounds(index, &bounds);
                let pointer = above.pointer(index);
                let node = self.node(&pointer, &bounds)?;
                path.steps[below] = (pointer.primary(), if pointer.level == 0 { 0 } else { entry(node) });
            }
            return Ok(true);
        }
        Ok(false)
    }
}
