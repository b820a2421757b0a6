//! What a component's last run left for this one, and what this one leaves.
//!
//! - A component that survives calls [`Context::survive`] before it lends, serves or publishes (it may connect): it gets the effects that
//!   were not durable, the sessions that go on with their capabilities, and the leases that are out.
//! - Descriptors of the kernel's that have to outlive a run (a listening socket) are [held](Context::hold) under names, for
//!   components that survive and others alike.
//! - All of it is checked as if it came from a disk. A session that makes no sense is dropped alone; with a ring or a ledger
//!   of leases that makes no sense everything is forgotten, and this run ends: the next one is another lender.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::waits::{Event, question};
use super::{Context, ContextError, LEASES};
use crate::broker::{Serve, ToSupervisor, Welcome};
use crate::lease::{Ended, Inherited, Lender, Region, reclaim_later};
use crate::ledger::{Record, Records};
use crate::session::{ComponentLedger, Grant, Heritage, SessionInfo};
use crate::steps;
use crate::sys::segment::SegmentWriter;
use crate::{Epoch, Incarnation, RegionId, SessionId};

/// Names of the memory that the keeper keeps.
const RECORDS: &str = "records";
const LEASE_LEDGER: &str = "leases";
const LEASE_TABLE: &str = "table";
/// With the region's number behind it.
const REGION: &str = "region-";

/// What came behind the greeting.
#[derive(Default)]
pub(super) struct Left {
    pub(super) memory: HashMap<String, OwnedFd>,
    pub(super) sessions: Vec<(Serve, OwnedFd)>,
    pub(super) pins: Vec<Pins>,
    pub(super) held: Vec<(String, OwnedFd)>,
    /// Ledgers of sessions with clients on other nodes.
    pub(super) beyond: Vec<(SessionId, OwnedFd)>,
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
    pub(super) sessions: RefCell<HashMap<SessionId, (Serve, Heritage)>>,
    /// This run survives, and its lender is known or not yet.
    begins: Cell<bool>,
    has_begun: Event,
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
    /// Leases that are out, or still pinned. Say what each of them keeps by [`Lender::keep`].
    pub leases: Vec<Inherited>,
}

impl Context {
    /// Says that this component survives, and gives what its last run left: nothing at a first start. `ring` is how many
    /// bytes of effects are kept at most.
    ///
    /// # Errors
    /// [`ContextError::Supervisor`] if it is gone, [`ContextError::Io`] if memory is refused, [`ContextError::OneReactor`] if
    /// this component has several reactors: its ledgers have one writer.
    pub async fn survive(&self, ring: usize) -> Result<Survived, ContextError> {
        if self.0.places.is_some() {
            return Err(self.one_reactor("it survives"));
        }
        self.0.survival.begins.set(true);
        let survived = self.follow_or_begin(ring).await;
        self.0.survival.has_begun.happen();
        survived
    }

    /// Waits until it is known what this run lends from: before that nothing may be lent that the next run would have to know.
    pub(super) async fn has_its_lender(&self) {
        if self.0.survival.begins.get() {
            self.0.survival.has_begun.wait().await;
        }
    }

    async fn follow_or_begin(&self, ring: usize) -> Result<Survived, ContextError> {
        let mut left = self.0.left.take();
        let regions = left.memory.extract_if(|name, _| name.starts_with(REGION)).collect();
        let held = std::mem::take(&mut left.held);
        self.0.left.replace(Left { memory: regions, held, ..Left::default() });
        match self.follow(&left) {
            Ok(Some(survived)) => Ok(survived),
            Ok(None) => {
                left.beyond.iter().for_each(|(session, _)| self.let_go_session(*session));
                self.begin(ring).await
            }
            Err(lost) => Err(self.forget(&lost)),
        }
    }

    /// Whether the next run goes on where this one ends.
    pub(super) fn survives(&self) -> bool {
        self.0.survival.records.borrow().is_some()
    }

    /// What the last run left makes no sense, and `lost` says why. The supervisor forgets all of it: whoever lost its ledger is
    /// another lender, the next run, with nothing of this one's. Gives what this run ends with, which it has to at once.
    pub fn forget(&self, lost: &str) -> ContextError {
        self.send(&ToSupervisor::Forget, &[]);
        let what = format!("what was not durable is lost, and sessions end: {lost}");
        ContextError::Io(std::io::Error::other(what))
    }

    /// The region of `bytes` that all runs of this component lend from: its memory is kept, and so is what mappers know of
    /// it. Only for one that [survives](Self::survive), once. It still has to be published.
    ///
    /// # Errors
    /// [`ContextError::Supervisor`] if that is gone; [`ContextError::Io`] if memory is refused, or what the last run left is
    /// of another size.
    pub async fn keep_region(&self, bytes: usize) -> Result<Region, ContextError> {
        let number = |name: String| name.strip_prefix(REGION)?.parse().ok();
        let left = std::mem::take(&mut self.0.left.borrow_mut().memory);
        let found = left.into_iter().find_map(|(name, memory)| Some((number(name)?, memory)));
        if let Some((number, memory)) = found {
            let region = Region::kept(memory, RegionId(number))?;
            return if region.len() == bytes { Ok(region) } else { Err(self.forget("the region has another size")) };
        }
        let id = self.new_region_id();
        Ok(Region::kept(self.keep(&format!("{REGION}{id}"), bytes).await?, id)?)
    }

    /// Memory that an earlier run of this component has had [kept](Self::keep) under a name of its own; once, and before
    /// [`survive`](Self::survive).
    pub fn kept_before(&self, name: &str) -> Option<OwnedFd> {
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
        let table = self.keep(LEASE_TABLE, Lender::table_bytes(LEASES)).await?;
        let leases = self.keep(LEASE_LEDGER, Lender::ledger_bytes(LEASES)).await?;
        let Welcome { lender, epoch, .. } = self.0.welcome;
        // The last of all: one who finds a ledger of leases finds everything else too.
        let lender = Lender::surviving(lender, epoch, LEASES, leases, table).map_err(|error| fresh(&error))?;
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
        let kept = [RECORDS, LEASE_TABLE, LEASE_LEDGER].map(|name| left.memory.get(name));
        let [Some(records), Some(table), Some(leases)] = kept else { return Ok(None) };
        let again = |memory: &OwnedFd| memory.try_clone().map_err(|error| error.to_string());
        let map = |memory| SegmentWriter::open_kept(memory).map_err(|error| error.to_string());
        if Lender::is_blank(again(leases)?).map_err(|error| error.to_string())? {
            return Ok(None);
        }
        let (records, effects) = Records::recover(map(again(records)?)?).map_err(|poisoned| poisoned.to_string())?;
        steps::reach("restart/recovered");
        let Welcome { lender, epoch, ref ancestors, ref heirs, crash, .. } = self.0.welcome;
        let (mut lender, leases) =
            Lender::follow(lender, epoch, LEASES, again(leases)?, again(table)?).map_err(|lost| lost.to_string())?;
        steps::reach("restart/followed");
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
            match Heritage::check(again(memory)?, serve.session, committed, crash) {
                Ok(heritage) => {
                    survived.sessions.push((super::endpoint::info(serve), heritage.grants().copied().collect()));
                    self.0.survival.sessions.borrow_mut().insert(serve.session, (serve.clone(), heritage));
                }
                Err(poisoned) => {
                    let name = &serve.client_name;
                    tracing::error!("the session {} of {name} cannot go on: {}", serve.session, poisoned.0);
                }
            }
        }
        for (session, memory) in &left.beyond {
            let committed = |slot: u16| last.get(&(*session, slot)).copied().unwrap_or_default();
            match self.inherit_beyond(*session, again(memory)?, committed) {
                Ok(Some((serve, heritage))) => {
                    survived.sessions.push((super::endpoint::info(&serve), heritage.grants().copied().collect()));
                    self.0.survival.sessions.borrow_mut().insert(*session, (serve, heritage));
                }
                // Nobody has opened it.
                Ok(None) => self.let_go_session(*session),
                Err(lost) => {
                    tracing::error!("the session {session} with another node cannot go on: {lost}");
                    self.let_go_session(*session);
                }
            }
        }
        for lease in leases {
            let holder = Incarnation(lease.fields.holder);
            let stays = match lease.call {
                // Of a session that does not go on nobody else takes anything back, unless somebody comes to inherit it.
                Some((session, _, _)) => {
                    self.0.survival.sessions.borrow().contains_key(&session) || heirs.contains(&holder)
                }
                // What a dead run lent to itself was for a call that it made.
                None => !ancestors.contains(&holder),
            };
            if lease.dying || stays {
                survived.leases.push(lease);
            } else if lender.take_back(lease.index, lease.generation) == Ok(Ended::Dying) {
                survived.leases.push(Inherited { dying: true, ..lease });
            }
        }
        self.lends(lender);
        steps::reach("restart/lends");
        self.reclaim();
        let records = Rc::new(RefCell::new(records));
        self.0.survival.records.replace(Some(records.clone()));
        Ok(Some(Survived { records: Some(records), effects, ..survived }))
    }

    /// Sees to it that what was taken back becomes free when no mapper pins it any more.
    pub(super) fn reclaim(&self) {
        let lender = self.0.lender.borrow().clone();
        if let Some(lender) = &lender {
            reclaim_later(lender);
        }
    }

    /// A session that nobody will go on with, nor inherit from: what it brought goes back.
    pub(super) fn end_unresumed(&self, session: SessionId) {
        if let Some(lender) = &*self.0.lender.borrow() {
            let lent = lender.borrow().lent_on(session);
            for (index, generation) in lent {
                let _ = lender.borrow_mut().take_back(index, generation);
            }
        }
        self.reclaim();
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
