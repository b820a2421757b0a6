//! Taking away: unlink, rmdir, and freeing what has no name any more.
//!
//! An unlinked file is an *orphan* from the step that removes its name on: an item in the tree says so, and whatever
//! interrupts the freeing of its blocks, the next mount goes on with it. So does a long truncation.

use super::runs::Vnode;
use super::state::State;
use super::{Inner, NodeId, Volume};
use crate::device::{BLOCK_SIZE, Device};
use crate::error::{Error, Structure};
use crate::format::items::{FileExtent, FileKind, Inode, Key, ORPHANS, RawInode, kind};
use crate::tree::Fault;
use std::rc::Rc;
use zerocopy::little_endian::{U32, U64};

/// Extents that one step frees, at most: bounds the nodes that it changes.
pub(super) const BATCH: usize = 32;
/// Nodes that one such step may change.
pub(super) const BATCH_NODES: u64 = 16;

impl<D: Device> Volume<D> {
    /// Removes the name of a file. Its content lives until the last handle to it is released.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::IsDirectory`].
    pub async fn unlink(&self, directory: NodeId, name: &[u8]) -> Result<(), Error> {
        super::names::check(name)?;
        let now_ns = self.inner.environment.now_ns();
        let id = self
            .inner
            .change(12, true, |state| {
                state.directory(directory)?;
                let found = state.find_entry(directory.inode, name)?.ok_or(Error::NotFound)?;
                if found.kind == FileKind::Directory {
                    return Err(Error::IsDirectory.into());
                }
                let Inode { kind, mut raw } = state.referred_inode(found.inode)?;
                if kind != found.kind {
                    let key = Key::inode(found.inode);
                    return Err(state.corrupt(Structure::Inode, &key, "of another kind than its entry says"));
                }
                let (key, value) = state.without_entry(directory.inode, found.position)?;
                state.tree.prepare(&key, true)?;
                state.tree.prepare(&Key::inode(directory.inode), false)?;
                state.tree.prepare(&Key::inode(found.inode), false)?;
                state.prepare_orphan(found.inode)?;
                raw.links = U32::new(0);
                raw.changed_ns = U64::new(now_ns);
                state.put_inode(found.inode, &raw)?;
                state.put_orphan(found.inode)?;
                state.count_entry(directory.inode, false, now_ns)?;
                state.put_entries(&key, &value)?;
                Ok(NodeId { inode: found.inode, generation: raw.generation.get() })
            })
            .await?;
        self.inner.reap_later(id);
        Ok(())
    }

    /// Removes an empty directory. Handles to it are stale from then on.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotDirectory`], [`Error::NotEmpty`].
    pub async fn rmdir(&self, directory: NodeId, name: &[u8]) -> Result<(), Error> {
        super::names::check(name)?;
        let now_ns = self.inner.environment.now_ns();
        self.inner
            .change(12, true, |state| {
                state.directory(directory)?;
                let found = state.find_entry(directory.inode, name)?.ok_or(Error::NotFound)?;
                if found.kind != FileKind::Directory {
                    return Err(Error::NotDirectory.into());
                }
                if state.referred_inode(found.inode)?.raw.size != 0 {
                    return Err(Error::NotEmpty.into());
                }
                let (key, value) = state.without_entry(directory.inode, found.position)?;
                state.tree.prepare(&key, true)?;
                state.tree.prepare(&Key::inode(found.inode), true)?;
                state.tree.prepare(&Key::inode(directory.inode), false)?;
                state.count_entry(directory.inode, false, now_ns)?;
                state.put_entries(&key, &value)?;
                state.remove_inode(found.inode, FileKind::Directory)
            })
            .await
    }
}

impl<D: Device> Inner<D> {
    /// Frees an unlinked file now unless it is open; to the end even if the caller goes away.
    ///
    /// Nobody waits for it: between a removal and the word that it happened nothing else may happen.
    pub(super) fn reap_later(self: &Rc<Self>, id: NodeId) {
        let inner = Rc::clone(self);
        self.reaping.set(self.reaping.get() + 1);
        self.environment.spawn(Box::pin(async move {
            // What cannot be freed now is freed at the next mount: the orphan list has it.
            let _ = inner.reap_if_unlinked(id).await;
            inner.reaping.set(inner.reaping.get() - 1);
            inner.reaped.ring();
        }));
    }

    /// Waits until what was removed is freed: for whoever is about to say that there is no room. Not for a removal itself.
    pub(super) async fn settle_removals(&self) {
        while self.reaping.get() > 0 {
            self.reaped.heard().await;
        }
    }

    pub(crate) async fn reap_if_unlinked(self: &Rc<Self>, id: NodeId) -> Result<(), Error> {
        let inode = match self.with(|state| state.inode(id)).await {
            Ok(inode) => inode,
            Err(Error::Stale) => return Ok(()),
            Err(error) => return Err(error),
        };
        if inode.raw.links != 0 || self.is_open(id.inode) || inode.kind != FileKind::File {
            return Ok(());
        }
        self.free(id.inode).await
    }

    /// Frees a file without a name that nobody has open, and gives up what waits to be written of it. If somebody does so
    /// already, that is enough.
    async fn free(self: &Rc<Self>, inode: u64) -> Result<(), Error> {
        let lock = self.vnode_lock(inode);
        if lock.is_taken() {
            return Ok(());
        }
        // Who comes now, without a handle, waits and finds nothing.
        let turn = lock.enter_alone().await;
        self.drop_runs(inode).await;
        let result = self.remove_extents(inode, 0, true).await;
        drop((turn, lock));
        self.forget_vnode(inode);
        result
    }

    fn is_open(&self, inode: u64) -> bool {
        self.state.borrow().vnodes.get(&inode).is_some_and(|vnode| vnode.opens > 0)
    }

    /// Forgets what is known of a file that nobody has open or is freeing, and that has nothing to be written.
    pub(super) fn forget_vnode(&self, inode: u64) {
        let vnodes = &mut self.state.borrow_mut().vnodes;
        let is_done = |vnode: &Vnode<D::Staging>| {
            let is_locked = vnode.lock.as_ref().is_some_and(|lock| Rc::strong_count(lock) > 1);
            vnode.opens == 0 && vnode.runs.is_empty() && !is_locked
        };
        if vnodes.get(&inode).is_some_and(is_done) {
            vnodes.remove(&inode);
        }
    }

    /// Frees the blocks of an orphan from `first` on, batch by batch; the last step takes it off the list. One without a
    /// name is removed then if nobody has it open (`closed`), or else stays on the list.
    pub(super) async fn remove_extents(self: &Rc<Self>, inode: u64, first: u64, closed: bool) -> Result<(), Error> {
        loop {
            let done = self
                .change(BATCH_NODES, true, |state| {
                    let Some(found) = state.find_inode(inode)? else { return Ok(true) };
                    let gone = state.extents(inode, &(first..u64::MAX), BATCH)?;
                    let last = gone.len() < BATCH;
                    state.prepare_extents(inode, &gone)?;
                    state.prepare_orphan(inode)?;
                    state.tree.prepare(&Key::inode(inode), true)?;
                    state.put_inode_and_remove_extents(inode, found.raw, &gone, first)?;
                    let named = found.raw.links != 0;
                    if last && (named || closed) {
                        state.remove_orphan(inode)?;
                        if !named {
                            state.remove_inode(inode, found.kind)?;
                        }
                    }
                    Ok(last)
                })
                .await?;
            if done {
                return Ok(());
            }
        }
    }

    /// Goes on with what was interrupted: frees what the list of orphans names.
    pub(super) async fn reap_orphans(self: &Rc<Self>) -> Result<(), Error> {
        let mut from = 0;
        loop {
            let orphan = self
                .with(|state| {
                    let key = Key::orphan(from);
                    let Some((key, _)) = state.tree.at_or_after(&key)? else { return Ok(None) };
                    if key.inode != ORPHANS || key.kind != kind::ORPHAN {
                        return Ok(None);
                    }
                    let found = state.find_inode(key.offset)?.ok_or_else(|| {
                        state.corrupt(Structure::OrphanList, &key, "names an inode that is not there")
                    })?;
                    let first = match found.raw.links.get() {
                        0 => 0,
                        _ => found.raw.size.get().div_ceil(BLOCK_SIZE as u64),
                    };
                    Ok(Some((key.offset, first, found.raw.links.get() == 0)))
                })
                .await?;
            let Some((inode, first, unlinked)) = orphan else { return Ok(()) };
            from = inode + 1;
            if unlinked && self.is_open(inode) {
                // Its last handle frees it.
                continue;
            }
            if unlinked {
                self.free(inode).await?;
            } else {
                self.remove_extents(inode, first, true).await?;
            }
        }
    }
}

impl<S> State<S> {
    pub(super) fn prepare_orphan(&self, inode: u64) -> Result<(), Fault> {
        self.tree.prepare(&Key::orphan(inode), true)
    }

    pub(super) fn put_orphan(&mut self, inode: u64) -> Result<(), Fault> {
        self.tree.put(&mut self.allocator, self.generation, &Key::orphan(inode), &[])
    }

    pub(super) fn is_orphan(&self, inode: u64) -> Result<bool, Fault> {
        Ok(self.tree.get(&Key::orphan(inode))?.is_some())
    }

    fn remove_orphan(&mut self, inode: u64) -> Result<(), Fault> {
        self.tree.remove(&mut self.allocator, self.generation, &Key::orphan(inode)).map(|_| ())
    }

    pub(super) fn prepare_extents(&self, inode: u64, extents: &[FileExtent]) -> Result<(), Fault> {
        self.tree.prepare(&Key::inode(inode), false)?;
        for extent in extents {
            self.tree.prepare(&Key::extent(inode, extent.start), true)?;
        }
        Ok(())
    }

    /// Frees what these extents have from block `first` on.
    pub(super) fn put_inode_and_remove_extents(
        &mut self,
        inode: u64,
        mut raw: RawInode,
        extents: &[FileExtent],
        first: u64,
    ) -> Result<(), Fault> {
        let mut gone = 0;
        for extent in extents {
            let from = extent.start.max(first);
            gone += extent.end() - from;
            self.freed.push((extent.physical + (from - extent.start), (extent.end() - from) as u32));
            if extent.start < first {
                self.put_extent(inode, &extent.part(extent.start, from))?;
            }
        }
        raw.blocks = U64::new(raw.blocks.get().saturating_sub(gone));
        self.put_inode(inode, &raw)?;
        for extent in extents.iter().filter(|extent| extent.start >= first) {
            self.tree.remove(&mut self.allocator, self.generation, &Key::extent(inode, extent.start))?;
        }
        Ok(())
    }

    pub(super) fn remove_inode(&mut self, inode: u64, kind: FileKind) -> Result<(), Fault> {
        match kind {
            FileKind::File => self.files = self.files.saturating_sub(1),
            FileKind::Directory => self.directories = self.directories.saturating_sub(1),
        }
        self.tree.remove(&mut self.allocator, self.generation, &Key::inode(inode)).map(|_| ())
    }
}
