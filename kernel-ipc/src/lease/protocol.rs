//! The protocol's loads, stores and fences, and nothing else.
//!
//! * Generic over [`Memory`], so that the shipped segments and loom's atomics run the same code.
//! * Every caller has checked `index` against the capacity of the table and of the pin segment.
//! * N3-N4-N5 against B2-B3-B4 is Dekker's pattern. Of the two SeqCst fences one comes first. If it is the mapper's,
//!   B4 sees the pin; if it is the lender's, N5 sees the dead word. Either way no byte is read after its range was
//!   given back. For N6 the keeper's store happens before the lender's next incarnation starts, so before its B3.

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

use super::layout::{entry, entry_at, pin_at, word};
use crate::sys::segment::{SegmentReader, SegmentWriter};

/// Shared memory as the protocol sees it: aligned words at byte offsets.
pub trait Memory {
    /// Loads the u64 at `at`.
    fn load_u64(&self, at: usize, order: Ordering) -> u64;
    /// Loads the u32 at `at`.
    fn load_u32(&self, at: usize, order: Ordering) -> u32;
    /// A fence of this side.
    fn fence(&self, order: Ordering);
}

/// Shared memory that this side alone may write.
pub trait Writable: Memory {
    /// Stores the u64 at `at`.
    fn store_u64(&self, at: usize, value: u64, order: Ordering);
    /// Stores the u32 at `at`.
    fn store_u32(&self, at: usize, value: u32, order: Ordering);
}

/// What a lease entry says, beside its word. Numbers as they stand in the table: unchecked on the reading side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// The incarnation that may use the lease.
    pub holder: u64,
    /// The region object.
    pub region: u64,
    /// Where in the region the lease begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// L2 and L3: publishes a lease. The ledger says *lent* already (L1).
pub fn publish(table: &impl Writable, index: u32, generation: u32, fields: &Fields) {
    let at = entry_at(index);
    // L2. Relaxed is enough upwards, because B3 of this index's last take-back keeps its dead word before these.
    table.store_u64(at + entry::HOLDER, fields.holder, Relaxed);
    table.store_u64(at + entry::REGION, fields.region, Relaxed);
    table.store_u64(at + entry::OFFSET, fields.offset, Relaxed);
    table.store_u64(at + entry::LENGTH, fields.length, Relaxed);
    // L3. Release pairs with the Acquire load in `look`: whoever sees the word sees the fields.
    table.store_u64(at + entry::WORD, word(generation, true), Release);
}

/// B2: marks a lease dead. [`settle`] must follow before [`unpinned`] is asked.
pub fn kill(table: &impl Writable, index: u32, generation: u32) {
    table.store_u64(entry_at(index) + entry::WORD, word(generation, false), Relaxed);
}

/// B3: once for a batch of [`kill`]s. Pairs with the fence in [`pin`].
pub fn settle(table: &impl Writable) {
    table.fence(SeqCst);
}

/// B4, for one attached pin segment: whether this mapper has no pin on lease `index` and never will again.
pub fn unpinned(pins: &impl Memory, index: u32) -> bool {
    // Acquire pairs with the Release store in `unpin`: whoever sees zero knows that the reading is over.
    pins.load_u32(pin_at(index), Acquire) == 0
}

/// N1 and the copy of N2: the fields of lease `index`, if it is live at `generation`.
///
/// The fields may belong to a later lease of the same index until [`unchanged`] says otherwise.
pub fn look(table: &impl Memory, index: u32, generation: u32) -> Option<Fields> {
    let at = entry_at(index);
    // N1. Acquire pairs with the Release store in `publish`.
    if table.load_u64(at + entry::WORD, Acquire) != word(generation, true) {
        return None;
    }
    Some(Fields {
        holder: table.load_u64(at + entry::HOLDER, Relaxed),
        region: table.load_u64(at + entry::REGION, Relaxed),
        offset: table.load_u64(at + entry::OFFSET, Relaxed),
        length: table.load_u64(at + entry::LENGTH, Relaxed),
    })
}

/// The generation of the live lease at `index`, if there is one.
pub fn generation(table: &impl Memory, index: u32) -> Option<u32> {
    let found = table.load_u64(entry_at(index) + entry::WORD, Relaxed);
    let generation = (found >> 32) as u32;
    (found == word(generation, true)).then_some(generation)
}

/// N5: whether the lease is still the one that [`look`] saw, all of its word. A fence comes before.
pub fn unchanged(table: &impl Memory, index: u32, generation: u32) -> bool {
    table.load_u64(entry_at(index) + entry::WORD, Relaxed) == word(generation, true)
}

/// Why [`pin`] pinned nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinFailed {
    /// N5: the lease ended meanwhile.
    Changed,
    /// N6: the lender's epoch does not live.
    LenderGone,
    /// One pin more than a u32 can count.
    Overflow,
}

/// N3 to N6: pins lease `index`; `lender_lives` is N6. Only after [`look`], with the fields found good.
///
/// # Errors
/// See [`PinFailed`]. Nothing is pinned and nothing may be sent.
pub fn pin(
    pins: &impl Writable,
    table: &impl Memory,
    index: u32,
    generation: u32,
    lender_lives: impl FnOnce() -> bool,
) -> Result<(), PinFailed> {
    let at = pin_at(index);
    let count = pins.load_u32(at, Relaxed).checked_add(1).ok_or(PinFailed::Overflow)?;
    // N3. No read-modify-write: this side is the segment's one writer, on one thread.
    pins.store_u32(at, count, Relaxed);
    // N4. Pairs with `settle`.
    pins.fence(SeqCst);
    let failed = if !unchanged(table, index, generation) {
        PinFailed::Changed // N5
    } else if !lender_lives() {
        PinFailed::LenderGone // N6
    } else {
        return Ok(());
    };
    unpin(pins, index);
    Err(failed)
}

/// N8: takes one pin off lease `index`, after the last notification.
pub fn unpin(pins: &impl Writable, index: u32) {
    let at = pin_at(index);
    // Each `unpin` follows its `pin`, so there is one to take off.
    let count = pins.load_u32(at, Relaxed).saturating_sub(1);
    // Release pairs with the Acquire load in `unpinned`.
    pins.store_u32(at, count, Release);
}

/// For a reader without a pin: whether all that it has just copied was still the lease that [`look`] saw.
pub fn copied_in_time(table: &impl Memory, index: u32, generation: u32) -> bool {
    // Acquire keeps the copy's loads before the word's: had one of them seen a refill, which comes after B3, this load
    // would see the dead word.
    table.fence(Acquire);
    unchanged(table, index, generation)
}

impl Memory for SegmentReader {
    fn load_u64(&self, at: usize, order: Ordering) -> u64 {
        self.load_u64(at, order)
    }

    fn load_u32(&self, at: usize, order: Ordering) -> u32 {
        self.load_u32(at, order)
    }

    fn fence(&self, order: Ordering) {
        fence(order);
    }
}

impl Memory for SegmentWriter {
    fn load_u64(&self, at: usize, order: Ordering) -> u64 {
        self.load_u64(at, order)
    }

    fn load_u32(&self, at: usize, order: Ordering) -> u32 {
        self.load_u32(at, order)
    }

    fn fence(&self, order: Ordering) {
        fence(order);
    }
}

impl Writable for SegmentWriter {
    fn store_u64(&self, at: usize, value: u64, order: Ordering) {
        self.store_u64(at, value, order);
    }

    fn store_u32(&self, at: usize, value: u32, order: Ordering) {
        self.store_u32(at, value, order);
    }
}
