//! Control calls: releases and cancels, collected and sent in batches on the control slots.

use super::super::host::extent_of;
use super::Inner;
use crate::interface::Retry;
use crate::link::Body;
use crate::steps;
use crate::wire::{Handle, LeaseName, Submission, Violation, control, inline_words};

/// What goes out on control slots with the next turn.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) cancels: Vec<(u16, u64)>,
    pub(super) handles: Vec<Handle>,
    pub(super) leases: Vec<LeaseName>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.cancels.is_empty() && self.handles.is_empty() && self.leases.is_empty()
    }

    /// Moves one control call's worth into `payload`; gives its operation.
    fn encode(&mut self, payload: &mut Vec<u8>, window: usize) -> u16 {
        if !self.cancels.is_empty() {
            let count = self.cancels.len().min(window / control::LONG_ENTRY);
            for (slot, seq) in self.cancels.drain(..count) {
                payload.extend(u64::from(slot).to_le_bytes());
                payload.extend(seq.to_le_bytes());
            }
            control::CANCEL
        } else if !self.handles.is_empty() {
            let count = self.handles.len().min(window / Handle::BYTES);
            payload.extend(self.handles.drain(..count).flat_map(|handle| handle.to_word().to_le_bytes()));
            control::RELEASE_HANDLES
        } else {
            let count = self.leases.len().min(window / control::LONG_ENTRY);
            for lease in self.leases.drain(..count) {
                payload.extend(lease.to_bytes().iter().take(control::LONG_ENTRY));
            }
            control::RELEASE_LEASES
        }
    }
}

impl Inner {
    /// Adds to what goes out on control slots with the next turn.
    pub(super) fn later(&self, add: impl FnOnce(&mut Pending)) {
        if self.ended.get().is_none() {
            add(&mut self.pending.borrow_mut());
            self.has_pending.set(true);
        }
    }

    /// Makes control calls of what is pending, as far as control slots are free.
    pub(super) fn send_control(&self) -> Result<(), Violation> {
        let mut pending = self.pending.borrow_mut();
        let window = self.shape.window_bytes as usize;
        let mut payload = Vec::new();
        while !pending.is_empty() {
            let Some((slot, seq)) = self.slots.borrow_mut().begin_control(self.link.borrow().sent()) else {
                return Ok(());
            };
            payload.clear();
            let operation = pending.encode(&mut payload, window);
            let extent = extent_of(0, 0, payload.len()).ok_or(Violation::Length)?;
            let inline = inline_words(&payload);
            let submission = Submission { slot, operation, seq, extent, inline, ..Submission::default() };
            if let Some(survival) = &self.survival {
                survival.remember(&submission, Retry::Idempotent);
            }
            let payload = if extent.is_inline() { &[] } else { &payload[..] };
            self.link.borrow().send(&submission.to_raw(), slot, &Body { payload, ..Body::default() })?;
            steps::reach("release/published");
        }
        self.has_pending.set(false);
        Ok(())
    }
}
