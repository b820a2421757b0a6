//! `atoll simulate`: seeds of the simulation, one after the other, until one violates its model.
//!
//! * How far it has come is in a file, if the user wants it: what was interrupted goes on there.
//! * A seed that violates the model is run again with a trace, and its last lines are printed.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use simulation::{HAS_STEPS, Report, Sum, Trace, UnusedRing, run};

use crate::args::{Common, Simulate};
use crate::bar::{Bar, Counts};
use crate::interrupt;
use crate::output::{self, Failed};

/// How often the file is written.
const NOTE_EVERY: Duration = Duration::from_secs(2);
/// Lines of a violation's trace that are printed.
const LINES: usize = 100;

/// How far a run has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Its first seed.
    from: u64,
    /// What was run of it.
    sum: Sum,
    /// How long that took.
    elapsed_ms: u64,
    /// Builds without steps let nobody die inside of a turn.
    has_steps: bool,
}

/// A seed that violates the model.
#[derive(Clone, Debug, Serialize)]
struct Violation {
    seed: u64,
    what: String,
}

/// Runs seeds.
pub fn simulate(common: &Common, options: &Simulate) -> Result<(), Failed> {
    interrupt::watch()?;
    let ring = UnusedRing::new().map_err(|error| Failed::new(format!("no ring of the kernel: {error}")))?;
    if options.trace {
        return trace(common, options.from, &ring);
    }
    let mut state = match &options.state {
        Some(path) => State::read(path, options.from)?,
        None => State::new(options.from),
    };
    let bar = Bar::new(Counts::Things, options.seeds);
    let found = play(&mut state, options, &bar, &ring);
    bar.end();
    let found = found?;
    match common.json {
        true => output::json(&serde_json::json!({ "run": state, "violation": found }))?,
        false => output::write(text(&state, options.seeds).as_bytes())?,
    }
    match found {
        None => Ok(()),
        Some(violation) => {
            if !common.json {
                output::write(last_lines(violation.seed, &ring).as_bytes())?;
            }
            let seed = violation.seed;
            let failed = Failed::new(format!("seed {seed} violates the model: {}", violation.what));
            Err(failed.help(format!("all that happens in it: atoll simulate --from {seed} --seeds 1 --trace")))
        }
    }
}

fn play(state: &mut State, options: &Simulate, bar: &Bar, ring: &UnusedRing) -> Result<Option<Violation>, Failed> {
    let (before, start) = (state.elapsed_ms, Instant::now());
    let mut noted = Instant::now();
    let mut found = None;
    while state.sum.seeds < options.seeds && found.is_none() && !interrupt::is_wanted() {
        let Some(seed) = options.from.checked_add(state.sum.seeds) else { break };
        let report = run(seed, ring, &Trace::new(false));
        match report.violation {
            // It is run again when this goes on.
            Some(what) => found = Some(Violation { seed, what }),
            None => state.sum.add(&report),
        }
        bar.to(state.sum.seeds);
        state.elapsed_ms = before + u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        if noted.elapsed() >= NOTE_EVERY {
            noted = Instant::now();
            state.note(options.state.as_deref())?;
        }
    }
    state.note(options.state.as_deref())?;
    Ok(found)
}

impl State {
    fn new(from: u64) -> State {
        State { from, sum: Sum::default(), elapsed_ms: 0, has_steps: HAS_STEPS }
    }

    /// What the file says; a new one if there is none.
    fn read(path: &Path, from: u64) -> Result<State, Failed> {
        let wrong = |what: String| Failed::new(format!("{}: {what}", path.display()));
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::new(from)),
            read => read.map_err(|error| wrong(error.to_string()))?,
        };
        let state: State = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("not the state of a simulation: {error}")).help("name another file"))?;
        if state.from != from {
            let is = format!("this run began with seed {}, not {from}", state.from);
            return Err(wrong(is).help(format!("say --from {}, or name another file", state.from)));
        }
        if state.has_steps != HAS_STEPS {
            let is = "this run was begun by a build of another kind, whose seeds are other runs".to_owned();
            return Err(wrong(is).help("name another file"));
        }
        Ok(state)
    }

    /// Writes it whole, or leaves what was there.
    fn note(&self, path: Option<&Path>) -> Result<(), Failed> {
        let Some(path) = path else { return Ok(()) };
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let text = serde_json::to_string_pretty(self).expect("numbers");
        std::fs::write(&beside, text + "\n")
            .and_then(|()| std::fs::rename(&beside, path))
            .map_err(|error| Failed::new(format!("{}: {error}", path.display())))
    }
}

fn text(state: &State, wanted: u64) -> String {
    let State { from, sum, elapsed_ms, .. } = state;
    let seconds = *elapsed_ms as f64 / 1e3;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:14} {value}");
    };
    line("seeds", format!("{} of {wanted}, from {from}, in {seconds:.1} s", sum.seeds));
    line("calls", format!("{}, of which {} were answered", sum.calls, sum.answered));
    line("deaths", format!("{} of hosts, {} of clients", sum.host_deaths, sum.client_deaths));
    line("connections", sum.connections.to_string());
    line("turns", sum.turns.to_string());
    line("simulated", format!("{} s", sum.simulated_ms / 1000));
    if !HAS_STEPS {
        line("not here", "deaths inside of a turn: this build has no steps".to_owned());
    }
    text
}

/// What happened in a seed before it violated the model.
fn last_lines(seed: u64, ring: &UnusedRing) -> String {
    let (_, lines) = traced(seed, ring);
    let first = lines.len().saturating_sub(LINES);
    lines[first..].iter().fold(format!("seed {seed}, its last lines:\n"), |text, line| text + line + "\n")
}

fn traced(seed: u64, ring: &UnusedRing) -> (Report, Vec<String>) {
    let trace = Trace::new(true);
    let report = run(seed, ring, &trace);
    (report, trace.lines())
}

fn trace(common: &Common, seed: u64, ring: &UnusedRing) -> Result<(), Failed> {
    let (report, lines) = traced(seed, ring);
    match common.json {
        true => output::json(&serde_json::json!({ "seed": seed, "violation": report.violation, "lines": lines }))?,
        false => output::write((lines.join("\n") + "\n").as_bytes())?,
    }
    match report.violation {
        None => Ok(()),
        Some(what) => Err(Failed::new(format!("seed {seed} violates the model: {what}"))),
    }
}
