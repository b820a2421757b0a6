//! Where things stand in a logbook. All words are little-endian and aligned.

use super::histogram::BUCKETS;

/// `"ATOLL-B1"`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ATOLL-B1");
/// Of this layout. A logbook of another one is begun anew.
pub const VERSION: u64 = 1;

/// Offsets in the first page.
pub mod header {
    /// Stored last.
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    /// When the oldest figure was written, in ns since 1970.
    pub const SINCE: usize = 16;
    /// The run that writes, or wrote last.
    pub const EPOCH: usize = 24;
    /// When that run began, in ns since 1970.
    pub const RUN_SINCE: usize = 32;
    /// Calls that wait and found no entry.
    pub const WAITS_MISSED: usize = 40;
    /// Open sessions as a client that found no block.
    pub const USES_MISSED: usize = 48;
    /// What the handler that has the thread at this moment serves: see `rows::Place`. 0: none has it.
    pub const RUNNING: usize = 64;
}

/// Rows: what one session has asked of one operation. The first one has what the others had no room for.
pub const ROWS: usize = 256;
pub const ROWS_AT: usize = 4096;
pub const ROW: usize = row::BUCKETS + 8 * BUCKETS;

/// Offsets in a row.
pub mod row {
    /// Its operation, and [`USED`]. Stored last.
    pub const OPERATION: usize = 0;
    /// 0: of a client's sessions that have ended.
    pub const SESSION: usize = 8;
    /// 1 while the session is open.
    pub const OPEN: usize = 16;
    pub const RECEIVED: usize = 24;
    pub const DONE: usize = 32;
    pub const OPERATION_ERRORS: usize = 40;
    pub const FAILED: usize = 48;
    /// Refused before any handler: not among those received.
    pub const REFUSED: usize = 56;
    /// Were under way when a run died.
    pub const LOST: usize = 64;
    /// Longest time that was measured, in ns.
    pub const LONGEST: usize = 72;
    pub const ENDPOINT: usize = 96;
    pub const CLIENT: usize = 128;
    pub const OPERATION_NAME: usize = 160;
    pub const BUCKETS: usize = 192;
}

/// Flag of a row's operation.
pub const USED: u64 = 1 << 32;
/// Bytes of a name in a row.
pub const NAME: usize = 32;

/// Calls that are being served and wait for something.
pub const WAITS: usize = 512;
pub const WAITS_AT: usize = ROWS_AT + ROWS * ROW;
pub const WAIT: usize = 64;

/// Offsets in an entry.
pub mod wait {
    /// See `rows::Place`. 0: free. Stored last.
    pub const PLACE: usize = 0;
    /// Monotonic ns.
    pub const SINCE: usize = 8;
    /// As on the wire.
    pub const TRACE: usize = 16;
}

/// Sessions that the component has opened as a client, with a place for each slot.
pub const USES: usize = 32;
pub const USES_AT: usize = WAITS_AT + WAITS * WAIT;
pub const USE: usize = using::SLOTS_AT + using::SLOTS * using::SLOT;

/// Offsets in such a block.
pub mod using {
    /// 0: free. Stored last.
    pub const SESSION: usize = 0;
    pub const ENDPOINT: usize = 16;
    pub const INTERFACE: usize = 48;
    pub const SLOTS_AT: usize = 128;
    pub const SLOTS: usize = 64;
    pub const SLOT: usize = 32;
    /// In a slot: its operation and [`USED`](super::USED), 0: free. Stored last.
    pub const OPERATION: usize = 0;
    /// In a slot: monotonic ns, late by the clock's tick at most.
    pub const SINCE: usize = 8;
    /// In a slot: the session and slot of the call whose handler has made this one, see `rows::caller`. 0: none.
    pub const CALLER: usize = 16;
}

/// Bytes of all this. Spans of traces follow, if there is room: see `trace::ring`.
pub const REST_BYTES: usize = USES_AT + USES * USE;

const _: () = assert!(ROW.is_multiple_of(64) && USE.is_multiple_of(64) && row::OPERATION_NAME + NAME == row::BUCKETS);
const _: () = assert!(using::INTERFACE + NAME <= using::SLOTS_AT && header::RUNNING + 8 <= ROWS_AT);
