//! `atoll interface`: the interfaces as data.
//!
//! * The list, and what is compared with what was released, are those that this program was built with.
//! * What is shown is one of these, or what a host of the running system says it serves.

mod page;

use kernel_ipc::broker::OpenError;
use kernel_ipc::component::{ConnectError, Connection, Context};
use kernel_ipc::described::{self, AskError, Book, Change, Checked, Interface, Message};
use kernel_ipc::{Cause, Failure};
use protocol::{INTERFACES, Known};
use serde_json::{Value, json};

use crate::args::{self, Common};
use crate::node::visit;
use crate::output::{self, Align, Colour, Failed, Table, paint};

/// Does what was asked.
pub fn interface(common: &Common, what: Option<&args::Interface>) -> Result<(), Failed> {
    match what {
        None | Some(args::Interface::List) => list(common),
        Some(args::Interface::Show { name }) => show(common, name),
        Some(args::Interface::Check { name, against }) => check(common, name.as_deref(), against.as_deref()),
    }
}

/// An interface of this program, by `atoll.fs/1`, `atoll.fs` or `fs`.
fn known(name: &str) -> Option<&'static Known> {
    INTERFACES.iter().find(|known| {
        let full = known.description.name;
        let family = full.split('/').next().unwrap_or_default();
        [full, family].contains(&name) || family.rsplit('.').next() == Some(name)
    })
}

fn described(known: &Known) -> Result<Checked, Failed> {
    Interface::of(known.description).check().map_err(|fault| Failed::new(fault.to_string()))
}

/// What the payload of a call means, whose operation takes nothing beside it; `None` if it means nothing to this program.
pub fn arguments(interface: &str, operation: u16, payload: &[u8]) -> Option<Value> {
    let interface = described(known(interface)?).ok()?;
    let operation = interface.operations.iter().find(|known| known.number == operation)?;
    let message = Message { payload: payload.to_vec(), ..Message::default() };
    interface.decode_without_target(operation, &message, &mut Book::default()).ok()
}

fn list(common: &Common) -> Result<(), Failed> {
    use Align::{Left, Right};
    let columns = [("interface", Left), ("operations", Right), ("types", Right), ("errors", Right)];
    let mut table = Table::new(&[&columns[..], &[("released", Left), ("about", Left)]].concat());
    let mut facts = Vec::new();
    for known in &INTERFACES {
        let compared = Compared::with_released(known)?;
        let Interface { name, about, operations, types, errors, .. } = &*compared.now;
        facts
            .push(json!({ "name": name, "about": about, "operations": operations.len(), "released": compared.word() }));
        let [operations, types, errors] = [operations.len(), types.len(), errors.len()].map(|count| count.to_string());
        table.row(vec![name.clone(), operations, types, errors, compared.word(), about.clone()]);
    }
    if common.json {
        return output::json(&json!({ "interfaces": facts }));
    }
    output::write(table.render(output::stdout_colours()).as_bytes())
}

fn show(common: &Common, name: &str) -> Result<(), Failed> {
    let interface = match known(name) {
        Some(known) => described(known)?,
        None if name.contains('/') => {
            let help = "`atoll interface` lists those of this program; a running host's is shown by its endpoint";
            return Err(Failed::new(format!("there is no interface {name}")).help(help));
        }
        None => visit(common, async |context| Ok(host(&context, name).await?.interface))?,
    };
    if common.json {
        return output::write(interface.to_json().as_bytes());
    }
    output::write(page::page(&interface, output::stdout_colours()).as_bytes())
}

/// Somebody who serves an interface.
pub struct Host {
    /// Its whole name.
    pub endpoint: String,
    /// A connection to it.
    pub connection: Connection,
    /// What it says that it serves.
    pub interface: Checked,
}

/// How often a host's next incarnation is asked.
pub const AGAIN: u32 = 100;

/// Connects to an endpoint of whatever interface, and asks what that is. `fs` is `fs.root`, if that is there.
///
/// # Errors
/// The endpoint's name and why not.
pub async fn host(context: &Context, name: &str) -> Result<Host, Failed> {
    let (endpoint, speaks) = find(context, name).await?;
    let failed = |error: &dyn std::fmt::Display| Failed::new(format!("{endpoint}: {error}"));
    let connection = context.connection(&endpoint, &speaks).await.map_err(|error| failed(&error))?;
    let mut again = AGAIN;
    let said = loop {
        let session = connection.session().await.map_err(|failure| failed(&failure))?;
        match described::ask(&session).await {
            // The next incarnation says the same.
            Err(AskError::Failed(Failure { cause: Cause::PeerDied | Cause::StaleEpoch, .. })) if again > 0 => {
                again -= 1
            }
            said => break said,
        }
    };
    let interface = match said {
        Ok(interface) if interface.name == speaks => interface,
        Ok(other) => return Err(failed(&format_args!("it says that it is {} and not {speaks}", other.name))),
        // A host that was built before hosts said what they are.
        Err(AskError::Failed(Failure { cause: Cause::UnknownOperation, .. })) => match known(&speaks) {
            Some(known) => described(known)?,
            None => return Err(failed(&format_args!("it speaks {speaks}, and cannot say what that is"))),
        },
        Err(error) => return Err(failed(&error)),
    };
    Ok(Host { endpoint, connection, interface })
}

/// The endpoint that `name` means, and the interface that it speaks.
async fn find(context: &Context, name: &str) -> Result<(String, String), Failed> {
    // What built-in components call their endpoints; and one that is called as its component is.
    let offers = supervisor::policy::builtins().iter().flat_map(|builtin| builtin.provides);
    let endpoints = offers.map(|offer| offer.name).chain([name]);
    let usual = endpoints.map(|endpoint| format!("{name}.{endpoint}")).filter(|_| !name.contains('.'));
    for endpoint in std::iter::once(name.to_owned()).chain(usual) {
        // No interface has this name: the answer says which one it is.
        match context.connection(&endpoint, "").await {
            Err(ConnectError::Refused { error: OpenError::Interface { speaks }, .. }) => return Ok((endpoint, speaks)),
            Err(ConnectError::Refused { error: OpenError::Unknown, .. }) => {}
            Err(error) => return Err(Failed::new(format!("{endpoint}: {error}"))),
            Ok(_) => return Err(Failed::new(format!("{endpoint}: it does not say what it speaks"))),
        }
    }
    let help = "it is called component.endpoint, such as fs.root, disk.disk or net.net; or control";
    Err(Failed::new(format!("there is no endpoint {name}")).help(help))
}

/// An interface beside what it was.
struct Compared {
    now: Checked,
    /// Name and version of what it was.
    before: String,
    changes: Vec<Change>,
    /// Somebody is broken, and the version does not say so.
    breaks: bool,
}

impl Compared {
    fn with_released(known: &Known) -> Result<Compared, Failed> {
        let before = Interface::from_json(known.released.as_bytes());
        let wrong = |fault| Failed::new(format!("{}, as released: {fault}", known.description.name));
        let before = before.map_err(wrong)?;
        Compared::with(known, &before)
    }

    fn with(known: &Known, before: &Interface) -> Result<Compared, Failed> {
        let now = described(known)?;
        let changes = described::compare(before, &now);
        let breaks = described::breaks_unsaid(before, &now, &changes);
        Ok(Compared { now, before: before.name.clone(), changes, breaks })
    }

    fn word(&self) -> String {
        let breaking = self.changes.iter().filter(|change| change.breaks()).count();
        let version = if self.before == self.now.name { String::new() } else { format!(" since {}", self.before) };
        match (self.changes.len(), breaking) {
            (0, _) => format!("as released{version}"),
            (1, 0) => format!("1 change{version}, breaks nobody"),
            (changes, 0) => format!("{changes} changes{version}, break nobody"),
            (1, _) => format!("1 change{version}, breaks"),
            (changes, breaking) => format!("{changes} changes{version}, of which {breaking} break"),
        }
    }
}

fn check(common: &Common, name: Option<&str>, against: Option<&std::path::Path>) -> Result<(), Failed> {
    let compared = match against {
        Some(path) => {
            let failed = |error: &dyn std::fmt::Display| Failed::new(format!("{}: {error}", path.display()));
            let json = std::fs::read(path).map_err(|error| failed(&output::reason(&error)))?;
            let before = Interface::from_json(&json).map_err(|fault| failed(&fault))?;
            let known = known(name.unwrap_or(before.family()))
                .filter(|known| known.description.name.split('/').next() == Some(before.family()));
            let known =
                known.ok_or_else(|| failed(&format_args!("it describes {}, which is another one", before.name)))?;
            vec![Compared::with(known, &before)?]
        }
        None => {
            let names =
                |known: &&Known| name.is_none_or(|name| self::known(name).is_some_and(|it| std::ptr::eq(it, *known)));
            INTERFACES.iter().filter(names).map(Compared::with_released).collect::<Result<_, _>>()?
        }
    };
    if compared.is_empty() {
        let name = name.unwrap_or_default();
        return Err(Failed::new(format!("there is no interface {name}")).help("`atoll interface` lists them"));
    }
    if common.json {
        let facts: Vec<_> = compared
            .iter()
            .map(|one| json!({ "name": one.now.name, "before": one.before, "ok": !one.breaks, "changes": one.changes }))
            .collect();
        output::json(&json!({ "interfaces": facts }))?;
    } else {
        compared.iter().try_for_each(write)?;
    }
    let broken: Vec<&str> = compared.iter().filter(|one| one.breaks).map(|one| one.now.name.as_str()).collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(Failed::new(format!("without a new version, somebody breaks: {}", broken.join(", "))).help(
        "give it a new version, or leave what was there as it was: docs/interfaces.md, \"Changing an interface\"",
    ))
}

fn write(compared: &Compared) -> Result<(), Failed> {
    let colours = output::stdout_colours();
    let colour = if compared.breaks { Colour::Red } else { Colour::Green };
    output::line(&format!("{}: {}", compared.now.name, paint(&compared.word(), colour, colours)))?;
    for change in &compared.changes {
        let whom = match (change.breaks_old_clients, change.breaks_new_clients) {
            (false, false) => "breaks nobody",
            (true, false) => "breaks clients of before",
            (false, true) => "breaks clients of now on hosts of before",
            (true, true) => "breaks clients of before, and clients of now on hosts of before",
        };
        let whom = if change.breaks() { paint(whom, Colour::Yellow, colours) } else { whom.into() };
        output::line(&format!("  {}: {}; {whom}", change.place, change.what))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_was_kept_means_something() {
        let lookup = protocol::fs::DESCRIPTION.operations.iter().find(|operation| operation.name == "lookup");
        let number = lookup.expect("it is there").number;
        let means = |interface: &str, payload: &[u8]| arguments(interface, number, payload);
        assert_eq!(means("atoll.fs/1", b"\x03\0\0\0a/b"), Some(json!({ "path": "a/b" })));
        assert_eq!(means("atoll.fs/1", b"\x04\0\0\0a/b"), None);
        assert_eq!(means("atoll.fs/9", b"\x03\0\0\0a/b"), None);
    }
}
