//! Null calls beside raw ping-pong of the same mode.
//!
//! * A null call goes through everything that a real one does: generated client, slot, descriptor, capability look-up,
//!   rights, dispatcher, handler, and back. Client and host are two threads with a runtime each, on two cores where
//!   there are two; they share nothing but the session's two segments.
//! * The floor is the same exchange of one word each way, without anything around it: both sides spinning on a cache
//!   line, or both sleeping on a futex word.
//! * One clock reading is part of every sample; its own cost is measured and taken off.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kernel_ipc::interface::{Connect, Connection, Granted, NewCap, Object, OperationError, interface};
use kernel_ipc::runtime::{self, Options as RuntimeOptions, Runtime, Waiting, WordAddress};
use kernel_ipc::session::{Call, HostSession, Offer, SessionInfo};
use kernel_ipc::sys::futex;
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Epoch, Incarnation, Rights, SessionId};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::report::{Row, Run, histogram};

/// Calls that do nothing.
#[interface("atoll.null/1")]
pub trait Null {
    /// Something to call.
    type Thing;

    /// Call it.
    const READ: Rights;

    /// Does nothing.
    #[op(1, requires = READ, retry = idempotent, deadline = "5s")]
    fn null(thing: Thing) -> Result<(), NullError>;

    /// Returns the bytes.
    #[op(2, requires = READ, retry = idempotent, deadline = "5s")]
    fn echo(thing: Thing, bytes: &[u8]) -> Result<Vec<u8>, NullError>;
}

/// Never happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum NullError {
    /// It cannot.
    Impossible = 1,
}

struct TheThing;

impl Object for TheThing {
    type Kind = Thing;

    fn to_words(&self) -> [u64; 2] {
        [0; 2]
    }

    fn from_words(_: [u64; 2]) -> Self {
        TheThing
    }
}

struct Nothing;

impl Handler for Nothing {
    type Thing = TheThing;

    async fn null(&self, _: &Call, _: Granted<TheThing>) -> Result<(), CallError<NullError>> {
        Ok(())
    }

    async fn echo(&self, _: &Call, _: Granted<TheThing>, bytes: &[u8]) -> Result<Vec<u8>, CallError<NullError>> {
        Ok(bytes.to_vec())
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long each row takes, warming up not counted.
    pub duration: Duration,
    /// Calls outstanding in the rows that have many.
    pub depth: u16,
    /// Only the rows whose name contains this.
    pub only: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options { duration: Duration::from_secs(1), depth: 32, only: None }
    }
}

/// Measures all rows.
///
/// # Errors
/// When the system refuses memory, threads or rings.
pub fn run(options: &Options) -> io::Result<Run> {
    let mut run = Run::begin("ipc");
    let cores = two_cores();
    let wanted = |name: &str| options.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let place = match cores {
        Some((client, host)) => format!("client on core {client}, host on core {host}"),
        None => "client and host share one core".into(),
    };
    run.notes.push(format!("{place}; {} ns for the clock were taken off each sample", clock_cost()));

    let modes = [(Waiting::Spin, "spin", cores.is_some()), (Waiting::Block, "block", true)];
    for (waiting, mode, possible) in modes {
        if !possible {
            run.notes.push(format!("{mode}: skipped: both sides would need a core of their own"));
            continue;
        }
        let name = format!("raw ping-pong, {mode}");
        let floor = raw(&name, waiting, cores, options.duration)?;
        for (what, bytes) in [("null call", None), ("64-byte call", Some(64)), ("4096-byte call", Some(4000))] {
            let name = format!("{what}, {mode}");
            if wanted(&name) {
                let row = calls(&name, waiting, cores, 1, bytes, options.duration)?;
                run.rows.push(row.median_beside(&floor));
            }
        }
        run.rows.push(floor);
    }
    let name = "null call, adaptive";
    if wanted(name) {
        run.rows.push(calls(name, Waiting::Adaptive, cores, 1, None, options.duration)?);
    }
    let name = "null call, both ends in one thread";
    if wanted(name) {
        run.rows.push(one_thread(name, options.duration)?);
        run.notes
            .push("both ends in one thread: what client, host and two turns of a runtime cost by themselves".into());
    }
    for (waiting, mode) in [(Waiting::Spin, "spin"), (Waiting::Adaptive, "adaptive"), (Waiting::Block, "block")] {
        let name = format!("null calls, {} outstanding, {mode}", options.depth);
        if wanted(&name) && (cores.is_some() || waiting != Waiting::Spin) {
            run.rows.push(calls(&name, waiting, cores, options.depth, None, options.duration)?);
        }
    }
    // Floors first, as a reader looks for them.
    run.rows.sort_by_key(|row| row.floor.is_some() || !row.name.starts_with("raw"));
    Ok(run)
}

/// One word each way, from one thread to another and back.
fn raw(name: &str, waiting: Waiting, cores: Option<(usize, usize)>, duration: Duration) -> io::Result<Row> {
    /// A word on a cache line of its own, and the line beside it that the processor fetches with it.
    #[repr(align(128))]
    struct Line(AtomicU32);

    const STOP: u32 = u32::MAX;
    let words = Arc::new((Line(AtomicU32::new(0)), Line(AtomicU32::new(0))));
    let wait_while = move |word: &AtomicU32, old: u32| loop {
        let new = word.load(Acquire);
        if new != old {
            return new;
        }
        match waiting {
            Waiting::Spin => std::hint::spin_loop(),
            _ => {
                let wait = futex::Wait { word: WordAddress::of(word), expected: old };
                let _ = futex::wait_any(&[wait], None);
            }
        }
    };
    let wake = move |word: &AtomicU32| {
        if waiting != Waiting::Spin {
            futex::wake(WordAddress::of(word), 1);
        }
    };
    let host = std::thread::spawn({
        let words = words.clone();
        move || {
            pin(cores.map(|(_, host)| host));
            let mut seen = 0;
            while seen != STOP {
                seen = wait_while(&words.0.0, seen);
                words.1.0.store(seen, Release);
                wake(&words.1.0);
            }
        }
    });
    let before = pin(cores.map(|(client, _)| client));
    let mut seen = 0;
    let row = sample(name, duration, || {
        let next = (seen + 1) % STOP;
        words.0.0.store(next, Release);
        wake(&words.0.0);
        wait_while(&words.1.0, seen);
        seen = next;
    });
    words.0.0.store(STOP, Release);
    wake(&words.0.0);
    let joined = host.join();
    unpin(before);
    joined.map_err(|_| io::Error::other("the raw host panicked"))?;
    Ok(row)
}

/// Repeats `once` for `duration`, after a tenth of it to warm up.
fn sample(name: &str, duration: Duration, mut once: impl FnMut()) -> Row {
    let clock = clock_cost();
    let warm = Instant::now() + duration / 10;
    while Instant::now() < warm {
        once();
    }
    let mut latencies = histogram();
    let begin = Instant::now();
    let mut last = begin;
    while last < begin + duration {
        once();
        let now = Instant::now();
        record(&mut latencies, now - last, clock);
        last = now;
    }
    Row::new(name, &latencies, (last - begin).as_secs_f64(), 0)
}

fn record(latencies: &mut Histogram<u64>, took: Duration, clock: u64) {
    latencies.saturating_record((took.as_nanos() as u64).saturating_sub(clock).max(1));
}

/// Calls of a host in another thread, `depth` at a time.
fn calls(
    name: &str,
    waiting: Waiting,
    cores: Option<(usize, usize)>,
    depth: u16,
    bytes: Option<usize>,
    duration: Duration,
) -> io::Result<Row> {
    let shape = Shape { slots: depth.clamp(16, 64), ..Shape::default() };
    let offer = Offer::new(shape)?;
    let client_segment = offer.fd().try_clone_to_owned()?;
    let (send_segment, segment) = mpsc::channel();
    let host = std::thread::spawn(move || {
        pin(cores.map(|(_, host)| host));
        serve(client_segment, waiting, &send_segment)
    });
    let segment = segment.recv().map_err(|_| io::Error::other("the host did not open the session"))?;

    let before = pin(cores.map(|(client, _)| client));
    let runtime = Runtime::new(RuntimeOptions { waiting, ..RuntimeOptions::default() })?;
    let row = runtime.block_on(async {
        let session = offer.open(segment, SESSION, EPOCH).map_err(io::Error::other)?;
        let client = Rc::new(Client::from_connection(Connection::fixed(session)));
        let payload = bytes.map(|bytes| vec![7u8; bytes]);
        let begin = Instant::now() + duration / 10;
        let end = begin + duration;
        let callers: Vec<_> =
            (0..depth).map(|_| runtime::spawn(caller(client.clone(), payload.clone(), begin, end))).collect();
        let mut latencies = histogram();
        for caller in callers {
            let theirs = caller.await.map_err(|_| io::Error::other("a caller was cancelled"))?;
            latencies.add(theirs.map_err(io::Error::other)?).map_err(io::Error::other)?;
        }
        let moved = latencies.len() * 2 * bytes.unwrap_or(0) as u64;
        Ok::<_, io::Error>(Row::new(name, &latencies, begin.elapsed().as_secs_f64(), moved))
    });
    drop(runtime);
    unpin(before);
    host.join().map_err(|_| io::Error::other("the host panicked"))??;
    row
}

/// Calls over shared memory of a host in this very thread: no line moves between cores, nobody waits.
fn one_thread(name: &str, duration: Duration) -> io::Result<Row> {
    let runtime = Runtime::new(RuntimeOptions { waiting: Waiting::Spin, ..RuntimeOptions::default() })?;
    runtime.block_on(async {
        let offer = Offer::new(Shape::default())?;
        let host = host(offer.fd().try_clone_to_owned()?)?;
        let fd = host.fd().ok_or_else(|| io::Error::other("no segment"))?.try_clone_to_owned()?;
        let session = offer.open(fd, SESSION, EPOCH).map_err(io::Error::other)?;
        let client = Rc::new(Client::from_connection(Connection::fixed(session)));
        let begin = Instant::now() + duration / 10;
        let latencies = caller(client, None, begin, begin + duration).await.map_err(io::Error::other)?;
        Ok(Row::new(name, &latencies, begin.elapsed().as_secs_f64(), 0))
    })
}

const SESSION: SessionId = SessionId(1);
const EPOCH: Epoch = Epoch(1);

async fn caller(
    client: Rc<Client>,
    payload: Option<Vec<u8>>,
    begin: Instant,
    end: Instant,
) -> Result<Histogram<u64>, CallError<NullError>> {
    let clock = clock_cost();
    let root = client.root();
    let mut latencies = histogram();
    let mut last = Instant::now();
    while last < end {
        match &payload {
            None => client.null(root).await?,
            Some(bytes) => assert_eq!(client.echo(root, bytes).await?.len(), bytes.len()),
        }
        let now = Instant::now();
        if last >= begin {
            record(&mut latencies, now - last, clock);
        }
        last = now;
    }
    Ok(latencies)
}

/// The host's thread: serves until the client closes the session.
fn serve(client_segment: OwnedFd, waiting: Waiting, segment: &mpsc::Sender<OwnedFd>) -> io::Result<()> {
    let runtime = Runtime::new(RuntimeOptions { waiting, ..RuntimeOptions::default() })?;
    runtime.block_on(async {
        let session = host(client_segment)?;
        let fd = session.fd().ok_or_else(|| io::Error::other("no segment"))?;
        segment.send(fd.try_clone_to_owned()?).map_err(io::Error::other)?;
        while session.is_open() {
            runtime::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    })
}

/// The host end of the one session.
fn host(client_segment: OwnedFd) -> io::Result<HostSession> {
    let info = SessionInfo {
        id: SESSION,
        epoch: EPOCH,
        client: Incarnation(2),
        client_name: "bench".into(),
        attenuation: serde_json::Value::Null,
    };
    let root = NewCap::new(TheThing, Rights::READ).to_grant();
    HostSession::start(client_segment, root, Rc::new(Dispatcher(Nothing)), info, None).map_err(io::Error::other)
}

/// Nanoseconds that one reading of the clock takes.
fn clock_cost() -> u64 {
    let mut least = u64::MAX;
    for _ in 0..1000 {
        let begin = Instant::now();
        least = least.min(begin.elapsed().as_nanos() as u64);
    }
    least
}

/// Two cores that this process may use, if it may use two.
fn two_cores() -> Option<(usize, usize)> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    Some((cores.next()?, cores.next()?))
}

/// Keeps this thread on a core. Gives what it was allowed before.
fn pin(core: Option<usize>) -> Option<CpuSet> {
    let before = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut only = CpuSet::new();
    only.set(core?).ok()?;
    sched_setaffinity(Pid::from_raw(0), &only).ok()?;
    Some(before)
}

fn unpin(before: Option<CpuSet>) {
    if let Some(before) = before {
        let _ = sched_setaffinity(Pid::from_raw(0), &before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_measured() {
        let run = run(&Options { duration: Duration::from_millis(50), ..Options::default() }).expect("measured");
        let names: Vec<&str> = run.rows.iter().map(|row| row.name.as_str()).collect();
        for name in ["raw ping-pong, block", "null call, block", "64-byte call, block", "null call, adaptive"] {
            let row = run.rows.iter().find(|row| row.name == name);
            let row = row.unwrap_or_else(|| panic!("{name} is missing from {names:?}"));
            assert!(row.count > 0 && row.p50_ns > 0, "{row:?}");
        }
    }
}
