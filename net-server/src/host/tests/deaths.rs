//! Runs that die: each has a runtime of its own, which is dropped with whatever it was doing.

use std::collections::HashMap;
use std::sync::mpsc;

use kernel_ipc::capability::Grant;
use kernel_ipc::interface::NewCap;
use kernel_ipc::sys::segment::{self, SegmentWriter};

use super::*;
use crate::host::berth::Berths;
use crate::host::kept::Keeping;
use crate::host::restore::{Left, restore};
use crate::host::stack::ConnectionNumber;
use crate::ledger::Ledger;

const CONNECTIONS: usize = 8;

/// What outlives every run: memory, held sockets, and a lender of a region.
struct Node {
    memory: OwnedFd,
    held: Rc<Holdings>,
    lender: Lender,
    region: Region,
    runs: u64,
}

/// A run, as far as it has sessions.
struct Run {
    shared: Rc<Shared>,
    sessions: Vec<Rc<Session>>,
}

impl Node {
    fn new() -> Node {
        let memory = segment::memfd("ledger").unwrap();
        segment::set_len(&memory, Ledger::bytes(CONNECTIONS)).unwrap();
        let region = Region::create("region", REGION, REGION_BYTES).unwrap();
        region.copy_in(0, &pattern(REGION_BYTES)).unwrap();
        Node { memory, held: Rc::default(), lender: Lender::new(LENDER, EPOCH, 64).unwrap(), region, runs: 0 }
    }

    fn lend(&mut self, offset: u64, length: u64) -> LeaseName {
        self.lender.lend(CLIENT, Lend { region: REGION, offset, length, source: None, keep: Rc::new(()) }).unwrap()
    }

    /// The next run goes on; `clients`: those who live, with the connections of which they have capabilities.
    fn next_run(&mut self, clients: &[(SessionInfo, &[u64])]) -> Run {
        self.runs += 1;
        let me = Incarnation(100 + self.runs);
        let pins = PinSegment::create(me, EPOCH, LENDER, 64).unwrap();
        let reopen = |fd: BorrowedFd<'_>| SegmentReader::open(fd.try_clone_to_owned().unwrap(), 1).unwrap();
        self.lender.attach_pins(me, EPOCH, reopen(pins.fd())).unwrap();
        let mut mapper = Mapper::new();
        let reader = RegionReader::open(self.region.fd().try_clone_to_owned().unwrap(), REGION).unwrap();
        mapper.introduce(LENDER, EPOCH, reopen(self.lender.table_fd()), &[(REGION, reader)], pins, None).unwrap();

        let memory = SegmentWriter::open_kept(self.memory.try_clone().unwrap()).unwrap();
        let recovered = if self.runs == 1 {
            Ledger::create(memory, CONNECTIONS).unwrap()
        } else {
            Ledger::recover(memory).unwrap()
        };
        let copies = |(name, fd): &(String, OwnedFd)| (name.clone(), fd.try_clone().unwrap());
        let mut held: HashMap<String, OwnedFd> = self.held.0.borrow().iter().map(copies).collect();
        let berths = Berths::open(&mut held, &*self.held).unwrap();
        let sockets = berths.look().unwrap();
        let keeping = Rc::new(Keeping { ledger: recovered.ledger.clone(), berths });
        let holding: Rc<dyn Holding> = self.held.clone();
        let shared = Rc::new(Shared {
            options: Options::default(),
            mapper: Rc::new(RefCell::new(mapper)),
            vacant: Rc::default(),
            holding: Some(holding.clone()),
            keeping: Some(keeping.clone()),
        });
        for (name, socket) in held {
            shared.vacant.add(Listener::held(&name, socket, holding.clone(), Some(keeping.clone())).unwrap());
        }
        let grant = |id: &u64| NewCap::new(ConnectionNumber::of(*id), kernel_ipc::Rights::empty()).to_grant();
        let sessions =
            clients.iter().map(|(info, held)| (info.clone(), held.iter().map(grant).collect::<Vec<Grant>>()));
        let restored = restore(&shared, Left { recovered, sockets, sessions: sessions.collect() });
        assert!(keeping.berths.sweep());
        Run { shared, sessions: restored.into_iter().map(|(_, session)| session).collect() }
    }
}

/// Runs until `test` ends; what it leaves undone is never done.
fn dies_after<T>(test: impl AsyncFnOnce() -> T) -> T {
    Runtime::new(runtime::Options::default()).unwrap().block_on(test())
}

fn has_io_uring() -> bool {
    let found = Runtime::new(runtime::Options::default()).map(drop);
    found.inspect_err(|error| println!("skipped: no io_uring here ({error})")).is_ok()
}

/// Everything that a session is told until nothing more comes for a while.
async fn told(session: &Rc<Session>, cursor: &mut u64) -> Vec<Occurrence> {
    let mut all = Vec::new();
    loop {
        let next = runtime::timeout(Duration::from_millis(100), session.next_events(*cursor, LIMITS)).await;
        let Ok(batch) = next else { return all };
        let batch = batch.unwrap();
        *cursor = batch.next;
        all.extend(batch.events.into_iter().map(|entry| entry.occurrence));
    }
}

fn received(told: &[Occurrence]) -> Vec<u8> {
    let bytes = |what: &Occurrence| if let Occurrence::Received(bytes) = what { bytes.clone() } else { Vec::new() };
    told.iter().flat_map(bytes).collect()
}

/// A peer that says what it is told to and reads to the end when it is told to.
fn peer(address: SocketAddr) -> (mpsc::Sender<&'static [u8]>, thread::JoinHandle<std::io::Result<Vec<u8>>>) {
    let (say, said) = mpsc::channel::<&[u8]>();
    let peer = thread::spawn(move || {
        let mut socket = TcpStream::connect(address)?;
        for bytes in said {
            socket.write_all(bytes)?;
        }
        let mut all = Vec::new();
        socket.read_to_end(&mut all).map(|_| all)
    });
    (say, peer)
}

#[test]
fn a_connection_goes_on_in_the_next_run_with_every_byte_once() {
    if !has_io_uring() {
        return;
    }
    let mut node = Node::new();
    let (first, second) = (node.lend(0, 3 << 20), node.lend(3 << 20, 1 << 20));
    let client = info(CLIENT, "client");
    let mut cursor = 0;

    // The first run accepts, receives, and is killed while it sends: the peer reads nothing yet.
    let (say, socket, unanswered) = dies_after(async || {
        let run = node.next_run(&[]);
        let session = Session::new(&client, Permission::of(&client.attenuation), run.shared.clone());
        let address = session.listen("127.0.0.1:0").unwrap().1.parse().unwrap();
        let (say, socket) = peer(address);
        say.send(b"hello ").unwrap();
        while !received(&told(&session, &mut cursor).await).ends_with(b"hello ") {}
        session.send(2, 1, SendFlags(0), 0, b"head", &[part(first, 10, 3 << 20 >> 1)]).unwrap();
        session.send(2, 2, SendFlags(0), 0, b"", &[part(second, 0, 1 << 20)]).unwrap();
        say.send(b"again").unwrap();
        // This batch is answered, and its answer lost.
        let before = cursor;
        let unanswered = session.next_events(cursor, LIMITS).await.unwrap();
        assert_eq!(before, cursor);
        (say, socket, unanswered)
    });

    // The second one knows the batch, and the sends; it dies at once.
    dies_after(async || {
        let run = node.next_run(&[(client.clone(), &[2])]);
        let again = run.sessions[0].next_events(cursor, LIMITS).await.unwrap();
        assert!(again.events == unanswered.events && again.next == unanswered.next);
    });

    // The third one goes on to the end.
    let sent = dies_after(async || {
        let run = node.next_run(&[(client.clone(), &[2])]);
        let session = &run.sessions[0];
        assert_eq!(
            session.next_events(cursor + 1000, BatchLimits { events: 1, ..LIMITS }).await.err(),
            Some(EventsError::BadCursor)
        );
        let mut all: Vec<Occurrence> = unanswered.events.into_iter().map(|entry| entry.occurrence).collect();
        cursor = unanswered.next;
        // A send whose answer was lost is accepted once more, and not sent twice.
        assert_eq!(session.send(2, 2, SendFlags(0), 0, b"", &[part(second, 0, 1 << 20)]), Ok(()));
        // After a closing send nothing that is received counts.
        while received(&all) != b"again" {
            all.extend(told(session, &mut cursor).await);
        }
        session.send(2, 3, SendFlags::CLOSE, 0, b"tail", &[]).unwrap();
        drop(say);
        while !all.iter().any(|what| matches!(what, Occurrence::Closed(_))) {
            all.extend(told(session, &mut cursor).await);
        }
        assert_eq!(received(&all), b"again");
        for send in 1..=3 {
            let count = |wanted: fn(&Occurrence, u64) -> bool| all.iter().filter(|what| wanted(what, send)).count();
            assert_eq!(count(|what, n| matches!(what, Occurrence::Sent { send, .. } if *send == n)), 1, "{send}");
            assert_eq!(count(|what, n| matches!(what, Occurrence::Released { send, .. } if *send == n)), 1, "{send}");
        }
        assert_eq!(all.last(), Some(&Occurrence::Closed(Reason::Closed)));
        // All of it is consumed: nothing of the connection is left.
        assert!(told(session, &mut cursor).await.is_empty());
        assert_eq!(run.shared.keeping.as_ref().unwrap().berths.living(), 0);
        ended(socket).await.unwrap()
    });
    let whole = pattern(REGION_BYTES);
    let expected = [b"head", &whole[10..10 + (3 << 19)], &whole[3 << 20..4 << 20], b"tail"].concat();
    assert!(sent == expected, "{} of {} bytes", sent.len(), expected.len());
    let last =
        dies_after(async || node.next_run(&[(client.clone(), &[])]).shared.keeping.as_ref().unwrap().ledger.in_use());
    assert_eq!(last, 0);
}

#[test]
fn whoever_has_no_client_any_more_is_handed_to_its_next_run_or_reset() {
    if !has_io_uring() {
        return;
    }
    let mut node = Node::new();
    let lease = node.lend(0, 4 << 20);
    let client = info(CLIENT, "client");
    let (goes_on, ends, address) = dies_after(async || {
        let run = node.next_run(&[]);
        let session = Session::new(&client, Permission::of(&client.attenuation), run.shared.clone());
        let address: SocketAddr = session.listen("127.0.0.1:0").unwrap().1.parse().unwrap();
        let mut cursor = 0;
        let (say_one, one) = peer(address);
        say_one.send(b"request").unwrap();
        while !received(&told(&session, &mut cursor).await).ends_with(b"request") {}
        let (say_two, two) = peer(address);
        say_two.send(b"other").unwrap();
        while !received(&told(&session, &mut cursor).await).ends_with(b"other") {}
        session.send(2, 1, SendFlags(0), 0, b"head", &[part(lease, 0, 4 << 20)]).unwrap();
        session.send(3, 1, SendFlags(0), NO_REQUEST, b"head", &[part(lease, 0, 4 << 20)]).unwrap();
        // Until the kernel has some of both answers, which nobody reads.
        for id in [2, 3] {
            while session.connection(id).unwrap().undelivered() < 1000 {
                runtime::sleep(Duration::from_millis(2)).await;
            }
        }
        ((say_one, one), (say_two, two), address)
    });
    // The client has died too.
    let (whole, cut) = dies_after(async || {
        let run = node.next_run(&[]);
        let next = info(Incarnation(8), "client");
        let session = Session::new(&next, Permission::of(&next.attenuation), run.shared.clone());
        session.listen(&address.to_string()).unwrap();
        let mut cursor = 0;
        let all = told(&session, &mut cursor).await;
        let [Occurrence::Accepted { .. }, Occurrence::Resumed { request: 0, sent, head }, rest @ ..] = &all[..] else {
            panic!("{all:?}");
        };
        assert!(*sent > 4 && head == b"head" && received(rest) == b"request");
        // What is missing of the answer, from bytes that anybody may have made.
        let missing = &pattern(REGION_BYTES)[*sent as usize - 4..];
        for (n, bytes) in (1..).zip(missing.chunks(4096)) {
            while session.send(2, n, SendFlags(0), 0, bytes, &[]) == Err(SendError::Full) {
                told(&session, &mut cursor).await;
            }
            if n == 8 {
                // The peers read from now on.
                break;
            }
        }
        drop(goes_on.0);
        drop(ends.0);
        for (n, bytes) in (1..).zip(missing.chunks(4096)).skip(8) {
            while session.send(2, n, SendFlags(0), 0, bytes, &[]) == Err(SendError::Full) {
                let batch = session.next_events(cursor, LIMITS).await.unwrap();
                cursor = batch.next;
            }
        }
        while session.send(2, 1 << 20, SendFlags::CLOSE, 0, b"", &[]) == Err(SendError::Full) {
            let batch = session.next_events(cursor, LIMITS).await.unwrap();
            cursor = batch.next;
        }
        (ended(goes_on.1).await.unwrap(), ended(ends.1).await)
    });
    assert!(whole[..4] == *b"head" && whole[4..] == pattern(REGION_BYTES), "{} bytes", whole.len());
    assert_eq!(cut.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
