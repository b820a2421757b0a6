//! Reading: from a place of a file to held bytes.

use super::state::Placed;
use super::{Inner, NodeId, Stat, Volume};
use crate::cache::Held;
use crate::device::{BLOCK_SIZE, Device, MAX_TRANSFER_BLOCKS};
use crate::error::{Error, Structure};
use crate::format::EXTENT_BLOCKS;
use crate::format::items::{FileExtent, FileKind};
use std::rc::Rc;
use std::sync::LazyLock;

/// Checksums of blocks of zeros.
static ZERO_CRCS: LazyLock<[u32; EXTENT_BLOCKS as usize]> =
    LazyLock::new(|| [crate::device::crc32c(&[0; BLOCK_SIZE]); EXTENT_BLOCKS as usize]);
/// A read that begins this close to the end of the one before it is of a sequential reader: with several requests in
/// flight they do not arrive in order.
const NEAR: u64 = 4 << 20;
/// Files and reads below this are not worth reading ahead for.
const SMALL: u64 = 64 << 10;

impl<D: Device> Volume<D> {
    /// Up to `length` bytes of a file from `offset` on, verified and held; at least one, at most up to the end of an
    /// extent. `None` at or after the end of the file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the data or its way there is damaged; never wrong data.
    pub async fn read(&self, id: NodeId, offset: u64, length: u32) -> Result<Option<Held<D::Extent>>, Error> {
        let inner = &self.inner;
        let mut last_error = None;
        loop {
            let Some((size, length)) = inner.readable(id, offset, u64::from(length)).await? else { return Ok(None) };
            let block = offset / BLOCK_SIZE as u64;
            let skip = (offset % BLOCK_SIZE as u64) as usize;
            let want = (skip as u64 + length).div_ceil(BLOCK_SIZE as u64).min(u64::from(MAX_TRANSFER_BLOCKS));
            let sequential = inner.note_read(id, offset, offset + length, size);
            // A sequential reader will want the rest of the extent: one transfer for all of it.
            let fetch = if sequential { u64::from(EXTENT_BLOCKS) } else { want };
            let place = inner.with(|state| state.place(id.inode, block, fetch)).await?;
            let held = match &place {
                Placed::Hole(end) => {
                    let zeros = inner.superblock.zero_blocks.get();
                    let want = want.min(end - block).min(zeros) as u32;
                    let first = inner.superblock.zeros.get();
                    let crcs = ZERO_CRCS.get(..zeros as usize).unwrap_or(&ZERO_CRCS[..]);
                    inner.cache.get(&inner.device, first, want, crcs, Structure::ZeroExtent).await
                }
                Placed::Extent(extent) => {
                    let want = extent.blocks() as u32;
                    inner.cache.get(&inner.device, extent.physical, want, &extent.crcs, Structure::Data).await
                }
            };
            let held = match held {
                Ok(held) => held,
                // The file may have been changed, and the place used again, while we read it: look once more.
                Err(error) if last_error.as_ref() == Some(&error) => return Err(error),
                Err(error) => {
                    last_error = Some(error);
                    continue;
                }
            };
            if sequential {
                inner.read_ahead(id, offset + length, size);
            }
            let length = (length as usize).min(held.length - skip);
            return Ok(Some(Held { offset: held.offset + skip, length, extent: held.extent }));
        }
    }

    /// What is known about an object.
    ///
    /// # Errors
    /// It is no more, or damaged.
    pub async fn stat(&self, id: NodeId) -> Result<Stat, Error> {
        self.inner.with(|state| state.inode(id).map(|inode| state.stat(id.inode, &inode))).await
    }
}

impl<D: Device> Inner<D> {
    /// Size of the file and how many bytes can be read at `offset`, with nothing of them waiting in memory; `None` at the
    /// end.
    async fn readable(self: &Rc<Self>, id: NodeId, offset: u64, length: u64) -> Result<Option<(u64, u64)>, Error> {
        loop {
            let stat = self.with(|state| state.inode(id).map(|inode| state.stat(id.inode, &inode))).await?;
            if stat.kind != FileKind::File {
                return Err(Error::IsDirectory);
            }
            if offset >= stat.size || length == 0 {
                return Ok(None);
            }
            let mut length = length.min(stat.size - offset);
            let waiting = {
                let state = self.state.borrow();
                let block = offset / BLOCK_SIZE as u64;
                let end = (offset + length).div_ceil(BLOCK_SIZE as u64);
                let vnode = state.vnodes.get(&id.inode);
                let runs = vnode.into_iter().flat_map(|vnode| &vnode.runs);
                let mut waiting = None;
                for run in runs.filter(|run| run.first < end && block < run.end()) {
                    if run.first > block {
                        length = length.min(run.first * BLOCK_SIZE as u64 - offset);
                    } else {
                        waiting = Some(Rc::clone(run));
                    }
                }
                waiting
            };
            match waiting {
                Some(run) => self.flush_run(id.inode, &run).await?,
                None => return Ok(Some((stat.size, length))),
            }
        }
    }

    /// Notes a read; says whether its reader goes through the file in order.
    fn note_read(&self, id: NodeId, offset: u64, end: u64, size: u64) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(vnode) = state.vnodes.get_mut(&id.inode) else { return false };
        let near = vnode.read_end.abs_diff(offset) <= NEAR;
        // The first read of a file says nothing yet, unless it is a large one.
        let sequential = near && size > SMALL && (vnode.read_end > 0 || end - offset >= SMALL);
        if near {
            vnode.read_end = vnode.read_end.max(end);
        } else {
            vnode.read_end = end;
            vnode.ahead_end = 0;
        }
        sequential
    }

    /// Starts to read what a sequential reader will want next.
    fn read_ahead(self: &Rc<Self>, id: NodeId, from: u64, size: u64) {
        let chunk_bytes = u64::from(EXTENT_BLOCKS) * BLOCK_SIZE as u64;
        let window = self.options.read_ahead_bytes.min(self.options.cache_bytes / 4);
        let to = (from + window).min(size);
        let (first, last) = {
            let mut state = self.state.borrow_mut();
            let Some(vnode) = state.vnodes.get_mut(&id.inode) else { return };
            let first = from.max(vnode.ahead_end) / chunk_bytes;
            let last = to.div_ceil(chunk_bytes);
            vnode.ahead_end = vnode.ahead_end.max(last * chunk_bytes);
            (first, last)
        };
        for chunk in first..last {
            let inner = Rc::clone(self);
            self.environment.spawn(Box::pin(async move {
                let blocks = chunk * u64::from(EXTENT_BLOCKS)..(chunk + 1) * u64::from(EXTENT_BLOCKS);
                // What cannot be read now will be said to whoever asks for it.
                let _ = inner.fetch(id.inode, blocks).await;
            }));
        }
    }

    async fn fetch(&self, inode: u64, blocks: std::ops::Range<u64>) -> Result<(), Error> {
        let extents: Vec<FileExtent> = self.with(|state| state.extents(inode, &blocks, 16)).await?;
        for extent in extents {
            if !self.cache.has(extent.physical) {
                let want = extent.blocks() as u32;
                self.cache.get(&self.device, extent.physical, want, &extent.crcs, Structure::Data).await?;
            }
        }
        Ok(())
    }

    /// The bytes of one block of a file that is not in a run; `None` for a hole.
    pub(crate) async fn read_block(&self, inode: u64, block: u64) -> Result<Option<Vec<u8>>, Error> {
        let mut last_error = None;
        loop {
            let place = self.with(|state| state.place(inode, block, 1)).await?;
            let Placed::Extent(extent) = place else { return Ok(None) };
            match self.cache.get(&self.device, extent.physical, 1, &extent.crcs, Structure::Data).await {
                Ok(held) => return Ok(Some(held.to_vec())),
                Err(error) if last_error.as_ref() == Some(&error) => return Err(error),
                Err(error) => last_error = Some(error),
            }
        }
    }
}
