//! What a client has still to hear, by its standing `next_events` call.
//!
//! Received bytes count against their connection's window until they are consumed; a queue that is full asks the shell to stop
//! accepting and receiving, whatever the windows say, when the client does not take its events at all.

use kernel_ipc::events::{self, Queue};
use protocol::net::{Event, Reason, Released};

/// An event that waits for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occurrence {
    /// A listener took this connection.
    Accepted {
        /// The peer's address.
        peer: String,
    },
    /// The client's last run has sent so much of an answer, which began with this header.
    Resumed {
        /// Where its request begins.
        request: u64,
        /// Bytes of it.
        sent: u64,
        /// Its beginning; at most [`MAX_INLINE_BYTES`].
        head: Vec<u8>,
    },
    /// Bytes came in; at most [`MAX_INLINE_BYTES`].
    Received(Vec<u8>),
    /// The peer sends no more.
    Finished,
    /// A send is in the kernel's hands.
    Sent {
        /// The client's number for it.
        send: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// The pages of a send are no longer read by anybody.
    Released {
        /// The client's number for it.
        send: u64,
        /// How.
        how: Released,
    },
    /// The connection is over.
    Closed(Reason),
}

/// Longest piece of received bytes that is one event: a batch has room for several.
pub const MAX_INLINE_BYTES: usize = 2 << 10;

/// One event and the connection that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The connection's number in its session.
    pub connection: u64,
    /// What happened.
    pub occurrence: Occurrence,
}

/// The events of one client.
pub type EventQueue = Queue<Entry>;

impl Entry {
    /// An event of a connection.
    pub fn new(connection: u64, occurrence: Occurrence) -> Entry {
        Entry { connection, occurrence }
    }

    /// The event as it is written into a batch; `capability` is the place of the connection's capability beside it.
    pub fn event(&self, capability: u8) -> Event<'_> {
        let connection = self.connection;
        match &self.occurrence {
            Occurrence::Accepted { peer } => Event::Accepted { connection, capability, peer },
            Occurrence::Resumed { request, sent, head } => {
                Event::Resumed { connection, request: *request, sent: *sent, head }
            }
            Occurrence::Received(bytes) => Event::Received { connection, bytes },
            Occurrence::Finished => Event::Finished { connection },
            Occurrence::Sent { send, bytes } => Event::Sent { connection, send: *send, bytes: *bytes },
            Occurrence::Released { send, how } => Event::Released { connection, send: *send, how: *how },
            Occurrence::Closed(reason) => Event::Closed { connection, reason: *reason },
        }
    }

    /// Received bytes that it brings.
    pub fn received_bytes(&self) -> usize {
        match &self.occurrence {
            Occurrence::Received(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

impl events::Event for Entry {
    fn bytes(&self) -> usize {
        self.event(0).packed_bytes()
    }

    fn capabilities(&self) -> usize {
        usize::from(matches!(self.occurrence, Occurrence::Accepted { .. }))
    }
}
