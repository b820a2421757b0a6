//! What lease tables, pin segments and the status page look like. Drawn in `docs/leases.md`.
//!
//! Little-endian, naturally aligned, one writer each; ids are 64-bit and never reused. Final formats: a change is a new
//! version number.

/// Bytes of the header of each of the three.
pub const HEADER: usize = 64;

/// Where the header's words are. The rest of the 64 bytes is zero.
pub mod header {
    /// u64: which of the three this is.
    pub const MAGIC: usize = 0;
    /// u64: [`super::TABLE_VERSION`] or [`super::VERSION`].
    pub const VERSION: usize = 8;

    /// Lease table, u64: the lender.
    pub const TABLE_LENDER: usize = 16;
    /// Lease table, u64: the lender's epoch.
    pub const TABLE_EPOCH: usize = 24;
    /// Lease table, u64: how many entries follow.
    pub const TABLE_CAPACITY: usize = 32;
    /// Lease table, u64: how many of them were ever used. Those after them are zero, and nobody needs to look at them.
    pub const TABLE_USED: usize = 40;

    /// Pin segment, u64: the mapper's incarnation.
    pub const PINS_MAPPER: usize = 16;
    /// Pin segment, u64: the mapper's epoch.
    pub const PINS_EPOCH: usize = 24;
    /// Pin segment, u64: the lender whose leases are counted.
    pub const PINS_LENDER: usize = 32;
    /// Pin segment, u64: how many counts follow.
    pub const PINS_CAPACITY: usize = 40;

    /// Status page, u64: how many endpoints follow.
    pub const STATUS_ENDPOINTS: usize = 16;
}

/// `ATOLLLTB`, a lease table.
pub const TABLE_MAGIC: u64 = u64::from_le_bytes(*b"ATOLLLTB");
/// `ATOLLPIN`, a pin segment.
pub const PINS_MAGIC: u64 = u64::from_le_bytes(*b"ATOLLPIN");
/// `ATOLLSTA`, a status page.
pub const STATUS_MAGIC: u64 = u64::from_le_bytes(*b"ATOLLSTA");
/// The version of lease tables.
pub const TABLE_VERSION: u64 = 2;
/// The version of the other two.
pub const VERSION: u64 = 1;

/// Bytes of a lease entry.
pub const ENTRY: usize = 64;
/// Where the words of an entry are. The rest of the 64 bytes is zero.
pub mod entry {
    /// u64: generation << 32 | live bit.
    pub const WORD: usize = 0;
    /// u64: the incarnation that may use the lease.
    pub const HOLDER: usize = 8;
    /// u64: the region object.
    pub const REGION: usize = 16;
    /// u64: where in the region the lease begins, in bytes.
    pub const OFFSET: usize = 24;
    /// u64: how long it is, in bytes.
    pub const LENGTH: usize = 32;
}

/// Bytes of one pin count, a u32.
pub const PIN: usize = 4;

/// Bytes of an endpoint's line of the status page.
pub const STATUS: usize = 64;
/// Where the words of an endpoint's line are. The rest of the 64 bytes is zero.
pub mod status {
    /// u64: the epoch that lives; 0: none. Its low half is a futex word.
    pub const LIVE: usize = 0;
    /// u64: all epochs up to this one are dead and fenced.
    pub const FENCED: usize = 8;
}

/// The largest capacity of a table: an index is a u32, and the last one is kept out as "none".
pub const MAX_CAPACITY: u32 = u32::MAX - 1;

/// Where entry `index` of a lease table begins. Cannot overflow: usize has 64 bits here.
pub const fn entry_at(index: u32) -> usize {
    HEADER + index as usize * ENTRY
}

/// Where the pin count of lease `index` is.
pub const fn pin_at(index: u32) -> usize {
    HEADER + index as usize * PIN
}

/// Where the line of `endpoint` begins.
pub const fn status_at(endpoint: u32) -> usize {
    HEADER + endpoint as usize * STATUS
}

/// An entry's word for this generation, live or dead.
pub const fn word(generation: u32, live: bool) -> u64 {
    (generation as u64) << 32 | live as u64
}

const _: () = {
    assert!(size_of::<usize>() == 8, "offsets of entries are computed in 64 bits");
    assert!(entry::LENGTH + 8 <= ENTRY);
    assert!(header::PINS_CAPACITY + 8 <= HEADER);
    assert!(status::FENCED + 8 <= STATUS);
    assert!(entry_at(1) - entry_at(0) == ENTRY && entry_at(0).is_multiple_of(64));
    assert!(pin_at(1) - pin_at(0) == 4 && pin_at(0).is_multiple_of(64));
    assert!(status_at(1) - status_at(0) == STATUS && status_at(0).is_multiple_of(64));
    assert!(word(1, true) == 0x1_0000_0001 && word(u32::MAX, false) == 0xffff_ffff_0000_0000);
};
