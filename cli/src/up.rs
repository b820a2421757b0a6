//! `atoll up`: start a node, show what runs, and in the foreground end it in order.

use std::path::Path;
use std::process::ExitStatus;
use std::sync::mpsc;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use protocol::control::ComponentStatus;
use serde_json::json;
use supervisor::manifest::{Manifest, Origin};
use supervisor::up::{Options, Progress, Starting};

use crate::args::{Common, Up};
use crate::bar::{Bar, Counts};
use crate::output::{self, Colour, Failed, paint, stderr_colours};
use crate::{check, cluster, control, init, node};

/// What the foreground waits for.
enum Event {
    Start(Reported),
    Signal(Signal),
}

/// What is said of a start.
pub enum Reported {
    /// It goes on.
    Step(Progress),
    /// It has ended well or not.
    Ended(Starting, Progress),
}

/// Starts the system.
pub fn up(common: &Common, up: &Up) -> Result<(), Failed> {
    let manifest = init::meant(up.manifest.as_deref());
    let origin = manifest.as_deref().map_or(Origin::Embedded, Origin::Path);
    let checked = Manifest::load(origin, &up.sets).map_err(|report| check::refused(&report))?;
    if std::path::absolute(&common.state)?.to_str().is_none() {
        return Err(Failed::usage(format!(
            "{}: components are told paths as text, and this is not UTF-8",
            common.state.display()
        )));
    }
    if node::is_held(&common.state) {
        let state = common.state.display();
        return Err(Failed::new(format!("a system runs on {state} already"))
            .help("`atoll ps` shows it, `atoll down` stops it; --state DIR names another place"));
    }
    cluster::refresh(common, &checked);
    let events = wait_for_signals(Event::Signal)?;
    let options =
        Options { manifest: manifest.as_deref(), state: &common.state, sets: &up.sets, end_with_parent: !up.detach };
    let starting = supervisor::up::start(&options).map_err(|error| {
        Failed::new(format!("cannot start in {}: {}", common.state.display(), output::reason(&error)))
    })?;
    let keeper = Pid::from_raw(i32::try_from(starting.pid()).unwrap_or(i32::MAX));
    let bar = Bar::new(Counts::Things, checked.components.len() as u64);
    report(starting, events.sender, Event::Start);
    let mut interrupted = false;
    let started = loop {
        match events.receiver.recv() {
            Ok(Event::Start(Reported::Step(Progress::Starting { component }))) => {
                bar.name(&format!("starting {component}"));
            }
            Ok(Event::Start(Reported::Step(_))) => bar.done(1),
            Ok(Event::Start(Reported::Ended(starting, last))) => {
                bar.end();
                break (starting, last);
            }
            Ok(Event::Signal(Signal::SIGCHLD)) => {}
            Ok(Event::Signal(_)) => {
                interrupted = true;
                // It may have ended by itself; the report says so then.
                let _ = kill(keeper, Signal::SIGTERM);
            }
            Err(mpsc::RecvError) => return Err(Failed::new("the start was not reported to its end")),
        }
    };
    let (starting, last) = started;
    if let Progress::Failed { reason } = last {
        let _ = starting.into_keeper().wait();
        let what = if interrupted { "interrupted while starting".into() } else { reason };
        return Err(Failed::new(what.trim_end()));
    }
    let components = node::visit(common, async |context| control::components(&context).await)?;
    show(common, up, &components)?;
    if up.detach {
        return Ok(());
    }
    let mut keeper_process = starting.into_keeper();
    if interrupted {
        let _ = kill(keeper, Signal::SIGTERM);
    }
    let mut asked = interrupted;
    loop {
        if let Some(status) = keeper_process.try_wait()? {
            return ended(&common.state, asked, status);
        }
        match events.receiver.recv() {
            Ok(Event::Signal(Signal::SIGCHLD)) => {}
            Ok(Event::Signal(_)) => {
                output::message(if asked { "still stopping in order" } else { "stopping in order" });
                asked = true;
                // Also again: whoever does not take it up in time is ended.
                let _ = kill(keeper, Signal::SIGTERM);
            }
            Ok(_) => {}
            Err(mpsc::RecvError) => return Err(Failed::new("no signals can be received any more")),
        }
    }
}

/// What comes from several threads.
pub struct Events<E> {
    pub sender: mpsc::Sender<E>,
    pub receiver: mpsc::Receiver<E>,
}

/// Turns the signals that end a foreground program, and the death of a keeper, into events. To be called before other threads are
/// started.
///
/// # Errors
/// The signals cannot be blocked.
pub fn wait_for_signals<E: Send + 'static>(event: fn(Signal) -> E) -> Result<Events<E>, Failed> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    // Before any thread is started, so that all of them block these. A started program gets a clean mask.
    signals.thread_block().map_err(std::io::Error::from)?;
    let (sender, receiver) = mpsc::channel();
    let out = sender.clone();
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if out.send(event(signal)).is_err() {
                return;
            }
        }
    });
    Ok(Events { sender, receiver })
}

/// Hands the progress on, from a thread of its own because reading it blocks.
pub fn report<E: Send + 'static>(
    mut starting: Starting,
    sender: mpsc::Sender<E>,
    event: impl Fn(Reported) -> E + Send + 'static,
) {
    std::thread::spawn(move || {
        loop {
            let step = match starting.next_step() {
                last @ (Progress::Up | Progress::Failed { .. }) => {
                    // The receiver is gone only when this process is ending.
                    let _ = sender.send(event(Reported::Ended(starting, last)));
                    return;
                }
                step => event(Reported::Step(step)),
            };
            if sender.send(step).is_err() {
                return;
            }
        }
    });
}

/// Shows what runs and where to look.
fn show(common: &Common, up: &Up, components: &[ComponentStatus]) -> Result<(), Failed> {
    if common.json {
        let facts: Vec<_> = components.iter().map(|one| control::facts(one, false)).collect();
        return output::json(&json!({"components": facts}));
    }
    output::write(control::table(components, false, None).as_bytes())?;
    let colours = output::stdout_colours();
    for one in components.iter().filter(|one| !one.listen.is_empty()) {
        let url = paint(&format!("http://{}/", one.listen), Colour::Cyan, colours);
        output::line(&format!("\n{} serves {url}", one.name))?;
    }
    if up.manifest.is_none() && init::meant(None).is_some() {
        output::line(&format!("this is the system of ./{}", init::MANIFEST))?;
    }
    let state = common.state.display();
    if up.detach {
        output::line(&format!("state in {state}; `atoll down` stops it"))
    } else {
        output::line(&format!("state in {state}; Ctrl-C stops it"))
    }
}

fn ended(state: &Path, asked: bool, status: ExitStatus) -> Result<(), Failed> {
    if status.success() {
        output::message(&paint("stopped, the disk is clean", Colour::Green, stderr_colours()));
        return Ok(());
    }
    if !asked {
        output::message(&format!("the system ended by itself ({status})"));
    }
    Err(control::out_of_order(state, &control::troubles(state)))
}
