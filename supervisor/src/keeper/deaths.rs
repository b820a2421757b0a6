//! Who lives, who has died, and whose fence has ended: first the status page says it, then the supervisor hears it.

use std::time::Instant;

use kernel_ipc::Epoch;
use kernel_ipc::sys::futex;

use super::wire::{Notice, SLOTS, SUPERVISOR_SLOT, Tell};
use super::{HEARD_WITHIN, Keeper};
use crate::sys::process;

impl Keeper {
    /// Reads the signals that came and reaps whoever died. Gives the wait status of the supervisor if it did.
    pub(super) fn signals_came(&mut self) -> Option<i32> {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            // One wish at a time, however often it is uttered.
            if signal.ssi_signo != libc::SIGCHLD as u32 && self.heard_by.is_none() {
                self.heard_by = Some(Instant::now() + HEARD_WITHIN);
                self.tell(Notice::new(Tell::Terminate, 0, signal.ssi_signo.into(), 0), None);
            }
        }
        self.reap()
    }

    /// Reaps whoever died: first the status page says it, then the supervisor hears it.
    fn reap(&mut self) -> Option<i32> {
        let mut supervisor = None;
        while let Some((pid, wait_status)) = process::reap() {
            let Some((slot, epoch)) = self.slots.exited(pid, wait_status) else {
                self.standby.exited(pid); // Or an orphan that we adopted.
                continue;
            };
            self.died(slot);
            if slot == SUPERVISOR_SLOT {
                supervisor = Some(wait_status);
            } else {
                self.tell(Notice::new(Tell::Exited, slot, epoch, wait_status as u32 as u64), None);
            }
        }
        supervisor
    }

    /// Looks which fences ended: the kernel has let go of everything which those processes gave it.
    pub(super) fn fences_ended(&mut self) {
        for slot in 0..SLOTS {
            while let Some(epoch) = self.slots.take_ended_fence(slot) {
                self.says_what_is_fenced(slot);
                self.tell(Notice::new(Tell::Fenced, slot, epoch, 0), None);
            }
        }
    }

    /// The status page says up to which epoch of `slot` all are dead and fenced.
    pub(super) fn says_what_is_fenced(&self, slot: u32) {
        self.status.fenced(slot, Epoch(self.slots.fenced(slot)));
    }

    /// The status page says that this epoch of `slot` lives.
    pub(super) fn lives(&self, slot: u32, epoch: u64) {
        self.status.lives(slot, Epoch(epoch));
    }

    /// The status page says that nothing lives in `slot`, and whoever sleeps on its word is woken.
    pub(super) fn died(&self, slot: u32) {
        self.status.died(slot);
        if let Some(word) = self.status.word(slot) {
            futex::wake(word, i32::MAX);
        }
    }
}
