//! What has a fixed place: superblocks, packs, bitmaps, the extent of zeros.

use super::Checker;
use crate::allocator::{WORDS, node_place_bits};
use crate::device::{BLOCK_SIZE, Device, Extent, crc32c};
use crate::error::{Error, Structure};
use crate::format::pack::UNWRITTEN;
use zerocopy::IntoBytes;

impl<D: Device> Checker<'_, D> {
    pub(super) async fn load_fixed(&mut self) -> Result<(), Error> {
        self.check_superblocks().await;
        self.load_pack().await?;
        self.load_bitmaps().await?;
        self.check_zeros().await?;
        self.progress.total_blocks = self.progress.checked_blocks + self.blocks.used();
        self.report.used_blocks =
            self.superblock.blocks.get() - self.superblock.data_end() + self.superblock.data.get();
        self.report.used_blocks += self.blocks.used();
        Ok(())
    }

    async fn check_superblocks(&mut self) {
        for block in [0, self.superblock.blocks.get() - 1] {
            self.progress.checked_blocks += 1;
            let what = match crate::volume::read_superblock_at(self.device, block).await {
                Ok(found) if found.as_bytes() == self.superblock.as_bytes() => continue,
                Ok(_) => "differs from its twin".to_owned(),
                Err(Error::Corrupt { what, .. }) => what.to_owned(),
                Err(error) => error.to_string(),
            };
            self.damaged_copy(Structure::Superblock, block, &what);
        }
    }

    /// Notes a copy of which another is good.
    pub(super) fn damaged_copy(&mut self, structure: Structure, block: u64, what: &str) {
        self.report.damaged_copies += 1;
        self.problem(structure, block, format!("{what} (its other copy is good)"));
    }

    /// The newest pack. Of the other slot nothing is promised: the next checkpoint writes there, and may be interrupted.
    async fn load_pack(&mut self) -> Result<(), Error> {
        let slots = [
            crate::volume::read_slot(self.device, &self.superblock, 0).await?,
            crate::volume::read_slot(self.device, &self.superblock, 1).await?,
        ];
        self.progress.checked_blocks += u64::from(self.superblock.pack_blocks.get()) * 4;
        self.newest_slot = usize::from(slots[1].generation() > slots[0].generation());
        let Some(generation) = slots[self.newest_slot].generation() else {
            for &(block, what) in slots.iter().flat_map(|slot| &slot.problems) {
                self.problem(Structure::CheckpointPack, block, format!("{what}; no other pack counts"));
            }
            return Ok(());
        };
        self.generation = generation;
        let [first, second] = slots;
        let newest = if self.newest_slot == 0 { first } else { second };
        for (block, what) in newest.problems {
            self.damaged_copy(Structure::CheckpointPack, block, what);
        }
        self.pack = newest.pack;
        self.check_pack();
        Ok(())
    }

    pub(super) fn newest_pack_block(&self) -> u64 {
        self.superblock.packs[self.newest_slot][0].get()
    }

    fn check_pack(&mut self) {
        let Some(pack) = self.pack.take() else { return };
        let block = self.newest_pack_block();
        let free: u64 = pack.table.iter().map(|entry| u64::from(entry.free.get())).sum();
        if free != pack.head.free_blocks.get() {
            let what = format!("counts {} free blocks, its groups have {free}", pack.head.free_blocks);
            self.problem(Structure::CheckpointPack, block, what);
        }
        let blank = pack.head.reserved.iter().all(|&byte| byte == 0)
            && pack.head.snapshots.as_bytes().iter().all(|&byte| byte == 0)
            && pack.head.log_sequence == 0
            && pack.head.log_offset == 0
            && pack.table.iter().all(|entry| entry.reserved == [0; 3]);
        if !blank {
            self.problem(
                Structure::CheckpointPack,
                block,
                "has content where only features that are not in use have any",
            );
        }
        self.pack = Some(pack);
    }

    async fn load_bitmaps(&mut self) -> Result<(), Error> {
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let blank = crate::allocator::Allocator::blank_table(&self.superblock);
        for (index, entry) in pack.table.iter().enumerate() {
            let group = index as u32;
            if entry.slot == UNWRITTEN {
                let counts = |entry: &crate::format::pack::GroupEntry| (entry.free.get(), entry.free_nodes.get());
                if blank.get(index).is_some_and(|blank| counts(blank) != counts(entry)) {
                    let what = format!("group {group} has no bitmap, and other counts than an empty group");
                    self.problem(Structure::CheckpointPack, self.newest_pack_block(), what);
                }
                continue;
            }
            let block = self.superblock.bitmap_block(group, entry.slot);
            let mut bytes = vec![0; BLOCK_SIZE];
            self.device.read(block, 1).await?.copy_out(0, &mut bytes);
            self.progress.checked_blocks += 1;
            if crc32c(&bytes) != entry.crc.get() {
                self.problem(Structure::Bitmap, block, "checksum");
                self.blocks.set_unknown(group);
                continue;
            }
            let mut bits = Box::new([0_u64; WORDS]);
            for (word, eight) in bits.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*eight);
            }
            let free: u32 = bits.iter().map(|word| word.count_zeros()).sum();
            let places: u32 = bits.iter().map(|word| node_place_bits(!word).count_ones()).sum();
            if (free, places) != (entry.free.get(), entry.free_nodes.get()) {
                let what = format!(
                    "has {free} free blocks and {places} places of nodes, its group counts {} and {}",
                    entry.free, entry.free_nodes
                );
                self.problem(Structure::Bitmap, block, what);
            }
            if !self.blocks.set_bitmap(group, bits) {
                self.problem(Structure::Bitmap, block, "calls blocks free that have a fixed use");
            }
        }
        self.pack = Some(pack);
        Ok(())
    }

    async fn check_zeros(&mut self) -> Result<(), Error> {
        let first = self.superblock.zeros.get();
        let blocks = self.superblock.zero_blocks.get();
        let bytes = crate::volume::read_bytes(self.device, first, blocks).await?;
        for (index, block) in bytes.chunks(BLOCK_SIZE).enumerate() {
            if block != [0; BLOCK_SIZE] {
                self.problem(Structure::ZeroExtent, first + index as u64, "is not zero");
            }
        }
        self.progress.checked_blocks += blocks;
        Ok(())
    }
}
