//! `atoll trace`: the way of calls through the components, and how long each part of it took.
//!
//! * Components write spans into their logbooks while they are told to, for some seconds at a time: if this program is
//!   killed, tracing ends by itself.
//! * What a component writes is its own word: see [`tree`] for what is believed of it.

mod chrome;
mod show;
mod tape;
mod tree;

#[cfg(test)]
mod tests;

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kernel_ipc::component::Context;
use kernel_ipc::logbook::monotonic;
use kernel_ipc::runtime::sleep;
use protocol::control::State;

use super::{Book, books};
use crate::args::{Common, Trace};
use crate::node::visit;
use crate::output::{self, Failed};
use crate::{control, interrupt};
use tape::{Tape, Written};
use tree::Hop;

/// Between two looks at the logbooks: a ring of them has room for thousands of spans.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How long components trace if nobody says it again, and when it is said again.
const KEEP: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_secs(1);
/// How long is waited for components that do not begin to trace: they may be stopped.
const BEGIN_WITHIN: Duration = Duration::from_secs(1);
/// How long is waited for calls that are under way at the end.
const END_WITHIN: Duration = Duration::from_millis(200);

/// `atoll trace [COMPONENT] [--for TIME] [--every N] [-- COMMAND]`.
pub fn trace(common: &Common, what: &Trace) -> Result<(), Failed> {
    interrupt::watch()?;
    let (written, ended) = visit(common, async |context| record(&context, common, what).await)?;
    let until = monotonic();
    let mut traces = tree::assemble(&written);
    traces.retain(|hop| {
        let wanted = what.component.as_ref().is_none_or(|component| hop.involves(component));
        wanted && (what.standing || !hop.standing)
    });
    if let Some(path) = &what.output {
        let file = std::fs::File::create(path);
        let written = file.and_then(|file| Ok(serde_json::to_writer(file, &chrome::json(&traces, &written, until))?));
        written.map_err(|error| Failed::new(format!("{}: {}", path.display(), output::reason(&error))))?;
    }
    if common.json {
        output::json(&chrome::json(&traces, &written, until))?;
    } else {
        output::write(show::show(&traces, &written, what).as_bytes())?;
    }
    match ended {
        Some(status) if !status.success() => Err(Failed::new(format!("the command failed: {status}"))),
        _ => Ok(()),
    }
}

/// Has everybody trace, and looks on.
async fn record(
    context: &Context,
    common: &Common,
    what: &Trace,
) -> Result<(Vec<Written>, Option<ExitStatus>), Failed> {
    // One that is not there is named, as for `stat`.
    books(context, what.component.as_deref()).await?;
    let books = books(context, None).await?;
    let mut tapes: Vec<Tape> = books.into_iter().filter_map(Tape::begin).collect();
    say(context, what.every);
    wait_for(context, &tapes, what.every).await?;
    let mut command = what.command.first().map(|program| start(program, common, what)).transpose()?;
    let mut ended = None;
    let begin = Instant::now();
    let mut said = begin;
    loop {
        tapes.iter_mut().for_each(Tape::look);
        if let Some(child) = &mut command {
            ended = child.try_wait()?;
        }
        let is_over = what.duration.is_some_and(|duration| begin.elapsed() >= duration);
        if ended.is_some() || is_over || interrupt::is_wanted() {
            break;
        }
        if said.elapsed() >= AGAIN {
            say(context, what.every);
            said = Instant::now();
        }
        sleep(LOOK_AGAIN).await;
    }
    let end = Instant::now();
    while end.elapsed() < END_WITHIN && tapes.iter().any(Tape::has_open) {
        sleep(LOOK_AGAIN).await;
        tapes.iter_mut().for_each(Tape::look);
    }
    context.trace_all(0, 0);
    wait_for(context, &tapes, 0).await?;
    tapes.iter_mut().for_each(Tape::look);
    Ok((tapes.into_iter().map(|tape| tape.written).collect(), ended))
}

fn say(context: &Context, every: u32) {
    context.trace_all(every, KEEP.as_millis() as u32);
}

/// Waits until all that can trace as they were told, but not for long.
async fn wait_for(context: &Context, tapes: &[Tape], every: u32) -> Result<(), Failed> {
    let begin = Instant::now();
    while begin.elapsed() < BEGIN_WITHIN {
        let late: Vec<&str> = tapes
            .iter()
            .filter(|tape| tape.traced() != u64::from(every))
            .map(|tape| tape.written.component.as_str())
            .collect();
        if late.is_empty() {
            return Ok(());
        }
        if begin.elapsed() > BEGIN_WITHIN / 4 {
            let components = control::components(context).await?;
            let answers = |name: &str| components.iter().any(|one| one.name == name && one.state == State::Ready);
            if !late.iter().any(|name| answers(name)) {
                return Ok(());
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Starts the command that is to be traced. What it prints is no part of the JSON.
fn start(program: &std::ffi::OsStr, common: &Common, what: &Trace) -> Result<Child, Failed> {
    let mut command = Command::new(program);
    command.args(&what.command[1..]);
    if common.json {
        command.stdout(Stdio::from(std::io::stderr()));
    }
    command.spawn().map_err(|error| {
        let reason = output::reason(&error);
        Failed::new(format!("{}: {reason}", program.to_string_lossy()))
            .help("what follows `--` is a command of this machine")
    })
}
