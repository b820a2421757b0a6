//! Capabilities: what a session may name, what was derived from what, and how it ends.
//!
//! * A handle is (index, generation) and only names an entry; the authority is the entry, in the host's private memory.
//! * Look-up is O(1) and reads one cache line: bounds, generation, state, expiry, kind, rights. It makes no system call and
//!   allocates nothing.
//! * An index whose entry was removed comes back with the next generation; at its last generation it is retired,
//!   so a handle never names two entries, however long the session lives.
//! * A table never holds more entries than its quota, which is charged to the session.
//! * Generation 0 never occurs: `Handle { index: 0, generation: 0 }` names nothing in any table.
//! * All sessions of one service are one [`Realm`]: their tables, and one derivation tree over all of them. What an answer
//!   grants is derived from the capability that the call was made on; what is minted, from its source.
//! * An entry that its holder gave back stays, unusable, while something depends on it: several derived entries, copies of
//!   what it names, a call in progress, a lease, or its limit on what is derived.
//! * [`Marking`] and [`Sweep`] end a subtree in bounded steps.

mod carry;
mod promise;
mod realm;
mod restore;
mod revoke;
mod table;
mod tree;

#[cfg(test)]
mod tests;

pub use realm::{Gone, Inspection, Member, Parent, Realm, Standing, Terms};
pub use restore::Restored;
pub use revoke::{Marked, Marking, Sweep};
pub use table::{Entries, Grant, Quota, State, Table};

/// Most derivations between an entry and its session's first capability.
pub const MAX_DEPTH: u32 = 1024;
