//! Callers are woken at their deadlines: one timer a session, armed for the earliest of them or earlier.

use std::time::Duration;

use super::Inner;
use crate::runtime;
use crate::session::by_slot::bit;
use crate::session::now;

impl Inner {
    /// Sees to it that callers are woken at `deadline`, which is earlier than anything the timer waits for.
    pub(super) fn arm(&self, deadline: u64) {
        self.timer_at.set(deadline);
        let this = self.this.clone();
        let timer = runtime::spawn(async move {
            let mut at = deadline;
            while at != u64::MAX {
                runtime::sleep(Duration::from_nanos(at.saturating_sub(now()))).await;
                let Some(this) = this.upgrade() else { return };
                at = this.expire();
            }
        });
        if let Some(old) = self.timer.replace(Some(timer)) {
            old.cancel();
        }
    }

    /// Wakes the callers whose deadline has passed. Gives the next deadline.
    fn expire(&self) -> u64 {
        let now = now();
        let (mut next, mut late_slots) = (u64::MAX, 0);
        for (slot, cell) in self.cells.used() {
            let deadline = cell.deadline.get();
            if deadline == 0 {
                continue;
            }
            if deadline <= now {
                cell.is_late.set(true);
                cell.deadline.set(0);
                cell.wake();
                late_slots |= bit(slot);
            } else {
                next = next.min(deadline);
            }
        }
        let mut late = Vec::new();
        for waiter in self.waiters.borrow().iter().filter(|waiter| waiter.deadline != 0) {
            if waiter.deadline <= now {
                late.push(waiter.waker.clone());
            } else {
                next = next.min(waiter.deadline);
            }
        }
        self.timer_at.set(next);
        for waker in late {
            waker.wake();
        }
        for slot in 0..u64::BITS as u16 {
            // Others may depend on it, whether its own caller looks or not.
            if late_slots & bit(slot) != 0 && self.earlier.may_be_on(slot) {
                self.give_up_late(slot);
            }
        }
        next
    }
}
