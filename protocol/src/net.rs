//! `atoll.net/1`: listeners and connections of a network stack, whatever carries them.
//!
//! Planned client methods (the trait follows as soon as the macro is in):
//! ```text
//! rights: LISTEN = bit 8, READ, WRITE          objects: Net (root), Listener, Connection
//! 1 listen(net, address: &str "host:port") -> (Cap<Listener>, String bound) | ListenError   LISTEN cached
//! 2 next_events(net, cursor: u64, max: u32) -> (EventBatch, Vec<Cap<Connection>>) | EventsError  LISTEN cached, no deadline
//! 3 send(connection, send: u64, flags: SendFlags, header: &[u8], pages: &[LeasePart]) -> () | SendError  WRITE never
//! 4 close(connection) -> () | CloseError                                                    WRITE cached
//! ```
//! `next_events` is the standing call: it ends when there is at least one event. Its cursor says
//! that every event before it is consumed (which also opens the receive window of 16 KiB per
//! connection again); the first cursor is 0, the next is `EventBatch::next`.

/// Bytes of one connection that may wait unconsumed before the stack stops receiving on it.
pub const RECEIVE_WINDOW: usize = 16 << 10;

/// How a send is to be treated; a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SendFlags(pub u8);

impl SendFlags {
    /// More follows at once: the stack may wait to fill a packet.
    pub const MORE: SendFlags = SendFlags(1);
    /// After these bytes, send FIN; receiving goes on.
    pub const FIN: SendFlags = SendFlags(2);
    /// After these bytes, close in order and drop the connection.
    pub const CLOSE: SendFlags = SendFlags(4);
}

/// How the pages of a send were given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Released {
    /// Nothing of the send had pages, or the kernel copied them.
    Copied = 1,
    /// The device read the pages themselves.
    ZeroCopy = 2,
    /// The connection ended before all was sent.
    Dropped = 3,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// This side closed it, all was sent.
    Closed = 1,
    /// The peer reset it.
    Reset = 2,
    /// The peer stopped answering.
    TimedOut = 3,
    /// A lease named in a send was not (any longer) this client's.
    StaleLease = 4,
    /// The stack is out of memory, descriptors or quota.
    Overload = 5,
}

/// Something that happened, as read from an [`EventBatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// 1: A listener took a connection.
    Accepted {
        /// Names the connection in later events; never used again in this session.
        connection: u64,
        /// Which of the capabilities beside the batch is the connection.
        capability: u8,
        /// The peer, as "address:port".
        peer: &'a str,
    },
    /// 2: Bytes came in.
    Received {
        /// On which connection.
        connection: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// 3: The peer will send no more; sending goes on.
    Finished {
        /// On which connection.
        connection: u64,
    },
    /// 4: All bytes of a send are in the stack's hands.
    Sent {
        /// On which connection.
        connection: u64,
        /// The client's number for the send.
        send: u64,
        /// Bytes sent: header and pages.
        bytes: u64,
    },
    /// 5: The pages of a send are no longer read by anybody; their leases may be released.
    Released {
        /// On which connection.
        connection: u64,
        /// The client's number for the send.
        send: u64,
        /// How.
        how: Released,
    },
    /// 6: The connection is over. All its sends were released before. Nothing of it follows.
    Closed {
        /// Which connection.
        connection: u64,
        /// Why.
        reason: Reason,
    },
}

/// Events, packed; read them with `events()`, make it with `EventBatch::push`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventBatch {
    /// The cursor that consumes them all.
    pub next: u64,
    /// Packed events.
    pub bytes: Vec<u8>,
}

/// Why nothing listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenError {
    /// 1: The address is not "host:port".
    BadAddress,
    /// 2: The capability does not allow this address.
    NotAllowed,
    /// 3: Somebody else listens there.
    InUse,
    /// 4: The system refused.
    System {
        /// Linux error number.
        errno: u32,
    },
}

/// Why the standing call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventsError {
    /// 1: The cursor is neither the last one answered nor the one before.
    BadCursor,
    /// 2: Another `next_events` of this session is open.
    AlreadyOpen,
}

/// Why a send was not accepted. Nothing of it was or will be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// 1: The connection is closed or was told to close.
    Closed,
    /// 2: Too much of this connection waits to be sent. Wait for a `Sent`.
    Full,
    /// 3: A lease is not this client's, was taken back, or the part lies outside it.
    StaleLease,
}

/// Why a close did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseError {
    /// 1: The connection was closed before.
    Closed,
}
