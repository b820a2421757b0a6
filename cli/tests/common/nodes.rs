//! Nodes of a cluster: each a state directory on this machine, with a loopback address of its own.

use std::process::Output;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::Value;

use super::{System, said};

/// A system that does next to nothing.
const MANIFEST: &str = "atoll = 1\n[component.null]\nrun = \"builtin:null\"\nprovides.null = \"atoll.null/1\"\n";

/// An address of this machine that no other test has: all of 127.0.0.0/8 is its own.
pub fn address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    format!("127.{}.{low}.{}:7700", 100 + high % 100, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A node whose system is up, or can be brought up.
pub struct Node {
    pub system: System,
    pub address: String,
}

impl Node {
    pub fn empty() -> Node {
        let node = Node { system: System::empty(), address: address() };
        std::fs::write(node.manifest(), MANIFEST).expect("a manifest can be written");
        node
    }

    /// The first node of a cluster, called `a`, up.
    pub fn first() -> Node {
        let node = Node::empty();
        node.system.ok(&["node", "init", "a", "--listen", &node.address]);
        node.up();
        node
    }

    pub fn up(&self) {
        let output = self.try_up();
        assert!(output.status.success(), "up: {}\n{}", said(&output), self.system.supervisor_log());
    }

    pub fn try_up(&self) -> Output {
        self.system.atoll(&["up", self.manifest().to_str().expect("text"), "--detach"])
    }

    /// The manifest that it comes up with: one that does next to nothing, unless the test has written another one.
    pub fn manifest(&self) -> std::path::PathBuf {
        self.system.file("test.toml")
    }

    pub fn token(&self) -> String {
        self.system.ok(&["node", "token"]).trim().to_owned()
    }

    pub fn join(&self, to: &Node, token: &str, name: &str) -> Output {
        self.system.atoll(&["node", "join", &to.address, token, "--name", name, "--listen", &self.address])
    }

    /// What a join that must fail says.
    pub fn join_in_vain(&self, to: &Node, token: &str, name: &str) -> String {
        let output = self.join(to, token, name);
        assert!(!output.status.success() && output.stdout.is_empty(), "it has joined: {}", said(&output));
        assert!(!self.system.file("node").exists(), "something is left: {}", said(&output));
        String::from_utf8(output.stderr).expect("text")
    }

    /// A node of the cluster of `first`, not up.
    pub fn joined(first: &Node, name: &str) -> Node {
        let node = Node::empty();
        let output = node.join(first, &first.token(), name);
        assert!(output.status.success(), "{}", said(&output));
        node
    }

    /// Names and addresses of the nodes, and whether the list is of now.
    pub fn nodes(&self) -> (Vec<(String, String)>, bool) {
        let said: Value = serde_json::from_str(&self.system.ok(&["node", "ls", "--json"])).expect("JSON");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let nodes = said["nodes"].as_array().expect("a list").iter();
        let nodes = nodes.map(|node| (text(&node["name"]), text(&node["address"]))).collect();
        (nodes, said["current"].as_bool().expect("yes or no"))
    }

    /// What `node ls` says beside the list.
    pub fn complaint(&self) -> String {
        let output = self.system.atoll(&["node", "ls"]);
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stderr).expect("text")
    }
}
