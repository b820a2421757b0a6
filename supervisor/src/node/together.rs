//! Restarting components together, as the manifest says (see [`crate::ties`]).
//!
//! 1. All who live and are restarted too are marked, each with who was the first. From then on their end counts as that, for
//!    the next supervisor as well: the mark is part of a component's record.
//! 2. They are killed one after the other, those that use others first. By force: an orderly end may need what is dead, and
//!    would end sessions that survive a death.
//! 3. Each one starts again when all are dead and those of them that it uses serve. One that is given up is waited for until
//!    an operator starts it.
//!
//! A run that began when the dead one was dead already has never met it, and stays. So two that die at once are not
//! restarted for each other twice, and one that dies again while the others wait takes along only those that had started.

use std::rc::Rc;

use kernel_ipc::broker::ToComponent;
use kernel_ipc::runtime::timeout;

use super::launch::until_wanted;
use super::peer::{PATIENCE, Peer};
use super::waits::either;
use super::{Component, Node, Phase};
use crate::keeper::wire::Ask;

impl Node {
    /// The name of the component in whose restart this run was taken along, if that is what has ended it.
    pub(super) fn taken_along_with(&self, component: &Component, run: &Peer) -> Option<&str> {
        let first = self.components.get(component.restarts_with.get()?)?;
        // What it did in its last moment by itself is its own.
        let as_wanted = matches!(run.wait_status.get(), Some(0 | libc::SIGKILL)) && !run.at_fault.get();
        (first.slot != component.slot && as_wanted).then_some(first.entry.name.as_str())
    }

    /// A component's run is dead and the component will be started again: ends all that are restarted with it.
    pub(super) async fn take_along(&self, index: usize, dead: &Peer) {
        let first = self.components[index].restarts_with.get();
        let is_marked = first.is_some_and(|first| first != index); // And with it all whom it would take along.
        if is_marked || self.ties.together(index).len() == 1 || self.stopping.has_happened() {
            return;
        }
        let ended_at = dead.ended_at.get();
        for run in self.mark(index, false, |run| ended_at.is_none_or(|ended_at| run.begun < ended_at)) {
            self.end_with(&dead.name, &run).await;
        }
    }

    /// An operator wants a component restarted: stops it, unless the run that is asked for `begins` already, and ends all that are
    /// restarted with it.
    pub(super) async fn stop_together(self: Rc<Self>, index: usize, begins: bool) {
        let component = &self.components[index];
        let mut runs = self.mark(index, begins, |_| true).into_iter().peekable();
        while let Some(run) = runs.next_if(|run| run.slot > component.slot) {
            self.end_with(&component.entry.name, &run).await;
        }
        component.hold.start();
        component.keep();
        if !begins {
            component.wanted.set(true);
            component.changes.happen();
        }
        if let Some(run) = runs.next_if(|run| run.slot == component.slot) {
            self.stop(&run).await;
        }
        for run in runs {
            self.end_with(&component.entry.name, &run).await;
        }
    }

    /// Ends those whose end the last supervisor had begun.
    pub(super) async fn end_the_marked(self: Rc<Self>) {
        for component in self.components.iter().rev() {
            let first = component.restarts_with.get().and_then(|first| self.components.get(first));
            if let (Some(first), Some(run)) = (first, component.living_run()) {
                self.end_with(&first.entry.name, &run).await;
            }
        }
    }

    /// Marks all that are restarted with a component, itself included, and returns the runs of those that live and `met` it,
    /// in the order in which they are to be ended. If its own next run `begins`, that is none of them: a mark would stay on it, and
    /// the others would wait for its end.
    fn mark(&self, index: usize, begins: bool, met: impl Fn(&Rc<Peer>) -> bool) -> Vec<Rc<Peer>> {
        let mut runs = Vec::new();
        for &other in self.ties.together(index).iter().rev() {
            if other == index && begins {
                continue;
            }
            let component = &self.components[other];
            let run = component.living_run().filter(|run| met(run));
            if run.is_some() || other == index {
                component.restarts_with.set(Some(index));
                component.keep();
            }
            runs.extend(run);
        }
        runs
    }

    async fn end_with(&self, first: &str, run: &Peer) {
        if !self.stopping.has_happened() {
            run.doomed.set(true);
            let _ = self.keeper.tell(Ask::Signal, run.slot, libc::SIGKILL as u64).await;
            run.ended.wait().await;
            eprintln!("supervisor: {} ended with {first}", run.name);
        }
    }

    /// Stops one run, which an operator wants: in order, or else by force. One that survives is not asked: in an orderly end its
    /// sessions would end too.
    pub(super) async fn stop(self: &Rc<Self>, run: &Rc<Peer>) {
        run.doomed.set(true);
        self.thaw_run(run).await;
        let asked = !self.survives(run) && run.is_greeted() && run.send(&ToComponent::Stop, &[]).is_ok();
        if !asked || timeout(PATIENCE, run.ended.wait()).await.is_err() {
            let _ = self.keeper.tell(Ask::Signal, run.slot, libc::SIGKILL as u64).await;
        }
    }
}

impl Component {
    /// Its run, if that lives.
    pub(super) fn living_run(&self) -> Option<Rc<Peer>> {
        self.peer.borrow().clone().filter(|run| !run.ended.has_happened())
    }

    /// Its next run is being started: there may be a process, of which nothing is known yet.
    pub(super) fn is_beginning(&self) -> bool {
        let is_known = self.peer.borrow().as_ref().is_some_and(|run| run.epoch.get() == self.epoch.get());
        self.phase.get() == Phase::Starting && !is_known
    }

    pub(super) fn serves(&self) -> bool {
        self.phase.get() == Phase::Ready && self.living_run().is_some_and(|run| !run.doomed.get())
    }
}

/// Waits until all with whom a component is restarted are dead, and those of them that it uses serve again. Does not wait any
/// longer when an operator wants it started, or the node ends.
pub async fn until_its_turn(node: &Node, index: usize) {
    let Some(first) = node.components[index].restarts_with.get() else { return };
    let keeps_waiting = |&other: &usize| {
        let component = &node.components[other];
        let is_ending = component.restarts_with.get().is_some() && component.living_run().is_some();
        other != index && (is_ending || (node.ties.uses(index, other) && !component.serves()))
    };
    let turn = async {
        while let Some(other) = node.ties.together(first).iter().copied().find(keeps_waiting) {
            let next = node.components[other].changes.next();
            if keeps_waiting(&other) {
                next.await;
            }
        }
    };
    either(turn, until_wanted(node, index)).await;
}
