//! What the other sessions of a host notice of hostile clients, beside what they notice of as many honest ones that are as busy.
//!
//! - Three threads: a host; peers, eight at a time, each of which opens a session, calls, and goes; and the others, whose every
//!   answer is checked to the byte and timed.
//! - Rounds of hostile and of honest peers follow each other, so whatever else the machine does meets both. Both open as many
//!   sessions in a second, of the same shapes, and write as many calls into them, in bursts of the same lengths.
//! - No time is asserted here: the campaign prints them. `DURATION_S=600 SESSIONS=1000000` is the one that `docs/numbers.md` tells of.

use std::collections::HashMap;
use std::fs::File;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use kernel_ipc::runtime::{self, Options, Runtime};
use kernel_ipc::session::{ClientSession, HostSession, Offer};
use kernel_ipc::sys::futex;
use kernel_ipc::sys::segment::SegmentReader;
use kernel_ipc::wire::{Completion, LeaseName, RawDescriptor, Shape, Status, header, state};
use kernel_ipc::{Epoch, SessionId};

use super::client::{HostileClient, any_shape};
use super::common::random::Random;
use super::common::*;
use super::{holds_secret, honest_call, number, open_descriptors, sessions};

/// Sessions of peers at a time, and sessions of others.
const PEERS: u64 = 8;
const OTHERS: u64 = 4;
/// Between two calls of one of the others.
const THINKS: Duration = Duration::from_micros(500);
/// Turns of hostile and honest peers, each as often as this.
const ROUNDS: u64 = 20;

/// Who the peers are.
#[derive(Clone, Copy)]
enum Peers {
    Hostile,
    Honest,
}

/// What a thread asks of the host.
enum Wish {
    /// Sessions with these clients' segments, from this number on; their own segments are the answer.
    Open(u64, Vec<OwnedFd>, mpsc::Sender<Vec<OwnedFd>>),
    /// These peers are gone, whose sessions begin with this number.
    Close(Peers, u64),
    End,
}

#[derive(Default)]
struct Door {
    wishes: Mutex<Vec<Wish>>,
    host: Mutex<Option<Waker>>,
}

impl Door {
    fn ask(&self, wish: Wish) {
        self.wishes.lock().expect("nobody panics with it").push(wish);
        let host = self.host.lock().expect("nobody panics with it").take();
        host.into_iter().for_each(Waker::wake);
    }

    fn open(&self, first: u64, segments: Vec<OwnedFd>) -> Vec<OwnedFd> {
        let (answer, opened) = mpsc::channel();
        self.ask(Wish::Open(first, segments, answer));
        opened.recv().expect("the host lives")
    }

    async fn next(&self) -> Vec<Wish> {
        poll_fn(|context| {
            *self.host.lock().expect("nobody panics with it") = Some(context.waker().clone());
            let wishes = std::mem::take(&mut *self.wishes.lock().expect("nobody panics with it"));
            if wishes.is_empty() { Poll::Pending } else { Poll::Ready(wishes) }
        })
        .await
    }
}

/// How many sessions of hostile and of honest peers the host has ended for a violation.
type Ended = [u64; 2];

/// The host: serves whoever comes, until it is told to end.
fn host(door: &Door) -> Ended {
    run(async {
        let (thing, lender): (Rc<Thing>, _) = (Rc::default(), lender());
        let (mut sessions, mut ended) = (HashMap::new(), Ended::default());
        loop {
            for wish in door.next().await {
                match wish {
                    Wish::Open(first, segments, answer) => {
                        let start = |(number, segment)| {
                            let lender = Some(lender.clone());
                            let host = HostSession::start(segment, root(), thing.clone(), info(number), lender);
                            let host = host.expect("its header is right so far");
                            let segment = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
                            sessions.insert(number, host);
                            segment
                        };
                        let _ = answer.send((first..).zip(segments).map(start).collect());
                    }
                    Wish::Close(who, first) => {
                        for host in (first..first + PEERS).filter_map(|number| sessions.remove(&number)) {
                            ended[who as usize] += u64::from(host.violation().is_some());
                        }
                    }
                    Wish::End => {
                        drop(sessions);
                        settle().await;
                        assert_eq!(thing.begun.get(), thing.served.get(), "a handler was left behind");
                        assert_eq!(lender.borrow().lent_count(), 0, "a lease was left behind");
                        return ended;
                    }
                }
            }
        }
    })
}

/// What peers did.
#[derive(Clone, Copy, Debug, Default)]
struct Did {
    sessions: u64,
    calls: u64,
    accepted: u64,
    refused: u64,
}

/// How many calls each of so many bursts of a peer has.
fn bursts(random: &mut Random) -> Vec<u64> {
    (0..random.below(4) + 1).map(|_| random.below(6) + 1).collect()
}

/// Eight hostile peers: they write, wake the host and let it look, and count what it says to their calls.
fn hostile(door: &Door, first: u64, random: &mut Random, did: &mut Did) {
    let mut peers: Vec<_> = (0..PEERS).map(|_| HostileClient::new(random, LeaseName::default())).collect();
    let theirs = door.open(first, peers.iter().map(HostileClient::fd).collect());
    let mut bytes = vec![0; 1 << 20];
    for (peer, fd) in peers.iter_mut().zip(theirs) {
        let theirs = SegmentReader::open(fd.try_clone().expect("dup"), peer.shape.segment_bytes()).expect("a segment");
        for burst in bursts(random) {
            (0..burst).for_each(|_| peer.act(random));
            did.calls += burst;
            let _ = futex::wake(peer.segment.word(header::TAIL), i32::MAX);
            let has_looked = || {
                theirs.load_u32(header::STATE, Acquire) == state::CLOSED
                    || theirs.load_u64(header::HEAD, Acquire) == peer.position
            };
            (0..200).take_while(|_| !has_looked()).for_each(|_| std::thread::yield_now());
        }
        let answered = theirs.load_u64(header::TAIL, Acquire) & 0x7fff_ffff;
        for position in 0..answered.min(peer.shape.ring_entries().into()) {
            let Some(mut line) = theirs.load_line(peer.shape.entry_offset(position), |_| true) else { continue };
            line[0] &= !0xffff;
            match Completion::check(&RawDescriptor(line), peer.shape).map(|completion| completion.status) {
                Ok(Status::Done | Status::OperationError(_)) => did.accepted += 1,
                Ok(Status::Failed(_)) => did.refused += 1,
                Err(_) => {}
            }
        }
        assert!(!holds_secret(&File::from(fd), &mut bytes), "a peer can read what it was not given");
        did.sessions += 1;
    }
    door.ask(Wish::Close(Peers::Hostile, first));
}

/// Eight honest peers: each burst is outstanding together, and its every answer is checked.
async fn honest(door: &Door, first: u64, random: &mut Random, did: &mut Did) {
    let offers: Vec<_> = (0..PEERS).map(|_| Offer::new(any_shape(random)).expect("a segment")).collect();
    let theirs = door.open(first, offers.iter().map(fd).collect());
    for ((offer, segment), number) in offers.into_iter().zip(theirs).zip(first..) {
        let client = offer.open(segment, SessionId(number), Epoch(1)).expect("a session");
        for burst in bursts(random) {
            let calls: Vec<_> = (0..burst)
                .map(|_| {
                    let (client, payload) = (client.clone(), bytes(random.pick(&[0, 8, 16, 64, 1000, 4096])));
                    runtime::spawn(async move {
                        let reply = client.call(request(client.root(), ECHO, &payload)).await.expect("it is served");
                        assert_eq!(*reply.payload, payload[..]);
                    })
                })
                .collect();
            did.calls += burst;
            for call in calls {
                call.await.expect("not cancelled");
            }
            did.accepted += burst;
        }
        did.sessions += 1;
    }
    door.ask(Wish::Close(Peers::Honest, first));
}

/// Who the peers are at the moment, for those who measure: a number of [`Peers`], or [`NOBODY`].
type Meanwhile = Arc<AtomicUsize>;

const NOBODY: usize = 2;

/// How long each call of the others took, in ns, by who the peers were meanwhile.
type Took = [Vec<u64>; 2];

/// The others, until they are told to stop.
fn others(door: &Door, meanwhile: &Meanwhile, stop: &Arc<AtomicBool>) -> Took {
    run(async {
        let offers: Vec<_> = (0..OTHERS).map(|_| Offer::new(Shape::default()).expect("a segment")).collect();
        let theirs = door.open(1, offers.iter().map(fd).collect());
        let mut callers = Vec::new();
        for ((offer, segment), number) in offers.into_iter().zip(theirs).zip(1..) {
            let session = offer.open(segment, SessionId(number), Epoch(1)).expect("a session");
            callers.push(runtime::spawn(other(session, number, meanwhile.clone(), stop.clone())));
        }
        let mut all = Took::default();
        for caller in callers {
            let took = caller.await.expect("not cancelled");
            all.iter_mut().zip(took).for_each(|(all, more)| all.extend(more));
        }
        all
    })
}

async fn other(session: ClientSession, number: u64, meanwhile: Meanwhile, stop: Arc<AtomicBool>) -> Took {
    let mut took = Took::default();
    let mut n = number << 48;
    while !stop.load(Acquire) {
        let (peers, begun) = (meanwhile.load(Acquire), Instant::now());
        honest_call(&session, n).await;
        let ns = begun.elapsed().as_nanos() as u64;
        if let Some(took) = took.get_mut(peers).filter(|_| meanwhile.load(Acquire) == peers) {
            took.push(ns);
        }
        n += 1;
        runtime::sleep(THINKS).await;
    }
    took
}

fn fd(offer: &Offer) -> OwnedFd {
    offer.fd().try_clone_to_owned().expect("dup")
}

/// One turn of the peers: so many sessions, spread over so much time, or as fast as it goes if that is too little.
fn turn(who: Peers, door: &Door, first: u64, count: u64, time: Duration, random: &mut Random, did: &mut Did) {
    let runtime = Runtime::new(Options::default()).expect("io_uring");
    let (begun, batches) = (Instant::now(), count.div_ceil(PEERS));
    for batch in 0..batches {
        let due = begun + time.mul_f64(batch as f64 / batches as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let first = first + batch * PEERS;
        match who {
            Peers::Hostile => hostile(door, first, random, did),
            Peers::Honest => runtime.block_on(honest(door, first, random, did)),
        }
    }
}

/// The time that so many thousandths of the calls did not exceed, in µs.
fn quantile(sorted: &[u64], thousandths: usize) -> f64 {
    sorted[(sorted.len() * thousandths / 1000).min(sorted.len() - 1)] as f64 / 1000.0
}

#[test]
fn what_the_others_notice_of_hostile_peers_and_of_honest_ones() {
    let (count, seconds) = (sessions(4_000), number("DURATION_S", 4));
    let before = open_descriptors();
    let mut random = Random::from_environment();
    let (door, stop) = (Door::default(), Arc::new(AtomicBool::new(false)));
    let meanwhile: Meanwhile = Arc::new(AtomicUsize::new(NOBODY));
    let begun = Instant::now();
    let (did, took, ended) = std::thread::scope(|scope| {
        let host = scope.spawn(|| host(&door));
        let others = scope.spawn(|| others(&door, &meanwhile, &stop));
        let (mut did, mut first) = ([Did::default(); 2], 1 << 20);
        let time = Duration::from_secs(seconds) / (2 * ROUNDS as u32);
        for round in 0..2 * ROUNDS {
            let who = if round % 2 == 0 { Peers::Hostile } else { Peers::Honest };
            meanwhile.store(who as usize, Release);
            turn(who, &door, first, count / ROUNDS, time, &mut random, &mut did[who as usize]);
            meanwhile.store(NOBODY, Release);
            first += count;
            assert!(!others.is_finished() && !host.is_finished(), "somebody has failed");
        }
        stop.store(true, Release);
        let took = others.join().expect("the others' every answer was right");
        door.ask(Wish::End);
        (did, took, host.join().expect("the host has kept nothing"))
    });
    println!("{:.0} s, {} calls of {OTHERS} others", begun.elapsed().as_secs_f64(), took[0].len() + took[1].len());
    let seen: Vec<[f64; 3]> = took
        .into_iter()
        .map(|mut took| {
            took.sort_unstable();
            [500, 990, 999].map(|part| quantile(&took, part))
        })
        .collect();
    for (name, did, [p50, p99, p999]) in [("hostile", did[0], seen[0]), ("honest ", did[1], seen[1])] {
        let Did { sessions, calls, accepted, refused } = did;
        println!(
            "{name} peers: {sessions} sessions, {calls} calls, {accepted} accepted, {refused} refused; \
             the others: p50 {p50:.1} µs, p99 {p99:.1} µs, p99.9 {p999:.1} µs"
        );
    }
    let [p50, p99, p999] = [0, 1, 2].map(|at| seen[0][at] / seen[1][at]);
    println!(
        "hostile / honest: p50 {p50:.2}, p99 {p99:.2}, p99.9 {p999:.2}; ended for a violation: {ended:?} of the sessions"
    );
    let [Did { sessions, accepted, refused, .. }, control] = did;
    assert!(accepted > 0 && refused > 0, "the garbage is not what it was meant to be");
    assert!(ended[0] > sessions / 10 && ended[1] == 0, "{ended:?}");
    assert_eq!((control.sessions, control.accepted, control.refused), (sessions, control.calls, 0));
    // Other tests of this program have some of their own.
    assert!(open_descriptors() < before + 100, "descriptors leak");
}
