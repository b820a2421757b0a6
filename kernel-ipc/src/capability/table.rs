//! The table of one session, and its entries.

use crate::error::Cause;
use crate::rights::Rights;
use crate::wire::Handle;

/// No entry: the end of the free list, and the value of an unused derivation link.
const NONE: u32 = u32::MAX;

/// A capability without its handle: an object, rights to it, and a badge. What a host grants, and what an entry says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The object, as the host names it. Plain data: the table outlives the process.
    pub object: [u64; 2],
    /// The object's kind, numbered by the interface.
    pub kind: u8,
    /// What the holder may do with it.
    pub rights: Rights,
    /// A word chosen by whoever minted the capability; the host sees it on every call.
    pub badge: u64,
}

/// Why [`Table::insert`] gave nothing: the session holds as many capabilities as it may, or has used up every index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota;

impl std::fmt::Display for Quota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the session's capability quota is used up")
    }
}

impl std::error::Error for Quota {}

impl From<Quota> for Cause {
    fn from(_: Quota) -> Self {
        Cause::Quota
    }
}

/// One index of the table.
struct Slot {
    /// Of the entry here, or of the next entry to come here.
    generation: u32,
    entry: Option<Grant>,
    /// The next free index, while this one is free.
    next_free: u32,
    links: Links,
}

/// Where an entry stands in the derivation tree.
///
/// Mint and revoke come later; the fields have their place already because the ledger will store entries whole.
#[derive(Clone, Copy)]
#[expect(dead_code, reason = "written for mint and revoke, which read them")]
struct Links {
    parent: u32,
    first_child: u32,
    next_sibling: u32,
    /// Calls accepted under this entry and not yet answered.
    in_flight: u32,
    /// Monotonic milliseconds after which the entry refuses look-ups; 0: never.
    expires_ms: u64,
}

impl Links {
    const UNUSED: Self = Self { parent: NONE, first_child: NONE, next_sibling: NONE, in_flight: 0, expires_ms: 0 };
}

/// The capabilities of one session. Private to the host; clients name entries by [`Handle`].
pub struct Table {
    slots: Vec<Slot>,
    first_free: u32,
    live: u32,
    quota: u32,
    /// The generation after which an index is retired. Smaller in tests only.
    last_generation: u32,
}

impl Table {
    /// An empty table that will hold at most `quota` entries at a time. Allocates as entries come.
    pub fn new(quota: u32) -> Self {
        Self { slots: Vec::new(), first_free: NONE, live: 0, quota, last_generation: u32::MAX }
    }

    /// The table that a ledger tells of: by index, the generation, and the entry if there is one.
    pub(crate) fn recovered(quota: u32, entries: &[(u32, Option<Grant>)]) -> Self {
        let mut table = Self::new(quota);
        for (index, (generation, entry)) in (0u32..).zip(entries) {
            // An index that may have been used up is not used again.
            let free = entry.is_none() && *generation < table.last_generation;
            let next_free = if free { std::mem::replace(&mut table.first_free, index) } else { NONE };
            table.live += u32::from(entry.is_some());
            table.slots.push(Slot { generation: *generation, entry: *entry, next_free, links: Links::UNUSED });
        }
        table
    }

    /// Stores `grant` under a handle that no entry of this table ever had. Amortised O(1).
    ///
    /// # Errors
    /// [`Quota`] when the session holds `quota` entries already. Nothing was stored.
    pub fn insert(&mut self, grant: Grant) -> Result<Handle, Quota> {
        if self.live >= self.quota {
            return Err(Quota);
        }
        let index = match self.first_free {
            NONE => self.grow()?,
            free => free,
        };
        let slot = &mut self.slots[index as usize];
        self.first_free = slot.next_free;
        slot.next_free = NONE;
        slot.links = Links::UNUSED;
        slot.entry = Some(grant);
        self.live += 1;
        Ok(Handle { index, generation: slot.generation })
    }

    /// The entry that `handle` names, if it is of this `kind` and has all of `rights`. O(1).
    ///
    /// # Errors
    /// [`Cause::StaleHandle`] if it names nothing (any more), [`Cause::WrongKind`], [`Cause::RightsMissing`];
    /// in this order, so a stale handle says nothing about what replaced it.
    pub fn lookup(&self, handle: Handle, kind: u8, rights: Rights) -> Result<&Grant, Cause> {
        let entry = self.entry(handle)?;
        if entry.kind != kind {
            return Err(Cause::WrongKind);
        }
        if !entry.rights.contains(rights) {
            return Err(Cause::RightsMissing);
        }
        Ok(entry)
    }

    /// The entry that `handle` names, whatever its kind and rights. O(1).
    ///
    /// # Errors
    /// [`Cause::StaleHandle`] if it names nothing (any more).
    pub fn entry(&self, handle: Handle) -> Result<&Grant, Cause> {
        let slot = self.slots.get(handle.index as usize).ok_or(Cause::StaleHandle)?;
        if slot.generation != handle.generation {
            return Err(Cause::StaleHandle);
        }
        slot.entry.as_ref().ok_or(Cause::StaleHandle)
    }

    /// Takes the entry out; `handle` is stale from now on. O(1).
    ///
    /// # Errors
    /// [`Cause::StaleHandle`] if it names nothing (any more). Nothing was changed.
    pub fn remove(&mut self, handle: Handle) -> Result<Grant, Cause> {
        let slot = self.slots.get_mut(handle.index as usize).ok_or(Cause::StaleHandle)?;
        if slot.generation != handle.generation {
            return Err(Cause::StaleHandle);
        }
        let entry = slot.entry.take().ok_or(Cause::StaleHandle)?;
        self.live -= 1;
        // An index at its last generation never comes back: its next handle would be one that was used before.
        if slot.generation < self.last_generation {
            slot.generation += 1;
            slot.next_free = self.first_free;
            self.first_free = handle.index;
        }
        Ok(entry)
    }

    /// Takes every entry out, for a session that ends. O(indices).
    pub fn drain(&mut self) -> Vec<Grant> {
        let handles: Vec<Handle> = self.iter().map(|(handle, _)| handle).collect();
        handles.into_iter().filter_map(|handle| self.remove(handle).ok()).collect()
    }

    /// Every entry with its handle, in order of index.
    pub fn iter(&self) -> impl Iterator<Item = (Handle, &Grant)> {
        self.slots.iter().zip(0u32..).filter_map(|(slot, index)| {
            slot.entry.as_ref().map(|entry| (Handle { index, generation: slot.generation }, entry))
        })
    }

    /// How many entries there are now.
    pub fn len(&self) -> usize {
        self.live as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Adds a fresh index. Only when none is free, so at most one per retired index beyond the quota.
    fn grow(&mut self) -> Result<u32, Quota> {
        let index = u32::try_from(self.slots.len()).ok().filter(|index| *index != NONE).ok_or(Quota)?;
        self.slots.push(Slot { generation: 1, entry: None, next_free: NONE, links: Links::UNUSED });
        Ok(index)
    }
}

#[cfg(test)]
mod tests;
