//! What carries a session: one trait, one end of it for the client and one for the host.
//!
//! A link moves descriptors, in order, and one window per slot. It knows nothing of slots' states, capabilities or
//! calls, and it believes nothing that its peer writes: what it returns is raw and to be checked by the session.
//!
//! - [`shm`]: two sealed segments between two processes.
//! - [`socket`]: a TCP connection between two processes that share nothing.
//! - [`in_process`]: two queues inside one thread, for a server that runs inside its client.
//!
//! A simulation's connections ([`simulated`](crate::runtime::simulated)) carry the same socket link. All pass the same conformance suite (`tests/links.rs`).

pub mod dekker;
pub mod in_process;
pub mod shm;
pub mod socket;

use crate::runtime::Sleep;
use crate::wire::{Handle, LeaseName, RawDescriptor, Shape, Violation};

/// What goes into a slot's window, in the order of [`wire`](crate::wire). The caller has checked that it fits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Body<'a> {
    /// Lease names.
    pub leases: &'a [LeaseName],
    /// Capability handles.
    pub capabilities: &'a [Handle],
    /// The payload; empty when it is inline in the descriptor.
    pub payload: &'a [u8],
}

/// One end of a link. All methods are called from one thread; none blocks.
pub trait Link {
    /// The session's measures.
    fn shape(&self) -> Shape;

    /// How many messages this end has sent: the position of the next one.
    fn sent(&self) -> u64;

    /// Writes `body` into the window of `slot` and sends `descriptor` (whose lap is 0). Where both ends share memory a peer
    /// that is awake sees it after [`publish`](Self::publish) at the latest. A sleeping one, and any peer behind a carrier
    /// that takes a system call, sees it after [`flush`](Self::flush) at the latest.
    ///
    /// # Errors
    /// [`Violation::Overrun`] if the peer has left so many messages unread that there is no room.
    fn send(&self, descriptor: &RawDescriptor, slot: u16, body: &Body<'_>) -> Result<(), Violation>;

    /// Sends the last message of a slot once more, if it had this seq. Only a carrier that can lose messages keeps them; any
    /// other answers that there was none.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    fn repeat(&self, _slot: u16, _seq: u64) -> Result<bool, Violation> {
        Ok(false)
    }

    /// Lets a peer that is awake see all that was sent, if that takes no system call.
    fn publish(&self);

    /// The same whatever it takes, and wakes the peer if it sleeps and something was sent since it went to sleep. One
    /// system call at most, as long as the peer reads.
    fn flush(&self);

    /// Takes the next message, if there is one; its lap is 0 again. Tells the peer that it was read.
    fn receive(&self) -> Option<RawDescriptor>;

    /// Messages that the peer says to have sent and that were not received yet. As far as it has [flushed](Self::flush) and
    /// they can be seen without taking them, and no more than a ring, whatever it says.
    fn unread(&self) -> u64;

    /// Copies from the peer's window of this slot, as the message on it that was [received](Self::receive) last has left it.
    /// A range outside of the window leaves `bytes` as they were.
    fn read_window(&self, slot: u16, offset: usize, bytes: &mut [u8]);

    /// Copies from this end's own window of this slot, as [`read_window`](Self::read_window) does from the peer's.
    fn read_own_window(&self, slot: u16, offset: usize, bytes: &mut [u8]);

    /// How many of this end's messages the peer can have read: those beyond it certainly had no effect. Shared memory knows
    /// it exactly.
    fn read_by_peer(&self) -> u64;

    /// Says that this end reads and writes no more, and wakes the peer.
    fn close(&self);

    /// Whether the peer has said so. Known at the latest when everything that it sent before was received.
    fn is_closed_by_peer(&self) -> bool;

    /// The rule of the carrier itself that the peer has broken, if it has. Nothing more is received then.
    fn broken(&self) -> Option<Violation> {
        None
    }

    /// Announces that this end is about to sleep, then looks for messages once more.
    ///
    /// # Errors
    /// [`Violation::Overrun`] if the peer's counters contradict its ring.
    fn prepare_sleep(&self) -> Result<Sleep, Violation>;

    /// Takes the announcement back. Does nothing when there is none.
    fn cancel_sleep(&self);

    /// The same end for another thread. `None`, and the link is dropped: it belongs to the runtime of this one.
    fn into_send(self: Box<Self>) -> Option<Box<dyn Link + Send>> {
        None
    }

    /// System calls that this end has made so far (to wake its peer).
    fn system_calls(&self) -> u64;
}
