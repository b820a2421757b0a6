//! Sessions over sockets: greetings, a connection that is lost, and peers that break the rules.

mod bulk;
#[path = "../common/mod.rs"]
mod common;
mod relay;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use common::*;
use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::link::socket::bulk::serve::Lending;
use kernel_ipc::link::socket::dial::{self, DialError};
use kernel_ipc::link::socket::frame::{self, Hello, Refusal, Welcome, kind};
use kernel_ipc::link::socket::listen::{ListenError, Listener, Options};
use kernel_ipc::runtime::{self, JoinHandle};
use kernel_ipc::session::{Call, ClientSession, Grant, Request, Response, Service, SessionInfo};
use kernel_ipc::wire::{Completion, Handle, Shape, Submission};
use kernel_ipc::{Cause, Executed, Failure, Rights, SessionId};
use relay::{Random, Relay};

const SHAPE: Shape = Shape { slots: 8, window_bytes: 4096 };

/// Short enough for a test that waits for the end of it.
fn hasty() -> Options {
    let millis = Duration::from_millis;
    Options { greeting: millis(500), heartbeat: millis(50), dead_after: millis(400), give_up: millis(800) }
}

/// Serves `service` on a port of its own.
struct Host {
    address: SocketAddr,
    listening: JoinHandle<()>,
}

impl Host {
    fn start<S: Service>(service: &Rc<S>, options: Options) -> Host {
        Host::start_lending(service, options, None)
    }

    fn start_lending<S: Service>(service: &Rc<S>, options: Options, lending: Option<Lending>) -> Host {
        let listener = Listener::bind("127.0.0.1:0".parse().expect("an address")).expect("loopback");
        let address = listener.address();
        let last = Cell::new(0);
        let admit = move |_: SocketAddr| {
            last.set(last.get() + 1);
            Some((root(), info(last.get())))
        };
        Host { address, listening: runtime::spawn(listener.serve(service.clone(), lending, options, admit)) }
    }

    async fn connect(&self, options: Options) -> ClientSession {
        dial::connect(self.address, TEST.name, SHAPE, options).await.expect("a session")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.listening.cancel();
    }
}

fn no(cause: Cause) -> Failure {
    Failure { cause, executed: Executed::No }
}

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

/// Waits until it is so. The watchdog is the limit.
async fn until(so: impl Fn() -> bool) {
    while !so() {
        runtime::sleep(Duration::from_millis(1)).await;
    }
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
        let far = "192.0.2.1:1".parse().expect("an address");
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
        let serving = runtime::spawn(listener.serve(thing.clone(), None, Options::default(), |_| None));
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
fn a_deadline_crosses_as_what_is_left_of_it() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let mut socket = TcpStream::connect(host.address).expect("loopback");
        greet(&mut socket, &hello(0, 1)).await;
        // A second, whatever this machine's clock says: read as a time it would have passed long ago.
        let call = Submission { deadline: 1_000_000_000, ..echo(0, 1) };
        socket.write_all(&message(&call)).expect("sent");
        assert_eq!(answer(&mut socket).await.status, kernel_ipc::wire::Status::Done);
        let late = Submission { deadline: 1, ..echo(0, 2) };
        runtime::sleep(Duration::from_millis(20)).await;
        socket.write_all(&message(&late)).expect("sent");
        // A nanosecond has passed before anybody looks; the clock that is looked at may be a tick behind.
        runtime::sleep(Duration::from_millis(20)).await;
        let _ = answer(&mut socket).await;

        let client = host.connect(Options::default()).await;
        let short = Request { deadline: Some(Duration::from_millis(30)), ..request(client.root(), HANG, b"") };
        let failure = client.call(short).await.expect_err("nobody answers");
        assert_eq!(failure, Failure { cause: Cause::Deadline, executed: Executed::Unknown });
        // The cancel goes out, and the handler hears it.
        until(|| thing.cancelled.get() == 1).await;
    });
}

fn hello(session: u64, number: u64) -> Hello {
    let interface = frame::interface_bytes(TEST.name).expect("a name");
    Hello { shape: SHAPE, session: SessionId(session), number, outstanding: 0, secret: [7; 32], interface }
}

fn framed(kind: u16, body: &[u8]) -> Vec<u8> {
    [&frame::header(kind, body.len()), body].concat()
}

fn message(call: &Submission) -> Vec<u8> {
    framed(kind::MESSAGE, &frame::descriptor_bytes(&call.to_raw()))
}

fn echo(slot: u16, seq: u64) -> Submission {
    Submission { slot, seq, operation: ECHO, handle: Handle { index: 0, generation: 1 }, ..Submission::default() }
}

/// Reads one frame, heartbeats apart, while the runtime runs on. `None`: the connection has ended.
async fn read_frame(socket: &mut TcpStream) -> Option<(u16, Vec<u8>)> {
    socket.set_nonblocking(true).expect("an option");
    loop {
        let mut header = [0; 8];
        read_exact(socket, &mut header).await?;
        let word = u64::from_le_bytes(header);
        let mut body = vec![0; word as u32 as usize];
        read_exact(socket, &mut body).await?;
        let kind = (word >> 32) as u16;
        if kind != frame::kind::HEARTBEAT {
            return Some((kind, body));
        }
    }
}

async fn read_exact(socket: &mut TcpStream, bytes: &mut [u8]) -> Option<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match socket.read(&mut bytes[filled..]) {
            Ok(0) => return None,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                runtime::sleep(Duration::from_micros(200)).await;
            }
            Err(_) => return None,
        }
    }
    Some(())
}

/// Greets as a correct client.
async fn greet(socket: &mut TcpStream, hello: &Hello) -> Welcome {
    socket.write_all(&framed(kind::HELLO, &hello.to_bytes())).expect("sent");
    let (kind, body) = read_frame(socket).await.expect("an answer");
    assert_eq!(kind, frame::kind::WELCOME);
    Welcome::check(&body.try_into().expect("its length"), hello).expect("a welcome")
}

async fn answer(socket: &mut TcpStream) -> Completion {
    let (kind, body) = read_frame(socket).await.expect("an answer");
    assert_eq!(kind, frame::kind::MESSAGE);
    let descriptor = body.first_chunk().expect("a descriptor");
    let raw = frame::descriptor(descriptor, body.len(), SHAPE).expect("a message");
    Completion::check(&raw, SHAPE).expect("a completion")
}

async fn refusal(socket: &mut TcpStream) -> Refusal {
    let (kind, body) = read_frame(socket).await.expect("an answer");
    assert_eq!(kind, frame::kind::REFUSED);
    Refusal::check(body.try_into().expect("its length")).expect("a refusal")
}

#[test]
fn strangers_and_liars_are_shown_out_and_nobody_else_notices() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, hasty());
        let bystander = host.connect(Options::default()).await;
        let dial = || TcpStream::connect(host.address).expect("loopback");
        let greeting = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = framed(kind::HELLO, &hello(0, 1).to_bytes());
            change(&mut bytes);
            let mut socket = dial();
            socket.write_all(&bytes).expect("sent");
            socket
        };

        for (what, mut socket, expected) in [
            ("another language", greeting(&|bytes| bytes[8] = b'X'), Refusal::NoHello),
            ("another version", greeting(&|bytes| bytes[16] = 9), Refusal::Version(kernel_ipc::wire::VERSION)),
            ("no slots", greeting(&|bytes| bytes[20] = 0), Refusal::Shape),
            ("another kind", greeting(&|bytes| bytes[4] = kind::BYE as u8), Refusal::NoHello),
            ("too long", greeting(&|bytes| bytes[1] = 1), Refusal::NoHello),
            ("another interface", greeting(&|bytes| bytes[80] ^= 1), Refusal::Interface),
            ("no such session", greeting(&|bytes| bytes[32] = 77), Refusal::NoSuchSession),
        ] {
            assert_eq!(refusal(&mut socket).await, expected, "{what}");
            assert_eq!(read_frame(&mut socket).await, None, "{what}");
        }
        // One that says nothing, and one that trickles, are dropped after the time for greetings.
        let mut silent = dial();
        assert_eq!(read_frame(&mut silent).await, None);

        // A session's own client, after a right greeting.
        let payload = |length: u8| {
            let mut bytes = message(&echo(0, 1));
            bytes[8 + 16] = length;
            bytes
        };
        for (what, bytes) in [
            ("an unknown kind", framed(11, b"")),
            ("a pull where calls come", framed(kind::PULL, &[1; 32])),
            ("a second hello", framed(kind::HELLO, &hello(0, 1).to_bytes())),
            ("a message that is too short", framed(kind::MESSAGE, &[0; 63])),
            ("a message longer than any", frame::header(kind::MESSAGE, 64 + 4097).to_vec()),
            ("a length beyond reason", frame::header(kind::MESSAGE, u32::MAX as usize).to_vec()),
            ("a payload that did not come along", payload(100)),
            ("a slot that is none", message(&echo(12, 1))),
            ("an old seq", [message(&echo(1, 5)), message(&echo(1, 5))].concat()),
            ("a heartbeat with a body", framed(kind::HEARTBEAT, b"x")),
            ("a resume that nobody asked for", {
                let mut bytes = message(&echo(0, 1));
                bytes[8 + 2] = 1;
                bytes
            }),
        ] {
            let before = thing.closed.get();
            let mut socket = dial();
            greet(&mut socket, &hello(0, 1)).await;
            socket.write_all(&bytes).expect("sent");
            while let Some((kind, _)) = read_frame(&mut socket).await {
                assert!(matches!(kind, kind::MESSAGE | kind::BYE), "{what}: {kind}");
            }
            until(|| thing.closed.get() > before).await;
        }
        let reply = bystander.call(request(bystander.root(), ECHO, b"still here")).await.expect("echo");
        assert_eq!(*reply.payload, *b"still here");
    });
}

#[test]
fn a_trickling_peer_gets_its_answer_when_its_call_is_whole() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let mut socket = TcpStream::connect(host.address).expect("loopback");
        socket.set_nodelay(true).expect("an option");
        greet(&mut socket, &hello(0, 1)).await;
        let other = host.connect(Options::default()).await;
        for byte in message(&echo(0, 1)) {
            socket.write_all(&[byte]).expect("sent");
            other.call(request(other.root(), ECHO, b"")).await.expect("echo");
        }
        assert_eq!(answer(&mut socket).await.seq, 1);
    });
}

#[test]
fn a_peer_that_reads_nothing_ends_its_own_session_in_bounded_memory() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let other = host.connect(Options::default()).await;
        let mut socket = TcpStream::connect(host.address).expect("loopback");
        greet(&mut socket, &hello(0, 1)).await;
        // Large answers to calls on slots whose answers it has not read: no correct client can know that they are free.
        let mut sent = 0u64;
        let mut seq = 1;
        socket.set_nonblocking(true).expect("an option");
        while thing.closed.get() == 0 {
            let call = Submission { operation: FAIL, ..echo(0, seq) };
            let mut bytes = message(&call);
            let payload = common::bytes(4000);
            bytes[..4].copy_from_slice(&(64 + 4000u32).to_le_bytes());
            bytes[8 + 16..8 + 20].copy_from_slice(&4000u32.to_le_bytes());
            bytes.extend(payload);
            let mut left = &bytes[..];
            while !left.is_empty() && thing.closed.get() == 0 {
                match socket.write(left) {
                    Ok(count) => {
                        left = &left[count..];
                        sent += count as u64;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        runtime::sleep(Duration::from_millis(1)).await;
                    }
                    Err(_) => break,
                }
            }
            if left.is_empty() {
                seq += 1;
            } else if thing.closed.get() == 0 {
                runtime::yield_now().await;
            }
            if seq.is_multiple_of(64) {
                other.call(request(other.root(), ECHO, b"")).await.expect("the others notice nothing");
            }
        }
        assert!(sent > 0);
        other.call(request(other.root(), ECHO, b"")).await.expect("the others notice nothing");
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
fn offers_are_answered_by_what_became_of_the_call() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let dial = || TcpStream::connect(host.address).expect("loopback");
        let mut first = dial();
        let id = greet(&mut first, &hello(0, 1)).await.session.get();
        let hang = Submission { operation: HANG, ..echo(1, 3) };
        first.write_all(&[message(&echo(0, 1)), message(&hang)].concat()).expect("sent");
        until(|| thing.begun.get() == 2).await;
        drop(first);

        let mut second = dial();
        greet(&mut second, &Hello { outstanding: 3, ..hello(id, 2) }).await;
        let offer = |slot: u64, seq: u64| {
            let mut descriptor = [0; 64];
            descriptor[2] = 1;
            descriptor[4] = slot as u8;
            descriptor[8..16].copy_from_slice(&seq.to_le_bytes());
            framed(kind::MESSAGE, &descriptor)
        };
        second.write_all(&[offer(0, 1), offer(1, 3), offer(2, 1)].concat()).expect("sent");
        assert_eq!(answer(&mut second).await.seq, 1, "done: the same answer once more");
        let mut flags = Vec::new();
        for _ in 0..2 {
            let (_, body) = read_frame(&mut second).await.expect("an answer");
            flags.push((body[4], body[2]));
        }
        assert_eq!(flags, [(1, 8), (2, 2)], "running, and not seen");
        assert_eq!(thing.begun.get(), 2, "nothing ran twice");
        second.write_all(&message(&echo(2, 1))).expect("sent");
        assert_eq!(answer(&mut second).await.slot, 2);

        // A seq that was passed long ago is a lie, and so is a call before the offers that were announced.
        second.write_all(&message(&echo(0, 9))).expect("sent");
        assert_eq!(answer(&mut second).await.seq, 9);
        let mut third = dial();
        greet(&mut third, &Hello { outstanding: 1, ..hello(id, 3) }).await;
        third.write_all(&offer(0, 1)).expect("sent");
        until(|| thing.closed.get() == 1).await;
    });
}

/// Counts what happened to it: each call has a number that comes once.
#[derive(Default)]
struct Counter {
    seen: RefCell<HashMap<u64, u64>>,
    granted: Cell<u64>,
    dropped: Cell<u64>,
}

const COUNT: u16 = 1;
const SLOW: u16 = 2;
const GRANT: u16 = 3;

const fn counting(number: u16, name: &'static str, retry: Retry) -> Operation {
    Operation {
        number,
        name,
        target_kind: 1,
        requires: Rights::READ,
        retry,
        deadline: None,
        handles: &[],
        signature: "",
    }
}

impl Service for Counter {
    const INTERFACE: &'static Description = &Description {
        name: "count/1",
        kinds: &["Thing"],
        rights: &[("read", Rights::READ)],
        operations: &[
            counting(COUNT, "count", Retry::Never),
            counting(SLOW, "slow", Retry::Cached),
            counting(GRANT, "grant", Retry::Cached),
        ],
        details: Details::none,
    };

    async fn serve(&self, call: &mut Call) -> Response {
        let number = call.payload().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        *self.seen.borrow_mut().entry(number).or_default() += 1;
        if call.operation() == SLOW {
            runtime::sleep(Duration::from_micros(number % 7 * 300)).await;
        }
        let mut response = Response { payload: call.payload().into(), ..Response::default() };
        if call.operation() == GRANT {
            self.granted.set(self.granted.get() + 1);
            response.grants = vec![Grant { object: [number, 0], ..root() }];
        }
        response
    }

    fn dropped(&self, _: &SessionInfo, _: &Grant) {
        self.dropped.set(self.dropped.get() + 1);
    }
}

/// Calls through a relay that cuts every few frames. Gives how often it did.
async fn count_through_cuts(seed: u64, calls: u64, most: u64) -> u64 {
    let counter: Rc<Counter> = Rc::default();
    let host = Host::start(&counter, Options::default());
    let relay = Relay::start(host.address, seed, most);
    let client = loop {
        // The first connection may be cut before it is greeted on; there is no session then that could resume.
        match dial::connect(relay.address, Counter::INTERFACE.name, SHAPE, Options::default()).await {
            Ok(client) => break client,
            Err(DialError::Io(..)) => {}
            Err(error) => panic!("{error}"),
        }
    };
    let mut random = Random(seed ^ 1);
    let callers: Vec<_> = (0..12u64)
        .map(|caller| {
            let (client, mut random) = (client.clone(), Random(random.next()));
            runtime::spawn(async move {
                for n in 0..calls {
                    let number = caller << 32 | n;
                    let mut payload = bytes(8 + random.below(3) as usize * 1000);
                    payload[..8].copy_from_slice(&number.to_le_bytes());
                    let operation = 1 + random.below(3) as u16;
                    let retry = if operation == COUNT { Retry::Never } else { Retry::Cached };
                    let made = Request { retry, ..request(client.root(), operation, &payload) };
                    let reply = client.call(made).await.unwrap_or_else(|failure| panic!("{number}: {failure}"));
                    assert_eq!(*reply.payload, payload[..], "{number}");
                    reply.capabilities.iter().for_each(|handle| client.release_handle(*handle));
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("not cancelled");
    }
    relay.be_kind();
    let made: u64 = counter.seen.borrow().values().sum();
    let distinct = counter.seen.borrow().len() as u64;
    assert_eq!((made, distinct), (12 * calls, 12 * calls), "SEED={seed}: calls that ran, and different ones");
    until(|| counter.dropped.get() == counter.granted.get()).await;
    drop(client);
    until(|| counter.dropped.get() == counter.granted.get() + 1).await;
    relay.cuts()
}

#[test]
fn every_call_runs_once_however_often_the_connection_is_cut() {
    let seeds: Vec<u64> = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (1..=12).collect(),
    };
    for seed in seeds {
        // What a failure is repeated with.
        println!("SEED={seed}");
        let cuts = run(count_through_cuts(seed, 60, 30));
        assert!(cuts > 5, "SEED={seed}: only {cuts} cuts");
    }
}

#[test]
fn a_call_under_way_outlives_its_connection() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        // The greeting and one call pass, then it is cut.
        let relay = Relay::start(host.address, 3, 0);
        let client = dial::connect(relay.address, TEST.name, SHAPE, Options::default()).await.expect("a session");
        let slow = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(client.root(), SLEEP, &[200])).await.map(drop) }
        });
        until(|| thing.begun.get() == 1).await;
        let begun = std::time::Instant::now();
        relay.cut_all();
        let reply = client.call(request(client.root(), ECHO, b"behind it")).await.expect("over the next connection");
        assert_eq!(*reply.payload, *b"behind it");
        assert_eq!(slow.await.expect("not cancelled"), Ok(()));
        assert!(begun.elapsed() >= Duration::from_millis(100), "it slept to its end, once");
        assert_eq!((thing.begun.get(), client.resumed().running), (2, 1));
        assert!(!client.survives() || client.is_open());
    });
}

#[test]
fn after_too_long_without_a_connection_calls_say_whether_they_may_have_run() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, hasty());
        let relay = Relay::start(host.address, 3, 0);
        let client = dial::connect(relay.address, TEST.name, SHAPE, hasty()).await.expect("a session");
        let call = |operation| {
            let client = client.clone();
            runtime::spawn(async move { client.call(request(client.root(), operation, b"")).await.map(drop) })
        };
        let begun = call(HANG);
        until(|| thing.begun.get() == 1).await;
        relay.refuse();
        relay.cut_all();
        // Waits for a slot, which there is none while nobody hears.
        runtime::sleep(Duration::from_millis(50)).await;
        let waits = call(ECHO);
        let lost = |executed| Err(Failure { cause: Cause::LinkLost, executed });
        assert_eq!(begun.await.expect("not cancelled"), lost(Executed::Unknown));
        assert_eq!(waits.await.expect("not cancelled"), lost(Executed::No));
        let after = client.call(request(client.root(), ECHO, b"")).await.map(drop);
        assert_eq!(after, Err(no(Cause::LinkLost)));
        assert!(!client.is_open());
        // The host has given up too, and its handler has heard of it.
        until(|| thing.closed.get() == 1 && thing.cancelled.get() == 1).await;
    });
}

#[test]
fn a_peer_that_falls_silent_is_noticed() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, hasty());
        // Takes what comes and never answers, not even a heartbeat.
        let mut socket = TcpStream::connect(host.address).expect("loopback");
        greet(&mut socket, &hello(0, 1)).await;
        until(|| thing.closed.get() == 1).await;

        // The other way round: a host that greets and then says nothing more.
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = deaf.local_addr().expect("an address");
        let greeter = std::thread::spawn(move || {
            let (mut socket, _) = deaf.accept().expect("a connection");
            let mut bytes = [0; 8 + frame::HELLO_BYTES];
            socket.read_exact(&mut bytes).expect("a hello");
            let hello = Hello::check(bytes[8..].try_into().expect("its length")).expect("a hello");
            let root = Handle { index: 0, generation: 1 };
            let welcome =
                Welcome { shape: hello.shape, session: SessionId(1), epoch: kernel_ipc::Epoch(1), root, number: 1 };
            socket.write_all(&framed(kind::WELCOME, &welcome.to_bytes())).expect("sent");
            socket
        });
        let client = dial::connect(address, TEST.name, SHAPE, hasty()).await.expect("a session");
        let _socket = greeter.join().expect("no panic");
        let failure = client.call(request(client.root(), ECHO, b"")).await.expect_err("nobody answers");
        assert_eq!(failure, Failure { cause: Cause::LinkLost, executed: Executed::Unknown });
    });
}

#[test]
fn a_host_that_was_started_again_knows_nothing_of_the_session() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let first = Host::start(&thing, hasty());
        let relay = Relay::start(first.address, 3, 0);
        let client = dial::connect(relay.address, TEST.name, SHAPE, hasty()).await.expect("a session");
        let call = runtime::spawn({
            let client = client.clone();
            async move { client.call(request(client.root(), HANG, b"")).await.map(drop) }
        });
        until(|| thing.begun.get() == 1).await;
        let second = Host::start(&thing, hasty());
        relay.lead_to(second.address);
        relay.cut_all();
        let died = Failure { cause: Cause::PeerDied, executed: Executed::Unknown };
        assert_eq!(call.await.expect("not cancelled"), Err(died));
        let after = client.call(request(client.root(), ECHO, b"")).await.map(drop);
        assert_eq!(after, Err(no(Cause::StaleEpoch)));
    });
}

#[test]
fn sessions_at_rest_cost_a_busy_thread_no_system_calls() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let slow = Options { heartbeat: Duration::from_secs(600), dead_after: Duration::from_secs(6000), ..hasty() };
        let host = Host::start(&thing, slow);
        let resting: Vec<ClientSession> = {
            let mut sessions = Vec::new();
            for _ in 0..20 {
                sessions.push(host.connect(slow).await);
            }
            sessions
        };
        // More turns than a socket is asked in vain for.
        for _ in 0..600 {
            runtime::yield_now().await;
        }
        let before: Vec<u64> = resting.iter().map(ClientSession::system_calls).collect();
        for _ in 0..1000 {
            runtime::yield_now().await;
        }
        assert_eq!(resting.iter().map(ClientSession::system_calls).collect::<Vec<_>>(), before);
        for session in &resting {
            let reply = session.call(request(session.root(), ECHO, b"awake")).await.expect("echo");
            assert_eq!(*reply.payload, *b"awake");
        }
    });
}

#[test]
fn a_session_at_rest_stays_open() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, hasty());
        let client = host.connect(hasty()).await;
        // Three times what counts as dead.
        runtime::sleep(3 * hasty().dead_after).await;
        client.call(request(client.root(), ECHO, b"")).await.expect("echo");
        assert_eq!((thing.closed.get(), client.resumed()), (0, Default::default()));
    });
}

#[test]
fn a_host_without_lending_refuses_to_lend() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let client = host.connect(Options::default()).await;
        let failure = client.call(request(client.root(), LEND, &[1])).await.expect_err("refused");
        assert_eq!(failure, Failure { cause: Cause::Refused, executed: Executed::Yes });
    });
}
