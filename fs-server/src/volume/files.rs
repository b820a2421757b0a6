//! Changing the content of files: write, append, truncate.

use super::runs::{Phase, PinnedVnode, Run, Vnode};
use super::{Inner, NodeId, Volume};
use crate::device::{BLOCK_SIZE, Device, Source, Staging};
use crate::error::Error;
use crate::format::items::{FileKind, Inode};
use crate::format::{EXTENT_BLOCKS, MAX_FILE_SIZE};
use std::ops::Range;
use std::rc::Rc;
use zerocopy::little_endian::U64;

const BLOCK: u64 = BLOCK_SIZE as u64;
const CHUNK: u64 = EXTENT_BLOCKS as u64 * BLOCK;

/// Bytes of one call that go to one run.
struct Piece {
    offset: u64,
    length: usize,
    /// Where they begin in the source.
    from: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.length as u64
    }

    fn blocks(&self) -> Range<u64> {
        self.offset / BLOCK..self.end().div_ceil(BLOCK)
    }

    /// Blocks that it does not fill, and that its file has content in.
    fn ragged(&self, size: u64) -> [Option<u64>; 2] {
        let blocks = self.blocks();
        let head = (!self.offset.is_multiple_of(BLOCK) && blocks.start * BLOCK < size).then_some(blocks.start);
        let tail = blocks.end - 1;
        let tail = (!self.end().is_multiple_of(BLOCK) && self.end() < size && Some(tail) != head).then_some(tail);
        [head, tail]
    }
}

impl<D: Device> Volume<D> {
    /// Keeps an object alive for a handle: unlinked, it goes on until [`release`](Self::release).
    pub fn hold(&self, id: NodeId) {
        std::mem::forget(self.inner.pin_vnode(id));
    }

    /// So many nodes are about to be held.
    pub fn will_hold(&self, count: usize) {
        self.inner.state.borrow_mut().vnodes.reserve(count);
    }

    /// Gives back what [`hold`](Self::hold) took.
    pub fn release(&self, id: NodeId) {
        self.inner.release(id);
    }

    /// Writes all of `source` at `offset`; what lies between the end of the file and there becomes zeros.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: the bytes before some place within the range may have been written.
    pub async fn write<S>(&self, id: NodeId, offset: u64, source: &S) -> Result<(), Error>
    where
        S: Source<D::Staging> + ?Sized,
    {
        self.write_then(id, offset, source, |_| ()).await
    }

    /// As [`write`](Self::write); `written` is called with the time of the change when all bytes are in the file, before
    /// anybody else changes it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn write_then<S, T>(
        &self,
        id: NodeId,
        offset: u64,
        source: &S,
        written: impl FnOnce(u64) -> T,
    ) -> Result<T, Error>
    where
        S: Source<D::Staging> + ?Sized,
    {
        let pinned = self.inner.pin_vnode(id);
        let turn = self.inner.vnode_lock(id.inode).enter_alone().await;
        self.inner.file(id).await?;
        let full = self.inner.write_all(&pinned, offset, source).await?;
        let written = written(self.inner.written_at(id));
        drop(turn);
        self.inner.settle(id, full).await?;
        Ok(written)
    }

    /// Writes all of `source` at the end of the file; returns where that was.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn append<S>(&self, id: NodeId, source: &S) -> Result<u64, Error>
    where
        S: Source<D::Staging> + ?Sized,
    {
        self.append_then(id, source, |_, _| ()).await.map(|(offset, ())| offset)
    }

    /// As [`append`](Self::append); `written` is called with where the bytes are and the time of the change, before anybody
    /// else changes the file.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn append_then<S, T>(
        &self,
        id: NodeId,
        source: &S,
        written: impl FnOnce(u64, u64) -> T,
    ) -> Result<(u64, T), Error>
    where
        S: Source<D::Staging> + ?Sized,
    {
        let pinned = self.inner.pin_vnode(id);
        let turn = self.inner.vnode_lock(id.inode).enter_alone().await;
        self.inner.file(id).await?;
        let offset = self.stat(id).await?.size;
        let full = self.inner.write_all(&pinned, offset, source).await?;
        let written = written(offset, self.inner.written_at(id));
        drop(turn);
        self.inner.settle(id, full).await?;
        Ok((offset, written))
    }

    /// Sets the size of a file: what is beyond it is freed, what it adds reads as zeros and takes no space.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond 1 TiB; nothing is changed.
    pub async fn truncate(&self, id: NodeId, size: u64) -> Result<(), Error> {
        self.truncate_then(id, size, |_| ()).await
    }

    /// As [`truncate`](Self::truncate); `done` is called with the time of the change when the file has its size, before
    /// anybody else changes it.
    ///
    /// # Errors
    /// As [`truncate`](Self::truncate).
    pub async fn truncate_then<T: 'static>(
        &self,
        id: NodeId,
        size: u64,
        done: impl FnOnce(u64) -> T + 'static,
    ) -> Result<T, Error> {
        if size > MAX_FILE_SIZE {
            return Err(Error::TooLarge);
        }
        let pinned = self.inner.pin_vnode(id);
        let inner = Rc::clone(&self.inner);
        // To its end even if the caller goes away: half of it would be seen.
        self.inner.detached(async move { inner.truncate(&pinned, size, done).await }).await
    }
}

impl<D: Device> Inner<D> {
    pub(crate) fn release(self: &Rc<Self>, id: NodeId) {
        let mut state = self.state.borrow_mut();
        let Some(vnode) = state.vnodes.get_mut(&id.inode) else { return };
        vnode.opens = vnode.opens.saturating_sub(1);
        if vnode.opens > 0 {
            return;
        }
        drop(state);
        self.forget_vnode(id.inode);
        let inner = Rc::clone(self);
        self.environment.spawn(Box::pin(async move {
            // What cannot be freed now is freed at the next mount: the orphan list has it.
            let _ = inner.reap_if_unlinked(id).await;
        }));
    }

    pub(crate) fn vnode_lock(&self, inode: u64) -> Rc<crate::sync::Gate> {
        let mut state = self.state.borrow_mut();
        let vnode = state.vnodes.entry(inode).or_insert_with(Vnode::new);
        Rc::clone(vnode.lock.get_or_insert_default())
    }

    /// When the file was written last. (Empty writes change nothing, and take the time now.)
    fn written_at(&self, id: NodeId) -> u64 {
        let pending = self.state.borrow().vnodes.get(&id.inode).and_then(Vnode::pending);
        pending.map_or_else(|| self.environment.now_ns(), |(_, modified_ns)| modified_ns)
    }

    async fn file(&self, id: NodeId) -> Result<Inode, Error> {
        let inode = self.with(|state| state.inode(id)).await?;
        match inode.kind {
            FileKind::File => Ok(inode),
            FileKind::Directory => Err(Error::IsDirectory),
        }
    }

    /// Copies all bytes into runs; returns those that are full and being written.
    async fn write_all<S>(
        self: &Rc<Self>,
        pinned: &PinnedVnode<D>,
        offset: u64,
        source: &S,
    ) -> Result<Vec<Rc<Run<D::Staging>>>, Error>
    where
        S: Source<D::Staging> + ?Sized,
    {
        let total = source.length();
        if offset.checked_add(total).is_none_or(|end| end > MAX_FILE_SIZE) {
            return Err(Error::TooLarge);
        }
        self.finish_truncation(pinned.id).await?;
        let mut full = Vec::new();
        let mut from = 0;
        while from < total {
            let at = offset + from;
            let length = (total - from).min(CHUNK - at % CHUNK) as usize;
            full.extend(self.write_piece(pinned.id, &Piece { offset: at, length, from }, source).await?);
            from += length as u64;
        }
        Ok(full)
    }

    /// Waits for full runs, and until not too much waits in memory.
    async fn settle(self: &Rc<Self>, id: NodeId, full: Vec<Rc<Run<D::Staging>>>) -> Result<(), Error> {
        for run in full {
            self.flush_run(id.inode, &run).await?;
        }
        self.bound_staged().await
    }

    async fn write_piece<S>(
        self: &Rc<Self>,
        id: NodeId,
        piece: &Piece,
        source: &S,
    ) -> Result<Option<Rc<Run<D::Staging>>>, Error>
    where
        S: Source<D::Staging> + ?Sized,
    {
        let blocks = piece.blocks();
        let mut checkpoints = 0;
        loop {
            if let Some(error) = self.broken.borrow().clone() {
                return Err(error);
            }
            let entered = self.gate.enter().await;
            let run = self.run_for(id, &blocks).await?;
            let size = self.with(|state| state.inode(id).map(|inode| state.stat(id.inode, &inode).size)).await?;
            let (old_end, known) = run.as_ref().map_or((blocks.start, 0), |run| (run.end(), run.blocks.get()));
            let added = blocks.end.saturating_sub(old_end);
            if added > 0 && !self.state.borrow().has_room(8, added, false) {
                drop(entered);
                checkpoints += 1;
                if checkpoints > 2 {
                    return Err(Error::NoSpace);
                }
                // What was freed since the last checkpoint may be enough.
                self.settle_removals().await;
                self.checkpoint_for_room().await?;
                continue;
            }
            // The content of blocks that are filled only in part, if the run does not have it.
            let mut ragged = Vec::new();
            let in_run = run.as_ref().map_or(0..0, |run| run.first..run.end());
            for block in piece.ragged(size).into_iter().flatten().filter(|block| !in_run.contains(block)) {
                ragged.push((block, self.read_block(id.inode, block).await?));
            }
            let first = run.as_ref().map_or(blocks.start, |run| run.first);
            let needed = (blocks.end.max(old_end) - first) as u32;
            let memory = self.memory_for(run.as_deref(), first, needed).await;
            let run = match run {
                // Somebody began to write it out while we waited: it takes no more.
                Some(run) if run.phase.get() != Phase::Open || run.blocks.get() != known => continue,
                Some(run) => {
                    if let Some(memory) = memory {
                        run.content.borrow_mut().move_to(memory, known as usize);
                    }
                    run
                }
                None => {
                    let Some(memory) = memory else { continue };
                    let run = Rc::new(Run::new(first, memory));
                    let mut state = self.state.borrow_mut();
                    let vnode = state.vnodes.entry(id.inode).or_insert_with(Vnode::new);
                    if vnode.runs.is_empty() {
                        vnode.size = size;
                    }
                    vnode.runs.push(Rc::clone(&run));
                    state.runs += 1;
                    run
                }
            };
            let result = self.fill(id, &run, piece, ragged, source, size);
            if run.blocks.get() == 0 {
                self.state.borrow_mut().drop_run(id.inode, &run);
            }
            drop(entered);
            result?;
            let full = run.end() % u64::from(EXTENT_BLOCKS) == 0;
            if full {
                self.start_write_out(id.inode, &run);
            }
            return Ok(full.then_some(run));
        }
    }

    /// The open run that these blocks can be added to, if there is one. Runs in the way are written out.
    async fn run_for(self: &Rc<Self>, id: NodeId, blocks: &Range<u64>) -> Result<Option<Rc<Run<D::Staging>>>, Error> {
        loop {
            let (open, overlapping) = {
                let state = self.state.borrow();
                let Some(vnode) = state.vnodes.get(&id.inode) else { return Ok(None) };
                (vnode.open_run().cloned(), vnode.overlapping(blocks).cloned())
            };
            let chunk = |block: u64| block / u64::from(EXTENT_BLOCKS);
            if let Some(run) = open {
                let fits =
                    chunk(run.first) == chunk(blocks.start) && run.first <= blocks.start && blocks.start <= run.end();
                let alone = overlapping.as_ref().is_none_or(|other| Rc::ptr_eq(other, &run));
                if fits && alone {
                    return Ok(Some(run));
                }
                self.start_write_out(id.inode, &run);
            }
            match overlapping {
                Some(run) => self.flush_run(id.inode, &run).await?,
                None => return Ok(None),
            }
        }
    }

    /// Memory for `needed` blocks from `first` on, if the run does not have it.
    async fn memory_for(self: &Rc<Self>, run: Option<&Run<D::Staging>>, first: u64, needed: u32) -> Option<D::Staging> {
        let has = run.map_or(0, |run| run.content.borrow().staging.as_ref().map_or(0, Staging::blocks));
        if has >= needed {
            return None;
        }
        // Twice as much as before, so that many small appends cost one copy on average.
        let room = EXTENT_BLOCKS - (first % u64::from(EXTENT_BLOCKS)) as u32;
        Some(self.stage(needed.max(2 * has).min(room)).await)
    }

    fn fill<S>(
        &self,
        id: NodeId,
        run: &Run<D::Staging>,
        piece: &Piece,
        ragged: Vec<(u64, Option<Vec<u8>>)>,
        source: &S,
        size: u64,
    ) -> Result<(), Error>
    where
        S: Source<D::Staging> + ?Sized,
    {
        let blocks = piece.blocks();
        let mut content = run.content.borrow_mut();
        let content = &mut *content;
        let staging = content.staging.as_mut().ok_or(Error::Stale)?;
        let place = |block: u64| (block - run.first) as usize * BLOCK_SIZE;
        let old_end = run.end();
        // What the file has there now, if it is in this run: it stays if the source is lost.
        let stays = (old_end * BLOCK).min(piece.end());
        let mut before = vec![0; stays.min(size).saturating_sub(piece.offset) as usize];
        staging.copy_out((piece.offset - run.first * BLOCK) as usize, &mut before);
        if blocks.end > old_end {
            // Only the blocks at both ends can have bytes that nothing below writes.
            for block in [blocks.start, blocks.end - 1] {
                if block >= old_end {
                    staging.zero(place(block), BLOCK_SIZE);
                }
            }
        }
        for (block, bytes) in ragged {
            if let Some(bytes) = bytes {
                staging.copy_in(place(block), &bytes);
            }
        }
        content.crcs.resize((blocks.end.max(old_end) - run.first) as usize, None);
        if let Err(error) = copy_in(piece, source, staging, run.first, &mut content.crcs) {
            // Nothing of the piece becomes part of the file, least of all what the memory had before.
            let at = (piece.offset - run.first * BLOCK) as usize;
            staging.zero(at, stays.saturating_sub(piece.offset) as usize);
            staging.copy_in(at, &before);
            content.crcs.truncate((old_end - run.first) as usize);
            for crc in content.crcs.iter_mut().skip((blocks.start - run.first) as usize) {
                *crc = None;
            }
            return Err(error);
        }
        let mut state = self.state.borrow_mut();
        let added = blocks.end.saturating_sub(old_end);
        run.blocks.set(run.blocks.get() + added);
        state.staged_blocks += added;
        state.written_blocks_waiting += added;
        let now_ns = self.environment.now_ns();
        if let Some(vnode) = state.vnodes.get_mut(&id.inode) {
            vnode.size = vnode.size.max(size).max(piece.end());
            vnode.modified_ns = now_ns;
        }
        Ok(())
    }

    async fn truncate<T>(
        self: &Rc<Self>,
        pinned: &PinnedVnode<D>,
        size: u64,
        done: impl FnOnce(u64) -> T,
    ) -> Result<T, Error> {
        let id = pinned.id;
        let turn = self.vnode_lock(id.inode).enter_alone().await;
        self.file(id).await?;
        self.finish_truncation(id).await?;
        let old = self.with(|state| state.inode(id).map(|inode| state.stat(id.inode, &inode).size)).await?;
        if size == 0 {
            self.drop_runs(id.inode).await;
        } else {
            self.flush_file(id.inode).await?;
        }
        if size < old && !size.is_multiple_of(BLOCK) {
            // The rest of the last block must be zeros, or it would come back when the file grows again.
            self.zero_tail(pinned, size, old).await?;
        }
        let now_ns = self.environment.now_ns();
        let first_gone = size.div_ceil(BLOCK);
        let more = self
            .change(super::removal::BATCH_NODES, size < old, |state| {
                let mut raw = state.inode(id)?.raw;
                let gone = state.extents(id.inode, &(first_gone..u64::MAX), super::removal::BATCH)?;
                let more = gone.len() >= super::removal::BATCH;
                state.prepare_orphan(id.inode)?;
                state.prepare_extents(id.inode, &gone)?;
                raw.size = U64::new(size);
                raw.modified_ns = U64::new(now_ns);
                raw.changed_ns = U64::new(now_ns);
                if more {
                    state.put_orphan(id.inode)?;
                    state.put_inode(id.inode, &raw)?;
                } else {
                    state.put_inode_and_remove_extents(id.inode, raw, &gone, first_gone)?;
                }
                Ok(more)
            })
            .await?;
        if more {
            // Whoever changes the file next goes on where this fails.
            self.state.borrow_mut().truncating += 1;
            self.remove_extents(id.inode, first_gone, false).await?;
            self.state.borrow_mut().truncating -= 1;
        }
        let done = done(now_ns);
        drop(turn);
        Ok(done)
    }

    /// Ends a truncation that failed on its way: what is beyond the end of the file must not come back when it grows.
    async fn finish_truncation(self: &Rc<Self>, id: NodeId) -> Result<(), Error> {
        if self.state.borrow().truncating == 0 {
            return Ok(());
        }
        let first = self
            .with(|state| {
                let inode = state.inode(id)?;
                let first = inode.raw.size.get().div_ceil(BLOCK);
                let unfinished = state.is_orphan(id.inode)?
                    && (inode.raw.links != 0 || !state.extents(id.inode, &(first..u64::MAX), 1)?.is_empty());
                Ok(unfinished.then_some(first))
            })
            .await?;
        match first {
            Some(first) => self.remove_extents(id.inode, first, false).await,
            None => Ok(()),
        }
    }

    async fn zero_tail(self: &Rc<Self>, pinned: &PinnedVnode<D>, size: u64, old: u64) -> Result<(), Error> {
        // Not beyond the old end: the file would be seen longer than it ever was.
        let length = (BLOCK - size % BLOCK).min(old - size);
        let zeros = [0; BLOCK_SIZE];
        let Some(zeros) = zeros.get(..length as usize) else { return Ok(()) };
        if self.read_block(pinned.id.inode, size / BLOCK).await?.is_none() {
            return Ok(());
        }
        let piece = Piece { offset: size, length: length as usize, from: 0 };
        self.write_piece(pinned.id, &piece, zeros).await?;
        self.flush_file(pinned.id.inode).await
    }
}

impl<S: Staging> super::runs::Content<S> {
    /// Goes on in larger memory.
    fn move_to(&mut self, mut memory: S, blocks: usize) {
        let Some(old) = &self.staging else { return };
        let mut bounce = [0; BLOCK_SIZE];
        for block in 0..blocks {
            old.copy_out(block * BLOCK_SIZE, &mut bounce);
            memory.copy_in(block * BLOCK_SIZE, &bounce);
        }
        self.staging = Some(memory);
    }
}

/// Copies a piece into a run that begins at block `first`; whole blocks are summed in the same pass.
fn copy_in<T: Staging, S: Source<T> + ?Sized>(
    piece: &Piece,
    source: &S,
    staging: &mut T,
    first: u64,
    crcs: &mut [Option<u32>],
) -> Result<(), Error> {
    let mut at = piece.offset;
    while at < piece.end() {
        let from = piece.from + (at - piece.offset);
        let place = (at - first * BLOCK) as usize;
        let index = place / BLOCK_SIZE;
        let left = (piece.end() - at) as usize;
        let whole = if at.is_multiple_of(BLOCK) { left / BLOCK_SIZE } else { 0 };
        if whole > 0 {
            let mut sums = vec![0; whole];
            source.copy_to(from, staging, place, whole * BLOCK_SIZE, &mut sums).map_err(|_| Error::SourceLost)?;
            for (crc, sum) in crcs[index..].iter_mut().zip(sums) {
                *crc = Some(sum);
            }
            at += (whole * BLOCK_SIZE) as u64;
        } else {
            let length = left.min(BLOCK_SIZE - place % BLOCK_SIZE);
            crcs[index] = None;
            source.copy_to(from, staging, place, length, &mut []).map_err(|_| Error::SourceLost)?;
            at += length as u64;
        }
    }
    Ok(())
}
