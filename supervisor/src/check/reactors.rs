//! How many reactors a component has.

use super::config;
use crate::parse::{Literal, RawComponent};
use crate::policy::{self, Builtin};
use crate::report::Problem;

/// What an entry's `reactors` means: a number, or as many as this machine has processors for us; 1 if it says nothing.
pub(super) fn count(raw: &RawComponent, builtin: Option<&Builtin>) -> Result<u32, Problem> {
    let Some(given) = &raw.reactors else { return Ok(1) };
    let cores = matches!(&given.literal, Literal::Text(text) if text == "cores");
    let count = match &given.literal {
        _ if cores => Ok(std::thread::available_parallelism().map_or(1, usize::from) as u64),
        Literal::Text(_) => Err("this is text, not a whole number or \"cores\"".to_owned()),
        _ => config::meaning(&policy::REACTORS, given).map(|number| number.as_u64().unwrap_or(1)),
    };
    let count = count.map_err(|reason| {
        let title = format!("bad value for `reactors` of component `{}`", raw.name.text);
        Problem::at(&given.place, title, reason)
    })?;
    if let Some(builtin) = builtin.filter(|builtin| !builtin.spreads && (cores || count > 1)) {
        let title = format!("component `{}` cannot have several reactors", raw.name.text);
        let label = format!("builtin:{} is made for one", builtin.name);
        return Err(Problem::at(&given.place, title, label).help("leave it out"));
    }
    Ok(count.min(policy::REACTORS_MAX) as u32)
}
