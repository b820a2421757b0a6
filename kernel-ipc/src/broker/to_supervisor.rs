//! What a component or guest says to the supervisor.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Message;
use crate::{Epoch, Incarnation, LenderId, RegionId, SessionId};

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
    /// Answers `Examine`: it can go on.
    Fits,
    /// Answers `HandOver`: calls are under way that nobody could make again. It serves on.
    Stays {
        /// How many.
        calls: u32,
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
        /// What other nodes lend lands in it: so whoever this component uses may map it.
        #[serde(default)]
        landed: bool,
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
    /// Answers `ServeBeyond`: its client may come.
    Expects {
        /// The session.
        session: SessionId,
    },
    /// Answers `Serve` or `ServeBeyond`: no session.
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

impl Message for ToSupervisor {
    fn descriptors(&self) -> RangeInclusive<usize> {
        match self {
            ToSupervisor::Lends { .. }
            | ToSupervisor::Region { .. }
            | ToSupervisor::Hold { .. }
            | ToSupervisor::Open { .. }
            | ToSupervisor::Serving { .. } => 1..=1,
            ToSupervisor::Hello { .. }
            | ToSupervisor::Fits
            | ToSupervisor::Stays { .. }
            | ToSupervisor::Expects { .. }
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
    use super::super::MAX_MESSAGE;
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
