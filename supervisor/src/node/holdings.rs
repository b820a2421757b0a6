//! Descriptors that outlive a component's runs: listening sockets, and whatever else the kernel knows only by a descriptor.
//!
//! - A component gives them under names, and its next run gets them behind its greeting, whether or not it survives.
//! - What a run said before it died counts, also if it is read afterwards: its clients may have been told already.
//! - The keeper has all of it, so it outlives the supervisor as well.
//! - Nothing is held for a component that is given up, or when the node ends: the last copies are closed then.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use kernel_ipc::broker::{EXPORT, MAX_HELD, MAX_HELD_NAME, MAX_SESSIONS_HELD, SESSION, ToComponent};

use super::records::{Kept, Kind, NamedTag, Records, hash, text};

/// Why a descriptor is not held.
#[derive(Debug, PartialEq, Eq)]
pub enum NotHeld {
    /// As many sessions of the component are held as may be. It counts them itself, but what it let go of may not have been heard, by a
    /// supervisor that died: this one ends with its run, and nobody is to blame.
    NoPlace,
    /// Whoever asked for it is not correct, or the keeper fails. For people.
    Wrong(String),
}

impl From<NotHeld> for String {
    fn from(why: NotHeld) -> String {
        match why {
            NotHeld::NoPlace => "as many sessions are held as may be".into(),
            NotHeld::Wrong(why) => why,
        }
    }
}

/// What is held for one component.
pub struct Holdings {
    slot: u32,
    records: Rc<Records>,
    held: RefCell<BTreeMap<String, Kept>>,
}

impl Holdings {
    /// Nothing, for the component in this slot.
    pub fn new(slot: u32, records: Rc<Records>) -> Holdings {
        Holdings { slot, records, held: RefCell::default() }
    }

    /// What was held when the last supervisor died.
    pub fn recall(&self, name: String, descriptor: Kept) {
        self.held.borrow_mut().insert(name, descriptor);
    }

    /// Holds a descriptor.
    ///
    /// # Errors
    /// See [`NotHeld`].
    pub fn hold(&self, name: String, descriptor: OwnedFd) -> Result<(), NotHeld> {
        let mut held = self.held.borrow_mut();
        // What the supervisor gives is bounded by the manifest.
        let most = match kind(&name) {
            SESSION => MAX_SESSIONS_HELD,
            EXPORT => usize::MAX,
            _ => MAX_HELD,
        };
        let others = held.keys().filter(|known| kind(known) == kind(&name) && **known != name).count();
        if others >= most && kind(&name) == SESSION {
            return Err(NotHeld::NoPlace);
        }
        if name.len() > MAX_HELD_NAME || others >= most {
            return Err(NotHeld::Wrong("it wants too much to be held".into()));
        }
        let wrong = |error: std::io::Error| NotHeld::Wrong(error.to_string());
        let tag = NamedTag { number: 0, name: text(&name).ok_or(NotHeld::Wrong("a name that is none".into()))? };
        let kept = self.records.hold(Kind::Held, self.slot, hash(&name), &tag, descriptor).map_err(wrong)?;
        held.insert(name, kept);
        Ok(())
    }

    /// Lets go of one. That there is none is nobody's fault: the component may have been given up meanwhile.
    pub fn let_go(&self, name: &str) {
        self.held.borrow_mut().remove(name);
    }

    /// Lets go of all.
    pub fn clear(&self) {
        self.held.borrow_mut().clear();
    }

    /// What is held under this name.
    pub fn again(&self, name: &str) -> Option<OwnedFd> {
        self.held.borrow().get(name)?.again().ok()
    }

    /// The names of all that is held.
    pub fn names(&self) -> Vec<String> {
        self.held.borrow().keys().cloned().collect()
    }

    /// What is held under names that begin so, with the rest of each name.
    pub fn those(&self, prefix: &str) -> Vec<(String, OwnedFd)> {
        let held = self.held.borrow();
        let its =
            held.iter().filter_map(|(name, held)| Some((name.strip_prefix(prefix)?.to_owned(), held.again().ok()?)));
        its.collect()
    }

    /// What the next run is told of them.
    pub fn all(&self) -> Vec<(ToComponent, OwnedFd)> {
        let held = self.held.borrow();
        let copy = |(name, descriptor): (&String, &Kept)| {
            Some((ToComponent::Held { name: name.clone() }, descriptor.again().ok()?))
        };
        held.iter().filter_map(copy).collect()
    }
}

/// Descriptors of which kind a name is: others do not count with them.
fn kind(name: &str) -> &'static str {
    [SESSION, EXPORT].into_iter().find(|kind| name.starts_with(kind)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_name_holds_one_descriptor_and_there_is_a_bound() {
        let records = Rc::new(Records::to_nobody());
        let holdings = Holdings::new(1, records.clone());
        for n in 0..MAX_HELD {
            holdings.hold(format!("n{n}"), descriptor()).unwrap();
        }
        assert!(matches!(holdings.hold("one more".into(), descriptor()), Err(NotHeld::Wrong(_))));
        // Sessions count apart.
        for n in 0..MAX_SESSIONS_HELD {
            holdings.hold(format!("{SESSION}{n}"), descriptor()).unwrap();
        }
        // One more than its component may think, which has let go of another: that it has was lost.
        assert_eq!(holdings.hold(format!("{SESSION}more"), descriptor()), Err(NotHeld::NoPlace));
        (0..MAX_SESSIONS_HELD).for_each(|n| holdings.let_go(&format!("{SESSION}{n}")));
        holdings.hold("n0".into(), descriptor()).unwrap();
        assert_eq!(holdings.all().len(), MAX_HELD);
        holdings.let_go("n0");
        holdings.let_go("no such");
        assert!(holdings.hold("x".repeat(MAX_HELD_NAME + 1), descriptor()).is_err());
        holdings.hold("one more".into(), descriptor()).unwrap();
        holdings.clear();
        assert!(holdings.all().is_empty());
    }
}
