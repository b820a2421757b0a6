//! Components on other nodes than those that lend to them: what a client lends goes to its host as bytes, over TLS.

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::nodes::Node;
use common::trees::{make_tree, same_trees};
use common::{Over, Random, get, keep_asking, kill_now, said, wait_for};

const SETS: [&str; 4] = ["--set", "httpd.listen=127.0.0.1:0", "--set", "disk.size=256MiB"];
const TWO: &str = include_str!("../../systems/two-nodes.toml");
const APART: &str = include_str!("../../systems/apart.toml");

fn up(node: &Node) {
    let manifest = node.manifest();
    let output = node.system.command(&["up", manifest.to_str().expect("text"), "--detach"]).args(SETS).output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "up: {}\n{}", said(&output), node.system.supervisor_log());
}

/// Nodes `a`, `b` and so on, each of which is to run its part of this.
fn cluster<const N: usize>(manifest: &str) -> [Node; N] {
    let first = Node::first();
    let others = (1..N).map(|number| Node::joined(&first, &char::from(b'a' + number as u8).to_string()));
    let others: Vec<Node> = others.collect();
    first.system.ok(&["down"]);
    let nodes: Vec<Node> = std::iter::once(first).chain(others).collect();
    nodes.iter().for_each(|node| fs::write(node.manifest(), manifest).expect("a manifest"));
    nodes.try_into().ok().expect("as many as were made")
}

/// With the operator of `b` as one of both.
fn operated() -> String {
    TWO.replace("name = \"web\"", "name = \"web\"\noperators = [\"node:b\"]")
}

#[test]
fn the_operator_of_another_node_puts_trees_there_and_gets_them_back() {
    let [a, b] = cluster(&operated());
    up(&a);
    up(&b);
    let tree = b.system.file("tree");
    make_tree(&tree);
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    b.system.ok(&["fs", "put", "-r", &text(&tree), "/"]);
    // As it is there, and as it comes back.
    for node in [&a, &b] {
        node.system.ok(&["fs", "get", "-r", "/tree", &text(&node.system.file("back"))]);
        same_trees(&tree, &node.system.file("back"));
    }
    let copied = a.system.component("fs")["copied"].as_u64().expect("a number");
    assert!(copied >= 9 << 20, "{copied}: it was written by another way");
    // While its host is killed: what it has acknowledged is there, and the rest is written by its next run.
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            let _over = Over(&over);
            for round in 0..6 {
                b.system.ok(&["fs", "put", "-r", &text(&tree), &format!("/again-{round}")]);
            }
        });
        while !over.load(Ordering::Relaxed) {
            kill_now(a.system.pid("fs"));
            std::thread::sleep(Duration::from_millis(150));
            a.system.wait_until_ready();
        }
        done.join().expect("every put succeeds");
    });
    for round in [0, 5] {
        let back = a.system.file(&format!("back-{round}"));
        a.system.ok(&["fs", "get", "-r", &format!("/again-{round}"), &text(&back)]);
        same_trees(&tree, &back);
    }
    assert!(a.system.ok(&["fs", "check"]).contains("no problem"));
}

#[test]
fn the_operator_of_a_node_that_the_manifest_does_not_name_is_none_elsewhere() {
    let [a, b] = cluster(TWO);
    up(&a);
    up(&b);
    let output = b.system.atoll(&["fs", "ls", "/"]);
    let error = said(&output);
    assert!(!output.status.success() && error.contains("operators = [\"node:b\"]"), "{error}");
    a.system.ok(&["down"]);
    // This one's manifest says so, and the other's does not: what is given there, is said there.
    fs::write(b.manifest(), operated()).expect("a manifest");
    b.system.ok(&["down"]);
    up(&a);
    up(&b);
    let output = b.system.atoll(&["fs", "ls", "/"]);
    let error = said(&output);
    assert!(!output.status.success() && error.contains("its manifest does not give this"), "{error}");
}

#[test]
fn every_part_is_on_a_node_of_its_own_and_downloads_are_right() {
    let [a, b, c, d] = cluster(APART);
    for node in [&a, &b, &d] {
        up(node);
    }
    let content = Random(9).bytes(11 << 20);
    let file = b.system.file("file.bin");
    fs::write(&file, &content).expect("a file");
    b.system.ok(&["fs", "put", file.to_str().expect("text"), "/www"]);
    b.system.ok(&["fs", "sync"]);
    // By the file system, from its cache and from the disk.
    let back = b.system.file("back.bin");
    b.system.ok(&["fs", "get", "/www/file.bin", back.to_str().expect("text")]);
    assert!(fs::read(&back).expect("a file") == content);
    up(&c);
    let listen = c.system.listen();
    let is_right = || {
        let reply = get(&listen, "/file.bin").expect("an answer");
        assert_eq!(reply.status, 200);
        assert!(reply.body == content, "other bytes");
    };
    is_right();
    // More at a time than lands at once.
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(is_right);
        }
    });
    // Deaths, each in turn: who comes later has right bytes again.
    let (over, right) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| keep_asking(&listen, &content, &over, &right, |_| {}));
        for _ in 0..2 {
            for (node, name) in [(&a, "disk"), (&b, "fs"), (&d, "net")] {
                let before = right.load(Ordering::Relaxed);
                kill_now(node.system.pid(name));
                wait_for("right answers after a death", || right.load(Ordering::Relaxed) >= before + 3);
                node.system.wait_until_ready();
            }
        }
    });
    is_right();
    // The port of a dead client on another node is free later: its next run takes another.
    kill_now(c.system.pid("httpd"));
    wait_for("the next run's port", || c.system.component("httpd")["listen"].as_str().is_some_and(|now| now != listen));
    let reply = get(&c.system.listen(), "/file.bin").expect("an answer");
    assert!(reply.status == 200 && reply.body == content, "other bytes");
    assert!(b.system.ok(&["fs", "check"]).contains("no problem"));
}
