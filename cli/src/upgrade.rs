//! `atoll upgrade COMPONENT [PROGRAM]`: another program for a component, while its clients go on calling.
//!
//! While it happens this process is a client of the component too, with one call after the other that every host answers: the longest
//! of them is what a client has felt.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::component::{Client, Connection, Context};
use kernel_ipc::described;
use kernel_ipc::runtime::{sleep, spawn};
use protocol::control::{self, Outcome, Upgrade, UpgradeError};
use protocol::fs;
use serde_json::{Value, json};

use crate::args::Common;
use crate::control::ask;
use crate::interface::host;
use crate::node::{connect, visit};
use crate::output::{self, Failed, duration};
use crate::why::{Words, why};

/// Between two calls of the client that measures.
const PAUSE: Duration = Duration::from_micros(500);

/// Does it, and says what it took.
pub fn upgrade(common: &Common, component: &str, program: Option<&Path>) -> Result<(), Failed> {
    let program = match program {
        Some(program) => std::path::absolute(program),
        None => std::env::current_exe(),
    };
    let program = program.map_err(|error| Failed::new(format!("the program: {}", output::reason(&error))))?;
    let path = program.to_str().ok_or_else(|| Failed::new(format!("{}: not UTF-8", program.display())))?;
    let (done, stall) = visit(common, async |context| {
        let control: control::Client = connect(&context, "control").await?;
        let measured = Rc::new(Measured::default());
        match Probe::of(&context, component).await {
            Some(client) => drop(spawn(client.measure(measured.clone()))),
            None => measured.ended.set(true),
        }
        measured.some_more(1).await;
        // Asked again of the next supervisor, if this one dies: a component that is upgraded already is upgraded once more.
        let done = ask(async || control.upgrade(control.root(), component, path).await).await;
        let done = done.map_err(|error| why(&component, &error))?;
        if done.outcome != Outcome::NotReady {
            // The one that is under way, and one behind it.
            measured.some_more(2).await;
        }
        Ok((done, measured.longest.get()))
    })?;
    if common.json {
        output::json(&facts(component, path, &done, stall))?;
        return if done.outcome == Outcome::Done { Ok(()) } else { Err(Failed::told()) };
    }
    if done.outcome != Outcome::Done {
        return Err(refused(component, &done));
    }
    let took = |us: u64| duration(us.saturating_mul(1000));
    let felt =
        stall.map_or_else(String::new, |stall| format!("; the longest call of a client took {}", took(micros(stall))));
    output::line(&format!(
        "{component} goes on as {path}, epoch {}: checked in {}, drained in {}, serving {} later{felt}",
        done.epoch,
        took(done.checked_us),
        took(done.drained_us),
        took(done.restored_us)
    ))
}

fn facts(component: &str, program: &str, done: &Upgrade, stall: Option<Duration>) -> Value {
    let mut facts = json!({
        "component": component,
        "program": program,
        "outcome": word(done.outcome),
        "epoch": done.epoch,
        "checked_us": done.checked_us,
        "drained_us": done.drained_us,
        "restored_us": done.restored_us,
        "longest_stall_us": stall.map(micros),
    });
    if !done.why.is_empty() {
        facts["why"] = json!(done.why);
    }
    facts
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::NotReady => "not-ready",
        Outcome::KeepsNothing => "keeps-nothing",
        Outcome::NoProgram => "no-program",
        Outcome::Unfit => "unfit",
        Outcome::Busy => "busy",
        Outcome::RolledBack => "rolled-back",
    }
}

fn refused(component: &str, done: &Upgrade) -> Failed {
    let serves = match done.outcome {
        Outcome::NotReady => "its program stays what it was",
        _ => "what has served before goes on",
    };
    let (what, help) = match done.outcome {
        Outcome::NoProgram => ("there is no such program", None),
        Outcome::Unfit => {
            ("the program cannot go on from the run that serves", Some("`atoll logs` has all that it said"))
        }
        Outcome::KeepsNothing => {
            ("it cannot be upgraded in use", Some("`atoll restart` starts it again, and its clients feel it"))
        }
        Outcome::Busy => ("the run that serves does not end", Some("try again when it has less to do")),
        Outcome::RolledBack => ("the new program did not come to serve", Some("`atoll logs` has all that it said")),
        Outcome::NotReady | Outcome::Done => ("it is not upgraded", Some("`atoll ps` shows how it is")),
    };
    let failed = Failed::new(format!("{component}: {what}: {}\n  {serves}, epoch {}", done.why, done.epoch));
    match help {
        Some(help) => failed.help(help),
        None => failed,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What the client has felt that measures.
#[derive(Default)]
struct Measured {
    longest: Cell<Option<Duration>>,
    calls: Cell<u64>,
    ended: Cell<bool>,
}

impl Measured {
    /// Waits until so many calls more have been answered; not if nobody measures.
    async fn some_more(&self, calls: u64) {
        let until = self.calls.get() + calls;
        while !self.ended.get() && self.calls.get() < until {
            sleep(PAUSE).await;
        }
    }
}

/// A client of a component, whose calls are measured.
pub enum Probe {
    /// Of a file system: calls that are served like any other.
    Files(fs::Client),
    /// Of any other: calls that the host's end of the session answers.
    Any(Connection),
}

impl Probe {
    /// `None`: the component has no endpoint for us.
    pub async fn of(context: &Context, component: &str) -> Option<Probe> {
        let host = host(context, component).await.ok()?;
        Some(match host.interface.name == fs::DESCRIPTION.name {
            true => Probe::Files(fs::Client::from_connection(host.connection)),
            false => Probe::Any(host.connection),
        })
    }

    /// One call, and how long it took; `None`: it failed.
    async fn call(&self) -> Option<Duration> {
        let begun = Instant::now();
        match self {
            Probe::Files(files) => files.stat(files.root()).await.map(drop).ok()?,
            Probe::Any(connection) => described::knock(&connection.session().await.ok()?).await.ok()?,
        }
        Some(begun.elapsed())
    }

    /// The shortest of so many calls, one after the other; `None`: all failed.
    pub async fn shortest(&self, calls: u32) -> Option<Duration> {
        let mut shortest = None;
        for _ in 0..calls {
            let took = self.call().await;
            shortest = took.into_iter().chain(shortest).min();
        }
        shortest
    }

    /// Calls until this process ends, or a call fails.
    async fn measure(self, measured: Rc<Measured>) {
        loop {
            let Some(took) = self.call().await else { return measured.ended.set(true) };
            measured.longest.set(measured.longest.get().max(Some(took)));
            measured.calls.set(measured.calls.get() + 1);
            sleep(PAUSE).await;
        }
    }
}

impl Words for UpgradeError {
    fn words(&self) -> (String, Option<&'static str>) {
        match self {
            Self::NoSuchComponent => ("no such component here".into(), Some("`atoll ps` lists the components")),
            Self::Stopping => ("the system is going down".into(), None),
            Self::UnderWay => ("another upgrade of it is under way".into(), Some("try again when that is over")),
        }
    }
}
