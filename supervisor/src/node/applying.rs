//! Another manifest for a system that runs.
//!
//! 1. *Plan*: the manifest is read, checked with this node's `--set`s, and [compared](crate::changes) with the one that runs.
//! 2. *Decide*: a copy of it, with the directory that it is in, becomes `STATE/applying`, by one rename. Before it everything is as it was;
//!    after it every supervisor goes on with what follows.
//! 3. *End*: what is removed or restarted ends in order, users first, and leaves nothing.
//! 4. *Replace*: `STATE/applying` becomes `STATE/applied`, by one rename, and what is in it the manifest that the node keeps. A supervisor
//!    that finds `STATE/applied` does that before it reads a manifest.
//! 5. This supervisor leaves its seat. The next one reads the new manifest, finds everything else running, as after any death of a
//!    supervisor, and starts what is new or was ended.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use kernel_ipc::runtime::{sleep, spawn};
use kernel_ipc::steps;
use protocol::control::{self, ApplyError, ApplyPlan, ChangeKind};

use super::control::{ANSWERED_WITHIN, shortened};
use super::records::hash;
use super::shutdown;
use super::state::State;
use super::{Component, Node, Phase};
use crate::changes::{Change, changes};
use crate::keeper::wire::FIRST_GUEST_SLOT;
use crate::manifest::{Manifest, Origin};
use crate::parse;

/// Components in one page of a plan: a page fits into a window.
const PAGE: usize = 8;

/// Bytes of what is wrong with a manifest in one answer.
const PROBLEMS: usize = 3 << 10;

/// Directories in the state directory: being made, decided, and ready to be kept.
const MAKING: &str = "applying.new";
const DECIDED: &str = "applying";
const READY: &str = "applied";

/// What a manifest comes to.
struct Plan {
    changes: Vec<(String, Change)>,
    /// Of what it was made from.
    fingerprint: u64,
    text: Vec<u8>,
    base: PathBuf,
}

impl Node {
    /// Says what would become of each component by another manifest.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub(super) fn plan_apply(&self, manifest: &str, cursor: u32) -> Result<ApplyPlan, ApplyError> {
        self.may_apply()?;
        let plan = match self.plan(Path::new(manifest)) {
            Ok(plan) => plan,
            Err(problems) => {
                let problems = problems.chars().scan(0, |length, letter| {
                    *length += letter.len_utf8();
                    (*length <= PROBLEMS).then_some(letter)
                });
                return Ok(ApplyPlan { problems: problems.collect(), ..ApplyPlan::default() });
            }
        };
        if let Some(problems) = self.away(&plan.changes) {
            return Ok(ApplyPlan { problems, ..ApplyPlan::default() });
        }
        let (first, all) = (cursor as usize, plan.changes.len());
        if first > all {
            return Err(ApplyError::BadCursor);
        }
        let changes: Vec<_> =
            plan.changes.iter().skip(first).take(PAGE).map(|(name, change)| said(name, change)).collect();
        let next = first + changes.len();
        let next = (next < all).then_some(next as u32);
        Ok(ApplyPlan { fingerprint: plan.fingerprint, problems: String::new(), changes, next })
    }

    /// Begins to apply a manifest, which is to be the one of which a plan with this fingerprint was made.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub(super) fn apply(self: &Rc<Self>, manifest: &str, fingerprint: u64) -> Result<(), ApplyError> {
        self.may_apply()?;
        let plan = self.plan(Path::new(manifest)).ok().filter(|plan| plan.fingerprint == fingerprint);
        let plan = plan.filter(|plan| self.away(&plan.changes).is_none()).ok_or(ApplyError::Changed)?;
        decide(self.state.path(), &plan).map_err(|error| {
            eprintln!("supervisor: {MAKING}: {error}");
            ApplyError::Io
        })?;
        steps::reach("apply/decided");
        self.go_on_applying(plan.changes);
        Ok(())
    }

    /// Goes on with what the last supervisor had decided. To be called before anything is started.
    pub(super) fn resume_applying(self: &Rc<Self>) {
        if !self.is_applying() {
            return;
        }
        match self.plan(&State::manifest(&self.state.path().join(DECIDED))) {
            Ok(plan) => self.go_on_applying(plan.changes),
            // It was good when that was decided: this supervisor is another program.
            Err(problems) => {
                eprintln!("supervisor: the manifest that was to be applied is not: {problems}");
                forget(self.state.path()).unwrap_or_else(|error| eprintln!("supervisor: {DECIDED}: {error}"));
            }
        }
    }

    fn may_apply(&self) -> Result<(), ApplyError> {
        if self.stopping.has_happened() {
            return Err(ApplyError::Stopping);
        }
        if self.progress.borrow().is_some() {
            return Err(ApplyError::NotUp);
        }
        let is_busy = |component: &Component| component.programs.is_busy();
        match self.components.iter().any(is_busy) || self.is_applying() {
            true => Err(ApplyError::UnderWay),
            false => Ok(()),
        }
    }

    /// Whether another manifest was decided on, and is not the system's yet.
    pub(super) fn is_applying(&self) -> bool {
        self.state.path().join(DECIDED).exists()
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// For people: what is wrong with it, or cannot be changed while the system runs.
    fn plan(&self, manifest: &Path) -> Result<Plan, String> {
        // Anything else might not end.
        if fs::metadata(manifest).is_ok_and(|found| !found.is_file()) {
            return Err(format!("{} is not a file", manifest.display()));
        }
        let load = |path: &Path| Manifest::load(Origin::Path(path), &self.sets).map_err(|report| report.to_string());
        let kept = State::manifest(self.state.path());
        let new = load(manifest)?;
        if new.components.len() >= FIRST_GUEST_SLOT as usize {
            return Err(format!("{} components are more than a node has room for", new.components.len()));
        }
        let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let (text, before) = (read(manifest)?, read(&kept)?);
        let base = parse::base(Origin::Path(manifest)).unwrap_or_default();
        let all = [&text, base.as_os_str().as_encoded_bytes(), &before].map(|part| String::from_utf8_lossy(part));
        let survives = |name: &str| self.find(name).is_some_and(|component| component.estate.survives());
        let changes = changes(&load(&kept)?, &new, survives)?;
        Ok(Plan { changes, fingerprint: hash(&all.join("\0")), text, base })
    }

    /// What is wrong with changing these now: one that keeps something for its next run is away. It puts in order what it has answered for only at
    /// its own end, and there is no next run that would have it.
    fn away(&self, changes: &[(String, Change)]) -> Option<String> {
        let is_away = |component: &&Component| component.estate.survives() && component.phase.get() != Phase::Ready;
        let mut ending = changes.iter().filter(|(_, change)| change.ends_a_run());
        let away = ending.find_map(|(name, _)| self.find(name).filter(is_away))?;
        let name = &away.entry.name;
        Some(format!(
            "{name} does not serve, and has something to put in order before it begins anew: `atoll start {name}`"
        ))
    }

    fn go_on_applying(self: &Rc<Self>, changes: Vec<(String, Change)>) {
        for (name, _) in changes.iter().filter(|(_, change)| change.ends_a_run()) {
            // Whoever leaves nothing is not started again, whenever it ends.
            if let Some(component) = self.find(name).filter(|component| !component.estate.survives()) {
                component.hold.replace();
                component.changes.happen();
            }
        }
        let node = self.clone();
        // Whoever asked may go meanwhile; what is decided is done.
        spawn(async move { node.finish_applying(changes).await });
    }

    async fn finish_applying(self: Rc<Self>, changes: Vec<(String, Change)>) {
        // The answer goes out first; whoever misses it asks the next one.
        sleep(ANSWERED_WITHIN).await;
        for index in (0..self.components.len()).rev() {
            let name = &self.components[index].entry.name;
            let change = changes.iter().find(|(of, change)| of == name && change.ends_a_run());
            if let Some((_, change)) = change {
                match self.end_for(index, change).await {
                    true => {}
                    // Whoever stops the node ends it.
                    false => return,
                }
            }
        }
        steps::reach("apply/ended");
        let state = self.state.path();
        let kept = fs::rename(state.join(DECIDED), state.join(READY)).and_then(|()| {
            steps::reach("apply/ready");
            complete(state)
        });
        match kept {
            Ok(()) => self.leave(),
            // The next one tries again.
            Err(error) => {
                eprintln!("supervisor: {READY}: {error}");
                std::process::exit(1);
            }
        }
    }

    /// Ends a component, which leaves nothing. `false`: the node ends.
    async fn end_for(self: &Rc<Self>, index: usize, change: &Change) -> bool {
        let component = &self.components[index];
        eprintln!("supervisor: {} ends, for another manifest", component.entry.name);
        let mut disorder = String::new();
        loop {
            let next = component.changes.next();
            if self.stopping.has_happened() {
                return false;
            }
            let phase = component.phase.get();
            // One that has died meanwhile comes back first, and ends in order.
            let ends = matches!(phase, Phase::Ready | Phase::Failed | Phase::Held) || !component.estate.survives();
            if ends && !component.hold.is_replaced() {
                component.hold.replace();
                component.changes.happen();
                continue;
            }
            match component.living_run().filter(|_| component.hold.is_replaced()) {
                Some(run) => disorder = shutdown::stop(self, component, &run).await.err().unwrap_or_default(),
                None if component.hold.is_replaced() && phase == Phase::Held => break,
                None => next.await,
            }
        }
        self.give_up(index);
        component.trouble.replace(disorder);
        component.begin_anew(change);
        true
    }
}

impl Component {
    /// Its last run has ended under a manifest that is about to be replaced.
    fn begin_anew(&self, change: &Change) {
        self.facts.borrow_mut().clear();
        self.restarts.borrow_mut().forget();
        if matches!(change, Change::Removed | Change::Restarted { runs_other: true, .. }) {
            self.programs.forget();
        }
        if *change == Change::Removed {
            // Nobody takes it for another one that gets its slot.
            self.hold.start();
            self.starts.set(0);
            self.phase.set(Phase::Waiting);
        }
        self.keep();
    }
}

/// Writes down that this manifest is to be applied.
fn decide(state: &Path, plan: &Plan) -> io::Result<()> {
    let making = state.join(MAKING);
    absent(fs::remove_dir_all(&making))?;
    fs::create_dir(&making)?;
    fs::write(State::manifest(&making), &plan.text)?;
    fs::write(State::base(&making), plan.base.as_os_str().as_encoded_bytes())?;
    steps::reach("apply/made");
    fs::rename(making, state.join(DECIDED))
}

/// Makes what is ready to be kept the manifest of the node, if there is such a thing.
///
/// # Errors
/// Of the state directory.
pub(super) fn complete(state: &Path) -> io::Result<()> {
    let ready = state.join(READY);
    // Moved, which needs no room; what is not there was moved by a supervisor before.
    for (from, to) in [(State::base(&ready), State::base(state)), (State::manifest(&ready), State::manifest(state))] {
        absent(fs::rename(from, to))?;
        steps::reach("apply/half");
    }
    absent(fs::remove_dir(ready))
}

/// Nothing is to be applied: a node starts, of whatever manifest.
///
/// # Errors
/// Of the state directory.
pub(super) fn forget(state: &Path) -> io::Result<()> {
    [MAKING, DECIDED, READY].iter().try_for_each(|name| absent(fs::remove_dir_all(state.join(name))))
}

/// That there is none is as good as its removal.
fn absent(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn said(component: &str, change: &Change) -> control::Change {
    let (kind, why) = match change {
        Change::Unchanged => (ChangeKind::Unchanged, ""),
        Change::Adjusted(why) => (ChangeKind::Adjusted, why.as_str()),
        Change::Restarted { why, .. } => (ChangeKind::Restarted, why.as_str()),
        Change::Added => (ChangeKind::Added, ""),
        Change::Removed => (ChangeKind::Removed, ""),
    };
    control::Change { component: component.into(), kind, why: shortened(why) }
}
