//! Where things are: which nodes there are, and which component runs on which.
//!
//! A directory is asked, and decides nothing. The one here is *embedded*: a set of nodes that changes only when somebody runs
//! `atoll node join` or `remove`, and places that the manifest says. One that elects, or moves what a dead node ran, is another one.

use std::collections::BTreeMap;

use kernel_ipc::link::socket::keys::NodeName;
use protocol::node::Member;

use super::home::{Home, HomeError};
use crate::manifest::Checked;

/// Says where things are. Its answers are as of one moment.
pub trait Directory {
    /// All nodes, by name.
    ///
    /// # Errors
    /// What is known of them cannot be read.
    fn nodes(&self) -> Result<Vec<Member>, HomeError>;

    /// The node of this name.
    ///
    /// # Errors
    /// As [`nodes`](Directory::nodes).
    fn node(&self, name: &NodeName) -> Result<Option<Member>, HomeError>;

    /// The node on which a component runs; `None`: there is no such component, or it runs wherever the system was started.
    fn place(&self, component: &str) -> Option<NodeName>;
}

/// What a node's state directory and a manifest say.
#[derive(Clone, Debug)]
pub struct Embedded {
    home: Home,
    places: BTreeMap<String, NodeName>,
}

impl Embedded {
    /// Of this node, and this system.
    pub fn new(home: Home, system: &Checked) -> Embedded {
        let place = |component: &crate::manifest::Component| {
            Some((component.name.clone(), NodeName::new(component.node.as_deref()?)?))
        };
        Embedded { home, places: system.components.iter().filter_map(place).collect() }
    }

    /// This node's own.
    pub fn home(&self) -> &Home {
        &self.home
    }
}

impl Directory for Embedded {
    fn nodes(&self) -> Result<Vec<Member>, HomeError> {
        self.home.known()
    }

    fn node(&self, name: &NodeName) -> Result<Option<Member>, HomeError> {
        self.home.find_member(name)
    }

    fn place(&self, component: &str) -> Option<NodeName> {
        self.places.get(component).cloned()
    }
}

/// Why a system cannot run where its manifest says.
///
/// # Errors
/// For people: a node that there is not, or a state directory that is none.
pub fn check_places(directory: Option<&impl Directory>, system: &Checked) -> Result<(), String> {
    let components = system
        .components
        .iter()
        .filter_map(|component| Some((format!("component {} is to run on", component.name), component.node.as_ref()?)));
    let operators = system.operators.iter().map(|node| ("an operator is to be on".to_owned(), node));
    for (what, node) in components.chain(operators) {
        let Some(directory) = directory else {
            return Err(format!(
                "{what} node {node}, and this state directory is no node of a cluster: without keys \
                 nothing is said to other machines (see `atoll node`)"
            ));
        };
        let known = NodeName::new(node).map_or(Ok(None), |node| directory.node(&node));
        if known.map_err(|error| error.to_string())?.is_none() {
            let nodes = directory.nodes().map_err(|error| error.to_string())?;
            let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
            return Err(format!("{what} node {node}, and there are only {}", names.join(", ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Manifest, Origin};

    /// What every directory has to say of nodes `a` and `b`, with `one` on `a` and `two` on `b`.
    fn says_where_things_are(directory: &impl Directory) {
        let names: Vec<String> = directory.nodes().unwrap().into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["a", "b"]);
        for name in ["a", "b"] {
            let name = NodeName::new(name).unwrap();
            assert_eq!(directory.node(&name).unwrap().unwrap().name, name.as_str());
        }
        assert!(directory.node(&NodeName::new("c").unwrap()).unwrap().is_none());
        assert_eq!(directory.place("one"), NodeName::new("a"));
        assert_eq!(directory.place("two"), NodeName::new("b"));
        assert_eq!(directory.place("three"), None);
    }

    fn system(place: &str) -> Checked {
        let component = |name: &str, node: &str| {
            format!(
                "[component.{name}]\nrun = \"builtin:null\"\nprovides.null = \"atoll.null/1\"\nplace = \"node:{node}\"\n"
            )
        };
        let text = format!("atoll = 1\n{}{}", component("one", "a"), component("two", place));
        Manifest::load(Origin::Text { name: "test", text: &text }, &[]).unwrap()
    }

    #[test]
    fn the_embedded_directory_says_where_things_are() {
        let state = tempfile::tempdir().unwrap();
        let listen: std::net::SocketAddr = "127.0.0.1:7700".parse().unwrap();
        let home = Home::init(state.path(), &NodeName::new("a").unwrap(), listen).unwrap();
        let mut b = home.known().unwrap().remove(0);
        b.name = "b".into();
        home.members().put(&b).unwrap();
        let directory = Embedded::new(home, &system("b"));
        says_where_things_are(&directory);
        check_places(Some(&directory), &system("b")).unwrap();
        let why = check_places(Some(&directory), &system("c")).unwrap_err();
        assert!(why.contains("component two is to run on node c, and there are only a, b"), "{why}");
        let why = check_places(None::<&Embedded>, &system("b")).unwrap_err();
        assert!(why.contains("no node of a cluster"), "{why}");
    }
}
