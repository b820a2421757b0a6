//! `atoll chaos`: what do users of the running system feel when its components die, stop and stumble?
//!
//! * What is done to whom and when is decided by a seed ([`plan`]); users note what they felt ([`probes`]), workers whether
//!   every effect happened once and stayed ([`work`]).
//! * It ends at the first effect that is wrong: what is there then tells more than what would come of it.
//! * Whatever was stopped goes on at the end, also after Ctrl-C.

mod plan;
mod probes;
mod report;
mod work;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::component::Context;
use kernel_ipc::{CallError, runtime};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use protocol::control::{self, ComponentStatus, Signal, SignalError};

use crate::args::{Chaos, Common};
use crate::bar::{Bar, Counts};
use crate::control::{ask, components, supervisor};
use crate::interrupt;
use crate::node::{connect, visit};
use crate::output::{self, Failed};
use crate::why::why;
use plan::Disturbance;
use probes::Browser;
use work::{Tally, Work};

pub use plan::{Kind, Numbers};

/// One half of the turns of a delayed component.
const TURN: Duration = Duration::from_millis(5);
/// How long after the last disturbance users go on, to feel its end.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// The one that is no component: it can only be killed, for whoever lets it go on would have to ask it.
const SUPERVISOR: &str = "supervisor";

/// What was done, and what came of it.
struct Done {
    disturbance: Disturbance,
    /// Just before it was done; `None` if there was nobody to do it to.
    at: Option<Instant>,
}

/// Disturbs the running system and reports.
pub fn chaos(common: &Common, options: &Chaos) -> Result<(), Failed> {
    if options.rate == 0.0 && options.count.is_some() {
        let never = Failed::usage("with --rate 0 there are no disturbances, so --count would never be reached");
        return Err(never.help("leave out one of the two, or say --seconds"));
    }
    interrupt::watch()?;
    let bar = Bar::new(Counts::Things, options.count.unwrap_or(options.seconds));
    let found = visit(common, async |context| disturb(&context, options, &bar).await);
    bar.end();
    let report = found?;
    match common.json {
        true => output::json(&report.json())?,
        false => output::write(report.text(output::stdout_colours()).as_bytes())?,
    }
    if report.is_right() { Ok(()) } else { Err(Failed::told()) }
}

async fn disturb(context: &Context, options: &Chaos, bar: &Bar) -> Result<report::Report, Failed> {
    let (before, supervisors) = (components(context).await?, supervisor(context).await?.restarts);
    let victims = victims(&before, &options.only)?;
    let control: control::Client = connect(context, "control").await?;
    let (over, tally) = (Rc::new(Cell::new(false)), Rc::new(Tally::default()));
    let work = Work::start(context, options.workers, options.seed, over.clone(), tally.clone()).await?;
    let mut calls = probes::start(context, over.clone(), tally.clone()).await;
    let listens = before.iter().find_map(|one| one.listen.parse().ok());
    let browser = listens.map(Browser::start);
    let plan = plan::plan(options.seed, options.rate, &options.kinds, victims.len());
    let (start, seconds) = (Instant::now(), Duration::from_secs(options.seconds));
    let (mut under_way, happened) = (Vec::new(), Rc::new(Cell::new(0)));
    let is_enough = || interrupt::check().is_err() || !tally.wrong.borrow().is_empty();
    for mut disturbance in plan {
        let is_over = options.count.map_or(disturbance.at >= seconds, |count| happened.get() >= count);
        if is_over {
            break;
        }
        if victims[disturbance.component] == SUPERVISOR {
            disturbance.kind = Kind::Kill;
        }
        let so_far = || options.count.map_or(start.elapsed().as_secs(), |_| happened.get());
        wait_until(start, disturbance.at, is_enough, || bar.to(so_far())).await;
        if is_enough() {
            break;
        }
        bar.name(&format!("{} {}", disturbance.kind.name(), victims[disturbance.component]));
        let victim = victims[disturbance.component].clone();
        let (carried_out, happened) =
            (carry_out(context.clone(), control.clone(), victim, disturbance), happened.clone());
        under_way.push(runtime::spawn(async move {
            let done = carried_out.await?;
            happened.set(happened.get() + u64::from(done.at.is_some()));
            Ok::<Done, Failed>(done)
        }));
    }
    if options.count.is_none() {
        wait_until(start, seconds, is_enough, || bar.to(start.elapsed().as_secs())).await;
    }
    let mut done = Vec::new();
    for task in under_way {
        done.push(task.await.map_err(|_| Failed::new("a disturbance was cancelled"))??);
    }
    runtime::sleep(AFTERWARDS).await;
    let seconds = start.elapsed();
    over.set(true);
    let resumed = work.end().await;
    let seen = browser.map(Browser::end).unwrap_or_default();
    calls.push(Rc::new(std::cell::RefCell::new(seen.calls)));
    let (after, supervisors) = (components(context).await?, supervisor(context).await?.restarts - supervisors);
    Ok(report::Report::new(report::Facts {
        seed: options.seed,
        seconds,
        victims,
        done,
        calls: calls.iter().map(|calls| calls.take()).collect(),
        tally,
        resumed,
        broken: seen.broken,
        before,
        after,
        supervisors,
    }))
}

/// Who is disturbed.
fn victims(all: &[ComponentStatus], only: &[String]) -> Result<Vec<String>, Failed> {
    let all: Vec<&str> = all.iter().map(|one| one.name.as_str()).chain([SUPERVISOR]).collect();
    if let Some(unknown) = only.iter().find(|name| !all.contains(&name.as_str())) {
        return Err(Failed::usage(format!("{unknown}: no such component")).help("`atoll ps` lists the components"));
    }
    let is_wanted = |name: &str| only.is_empty() || only.iter().any(|one| one == name);
    Ok(all.into_iter().filter(|name| is_wanted(name)).map(str::to_owned).collect())
}

/// Sleeps until `at` after `start`, and lets `show` show how it goes. Ends early when it `is_enough`.
async fn wait_until(start: Instant, at: Duration, is_enough: impl Fn() -> bool, show: impl Fn()) {
    while let Some(left) = at.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        if is_enough() {
            return;
        }
        runtime::sleep(left.min(Duration::from_millis(100))).await;
        show();
    }
}

async fn carry_out(
    context: Context,
    control: control::Client,
    victim: String,
    disturbance: Disturbance,
) -> Result<Done, Failed> {
    if victim == SUPERVISOR {
        let pid = supervisor(&context).await?.pid;
        let begin = Instant::now();
        let pid = i32::try_from(pid).map_err(|_| Failed::new("the supervisor has no process"))?;
        let killed = kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).is_ok();
        return Ok(Done { disturbance, at: killed.then_some(begin) });
    }
    // A signal may be sent twice.
    let send = async |signal| match ask(async || control.signal(control.root(), &victim, signal).await).await {
        Ok(_) => Ok(true),
        Err(CallError::Operation(SignalError::NotRunning)) => Ok(false),
        Err(error) => Err(why(&victim, &error)),
    };
    let begin = Instant::now();
    let done = match disturbance.kind {
        Kind::Kill => send(Signal::Kill).await?,
        Kind::Stop => {
            let stopped = send(Signal::Stop).await?;
            runtime::sleep(disturbance.lasts).await;
            send(Signal::Continue).await?;
            stopped
        }
        Kind::Delay => {
            let mut stopped = false;
            while begin.elapsed() < disturbance.lasts {
                stopped |= send(Signal::Stop).await?;
                runtime::sleep(TURN).await;
                send(Signal::Continue).await?;
                runtime::sleep(TURN).await;
            }
            stopped
        }
    };
    Ok(Done { disturbance, at: done.then_some(begin) })
}
