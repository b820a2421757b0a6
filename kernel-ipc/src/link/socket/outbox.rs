//! Messages become bytes, and stay here until their slot is used again. No system calls.
//!
//! - What is to be sent lies in one buffer, in order, until the kernel has taken it: at most a ring of messages.
//! - The last message of each slot is kept besides (R22): a connection that is lost takes nothing with it that cannot be
//!   sent again.

use super::frame::{self, kind};
use crate::link::Body;
use crate::wire::{DESCRIPTOR_BYTES, Handle, LeaseName, RawDescriptor, Shape, Violation};

/// A message that may have to be sent once more.
#[derive(Debug, Default)]
struct Kept {
    /// As it was given to us. `None`: nothing was ever sent on this slot.
    descriptor: Option<RawDescriptor>,
    /// Its part of the window.
    window: Vec<u8>,
}

/// See the module's contract.
#[derive(Debug)]
pub struct Outbox {
    shape: Shape,
    bytes: Vec<u8>,
    /// What of `bytes` the kernel has taken.
    taken: usize,
    /// Where messages begin that the kernel has not taken a byte of.
    begins: Vec<usize>,
    kept: Box<[Kept]>,
}

impl Outbox {
    /// Nothing to send.
    pub fn new(shape: Shape) -> Outbox {
        let kept = (0..shape.all_slots()).map(|_| Kept::default()).collect();
        Outbox { shape, bytes: Vec::new(), taken: 0, begins: Vec::new(), kept }
    }

    /// The connection is lost: what was to be sent is forgotten, what is kept is kept.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.taken = 0;
        self.begins.clear();
    }

    /// Queues a message and keeps it. `left` is what remains of its deadline.
    ///
    /// # Errors
    /// [`Violation::Overrun`]: a ring of messages waits already, because the peer takes none.
    #[inline]
    pub fn push(&mut self, descriptor: &RawDescriptor, slot: u16, body: &Body<'_>, left: u64) -> Result<(), Violation> {
        self.admit()?;
        let kept = self.kept.get_mut(usize::from(slot)).ok_or(Violation::Slot)?;
        // A RESUME and its answers carry nothing, and what they speak of must still be here afterwards.
        if descriptor.flags() == 0 {
            kept.descriptor = Some(*descriptor);
            kept.window.clear();
            body.leases.iter().for_each(|lease| kept.window.extend(LeaseName::to_bytes(*lease)));
            body.capabilities.iter().for_each(|handle| kept.window.extend(handle.to_word().to_le_bytes()));
            kept.window.extend(body.payload);
            debug_assert!(kept.window.len() <= self.shape.window_bytes as usize, "the caller has checked that it fits");
        }
        let window: &[u8] = if descriptor.flags() == 0 { &kept.window } else { &[] };
        queue(&mut self.bytes, &mut self.begins, descriptor, window, left);
        Ok(())
    }

    /// Queues the last message of a slot once more. False: there was none with this seq.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn repeat(&mut self, slot: u16, seq: u64) -> Result<bool, Violation> {
        self.admit()?;
        let Some(kept) = self.kept.get(usize::from(slot)) else { return Ok(false) };
        let Some(descriptor) = kept.descriptor.filter(|descriptor| descriptor.0[1] == seq) else { return Ok(false) };
        queue(&mut self.bytes, &mut self.begins, &descriptor, &kept.window, descriptor.0[4]);
        Ok(true)
    }

    /// Queues a frame that is no message.
    pub fn push_frame(&mut self, kind: u16, body: &[u8]) {
        self.bytes.extend(frame::header(kind, body.len()));
        self.bytes.extend(body);
    }

    /// What the kernel has not taken.
    #[inline]
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// The kernel took so many bytes of it.
    pub fn took(&mut self, bytes: usize) {
        self.taken = (self.taken + bytes).min(self.bytes.len());
        if self.taken == self.bytes.len() {
            return self.clear();
        }
        let begun = self.begins.partition_point(|begin| *begin < self.taken);
        self.begins.drain(..begun);
        if self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.begins.iter_mut().for_each(|begin| *begin -= self.taken);
            self.taken = 0;
        }
    }

    /// Messages that the kernel has not taken a byte of: the peer has certainly not seen them.
    pub fn untouched(&self) -> u64 {
        self.begins.len() as u64
    }

    /// Copies from the kept part of a slot's window.
    pub fn read_window(&self, slot: u16, offset: usize, bytes: &mut [u8]) {
        let window = self.kept.get(usize::from(slot)).map(|kept| &kept.window);
        if let Some(there) = window.and_then(|window| window.get(offset..)?.get(..bytes.len())) {
            bytes.copy_from_slice(there);
        }
    }

    fn admit(&self) -> Result<(), Violation> {
        match self.begins.len() < self.shape.ring_entries() as usize {
            true => Ok(()),
            false => Err(Violation::Overrun),
        }
    }
}

#[inline]
fn queue(bytes: &mut Vec<u8>, begins: &mut Vec<usize>, descriptor: &RawDescriptor, window: &[u8], left: u64) {
    begins.push(bytes.len());
    let mut descriptor = *descriptor;
    descriptor.0[4] = left;
    bytes.extend(frame::header(kind::MESSAGE, DESCRIPTOR_BYTES + window.len()));
    bytes.extend(frame::descriptor_bytes(&descriptor));
    bytes.extend(window);
}

const _: () = assert!(Handle::BYTES == size_of::<u64>());
