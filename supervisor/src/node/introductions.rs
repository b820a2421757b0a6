//! Who may map whose regions, and how they meet.
//!
//! - Owner O's regions may be mapped by a component that uses O with the right `map`; by a component whose endpoint O
//!   uses with the right `write` (it reads what O gives it to write), and the one in which other nodes' leases land by any that O
//!   uses; by a guest that has a session with O, or with
//!   somebody who may map O's regions. Nobody else.
//! - If O is on another node, what it lends lands at those here that use it: who may map O's regions may map those in which that lands.
//! - If M is on another node, who uses M here carries to it what M would map, and so may map that in its place.
//! - Lender L lends from its own regions, and from those that it may map with the right `map`.
//! - A mapper M meets L, and for it the regions that both M may map and L may lend from.
//! - The order is that of `notes/leases.md` section 4: M's pin segment is made and kept by the keeper, M seals it, L attaches it, then M
//!   gets L's table, then the regions. Each pair has a task of its own, so that nobody is held up by the slowness of somebody
//!   else. A question is asked once and its answer awaited as long as the peer lives: one that was stopped is introduced
//!   when it goes on. Meanwhile, from [`PATIENCE`](super::peer::PATIENCE) on, nobody waits for it.
//! - Guests get no pin segments: they read, and give nothing of others to the kernel.

use std::collections::{BTreeSet, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use kernel_ipc::broker::{REGIONS_PER_INCARNATION, ToComponent};
use kernel_ipc::lease::PinSegment;
use kernel_ipc::runtime::spawn;
use kernel_ipc::steps;
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId, Rights};

use super::peer::{Peer, Published, Who};
use super::{Host, Node, Session};
use crate::manifest;

/// What a mapper knows of a lender.
pub struct Met {
    /// The lender's run whose table it has.
    pub epoch: Epoch,
    /// The regions that it has mapped for it.
    pub regions: BTreeSet<RegionId>,
}

/// A mapper and a lender.
pub type Pair = (Rc<Peer>, Rc<Peer>);

/// One step that is missing.
enum Missing {
    Lender,
    /// The table of a lender's next run.
    Table,
    Region(RegionId, OwnedFd, Rc<Peer>),
}

/// Which client has a session with which host.
type Sessions = HashSet<(Incarnation, Incarnation)>;

impl Node {
    /// Waits until everybody has met who may meet now, but for those who are slow.
    pub(super) async fn introduced(self: &Rc<Self>) {
        self.introduced_among(|_| true).await;
    }

    /// Waits until leases can be named on a session of these two: each of them and all whom they serve or use have met, but
    /// for those who are slow. What another guest is lent or lends does not come this way.
    pub(super) async fn introduced_for(self: &Rc<Self>, client: &Peer, host: &Peer) {
        let either = |peer: &Peer| [client.incarnation, host.incarnation].contains(&peer.incarnation);
        let counts = |peer: &Peer| peer.who != Who::Guest || peer.incarnation == client.incarnation;
        self.introduced_among(|(mapper, lender)| {
            (either(mapper) || either(lender)) && counts(mapper) && counts(lender)
        })
        .await;
    }

    async fn introduced_among(self: &Rc<Self>, wanted: impl Fn(&Pair) -> bool) {
        loop {
            let next = self.introduced.next();
            self.introduce();
            let is_awaited = |pair: &Pair| !pair.0.slow.get() && !pair.1.slow.get() && wanted(pair);
            if !self.introducing.borrow().values().any(is_awaited) {
                return;
            }
            next.await;
        }
    }

    /// Begins to introduce everybody who may meet and has not.
    pub(super) fn introduce(self: &Rc<Self>) {
        let living: Vec<_> = self.living().into_iter().filter(|peer| peer.is_introducible()).collect();
        let host_of = |session: &Session| match session.host {
            Host::Peer(host) => Some((session.client, host)),
            _ => None,
        };
        let sessions: Sessions = self.sessions.borrow().values().filter_map(host_of).collect();
        for lender in living.iter().filter(|lender| lender.table.borrow().is_some()) {
            for mapper in living.iter().filter(|mapper| mapper.incarnation != lender.incarnation) {
                let pair = (mapper.incarnation, lender.lender);
                if self.introducing.borrow().contains_key(&pair)
                    || self.missing(&living, &sessions, mapper, lender).is_none()
                {
                    continue;
                }
                self.introducing.borrow_mut().insert(pair, (mapper.clone(), lender.clone()));
                let (node, mapper, lender) = (self.clone(), mapper.clone(), lender.clone());
                spawn(async move {
                    node.introduce_pair(&mapper, &lender).await;
                    node.introducing.borrow_mut().remove(&pair);
                    // The lender's next run may have come meanwhile.
                    node.introduce();
                    node.introduced.happen();
                });
            }
        }
    }

    /// Takes every step that is missing between two.
    async fn introduce_pair(self: &Rc<Self>, mapper: &Rc<Peer>, lender: &Rc<Peer>) {
        loop {
            if !mapper.is_introducible() || !lender.is_introducible() {
                return;
            }
            let living: Vec<_> = self.living().into_iter().filter(|peer| peer.is_introducible()).collect();
            let has = |client: &Rc<Peer>, host: &Rc<Peer>| {
                self.has_session(client, host).then_some((client.incarnation, host.incarnation))
            };
            let others = living.iter().flat_map(|peer| [has(mapper, peer), has(peer, mapper)]);
            let sessions: Sessions = others.flatten().collect();
            let Some(missing) = self.missing(&living, &sessions, mapper, lender) else { return };
            let result = match &missing {
                Missing::Lender => self.make_known(mapper, lender).await,
                Missing::Table => self.give_table(mapper, lender).await,
                Missing::Region(region, memory, _) => {
                    let message = ToComponent::MeetRegion { lender: lender.lender, region: *region };
                    let (key, overdue) = ((lender.lender, Some(*region)), || self.introduced.happen());
                    let given = [memory.as_fd()];
                    let answer = mapper.ask_until_gone(&mapper.asked.meet, key, &message, &given, overdue).await;
                    answer.and_then(|result| result)
                }
            };
            if !mapper.is_introducible() || !(lender.is_introducible() || self.survives(lender)) {
                return; // One that died meanwhile has been forgotten.
            }
            // Also after a failure, so that it is not tried for ever.
            if let Err(error) = &result {
                eprintln!("supervisor: {} cannot map what {} lends: {error}", mapper.name, lender.name);
                if !lender.is_introducible() {
                    return;
                }
            }
            let mut met = self.met.borrow_mut();
            let known = met.entry((mapper.incarnation, lender.lender));
            let known = known.or_insert_with(|| Met { epoch: lender.epoch, regions: BTreeSet::new() });
            match missing {
                Missing::Lender => steps::reach("meet/lender-met"),
                Missing::Table => known.epoch = lender.epoch,
                Missing::Region(region, _, owner) if owner.ended.has_happened() && !self.keeps(region, &owner) => {
                    drop(met);
                    let message = ToComponent::LenderGone { lender: None, regions: vec![region] };
                    self.send(mapper, &message, &[]);
                }
                Missing::Region(region, ..) => {
                    known.regions.insert(region);
                    steps::reach("meet/region-met");
                }
            }
        }
    }

    /// The first step that is missing between two.
    fn missing(&self, living: &[Rc<Peer>], sessions: &Sessions, mapper: &Peer, lender: &Peer) -> Option<Missing> {
        let met = self.met.borrow();
        let known = met.get(&(mapper.incarnation, lender.lender));
        if known.is_some_and(|known| known.epoch != lender.epoch) {
            return Some(Missing::Table);
        }
        let may = |owner: &Peer, landed| {
            self.may_lend(lender, owner) && self.may_meet(sessions, mapper, lender, owner, landed)
        };
        for owner in living {
            let regions = owner.regions.borrow();
            if regions.is_empty() {
                continue;
            }
            let may = [false, true].map(|landed| may(owner, landed));
            let mut theirs = regions.iter().filter(|region| may[usize::from(region.landed)]).peekable();
            if theirs.peek().is_none() {
                continue;
            }
            let Some(known) = known else { return Some(Missing::Lender) };
            if let Some(Published { id, memory, .. }) = theirs.find(|region| !known.regions.contains(&region.id))
                && let Ok(memory) = memory.again()
            {
                return Some(Missing::Region(*id, memory, owner.clone()));
            }
        }
        // Regions of those who are between two runs: what lies in them is lent on.
        let orphaned = self.components.iter().flat_map(|component| component.estate.orphaned_regions());
        for (region, memory, owner) in orphaned.filter(|(_, _, owner)| may(owner, false)) {
            let Some(known) = known else { return Some(Missing::Lender) };
            if !known.regions.contains(&region) {
                return Some(Missing::Region(region, memory, owner));
            }
        }
        None
    }

    /// Whether a region of a run is there when the run has ended.
    fn keeps(&self, region: RegionId, owner: &Peer) -> bool {
        self.component_of(owner).is_some_and(|component| component.estate.keeps_region(region))
    }

    /// Makes a mapper and a lender known to each other.
    async fn make_known(self: &Rc<Self>, mapper: &Rc<Peer>, lender: &Rc<Peer>) -> Result<(), String> {
        let capacity = lender.table.borrow().as_ref().map_or(0, |(_, capacity)| *capacity);
        if matches!(mapper.who, Who::Component(_)) {
            let bytes = PinSegment::bytes(capacity) as u64;
            self.attached.borrow_mut().entry(mapper.incarnation).or_default().push(lender.incarnation);
            let memory = self.pin_memory(mapper, lender.lender, bytes)?;
            steps::reach("meet/pins-kept");
            let overdue = || self.introduced.happen();
            let message = ToComponent::AdoptPins { lender: lender.lender, capacity };
            let given = [memory.as_fd()];
            mapper.ask_until_gone(&mapper.asked.adopt, lender.lender, &message, &given, overdue).await??;
            // Sealed and with its header, and before the mapper can pin anything.
            self.pins_adopted(mapper, lender.lender);
            steps::reach("meet/pins-adopted");
            let message =
                ToComponent::AttachPins { mapper: mapper.incarnation, epoch: mapper.epoch, status_entry: mapper.slot };
            lender.ask_until_gone(&lender.asked.attach, mapper.incarnation, &message, &given, overdue).await??;
            steps::reach("meet/pins-attached");
        }
        self.give_table(mapper, lender).await
    }

    /// Gives a mapper a lender's table.
    async fn give_table(self: &Rc<Self>, mapper: &Rc<Peer>, lender: &Rc<Peer>) -> Result<(), String> {
        let table = lender.table.borrow().as_ref().and_then(|(table, _)| table.again().ok());
        let table = table.ok_or("out of descriptors")?;
        let message = ToComponent::MeetLender {
            lender: lender.lender,
            of: lender.incarnation,
            epoch: lender.epoch,
            status_entry: lender.slot,
        };
        let (key, overdue) = ((lender.lender, None), || self.introduced.happen());
        mapper.ask_until_gone(&mapper.asked.meet, key, &message, &[table.as_fd()], overdue).await?
    }

    /// A run has ended: its table and regions are unmapped by everybody who had met it.
    pub(super) fn forget_introductions_of(self: &Rc<Self>, gone: &Rc<Peer>) {
        self.met.borrow_mut().retain(|(mapper, _), _| *mapper != gone.incarnation);
        let survives = self.survives(gone);
        let kept = |region| survives && self.component_of(gone).is_some_and(|owner| owner.estate.keeps_region(region));
        let regions = gone.regions.borrow().iter().map(|region| region.id).filter(|region| !kept(*region)).collect();
        self.forget_lender((!survives).then_some(gone.lender), regions);
    }

    /// A lender is gone for ever, or regions are: whoever had met them unmaps them.
    pub(super) fn forget_lender(self: &Rc<Self>, lender: Option<LenderId>, regions: Vec<RegionId>) {
        let mut told = Vec::new();
        self.met.borrow_mut().retain(|(mapper, known_lender), known| {
            let is_gone = lender.is_some_and(|lender| lender == *known_lender);
            if is_gone || known.regions.iter().any(|region| regions.contains(region)) {
                told.push(*mapper);
            }
            known.regions.retain(|region| !regions.contains(region));
            !is_gone
        });
        told.sort_unstable();
        told.dedup();
        let message = ToComponent::LenderGone { lender, regions };
        for mapper in told.into_iter().filter_map(|mapper| self.peer(mapper)) {
            self.send(&mapper, &message, &[]);
        }
    }

    /// The kernel has let go of a dead mapper's pages: its pins count no longer.
    pub(super) fn mapper_fenced(self: &Rc<Self>, mapper: Incarnation) {
        self.pins.borrow_mut().retain(|(of, _), _| *of != mapper);
        let lenders = self.attached.borrow_mut().remove(&mapper).unwrap_or_default();
        for lender in lenders.into_iter().filter_map(|lender| self.peer(lender)) {
            self.send(&lender, &ToComponent::MapperFenced { mapper }, &[]);
        }
    }

    /// Whether a region id is among those that were dealt to this run, or that of a kept one, and is not published yet.
    pub(super) fn owns(&self, peer: &Peer, region: RegionId) -> bool {
        let first = peer.first_region.get();
        let is_own = (first..first + REGIONS_PER_INCARNATION).contains(&region.get()) || self.keeps(region, peer);
        is_own && peer.regions.borrow().iter().all(|known| known.id != region)
    }

    fn may_meet(&self, sessions: &Sessions, mapper: &Peer, lender: &Peer, owner: &Peer, landed: bool) -> bool {
        match mapper.who {
            Who::Component(_) => self.may_map(sessions, mapper, owner, landed),
            Who::Guest => sessions.contains(&(mapper.incarnation, lender.incarnation)),
        }
    }

    fn may_lend(&self, lender: &Peer, owner: &Peer) -> bool {
        let is_same = match lender.who {
            // Its own, or that of a run before it.
            Who::Component(_) => lender.who == owner.who,
            Who::Guest => lender.incarnation == owner.incarnation,
        };
        is_same || self.uses_with(lender, owner, Rights::MAP)
    }

    /// For components.
    fn may_map(&self, sessions: &Sessions, mapper: &Peer, owner: &Peer, landed: bool) -> bool {
        let Who::Component(owner_index) = owner.who else {
            return sessions.contains(&(owner.incarnation, mapper.incarnation));
        };
        let (Some(owner), Some(mapper)) = (self.components.get(owner_index), self.component_of(mapper)) else {
            return false;
        };
        let (owner, mapper) = (&owner.entry, &mapper.entry);
        let mut stands_for = self.elsewhere.iter().filter(|other| uses_with(mapper, other, Rights::empty()));
        uses_with(owner, mapper, Rights::WRITE)
            // What other nodes have lent lands in a region of its own, and it goes on with that as with what it writes.
            || (landed && self.uses_elsewhere(owner) && uses_with(owner, mapper, Rights::empty()))
            || self.has_right_to_map(mapper, owner, landed)
            || stands_for.any(|other| self.has_right_to_map(other, owner, landed))
    }

    /// The same by the right `map`. What comes from another node is as if it lay where it comes from.
    fn has_right_to_map(&self, mapper: &manifest::Component, owner: &manifest::Component, landed: bool) -> bool {
        let comes_from = |other: &&manifest::Component| landed && uses_with(owner, other, Rights::empty());
        let mut sources = self.elsewhere.iter().filter(comes_from);
        uses_with(mapper, owner, Rights::MAP) || sources.any(|source| uses_with(mapper, source, Rights::MAP))
    }

    /// Whether the manifest lets one component use another with this right.
    fn uses_with(&self, user: &Peer, used: &Peer, right: Rights) -> bool {
        let (Some(user), Some(used)) = (self.component_of(user), self.component_of(used)) else { return false };
        uses_with(&user.entry, &used.entry, right)
    }

    fn has_session(&self, client: &Peer, host: &Peer) -> bool {
        self.sessions.borrow().values().any(|session| {
            session.client == client.incarnation && matches!(session.host, Host::Peer(of) if of == host.incarnation)
        })
    }
}

/// Whether the manifest lets one component use another with this right, wherever they run.
fn uses_with(user: &manifest::Component, used: &manifest::Component, right: Rights) -> bool {
    user.uses.iter().any(|use_| use_.component == used.name && use_.rights.contains(right))
}
