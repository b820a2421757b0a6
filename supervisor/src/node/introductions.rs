//! Who may map whose regions, and how they meet.
//!
//! - Owner O's regions may be mapped by a component that uses O with the right `map`; by a component whose endpoint O
//!   uses with the right `write` (it reads what O gives it to write); by a guest that has a session with O, or with
//!   somebody who may map O's regions. Nobody else.
//! - Lender L lends from its own regions, and from those that it may map with the right `map`.
//! - A mapper M meets L, and for it the regions that both M may map and L may lend from.
//! - The order is that of `notes/leases.md` section 4: the keeper makes M's pin segment, M seals it, L attaches it, then M
//!   gets L's table, then the regions. One introduction at a time; whoever waits for [`Node::introduce_all`] knows that
//!   everything which could be introduced when it was called has been.
//! - Guests get no pin segments: they read, and give nothing of others to the kernel.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use kernel_ipc::broker::{REGIONS_PER_INCARNATION, ToComponent};
use kernel_ipc::lease::PinSegment;
use kernel_ipc::{Incarnation, RegionId, Rights};

use super::peer::{Peer, Who};
use super::{Host, Node};
use crate::keeper::wire::{Ask, Request};

/// One step that is missing.
enum Missing {
    Lender,
    Region(RegionId, OwnedFd),
}

impl Node {
    /// Introduces everybody who may meet and has not.
    pub(super) async fn introduce_all(self: &Rc<Self>) {
        let _turn = self.introducing.take().await;
        while let Some((mapper, lender, missing)) = self.missing() {
            let result = match &missing {
                Missing::Lender => self.introduce(&mapper, &lender).await,
                Missing::Region(region, memory) => {
                    let message = ToComponent::MeetRegion { lender: lender.lender, region: *region };
                    let key = (lender.lender, Some(*region));
                    mapper.ask(&mapper.asked.meet, key, &message, &[memory.as_fd()]).await.and_then(|result| result)
                }
            };
            // Also after a failure, so that it is not tried for ever. One that died meanwhile has been forgotten.
            if mapper.is_introducible() && lender.is_introducible() {
                let mut met = self.met.borrow_mut();
                let regions = met.entry((mapper.incarnation, lender.lender)).or_default();
                if let Missing::Region(region, _) = missing {
                    regions.insert(region);
                }
                if let Err(error) = result {
                    eprintln!("supervisor: {} cannot map what {} lends: {error}", mapper.name, lender.name);
                }
            }
        }
    }

    /// The first missing introduction.
    fn missing(&self) -> Option<(Rc<Peer>, Rc<Peer>, Missing)> {
        let living: Vec<_> = self.living().into_iter().filter(|peer| peer.is_introducible()).collect();
        let met = self.met.borrow();
        for lender in living.iter().filter(|lender| lender.table.borrow().is_some()) {
            let owners = living.iter().filter(|owner| self.may_lend(lender, owner));
            for owner in owners {
                let regions = owner.regions.borrow();
                if regions.is_empty() {
                    continue;
                }
                let mappers = living.iter().filter(|mapper| mapper.incarnation != lender.incarnation);
                for mapper in mappers.filter(|mapper| self.may_meet(mapper, lender, owner)) {
                    let missing = match met.get(&(mapper.incarnation, lender.lender)) {
                        None => Some(Missing::Lender),
                        Some(known) => {
                            let unknown = regions.iter().find(|(region, _)| !known.contains(region));
                            unknown
                                .and_then(|(region, memory)| Some(Missing::Region(*region, memory.try_clone().ok()?)))
                        }
                    };
                    if let Some(missing) = missing {
                        return Some((mapper.clone(), lender.clone(), missing));
                    }
                }
            }
        }
        None
    }

    /// Makes a mapper and a lender known to each other.
    async fn introduce(self: &Rc<Self>, mapper: &Rc<Peer>, lender: &Rc<Peer>) -> Result<(), String> {
        let table =
            lender.table.borrow().as_ref().and_then(|(table, capacity)| Some((table.try_clone().ok()?, *capacity)));
        let (table, capacity) = table.ok_or("out of descriptors")?;
        if matches!(mapper.who, Who::Component(_)) {
            let bytes = PinSegment::bytes(capacity) as u64;
            self.attached.borrow_mut().entry(mapper.incarnation).or_default().push(lender.incarnation);
            let request = Request::new(Ask::Memory, mapper.slot, bytes).with_b(lender.lender.get());
            let memory = self.keeper.obtain(request).await.map_err(|error| error.to_string())?;
            if let Ok(kept) = memory.try_clone() {
                self.keep_pins(mapper, lender.lender, kept);
            }
            if lender.ended.has_happened() && !self.survives(lender) {
                self.forget_pins_for(lender.lender);
                return Err(format!("{} is gone", lender.name));
            }
            let message = ToComponent::AdoptPins { lender: lender.lender, capacity };
            mapper.ask(&mapper.asked.adopt, lender.lender, &message, &[memory.as_fd()]).await??;
            let message =
                ToComponent::AttachPins { mapper: mapper.incarnation, epoch: mapper.epoch, status_entry: mapper.slot };
            lender.ask(&lender.asked.attach, mapper.incarnation, &message, &[memory.as_fd()]).await??;
        }
        let message = ToComponent::MeetLender { lender: lender.lender, epoch: lender.epoch, status_entry: lender.slot };
        mapper.ask(&mapper.asked.meet, (lender.lender, None), &message, &[table.as_fd()]).await?
    }

    /// A run has ended: its table and regions are unmapped by everybody who had met it.
    pub(super) fn forget_introductions_of(self: &Rc<Self>, gone: &Rc<Peer>) {
        let regions: Vec<RegionId> = gone.regions.borrow().iter().map(|(region, _)| *region).collect();
        let survives = self.survives(gone);
        let mut told = Vec::new();
        self.met.borrow_mut().retain(|(mapper, lender), known| {
            if (*lender == gone.lender && !survives) || known.iter().any(|region| regions.contains(region)) {
                told.push(*mapper);
            }
            known.retain(|region| !regions.contains(region));
            (*lender != gone.lender || survives) && *mapper != gone.incarnation
        });
        told.sort_unstable();
        told.dedup();
        let lender = (!survives).then_some(gone.lender);
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

    /// Whether a region id is among those that were dealt to this run.
    pub(super) fn owns(&self, peer: &Peer, region: RegionId) -> bool {
        let first = peer.first_region.get();
        (first..first + REGIONS_PER_INCARNATION).contains(&region.get())
            && peer.regions.borrow().iter().all(|(known, _)| *known != region)
    }

    fn may_meet(&self, mapper: &Peer, lender: &Peer, owner: &Peer) -> bool {
        match mapper.who {
            Who::Component(_) => self.may_map(mapper, owner),
            Who::Guest => self.has_session(mapper, lender),
        }
    }

    fn may_lend(&self, lender: &Peer, owner: &Peer) -> bool {
        lender.incarnation == owner.incarnation || self.uses_with(lender, owner, Rights::MAP)
    }

    /// For components.
    fn may_map(&self, mapper: &Peer, owner: &Peer) -> bool {
        if self.uses_with(mapper, owner, Rights::MAP) {
            return true;
        }
        match owner.who {
            Who::Component(_) => self.uses_with(owner, mapper, Rights::WRITE),
            Who::Guest => self.has_session(owner, mapper),
        }
    }

    /// Whether the manifest lets one component use another with this right.
    fn uses_with(&self, user: &Peer, used: &Peer, right: Rights) -> bool {
        let (Who::Component(user), Who::Component(used)) = (user.who, used.who) else { return false };
        let (Some(user), Some(used)) = (self.components.get(user), self.components.get(used)) else { return false };
        user.entry.uses.iter().any(|use_| use_.component == used.entry.name && use_.rights.contains(right))
    }

    fn has_session(&self, client: &Peer, host: &Peer) -> bool {
        self.sessions.borrow().values().any(|session| {
            session.client == client.incarnation && matches!(session.host, Host::Peer(of) if of == host.incarnation)
        })
    }
}
