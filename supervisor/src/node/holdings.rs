//! Descriptors that outlive a component's runs: listening sockets, and whatever else the kernel knows only by a descriptor.
//!
//! - A component gives them under names, and its next run gets them behind its greeting, whether or not it survives.
//! - What a run said before it died counts, also if it is read afterwards: its clients may have been told already.
//! - Nothing is held for a component that is given up, or when the node ends: the last copies are closed then.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use kernel_ipc::broker::{MAX_HELD, MAX_HELD_NAME, ToComponent};

/// What is held for one component.
#[derive(Default)]
pub struct Holdings(RefCell<BTreeMap<String, OwnedFd>>);

impl Holdings {
    /// Holds a descriptor.
    ///
    /// # Errors
    /// Why it is not held, for people.
    pub fn hold(&self, name: String, descriptor: OwnedFd) -> Result<(), String> {
        let mut held = self.0.borrow_mut();
        if name.len() > MAX_HELD_NAME || (held.len() >= MAX_HELD && !held.contains_key(&name)) {
            return Err("it wants too much to be held".into());
        }
        held.insert(name, descriptor);
        Ok(())
    }

    /// Lets go of one. That there is none is nobody's fault: the component may have been given up meanwhile.
    pub fn let_go(&self, name: &str) {
        self.0.borrow_mut().remove(name);
    }

    /// Lets go of all.
    pub fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    /// What the next run is told of them.
    pub fn all(&self) -> Vec<(ToComponent, OwnedFd)> {
        let held = self.0.borrow();
        let copy = |(name, descriptor): (&String, &OwnedFd)| {
            Some((ToComponent::Held { name: name.clone() }, descriptor.try_clone().ok()?))
        };
        held.iter().filter_map(copy).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_name_holds_one_descriptor_and_there_is_a_bound() {
        let holdings = Holdings::default();
        for n in 0..MAX_HELD {
            holdings.hold(format!("n{n}"), descriptor()).unwrap();
        }
        assert!(holdings.hold("one more".into(), descriptor()).is_err());
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
