//! The manifest, checked, as this node sees it: which of its components run here, and which on other nodes.

use std::path::Path;

use super::Found;
use super::records::Kind;
use super::state::State;
use crate::cluster::Home;
use crate::cluster::directory::{self, Embedded};
use crate::ended::Ended;
use crate::manifest::{self, Checked, Manifest, Origin};
use crate::parse;

/// Everything that can go wrong before the first process is started, or before anything is taken over.
pub(super) fn prepare(manifest: Option<&Path>, sets: &[String], found: &Found) -> Result<(Placed, State), String> {
    let here = Path::new(".");
    let directory = |error: std::io::Error| format!("state directory: {error}");
    let kept = State::manifest(here);
    let lock = found.records.iter().find(|record| record.key.kind == Kind::Lock as u32);
    if let Some(lock) = lock.and_then(|lock| lock.descriptor.as_ref()) {
        let checked = Manifest::load(Origin::Path(&kept), sets).map_err(|report| report.to_string())?;
        let checked = place(checked, sets, here, true)?;
        let lock = lock.try_clone().map_err(directory)?;
        let state = State::take_over(here, lock.into()).map_err(|error| error.to_string())?;
        return Ok((checked, state));
    }
    let origin = manifest.map_or(Origin::Embedded, Origin::Path);
    let checked = Manifest::load(origin, sets).map_err(|report| report.to_string())?;
    let checked = place(checked, sets, here, false)?;
    let state = State::open(here).map_err(|error| error.to_string())?;
    // Both read first: it may be this very file.
    let base = parse::base(origin).unwrap_or_default();
    let text = manifest.map_or_else(|| Ok(manifest::EMBEDDED.into()), std::fs::read).map_err(directory)?;
    std::fs::write(&kept, text).map_err(directory)?;
    std::fs::write(State::base(here), base.as_os_str().as_encoded_bytes()).map_err(directory)?;
    Ended::forget(state.path()).map_err(directory)?;
    Ok((checked, state))
}

/// A system as this node sees it.
pub(super) struct Placed {
    pub(super) system: String,
    pub(super) here: Vec<manifest::Component>,
    pub(super) elsewhere: Vec<manifest::Component>,
    pub(super) operators: Vec<String>,
    pub(super) directory: Option<Embedded>,
    /// What was said of the manifest's values.
    pub(super) sets: Vec<String>,
}

/// Says which components run here. Of a system that `runs` already nothing is asked but that: a node that was removed meanwhile ends
/// nobody else.
///
/// # Errors
/// For people: a place is none; or it is not to be known who this node is.
fn place(checked: Checked, sets: &[String], state: &Path, runs: bool) -> Result<Placed, String> {
    let home = match Home::find(state) {
        Err(error) if runs && checked.components.iter().all(|component| component.node.is_none()) => {
            eprintln!("supervisor: this node does not answer others: {error}");
            None
        }
        found => found.map_err(|error| error.to_string())?,
    };
    let directory = home.map(|home| Embedded::new(home, &checked));
    if !runs {
        directory::check_places(directory.as_ref(), &checked)?;
    }
    let name = directory.as_ref().map(|directory| directory.home().name().as_str());
    let is_here = |component: &manifest::Component| component.node.is_none() || component.node.as_deref() == name;
    let (here, elsewhere) = checked.components.into_iter().partition(is_here);
    let sets = sets.to_vec();
    Ok(Placed { system: checked.system, operators: checked.operators, here, elsewhere, directory, sets })
}
