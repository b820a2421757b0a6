//! Taking over from a supervisor that is dead, while everything runs.
//!
//! 1. [`take_over`](taking::take_over) reads what the keeper has: the records, and who lives in which slot. A run that was
//!    ready is adopted; one that was half started is killed, to be started again; of one that has died meanwhile its death is
//!    still to be told.
//! 2. [`Left::reconcile`] asks everybody who lives for an account, and waits until all have given it, but for those who are
//!    slow: theirs is heard when it comes. What they say before it is void (see `kernel_ipc::broker`).
//! 3. Each account is compared with the others ([claims]). A session is what both its ends say; one that only one end knows
//!    is over, unless the other end has not said anything yet. Whoever knows something that is no more is told.
//! 4. The deaths are told, as if they had happened now, and a restart of several that was begun is gone on with. Then the node
//!    goes on.
//!
//! Nobody is believed about anybody else: who a peer is, what it has published and what is kept for it are the keeper's records,
//! and a session that one end claims is one only if the other says so too.

mod claims;
mod taking;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::broker::{Account, ToComponent, ToSupervisor};
use kernel_ipc::runtime::{spawn, timeout};
use kernel_ipc::steps;
use kernel_ipc::{Incarnation, SessionId};

use super::peer::Peer;
use super::survival::Surviving;
use super::{Node, Phase};
use claims::Claims;

pub use taking::take_over;

/// What is not known yet.
#[derive(Default)]
pub struct Adoption {
    /// Who has not accounted for itself, with the parts that have come.
    accounts: BTreeMap<Incarnation, Account>,
    /// What the others have said.
    claims: Claims,
    /// Sessions that survive, which nobody has claimed: their clients, and what is known of them.
    sessions: HashMap<SessionId, (Incarnation, Surviving)>,
    /// Nobody has died of whom it is still to be told.
    deaths_are_told: bool,
}

/// What the last supervisor has left undone.
pub struct Left {
    /// Who died, and whose death is to be told.
    dead: Vec<Rc<Peer>>,
}

impl Left {
    /// Asks everybody, waits for their accounts, and tells the deaths.
    pub(super) async fn reconcile(self, node: &Rc<Node>) {
        let asked: Vec<Incarnation> = node.adoption.borrow().accounts.keys().copied().collect();
        for peer in asked.iter().filter_map(|&peer| node.peer(peer)) {
            node.send(&peer, &ToComponent::Adopt { turn: node.turn }, &[]);
        }
        steps::reach("adopt/asked");
        let waited = timeout(ACCOUNTED_WITHIN, async {
            loop {
                let next = node.accounted.next();
                if node.adoption.borrow().accounts.keys().all(|&peer| node.is_frozen(peer)) {
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
        steps::reach("adopt/accounted");
        for peer in self.dead {
            node.gone(&peer);
        }
        for component in &node.components {
            let run = component.peer.borrow().clone().filter(|run| !run.ended.has_happened());
            if let Some(run) = run.filter(|_| component.phase.get() == Phase::Ready) {
                // The last supervisor may not have come to it.
                node.bury_ancestors_of(&run);
            }
        }
        node.adoption.borrow_mut().deaths_are_told = true;
        node.heard();
        spawn(node.clone().end_the_marked());
        spawn(node.clone().end_the_stopped());
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
                    let lists = [&known.hosts, &known.uses].map(Vec::len).iter().sum::<usize>()
                        + [known.lenders.len(), known.regions.len(), known.mappers.len(), known.holders.len()]
                            .iter()
                            .sum::<usize>();
                    if lists > MOST {
                        return Err("an account without end".into());
                    }
                    let last = part.last;
                    join(known, *part);
                    if last { adoption.accounts.remove(&peer.incarnation) } else { None }
                };
                if let Some(account) = whole {
                    peer.accounted.set(true);
                    self.settle(peer, account);
                    if let Some(component) = self.component_of(peer) {
                        // Whoever waits for it to serve.
                        component.changes.happen();
                    }
                    self.heard();
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

    /// One account less is awaited.
    fn heard(&self) {
        let mut adoption = self.adoption.borrow_mut();
        if adoption.accounts.is_empty() && adoption.deaths_are_told {
            adoption.claims = Claims::default();
        }
        drop(adoption);
        self.accounted.happen();
    }

    /// A peer is dead, and will not account for itself any more.
    pub(super) fn no_account_of(self: &Rc<Self>, peer: &Rc<Peer>) {
        let awaited = self.adoption.borrow_mut().accounts.remove(&peer.incarnation).is_some();
        if !peer.accounted.get() {
            self.settle_death(peer);
        }
        self.adoption.borrow_mut().claims.forget(peer.incarnation);
        self.end_unclaimed(peer, true);
        if awaited {
            self.heard();
        }
    }

    /// A peer has ended a session of which the other end may not have said anything yet.
    pub(super) fn forget_claim(&self, by: &Peer, session: SessionId) {
        self.adoption.borrow_mut().claims.end(by.incarnation, session);
    }

    /// What is known of a session that survives, once.
    fn recall(&self, session: SessionId, client: Incarnation) -> Option<Surviving> {
        let mut adoption = self.adoption.borrow_mut();
        adoption.sessions.get(&session).filter(|(of, _)| *of == client)?;
        adoption.sessions.remove(&session).map(|(_, surviving)| surviving)
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
