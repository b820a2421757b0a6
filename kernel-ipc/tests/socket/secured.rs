//! Sessions over TLS: who is let in, who is not, and that everything else is as in the clear.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kernel_ipc::lease::Lender;
use kernel_ipc::link::socket::bulk::serve::Lending;
use kernel_ipc::link::socket::dial::{self, DialError, Remote};
use kernel_ipc::link::socket::frame::{self, Bulk, Hello, Pull, Refusal, Way, kind};
use kernel_ipc::link::socket::keys::Keys;
use kernel_ipc::link::socket::listen::{Listener, Options, SESSIONS_OF_A_NODE};
use kernel_ipc::link::socket::nodes::{KnownNode, Nodes};
use kernel_ipc::runtime;
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, LenderId, SessionId};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::authority::{Authority, node};
use super::common::*;
use super::lost::count_through_cuts;
use super::relay::{Framing, Relay};
use super::world::*;

async fn dial(address: SocketAddr, name: &str, keys: &Keys, options: Options) -> Result<(), DialError> {
    let remote = Remote::node(address, node(name), keys.clone());
    dial::connect(remote, TEST.name, SHAPE, options).await.map(drop)
}

#[test]
fn nodes_of_one_authority_call_each_other_also_beyond_loopback() {
    run(async {
        let authority = Authority::new();
        let (thing, keys) = (Rc::<Thing>::default(), authority.keys("a"));
        let host = Host::start_secured(&thing, Options::default(), None, authority.keys("b"));
        assert!(host.address.ip().is_unspecified(), "{}: it can be reached from everywhere", host.address);
        let remote = Remote::node(host.near(), node("b"), keys);
        let shape = Shape { slots: 8, window_bytes: 65536 };
        let client = dial::connect(remote, TEST.name, shape, Options::default()).await.expect("a session");
        for size in [0, 1, 16, 17, 1000, 4096, 16_383, 16_384, 65_536] {
            let reply = client.call(request(client.root(), ECHO, &bytes(size))).await.expect("echo");
            assert_eq!(*reply.payload, bytes(size)[..], "{size}");
        }
        // More than fits one record, one buffer, or one look, in both directions at once.
        let callers: Vec<_> = (0..24)
            .map(|n| {
                let client = client.clone();
                runtime::spawn(async move {
                    for round in 0..20 {
                        let payload = bytes(65_536 - n * 100 - round);
                        let reply = client.call(request(client.root(), ECHO, &payload)).await.expect("echo");
                        assert!(*reply.payload == payload[..], "{n} {round}");
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.expect("not cancelled");
        }
        drop(client);
        until(|| thing.closed.get() == 1).await;
    });
}

#[test]
fn a_machine_that_is_no_node_any_more_loses_its_sessions_and_gets_no_other() {
    run(async {
        let authority = Authority::new();
        let (thing, here, there) = (Rc::<Thing>::default(), Nodes::default(), Nodes::default());
        let host = Host::start_among(&thing, authority.keys("b"), &here);
        let open = async || {
            let remote = Remote::node(host.near(), node("b"), authority.keys("a")).among(&there);
            dial::connect(remote, TEST.name, SHAPE, Options::default()).await
        };
        let is_doubted = |refused: DialError| refused.to_string().contains("is not node b of the cluster (any more)");
        assert!(is_doubted(open().await.map(drop).expect_err("it does not know the host")));
        there.learn(node("b"), KnownNode::Authority);
        open().await.map(drop).expect_err("the host does not know it");
        here.learn(node("a"), KnownNode::Authority);
        let client = open().await.expect("a session");
        client.call(request(client.root(), ECHO, b"")).await.expect("echo");
        // Another machine has its name from now on.
        here.learn(node("a"), KnownNode::Certified([1; 32]));
        until(|| thing.closed.get() == 1 && !client.is_open()).await;
        open().await.map(drop).expect_err("it is another machine");
        here.learn(node("a"), KnownNode::Authority);
        open().await.map(drop).expect("a session");
        // The other way round.
        there.learn(node("b"), KnownNode::Certified([2; 32]));
        assert!(is_doubted(open().await.map(drop).expect_err("it is another machine")));
        there.learn(node("b"), KnownNode::Gone);
        assert!(is_doubted(open().await.map(drop).expect_err("there is none")));
    });
}

#[test]
fn a_node_that_has_as_many_sessions_as_one_may_keeps_no_other_out() {
    run(async {
        let authority = Authority::new();
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start_secured(&thing, Options::default(), None, authority.keys("b"));
        let (greedy, other) = (authority.keys("a"), authority.keys("c"));
        let open = async |keys: &Keys| {
            let remote = Remote::node(host.near(), node("b"), keys.clone());
            dial::connect(remote, TEST.name, Shape { slots: 1, window_bytes: 4096 }, Options::default()).await
        };
        let mut sessions = Vec::new();
        for _ in 0..SESSIONS_OF_A_NODE {
            sessions.push(open(&greedy).await.expect("a session"));
        }
        let one_more = open(&greedy).await.map(drop);
        assert!(matches!(one_more, Err(DialError::Refused(_, Refusal::Busy))), "{one_more:?}");
        let _others = open(&other).await.expect("another node is let in");
        // What it gives back it may have again.
        sessions.pop();
        until(|| thing.closed.get() == 1).await;
        open(&greedy).await.expect("a session");
    });
}

#[test]
fn a_session_at_rest_over_tls_stays_open() {
    run(async {
        let authority = Authority::new();
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start_secured(&thing, hasty(), None, authority.keys("b"));
        let relay = Relay::start(host.near(), 1, 0, Framing::Tls);
        let remote = Remote::node(relay.address, node("b"), authority.keys("a"));
        let client = dial::connect(remote, TEST.name, SHAPE, hasty()).await.expect("a session");
        runtime::sleep(3 * hasty().dead_after).await;
        assert_eq!(*client.call(request(client.root(), ECHO, b"still")).await.expect("echo").payload, *b"still");
        assert_eq!(relay.connections(), 1);
    });
}

#[test]
fn every_call_runs_once_however_often_the_connection_is_cut_or_changed() {
    for seed in 1..=6 {
        println!("SEED={seed}");
        let authority = Authority::new();
        let cuts = run(count_through_cuts(seed, 40, 40, Some(&authority)));
        assert!(cuts > 5, "SEED={seed}: only {cuts} cuts");
    }
}

#[test]
fn who_is_not_the_node_that_is_called_hears_nothing() {
    run(async {
        let (authority, other) = (Authority::new(), Authority::new());
        let thing: Rc<Thing> = Rc::default();
        let named = |name: &str| Host::start_secured(&thing, hasty(), None, authority.keys(name));
        let host = named("b");
        let keys = authority.keys("a");
        dial(host.near(), "b", &keys, hasty()).await.expect("a session");
        let served = thing.closed.get();

        let refused = |result: Result<(), DialError>, what: &str| {
            let error = result.expect_err(what);
            assert!(matches!(error, DialError::Io(..)), "{what}: {error:?}");
            error.to_string()
        };
        let error = refused(dial(named("c").near(), "b", &keys, hasty()).await, "another node");
        assert!(error.contains("not valid for name"), "{error}");
        let impostor = Host::start_secured(&thing, hasty(), None, other.keys("b"));
        let error = refused(dial(impostor.near(), "b", &keys, hasty()).await, "another authority's");
        assert!(error.contains("UnknownIssuer") || error.contains("invalid peer certificate"), "{error}");
        let past = |params: &mut rcgen::CertificateParams| {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        };
        let expired = Host::start_secured(&thing, hasty(), None, authority.keys_of(&["b.node.atoll"], past));
        let error = refused(dial(expired.near(), "b", &keys, hasty()).await, "expired");
        assert!(error.contains("expired") || error.contains("Expired"), "{error}");
        for also in ["*.node.atoll", "B.node.atoll", "b.NODE.atoll"] {
            let sly = Host::start_secured(&thing, hasty(), None, authority.keys_of(&["c.node.atoll", also], |_| {}));
            refused(dial(sly.near(), "b", &keys, hasty()).await, also);
        }
        let clear = Host::start(&thing, hasty());
        refused(dial(clear.address, "b", &keys, hasty()).await, "one in the clear");
        until(|| thing.closed.get() == served + 1).await;
    });
}

#[test]
fn who_cannot_prove_to_be_a_node_is_not_heard() {
    run(async {
        let (authority, other) = (Authority::new(), Authority::new());
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start_secured(&thing, hasty(), None, authority.keys("b"));
        // Its certificate is not looked at before the client believes that it is welcome: then the connection ends.
        let stranger = {
            let (certificate, key) = other.sign(&["a.node.atoll"], |_| {});
            Keys::new(&authority.certificate(), &certificate, &key).expect("keys")
        };
        for (keys, what) in [
            (&stranger, "another authority's"),
            (&authority.keys_of(&["a.example"], |_| {}), "no node"),
            (&authority.keys_of(&["a.node.atoll", "b.node.atoll"], |_| {}), "two nodes"),
            (
                &authority.keys_of(&["a.node.atoll"], |params| {
                    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
                    params.not_after = rcgen::date_time_ymd(2002, 1, 1);
                }),
                "expired",
            ),
        ] {
            let error = dial(host.near(), "b", keys, hasty()).await.expect_err(what);
            assert!(matches!(error, DialError::Io(..)), "{what}: {error:?}");
        }
        // In the clear: a correct hello, and no byte in answer but TLS's alert.
        let mut socket = TcpStream::connect(host.near()).expect("loopback");
        socket.write_all(&framed(kind::HELLO, &hello(0, 1).to_bytes())).expect("sent");
        socket.set_nonblocking(true).expect("an option");
        let mut heard = Vec::new();
        loop {
            match socket.read_to_end(&mut heard) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    runtime::sleep(Duration::from_millis(1)).await;
                }
                _ => break,
            }
        }
        assert!(heard.len() <= 7 && heard.first().is_none_or(|kind| *kind == 21), "{heard:?}");
        assert_eq!(thing.begun.get(), 0);
    });
}

type ByHand = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A node that speaks by hand.
fn by_hand(address: SocketAddr, authority: &Authority, name: &str) -> ByHand {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(authority.certificate())).expect("an authority");
    let (certificate, key) = authority.sign(&[&node(name).in_certificate()], |_| {});
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate.into()], PrivateKeyDer::Pkcs8(key.into()))
        .expect("a key");
    let name = ServerName::try_from("b.node.atoll").expect("a name");
    let connection = rustls::ClientConnection::new(Arc::new(config), name).expect("a connection");
    rustls::StreamOwned::new(connection, TcpStream::connect(address).expect("loopback"))
}

/// One frame there and one back.
fn exchange(stream: &mut ByHand, kind: u16, body: &[u8]) -> (u16, Vec<u8>) {
    stream.write_all(&framed(kind, body)).expect("sent");
    let mut header = [0; 8];
    stream.read_exact(&mut header).expect("an answer");
    let word = u64::from_le_bytes(header);
    let mut body = vec![0; word as u32 as usize];
    stream.read_exact(&mut body).expect("its body");
    ((word >> 32) as u16, body)
}

#[test]
fn what_one_node_knows_of_a_session_is_of_no_use_to_another() {
    run(async {
        let authority = Arc::new(Authority::new());
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start_secured(&thing, Options::default(), None, authority.keys("b"));
        let address = host.near();
        // In a thread, because it waits.
        let ask = async |name: &'static str, hello: Hello| {
            let authority = authority.clone();
            let asked = std::thread::spawn(move || {
                exchange(&mut by_hand(address, &authority, name), kind::HELLO, &hello.to_bytes())
            });
            until(|| asked.is_finished()).await;
            asked.join().expect("an answer")
        };
        let (kind, body) = ask("a", hello(0, 1)).await;
        assert_eq!(kind, frame::kind::WELCOME);
        let id = u64::from_le_bytes(body[24..32].try_into().expect("eight bytes"));
        let (kind, body) = ask("c", hello(id, 2)).await;
        assert_eq!(kind, frame::kind::REFUSED, "it knows number and secret, and is another node");
        let refusal = Refusal::check(body.try_into().expect("its length")).expect("a refusal");
        assert!(matches!(refusal, Refusal::NoSuchSession), "{refusal:?}");
        let (kind, _) = ask("a", hello(id, 2)).await;
        assert_eq!(kind, frame::kind::WELCOME, "its own node goes on with it");
    });
}

/// Pulls without end, of what it does not hold, and reads every answer: so both directions always have room and bytes.
#[test]
fn a_flood_of_pulls_over_tls_does_not_keep_the_thread() {
    run(async {
        let authority = Arc::new(Authority::new());
        let (thing, lender) = (Rc::<Thing>::default(), Lender::new(LenderId(50), Epoch(1), 16).expect("memory"));
        let lending = Lending::new(Rc::new(RefCell::new(lender)), []);
        let host = Host::start_secured(&thing, Options::default(), Some(lending), authority.keys("b"));
        let (address, stop) = (host.near(), Arc::new(AtomicBool::new(false)));
        let relay = Relay::start(address, 1, 0, Framing::Tls);
        let remote = Remote::node(relay.address, node("b"), authority.keys("a"));
        let client = dial::connect(remote, TEST.name, SHAPE, Options::default()).await.expect("a session");
        let answered = Arc::new(AtomicU64::new(0));
        let flood = std::thread::spawn({
            let (authority, stop, answered) = (authority.clone(), stop.clone(), answered.clone());
            move || {
                let mut calls = by_hand(address, &authority, "c");
                let (_, body) = exchange(&mut calls, kind::HELLO, &hello(0, 1).to_bytes());
                let session = SessionId(u64::from_le_bytes(body[24..32].try_into().expect("eight bytes")));
                let mut bulk = by_hand(address, &authority, "c");
                let wanted = Bulk { session, way: Way::ToClient, number: 1, secret: hello(0, 1).secret };
                let (kind, _) = exchange(&mut bulk, kind::BULK, &wanted.to_bytes());
                assert_eq!(kind, frame::kind::READY);
                let pull = Pull { lender: LenderId(50), index: 0, generation: 1, offset: 0, length: 1, tag: 0 };
                let many = framed(frame::kind::PULL, &pull.to_bytes()).repeat(1000);
                // So many are always under way that the host never runs out of them.
                (0..8).for_each(|_| bulk.write_all(&many).expect("sent"));
                // At most so long: a host that is kept by it could not say that it is.
                let begun = Instant::now();
                let mut answers = vec![0; 16 * 1000];
                while !stop.load(Ordering::SeqCst) && begun.elapsed() < Duration::from_secs(20) {
                    bulk.write_all(&many).expect("sent");
                    bulk.read_exact(&mut answers).expect("answers");
                    answered.fetch_add(1000, Ordering::SeqCst);
                }
                !stop.load(Ordering::SeqCst)
            }
        });
        until(|| answered.load(Ordering::SeqCst) > 0).await;
        for n in 0..100u8 {
            assert_eq!(*client.call(request(client.root(), ECHO, &[n])).await.expect("echo").payload, [n]);
        }
        stop.store(true, Ordering::SeqCst);
        until(|| flood.is_finished()).await;
        assert!(!flood.join().expect("no panic"), "nobody else was served before it ended by itself");
        assert_eq!(relay.connections(), 1, "nobody else took the host for dead");
    });
}

#[test]
fn nobody_listens_in_the_clear_beyond_this_machine_because_of_keys() {
    let keys = Authority::new().keys("b");
    let everywhere = "0.0.0.0:0".parse().expect("an address");
    assert!(Listener::bind(everywhere).is_err());
    assert!(Listener::bind_secured(everywhere, keys).is_ok());
}
