//! `atoll.net/1`: listeners and connections of a network stack, whatever carries them.
//!
//! A client listens, keeps one [`next_events`](Client::next_events) call open, and sends. What happens comes as events
//! in batches. A send ends twice: [`Event::Sent`] when the stack has all its bytes, [`Event::Released`] when nobody
//! reads its leases any more.

use kernel_ipc::codec::{self, Decoder, Layout, Malformed};
use kernel_ipc::interface::{Cap, LeasePart, OperationError, Wire, interface};
use kernel_ipc::wire::MIN_PAYLOAD_BYTES;

/// Listeners and connections.
#[interface("atoll.net/1")]
pub trait Net {
    /// A network stack, as far as a client may use it.
    type Stack;
    /// A place where connections arrive.
    type Listener;
    /// A connection.
    type Connection;

    /// Listen where the manifest allows it.
    const LISTEN: Rights = 8;

    /// Listens at `address`, "host:port" (port 0: any that is free), and says where that is. Connections arrive as
    /// events until the listener is dropped.
    #[op(1, requires = LISTEN, retry = cached, deadline = "5s")]
    fn listen(stack: Stack, address: &str) -> Result<(Cap<Listener>, String), ListenError>;

    /// Waits until something has happened to this session's listeners and connections, and gives up to `max` events,
    /// with the capabilities of newly accepted connections beside them.
    ///
    /// `cursor` is 0 at first and then [`EventBatch::next`]: it says that everything before it is consumed, which makes
    /// room for more to be received. A session has one such call open; it is meant never to end without an event.
    #[op(2, requires = LISTEN, retry = idempotent, deadline = none)]
    fn next_events(stack: Stack, cursor: u64, max: u32) -> Result<(EventBatch, Vec<Cap<Connection>>), EventsError>;

    /// Sends `header`, then the bytes of `pages`, in the order of the calls. The number in `send` is the client's, in
    /// the events [`Sent`](Event::Sent) and [`Released`](Event::Released); the numbers of a connection rise. Accepted at
    /// once; nothing waits here. A number that is not above the last accepted one is a send that was accepted before, and
    /// whose answer was lost: the answer is given again, and nothing is sent twice.
    ///
    /// If the client dies, its next run goes on at the request that `send` names (see [`Event::Resumed`]).
    #[op(3, retry = idempotent, deadline = "30s")]
    fn send(
        connection: Connection,
        send: SendName,
        flags: SendFlags,
        header: &[u8],
        pages: &[LeasePart],
    ) -> Result<(), SendError>;

    /// Ends a connection at once: what was not sent yet is dropped, the peer sees a reset. For an orderly end send with
    /// [`SendFlags::CLOSE`]. [`Event::Closed`] follows.
    #[op(4, retry = cached, deadline = "5s")]
    fn close(connection: Connection) -> Result<(), CloseError>;
}

/// What a client calls a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
pub struct SendName {
    /// Its number; the numbers of a connection rise.
    pub number: u64,
    /// The position in the peer's stream where the request begins that this is a part of the answer to; [`NO_REQUEST`] if the
    /// client's next run would not go on with it.
    pub request: u64,
}

/// In the place of a request's position: the connection ends with this client.
pub const NO_REQUEST: u64 = u64::MAX;

/// Bytes of one connection that may wait unconsumed before the stack stops receiving on it.
pub const RECEIVE_WINDOW: usize = 16 << 10;

/// How a send is to be treated; a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Wire)]
pub struct SendFlags(pub u8);

impl SendFlags {
    /// More follows at once: the stack may wait to fill a packet.
    pub const MORE: SendFlags = SendFlags(1);
    /// After these bytes, send FIN; receiving goes on.
    pub const FIN: SendFlags = SendFlags(2);
    /// After these bytes, close in order and drop the connection.
    pub const CLOSE: SendFlags = SendFlags(4);

    /// Whether all of `flags` are set.
    pub fn contains(self, flags: SendFlags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl std::ops::BitOr for SendFlags {
    type Output = SendFlags;

    fn bitor(self, other: SendFlags) -> SendFlags {
        SendFlags(self.0 | other.0)
    }
}

/// How the pages of a send were given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
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
    /// A listener took a connection.
    Accepted {
        /// Names the connection in later events; never used again in this session.
        connection: u64,
        /// Which of the capabilities beside the batch is the connection.
        capability: u8,
        /// The peer, as "address:port".
        peer: &'a str,
    },
    /// This connection was the client's last run's, which has sent a part of an answer, perhaps all or nothing of it. Comes right
    /// behind [`Accepted`](Event::Accepted); then come the bytes that were received from the beginning of that answer's request on.
    Resumed {
        /// Which connection.
        connection: u64,
        /// Where in the peer's stream that answer's request begins.
        request: u64,
        /// How many bytes of the answer are sent; none, if it has only been received.
        sent: u64,
        /// The header of the answer's first send.
        head: &'a [u8],
    },
    /// Bytes came in.
    Received {
        /// On which connection.
        connection: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// The peer will send no more; sending goes on.
    Finished {
        /// On which connection.
        connection: u64,
    },
    /// All bytes of a send are in the stack's hands.
    Sent {
        /// On which connection.
        connection: u64,
        /// The client's number for the send.
        send: u64,
        /// Bytes sent: header and pages.
        bytes: u64,
    },
    /// The pages of a send are no longer read by anybody; their leases may be released.
    Released {
        /// On which connection.
        connection: u64,
        /// The client's number for the send.
        send: u64,
        /// How.
        how: Released,
    },
    /// The connection is over. All its sends were released before. Nothing of it follows.
    Closed {
        /// Which connection.
        connection: u64,
        /// Why.
        reason: Reason,
    },
}

/// Events, packed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Wire)]
pub struct EventBatch {
    /// The cursor that consumes them all.
    pub next: u64,
    /// Packed events.
    #[packed(PackedEvent<'_>)]
    pub bytes: Vec<u8>,
}

impl EventBatch {
    /// Bytes of events that fit into a reply through the smallest window.
    pub const LIMIT: usize = MIN_PAYLOAD_BYTES - Self::FIXED_BYTES - <Vec<Cap<Connection>>>::FIXED_BYTES;

    /// Adds an event, unless the batch would then be longer than `limit` bytes. Says whether it was added.
    pub fn push(&mut self, event: &Event<'_>, limit: usize) -> bool {
        let fits = self.bytes.len() + event.packed_bytes() <= limit;
        if fits {
            codec::push_element(&mut self.bytes, &PackedEvent::from(*event));
        }
        fits
    }

    /// The events, each checked. Ends after the first that is malformed.
    pub fn events(&self) -> impl Iterator<Item = Result<Event<'_>, Malformed>> {
        codec::elements::<PackedEvent<'_>>(&self.bytes).map(|packed| packed.and_then(PackedEvent::check))
    }
}

impl Event<'_> {
    /// Bytes that it takes in a batch.
    pub fn packed_bytes(&self) -> usize {
        PackedEvent::FIXED_BYTES + PackedEvent::from(*self).bytes.len()
    }
}

/// An event as it stands in a batch. What a kind has no use for is zero or empty.
///
/// ```text
///  0  1  kind: 1 accepted, 2 received, 3 finished, 4 sent, 5 released, 6 closed, 7 resumed
///  1  8  connection
///  9  8  send (sent, released), request (resumed)
/// 17  8  bytes (sent, resumed), how (released), reason (closed), capability (accepted)
/// 25  4  length of what follows
/// 29  …  bytes (received), peer (accepted) or head (resumed)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
struct PackedEvent<'a> {
    kind: u8,
    connection: u64,
    send: u64,
    number: u64,
    bytes: &'a [u8],
}

impl<'a> From<Event<'a>> for PackedEvent<'a> {
    fn from(event: Event<'a>) -> Self {
        let packed = |kind, connection| PackedEvent { kind, connection, send: 0, number: 0, bytes: &[] };
        match event {
            Event::Accepted { connection, capability, peer } => {
                PackedEvent { number: capability.into(), bytes: peer.as_bytes(), ..packed(1, connection) }
            }
            Event::Received { connection, bytes } => PackedEvent { bytes, ..packed(2, connection) },
            Event::Finished { connection } => packed(3, connection),
            Event::Sent { connection, send, bytes } => PackedEvent { send, number: bytes, ..packed(4, connection) },
            Event::Released { connection, send, how } => {
                PackedEvent { send, number: how as u64, ..packed(5, connection) }
            }
            Event::Closed { connection, reason } => PackedEvent { number: reason as u64, ..packed(6, connection) },
            Event::Resumed { connection, request, sent, head } => {
                PackedEvent { send: request, number: sent, bytes: head, ..packed(7, connection) }
            }
        }
    }
}

impl<'a> PackedEvent<'a> {
    fn check(self) -> Result<Event<'a>, Malformed> {
        let PackedEvent { kind, connection, send, number, bytes } = self;
        let byte = || u8::try_from(number).map_err(|_| Malformed);
        let event = match kind {
            1 => {
                let peer = str::from_utf8(bytes).map_err(|_| Malformed)?;
                Event::Accepted { connection, capability: byte()?, peer }
            }
            2 => Event::Received { connection, bytes },
            3 => Event::Finished { connection },
            4 => Event::Sent { connection, send, bytes: number },
            5 => Event::Released { connection, send, how: Decoder::whole(&[byte()?])? },
            6 => Event::Closed { connection, reason: Decoder::whole(&[byte()?])? },
            7 => Event::Resumed { connection, request: send, sent: number, head: bytes },
            _ => return Err(Malformed),
        };
        // There is only one way to write an event.
        if PackedEvent::from(event) == self { Ok(event) } else { Err(Malformed) }
    }
}

/// Why nothing listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum ListenError {
    /// The address is not "host:port".
    BadAddress = 1,
    /// The capability does not allow this address.
    NotAllowed = 2,
    /// Somebody else listens there.
    InUse = 3,
    /// The system refused.
    System {
        /// Linux error number.
        errno: u32,
    } = 4,
}

/// Why the standing call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum EventsError {
    /// The cursor is neither the last one answered nor the one before.
    BadCursor = 1,
    /// Another `next_events` of this session is open.
    AlreadyOpen = 2,
}

/// Why a send was not accepted. Nothing of it was or will be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum SendError {
    /// The connection is closed or was told to close.
    Closed = 1,
    /// Too much of this connection waits to be sent. Wait for a `Sent`.
    Full = 2,
    /// A lease is not this client's, was taken back, or the part lies outside it.
    StaleLease = 3,
}

/// Why a close did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum CloseError {
    /// The connection was closed before.
    Closed = 1,
}
