//! Checkpoints: how the state in memory becomes the state on disk.
//!
//! 1. What waits in memory is written out; then, with the gate closed, the rest of it.
//! 2. The tree is frozen: every changed node gets a place. The gate opens again; what is changed from here on belongs to
//!    the next generation.
//! 3. Nodes and bitmaps are written, to places that nothing durable refers to. Flush.
//! 4. The pack is written, to the slot that does not hold the last one. Flush.
//! 5. What the checkpoint freed is dealt out again.
//!
//! A checkpoint that fails leaves everything as it was: its nodes stay in memory and are written by the next.
//!
//! Written data that finds no space stays in memory, and does not hold up the rest: a removal must become durable before
//! its blocks can be what was missing. Whoever asked for the checkpoint hears of it. There is no checkpoint where its effects
//! could not be kept behind those that the checkpoint holds.

use super::Inner;
use super::state::State;
use crate::allocator::BitmapWrite;
use crate::device::{BLOCK_SIZE, Device, DeviceError, MAX_TRANSFER_BLOCKS, Staging};
use crate::effect::Effect;
use crate::error::Error;
use crate::format::node::Node;
use crate::format::pack::{Pack, PackHead};
use crate::format::{NODE_BLOCKS, NODE_SIZE, Pointer};
use crate::sync::all_of;
use std::rc::Rc;
use zerocopy::FromZeros;
use zerocopy::little_endian::U64;

/// Transfers of a checkpoint that are in progress at once.
const WIDTH: usize = 8;
/// Freed ranges below this are not worth a discard.
const DISCARD_BLOCKS: u32 = 64;

/// What a checkpoint writes.
struct Plan {
    freeze: u64,
    generation: u64,
    slot: usize,
    nodes: Vec<(Pointer, Rc<Node>)>,
    bitmaps: Vec<BitmapWrite>,
    pack: Vec<u8>,
    /// Position of the journal up to which this holds the effects.
    position: u64,
}

impl<D: Device> Inner<D> {
    /// Makes the state of now durable. Callers that come while one runs share the next.
    pub(crate) async fn checkpoint(self: &Rc<Self>) -> Result<(), Error> {
        let seen = self.freezes.get();
        let turn = self.checkpoints.enter_alone().await;
        if self.durable_freeze.get() > seen {
            return Ok(());
        }
        let inner = Rc::clone(self);
        self.detached(async move {
            let mut result = inner.run_checkpoint().await;
            if result == Err(Error::NoSpace) {
                // What the first one freed may be what was missing.
                result = inner.run_checkpoint().await;
            }
            drop(turn);
            result
        })
        .await
    }

    /// Starts a checkpoint in the background once enough has changed.
    pub(super) fn schedule_checkpoint(self: &Rc<Self>) {
        let due = {
            let state = self.state.borrow();
            state.tree.dirty() >= state.dirty_soft
        };
        if !due || self.checkpoint_scheduled.replace(true) {
            return;
        }
        let inner = Rc::clone(self);
        self.environment.spawn(Box::pin(async move {
            // If it fails, whoever needs the room it would have made is told.
            let _ = inner.checkpoint().await;
            inner.checkpoint_scheduled.set(false);
        }));
    }

    async fn run_checkpoint(self: &Rc<Self>) -> Result<(), Error> {
        if let Some(error) = self.broken.borrow().clone() {
            return Err(error);
        }
        self.flush_what_fits().await?;
        let alone = self.gate.enter_alone().await;
        let all_written = self.flush_what_fits().await?;
        let unwritten = if all_written { Ok(()) } else { Err(Error::NoSpace) };
        let Some(plan) = self.freeze().await? else {
            if all_written {
                self.effects_are_durable(self.journal_position());
                self.freezes.set(self.freezes.get() + 1);
                self.durable_freeze.set(self.freezes.get());
            }
            // Nothing changed, but who read what was freed may have ended.
            self.release_freed();
            return unwritten;
        };
        // They are in no checkpoint, and their records would count as if they were.
        let kept = all_written || self.keep_unwritten();
        self.environment.reach("checkpoint/frozen");
        drop(alone);

        let mut result = if kept { self.write_checkpoint(&plan).await } else { Err(Error::NoSpace) };
        if kept && result == Err(Error::NoSpace) && self.drop_ballast().await {
            result = self.write_checkpoint(&plan).await;
        }
        let discards = {
            let mut state = self.state.borrow_mut();
            state.tree.end_writing(if result.is_ok() { &plan.nodes } else { &[] });
            state.allocator.end_checkpoint(&plan.bitmaps, result.is_ok());
            if result.is_ok() {
                state.durable = plan.generation;
                state.durable_slot = plan.slot;
                if all_written {
                    self.durable_freeze.set(plan.freeze);
                }
            }
            if result.is_ok() && state.pins == 0 {
                state.allocator.releasable(plan.generation, DISCARD_BLOCKS)
            } else {
                Vec::new()
            }
        };
        result?;
        self.effects_are_durable(plan.position);
        self.environment.reach("checkpoint/trimmed");
        for (start, blocks) in discards {
            // Before the blocks are dealt out again, or it would hit their new content.
            let _ = self.device.discard(start, u64::from(blocks)).await;
        }
        self.release_freed();
        if all_written {
            self.take_ballast().await;
        }
        unwritten
    }

    fn journal_position(&self) -> u64 {
        self.journal.borrow().as_ref().map_or(0, |journal| journal.position())
    }

    fn effects_are_durable(&self, position: u64) {
        if let Some(journal) = &*self.journal.borrow() {
            journal.durable(position);
        }
    }

    /// Keeps what still waits in memory as effects of its own. False: some of it cannot be kept.
    fn keep_unwritten(&self) -> bool {
        let Some(journal) = self.journal.borrow().clone() else { return true };
        let mut kept = true;
        for (inode, run) in self.all_runs() {
            let content = run.content.borrow();
            let Some(staging) = &content.staging else {
                // It is being written, for the next checkpoint.
                kept = false;
                continue;
            };
            let state = self.state.borrow();
            let Some(vnode) = state.vnodes.get(&inode) else { continue };
            let (size, generation) = (vnode.size, vnode.generation);
            let offset = run.first * BLOCK_SIZE as u64;
            let length = (run.blocks.get() * BLOCK_SIZE as u64).min(size.saturating_sub(offset));
            let mut data = vec![0; length as usize];
            staging.copy_out(0, &mut data);
            let node = super::NodeId { inode, generation };
            let effect = Effect::Write { node, offset, now_ns: self.environment.now_ns(), data: &data };
            kept &= journal.keep(&effect.encode());
        }
        kept
    }

    /// Makes available what the durable checkpoint does not use, and nobody reads any more.
    fn release_freed(&self) {
        let mut state = self.state.borrow_mut();
        if state.pins == 0 {
            let durable = state.durable;
            state.allocator.release(durable);
        }
    }

    /// Writes out what waits in memory. False: some of it found no space and goes on waiting.
    async fn flush_what_fits(self: &Rc<Self>) -> Result<bool, Error> {
        match self.flush_all().await {
            Ok(()) => Ok(true),
            Err(Error::NoSpace) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A checkpoint for the room that it makes, if it does.
    pub(super) async fn checkpoint_for_room(self: &Rc<Self>) -> Result<(), Error> {
        match self.checkpoint().await {
            Err(Error::NoSpace) => Ok(()),
            other => other,
        }
    }

    /// Gives everything changed its place, and says what has to be written; `None` if nothing changed.
    async fn freeze(&self) -> Result<Option<Plan>, Error> {
        loop {
            let clean = self
                .with(|state| {
                    let clean = state.tree.dirty() == 0 && !state.tree.has_unwritten() && !state.allocator.is_dirty();
                    if !clean {
                        let State { tree, allocator, generation, .. } = state;
                        tree.freeze(allocator, *generation)?;
                    }
                    Ok(clean)
                })
                .await?;
            if clean {
                return Ok(None);
            }
            // While a bitmap is read a run that failed may be tried again, and change the tree: it is frozen once more.
            let Some(group) = self.state.borrow().allocator.missing() else { break };
            self.load_bitmap(group).await?;
        }
        self.freezes.set(self.freezes.get() + 1);
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let nodes = state.tree.begin_writing();
        let bitmaps = state.allocator.begin_checkpoint();
        let mut head = PackHead::new_zeroed();
        head.uuid = self.superblock.uuid;
        head.generation = U64::new(state.generation);
        head.root = state.tree.root();
        head.next_inode = U64::new(state.next_inode);
        head.files = U64::new(state.files);
        head.directories = U64::new(state.directories);
        head.free_blocks = U64::new(state.allocator.free_blocks());
        head.written_ns = U64::new(self.environment.now_ns());
        let journal = self.journal.borrow();
        let position = journal.as_ref().map_or(0, |journal| journal.position());
        head.ledger = U64::new(journal.as_ref().map_or(0, |journal| journal.id()));
        head.ledger_position = U64::new(position);
        let pack = Pack { head, table: state.allocator.table(&bitmaps) }.encode();
        let generation = state.generation;
        state.generation += 1;
        state.allocator.rewind();
        let slot = 1 - state.durable_slot;
        Ok(Some(Plan { freeze: self.freezes.get(), generation, slot, nodes, bitmaps, pack, position }))
    }

    async fn write_checkpoint(self: &Rc<Self>, plan: &Plan) -> Result<(), Error> {
        if self.suspect_pack.get() {
            // A pack of a checkpoint that failed may be whole, and the bitmaps that it names are written over now.
            let mut blank = self.stage(1).await;
            blank.zero(0, BLOCK_SIZE);
            for copy in self.superblock.packs[plan.slot] {
                self.device.write(copy.get(), &blank, 0, 1).await?;
            }
            self.flush().await?;
            self.suspect_pack.set(false);
        }
        for copy in 0..usize::from(self.superblock.node_copies) {
            let mut nodes: Vec<(u64, &Node)> =
                plan.nodes.iter().map(|(pointer, node)| (pointer.address[copy].get(), &**node)).collect();
            nodes.sort_unstable_by_key(|&(address, _)| address);
            let transfers = contiguous(&nodes, u64::from(NODE_BLOCKS), (MAX_TRANSFER_BLOCKS / NODE_BLOCKS) as usize);
            all_of(WIDTH, transfers.into_iter().map(|nodes| self.write_nodes(nodes))).await?;
        }
        let mut bitmaps: Vec<(u64, &[u8])> = plan
            .bitmaps
            .iter()
            .map(|write| (self.superblock.bitmap_block(write.group, write.slot), write.bytes.as_slice()))
            .collect();
        bitmaps.sort_unstable_by_key(|&(block, _)| block);
        let transfers = contiguous(&bitmaps, 1, MAX_TRANSFER_BLOCKS as usize);
        all_of(WIDTH, transfers.into_iter().map(|bitmaps| self.write_bitmaps(bitmaps))).await?;
        self.environment.reach("checkpoint/written");
        self.flush().await?;
        self.environment.reach("checkpoint/flushed");

        self.suspect_pack.set(true);
        let copies = self.superblock.packs[plan.slot];
        all_of(2, copies.map(|copy| self.write_bytes(copy.get(), &plan.pack))).await?;
        self.environment.reach("checkpoint/packed");
        self.flush().await?;
        self.environment.reach("checkpoint/durable");
        self.suspect_pack.set(false);
        Ok(())
    }

    async fn write_nodes(self: &Rc<Self>, nodes: &[(u64, &Node)]) -> Result<(), DeviceError> {
        let Some(&(first, _)) = nodes.first() else { return Ok(()) };
        let blocks = nodes.len() as u32 * NODE_BLOCKS;
        let mut staging = self.stage(blocks).await;
        for (index, (_, node)) in nodes.iter().enumerate() {
            staging.copy_in(index * NODE_SIZE, &node.bytes()[..]);
        }
        self.device.write(first, &staging, 0, blocks).await
    }

    async fn write_bitmaps(self: &Rc<Self>, bitmaps: &[(u64, &[u8])]) -> Result<(), DeviceError> {
        let Some(&(first, _)) = bitmaps.first() else { return Ok(()) };
        let bytes: Vec<u8> = bitmaps.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        self.write_bytes(first, &bytes).await
    }

    /// Writes whole blocks.
    pub(super) async fn write_bytes(self: &Rc<Self>, block: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        for (index, part) in bytes.chunks(MAX_TRANSFER_BLOCKS as usize * BLOCK_SIZE).enumerate() {
            let blocks = (part.len() / BLOCK_SIZE) as u32;
            let mut staging = self.stage(blocks).await;
            staging.copy_in(0, part);
            let at = block + index as u64 * u64::from(MAX_TRANSFER_BLOCKS);
            self.device.write(at, &staging, 0, blocks).await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), Error> {
        let result = self.device.flush().await.map_err(Error::from);
        if let Err(error) = &result {
            // The kernel may have dropped what it could not write and will not say so again.
            *self.broken.borrow_mut() = Some(error.clone());
        }
        result
    }
}

/// Cuts a sorted list of (first block, …), each `blocks` long, into contiguous stretches of at most `limit`.
fn contiguous<T>(sorted: &[(u64, T)], blocks: u64, limit: usize) -> Vec<&[(u64, T)]> {
    sorted.chunk_by(|before, after| before.0 + blocks == after.0).flat_map(|stretch| stretch.chunks(limit)).collect()
}
