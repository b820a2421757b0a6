//! A session: one client's connection to one endpoint.
//!
//! - The client end ([`ClientSession`]) turns calls into slots; the host end ([`HostSession`]) turns slots into calls
//!   of a [`Service`], after it has checked descriptor, slot, operation, capabilities, rights and deadline.
//! - Nothing that a peer writes ends more than the session.
//! - A call ends exactly once for its caller, and a failed one says whether it ran.

mod by_slot;
mod call;
pub mod capability;
mod client;
mod host;
mod near;

use std::future::Future;
use std::ops::Deref;
use std::time::Duration;

use crate::error::{Cause, Failure};
use crate::id::{Epoch, Incarnation, SessionId};
use crate::interface::{Description, Retry};
use crate::lease::Lend;
use crate::runtime::clock;
use crate::wire::{Handle, INLINE_BYTES, LeaseName, Violation, inline_bytes};

pub use crate::capability::Grant;
pub use call::Call;
pub(crate) use client::{Begun, Sent};
pub use client::{ClientSession, Earlier, Expected, Messages, Offer, Resumed, WeakSession};
pub use host::{ComponentLedger, Heritage, HostSession, Ledgers, Movable, Parted, Served, UnderWay, in_process};

/// One call, as a client makes it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The interface's operation.
    pub operation: u16,
    /// The capability that it is made on.
    pub handle: Handle,
    /// Encoded arguments.
    pub payload: &'a [u8],
    /// Capabilities of the same session given as arguments; at most [`MAX_CAPABILITIES`](crate::wire::MAX_CAPABILITIES).
    pub capabilities: &'a [Handle],
    /// Leases given as arguments; at most [`MAX_LEASES`](crate::wire::MAX_LEASES).
    pub leases: &'a [LeaseName],
    /// How long the caller waits, the wait for a free slot included. `None`: for ever.
    pub deadline: Option<Duration>,
    /// What may be done if the host dies on it.
    pub retry: Retry,
}

/// How a call ended, as the client sees it: with its result, or with the operation's own error.
#[derive(Debug, Default)]
pub struct Reply {
    /// Number of the operation's error, if it ended with one.
    pub operation_error: Option<u16>,
    /// Encoded result, or the error's fields.
    pub payload: Payload,
    /// Capabilities that came with it. The caller releases them.
    pub capabilities: Vec<Handle>,
    /// Leases that came with it. The caller releases them.
    pub leases: Vec<LeaseName>,
}

/// A copied payload. Short ones are held without an allocation.
#[derive(Clone, Debug, Default)]
pub struct Payload(Held);

/// Longest payload that is held without an allocation. Every reply carries as many bytes from hand to hand.
const SHORT: usize = 32;

#[derive(Clone, Debug)]
enum Held {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Vec<u8>),
}

impl Default for Held {
    fn default() -> Self {
        Held::Short { length: 0, bytes: [0; SHORT] }
    }
}

impl Payload {
    /// A payload of `length` zero bytes, to be filled.
    pub fn zeroed(length: usize) -> Payload {
        match u8::try_from(length) {
            Ok(short) if length <= SHORT => Payload(Held::Short { length: short, bytes: [0; SHORT] }),
            _ => Payload(Held::Long(vec![0; length])),
        }
    }

    /// The first `length` bytes that came inline in a descriptor: copied whole, which is cheaper than their number.
    #[inline]
    pub(crate) fn inline(words: [u64; 2], length: usize) -> Payload {
        let mut bytes = [0; SHORT];
        bytes[..INLINE_BYTES].copy_from_slice(&inline_bytes(words));
        Payload(Held::Short { length: length.min(INLINE_BYTES) as u8, bytes })
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Held::Short { length, bytes } => &mut bytes[..usize::from(*length)],
            Held::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Payload {
        let mut payload = Payload::zeroed(bytes.len());
        payload.bytes_mut().copy_from_slice(bytes);
        payload
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        if bytes.len() <= SHORT { Payload::from(&bytes[..]) } else { Payload(Held::Long(bytes)) }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Held::Short { length, bytes } => &bytes[..usize::from(*length)],
            Held::Long(bytes) => bytes,
        }
    }
}

/// What the two ends of a session know about it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// The session.
    pub id: SessionId,
    /// The endpoint's epoch.
    pub epoch: Epoch,
    /// The client: holder of the leases that this session is lent.
    pub client: Incarnation,
    /// The client's name in the manifest.
    pub client_name: String,
    /// What the manifest says beyond rights: `{"path": "/www"}` for a file system, `{"tcp": "127.0.0.1:8080"}` for a
    /// network. `Null` when it says nothing.
    pub attenuation: serde_json::Value,
}

/// What a host answers.
#[derive(Default)]
pub struct Response {
    /// Number of the operation's own error, if it ended with one.
    pub operation_error: Option<u16>,
    /// Encoded result, or the error's fields.
    pub payload: Payload,
    /// Capabilities for the client; at most [`MAX_CAPABILITIES`](crate::wire::MAX_CAPABILITIES).
    pub grants: Vec<Grant>,
    /// Ranges to lend to the client; at most [`MAX_LEASES`](crate::wire::MAX_LEASES). For hosts with a lender.
    pub lends: Vec<Lend>,
    /// A failure of the call itself instead of an answer. Grants are dropped and nothing is lent then.
    pub failure: Option<Failure>,
}

impl Response {
    /// The answer to a call that failed outside of its operation's own errors.
    pub fn failed(failure: Failure) -> Response {
        Response { failure: Some(failure), ..Response::default() }
    }
}

/// What a host answers at once: nothing beside a payload.
#[derive(Debug, Default)]
pub struct Brief {
    /// Number of the operation's own error, if it ended with one.
    pub operation_error: Option<u16>,
    /// Encoded result, or the error's fields.
    pub payload: Payload,
}

impl From<Result<Brief, Failure>> for Response {
    fn from(answer: Result<Brief, Failure>) -> Response {
        match answer {
            Ok(Brief { operation_error, payload }) => Response { operation_error, payload, ..Response::default() },
            Err(failure) => Response::failed(failure),
        }
    }
}

/// What serves an endpoint. One value serves all its sessions.
pub trait Service: 'static {
    /// The interface: checked before [`serve`](Self::serve) is called.
    const INTERFACE: &'static Description;

    /// Whether sessions go on in the host's next incarnation ([`HostSession::go_on`]). The state of a host that says so is
    /// in ledgers and on disk: a repeated reply would promise an effect that is gone otherwise (R1).
    const SURVIVES: bool = false;

    /// Serves one call. Runs on the session's thread; many calls are in progress at once, at most one per slot. The
    /// future always runs to its end, also when the caller is gone; [`Call::until_cancelled`] tells.
    fn serve(&self, call: &mut Call) -> impl Future<Output = Response>;

    /// Whether operations that are answered [`at_once`](crate::interface::Operation::at_once) are served by
    /// [`serve_at_once`](Self::serve_at_once); else [`serve`](Self::serve) has all of them.
    const ANSWERS_AT_ONCE: bool = false;

    /// Serves one call of such an operation, in the turn in which it is read.
    ///
    /// # Errors
    /// A failure of the call itself instead of an answer.
    fn serve_at_once(&self, _call: &Call) -> Result<Brief, Failure> {
        Err(Failure::not_executed(Cause::UnknownOperation))
    }

    /// The client has died, and the session ends by it: comes before its capabilities are dropped.
    fn client_died(&self, _session: &SessionInfo) {}

    /// A capability that was granted on this session is gone, and every copy of it: their holders released them, they were
    /// revoked, sessions ended with them, or it could not be delivered. Once for each that was granted. It may come after
    /// [`closed`](Self::closed) if a copy was given to another session.
    fn dropped(&self, _session: &SessionInfo, _capability: &Grant) {}

    /// The session ended, in order or not. Its capabilities have been dropped; calls may still be in progress, and
    /// nobody will hear their answers.
    fn closed(&self, _session: &SessionInfo) {}
}

/// Why a session was not opened.
#[derive(Debug)]
pub enum OpenError {
    /// The kernel refused memory or a mapping.
    Io(std::io::Error),
    /// The peer's segment is not what it has to be. Do not retry with it.
    Violation(Violation),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Io(error) => error.fmt(f),
            OpenError::Violation(violation) => write!(f, "the peer broke the protocol ({violation:?})"),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<std::io::Error> for OpenError {
    fn from(error: std::io::Error) -> Self {
        OpenError::Io(error)
    }
}

impl From<Violation> for OpenError {
    fn from(violation: Violation) -> Self {
        OpenError::Violation(violation)
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds, a few milliseconds behind: a third of the cost of the exact time. Deadlines are
/// compared with it, so one can be late by [`CLOCK_LAG`], never early.
#[inline]
pub(crate) fn now() -> u64 {
    clock::coarse_ns()
}

/// How far [`now`] can be behind the time: one tick of the slowest kernel (100 a second).
const CLOCK_LAG: Duration = Duration::from_millis(10);

/// When the caller of a call with this wire deadline, who waits `limit`, has called: he has looked at the clock already.
fn called_at(deadline: u64, limit: Option<Duration>) -> u64 {
    match limit {
        Some(limit) if deadline != 0 => {
            deadline.saturating_sub(nanoseconds(limit).saturating_add(nanoseconds(CLOCK_LAG)))
        }
        _ => now(),
    }
}

/// A duration in nanoseconds; one of more than 584 years is as good as for ever.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
