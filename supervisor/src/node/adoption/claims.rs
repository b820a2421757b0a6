//! Who says what of a session, and of whom it knows.
//!
//! - A session is one if its client and its host, both alive, claim it of each other.
//! - Of one that survives, whose host's run is no more, the record says whose it is; its client waits for the next run.
//! - A claim about somebody who has not accounted for itself waits for that account. What is claimed about somebody who lives
//!   and says nothing of it is over, and so is what is claimed about the dead.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use kernel_ipc::broker::{Account, ToComponent};
use kernel_ipc::{Incarnation, LenderId, RegionId, SessionId};

use super::super::introductions::Met;
use super::super::peer::{Peer, Who};
use super::super::{Host, Node, Session};

/// What those who have accounted for themselves say of sessions.
#[derive(Default)]
pub struct Claims {
    /// By client: with which run it has the session.
    uses: HashMap<Incarnation, HashMap<SessionId, Incarnation>>,
    /// By host: who is its client.
    hosts: HashMap<Incarnation, HashMap<SessionId, Incarnation>>,
}

impl Claims {
    fn used(&self, client: Incarnation, session: SessionId) -> Option<Incarnation> {
        self.uses.get(&client)?.get(&session).copied()
    }

    fn hosts(&self, host: Incarnation, session: SessionId, client: Incarnation) -> bool {
        self.hosts.get(&host).and_then(|known| known.get(&session)) == Some(&client)
    }

    /// Everything that others say of this peer: its clients, or its hosts.
    fn about(known: &HashMap<Incarnation, HashMap<SessionId, Incarnation>>, peer: Incarnation) -> Vec<Claim> {
        let of = |(by, claims): (&Incarnation, &HashMap<SessionId, Incarnation>)| {
            let by = *by;
            let about = claims.iter().filter(|(_, other)| **other == peer);
            about.map(|(session, _)| (by, *session)).collect::<Vec<_>>()
        };
        known.iter().flat_map(of).collect()
    }

    /// Somebody has ended a session.
    pub fn end(&mut self, by: Incarnation, session: SessionId) {
        for claims in [self.uses.get_mut(&by), self.hosts.get_mut(&by)].into_iter().flatten() {
            claims.remove(&session);
        }
    }

    /// Somebody is gone.
    pub fn forget(&mut self, peer: Incarnation) {
        self.uses.remove(&peer);
        self.hosts.remove(&peer);
    }
}

/// Who claims which session.
type Claim = (Incarnation, SessionId);

/// Where somebody stands about whom something is claimed.
enum Standing {
    /// It has accounted for itself.
    Known(Rc<Peer>),
    /// It lives, or its death is still to be told.
    Awaited,
    Gone,
}

impl Node {
    /// Compares what one peer says with what the others say.
    pub(super) fn settle(self: &Rc<Self>, peer: &Rc<Peer>, account: Account) {
        let me = peer.incarnation;
        {
            let claims = &mut self.adoption.borrow_mut().claims;
            claims.uses.insert(me, account.uses.iter().copied().collect());
            claims.hosts.insert(me, account.hosts.iter().copied().collect());
        }
        for &(session, host) in &account.uses {
            self.settle_use(peer, session, host);
        }
        for &(session, client) in &account.hosts {
            self.settle_host(peer, session, client);
        }
        // What others say of it, and it does not.
        let (as_host, as_client) = {
            let claims = &self.adoption.borrow().claims;
            let (as_host, as_client) = (Claims::about(&claims.uses, me), Claims::about(&claims.hosts, me));
            let as_host = as_host.into_iter().filter(|(client, session)| !claims.hosts(me, *session, *client));
            let as_client = as_client.into_iter().filter(|(_, session)| claims.used(me, *session).is_none());
            (as_host.collect::<Vec<_>>(), as_client.collect::<Vec<_>>())
        };
        for (client, session) in as_host {
            self.tell_client(client, session, false);
        }
        for (host, session) in as_client {
            self.tell_host(host, session, me, false);
        }
        self.end_unclaimed(peer, false);
        self.settle_introductions(peer, &account);
        for &holder in account.holders.iter().filter(|holder| peer.who != Who::Guest && !holder.is_beyond()) {
            if self.inherited(holder).is_none() && self.peer(holder).is_none() {
                self.tell_host(me, SessionId(0), holder, true);
            }
        }
    }

    fn standing(&self, peer: Incarnation) -> Standing {
        match self.peer(peer) {
            Some(known) if known.accounted.get() => Standing::Known(known),
            Some(_) => Standing::Awaited,
            None => Standing::Gone,
        }
    }

    /// A client says that it has a session, with this run of its host.
    fn settle_use(self: &Rc<Self>, client: &Rc<Peer>, session: SessionId, host: Incarnation) {
        match self.standing(host) {
            Standing::Known(host) => {
                let says_so = self.adoption.borrow().claims.hosts(host.incarnation, session, client.incarnation);
                if says_so {
                    self.goes_on(session, client.incarnation, Host::Peer(host.incarnation));
                } else {
                    self.tell_client(client.incarnation, session, false);
                }
            }
            Standing::Awaited => {}
            Standing::Gone => self.awaits(client.incarnation, session),
        }
    }

    /// A host says that it serves a session, to this client.
    fn settle_host(self: &Rc<Self>, host: &Rc<Peer>, session: SessionId, client: Incarnation) {
        let with = self.adoption.borrow().claims.used(client, session);
        match self.standing(client) {
            Standing::Known(_) => match with {
                Some(with) if with == host.incarnation => {
                    self.goes_on(session, client, Host::Peer(host.incarnation));
                }
                // The client has not heard that the next run has begun to serve it, and asks once more.
                Some(_) if self.is_awaited_by(client, session) => {}
                _ => self.tell_host(host.incarnation, session, client, false),
            },
            Standing::Awaited => {}
            Standing::Gone => self.tell_host(host.incarnation, session, client, true),
        }
    }

    /// A peer is dead that has not accounted for itself to this supervisor.
    pub(super) fn settle_death(self: &Rc<Self>, dead: &Rc<Peer>) {
        let (as_host, as_client) = {
            let claims = &self.adoption.borrow().claims;
            (Claims::about(&claims.uses, dead.incarnation), Claims::about(&claims.hosts, dead.incarnation))
        };
        for (client, session) in as_host {
            match self.survives(dead) {
                true => self.awaits(client, session),
                false => self.tell_client(client, session, false),
            }
        }
        let survives = self.survives(dead);
        for (host, session) in as_client {
            if let Some(host) = self.peer(host) {
                let client = dead.incarnation;
                self.send(&host, &ToComponent::ClientGone { session, client, died: true, survives }, &[]);
            }
        }
    }

    /// A client's session whose host's run is no more waits for the next one, if it survives.
    fn awaits(self: &Rc<Self>, client: Incarnation, session: SessionId) {
        let survives = self.adoption.borrow().sessions.get(&session).is_some_and(|(of, _)| *of == client);
        if survives {
            self.goes_on(session, client, Host::Awaited);
        }
        self.tell_client(client, session, survives);
    }

    fn goes_on(&self, session: SessionId, client: Incarnation, host: Host) {
        let surviving = self.recall(session, client);
        self.sessions.borrow_mut().entry(session).or_insert(Session { client, endpoint: None, host, surviving });
    }

    fn is_awaited_by(&self, client: Incarnation, session: SessionId) -> bool {
        let sessions = self.sessions.borrow();
        sessions.get(&session).is_some_and(|known| known.client == client && matches!(known.host, Host::Awaited))
    }

    fn tell_client(self: &Rc<Self>, client: Incarnation, session: SessionId, survives: bool) {
        if let Some(client) = self.peer(client) {
            self.send(&client, &ToComponent::HostGone { session, survives }, &[]);
        }
    }

    fn tell_host(self: &Rc<Self>, host: Incarnation, session: SessionId, client: Incarnation, died: bool) {
        if let Some(host) = self.peer(host) {
            let survives = died && self.inherited(client).is_some();
            self.send(&host, &ToComponent::ClientGone { session, client, died, survives }, &[]);
        }
    }

    /// What is kept of a client's sessions that it says nothing of: the next run, if there is one, need not wait for it.
    pub(super) fn end_unclaimed(self: &Rc<Self>, peer: &Rc<Peer>, died: bool) {
        let client = peer.incarnation;
        let unclaimed: Vec<SessionId> = {
            let adoption = self.adoption.borrow();
            let own = adoption.sessions.iter().filter(|(_, (of, _))| *of == client);
            let unclaimed = own.filter(|(session, _)| adoption.claims.used(client, **session).is_none());
            unclaimed.map(|(session, _)| *session).collect()
        };
        for session in unclaimed {
            let surviving = self.recall(session, client);
            let survives = died && self.survives(peer);
            let message = ToComponent::ClientGone { session, client, died, survives };
            self.tell_next_run(surviving, message);
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
            living.iter().any(|owner| owner.regions.borrow().iter().any(|known| known.id == region))
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
}
