//! Components that an operator holds: stopped until they are started, or frozen where they are.
//!
//! - *Stopped*: the run ends as for a restart (in order; one that survives by force, so that its clients go on with the next run),
//!   and there is no next one before it is asked for. That is no death of anybody's making. Whoever is restarted with the
//!   component is so when it starts again.
//! - *Frozen*: the process is stopped by a signal. One that is stopped does not age for the watchdog and the pulse. It is a
//!   property of the run: the next one is not frozen.
//! - Both are marks of the component's record before anything is done, so the next supervisor goes on with it.
//! - The end of the node thaws all that is frozen, and first waits until all that survives serves, with what that uses, and starts
//!   what was stopped of it: it has answered for things that it puts in order only at its own end. That the node ends is known to
//!   the next supervisor from before that.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::Incarnation;
use kernel_ipc::runtime::{spawn, timeout};
use protocol::control::{FreezeError, RestartError, StopError};

use super::peer::Peer;
use super::records::{Kind, NumbersTag};
use super::{Component, Node, Phase, watchdog};
use crate::keeper::wire::Ask;

/// How long the end of the node waits for one that it has started for that.
const STARTED_WITHIN: Duration = Duration::from_secs(30);

/// How long one that serves may take to show at the end that it lives. One that is stopped by hand shows nothing.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Bits of the marks in a component's record.
const STOPPED: u32 = 1 << 1;
const FROZEN: u32 = 1 << 2;

/// What an operator wants of a component, whatever happens to it.
#[derive(Default)]
pub struct Hold {
    stopped: Cell<bool>,
    frozen: Cell<bool>,
}

impl Hold {
    /// Whether it is not to be started.
    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Whether its run was frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen.get()
    }

    /// It may be started again.
    pub fn start(&self) {
        self.stopped.set(false);
    }

    /// Its run goes on, or is over.
    pub fn thaw(&self) {
        self.frozen.set(false);
    }

    /// For the record.
    pub fn marks(&self) -> u32 {
        let mark = |is_set: &Cell<bool>, mark: u32| if is_set.get() { mark } else { 0 };
        mark(&self.stopped, STOPPED) | mark(&self.frozen, FROZEN)
    }

    /// As the last supervisor left it.
    pub fn recall(&self, marks: u32) {
        self.stopped.set(marks & STOPPED != 0);
        self.frozen.set(marks & FROZEN != 0);
    }
}

impl Node {
    /// Stops a component until it is started, and waits for its end.
    ///
    /// # Errors
    /// See [`StopError`].
    pub(super) async fn stop_for_operator(self: Rc<Self>, name: &str) -> Result<(), StopError> {
        let component = self.find(name).ok_or(StopError::NoSuchComponent)?;
        if self.progress.borrow().is_some() {
            return Err(StopError::NotUp);
        }
        if self.is_ending() {
            return Err(StopError::Stopping);
        }
        // One that was given up is down, and stays so until it is started.
        let is_down = || matches!(component.phase.get(), Phase::Held | Phase::Failed);
        if !is_down() {
            if component.programs.is_about_to_change() {
                component.programs.roll_back("it was stopped meanwhile");
            }
            component.hold.stopped.set(true);
            component.keep();
            component.changes.happen();
            // Whoever asked may go meanwhile; what is begun is done, also if it is to be started again by then.
            if let Some(run) = component.living_run() {
                let node = self.clone();
                spawn(async move { node.stop(&run).await });
            }
        }
        loop {
            let next = component.changes.next();
            if self.stopping.has_happened() {
                return Err(StopError::Stopping);
            }
            if is_down() || !component.hold.is_stopped() {
                return Ok(());
            }
            next.await;
        }
    }

    /// Starts a component that is down.
    ///
    /// # Errors
    /// See [`RestartError`].
    pub(super) async fn start_for_operator(self: Rc<Self>, name: &str) -> Result<(), RestartError> {
        let component = self.find(name).ok_or(RestartError::NoSuchComponent)?;
        let before = component.epoch.get();
        let waits = component.release();
        while waits && component.epoch.get() == before {
            let next = component.changes.next();
            if self.stopping.has_happened() {
                return Err(RestartError::Stopping);
            }
            next.await;
        }
        Ok(())
    }

    /// Freezes a component's run, or thaws it.
    ///
    /// # Errors
    /// See [`FreezeError`].
    pub(super) async fn freeze(&self, name: &str, frozen: bool) -> Result<u64, FreezeError> {
        let component = self.find(name).ok_or(FreezeError::NoSuchComponent)?;
        if self.is_ending() {
            return Err(FreezeError::Stopping);
        }
        // One that is not ready has a limit of time for that.
        let run = component.living_run().filter(|_| component.phase.get() == Phase::Ready);
        let run = run.ok_or(FreezeError::NotRunning)?;
        component.hold.frozen.set(frozen);
        component.keep();
        let signal = if frozen { libc::SIGSTOP } else { libc::SIGCONT };
        let sent = self.keeper.tell(Ask::Signal, run.slot, signal as u64).await;
        sent.map(|_| run.epoch.get()).map_err(|_| FreezeError::NotRunning)
    }

    /// Lets a run go on that is about to be asked something, if it is frozen.
    pub(super) async fn thaw_run(&self, run: &Peer) {
        let frozen = self.component_of(run).filter(|component| component.hold.is_frozen());
        if let Some(component) = frozen {
            component.hold.thaw();
            component.keep();
            let _ = self.keeper.tell(Ask::Signal, run.slot, libc::SIGCONT as u64).await;
        }
    }

    /// The same of all runs: one that ends may need another one for it.
    pub(super) async fn thaw_all(&self) {
        for run in self.components.iter().filter_map(Component::living_run) {
            self.thaw_run(&run).await;
        }
    }

    /// Whether this is a run that does not account for itself before it is thawed.
    pub(super) fn is_frozen(&self, run: Incarnation) -> bool {
        let run = self.peer(run);
        run.and_then(|run| self.component_of(&run).map(|component| component.hold.is_frozen())).unwrap_or_default()
    }

    /// Ends the runs of those that the last supervisor was to stop, users first.
    pub(super) async fn end_the_stopped(self: Rc<Self>) {
        for component in self.components.iter().rev().filter(|component| component.hold.is_stopped()) {
            if let Some(run) = component.living_run().filter(|_| !self.stopping.has_happened()) {
                self.stop(&run).await;
            }
        }
    }

    /// An operator wants the node to end: it does, whoever is its supervisor by then.
    pub(super) fn goes_down(self: &Rc<Self>) {
        if !self.is_ending() {
            self.is_to_end();
            spawn(self.clone().go_down());
        }
    }

    /// From now on this and every later supervisor knows it.
    pub(super) fn is_to_end(&self) {
        self.going_down.set(true);
        self.lasts(Kind::Down, &NumbersTag::default());
    }

    /// Ends the node in order.
    pub(super) async fn go_down(self: Rc<Self>) {
        self.thaw_all().await;
        if self.progress.borrow().is_none() {
            for component in self.awaited_at_the_end() {
                if component.release() {
                    eprintln!("supervisor: {} is started once more, so that all ends in order", component.entry.name);
                }
            }
            let serve = async {
                let serving = self.needed_at_the_end().filter_map(Component::living_run);
                for run in serving.filter(|run| run.is_introducible()) {
                    let _ = timeout(ANSWERED_WITHIN, watchdog::answers(&self, &run)).await;
                }
                while let Some(component) = self.awaited_at_the_end().next() {
                    component.changes.next().await;
                }
            };
            let _ = timeout(STARTED_WITHIN, serve).await;
        }
        self.ends("");
    }

    /// Those that are not there and have to be for an end in order, or may be about to hand over to their next run.
    fn awaited_at_the_end(&self) -> impl Iterator<Item = &Component> {
        let is_missing = |component: &&Component| !component.serves() || component.programs.is_being_upgraded();
        self.needed_at_the_end().filter(is_missing).filter(|component| component.phase.get() != Phase::Failed)
    }

    /// What survives, and what that uses.
    fn needed_at_the_end(&self) -> impl Iterator<Item = &Component> {
        let survives = |index: usize| self.components[index].estate.survives();
        let is_needed = move |index: usize| {
            survives(index) || (0..self.components.len()).any(|user| survives(user) && self.ties.uses(user, index))
        };
        let all = self.components.iter().enumerate();
        all.filter(move |&(index, _)| is_needed(index)).map(|(_, component)| component)
    }
}

impl Component {
    /// Lets it be started, now if it is down or about to be. Returns whether there will be another run by that.
    fn release(&self) -> bool {
        let runs = match self.phase.get() {
            Phase::Ready => !self.hold.is_stopped(),
            // A stop has found no process of one that is beginning, and has ended none.
            Phase::Starting => !self.hold.is_stopped() || self.is_beginning(),
            _ => false,
        };
        self.hold.start();
        self.keep();
        if !runs {
            self.wanted.set(true);
            self.changes.happen();
        }
        !runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_wants_survives_its_encoding_beside_other_marks() {
        for (stopped, frozen) in [(false, false), (true, false), (false, true), (true, true)] {
            let (hold, next) = (Hold::default(), Hold::default());
            hold.stopped.set(stopped);
            hold.frozen.set(frozen);
            next.recall(hold.marks() | 1);
            assert_eq!((next.is_stopped(), next.is_frozen(), next.marks() & 1), (stopped, frozen, 0));
        }
    }
}
