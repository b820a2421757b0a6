//! `check` finds and names each kind of damage. Every checksum is made again after the damage, unless it is the damage.

mod support;

use fs_server::format::items::{Entries, Entry, ExtentHead, Key, MAX_COLLISIONS, RawInode};
use fs_server::format::node::Node;
use fs_server::format::superblock::Superblock;
use fs_server::simulated::{Behaviour, SimulatedDevice, SimulatedEnvironment};
use fs_server::{FileKind, FormatOptions, Report, Structure};
use std::rc::Rc;
use support::surgery::Surgeon;
use support::{Disk, format};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

const BLOCKS: u64 = 2048;

/// A volume with `/file` (two extents with a hole between), `/other` (5000 bytes), `/directory/below/deep`, and more
/// files than one leaf holds; and the inodes of the first three.
struct Patient {
    environment: Rc<SimulatedEnvironment>,
    device: SimulatedDevice,
    file: u64,
    other: u64,
    directory: u64,
    below: u64,
}

impl Patient {
    fn new() -> Self {
        Self::with(FormatOptions { node_copies: 2, name_hash_bits: 64 })
    }

    fn with(options: FormatOptions) -> Self {
        let environment = SimulatedEnvironment::new(5);
        let device = SimulatedDevice::new(BLOCKS, 5, Behaviour::default());
        let volume = format(&environment, &device, options);
        let [file, other, directory, below] = environment.run(fill(&volume));
        drop(volume);
        environment.crash();
        Self { environment, device, file, other, directory, below }
    }

    fn surgeon(&self) -> Surgeon<'_> {
        Surgeon::new(&self.device)
    }

    fn check(&self) -> Report {
        self.environment.run(fs_server::check(&self.device, &mut |_| ())).unwrap()
    }

    /// Checks, and expects that this problem is found.
    #[track_caller]
    fn expect(&self, structure: Structure, what: &str) -> Report {
        let report = self.check();
        let found = report.problems.iter().any(|problem| problem.structure == structure && problem.what.contains(what));
        assert!(found, "no {structure} with '{what}' in {:#?}", report.lines());
        assert!(!report.is_clean());
        report
    }

    /// As [`expect`](Self::expect), and nothing else is found.
    #[track_caller]
    fn expect_only(&self, structure: Structure, what: &str) -> Report {
        let report = self.expect(structure, what);
        assert_eq!(report.problem_count, 1, "{:#?}", report.lines());
        report
    }
}

async fn fill(volume: &Disk) -> [u64; 4] {
    let root = volume.root();
    let file = volume.create(root, b"file").await.unwrap().id;
    volume.write(file, 0, vec![1; 9000].as_slice()).await.unwrap();
    volume.write(file, 3 << 20, vec![2; 8192].as_slice()).await.unwrap();
    let other = volume.create(root, b"other").await.unwrap().id;
    volume.write(other, 0, vec![3; 5000].as_slice()).await.unwrap();
    let directory = volume.mkdir(root, b"directory").await.unwrap().id;
    let below = volume.mkdir(directory, b"below").await.unwrap().id;
    volume.create(below, b"deep").await.unwrap();
    for index in 0..200 {
        volume.create(root, format!("one-of-many-{index}").as_bytes()).await.unwrap();
    }
    volume.sync().await.unwrap();
    // Once more, so that both packs count.
    volume.create(root, b"last").await.unwrap();
    volume.sync().await.unwrap();
    [file.inode, other.inode, directory.inode, below.inode]
}

/// The entry of a name, with its item.
fn entry(surgeon: &Surgeon<'_>, inode: u64) -> (Key, Vec<u8>) {
    let (_, value) = surgeon.get(&Key::inode(inode));
    let raw = RawInode::read_from_bytes(&value).unwrap();
    surgeon.get(&Key::entry(raw.parent.get(), raw.position.get()))
}

fn change_entry(surgeon: &mut Surgeon<'_>, inode: u64, change: impl FnOnce(&mut Entry<'_>)) {
    let (key, value) = entry(surgeon, inode);
    let mut changed = Entries(&value).next().unwrap().unwrap();
    change(&mut changed);
    let mut bytes = Vec::new();
    changed.encode(&mut bytes);
    surgeon.put(&key, &bytes);
}

fn change_extent(surgeon: &mut Surgeon<'_>, inode: u64, block: u64, change: impl FnOnce(&mut ExtentHead)) {
    let (key, mut value) = surgeon.get(&Key::extent(inode, block));
    assert_eq!(key, Key::extent(inode, block));
    let (mut head, _) = ExtentHead::read_from_prefix(&value).unwrap();
    change(&mut head);
    value[..size_of::<ExtentHead>()].copy_from_slice(head.as_bytes());
    surgeon.put(&key, &value);
}

fn physical(surgeon: &Surgeon<'_>, inode: u64) -> u64 {
    ExtentHead::read_from_prefix(&surgeon.get(&Key::extent(inode, 0)).1).unwrap().0.physical.get()
}

#[test]
fn a_whole_volume_is_clean_and_counted() {
    for node_copies in [1, 2] {
        let patient = Patient::with(FormatOptions { node_copies, name_hash_bits: 64 });
        let mut seen = Vec::new();
        let report = patient.environment.run(fs_server::check(&patient.device, &mut |at| seen.push(at))).unwrap();
        assert!(report.is_clean(), "{:#?}", report.lines());
        assert_eq!((report.files, report.directories, report.data_blocks), (204, 3, 3 + 2 + 2));
        let surgeon = patient.surgeon();
        assert_eq!(report.used_blocks, BLOCKS - surgeon.pack.head.free_blocks.get());
        assert!(report.nodes > 3);
        let superblock = &surgeon.superblock;
        let fixed = 2 + 4 * u64::from(superblock.pack_blocks.get()) + 1 + superblock.zero_blocks.get();
        let (reads, ..) = patient.device.counts();
        assert!(reads >= report.checked_blocks);
        assert_eq!(report.checked_blocks, fixed + report.nodes * 4 * u64::from(node_copies) + report.data_blocks);
        let last = seen.last().unwrap();
        assert_eq!((last.checked_blocks, last.total_blocks), (report.checked_blocks, report.checked_blocks));
        assert!(seen.is_sorted_by_key(|at| at.checked_blocks));
    }
}

#[test]
fn either_superblock_is_missed() {
    for block in [0, BLOCKS - 1] {
        let patient = Patient::new();
        patient.device.flip(block, 100, 4);
        let report = patient.expect_only(Structure::Superblock, "checksum");
        assert_eq!((report.problems[0].block, report.damaged_copies), (block, 1));
    }
}

#[test]
fn superblocks_that_differ_are_told() {
    let patient = Patient::new();
    let mut copy = Superblock::check(&patient.device.block(0), 0).unwrap();
    copy.hash_key[3] ^= 1;
    copy.seal();
    patient.device.overwrite(BLOCKS - 1, copy.as_bytes());
    patient.expect_only(Structure::Superblock, "differs");
}

#[test]
fn either_copy_of_the_newest_pack_is_missed() {
    for copy in 0..2 {
        let patient = Patient::new();
        let surgeon = patient.surgeon();
        let block = surgeon.superblock.packs[surgeon.slot][copy].get();
        patient.device.flip(block, 600, 1);
        let report = patient.expect_only(Structure::CheckpointPack, "checksum");
        assert_eq!((report.problems[0].block, report.damaged_copies), (block, 1));

        patient.device.overwrite(block, &patient.device.block(surgeon.superblock.packs[1 - surgeon.slot][copy].get()));
        patient.expect_only(Structure::CheckpointPack, "older than its twin");
    }
}

#[test]
fn no_pack_at_all_is_told_for_each() {
    let patient = Patient::new();
    for block in patient.surgeon().superblock.packs.as_flattened() {
        patient.device.flip(block.get(), 600, 1);
    }
    assert_eq!(patient.expect(Structure::CheckpointPack, "no other pack counts").problem_count, 4);
}

#[test]
fn wrong_counters_of_the_pack_are_found() {
    type Change = fn(&mut Surgeon<'_>);
    let cases: [(Change, &str); 6] = [
        (|surgeon| surgeon.pack.head.files += 1, "counts 205 files, there are 204"),
        (|surgeon| surgeon.pack.head.directories -= 1, "counts 2 directories, there are 3"),
        (|surgeon| surgeon.pack.head.free_blocks += 3, "free blocks"),
        (|surgeon| surgeon.pack.head.next_inode = U64::new(40), "would deal out inode 40"),
        (|surgeon| surgeon.pack.head.reserved[7] = 1, "features"),
        (|surgeon| surgeon.pack.head.log_offset = U64::new(1), "features"),
    ];
    for (change, what) in cases {
        let patient = Patient::new();
        let mut surgeon = patient.surgeon();
        change(&mut surgeon);
        surgeon.put_pack();
        patient.expect_only(Structure::CheckpointPack, what);
    }
}

#[test]
fn a_bitmap_of_another_checksum_is_found() {
    let patient = Patient::new();
    let surgeon = patient.surgeon();
    let block = surgeon.superblock.bitmap_block(0, surgeon.pack.table[0].slot);
    patient.device.flip(block, 4000, 1);
    assert_eq!(patient.expect_only(Structure::Bitmap, "checksum").problems[0].block, block);
}

#[test]
fn a_leaked_block_is_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let block = (surgeon.superblock.data.get()..).find(|&block| patient.device.block(block) == [0; 4096]).unwrap();
    surgeon.mark(block, 2, true);
    let report = patient.expect_only(Structure::Bitmap, "2 blocks from here on are marked used and belong to nothing");
    assert_eq!((report.problems[0].block, report.leaked_blocks), (block, 2));
}

#[test]
fn a_block_in_use_that_is_marked_free_is_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let data = physical(&surgeon, patient.file);
    surgeon.mark(data + 1, 1, false);
    let report = patient.expect_only(Structure::Bitmap, "free, though block 1 of inode");
    assert_eq!(report.problems[0].block, data + 1);

    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let node = surgeon.pack.head.root.address[1].get();
    surgeon.mark(node, 4, false);
    patient.expect_only(Structure::Bitmap, "free, though the node");
}

#[test]
fn a_bitmap_that_frees_fixed_blocks_is_found() {
    let patient = Patient::new();
    patient.surgeon().mark(0, 1, false);
    patient.expect_only(Structure::Bitmap, "fixed use");
}

#[test]
fn wrong_counts_of_a_group_are_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    surgeon.pack.table[0].free_nodes -= 1;
    surgeon.put_pack();
    patient.expect_only(Structure::Bitmap, "its group counts");
}

#[test]
fn the_extent_of_zeros_is_checked() {
    let patient = Patient::new();
    let block = patient.surgeon().superblock.zeros.get() + 3;
    patient.device.flip(block, 9, 1);
    assert_eq!(patient.expect_only(Structure::ZeroExtent, "not zero").problems[0].block, block);
}

#[test]
fn either_copy_of_a_node_is_missed() {
    for copy in 0..2 {
        let patient = Patient::new();
        let surgeon = patient.surgeon();
        let (leaf, _) = *surgeon.path(&Key::inode(patient.other)).last().unwrap();
        patient.device.flip(leaf.address[copy].get() + 2, 100, 1);
        let report = patient.expect_only(Structure::TreeNode, "checksum");
        assert_eq!((report.problems[0].block, report.damaged_copies), (leaf.address[copy].get(), 1));
    }
}

#[test]
fn a_node_without_a_good_copy_is_found() {
    let patient = Patient::with(FormatOptions { node_copies: 1, name_hash_bits: 64 });
    let surgeon = patient.surgeon();
    let (leaf, _) = *surgeon.path(&Key::inode(patient.other)).last().unwrap();
    patient.device.flip(leaf.primary() + 3, 100, 1);
    // What lies below is not guessed at: no leaks, no missing names.
    let report = patient.expect(Structure::TreeNode, "checksum");
    assert_eq!((report.damaged_copies, report.leaked_blocks), (0, 0));
    assert!(report.problems.iter().any(|problem| problem.block == leaf.primary()));
}

#[test]
fn impossible_pointers_are_found() {
    type Change = fn(&mut fs_server::format::Pointer);
    let cases: [(Change, &str); 6] = [
        (|pointer| pointer.address[1] = U64::new(0), "another number of copies"),
        (|pointer| pointer.address[0] += 1, "lies where no node can"),
        (|pointer| pointer.address[1] = U64::new(4), "lies where no node can"),
        (|pointer| pointer.generation += 9, "newer than what refers to it"),
        (|pointer| pointer.reserved[1] = 1, "reserved"),
        (|pointer| pointer.address[1] = pointer.address[0], "shares block"),
    ];
    for (change, what) in cases {
        let patient = Patient::new();
        let mut surgeon = patient.surgeon();
        let path = surgeon.path(&Key::inode(patient.other));
        let (&(mut pointer, _), above) = path.split_last().unwrap();
        change(&mut pointer);
        surgeon.put_pointer(above, &pointer);
        patient.expect(Structure::TreeNode, what);
    }
}

#[test]
fn a_node_of_a_wrong_level_is_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let key = Key::inode(patient.other);
    let path = surgeon.path(&key);
    let mut pointer = path[1].0;
    pointer.level = 3;
    surgeon.put_pointer(&path[..1], &pointer);
    patient.expect(Structure::TreeNode, "no pointer where one belongs");
}

#[test]
fn a_node_that_is_another_one_is_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let path = surgeon.path(&Key::inode(patient.other));
    let (pointer, _) = *path.last().unwrap();
    let mut node = surgeon.node(&pointer);
    // Written for another place: a misdirected write, with its checksum.
    let crc = node.seal(pointer.primary() + 4, pointer.generation.get(), &surgeon.superblock.uuid);
    for address in pointer.address {
        patient.device.overwrite(address.get(), &node.bytes()[..]);
    }
    surgeon.put_pointer(&path[..path.len() - 1], &fs_server::format::Pointer { crc: U32::new(crc), ..pointer });
    patient.expect(Structure::TreeNode, "another node than the one that was meant");
}

#[test]
fn keys_out_of_order_are_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    surgeon.change_leaf(&Key::inode(patient.other), |node, index| node.set_key(index, &Key::inode(1 << 40)));
    patient.expect(Structure::TreeNode, "keys out of order");
}

#[test]
fn keys_outside_their_bounds_are_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let path = surgeon.path(&Key::inode(u64::MAX));
    let (last, _) = *path.last().unwrap();
    let first = surgeon.node(&last).key(0);
    // The last leaf begins with a key that belongs into the one before it.
    let before = Key { inode: first.inode - 1, kind: 255, offset: 0 };
    surgeon.change_leaf(&first, |node, _| node.insert(0, &before, &[]));
    patient.expect(Structure::TreeNode, "outside the bounds");
}

#[test]
fn items_that_cannot_be_are_found() {
    let patient = Patient::new();
    patient.surgeon().put(&Key { inode: patient.file, kind: 200, offset: 0 }, &[]);
    patient.expect_only(Structure::TreeNode, "unknown kind 200");

    let patient = Patient::new();
    patient.surgeon().put(&Key::inode(5), &[]);
    patient.expect_only(Structure::TreeNode, "reserved inode 5");

    let patient = Patient::new();
    patient.surgeon().put(&Key { inode: patient.file, kind: 0, offset: 7 }, &[]);
    patient.expect_only(Structure::Inode, "a second one");
}

#[test]
fn damaged_inodes_are_found() {
    type Change = fn(&mut RawInode);
    let cases: [(Change, &str); 8] = [
        (|raw| raw.kind = 7, "unknown kind"),
        (|raw| raw.links = U32::new(2), "more than one link"),
        (|raw| raw.size = U64::new(1 << 50), "beyond the largest"),
        (|raw| raw.blocks += 1, "counts 6 blocks, there are 5"),
        (|raw| raw.flags[1] = 1, "features"),
        (|raw| raw.reserved[3] = 1, "features"),
        (|raw| raw.size = U64::new(4096), "blocks after its end"),
        (|raw| raw.links = U32::new(0), "not on the list of orphans"),
    ];
    for (change, what) in cases {
        let patient = Patient::new();
        patient.surgeon().change_inode(patient.file, change);
        patient.expect(Structure::Inode, what);
    }
}

#[test]
fn damaged_directories_are_found() {
    let patient = Patient::new();
    patient.surgeon().change_inode(patient.directory, |raw| raw.size += 1);
    patient.expect_only(Structure::Inode, "counts 2 entries, there are 1");

    let patient = Patient::new();
    patient.surgeon().change_inode(patient.directory, |raw| raw.links = U32::new(0));
    patient.expect(Structure::Inode, "directory without a link");

    let patient = Patient::new();
    patient.surgeon().change_inode(2, |raw| raw.generation += 1);
    patient.expect_only(Structure::Inode, "the root is not what it must be");
}

#[test]
fn an_inode_that_is_not_there_is_found() {
    let patient = Patient::new();
    patient.surgeon().remove(&Key::inode(patient.other));
    let report = patient.expect(Structure::DirectoryEntry, "which is not there");
    assert!(report.lines().iter().any(|line| line.contains("is not there, and has items")), "{:#?}", report.lines());
}

#[test]
fn an_inode_without_an_entry_is_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let (key, _) = entry(&surgeon, patient.other);
    surgeon.remove(&key);
    surgeon.change_inode(2, |raw| raw.size -= 1);
    patient.expect_only(Structure::Inode, "has 1 links, and 0 entries name it");
}

#[test]
fn an_inode_with_two_entries_is_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    // The entry of one file comes to name the other.
    change_entry(&mut surgeon, patient.other, |entry| entry.inode = patient.file);
    let report = patient.expect(Structure::Inode, "has 1 links, and 2 entries name it");
    assert!(report.lines().iter().any(|line| line.contains("has 1 links, and 0 entries")), "{:#?}", report.lines());
}

#[test]
fn an_entry_of_another_kind_is_found() {
    let patient = Patient::new();
    change_entry(&mut patient.surgeon(), patient.other, |entry| entry.kind = FileKind::Directory);
    patient.expect_only(Structure::DirectoryEntry, "another kind");
}

#[test]
fn an_entry_that_names_the_root_is_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    change_entry(&mut surgeon, patient.below, |entry| entry.inode = 2);
    patient.expect(Structure::DirectoryEntry, "names the root");
}

#[test]
fn an_inode_with_another_parent_is_found() {
    let patient = Patient::new();
    patient.surgeon().change_inode(patient.other, |raw| raw.parent = U64::new(patient.directory));
    patient.expect_only(Structure::Inode, "says that its entry is in directory");

    let patient = Patient::new();
    patient.surgeon().change_inode(patient.other, |raw| raw.position += 1);
    patient.expect_only(Structure::Inode, "says that its entry is in directory");
}

#[test]
fn a_circle_of_directories_is_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    // `directory` moves below `below`, which is below `directory`; all counts agree.
    let (key, value) = entry(&surgeon, patient.directory);
    surgeon.remove(&key);
    let moved = Key { inode: patient.below, ..key };
    surgeon.put(&moved, &value);
    surgeon.change_inode(patient.directory, |raw| raw.parent = U64::new(patient.below));
    surgeon.change_inode(2, |raw| raw.size -= 1);
    surgeon.change_inode(patient.below, |raw| raw.size += 1);
    patient.expect_only(Structure::DirectoryEntry, "2 directories do not hang from the root");
}

#[test]
fn damaged_entries_are_found() {
    let patient = Patient::new();
    change_entry(&mut patient.surgeon(), patient.other, |entry| entry.name = b"another name");
    patient.expect_only(Structure::DirectoryEntry, "where its hash does not lead");

    let patient = Patient::new();
    change_entry(&mut patient.surgeon(), patient.other, |entry| entry.name = b"a/b");
    patient.expect(Structure::DirectoryEntry, "impossible name");

    let patient = Patient::new();
    change_entry(&mut patient.surgeon(), patient.other, |entry| entry.slot = MAX_COLLISIONS as u8);
    patient.expect(Structure::DirectoryEntry, "impossible slot");

    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let (key, value) = entry(&surgeon, patient.other);
    surgeon.put(&key, &[&value[..], &value[..]].concat());
    patient.expect(Structure::DirectoryEntry, "its slot or its name twice");

    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let (key, value) = entry(&surgeon, patient.other);
    surgeon.put(&Key { inode: patient.file, ..key }, &value);
    patient.expect_only(Structure::DirectoryEntry, "which is no directory");
}

#[test]
fn damaged_extents_are_found() {
    type Change = fn(&mut ExtentHead);
    let cases: [(Change, &str); 5] = [
        (|head| head.blocks += 1, "wrong length"),
        (|head| head.flags = U32::new(1), "wrong length"),
        (|head| head.physical = U64::new(1), "outside the data blocks"),
        (|head| head.physical = U64::new(BLOCKS - 1), "outside the data blocks"),
        (|head| head.birth += 100, "newer than the checkpoint"),
    ];
    for (change, what) in cases {
        let patient = Patient::new();
        change_extent(&mut patient.surgeon(), patient.file, 0, change);
        patient.expect(Structure::ExtentItem, what);
    }
}

#[test]
fn extents_that_share_blocks_are_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let theirs = physical(&surgeon, patient.file);
    change_extent(&mut surgeon, patient.other, 0, |head| head.physical = U64::new(theirs));
    patient.expect(Structure::ExtentItem, "shares block");

    // With a node.
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let root = surgeon.pack.head.root.primary();
    change_extent(&mut surgeon, patient.other, 0, |head| head.physical = U64::new(root));
    patient.expect(Structure::ExtentItem, "shares block");
}

#[test]
fn extents_at_wrong_places_of_their_file_are_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let (_, value) = surgeon.get(&Key::extent(patient.other, 0));
    surgeon.put(&Key::extent(patient.file, 1), &value);
    surgeon.remove(&Key::extent(patient.other, 0));
    patient.expect(Structure::ExtentItem, "overlaps the extent before it");

    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let (_, value) = surgeon.get(&Key::extent(patient.other, 0));
    surgeon.put(&Key::extent(patient.other, 255), &value);
    patient.expect(Structure::ExtentItem, "impossible place");

    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let (_, value) = surgeon.get(&Key::extent(patient.other, 0));
    surgeon.put(&Key::extent(patient.other, 1 << 28), &value);
    patient.expect(Structure::ExtentItem, "beyond the largest file");

    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let (_, value) = surgeon.get(&Key::extent(patient.other, 0));
    surgeon.put(&Key::extent(patient.directory, 0), &value);
    patient.expect(Structure::ExtentItem, "which is no file");
}

#[test]
fn damaged_data_is_found() {
    let patient = Patient::new();
    let block = physical(&patient.surgeon(), patient.file) + 1;
    patient.device.flip(block, 77, 128);
    let report = patient.expect_only(Structure::Data, "checksum (block 1 of inode");
    assert_eq!(report.problems[0].block, block);
}

#[test]
fn content_after_the_end_of_a_file_is_found() {
    let patient = Patient::new();
    // The end moves back, and what was there stays.
    patient.surgeon().change_inode(patient.other, |raw| raw.size -= 10);
    patient.expect_only(Structure::Data, "not zero after the end");
}

#[test]
fn a_damaged_list_of_orphans_is_found() {
    let patient = Patient::new();
    patient.surgeon().put(&Key::orphan(9999), &[]);
    patient.expect_only(Structure::OrphanList, "names inode 9999, which is not there");

    let patient = Patient::new();
    patient.surgeon().put(&Key::orphan(patient.directory), &[]);
    patient.expect_only(Structure::Inode, "is a directory on the list of orphans");

    let patient = Patient::new();
    patient.surgeon().put(&Key::orphan(patient.file), &[1]);
    patient.expect_only(Structure::OrphanList, "an orphan with content");
}

#[test]
fn unlinked_files_that_are_open_are_no_problem_however_many() {
    let environment = SimulatedEnvironment::new(6);
    let device = SimulatedDevice::new(16_384, 6, Behaviour::default());
    let volume = format(&environment, &device, FormatOptions::default());
    environment.run(async {
        let root = volume.root();
        for index in 0..3000 {
            let name = format!("{index}");
            let id = volume.create(root, name.as_bytes()).await.unwrap().id;
            volume.hold(id);
            volume.unlink(root, name.as_bytes()).await.unwrap();
        }
        let report = volume.check(&mut |_| ()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.lines());
        assert_eq!(report.files, 3000);
    });
    // One of the last is not there any more.
    environment.crash();
    let mut surgeon = Surgeon::new(&device);
    surgeon.remove(&Key::inode(16 + 2900));
    surgeon.pack.head.files -= 1;
    surgeon.put_pack();
    let report = environment.run(fs_server::check(&device, &mut |_| ())).unwrap();
    assert_eq!(report.lines(), ["orphan list in block 0: names inode 2916, which is not there"]);
}

#[test]
fn a_volume_is_checked_while_it_is_changed() {
    let environment = SimulatedEnvironment::new(7);
    let device = SimulatedDevice::new(16_384, 7, Behaviour { yields: true, ..Behaviour::default() });
    let volume = format(&environment, &device, FormatOptions::default());
    environment.run(fill(&volume));
    environment.run(async {
        for index in 0..8000 {
            let file = volume.create(volume.root(), format!("kept-{index}").as_bytes()).await.unwrap().id;
            if index % 100 == 0 {
                volume.write(file, 0, [7; 5000].as_slice()).await.unwrap();
            }
        }
    });
    // A tenth of the volume is replaced again and again, with checkpoints, while the checks go on.
    let writer = volume.clone();
    fs_server::device::Environment::spawn(
        &*environment,
        Box::pin(async move {
            let root = writer.root();
            let file = writer.create(root, b"changing").await.unwrap().id;
            for round in 0_u64.. {
                // That the volume is full is no fault: what is freed stays until the check ends.
                let _ = writer.write(file, round % 7 * 100_000, vec![round as u8; 400_000].as_slice()).await;
                let _ = writer.create(root, format!("round {}", round % 50).as_bytes()).await;
                let _ = writer.unlink(root, format!("round {}", (round + 25) % 50).as_bytes()).await;
                let _ = writer.sync().await;
            }
        }),
    );
    let mut later = 0;
    for _ in 0..10 {
        let report = environment.run(volume.check(&mut |_| ())).unwrap();
        assert!(report.is_clean(), "{:#?}", report.lines());
        later += volume.statfs().generation - report.generation;
    }
    assert!(later > 30, "only {later} checkpoints were made while the volume was checked");
}

#[test]
fn a_report_is_bounded() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let first = (surgeon.superblock.data.get()..).find(|&block| patient.device.block(block) == [0; 4096]).unwrap();
    let free: Vec<u64> = (first..BLOCKS - 8).filter(|&block| patient.device.block(block) == [0; 4096]).collect();
    for block in free.iter().step_by(2).take(300) {
        surgeon.mark(*block, 1, true);
    }
    let report = patient.check();
    assert_eq!(report.problems.len(), Report::MAX_PROBLEMS);
    assert!(report.problem_count > Report::MAX_PROBLEMS as u64);
    assert!(report.lines().iter().any(|line| line.contains("more problems")));
}

#[test]
fn an_inner_node_without_children_is_found() {
    let patient = Patient::new();
    let mut surgeon = patient.surgeon();
    let root = surgeon.pack.head.root;
    let node = Node::new(root.level);
    surgeon.put_node(&[(root, 0)], node);
    patient.expect(Structure::TreeNode, "inner node without children");
}
