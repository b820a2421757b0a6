//! Capability tables: what one session may name, kept by the host of its endpoint.
//!
//! * A handle is (index, generation) and only names an entry; the authority is the entry, in the host's private memory.
//! * Look-up is O(1): bounds, generation, kind, rights. It makes no system call and allocates nothing.
//! * An index whose entry was removed comes back with the next generation; at its last generation it is retired,
//!   so a handle never names two entries, however long the session lives.
//! * The table never holds more entries than its quota, which is charged to the session.
//! * Generation 0 never occurs: `Handle { index: 0, generation: 0 }` names nothing in any table.

mod table;

pub use table::{Grant, Quota, Table};
