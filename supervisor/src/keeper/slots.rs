//! Who runs in which slot: fixed-size tables.
//!
//! - A slot is free when nothing lives in it and at most [`MAX_DEAD`] of its epochs are not fenced: a component need not
//!   wait until the kernel has let go of what its last run gave it. A guest's slot is free when all are.
//! - Fences of a slot are told in the order of its epochs, so that "fenced up to this one" is true. An epoch that was passed over
//!   (its supervisor died before it began) has nothing to be let go of: it counts as fenced.
//! - How a process ended is remembered until the slot is used again: the supervisor may have missed it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{SLOTS, SUPERVISOR_SLOT, Slotful, UNFENCED};
use crate::sys::process::Child;

/// Most epochs of one slot that are dead and not fenced when it is used again.
pub(crate) const MAX_DEAD: usize = 4;

#[derive(Debug, Default)]
struct Slot {
    child: Option<Child>,
    guest: bool,
    /// What the present epoch leaves when it dies.
    run: Run,
    /// Epochs that are dead and not fenced, oldest first.
    dead: VecDeque<Run>,
    /// Rises with each start: the order in which the keeper ends them, backwards.
    order: u64,
    /// Its last epoch, the process of that, and how it ended.
    epoch: u64,
    pid: i32,
    wait_status: i32,
}

/// One epoch of a slot.
#[derive(Debug, Default)]
struct Run {
    epoch: u64,
    /// Read end of the fence; none: nobody waits for it.
    fence: Option<OwnedFd>,
}

impl Slot {
    /// What lived here has died.
    fn died(&mut self) {
        self.child = None;
        self.guest = false;
        let run = std::mem::take(&mut self.run);
        if run.fence.is_some() {
            self.dead.push_back(run);
        }
    }
}

/// All slots of the node.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    starts: u64,
}

impl Slots {
    pub(super) fn new() -> Slots {
        let slot = || Slot { dead: VecDeque::with_capacity(MAX_DEAD + 1), ..Slot::default() };
        Slots { slots: (0..SLOTS).map(|_| slot()).collect(), starts: 0 }
    }

    fn slot(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)
    }

    /// Nothing lives in it, and at most `dead` of its epochs are not fenced.
    pub(super) fn is_free(&self, slot: u32, dead: usize) -> bool {
        self.slot(slot).is_some_and(|slot| slot.child.is_none() && !slot.guest && slot.dead.len() <= dead)
    }

    pub(super) fn started(&mut self, slot: u32, epoch: u64, child: Child, fence: Option<OwnedFd>) {
        self.starts += 1;
        let order = self.starts;
        if let Some(slot) = self.slot_mut(slot) {
            (slot.epoch, slot.pid, slot.wait_status) = (epoch, child.pid, 0);
            (slot.child, slot.order, slot.run) = (Some(child), order, Run { epoch, fence });
        }
    }

    pub(super) fn guest(&mut self, slot: u32, epoch: u64, fence: OwnedFd) {
        if let Some(slot) = self.slot_mut(slot) {
            (slot.epoch, slot.guest, slot.run) = (epoch, true, Run { epoch, fence: Some(fence) });
        }
    }

    pub(super) fn guest_gone(&mut self, slot: u32) {
        if let Some(slot) = self.slot_mut(slot).filter(|slot| slot.guest) {
            slot.died();
        }
    }

    /// Takes the living process out of a slot, which is left as if it had died there.
    pub(super) fn take(&mut self, slot: u32) -> Option<Child> {
        let slot = self.slot_mut(slot)?;
        let child = slot.child.take()?;
        slot.died();
        Some(child)
    }

    /// Whether this epoch of the slot has not died.
    pub(super) fn lives(&self, slot: u32, epoch: u64) -> bool {
        self.slot(slot).is_some_and(|slot| slot.run.epoch == epoch && (slot.child.is_some() || slot.guest))
    }

    pub(super) fn pidfd(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        Some(self.slot(slot)?.child.as_ref()?.pidfd.as_fd())
    }

    /// Forgets a reaped process: its slot and epoch, if it was one of ours.
    pub(super) fn exited(&mut self, pid: i32, wait_status: i32) -> Option<(u32, u64)> {
        let (number, slot) = self
            .slots
            .iter_mut()
            .enumerate()
            .find(|(_, slot)| slot.child.as_ref().is_some_and(|child| child.pid == pid))?;
        let epoch = slot.run.epoch;
        slot.wait_status = wait_status;
        slot.died();
        Some((number as u32, epoch))
    }

    /// Its last epoch.
    pub(super) fn epoch(&self, slot: u32) -> u64 {
        self.slot(slot).map_or(0, |slot| slot.epoch)
    }

    /// What the supervisor wants to know of a slot.
    pub(super) fn describe(&self, slot: u32) -> Option<Slotful> {
        let slot = self.slot(slot)?;
        let mut unfenced = [0; UNFENCED];
        let runs = slot.dead.iter().chain([&slot.run]).filter(|run| run.fence.is_some());
        unfenced.iter_mut().zip(runs).for_each(|(to, run)| *to = run.epoch);
        Some(Slotful {
            epoch: slot.epoch,
            pid: slot.pid as u32,
            wait_status: slot.wait_status,
            process: slot.child.is_some().into(),
            guest: slot.guest.into(),
            unfenced,
        })
    }

    /// The fences that are waited for, at most one a slot: of the oldest of its dead. (One that lives may have closed its
    /// fence: that means nothing before it has died.)
    pub(super) fn fences(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.slots.iter().filter_map(|slot| Some(slot.dead.front()?.fence.as_ref()?.as_fd()))
    }

    /// The slot's oldest dead epoch, if its fence has ended, once.
    pub(super) fn take_ended_fence(&mut self, slot: u32) -> Option<u64> {
        let dead = &mut self.slot_mut(slot)?.dead;
        dead.front()?.fence.as_ref().filter(|fence| at_end(fence.as_fd()))?;
        dead.pop_front().map(|run| run.epoch)
    }

    /// All epochs of the slot up to this one are dead and fenced.
    pub(super) fn fenced(&self, slot: u32) -> u64 {
        let Some(slot) = self.slot(slot) else { return 0 };
        let living = Some(&slot.run).filter(|run| run.epoch > 0);
        slot.dead.front().or(living).map_or(slot.epoch, |oldest| oldest.epoch.saturating_sub(1))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_fenced_up_to_its_oldest_epoch_that_is_not() {
        let mut slots = Slots::new();
        let begins = |slots: &mut Slots, epoch| {
            let (fence, end) = nix::unistd::pipe().unwrap();
            slots.guest(7, epoch, fence);
            end
        };
        assert_eq!(slots.fenced(7), 0);
        let first = begins(&mut slots, 1);
        assert_eq!(slots.fenced(7), 0);
        slots.guest_gone(7);
        // The second one never began.
        let third = begins(&mut slots, 3);
        assert_eq!(slots.fenced(7), 0);
        drop(first);
        assert_eq!((slots.take_ended_fence(7), slots.fenced(7)), (Some(1), 2));
        slots.guest_gone(7);
        assert_eq!((slots.take_ended_fence(7), slots.fenced(7)), (None, 2));
        drop(third);
        assert_eq!((slots.take_ended_fence(7), slots.fenced(7)), (Some(3), 3));
        let _sixth = begins(&mut slots, 6);
        assert_eq!(slots.fenced(7), 5, "no dead one was left when it began");
        assert_eq!((slots.fenced(8), slots.fenced(SLOTS)), (0, 0));
    }
}
