//! What a component (or guest) and the supervisor say to each other over the control socket.
//!
//! - One unix `SOCK_SEQPACKET` socket per component, file descriptor 3 of its process; a guest connects to
//!   `STATE/atoll.sock`. A message is one packet: a JSON object of at most [`MAX_MESSAGE`] bytes, and the file
//!   descriptors that its documentation lists, in that order.
//! - The control socket is not on the data path: it opens sessions, introduces mappers to lenders, and carries news of
//!   deaths. Calls go through the segments that it passed.
//! - Neither end trusts the other: a message that does not decode, is too long, lost descriptors on its way, or comes
//!   with a number of descriptors other than its kind allows is a [`ChannelError::Protocol`]; the reader closes the
//!   connection.
//! - Messages of one direction arrive in the order in which they were sent. What the order means is said at each message.
//! - The keeper holds the supervisor's end too: when the supervisor dies, the next one takes the socket over and asks
//!   [`Adopt`](ToComponent::Adopt). What it reads before the [`Account`] is void, because the account says what it led to,
//!   and what has no answer yet is said again behind it.

mod channel;
mod greeting;
mod outbox;
mod to_supervisor;

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::formats::HEADER;
use crate::ledger::Holdings;
use crate::link::socket::nodes::KnownNode;
use crate::{Epoch, Incarnation, LenderId, RegionId, Rights, SessionId};

pub(crate) use channel::say;
pub use channel::{Channel, ChannelError};
pub use greeting::{PartyKeys, ProvideInfo, REGIONS_PER_INCARNATION, UseInfo, Welcome};
pub use outbox::Outbox;
pub use to_supervisor::{Account, CounterValues, ToSupervisor};

/// Version of this protocol; both ends must speak the same one (there is one binary per node).
pub const PROTOCOL: u32 = 10;

/// Longest message, in bytes of JSON.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Most file descriptors that any message carries.
pub const MAX_DESCRIPTORS: usize = 4;

/// Most descriptors that one component may have held, and the longest name of one. Those that the supervisor gives, and
/// [sessions](SESSION), count apart.
pub const MAX_HELD: usize = 256;
/// See [`MAX_HELD`].
pub const MAX_HELD_NAME: usize = 192;

/// What a held descriptor's name begins with that the supervisor itself gives: a socket that listens for clients of the endpoint named
/// behind it, on other nodes.
pub const EXPORT: &str = "export/";

/// What a held descriptor's name begins with that is the ledger of a session with a client on another node; its number is behind it.
pub const SESSION: &str = "session/";

/// Most sessions with clients on other nodes that one component may have held; others end with its run.
pub const MAX_SESSIONS_HELD: usize = 128;

/// Bytes of a ticket, which names a session between nodes before it is open.
pub const TICKET_BYTES: usize = 32;

/// The socket in the state directory to which guests connect.
pub const GUEST_SOCKET: &str = "atoll.sock";

/// The file descriptor of the control socket in a component's process.
pub const CONTROL_FD: i32 = 3;

/// A message with its file descriptors counted.
pub trait Message: Serialize + for<'de> Deserialize<'de> {
    /// How many file descriptors travel with this message.
    fn descriptors(&self) -> RangeInclusive<usize>;
}

/// From the supervisor to a component or guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum ToComponent {
    /// First message. Descriptors: the status page (read-only), the write end of this run's fence; for a component its
    /// logbook.
    Welcome(Box<Welcome>),
    /// Before `Welcome`: while another run of this component serves, say whether you could go on after it. Answered by `Fits`, or
    /// `Failed` and the end. `Welcome` may come, or the socket ends.
    Examine {
        /// The component's name in the manifest.
        name: String,
        /// The state directory, absolute.
        state_dir: String,
        /// The version of the segments of its sessions.
        segment: u32,
        /// What memory that would be left begins with, under the name of one that does.
        left: Vec<(String, [u8; HEADER])>,
    },
    /// Your next run is at hand: read no more calls, answer those that are under way, and end as if you were killed, with
    /// everything as it stands. Answered by `Stays` if you cannot.
    HandOver {
        /// How long that may take.
        within_ms: u32,
    },
    /// The supervisor refuses to talk to this guest; the connection ends.
    Rejected {
        /// For people.
        reason: String,
    },
    /// Memory under a name that an earlier run of this component asked to be kept. Only behind `Welcome`.
    /// Descriptor: the memory.
    Heritage {
        /// Its name.
        name: String,
    },
    /// A descriptor under a name that a run of this component gave to be held. Only behind `Welcome`.
    /// Descriptor: that one.
    Held {
        /// Its name.
        name: String,
    },
    /// A session that the last run served and that goes on; its client will resume it. Only behind `Welcome`.
    /// Descriptor: the session's ledger.
    Recovers(Box<Serve>),
    /// Answers `Keep`. Descriptor: fresh memory, which every later run of this component inherits.
    Kept {
        /// Its name.
        name: String,
    },
    /// Answers `Open`. Every introduction that the session's leases need has been acknowledged before.
    /// Descriptor: the S-segment.
    Opened {
        /// Which `Open` this answers.
        request: u64,
        /// The session.
        session: SessionId,
        /// The epoch of the endpoint.
        epoch: Epoch,
        /// The incarnation that serves it.
        host: Incarnation,
        /// The host's entry of the status page.
        status_entry: u32,
        /// The session goes on when its host has died.
        survives: bool,
    },
    /// Answers `Open`: there is no session.
    OpenFailed {
        /// Which `Open` this answers.
        request: u64,
        /// Why.
        error: OpenError,
    },
    /// Answers `Open`: the endpoint is on another node, whose supervisor has announced you. Dial.
    OpenedBeyond(Box<OpenedBeyond>),
    /// A component of another node will open a session with an endpoint of yours: expect it, and answer `Expects` or `Refused`.
    ServeBeyond(Box<ServeBeyond>),
    /// A certificate by which you prove to other nodes who you are: a new one, or the first.
    Keys(Box<PartyKeys>),
    /// What a node with which you have to do is from now on: nobody else who calls himself so is of it.
    NodeIs {
        /// Its name.
        node: String,
        /// What it is.
        is: KnownNode,
    },
    /// Someone wants a session with an endpoint of yours; answer `Serving` or `Refused`. Descriptors: the C-segment; for
    /// a session that survives and is new, fresh memory for its ledger.
    Serve(Box<Serve>),
    /// The client of this session is gone: close it, take back what that incarnation held.
    ClientGone {
        /// The session that ended.
        session: SessionId,
        /// Its client.
        client: Incarnation,
        /// The client is dead, and did not just end this session.
        died: bool,
        /// What it holds waits for its next incarnation.
        survives: bool,
    },
    /// The host of this session died: outstanding calls end, the S-segment is final.
    HostGone {
        /// The session that ended.
        session: SessionId,
        /// It goes on: ask with `Open` to resume it.
        survives: bool,
    },
    /// Make this memory your pin segment for a lender: map it, seal it, write its header, answer `PinsAdopted`.
    /// Descriptor: a fresh memfd that the keeper made.
    AdoptPins {
        /// The lender.
        lender: LenderId,
        /// How many leases it must count.
        capacity: u32,
    },
    /// You may map what this lender lends; it has attached your pin segment. Answer `LenderMet`.
    /// Descriptor: the lease table.
    MeetLender {
        /// The lender.
        lender: LenderId,
        /// The run whose lender it is: its calls may name what it lends.
        of: Incarnation,
        /// The lender's epoch.
        epoch: Epoch,
        /// The lender's entry of the status page.
        status_entry: u32,
    },
    /// Leases of this lender may name this region. Comes after `MeetLender`. Descriptor: the region.
    MeetRegion {
        /// The lender.
        lender: LenderId,
        /// The region.
        region: RegionId,
    },
    /// The lender is dead: no new pin; unmap its table and its own regions when nothing of them is pinned any more.
    LenderGone {
        /// The lender; absent if it survives: then only its regions are gone, and `MeetLender` brings its new table.
        lender: Option<LenderId>,
        /// The regions that it owned.
        regions: Vec<RegionId>,
    },
    /// Answers `Region`: everybody who may map it has.
    RegionPublished {
        /// The region.
        region: RegionId,
    },
    /// You lend to components which this mapper serves. Attach its pins before you answer `PinsAttached`.
    /// Descriptor: the pin segment.
    AttachPins {
        /// The mapper.
        mapper: Incarnation,
        /// The mapper's epoch.
        epoch: Epoch,
        /// The mapper's entry of the status page.
        status_entry: u32,
    },
    /// The kernel has let go of every page of this dead mapper: its pins no longer count.
    MapperFenced {
        /// The mapper.
        mapper: Incarnation,
    },
    /// Answers `Look`. Descriptor: the logbook, for reading; absent if there is none.
    Logbook {
        /// Which `Look` this answers.
        request: u64,
    },
    /// Answers `LookAtSession`.
    Session {
        /// Which `LookAtSession` this answers.
        request: u64,
        /// The session; none: there are no more.
        session: Option<Box<SessionFacts>>,
    },
    /// From now on write spans into your logbook, of one in so many traces that begin with you and of all that come to you.
    Trace {
        /// One in so many; 0: none any more.
        every: u32,
        /// For how long. Said again, it begins anew.
        for_ms: u32,
    },
    /// Answer with `Counters`.
    AskCounters {
        /// To match the answer.
        request: u64,
    },
    /// Answer with `Pulse`, which every healthy executor does within one turn; and when there is nothing more to do, `Rests`.
    AskPulse {
        /// To match the answer.
        request: u64,
    },
    /// End in order: finish accepted calls, make state durable, exit with success.
    Stop,
    /// Another supervisor has taken over: answer with [`Account`]s that carry this number, then say again what is not
    /// answered yet: `Lends`, `Report`, `Keep`, `Region`, `Open`. A peer that was not greeted yet has nothing to account
    /// for, and begins anew.
    Adopt {
        /// Which supervisor it is.
        turn: u64,
    },
}

/// A session that a host is asked to serve.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serve {
    /// The session.
    pub session: SessionId,
    /// The endpoint's name within the component.
    pub endpoint: String,
    /// Epoch that both segments must carry.
    pub epoch: Epoch,
    /// The client's incarnation: the holder of the leases that are lent to it.
    pub client: Incarnation,
    /// The client's name.
    pub client_name: String,
    /// The client's entry of the status page.
    pub status_entry: u32,
    /// The rights of the root capability.
    pub rights: Rights,
    /// What else narrows the root capability: `{"path": "/www"}`, `{"tcp": "127.0.0.1:8080"}`; null if nothing.
    pub attenuation: Value,
    /// The session is one that `Recovers` announced: its client goes on with it.
    #[serde(default)]
    pub resumes: bool,
    /// The dead incarnations of the client whose leases it inherits.
    #[serde(default)]
    pub inherits: Vec<Incarnation>,
}

/// A client on another node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServeBeyond {
    /// The session.
    pub serve: Serve,
    /// The node.
    pub node: String,
    /// The component there.
    pub component: String,
    /// What it comes with.
    pub ticket: [u8; TICKET_BYTES],
}

/// A host on another node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenedBeyond {
    /// Which `Open` this answers.
    pub request: u64,
    /// Where it listens.
    pub address: SocketAddr,
    /// The node.
    pub node: String,
    /// The component there.
    pub component: String,
    /// What it expects.
    pub ticket: [u8; TICKET_BYTES],
}

/// An open session, as the supervisor knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionFacts {
    /// Its number.
    pub session: SessionId,
    /// The component that serves it; none: the supervisor itself.
    pub host: Option<String>,
    /// The endpoint's name there; empty: it is not known any more.
    pub endpoint: String,
    /// Its interface; empty likewise.
    pub interface: String,
    /// Who has opened it.
    pub client: String,
    /// Its host is dead, and the next run awaited.
    pub suspended: bool,
    /// What it holds, or what is wrong with its ledger; none: it has no ledger, and only its host knows.
    pub holdings: Option<Result<Holdings, String>>,
}

impl SessionFacts {
    /// Most capabilities in one message.
    pub const PART: usize = 128;
}

/// Why a session could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum OpenError {
    /// The manifest does not give this component such a session, or no such endpoint exists.
    Unknown,
    /// The endpoint speaks another interface or version.
    Interface {
        /// The one that it speaks.
        speaks: String,
    },
    /// The host failed and is not started again, or the node is ending.
    Unavailable {
        /// For people.
        reason: String,
    },
    /// The host refused.
    Refused {
        /// The host's words.
        reason: String,
    },
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Unknown => f.write_str("the manifest gives no such session"),
            OpenError::Interface { speaks } => write!(f, "the endpoint speaks {speaks}"),
            OpenError::Unavailable { reason } => write!(f, "not available: {reason}"),
            OpenError::Refused { reason } => write!(f, "refused: {reason}"),
        }
    }
}

impl std::error::Error for OpenError {}

impl Message for ToComponent {
    fn descriptors(&self) -> RangeInclusive<usize> {
        match self {
            ToComponent::Welcome(_) => 2..=3,
            ToComponent::Opened { .. } | ToComponent::Recovers(_) => 1..=1,
            ToComponent::Heritage { .. } | ToComponent::Held { .. } | ToComponent::Kept { .. } => 1..=1,
            ToComponent::Serve(_) => 1..=2,
            ToComponent::Logbook { .. } => 0..=1,
            ToComponent::AdoptPins { .. } | ToComponent::MeetLender { .. } => 1..=1,
            ToComponent::MeetRegion { .. } | ToComponent::AttachPins { .. } => 1..=1,
            ToComponent::Examine { .. } | ToComponent::HandOver { .. } => 0..=0,
            ToComponent::Rejected { .. }
            | ToComponent::OpenFailed { .. }
            | ToComponent::OpenedBeyond(_)
            | ToComponent::ServeBeyond(_)
            | ToComponent::Keys(_)
            | ToComponent::NodeIs { .. }
            | ToComponent::ClientGone { .. }
            | ToComponent::HostGone { .. }
            | ToComponent::LenderGone { .. }
            | ToComponent::RegionPublished { .. }
            | ToComponent::MapperFenced { .. }
            | ToComponent::Session { .. }
            | ToComponent::Trace { .. }
            | ToComponent::AskCounters { .. }
            | ToComponent::AskPulse { .. }
            | ToComponent::Stop
            | ToComponent::Adopt { .. } => 0..=0,
        }
    }
}
