//! An interface as data: what `#[interface]` emits as `DESCRIPTION`.
//!
//! * The host end of a session reads it to check a call before any user code runs.
//! * The manifest's checks read the names of rights from it. What is of no use to a call stands in
//!   [`described::Interface`](crate::described::Interface), which is made from it.
//! * Everything in it is part of the interface's contract: numbers never change their meaning.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::described::{Details, Types};
use crate::rights::Rights;

/// One interface and version.
#[derive(Debug)]
pub struct Description {
    /// Name and version, as in a manifest: `"atoll.fs/1"`.
    pub name: &'static str,
    /// The object kinds; kind number `n` is entry `n - 1`. A session's root has kind 1.
    pub kinds: &'static [&'static str],
    /// Manifest name (lower-case) and bit of each right that an operation asks for or a mapper needs.
    pub rights: &'static [(&'static str, Rights)],
    /// The operations, in ascending order of their numbers.
    pub operations: &'static [Operation],
    /// The rest: types down to the bytes, and texts. See [`Interface::of`](crate::described::Interface::of).
    pub details: fn(&mut Types) -> Details,
}

impl Description {
    /// The operation with this number, as it came from a peer. O(1) where numbers have no gaps.
    pub fn operation(&self, number: u16) -> Option<&Operation> {
        let dense = self.operations.get(usize::from(number).wrapping_sub(1));
        dense.filter(|operation| operation.number == number).or_else(|| {
            let found = self.operations.binary_search_by_key(&number, |operation| operation.number);
            found.ok().and_then(|index| self.operations.get(index))
        })
    }

    /// The right with this manifest name.
    pub fn right(&self, name: &str) -> Option<Rights> {
        self.rights.iter().find(|(known, _)| *known == name).map(|(_, right)| *right)
    }

    /// Every right that the interface knows.
    pub fn all_rights(&self) -> Rights {
        self.rights.iter().fold(Rights::empty(), |all, (_, right)| all | *right)
    }
}

/// One operation of an interface.
#[derive(Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its number on the wire; 1 or more.
    pub number: u16,
    /// Its name.
    pub name: &'static str,
    /// The object kind that it is called on.
    pub target_kind: u8,
    /// Rights that the target's capability must have.
    pub requires: Rights,
    /// What may be done when its answer is lost.
    pub retry: Retry,
    /// How long a caller waits unless it says otherwise; `None`: for ever.
    pub deadline: Option<Duration>,
    /// Its handler is an ordinary function, which never waits; nothing but its payload is brought by the answer. The host's own
    /// affair: nobody else is told.
    pub at_once: bool,
    /// The handle arguments beside the target, in order. A call carries exactly these.
    pub handles: &'static [HandleArgument],
    /// Arguments and result as written in the trait, for people.
    pub signature: &'static str,
}

/// A handle argument of an operation.
#[derive(Debug, PartialEq, Eq)]
pub struct HandleArgument {
    /// Its name.
    pub name: &'static str,
    /// The object kind that it must name.
    pub kind: u8,
    /// Rights that its capability must have.
    pub requires: Rights,
}

/// What may be done with a call whose answer is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Retry {
    /// Running it twice is as good as once: it is run again.
    Idempotent = 1,
    /// At most once: it is sent again only when it certainly did not run, and its reply can be repeated.
    Cached = 2,
    /// At most once, and its reply is not kept: it is never sent again, whatever is known.
    #[default]
    Never = 3,
}
