//! `atoll explain`: what the rules come to, from the code that acts by them.

mod errors;
mod route;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use supervisor::lifecycle::{Cause, Decision, GIVE_UP_AFTER, HEALTHY, LONGEST_PAUSE, Restarts, WINDOW};
use supervisor::manifest::{Checked, Component, Manifest, Origin};
use supervisor::ties::Ties;

use crate::args::{Common, Explain};
use crate::check;
use crate::init;
use crate::output::{self, Align, Failed, Table};

/// Deaths in a row that are shown when they do not come too fast.
const ROW: usize = 10;

/// Explains it.
pub fn explain(common: &Common, what: &Explain) -> Result<(), Failed> {
    match what {
        Explain::Backoff => backoff(common),
        Explain::Restart { manifest } => restart(common, manifest.as_deref()),
        Explain::Route { component, manifest } => route::route(common, component.as_deref(), manifest.as_deref()),
        Explain::Place { manifest } => route::place(common, manifest.as_deref()),
        Explain::Error { code } => errors::errors(common, code.as_deref()),
    }
}

pub use errors::code;

/// The manifest that is meant, checked.
fn load(manifest: Option<&Path>) -> Result<Checked, Failed> {
    let manifest = init::meant(manifest);
    let origin = manifest.as_deref().map_or(Origin::Embedded, Origin::Path);
    Manifest::load(origin, &[]).map_err(|report| check::refused(&report))
}

/// What follows each of a row of deaths of a component's own making, `apart` from each other.
fn schedule(apart: Duration, deaths: usize) -> Vec<Decision> {
    let (mut restarts, start) = (Restarts::default(), Instant::now());
    let mut decisions = Vec::new();
    for death in 0..deaths as u32 {
        let served = (death > 0 && !apart.is_zero()).then_some(apart);
        decisions.push(restarts.died(start + apart * death, Cause::Own, served));
        if decisions.last() == Some(&Decision::GiveUp) {
            break;
        }
    }
    decisions
}

fn backoff(common: &Common) -> Result<(), Failed> {
    let fast = schedule(Duration::ZERO, ROW);
    // Too seldom to be given up, too often for the earlier ones to be forgotten.
    let apart = WINDOW / (GIVE_UP_AFTER as u32 - 1);
    let slow = schedule(apart, ROW);
    if common.json {
        let pauses = |row: &[Decision]| -> Vec<_> { row.iter().map(|decision| milliseconds(*decision)).collect() };
        return output::json(&json!({
            "own_deaths_at_once_ms": pauses(&fast),
            "own_deaths_apart_ms": pauses(&slow),
            "longest_pause_ms": LONGEST_PAUSE.as_millis(),
            "healthy_after_s": HEALTHY.as_secs(),
            "given_up_after": GIVE_UP_AFTER,
            "window_s": WINDOW.as_secs(),
        }));
    }
    let apart = format!("{:.1} s apart", apart.as_secs_f64());
    let mut table = Table::new(&[("death", Align::Right), ("at once", Align::Right), (&apart, Align::Right)]);
    for (death, slow) in slow.iter().enumerate() {
        table.row(vec![(death + 1).to_string(), fast.get(death).copied().map_or(String::new(), words), words(*slow)]);
    }
    output::line(
        "After deaths of a component's own making (it exited, crashed, hung, broke the protocol, or died before\n\
         it was ready) the next start waits so long:\n",
    )?;
    output::write(table.render(output::stdout_colours()).as_bytes())?;
    let (healthy, window) = (HEALTHY.as_secs(), WINDOW.as_secs());
    output::line(&format!(
        "\nA pause doubles, up to {}. {healthy} s of service make earlier deaths forgotten. {GIVE_UP_AFTER} deaths within {window} s are\n\
         the end: the component stays down until `atoll restart` starts it.\n\
         A kill from outside is not counted: the next start follows at once, or after {} if it was not ready yet.",
        words(Decision::Restart(LONGEST_PAUSE)),
        words(Restarts::default().died(Instant::now(), Cause::Outside, None)),
    ))
}

fn restart(common: &Common, manifest: Option<&Path>) -> Result<(), Failed> {
    let checked = load(manifest)?;
    let ties = Ties::of(&checked.components);
    let names = |index: usize| -> Vec<&str> {
        ties.together(index).iter().map(|&index| checked.components[index].name.as_str()).collect()
    };
    if common.json {
        let fact = |(index, component): (usize, &Component)| {
            let Component { name, restart, group, .. } = component;
            json!({ "component": name, "restart": restart, "group": group, "restarted_in_order": names(index) })
        };
        let facts: Vec<_> = checked.components.iter().enumerate().map(fact).collect();
        return output::json(&facts);
    }
    let columns = ["component", "restart", "group", "restarted with it, in this order"];
    let mut table = Table::new(&columns.map(|column| (column, Align::Left)));
    for (index, component) in checked.components.iter().enumerate() {
        let group = component.group.clone().unwrap_or_default();
        let order = match names(index).as_slice() {
            [_] => "only itself".into(),
            several => several.join(", "),
        };
        table.row(vec![component.name.clone(), component.restart.name().into(), group, order]);
    }
    output::line("When a component has died, or an operator restarts it:\n")?;
    output::write(table.render(output::stdout_colours()).as_bytes())?;
    output::line(
        "\nThey end in the reverse order, and start in this one, each when those that it uses serve. Their clients feel\n\
         what they feel at a death. It counts as a death for nobody but the one that died.\n\
         In a manifest: restart = \"rest-for-one\" restarts those that use a component, directly or through others;\n\
         components with the same group = \"NAME\" are restarted together.",
    )
}

fn milliseconds(decision: Decision) -> Option<u128> {
    match decision {
        Decision::Restart(pause) => Some(pause.as_millis()),
        Decision::GiveUp => None,
    }
}

fn words(decision: Decision) -> String {
    match decision {
        Decision::Restart(pause) if pause < Duration::from_secs(1) => format!("{} ms", pause.as_millis()),
        Decision::Restart(pause) => format!("{:.1} s", pause.as_secs_f64()),
        Decision::GiveUp => "given up".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_is_the_policys() {
        let fast = schedule(Duration::ZERO, ROW);
        assert_eq!((fast.len(), fast.last()), (GIVE_UP_AFTER, Some(&Decision::GiveUp)));
        let slow = schedule(WINDOW / (GIVE_UP_AFTER as u32 - 1), ROW);
        assert_eq!(slow.len(), ROW);
        assert!(fast.iter().zip(&slow).take(2).all(|(one, other)| one == other));
    }
}
