//! Replies: checked, copied out of the host's window, and given back if nobody wants them.

use super::Inner;
use super::waits::Answered;
use crate::session::{Payload, Reply};
use crate::slots::Ended;
use crate::steps;
use crate::wire::{Completion, Handle, LeaseName, Status, Violation};

impl Inner {
    /// One completion: checked, copied out, delivered or released.
    fn complete(&self, completion: &Completion) -> Result<(), Violation> {
        let ended = self.slots.borrow_mut().complete(completion.slot, completion.seq)?;
        if let Some(arguments) = self.arguments.get() {
            arguments.answered(completion.slot);
        }
        if let Some(survival) = &self.survival {
            survival.completed(completion.slot);
        }
        if self.shape.is_control(completion.slot) {
            self.slots.borrow_mut().take(completion.slot);
            return Ok(());
        }
        steps::reach("reply/taken");
        self.log_ended(completion.slot, || completion.status.into());
        match ended {
            Ended::Deliver => {
                let cell = &self.cells[completion.slot];
                self.read(completion, &mut cell.answer.borrow_mut());
                if !self.lands(completion) {
                    self.delivered(completion.slot);
                }
            }
            Ended::Discard => {
                let mut unwanted = Answered::Nothing;
                self.read(completion, &mut unwanted);
                self.release(&unwanted);
                self.slot_is_free();
            }
            Ended::Settle => {
                let mut answered = Answered::Nothing;
                self.read(completion, &mut answered);
                self.settle(&answered);
            }
        }
        Ok(())
    }

    /// Takes every completion that is there. True if there was one.
    pub(super) fn drain(&self) -> bool {
        let mut found = false;
        // A host can complete what is outstanding and nothing else, so this ends.
        while self.ended.get().is_none() {
            let Some(raw) = self.link.borrow().receive() else { break };
            found = true;
            let completed = match raw.flags() {
                0 => match &Completion::check(&raw, self.shape) {
                    Ok(completion) => self.complete(completion),
                    Err(violation) => Err(*violation),
                },
                _ => self.resumed(&raw),
            };
            if completed.is_err() {
                self.broken();
            }
        }
        found
    }

    /// Copies a reply out of the host's window, to where it stays.
    #[inline]
    pub(super) fn read(&self, completion: &Completion, to: &mut Answered) {
        let operation_error = match completion.status {
            Status::Done => None,
            Status::OperationError(number) => Some(number),
            Status::Failed(failure) => return *to = Answered::Failed(self.truthful(completion.slot, failure)),
        };
        let extent = completion.extent;
        if extent.is_inline() && extent.leases == 0 && extent.capabilities == 0 {
            *to = Answered::Inline { operation_error, words: completion.inline, length: extent.length as u8 };
        } else {
            *to = Answered::Reply(self.read_window(completion, operation_error));
        }
    }

    /// The same of a reply that is not short.
    fn read_window(&self, completion: &Completion, operation_error: Option<u16>) -> Reply {
        let (slot, extent) = (completion.slot, completion.extent);
        let lease = |i: u8| {
            let mut name = [0; LeaseName::BYTES];
            self.link.borrow().read_window(slot, usize::from(i) * LeaseName::BYTES, &mut name);
            LeaseName::from_bytes(name)
        };
        let handle = |i: u8| {
            let mut handle = [0; Handle::BYTES];
            let offset = extent.capabilities_offset() + usize::from(i) * Handle::BYTES;
            self.link.borrow().read_window(slot, offset, &mut handle);
            Handle::from_word(u64::from_le_bytes(handle))
        };
        let payload = if extent.is_inline() {
            Payload::inline(completion.inline, extent.length as usize)
        } else {
            let mut payload = Payload::zeroed(extent.length as usize);
            self.link.borrow().read_window(slot, extent.payload_offset(), payload.bytes_mut());
            payload
        };
        Reply {
            operation_error,
            payload,
            capabilities: (0..extent.capabilities).map(handle).collect(),
            leases: (0..extent.leases).map(lease).collect(),
        }
    }

    pub(super) fn release(&self, answered: &Answered) {
        if let Answered::Reply(reply) = answered
            && !(reply.capabilities.is_empty() && reply.leases.is_empty())
        {
            let bay = self.bay.get();
            let theirs = reply.leases.iter().filter(|lease| !bay.is_some_and(|bay| bay.release(lease)));
            self.later(|pending| {
                pending.handles.extend(&reply.capabilities);
                pending.leases.extend(theirs);
            });
        }
    }
}
