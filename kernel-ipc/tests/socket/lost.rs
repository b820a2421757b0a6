//! A connection is lost and made again, or not: what becomes of the calls.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::link::socket::dial::{self, DialError, Remote};
use kernel_ipc::link::socket::frame::{Hello, kind};
use kernel_ipc::link::socket::listen::Options;
use kernel_ipc::runtime;
use kernel_ipc::session::{Call, ClientSession, Grant, Request, Response, Service, SessionInfo};
use kernel_ipc::wire::Submission;
use kernel_ipc::{Cause, Executed, Failure, Rights};

use super::authority::{Authority, node};
use super::common::random::Random;
use super::common::*;
use super::relay::{Framing, Relay};
use super::world::*;

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
pub struct Counter {
    seen: RefCell<HashMap<u64, u64>>,
    pub granted: Cell<u64>,
    dropped: Cell<u64>,
}

pub const COUNT: u16 = 1;
pub const SLOW: u16 = 2;
pub const GRANT: u16 = 3;

pub const fn counting(number: u16, name: &'static str, retry: Retry) -> Operation {
    Operation {
        number,
        name,
        target_kind: 1,
        requires: Rights::READ,
        retry,
        deadline: None,
        at_once: false,
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

/// A session with a [`Counter`] through a relay that cuts.
pub async fn dial_through_cuts(remote: Remote) -> ClientSession {
    loop {
        // The first connection may be cut before it is greeted on; there is no session then that could resume.
        match dial::connect(remote.clone(), Counter::INTERFACE.name, SHAPE, Options::default()).await {
            Ok(client) => return client,
            Err(DialError::Io(..)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

impl Counter {
    /// The last connection lasts, and all `calls` have run, once each.
    pub async fn has_counted(&self, calls: u64, (relay, client): (&Relay, &ClientSession), seed: u64) {
        relay.be_kind();
        relay.cut_all();
        let last = client.call(request(client.root(), COUNT, &u64::MAX.to_le_bytes())).await;
        last.expect("over a connection that lasts");
        let made: u64 = self.seen.borrow().values().sum();
        let distinct = self.seen.borrow().len() as u64;
        assert_eq!((made, distinct), (calls + 1, calls + 1), "SEED={seed}: calls that ran, and different ones");
        until(|| self.dropped.get() == self.granted.get()).await;
    }
}

/// Calls through a relay that cuts every few frames. Gives how often it did.
pub async fn count_through_cuts(seed: u64, calls: u64, most: u64, authority: Option<&Authority>) -> u64 {
    let counter: Rc<Counter> = Rc::default();
    let (host, framing) = match authority {
        None => (Host::start(&counter, Options::default()), Framing::Frames),
        Some(of) => (Host::start_secured(&counter, Options::default(), None, of.keys("b")), Framing::Tls),
    };
    let relay = Relay::start(host.near(), seed, most, framing);
    let remote = match authority {
        None => Remote::from(relay.address),
        Some(of) => Remote::node(relay.address, node("b"), of.keys("a")),
    };
    let client = dial_through_cuts(remote).await;
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
    // The next connection lasts, and brings the farewell: a host whose client is cut off on leaving waits for it.
    counter.has_counted(12 * calls, (&relay, &client), seed).await;
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
        let cuts = run(count_through_cuts(seed, 60, 30, None));
        assert!(cuts > 5, "SEED={seed}: only {cuts} cuts");
    }
}

#[test]
fn a_call_under_way_outlives_its_connection() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        // The greeting and one call pass, then it is cut.
        let relay = Relay::start(host.address, 3, 0, Framing::Frames);
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
        let relay = Relay::start(host.address, 3, 0, Framing::Frames);
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
            welcome(&mut socket);
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
        let relay = Relay::start(first.address, 3, 0, Framing::Frames);
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
fn a_host_that_welcomes_and_cuts_at_once_is_dialled_ever_less_often_and_given_up() {
    run(async {
        let cutter = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = cutter.local_addr().expect("an address");
        let welcomed = Arc::new(AtomicU64::new(0));
        let counted = welcomed.clone();
        // Ends with the process.
        std::thread::spawn(move || {
            for socket in cutter.incoming() {
                welcome(&mut socket.expect("a connection"));
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let client = dial::connect(address, TEST.name, SHAPE, hasty()).await.expect("a session");
        let failure = client.call(request(client.root(), ECHO, b"")).await.expect_err("nobody answers");
        assert_eq!(failure.cause, Cause::LinkLost);
        // 0, 1, 2, 4 … 128 ms, and then 200 ms lie between them, until 800 ms have passed.
        let welcomed = welcomed.load(Ordering::SeqCst);
        assert!((3..=16).contains(&welcomed), "{welcomed} connections");
    });
}
