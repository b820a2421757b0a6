//! What the keeper has: records, and who lives in which slot.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use kernel_ipc::broker::{Account, Channel};
use kernel_ipc::runtime::spawn;
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId, SessionId};

use super::super::launch::capture;
use super::super::link::Record;
use super::super::peer::{Identity, Peer, Published, Who};
use super::super::records::{ComponentTag, FactTag, Kept, Kind, NamedTag, NumbersTag, PeerTag, read, tag};
use super::super::survival::Pins;
use super::super::{Component, Fence, Node, Phase, messages};
use super::Left;
use crate::keeper::wire::{Ask, FIRST_GUEST_SLOT, Key, Request, SLOTS, Slotful};

/// Takes over what the records say. Nobody is told anything yet.
///
/// # Errors
/// Of the keeper's socket.
pub fn take_over(node: &Rc<Node>, records: Vec<Record>) -> io::Result<Left> {
    let slots = (0..SLOTS).map(|slot| slot_at(node, slot)).collect::<io::Result<Vec<Slotful>>>()?;
    let mut taking = Taking { node: node.clone(), slots, dead: Vec::new(), before: BTreeMap::new() };
    let mut by_kind: BTreeMap<u32, Vec<Record>> = BTreeMap::new();
    for record in records {
        by_kind.entry(record.key.kind).or_default().push(record);
    }
    let mut all = |kind: Kind| by_kind.remove(&(kind as u32)).unwrap_or_default();
    // Peers first: the others are theirs.
    all(Kind::Component).into_iter().for_each(|record| taking.component(record));
    for component in &node.components {
        component.epoch.set(component.epoch.get().max(taking.slots[component.slot as usize].epoch));
    }
    all(Kind::Memory).into_iter().for_each(|record| taking.memory(record).unwrap_or_default());
    all(Kind::Ancestor).into_iter().for_each(|record| taking.ancestor(record).unwrap_or_default());
    all(Kind::Fact).into_iter().for_each(|record| taking.fact(record).unwrap_or_default());
    all(Kind::Held).into_iter().for_each(|record| taking.held(record).unwrap_or_default());
    all(Kind::Logbook).into_iter().for_each(|record| taking.logbook(record).unwrap_or_default());
    let mut programs = all(Kind::Program);
    programs.sort_by_key(|record| record.key.number);
    programs.into_iter().for_each(|record| taking.program(record).unwrap_or_default());
    all(Kind::Peer).into_iter().for_each(|record| taking.peer(record).unwrap_or_default());
    taking.nobodys_slots();
    all(Kind::Output).into_iter().for_each(|record| taking.output(record).unwrap_or_default());
    all(Kind::Table).into_iter().for_each(|record| taking.table(record).unwrap_or_default());
    all(Kind::Region).into_iter().for_each(|record| taking.region(record).unwrap_or_default());
    all(Kind::Pins).into_iter().for_each(|record| taking.pins(record).unwrap_or_default());
    all(Kind::Session).into_iter().for_each(|record| taking.session(record).unwrap_or_default());
    all(Kind::Up).into_iter().for_each(|record| taking.forever(record));
    Ok(Left { dead: taking.dead })
}

fn slot_at(node: &Node, slot: u32) -> io::Result<Slotful> {
    let (said, _) = node.keeper.ask_blocking(Request::new(Ask::Slot, slot, 0), &[])?;
    Ok(tag(&said.tag))
}

struct Taking {
    node: Rc<Node>,
    slots: Vec<Slotful>,
    dead: Vec<Rc<Peer>>,
    /// Runs before the last one of their component.
    before: BTreeMap<Incarnation, Rc<Peer>>,
}

/// A record whose owner is nobody any more is dropped, and so taken away: that is what `None` means below.
impl Taking {
    fn kept(&self, key: Key, descriptor: Option<OwnedFd>) -> Kept {
        self.node.records.know(key, descriptor)
    }

    fn slot(&self, slot: u32) -> Option<Slotful> {
        self.slots.get(slot as usize).copied()
    }

    fn component_in(&self, slot: u32) -> Option<&Component> {
        self.node.components.iter().find(|component| component.slot == slot)
    }

    fn forever(&mut self, record: Record) {
        self.node.forever.borrow_mut().push(self.kept(record.key, None));
    }

    fn component(&mut self, record: Record) {
        if let Some(component) = self.component_in(record.key.slot) {
            component.recall(&tag::<ComponentTag>(&record.tag));
            let known = component.restarts_with.get().filter(|&index| index < self.node.components.len());
            component.restarts_with.set(known);
        }
    }

    fn memory(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?));
        let NamedTag { number, name } = tag(&record.tag);
        self.component_in(record.key.slot)?.estate.recall_memory(read(&name)?, number, kept);
        Some(())
    }

    fn ancestor(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, None);
        self.component_in(record.key.slot)?.estate.add_ancestor(Incarnation(record.key.number), Some(kept));
        Some(())
    }

    fn held(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?));
        let NamedTag { name, .. } = tag(&record.tag);
        self.component_in(record.key.slot)?.holdings.recall(read(&name)?, kept);
        Some(())
    }

    fn logbook(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?));
        self.component_in(record.key.slot)?.book.recall(kept);
        Some(())
    }

    fn program(&mut self, record: Record) -> Option<()> {
        let program = record.descriptor?;
        let kept = self.kept(record.key, Some(program.try_clone().ok()?));
        let NamedTag { number: epoch, name } = tag(&record.tag);
        let component = self.component_in(record.key.slot)?;
        let was_ready = component.epoch.get() == epoch && component.phase.get() == Phase::Ready;
        component.programs.recall(record.key.number, &read(&name)?, program, kept, was_ready);
        Some(())
    }

    fn fact(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, None);
        let FactTag { key, value } = tag(&record.tag);
        let value = serde_json::from_str(&read(&value)?).ok()?;
        self.component_in(record.key.slot)?.facts.borrow_mut().insert(read(&key)?, (value, Some(kept)));
        Some(())
    }

    fn peer(&mut self, record: Record) -> Option<()> {
        let kept = Rc::new(self.kept(record.key, None));
        let (number, said) = (record.key.slot, tag::<PeerTag>(&record.tag));
        let slot = self.slot(number)?;
        let who = match self.node.components.iter().position(|component| component.slot == number) {
            Some(index) => Who::Component(index),
            None if number >= FIRST_GUEST_SLOT => Who::Guest,
            None => return None,
        };
        let identity = Identity {
            who,
            name: match who {
                Who::Component(index) => self.node.components[index].entry.name.clone(),
                Who::Guest => read(&said.name)?,
            },
            slot: number,
            epoch: Epoch(said.epoch),
            incarnation: Incarnation(record.key.number),
            lender: LenderId(said.lender),
            first_region: RegionId(said.first_region),
        };
        let (incarnation, fence) = (identity.incarnation, (number, said.epoch));
        if slot.is_unfenced(said.epoch) {
            let fence_of = Fence { incarnation, ended: Rc::default(), record: Some(kept.clone()) };
            self.node.fences.borrow_mut().insert(fence, fence_of);
        }
        let channel = Rc::new(Channel::new(record.descriptor?));
        let is_last = slot.epoch == said.epoch;
        let pid = if is_last && slot.lives() { slot.pid } else { 0 };
        let peer = Peer::new(identity, pid, channel, kept, None, None);
        match who {
            _ if !is_last => {
                // Of interest only if a region was its, which goes on.
                peer.ended.happen();
                self.before.insert(incarnation, peer);
            }
            Who::Component(index) => self.component_run(index, &peer, slot),
            Who::Guest if slot.guest == 0 => return None,
            // One that was not greeted begins anew when it is asked for its account.
            Who::Guest => self.listen(&peer),
        }
        Some(())
    }

    fn component_run(&mut self, index: usize, peer: &Rc<Peer>, slot: Slotful) {
        let component = &self.node.components[index];
        let phase = component.phase.get();
        if slot.lives() && !matches!(phase, Phase::Ready | Phase::Stopping) {
            eprintln!("supervisor: {} was being started; it is started again", peer.name);
            self.kill(peer.slot);
            // Its death is told when it comes, and nobody waits for more.
            self.node.peers.borrow_mut().insert(peer.incarnation, peer.clone());
            return;
        }
        peer.said_ready.set(true);
        peer.ready.happen();
        peer.ready_at.set(component.ready_at.get());
        component.peer.replace(Some(peer.clone()));
        if !slot.lives() {
            peer.wait_status.set(Some(slot.wait_status));
            self.dead.push(peer.clone());
        }
        self.listen(peer);
    }

    fn listen(&mut self, peer: &Rc<Peer>) {
        self.node.peers.borrow_mut().insert(peer.incarnation, peer.clone());
        if peer.wait_status.get().is_none() {
            self.node.adoption.borrow_mut().accounts.insert(peer.incarnation, Account::default());
        }
        spawn(messages::listen(self.node.clone(), peer.clone()));
        spawn(peer.outbox.clone().write());
    }

    fn kill(&self, slot: u32) {
        let node = self.node.clone();
        spawn(async move { node.keeper.tell(Ask::Signal, slot, libc::SIGKILL as u64).await });
    }

    /// Slots in which something lives or lived that no record is about.
    fn nobodys_slots(&mut self) {
        for (number, slot) in (0..).zip(self.slots.clone()).skip(1) {
            let known = self.node.living().iter().any(|peer| (peer.slot, peer.epoch.get()) == (number, slot.epoch));
            if number >= FIRST_GUEST_SLOT && slot.epoch > 0 {
                self.node.guest_slots.borrow_mut().insert(number, slot.epoch);
            }
            for epoch in slot.unfenced.into_iter().filter(|&epoch| epoch != 0) {
                let nobodys = || Fence { incarnation: Incarnation(0), ended: Rc::default(), record: None };
                self.node.fences.borrow_mut().entry((number, epoch)).or_insert_with(nobodys);
            }
            if !known && slot.process != 0 {
                self.kill(number);
            }
            if !known && slot.guest != 0 {
                let node = self.node.clone();
                spawn(async move { node.keeper.tell(Ask::GuestGone, number, 0).await });
            }
        }
    }

    fn output(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, None);
        let component = self.component_in(record.key.slot)?;
        let captured = capture(component, record.descriptor?, kept);
        let run = component.peer.borrow().clone().filter(|run| run.epoch.get() == record.key.number);
        if let Some(run) = run {
            run.output.replace(Some(captured));
        }
        Some(())
    }

    fn table(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?));
        let peer = self.node.peer(Incarnation(record.key.number))?;
        let NumbersTag([capacity, ..]) = tag(&record.tag);
        peer.table.replace(Some((kept, u32::try_from(capacity).ok()?)));
        Some(())
    }

    fn region(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?));
        let (region, NumbersTag([owner, landed, ..])) = (RegionId(record.key.number), tag(&record.tag));
        let (kept, owner) = (Rc::new(kept), Incarnation(owner));
        let run = self.node.peer(owner).or_else(|| self.before.get(&owner).cloned())?;
        if let Some(component) = self.component_in(record.key.slot) {
            component.estate.published(region, &kept, &run);
        }
        run.regions.borrow_mut().push(Published { id: region, memory: kept, landed: landed != 0 });
        Some(())
    }

    fn pins(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?));
        let NumbersTag([mapper, epoch, lender, adopted]) = tag(&record.tag);
        let slot = self.slot(record.key.slot)?;
        if slot.is_unfenced(epoch) || (slot.lives() && slot.epoch == epoch) {
            let pins = Pins { memory: kept, epoch: Epoch(epoch), slot: record.key.slot, adopted: adopted != 0 };
            self.node.pins.borrow_mut().insert((Incarnation(mapper), LenderId(lender)), pins);
        }
        Some(())
    }

    fn session(&mut self, record: Record) -> Option<()> {
        let ledger = self.kept(record.key, Some(record.descriptor?));
        let (session, NumbersTag([client, endpoint, used, _])) = (SessionId(record.key.number), tag(&record.tag));
        let client = self.node.peer(Incarnation(client))?;
        let component = self.node.components.iter().position(|component| component.slot == record.key.slot)?;
        let surviving = self.node.recall_session(session, &client, component, [endpoint, used], ledger)?;
        self.node.adoption.borrow_mut().sessions.insert(session, (client.incarnation, surviving));
        Some(())
    }
}

impl Slotful {
    fn lives(&self) -> bool {
        self.process != 0 || self.guest != 0
    }

    fn is_unfenced(&self, epoch: u64) -> bool {
        epoch != 0 && self.unfenced.contains(&epoch)
    }
}
