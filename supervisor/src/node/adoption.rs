//! Taking over from a supervisor that is dead, while everything runs.
//!
//! 1. [`take_over`] reads what the keeper has: the records, and who lives in which slot. A run that was ready is adopted; one
//!    that was half started is killed, to be started again; of one that has died meanwhile its death is still to be told.
//! 2. [`Left::reconcile`] asks everybody who lives for an account, and waits until all have given it, but for those who are
//!    slow: theirs is heard when it comes. What they say before it is void (see `kernel_ipc::broker`).
//! 3. Each account is compared with what is known already. A session is what both its ends say; one that only one end knows
//!    is over, unless the other end is dead or has not said anything yet. Whoever knows something that is no more is told.
//! 4. The deaths are told, as if they had happened now. Then the node goes on.
//!
//! Nobody is believed about anybody else: who a peer is, what it has published and what is kept for it are the keeper's records,
//! and a session that a client claims is one only if its host says so too.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::broker::{Account, Channel, ToComponent, ToSupervisor};
use kernel_ipc::runtime::{spawn, timeout};
use kernel_ipc::{Epoch, Incarnation, LenderId, RegionId, SessionId};

use super::introductions::Met;
use super::launch::capture;
use super::link::Record;
use super::peer::{Identity, Peer, Who};
use super::records::{ComponentTag, FactTag, Kept, Kind, NamedTag, NumbersTag, PeerTag, read, tag};
use super::survival::{Pins, Surviving};
use super::{Fence, Host, Node, Phase, Session, messages};
use crate::keeper::wire::{Ask, FIRST_GUEST_SLOT, Request, SLOTS, Slotful};

/// What is not known yet.
#[derive(Default)]
pub struct Adoption {
    /// Who has not accounted for itself, with the parts that have come.
    accounts: BTreeMap<Incarnation, Account>,
    /// Sessions that survive, which nobody has claimed: their clients, and what is known of them.
    sessions: HashMap<SessionId, (Incarnation, Surviving)>,
}

/// What the last supervisor has left undone.
pub struct Left {
    /// Who died, and whose death is to be told.
    dead: Vec<Rc<Peer>>,
}

impl Slotful {
    fn lives(&self) -> bool {
        self.process != 0 || self.guest != 0
    }

    fn is_unfenced(&self, epoch: u64) -> bool {
        epoch != 0 && self.unfenced.contains(&epoch)
    }
}

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
    fn kept(&self, key: crate::keeper::wire::Key, descriptor: Option<OwnedFd>) -> Option<Kept> {
        self.node.records.know(key, descriptor).ok()
    }

    fn slot(&self, slot: u32) -> Option<Slotful> {
        self.slots.get(slot as usize).copied()
    }

    fn component_in(&self, slot: u32) -> Option<&super::Component> {
        self.node.components.iter().find(|component| component.slot == slot)
    }

    fn forever(&mut self, record: Record) {
        self.node.forever.borrow_mut().extend(self.kept(record.key, None));
    }

    fn component(&mut self, record: Record) {
        if let Some(component) = self.component_in(record.key.slot) {
            component.recall(&tag::<ComponentTag>(&record.tag));
        }
    }

    fn memory(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?))?;
        let NamedTag { number, name } = tag(&record.tag);
        self.component_in(record.key.slot)?.estate.recall_memory(read(&name)?, number, kept);
        Some(())
    }

    fn ancestor(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, None)?;
        self.component_in(record.key.slot)?.estate.add_ancestor(Incarnation(record.key.number), Some(kept));
        Some(())
    }

    fn held(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?))?;
        let NamedTag { name, .. } = tag(&record.tag);
        self.component_in(record.key.slot)?.holdings.recall(read(&name)?, kept);
        Some(())
    }

    fn fact(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, None)?;
        let FactTag { key, value } = tag(&record.tag);
        let value = serde_json::from_str(&read(&value)?).ok()?;
        self.component_in(record.key.slot)?.facts.borrow_mut().insert(read(&key)?, (value, Some(kept)));
        Some(())
    }

    fn peer(&mut self, record: Record) -> Option<()> {
        let kept = Rc::new(self.kept(record.key, None)?);
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
        let kept = self.kept(record.key, None)?;
        let component = self.component_in(record.key.slot)?;
        let captured = capture(component, record.descriptor?, kept);
        let run = component.peer.borrow().clone().filter(|run| run.epoch.get() == record.key.number);
        if let Some(run) = run {
            run.output.replace(Some(captured));
        }
        Some(())
    }

    fn table(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?))?;
        let peer = self.node.peer(Incarnation(record.key.number))?;
        let NumbersTag([capacity, ..]) = tag(&record.tag);
        peer.table.replace(Some((kept, u32::try_from(capacity).ok()?)));
        Some(())
    }

    fn region(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?))?;
        let (region, NumbersTag([owner, ..])) = (RegionId(record.key.number), tag(&record.tag));
        let (kept, owner) = (Rc::new(kept), Incarnation(owner));
        let run = self.node.peer(owner).or_else(|| self.before.get(&owner).cloned())?;
        if let Some(component) = self.component_in(record.key.slot) {
            component.estate.published(region, &kept, &run);
        }
        run.regions.borrow_mut().push((region, kept));
        Some(())
    }

    fn pins(&mut self, record: Record) -> Option<()> {
        let kept = self.kept(record.key, Some(record.descriptor?))?;
        let NumbersTag([mapper, epoch, lender, adopted]) = tag(&record.tag);
        let slot = self.slot(record.key.slot)?;
        if slot.is_unfenced(epoch) || (slot.lives() && slot.epoch == epoch) {
            let pins = Pins { memory: kept, epoch: Epoch(epoch), slot: record.key.slot, adopted: adopted != 0 };
            self.node.pins.borrow_mut().insert((Incarnation(mapper), LenderId(lender)), pins);
        }
        Some(())
    }

    fn session(&mut self, record: Record) -> Option<()> {
        let ledger = self.kept(record.key, Some(record.descriptor?))?;
        let (session, NumbersTag([client, endpoint, used, _])) = (SessionId(record.key.number), tag(&record.tag));
        let client = self.node.peer(Incarnation(client))?;
        let component = self.node.components.iter().position(|component| component.slot == record.key.slot)?;
        let surviving = self.node.recall_session(session, &client, component, [endpoint, used], ledger)?;
        self.node.adoption.borrow_mut().sessions.insert(session, (client.incarnation, surviving));
        Some(())
    }
}

impl Left {
    /// Asks everybody, waits for their accounts, and tells the deaths.
    pub(super) async fn reconcile(self, node: &Rc<Node>) {
        let asked: Vec<Incarnation> = node.adoption.borrow().accounts.keys().copied().collect();
        for peer in asked.iter().filter_map(|&peer| node.peer(peer)) {
            node.send(&peer, &ToComponent::Adopt { turn: node.turn }, &[]);
        }
        let waited = timeout(ACCOUNTED_WITHIN, async {
            loop {
                let next = node.accounted.next();
                if node.adoption.borrow().accounts.is_empty() {
                    return;
                }
                next.await;
            }
        });
        if waited.await.is_err() {
            let slow: Vec<Incarnation> = node.adoption.borrow().accounts.keys().copied().collect();
            for peer in slow.into_iter().filter_map(|peer| node.peer(peer)) {
                eprintln!("supervisor: {} does not account for itself", peer.name);
            }
        }
        for peer in self.dead {
            node.gone(&peer);
        }
        for component in &node.components {
            let run = component.peer.borrow().clone().filter(|run| !run.ended.has_happened());
            if component.phase.get() == Phase::Ready && run.is_some() {
                // The last supervisor may not have come to it.
                node.bury_ancestors(component);
            }
        }
        // Of sessions whose client is dead only the host's next run could know.
        let mut adoption = node.adoption.borrow_mut();
        let Adoption { accounts, sessions, .. } = &mut *adoption;
        let over = sessions.extract_if(|_, (client, _)| !accounts.contains_key(client)).collect::<Vec<_>>();
        drop(adoption);
        for (session, (client, surviving)) in over {
            let survives = node.inherited(client).is_some();
            let message = ToComponent::ClientGone { session, client, died: true, survives };
            node.tell_next_run(Some(surviving), message);
        }
    }
}

impl Node {
    /// What a peer says that has not accounted for itself.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn hear_account(self: &Rc<Self>, peer: &Rc<Peer>, message: ToSupervisor) -> Result<(), String> {
        match message {
            ToSupervisor::Account(part) if part.turn == self.turn && !peer.ended.has_happened() => {
                let whole = {
                    let mut adoption = self.adoption.borrow_mut();
                    let known = adoption.accounts.get_mut(&peer.incarnation).ok_or("an account that nobody wants")?;
                    if known.hosts.len() + known.uses.len() + known.lenders.len() + known.holders.len() > MOST {
                        return Err("an account without end".into());
                    }
                    let last = part.last;
                    join(known, *part);
                    if last { adoption.accounts.remove(&peer.incarnation) } else { None }
                };
                if let Some(account) = whole {
                    peer.accounted.set(true);
                    self.settle(peer, &account);
                    if let Some(component) = self.component_of(peer) {
                        // Whoever waits for it to serve.
                        component.changes.happen();
                    }
                    self.accounted.happen();
                    self.introduce();
                    self.introduced.happen();
                }
            }
            ToSupervisor::Failed { reason } => drop(peer.trouble.replace(Some(reason))),
            // Void: said to the last supervisor, or said again behind the account.
            _ => {}
        }
        Ok(())
    }

    /// Somebody will not account for itself any more.
    pub(super) fn no_account_of(&self, peer: &Peer) {
        self.adoption.borrow_mut().accounts.remove(&peer.incarnation);
        self.accounted.happen();
    }

    /// Compares what one peer knows with what is known.
    fn settle(self: &Rc<Self>, peer: &Rc<Peer>, account: &Account) {
        for &(session, host) in &account.uses {
            self.settle_use(peer, session, host);
        }
        for &(session, client) in &account.hosts {
            self.settle_host(peer, session, client);
        }
        self.end_unclaimed(peer, account);
        self.settle_introductions(peer, account);
        for &holder in account.holders.iter().filter(|_| peer.who != Who::Guest) {
            let waits = self.inherited(holder).is_some() || self.peer(holder).is_some();
            if !waits {
                let session = SessionId(0);
                self.send(peer, &ToComponent::ClientGone { session, client: holder, died: true, survives: false }, &[]);
            }
        }
    }

    /// A client says that it has a session, with this run of its host or one before it.
    fn settle_use(self: &Rc<Self>, client: &Rc<Peer>, session: SessionId, host: Incarnation) {
        let known = self.sessions.borrow().get(&session).map(|known| {
            let with = matches!(known.host, Host::Peer(of) if of == host);
            (known.client == client.incarnation, with)
        });
        let survives = |node: &Node| node.claim(session, client.incarnation);
        match known {
            Some((true, true)) => {}
            Some((true, false)) if self.goes_on(session) => {
                // Its host's next run has begun to serve it; the client has not heard of that.
                if let Some(known) = self.sessions.borrow_mut().get_mut(&session) {
                    known.host = Host::Awaited;
                }
                self.send(client, &ToComponent::HostGone { session, survives: true }, &[]);
            }
            Some(_) => self.send(client, &ToComponent::HostGone { session, survives: false }, &[]),
            None => {
                let run = self.peer(host);
                let provisional = run.as_ref().is_some_and(|run| !run.accounted.get());
                let surviving = survives(self);
                let goes_on = run.is_none() && surviving.is_some();
                if provisional || goes_on {
                    let host = if provisional { Host::Peer(host) } else { Host::Awaited };
                    let entry = Session { client: client.incarnation, host, surviving };
                    self.sessions.borrow_mut().insert(session, entry);
                }
                if !provisional {
                    self.send(client, &ToComponent::HostGone { session, survives: goes_on }, &[]);
                }
            }
        }
    }

    /// A host says that it serves a session, to this client.
    fn settle_host(self: &Rc<Self>, host: &Rc<Peer>, session: SessionId, client: Incarnation) {
        let known = self.sessions.borrow().get(&session).map(|known| known.client);
        let run = self.peer(client);
        if known == Some(client) {
            return; // As the client says.
        }
        if known.is_none() && run.as_ref().is_some_and(|run| !run.accounted.get()) {
            let surviving = self.claim(session, client);
            let entry = Session { client, host: Host::Peer(host.incarnation), surviving };
            self.sessions.borrow_mut().insert(session, entry);
            return;
        }
        let (died, survives) = (run.is_none(), self.inherited(client).is_some());
        self.send(host, &ToComponent::ClientGone { session, client, died, survives }, &[]);
    }

    /// What was taken to be a peer's session, and it says nothing of, is over.
    fn end_unclaimed(self: &Rc<Self>, peer: &Rc<Peer>, account: &Account) {
        let uses: HashSet<SessionId> = account.uses.iter().map(|(session, _)| *session).collect();
        let hosts: HashSet<SessionId> = account.hosts.iter().map(|(session, _)| *session).collect();
        let unclaimed = |(id, session): (&SessionId, &Session)| {
            let as_client = session.client == peer.incarnation && !uses.contains(id);
            let as_host = matches!(session.host, Host::Peer(of) if of == peer.incarnation) && !hosts.contains(id);
            (as_client || as_host).then_some(*id)
        };
        let over: Vec<SessionId> = self.sessions.borrow().iter().filter_map(unclaimed).collect();
        for session in over {
            self.close(peer, session, None);
        }
        // And what no client has claimed at all.
        let unclaimed = {
            let mut adoption = self.adoption.borrow_mut();
            let own: Vec<SessionId> = adoption
                .sessions
                .iter()
                .filter(|(_, (client, _))| *client == peer.incarnation)
                .map(|(session, _)| *session)
                .collect();
            own.into_iter().filter_map(|session| adoption.sessions.remove(&session)).collect::<Vec<_>>()
        };
        for (client, surviving) in unclaimed {
            let session = surviving.serve.session;
            let message = ToComponent::ClientGone { session, client, died: false, survives: false };
            self.tell_next_run(Some(surviving), message);
        }
    }

    fn settle_introductions(self: &Rc<Self>, peer: &Rc<Peer>, account: &Account) {
        let living = self.living();
        let is_lender = |lender: LenderId| {
            let estates = self.components.iter().filter(|component| component.estate.survives());
            living.iter().any(|peer| peer.lender == lender)
                || estates.into_iter().any(|component| component.estate.known_lender() == Some(lender))
        };
        let is_region = |region: RegionId| {
            living.iter().any(|owner| owner.regions.borrow().iter().any(|(known, _)| *known == region))
                || self.components.iter().any(|component| component.estate.has_region(region))
        };
        let mut met: BTreeMap<LenderId, Met> = BTreeMap::new();
        for &(lender, epoch) in account.lenders.iter() {
            if is_lender(lender) {
                met.insert(lender, Met { epoch, regions: Default::default() });
            } else {
                let message = ToComponent::LenderGone { lender: Some(lender), regions: Vec::new() };
                self.send(peer, &message, &[]);
            }
        }
        let mut gone = Vec::new();
        for &(lender, region) in &account.regions {
            match met.get_mut(&lender) {
                _ if !is_region(region) => gone.push(region),
                Some(known) => drop(known.regions.insert(region)),
                None => {}
            }
        }
        if !gone.is_empty() {
            self.send(peer, &ToComponent::LenderGone { lender: None, regions: gone }, &[]);
        }
        let met = met.into_iter().map(|(lender, known)| ((peer.incarnation, lender), known));
        self.met.borrow_mut().extend(met);
        for &mapper in &account.mappers {
            let unfenced = self.fences.borrow().values().any(|fence| fence.incarnation == mapper);
            match unfenced {
                true => self.attached.borrow_mut().entry(mapper).or_default().push(peer.incarnation),
                false => self.send(peer, &ToComponent::MapperFenced { mapper }, &[]),
            }
        }
    }

    /// What is known of a session that survives, once.
    fn claim(&self, session: SessionId, client: Incarnation) -> Option<Surviving> {
        let mut adoption = self.adoption.borrow_mut();
        adoption.sessions.get(&session).filter(|(of, _)| *of == client)?;
        adoption.sessions.remove(&session).map(|(_, surviving)| surviving)
    }

    fn goes_on(&self, session: SessionId) -> bool {
        self.sessions.borrow().get(&session).is_some_and(|known| known.surviving.is_some())
    }

    /// The component whose next run inherits what this dead run was lent.
    fn inherited(&self, dead: Incarnation) -> Option<usize> {
        self.components.iter().position(|component| component.estate.ancestors().contains(&dead))
    }
}

/// How long the node waits for accounts before it goes on without.
const ACCOUNTED_WITHIN: Duration = Duration::from_secs(5);

/// More than any peer can know.
const MOST: usize = 1 << 18;

fn join(whole: &mut Account, mut part: Account) {
    whole.hosts.append(&mut part.hosts);
    whole.uses.append(&mut part.uses);
    whole.lenders.append(&mut part.lenders);
    whole.regions.append(&mut part.regions);
    whole.mappers.append(&mut part.mappers);
    whole.holders.append(&mut part.holders);
}
