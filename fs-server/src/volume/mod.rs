//! A mounted volume: files and directories with names.
//!
//! - One thread, many operations in progress. What an operation changes it changes in one synchronous step, so no
//!   other operation sees half of it, and neither does a checkpoint: all changes pass [`Inner::gate`], which a
//!   checkpoint closes for the moment in which it freezes the tree.
//! - The state after a power cut is that of the last checkpoint: a prefix of the acknowledged history that holds
//!   everything before the last completed [`Volume::sync`].
//! - Memory is bounded: nodes, cache and staged data each have a limit; who would exceed it waits for a checkpoint or a
//!   write-out.

mod ballast;
mod checkpoint;
mod files;
mod names;
mod read;
mod removal;
mod replay;
mod runs;
mod start;
mod state;

pub use names::{DirectoryEntry, Listing};
pub use replay::Journal;
pub use start::FormatOptions;
pub(crate) use start::{read_bytes, read_slot, read_superblock, read_superblock_at};
pub(crate) use state::hash_name;

use crate::cache::ExtentCache;
use crate::device::{Device, Environment, Extent};
use crate::error::{Error, Structure};
use crate::format::Pointer;
use crate::format::items::{FileKind, ROOT};
use crate::format::node::{Bounds, Node};
use crate::format::superblock::Superblock;
use crate::room::Roomy;
use crate::sync::{Bell, Gate};
use crate::tree::{Fault, Missing};
use state::State;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;

/// Names an object of a volume: what a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId {
    /// Inode number.
    pub inode: u64,
    /// Generation of that inode; another file of the same number has another.
    pub generation: u64,
}

/// What is known about a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The object.
    pub id: NodeId,
    /// What it is.
    pub kind: FileKind,
    /// Bytes of a file, entries of a directory.
    pub size: u64,
    /// Data blocks on disk.
    pub blocks: u64,
    /// Entries that refer to it (0 or 1).
    pub links: u32,
    /// Last change of the content, nanoseconds since 1970.
    pub modified_ns: u64,
    /// Last change of the inode.
    pub changed_ns: u64,
    /// Creation.
    pub created_ns: u64,
}

/// What is known about the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeStat {
    /// Identity.
    pub uuid: [u8; 16],
    /// Blocks (4 KiB).
    pub blocks: u64,
    /// Blocks that are not in use.
    pub free_blocks: u64,
    /// Blocks that a write can have now or after the next checkpoint.
    pub available_blocks: u64,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Generation of the last durable checkpoint.
    pub generation: u64,
}

/// Bounds of a mounted volume's memory.
#[derive(Clone, Copy, Debug)]
pub struct MountOptions {
    /// Bytes of data held from the device.
    pub cache_bytes: u64,
    /// Extents held from the device, at most.
    pub cache_entries: usize,
    /// Bytes of tree nodes in memory, changed ones included.
    pub node_bytes: usize,
    /// Bytes of written data that may wait in memory.
    pub staged_bytes: u64,
    /// Bytes to read ahead of a sequential reader.
    pub read_ahead_bytes: u64,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            cache_entries: 8192,
            node_bytes: 32 << 20,
            staged_bytes: 8 << 20,
            read_ahead_bytes: 4 << 20,
        }
    }
}

/// A mounted volume. Cheap to clone; all clones are the same volume.
pub struct Volume<D: Device> {
    inner: Rc<Inner<D>>,
}

impl<D: Device> Clone for Volume<D> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<D: Device> std::fmt::Debug for Volume<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("uuid", &self.inner.superblock.uuid).finish_non_exhaustive()
    }
}

pub(crate) struct Inner<D: Device> {
    device: Roomy<D>,
    environment: Rc<dyn Environment>,
    superblock: Superblock,
    options: MountOptions,
    state: RefCell<State<D::Staging>>,
    cache: Rc<ExtentCache<D::Extent>>,
    /// Operations that change something are inside; a checkpoint that freezes is alone.
    gate: Rc<Gate>,
    /// One checkpoint at a time.
    checkpoints: Rc<Gate>,
    /// Rings when a run of written data was written out, or failed to be.
    written: Bell,
    /// Freezes begun, and the number of the last one that became durable.
    freezes: Cell<u64>,
    durable_freeze: Cell<u64>,
    checkpoint_scheduled: Cell<bool>,
    /// The pack of the slot to be written next may have been written by a checkpoint that then failed.
    suspect_pack: Cell<bool>,
    /// A flush failed: what completed before it may be lost, so nothing after it can be promised.
    broken: RefCell<Option<Error>>,
    damaged_copies: Cell<u64>,
    ballast: RefCell<Option<ballast::Ballast>>,
    /// Removed files whose blocks are being freed, and what rings when one is done.
    reaping: Cell<u64>,
    reaped: Bell,
    /// Where effects are kept until they are durable.
    journal: RefCell<Option<Rc<dyn Journal>>>,
    /// Ledger and position up to which the checkpoint that was mounted goes.
    mounted_ledger: Cell<(u64, u64)>,
}

impl<D: Device> Volume<D> {
    /// The root directory.
    #[must_use]
    pub fn root(&self) -> NodeId {
        NodeId { inode: ROOT, generation: self.inner.superblock.created_ns.get() }
    }

    /// The device under the volume.
    #[must_use]
    pub fn device(&self) -> &D {
        self.inner.device.device()
    }

    /// Bytes whose checksums were verified so far.
    #[must_use]
    pub fn verified_bytes(&self) -> u64 {
        self.inner.cache.verified_bytes()
    }

    /// Bytes of the device that the cache holds.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.inner.cache.held_bytes()
    }

    /// Copies of metadata that were found damaged and replaced by their twin.
    #[must_use]
    pub fn damaged_copies(&self) -> u64 {
        self.inner.damaged_copies.get()
    }

    /// Forgets every held extent; for when the driver under the volume was replaced.
    pub fn forget_cached(&self) {
        self.inner.cache.clear();
    }

    /// Size, use and identity of the volume.
    #[must_use]
    pub fn statfs(&self) -> VolumeStat {
        let state = self.inner.state.borrow();
        let free = state.allocator.free_blocks();
        let reserve = state.places_needed(0) * u64::from(crate::format::NODE_BLOCKS) + state.promised_blocks();
        VolumeStat {
            uuid: self.inner.superblock.uuid,
            blocks: self.inner.superblock.blocks.get(),
            free_blocks: free,
            available_blocks: free.saturating_sub(reserve),
            files: state.files,
            directories: state.directories,
            generation: state.durable,
        }
    }

    /// Makes everything that was acknowledged before the call survive a power cut.
    ///
    /// # Errors
    /// The device failed, or the host under the image is full; nothing is lost, and it can be tried again.
    pub async fn sync(&self) -> Result<(), Error> {
        self.inner.settle_removals().await;
        self.inner.checkpoint().await
    }

    /// Verifies the whole volume while it is in use, as of a checkpoint made now.
    ///
    /// # Errors
    /// As [`crate::check()`].
    pub async fn check(&self, progress: &mut dyn FnMut(crate::Progress)) -> Result<crate::Report, Error> {
        self.inner.checkpoint().await?;
        let turn = self.inner.checkpoints.enter_alone().await;
        // From here on no block of the durable checkpoint is dealt out again.
        let pinned = PinnedGeneration::new(&self.inner);
        let checker = crate::check::Checker::load(&self.inner.device).await?;
        drop(turn);
        let report = checker.run(progress).await;
        drop(pinned);
        report
    }
}

/// While it lives, blocks that later checkpoints free are not dealt out.
struct PinnedGeneration<'a, D: Device>(&'a Inner<D>);

impl<'a, D: Device> PinnedGeneration<'a, D> {
    fn new(inner: &'a Inner<D>) -> Self {
        inner.state.borrow_mut().pins += 1;
        Self(inner)
    }
}

impl<D: Device> Drop for PinnedGeneration<'_, D> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().pins -= 1;
    }
}

impl<D: Device> Inner<D> {
    /// Runs one step on the state, reading what it misses until it goes through. A step that faults changed nothing.
    async fn with<T>(&self, mut step: impl FnMut(&mut State<D::Staging>) -> Result<T, Fault>) -> Result<T, Error> {
        let mut failed: Option<Box<Missing>> = None;
        loop {
            let fault = {
                let mut state = self.state.borrow_mut();
                let changes = state.tree.changes();
                state.freed.clear();
                match step(&mut state) {
                    Ok(value) => {
                        self.free_data(&mut state);
                        return Ok(value);
                    }
                    Err(fault) => {
                        debug_assert_eq!(
                            changes,
                            state.tree.changes(),
                            "a step had changed something before it faulted: {fault:?}"
                        );
                        fault
                    }
                }
            };
            match fault {
                Fault::Error(error) => return Err(error),
                Fault::Bitmap(group) => self.load_bitmap(group).await?,
                Fault::Node(missing) => {
                    let Err(error) = self.load_node(&missing).await else { continue };
                    // The node may have been replaced, and its place used again, while we read it: look once more.
                    if failed.as_ref() == Some(&missing) {
                        return Err(error);
                    }
                    failed = Some(missing);
                }
            }
        }
    }

    /// Runs one step that changes the tree by at most `nodes` nodes. `urgent`: it frees more than it takes, so it may use
    /// the reserve.
    async fn change<T>(
        self: &Rc<Self>,
        nodes: u64,
        urgent: bool,
        mut step: impl FnMut(&mut State<D::Staging>) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        for _ in 0..3 {
            if let Some(error) = self.broken.borrow().clone() {
                return Err(error);
            }
            let entered = self.gate.enter().await;
            if self.state.borrow().has_room(nodes, 0, urgent) {
                let promise = Promise::new(self, nodes);
                let result = self.with(&mut step).await;
                drop(promise);
                drop(entered);
                self.schedule_checkpoint();
                return result;
            }
            drop(entered);
            self.checkpoint_for_room().await?;
        }
        Err(Error::NoSpace)
    }

    /// Frees the data blocks that a step gave up, and takes them out of the cache.
    fn free_data(&self, state: &mut State<D::Staging>) {
        let generation = state.generation;
        for (start, blocks) in std::mem::take(&mut state.freed) {
            let readers = self.cache.forget(start, blocks);
            state.allocator.free(start, blocks, generation, &readers);
        }
    }

    /// Reads a node: one that lies within its bounds, and whose pointers can be followed. So whatever a volume says, what
    /// is in memory is a tree.
    async fn load_node(&self, Missing { pointer, bounds }: &Missing) -> Result<(), Error> {
        let mut first_error = None;
        for address in pointer.addresses() {
            let corrupt = |what| Error::Corrupt { structure: Structure::TreeNode, block: address, what };
            let error = match self.device.read(address, crate::format::NODE_BLOCKS).await {
                Ok(extent) => match self.check_node(&extent, pointer, bounds) {
                    Ok(node) => {
                        if first_error.is_some() {
                            self.damaged_copies.set(self.damaged_copies.get() + 1);
                        }
                        self.state.borrow_mut().tree.add_clean(pointer, Rc::new(node));
                        return Ok(());
                    }
                    Err(what) => corrupt(what),
                },
                Err(error) => error.into(),
            };
            first_error.get_or_insert(error);
        }
        Err(first_error.unwrap_or(Error::Corrupt { structure: Structure::TreeNode, block: 0, what: "missing" }))
    }

    /// What was read, if it can be what the pointer means.
    fn check_node(&self, extent: &D::Extent, pointer: &Pointer, bounds: &Bounds) -> Result<Node, &'static str> {
        let node = Node::check(|bytes| extent.copy_out(0, bytes), pointer, &self.superblock.uuid)?;
        node.check_bounds(bounds)?;
        if node.level() > 0 {
            let mut pointers = (0..node.count()).map(|index| node.pointer(index));
            pointers.try_for_each(|pointer| self.superblock.check_pointer(&pointer, node.generation()))?;
        }
        Ok(node)
    }

    async fn load_bitmap(&self, group: u32) -> Result<(), Error> {
        let bitmap = self.state.borrow().allocator.bitmap(group);
        let Some((slot, crc)) = bitmap else {
            return self.state.borrow_mut().allocator.load(group, &[], 0);
        };
        let block = self.superblock.bitmap_block(group, slot);
        let extent = self.device.read(block, 1).await?;
        let mut bytes = vec![0; crate::device::BLOCK_SIZE];
        extent.copy_out(0, &mut bytes);
        if crate::device::crc32c(&bytes) != crc {
            return Err(Error::Corrupt { structure: Structure::Bitmap, block, what: "checksum" });
        }
        self.state.borrow_mut().allocator.load(group, &bytes, block)
    }

    /// Runs `task` to its end even if the caller is dropped, and returns its result.
    async fn detached<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> T {
        let outcome = Rc::new((RefCell::new(None), Bell::default()));
        let theirs = Rc::clone(&outcome);
        self.environment.spawn(Box::pin(async move {
            let value = task.await;
            *theirs.0.borrow_mut() = Some(value);
            theirs.1.ring();
        }));
        loop {
            if let Some(value) = outcome.0.borrow_mut().take() {
                return value;
            }
            outcome.1.heard().await;
        }
    }
}

/// Nodes that a step in progress may change, so that others do not use the room for them.
struct Promise<'a, D: Device> {
    inner: &'a Inner<D>,
    nodes: u64,
}

impl<'a, D: Device> Promise<'a, D> {
    fn new(inner: &'a Inner<D>, nodes: u64) -> Self {
        inner.state.borrow_mut().promised_nodes += nodes;
        Self { inner, nodes }
    }
}

impl<D: Device> Drop for Promise<'_, D> {
    fn drop(&mut self) {
        self.inner.state.borrow_mut().promised_nodes -= self.nodes;
    }
}
