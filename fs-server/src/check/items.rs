//! The items of the tree, in the order of their keys: an inode, then its entries or its extents.

use super::Checker;
use super::blocks::Clash;
use super::data::DataBlock;
use super::names::Names;
use super::walk::{Cursor, Leaf, Walk};
use crate::device::{BLOCK_SIZE, Device};
use crate::error::{Error, Structure};
use crate::format::items::{
    Entries, FIRST_INODE, FileExtent, FileKind, Inode, Key, MAX_COLLISIONS, ORPHANS, ROOT, RawInode, SLOT_MASK, kind,
};
use crate::format::pack::Pack;
use crate::format::{MAX_FILE_SIZE, Pointer};
use crate::report::Progress;
use std::collections::VecDeque;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Orphans that are kept at once.
const KEPT_ORPHANS: usize = 1024;

/// What the walk counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) last_inode: u64,
    /// Part of the tree could not be read.
    pub(super) incomplete: bool,
}

/// The inode whose items are passing by.
struct Current {
    inode: u64,
    /// Block of the leaf with its item.
    block: u64,
    /// None if there is no good inode item.
    known: Option<(FileKind, RawInode)>,
    entries: u64,
    data_blocks: u64,
    /// First block of the file after its last extent.
    end: u64,
    orphan: bool,
}

/// Where the walk is.
struct Items {
    totals: Totals,
    current: Option<Current>,
    orphans: Orphans,
    names: Names,
    data: Vec<DataBlock>,
}

impl<D: Device> Checker<'_, D> {
    /// Verifies the tree and everything below it.
    pub(super) async fn check_tree(
        &mut self,
        pack: &Pack,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Totals, Error> {
        let root = pack.head.root;
        let mut walk = Walk::new(root);
        let mut items = Items {
            totals: Totals::default(),
            current: None,
            orphans: Orphans::new(root),
            names: Names::new(self.superblock.hash_key),
            data: Vec::new(),
        };
        while let Some(leaf) = walk.next(self, progress).await? {
            for index in 0..leaf.node.count() {
                self.check_item(&mut items, &leaf, index).await?;
                self.gather(&mut items.data, progress).await?;
            }
        }
        self.finish_inode(&mut items);
        self.verify_data(&mut items.data, progress).await?;
        while let Some(orphan) = items.orphans.pop_below(self, u64::MAX).await? {
            self.lost_orphan(orphan);
        }
        items.totals.incomplete = walk.incomplete;
        if !walk.incomplete {
            self.check_names(&items.names, root, items.totals.directories).await?;
        }
        Ok(items.totals)
    }

    async fn check_item(&mut self, items: &mut Items, leaf: &Leaf, index: usize) -> Result<(), Error> {
        let (key, value) = (leaf.node.key(index), leaf.node.value(index));
        if key.inode == ORPHANS && key.kind == kind::ORPHAN {
            if !value.is_empty() {
                self.problem(Structure::OrphanList, leaf.block, "an orphan with content");
            }
            items.orphans.push(key.offset);
            return Ok(());
        }
        if key.inode < FIRST_INODE && key.inode != ROOT {
            self.problem(Structure::TreeNode, leaf.block, format!("an item of the reserved inode {}", key.inode));
            return Ok(());
        }
        if items.current.as_ref().is_none_or(|current| current.inode != key.inode) {
            self.finish_inode(items);
            while let Some(orphan) = items.orphans.pop_below(self, key.inode).await? {
                self.lost_orphan(orphan);
            }
            let orphan = items.orphans.pop_equal(self, key.inode).await?;
            items.totals.last_inode = items.totals.last_inode.max(key.inode);
            let known = self.begin_inode(items, leaf, &key, value, orphan);
            let (inode, block) = (key.inode, leaf.block);
            items.current = Some(Current { inode, block, known, entries: 0, data_blocks: 0, end: 0, orphan });
            if key.kind == kind::INODE {
                return Ok(());
            }
        }
        let Some(current) = &mut items.current else { return Ok(()) };
        match (key.kind, current.known.map(|(kind, _)| kind)) {
            (kind::ENTRY, Some(FileKind::Directory) | None) => {
                let directory = current.known.is_some();
                current.entries += self.check_entries(&mut items.names, leaf, &key, value, directory);
            }
            (kind::EXTENT, Some(FileKind::File) | None) => {
                self.check_extent(current, &mut items.data, leaf, &key, value);
            }
            (kind::INODE, _) => self.problem(Structure::Inode, leaf.block, format!("a second one of {}", key.inode)),
            (kind::ENTRY, _) => {
                let what = format!("belongs to inode {}, which is no directory", key.inode);
                self.problem(Structure::DirectoryEntry, leaf.block, what);
            }
            (kind::EXTENT, _) => {
                let what = format!("belongs to inode {}, which is no file", key.inode);
                self.problem(Structure::ExtentItem, leaf.block, what);
            }
            (other, _) => {
                let what = format!("an item of the unknown kind {other} of inode {}", key.inode);
                self.problem(Structure::TreeNode, leaf.block, what);
            }
        }
        Ok(())
    }

    /// Checks an inode by itself.
    fn begin_inode(
        &mut self,
        items: &mut Items,
        leaf: &Leaf,
        key: &Key,
        value: &[u8],
        orphan: bool,
    ) -> Option<(FileKind, RawInode)> {
        let inode = key.inode;
        let mut problem = |what: &str| self.problem(Structure::Inode, leaf.block, format!("inode {inode} {what}"));
        if key.kind != kind::INODE {
            problem("is not there, and has items");
            return None;
        }
        if key.offset != 0 {
            problem("has an impossible key");
            return None;
        }
        let found = match Inode::check(value) {
            Ok(found) => found,
            Err(what) => {
                self.problem(Structure::Inode, leaf.block, format!("{what} (inode {inode})"));
                return None;
            }
        };
        let raw = found.raw;
        if raw.flags != [0; 3] || raw.reserved != [0; 16] {
            problem("has content where only features that are not in use have any");
        }
        match found.kind {
            FileKind::File => items.totals.files += 1,
            FileKind::Directory => items.totals.directories += 1,
        }
        match (found.kind, raw.links.get(), orphan) {
            (FileKind::Directory, 0, _) => problem("is a directory without a link"),
            (FileKind::Directory, _, true) => problem("is a directory on the list of orphans"),
            (FileKind::File, 0, false) => problem("has no link and is not on the list of orphans"),
            _ => {}
        }
        if inode == ROOT {
            let root = (found.kind, raw.generation, raw.parent.get(), raw.position.get());
            if root != (FileKind::Directory, self.superblock.created_ns, ROOT, 0) {
                self.problem(Structure::Inode, leaf.block, "the root is not what it must be");
            }
        } else if raw.links != 0 {
            items.names.add_inode(inode, found.kind as u8, raw.parent.get(), raw.position.get());
        }
        Some((found.kind, raw))
    }

    /// Checks what is known of an inode once all its items have passed.
    fn finish_inode(&mut self, items: &mut Items) {
        let Some(current) = items.current.take() else { return };
        let Some((kind, raw)) = current.known else { return };
        let inode = current.inode;
        let mut problem = |what: String| self.problem(Structure::Inode, current.block, format!("inode {inode} {what}"));
        if kind == FileKind::Directory && raw.size != current.entries {
            problem(format!("counts {} entries, there are {}", raw.size, current.entries));
        }
        if raw.blocks != current.data_blocks {
            problem(format!("counts {} blocks, there are {}", raw.blocks, current.data_blocks));
        }
        if kind == FileKind::File && current.end > raw.size.get().div_ceil(BLOCK) && !current.orphan {
            problem("has blocks after its end and is not on the list of orphans".to_owned());
        }
    }

    /// Checks the entries of one item; returns how many there are.
    fn check_entries(&mut self, names: &mut Names, leaf: &Leaf, key: &Key, value: &[u8], directory: bool) -> u64 {
        let mut problem = |what: String| {
            self.report.add(Structure::DirectoryEntry, leaf.block, format!("{what} (in the directory {})", key.inode));
        };
        if key.offset & SLOT_MASK != 0 || value.is_empty() {
            problem("an item that cannot be".to_owned());
        }
        let mut seen: Vec<(u8, &[u8])> = Vec::with_capacity(MAX_COLLISIONS);
        let mut count = 0;
        for entry in Entries(value) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(what) => {
                    problem(what.to_owned());
                    break;
                }
            };
            let hash = crate::volume::hash_name(&self.superblock.hash_key, self.superblock.name_hash_bits, entry.name);
            if hash != key.offset {
                problem(format!("'{}' is where its hash does not lead", entry.name.escape_ascii()));
            }
            if seen.iter().any(|&(slot, name)| slot == entry.slot || name == entry.name) {
                problem(format!("'{}' has its slot or its name twice", entry.name.escape_ascii()));
            }
            // The slots are sixteen: more entries repeat one, and need not be remembered.
            if seen.len() < MAX_COLLISIONS {
                seen.push((entry.slot, entry.name));
            }
            count += 1;
            if directory {
                names.add_entry(entry.inode, entry.kind as u8, key.inode, key.offset | u64::from(entry.slot));
            }
        }
        count
    }

    fn check_extent(&mut self, current: &mut Current, data: &mut Vec<DataBlock>, leaf: &Leaf, key: &Key, value: &[u8]) {
        let inode = key.inode;
        let area = self.superblock.data.get()..self.superblock.data_end();
        let extent = match FileExtent::check(key.offset, value, &area) {
            Ok(extent) if extent.end() <= MAX_FILE_SIZE / BLOCK => extent,
            Ok(_) => {
                self.problem(Structure::ExtentItem, leaf.block, format!("beyond the largest file (inode {inode})"));
                return;
            }
            Err(what) => {
                self.problem(Structure::ExtentItem, leaf.block, format!("{what} (inode {inode})"));
                return;
            }
        };
        let mut problem = |what: &str| {
            let what = format!("{what} (block {} of inode {inode})", extent.start);
            self.report.add(Structure::ExtentItem, leaf.block, what);
        };
        if extent.start < current.end {
            problem("overlaps the extent before it in its file");
        }
        if extent.birth > self.generation {
            problem("newer than the checkpoint");
        }
        current.end = current.end.max(extent.end());
        current.data_blocks += extent.blocks();
        match self.blocks.claim(extent.physical, extent.blocks()) {
            Ok(()) => {}
            Err(Clash::Free(at)) => {
                let what =
                    format!("free, though block {} of inode {inode} lies there", extent.start + at - extent.physical);
                self.report.add(Structure::Bitmap, at, what);
            }
            Err(Clash::Twice(at)) => {
                problem(&format!("shares block {at} with something else"));
                return;
            }
        }
        let size = current.known.map_or(u64::MAX, |(_, raw)| raw.size.get());
        for (index, &crc) in extent.crcs.iter().enumerate() {
            let block = extent.start + index as u64;
            // Blocks after the end are on their way out; nobody reads them.
            let bytes = if block * BLOCK >= size { BLOCK } else { (size - block * BLOCK).min(BLOCK) };
            data.push(DataBlock { physical: extent.physical + index as u64, crc, inode, block, bytes: bytes as usize });
        }
    }

    fn lost_orphan(&mut self, orphan: u64) {
        self.problem(Structure::OrphanList, 0, format!("names inode {orphan}, which is not there"));
    }
}

/// The list of orphans, beside the walk that comes to the inodes in the same order. Its items are before those of all
/// inodes; what does not fit in memory is read again when it is needed.
struct Orphans {
    cursor: Cursor,
    kept: VecDeque<u64>,
    last: u64,
    /// There are more after the last that is kept.
    more: bool,
}

impl Orphans {
    fn new(root: Pointer) -> Self {
        Self { cursor: Cursor::new(root), kept: VecDeque::new(), last: 0, more: false }
    }

    fn push(&mut self, orphan: u64) {
        if self.kept.len() < KEPT_ORPHANS && !self.more {
            self.kept.push_back(orphan);
            self.last = orphan;
        } else {
            self.more = true;
        }
    }

    async fn first<D: Device>(&mut self, checker: &Checker<'_, D>) -> Result<Option<u64>, Error> {
        if self.kept.is_empty() && self.more {
            self.more = false;
            let Some(next) = self.last.checked_add(1) else { return Ok(None) };
            self.cursor.seek(checker, &Key::orphan(next)).await?;
            while let Some((key, ..)) = self.cursor.next(checker).await? {
                // On a tree whose keys are out of order this ends too: what is kept rises.
                if key.inode != ORPHANS || key.kind != kind::ORPHAN || key.offset <= self.last || self.more {
                    break;
                }
                self.push(key.offset);
            }
        }
        Ok(self.kept.front().copied())
    }

    async fn pop_below<D: Device>(&mut self, checker: &Checker<'_, D>, inode: u64) -> Result<Option<u64>, Error> {
        let found = self.first(checker).await?.filter(|&first| first < inode);
        if found.is_some() {
            self.kept.pop_front();
        }
        Ok(found)
    }

    async fn pop_equal<D: Device>(&mut self, checker: &Checker<'_, D>, inode: u64) -> Result<bool, Error> {
        let found = self.first(checker).await? == Some(inode);
        if found {
            self.kept.pop_front();
        }
        Ok(found)
    }
}
