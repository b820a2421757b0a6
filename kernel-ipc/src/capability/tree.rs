//! The derivation tree: which entry came from which, over all tables of a realm.
//!
//! * An arena of nodes with links by number: linking, unlinking and splicing are O(1).
//! * A node that is spliced out leaves its only child in its place.
//! * [`Tree::ancestors`] is the only walk that is longer than a step; derivation keeps it below
//!   [`MAX_DEPTH`](super::MAX_DEPTH).

/// No node.
pub(super) const NONE: u32 = u32::MAX;

/// Where a node's entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Number of the table in the realm.
    pub table: u32,
    /// Index in the table.
    pub index: u32,
}

/// One entry's place in the tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub place: Place,
    /// [`NONE`] for the first capability of a session.
    pub parent: u32,
    pub first_child: u32,
    pub next: u32,
    pub previous: u32,
    /// How many children.
    pub children: u32,
    /// Entries that name what this one was granted for, itself included: it and its copies. Of a copy: unused.
    pub copies: u32,
    /// Most entries that may be derived from it, at any distance; [`NONE`]: no limit.
    pub limit: u32,
    /// Entries that count towards the limit.
    pub derived: u32,
    /// Which derivation of the realm it was; 0: the node is free.
    pub born: u64,
    /// Children born up to this one are revoked.
    pub cut: u64,
    /// The last marking that has come here.
    pub seen: u32,
}

/// All nodes of a realm.
pub(super) struct Tree {
    nodes: Vec<Node>,
    free: Vec<u32>,
    births: u64,
    /// Nodes with a limit: while there are none, nobody looks for them.
    limited: u32,
    markings: u32,
}

impl Tree {
    pub fn new() -> Tree {
        Tree { nodes: Vec::new(), free: Vec::new(), births: 0, limited: 0, markings: 0 }
    }

    /// So many nodes are about to be added.
    pub fn reserve(&mut self, count: usize) {
        self.nodes.reserve(count.saturating_sub(self.free.len()));
    }

    /// Adds a node below `parent`, before its other children. `None`: every number is used.
    pub fn add(&mut self, place: Place, parent: u32, limit: u32) -> Option<u32> {
        self.births += 1;
        let node = Node {
            place,
            parent: NONE,
            first_child: NONE,
            next: NONE,
            previous: NONE,
            children: 0,
            copies: 1,
            limit,
            derived: 0,
            born: self.births,
            cut: 0,
            seen: 0,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                let id = u32::try_from(self.nodes.len()).ok().filter(|id| *id != NONE)?;
                self.nodes.push(node);
                id
            }
        };
        self.limited += u32::from(limit != NONE);
        self.link(id, parent);
        Some(id)
    }

    /// Puts a node without a parent below one.
    pub fn link(&mut self, id: u32, parent: u32) {
        if parent == NONE {
            return;
        }
        let next = self.nodes[parent as usize].first_child;
        if next != NONE {
            self.nodes[next as usize].previous = id;
        }
        let node = &mut self.nodes[id as usize];
        (node.parent, node.next, node.previous) = (parent, next, NONE);
        let parent = &mut self.nodes[parent as usize];
        parent.first_child = id;
        parent.children += 1;
        self.count(id, 1);
    }

    /// Takes out a node with at most one child, which comes into its place.
    pub fn remove(&mut self, id: u32) {
        self.count(id, -1);
        let node = self.nodes[id as usize];
        debug_assert!(node.children <= 1);
        let heir = node.first_child;
        if heir != NONE {
            let heir = &mut self.nodes[heir as usize];
            (heir.parent, heir.next, heir.previous) = (node.parent, node.next, node.previous);
        }
        let (before, after) = match heir {
            NONE => (node.next, node.previous),
            heir => (heir, heir),
        };
        if node.previous != NONE {
            self.nodes[node.previous as usize].next = before;
        } else if node.parent != NONE {
            self.nodes[node.parent as usize].first_child = before;
        }
        if node.next != NONE {
            self.nodes[node.next as usize].previous = after;
        }
        if node.parent != NONE && heir == NONE {
            self.nodes[node.parent as usize].children -= 1;
        }
        self.limited -= u32::from(node.limit != NONE);
        self.nodes[id as usize].born = 0;
        self.free.push(id);
    }

    /// Counts one entry more or less for every limit above it.
    fn count(&mut self, id: u32, change: i32) {
        if self.limited == 0 {
            return;
        }
        let mut at = self.nodes[id as usize].parent;
        while at != NONE {
            let node = &mut self.nodes[at as usize];
            node.derived = node.derived.saturating_add_signed(change);
            at = node.parent;
        }
    }

    /// From now on the node's present children, and what is below them, count as revoked.
    pub fn cut(&mut self, id: u32) {
        self.nodes[id as usize].cut = self.births;
    }

    /// The node and what it was derived from, up to the first capability of a session.
    pub fn ancestors(&self, id: u32) -> impl Iterator<Item = (u32, &Node)> {
        std::iter::successors(self.nodes.get(id as usize).map(|node| (id, node)), |(_, node)| {
            self.nodes.get(node.parent as usize).map(|parent| (node.parent, parent))
        })
    }

    pub fn get(&self, id: u32) -> &Node {
        &self.nodes[id as usize]
    }

    pub fn get_mut(&mut self, id: u32) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// A number for a marking: one that no node has [seen](Node::seen), unless 2^32 markings ago.
    pub fn next_marking(&mut self) -> u32 {
        self.markings = self.markings.wrapping_add(1).max(1);
        self.markings
    }

    /// How many nodes are used.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Whether some node has a limit.
    pub fn has_limits(&self) -> bool {
        self.limited > 0
    }
}
