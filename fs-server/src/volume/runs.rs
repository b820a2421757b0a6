//! Written data on its way to the disk.
//!
//! - A file's recent writes gather in a *run*: up to 1 MiB of its blocks in a row, in memory that the device can write
//!   from. The file has at most one open run; others are being written, or failed to be. Runs never overlap.
//! - A run stays visible (its file's size, a reader that waits for it) until its blocks are in the tree.
//! - A run that failed (the host is full) stays, so that nothing acknowledged is lost; every sync tries it again.

use super::state::State;
use super::{Inner, NodeId};
use crate::device::{BLOCK_SIZE, Device, Staging};
use crate::error::Error;
use crate::format::items::FileExtent;
use crate::sync::{Gate, all_of};
use crate::tree::Fault;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

/// Writes of one run's pieces, or of several runs, that are in progress at once.
const WIDTH: usize = 16;

/// What is known in memory about a file that is open or has runs.
pub(crate) struct Vnode<S> {
    /// Handles to it, and operations in progress.
    pub(crate) opens: u32,
    /// Of the inode; set by whoever holds it.
    pub(crate) generation: u64,
    /// One operation changes its content at a time. Made when there is the first.
    pub(crate) lock: Option<Rc<Gate>>,
    pub(crate) runs: Vec<Rc<Run<S>>>,
    /// Size and time with the runs; the inode has those without.
    pub(crate) size: u64,
    pub(crate) modified_ns: u64,
    /// Where the last read ended, and how far ahead was read.
    pub(crate) read_end: u64,
    pub(crate) ahead_end: u64,
}

impl<S> Vnode<S> {
    pub(crate) fn new() -> Self {
        Self {
            opens: 0,
            generation: 0,
            lock: None,
            runs: Vec::new(),
            size: 0,
            modified_ns: 0,
            read_end: 0,
            ahead_end: 0,
        }
    }

    /// Size and time, if the inode does not have them yet.
    pub(crate) fn pending(&self) -> Option<(u64, u64)> {
        (!self.runs.is_empty()).then_some((self.size, self.modified_ns))
    }

    pub(crate) fn open_run(&self) -> Option<&Rc<Run<S>>> {
        self.runs.iter().find(|run| run.phase.get() == Phase::Open)
    }

    /// A run that has one of these blocks.
    pub(crate) fn overlapping(&self, blocks: &Range<u64>) -> Option<&Rc<Run<S>>> {
        self.runs.iter().find(|run| run.first < blocks.end && blocks.start < run.end())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Takes more writes.
    Open,
    /// Is being written.
    Writing,
    /// Was not written; can be tried again.
    Failed,
    /// Is in the tree, or was given up.
    Done,
}

/// Blocks of a file in memory.
pub(crate) struct Run<S> {
    /// First block of the file.
    pub(crate) first: u64,
    pub(crate) phase: Cell<Phase>,
    pub(crate) content: RefCell<Content<S>>,
    /// Blocks that count.
    pub(crate) blocks: Cell<u64>,
    error: RefCell<Option<Error>>,
}

pub(crate) struct Content<S> {
    /// None while it is being written.
    pub(crate) staging: Option<S>,
    /// Checksum of each block, if it is known.
    pub(crate) crcs: Vec<Option<u32>>,
}

impl<S: Staging> Run<S> {
    pub(crate) fn new(first: u64, staging: S) -> Self {
        Self {
            first,
            phase: Cell::new(Phase::Open),
            content: RefCell::new(Content { staging: Some(staging), crcs: Vec::new() }),
            blocks: Cell::new(0),
            error: RefCell::new(None),
        }
    }
}

impl<S> Run<S> {
    pub(crate) fn end(&self) -> u64 {
        self.first + self.blocks.get()
    }
}

impl<D: Device> Inner<D> {
    /// Starts to write a run, if nobody does already.
    pub(crate) fn start_write_out(self: &Rc<Self>, inode: u64, run: &Rc<Run<D::Staging>>) {
        if matches!(run.phase.get(), Phase::Writing | Phase::Done) {
            return;
        }
        run.phase.set(Phase::Writing);
        let (inner, run) = (Rc::clone(self), Rc::clone(run));
        self.environment.spawn(Box::pin(async move {
            let result = inner.write_out(inode, &run).await;
            if let Err(error) = result {
                *run.error.borrow_mut() = Some(error);
                run.phase.set(Phase::Failed);
            }
            inner.written.ring();
        }));
    }

    /// Memory to write from. If there is none at once, what waits in it is written out.
    pub(crate) async fn stage(self: &Rc<Self>, blocks: u32) -> D::Staging {
        let mut staging = pin!(self.device.stage(blocks));
        let mut asked = false;
        poll_fn(|cx| {
            let poll = staging.as_mut().poll(cx);
            if poll.is_pending() && !std::mem::replace(&mut asked, true) {
                for (inode, run) in self.all_runs() {
                    self.start_write_out(inode, &run);
                }
            }
            poll
        })
        .await
    }

    pub(super) fn all_runs(&self) -> Vec<(u64, Rc<Run<D::Staging>>)> {
        let state = self.state.borrow();
        let all =
            state.vnodes.iter().flat_map(|(&inode, vnode)| vnode.runs.iter().map(move |run| (inode, Rc::clone(run))));
        all.collect()
    }

    /// Waits until a run is in the tree.
    ///
    /// # Errors
    /// It could not be written; it stays.
    pub(crate) async fn finish_run(&self, run: &Rc<Run<D::Staging>>) -> Result<(), Error> {
        while run.phase.get() == Phase::Writing {
            self.written.heard().await;
        }
        match run.phase.get() {
            Phase::Failed => Err(run.error.borrow().clone().unwrap_or(Error::NoSpace)),
            Phase::Open | Phase::Writing | Phase::Done => Ok(()),
        }
    }

    /// Writes a run out and waits for it.
    pub(crate) async fn flush_run(self: &Rc<Self>, inode: u64, run: &Rc<Run<D::Staging>>) -> Result<(), Error> {
        self.start_write_out(inode, run);
        self.finish_run(run).await
    }

    /// Writes out all runs of a file.
    pub(crate) async fn flush_file(self: &Rc<Self>, inode: u64) -> Result<(), Error> {
        loop {
            let runs: Vec<_> = match self.state.borrow().vnodes.get(&inode) {
                Some(vnode) if !vnode.runs.is_empty() => vnode.runs.clone(),
                _ => return Ok(()),
            };
            for run in &runs {
                self.start_write_out(inode, run);
            }
            for run in &runs {
                self.finish_run(run).await?;
            }
        }
    }

    /// Writes out all runs there are. One that finds no space does not keep the others from it.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: some are not written, and all of them were tried.
    pub(crate) async fn flush_all(self: &Rc<Self>) -> Result<(), Error> {
        loop {
            let runs = self.all_runs();
            if runs.is_empty() {
                return Ok(());
            }
            let full = Cell::new(false);
            let flush = async |(inode, run): &(u64, Rc<Run<D::Staging>>)| match self.flush_run(*inode, run).await {
                Err(Error::NoSpace) => {
                    full.set(true);
                    Ok(())
                }
                other => other,
            };
            all_of(2 * WIDTH, runs.iter().map(flush)).await?;
            if full.get() {
                return Err(Error::NoSpace);
            }
        }
    }

    /// Waits until no more than the bound waits in memory, writing out what does.
    pub(crate) async fn bound_staged(self: &Rc<Self>) -> Result<(), Error> {
        let bound = self.options.staged_bytes / BLOCK_SIZE as u64;
        while self.state.borrow().staged_blocks > bound {
            let runs = self.all_runs();
            all_of(2 * WIDTH, runs.iter().map(|(inode, run)| self.flush_run(*inode, run))).await?;
        }
        Ok(())
    }

    /// Gives up what waits to be written of a file without a name.
    pub(crate) async fn drop_runs(&self, inode: u64) {
        loop {
            let writing = {
                let mut state = self.state.borrow_mut();
                let Some(vnode) = state.vnodes.get_mut(&inode) else { return };
                let (kept, dropped): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut vnode.runs).into_iter().partition(|run| run.phase.get() == Phase::Writing);
                vnode.runs = kept;
                let writing = vnode.runs.first().cloned();
                for run in dropped {
                    state.forget_run(&run);
                }
                writing
            };
            match writing {
                Some(run) => drop(self.finish_run(&run).await),
                None => return,
            }
        }
    }

    async fn write_out(self: &Rc<Self>, inode: u64, run: &Rc<Run<D::Staging>>) -> Result<(), Error> {
        let Some(staging) = run.content.borrow_mut().staging.take() else { return Ok(()) };
        let mut pieces = Vec::new();
        let result = self.write_pieces(inode, run, &staging, &mut pieces).await;
        if result.is_ok() {
            // The staging goes first: whoever waits for memory is served before whoever waits for the run.
            drop(staging);
            self.state.borrow_mut().drop_run(inode, run);
            self.forget_vnode(inode);
            return Ok(());
        }
        for &(start, blocks) in &pieces {
            if result == Err(Error::NoSpace) {
                // What the host gave for a part of it is missing elsewhere.
                let _ = self.device.discard(start, u64::from(blocks)).await;
            }
            self.state.borrow_mut().allocator.put_back(start, blocks);
        }
        run.content.borrow_mut().staging = Some(staging);
        result
    }

    async fn write_pieces(
        &self,
        inode: u64,
        run: &Rc<Run<D::Staging>>,
        staging: &D::Staging,
        pieces: &mut Vec<(u64, u32)>,
    ) -> Result<(), Error> {
        let total = run.blocks.get() as u32;
        let mut placed = 0;
        while placed < total {
            let piece = self
                .with(|state| {
                    // What was accepted may dig into the reserve; only the next checkpoint's own nodes are spared.
                    let reserve = state.places_needed(0);
                    state.allocator.take_data(total - placed, reserve).map_err(Fault::from)
                })
                .await?;
            placed += piece.1;
            pieces.push(piece);
        }
        let mut first = 0;
        let writes: Vec<_> = pieces
            .iter()
            .map(|&(start, blocks)| {
                let at = first;
                first += blocks;
                (start, at, blocks)
            })
            .collect();
        let writes =
            writes.into_iter().map(async |(start, at, blocks)| self.device.write(start, staging, at, blocks).await);
        all_of(WIDTH, writes).await?;

        let crcs: Vec<u32> = {
            let content = run.content.borrow();
            let known = content.crcs.iter().take(total as usize).enumerate();
            known.map(|(index, crc)| crc.unwrap_or_else(|| staging.crc32c(index * BLOCK_SIZE, BLOCK_SIZE))).collect()
        };
        self.with(|state| {
            let birth = state.generation;
            let mut extents = Vec::with_capacity(pieces.len());
            let mut rest = crcs.as_slice();
            let mut start = run.first;
            for &(physical, blocks) in pieces.iter() {
                let (ours, others) = rest.split_at(blocks as usize);
                extents.push(FileExtent { start, physical, birth, crcs: ours.to_vec() });
                start += u64::from(blocks);
                rest = others;
            }
            let Some((size, modified_ns)) = state.vnodes.get(&inode).and_then(Vnode::pending) else {
                return Err(Error::Stale.into());
            };
            state.replace_extents(inode, &(run.first..run.end()), &extents, size, modified_ns)
        })
        .await
    }

    /// Keeps what is known in memory about a file for as long as the guard lives.
    pub(crate) fn pin_vnode(self: &Rc<Self>, id: NodeId) -> PinnedVnode<D> {
        let mut state = self.state.borrow_mut();
        let vnode = state.vnodes.entry(id.inode).or_insert_with(Vnode::new);
        vnode.opens += 1;
        vnode.generation = id.generation;
        drop(state);
        PinnedVnode { inner: Rc::clone(self), id }
    }
}

impl<S> State<S> {
    /// Forgets a run that is in the tree, or that nothing came into.
    pub(crate) fn drop_run(&mut self, inode: u64, run: &Rc<Run<S>>) {
        if let Some(vnode) = self.vnodes.get_mut(&inode) {
            vnode.runs.retain(|other| !Rc::ptr_eq(other, run));
        }
        self.forget_run(run);
    }

    /// A run is in the tree, or given up.
    pub(crate) fn forget_run(&mut self, run: &Run<S>) {
        self.runs -= 1;
        self.staged_blocks -= run.blocks.get();
        self.written_blocks_waiting -= run.blocks.get();
        run.phase.set(Phase::Done);
    }
}

/// Keeps a vnode; what is unlinked and no more open after it is removed.
pub(crate) struct PinnedVnode<D: Device> {
    pub(crate) inner: Rc<Inner<D>>,
    pub(crate) id: NodeId,
}

impl<D: Device> Drop for PinnedVnode<D> {
    fn drop(&mut self) {
        self.inner.release(self.id);
    }
}
