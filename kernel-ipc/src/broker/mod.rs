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
mod outbox;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ledger::Holdings;
use crate::{Epoch, Incarnation, LenderId, RegionId, Rights, SessionId};

pub use channel::{Channel, ChannelError};
pub use outbox::Outbox;

/// Version of this protocol; both ends must speak the same one (there is one binary per node).
pub const PROTOCOL: u32 = 6;

/// Longest message, in bytes of JSON.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Most file descriptors that any message carries.
pub const MAX_DESCRIPTORS: usize = 4;

/// Most descriptors that one component may have held, and the longest name of one.
pub const MAX_HELD: usize = 256;
/// See [`MAX_HELD`].
pub const MAX_HELD_NAME: usize = 192;

/// The socket in the state directory to which guests connect.
pub const GUEST_SOCKET: &str = "atoll.sock";

/// The file descriptor of the control socket in a component's process.
pub const CONTROL_FD: i32 = 3;

/// A message with its file descriptors counted.
pub trait Message: Serialize + for<'de> Deserialize<'de> {
    /// How many file descriptors travel with this message.
    fn descriptors(&self) -> RangeInclusive<usize>;
}

/// The supervisor's greeting: who this process is, and all that its manifest entry says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The component's name in the manifest, or the guest's.
    pub name: String,
    /// The node's name (`[system] name`).
    pub system: String,
    /// This run.
    pub incarnation: Incarnation,
    /// The epoch of this component's endpoints.
    pub epoch: Epoch,
    /// Names this run's ledger of leases.
    pub lender: LenderId,
    /// The first of [`REGIONS_PER_INCARNATION`] region ids that belong to this run.
    pub first_region: RegionId,
    /// Which entry of the status page is this component's.
    pub status_entry: u32,
    /// The state directory, absolute; also the working directory of components.
    pub state_dir: String,
    /// The manifest's `config`, with `--set` applied.
    pub config: Value,
    /// What this component's earlier runs reported, the latest of each: so that a run can go on where they were.
    #[serde(default)]
    pub reported: BTreeMap<String, Value>,
    /// The sessions that it may open.
    pub uses: Vec<UseInfo>,
    /// The endpoints that it must provide before it is ready.
    pub provides: Vec<ProvideInfo>,
    /// After so many milliseconds it refuses calls that it has not read ([`HostSession::refuse_after`](crate::session::HostSession::refuse_after)).
    #[serde(default)]
    pub refuse_after_ms: Option<u32>,
    /// Dead runs of this component since one of it was ready.
    #[serde(default)]
    pub ancestors: Vec<Incarnation>,
    /// The number of the crash that ended the last run that was ready, until one is ready again.
    #[serde(default)]
    pub crash: Option<u64>,
    /// Runs of other components whose leases are inherited: dead ones that survive, and their next runs until they are ready.
    #[serde(default)]
    pub heirs: Vec<Incarnation>,
    /// How many messages of the kinds `Heritage`, `Held`, `Recovers` and `AttachPins` follow at once: what its last run left.
    #[serde(default)]
    pub heritage: u32,
}

/// How many regions one run may publish.
pub const REGIONS_PER_INCARNATION: u64 = 1024;

/// A session that a component may open: one `uses.NAME` of its manifest entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UseInfo {
    /// What the component calls it.
    pub name: String,
    /// The endpoint, as `component.endpoint`.
    pub endpoint: String,
    /// Its interface, with version.
    pub interface: String,
    /// The rights of the root capability.
    pub rights: Rights,
}

/// An endpoint that a component provides: one `provides.NAME` of its manifest entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProvideInfo {
    /// The endpoint's name within the component.
    pub name: String,
    /// Its interface, with version.
    pub interface: String,
}

/// From the supervisor to a component or guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum ToComponent {
    /// First message. Descriptors: the status page (read-only), the write end of this run's fence; for a component its
    /// logbook.
    Welcome(Box<Welcome>),
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

/// What a peer knows of its node, in one or more parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Of the `Adopt` that it answers.
    pub turn: u64,
    /// Nothing more comes.
    pub last: bool,
    /// Sessions that it serves or is about to, each with its client.
    pub hosts: Vec<(SessionId, Incarnation)>,
    /// Sessions that it has opened, each with the run that serves it or did last.
    pub uses: Vec<(SessionId, Incarnation)>,
    /// The lenders that it has met, each with the epoch of the table that it has.
    pub lenders: Vec<(LenderId, Epoch)>,
    /// The regions that it has mapped, for each lender.
    pub regions: Vec<(LenderId, RegionId)>,
    /// The mappers whose pins it has attached.
    pub mappers: Vec<Incarnation>,
    /// Whom it has lent something that is not given back.
    pub holders: Vec<Incarnation>,
}

impl Account {
    /// Things in one part: far less than fit into a message.
    pub const PART: usize = 256;

    /// Cuts an account into parts that can be sent.
    pub fn parts(mut self) -> Vec<Account> {
        fn cut<T>(list: &mut Vec<T>) -> Vec<T> {
            list.drain(..list.len().min(Account::PART)).collect()
        }
        let mut parts = Vec::new();
        loop {
            let part = Account {
                turn: self.turn,
                last: false,
                hosts: cut(&mut self.hosts),
                uses: cut(&mut self.uses),
                lenders: cut(&mut self.lenders),
                regions: cut(&mut self.regions),
                mappers: cut(&mut self.mappers),
                holders: cut(&mut self.holders),
            };
            parts.push(part);
            if self == (Account { turn: self.turn, last: self.last, ..Account::default() }) {
                break;
            }
        }
        if let Some(last) = parts.last_mut() {
            last.last = true;
        }
        parts
    }
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

/// From a component or guest to the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum ToSupervisor {
    /// First message, of guests and components alike.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// What a guest calls itself; components are known by their socket.
        program: String,
    },
    /// This run lends. Sent once, before any lease. Descriptor: the lease table.
    Lends {
        /// Entries of the table.
        capacity: u32,
    },
    /// A region that leases of this run may name. Descriptor: the region.
    Region {
        /// One of the ids given in `Welcome`, or that of a region that is kept.
        region: RegionId,
    },
    /// Calls to this endpoint will be answered.
    Provides {
        /// The endpoint's name within the component.
        endpoint: String,
        /// The interface of the service behind it; must be the manifest's.
        interface: String,
        /// Its sessions go on in this component's next run.
        survives: bool,
    },
    /// Keep memory for this component's later runs; answered by `Kept`. At most once under each name.
    Keep {
        /// Its name. `region-N` is that of a region of this run: what is kept is known to its mappers after its owner's death.
        name: String,
        /// Its length.
        bytes: u64,
    },
    /// Hold a descriptor for this component's later runs, instead of one that it may hold under this name. Counts also
    /// if this run has died since. Descriptor: the one to hold.
    Hold {
        /// Its name.
        name: String,
    },
    /// Let go of a descriptor that is held under this name.
    LetGo {
        /// Its name.
        name: String,
    },
    /// What was kept makes no sense: forget it, with its sessions and the lender. This run ends.
    Forget,
    /// All endpoints are provided and everything works: dependants may start.
    Ready,
    /// Open a session. Descriptor: the C-segment.
    Open {
        /// To match the answer.
        request: u64,
        /// A component: the name of one of its `uses`. A guest: `component.endpoint`, or `control`.
        endpoint: String,
        /// The interface that the client speaks.
        interface: String,
        /// The session to go on with.
        #[serde(default)]
        resumes: Option<SessionId>,
    },
    /// Answers `Serve`. Descriptor: the S-segment.
    Serving {
        /// The session.
        session: SessionId,
    },
    /// Answers `Serve`: no session.
    Refused {
        /// The session.
        session: SessionId,
        /// For people.
        reason: String,
    },
    /// Show a component's logbook, dead or alive. For guests. Answered by `Logbook`.
    Look {
        /// To match the answer.
        request: u64,
        /// The component's name in the manifest.
        component: String,
    },
    /// Show an open session, and what its ledger says that it holds. For guests. Answered by `Session`.
    LookAtSession {
        /// To match the answer.
        request: u64,
        /// The one with the next greater number.
        after: SessionId,
        /// What it holds from this index on.
        from: u32,
    },
    /// Have all components write spans, also those that are started meanwhile. For guests; the last one who says so is heard.
    Trace {
        /// As for the component.
        every: u32,
        /// As for the component.
        for_ms: u32,
    },
    /// The client ends a session, or the host closes it because of what the client did.
    Close {
        /// The session.
        session: SessionId,
        /// Why, if the peer misbehaved.
        violation: Option<String>,
    },
    /// Answers `AdoptPins`: the segment is sealed and has its header.
    PinsAdopted {
        /// The lender.
        lender: LenderId,
    },
    /// Answers `MeetLender` and `MeetRegion`.
    LenderMet {
        /// The lender.
        lender: LenderId,
        /// The region, if it answers `MeetRegion`.
        region: Option<RegionId>,
        /// Whether it could be mapped.
        error: Option<String>,
    },
    /// Answers `AttachPins`.
    PinsAttached {
        /// The mapper.
        mapper: Incarnation,
    },
    /// A fact about this component for `atoll ps`, such as `listen`.
    Report {
        /// Its name.
        key: String,
        /// Its value.
        value: Value,
    },
    /// Answers `AskCounters`.
    Counters {
        /// Which question.
        request: u64,
        /// The counters.
        counters: CounterValues,
    },
    /// Answers `AskPulse`.
    Pulse {
        /// Which question.
        request: u64,
    },
    /// Said once after each `AskPulse`, when this component has nothing to do and falls asleep.
    Rests,
    /// Said when it wakes after `Rests`, before it does anything.
    Wakes,
    /// Answers `Adopt`.
    Account(Box<Account>),
    /// This run cannot go on; it exits with failure after this message.
    Failed {
        /// For people.
        reason: String,
    },
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

/// What a component did with payload since it started, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterValues {
    /// Bytes lent.
    pub leased: u64,
    /// Bytes read once to check them.
    pub verified: u64,
    /// Bytes copied in user space.
    pub copied: u64,
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
            ToComponent::Rejected { .. }
            | ToComponent::OpenFailed { .. }
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

impl Message for ToSupervisor {
    fn descriptors(&self) -> RangeInclusive<usize> {
        match self {
            ToSupervisor::Lends { .. }
            | ToSupervisor::Region { .. }
            | ToSupervisor::Hold { .. }
            | ToSupervisor::Open { .. }
            | ToSupervisor::Serving { .. } => 1..=1,
            ToSupervisor::Hello { .. }
            | ToSupervisor::Provides { .. }
            | ToSupervisor::Keep { .. }
            | ToSupervisor::LetGo { .. }
            | ToSupervisor::Forget
            | ToSupervisor::Ready
            | ToSupervisor::Refused { .. }
            | ToSupervisor::Look { .. }
            | ToSupervisor::LookAtSession { .. }
            | ToSupervisor::Trace { .. }
            | ToSupervisor::Close { .. }
            | ToSupervisor::PinsAdopted { .. }
            | ToSupervisor::LenderMet { .. }
            | ToSupervisor::PinsAttached { .. }
            | ToSupervisor::Report { .. }
            | ToSupervisor::Counters { .. }
            | ToSupervisor::Pulse { .. }
            | ToSupervisor::Rests
            | ToSupervisor::Wakes
            | ToSupervisor::Account(_)
            | ToSupervisor::Failed { .. } => 0..=0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_cut_into_parts_that_fit_into_messages_and_lose_nothing() {
        let empty = Account { turn: 3, ..Account::default() };
        assert_eq!(empty.clone().parts(), [Account { last: true, ..empty.clone() }]);
        let many = Account::PART as u64 * 2 + 5;
        let big = || (u64::MAX - many..).take(many as usize);
        let whole = Account {
            hosts: big().map(|n| (SessionId(n), Incarnation(n))).collect(),
            uses: big().map(|n| (SessionId(n), Incarnation(n))).take(Account::PART).collect(),
            lenders: big().map(|n| (LenderId(n), Epoch(n))).collect(),
            regions: big().map(|n| (LenderId(n), RegionId(n))).collect(),
            mappers: big().map(Incarnation).collect(),
            holders: big().map(Incarnation).collect(),
            ..empty
        };
        let parts = whole.clone().parts();
        let last: Vec<bool> = parts.iter().map(|part| part.last).collect();
        assert_eq!(last, [false, false, true]);
        let mut joined = Account { turn: 3, ..Account::default() };
        for mut part in parts {
            let message = ToSupervisor::Account(Box::new(part.clone()));
            assert!(serde_json::to_vec(&message).expect("strings").len() <= MAX_MESSAGE);
            joined.hosts.append(&mut part.hosts);
            joined.uses.append(&mut part.uses);
            joined.lenders.append(&mut part.lenders);
            joined.regions.append(&mut part.regions);
            joined.mappers.append(&mut part.mappers);
            joined.holders.append(&mut part.holders);
        }
        assert_eq!(joined, whole);
    }
}
