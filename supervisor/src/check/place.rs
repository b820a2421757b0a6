//! On which node a component runs, and what cannot be between nodes.
//!
//! Between nodes go calls, results, and the bytes of what a host lends to its client. Memory is not mapped by another machine, and what
//! a client lends to a host is not carried to it.

use std::collections::BTreeMap;

use kernel_ipc::described::Type;
use kernel_ipc::interface::Description;
use kernel_ipc::link::socket::keys::NodeName;
use kernel_ipc::rights::Rights;

use crate::parse::{Literal, RawComponent, RawUse};
use crate::policy;
use crate::report::Problem;

/// What a component's `place` means.
pub(super) fn node(raw: &RawComponent) -> Result<Option<String>, Problem> {
    let Some(word) = &raw.place else { return Ok(None) };
    let name = word.text.strip_prefix("node:").and_then(NodeName::new);
    let name = name.ok_or_else(|| {
        let title = format!("`{}` is no place", word.text.escape_debug());
        Problem::at(&word.place, title, "unknown").help("write place = \"node:NAME\", with a name of `atoll node ls`")
    })?;
    Ok(Some(name.to_string()))
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
            let Some((host, endpoint)) = host.filter(|(host, _)| is_apart(&raw.name.text, host)) else { continue };
            let Some(host) = components.iter().find(|other| other.name.text == host) else { continue };
            let interface = host.provides.iter().find(|(name, _)| name.text == endpoint);
            let interface = interface.and_then(|(_, interface)| policy::interface(&interface.text));
            if let Some(why) = interface.and_then(|interface| hindrance(interface, used)) {
                let title =
                    format!("use `{}` of component `{}` cannot be between nodes", used.name.text, raw.name.text);
                problems.push(Problem::at(&used.place, title, why).and(&host.name.place, "this one is elsewhere"));
            }
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

/// What stands against a session between nodes.
fn hindrance(interface: &'static Description, used: &RawUse) -> Option<&'static str> {
    let granted = used.rights.iter().flatten().filter_map(|right| interface.right(&right.text));
    let granted = granted.fold(Rights::empty(), |all, right| all | right);
    if granted.contains(Rights::MAP) {
        return Some("memory is not mapped by another machine");
    }
    let described = kernel_ipc::described::Interface::of(interface);
    // On what comes of the root, the rights may be others.
    let may_call = |operation: &kernel_ipc::interface::Operation| {
        operation.target_kind != 1 || granted.contains(operation.requires)
    };
    let lends = interface.operations.iter().filter(|operation| may_call(operation)).any(|operation| {
        let described = described.operations.iter().find(|known| known.number == operation.number);
        described.is_some_and(|known| known.arguments.iter().any(|argument| carries_leases(&argument.ty)))
    });
    lends.then_some("what a client lends to a host does not go to another machine")
}

/// Whether the caller names leases by it.
fn carries_leases(ty: &Type) -> bool {
    match ty {
        Type::LeasePart => true,
        Type::List(of) | Type::Option(of) | Type::Packed(of) => carries_leases(of),
        Type::Tuple(of) => of.iter().any(carries_leases),
        _ => false,
    }
}
