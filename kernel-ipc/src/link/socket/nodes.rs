//! Which machines are nodes now. A certificate says who has signed it, and is good for a day or a year; who is a node, the cluster
//! says, and may say otherwise any time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::keys::{FINGERPRINT_BYTES, NodeName, fingerprint};
use crate::runtime::Changes;

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KnownNode {
    /// There is none of this name.
    Gone,
    /// The one that has the authority's key: what it signs for itself is as good as what it signs for others.
    Authority,
    /// The machine whose certificate has this fingerprint.
    Certified([u8; FINGERPRINT_BYTES]),
}

/// The nodes with which somebody has to do. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Nodes(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    known: RefCell<HashMap<NodeName, KnownNode>>,
    changes: Changes,
}

impl Nodes {
    /// Learns what a node is now. True: it was something else, and who came under its name has to be looked at again.
    pub fn learn(&self, node: NodeName, known: KnownNode) -> bool {
        let before = self.0.known.borrow_mut().insert(node, known);
        let has_changed = before.is_some_and(|before| before != known);
        if has_changed {
            self.0.changes.happen();
        }
        has_changed
    }

    /// Whether who has proven to be of this node, by a certificate that `issuer` (DER) has signed, is of the machine that it is now.
    /// Nobody is of a node that is not known.
    pub fn admits(&self, node: &NodeName, issuer: Option<&[u8]>) -> bool {
        match self.0.known.borrow().get(node) {
            None | Some(KnownNode::Gone) => false,
            Some(KnownNode::Authority) => true,
            Some(KnownNode::Certified(known)) => issuer.is_some_and(|issuer| fingerprint(issuer) == *known),
        }
    }

    /// Whether it is known that there is no node of this name.
    pub(super) fn has_gone(&self, node: &NodeName) -> bool {
        self.0.known.borrow().get(node) == Some(&KnownNode::Gone)
    }

    /// Waits until something is learnt that is otherwise than it was.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.0.changes.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_removed_is_none_also_when_another_one_has_its_name() {
        let nodes = Nodes::default();
        let name = |name: &str| NodeName::new(name).expect("a name");
        let certified = |certificate: &[u8]| KnownNode::Certified(fingerprint(certificate));
        assert!(!nodes.admits(&name("b"), Some(b"first")), "it is not known");
        assert!(!nodes.learn(name("b"), certified(b"first")), "nothing was known before");
        assert!(nodes.admits(&name("b"), Some(b"first")) && !nodes.admits(&name("b"), None));
        assert!(!nodes.learn(name("b"), certified(b"first")));
        assert!(nodes.learn(name("b"), KnownNode::Gone) && !nodes.admits(&name("b"), Some(b"first")));
        assert!(nodes.learn(name("b"), certified(b"second")));
        assert!(!nodes.admits(&name("b"), Some(b"first")) && nodes.admits(&name("b"), Some(b"second")));
        nodes.learn(name("a"), KnownNode::Authority);
        assert!(nodes.admits(&name("a"), Some(b"any")));
    }
}
