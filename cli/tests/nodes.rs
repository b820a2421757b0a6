//! Nodes of a cluster: machines become nodes by tokens, know each other, and are none any more when they are removed. Two nodes are
//! two state directories on this machine, each with a loopback address of its own.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::nodes::Node;
use common::{said, wait_for};
use kernel_ipc::CallError;
use kernel_ipc::component::{Client, Connection};
use kernel_ipc::link::socket::dial::{self, Remote};
use kernel_ipc::link::socket::keys::{Keys, NodeName};
use kernel_ipc::runtime::{Options, Runtime};
use kernel_ipc::wire::Shape;
use protocol::node::{JoinError, Joined};
use supervisor::cluster::token::Token;
use supervisor::cluster::{Neighbour, authority};

/// A file of the node's that others must not read, and every directory above it up to the state.
fn modes(directory: &Path) -> Vec<(String, u32)> {
    let mut modes = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777;
        modes.push((path.display().to_string(), mode));
        if path.is_dir() {
            modes.extend(self::modes(&path));
        }
    }
    modes
}

#[test]
fn a_machine_becomes_a_node_by_a_token_and_is_none_any_more_when_it_is_removed() {
    let a = Node::first();
    let b = Node::joined(&a, "b");
    let both = vec![("a".to_owned(), a.address.clone()), ("b".to_owned(), b.address.clone())];
    assert_eq!(b.nodes(), (both.clone(), true));
    assert_eq!(a.nodes(), (both.clone(), true));
    for node in [&a, &b] {
        let modes = modes(&node.system.file("node"));
        assert!(modes.len() > 5);
        for (path, mode) in modes {
            assert_eq!(mode, if Path::new(&path).is_dir() { 0o700 } else { 0o600 }, "{path}");
        }
    }
    assert!(a.system.file("node/authority-key").exists() && !b.system.file("node/authority-key").exists());
    // Both answer, also under another supervisor, with what that finds.
    b.up();
    a.system.ok(&["supervisor", "restart"]);
    assert_eq!(b.nodes(), (both.clone(), true));

    assert!(a.system.ok(&["node", "remove", "b"]).contains("none of the cluster's"));
    assert_eq!(a.nodes().0, both[..1]);
    let complaint = b.complaint();
    assert!(complaint.contains(&format!("node a at {} takes this node for none", a.address)), "{complaint}");
    assert_eq!(b.nodes(), (both, false), "what was known last is said to be that");
    // The name is free; the certificate of the one that had it is of no use for it.
    let c = Node::joined(&a, "b");
    assert!(c.nodes().1);
    assert!(b.complaint().contains("was removed"));
}

#[test]
fn a_token_lets_one_in_once_in_its_time_at_the_node_that_made_it() {
    let (a, b) = (Node::first(), Node::empty());
    let token = a.token();
    let good = Token::parse(&token).expect("a token");
    let wrong = Token { secret: vec![0; 16], ..good.clone() }.to_string();
    let said = b.join_in_vain(&a, &wrong, "b");
    assert!(
        said.contains(&format!("node a at {} does not let this one in: it has made no such token", a.address)),
        "{said}"
    );
    let said = b.join_in_vain(&a, a.system.ok(&["node", "token", "--for", "1ms"]).trim(), "b");
    assert!(said.contains("the token has expired"), "{said}");
    // A name that is taken, by the first node itself, does not use it up.
    assert!(b.join_in_vain(&a, &token, "a").contains("has a node of this name"));
    let output = b.join(&a, &token, "b");
    assert!(output.status.success(), "{}", common::said(&output));
    let c = Node::empty();
    let said = c.join_in_vain(&a, &token, "c");
    assert!(said.contains("the token was used already"), "{said}");
    // It is one now, and no newcomer; and it lets nobody in.
    let output = b.join(&a, &a.token(), "d");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("is node b of a cluster already"),
        "{}",
        common::said(&output)
    );
    for verb in [&["node", "token"][..], &["node", "remove", "a"]] {
        let output = b.system.atoll(verb);
        assert!(String::from_utf8_lossy(&output.stderr).contains("ask node a"), "{}", common::said(&output));
    }
    let output = a.system.atoll(&["node", "remove", "a"]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("without it there is no cluster"),
        "{}",
        common::said(&output)
    );
    // Half a token, and no node to ask.
    let output = c.join(&a, &token[..60], "c");
    assert_eq!(output.status.code(), Some(2), "{}", common::said(&output));
    let nobody = Node::empty();
    let said = c.join_in_vain(&nobody, &token, "c");
    assert!(said.contains(&nobody.address) && said.contains("refused"), "{said}");
    // A system that runs does not become another node under its own feet.
    c.up();
    let said = c.join_in_vain(&a, &a.token(), "c");
    assert!(said.contains("a system runs on"), "{said}");
}

/// What the first node says to a newcomer that asks by itself.
fn ask_to_join(a: &Node, token: &Token, name: &str, public_key: &[u8]) -> Result<Joined, JoinError> {
    let runtime = Runtime::new(Options::default()).expect("a runtime");
    let to: SocketAddr = a.address.parse().expect("an address");
    runtime.block_on(async {
        let keys = Keys::newcomer(token.authority).expect("keys");
        let (remote, interface) = (Remote::node(to, token.node.clone(), keys), protocol::node::Client::INTERFACE);
        let session = dial::connect(remote, interface, Shape::default(), dial::Options::default()).await;
        let client = protocol::node::Client::from_connection(Connection::fixed(session.expect("it is heard")));
        let joined = client.join(client.root(), &token.secret, name, "127.0.0.1:7701", public_key).await;
        joined.map_err(|error| match error {
            CallError::Operation(error) => error,
            CallError::Failed { cause, .. } => panic!("{cause:?}"),
        })
    })
}

#[test]
fn a_newcomer_that_did_not_hear_the_answer_is_let_in_once_more_and_nobody_else_is() {
    let a = Node::first();
    let token = Token::parse(&a.token()).expect("a token");
    let key = || authority::public_key(&authority::new_key().expect("a key")).expect("its public key");
    let (mine, another) = (key(), key());
    let first = ask_to_join(&a, &token, "b", &mine).expect("it is let in");
    // That answer was lost.
    let again = ask_to_join(&a, &token, "b", &mine).expect("once more");
    assert_eq!((first.authority, first.by), (again.authority, again.by));
    assert_eq!(a.nodes().0.len(), 2);
    for (name, key) in [("b", &another), ("c", &mine)] {
        assert_eq!(ask_to_join(&a, &token, name, key).map(drop), Err(JoinError::UsedToken), "{name}");
    }
    // Nor is one that was removed since.
    a.system.ok(&["node", "remove", "b"]);
    assert_eq!(ask_to_join(&a, &token, "b", &mine).map(drop), Err(JoinError::UsedToken));
    // However many ask in vain, the log does not grow with them.
    let lines = || a.system.supervisor_log().matches("is not let in").count();
    let (before, wrong) = (lines(), Token { secret: vec![0; 16], ..token });
    for _ in 0..60 {
        assert_eq!(ask_to_join(&a, &wrong, "b", &mine).map(drop), Err(JoinError::UnknownToken));
    }
    assert!(lines() - before < 30, "{}", a.system.supervisor_log());
}

#[test]
fn a_newcomer_believes_the_authority_of_its_token_and_no_other() {
    // Both are called `a`, each by an authority of its own.
    let (a, other, b) = (Node::first(), Node::first(), Node::empty());
    let said = b.join_in_vain(&other, &a.token(), "b");
    assert!(said.contains(&format!("whoever is at {} has not proven to be node a", other.address)), "{said}");
    // A node of the right cluster that is not the one which made the token.
    let c = Node::joined(&a, "c");
    c.up();
    let said = b.join_in_vain(&c, &a.token(), "b");
    assert!(said.contains(&format!("whoever is at {} has not proven to be node a", c.address)), "{said}");
    // The other cluster's nodes are strangers here.
    let d = Node::joined(&other, "d");
    let facts = d.system.file("node/facts");
    let text = std::fs::read_to_string(&facts).expect("facts");
    std::fs::write(&facts, text.replace(&other.address, &a.address)).expect("facts");
    assert!(d.complaint().contains("has not proven to be node a"), "{}", d.complaint());
}

#[test]
fn a_certificate_that_has_ended_or_names_somebody_else_is_refused_by_both_ends() {
    let a = Node::first();
    let b = Node::joined(&a, "b");
    let read = |node: &Node, file: &str| std::fs::read(node.system.file(&format!("node/{file}"))).expect("a file");
    let (key, root) = (read(&b, "key"), read(&a, "authority"));
    let node = |name: &str| NodeName::new(name).expect("a name");
    let to: SocketAddr = a.address.parse().expect("an address");
    let call = |keys: &Keys, name: &str| {
        let runtime = Runtime::new(Options::default()).expect("a runtime");
        let called = runtime.block_on(async { Neighbour::call(keys, &node(name), to).await.map(drop) });
        called.map_err(|error| error.to_string())
    };
    // What b signs for itself is good, for c it is not.
    let signed_for = |name: &str| {
        let name = node(name).in_certificate();
        let leaf = authority::issue_for(&key, &node("b"), &name, SystemTime::now()).expect("a leaf");
        Keys::chained(&root, &[&leaf.certificate, &read(&b, "certificate")], &leaf.key).expect("keys")
    };
    call(&signed_for("b"), "a").expect("it is a node");
    let refused = call(&signed_for("c"), "a").expect_err("it is not c");
    assert!(refused.contains(&format!("node a at {to} does not take this node's certificate")), "{refused}");

    // A certificate of b's that the authority has signed, and that has ended.
    let public_key = authority::public_key(&key).expect("its public key");
    let past = SystemTime::now() - Duration::from_secs(60);
    let ended =
        authority::sign_node(&read(&a, "authority-key"), &node("b"), &public_key, past, past).expect("a certificate");
    std::fs::write(b.system.file("node/certificate"), &ended).expect("a certificate");
    let complaint = b.complaint();
    assert!(
        complaint.contains("does not take this node's certificate") && complaint.contains("Expired"),
        "{complaint}"
    );
    // One warning a second is written: the one before may have been this second's.
    wait_for("the first node to say so", || {
        b.complaint();
        a.system.supervisor_log().contains("certificate expired")
    });
    // And the other way round: it is the first node's that has ended.
    let c = Node::joined(&a, "c");
    let (key, authority_key) = (read(&a, "key"), read(&a, "authority-key"));
    let public_key = authority::public_key(&key).expect("its public key");
    let ended = authority::sign_node(&authority_key, &node("a"), &public_key, past, past).expect("a certificate");
    std::fs::write(a.system.file("node/certificate"), &ended).expect("a certificate");
    a.system.ok(&["down"]);
    a.up();
    let complaint = c.complaint();
    assert!(complaint.contains("has not proven to be node a") && complaint.contains("expired"), "{complaint}");
}

#[test]
fn strangers_who_send_garbage_or_nothing_keep_nobody_out() {
    let a = Node::first();
    let b = Node::joined(&a, "b");
    let connect = || TcpStream::connect(&a.address).expect("it listens");
    // A record that is longer than any, and no TLS at all. Of many such a second one is written down, so the first is.
    let mut first = None;
    for garbage in [&[22, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff][..], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stranger = connect();
        first.get_or_insert(stranger.local_addr().expect("an address"));
        stranger.write_all(garbage).expect("it is taken");
        stranger.set_read_timeout(Some(common::WATCHDOG)).expect("a limit");
        // An alert, and the end.
        let mut heard = Vec::new();
        let _ = stranger.read_to_end(&mut heard);
        assert!(heard.first().is_none_or(|kind| *kind == 21), "{heard:?}");
    }
    let first = first.expect("there were some");
    let named = format!("{first} did not prove which node it is");
    wait_for("the stranger to be named", || a.system.supervisor_log().contains(&named));
    // More that say nothing than it has places for, and one that says its first words byte by byte.
    let silent: Vec<TcpStream> = (0..80).map(|_| connect()).collect();
    let mut trickling = connect();
    trickling.write_all(&[22, 3]).expect("it is taken");
    assert!(b.nodes().1, "{}", b.complaint());
    // Newcomers who stay, more than may: the next one is let in all the same.
    let token = Token::parse(&a.token()).expect("a token");
    let runtime = Runtime::new(Options::default()).expect("a runtime");
    let to: SocketAddr = a.address.parse().expect("an address");
    let keys = Keys::newcomer(token.authority).expect("keys");
    let stay = runtime.block_on(async {
        let mut stay = Vec::new();
        for _ in 0..40 {
            stay.push(Neighbour::call(&keys, &token.node, to).await.expect("a newcomer is heard"));
        }
        // They may not do what nodes may; and there are only so many of them at a time.
        let mut open = 0;
        for one in &stay {
            let refused = one.members().await.expect_err("a newcomer").to_string();
            open += u32::from(refused.contains("RightsMissing"));
        }
        assert_eq!(open, 16);
        stay
    });
    let c = Node::empty();
    let output = c.join(&a, &token.to_string(), "c");
    assert!(output.status.success(), "{}", said(&output));
    drop((silent, trickling, stay));
}

#[test]
fn a_node_listens_only_where_it_can_be_called() {
    let node = Node::empty();
    for address in ["0.0.0.0:7700", "127.0.0.1:0", "[::]:7700", "224.0.0.1:7700"] {
        let output = node.system.atoll(&["node", "init", "a", "--listen", address]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(&format!("other nodes cannot call {address}")), "{error}");
        assert!(!node.system.file("node").exists());
    }
    for name in ["A", "a.b", "", "-a"] {
        let output = node.system.command(&["node", "init", "--", name]).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{name}: {}", said(&output));
    }
    // Somebody else is there already: the system does not come up, and says why.
    let taken = std::net::TcpListener::bind(&node.address).expect("an address of one's own");
    node.system.ok(&["node", "init", "a", "--listen", &node.address]);
    let output = node.try_up();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains(&format!("cannot listen on {}", node.address)), "{error}");
    drop(taken);
    node.up();
}

/// Law 7: what does not work at another start does not end what runs.
#[test]
fn a_supervisor_that_cannot_answer_other_nodes_lets_everything_run_and_tries_again() {
    let a = Node::first();
    let facts = a.system.file("node/facts");
    let good = std::fs::read(&facts).expect("a file");
    let null = a.system.pid("null");
    std::fs::write(&facts, "nonsense").expect("it can be written");
    a.system.ok(&["supervisor", "restart"]);
    wait_for("what it says", || a.system.supervisor_log().contains("does not answer others"));
    assert_eq!(a.system.pid("null"), null, "it runs on");
    // The next one finds the socket that all of them had.
    std::fs::write(&facts, good).expect("it can be written");
    a.system.ok(&["supervisor", "restart"]);
    let b = Node::joined(&a, "b");
    assert!(b.nodes().1);
    assert_eq!(a.system.pid("null"), null);
}
