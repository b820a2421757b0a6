//! `atoll explain route` and `place`: who may call whom by a manifest, and where each of them runs.

use std::path::Path;

use kernel_ipc::Rights;
use serde_json::{Value, json};
use supervisor::manifest::{Checked, Component, Use};

use super::load;
use crate::args::Common;
use crate::output::{self, Align, Failed, Table};

/// Shows the uses of a component, or of all.
pub fn route(common: &Common, component: Option<&str>, manifest: Option<&Path>) -> Result<(), Failed> {
    let checked = load(manifest)?;
    if let Some(name) = component.filter(|name| !checked.components.iter().any(|known| known.name == *name)) {
        let names: Vec<&str> = checked.components.iter().map(|known| known.name.as_str()).collect();
        return Err(
            Failed::new(format!("the manifest has no component {name}")).help(format!("it has {}", names.join(", ")))
        );
    }
    let is_shown = |client: &&Component| component.is_none_or(|name| client.name == name);
    let clients = checked.components.iter().filter(is_shown);
    let routes = clients.flat_map(|client| client.uses.iter().map(move |used| (client, used)));
    if common.json {
        let fact = |(client, used): (&Component, &Use)| {
            json!({
                "client": client.name,
                "name": used.name,
                "endpoint": format!("{}.{}", used.component, used.endpoint),
                "interface": used.interface,
                "rights": rights(&used.interface, used.rights),
                "narrowed_to": used.attenuation,
                "carrier": carrier(&checked, client, used),
            })
        };
        return output::json(&routes.map(fact).collect::<Vec<_>>());
    }
    let columns = ["client", "calls it", "endpoint", "interface", "rights", "narrowed to", "by"];
    let mut table = Table::new(&columns.map(|column| (column, Align::Left)));
    for (client, used) in routes {
        table.row(vec![
            client.name.clone(),
            used.name.clone(),
            format!("{}.{}", used.component, used.endpoint),
            used.interface.clone(),
            rights(&used.interface, used.rights).join(", "),
            narrowing(&used.attenuation),
            carrier(&checked, client, used).into(),
        ]);
    }
    output::write(table.render(output::stdout_colours()).as_bytes())?;
    output::line(
        "\nA component is given these and no other: what it does not name it cannot reach. A right that is not here is refused by the\n\
         host's dispatcher before its code runs. A guest (this command line) of the same user may call everything.",
    )
}

/// Shows where each component runs, and why there.
pub fn place(common: &Common, manifest: Option<&Path>) -> Result<(), Failed> {
    let checked = load(manifest)?;
    let why = |component: &Component| match &component.node {
        Some(node) => format!("its entry says place = \"node:{node}\""),
        None => "no entry says a place: all run on the node that is started".into(),
    };
    let place = |component: &Component| component.node.clone().unwrap_or_else(|| "here".into());
    if common.json {
        let fact = |one: &Component| json!({"component": one.name, "node": one.node, "why": why(one)});
        return output::json(&checked.components.iter().map(fact).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["component", "node", "why"].map(|column| (column, Align::Left)));
    for component in &checked.components {
        table.row(vec![component.name.clone(), place(component), why(component)]);
    }
    output::write(table.render(output::stdout_colours()).as_bytes())
}

/// Rights by their names, where this program knows the interface.
fn rights(interface: &str, rights: Rights) -> Vec<String> {
    let known = protocol::INTERFACES.iter().find(|known| known.description.name == interface);
    let name = |bit: u32| {
        let right = Rights::from_bits_retain(1 << bit);
        let named = known.and_then(|known| known.description.rights.iter().find(|(_, of)| *of == right));
        match (named, bit) {
            (Some((name, _)), _) => (*name).to_owned(),
            (None, 0) => "read".into(),
            (None, 1) => "write".into(),
            (None, 2) => "grant".into(),
            (None, 3) => "map".into(),
            (None, bit) => format!("bit {bit}"),
        }
    };
    (0..32).filter(|bit| rights.bits() >> bit & 1 == 1).map(name).collect()
}

fn narrowing(attenuation: &Value) -> String {
    let parts = attenuation.as_object().into_iter().flatten();
    let parts: Vec<String> =
        parts.map(|(key, value)| format!("{key} {}", value.as_str().unwrap_or_default())).collect();
    parts.join(", ")
}

fn carrier(checked: &Checked, client: &Component, used: &Use) -> &'static str {
    match client.node.as_deref() == checked.node_of(&used.component) {
        true => "shared memory",
        false => "TLS socket",
    }
}
