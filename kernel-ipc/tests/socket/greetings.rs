//! Sessions begin: who may, who is refused, and who takes too long.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::link::socket::dial::{self, DialError};
use kernel_ipc::link::socket::frame::{Hello, Refusal, interface_bytes, kind};
use kernel_ipc::link::socket::listen::{ListenError, Listener, Options, Peer};
use kernel_ipc::runtime;
use kernel_ipc::session::Request;
use kernel_ipc::wire::Shape;
use nix::sys::socket::{setsockopt, sockopt};

use super::common::*;
use super::world::*;

#[test]
fn a_session_is_opened_used_and_closed() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let client = host.connect(Options::default()).await;
        for size in [0, 1, 16, 17, 1000, 4096] {
            let reply = client.call(request(client.root(), ECHO, &bytes(size))).await.expect("echo");
            assert_eq!(*reply.payload, bytes(size)[..]);
        }
        let opened = client.call(request(client.root(), OPEN, &[2, 3])).await.expect("opened").capabilities;
        let join = Request { capabilities: &opened[..1], ..request(client.root(), JOIN, b"") };
        assert_eq!(*client.call(join).await.expect("joined").payload, 0u64.to_le_bytes());
        drop(client);
        until(|| thing.closed.get() == 1).await;
        assert_eq!(thing.dropped.borrow().len(), 4, "three, and the root");
    });
}

#[test]
fn nobody_listens_or_calls_beyond_this_machine() {
    run(async {
        for address in ["0.0.0.0:0", "192.0.2.1:0", "[::]:0"] {
            let address: SocketAddr = address.parse().expect("an address");
            let refused = Listener::bind(address).expect_err("in the clear");
            assert!(matches!(refused, ListenError::InTheClear(_)), "{refused:?}");
            let text = refused.to_string();
            assert!(text.contains("socket (in the clear)") && text.contains(&address.to_string()), "{text}");
        }
        let everywhere = std::net::TcpListener::bind("0.0.0.0:0").expect("a socket");
        assert!(matches!(Listener::adopt(everywhere.into()), Err(ListenError::InTheClear(_))));
        let far: SocketAddr = "192.0.2.1:1".parse().expect("an address");
        let refused = dial::connect(far, TEST.name, SHAPE, Options::default()).await.expect_err("in the clear");
        assert!(matches!(refused, DialError::InTheClear(_)), "{refused:?}");
    });
}

#[test]
fn a_host_refuses_with_a_reason() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let refused = dial::connect(host.address, "other/1", SHAPE, Options::default()).await.expect_err("refused");
        assert!(matches!(refused, DialError::Refused(peer, Refusal::Interface) if peer == host.address));
        assert!(refused.to_string().contains(&host.address.to_string()), "{refused}");

        let listener = Listener::bind("127.0.0.1:0".parse().expect("an address")).expect("loopback");
        let address = listener.address();
        let serving = runtime::spawn(listener.serve(thing.clone(), None, Options::default(), |_, _| None));
        let refused = dial::connect(address, TEST.name, SHAPE, Options::default()).await.expect_err("refused");
        assert!(matches!(refused, DialError::Refused(_, Refusal::Forbidden)), "{refused:?}");
        serving.cancel();
    });
}

#[test]
fn nobody_at_the_address_and_nobody_who_answers_are_errors() {
    run(async {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = silent.local_addr().expect("an address");
        let error = dial::connect(address, TEST.name, SHAPE, hasty()).await.expect_err("silence");
        assert!(matches!(error, DialError::Silent(peer) if peer == address), "{error:?}");
        drop(silent);
        let error = dial::connect(address, TEST.name, SHAPE, hasty()).await.expect_err("nobody");
        assert!(matches!(error, DialError::Io(peer, _) if peer == address), "{error:?}");
    });
}

#[test]
fn an_older_connection_or_another_secret_takes_no_session_over() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let dial = || TcpStream::connect(host.address).expect("loopback");
        let mut first = dial();
        let id = greet(&mut first, &hello(0, 5)).await.session.get();
        let say = |hello: &Hello| {
            let mut socket = dial();
            socket.write_all(&framed(kind::HELLO, &hello.to_bytes())).expect("sent");
            socket
        };
        let thief = Hello { secret: [8; 32], ..hello(id, 6) };
        assert_eq!(refusal(&mut say(&thief)).await, Refusal::NoSuchSession);
        let other_shape = Hello { shape: Shape { slots: 4, ..SHAPE }, ..hello(id, 6) };
        assert_eq!(refusal(&mut say(&other_shape)).await, Refusal::NoSuchSession);
        for number in [0, 4, 5] {
            assert_eq!(refusal(&mut say(&hello(id, number))).await, Refusal::StaleConnection);
        }
        // None of them has disturbed it.
        first.write_all(&message(&echo(0, 1))).expect("sent");
        assert_eq!(answer(&mut first).await.seq, 1);

        let mut second = dial();
        assert_eq!(greet(&mut second, &hello(id, 6)).await.session.get(), id);
        assert_eq!(read_frame(&mut first).await, None, "the old connection is dropped");
        second.write_all(&message(&echo(0, 2))).expect("sent");
        assert_eq!(answer(&mut second).await.seq, 2);
    });
}

#[test]
fn a_hello_that_trickles_is_not_waited_for() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, hasty());
        let mut socket = TcpStream::connect(host.address).expect("loopback");
        socket.set_nodelay(true).expect("an option");
        // Each byte well within the time for greetings, all of them far beyond it.
        for byte in framed(kind::HELLO, &hello(0, 1).to_bytes()) {
            if socket.write_all(&[byte]).is_err() {
                break;
            }
            runtime::sleep(hasty().greeting / 20).await;
        }
        assert_eq!(read_frame(&mut socket).await, None, "no welcome");
    });
}

#[test]
fn silent_connections_keep_no_newcomer_out() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options { greeting: Duration::from_secs(6000), ..Options::default() });
        // As many as may be asked at a time what they want.
        let mut silent: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(host.address).expect("loopback")).collect();
        let client = host.connect(Options::default()).await;
        client.call(request(client.root(), ECHO, b"")).await.expect("echo");
        assert_eq!(read_frame(&mut silent[0]).await, None, "the oldest has given way");
        greet(&mut silent[1], &hello(0, 1)).await;
        greet(&mut silent[63], &hello(0, 1)).await;
    });
}

#[test]
fn a_session_whose_client_was_not_welcomed_ends_at_once() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let listener = Listener::bind("127.0.0.1:0".parse().expect("an address")).expect("loopback");
        let mut socket = TcpStream::connect(listener.address()).expect("loopback");
        socket.write_all(&framed(kind::HELLO, &hello(0, 1).to_bytes())).expect("sent");
        let mut leaving = Some(socket);
        // Between its hello and its welcome it is gone, with a reset.
        let admit = move |_: &Peer, _: &_| {
            let socket = leaving.take().expect("one client");
            setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).expect("an option");
            drop(socket);
            Some((root(), info(1)))
        };
        let forever = Options { give_up: Duration::from_secs(6000), ..Options::default() };
        let serving = runtime::spawn(listener.serve(thing.clone(), None, forever, admit));
        let closed = runtime::timeout(Duration::from_secs(60), until(|| thing.closed.get() == 1)).await;
        closed.expect("nobody can come back to it");
        serving.cancel();
    });
}

#[test]
fn those_who_are_refused_and_do_not_leave_hold_only_so_many_descriptors() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        // Connections at the host's port that somebody has a descriptor of.
        let port = format!(":{:04X}", host.address.port());
        let open = || {
            let table = std::fs::read_to_string("/proc/self/net/tcp").expect("connections");
            let columns = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
            columns.filter(|of| of[1].ends_with(&port) && of[3] != "0A" && of[9] != "0").count()
        };
        let (mut stay, mut most) = (Vec::new(), 0);
        // At a time as many as have a place each, and all of them before the first is not waited for any more.
        for _ in 0..12 {
            let first = stay.len();
            for _ in 0..50 {
                let mut socket = TcpStream::connect(host.address).expect("loopback");
                let other = Hello { interface: interface_bytes("other/1").expect("a name"), ..hello(0, 1) };
                socket.write_all(&framed(kind::HELLO, &other.to_bytes())).expect("sent");
                stay.push(socket);
            }
            for socket in &mut stay[first..] {
                assert_eq!(refusal(socket).await, Refusal::Interface);
            }
            most = most.max(open());
        }
        // As many as are waited for, and a few that are being refused or closed this moment; all would be 600.
        assert!((40..110).contains(&most), "{most}");
    });
}

#[test]
fn a_greeting_that_outlives_its_listener_opens_no_session() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let mut socket = TcpStream::connect(host.address).expect("loopback");
        // Connections are taken in order, so that one was taken when this is there.
        let client = host.connect(Options::default()).await;
        host.listening.cancel();
        socket.write_all(&framed(kind::HELLO, &hello(0, 1).to_bytes())).expect("sent");
        assert_eq!(refusal(&mut socket).await, Refusal::Busy);
        until(|| !client.is_open()).await;
    });
}
