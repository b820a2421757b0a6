//! Whether entries and inodes agree, in bounded memory.
//!
//! An entry (directory, position, kind → inode) and the inode that it means (inode → kind, parent, position) say the same
//! four numbers. Each entry is added to one of [`BUCKETS`] sums, each linked inode subtracted from the same one: all sums
//! are zero exactly if entries and inodes are the same set of such facts (but for a chance of 2^-64 each; the hash has the
//! volume's random key). Only where a sum is not zero the names are looked at again, one by one.
//!
//! Facts that agree still allow a circle of directories that hang from each other. So the directories are visited from the
//! root, with no other memory than where we are: the way back up is in the inode.

use super::Checker;
use super::walk::Cursor;
use crate::device::Device;
use crate::error::{Error, Structure};
use crate::format::Pointer;
use crate::format::items::{Entries, FileKind, Inode, Key, ROOT, SLOT_MASK, kind};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// Sums of facts.
pub(super) const BUCKETS: usize = 1 << 13;
/// Facts that are looked at again, at most.
pub(super) const MAX_RECORDS: usize = 1 << 15;
/// Sums whose facts are looked at again: as many as have room, one at least.
const MAX_BUCKETS: [usize; 3] = [64, 8, 1];

pub(super) struct Names {
    key: [u8; 16],
    sums: Vec<u64>,
}

/// One side's word about a name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    inode: u64,
    /// An entry says so; else the inode itself.
    entry: bool,
    kind: u8,
    directory: u64,
    position: u64,
    linked: bool,
    block: u64,
}

impl Names {
    pub(super) fn new(key: [u8; 16]) -> Self {
        Self { key, sums: vec![0; BUCKETS] }
    }

    pub(super) fn add_entry(&mut self, inode: u64, kind: u8, directory: u64, position: u64) {
        let (bucket, hash) = self.hash(inode, kind, directory, position);
        self.sums[bucket] = self.sums[bucket].wrapping_add(hash);
    }

    pub(super) fn add_inode(&mut self, inode: u64, kind: u8, directory: u64, position: u64) {
        let (bucket, hash) = self.hash(inode, kind, directory, position);
        self.sums[bucket] = self.sums[bucket].wrapping_sub(hash);
    }

    fn bucket(&self, inode: u64) -> usize {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write_u64(inode);
        hasher.finish() as usize % BUCKETS
    }

    fn hash(&self, inode: u64, kind: u8, directory: u64, position: u64) -> (usize, u64) {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        for word in [inode, u64::from(kind), directory, position] {
            hasher.write_u64(word);
        }
        (self.bucket(inode), hasher.finish())
    }
}

impl<D: Device> Checker<'_, D> {
    pub(super) async fn check_names(&mut self, names: &Names, root: Pointer, directories: u64) -> Result<(), Error> {
        let differing: Vec<usize> =
            names.sums.iter().enumerate().filter(|&(_, &sum)| sum != 0).map(|(bucket, _)| bucket).collect();
        if !differing.is_empty() {
            return self.name_differences(names, root, &differing).await;
        }
        let reached = self.visit_directories(root, directories).await?;
        if reached != directories {
            let what = format!("{} directories do not hang from the root", directories.abs_diff(reached));
            self.problem(Structure::DirectoryEntry, 0, what);
        }
        Ok(())
    }

    /// Looks at the facts of some sums again, and says which disagree.
    async fn name_differences(&mut self, names: &Names, root: Pointer, differing: &[usize]) -> Result<(), Error> {
        let before = self.report.problem_count;
        for count in MAX_BUCKETS {
            let buckets = differing.get(..count.min(differing.len())).unwrap_or(differing);
            let Some(mut records) = self.records(names, root, buckets).await? else { continue };
            // An inode comes before the entries that mean it.
            records.sort_unstable();
            for facts in records.chunk_by(|before, after| before.inode == after.inode) {
                self.compare(facts);
            }
            break;
        }
        if self.report.problem_count == before || differing.len() > MAX_BUCKETS[0] {
            self.problem(Structure::DirectoryEntry, 0, "more entries and inodes disagree than can be named");
        }
        Ok(())
    }

    /// All facts of some sums; `None` if there are more than [`MAX_RECORDS`].
    async fn records(&mut self, names: &Names, root: Pointer, buckets: &[usize]) -> Result<Option<Vec<Record>>, Error> {
        let mut records: Vec<Record> = Vec::new();
        let mut cursor = Cursor::new(root);
        cursor.seek(self, &Key::inode(ROOT)).await?;
        while let Some((key, index, leaf)) = cursor.next(self).await? {
            let value = leaf.node.value(index);
            let wanted = |inode: u64| buckets.contains(&names.bucket(inode));
            let block = leaf.block;
            match key.kind {
                kind::INODE if key.inode != ROOT && wanted(key.inode) => {
                    let Ok(Inode { kind, raw }) = Inode::check(value) else { continue };
                    records.push(Record {
                        inode: key.inode,
                        entry: false,
                        kind: kind as u8,
                        directory: raw.parent.get(),
                        position: raw.position.get(),
                        linked: raw.links != 0,
                        block,
                    });
                }
                kind::ENTRY => {
                    for entry in Entries(value).flatten().filter(|entry| wanted(entry.inode)) {
                        records.push(Record {
                            inode: entry.inode,
                            entry: true,
                            kind: entry.kind as u8,
                            directory: key.inode,
                            position: key.offset | u64::from(entry.slot),
                            linked: true,
                            block,
                        });
                    }
                }
                _ => {}
            }
            if records.len() > MAX_RECORDS {
                return Ok(None);
            }
        }
        Ok(Some(records))
    }

    fn compare(&mut self, facts: &[Record]) {
        let Some(first) = facts.first() else { return };
        let inode = first.inode;
        let entries = facts.iter().filter(|record| record.entry);
        let count = entries.clone().count();
        let Some(own) = facts.iter().find(|record| !record.entry) else {
            for entry in entries {
                let what = match inode {
                    ROOT => format!("in directory {} names the root", entry.directory),
                    _ => format!("in directory {} names inode {inode}, which is not there", entry.directory),
                };
                self.problem(Structure::DirectoryEntry, entry.block, what);
            }
            return;
        };
        let links = usize::from(own.linked);
        if count != links {
            let what = format!("inode {inode} has {links} links, and {count} entries name it");
            self.problem(Structure::Inode, own.block, what);
        }
        for entry in entries {
            if entry.kind != own.kind {
                let what = format!("in directory {} says another kind than inode {inode}", entry.directory);
                self.problem(Structure::DirectoryEntry, entry.block, what);
            }
            if count == links && (entry.directory, entry.position) != (own.directory, own.position) {
                let what = format!(
                    "inode {inode} says that its entry is in directory {}, and it is in {} (or at another place there)",
                    own.directory, entry.directory
                );
                self.problem(Structure::Inode, own.block, what);
            }
        }
    }

    /// Visits the directories below the root, and returns how many there are; goes no further than `directories`.
    async fn visit_directories(&mut self, root: Pointer, directories: u64) -> Result<u64, Error> {
        let mut cursor = Cursor::new(root);
        let mut reached = 1;
        let (mut at, mut position) = (ROOT, 0);
        loop {
            if let Some((inode, _)) = self.next_directory(&mut cursor, at, position).await? {
                reached += 1;
                if reached > directories {
                    return Ok(reached);
                }
                (at, position) = (inode, 0);
                continue;
            }
            if at == ROOT {
                return Ok(reached);
            }
            let key = Key::inode(at);
            cursor.seek(self, &key).await?;
            let found = cursor.next(self).await?.filter(|(found, ..)| *found == key);
            let found = found.and_then(|(_, index, leaf)| Inode::check(leaf.node.value(index)).ok());
            let Some(Inode { raw, .. }) = found else { return Ok(reached) };
            (at, position) = (raw.parent.get(), raw.position.get().saturating_add(1));
        }
    }

    /// The first directory at or after a position of a directory, and where it is.
    async fn next_directory(
        &self,
        cursor: &mut Cursor,
        directory: u64,
        position: u64,
    ) -> Result<Option<(u64, u64)>, Error> {
        cursor.seek(self, &Key::entry(directory, position)).await?;
        while let Some((key, index, leaf)) = cursor.next(self).await? {
            if key.inode != directory || key.kind != kind::ENTRY {
                return Ok(None);
            }
            let found = Entries(leaf.node.value(index))
                .flatten()
                .filter(|entry| entry.kind == FileKind::Directory)
                .map(|entry| (key.offset | u64::from(entry.slot), entry.inode))
                .filter(|&(at, _)| at >= position)
                .min();
            if let Some((at, inode)) = found {
                return Ok(Some((inode, at)));
            }
        }
        Ok(None)
    }
}

const _: () = assert!(SLOT_MASK + 1 == crate::format::items::MAX_COLLISIONS as u64);
