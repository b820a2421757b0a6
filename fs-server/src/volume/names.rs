//! Names: looking them up, making, moving and listing them.

use super::state::new_inode;
use super::{Inner, NodeId, Stat, Volume};
use crate::device::Device;
use crate::error::{Error, Structure};
use crate::format::items::{Entries, FileKind, Key, ROOT, SLOT_MASK, check_name, kind};
use std::rc::Rc;
use zerocopy::little_endian::{U32, U64};

/// Components of a path, at most: 4096 bytes have no more.
const MAX_DEPTH: usize = 2048;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// What it means.
    pub inode: u64,
    /// What that is.
    pub kind: FileKind,
    /// The cursor at which a listing begins with this entry.
    pub position: u64,
}

/// Part of a directory's entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<DirectoryEntry>,
    /// Where to go on; `None` after the last.
    pub next: Option<u64>,
}

/// Checks a name that a caller gave.
pub(super) fn check(name: &[u8]) -> Result<(), Error> {
    check_name(name).map_err(Error::BadName)
}

impl<D: Device> Volume<D> {
    /// The object at `path` below `directory`: names with '/' between them. There is no way up: '..' is no name.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::NotFound`], [`Error::NotDirectory`].
    pub async fn lookup(&self, directory: NodeId, path: &[u8]) -> Result<Stat, Error> {
        let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
        for name in &names {
            check(name)?;
        }
        if names.len() > MAX_DEPTH {
            return Err(Error::BadName("too many components"));
        }
        // One step for the whole path: nothing moves while it is walked.
        self.inner
            .with(|state| {
                state.directory(directory)?;
                let mut at = directory.inode;
                let mut kind = FileKind::Directory;
                for name in &names {
                    if kind != FileKind::Directory {
                        return Err(Error::NotDirectory.into());
                    }
                    let found = state.find_entry(at, name)?.ok_or(Error::NotFound)?;
                    (at, kind) = (found.inode, found.kind);
                }
                let inode = state.referred_inode(at)?;
                if inode.kind != kind {
                    return Err(state.corrupt(
                        Structure::Inode,
                        &Key::inode(at),
                        "of another kind than its entry says",
                    ));
                }
                Ok(state.stat(at, &inode))
            })
            .await
    }

    /// Makes an empty file.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::BadName`], [`Error::NoSpace`].
    pub async fn create(&self, directory: NodeId, name: &[u8]) -> Result<Stat, Error> {
        self.inner.make(directory, name, FileKind::File, None).await
    }

    /// Makes an empty directory.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub async fn mkdir(&self, directory: NodeId, name: &[u8]) -> Result<Stat, Error> {
        self.inner.make(directory, name, FileKind::Directory, None).await
    }

    /// Moves an entry; with `replace`, it takes the place of a file if it is one, of an empty directory if it is one. All
    /// in one step.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Exists`], [`Error::Cycle`], [`Error::IsDirectory`], [`Error::NotDirectory`], [`Error::NotEmpty`].
    pub async fn rename(
        &self,
        from_directory: NodeId,
        from: &[u8],
        to_directory: NodeId,
        to: &[u8],
        replace: bool,
    ) -> Result<(), Error> {
        check(from)?;
        check(to)?;
        if let Some(replaced) = self.inner.rename((from_directory, from), (to_directory, to), replace).await? {
            self.inner.reap_later(replaced);
        }
        Ok(())
    }

    /// Entries of a directory from `cursor` on (0 = the first), until `max_bytes` of names or `max_entries` are reached.
    /// A cursor stays valid through any change: entries that are there all the time are listed exactly once.
    ///
    /// # Errors
    /// [`Error::NotDirectory`], [`Error::Stale`].
    pub async fn readdir(
        &self,
        directory: NodeId,
        cursor: u64,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Listing, Error> {
        self.inner
            .with(|state| {
                state.directory(directory)?;
                let mut listing = Listing { entries: Vec::new(), next: None };
                let mut bytes = 0;
                let mut at = Key::entry(directory.inode, cursor);
                let mut least_slot = (cursor & SLOT_MASK) as u8;
                loop {
                    let Some((key, value)) = state.tree.at_or_after(&at)? else { return Ok(listing) };
                    if key.inode != directory.inode || key.kind != kind::ENTRY {
                        return Ok(listing);
                    }
                    if key.offset != at.offset {
                        least_slot = 0;
                    }
                    if key.offset & SLOT_MASK != 0 || key.offset >> 63 != 0 {
                        return Err(state.corrupt(Structure::DirectoryEntry, &key, "at an impossible place"));
                    }
                    let mut entries = Vec::new();
                    for entry in Entries(value) {
                        let entry = entry.map_err(|what| state.corrupt(Structure::DirectoryEntry, &key, what))?;
                        entries.push(entry);
                    }
                    entries.sort_by_key(|entry| entry.slot);
                    for entry in entries.into_iter().filter(|entry| entry.slot >= least_slot) {
                        let full = listing.entries.len() >= max_entries || bytes + entry.name.len() > max_bytes;
                        if full && !listing.entries.is_empty() {
                            listing.next = Some(key.offset | u64::from(entry.slot));
                            return Ok(listing);
                        }
                        bytes += entry.name.len();
                        listing.entries.push(DirectoryEntry {
                            name: entry.name.to_vec(),
                            inode: entry.inode,
                            kind: entry.kind,
                            position: key.offset | u64::from(entry.slot),
                        });
                    }
                    at = Key { offset: key.offset + SLOT_MASK + 1, ..key };
                    least_slot = 0;
                }
            })
            .await
    }
}

impl<D: Device> Inner<D> {
    /// `again`: who it was and when it was made, if it is made once more.
    pub(super) async fn make(
        self: &Rc<Self>,
        directory: NodeId,
        name: &[u8],
        kind: FileKind,
        again: Option<(NodeId, u64)>,
    ) -> Result<Stat, Error> {
        check(name)?;
        let now_ns = again.map_or_else(|| self.environment.now_ns(), |(_, now_ns)| now_ns);
        let generation = again.map_or_else(|| self.environment.random(), |(node, _)| node.generation);
        self.change(12, false, |state| {
            state.directory(directory)?;
            if state.find_entry(directory.inode, name)?.is_some() {
                return Err(Error::Exists.into());
            }
            let inode = again.map_or(state.next_inode, |(node, _)| node.inode);
            if inode < state.next_inode {
                return Err(Error::Stale.into());
            }
            let (key, value, position) = state.with_entry(directory.inode, name, inode, kind)?;
            state.tree.prepare(&key, false)?;
            state.tree.prepare(&Key::inode(directory.inode), false)?;
            state.tree.prepare(&Key::inode(inode), false)?;
            state.next_inode = inode + 1;
            state.put_entries(&key, &value)?;
            let raw = new_inode(kind, generation, directory.inode, position, now_ns);
            state.put_inode(inode, &raw)?;
            state.count_entry(directory.inode, true, now_ns)?;
            match kind {
                FileKind::File => state.files += 1,
                FileKind::Directory => state.directories += 1,
            }
            let inode_value = state.referred_inode(inode)?;
            Ok(state.stat(inode, &inode_value))
        })
        .await
    }

    /// Returns the file that was replaced, if any.
    async fn rename(
        self: &Rc<Self>,
        (from_directory, from): (NodeId, &[u8]),
        (to_directory, to): (NodeId, &[u8]),
        replace: bool,
    ) -> Result<Option<NodeId>, Error> {
        let now_ns = self.environment.now_ns();
        self.change(20, true, |state| {
            state.directory(from_directory)?;
            state.directory(to_directory)?;
            let moved = state.find_entry(from_directory.inode, from)?.ok_or(Error::NotFound)?;
            let target = state.find_entry(to_directory.inode, to)?;
            if target.is_some_and(|target| target.inode == moved.inode) {
                return Ok(None);
            }
            if target.is_some() && !replace {
                return Err(Error::Exists.into());
            }
            if moved.kind == FileKind::Directory {
                let mut above = to_directory.inode;
                // A damaged volume may have a circle: it comes by a marked place again. The mark moves on now and then,
                // and so comes to be within the circle.
                let (mut mark, mut steps, mut patience) = (above, 0_u64, 1);
                loop {
                    if above == moved.inode {
                        return Err(Error::Cycle.into());
                    }
                    if above == ROOT {
                        break;
                    }
                    above = state.referred_inode(above)?.raw.parent.get();
                    if above == mark {
                        let key = Key::inode(to_directory.inode);
                        return Err(state.corrupt(Structure::Inode, &key, "its way up does not end at the root"));
                    }
                    steps += 1;
                    if steps == patience {
                        (mark, patience) = (above, 2 * patience);
                        steps = 0;
                    }
                }
            }
            let mut moved_raw = state.referred_inode(moved.inode)?.raw;
            let target_inode = target.map(|target| state.referred_inode(target.inode)).transpose()?;
            match (moved.kind, &target_inode) {
                (FileKind::File, Some(inode)) if inode.kind == FileKind::Directory => {
                    return Err(Error::IsDirectory.into());
                }
                (FileKind::Directory, Some(inode)) if inode.kind == FileKind::File => {
                    return Err(Error::NotDirectory.into());
                }
                (FileKind::Directory, Some(inode)) if inode.raw.size != 0 => return Err(Error::NotEmpty.into()),
                _ => {}
            }
            let from_key = Key::entry(from_directory.inode, moved.position);
            let to_key = Key::entry(to_directory.inode, state.hash(to));
            for (key, removing) in [(from_key, true), (to_key, true)] {
                state.tree.prepare(&key, removing)?;
            }
            for inode in [from_directory.inode, to_directory.inode, moved.inode] {
                state.tree.prepare(&Key::inode(inode), false)?;
            }
            if let Some(target) = target {
                state.tree.prepare(&Key::inode(target.inode), true)?;
                state.prepare_orphan(target.inode)?;
            }

            // The new place first, in which the replaced entry's slot is taken over; only then what is removed.
            let (to_key, value, position) = match target {
                Some(target) => {
                    let (key, mut value) = state.without_entry(to_directory.inode, target.position)?;
                    let slot = (target.position & SLOT_MASK) as u8;
                    crate::format::items::Entry { inode: moved.inode, kind: moved.kind, slot, name: to }
                        .encode(&mut value);
                    (key, value, target.position)
                }
                None => state.with_entry(to_directory.inode, to, moved.inode, moved.kind)?,
            };
            state.put_entries(&to_key, &value)?;
            moved_raw.parent = U64::new(to_directory.inode);
            moved_raw.position = U64::new(position);
            moved_raw.changed_ns = U64::new(now_ns);
            state.put_inode(moved.inode, &moved_raw)?;
            state.count_entry(from_directory.inode, false, now_ns)?;
            if target.is_none() {
                state.count_entry(to_directory.inode, true, now_ns)?;
            }
            let replaced = match (target, target_inode) {
                (Some(target), Some(inode)) if inode.kind == FileKind::File => {
                    let mut raw = inode.raw;
                    raw.links = U32::new(0);
                    raw.changed_ns = U64::new(now_ns);
                    state.put_inode(target.inode, &raw)?;
                    state.put_orphan(target.inode)?;
                    Some(NodeId { inode: target.inode, generation: raw.generation.get() })
                }
                _ => None,
            };
            let (from_key, rest) = state.without_entry(from_directory.inode, moved.position)?;
            state.put_entries(&from_key, &rest)?;
            if let (Some(target), FileKind::Directory) = (target, moved.kind) {
                state.remove_inode(target.inode, FileKind::Directory)?;
            }
            Ok(replaced)
        })
        .await
    }
}
