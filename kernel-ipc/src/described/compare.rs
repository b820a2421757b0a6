//! What changed between two descriptions of one interface, and whom that breaks.
//!
//! * Two pairs can meet: a client of before with a host of now, and a client of now with a host of before. Whether a change
//!   breaks a pair depends on who sends what changed: a new value of an enum breaks a client of before if hosts send it, and a
//!   host of before if clients do.
//! * What a client of now asks for and a host of before does not have is no break: it answers `UnknownOperation`, not executed.
//! * Names travel nowhere but in manifests, where rights have theirs. Other names, texts and default deadlines may change.
//! * In doubt it breaks: a struct that becomes a tuple of the same bytes is not looked into.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{Definition, Field, Interface, Operation, Type, Variant};
use crate::interface::Retry;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where: `operation read, argument count`.
    pub place: String,
    /// What: `u32 has become u64`.
    pub what: String,
    /// A client of before and a host of now no longer understand each other here.
    pub breaks_old_clients: bool,
    /// A client of now and a host of before do not understand each other here.
    pub breaks_new_clients: bool,
}

impl Change {
    /// Whether anybody is broken by it.
    pub fn breaks(&self) -> bool {
        self.breaks_old_clients || self.breaks_new_clients
    }
}

/// Whether a change breaks somebody, and the version does not say so.
pub fn breaks_unsaid(old: &Interface, new: &Interface, changes: &[Change]) -> bool {
    new.version() <= old.version() && changes.iter().any(Change::breaks)
}

/// Whom a change breaks: clients of before, clients of now.
#[derive(Clone, Copy)]
struct Breaks(bool, bool);

const NOBODY: Breaks = Breaks(false, false);
const OLD_CLIENTS: Breaks = Breaks(true, false);
const NEW_CLIENTS: Breaks = Breaks(false, true);
const BOTH: Breaks = Breaks(true, true);

/// Who sends a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sender {
    Client,
    Host,
}

impl Sender {
    /// The value can be what it could not be before.
    fn may_send_more(self) -> Breaks {
        match self {
            Sender::Client => NEW_CLIENTS,
            Sender::Host => OLD_CLIENTS,
        }
    }

    /// The value can no longer be what it could be before.
    fn may_send_less(self) -> Breaks {
        match self {
            Sender::Client => OLD_CLIENTS,
            Sender::Host => NEW_CLIENTS,
        }
    }
}

/// What is different in `new`, in the order of the interface. Versions are not looked at.
pub fn compare(old: &Interface, new: &Interface) -> Vec<Change> {
    let mut comparer = Comparer { old, new, changes: Vec::new(), compared: BTreeSet::new() };
    comparer.kinds();
    comparer.rights();
    for operation in &old.operations {
        match new.operations.iter().find(|other| other.number == operation.number) {
            Some(other) => comparer.operation(operation, other),
            None => comparer.add(&at(operation), "is gone", OLD_CLIENTS),
        }
    }
    for operation in &new.operations {
        if !old.operations.iter().any(|other| other.number == operation.number) {
            comparer.add(&at(operation), "is new; hosts of before answer UnknownOperation, not executed", NOBODY);
        }
    }
    comparer.changes
}

fn at(operation: &Operation) -> String {
    format!("operation {} {}", operation.number, operation.name)
}

struct Comparer<'a> {
    old: &'a Interface,
    new: &'a Interface,
    changes: Vec<Change>,
    /// Named types that were compared for this sender.
    compared: BTreeSet<(&'a str, &'a str, Sender)>,
}

impl<'a> Comparer<'a> {
    /// Adds a change; one that is known already breaks whom either breaks.
    fn add(&mut self, place: &str, what: impl Into<String>, Breaks(old_clients, new_clients): Breaks) {
        let what = what.into();
        match self.changes.iter_mut().find(|known| known.place == place && known.what == what) {
            Some(known) => {
                known.breaks_old_clients |= old_clients;
                known.breaks_new_clients |= new_clients;
            }
            None => self.changes.push(Change {
                place: place.into(),
                what,
                breaks_old_clients: old_clients,
                breaks_new_clients: new_clients,
            }),
        }
    }

    /// An object kind's number stands in the ledgers of sessions that outlive their host.
    fn kinds(&mut self) {
        for (at, kind) in self.old.kinds.iter().enumerate() {
            let place = format!("object kind {}", kind.name);
            match self.new.kinds.iter().position(|other| other.name == kind.name) {
                Some(now) if now == at => {}
                Some(now) => self.add(&place, format!("number {} has become {}", at + 1, now + 1), OLD_CLIENTS),
                None => self.add(&place, "is gone", OLD_CLIENTS),
            }
        }
        for kind in &self.new.kinds {
            if !self.old.kinds.contains(kind) && !self.old.kinds.iter().any(|other| other.name == kind.name) {
                self.add(&format!("object kind {}", kind.name), "is new", NOBODY);
            }
        }
    }

    fn rights(&mut self) {
        for right in &self.old.rights {
            let place = format!("right {}", right.name);
            match self.new.rights.iter().find(|other| other.name == right.name) {
                Some(other) if other.bit == right.bit => {}
                Some(other) => self.add(&place, format!("bit {} has become {}", right.bit, other.bit), BOTH),
                None => self.add(&place, "is gone; manifests that give it are refused", OLD_CLIENTS),
            }
        }
        for right in &self.new.rights {
            if !self.old.rights.iter().any(|other| other.name == right.name) {
                self.add(&format!("right {}", right.name), "is new", NOBODY);
            }
        }
    }

    fn operation(&mut self, old: &'a Operation, new: &'a Operation) {
        let place = at(old);
        if old.name != new.name {
            self.add(&place, format!("is now called {}", new.name), NOBODY);
        }
        if old.target.kind != new.target.kind {
            let what = format!("is called on a {} and no longer on a {}", new.target.kind, old.target.kind);
            self.add(&place, what, BOTH);
        }
        self.requires(&place, &old.requires, &new.requires);
        if old.retry != new.retry {
            // Who may repeat a call must not meet a host that cannot bear it.
            let freedom = |retry| match retry {
                Retry::Idempotent => 2,
                Retry::Cached => 1,
                Retry::Never => 0,
            };
            let breaks = if freedom(new.retry) < freedom(old.retry) { OLD_CLIENTS } else { NEW_CLIENTS };
            let what = format!("retry {} has become {}", word(old.retry), word(new.retry));
            self.add(&place, what, breaks);
        }
        if old.deadline_ns != new.deadline_ns {
            self.add(&place, "the default deadline has changed", NOBODY);
        }
        self.fields(&place, "argument", &old.arguments, &new.arguments, Sender::Client);
        self.types(&format!("{place}, result"), &old.result, &new.result, Sender::Host);
        let errors = |of: &'a Interface, set: &str| of.errors.get(set).map_or(&[][..], Vec::as_slice);
        let (before, now) = (errors(self.old, &old.error), errors(self.new, &new.error));
        self.variants(&format!("errors {}", new.error), before, now, Sender::Host);
    }

    fn requires(&mut self, place: &str, old: &[String], new: &[String]) {
        for right in new.iter().filter(|right| !old.contains(right)) {
            self.add(place, format!("requires {right} now"), OLD_CLIENTS);
        }
        for right in old.iter().filter(|right| !new.contains(right)) {
            self.add(place, format!("no longer requires {right}"), NEW_CLIENTS);
        }
    }

    fn fields(&mut self, place: &str, word: &str, old: &[Field], new: &[Field], sender: Sender) {
        for (before, now) in old.iter().zip(new) {
            let place = format!("{place}, {word} {}", before.name);
            if before.name != now.name {
                self.add(&place, format!("is now called {}", now.name), NOBODY);
            }
            self.types(&place, &before.ty, &now.ty, sender);
        }
        for gone in old.iter().skip(new.len()) {
            self.add(&format!("{place}, {word} {}", gone.name), "is gone", BOTH);
        }
        for added in new.iter().skip(old.len()) {
            self.add(&format!("{place}, {word} {}", added.name), format!("is new, a {}", added.ty), BOTH);
        }
    }

    fn types(&mut self, place: &str, old: &Type, new: &Type, sender: Sender) {
        match (old, new) {
            (Type::Named(before), Type::Named(now)) => self.named(place, before, now, sender),
            (Type::List(before), Type::List(now))
            | (Type::Packed(before), Type::Packed(now))
            | (Type::Option(before), Type::Option(now)) => self.types(place, before, now, sender),
            (Type::Tuple(before), Type::Tuple(now)) if before.len() == now.len() => {
                for (at, (before, now)) in before.iter().zip(now).enumerate() {
                    self.types(&format!("{place}.{at}"), before, now, sender);
                }
            }
            (Type::Handle { kind, requires }, Type::Handle { kind: now, requires: required }) if kind == now => {
                self.requires(place, requires, required);
            }
            // The same bytes: what stands in them is only said, or no longer.
            (Type::Bytes, Type::Packed(_)) | (Type::Packed(_), Type::Bytes) => {
                self.add(place, format!("{old} is described as {new}"), NOBODY);
            }
            _ if old == new => {}
            _ => self.add(place, format!("{old} has become {new}"), BOTH),
        }
    }

    fn named(&mut self, place: &str, before: &str, now: &str, sender: Sender) {
        let (old, new) = (self.old, self.new);
        let (Some((before, old)), Some((now, new))) = (old.types.get_key_value(before), new.types.get_key_value(now))
        else {
            return self.add(place, format!("{before} has become {now}"), BOTH);
        };
        if before != now {
            self.add(place, format!("{before} has become {now}"), NOBODY);
        }
        if !self.compared.insert((before, now, sender)) {
            return;
        }
        let place = format!("type {now}");
        match (old, new) {
            (Definition::Struct { fields: before, .. }, Definition::Struct { fields: now, .. }) => {
                self.fields(&place, "field", before, now, sender);
            }
            (Definition::Enum { variants: before, .. }, Definition::Enum { variants: now, .. }) => {
                self.variants(&place, before, now, sender);
            }
            (Definition::Bytes { min, max, .. }, Definition::Bytes { min: least, max: most, .. }) => {
                let what = format!("{min} to {max} bytes have become {least} to {most}");
                if least > min || most < max {
                    self.add(&place, what.clone(), sender.may_send_less());
                }
                if least < min || most > max {
                    self.add(&place, what, sender.may_send_more());
                }
            }
            _ => self.add(&place, "is defined in another way", BOTH),
        }
    }

    fn variants(&mut self, place: &str, old: &[Variant], new: &[Variant], sender: Sender) {
        for before in old {
            let place = format!("{place}, {} {}", before.number, before.name);
            match new.iter().find(|now| now.number == before.number) {
                Some(now) => {
                    if now.name != before.name {
                        self.add(&place, format!("is now called {}", now.name), NOBODY);
                    }
                    self.fields(&place, "field", &before.fields, &now.fields, sender);
                }
                None => self.add(&place, "is gone", sender.may_send_less()),
            }
        }
        for now in new.iter().filter(|now| !old.iter().any(|before| before.number == now.number)) {
            self.add(&format!("{place}, {} {}", now.number, now.name), "is new", sender.may_send_more());
        }
    }
}

fn word(retry: Retry) -> &'static str {
    match retry {
        Retry::Idempotent => "idempotent",
        Retry::Cached => "cached",
        Retry::Never => "never",
    }
}

#[cfg(test)]
mod tests;
