//! What a component's last run left for this one, and what this one leaves.
//!
//! - A component that survives calls [`Context::survive`] before it lends, serves or publishes: it gets the effects that
//!   were not durable, the sessions that go on with their capabilities, and the leases that are out.
//! - Descriptors of the kernel's that have to outlive a run (a listening socket) are [held](Context::hold) under names, for
//!   components that survive and others alike.
//! - All of it is checked as if it came from a disk. A session that makes no sense is dropped alone; with a ring or a ledger
//!   of leases that makes no sense everything is forgotten, and this run ends: the next one is another lender.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::waits::question;
use super::{Context, ContextError, LEASES};
use crate::broker::{Serve, ToSupervisor};
use crate::lease::{Inherited, Lender};
use crate::ledger::{Record, Records};
use crate::session::{ComponentLedger, Grant, Heritage, SessionInfo};
use crate::sys::segment::SegmentWriter;
use crate::{Epoch, Incarnation, SessionId};

/// Names of the memory that the keeper keeps.
const RECORDS: &str = "records";
const LEASE_LEDGER: &str = "leases";

/// What came behind the greeting.
#[derive(Default)]
pub(super) struct Left {
    pub(super) memory: HashMap<String, OwnedFd>,
    pub(super) sessions: Vec<(Serve, OwnedFd)>,
    pub(super) pins: Vec<Pins>,
    pub(super) held: Vec<(String, OwnedFd)>,
}

/// A mapper's pins, which the lender's next incarnation attaches before it does anything.
pub(super) struct Pins {
    pub(super) mapper: Incarnation,
    pub(super) epoch: Epoch,
    pub(super) status_entry: u32,
    pub(super) memory: OwnedFd,
}

/// What a run has for the one after it.
#[derive(Default)]
pub(super) struct Survival {
    pub(super) records: RefCell<Option<ComponentLedger>>,
    /// Sessions that their clients have not resumed yet.
    pub(super) sessions: RefCell<HashMap<SessionId, Heritage>>,
}

/// What a surviving component goes on from.
#[derive(Default)]
pub struct Survived {
    /// The ring, for its own effects; effects of calls get there by [`Call::effect`](crate::session::Call::effect).
    pub records: Option<ComponentLedger>,
    /// What the last run did and had not made durable, oldest first.
    pub effects: Vec<Record>,
    /// Sessions that go on, and the capabilities in them.
    pub sessions: Vec<(SessionInfo, Vec<Grant>)>,
    /// Leases that are out. Say what each of them keeps by [`Lender::keep`].
    pub leases: Vec<Inherited>,
}

impl Context {
    /// Says that this component survives, and gives what its last run left: nothing at a first start. `ring` is how many
    /// bytes of effects are kept at most.
    ///
    /// # Errors
    /// [`ContextError::Supervisor`] if it is gone, [`ContextError::Io`] if memory is refused.
    pub async fn survive(&self, ring: usize) -> Result<Survived, ContextError> {
        let held = std::mem::take(&mut self.0.left.borrow_mut().held);
        let left = self.0.left.replace(Left { held, ..Left::default() });
        match self.follow(&left) {
            Ok(Some(survived)) => Ok(survived),
            Ok(None) => self.begin(ring).await,
            Err(lost) => {
                // Whoever lost its ledger is another lender: the next run, with nothing of this one's.
                self.send(&ToSupervisor::Forget, &[]);
                let what = format!("what was not durable is lost, and sessions end: {lost}");
                Err(ContextError::Io(std::io::Error::other(what)))
            }
        }
    }

    /// Memory of a dead run of this component under a name that [`survive`](Self::survive) does not use, once.
    pub fn inherited_memory(&self, name: &str) -> Option<OwnedFd> {
        self.0.left.borrow_mut().memory.remove(name)
    }

    /// What earlier runs of this component gave to be held, with its names; once.
    pub fn held_before(&self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.0.left.borrow_mut().held)
    }

    /// Gives a descriptor to be held for later runs, in the place of one that is held under this name. At most
    /// [`MAX_HELD`](crate::broker::MAX_HELD), with names of at most [`MAX_HELD_NAME`](crate::broker::MAX_HELD_NAME) bytes.
    pub fn hold(&self, name: &str, descriptor: BorrowedFd<'_>) {
        self.send(&ToSupervisor::Hold { name: name.to_owned() }, &[descriptor]);
    }

    /// What is held under this name is held no longer.
    pub fn let_go(&self, name: &str) {
        self.send(&ToSupervisor::LetGo { name: name.to_owned() }, &[]);
    }

    /// Starts with nothing.
    async fn begin(&self, ring: usize) -> Result<Survived, ContextError> {
        let memory = self.keep(RECORDS, Records::<SegmentWriter>::bytes(ring)).await?;
        let memory = SegmentWriter::open_kept(memory)?;
        let fresh = |error: &dyn std::fmt::Display| ContextError::Io(std::io::Error::other(error.to_string()));
        let records = Records::create(memory).map_err(|error| fresh(&error))?;
        let leases = self.keep(LEASE_LEDGER, Lender::ledger_bytes(LEASES)).await?;
        let crate::broker::Welcome { lender, epoch, .. } = self.0.welcome;
        let lender = Lender::surviving(lender, epoch, LEASES, leases).map_err(|error| fresh(&error))?;
        self.lends(lender);
        let records = Rc::new(RefCell::new(records));
        self.0.survival.records.replace(Some(records.clone()));
        Ok(Survived { records: Some(records), ..Survived::default() })
    }

    /// Goes on from what is left, if anything is.
    ///
    /// # Errors
    /// What makes no sense.
    fn follow(&self, left: &Left) -> Result<Option<Survived>, String> {
        let (Some(records), Some(leases)) = (left.memory.get(RECORDS), left.memory.get(LEASE_LEDGER)) else {
            return Ok(None);
        };
        let again = |memory: &OwnedFd| memory.try_clone().map_err(|error| error.to_string());
        let map = |memory| SegmentWriter::open_kept(memory).map_err(|error| error.to_string());
        let (records, effects) = Records::recover(map(again(records)?)?).map_err(|poisoned| poisoned.to_string())?;
        let crate::broker::Welcome { lender, epoch, .. } = self.0.welcome;
        let (mut lender, leases) =
            Lender::follow(lender, epoch, LEASES, again(leases)?).map_err(|lost| lost.to_string())?;
        for pins in &left.pins {
            let status = self.0.status.endpoint(pins.status_entry);
            super::introductions::attach(&mut lender, pins.mapper, pins.epoch, again(&pins.memory)?, status)
                .map_err(|error| error.to_string())?;
        }
        let mut survived = Survived::default();
        let mut last: HashMap<(SessionId, u16), u64> = HashMap::new();
        for (session, slot, seq) in effects.iter().filter_map(|record| record.call) {
            let known = last.entry((session, slot)).or_default();
            *known = seq.max(*known);
        }
        for (serve, memory) in &left.sessions {
            let committed = |slot: u16| last.get(&(serve.session, slot)).copied().unwrap_or_default();
            match Heritage::check(again(memory)?, serve.session, committed) {
                Ok(heritage) => {
                    survived.sessions.push((super::endpoint::info(serve), heritage.grants().copied().collect()));
                    self.0.survival.sessions.borrow_mut().insert(serve.session, heritage);
                }
                Err(poisoned) => {
                    let name = &serve.client_name;
                    tracing::error!("the session {} of {name} cannot go on: {}", serve.session, poisoned.0);
                }
            }
        }
        // Of sessions that do not go on, because their clients have gone, nobody else would take anything back.
        for lease in leases {
            let goes_on =
                |(session, _, _): crate::lease::Call| self.0.survival.sessions.borrow().contains_key(&session);
            if lease.dying || lease.call.is_none_or(goes_on) {
                survived.leases.push(lease);
            } else {
                let _ = lender.take_back(lease.index, lease.generation);
            }
        }
        self.lends(lender);
        let records = Rc::new(RefCell::new(records));
        self.0.survival.records.replace(Some(records.clone()));
        Ok(Some(Survived { records: Some(records), effects, ..survived }))
    }

    /// Memory that every later run of this component inherits.
    ///
    /// # Errors
    /// [`ContextError::Supervisor`] if it is gone.
    pub async fn keep(&self, name: &str, bytes: usize) -> Result<OwnedFd, ContextError> {
        let (kept, answer) = question();
        self.0.keeping.borrow_mut().insert(name.to_owned(), (bytes, answer));
        self.send(&ToSupervisor::Keep { name: name.to_owned(), bytes: bytes as u64 }, &[]);
        let lost = || ContextError::Supervisor("it is gone".into());
        if self.0.lost.has_happened() { Err(lost()) } else { kept.await.ok_or_else(lost) }
    }
}
