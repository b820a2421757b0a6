//! Room of the host that is kept for checkpoints.
//!
//! A sparse image takes its blocks of the host when they are first written. A host that is full would then refuse the
//! nodes of the very checkpoint that makes a removal durable, and the removal could free nothing. So some free blocks of
//! the volume, the *ballast*, are written with zeros and set aside; where the host has no room for a checkpoint, they are
//! discarded, and the checkpoint has theirs. On disk they are free all the time: a crash leaks nothing.

use super::Inner;
use crate::allocator::Reader;
use crate::device::{BLOCK_SIZE, Device, DeviceError, MAX_TRANSFER_BLOCKS, Staging};
use crate::tree::Fault;
use std::any::Any;
use std::rc::Rc;

/// 8 MiB: 256 nodes, each in two copies.
const MOST_BLOCKS: u64 = 2048;
/// Of a small volume no more than this part.
const PART: u64 = 64;

/// Blocks that are set aside; the allocator has them back when this is dropped, after its next checkpoint.
pub(crate) struct Ballast {
    runs: Vec<(u64, u32)>,
    keep: Rc<dyn Any>,
}

impl<D: Device> Inner<D> {
    /// Sets ballast aside if there is none. What cannot be had now is tried again after the next checkpoint.
    pub(super) async fn take_ballast(self: &Rc<Self>) {
        if self.ballast.borrow().is_some() {
            return;
        }
        let mut ballast = Ballast { runs: Vec::new(), keep: Rc::new(()) };
        let mut left = MOST_BLOCKS.min(self.superblock.blocks.get() / PART) as u32;
        while left > 0 {
            let want = left.min(MAX_TRANSFER_BLOCKS);
            let reader: Reader = Rc::downgrade(&ballast.keep);
            let aside = self
                .with(|state| {
                    let reserve = state.places_needed(0) + state.floor;
                    state.allocator.set_aside(want, reserve, &reader).map_err(Fault::from)
                })
                .await;
            let Ok(run) = aside else { break };
            ballast.runs.push(run);
            left -= run.1;
            let mut zeros = self.stage(run.1).await;
            zeros.zero(0, run.1 as usize * BLOCK_SIZE);
            if self.device.write(run.0, &zeros, 0, run.1).await.is_err() {
                let _ = self.discard_ballast(ballast).await;
                return;
            }
        }
        *self.ballast.borrow_mut() = Some(ballast);
    }

    /// Gives the host the room of the ballast. Says whether there was any.
    pub(super) async fn drop_ballast(&self) -> bool {
        let ballast = self.ballast.borrow_mut().take();
        match ballast {
            Some(ballast) => self.discard_ballast(ballast).await.is_ok(),
            None => false,
        }
    }

    async fn discard_ballast(&self, ballast: Ballast) -> Result<(), DeviceError> {
        for (start, blocks) in ballast.runs {
            self.device.discard(start, u64::from(blocks)).await?;
        }
        Ok(())
    }
}
