//! Another program for a component, while its clients go on calling.
//!
//! 1. *Prepare*: the new program is started beside the run that serves, and checks itself ([`Candidate`]).
//! 2. *Hold and quiesce*: the run that serves reads no more calls, ends those that are under way, and dies.
//! 3. *Restore*: the new program's process is the next run, and goes on from what this one has left, as after any death.
//! 4. *Commit*: when it is ready. From then on all runs are of the new program.
//!
//! - Until 2 has ended the run that serves is what it was, with its epoch and its ledgers, whatever happens to anybody.
//! - Between then and the commit the new run is on trial: if it ends, or is not ready in time, the next run is of the program that has
//!   served before, and goes on from the same ledgers; nothing of that counts as a death of the component's own making. A run on trial
//!   that would forget what was left, or begin anew, is ended before it does.
//! - The records say it all to the next supervisor: a trial that has not come to be ready is over, and one that has is committed.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::broker::ToComponent;
use kernel_ipc::component::waits::Event;
use kernel_ipc::runtime::timeout;
use kernel_ipc::steps;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::AccessFlags;
use protocol::control::{Outcome, Upgrade, UpgradeError};

use super::candidate::Candidate;
use super::peer::Peer;
use super::records::{Kept, Kind, NamedTag, Records, cut};
use super::waits::{Either, either};
use super::{Component, Node, Phase};
use crate::manifest::{Provide, Run};

/// How long calls may take that are under way and that nobody could make again.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(1);

/// How much longer its end, or its word that it stays, is waited for.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long a component that is being restarted is waited for.
const SERVES_WITHIN: Duration = Duration::from_secs(10);

/// The numbers of the records, in the order in which they have to be recalled.
const CURRENT: u64 = 0;
const ON_TRIAL: u64 = 1;
const SERVED: u64 = 2;

/// The programs of a component's runs.
pub struct Programs {
    slot: u32,
    /// What it is by the manifest: `None`, a part of the supervisor's program.
    own: Option<PathBuf>,
    records: Rc<Records>,
    /// Of all runs; none: it was never upgraded, and they are of the manifest's program.
    current: RefCell<Option<Kept>>,
    /// If there is none of all runs: that of the run that serves, for the one after it if that is not the trial's.
    served: RefCell<Option<Kept>>,
    trial: RefCell<Option<Rc<Trial>>>,
    /// An upgrade is under way.
    is_busy: Cell<bool>,
}

/// A program that is to be the next run's.
pub struct Trial {
    program: Kept,
    path: String,
    candidate: RefCell<Option<Candidate>>,
    /// Of its run; 0: that has not begun.
    epoch: Cell<u64>,
    /// How it came out, once it is settled.
    end: RefCell<Option<Result<(), String>>>,
    settled: Event,
}

impl Programs {
    /// Of a component that was never upgraded.
    pub fn new(slot: u32, run: &Run, records: Rc<Records>) -> Programs {
        let (current, served, trial) = (RefCell::default(), RefCell::default(), RefCell::default());
        let own = match run {
            Run::Builtin(_) => None,
            Run::Program(path) => Some(path.clone()),
        };
        Programs { slot, own, records, current, served, trial, is_busy: Cell::new(false) }
    }

    /// The program of the next run, unless one is on trial.
    ///
    /// # Errors
    /// Of opening it.
    pub fn program(&self) -> io::Result<OwnedFd> {
        match self.current.borrow().as_ref().or(self.served.borrow().as_ref()) {
            Some(kept) => kept.again(),
            None => {
                let own = self.own.as_deref().unwrap_or(Path::new("/proc/self/exe"));
                let opened = nix::fcntl::open(own, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
                opened.map_err(|errno| {
                    let error = io::Error::from(errno);
                    io::Error::new(error.kind(), format!("{}: {error}", own.display()))
                })
            }
        }
    }

    /// A trial was begun, and its process has not become a run: from now on it is this one.
    pub fn begins(&self, epoch: u64) -> Option<Candidate> {
        let trial = self.trial.borrow().clone()?;
        let candidate = trial.candidate.borrow_mut().take()?;
        trial.epoch.set(epoch);
        if let Err(error) = trial.program.tell(&tag(epoch, &trial.path)) {
            eprintln!("supervisor: the keeper: {error}");
        }
        Some(candidate)
    }

    /// Whether an upgrade is under way.
    pub fn is_being_upgraded(&self) -> bool {
        self.is_busy.get()
    }

    /// Whether a run that ends now is to be followed by one on trial.
    pub fn is_about_to_change(&self) -> bool {
        self.trial.borrow().as_ref().is_some_and(|trial| trial.epoch.get() == 0)
    }

    /// Whether the run with this epoch is on trial.
    pub fn is_on_trial(&self, epoch: u64) -> bool {
        self.trial.borrow().as_ref().is_some_and(|trial| trial.epoch.get() == epoch)
    }

    /// This run is ready: if it is on trial, all later ones are of its program.
    pub fn commit_run(&self, epoch: u64) {
        self.served.take();
        let trial = self.trial.borrow_mut().take_if(|trial| trial.epoch.get() == epoch);
        let Some(trial) = trial else { return };
        let kept = trial.program.again().and_then(|program| self.hold(CURRENT, 0, &trial.path, program));
        steps::reach("upgrade/committed");
        match kept {
            Ok(kept) => {
                self.current.replace(Some(kept));
                trial.settle(Ok(()));
            }
            // It serves all the same; what follows it is of the program before.
            Err(error) => trial.settle(Err(format!("the program cannot be kept: {error}"))),
        }
    }

    /// The trial is over: the next run is of the program that has served before.
    pub fn roll_back(&self, why: &str) {
        if let Some(trial) = self.trial.take() {
            trial.candidate.take();
            trial.settle(Err(why.to_owned()));
        }
    }

    /// What the last supervisor had kept, in the order of the numbers: the program of all runs; the one on trial, whose run was ready or
    /// was not; that of the run before it.
    pub fn recall(&self, number: u64, path: &str, program: OwnedFd, kept: Kept, was_ready: bool) {
        match number {
            CURRENT => drop(self.current.replace(Some(kept))),
            ON_TRIAL if was_ready => match self.hold(CURRENT, 0, path, program) {
                Ok(kept) => drop(self.current.replace(Some(kept))),
                Err(error) => eprintln!("supervisor: the keeper: {error}"),
            },
            SERVED if self.current.borrow().is_none() => drop(self.served.replace(Some(kept))),
            _ => {}
        }
    }

    fn hold(&self, number: u64, epoch: u64, path: &str, program: OwnedFd) -> io::Result<Kept> {
        self.records.hold(Kind::Program, self.slot, number, &tag(epoch, path), program)
    }

    /// Keeps the program of the run that serves, until the next one does: the manifest's may be another one by now.
    fn keep_what_serves(&self, run: &Peer) -> io::Result<()> {
        if self.current.borrow().is_none() {
            let path = format!("/proc/{}/exe", run.pid);
            let program = nix::fcntl::open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
            let shown = std::fs::read_link(&path).unwrap_or_default();
            let kept = self.hold(SERVED, 0, &shown.display().to_string(), program)?;
            self.served.replace(Some(kept));
        }
        Ok(())
    }
}

impl Trial {
    fn settle(&self, end: Result<(), String>) {
        self.end.borrow_mut().get_or_insert(end);
        self.settled.happen();
    }
}

fn tag(epoch: u64, path: &str) -> NamedTag {
    NamedTag { number: epoch, name: cut(path) }
}

/// One upgrade of a component at a time.
struct Busy<'a>(&'a Component);

impl<'a> Busy<'a> {
    fn new(component: &'a Component) -> Option<Busy<'a>> {
        (!component.programs.is_busy.replace(true)).then_some(Busy(component))
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.programs.is_busy.set(false);
        self.0.changes.happen();
    }
}

impl Node {
    /// Has the next run of a component be of another program, now.
    ///
    /// # Errors
    /// See [`UpgradeError`]; what became of one that was tried is its [`Outcome`].
    pub(super) async fn upgrade(self: &Rc<Self>, index: usize, program: &str) -> Result<Upgrade, UpgradeError> {
        let component = &self.components[index];
        let _busy = Busy::new(component).ok_or(UpgradeError::UnderWay)?;
        let mut upgrade = Upgrade { epoch: component.epoch.get(), ..Upgrade::default() };
        let tried = either(self.try_upgrade(index, program, &mut upgrade), self.stopping.wait()).await;
        let outcome = match tried {
            Either::First(tried) => tried,
            Either::Second(()) => return Err(UpgradeError::Stopping),
        };
        if matches!(outcome, Err((Outcome::RolledBack, _))) {
            let _ = timeout(SERVES_WITHIN, component.serving_run()).await;
        }
        upgrade.epoch = component.epoch.get();
        (upgrade.outcome, upgrade.why) = outcome.map_or_else(
            |(outcome, why)| (outcome, why.chars().take(1000).collect()),
            |()| (Outcome::Done, String::new()),
        );
        // Whoever was about to become a run is not wanted any more.
        component.programs.roll_back("the upgrade is over");
        let said = format!("upgrade to {program}: {:?} {}", upgrade.outcome, upgrade.why);
        eprintln!("supervisor: {}: {said}", component.entry.name);
        component.log.note(said.trim_end());
        Ok(upgrade)
    }

    async fn try_upgrade(
        self: &Rc<Self>,
        index: usize,
        program: &str,
        upgrade: &mut Upgrade,
    ) -> Result<(), (Outcome, String)> {
        let component = &self.components[index];
        let refused = |outcome| move |why: String| (outcome, why);
        let source = timeout(SERVES_WITHIN, component.serving_run()).await;
        let source = source.map_err(|_| (Outcome::NotReady, "it does not serve".to_owned()))?;
        let ends =
            |endpoint: &&Provide| !component.estate.survives() || !component.estate.has_sessions_of(&endpoint.name);
        if let Some(endpoint) = component.entry.provides.iter().find(ends) {
            let why = format!(
                "its runs keep nothing of endpoint {} for the next one, so its clients' calls would fail",
                endpoint.name
            );
            return Err((Outcome::KeepsNothing, why));
        }
        let opened = open(Path::new(program)).map_err(refused(Outcome::NoProgram))?;
        let begun = Instant::now();
        let candidate = Candidate::examine(self, index, opened.as_fd()).await.map_err(refused(Outcome::Unfit))?;
        upgrade.checked_us = micros(begun);
        if !component.serves() || source.ended.has_happened() || component.hold.is_stopped() {
            return Err((Outcome::NotReady, "it ended meanwhile, or was stopped".into()));
        }
        if self.is_ending() {
            return Err((Outcome::NotReady, "the node is ending".into()));
        }
        let kept = component.programs.hold(ON_TRIAL, 0, program, opened);
        let kept = kept.and_then(|kept| component.programs.keep_what_serves(&source).map(|()| kept));
        let trial = Rc::new(Trial {
            program: kept.map_err(|error| (Outcome::NotReady, error.to_string()))?,
            path: program.to_owned(),
            candidate: RefCell::new(Some(candidate)),
            epoch: Cell::new(0),
            end: RefCell::default(),
            settled: Event::default(),
        });
        component.programs.trial.replace(Some(trial.clone()));
        steps::reach("upgrade/recorded");
        let asked = Instant::now();
        hand_over(component, &source).await.map_err(refused(Outcome::Busy))?;
        steps::reach("upgrade/ended");
        upgrade.drained_us = micros(asked);
        let ended = Instant::now();
        trial.settled.wait().await;
        upgrade.restored_us = micros(ended);
        let end = trial.end.borrow().clone();
        end.unwrap_or(Ok(())).map_err(refused(match component.phase.get() {
            Phase::Failed => Outcome::NotReady,
            _ => Outcome::RolledBack,
        }))
    }
}

/// Has a run end with nothing begun.
///
/// # Errors
/// Why it stays, for people.
async fn hand_over(component: &Component, source: &Peer) -> Result<(), String> {
    let message = ToComponent::HandOver { within_ms: HANDED_OVER_WITHIN.as_millis() as u32 };
    let patience = HANDED_OVER_WITHIN + PATIENCE;
    match source.ask_within(patience, &source.asked.hand_over, (), &message, &[]).await {
        Ok(calls) => {
            component.programs.served.take();
            Err(format!("{calls} calls are under way that nobody could make again"))
        }
        Err(_) if source.ended.has_happened() => Ok(()),
        // It may still do as it was told; then the program that has served is started again.
        Err(why) => Err(why),
    }
}

/// Opens a program.
///
/// # Errors
/// Why it is none, for people.
fn open(path: &Path) -> Result<OwnedFd, String> {
    if !path.is_absolute() {
        return Err(format!("{}: the path is not absolute", path.display()));
    }
    let words = |error: nix::errno::Errno| format!("{}: {}", path.display(), error.desc());
    let program = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(words)?;
    let mode = fstat(&program).map_err(words)?.st_mode;
    if SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
        return Err(format!("{}: it is no file", path.display()));
    }
    let itself = format!("/proc/self/fd/{}", program.as_raw_fd());
    nix::unistd::access(itself.as_str(), AccessFlags::X_OK)
        .map_err(|_| format!("{}: it is not executable", path.display()))?;
    Ok(program)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Component {
    /// Waits until it serves: the run that does.
    async fn serving_run(&self) -> Rc<Peer> {
        loop {
            let next = self.changes.next();
            let run = self.peer.borrow().clone().filter(|run| run.is_introducible() && run.ready.has_happened());
            if let Some(run) = run.filter(|_| self.phase.get() == Phase::Ready) {
                return run;
            }
            next.await;
        }
    }
}
