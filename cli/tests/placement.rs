//! A system on two nodes: disk and files on `a`, network and web server on `b`. What goes between them is calls, answers and leased
//! bytes, over TLS from process to process.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::nodes::Node;
use common::{Over, Random, get, keep_asking, kill_now, said, wait_for};
use kernel_ipc::component::Client;
use kernel_ipc::link::socket::dial::{self, DialError, Remote};
use kernel_ipc::link::socket::frame::Refusal;
use kernel_ipc::link::socket::keys::{Keys, NodeName, Party};
use kernel_ipc::runtime::{Options, Runtime, sleep};
use kernel_ipc::wire::Shape;
use protocol::node::AnnounceError;
use serde_json::json;
use supervisor::cluster::{Home, Neighbour};

/// Both nodes, up, with a file of so many bytes in `/www`.
struct Web {
    a: Node,
    b: Node,
    content: Vec<u8>,
}

const SETS: [&str; 4] = ["--set", "httpd.listen=127.0.0.1:0", "--set", "disk.size=256MiB"];

fn up(node: &Node) {
    let manifest = node.manifest();
    let output = node.system.command(&["up", manifest.to_str().expect("text"), "--detach"]).args(SETS).output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "up: {}\n{}", said(&output), node.system.supervisor_log());
}

/// The first node of a cluster and one that has joined it. Only the first is up.
fn two() -> (Node, Node) {
    let manifest = include_str!("../../systems/two-nodes.toml");
    let (a, b) = (Node::empty(), Node::empty());
    std::fs::write(a.manifest(), manifest).expect("a manifest");
    std::fs::write(b.manifest(), manifest).expect("a manifest");
    a.system.ok(&["node", "init", "a", "--listen", &a.address]);
    // With what does next to nothing, until the other node is one.
    let idle = a.system.file("idle.toml");
    let null = "atoll = 1\n[component.null]\nrun = \"builtin:null\"\nprovides.null = \"atoll.null/1\"\n";
    std::fs::write(&idle, null).expect("a manifest");
    a.system.ok(&["up", idle.to_str().expect("text"), "--detach"]);
    let output = b.join(&a, &a.token(), "b");
    assert!(output.status.success(), "{}", said(&output));
    a.system.ok(&["down"]);
    (a, b)
}

impl Web {
    fn start(bytes: usize) -> Web {
        let (a, b) = two();
        up(&a);
        let content = Random(7).bytes(bytes);
        let file = a.system.file("file.bin");
        std::fs::write(&file, &content).expect("a file");
        a.system.ok(&["fs", "put", file.to_str().expect("text"), "/www"]);
        up(&b);
        Web { a, b, content }
    }

    fn is_served(&self) {
        let reply = self.b.system.get("/file.bin");
        assert_eq!(reply.status, 200);
        assert!(reply.body == self.content, "other bytes");
    }

    /// Downloads the file again and again: each time it comes, and is right.
    fn download_until(&self, listen: &str, over: &AtomicBool, right: &AtomicU64) {
        while !over.load(Ordering::Relaxed) {
            let reply = get(listen, "/file.bin").expect("an answer");
            assert_eq!(reply.status, 200);
            assert!(reply.body == self.content, "other bytes");
            right.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Keys as a component of a node has them.
fn keys_of(state: &Path, component: &str) -> Keys {
    let home = Home::open(state).expect("a node");
    let own = home.issue(Some(component)).expect("a certificate");
    let chain = [own.certificate, home.certificate().expect("a certificate")];
    Keys::chained(&home.authority().expect("a certificate"), &[&chain[0], &chain[1]], &own.key).expect("keys")
}

/// What `atoll move COMPONENT NODE --dry-run --json` says, and whether nothing stands against it.
fn plan(node: &Node, component: &str, to: &str) -> (bool, serde_json::Value) {
    let output = node.system.atoll(&["move", component, to, "--dry-run", "--json"]);
    let plan = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    (output.status.success(), plan)
}

fn kinds(plan: &serde_json::Value) -> Vec<&str> {
    plan["stops"].as_array().expect("a list").iter().map(|stop| stop["kind"].as_str().expect("text")).collect()
}

#[test]
fn what_moving_a_component_would_take_is_said_and_nothing_is_moved() {
    let web = Web::start(1 << 20);
    let before = [web.a.system.ps(), web.b.system.ps()].map(|all| all.iter().map(|one| one["pid"].clone()).collect());
    let (is_free, fs) = plan(&web.a, "fs", "b");
    assert!(is_free && kinds(&fs).is_empty(), "{fs}");
    let edge = |client: &str, endpoint: &str| {
        let edges = fs["edges"].as_array().expect("a list");
        let found = edges.iter().find(|edge| edge["client"] == client && edge["endpoint"] == endpoint);
        let edge = found.unwrap_or_else(|| panic!("{fs}"));
        (edge["now"].clone(), edge["then"].clone(), edge["sessions"].clone())
    };
    assert_eq!(fs["edges"].as_array().map(Vec::len), Some(2), "{fs}");
    assert_eq!(edge("fs", "disk.disk"), (json!("shared memory"), json!("socket"), json!(1)));
    let (now, then, _) = edge("httpd", "fs.root");
    assert_eq!((now, then), (json!("socket"), json!("shared memory")));
    assert!(fs["call_to_node_us"].as_u64().is_some_and(|us| us > 0), "{fs}");
    assert!(fs["call_here_us"].as_u64().is_some(), "{fs}");

    let (is_free, disk) = plan(&web.a, "disk", "b");
    assert!(!is_free && kinds(&disk).contains(&"path"), "{disk}");
    assert!(disk["stops"].to_string().contains("its `path` is a path on node a: disk.img"), "{disk}");
    let (is_free, net) = plan(&web.b, "net", "a");
    assert!(!is_free && kinds(&net).contains(&"kernel-socket"), "{net}");
    let (is_free, httpd) = plan(&web.b, "httpd", "a");
    assert!(!is_free && kinds(&httpd).contains(&"keeps-nothing"), "{httpd}");

    for (arguments, words) in [
        (["fs", "c"], "there is no such node"),
        (["fs", "a"], "it runs on that node"),
        (["httpd", "b"], "no such component runs on this node"),
    ] {
        let output = web.a.system.atoll(&[&["move"], &arguments[..], &["--dry-run"]].concat());
        assert!(output.status.code() == Some(1) && said(&output).contains(words), "{}", said(&output));
    }
    let output = web.a.system.atoll(&["move", "disk", "b", "--dry-run"]);
    assert!(said(&output).contains("disk cannot be moved from node a to b:"), "{}", said(&output));
    let after = [web.a.system.ps(), web.b.system.ps()].map(|all| all.iter().map(|one| one["pid"].clone()).collect());
    let (before, after): ([Vec<_>; 2], [Vec<_>; 2]) = (before, after);
    assert_eq!(before, after);
    web.is_served();
    // A node that is gone does not answer.
    web.b.system.ok(&["down"]);
    let (is_free, fs) = plan(&web.a, "fs", "b");
    assert!(!is_free && kinds(&fs).contains(&"unreachable"), "{fs}");
    let alone = common::System::start(&[]);
    let output = alone.atoll(&["move", "fs", "b", "--dry-run"]);
    assert!(said(&output).contains("this state directory is no node of a cluster"), "{}", said(&output));
}

#[test]
fn a_file_on_one_node_is_served_by_another() {
    let web = Web::start(9 << 20);
    web.is_served();
    // Both nodes see all of it.
    for node in [&web.a, &web.b] {
        let places: Vec<_> = node.system.ps().iter().map(|one| (one["name"].clone(), one["place"].clone())).collect();
        let mut expected = [("disk", "a"), ("fs", "a"), ("net", "b"), ("httpd", "b")]
            .map(|(name, node)| (json!(name), json!(format!("node:{node}"))));
        let (mut places, by_name) = (places, |one: &(serde_json::Value, _)| one.0.to_string());
        places.sort_by_key(by_name);
        expected.sort_by_key(by_name);
        assert_eq!(places, expected);
        node.system.wait_until_ready();
    }
    let (there, here) = (web.b.system.component("fs"), web.a.system.component("fs"));
    assert_eq!((&there["pid"], &there["epoch"]), (&here["pid"], &here["epoch"]));
    // What the file system's own node counts was read for the other one.
    assert!(here["leased"].as_u64().expect("a number") >= web.content.len() as u64);
    // Nothing but the file system's one endpoint goes between them, and of that what the manifest says: not what is beside /www.
    assert_eq!(get(&web.b.system.listen(), "/../file.bin").expect("an answer").status, 400);
    // A node that is gone is said to be so.
    web.a.system.ok(&["down"]);
    let fs = web.b.system.component("fs");
    assert_eq!((fs["state"].as_str(), fs["pid"].is_null()), (Some("waiting"), true), "{fs}");
    assert!(fs["trouble"].as_str().expect("text").contains("node a"), "{fs}");
    // And when it is back, everything is, without anybody else being told.
    up(&web.a);
    wait_for("the file to be served again", || {
        get(&web.b.system.listen(), "/file.bin").is_ok_and(|reply| reply.status == 200 && reply.body == web.content)
    });
}

#[test]
fn the_death_of_a_supervisor_is_felt_by_no_download_between_nodes() {
    let web = Web::start(4 << 20);
    let listen = web.b.system.listen();
    let (over, right) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for _ in 0..2 {
            scope.spawn(|| web.download_until(&listen, &over, &right));
        }
        for _ in 0..3 {
            for node in [&web.a, &web.b] {
                let before = right.load(Ordering::Relaxed);
                let turns = node.system.supervisor()["restarts"].as_u64();
                kill_now(node.system.process("supervisor").expect("a supervisor"));
                wait_for("another supervisor", || node.system.supervisor()["restarts"].as_u64() > turns);
                wait_for("downloads after it", || right.load(Ordering::Relaxed) >= before + 4);
            }
        }
    });
}

/// What was good when the system was started is not asked again of one that runs: nobody else ends with a node that is removed.
#[test]
fn the_next_supervisor_takes_over_also_when_a_node_was_removed_meanwhile() {
    let web = Web::start(1 << 20);
    web.a.system.ok(&["node", "remove", "b"]);
    let (fs, turns) = (web.a.system.pid("fs"), web.a.system.supervisor()["restarts"].as_u64());
    kill_now(web.a.system.process("supervisor").expect("a supervisor"));
    wait_for("another supervisor", || web.a.system.supervisor()["restarts"].as_u64() > turns);
    assert_eq!(web.a.system.pid("fs"), fs);
    web.a.system.ok(&["fs", "ls", "/www"]);
    web.a.system.ok(&["down"]);
}

#[test]
fn a_killed_host_or_client_comes_back_and_what_it_held_is_free() {
    let web = Web::start(4 << 20);
    let listen = web.b.system.listen();
    let (over, right) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| keep_asking(&listen, &web.content, &over, &right, |_| {}));
        for _ in 0..4 {
            for (node, name) in [(&web.a, "fs"), (&web.a, "disk"), (&web.b, "httpd"), (&web.b, "net")] {
                let before = right.load(Ordering::Relaxed);
                kill_now(node.system.pid(name));
                wait_for("right answers after a death", || right.load(Ordering::Relaxed) >= before + 3);
                node.system.wait_until_ready();
            }
        }
    });
    web.is_served();
    assert!(web.a.system.ok(&["fs", "check"]).contains("no problem"));
}

/// What a killed host has answered, its next run knows; what it has not, it does. Its clients on another node feel time.
#[test]
fn no_download_fails_however_often_the_file_system_and_its_driver_on_the_other_node_are_killed() {
    let web = Web::start(4 << 20);
    let listen = web.b.system.listen();
    let (over, right) = (AtomicBool::new(false), AtomicU64::new(0));
    let clients = ["httpd", "net"].map(|name| web.b.system.pid(name));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for _ in 0..3 {
            scope.spawn(|| web.download_until(&listen, &over, &right));
        }
        for round in 0..KILLS {
            for name in ["fs", "disk"] {
                let before = right.load(Ordering::Relaxed);
                // Not always where the last one was: in the middle of a download, or of the next run's start.
                std::thread::sleep(Duration::from_millis(round * 37 % 100));
                kill_now(web.a.system.pid(name));
                if round % 4 == 3 {
                    continue;
                }
                wait_for("right answers after a death", || right.load(Ordering::Relaxed) >= before + 2);
            }
            // Back-off is for those who die of themselves.
            web.a.system.wait_until_ready();
        }
    });
    web.is_served();
    assert_eq!(clients, ["httpd", "net"].map(|name| web.b.system.pid(name)), "a client ended");
    // The session that was there before the first death was never opened anew.
    let log = web.b.system.ok(&["logs", "httpd"]);
    assert!(!log.contains("given up") && !log.contains("asked for again"), "{log}");
    assert!(web.a.system.ok(&["fs", "check"]).contains("no problem"));
}

/// Rounds of deaths.
const KILLS: u64 = 12;

#[test]
fn nobody_opens_what_the_manifest_gives_somebody_else() {
    let web = Web::start(1000);
    // A third node of the cluster, which the manifest gives nothing.
    let third = Node::joined(&web.a, "c");
    let runtime = Runtime::new(Options::default()).expect("a runtime");
    let name = |name: &str| NodeName::new(name).expect("a name");
    let to: SocketAddr = web.a.address.parse().expect("an address");
    let (of_b, of_c) = (Home::open(web.b.system.state()).expect("b"), Home::open(third.system.state()).expect("c"));
    let fs = protocol::fs::Client::INTERFACE;
    runtime.block_on(async {
        let call =
            async |home: &Home| Neighbour::call(&home.keys().expect("keys"), &name("a"), to).await.expect("a session");
        let (b, c) = (call(&of_b).await, call(&of_c).await);
        let ticket = [9; 32];
        let given = |said| -> Option<AnnounceError> { Result::err(said) };
        for (neighbour, client, used, interface) in [
            (&c, "httpd", "root", fs),
            (&b, "net", "root", fs),
            (&b, "httpd", "disk", fs),
            (&b, "httpd", "root", "atoll.block/1"),
        ] {
            let said = neighbour.announce(client, used, interface, &ticket).await.expect("an answer");
            assert_eq!(given(said), Some(AnnounceError::NotGiven), "{client} {used} {interface}");
        }
        let said = b.announce("httpd", "root", fs, b"short").await.expect("an answer");
        assert_eq!(given(said), Some(AnnounceError::BadTicket));
        // Announced: the one who may come, and who knows the ticket, and nobody else.
        let announced = b.announce("httpd", "root", fs, &ticket).await.expect("an answer").expect("it is given");
        let address: SocketAddr = announced.address.parse().expect("an address");
        let party = Party::component(name("a"), "fs").expect("a name");
        let open = async |state: &Path, component: &str, ticket: [u8; 32]| {
            let remote = Remote::party(address, party.clone(), keys_of(state, component)).with_ticket(ticket);
            dial::connect(remote, fs, Shape::default(), dial::Options::default()).await
        };
        let (b, c) = (web.b.system.state(), third.system.state());
        for (state, component, ticket) in [(b, "net", ticket), (b, "httpd", [8; 32])] {
            let refused = open(state, component, ticket).await.map(drop).expect_err("it is not expected");
            assert!(matches!(refused, DialError::Refused(_, Refusal::Forbidden)), "{component}: {refused}");
        }
        // Nobody of a node that the manifest gives nothing is heard.
        let refused = open(c, "httpd", ticket).await.map(drop).expect_err("it has nothing to do with that node");
        assert!(matches!(refused, DialError::Io(..)), "{refused}");
        let session = open(b, "httpd", ticket).await.expect("it is expected");
        let again = open(b, "httpd", ticket).await.map(drop).expect_err("once");
        assert!(matches!(again, DialError::Refused(_, Refusal::Forbidden)), "{again}");
        drop(session);
        // A component is not its node.
        let keys = keys_of(b, "httpd");
        let refused = Neighbour::call(&keys, &name("a"), to).await.map(drop).expect_err("not a node");
        assert!(refused.to_string().contains("takes this node for none"), "{refused}");
    });
    web.is_served();
}

#[test]
fn a_machine_that_was_removed_has_no_sessions_any_more_and_gets_none_under_a_name_that_another_one_has() {
    let web = Web::start(1000);
    let runtime = Runtime::new(Options::default()).expect("a runtime");
    let name = |name: &str| NodeName::new(name).expect("a name");
    let to: SocketAddr = web.a.address.parse().expect("an address");
    let of_b = Home::open(web.b.system.state()).expect("b");
    let fs = protocol::fs::Client::INTERFACE;
    runtime.block_on(async {
        let b = Neighbour::call(&of_b.keys().expect("keys"), &name("a"), to).await.expect("a session");
        let party = Party::component(name("a"), "fs").expect("a name");
        let open = async |address: SocketAddr, ticket: [u8; 32]| {
            let remote = Remote::party(address, party.clone(), keys_of(web.b.system.state(), "httpd"));
            dial::connect(remote.with_ticket(ticket), fs, Shape::default(), dial::Options::default()).await
        };
        let announce = async |ticket: [u8; 32]| -> SocketAddr {
            let announced = b.announce("httpd", "root", fs, &ticket).await.expect("an answer").expect("it is given");
            announced.address.parse().expect("an address")
        };
        let address = announce([1; 32]).await;
        announce([2; 32]).await;
        announce([3; 32]).await;
        let session = open(address, [1; 32]).await.expect("a session");
        web.a.system.ok(&["node", "remove", "b"]);
        while session.is_open() {
            sleep(Duration::from_millis(5)).await;
        }
        let refused = open(address, [2; 32]).await.map(drop).expect_err("it is no node any more");
        assert!(matches!(refused, DialError::Io(..)), "{refused}");
        // Another machine has its name.
        let _other = Node::joined(&web.a, "b");
        web.a.system.ok(&["ps"]);
        let refused = open(address, [3; 32]).await.map(drop).expect_err("it is another machine");
        assert!(matches!(refused, DialError::Io(..)), "{refused}");
    });
    // What ran there has lost what it had, too.
    wait_for("the file system to say so", || {
        web.a.system.ok(&["logs", "fs"]).contains("its client is of a machine that is no node any more")
    });
}

/// The authority's certificate is damaged there: its supervisor answers nobody, and what runs there cannot prove who it is.
#[test]
fn a_host_that_was_started_again_while_its_node_answered_nobody_is_found_when_it_does() {
    let web = Web::start(1 << 20);
    web.is_served();
    let certificate = web.a.system.file("node/authority");
    let good = std::fs::read(&certificate).expect("a file");
    std::fs::write(&certificate, "nonsense").expect("it can be written");
    let turns = web.a.system.supervisor()["restarts"].as_u64();
    kill_now(web.a.system.process("supervisor").expect("a supervisor"));
    wait_for("another supervisor", || web.a.system.supervisor()["restarts"].as_u64() > turns);
    wait_for("what it says", || web.a.system.supervisor_log().contains("does not answer others"));
    let fs = web.a.system.pid("fs");
    kill_now(fs);
    // Those of the other node are not to be had.
    wait_for("the next run", || {
        let now = web.a.system.component("fs");
        now["state"] == "ready" && now["pid"].as_i64().is_some_and(|pid| pid != i64::from(fs))
    });
    web.a.system.ok(&["fs", "ls", "/www"]);
    let next = web.a.system.pid("fs");
    std::fs::write(&certificate, good).expect("it can be written");
    wait_for("the file to be served again", || {
        get(&web.b.system.listen(), "/file.bin").is_ok_and(|reply| reply.status == 200 && reply.body == web.content)
    });
    assert_eq!(web.a.system.pid("fs"), next, "it needed no other run");
}

/// As above, but for longer than a client may take to come back.
#[test]
fn what_a_host_that_nobody_can_reach_holds_for_clients_of_other_nodes_is_let_go() {
    let web = Web::start(1000);
    web.is_served();
    let held = || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", web.a.system.keeper())).expect("the keeper's");
        let names = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        names.filter(|name| name.to_string_lossy().contains("atoll-session")).count()
    };
    // Those of this node's own sessions are called so, too.
    let before = held();
    std::fs::write(web.a.system.file("node/authority"), "nonsense").expect("it can be written");
    let turns = web.a.system.supervisor()["restarts"].as_u64();
    kill_now(web.a.system.process("supervisor").expect("a supervisor"));
    wait_for("another supervisor", || web.a.system.supervisor()["restarts"].as_u64() > turns);
    let fs = web.a.system.pid("fs");
    kill_now(fs);
    wait_for("the next run", || {
        let now = web.a.system.component("fs");
        now["state"] == "ready" && now["pid"].as_i64().is_some_and(|pid| pid != i64::from(fs))
    });
    assert!(held() >= before, "it may still have been reached");
    wait_for("it to be let go", || held() < before);
    web.a.system.ok(&["fs", "ls", "/www"]);
}

#[test]
fn a_place_that_is_none_is_said_before_anything_starts() {
    let (a, b) = two();
    let start = |node: &Node, text: &str| {
        std::fs::write(node.manifest(), text).expect("a manifest");
        let output =
            node.system.command(&["up", node.manifest().to_str().expect("text"), "--detach"]).args(SETS).output();
        let output = output.expect("the binary runs");
        assert!(!output.status.success(), "it is up");
        String::from_utf8(output.stderr).expect("text")
    };
    let manifest = include_str!("../../systems/two-nodes.toml");
    let error = start(&a, &manifest.replace("node:b", "node:c"));
    assert!(error.contains("is to run on node c, and there are only a, b"), "{error}");
    let nobody = Node::empty();
    let error = start(&nobody, manifest);
    assert!(error.contains("this state directory is no node of a cluster"), "{error}");
    drop(b);
}
