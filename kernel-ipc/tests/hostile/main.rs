//! Peers that write garbage. The seed is printed; `SEED=123` replays it, `SESSIONS=n` changes how many are opened.

mod campaign;
mod client;
#[path = "../common/mod.rs"]
mod common;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::HostileClient;
use common::random::Random;
use common::*;
use kernel_ipc::link::shm;
use kernel_ipc::runtime::{self, Waiting};
use kernel_ipc::session::{ClientSession, Grant, HostSession, Offer, OpenError};
use kernel_ipc::sys::segment::{self, SegmentWriter};
use kernel_ipc::wire::{self, Handle, LeaseName, Shape, header, state};
use kernel_ipc::{Epoch, LenderId, SessionId};
use nix::unistd::{Whence, lseek};

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn sessions(default: u64) -> u64 {
    number("SESSIONS", default)
}

/// Stands in the honest client's calls and capabilities, and nowhere in a segment that the hostile one can read.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec3;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

/// A thread that keeps writing into whatever segment the hostile client uses at the moment.
struct Scribbler {
    target: Arc<Mutex<Option<Arc<SegmentWriter>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Scribbler {
    fn start(mut random: Random) -> Scribbler {
        let target: Arc<Mutex<Option<Arc<SegmentWriter>>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (target, stop) = (target.clone(), stop.clone());
            move || {
                let mut written = 0;
                while !stop.load(Acquire) {
                    let Some(segment) = target.lock().expect("no panics").clone() else {
                        std::thread::yield_now();
                        continue;
                    };
                    for _ in 0..200 {
                        // Mostly the first descriptors and windows, where the host looks.
                        let range = if random.one_in(2) { 1024 } else { segment.len() as u64 };
                        let offset = (header::RING as u64 + random.below(range - header::RING as u64)) as usize & !7;
                        let bits = 1 << random.below(64);
                        segment.store_u64(offset, segment.load_u64(offset, Relaxed) ^ bits, Relaxed);
                        written += 1;
                    }
                    std::thread::yield_now();
                }
                written
            }
        });
        Scribbler { target, stop, thread: Some(thread) }
    }

    fn aim(&self, segment: Option<Arc<SegmentWriter>>) {
        *self.target.lock().expect("no panics") = segment;
    }

    fn stop(mut self) -> u64 {
        self.stop.store(true, Release);
        self.thread.take().expect("once").join().expect("the scribbler does not panic")
    }
}

/// The honest client: every answer is its own, in full.
async fn honest_call(client: &ClientSession, n: u64) {
    let payload: Vec<u8> = [n, SECRET, !n].iter().flat_map(|word| word.to_le_bytes()).collect();
    let reply = client.call(request(client.root(), ECHO, &payload)).await.expect("the honest client is served");
    assert_eq!(*reply.payload, payload[..]);
}

/// Whether the secret stands anywhere in this segment. Pages that were never written are not even made.
fn holds_secret(segment: &File, bytes: &mut [u8]) -> bool {
    let mut at = 0;
    while let Ok(start) = lseek(segment, at, Whence::SeekData) {
        let end = lseek(segment, start, Whence::SeekHole).expect("the end of a file counts as a hole");
        let page = &mut bytes[..(end - start) as usize];
        segment.read_exact_at(page, start as u64).expect("the file is that long");
        if page.as_chunks::<8>().0.iter().any(|word| u64::from_le_bytes(*word) == SECRET) {
            return true;
        }
        at = end;
    }
    false
}

#[test]
fn the_search_for_the_secret_finds_it() {
    let segment = SegmentWriter::create("test", 1 << 20).expect("memory");
    let file = File::from(segment.fd().try_clone_to_owned().expect("dup"));
    let mut bytes = vec![0; 1 << 20];
    segment.store_u64(8192, 1, Relaxed);
    assert!(!holds_secret(&file, &mut bytes));
    segment.store_u64(500_000, SECRET, Relaxed);
    assert!(holds_secret(&file, &mut bytes));
}

#[test]
fn a_client_that_writes_garbage_ends_its_own_session_and_nothing_else() {
    run(async {
        let mut random = Random::from_environment();
        let scribbler = Scribbler::start(Random(random.next()));
        let (thing, lender): (Rc<Thing>, _) = (Rc::default(), lender());
        let (honest, _honest_host) = shm(Shape::default(), 1, &thing, &lender);
        let lent = honest.call(request(honest.root(), LEND, &[1])).await.expect("lent").leases[0];
        let opened = honest.call(request(honest.root(), OPEN, &[1, 1])).await.expect("opened").capabilities[0];
        let before = open_descriptors();

        let count = sessions(100_000);
        let (mut violations, mut survived, mut bytes) = (0u64, 0u64, vec![0; 1 << 20]);
        for n in 0..count {
            let mut hostile = HostileClient::new(&mut random, lent);
            let badge = Grant { object: [1, n], ..root() };
            let host = HostSession::start(hostile.fd(), badge, thing.clone(), info(2 + n), Some(lender.clone()));
            let host = host.expect("its header is right so far");
            // A third of them changes under the host's eyes, too.
            scribbler.aim(random.one_in(3).then(|| hostile.segment.clone()));
            for _ in 0..random.below(4) + 1 {
                for _ in 0..random.below(6) + 1 {
                    hostile.act(&mut random);
                }
                runtime::yield_now().await;
            }
            honest_call(&honest, n).await;
            if host.violation().is_some() {
                violations += 1;
            } else if host.is_open() {
                survived += 1;
            }
            scribbler.aim(None);
            let seen = host.fd().expect("shared memory").try_clone_to_owned().expect("dup");
            assert!(!holds_secret(&seen.into(), &mut bytes), "session {n} can read what it was not given");
        }
        let written = scribbler.stop();
        settle().await;

        println!("{count} sessions, {violations} ended for a violation, {survived} lived; {written} words scribbled");
        assert!(violations > count / 10 && survived > count / 100, "the garbage is not what it was meant to be");
        assert!(written > 0);
        // What the honest client had is still its own.
        honest.call(request(opened, ECHO, b"")).await.expect("its capability is alive");
        assert_eq!(lender.borrow().lent_count(), 1);
        lender.borrow_mut().release(info(1).client, lent.index, lent.generation).expect("its lease is alive");
        // Other tests of this program have some of their own.
        assert!(open_descriptors() < before + 100, "descriptors leak");
        assert_eq!(thing.begun.get(), thing.served.get(), "a handler was left behind");
    });
}

#[test]
fn a_segment_that_is_none_is_refused() {
    run(async {
        let (thing, lender): (Rc<Thing>, _) = (Rc::default(), lender());
        let open = |fd: OwnedFd| HostSession::start(fd, root(), thing.clone(), info(1), Some(lender.clone()));
        let refused = |fd: OwnedFd| matches!(open(fd), Err(OpenError::Violation(_)));
        let fd = |segment: &SegmentWriter| segment.fd().try_clone_to_owned().expect("dup");
        let segment = || shm::client_segment(Shape::default()).expect("a segment");
        assert!(open(fd(&segment())).is_ok());

        let mut random = Random::from_environment();
        for offset in [
            header::MAGIC,
            header::VERSION,
            header::SLOTS,
            header::EPOCH,
            header::RING_ENTRIES,
            header::WINDOW_BYTES,
            header::OUTSTANDING,
        ] {
            for _ in 0..100 {
                let segment = segment();
                let value = random.pick(&[0, 1, 5, 17, 64, 65, 4095, 1 << 16, 1 << 17, 1 << 31, u32::MAX]);
                let right = segment.load_u32(offset, Relaxed) == value || (offset == header::EPOCH && value == 1);
                if !right {
                    segment.store_u32(offset, value, Relaxed);
                    assert!(refused(fd(&segment)), "{value} at {offset}");
                }
            }
        }

        // Too short for its header, shorter than a header, not sealed, no memory at all.
        let short = SegmentWriter::create("short", 8192).expect("memory");
        let mut bytes = [0; 256];
        segment().copy_out(0, &mut bytes).expect("a header");
        short.copy_in(0, &bytes).expect("fits");
        assert!(refused(fd(&short)));
        assert!(refused(fd(&SegmentWriter::create("tiny", 64).expect("memory"))));
        let unsealed = segment::memfd("unsealed").expect("memory");
        segment::set_len(&unsealed, Shape::default().segment_bytes()).expect("memory");
        assert!(refused(unsealed));
        assert!(refused(std::fs::File::open("/dev/zero").expect("exists").into()));
    });
}

/// A host's half of a session in the hands of somebody hostile.
struct HostileHost {
    segment: Arc<SegmentWriter>,
    shape: Shape,
    position: u64,
}

impl HostileHost {
    fn new(shape: Shape, session: SessionId) -> HostileHost {
        let segment = SegmentWriter::create("hostile", shape.segment_bytes()).expect("a segment");
        segment.store_u64(header::MAGIC, wire::MAGIC_HOST, Relaxed);
        segment.store_u32(header::VERSION, wire::VERSION, Relaxed);
        segment.store_u32(header::SLOTS, u32::from(shape.slots) | u32::from(wire::CONTROL_SLOTS) << 16, Relaxed);
        segment.store_u64(header::EPOCH, 1, Relaxed);
        segment.store_u64(header::SESSION, session.get(), Relaxed);
        segment.store_u32(header::RING_ENTRIES, shape.ring_entries(), Relaxed);
        segment.store_u32(header::WINDOW_BYTES, shape.window_bytes, Relaxed);
        segment.store_u32(header::STATE, state::OPEN, Relaxed);
        segment.store_u32(header::CREDITS, u32::from(shape.slots), Relaxed);
        HostileHost { segment: Arc::new(segment), shape, position: 0 }
    }

    /// A completion of a call that may exist, right but for some of its fields.
    fn complete(&mut self, random: &mut Random) {
        let mut line = [0u64; 8];
        let slot = if random.one_in(20) { random.next() } else { random.below(u64::from(self.shape.all_slots())) };
        line[0] = u64::from(self.shape.lap(self.position)) | (slot & 0xffff) << 32 | (ECHO as u64) << 48;
        line[1] = random.pick(&[1, 1, 1, 1, 1, 2, 0, u64::MAX]);
        line[2] = random.pick(&[0, 1, 8, 16, 17, 1000, 4096, 1 << 32, 2 << 32 | 3 << 40 | 64, 16 << 32 | 8 << 40]);
        line[3] = random.pick(&[0, 0, 0, 1 | 7 << 16, 2 | 5 << 16, 2 | 2 << 8 | 12 << 16]);
        line[6] = random.next();
        if random.one_in(20) {
            line[1 + random.below(7) as usize] ^= 1 << random.below(64);
        }
        if random.one_in(20) {
            line = [0; 8].map(|_: u64| random.next());
        }
        self.segment.store_line(self.shape.entry_offset(self.position), &line);
        self.position += 1;
        if random.one_in(8) {
            let value = random.next();
            self.segment.store_u64(random.pick(&[header::TAIL, header::HEAD, header::WANTS_WAKE]), value, Release);
        }
        if random.one_in(40) {
            self.segment.store_u32(header::STATE, random.pick(&[0, 2, 9]), Release);
        }
    }
}

#[test]
fn a_host_that_writes_garbage_ends_its_own_session_and_every_call_of_it() {
    run(async {
        let mut random = Random::from_environment();
        let scribbler = Scribbler::start(Random(random.next()));
        let (thing, lender): (Rc<Thing>, _) = (Rc::default(), lender());
        let (honest, _honest_host) = shm(Shape::default(), 1, &thing, &lender);
        let (mut broken, mut answered, mut failed) = (0u64, 0u64, 0u64);
        let count = sessions(20_000);
        for n in 0..count {
            let shape = Shape { slots: random.pick(&[1, 4, 16]), ..Shape::default() };
            let mut hostile = HostileHost::new(shape, SessionId(2));
            let offer = Offer::new(shape).expect("a segment");
            let fd = hostile.segment.fd().try_clone_to_owned().expect("dup");
            let client = offer.open(fd, SessionId(2), Epoch(1)).expect("its header is right so far");
            scribbler.aim(random.one_in(3).then(|| hostile.segment.clone()));
            let calls: Vec<_> = (0..random.below(6) + 1)
                .map(|_| {
                    let client = client.clone();
                    runtime::spawn(async move { client.call(request(client.root(), ECHO, &[7; 40])).await })
                })
                .collect();
            client.release_handle(Handle { index: 3, generation: 4 });
            client.release_lease(LeaseName { lender: LenderId(1), ..LeaseName::default() });
            runtime::yield_now().await;
            for _ in 0..random.below(8) + 1 {
                hostile.complete(&mut random);
                if random.one_in(2) {
                    runtime::yield_now().await;
                }
            }
            runtime::yield_now().await;
            broken += u64::from(!client.is_open());
            client.close();
            for call in calls {
                match call.await.expect("not cancelled") {
                    Ok(_) => answered += 1,
                    Err(_) => failed += 1,
                }
            }
            scribbler.aim(None);
            honest_call(&honest, n).await;
        }
        scribbler.stop();
        println!("{count} sessions, {broken} broken off by the client; {answered} calls answered, {failed} failed");
        assert!(broken > count / 4 && broken < count, "the garbage is not what it was meant to be");
        assert!(answered > 0 && failed > 0);
    });
}

#[test]
fn a_lying_tail_does_not_keep_a_host_awake() {
    run_waiting(Waiting::Block, async {
        let (thing, lender): (Rc<Thing>, _) = (Rc::default(), lender());
        for lie in [1, 1 << 20, u64::MAX / 2] {
            let segment = shm::client_segment(Shape::default()).expect("a segment");
            let fd = segment.fd().try_clone_to_owned().expect("dup");
            let host = HostSession::start(fd, root(), thing.clone(), info(2), Some(lender.clone())).expect("opened");
            segment.store_u64(header::TAIL, lie, Release);
            // Seen when the host wants to sleep.
            while host.violation().is_none() {
                runtime::sleep(Duration::from_millis(1)).await;
            }
        }
    });
}
