//! `atoll lab`: two nodes, what is between them, and what is left of it. As root they are in namespaces, as another user on addresses
//! of the loopback.

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;

use common::http::Session;
use common::lab::{self, Lab};
use common::trees::{make_tree, same_trees};
use common::{Random, said, wait_for, working_in};

const SMALL: [&str; 2] = ["--set", "disk.size=256MiB"];

fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

/// Puts a tree by the operator of `b` on the disk of `a`, gets it back on both, and compares.
fn tree_goes_there_and_back(lab: &Lab, name: &str) {
    let tree = lab.state().join(name);
    make_tree(&tree);
    lab.ok(1, &["fs", "put", "-r", &text(&tree), "/"]);
    for node in [0, 1] {
        let back = lab.state().join(format!("{name}-back-{node}"));
        lab.ok(node, &["fs", "get", "-r", &format!("/{name}"), &text(&back)]);
        same_trees(&tree, &back);
    }
}

/// A file in `/www`, asked for as a whole and in ranges, by somebody on the web server's node.
fn ranges_are_right(lab: &Lab, content: &[u8]) {
    let file = lab.state().join("file.bin");
    std::fs::write(&file, content).expect("a file");
    lab.ok(1, &["fs", "put", &text(&file), "/www"]);
    let whole = lab.get("/file.bin");
    assert_eq!(whole.status, 200);
    assert!(whole.body == content, "other bytes");
    let listen = lab.b.listen();
    lab.inside(1, || {
        let mut random = Random(5);
        let mut session = Session::new(&listen);
        for _ in 0..20 {
            let first = random.below(content.len() as u64);
            let last = first + random.below(content.len() as u64 - first);
            let reply = session.get("/file.bin", &format!("Range: bytes={first}-{last}\r\n"));
            assert_eq!(reply.status, 206);
            assert_eq!(reply.header("content-range"), format!("bytes {first}-{last}/{}", content.len()));
            assert!(reply.body == content[first as usize..=last as usize], "other bytes from {first} to {last}");
        }
        let behind = session.get("/file.bin", &format!("Range: bytes={}-\r\n", content.len()));
        assert_eq!(behind.status, 416);
    });
}

/// Nothing of it is left: no namespace, no process.
fn is_gone(namespaces: &[String], states: &[PathBuf]) -> bool {
    let has_namespace = namespaces.iter().any(|name| Path::new("/run/netns").join(name).exists());
    !has_namespace && states.iter().all(|state| working_in(state).is_empty())
}

fn left_behind(lab: &Lab) -> (Vec<String>, Vec<PathBuf>) {
    let namespaces = [0, 1].iter().filter_map(|node| lab.namespace(*node)).map(str::to_owned).collect();
    (namespaces, [&lab.a, &lab.b].map(|node| node.state().to_owned()).to_vec())
}

#[test]
fn the_web_system_runs_on_two_nodes_and_nothing_is_left_of_them() {
    let mut lab = Lab::start(&SMALL);
    match lab.facts["network"].as_str() {
        Some("namespaces") => {
            let inside = |node| lab.inside(node, || std::fs::read_link("/proc/thread-self/ns/net").expect("a link"));
            let of = |process: i32| std::fs::read_link(format!("/proc/{process}/ns/net")).expect("a link");
            assert_ne!(inside(0), inside(1));
            assert_eq!([inside(0), inside(1)], [&lab.a, &lab.b].map(|node| of(node.keeper())));
        }
        Some("loopback") => {
            let why = lab.facts["why"].as_str().expect("it says why");
            eprintln!("skipped: {why}");
            assert!(!nix::unistd::geteuid().is_root(), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert!(lab.facts["relay"].is_null());
    ranges_are_right(&lab, &Random(1).bytes(5 << 20));
    tree_goes_there_and_back(&lab, "tree");
    assert!(lab.ok(1, &["node", "ls"]).contains("this one"));
    let exec =
        |arguments: &[&str]| lab::command(lab.state(), &[&["exec"], arguments].concat()).output().expect("it runs");
    let output = exec(&["b", env!("CARGO_BIN_EXE_atoll"), "fs", "cat", "/tree/directory-0/file-1"]);
    let file = lab.state().join("tree/directory-0/file-1");
    assert!(output.status.success() && output.stdout == std::fs::read(file).expect("a file"), "{}", said(&output));
    assert_eq!(exec(&["a", "false"]).status.code(), Some(1));
    // Nobody else has this directory meanwhile.
    let output = lab::command(lab.state(), &["up"]).output().expect("the binary runs");
    assert!(!output.status.success() && said(&output).contains("a lab runs on"), "{}", said(&output));
    let (namespaces, states) = left_behind(&lab);
    let (status, _) = lab.end();
    assert!(status.success(), "{status}");
    assert!(is_gone(&namespaces, &[]));
    wait_for("processes to be gone", || is_gone(&[], &states));
}

#[test]
fn a_link_that_is_cut_all_the_time_is_felt_as_time_by_copies_and_downloads() {
    for arguments in [&["--delay", "1"][..], &["--loopback", "--rate", "50000000"]] {
        let cuts = ["--cut-every", "60", "--seed", "7"];
        let mut lab = Lab::start(&[arguments, &cuts, &SMALL].concat());
        assert_eq!(lab.facts["relay"]["cut_every_ms"], 60);
        let content = Random(2).bytes(12 << 20);
        ranges_are_right(&lab, &content);
        std::thread::scope(|scope| {
            // A call that ran twice would find what the first one has made.
            scope.spawn(|| tree_goes_there_and_back(&lab, "tree"));
            scope.spawn(|| {
                for _ in 0..4 {
                    assert!(lab.get("/file.bin").body == content, "other bytes");
                }
            });
        });
        assert!(lab.a.ok(&["fs", "check"]).contains("no problem"));
        let (status, last) = lab.end();
        assert!(status.success(), "{status}");
        let [cut, bytes] = ["cut", "bytes"].map(|name| last["relay"][name].as_u64().expect("a number"));
        assert!(cut >= 10 && bytes > 60 << 20, "{last}");
    }
}

#[test]
fn what_a_lab_that_was_killed_has_left_is_removed_by_down_and_by_the_next_one() {
    let mut directory = tempfile::tempdir().expect("a directory");
    for by_down in [true, false] {
        let lab = Lab::start_on(directory, &[&["--delay", "1"][..], &SMALL].concat());
        let (namespaces, states) = left_behind(&lab);
        directory = lab.kill();
        // The nodes end by themselves; the names of the namespaces do not.
        wait_for("the nodes to end", || is_gone(&[], &states));
        assert_eq!(is_gone(&namespaces, &states), namespaces.is_empty());
        if by_down {
            let output = lab::command(directory.path(), &["down"]).output().expect("the binary runs");
            assert!(output.status.success(), "{}", said(&output));
        } else {
            // The files of the first one are there still.
            let lab = Lab::start_on(directory, &SMALL);
            assert!(lab.ok(1, &["fs", "ls", "/"]).contains("www"));
            assert!(is_gone(&namespaces, &[]));
            let output = lab::command(lab.state(), &["down"]).output().expect("the binary runs");
            assert!(output.status.success(), "{}", said(&output));
            assert!(lab.end_by_itself().success());
            return;
        }
        assert!(is_gone(&namespaces, &[]));
        let output = lab::command(directory.path(), &["down"]).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    }
}

#[test]
fn what_a_lab_cannot_do_is_said_before_anything_is_made() {
    let directory = tempfile::tempdir().expect("a directory");
    let refused = |arguments: &[&str]| -> Output {
        let output = lab::command(directory.path(), &[&["up"], arguments].concat()).output().expect("the binary runs");
        assert!(!output.status.success() && output.stdout.is_empty(), "{}", said(&output));
        output
    };
    let output = refused(&["--loss", "1"]);
    assert!(output.status.code() == Some(2) && said(&output).contains("packets cannot be lost"), "{}", said(&output));
    let manifest = directory.path().join("web.toml");
    std::fs::write(&manifest, include_str!("../../systems/web.toml")).expect("a manifest");
    let output = refused(&[&text(&manifest)]);
    assert!(said(&output).contains("is on neither node of the lab"), "{}", said(&output));
    let broken = include_str!("../../systems/lab.toml").replace("atoll.block/1", "atoll.block/9");
    std::fs::write(&manifest, broken).expect("a manifest");
    assert!(said(&refused(&[&text(&manifest)])).contains("atoll.block/9"));
    let output = lab::command(directory.path(), &["down"]).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
}
