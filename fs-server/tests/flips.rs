//! Each byte of each metadata block of a small volume is flipped in turn: a mount and a full read give the same content or
//! an error that names the structure; `check` reports every flip in what the volume refers to. Of data blocks and of what
//! nothing refers to, some bytes.

mod support;

use fs_server::format::NODE_BLOCKS;
use fs_server::format::items::{ExtentHead, kind};
use fs_server::simulated::{Behaviour, Random, SimulatedDevice, SimulatedEnvironment};
use fs_server::{Error, FormatOptions, Structure};
use std::rc::Rc;
use support::surgery::Surgeon;
use support::{Disk, Model, format, mount, snapshot};
use zerocopy::FromBytes;

const BLOCKS: u64 = 512;

struct Subject {
    environment: Rc<SimulatedEnvironment>,
    device: SimulatedDevice,
    content: Model,
    node_copies: u8,
}

/// What a flip must do to a mount and a full read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    /// Nothing: another copy is there, or nobody looks there in order to read.
    Same,
    /// An error that names this structure at this block.
    Named(Structure, u64),
    /// One of both: not every block of it is needed.
    SameOrNamed(Structure, u64),
}

async fn fill(volume: &Disk, names: u8) {
    let root = volume.root();
    let directory = volume.mkdir(root, b"directory").await.unwrap().id;
    let below = volume.mkdir(directory, b"below").await.unwrap().id;
    for index in 0..names {
        let name = [b'A' + index; 255];
        let file = volume.create(if index % 2 == 0 { below } else { root }, &name).await.unwrap().id;
        if index % 15 == 0 {
            volume.write(file, u64::from(index) * 1000, vec![index; 3000].as_slice()).await.unwrap();
        }
    }
    // Extents of one block, holes between them, and one large hole.
    let file = volume.create(below, b"holes").await.unwrap().id;
    for index in 0..10_u64 {
        volume.write(file, index * 8192, vec![index as u8 + 1; 4096].as_slice()).await.unwrap();
    }
    volume.truncate(file, 100_000).await.unwrap();
    let file = volume.create(directory, b"large").await.unwrap().id;
    volume.write(file, 100, support::pattern(20_000, 3).as_slice()).await.unwrap();
    volume.sync().await.unwrap();
    volume.create(root, b"last").await.unwrap();
    volume.sync().await.unwrap();
}

impl Subject {
    /// With 45 names the tree has two levels, with 12 one.
    fn new(node_copies: u8, names: u8) -> Self {
        let environment = SimulatedEnvironment::new(9);
        let device = SimulatedDevice::new(BLOCKS, 9, Behaviour::default());
        let volume = format(&environment, &device, FormatOptions { node_copies, name_hash_bits: 64 });
        environment.run(fill(&volume, names));
        let content = environment.run(snapshot(&volume, volume.root())).unwrap();
        drop(volume);
        environment.crash();
        Self { environment, device, content, node_copies }
    }

    fn mount_and_read(&self, device: &SimulatedDevice) -> Result<Model, Error> {
        let volume = mount(&self.environment, device)?;
        let content = self.environment.run(snapshot(&volume, volume.root()));
        drop(volume);
        self.environment.crash();
        content
    }

    /// Flips one byte, and looks at what follows. Mounting may write, so it gets a device of its own.
    #[track_caller]
    fn flip(&self, block: u64, byte: usize, bits: u8, effect: Effect, reported: Option<(Structure, u64)>) {
        let device = self.device.copy();
        device.flip(block, byte, bits);
        let context = || format!("block {block}, byte {byte}, bits {bits:#x}, {} copies", self.node_copies);

        let report = self.environment.run(fs_server::check(&device, &mut |_| ())).unwrap();
        match reported {
            None => assert!(report.is_clean(), "{}: {:#?}", context(), report.lines()),
            Some((structure, at)) => {
                let told = |problem: &fs_server::Problem| (problem.structure, problem.block) == (structure, at);
                assert!(report.problems.iter().any(told), "{}: {:#?}", context(), report.lines());
                assert!(!report.is_clean());
            }
        }

        let named = |expected: (Structure, u64), error: &Error| match error {
            Error::Corrupt { structure, block, .. } => (*structure, *block) == expected,
            _ => false,
        };
        match (self.mount_and_read(&device), effect) {
            (Ok(content), Effect::Same | Effect::SameOrNamed(..)) => {
                assert!(content == self.content, "{}: wrong content", context());
            }
            (Err(error), Effect::Named(structure, at) | Effect::SameOrNamed(structure, at))
                if named((structure, at), &error) => {}
            (result, _) => panic!("{}: expected {effect:?}, got {:?}", context(), result.map(|_| "content")),
        }
    }

    /// Flips every `step`th byte of a block, each by other bits.
    fn flip_all(&self, block: u64, step: usize, effect: Effect, reported: Option<(Structure, u64)>) {
        let mut random = Random::new(block);
        for byte in (0..4096).step_by(step) {
            self.flip(block, byte, (random.below(255) + 1) as u8, effect, reported);
        }
    }

    fn flip_some(&self, count: usize, block: u64, effect: Effect, reported: Option<(Structure, u64)>) {
        let mut random = Random::new(block);
        for _ in 0..count {
            let byte = random.below(4096) as usize;
            self.flip(block, byte, (random.below(255) + 1) as u8, effect, reported);
        }
    }

    fn surgeon(&self) -> Surgeon<'_> {
        Surgeon::new(&self.device)
    }

    /// Addresses of all nodes, copies apart.
    fn nodes(&self) -> Vec<[u64; 2]> {
        let surgeon = self.surgeon();
        let mut nodes = Vec::new();
        let mut left = vec![surgeon.pack.head.root];
        while let Some(pointer) = left.pop() {
            nodes.push(pointer.address.map(|address| address.get()));
            if pointer.level > 0 {
                let node = surgeon.node(&pointer);
                left.extend((0..node.count()).map(|index| node.pointer(index)));
            }
        }
        nodes
    }

    /// Blocks of data.
    fn data(&self) -> Vec<u64> {
        let surgeon = self.surgeon();
        let mut blocks = Vec::new();
        let mut left = vec![surgeon.pack.head.root];
        while let Some(pointer) = left.pop() {
            let node = surgeon.node(&pointer);
            for index in 0..node.count() {
                if pointer.level > 0 {
                    left.push(node.pointer(index));
                } else if node.key(index).kind == kind::EXTENT {
                    let (head, _) = ExtentHead::read_from_prefix(node.value(index)).unwrap();
                    blocks.extend(head.physical.get()..head.physical.get() + u64::from(head.blocks.get()));
                }
            }
        }
        blocks
    }
}

/// Flips every `step`th byte of each node.
fn flip_nodes(subject: &Subject, step: usize) {
    for addresses in subject.nodes() {
        for &address in addresses.iter().filter(|&&address| address != 0) {
            let effect = match subject.node_copies {
                2 => Effect::Same,
                _ => Effect::Named(Structure::TreeNode, address),
            };
            for block in address..address + u64::from(NODE_BLOCKS) {
                subject.flip_all(block, step, effect, Some((Structure::TreeNode, address)));
            }
        }
    }
}

#[test]
fn each_byte_of_each_node_with_one_copy() {
    let subject = Subject::new(1, 45);
    assert!(subject.nodes().len() > 2, "a root and leaves");
    flip_nodes(&subject, 1);
}

#[test]
fn each_byte_of_each_node_with_two_copies() {
    flip_nodes(&Subject::new(2, 12), 1);
    flip_nodes(&Subject::new(2, 45), 29);
}

#[test]
fn each_byte_of_both_superblocks_and_of_the_newest_pack() {
    let subject = Subject::new(1, 12);
    let surgeon = subject.surgeon();
    for block in [0, BLOCKS - 1] {
        subject.flip_all(block, 1, Effect::Same, Some((Structure::Superblock, block)));
    }
    for copy in surgeon.superblock.packs[surgeon.slot] {
        subject.flip_all(copy.get(), 1, Effect::Same, Some((Structure::CheckpointPack, copy.get())));
    }
}

#[test]
fn each_byte_of_the_bitmap() {
    let subject = Subject::new(1, 12);
    let surgeon = subject.surgeon();
    // Nobody needs it in order to read. Who writes is told.
    let block = surgeon.superblock.bitmap_block(0, surgeon.pack.table[0].slot);
    subject.flip_all(block, 1, Effect::Same, Some((Structure::Bitmap, block)));
    for byte in (0..4096).step_by(37) {
        let device = subject.device.copy();
        device.flip(block, byte, 1);
        let volume = mount(&subject.environment, &device).unwrap();
        let made = subject.environment.run(async {
            volume.create(volume.root(), b"new").await?;
            volume.sync().await
        });
        assert_eq!(made, Err(Error::Corrupt { structure: Structure::Bitmap, block, what: "checksum" }));
        drop(volume);
        subject.environment.crash();
    }
}

#[test]
fn bytes_of_data_and_of_the_extent_of_zeros() {
    let subject = Subject::new(2, 45);
    let data = subject.data();
    assert!(data.len() > 16);
    for block in data {
        let damage = (Structure::Data, block);
        subject.flip_some(40, block, Effect::Named(damage.0, damage.1), Some(damage));
    }
    let superblock = subject.surgeon().superblock;
    for block in superblock.zeros.get()..superblock.zeros.get() + superblock.zero_blocks.get() {
        let damage = (Structure::ZeroExtent, block);
        subject.flip_some(16, block, Effect::SameOrNamed(damage.0, damage.1), Some(damage));
    }
}

#[test]
fn bytes_that_nothing_refers_to_change_nothing() {
    let subject = Subject::new(2, 12);
    let surgeon = subject.surgeon();
    let superblock = &surgeon.superblock;
    // The pack that was replaced, the other slot of the bitmap, the room of the log, free blocks.
    let mut blocks: Vec<u64> = superblock.packs[1 - surgeon.slot].iter().map(|copy| copy.get()).collect();
    blocks.push(superblock.bitmap_block(0, 1 - surgeon.pack.table[0].slot));
    blocks.extend(superblock.log.get()..superblock.log.get() + superblock.log_blocks.get());
    let bitmap = subject.device.block(superblock.bitmap_block(0, surgeon.pack.table[0].slot));
    blocks.extend((0..BLOCKS).filter(|&block| bitmap[block as usize / 8] >> (block % 8) & 1 == 0));
    assert!(blocks.len() > 100);
    for block in blocks {
        subject.flip_some(6, block, Effect::Same, None);
    }
}

#[test]
fn a_pack_that_lost_a_copy_is_completed_by_the_next_mount() {
    let subject = Subject::new(2, 12);
    let surgeon = subject.surgeon();
    for copy in surgeon.superblock.packs[surgeon.slot] {
        let device = subject.device.copy();
        device.flip(copy.get(), 77, 1);
        let volume = mount(&subject.environment, &device).unwrap();
        assert_eq!(volume.damaged_copies(), 1);
        drop(volume);
        assert_eq!(device.block(copy.get()), subject.device.block(copy.get()));
    }
}
