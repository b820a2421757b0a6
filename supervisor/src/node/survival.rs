//! What a component's run leaves for the one after it.
//!
//! - A component survives if it has asked for memory to be kept. Its next run has the same lender id, gets that memory, the
//!   sessions that go on and the pins of everybody who maps what it lends, all behind the greeting, before anything else is
//!   said to it.
//! - A region whose memory is kept is the same region in every run: who maps it goes on with it, and who has yet to map it
//!   gets it while there is no run.
//! - While it is away its sessions are *awaited*: their clients have suspended them and ask to resume them.
//! - What dead runs were lent elsewhere waits under their names, the *ancestors* (more than one if a run died before it
//!   came to inherit); the next run's sessions inherit it, and what is left when that run is ready goes back.
//! - All of it is kept by the keeper, so it outlives the supervisor as well.
//! - Nothing survives an end of the node, nor a component that is given up.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use kernel_ipc::broker::{Serve, ToComponent};
use kernel_ipc::session::Ledgers;
use kernel_ipc::sys::segment;
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId, SessionId};

use super::peer::{Peer, Who};
use super::records::{ComponentTag, Kept, Kind, NamedTag, NumbersTag, Records, hash, text};
use super::{Component, Host, Node};
use crate::manifest;

/// Most memory that one component may have kept, and under how many names. It is taken page by page, as it is used.
const MAX_BYTES: u64 = 16 << 30;
const MAX_NAMES: usize = 16;

/// A region, and who published it.
type Published = (Rc<Kept>, Rc<Peer>);

/// What a component leaves, over all its runs.
pub struct Estate {
    slot: u32,
    records: Rc<Records>,
    memory: RefCell<BTreeMap<String, (Kept, u64)>>,
    /// Endpoints whose sessions go on.
    endpoints: RefCell<BTreeSet<String>>,
    /// Of every run.
    lender: Cell<Option<LenderId>>,
    /// Dead runs, oldest first, until the next one is ready.
    ancestors: RefCell<BTreeMap<Incarnation, Option<Kept>>>,
    /// What was published of the memory, for reading, and by which run last.
    regions: RefCell<BTreeMap<RegionId, Published>>,
}

/// What is known of a session that goes on when its host dies.
pub struct Surviving {
    /// Which component serves it.
    pub component: usize,
    /// What the host is told of it.
    pub serve: Serve,
    /// Its ledger.
    pub ledger: Kept,
}

/// Somebody's pins of a lender's leases.
pub struct Pins {
    pub memory: Kept,
    /// The mapper's.
    pub epoch: Epoch,
    pub slot: u32,
    /// The mapper has sealed the segment, and may have been told of the lender.
    pub adopted: bool,
}

impl Estate {
    /// Of a component that has never run.
    pub fn new(slot: u32, records: Rc<Records>) -> Estate {
        Estate {
            slot,
            records,
            memory: RefCell::default(),
            endpoints: RefCell::default(),
            lender: Cell::default(),
            ancestors: RefCell::default(),
            regions: RefCell::default(),
        }
    }

    /// Whether the next run goes on where this one ends.
    pub fn survives(&self) -> bool {
        !self.memory.borrow().is_empty()
    }

    /// An endpoint's sessions go on.
    pub fn keeps_sessions_of(&self, endpoint: &str) {
        self.endpoints.borrow_mut().insert(endpoint.to_owned());
    }

    /// Whether sessions of this endpoint go on.
    pub fn has_sessions_of(&self, endpoint: &str) -> bool {
        self.endpoints.borrow().contains(endpoint)
    }

    /// The lender id of the component's next run: the last one's, if that survives.
    pub fn lender(&self, fresh: impl FnOnce() -> LenderId) -> LenderId {
        let lender = self.lender.get().filter(|_| self.survives()).unwrap_or_else(fresh);
        self.lender.set(Some(lender));
        lender
    }

    /// The lender id of the component's last run.
    pub fn known_lender(&self) -> Option<LenderId> {
        self.lender.get()
    }

    /// Which of its endpoints' sessions go on, as bits.
    pub fn endpoints_of(&self, entry: &manifest::Component) -> u64 {
        let bit = |(at, endpoint): (u32, &manifest::Provide)| match self.has_sessions_of(&endpoint.name) {
            true => 1u64.checked_shl(at).unwrap_or(0),
            false => 0,
        };
        (0..).zip(&entry.provides).map(bit).sum()
    }

    /// What the last supervisor knew.
    pub fn recall(&self, entry: &manifest::Component, tag: &ComponentTag) {
        self.lender.set((tag.lender != 0).then_some(LenderId(tag.lender)));
        for (at, endpoint) in (0..64).zip(&entry.provides) {
            if tag.endpoints >> at & 1 == 1 {
                self.keeps_sessions_of(&endpoint.name);
            }
        }
    }

    /// Memory that the last supervisor had kept.
    pub fn recall_memory(&self, name: String, bytes: u64, memory: Kept) {
        self.memory.borrow_mut().insert(name, (memory, bytes));
    }

    /// A dead run whose leases wait.
    pub fn add_ancestor(&self, run: Incarnation, record: Option<Kept>) {
        self.ancestors.borrow_mut().entry(run).or_insert(record);
    }

    /// The runs whose leases a new session of this component inherits.
    pub fn ancestors(&self) -> Vec<Incarnation> {
        self.ancestors.borrow().keys().copied().collect()
    }

    /// Fresh memory, for this run and all after it. `shown` is what the kernel calls it.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn keep(&self, name: &str, bytes: u64, shown: &str) -> Result<OwnedFd, String> {
        let mut memory = self.memory.borrow_mut();
        // A run that cannot use what was left begins anew under the same name.
        memory.remove(name);
        let kept: u64 = memory.values().map(|(_, bytes)| bytes).sum();
        if memory.len() >= MAX_NAMES || bytes > MAX_BYTES.saturating_sub(kept) || name.len() > 64 {
            return Err("it wants too much to be kept".into());
        }
        let fresh = memfd(shown, bytes).map_err(|error| error.to_string())?;
        let given = fresh.try_clone().map_err(|error| error.to_string())?;
        let tag = NamedTag { number: bytes, name: text(name).ok_or("a name that is none")? };
        let kept = self.records.hold(Kind::Memory, self.slot, hash(name), &tag, fresh);
        memory.insert(name.to_owned(), (kept.map_err(|error| error.to_string())?, bytes));
        Ok(given)
    }

    /// All that is kept, by name.
    pub fn memories(&self) -> Vec<(String, std::io::Result<OwnedFd>)> {
        self.memory.borrow().iter().map(|(name, (kept, _))| (name.clone(), kept.again())).collect()
    }

    /// Whether something is kept under this name.
    pub fn has_memory(&self, name: &str) -> bool {
        self.memory.borrow().contains_key(name)
    }

    /// Whether a region is the same one in every run.
    pub fn keeps_region(&self, region: RegionId) -> bool {
        self.memory.borrow().contains_key(&region_name(region))
    }

    /// A run has published a region; if that is kept, it can be mapped when the run has ended.
    pub fn published(&self, region: RegionId, memory: &Rc<Kept>, run: &Rc<Peer>) {
        if self.keeps_region(region) {
            self.regions.borrow_mut().insert(region, (memory.clone(), run.clone()));
        }
    }

    /// Whether a region has been published by this run or one before it, and is there.
    pub fn has_region(&self, region: RegionId) -> bool {
        self.regions.borrow().contains_key(&region)
    }

    /// The kept regions that no living run publishes, and whose they were.
    pub fn orphaned_regions(&self) -> Vec<(RegionId, OwnedFd, Rc<Peer>)> {
        let regions = self.regions.borrow();
        let orphaned = regions.iter().filter(|(_, (_, run))| run.ended.has_happened());
        orphaned.filter_map(|(region, (memory, run))| Some((*region, memory.again().ok()?, run.clone()))).collect()
    }

    /// A run has ended, and the next one goes on.
    fn bequeath(&self, run: &Peer) {
        let known = self.ancestors.borrow().contains_key(&run.incarnation);
        if !known {
            let number = run.incarnation.get();
            let record = self.records.put(Kind::Ancestor, self.slot, number, &NumbersTag::default(), None);
            self.add_ancestor(run.incarnation, record.ok());
        }
    }

    /// The component is given up: whoever follows begins anew.
    fn clear(&self) {
        self.memory.borrow_mut().clear();
        self.endpoints.borrow_mut().clear();
        self.regions.borrow_mut().clear();
    }
}

/// How the memory of a region is called.
fn region_name(region: RegionId) -> String {
    format!("region-{region}")
}

/// Fresh memory for the ledger of a session.
///
/// # Errors
/// What the kernel says.
pub fn session_memory() -> std::io::Result<OwnedFd> {
    memfd("atoll-session", Ledgers::BYTES as u64)
}

fn memfd(name: &str, bytes: u64) -> std::io::Result<OwnedFd> {
    let memory = segment::memfd(name)?;
    segment::set_len(&memory, usize::try_from(bytes).map_err(|_| std::io::ErrorKind::InvalidInput)?)?;
    Ok(memory)
}

impl Node {
    /// Whether a run's component goes on after it.
    pub(super) fn survives(&self, peer: &Peer) -> bool {
        !self.stopping.has_happened() && self.component_of(peer).is_some_and(|component| component.estate.survives())
    }

    pub(super) fn component_of(&self, peer: &Peer) -> Option<&Component> {
        match peer.who {
            Who::Component(index) => self.components.get(index),
            Who::Guest => None,
        }
    }

    /// Fresh memory for this run and all after it.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) fn keep(&self, peer: &Peer, name: &str, bytes: u64) -> Result<OwnedFd, String> {
        let component = self.component_of(peer).ok_or("a guest leaves nothing")?;
        if component.estate.has_memory(name) {
            self.may_begin_anew(peer)?;
        }
        let region = name.strip_prefix("region-").map(|number| number.parse().map(RegionId));
        match region {
            Some(Ok(region)) if self.owns(peer, region) && region_name(region) == name => {
                component.estate.keep(name, bytes, &peer.name)
            }
            Some(_) => Err(format!("{name} is not its own to keep")),
            None => component.estate.keep(name, bytes, &format!("atoll-{name}")),
        }
    }

    /// Whose leases nobody takes back on his own: those of the dead runs of every other component that survives, and of its
    /// living ones. What a living one holds it may have lent on, also when the session it came by is over; its next run inherits
    /// it. That may be a run which the last supervisor had half started and which is being killed: it has inherited already.
    pub(super) fn heirs(&self, peer: &Peer) -> Vec<Incarnation> {
        let living = self.living();
        let others = (0..).zip(&self.components).filter(|(index, _)| peer.who != Who::Component(*index));
        let of = |(index, component): (usize, &Component)| {
            let mut heirs = component.estate.ancestors();
            if component.estate.survives() {
                heirs.extend(living.iter().filter(|run| run.who == Who::Component(index)).map(|run| run.incarnation));
            }
            heirs
        };
        others.flat_map(of).collect()
    }

    /// Whether a run may do without what the run before it has left.
    ///
    /// # Errors
    /// It is on trial, and that is not its own to lose.
    pub(super) fn may_begin_anew(&self, peer: &Peer) -> Result<(), String> {
        match self.component_of(peer).is_some_and(|component| component.programs.is_on_trial(peer.epoch.get())) {
            true => Err("it does not go on from what the run before it has left".into()),
            false => Ok(()),
        }
    }

    /// What comes behind the greeting of a run.
    pub(super) fn heritage(&self, peer: &Peer) -> Vec<(ToComponent, OwnedFd)> {
        let Who::Component(index) = peer.who else { return Vec::new() };
        let Component { estate, holdings, .. } = &self.components[index];
        let mut heritage = holdings.all();
        if !estate.survives() {
            return heritage;
        }
        let mut add = |message, memory: &Kept| heritage.extend(memory.again().ok().map(|fd| (message, fd)));
        for (name, (memory, _)) in &*estate.memory.borrow() {
            add(ToComponent::Heritage { name: name.clone() }, memory);
        }
        for session in self.sessions.borrow().values() {
            if let (Host::Awaited, Some(surviving)) = (&session.host, &session.surviving)
                && surviving.component == index
            {
                let serve = Serve { epoch: peer.epoch, resumes: true, ..surviving.serve.clone() };
                add(ToComponent::Recovers(Box::new(serve)), &surviving.ledger);
            }
        }
        for ((mapper, lender), pins) in &*self.pins.borrow() {
            if *lender == peer.lender && pins.adopted {
                let Pins { epoch, slot, .. } = *pins;
                add(ToComponent::AttachPins { mapper: *mapper, epoch, status_entry: slot }, &pins.memory);
                self.attached.borrow_mut().entry(*mapper).or_default().push(peer.incarnation);
            }
        }
        heritage
    }

    /// A lender is gone for ever: nobody reads its mappers' pins.
    pub(super) fn forget_pins_for(&self, lender: LenderId) {
        self.pins.borrow_mut().retain(|(_, known), _| *known != lender);
    }

    /// Memory for a mapper's pins of a lender's leases, which outlives both: that which was given to the mapper already, if
    /// a supervisor died meanwhile.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) fn pin_memory(&self, mapper: &Peer, lender: LenderId, bytes: u64) -> Result<OwnedFd, String> {
        let key = (mapper.incarnation, lender);
        let mut pins = self.pins.borrow_mut();
        let words = |error: std::io::Error| error.to_string();
        if let Some(known) = pins.get(&key) {
            return known.memory.again().map_err(words);
        }
        let memory = memfd("pins", bytes).map_err(words)?;
        let given = memory.try_clone().map_err(words)?;
        let (epoch, slot) = (mapper.epoch, mapper.slot);
        let tag = NumbersTag([mapper.incarnation.get(), epoch.get(), lender.get(), 0]);
        let memory = self.records.hold(Kind::Pins, slot, self.state.deal(1), &tag, memory).map_err(words)?;
        pins.insert(key, Pins { memory, epoch, slot, adopted: false });
        Ok(given)
    }

    /// A mapper has sealed its pin segment, and can pin as soon as it knows the lender.
    pub(super) fn pins_adopted(&self, mapper: &Peer, lender: LenderId) {
        if let Some(pins) = self.pins.borrow_mut().get_mut(&(mapper.incarnation, lender)) {
            pins.adopted = true;
            let tag = NumbersTag([mapper.incarnation.get(), pins.epoch.get(), lender.get(), 1]);
            if let Err(error) = pins.memory.tell(&tag) {
                eprintln!("supervisor: the keeper: {error}");
            }
        }
    }

    /// A run of a component that survives has ended.
    pub(super) fn bequeath(&self, peer: &Peer) {
        if let Some(component) = self.component_of(peer) {
            component.estate.bequeath(peer);
        }
    }

    /// A run is ready: what its ancestors were lent and it has not inherited goes back. It may have died as soon as it was, and be
    /// the ancestor of the next one: what it was lent itself does not.
    pub(super) fn bury_ancestors_of(self: &Rc<Self>, run: &Peer) {
        if let Some(component) = self.component_of(run) {
            let later = component.estate.ancestors.borrow_mut().split_off(&run.incarnation);
            self.bury(&component.estate.ancestors.replace(later));
        }
    }

    fn bury(self: &Rc<Self>, ancestors: &BTreeMap<Incarnation, Option<Kept>>) {
        for host in self.living().into_iter().filter(|host| host.is_introducible() && host.who != Who::Guest) {
            for &client in ancestors.keys() {
                let session = SessionId(0);
                self.send(&host, &ToComponent::ClientGone { session, client, died: true, survives: false }, &[]);
            }
        }
    }

    /// A component is given up, or its node ends: nothing of it goes on.
    pub(super) fn give_up(self: &Rc<Self>, index: usize) {
        let component = &self.components[index];
        self.bury(&component.estate.ancestors.take());
        let regions: Vec<RegionId> = component.estate.regions.borrow().keys().copied().collect();
        component.estate.clear();
        component.holdings.clear();
        let Some(lender) = component.estate.lender.take() else { return };
        self.forget_lender(Some(lender), regions);
        self.forget_pins_for(lender);
    }
}
