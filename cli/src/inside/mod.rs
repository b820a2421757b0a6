//! To see inside a running system: `stat`, `stuck` and `trace`, from the logbooks that its components write, and
//! `capabilities`, from the ledgers of sessions.
//!
//! * Nothing of it needs an answer of the component that is looked at: it may hang, or be dead.

pub mod capabilities;
pub mod stat;
pub mod stuck;
pub mod trace;

use kernel_ipc::component::Context;
use kernel_ipc::interface::{Description, Operation};
use kernel_ipc::logbook::{Reader, Snapshot};
use protocol::control::ComponentStatus;

use crate::control;
use crate::output::Failed;

/// A component, and what it writes of itself.
pub struct Book {
    /// As `atoll ps` knows it.
    pub component: ComponentStatus,
    /// None if it was never started.
    reader: Option<Reader>,
}

impl Book {
    /// What stands in it now.
    pub fn read(&self) -> Option<Snapshot> {
        self.reader.as_ref().and_then(Reader::read)
    }

    /// Whoever reads it over and over.
    pub fn reader(&self) -> Option<&Reader> {
        self.reader.as_ref()
    }
}

/// The logbooks of all components, or of one.
///
/// # Errors
/// There is no such component, or what the supervisor says.
pub async fn books(context: &Context, only: Option<&str>) -> Result<Vec<Book>, Failed> {
    let mut books = Vec::new();
    for component in control::components(context).await? {
        if only.is_some_and(|only| only != component.name) {
            continue;
        }
        let reader = context.logbook(&component.name).await.map_err(|error| Failed::new(error.to_string()))?;
        books.push(Book { component, reader });
    }
    match only {
        Some(only) if books.is_empty() => {
            Err(Failed::new(format!("{only}: no such component")).help("`atoll ps` lists the components"))
        }
        _ => Ok(books),
    }
}

/// An operation's name, and whether it waits by design: it has no deadline.
pub fn operation(interface: &str, number: u16) -> (String, bool) {
    let known = protocol::INTERFACES.iter().find(|known| known.description.name == interface);
    match known.and_then(|known| known.description.operation(number)) {
        Some(operation) => (operation.name.to_owned(), operation.deadline.is_none()),
        None => (format!("operation {number}"), false),
    }
}

/// An operation that its host has named.
pub fn named(name: &str, number: u16) -> Option<(&'static Description, &'static Operation)> {
    protocol::INTERFACES.iter().find_map(|known| {
        let operation = known.description.operation(number).filter(|operation| operation.name == name)?;
        Some((known.description, operation))
    })
}
