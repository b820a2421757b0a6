//! What travels beside payloads, under names that people can write.

use serde_json::{Value, json};

use crate::codec::Malformed;
use crate::wire::{Handle, LeaseName};

/// Capabilities and leases of one session, numbered as they came: `$1`, `$2`, …
#[derive(Clone, Debug, Default)]
pub struct Book {
    entries: Vec<Entry>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A capability of this object kind.
    Capability(String, Handle),
    /// A lease.
    Lease(LeaseName),
}

impl Book {
    /// The entries, in the order of their names.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Enters a capability or lease, and gives its name.
    pub fn enter(&mut self, entry: Entry) -> String {
        self.entries.push(entry);
        format!("${}", self.entries.len())
    }

    /// What `name` stands for.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        let number: usize = name.strip_prefix('$')?.parse().ok()?;
        self.entries.get(number.checked_sub(1)?)
    }

    /// A capability as JSON, entered.
    pub(super) fn capability(&mut self, kind: &str, handle: Handle) -> Value {
        json!({ "capability": self.enter(Entry::Capability(kind.into(), handle)), "kind": kind })
    }

    /// A lease as JSON, entered.
    pub(super) fn lease(&mut self, name: LeaseName) -> Value {
        json!({ "lease": self.enter(Entry::Lease(name)), "bytes": name.length })
    }

    /// A part of a lease as JSON, entered.
    pub(super) fn part(&mut self, name: LeaseName, offset: u64, length: u64) -> Result<Value, Malformed> {
        match offset.checked_add(length) {
            Some(end) if end <= name.length => {
                Ok(json!({ "lease": self.enter(Entry::Lease(name)), "offset": offset, "length": length }))
            }
            _ => Err(Malformed),
        }
    }
}
