//! Changes of a volume's structures on its device, with every checksum made again: only what they say is wrong then.

use fs_server::device::{BLOCK_SIZE, Device, crc32c};
use fs_server::format::items::{Key, RawInode};
use fs_server::format::node::Node;
use fs_server::format::pack::Pack;
use fs_server::format::superblock::Superblock;
use fs_server::format::{NODE_SIZE, Pointer};
use fs_server::simulated::SimulatedDevice;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

pub struct Surgeon<'a> {
    pub device: &'a SimulatedDevice,
    pub superblock: Superblock,
    pub pack: Pack,
    /// Which of the two slots has the newest pack.
    pub slot: usize,
}

impl<'a> Surgeon<'a> {
    pub fn new(device: &'a SimulatedDevice) -> Self {
        let superblock = Superblock::check(&device.block(0), 0).expect("a whole superblock");
        let packs = [0, 1].map(|slot| Pack::check(&read(device, superblock.packs[slot][0].get(), 1), &superblock).ok());
        let generation = |slot: usize| packs[slot].as_ref().map(|pack: &Pack| pack.head.generation.get());
        let slot = usize::from(generation(1) > generation(0));
        let [a, b] = packs;
        let pack = if slot == 0 { a } else { b }.expect("a whole pack");
        Self { device, superblock, pack, slot }
    }

    /// Writes the superblock, both copies.
    pub fn put_superblock(&mut self) {
        self.superblock.seal();
        for block in [0, self.device.blocks() - 1] {
            self.device.overwrite(block, self.superblock.as_bytes());
        }
    }

    /// Writes the pack, both copies.
    pub fn put_pack(&self) {
        for copy in self.superblock.packs[self.slot] {
            self.device.overwrite(copy.get(), &self.pack.encode());
        }
    }

    pub fn node(&self, pointer: &Pointer) -> Node {
        let bytes = read(self.device, pointer.primary(), 4);
        Node::check(|into| into.copy_from_slice(&bytes), pointer, &self.superblock.uuid).expect("a whole node")
    }

    /// The way to the leaf of a key: each node's pointer, and which item of it leads on (or is at or after the key).
    pub fn path(&self, key: &Key) -> Vec<(Pointer, usize)> {
        let mut path = Vec::new();
        let mut pointer = self.pack.head.root;
        loop {
            let node = self.node(&pointer);
            if pointer.level == 0 {
                path.push((pointer, node.search(key).unwrap_or_else(|index| index)));
                return path;
            }
            let index = node.child_index(key);
            path.push((pointer, index));
            pointer = node.pointer(index);
        }
    }

    /// Changes the node at `depth` of the way to `key`, and makes all checksums above it again.
    pub fn change_node(&mut self, key: &Key, depth: usize, change: impl FnOnce(&mut Node, usize)) {
        let path = self.path(key);
        let (pointer, index) = path[depth];
        let mut node = self.node(&pointer);
        change(&mut node, index);
        self.put_node(&path[..=depth], node);
    }

    /// Writes a node in the place of the last one of `path`.
    pub fn put_node(&mut self, path: &[(Pointer, usize)], mut node: Node) {
        let (&(old, _), above) = path.split_last().expect("a path has a node");
        let crc = node.seal(old.primary(), old.generation.get(), &self.superblock.uuid);
        for address in old.address.iter().filter(|&&address| address != 0) {
            self.device.overwrite(address.get(), &node.bytes()[..]);
        }
        self.put_pointer(above, &Pointer { crc: U32::new(crc), ..old });
    }

    /// Puts a pointer where `path` leads: into its last node, or the pack.
    pub fn put_pointer(&mut self, path: &[(Pointer, usize)], new: &Pointer) {
        match path.last() {
            None => {
                self.pack.head.root = *new;
                self.put_pack();
            }
            Some((parent, index)) => {
                let mut node = self.node(parent);
                node.set_pointer(*index, new);
                self.put_node(path, node);
            }
        }
    }

    /// Changes the leaf of a key.
    pub fn change_leaf(&mut self, key: &Key, change: impl FnOnce(&mut Node, usize)) {
        let depth = self.path(key).len() - 1;
        self.change_node(key, depth, change);
    }

    /// Sets or adds an item.
    pub fn put(&mut self, key: &Key, value: &[u8]) {
        self.change_leaf(key, |node, index| {
            if index < node.count() && node.key(index) == *key {
                node.remove(index);
            }
            node.insert(index, key, value);
        });
    }

    pub fn remove(&mut self, key: &Key) {
        self.change_leaf(key, |node, index| {
            assert_eq!(node.key(index), *key, "it is there");
            node.remove(index);
        });
    }

    /// The first item at or after a key, within one leaf.
    pub fn get(&self, key: &Key) -> (Key, Vec<u8>) {
        let (pointer, index) = *self.path(key).last().expect("a path has a leaf");
        let node = self.node(&pointer);
        (node.key(index), node.value(index).to_vec())
    }

    pub fn change_inode(&mut self, inode: u64, change: impl FnOnce(&mut RawInode)) {
        let (key, value) = self.get(&Key::inode(inode));
        assert_eq!(key, Key::inode(inode), "it is there");
        let mut raw = RawInode::read_from_bytes(&value).expect("an inode's length");
        change(&mut raw);
        self.put(&key, raw.as_bytes());
    }

    /// Marks blocks used or free, in the bitmap and in all counts of them.
    pub fn mark(&mut self, block: u64, blocks: u64, used: bool) {
        let group = (block / 32768) as usize;
        let entry = &mut self.pack.table[group];
        let at = self.superblock.bitmap_block(group as u32, entry.slot);
        let mut bytes = self.device.block(at);
        for block in block..block + blocks {
            let (byte, bit) = ((block % 32768) as usize / 8, 1 << (block % 8));
            bytes[byte] = if used { bytes[byte] | bit } else { bytes[byte] & !bit };
        }
        let free: u32 = bytes.iter().map(|byte| byte.count_zeros()).sum();
        let places: u32 = bytes.iter().map(|byte| u32::from(byte & 15 == 0) + u32::from(byte & 0xf0 == 0)).sum();
        let before = entry.free.get();
        entry.free = U32::new(free);
        entry.free_nodes = U32::new(places);
        entry.crc = U32::new(crc32c(&bytes));
        self.pack.head.free_blocks += u64::from(free);
        self.pack.head.free_blocks -= u64::from(before);
        self.device.overwrite(at, &bytes);
        self.put_pack();
    }
}

pub fn read(device: &SimulatedDevice, block: u64, blocks: u64) -> Vec<u8> {
    (block..block + blocks).flat_map(|block| device.block(block)).collect()
}

const _: () = assert!(NODE_SIZE == 4 * BLOCK_SIZE);
