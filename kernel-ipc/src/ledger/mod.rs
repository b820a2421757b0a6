//! What a host's next incarnation must know: memory that only the host maps and the keeper keeps.
//!
//! - A **session ledger** ([`SessionLedger`]) holds a session's capabilities, the last call that began on each slot, and
//!   the reply of the last one that must not run twice.
//! - A **component ledger** ([`Records`]) is a ring of records: what a call did to the host's state, beside which call it
//!   was. The record's commit word is the moment of the effect.
//! - One commit word governs a whole call: everything that belongs to it (entries of capabilities, the image of the reply)
//!   is stored before it and counts only if it is there. A process that dies leaves exactly the stores that it made, in
//!   their order, so nothing is written twice and nothing is ever cleared first.
//! - What is recovered is checked as if it came from a disk. A session ledger that makes no sense loses its session; a
//!   ring that makes no sense loses what it had not made durable. Either says so.
//!
//! The order of stores for one call is that of `notes/sessions.md`, section 2:
//!
//! ```text
//! begun{slot, seq}                       a call is about to run                    SessionLedger::begin
//! entries tagged {slot, seq}             what it grants                            SessionLedger::enter
//! reply image                            what it answers                           SessionLedger::prepare
//! record{session, slot, seq, effect}     committed: it has happened                Records::append
//! completion, doorbell                   it is known
//! done{slot} = seq                       applied: entries and image count          SessionLedger::done
//! ```
//!
//! A call without an effect on the host's state has no record; its `done` is stored before the completion and commits it.

mod layout;
mod look;
mod memory;
mod records;
mod session;

pub(crate) use layout::FORMAT as SESSION_FORMAT;
pub use layout::NOTE_BYTES;
pub use look::{Capability, Holdings};
pub use memory::{Kept, Legible};
pub(crate) use records::FORMAT as RECORDS_FORMAT;
pub use records::{Full, Record, Records};
pub use session::{CRASHES_MAX, Cell, Executing, Poisoned, Recovered, Reply, SessionLedger, Tag};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
