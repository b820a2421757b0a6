//! Making a volume, and mounting one.

use super::state::{State, new_inode};
use super::{Inner, MountOptions, Volume};
use crate::allocator::Allocator;
use crate::cache::ExtentCache;
use crate::device::{BLOCK_SIZE, Device, Environment, Extent};
use crate::error::{Error, Structure};
use crate::format::items::{FIRST_INODE, FileKind, ROOT};
use crate::format::pack::Pack;
use crate::format::superblock::{ANOTHER_VERSION, Superblock, UNFINISHED};
use crate::format::{NODE_SIZE, Pointer};
use crate::room::Roomy;
use crate::sync::both;
use crate::tree::{AddressMap, Tree};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

/// How a volume is made.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Copies of each node: 1 or 2.
    pub node_copies: u8,
    /// Bits of the hash of a name that are used; fewer than 64 only to test collisions.
    pub name_hash_bits: u8,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self { node_copies: 2, name_hash_bits: 64 }
    }
}

/// Reads the superblock of a device: the first block, or its copy in the last.
pub(crate) async fn read_superblock<D: Device>(device: &D) -> Result<(Superblock, bool), Error> {
    if device.blocks() == 0 {
        return Err(Error::NotAVolume("the device is empty"));
    }
    let first = match read_superblock_at(device, 0).await {
        Ok(superblock) => return fits(device, superblock).map(|superblock| (superblock, false)),
        Err(error) => error,
    };
    // Only a damaged or unreadable first block is replaced; one that says something else is believed.
    if matches!(first, Error::Unfinished | Error::Unsupported(_)) || first == ANOTHER_VERSION {
        return Err(first);
    }
    let Ok(copy) = read_superblock_at(device, device.blocks() - 1).await else { return Err(first) };
    if copy.blocks.get() != device.blocks() {
        return Err(first);
    }
    Ok((copy, true))
}

pub(crate) async fn read_superblock_at<D: Device>(device: &D, block: u64) -> Result<Superblock, Error> {
    let mut bytes = vec![0; BLOCK_SIZE];
    device.read(block, 1).await?.copy_out(0, &mut bytes);
    Superblock::check(&bytes, block)
}

fn fits<D: Device>(device: &D, superblock: Superblock) -> Result<Superblock, Error> {
    let (expected_blocks, device_blocks) = (superblock.blocks.get(), device.blocks());
    if device_blocks < expected_blocks {
        return Err(Error::Truncated { expected_blocks, device_blocks });
    }
    Ok(superblock)
}

/// A pack that was read from a slot, or why there is none.
pub(crate) struct SlotPack {
    pub(crate) pack: Option<Pack>,
    /// What was wrong with each copy that does not count.
    pub(crate) problems: Vec<(u64, &'static str)>,
}

impl SlotPack {
    pub(crate) fn generation(&self) -> Option<u64> {
        self.pack.as_ref().map(|pack| pack.head.generation.get())
    }
}

/// Reads both copies of the pack of a slot.
pub(crate) async fn read_slot<D: Device>(device: &D, superblock: &Superblock, slot: usize) -> Result<SlotPack, Error> {
    let mut found = SlotPack { pack: None, problems: Vec::new() };
    let mut whole = Vec::new();
    let mut first_error = None;
    let copies = superblock.packs[slot & 1];
    let read = async |copy: usize| read_bytes(device, copies[copy].get(), superblock.pack_blocks.get().into()).await;
    let (first, second) = both(read(0), read(1)).await;
    for (copy, bytes) in copies.iter().zip([first, second]) {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                first_error.get_or_insert(error);
                found.problems.push((copy.get(), "cannot be read"));
                continue;
            }
        };
        match Pack::check(&bytes, superblock) {
            Ok(pack) => {
                let generation = pack.head.generation.get();
                whole.push((copy.get(), generation));
                if found.generation().is_none_or(|other| other < generation) {
                    found.pack = Some(pack);
                }
            }
            Err(what) => found.problems.push((copy.get(), what)),
        }
    }
    let newest = found.generation();
    let older = whole.iter().filter(|&&(_, generation)| Some(generation) < newest);
    found.problems.extend(older.map(|&(block, _)| (block, "older than its twin")));
    match (found.pack.is_some(), first_error) {
        // A slot that cannot be read may hold the newest state: an older one must not be taken for it.
        (false, Some(error)) => Err(error),
        _ => Ok(found),
    }
}

/// Reads whole blocks into memory.
pub(crate) async fn read_bytes<D: Device>(device: &D, block: u64, blocks: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; blocks as usize * BLOCK_SIZE];
    let step = crate::device::MAX_TRANSFER_BLOCKS as usize * BLOCK_SIZE;
    for (index, part) in bytes.chunks_mut(step).enumerate() {
        let at = block + (index * step / BLOCK_SIZE) as u64;
        device.read(at, (part.len() / BLOCK_SIZE) as u32).await?.copy_out(0, part);
    }
    Ok(bytes)
}

impl<D: Device> Volume<D> {
    /// Makes an empty volume that fills the device; whatever was there is lost. The superblock is written last: before
    /// that it is [unfinished](Error::Unfinished).
    ///
    /// # Errors
    /// [`Error::BadGeometry`], or the device failed.
    pub async fn format(
        device: D,
        environment: Rc<dyn Environment>,
        format: &FormatOptions,
        options: MountOptions,
    ) -> Result<Self, Error> {
        let mut superblock = Superblock::lay_out(device.blocks(), format.node_copies, format.name_hash_bits)?;
        superblock.created_ns = U64::new(environment.now_ns());
        for part in [&mut superblock.uuid, &mut superblock.hash_key] {
            part[..8].copy_from_slice(&environment.random().to_le_bytes());
            part[8..].copy_from_slice(&environment.random().to_le_bytes());
        }
        superblock.seal();
        let table = Allocator::blank_table(&superblock);
        let state = new_state(&superblock, &options, Pointer::default(), &table);
        let device = Roomy::new(device, environment.clone());
        let volume = assemble(device, environment, superblock, options, state);
        let inner = &volume.inner;
        let blank = vec![0; superblock.zero_blocks.get() as usize * BLOCK_SIZE];
        inner.write_bytes(superblock.zeros.get(), &blank).await?;
        let block = &blank[..BLOCK_SIZE];
        for copy in superblock.packs.as_flattened() {
            inner.write_bytes(copy.get(), block).await?;
        }
        let mut unfinished = block.to_vec();
        unfinished[..UNFINISHED.len()].copy_from_slice(&UNFINISHED);
        inner.write_bytes(0, &unfinished).await?;
        {
            let mut state = inner.state.borrow_mut();
            let mut raw =
                new_inode(FileKind::Directory, superblock.created_ns.get(), ROOT, 0, inner.environment.now_ns());
            raw.links.set(1);
            state.put_inode(ROOT, &raw).map_err(|_| Error::BadGeometry("no room for a root"))?;
            state.directories = 1;
        }
        inner.checkpoint().await?;
        inner.write_bytes(superblock.blocks.get() - 1, superblock.as_bytes()).await?;
        inner.write_bytes(0, superblock.as_bytes()).await?;
        inner.device.flush().await?;
        Ok(volume)
    }

    /// Mounts the volume of a device.
    ///
    /// # Errors
    /// [`Error::NotAVolume`], [`Error::Truncated`], [`Error::Unsupported`], [`Error::Corrupt`], or the device failed.
    pub async fn mount(device: D, environment: Rc<dyn Environment>, options: MountOptions) -> Result<Self, Error> {
        let volume = Self::mount_to_read(device, environment, options).await?;
        volume.flush_mounted().await?;
        volume.reap().await?;
        Ok(volume)
    }

    /// Mounts the volume of a device. Before anything is changed there has to come [`flush_mounted`](Self::flush_mounted); what
    /// nobody names or holds is left for [`reap`](Self::reap).
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub async fn mount_to_read(
        device: D,
        environment: Rc<dyn Environment>,
        options: MountOptions,
    ) -> Result<Self, Error> {
        let device = Roomy::new(device, environment.clone());
        let (superblock, from_copy) = read_superblock(&device).await?;
        let (slot, pack, copies) = newest_slot(&device, &superblock).await?;
        superblock.check_pointer(&pack.head.root, pack.head.generation.get()).map_err(|what| Error::Corrupt {
            structure: Structure::TreeNode,
            block: pack.head.root.primary(),
            what,
        })?;
        let mut state = new_state(&superblock, &options, pack.head.root, &pack.table);
        state.next_inode = pack.head.next_inode.get();
        state.files = pack.head.files.get();
        state.directories = pack.head.directories.get();
        state.generation = pack.head.generation.get() + 1;
        state.durable = pack.head.generation.get();
        state.durable_slot = slot;
        let volume = assemble(device, environment, superblock, options, state);
        volume.inner.damaged_copies.set(copies.problems.len() as u64 + u64::from(from_copy));
        volume.inner.complete_pack(&pack, &copies).await;
        volume.inner.mounted_ledger.set((pack.head.ledger.get(), pack.head.ledger_position.get()));
        volume.stat(volume.root()).await?;
        Ok(volume)
    }

    /// Makes the checkpoint that was mounted durable. A process that died may have written it a moment ago, into the disk's cache:
    /// what it calls free is still used by the one that a cut of power would bring back.
    ///
    /// # Errors
    /// The device failed.
    pub async fn flush_mounted(&self) -> Result<(), Error> {
        Ok(self.inner.device.flush().await?)
    }

    /// Frees what nobody names or [holds](Self::hold).
    ///
    /// # Errors
    /// The device failed, or the volume is damaged.
    pub async fn reap(&self) -> Result<(), Error> {
        // What is being freed already is on the list, too.
        self.inner.settle_removals().await;
        self.inner.reap_orphans().await
    }
}

impl<D: Device> Inner<D> {
    /// Writes the copies that a pack lacks: a power cut may have come between the two. Not flushed: that comes before any change.
    async fn complete_pack(self: &Rc<Self>, pack: &Pack, found: &SlotPack) {
        if found.problems.is_empty() {
            return;
        }
        let bytes = pack.encode();
        for &(block, _) in &found.problems {
            // Where this fails the pack stays as good as it was.
            let _ = self.write_bytes(block, &bytes).await;
        }
    }
}

/// The slot with the newest pack that counts, and which of the two it is.
async fn newest_slot<D: Device>(device: &D, superblock: &Superblock) -> Result<(usize, Pack, SlotPack), Error> {
    let (first, second) = both(read_slot(device, superblock, 0), read_slot(device, superblock, 1)).await;
    let (first, second) = (first?, second?);
    let newest = usize::from(second.generation() > first.generation());
    let mut slot = if newest == 0 { first } else { second };
    let Some(pack) = slot.pack.take() else {
        let (block, what) = slot.problems.first().copied().unwrap_or((superblock.packs[0][0].get(), "missing"));
        return Err(Error::Corrupt { structure: Structure::CheckpointPack, block, what });
    };
    Ok((newest, pack, slot))
}

fn new_state<S>(
    superblock: &Superblock,
    options: &MountOptions,
    root: Pointer,
    table: &[crate::format::pack::GroupEntry],
) -> State<S> {
    let allocator = Allocator::new(superblock, table);
    let copies = u64::from(superblock.node_copies);
    let data_places = (superblock.data_end() - superblock.data.get()) / u64::from(crate::format::NODE_BLOCKS);
    // 2 % of the volume, and enough nodes for a removal on the smallest one.
    let floor = (data_places / 50).clamp(10 * copies, 1024 * copies);
    let limit = (options.node_bytes / NODE_SIZE).max(64);
    // Of a small volume, one checkpoint must not take more than a part.
    let dirty_hard = (limit / 2).min((data_places / (8 * copies)) as usize).max(24);
    State {
        tree: Tree::new(root, superblock.uuid, superblock.node_copies, limit),
        allocator,
        next_inode: FIRST_INODE,
        files: 0,
        directories: 0,
        generation: 1,
        durable: 0,
        durable_slot: 1,
        promised_nodes: 0,
        vnodes: AddressMap::default(),
        runs: 0,
        staged_blocks: 0,
        written_blocks_waiting: 0,
        freed: Vec::new(),
        truncating: 0,
        pins: 0,
        data: superblock.data.get()..superblock.data_end(),
        hash_key: superblock.hash_key,
        hash_bits: superblock.name_hash_bits,
        copies,
        floor,
        dirty_soft: dirty_hard / 4 * 3,
        dirty_hard,
    }
}

fn assemble<D: Device>(
    device: Roomy<D>,
    environment: Rc<dyn Environment>,
    superblock: Superblock,
    options: MountOptions,
    state: State<D::Staging>,
) -> Volume<D> {
    let cache = Rc::new(ExtentCache::new(options.cache_bytes, options.cache_entries));
    device.set_holder(cache.clone());
    Volume {
        inner: Rc::new(Inner {
            device,
            environment,
            superblock,
            options,
            state: RefCell::new(state),
            cache,
            gate: Rc::default(),
            checkpoints: Rc::default(),
            written: crate::sync::Bell::default(),
            freezes: Cell::new(0),
            durable_freeze: Cell::new(0),
            checkpoint_scheduled: Cell::new(false),
            suspect_pack: Cell::new(false),
            broken: RefCell::new(None),
            damaged_copies: Cell::new(0),
            ballast: RefCell::default(),
            reaping: Cell::new(0),
            reaped: crate::sync::Bell::default(),
            journal: RefCell::default(),
            mounted_ledger: Cell::default(),
        }),
    }
}
