//! Verifies the checksums of file data, in transfers that join what lies together on disk.

use super::Checker;
use crate::device::{BLOCK_SIZE, Device, Extent, MAX_TRANSFER_BLOCKS};
use crate::error::{Error, Structure};
use crate::report::Progress;
use crate::sync::all_of;
use std::cell::RefCell;

/// Transfers in progress at once.
pub(super) const WIDTH: usize = 4;
/// Blocks that are gathered before they are read.
const GATHERED: usize = 2048;

/// A block of a file that waits to be verified.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataBlock {
    pub(super) physical: u64,
    pub(super) crc: u32,
    pub(super) inode: u64,
    /// Which block of the file it is.
    pub(super) block: u64,
    /// Bytes of it that are before the end of the file; the others are zeros.
    pub(super) bytes: usize,
}

impl<D: Device> Checker<'_, D> {
    /// Adds blocks; verifies what was gathered when it is enough.
    pub(super) async fn gather(
        &mut self,
        gathered: &mut Vec<DataBlock>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        if gathered.len() >= GATHERED { self.verify_data(gathered, progress).await } else { Ok(()) }
    }

    /// Verifies and empties what was gathered.
    pub(super) async fn verify_data(
        &mut self,
        gathered: &mut Vec<DataBlock>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        gathered.sort_unstable_by_key(|block| block.physical);
        let found: RefCell<Vec<(DataBlock, String)>> = RefCell::default();
        {
            let this = &*self;
            let transfers = gathered
                .chunk_by(|before, after| before.physical + 1 == after.physical)
                .flat_map(|stretch| stretch.chunks(MAX_TRANSFER_BLOCKS as usize));
            all_of(WIDTH, transfers.map(|transfer| this.verify_transfer(transfer, &found))).await?;
        }
        self.report.data_blocks += gathered.len() as u64;
        self.advance(gathered.len() as u64, progress);
        gathered.clear();
        let mut found = found.into_inner();
        found.sort_unstable_by_key(|(block, _)| block.physical);
        for (block, what) in found {
            let what = format!("{what} (block {} of inode {})", block.block, block.inode);
            self.problem(Structure::Data, block.physical, what);
        }
        Ok(())
    }

    async fn verify_transfer(
        &self,
        transfer: &[DataBlock],
        found: &RefCell<Vec<(DataBlock, String)>>,
    ) -> Result<(), Error> {
        let Some(first) = transfer.first() else { return Ok(()) };
        let bad = match self.read(first.physical, transfer.len() as u32).await? {
            Ok(extent) => wrong_blocks(transfer, &extent),
            Err(_) => transfer.iter().enumerate().collect(),
        };
        for (_, block) in bad {
            // By itself, so that one unreadable block is not the fault of its neighbours; and again, see `read_node`.
            let what = match self.read(block.physical, 1).await? {
                Ok(extent) if wrong_blocks(&[*block], &extent).is_empty() => continue,
                Ok(extent) if extent.crc32c(0, BLOCK_SIZE) != block.crc => "checksum".to_owned(),
                Ok(_) => "not zero after the end of its file".to_owned(),
                Err(what) => what,
            };
            found.borrow_mut().push((*block, what));
        }
        Ok(())
    }
}

fn wrong_blocks<'a, E: Extent>(transfer: &'a [DataBlock], extent: &E) -> Vec<(usize, &'a DataBlock)> {
    let wrong = |(index, block): &(usize, &DataBlock)| {
        if extent.crc32c(index * BLOCK_SIZE, BLOCK_SIZE) != block.crc {
            return true;
        }
        let mut rest = [0; BLOCK_SIZE];
        let rest = &mut rest[block.bytes.min(BLOCK_SIZE)..];
        extent.copy_out(index * BLOCK_SIZE + BLOCK_SIZE - rest.len(), rest);
        rest.iter().any(|&byte| byte != 0)
    };
    transfer.iter().enumerate().filter(wrong).collect()
}
