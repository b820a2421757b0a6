//! Who is restarted with whom: `restart` and `group`.

use crate::parse::{RawComponent, list};
use crate::report::Problem;
use crate::ties::Restart;
use crate::value;

/// What a component's `restart` means.
pub(super) fn strategy(raw: &RawComponent) -> Result<Restart, Problem> {
    let Some(word) = &raw.restart else { return Ok(Restart::default()) };
    if let Some(known) = Restart::ALL.into_iter().find(|known| known.name() == word.text) {
        return Ok(known);
    }
    if word.text == "one-for-all" {
        let help = "give all that are to be restarted together the same group = \"NAME\"";
        return Err(Problem::at(&word.place, "one-for-all is for a group", "not for one component").help(help));
    }
    let names = Restart::ALL.map(Restart::name);
    let help = match value::nearest(&word.text, names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the strategies are {}", list(&names)),
    };
    let title = format!("there is no restart strategy `{}`", word.text.escape_debug());
    Err(Problem::at(&word.place, title, "unknown").help(help))
}

/// Groups in which nobody else is.
pub(super) fn lonely(components: &[RawComponent]) -> impl Iterator<Item = Problem> {
    let grouped = components.iter().filter_map(|raw| raw.group.as_ref());
    let is_alone = |name: &str| {
        let members = components.iter().filter(|raw| raw.group.as_ref().is_some_and(|group| group.text == name));
        members.count() == 1
    };
    grouped.filter(move |group| is_alone(&group.text)).map(|group| {
        let title = format!("nobody else is in group `{}`", group.text.escape_debug());
        let help = "give the same `group` to all that are to be restarted together, or leave it out";
        Problem::at(&group.place, title, "the only one").help(help)
    })
}
