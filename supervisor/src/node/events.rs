//! What the keeper tells: who has died, whose fence has ended, that the node is to end.

use std::rc::Rc;
use std::time::Instant;

use kernel_ipc::runtime::spawn;
use kernel_ipc::steps;

use super::peer::{Peer, Who};
use super::{Node, link};
use crate::keeper::wire::Ask;

/// Acts on the keeper's events, as long as there is one.
pub async fn act_on_them(node: Rc<Node>) {
    loop {
        match node.keeper.event().await {
            Ok(link::Event::Exited { slot, epoch, wait_status }) => {
                let living = node.living();
                if let Some(peer) = living.iter().find(|peer| peer.slot == slot && peer.epoch.get() == epoch) {
                    peer.wait_status.set(Some(wait_status));
                    steps::reach("restart/heard");
                    node.gone(peer);
                    steps::reach("restart/told");
                }
                let candidate = node.candidates.borrow_mut().remove(&(slot, epoch));
                if let Some(candidate) = candidate.and_then(|candidate| candidate.upgrade()) {
                    candidate.happens(wait_status);
                }
            }
            Ok(link::Event::Fenced { slot, epoch }) => {
                let fence = node.fences.borrow_mut().remove(&(slot, epoch));
                if let Some(fence) = fence {
                    node.mapper_fenced(fence.incarnation);
                    fence.ended.happen();
                }
            }
            Ok(link::Event::Terminate) => {
                node.goes_down();
                let node = node.clone();
                spawn(async move { node.keeper.tell(Ask::Ending, 0, 0).await });
            }
            Err(error) => {
                // Without the keeper there is no node; it kills this process when it dies.
                eprintln!("supervisor: the keeper: {error}");
                std::process::exit(1);
            }
        }
    }
}

impl Node {
    /// A run has ended: everybody who had to do with it hears of it.
    pub(super) fn gone(self: &Rc<Self>, peer: &Rc<Peer>) {
        if self.peers.borrow_mut().remove(&peer.incarnation).is_none() {
            return;
        }
        peer.ended_at.set(Some(Instant::now()));
        peer.ended.happen();
        if let Some(component) = self.component_of(peer) {
            component.changes.happen();
        }
        self.no_account_of(peer);
        // With it goes the fence of one that died before it was greeted: nobody else would ever end it.
        peer.greeting.borrow_mut().take();
        peer.asked.clear();
        peer.outbox.close();
        self.end_sessions_of(peer);
        self.forget_introductions_of(peer);
        if self.survives(peer) {
            self.bequeath(peer);
        } else {
            self.forget_pins_for(peer.lender);
        }
        // What it has said is still read, then it is silent. A guest may hold its end open; that of a dead component is held by
        // its ring, which the kernel takes apart milliseconds later.
        peer.channel.shut_down();
        if peer.who == Who::Guest {
            let (node, slot) = (self.clone(), peer.slot);
            spawn(async move { node.keeper.tell(Ask::GuestGone, slot, 0).await });
        }
    }
}
