//! Leased bytes over a socket.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use kernel_ipc::interface::{Description, Retry};
use kernel_ipc::lease::{Holder, HolderLimits, Lend, Lender, Pool, Region, RegionReader};
use kernel_ipc::link::socket::bulk::land::Landing;
use kernel_ipc::link::socket::bulk::serve::Lending;
use kernel_ipc::link::socket::dial::{self, Remote};
use kernel_ipc::link::socket::frame::{self, Bulk, Pull, Way, kind};
use kernel_ipc::link::socket::listen::Options;
use kernel_ipc::runtime;
use kernel_ipc::session::{Call, ClientSession, Reply, Response, Service};
use kernel_ipc::sys::segment::SegmentReader;
use kernel_ipc::{Cause, Epoch, Executed, Failure, Incarnation, LenderId, RegionId, SessionId};

use super::authority::{Authority, node};
use super::common::random::Random;
use super::common::{self, Thing, request, run};
use super::lost::{Counter, counting};
use super::relay::{Framing, Relay};
use super::world::{Host, SHAPE, framed, greet, hasty, hello, read_frame, refusal, until};

const REGION: RegionId = RegionId(5);
const REGION_BYTES: usize = 4 << 20;
const LANDING_BYTES: usize = 8 << 20;
const LEND: u16 = 1;

/// Lends ranges of its region, as the payload says: offset and length, any number of them.
struct Store {
    lender: Rc<RefCell<Lender>>,
}

impl Service for Store {
    const INTERFACE: &'static Description =
        &Description { operations: &[counting(LEND, "lend", Retry::Idempotent)], ..*Counter::INTERFACE };

    async fn serve(&self, call: &mut Call) -> Response {
        let (words, _) = call.payload().as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let lends = words.chunks_exact(2).map(|range| Lend {
            region: REGION,
            offset: range[0],
            length: range[1],
            source: None,
            keep: Rc::new(()),
        });
        Response { lends: lends.collect(), ..Response::default() }
    }
}

/// Byte `i` of the host's region.
fn byte(i: usize) -> u8 {
    (i % 251) as u8 ^ (i >> 12) as u8
}

struct World {
    store: Rc<Store>,
    host: Host,
    _region: Region,
}

impl World {
    fn new(options: Options) -> World {
        World::over(options, None)
    }

    /// Over TLS, if there is an authority.
    fn over(options: Options, authority: Option<&Authority>) -> World {
        let region = Region::create("store", REGION, REGION_BYTES).expect("memory");
        let bytes: Vec<u8> = (0..REGION_BYTES).map(byte).collect();
        region.copy_in(0, &bytes).expect("it fits");
        let lender = Lender::new(LenderId(50), Epoch(1), 1024).expect("memory for a table");
        let store = Rc::new(Store { lender: Rc::new(RefCell::new(lender)) });
        let reader = RegionReader::open(region.fd().try_clone_to_owned().expect("dup"), REGION).expect("a region");
        let lending = Lending::new(store.lender.clone(), [reader]);
        let host = match authority {
            None => Host::start_lending(&store, options, Some(lending)),
            Some(of) => Host::start_secured(&store, options, Some(lending), of.keys("b")),
        };
        World { store, host, _region: region }
    }
}

/// A client's own memory and lender.
struct Quay {
    landing: Landing,
    holder: Holder,
}

impl Quay {
    fn new() -> Quay {
        let region = Region::create("quay", RegionId(9), LANDING_BYTES).expect("memory");
        let me = Incarnation(77);
        let lender = Lender::new(LenderId(60), Epoch(1), 256).expect("memory for a table");
        let mut holder = Holder::new(me);
        let fd = region.fd().try_clone_to_owned().expect("dup");
        let regions = [(region.id(), RegionReader::open(fd, region.id()).expect("a region"))];
        let table = lender.table_fd().try_clone_to_owned().expect("dup");
        let table = SegmentReader::open(table, 1).expect("a table");
        holder.introduce(lender.id(), Epoch(1), table, &regions, None).expect("a table");
        let landing = Landing { pool: Pool::new(region, 4096), lender: Rc::new(RefCell::new(lender)), me };
        Quay { landing, holder }
    }

    async fn connect(&self, remote: impl Into<Remote>, options: Options) -> ClientSession {
        let interface = Store::INTERFACE.name;
        dial::connect_landing(remote, interface, SHAPE, options, self.landing.clone()).await.expect("a session")
    }

    /// Compares what has landed with what was asked for.
    fn check(&self, reply: &Reply, ranges: &[(usize, usize)]) {
        assert_eq!(reply.leases.len(), ranges.len());
        for (lease, (offset, length)) in reply.leases.iter().zip(ranges) {
            assert_eq!((lease.lender, lease.length), (LenderId(60), *length as u64), "a lease of one's own");
            let mut bytes = vec![0; *length];
            self.holder.read(lease, 0, &mut bytes).expect("landed");
            assert!(bytes.iter().zip(*offset..).all(|(seen, at)| *seen == byte(at)), "{length} bytes at {offset}");
        }
    }
}

async fn lend(client: &ClientSession, ranges: &[(usize, usize)]) -> Result<Reply, Failure> {
    let words = ranges.iter().flat_map(|(offset, length)| [*offset as u64, *length as u64]);
    let payload: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    client.call(request(client.root(), LEND, &payload)).await
}

/// In the clear, and over TLS.
fn both(test: impl Fn(Option<Authority>)) {
    test(None);
    test(Some(Authority::new()));
}

/// This address, as somebody calls it who has keys or not.
fn called(address: SocketAddr, authority: Option<&Authority>) -> Remote {
    match authority {
        None => address.into(),
        Some(of) => Remote::node(address, node("b"), of.keys("a")),
    }
}

#[test]
fn leases_of_every_size_land_and_are_given_back() {
    both(leases_land);
}

fn leases_land(authority: Option<Authority>) {
    run(async {
        let (world, quay) = (World::over(Options::default(), authority.as_ref()), Quay::new());
        let remote = called(world.host.near(), authority.as_ref());
        let client = quay.connect(remote, Options::default()).await;
        for size in [1, 4095, 4096, 65536, frame::CHUNK - 1, frame::CHUNK, frame::CHUNK + 1, 1 << 20] {
            let ranges = [(3, size), (REGION_BYTES - size, size), (4096, 17)];
            let reply = lend(&client, &ranges[..]).await.unwrap_or_else(|failure| panic!("{size}: {failure}"));
            quay.check(&reply, &ranges);
            // The host has its own back; what is here is a copy.
            until(|| world.store.lender.borrow().lent_count() == 0).await;
            quay.check(&reply, &ranges);
            reply.leases.iter().for_each(|lease| client.release_lease(*lease));
            assert_eq!((quay.landing.lender.borrow().lent_count(), quay.landing.pool.free()), (0, LANDING_BYTES));
        }
    });
}

#[test]
fn a_small_call_does_not_wait_for_a_large_one() {
    run(async {
        let (world, quay) = (World::new(Options::default()), Quay::new());
        let client = quay.connect(world.host.address, Options::default()).await;
        let large = runtime::spawn({
            let client = client.clone();
            async move { lend(&client, &[(0, 1 << 20)]).await.map(|reply| reply.leases.len()) }
        });
        while !large.is_finished() {
            // Nothing is lent by it, so its answer comes on the connection of calls.
            assert_eq!(lend(&client, &[]).await.map(|reply| reply.leases.len()), Ok(0));
        }
        assert_eq!(large.await, Ok(Ok(1)));
    });
}

#[test]
fn what_there_is_no_room_for_is_refused_and_leaves_nothing_behind() {
    run(async {
        let (world, quay) = (World::new(Options::default()), Quay::new());
        let client = quay.connect(world.host.address, Options::default()).await;
        let too_much = lend(&client, &[(0, 1000), (0, LANDING_BYTES + 1)]).await.map(drop);
        assert_eq!(too_much, Err(Failure { cause: Cause::Quota, executed: Executed::Yes }));
        until(|| world.store.lender.borrow().lent_count() == 0).await;
        until(|| quay.landing.pool.free() == LANDING_BYTES).await;

        quay.landing.lender.borrow_mut().set_limits(HolderLimits { leases: 1, bytes: 1 << 20 });
        let too_many = lend(&client, &[(0, 1000), (0, 1000)]).await.map(drop);
        assert_eq!(too_many, Err(Failure { cause: Cause::Quota, executed: Executed::Yes }));
        until(|| quay.landing.pool.free() == LANDING_BYTES).await;
        let reply = lend(&client, &[(5, 1000)]).await.expect("there is room for one");
        quay.check(&reply, &[(5, 1000)]);
    });
}

#[test]
fn a_range_that_is_not_there_is_gone() {
    run(async {
        let (world, quay) = (World::new(Options::default()), Quay::new());
        let client = quay.connect(world.host.address, Options::default()).await;
        // The lender knows nothing of its regions' lengths.
        let beyond = lend(&client, &[(REGION_BYTES - 10, 11)]).await.map(drop);
        assert_eq!(beyond, Err(Failure { cause: Cause::StaleLease, executed: Executed::Yes }));
        until(|| quay.landing.pool.free() == LANDING_BYTES).await;
        let reply = lend(&client, &[(REGION_BYTES - 10, 10)]).await.expect("the session goes on");
        quay.check(&reply, &[(REGION_BYTES - 10, 10)]);
    });
}

#[test]
fn a_dropped_call_leaves_nothing_lent() {
    run(async {
        let (world, quay) = (World::new(Options::default()), Quay::new());
        let client = quay.connect(world.host.address, Options::default()).await;
        for wait in 0..40 {
            let call = lend(&client, &[(0, 1 << 20), (7, 100)]);
            if let Ok(reply) = runtime::timeout(Duration::from_micros(wait * 50), call).await {
                match reply {
                    Ok(reply) => reply.leases.iter().for_each(|lease| client.release_lease(*lease)),
                    // What the dropped ones brought has come, or is still coming.
                    Err(failure) => assert_eq!(failure.cause, Cause::Quota),
                }
            }
        }
        until(|| world.store.lender.borrow().lent_count() == 0).await;
        until(|| quay.landing.lender.borrow().lent_count() == 0).await;
        until(|| quay.landing.pool.free() == LANDING_BYTES).await;
    });
}

#[test]
fn bytes_are_right_however_often_the_connections_are_cut() {
    both(bytes_are_right);
}

fn bytes_are_right(authority: Option<Authority>) {
    for seed in 1..=6 {
        println!("seed {seed}");
        run(async {
            let (world, quay) = (World::over(Options::default(), authority.as_ref()), Quay::new());
            // A record is 16 KiB at most, a frame 256.
            let (most, framing) = if authority.is_some() { (150, Framing::Tls) } else { (25, Framing::Frames) };
            let relay = Relay::start(world.host.near(), seed, most, framing);
            let remote = called(relay.address, authority.as_ref());
            let client = loop {
                let (interface, landing) = (Store::INTERFACE.name, quay.landing.clone());
                let options = Options::default();
                match dial::connect_landing(remote.clone(), interface, SHAPE, options, landing).await {
                    Ok(client) => break client,
                    Err(dial::DialError::Io(..)) => {}
                    Err(error) => panic!("{error}"),
                }
            };
            let mut random = Random(seed);
            for _ in 0..40 {
                let mut range = || {
                    let length = 1 + random.below(600_000) as usize;
                    (random.below((REGION_BYTES - length) as u64) as usize, length)
                };
                let ranges = [range(), range(), range()];
                let reply = lend(&client, &ranges).await.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
                quay.check(&reply, &ranges);
                reply.leases.iter().for_each(|lease| client.release_lease(*lease));
            }
            assert!(relay.cuts() > 3, "seed {seed}");
            relay.be_kind();
            until(|| world.store.lender.borrow().lent_count() == 0).await;
        });
    }
}

/// A host that answers one call and then never brings what it lends, on the two connections that it gives.
fn deaf_host() -> (SocketAddr, std::thread::JoinHandle<(TcpStream, TcpStream, TcpListener)>) {
    let deaf = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = deaf.local_addr().expect("an address");
    let host = std::thread::spawn(move || {
        let (mut calls, _) = deaf.accept().expect("a connection");
        let mut bytes = [0; 8 + frame::HELLO_BYTES];
        calls.read_exact(&mut bytes).expect("a hello");
        let hello = frame::Hello::check(bytes[8..].try_into().expect("its length")).expect("a hello");
        let root = kernel_ipc::Handle { index: 0, generation: 1 };
        let (shape, number) = (hello.shape, hello.number);
        let welcome = frame::Welcome { shape, session: SessionId(1), epoch: Epoch(1), root, number };
        calls.write_all(&framed(kind::WELCOME, &welcome.to_bytes())).expect("sent");
        let mut call = [0; 8 + 64];
        calls.read_exact(&mut call).expect("a call");
        let mut answer = [0; 64 + 24];
        // The call's slot and seq; one lease; done; its name: of lender 50, a page long.
        answer[4..16].copy_from_slice(&call[8 + 4..8 + 16]);
        answer[21] = 1;
        (answer[64], answer[64 + 8], answer[64 + 12], answer[64 + 17]) = (50, 1, 1, 16);
        calls.write_all(&framed(kind::MESSAGE, &answer)).expect("sent");
        let (mut bulk, _) = deaf.accept().expect("a connection");
        bulk.read_exact(&mut [0; 8 + frame::BULK_BYTES]).expect("a greeting");
        bulk.write_all(&framed(kind::READY, &[])).expect("sent");
        bulk.read_exact(&mut [0; 8 + frame::PULL_BYTES]).expect("a question");
        (calls, bulk, deaf)
    });
    (address, host)
}

#[test]
fn the_end_of_a_session_ends_what_is_landing() {
    run(async {
        let quay = Quay::new();
        let (address, host) = deaf_host();
        let client = quay.connect(address, Options::default()).await;
        let call = runtime::spawn({
            let client = client.clone();
            async move { lend(&client, &[]).await.map(drop) }
        });
        until(|| host.is_finished()).await;
        assert!(!call.is_finished());
        client.close();
        let gone = Failure { cause: Cause::StaleLease, executed: Executed::Yes };
        assert_eq!(call.await, Ok(Err(gone)));
        until(|| quay.landing.pool.free() == LANDING_BYTES).await;
        drop(host.join());
    });
}

#[test]
fn a_host_that_lives_and_does_not_bring_what_it_lends_fails_the_call_and_takes_no_room() {
    run(async {
        let quay = Quay::new();
        let (address, host) = deaf_host();
        let client = quay.connect(address, hasty()).await;
        let calls: Rc<RefCell<Option<TcpStream>>> = Rc::default();
        let beating = runtime::spawn({
            let calls = calls.clone();
            async move {
                loop {
                    runtime::sleep(Duration::from_millis(50)).await;
                    if let Some(mut calls) = calls.borrow().as_ref() {
                        let _ = calls.write_all(&framed(kind::HEARTBEAT, &[]));
                    }
                }
            }
        });
        let call = runtime::spawn({
            let client = client.clone();
            async move { lend(&client, &[]).await.map(drop) }
        });
        until(|| host.is_finished()).await;
        let (living, _bulk, _listener) = host.join().expect("it has answered");
        calls.replace(Some(living));
        assert_eq!(call.await, Ok(Err(Failure { cause: Cause::LinkLost, executed: Executed::Yes })));
        until(|| quay.landing.pool.free() == LANDING_BYTES).await;
        beating.cancel();
    });
}

#[test]
fn only_what_a_session_holds_can_be_pulled() {
    run(async {
        let (world, quay) = (World::new(hasty()), Quay::new());
        // Somebody else's lease, and one of this client.
        let other = quay.connect(world.host.address, Options::default()).await;
        let theirs = world
            .store
            .lender
            .borrow_mut()
            .lend(Incarnation(999), Lend { region: REGION, offset: 0, length: 4096, source: None, keep: Rc::new(()) });
        let theirs = theirs.expect("lent");
        let mut calls = TcpStream::connect(world.host.address).expect("loopback");
        let interface = frame::interface_bytes(Store::INTERFACE.name).expect("a name");
        let id = greet(&mut calls, &frame::Hello { interface, ..hello(0, 1) }).await.session;
        let client = super::common::info(id.get()).client;
        let mine = world
            .store
            .lender
            .borrow_mut()
            .lend(client, Lend { region: REGION, offset: 8192, length: 4096, source: None, keep: Rc::new(()) });
        let mine = mine.expect("lent");

        let bulk = |bulk: &Bulk| {
            let mut socket = TcpStream::connect(world.host.address).expect("loopback");
            std::io::Write::write_all(&mut socket, &framed(kind::BULK, &bulk.to_bytes())).expect("sent");
            socket
        };
        let hello = Bulk { session: id, way: Way::ToClient, number: 1, secret: [7; 32] };
        for stranger in [Bulk { secret: [8; 32], ..hello }, Bulk { session: SessionId(1000), ..hello }] {
            assert_eq!(refusal(&mut bulk(&stranger)).await, frame::Refusal::NoSuchSession);
        }
        let mut socket = bulk(&hello);
        assert_eq!(read_frame(&mut socket).await, Some((kind::READY, vec![])));
        assert_eq!(refusal(&mut bulk(&hello)).await, frame::Refusal::StaleConnection);

        let pull = |name: kernel_ipc::LeaseName, offset, length| Pull {
            lender: name.lender,
            index: name.index,
            generation: name.generation,
            offset,
            length,
            tag: 3,
        };
        let gone = [3, 0, 0, 0, 1, 0, 0, 0];
        for (what, pull, expected) in [
            ("mine", pull(mine, 1, 4095), Some(8193)),
            ("theirs", pull(theirs, 0, 4096), None),
            ("beyond its end", pull(mine, 1, 4096), None),
            ("far beyond", pull(mine, u64::MAX, 1), None),
            ("another generation", pull(kernel_ipc::LeaseName { generation: 99, ..mine }, 0, 1), None),
            ("an index that is none", pull(kernel_ipc::LeaseName { index: u32::MAX, ..mine }, 0, 1), None),
            ("another lender", pull(kernel_ipc::LeaseName { lender: LenderId(1), ..mine }, 0, 1), None),
        ] {
            std::io::Write::write_all(&mut socket, &framed(kind::PULL, &pull.to_bytes())).expect("sent");
            let (kind, body) = read_frame(&mut socket).await.expect("an answer");
            assert_eq!(kind, frame::kind::PIECE);
            match expected {
                Some(at) => {
                    assert_eq!(body[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
                    assert_eq!(body.len(), 8 + 4095);
                    assert!(body[8..].iter().zip(at..).all(|(seen, at)| *seen == byte(at)), "{what}");
                }
                None => assert_eq!(body, gone, "{what}"),
            }
        }
        // Too much at a time is no question that a client asks.
        let too_much = pull(mine, 0, frame::CHUNK as u32 + 1);
        std::io::Write::write_all(&mut socket, &framed(kind::PULL, &too_much.to_bytes())).expect("sent");
        assert_eq!(read_frame(&mut socket).await, None);
        while read_frame(&mut calls).await.is_some() {}
        assert_eq!(lend(&other, &[]).await.map(drop), Ok(()), "the others notice nothing");
    });
}

#[test]
fn a_host_without_lending_refuses_to_lend() {
    run(async {
        let thing: Rc<Thing> = Rc::default();
        let host = Host::start(&thing, Options::default());
        let client = host.connect(Options::default()).await;
        let failure = client.call(request(client.root(), common::LEND, &[1])).await.expect_err("refused");
        assert_eq!(failure, Failure { cause: Cause::Refused, executed: Executed::Yes });
    });
}
