//! Real sockets, real leases, in one process: the client is a thread with a blocking socket.

mod deaths;

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use kernel_ipc::events::BatchLimits;
use kernel_ipc::interface::LeasePart;
use kernel_ipc::lease::{Lend, Lender, Mapper, PinSegment, Region, RegionReader};
use kernel_ipc::runtime::{self, Runtime};
use kernel_ipc::sys::segment::SegmentReader;
use kernel_ipc::{Epoch, Incarnation, LeaseName, LenderId, RegionId, SessionId};
use protocol::net::{EventsError, ListenError, NO_REQUEST, Reason, Released, SendError, SendFlags};

use super::address::Permission;
use super::listener::{Holding, Listener};
use super::session::{Session, Shared};
use super::stack::Options;
use crate::core::events::Occurrence;
use kernel_ipc::session::SessionInfo;

const CLIENT: Incarnation = Incarnation(7);
const LENDER: LenderId = LenderId(3);
const REGION: RegionId = RegionId(5);
const EPOCH: Epoch = Epoch(1);
/// What one answer holds.
const LIMITS: BatchLimits = BatchLimits { events: 100, bytes: 3500, capabilities: 16 };
const REGION_BYTES: usize = 4 << 20;

fn info(client: Incarnation, name: &str) -> SessionInfo {
    let attenuation = serde_json::json!({"tcp": "127.0.0.1:0"});
    SessionInfo { id: SessionId(1), epoch: EPOCH, client, client_name: name.to_owned(), attenuation }
}

/// A session whose client holds leases of one lender.
struct Site {
    session: Rc<Session>,
    shared: Rc<Shared>,
    lender: Lender,
    cursor: u64,
}

impl Site {
    fn new(options: Options) -> Site {
        let region = Region::create("region", REGION, REGION_BYTES).unwrap();
        region.copy_in(0, &pattern(REGION_BYTES)).unwrap();
        let mut lender = Lender::new(LENDER, EPOCH, 64).unwrap();
        let pins = PinSegment::create(Incarnation(9), EPOCH, LENDER, 64).unwrap();
        let reopen =
            |fd: std::os::fd::BorrowedFd<'_>| SegmentReader::open(fd.try_clone_to_owned().unwrap(), 1).unwrap();
        lender.attach_pins(Incarnation(9), EPOCH, reopen(pins.fd())).unwrap();
        let mut mapper = Mapper::new();
        let reader = RegionReader::open(region.fd().try_clone_to_owned().unwrap(), REGION).unwrap();
        mapper.introduce(LENDER, EPOCH, reopen(lender.table_fd()), &[(REGION, reader)], pins, None).unwrap();
        let permission = Permission::of(&serde_json::json!({"tcp": "127.0.0.1:0"}));
        let mapper = Rc::new(RefCell::new(mapper));
        let shared = Rc::new(Shared { options, mapper, vacant: Rc::default(), holding: None, keeping: None });
        let session = Session::new(&info(CLIENT, "client"), permission, shared.clone());
        Site { session, shared, lender, cursor: 0 }
    }

    fn lend(&mut self, offset: u64, length: u64) -> LeaseName {
        self.lender.lend(CLIENT, Lend { region: REGION, offset, length, source: None, keep: Rc::new(()) }).unwrap()
    }

    fn listen(&self) -> SocketAddr {
        self.session.listen("127.0.0.1:0").unwrap().1.parse().unwrap()
    }

    /// Everything that the standing call answers next.
    async fn events(&mut self) -> Vec<(u64, Occurrence)> {
        let batch = self.session.next_events(self.cursor, LIMITS).await.unwrap();
        self.cursor = batch.next;
        batch.events.into_iter().map(|entry| (entry.connection, entry.occurrence)).collect()
    }

    /// Waits until an event fits; others are forgotten.
    async fn event<T>(&mut self, mut fits: impl FnMut(u64, &Occurrence) -> Option<T>) -> T {
        loop {
            for (connection, occurrence) in self.events().await {
                if let Some(found) = fits(connection, &occurrence) {
                    return found;
                }
            }
        }
    }

    async fn accepted(&mut self) -> u64 {
        self.event(|id, what| matches!(what, Occurrence::Accepted { .. }).then_some(id)).await
    }
}

/// Byte `i` is a function of `i` that does not repeat within a page or a megabyte.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8 ^ (i >> 12) as u8).collect()
}

fn part(name: LeaseName, offset: u64, length: u64) -> LeasePart {
    LeasePart { name, offset, length }
}

/// Runs `test` on a runtime of its own, unless the kernel has no io_uring.
fn run(test: impl AsyncFnOnce()) {
    match Runtime::new(runtime::Options::default()) {
        Ok(runtime) => runtime.block_on(test()),
        Err(error) => println!("skipped: no io_uring here ({error})"),
    }
}

/// Connects and runs `client` on a thread.
fn client<T: Send + 'static>(
    address: SocketAddr,
    client: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    thread::spawn(move || client(TcpStream::connect(address).unwrap()))
}

/// What the client found, while the runtime goes on.
async fn ended<T>(client: thread::JoinHandle<T>) -> T {
    while !client.is_finished() {
        runtime::sleep(Duration::from_millis(2)).await;
    }
    client.join().unwrap()
}

#[test]
fn a_request_comes_in_and_leased_bytes_go_out() {
    run(async || {
        let mut site = Site::new(Options::default());
        let peer = client(site.listen(), |mut socket| {
            socket.write_all(b"hello").unwrap();
            let mut all = Vec::new();
            socket.read_to_end(&mut all).unwrap();
            all
        });
        let id = site.accepted().await;
        let received =
            site.event(|_, what| if let Occurrence::Received(bytes) = what { Some(bytes.clone()) } else { None }).await;
        assert_eq!(received, b"hello");
        let (one, two) = (site.lend(4096, 1 << 20), site.lend(2 << 20, 1 << 20));
        site.session.send(id, 1, SendFlags::MORE, NO_REQUEST, b"head", &[part(one, 10, 1_000_000)]).unwrap();
        site.session
            .send(id, 2, SendFlags::CLOSE, NO_REQUEST, b"", &[part(one, 0, 5), part(two, 7, 1_000_000)])
            .unwrap();
        let mut told = Vec::new();
        site.event(|_, what| {
            told.push(what.clone());
            matches!(what, Occurrence::Closed(_)).then_some(())
        })
        .await;
        assert_eq!(
            told.into_iter().filter(|what| !matches!(what, Occurrence::Finished)).collect::<Vec<_>>(),
            [
                Occurrence::Sent { send: 1, bytes: 1_000_004 },
                Occurrence::Released { send: 1, how: Released::Copied },
                Occurrence::Sent { send: 2, bytes: 1_000_005 },
                Occurrence::Released { send: 2, how: Released::Copied },
                Occurrence::Closed(Reason::Closed),
            ]
        );
        let whole = pattern(REGION_BYTES);
        let expected =
            [b"head", &whole[4106..1_004_106], &whole[4096..4101], &whole[(2 << 20) + 7..(2 << 20) + 1_000_007]]
                .concat();
        assert!(ended(peer).await == expected, "other bytes arrived");
        // Nothing is pinned any more: what is taken back is free at once.
        site.lender.take_back_all(CLIENT);
        assert_eq!(site.lender.dying(), 0);
    });
}

#[test]
fn leases_of_somebody_else_and_ranges_outside_are_refused_and_nothing_is_sent() {
    run(async || {
        let mut site = Site::new(Options::default());
        let peer = client(site.listen(), |mut socket| {
            let mut all = Vec::new();
            socket.read_to_end(&mut all).unwrap();
            all
        });
        let id = site.accepted().await;
        let mine = site.lend(0, 4096);
        let theirs = site
            .lender
            .lend(Incarnation(8), Lend { region: REGION, offset: 4096, length: 4096, source: None, keep: Rc::new(()) })
            .unwrap();
        let gone = site.lend(8192, 4096);
        site.lender.take_back(gone.index, gone.generation).unwrap();
        for bad in [
            part(theirs, 0, 1),
            part(gone, 0, 1),
            part(mine, 0, 4097),
            part(mine, 4096, 1),
            part(mine, u64::MAX, 2),
            part(LeaseName { index: 63, ..mine }, 0, 1),
            part(LeaseName { index: u32::MAX, ..mine }, 0, 1),
            part(LeaseName { lender: LenderId(99), ..mine }, 0, 1),
        ] {
            assert_eq!(
                site.session.send(id, 1, SendFlags(0), NO_REQUEST, b"no", &[part(mine, 0, 1), bad]),
                Err(SendError::StaleLease)
            );
        }
        site.session.send(id, 2, SendFlags::CLOSE, NO_REQUEST, b"yes", &[]).unwrap();
        assert_eq!(site.session.send(id, 3, SendFlags(0), NO_REQUEST, b"no", &[]), Err(SendError::Closed));
        site.event(|_, what| matches!(what, Occurrence::Closed(_)).then_some(())).await;
        assert_eq!(site.session.send(id, 4, SendFlags(0), NO_REQUEST, b"no", &[]), Err(SendError::Closed));
        assert_eq!(ended(peer).await, b"yes");
    });
}

#[test]
fn a_reader_that_stops_is_reset_and_its_leases_come_back() {
    run(async || {
        let mut options = Options::default();
        options.limits.stall = Duration::from_millis(300);
        let mut site = Site::new(options);
        let peer = client(site.listen(), |mut socket| {
            let mut first = [0; 1];
            socket.read_exact(&mut first).unwrap();
            // One byte at a time, with long pauses; what comes after that is the reset.
            for _ in 0..20 {
                thread::sleep(Duration::from_millis(50));
                socket.read_exact(&mut first).unwrap();
            }
            socket.read_to_end(&mut Vec::new()).map_err(|error| error.kind())
        });
        let id = site.accepted().await;
        let lease = site.lend(0, 4 << 20);
        let mut refused = None;
        for send in 0..8 {
            refused = refused
                .or(site.session.send(id, send, SendFlags(0), NO_REQUEST, b"", &[part(lease, 0, 4 << 20)]).err());
        }
        assert_eq!(refused, Some(SendError::Full));
        let reason =
            site.event(|_, what| if let Occurrence::Closed(reason) = what { Some(*reason) } else { None }).await;
        assert_eq!(reason, Reason::TimedOut);
        site.lender.take_back_all(CLIENT);
        assert_eq!(site.lender.dying(), 0, "a pin was left");
        assert_eq!(ended(peer).await, Err(std::io::ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_client_that_takes_no_events_stops_the_network_and_loses_nothing() {
    run(async || {
        let mut site = Site::new(Options { event_bytes: 1 << 16, ..Options::default() });
        let address = site.listen();
        let peers: Vec<_> = (0..8)
            .map(|_| {
                client(address, |mut socket| {
                    socket.write_all(&pattern(300_000)).unwrap();
                    socket.shutdown(std::net::Shutdown::Write).unwrap();
                    let _ = socket.read(&mut [0]);
                })
            })
            .collect();
        runtime::sleep(Duration::from_millis(200)).await;
        let mut received = std::collections::HashMap::<u64, Vec<u8>>::new();
        let mut finished = 0;
        while finished < 8 {
            for (id, what) in site.events().await {
                match what {
                    Occurrence::Received(bytes) => received.entry(id).or_default().extend(bytes),
                    Occurrence::Finished => finished += 1,
                    Occurrence::Closed(_) => panic!("connection {id} ended early: {what:?}"),
                    _ => {}
                }
            }
        }
        assert!(received.len() == 8 && received.values().all(|bytes| *bytes == pattern(300_000)));
        site.session.end();
        for peer in peers {
            ended(peer).await;
        }
    });
}

#[test]
fn a_port_in_use_and_an_address_not_allowed_are_refused() {
    run(async || {
        let site = Site::new(Options::default());
        let taken = site.listen();
        let permission = Permission::of(&serde_json::json!({"tcp": taken.to_string()}));
        let other = Session::new(&info(CLIENT, "other"), permission, site.shared.clone());
        assert_eq!(other.listen(&taken.to_string()).err(), Some(ListenError::InUse));
        assert_eq!(other.listen("127.0.0.2:1").err(), Some(ListenError::NotAllowed));
        site.session.end();
        runtime::yield_now().await;
        runtime::sleep(Duration::from_millis(20)).await;
        assert_eq!(other.listen(&taken.to_string()).map(|(_, bound)| bound), Ok(taken.to_string()));
        other.end();
    });
}

#[test]
fn connections_beyond_the_limit_wait_for_room() {
    run(async || {
        let mut site = Site::new(Options { connections: 1, ..Options::default() });
        let address = site.listen();
        let first = client(address, |mut socket| socket.read(&mut [0]));
        let id = site.accepted().await;
        let second = client(address, |mut socket| {
            let mut all = Vec::new();
            socket.read_to_end(&mut all).map(|_| all)
        });
        runtime::sleep(Duration::from_millis(50)).await;
        site.session.connection(id).unwrap().close();
        let other = site.accepted().await;
        site.session.send(other, 1, SendFlags::CLOSE, NO_REQUEST, b"room", &[]).unwrap();
        site.event(|id, what| (id == other && matches!(what, Occurrence::Closed(_))).then_some(())).await;
        ended(first).await.unwrap();
        assert_eq!(ended(second).await.unwrap(), b"room");
    });
}

#[test]
fn the_end_of_a_session_resets_its_connections() {
    run(async || {
        let mut site = Site::new(Options::default());
        let peer = client(site.listen(), |mut socket| {
            let mut all = Vec::new();
            let end = socket.read_to_end(&mut all);
            (all.len(), end.map_err(|error| error.kind()).err())
        });
        let id = site.accepted().await;
        let lease = site.lend(0, 4 << 20);
        for send in 0..4 {
            site.session.send(id, send, SendFlags(0), NO_REQUEST, b"", &[part(lease, 0, 4 << 20)]).unwrap();
        }
        site.session.end();
        let (length, error) = ended(peer).await;
        assert!(length < 16 << 20);
        assert_eq!(error, Some(std::io::ErrorKind::ConnectionReset));
        site.lender.take_back_all(CLIENT);
        assert_eq!(site.lender.dying(), 0);
    });
}

/// What was held and let go of.
#[derive(Default)]
struct Holdings(RefCell<Vec<(String, OwnedFd)>>);

impl Holding for Holdings {
    fn hold(&self, name: &str, socket: BorrowedFd<'_>) {
        self.0.borrow_mut().push((name.to_owned(), socket.try_clone_to_owned().unwrap()));
    }

    fn let_go(&self, name: &str) {
        self.0.borrow_mut().retain(|(held, _)| held != name);
    }
}

/// A session of the client's next run.
fn next_run(shared: &Rc<Shared>) -> Rc<Session> {
    let permission = Permission::of(&serde_json::json!({"tcp": "127.0.0.1:0"}));
    Session::new(&info(Incarnation(8), "client"), permission, shared.clone())
}

/// Answers the next connection of a session.
async fn answer_next(session: &Rc<Session>, with: &[u8]) {
    let batch = session.next_events(0, BatchLimits { events: 1, ..LIMITS }).await.unwrap();
    session.send(batch.events[0].connection, 1, SendFlags::CLOSE, NO_REQUEST, with, &[]).unwrap();
}

fn whole(mut socket: TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).map(|_| all)
}

#[test]
fn connections_of_which_a_dead_client_had_not_heard_are_answered_by_its_next_run() {
    run(async || {
        let mut site = Site::new(Options::default());
        let address = site.listen();
        let known = client(address, whole);
        site.accepted().await;
        // Says that it knows the first one, and hears of no other.
        assert!(runtime::timeout(Duration::from_millis(20), site.events()).await.is_err());
        let unheard = client(address, whole);
        runtime::sleep(Duration::from_millis(50)).await;
        site.session.leave_listeners();
        site.session.end();
        let in_backlog = client(address, whole);
        runtime::sleep(Duration::from_millis(50)).await;
        let next = next_run(&site.shared);
        assert_eq!(next.listen(&address.to_string()).unwrap().1, address.to_string());
        answer_next(&next, b"next").await;
        assert_eq!(ended(unheard).await.unwrap(), b"next");
        assert_eq!(ended(known).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        in_backlog_is_answered(&next, in_backlog).await;
        next.end();
    });
}

async fn in_backlog_is_answered(session: &Rc<Session>, peer: thread::JoinHandle<std::io::Result<Vec<u8>>>) {
    let mut cursor = 1;
    loop {
        let batch = session.next_events(cursor, LIMITS).await.unwrap();
        cursor = batch.next;
        for entry in batch.events {
            if let Occurrence::Accepted { .. } = entry.occurrence {
                session.send(entry.connection, 1, SendFlags::CLOSE, NO_REQUEST, b"later", &[]).unwrap();
                assert_eq!(ended(peer).await.unwrap(), b"later");
                return;
            }
        }
    }
}

#[test]
fn a_held_listener_is_its_clients_alone_and_goes_when_the_client_drops_it() {
    run(async || {
        let holdings = Rc::new(Holdings::default());
        let mapper: Rc<RefCell<Mapper>> = Rc::default();
        let shared = |holding: &Rc<Holdings>| {
            let (holding, mapper): (Rc<dyn Holding>, _) = (holding.clone(), mapper.clone());
            Rc::new(Shared {
                options: Options::default(),
                mapper,
                vacant: Rc::default(),
                holding: Some(holding),
                keeping: None,
            })
        };
        let first = next_run(&shared(&holdings));
        let address = first.listen("127.0.0.1:0").unwrap().1;
        let held = holdings.0.borrow_mut().pop().unwrap();
        assert_eq!(held.0, format!("listener/client/{address}"));
        // This process dies: nothing of it is left but what is held.
        first.end();
        runtime::sleep(Duration::from_millis(20)).await;
        let peer = client(address.parse().unwrap(), whole);
        runtime::sleep(Duration::from_millis(20)).await;

        let (again, holding) = (shared(&holdings), holdings.clone());
        holdings.0.borrow_mut().push((held.0.clone(), held.1.try_clone().unwrap()));
        again.vacant.add(Listener::held(&held.0, held.1, holding, None).unwrap());
        let permission = Permission::of(&serde_json::json!({"tcp": address}));
        let stranger = Session::new(&info(CLIENT, "stranger"), permission, again.clone());
        assert_eq!(stranger.listen(&address).err(), Some(ListenError::InUse));
        let second = next_run(&again);
        let (number, bound) = second.listen(&address).unwrap();
        assert_eq!(bound, address);
        answer_next(&second, b"held").await;
        assert_eq!(ended(peer).await.unwrap(), b"held");
        second.close_listener(number);
        assert!(holdings.0.borrow().is_empty());
        runtime::sleep(Duration::from_millis(20)).await;
        assert_eq!(TcpStream::connect(&address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    });
}
