//! Random histories of a tree beside a map in memory, with what the disk would hold of it checked all the way.

use super::*;
use crate::allocator::Allocator;
use crate::format::items::Key;
use crate::format::superblock::Superblock;
use crate::simulated::Random;
use std::collections::BTreeMap;

const BLOCKS: u64 = 60_000;

struct Grove {
    tree: Tree,
    allocator: Allocator,
    generation: u64,
    model: BTreeMap<Key, Vec<u8>>,
}

impl Grove {
    fn new() -> Self {
        let superblock = Superblock::lay_out(BLOCKS, 1, 64).unwrap();
        let table = Allocator::blank_table(&superblock);
        let mut allocator = Allocator::new(&superblock, &table);
        for group in 0..table.len() as u32 {
            allocator.load(group, &[], 0).unwrap();
        }
        Self {
            tree: Tree::new(Pointer::default(), [7; 16], 1, 100_000),
            allocator,
            generation: 1,
            model: BTreeMap::new(),
        }
    }

    fn put(&mut self, key: Key, value: Vec<u8>) {
        self.tree.prepare(&key, false).unwrap();
        self.tree.put(&mut self.allocator, self.generation, &key, &value).unwrap();
        self.model.insert(key, value);
    }

    fn remove(&mut self, key: Key) {
        self.tree.prepare(&key, true).unwrap();
        let was_there = self.tree.remove(&mut self.allocator, self.generation, &key).unwrap();
        assert_eq!(was_there, self.model.remove(&key).is_some());
    }

    /// Gives every node its place, and checks each as if it were read back: its content, its order, its bounds.
    fn freeze(&mut self) {
        self.tree.freeze(&mut self.allocator, self.generation).unwrap();
        self.generation += 1;
        let mut found = Vec::new();
        if !self.model.is_empty() {
            // The one of a volume never is.
            self.check_below(self.tree.root(), Bounds::ALL, &mut found);
        }
        assert!(
            found.iter().eq(self.model.iter().map(|(key, value)| (*key, value.clone())).collect::<Vec<_>>().iter())
        );
        let written = self.tree.begin_writing();
        self.tree.end_writing(&written);
        self.allocator.release(self.generation);
    }

    fn check_below(&self, pointer: Pointer, bounds: Bounds, found: &mut Vec<(Key, Vec<u8>)>) {
        let node = self.tree.node(&pointer, &bounds).unwrap();
        let node = Node::check(|bytes| bytes.copy_from_slice(&node.bytes()[..]), &pointer, &[7; 16]).unwrap();
        node.check_bounds(&bounds).unwrap();
        for index in 0..node.count() {
            if node.level() == 0 {
                found.push((node.key(index), node.value(index).to_vec()));
                continue;
            }
            self.check_below(node.pointer(index), node.child_bounds(index, &bounds), found);
        }
    }
}

#[test]
fn a_tree_does_what_a_map_does() {
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let mut grove = Grove::new();
        // Large values make high trees of few items.
        let longest = [40, 400, 4000][seed as usize % 3];
        let mut growing = true;
        for step in 0..12_000 {
            growing = match grove.model.len() {
                0 => true,
                3000.. => false,
                _ if random.one_in(1500) => !growing,
                _ => growing,
            };
            let key = Key { inode: 16 + random.below(40), kind: 0, offset: random.below(200) };
            if random.one_in(3) == growing {
                // Ranges go at once, as when a file is removed: whole nodes come to be empty.
                let from = grove.model.range(key..).next().or(grove.model.iter().next()).map(|(&key, _)| key);
                let length = random.below(if growing { 2 } else { 30 }) as usize + 1;
                let gone: Vec<Key> = from
                    .into_iter()
                    .flat_map(|from| grove.model.range(from..).map(|(&key, _)| key))
                    .take(length)
                    .collect();
                for key in gone {
                    grove.remove(key);
                }
            } else {
                let length = if random.one_in(5) { 0 } else { random.below(longest) };
                grove.put(key, vec![step as u8; length as usize]);
            }
            if random.one_in(400) {
                grove.freeze();
            }
        }
        grove.freeze();
    }
}
