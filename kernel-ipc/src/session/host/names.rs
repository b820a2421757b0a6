//! What a message names, and how much of it there is.

use super::Inner;
use crate::session::Service;
use crate::wire::{
    Completion, Extent, Handle, LeaseName, MAX_CAPABILITIES, MAX_LEASES, Status, Submission, Violation, control,
    inline_words,
};

/// The names of one reply.
#[derive(Default)]
pub(super) struct Names {
    leases: [LeaseName; MAX_LEASES],
    lease_count: usize,
    handles: [Handle; MAX_CAPABILITIES],
    handle_count: usize,
}

impl Names {
    pub(super) fn push_lease(&mut self, lease: LeaseName) {
        self.leases[self.lease_count] = lease;
        self.lease_count += 1;
    }

    pub(super) fn push_handle(&mut self, handle: Handle) {
        self.handles[self.handle_count] = handle;
        self.handle_count += 1;
    }

    pub(super) fn leases(&self) -> &[LeaseName] {
        &self.leases[..self.lease_count]
    }

    pub(super) fn handles(&self) -> &[Handle] {
        &self.handles[..self.handle_count]
    }
}

/// The extent of a message with so many names and bytes, if it has a number for each and they are few enough.
pub(in crate::session) fn extent_of(leases: usize, capabilities: usize, length: usize) -> Option<Extent> {
    let extent = Extent {
        length: u32::try_from(length).ok()?,
        capabilities: u8::try_from(capabilities).ok()?,
        leases: u8::try_from(leases).ok()?,
    };
    (leases <= MAX_LEASES && capabilities <= MAX_CAPABILITIES).then_some(extent)
}

/// The entries of a cancel or a release of leases, as two words each.
pub(super) fn long_entries(payload: &[u8]) -> Result<impl Iterator<Item = [u64; 2]>, Violation> {
    let (entries, []) = payload.as_chunks::<{ control::LONG_ENTRY }>() else { return Err(Violation::Length) };
    Ok(entries.iter().map(|entry| {
        let both = u128::from_le_bytes(*entry);
        [both as u64, (both >> 64) as u64]
    }))
}

impl<S: Service> Inner<S> {
    /// The descriptor of an answer, if it has a number for each name and byte.
    pub(super) fn completion(
        &self,
        call: &Submission,
        status: Status,
        leases: &[LeaseName],
        capabilities: &[Handle],
        payload: &[u8],
    ) -> Option<Completion> {
        Some(Completion {
            slot: call.slot,
            operation: call.operation,
            seq: call.seq,
            extent: extent_of(leases.len(), capabilities.len(), payload.len())?,
            status,
            trace: call.trace,
            inline: inline_words(payload),
        })
    }
}
