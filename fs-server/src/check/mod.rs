//! Verifies a whole volume, and changes nothing.
//!
//! One walk over the tree in the order of its keys sees every item once, and from it follows nearly everything:
//! - *structures*: both superblocks, both copies of the newest pack, the bitmaps that it names, the extent of zeros, every
//!   copy of every node ([`fixed`], [`walk`]);
//! - *items*: keys in order and within the bounds that their parents promise, an inode before its entries and extents,
//!   sizes and counts, every block of data ([`items`], [`data`]);
//! - *blocks*: each belongs to one thing and is marked used; what is marked and belongs to nothing is leaked ([`blocks`]);
//! - *names*: each entry means one inode that refers back to it, and each directory hangs from the root ([`names`]).
//!
//! What cannot be reached is not guessed at: below a damaged node nothing is reported as missing or leaked.
//!
//! - Memory: two bits per block of the groups that are in use, the packs (16 bytes per group each), and about 8 MiB that no
//!   volume makes more: a path of nodes for the walk and one for each who looks something up, [`names::BUCKETS`] sums,
//!   thousands of orphans and blocks of data, [`data::WIDTH`] transfers of 1 MiB, the extent of zeros. Where names do not
//!   agree, up to [`names::MAX_RECORDS`] of them are looked at again.
//! - Time: no node and no block of data is read twice for the walk, whatever the volume says; naming what names disagree
//!   takes another walk, and the directories are visited once from the root.
//! - Foreign bytes: everything is checked before it is used; recursion is bounded by the height of the tree, of which each
//!   level is below the one above.

mod blocks;
mod data;
mod fixed;
mod items;
mod names;
mod walk;

use crate::device::Device;
use crate::error::{Error, Structure};
use crate::format::pack::Pack;
use crate::format::superblock::Superblock;
use crate::report::{Progress, Report};
use blocks::Blocks;

/// Verifies every structure, checksum, reachable and leaked block of the volume of `device`, and that directories and
/// inodes agree. Reads only. `progress` is called as blocks are verified.
///
/// # Errors
/// The device failed, or has no volume. What is wrong with a volume is in the report.
pub async fn check<D: Device>(device: &D, progress: &mut dyn FnMut(Progress)) -> Result<Report, Error> {
    Checker::load(device).await?.run(progress).await
}

/// A check that has read what has a fixed place. The rest is not overwritten as long as the blocks that its checkpoint
/// uses are not dealt out again, even if newer checkpoints are written meanwhile.
pub(crate) struct Checker<'a, D> {
    device: &'a D,
    superblock: Superblock,
    /// The newest pack, if any copy of any is whole; its slot and generation.
    pack: Option<Pack>,
    newest_slot: usize,
    generation: u64,
    blocks: Blocks,
    report: Report,
    progress: Progress,
}

impl<'a, D: Device> Checker<'a, D> {
    /// Verifies and reads what has a fixed place. Nobody writes a checkpoint meanwhile.
    ///
    /// # Errors
    /// As [`check`].
    pub(crate) async fn load(device: &'a D) -> Result<Self, Error> {
        let (superblock, _) = crate::volume::read_superblock(device).await?;
        let mut this = Self {
            device,
            blocks: Blocks::new(&superblock),
            superblock,
            pack: None,
            newest_slot: 0,
            generation: 0,
            report: Report { blocks: superblock.blocks.get(), ..Report::default() },
            progress: Progress::default(),
        };
        this.load_fixed().await?;
        Ok(this)
    }

    /// Verifies the rest.
    ///
    /// # Errors
    /// As [`check`].
    pub(crate) async fn run(mut self, progress: &mut dyn FnMut(Progress)) -> Result<Report, Error> {
        progress(self.progress);
        let Some(pack) = self.pack.take() else { return Ok(self.report) };
        self.report.generation = self.generation;
        let totals = self.check_tree(&pack, progress).await?;
        if !totals.incomplete {
            self.check_counters(&pack, &totals);
            self.blocks.report_leaks(&mut self.report);
        }
        self.report.checked_blocks = self.progress.checked_blocks;
        progress(self.progress);
        Ok(self.report)
    }

    fn check_counters(&mut self, pack: &Pack, totals: &items::Totals) {
        self.report.files = totals.files;
        self.report.directories = totals.directories;
        let block = self.newest_pack_block();
        let counters = [
            (pack.head.files.get(), totals.files, "files"),
            (pack.head.directories.get(), totals.directories, "directories"),
        ];
        for (says, are, of_what) in counters {
            if says != are {
                self.problem(Structure::CheckpointPack, block, format!("counts {says} {of_what}, there are {are}"));
            }
        }
        let next = pack.head.next_inode.get();
        if totals.last_inode >= next {
            let what = format!("would deal out inode {next}, and inode {} is in use", totals.last_inode);
            self.problem(Structure::CheckpointPack, block, what);
        }
    }

    fn problem(&mut self, structure: Structure, block: u64, what: impl Into<String>) {
        self.report.add(structure, block, what);
    }

    fn advance(&mut self, blocks: u64, progress: &mut dyn FnMut(Progress)) {
        self.progress.checked_blocks += blocks;
        progress(self.progress);
    }
}
