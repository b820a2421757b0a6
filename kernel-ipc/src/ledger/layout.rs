//! Where everything stands in the ledger of a session.
//!
//! ```text
//! header, one page
//!   0 magic "ATOLL-L1" | 8 version u64 | 16 session u64 | 24 connection u64 | 32 zero 16 bytes
//!  48 slots u64 | 56 window bytes u64 | 64 capability quota u64 | 72 root handle u64 | 80 entries ever used u64
//!  88 last crash that was counted u64 | 96 bytes of the note u64 | 104 note: by whom and how the session was opened
//!
//! cell, 512 bytes, one for each normal slot       (control calls are idempotent and answered as they are read)
//!   0 operation u16, class u16 << 16, crashes u8 << 32, bytes of request + 1 u16 << 48
//!     | 8 begun: seq u64 | 16 capability used | 24 status | 32 extent
//!  40 inline 16 bytes                | 56 done: seq u64, last
//!  64 reply window: lease names, handles, payload as on the wire; at most 448 bytes
//!
//! entry, 128 bytes, one for each index up to the quota
//!   0 object 16 bytes | 16 copy << 40, kind << 32, rights | 24 badge | 32 slot | 40 seq | 48 expires | 56 limit
//!  64 parent: handle, session | 80 the same, the other one of two
//! 120 generation u32 << 32, which parent u8 << 8, state u8, last
//! ```

pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"ATOLL-L1");
pub(super) const VERSION: u64 = 2;

/// By which it is known: magic and version.
pub(crate) const FORMAT: [u64; 2] = [MAGIC, VERSION];

pub(super) mod header {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const SESSION: usize = 16;
    pub const CONNECTION: usize = 24;
    pub const SLOTS: usize = 48;
    pub const WINDOW_BYTES: usize = 56;
    pub const QUOTA: usize = 64;
    pub const ROOT: usize = 72;
    pub const ENTRIES: usize = 80;
    pub const CRASH: usize = 88;
    pub const NOTE_BYTES: usize = 96;
    pub const NOTE: usize = 104;
    /// A page.
    pub const BYTES: usize = 4096;
}

pub(super) mod cell {
    pub const CLASS: usize = 0;
    pub const BEGUN: usize = 8;
    pub const USED: usize = 16;
    pub const STATUS: usize = 24;
    pub const EXTENT: usize = 32;
    pub const INLINE: usize = 40;
    pub const DONE: usize = 56;
    pub const IMAGE: usize = 64;
    pub const BYTES: usize = 512;
}

pub(super) mod entry {
    pub const OBJECT: usize = 0;
    pub const RIGHTS: usize = 16;
    pub const BADGE: usize = 24;
    pub const SLOT: usize = 32;
    pub const SEQ: usize = 40;
    pub const EXPIRES: usize = 48;
    pub const LIMIT: usize = 56;
    pub const PARENTS: [usize; 2] = [64, 80];
    pub const WORD: usize = 120;
    pub const BYTES: usize = 128;
}

/// In the place of a limit.
pub(super) const UNLIMITED: u64 = u64::MAX;
/// Where an entry's last word says which of its parents counts.
pub(super) const WHICH: u32 = 8;
/// In the place of a slot: the entry came with the session.
pub(super) const NO_SLOT: u64 = u64::MAX;
/// Longest window part of a reply that a ledger keeps.
pub(super) const IMAGE_BYTES: usize = cell::BYTES - cell::IMAGE;
/// Where the class word counts crashes, and where it has the length of a request.
pub(super) const CRASHES: u32 = 32;
pub(super) const REQUEST: u32 = 48;
/// Longest note: the rest of the header's page.
pub const NOTE_BYTES: usize = header::BYTES - header::NOTE;
