//! What is measured of every peer, and how: 64 bytes there and back between two processes, each on a core of its own.
//!
//! - Depth 1: one call after the other; each is a sample.
//! - Depth 64: 64 calls outstanding all the time; calls a second.

use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

/// Payload each way.
pub const BYTES: usize = 64;
/// Calls outstanding in the deep rows.
pub const DEPTH: usize = 64;

/// The row format of Atoll's own comparisons of placements, and whose it is.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub peer: String,
    pub place: &'static str,
    pub wait: &'static str,
    pub pin: &'static str,
    pub size: usize,
    pub depth: usize,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub calls_per_s: f64,
}

/// A peer that is called by one thread, which sends and receives by itself.
pub trait Calls {
    /// Sends one request.
    fn send(&mut self);
    /// Waits for the answer to the oldest request.
    fn receive(&mut self);
}

/// Measures a peer of one thread at depth 1 and at [`DEPTH`].
pub fn of_calls(peer: &str, wait: &'static str, calls: &mut impl Calls, duration: Duration) -> Vec<Row> {
    let mut one = Sampler::new(duration);
    while one.goes_on() {
        calls.send();
        calls.receive();
        one.sample();
    }
    let mut deep = Sampler::new(duration);
    let mut sent: std::collections::VecDeque<Instant> = (0..DEPTH)
        .map(|_| {
            calls.send();
            Instant::now()
        })
        .collect();
    while deep.goes_on() {
        calls.receive();
        deep.took(sent.pop_front().expect("as many as the depth"));
        calls.send();
        sent.push_back(Instant::now());
    }
    (0..DEPTH).for_each(|_| calls.receive());
    vec![one.row(peer, wait, 1), deep.row(peer, wait, DEPTH)]
}

/// Measures a peer of futures, on a runtime of one thread, at depth 1 and at [`DEPTH`].
pub async fn of_futures<F: Future<Output = ()>>(
    peer: &str,
    wait: &'static str,
    call: impl Fn() -> F + 'static,
    duration: Duration,
) -> Vec<Row> {
    let mut one = Sampler::new(duration);
    while one.goes_on() {
        call().await;
        one.sample();
    }
    let call = Rc::new(call);
    let deep = Rc::new(std::cell::RefCell::new(Sampler::new(duration)));
    let callers = (0..DEPTH).map(|_| {
        let (call, deep) = (call.clone(), deep.clone());
        async move {
            while deep.borrow_mut().goes_on() {
                let begin = Instant::now();
                call().await;
                deep.borrow_mut().took(begin);
            }
        }
    });
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let callers: Vec<_> = callers.map(tokio::task::spawn_local).collect();
            for caller in callers {
                caller.await.expect("no caller panics");
            }
        })
        .await;
    let deep = deep.borrow();
    vec![one.row(peer, wait, 1), deep.row(peer, wait, DEPTH)]
}

struct Sampler {
    begin: Instant,
    end: Instant,
    last: Instant,
    latencies: Histogram<u64>,
}

impl Sampler {
    /// Warms up for a tenth of `duration` first.
    fn new(duration: Duration) -> Sampler {
        let begin = Instant::now() + duration / 10;
        let latencies = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid");
        Sampler { begin, end: begin + duration, last: Instant::now(), latencies }
    }

    fn goes_on(&mut self) -> bool {
        self.last < self.end
    }

    fn sample(&mut self) {
        self.took(self.last);
    }

    fn took(&mut self, since: Instant) {
        let now = Instant::now();
        if since >= self.begin {
            self.latencies.saturating_record((now - since).as_nanos() as u64);
        }
        self.last = now;
    }

    fn row(&self, peer: &str, wait: &'static str, depth: usize) -> Row {
        let at = |quantile| self.latencies.value_at_quantile(quantile);
        Row {
            peer: peer.into(),
            place: "process",
            wait,
            pin: if cores().is_some() { "apart" } else { "none" },
            size: BYTES,
            depth,
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            calls_per_s: self.latencies.len() as f64 / (self.last - self.begin).as_secs_f64(),
        }
    }
}

/// Two cores that this process may use.
pub fn cores() -> Option<(usize, usize)> {
    static CORES: std::sync::OnceLock<Option<(usize, usize)>> = std::sync::OnceLock::new();
    *CORES.get_or_init(|| {
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        Some((cores.next()?, cores.next()?))
    })
}

/// Keeps this thread, and those that it starts, on a core.
pub fn pin(core: usize) {
    let mut only = CpuSet::new();
    if only.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &only);
    }
}
