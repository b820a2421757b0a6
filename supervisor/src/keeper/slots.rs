//! Who runs in which slot: fixed-size tables.
//!
//! - A slot is free when nothing lives in it and its last epoch is fenced; only then is it used again, so that at most
//!   one epoch of a slot is unfenced.
//! - Kept memory goes when its slot is fenced, or when its only reader is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{SLOTS, SUPERVISOR_SLOT};
use crate::sys::process::Child;

/// Most segments kept for one slot: one for each reader that may live, and for each that has just gone.
const MAX_KEPT: usize = 2 * SLOTS as usize;

#[derive(Debug, Default)]
struct Slot {
    epoch: u64,
    child: Option<Child>,
    guest: bool,
    /// Read end of the fence, until it ends.
    fence: Option<OwnedFd>,
    /// Memory that its process writes, with the reader of each.
    kept: Vec<(u64, OwnedFd)>,
    /// Rises with each start: the order in which the keeper ends them, backwards.
    order: u64,
}

/// All slots of the node.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    starts: u64,
}

impl Slots {
    pub(super) fn new() -> Slots {
        let slots = (0..SLOTS).map(|_| Slot { kept: Vec::with_capacity(4), ..Slot::default() }).collect();
        Slots { slots, starts: 0 }
    }

    fn slot(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)
    }

    /// Nothing lives in it and nothing of its last epoch is with the kernel.
    pub(super) fn is_free(&self, slot: u32) -> bool {
        self.slot(slot).is_some_and(|slot| slot.child.is_none() && !slot.guest && slot.fence.is_none())
    }

    pub(super) fn started(&mut self, slot: u32, epoch: u64, child: Child, fence: Option<OwnedFd>) {
        self.starts += 1;
        let order = self.starts;
        if let Some(slot) = self.slot_mut(slot) {
            *slot = Slot { epoch, child: Some(child), guest: false, fence, kept: Vec::new(), order };
        }
    }

    pub(super) fn guest(&mut self, slot: u32, epoch: u64, fence: OwnedFd) {
        if let Some(slot) = self.slot_mut(slot) {
            *slot = Slot { epoch, guest: true, fence: Some(fence), ..Slot::default() };
        }
    }

    pub(super) fn guest_gone(&mut self, slot: u32) {
        if let Some(slot) = self.slot_mut(slot) {
            slot.guest = false;
        }
    }

    /// Whether this epoch of the slot has not died.
    pub(super) fn lives(&self, slot: u32, epoch: u64) -> bool {
        self.slot(slot).is_some_and(|slot| slot.epoch == epoch && (slot.child.is_some() || slot.guest))
    }

    pub(super) fn pidfd(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        Some(self.slot(slot)?.child.as_ref()?.pidfd.as_fd())
    }

    /// Forgets a reaped process: its slot and epoch, if it was one of ours.
    pub(super) fn exited(&mut self, pid: i32) -> Option<(u32, u64)> {
        let (number, slot) = self
            .slots
            .iter_mut()
            .enumerate()
            .find(|(_, slot)| slot.child.as_ref().is_some_and(|child| child.pid == pid))?;
        slot.child = None;
        Some((number as u32, slot.epoch))
    }

    /// Keeps memory that the slot's process writes, until it is fenced or the reader is gone.
    ///
    /// # Errors
    /// `EMFILE` when it has too much of it already.
    pub(super) fn keep(&mut self, slot: u32, reader: u64, memory: OwnedFd) -> io::Result<()> {
        let kept = &mut self.slot_mut(slot).ok_or(Errno::EINVAL)?.kept;
        if kept.len() >= MAX_KEPT {
            return Err(Errno::EMFILE.into());
        }
        kept.push((reader, memory));
        Ok(())
    }

    /// Nobody will read what the slot's process wrote for this reader.
    pub(super) fn reader_gone(&mut self, slot: u32, reader: u64) {
        if let Some(slot) = self.slot_mut(slot) {
            slot.kept.retain(|(of, _)| *of != reader);
        }
    }

    /// The fences of the dead that have not ended. (One that lives may have closed its fence: nothing to wait for.)
    pub(super) fn fences(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let dead = self.slots.iter().filter(|slot| slot.child.is_none() && !slot.guest);
        dead.filter_map(|slot| Some(slot.fence.as_ref()?.as_fd()))
    }

    /// The epoch whose fence has ended, once. Its kept memory goes.
    pub(super) fn take_ended_fence(&mut self, slot: u32) -> Option<u64> {
        let slot = self.slot_mut(slot)?;
        // A process that closes its fence early has not ended: the fence counts from its death.
        let ended =
            slot.child.is_none() && !slot.guest && slot.fence.as_ref().is_some_and(|fence| at_end(fence.as_fd()));
        if !ended {
            return None;
        }
        slot.fence = None;
        slot.kept.clear();
        Some(slot.epoch)
    }

    /// The component's slot that was started last among those that live.
    pub(super) fn last_started(&self) -> Option<u32> {
        let living = self
            .slots
            .iter()
            .enumerate()
            .filter(|(number, slot)| *number != SUPERVISOR_SLOT as usize && slot.child.is_some());
        living.max_by_key(|(_, slot)| slot.order).map(|(number, _)| number as u32)
    }

    /// Whether any process is left.
    pub(super) fn any(&self) -> bool {
        self.slots.iter().any(|slot| slot.child.is_some())
    }
}

fn at_end(fence: BorrowedFd<'_>) -> bool {
    let mut set = [PollFd::new(fence, PollFlags::empty())];
    poll(&mut set, PollTimeout::ZERO).is_ok()
        && set[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}
