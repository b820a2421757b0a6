//! What every link promises, over every carrier.

mod common;

use std::cell::{Cell, RefCell};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::atomic::Ordering::Release;
use std::task::{Poll, Waker};
use std::time::Duration;

use common::bytes;
use kernel_ipc::link::socket::SocketLink;
use kernel_ipc::link::{Body, Link, in_process, shm, socket};
use kernel_ipc::runtime::simulated::{Network, Weather};
use kernel_ipc::runtime::{self, Sleep, Source, Waiting};
use kernel_ipc::sys::doorbell::EventDoorbell;
use kernel_ipc::sys::futex;
use kernel_ipc::wire::{Extent, Handle, LeaseName, RawDescriptor, Shape, Submission, Violation, header};
use kernel_ipc::{Epoch, LenderId, SessionId};

const SHAPE: Shape = Shape { slots: 4, window_bytes: 4096 };

type Ends = (Box<dyn Link>, Box<dyn Link>);

fn shm_ends() -> (shm::ShmLink, shm::ShmLink) {
    let segment = shm::client_segment(SHAPE).expect("memory");
    let fd = segment.fd().try_clone_to_owned().expect("dup");
    let host = shm::ShmLink::host(fd, SessionId(1), Epoch(2), Handle::NONE).expect("a right header");
    let fd = host.fd().try_clone_to_owned().expect("dup");
    let (client, _) = shm::ShmLink::client(segment, SHAPE, fd, SessionId(1), Epoch(2)).expect("a right header");
    (client, host)
}

fn shm_with_futex() -> Ends {
    let (client, host) = shm_ends();
    (Box::new(client), Box::new(host))
}

fn shm_with_eventfd() -> Ends {
    let (client, host) = with_event_doorbells(shm_ends());
    (Box::new(client), Box::new(host))
}

fn with_event_doorbells((mut client, mut host): (shm::ShmLink, shm::ShmLink)) -> (shm::ShmLink, shm::ShmLink) {
    let bell = || EventDoorbell::new().expect("an eventfd");
    let twin = |bell: &EventDoorbell| EventDoorbell::adopt(bell.fd().try_clone_to_owned().expect("dup"));
    let (of_client, of_host) = (bell(), bell());
    client.use_event_doorbells(twin(&of_client), twin(&of_host));
    host.use_event_doorbells(of_host, of_client);
    (client, host)
}

fn inside_one_process() -> Ends {
    let (client, host) = in_process::pair(SHAPE);
    (Box::new(client), Box::new(host))
}

fn over_loopback() -> Ends {
    let (client, host) = socket::pair(SHAPE).expect("loopback");
    (Box::new(client), Box::new(host))
}

fn over_a_simulated_network() -> Ends {
    let weather = Weather { delay_ns: (0, 0), capacity: 1 << 20, trickles: 3 };
    let (client, host) = Network::new(7, weather, |_| {}).pair();
    (Box::new(SocketLink::simulated(client, SHAPE)), Box::new(SocketLink::simulated(host, SHAPE)))
}

/// A carrier's name, and how to make both ends of a link over it.
type Carrier = (&'static str, fn() -> Ends);

const CARRIERS: [Carrier; 5] = [
    ("futex", shm_with_futex),
    ("eventfd", shm_with_eventfd),
    ("in process", inside_one_process),
    (SOCKET, over_loopback),
    (SIMULATED, over_a_simulated_network),
];
const SOCKET: &str = "socket";
const SIMULATED: &str = "simulated";

/// Whether bytes go through a connection: what was sent is seen when it was flushed, and nobody counts what flies.
fn is_connection(carrier: &str) -> bool {
    carrier == SOCKET || carrier == SIMULATED
}

/// Runs a test over each carrier, in both directions.
fn over_each_carrier(test: impl Fn(&str, &dyn Link, &dyn Link)) {
    over(&CARRIERS, test);
}

/// The same over those whose ends share memory: what one has published, the other sees.
fn over_shared_memory(test: impl Fn(&str, &dyn Link, &dyn Link)) {
    over(&CARRIERS[..3], test);
}

fn over(carriers: &[Carrier], test: impl Fn(&str, &dyn Link, &dyn Link)) {
    for (name, make) in carriers {
        let (client, host) = make();
        test(name, &*client, &*host);
        let (client, host) = make();
        test(name, &*host, &*client);
    }
}

/// The next message, which has been flushed. Over a socket the kernel may take its time to deliver it.
fn next(to: &dyn Link) -> RawDescriptor {
    loop {
        match to.receive() {
            Some(raw) => return raw,
            None => std::thread::yield_now(),
        }
    }
}

/// Lets the peer see what was sent, at the least cost at which the carrier does.
fn publish(carrier: &str, from: &dyn Link) {
    from.publish();
    if is_connection(carrier) {
        from.flush();
    }
}

fn message(n: u64) -> RawDescriptor {
    let submission = Submission { slot: (n % 8) as u16, seq: n, inline: [n, !n], ..Submission::default() };
    submission.to_raw()
}

fn send(from: &dyn Link, n: u64) -> Result<(), Violation> {
    from.send(&message(n), (n % 8) as u16, &Body::default())
}

#[test]
fn what_is_unread_is_counted() {
    over_each_carrier(|carrier, from, to| {
        assert_eq!(to.unread(), 0, "{carrier}");
        for n in 0..5 {
            send(from, n).expect("there is room");
        }
        from.flush();
        // Of what is in the kernel nobody knows without taking it.
        assert_eq!(to.unread(), if is_connection(carrier) { 0 } else { 5 }, "{carrier}");
        next(to);
        assert_eq!(to.unread(), 4, "{carrier}");
        while to.receive().is_some() {}
        assert_eq!(to.unread(), 0, "{carrier}");
    });
    over_shared_memory(|carrier, from, to| {
        // Not flushed: whether there is one is known, and not how many.
        send(from, 5).expect("there is room");
        send(from, 6).expect("there is room");
        from.publish();
        assert!((1..=2).contains(&to.unread()), "{carrier}");
    });
}

#[test]
fn a_lying_tail_counts_as_no_more_than_a_ring() {
    let segment = shm::client_segment(SHAPE).expect("memory");
    let fd = segment.fd().try_clone_to_owned().expect("dup");
    let host = shm::ShmLink::host(fd, SessionId(1), Epoch(2), Handle::NONE).expect("a right header");
    for lie in [1 << 20, u64::MAX / 2, u64::MAX, 1 << 63] {
        segment.store_u64(header::TAIL, lie, Release);
        assert!(host.unread() <= u64::from(SHAPE.ring_entries()), "{lie:#x}");
    }
}

#[test]
fn messages_arrive_once_in_order_and_unchanged_round_after_round() {
    over_each_carrier(|carrier, from, to| {
        let (mut sent, mut received) = (0, 0);
        for batch in (0..=8).cycle().take(500) {
            for _ in 0..batch {
                send(from, sent).expect("room");
                sent += 1;
            }
            publish(carrier, from);
            assert_eq!(from.sent(), sent);
            while received < sent {
                assert_eq!(next(to), message(received), "{carrier}");
                received += 1;
            }
            assert_eq!((to.receive(), from.read_by_peer()), (None, sent), "{carrier}");
        }
    });
}

#[test]
fn names_and_payloads_stand_in_the_window_of_their_slot() {
    over_each_carrier(|carrier, from, to| {
        for slot in 0..SHAPE.all_slots() {
            let leases = [LeaseName { lender: LenderId(3), index: u32::from(slot), generation: 5, length: 6 }];
            let capabilities = [Handle { index: 7, generation: 8 }, Handle { index: 9, generation: u32::from(slot) }];
            let extent = Extent { length: 4056, capabilities: 2, leases: 1 };
            extent.check(SHAPE.window_bytes).expect("fills the window");
            let payload = bytes(4056 - usize::from(slot));
            let body = Body { leases: &leases, capabilities: &capabilities, payload: &payload };
            let extent = Extent { length: payload.len() as u32, ..extent };
            let submission = Submission { slot, seq: 1, extent, ..Submission::default() };
            from.send(&submission.to_raw(), slot, &body).expect("room");
            publish(carrier, from);
            assert_eq!(next(to), submission.to_raw(), "{carrier}");

            let mut lease = [0; 24];
            to.read_window(slot, 0, &mut lease);
            assert_eq!(LeaseName::from_bytes(lease), leases[0], "{carrier}");
            let mut handles = [[0; 8]; 2];
            to.read_window(slot, 24, handles.as_flattened_mut());
            assert_eq!(handles.map(|word| Handle::from_word(u64::from_le_bytes(word))), capabilities, "{carrier}");
            let mut seen = vec![0; payload.len()];
            to.read_window(slot, extent.payload_offset(), &mut seen);
            assert_eq!(seen, payload, "{carrier}");
        }
    });
}

#[test]
fn nothing_outside_of_a_window_can_be_read() {
    over_each_carrier(|carrier, from, to| {
        let extent = Extent { length: 4096, ..Extent::default() };
        let submission = Submission { slot: 1, seq: 1, extent, ..Submission::default() };
        from.send(&submission.to_raw(), 1, &Body { payload: &[1; 4096], ..Body::default() }).expect("room");
        publish(carrier, from);
        next(to);
        for (slot, offset, length) in [(1, 4096, 1), (1, 4000, 97), (1, usize::MAX, 2), (8, 0, 1), (u16::MAX, 0, 1)] {
            let mut seen = vec![7; length];
            to.read_window(slot, offset, &mut seen);
            assert_eq!(seen, vec![7; length], "{carrier}: {length} at {offset} of {slot}");
        }
    });
}

#[test]
fn a_peer_that_reads_nothing_is_an_overrun_after_a_ring() {
    over_each_carrier(|carrier, from, to| {
        let entries = u64::from(SHAPE.ring_entries());
        for n in 0..entries {
            send(from, n).expect("room");
        }
        assert_eq!(send(from, entries), Err(Violation::Overrun), "{carrier}");
        assert_eq!(from.read_by_peer(), 0);
        publish(carrier, from);
        next(to);
        // The kernel has all of them, so nobody knows that it is only one.
        assert_eq!(from.read_by_peer(), if is_connection(carrier) { entries } else { 1 });
        assert_eq!(send(from, entries), Ok(()), "{carrier}");
    });
}

#[test]
fn a_batch_over_a_socket_is_one_system_call_at_each_end() {
    let (from, to) = socket::pair(SHAPE).expect("loopback");
    for round in 1..100 {
        for n in 0..8 {
            send(&from, n).expect("room");
        }
        from.flush();
        from.flush();
        assert_eq!(from.system_calls(), round);
        let before = to.system_calls();
        assert_eq!(next(&to), message(0));
        let looks = to.system_calls() - before;
        for n in 1..8 {
            assert_eq!(to.receive(), Some(message(n)));
        }
        // The last look took all that was there, so the end of it is known without another.
        assert_eq!((to.receive(), to.system_calls() - before), (None, looks));
    }
}

#[test]
fn a_connection_that_breaks_a_rule_or_ends_is_told_apart() {
    for (bytes, expected) in [(&b"not a frame at all"[..], Some(Violation::Reserved)), (&b""[..], None)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let mut peer = TcpStream::connect(listener.local_addr().expect("an address")).expect("loopback");
        let link = SocketLink::over(listener.accept().expect("a connection").0.into(), SHAPE).expect("a link");
        std::io::Write::write_all(&mut peer, bytes).expect("sent");
        drop(peer);
        while link.standing() == socket::Standing::Connected {
            assert_eq!(link.receive(), None);
        }
        assert_eq!(link.broken(), expected);
        assert!(!link.is_closed_by_peer(), "nobody has said so");
    }
}

#[test]
fn who_is_about_to_sleep_sees_what_was_sent() {
    over_shared_memory(|carrier, from, to| {
        assert_ne!(to.prepare_sleep(), Ok(Sleep::Work), "{carrier}");
        to.cancel_sleep();
        send(from, 0).expect("room");
        assert_eq!(to.prepare_sleep(), Ok(Sleep::Work), "{carrier}");
        to.cancel_sleep();
        to.receive().expect("a message");
        // Received before its tail was stored: nothing more is there, and that is no violation.
        assert!(matches!(to.prepare_sleep(), Ok(sleep) if sleep != Sleep::Work), "{carrier}");
        to.cancel_sleep();
        from.flush();
        assert!(matches!(to.prepare_sleep(), Ok(sleep) if sleep != Sleep::Work), "{carrier}");
        to.cancel_sleep();
    });
}

/// A link as a runtime's source: counts what it receives.
struct Receiver {
    link: Box<dyn Link>,
    received: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl Source for Receiver {
    fn poll(&self) -> bool {
        let before = self.received.get();
        while self.link.receive().is_some() {
            self.received.set(self.received.get() + 1);
        }
        let found = self.received.get() > before || self.link.is_closed_by_peer();
        if found && let Some(waker) = self.waker.take() {
            waker.wake();
        }
        found
    }

    fn prepare_sleep(&self) -> Sleep {
        self.link.prepare_sleep().expect("the peer is correct")
    }

    fn cancel_sleep(&self) {
        self.link.cancel_sleep();
    }
}

impl Receiver {
    async fn until(&self, done: impl Fn(&Receiver) -> bool) {
        std::future::poll_fn(|cx| {
            if done(self) {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// What makes an end, in the thread that uses it.
type MakeEnd = Box<dyn FnOnce() -> Box<dyn Link> + Send>;

fn made(link: impl Link + Send + 'static) -> MakeEnd {
    Box::new(|| Box::new(link))
}

fn made_over(socket: TcpStream) -> MakeEnd {
    Box::new(|| Box::new(SocketLink::over(socket.into(), SHAPE).expect("a connection")))
}

#[test]
fn a_sleeper_is_woken_by_messages_and_by_the_end() {
    let futex: fn() -> (MakeEnd, MakeEnd) = || {
        let (client, host) = shm_ends();
        (made(client), made(host))
    };
    let eventfd: fn() -> (MakeEnd, MakeEnd) = || {
        let (client, host) = with_event_doorbells(shm_ends());
        (made(client), made(host))
    };
    let socket: fn() -> (MakeEnd, MakeEnd) = || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("loopback");
        (made_over(client), made_over(listener.accept().expect("a connection").0))
    };
    for make in [futex, eventfd, socket] {
        let (from, to) = make();
        let sender = std::thread::spawn(move || {
            let from = from();
            for n in 0..200 {
                // Most of the time the receiver sleeps already; sometimes it is just about to.
                std::thread::sleep(Duration::from_micros(n % 40 * 10));
                while send(&*from, n).is_err() {
                    std::thread::yield_now();
                }
                from.flush();
            }
            std::thread::sleep(Duration::from_millis(20));
            from.close();
            // One for each flush, or none; and a farewell.
            assert!(from.system_calls() <= 201, "{} rings", from.system_calls());
        });
        common::run_waiting(Waiting::Block, async {
            let link = to();
            let receiver = Rc::new(Receiver { link, received: Cell::new(0), waker: RefCell::new(None) });
            let _registered = runtime::register(receiver.clone());
            receiver.until(|receiver| receiver.received.get() == 200).await;
            receiver.until(|receiver| receiver.link.is_closed_by_peer()).await;
        });
        sender.join().expect("no panic");
    }
}

#[test]
fn a_peer_that_has_not_rung_yet_for_more_than_a_ring_is_no_liar() {
    over_each_carrier(|carrier, from, to| {
        for number in 0..100 {
            send(from, number).expect("room");
            publish(carrier, from);
            next(to);
        }
        assert!(to.prepare_sleep().is_ok(), "{carrier}: a reader that polls is ahead of the bell");
        to.cancel_sleep();
    });
}

/// A thread that sleeps on `sleep`'s word, once it really does.
fn sleeper(sleep: Sleep) -> std::thread::JoinHandle<()> {
    let Sleep::Futex { word, expected } = sleep else { panic!("{sleep:?}") };
    let (send, thread) = std::sync::mpsc::channel();
    let handle = std::thread::spawn(move || {
        send.send(nix::unistd::gettid()).expect("a listener");
        futex::wait_any(&[futex::Wait { word, expected }], None).expect("a word");
    });
    let thread = thread.recv().expect("a thread");
    let place = format!("/proc/self/task/{thread}/syscall");
    let waits = format!("{} ", libc::SYS_futex_waitv);
    while !std::fs::read_to_string(&place).is_ok_and(|call| call.starts_with(&waits)) {
        std::thread::yield_now();
    }
    handle
}

#[test]
fn one_sleep_is_rung_for_once() {
    let (client, host) = shm_ends();
    let asleep = sleeper(host.prepare_sleep().expect("an honest peer"));
    for n in 0..5 {
        send(&client, n).expect("room");
        client.flush();
    }
    assert_eq!(client.system_calls(), 1);
    asleep.join().expect("woken");
    host.cancel_sleep();
    while host.receive().is_some() {}
    send(&client, 5).expect("room");
    client.flush();
    assert_eq!(client.system_calls(), 1, "an awake peer was rung for");
    assert!(host.receive().is_some());
    let asleep = sleeper(host.prepare_sleep().expect("an honest peer"));
    send(&client, 6).expect("room");
    client.flush();
    assert_eq!(client.system_calls(), 2, "the next sleep was not rung for");
    asleep.join().expect("woken");
}

#[test]
fn a_ring_that_found_nobody_is_rung_again() {
    let (client, host) = shm_ends();
    // The host has read what this tail will count when it announces its sleep, and does not sleep yet.
    send(&client, 0).expect("room");
    assert!(host.receive().is_some());
    assert!(matches!(host.prepare_sleep(), Ok(Sleep::Futex { .. })));
    client.flush();
    assert_eq!(client.system_calls(), 1, "nobody waited");
    send(&client, 1).expect("room");
    client.flush();
    assert_eq!(client.system_calls(), 2, "this sleep lasts for ever");
}

#[test]
fn a_closed_end_is_seen_after_its_last_message() {
    over_each_carrier(|carrier, from, to| {
        assert!(!to.is_closed_by_peer());
        send(from, 0).expect("room");
        from.close();
        if !is_connection(carrier) {
            assert!(to.is_closed_by_peer(), "{carrier}");
            assert_eq!(to.prepare_sleep(), Ok(Sleep::Work), "{carrier}");
            to.cancel_sleep();
        }
        assert_eq!(next(to), message(0), "{carrier}");
        while !to.is_closed_by_peer() {
            assert_eq!(to.receive(), None, "{carrier}");
        }
        assert_eq!(to.prepare_sleep(), Ok(Sleep::Work), "{carrier}");
        to.cancel_sleep();
        assert!(!from.is_closed_by_peer(), "closing is each end's own");
    });
}

#[test]
fn a_segment_of_another_session_or_epoch_is_refused() {
    let host = || {
        let segment = shm::client_segment(SHAPE).expect("memory");
        let fd = segment.fd().try_clone_to_owned().expect("dup");
        let host = shm::ShmLink::host(fd, SessionId(1), Epoch(2), Handle::NONE).expect("a right header");
        (segment, host.fd().try_clone_to_owned().expect("dup"))
    };
    for (session, epoch, shape) in [(1, 3, SHAPE), (2, 2, SHAPE), (1, 2, Shape::default())] {
        let (segment, fd) = host();
        assert!(shm::ShmLink::client(segment, shape, fd, SessionId(session), Epoch(epoch)).is_err());
    }
    let (segment, fd) = host();
    assert!(shm::ShmLink::client(segment, SHAPE, fd, SessionId(1), Epoch(2)).is_ok());
}
