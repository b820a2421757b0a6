//! The host backend: `atoll.net/1` on the kernel's sockets, by io_uring.
//!
//! * A thin shell around [`crate::core`]: per connection one task that receives and one that sends and ends it, per listener one
//!   that accepts. Tasks wait for their own operations and for a [`Signal`](kernel_ipc::runtime::Signal).
//! * Where a client may listen is in its session ([`address::Permission`]); everything else it names by capabilities of
//!   this session.
//! * Leases are looked up, pinned and checked by the mapper; the holder must be the client of the session. Pages go to the
//!   kernel only from read-only mappings and only through the runtime's ring, which the component's fence covers.
//! * Sockets linger for zero seconds: a death of this process resets its connections at once, so that the kernel lets go
//!   of leased pages soon and no cut-off answer looks complete.

pub mod address;
pub(crate) mod berth;
pub(crate) mod chunk;
mod connection;
mod farewell;
pub(crate) mod kept;
pub(crate) mod listener;
mod newcomer;
pub(crate) mod restore;
mod session;
mod socket;
mod stack;
#[cfg(test)]
mod tests;
mod vacant;

pub use stack::{ConnectionNumber, ListenerNumber, Options, Root, Stack};
