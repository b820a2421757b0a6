//! Peers that speak by hand, and break what can be broken where calls bring leases.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use kernel_ipc::interface::Description;
use kernel_ipc::link::socket::frame::{self, Bulk, Hello, Pull, Refusal, Way, Welcome, kind};
use kernel_ipc::link::socket::listen::Options;
use kernel_ipc::runtime;
use kernel_ipc::session::Service;
use kernel_ipc::wire::{Completion, Extent, Handle, LeaseName, Shape, Status, Submission};
use kernel_ipc::{Cause, Epoch, LenderId, SessionId};

use super::common::frames::{read_exact, read_frame};
use super::common::run;
use super::world::{Ends, Host, INTAKE_BYTES, PIN, READ, SHAPE, Sink, no, sink, sum_of, until};

fn hasty() -> Options {
    let millis = Duration::from_millis;
    Options { greeting: millis(500), heartbeat: millis(50), dead_after: millis(300), give_up: millis(700) }
}

fn framed(kind: u16, body: &[u8]) -> Vec<u8> {
    [&frame::header(kind, body.len()), body].concat()
}

/// A client by hand, with its two connections.
struct Hand {
    calls: TcpStream,
    arguments: Option<TcpStream>,
}

const SECRET: [u8; 32] = [7; 32];
/// What is lent by hand.
const NAME: LeaseName = LeaseName { lender: LenderId(5), index: 6, generation: 7, length: 1000 };

impl Hand {
    async fn greet(address: SocketAddr) -> (Hand, SessionId) {
        let mut calls = TcpStream::connect(address).expect("loopback");
        const SINK: &Description = Sink::INTERFACE;
        let interface = frame::interface_bytes(SINK.name).expect("a name");
        let hello = Hello { shape: SHAPE, session: SessionId(0), number: 1, outstanding: 0, secret: SECRET, interface };
        calls.write_all(&framed(kind::HELLO, &hello.to_bytes())).expect("sent");
        let (_, body) = read_frame(&mut calls).await.expect("an answer");
        let welcome = Welcome::check(&body.try_into().expect("its length"), &hello).expect("a welcome");
        (Hand { calls, arguments: None }, welcome.session)
    }

    /// With a connection for what it lends, and a call that lends this.
    async fn lends(address: SocketAddr, name: LeaseName) -> Hand {
        let (mut hand, session) = Hand::greet(address).await;
        let mut arguments = TcpStream::connect(address).expect("loopback");
        let hello = Bulk { session, way: Way::ToHost, number: 1, secret: SECRET };
        arguments.write_all(&framed(kind::BULK, &hello.to_bytes())).expect("sent");
        assert_eq!(read_frame(&mut arguments).await, Some((kind::READY, vec![])));
        hand.arguments = Some(arguments);
        hand.call(name);
        hand
    }

    fn call(&mut self, name: LeaseName) {
        let extent = Extent { length: 16, capabilities: 0, leases: 1 };
        let handle = Handle { index: 0, generation: 1 };
        let inline = [0, name.length.min(10)];
        let call = Submission { slot: 0, seq: 1, operation: PIN, extent, handle, inline, ..Submission::default() };
        let body = [&frame::descriptor_bytes(&call.to_raw())[..], &name.to_bytes()].concat();
        self.calls.write_all(&framed(kind::MESSAGE, &body)).expect("sent");
    }

    async fn pulled(&mut self) -> Pull {
        let arguments = self.arguments.as_mut().expect("it has one");
        let (kind, body) = read_frame(arguments).await.expect("a question");
        assert_eq!(kind, frame::kind::PULL);
        Pull::check(&body.try_into().expect("its length")).expect("a question")
    }

    fn say(&mut self, bytes: &[u8]) {
        // It may have ended.
        let _ = self.arguments.as_mut().expect("it has one").write_all(bytes);
    }

    async fn answer(&mut self) -> Completion {
        let (_, body) = read_frame(&mut self.calls).await.expect("an answer");
        let raw = frame::descriptor(body.first_chunk().expect("a descriptor"), body.len(), SHAPE).expect("a message");
        Completion::check(&raw, SHAPE).expect("a completion")
    }
}

/// A host, and somebody who uses it as it is meant.
async fn world(options: Options) -> (Host, Ends) {
    let (sink, lending, pool) = sink();
    let host = Host::start(&sink, Some(lending), pool, None, options);
    let good = Ends::dialled(host.address.into(), sink, None, Options::default()).await;
    (host, good)
}

async fn is_well(good: &Ends) {
    let name = good.own.lend(good.me, 3, 5000);
    assert_eq!(good.sums(READ, &[(name, (0, 5000))]).await, Ok(vec![sum_of(3, 5000)]), "the others notice nothing");
    good.own.take_back(&name);
}

#[test]
fn what_a_client_lends_by_hand_arrives() {
    run(async {
        let (host, _good) = world(Options::default()).await;
        let mut hand = Hand::lends(host.address, NAME).await;
        let pull = hand.pulled().await;
        let asked = (pull.lender, pull.index, pull.generation, pull.offset, pull.length, pull.tag);
        assert_eq!(asked, (NAME.lender, NAME.index, NAME.generation, 0, 1000, 0));
        // In two parts, the first of which ends in the middle of its header.
        let piece = framed(kind::PIECE, &[&[0; 8][..], &[9; 1000]].concat());
        hand.say(&piece[..5]);
        runtime::sleep(Duration::from_millis(5)).await;
        hand.say(&piece[5..]);
        assert_eq!(hand.answer().await.status, Status::Done);
    });
}

#[test]
fn a_piece_that_answers_nothing_ends_its_session_and_no_other() {
    run(async {
        let (host, good) = world(Options::default()).await;
        let piece = |tag: u32, outcome: u32, length: usize| {
            framed(kind::PIECE, &[&tag.to_le_bytes()[..], &outcome.to_le_bytes(), &vec![9; length]].concat())
        };
        let too_long = (PIECE_MOST + 1).to_le_bytes();
        for (what, bytes) in [
            ("another tag", piece(1, 0, 1000)),
            ("a byte too few", piece(0, 0, 999)),
            ("a byte too many", piece(0, 0, 1001)),
            ("gone, and bytes", piece(0, 1, 1000)),
            ("another outcome", piece(0, 2, 0)),
            ("longer than any", [&too_long[..], &[kind::PIECE as u8, 0, 0, 0], &[0; 8]].concat()),
            ("a question", framed(kind::PULL, &[0; 32])),
            ("a message", framed(kind::MESSAGE, &[0; 64])),
            ("no frame", vec![0xff; 64]),
        ] {
            let mut hand = Hand::lends(host.address, NAME).await;
            hand.pulled().await;
            hand.say(&bytes);
            while let Some((kind, _)) = read_frame(&mut hand.calls).await {
                assert_eq!(kind, frame::kind::BYE, "{what}");
            }
            is_well(&good).await;
            until(|| host.intake.free() == INTAKE_BYTES).await;
        }
    });
}

/// Bytes of the longest body of a piece.
const PIECE_MOST: u32 = (frame::PIECE_BYTES + frame::CHUNK) as u32;

#[test]
fn a_client_that_does_not_bring_what_it_lends_fails_its_own_call() {
    run(async {
        let (host, good) = world(hasty()).await;
        let good = std::rc::Rc::new(good);
        let mine = LeaseName { length: 8 << 20, ..NAME };
        // No connection for it; one on which nothing is said; one on which too little is. It goes on to live on the other.
        let (mut none, _) = Hand::greet(host.address).await;
        none.call(mine);
        let mut silent = Hand::lends(host.address, mine).await;
        let mut trickles = Hand::lends(host.address, mine).await;
        let (calls, pieces) = (
            [&none.calls, &silent.calls, &trickles.calls].map(|socket| socket.try_clone().expect("dup")),
            trickles.arguments.as_ref().expect("it has one").try_clone().expect("dup"),
        );
        let beating = runtime::spawn(async move {
            for round in 0u32.. {
                runtime::sleep(Duration::from_millis(20)).await;
                for mut socket in &calls {
                    let _ = socket.write_all(&framed(kind::HEARTBEAT, &[]));
                }
                let begun = framed(kind::PIECE, &[&[0; 8][..], &vec![1; frame::CHUNK]].concat());
                let _ = (&pieces).write_all(&begun[round as usize..][..1]);
            }
        });
        // Meanwhile there is room for others.
        assert!(host.intake.free() < INTAKE_BYTES);
        is_well(&good).await;
        for hand in [&mut none, &mut silent, &mut trickles] {
            let Status::Failed(failure) = hand.answer().await.status else { panic!("it has run") };
            assert_eq!(failure, no(Cause::LinkLost));
        }
        // Their sessions go on, and what their calls took is free all the same.
        until(|| host.intake.free() == INTAKE_BYTES).await;
        beating.cancel();
        is_well(&good).await;
    });
}

#[test]
fn a_client_that_is_gone_leaves_no_room_taken() {
    run(async {
        let (host, good) = world(hasty()).await;
        for says in [0, 5, 500] {
            let mut hand = Hand::lends(host.address, NAME).await;
            hand.pulled().await;
            hand.say(&framed(kind::PIECE, &[&[0; 8][..], &[9; 1000]].concat())[..says]);
            drop(hand);
            until(|| host.intake.free() == INTAKE_BYTES).await;
            is_well(&good).await;
        }
    });
}

#[test]
fn a_strangers_connection_brings_nothing() {
    run(async {
        let (host, good) = world(Options::default()).await;
        let (_hand, session) = Hand::greet(host.address).await;
        let hello = Bulk { session, way: Way::ToHost, number: 5, secret: SECRET };
        let refused = async |bulk: Bulk| {
            let mut socket = TcpStream::connect(host.address).expect("loopback");
            socket.write_all(&framed(kind::BULK, &bulk.to_bytes())).expect("sent");
            match read_frame(&mut socket).await.expect("an answer") {
                (kind::REFUSED, body) => Some(Refusal::check(body.try_into().expect("its length")).expect("a refusal")),
                _ => None,
            }
        };
        assert_eq!(refused(Bulk { secret: [8; 32], ..hello }).await, Some(Refusal::NoSuchSession));
        assert_eq!(refused(Bulk { session: SessionId(999), ..hello }).await, Some(Refusal::NoSuchSession));
        assert_eq!(refused(hello).await, None);
        for number in [0, 4, 5] {
            assert_eq!(refused(Bulk { number, ..hello }).await, Some(Refusal::StaleConnection), "{number}");
        }
        // Each way has numbers of its own.
        assert_eq!(refused(Bulk { way: Way::ToClient, number: 1, ..hello }).await, None);
        // A way that is none.
        let mut bytes = hello.to_bytes();
        bytes[12] = 2;
        let mut socket = TcpStream::connect(host.address).expect("loopback");
        socket.write_all(&framed(kind::BULK, &bytes)).expect("sent");
        let (kind, body) = read_frame(&mut socket).await.expect("an answer");
        assert_eq!(kind, frame::kind::REFUSED);
        assert_eq!(Refusal::check(body.try_into().expect("its length")), Ok(Refusal::NoHello));
        is_well(&good).await;
    });
}

/// A host by hand: greets, and gives both connections once the client has called.
fn host_by_hand() -> (SocketAddr, std::thread::JoinHandle<(TcpStream, TcpStream, LeaseName)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("an address");
    let host = std::thread::spawn(move || {
        let (mut calls, _) = listener.accept().expect("a connection");
        let mut bytes = [0; 8 + frame::HELLO_BYTES];
        calls.read_exact(&mut bytes).expect("a hello");
        let hello = Hello::check(bytes[8..].try_into().expect("its length")).expect("a hello");
        let root = Handle { index: 0, generation: 1 };
        let (shape, number): (Shape, u64) = (hello.shape, hello.number);
        let welcome = Welcome { shape, session: SessionId(1), epoch: Epoch(1), root, number };
        calls.write_all(&framed(kind::WELCOME, &welcome.to_bytes())).expect("sent");
        let mut call = [0; 8 + 64 + 24];
        calls.read_exact(&mut call).expect("a call that lends");
        let name = LeaseName::from_bytes(call[72..].try_into().expect("its length"));
        let (mut arguments, _) = listener.accept().expect("a connection");
        let mut bulk = [0; 8 + frame::BULK_BYTES];
        arguments.read_exact(&mut bulk).expect("a greeting");
        assert_eq!(bulk[8 + 12..8 + 16], [1, 0, 0, 0], "what it brings goes to the host");
        arguments.write_all(&framed(kind::READY, &[])).expect("sent");
        (calls, arguments, name)
    });
    (address, host)
}

#[test]
fn a_host_can_ask_for_what_a_call_names_and_for_nothing_else() {
    run(async {
        let (address, host) = host_by_hand();
        let ends = std::rc::Rc::new(Ends::dialled(address.into(), Default::default(), None, Options::default()).await);
        let named = ends.own.lend(ends.me, 8192, 4096);
        // Lent to this very host, or to this client, and in no call.
        let mine = ends.own.lend(ends.me, 0, 4096);
        let theirs = ends.own.lend(super::world::HOST, 0, 4096);
        let others = ends.other.lend(ends.me, 0, 4096);
        let call = runtime::spawn({
            let ends = ends.clone();
            async move { ends.sums(PIN, &[(named, (0, 1))]).await }
        });
        until(|| host.is_finished()).await;
        let (mut calls, mut arguments, name) = host.join().expect("it greets");
        assert_eq!(name, named);
        let pull = |name: LeaseName, offset, length| {
            let LeaseName { lender, index, generation, .. } = name;
            framed(kind::PULL, &Pull { lender, index, generation, offset, length, tag: 3 }.to_bytes())
        };
        let gone = vec![3, 0, 0, 0, 1, 0, 0, 0];
        for (what, name, offset, length, expected) in [
            ("what is named", named, 1, 4095, Some(8193)),
            ("beyond its end", named, 1, 4096, None),
            ("far beyond", named, u64::MAX, 1, None),
            ("another generation", LeaseName { generation: 99, ..named }, 0, 1, None),
            ("of another lender", LeaseName { lender: LenderId(60), ..named }, 0, 1, None),
            ("what is lent and not named", mine, 0, 1, None),
            ("what is lent to this host, and not named", theirs, 0, 1, None),
            ("what the client holds", others, 0, 1, None),
        ] {
            arguments.write_all(&pull(name, offset, length)).expect("sent");
            let (kind, body) = read_frame(&mut arguments).await.expect("an answer");
            assert_eq!(kind, frame::kind::PIECE, "{what}");
            match expected {
                None => assert_eq!(body, gone, "{what}"),
                Some(at) => {
                    assert_eq!((&body[..8], body.len()), (&[3, 0, 0, 0, 0, 0, 0, 0][..], 8 + 4095), "{what}");
                    assert!(body[8..].iter().zip(at..).all(|(seen, at)| *seen == super::world::byte(at)), "{what}");
                }
            }
        }
        // Once the call is answered it names nothing any more, though the lease is still there.
        let completion = Completion {
            slot: 0,
            operation: PIN,
            seq: 1,
            extent: Extent::default(),
            status: Status::Done,
            trace: 0,
            inline: [0; 2],
        };
        calls.write_all(&framed(kind::MESSAGE, &frame::descriptor_bytes(&completion.to_raw()))).expect("sent");
        assert_eq!(call.await, Ok(Ok(vec![])));
        arguments.write_all(&pull(named, 0, 1)).expect("sent");
        assert_eq!(read_frame(&mut arguments).await, Some((kind::PIECE, gone)));
        // Too much at a time is no question that a host asks.
        arguments.write_all(&pull(mine, 0, frame::CHUNK as u32 + 1)).expect("sent");
        assert_eq!(read_frame(&mut arguments).await, None);
        until(|| !ends.client.is_open()).await;
    });
}

/// It asks, and reads no answer; then it says nothing at all. The client sends no more than the kernel takes, and makes the
/// connection anew.
#[test]
fn a_host_that_stops_reading_is_left_alone_and_called_anew() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.set_nonblocking(true).expect("an option");
        let address = listener.local_addr().expect("an address");
        let (calling, greeting) = (runtime::spawn(async move { dialled(address).await }), accept(&listener).await);
        let mut calls = greeting;
        read_exact(&mut calls, &mut [0; 8 + frame::HELLO_BYTES]).await.expect("a hello");
        let root = Handle { index: 0, generation: 1 };
        let welcome = Welcome { shape: SHAPE, session: SessionId(1), epoch: Epoch(1), root, number: 1 };
        calls.write_all(&framed(kind::WELCOME, &welcome.to_bytes())).expect("sent");
        let ends = std::rc::Rc::new(calling.await.expect("not cancelled"));
        let beating = runtime::spawn({
            let calls = calls.try_clone().expect("dup");
            async move {
                loop {
                    runtime::sleep(Duration::from_millis(20)).await;
                    let _ = (&calls).write_all(&framed(kind::HEARTBEAT, &[]));
                }
            }
        });
        let named = ends.own.lend(ends.me, 0, 4 << 20);
        let call = runtime::spawn({
            let ends = ends.clone();
            async move { ends.sums(PIN, &[(named, (0, 1))]).await }
        });
        for number in 1..=3u8 {
            let mut arguments = accept(&listener).await;
            let mut bulk = [0; 8 + frame::BULK_BYTES];
            read_exact(&mut arguments, &mut bulk).await.expect("a greeting");
            assert_eq!(bulk[8 + 24], number, "one after the other");
            arguments.write_all(&framed(kind::READY, &[])).expect("sent");
            if number < 3 {
                let LeaseName { lender, index, generation, .. } = named;
                for tag in 0..u32::from(number - 1) * 64 {
                    let pull = Pull { lender, index, generation, offset: 0, length: frame::CHUNK as u32, tag };
                    let _ = arguments.write_all(&framed(kind::PULL, &pull.to_bytes()));
                }
                // Kept open, and not read.
                std::mem::forget(arguments);
            }
        }
        ends.client.close();
        assert!(call.await.expect("not cancelled").is_err());
        beating.cancel();
    });
}

async fn dialled(address: SocketAddr) -> Ends {
    Ends::dialled(address.into(), Default::default(), None, hasty()).await
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(true).expect("an option");
                return socket;
            }
            Err(_) => runtime::sleep(Duration::from_millis(1)).await,
        }
    }
}
