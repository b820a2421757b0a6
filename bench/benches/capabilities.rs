//! `cargo bench -p bench --bench capabilities`: what a look-up costs beside one dependent load, and what a revoke of 100,000
//! derived capabilities costs the calls of another session. `CYCLES=n` revokes. Run it with `chrt -r 1` where others compute.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kernel_ipc::capability::{Grant, Member, Realm, Terms};
use kernel_ipc::described::Details;
use kernel_ipc::interface::{Description, Operation, Retry};
use kernel_ipc::ledger::Tag;
use kernel_ipc::runtime::{self, Options, Runtime, Waiting};
use kernel_ipc::session::capability::{GRACE, Minting};
use kernel_ipc::session::{Call, ClientSession, HostSession, Offer, Request, Response, Served, Service, SessionInfo};
use kernel_ipc::wire::Shape;
use kernel_ipc::{Epoch, Handle, Incarnation, Rights, SessionId};

const ENTRIES: u32 = 1_000_000;
const STEPS: u32 = 2_000_000;
const ROUNDS: usize = 7;

const RIGHTS: Rights = Rights::READ.union(Rights::GRANT);
/// Sessions that hold what is revoked, and how much each derives.
const HOLDERS: u64 = 7;
const EACH: u32 = 14_300;

/// A line of memory as large as an entry.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u64; 8]);

fn main() {
    lookups();
    revokes();
}

/// One cycle through all indices, in random order: what comes after each.
fn cycle(length: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..length).collect();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for last in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(last, (state % last as u64) as usize);
    }
    order
}

fn lookups() {
    let next = cycle(ENTRIES);
    let mut realm = Realm::default();
    let me = realm.join(SessionId(1), ENTRIES, None);
    let grant = |index: u32| Grant { object: [next[index as usize].into(), 0], kind: 1, rights: RIGHTS, badge: 0 };
    let root = realm.first(me, grant(0)).expect("room");
    for index in 1..ENTRIES {
        let handle = realm.grant(me, root.index, grant(index), Tag::Session).expect("room");
        assert_eq!((handle.index, handle.generation), (index, 1));
    }
    let lines: Vec<Line> = next.iter().map(|next| Line([(*next).into(); 8])).collect();
    let lasting = Terms { rights: RIGHTS, expires: u64::MAX, ..Terms::default() };
    let mut small = Realm::default();
    let other = small.join(SessionId(1), 8, None);
    let first = small.first(other, grant(0)).expect("room");
    let expiring = small.mint(other, first.index, lasting, Tag::Session).expect("room");

    let (mut hot, mut timed, mut random, mut raw) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw.push(nanoseconds(|| {
            let mut at = 0;
            for _ in 0..STEPS {
                at = lines[at].0[0] as usize;
            }
            black_box(at);
        }));
        random.push(nanoseconds(|| {
            let mut at = 0;
            for _ in 0..STEPS {
                at = look_up(&realm, me, Handle { index: at, generation: 1 });
            }
            black_box(at);
        }));
        hot.push(nanoseconds(|| repeat(&small, other, first)));
        timed.push(nanoseconds(|| repeat(&small, other, expiring)));
    }
    let [hot, timed, random, raw] = [hot, timed, random, raw].map(median);
    println!("look-up, hot                                    {hot:7.2} ns");
    println!("look-up, hot, of one that expires               {timed:7.2} ns");
    println!("dependent load, random among 10^6 lines         {raw:7.2} ns");
    println!("look-up, random among 10^6 entries, dependent   {random:7.2} ns   {:.2} x", random / raw);
}

fn look_up(realm: &Realm, me: Member, handle: Handle) -> u32 {
    realm.lookup(me, handle, 1, Rights::READ, || 0).expect("live").object[0] as u32
}

/// As the session does it: handle, kind and rights are known only when the call comes.
fn repeat(realm: &Realm, me: Member, handle: Handle) {
    for _ in 0..STEPS {
        let (handle, kind, rights) = black_box((handle, 1, Rights::READ));
        let _ = black_box(realm.lookup(me, handle, kind, rights, monotonic));
    }
}

fn monotonic() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("it is there");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

fn nanoseconds(run: impl FnOnce()) -> f64 {
    let before = Instant::now();
    run();
    before.elapsed().as_nanos() as f64 / f64::from(STEPS)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

struct Null;

const NULL: u16 = 1;

const INTERFACE: Description = Description {
    name: "bench/1",
    kinds: &["Thing"],
    rights: &[("read", Rights::READ), ("grant", Rights::GRANT)],
    operations: &[Operation {
        number: NULL,
        name: "null",
        target_kind: 1,
        requires: Rights::READ,
        retry: Retry::Idempotent,
        deadline: None,
        at_once: false,
        handles: &[],
        signature: "",
    }],
    details: Details::none,
};

impl Service for Null {
    const INTERFACE: &'static Description = &INTERFACE;

    async fn serve(&self, _: &mut Call) -> Response {
        Response::default()
    }
}

fn info(id: u64) -> SessionInfo {
    SessionInfo {
        id: SessionId(id),
        epoch: Epoch(1),
        client: Incarnation(id),
        client_name: format!("client-{id}"),
        attenuation: serde_json::Value::Null,
    }
}

type Opening = (u64, OwnedFd, Sender<OwnedFd>);

/// The host: sessions of all, on one thread.
fn host(openings: &Receiver<Opening>, is_over: &AtomicBool) {
    let runtime = Runtime::new(Options { waiting: Waiting::Spin, ..Options::default() }).expect("io_uring");
    runtime.block_on(async {
        let served = Served::from(Rc::new(Null));
        let mut sessions = Vec::new();
        for _ in 0..HOLDERS + 2 {
            let (id, segment, reply) = openings.recv().expect("all come");
            let root = Grant { object: [0; 2], kind: 1, rights: RIGHTS, badge: 0 };
            let host = HostSession::start(segment, root, served.clone(), info(id), None).expect("opened");
            reply.send(host.fd().expect("shared memory").try_clone_to_owned().expect("dup")).expect("it waits");
            sessions.push(host);
        }
        while !is_over.load(SeqCst) {
            runtime::sleep(Duration::from_millis(5)).await;
        }
    });
}

fn open(id: u64, openings: &Sender<Opening>) -> ClientSession {
    let offer = Offer::new(Shape::default()).expect("a segment");
    let (reply, opened) = channel();
    openings.send((id, offer.fd().try_clone_to_owned().expect("dup"), reply)).expect("the host waits");
    let segment = opened.recv().expect("opened");
    offer.open(segment, SessionId(id), Epoch(1)).expect("opened")
}

/// One call, and how long it took.
async fn timed(session: &ClientSession, into: &mut Histogram<u64>) {
    let begun = Instant::now();
    let request = Request {
        operation: NULL,
        handle: session.root(),
        payload: &[],
        capabilities: &[],
        leases: &[],
        deadline: None,
        retry: Retry::Idempotent,
    };
    session.call(request).await.expect("it is nobody's business");
    into.record(begun.elapsed().as_nanos() as u64).expect("in range");
}

/// Derives so many capabilities from one, on several sessions.
async fn derive(giver: &ClientSession, holders: &[ClientSession]) -> Handle {
    let dir = giver.mint(giver.root(), Minting::with(RIGHTS)).await.expect("minted");
    for (holder, id) in holders.iter().zip(3..) {
        let (receiver, lasts) = (format!("client-{id}"), Duration::from_secs(600));
        let ticket = giver.provide(dir, &receiver, Minting::with(RIGHTS), lasts).await.expect("a ticket");
        let top = holder.redeem(ticket, 1).await.expect("redeemed");
        for _ in 0..EACH {
            // The last revoke's entries may not all have been taken out.
            while holder.mint(top, Minting::with(Rights::READ)).await.is_err() {
                runtime::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    dir
}

/// The calls of one session while another one's revoke goes on, beside as many just before. All clients are one thread, so that
/// two cores are enough for both ends.
fn revokes() {
    let cycles: u32 = std::env::var("CYCLES").ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(20);
    let (openings, opened) = channel::<Opening>();
    let is_over = Arc::new(AtomicBool::new(false));
    let host = thread::spawn({
        let is_over = is_over.clone();
        move || host(&opened, &is_over)
    });
    let runtime = Runtime::new(Options { waiting: Waiting::Spin, ..Options::default() }).expect("io_uring");
    let [mut control, mut during] = [(); 2].map(|()| Histogram::new(3).expect("a histogram"));
    let (mut revoked, mut spent, mut calls) = (0, Duration::ZERO, 10_000);
    runtime.block_on(async {
        let caller = open(1, &openings);
        let giver = open(2, &openings);
        let holders: Vec<_> = (3..3 + HOLDERS).map(|id| open(id, &openings)).collect();
        for _ in 0..cycles {
            let dir = derive(&giver, &holders).await;
            for _ in 0..calls {
                timed(&caller, &mut control).await;
            }
            let begun = Instant::now();
            let revoke = runtime::spawn({
                let giver = giver.clone();
                async move { giver.revoke(dir, false, GRACE).await }
            });
            calls = 0;
            while !revoke.is_finished() {
                timed(&caller, &mut during).await;
                calls += 1;
            }
            spent += begun.elapsed();
            revoked += revoke.await.expect("not cancelled").expect("revoked").revoked;
            // The entries are taken out after the answer: twice as many links as entries.
            for _ in 0..2 * calls {
                timed(&caller, &mut during).await;
            }
            calls *= 3;
        }
    });
    is_over.store(true, SeqCst);
    host.join().expect("it ends");
    let each = spent.as_secs_f64() * 1e3 / f64::from(cycles);
    println!("revoke of {} capabilities on {HOLDERS} sessions      {each:7.2} ms", revoked / u64::from(cycles));
    for (name, all) in [("before", &control), ("during", &during)] {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|quantile| all.value_at_quantile(quantile));
        let (calls, max) = (all.len(), all.max());
        println!(
            "calls of another session, {name}: {calls:>8}   p50 {p50:>5}   p99 {p99:>5}   p99.9 {p999:>6}   max {max:>9} ns"
        );
    }
    let ratio = during.value_at_quantile(0.999) as f64 / control.value_at_quantile(0.999) as f64;
    println!("p99.9 during / before                           {ratio:7.2} x");
}
