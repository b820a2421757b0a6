//! On which node a component runs, and what cannot be between nodes.
//!
//! Between nodes go calls, results, and the bytes of what is lent, in both directions. Memory is not mapped by another machine: the right
//! to map what a host on another node lends is one to map where that lands.

use std::collections::BTreeMap;

use kernel_ipc::link::socket::keys::NodeName;

use crate::parse::{Literal, RawComponent, Word};
use crate::report::Problem;

/// What a component's `place` means.
pub(super) fn node(raw: &RawComponent) -> Result<Option<String>, Problem> {
    let Some(word) = &raw.place else { return Ok(None) };
    let name = word.text.strip_prefix("node:").and_then(NodeName::new);
    let name = name.ok_or_else(|| no_place(word))?;
    Ok(Some(name.to_string()))
}

/// The name by which the operator of a node is known to others, as a component of it is.
pub(crate) const OPERATOR: &str = "operator";

/// The nodes whose operators are operators of all of the system.
pub(super) fn operators(words: &[Word], components: &[RawComponent], problems: &mut Vec<Problem>) -> Vec<String> {
    let placed = components.iter().any(|raw| raw.place.is_some());
    let mut operators = Vec::new();
    for word in words {
        match word.text.strip_prefix("node:").and_then(NodeName::new) {
            Some(name) if placed => operators.push(name.to_string()),
            Some(_) => {
                let problem =
                    Problem::at(&word.place, "`operators` without nodes", "no component says on which node it is");
                problems.push(problem.help("add place = \"node:NAME\" to each component, or remove this"));
            }
            None => problems.push(no_place(word)),
        }
    }
    if let (Some(word), Some(raw)) = (words.first(), components.iter().find(|raw| raw.name.text == OPERATOR)) {
        let title = format!("a component is called `{OPERATOR}`");
        let problem = Problem::at(&raw.name.place, title, "on other nodes it would pass for the operator");
        problems.push(problem.and(&word.place, "who is one of all nodes"));
    }
    operators
}

fn no_place(word: &Word) -> Problem {
    let title = format!("`{}` is no place", word.text.escape_debug());
    Problem::at(&word.place, title, "unknown").help("write \"node:NAME\", with a name of `atoll node ls`")
}

/// What is wrong with where the components are.
pub(super) fn problems(components: &[RawComponent]) -> Vec<Problem> {
    let nodes: BTreeMap<&str, String> =
        components.iter().filter_map(|raw| Some((raw.name.text.as_str(), node(raw).ok()??))).collect();
    let Some(placed) = components.iter().find(|raw| raw.place.is_some()) else { return Vec::new() };
    let mut problems = Vec::new();
    for raw in components.iter().filter(|raw| raw.place.is_none()) {
        let title = format!("component `{}` does not say on which node it runs", raw.name.text);
        let problem = Problem::at(&raw.name.place, title, "`place` is missing").help("add place = \"node:NAME\"");
        problems.push(problem.and(&placed.name.place, "this one says it"));
    }
    let is_apart = |one: &str, other: &str| match (nodes.get(one), nodes.get(other)) {
        (Some(one), Some(other)) => one != other,
        _ => false,
    };
    for raw in components {
        if let Some(group) = &raw.group {
            let mut others =
                components.iter().filter(|other| other.group.as_ref().is_some_and(|of| of.text == group.text));
            if let Some(other) = others.find(|other| is_apart(&raw.name.text, &other.name.text)) {
                let title = format!("group `{}` is on several nodes", group.text.escape_debug());
                let problem = Problem::at(&group.place, title, "restarted together only on one node");
                problems.push(problem.and(&other.name.place, "this one is elsewhere"));
            }
        }
        for used in &raw.uses {
            let host = used.from.as_ref().and_then(|from| from.text.split_once('.'));
            let Some((host, _)) = host.filter(|(host, _)| is_apart(&raw.name.text, host)) else { continue };
            let Some(host) = components.iter().find(|other| other.name.text == host) else { continue };
            let several = matches!(&host.reactors, Some(given) if !matches!(given.literal, Literal::Integer(Some(1))));
            if several {
                let title = format!("component `{}` is used from another node", host.name.text);
                let problem =
                    Problem::at(&host.name.place, title, "and has several reactors, which is not possible yet");
                problems.push(problem.and(&used.place, "from here"));
            }
        }
    }
    problems
}
