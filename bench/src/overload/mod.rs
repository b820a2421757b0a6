//! More calls than a host can serve, with what refuses early and without.
//!
//! * Open loop: calls come at their times whether or not others were answered, from [`SESSIONS`] sessions. What counts is
//!   *goodput*: answers within [`DEADLINE`] of the time at which the call was due, a second.
//! * The handler is [`WORK`] of arithmetic: processor time, of which the host's thread has one core. The generator has the
//!   other; it makes and loses calls faster than they are offered to it, and what it could not offer would be seen, because
//!   what it did offer is counted.
//! * The capacity is measured first: a few calls of each session outstanding, for ever.
//! * *On*: the host refuses what has waited for [`REFUSE_AFTER`], a session lets [`WAITERS`] callers wait for a slot. *Off*:
//!   neither has a limit. Turns are fair and deadlines are looked at either way.

pub mod plot;

use std::cell::Cell;
use std::hint::black_box;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kernel_ipc::interface::{Connect, Connection, Granted, NewCap};
use kernel_ipc::lease::Lend;
use kernel_ipc::runtime::{self, Options as RuntimeOptions, Runtime, Signal, Waiting};
use kernel_ipc::session::{Call, ClientSession, HostSession, Offer, SessionInfo};
use kernel_ipc::wire::Shape;
use kernel_ipc::{CallError, Cause, Epoch, Executed, Incarnation, Rights, SessionId};

use crate::ipc::null::{Client, Dispatcher, Handler, NullError, TheThing, compute};
use crate::ipc::{pin, two_cores};
use crate::report::{Row, Run, histogram};

/// Sessions of the host.
const SESSIONS: usize = 16;
/// Outstanding calls of each session while the capacity is measured.
const DEPTH: usize = 8;
/// Processor time of the handler.
const WORK: Duration = Duration::from_micros(20);
/// After it an answer is worth nothing.
const DEADLINE: Duration = Duration::from_millis(50);
/// The host's limit: callers have 50 ms, and can have waited for a slot before.
const REFUSE_AFTER: Duration = Duration::from_millis(10);
/// The clients' limit: a quarter of what a session may have outstanding.
const WAITERS: usize = 16;
/// What is offered, in times of the capacity.
const LOADS: [f64; 5] = [0.5, 1.0, 2.0, 4.0, 10.0];
/// Calls that may be under way in the generator: more than come while one deadline passes at ten times the capacity.
const CALLS_MAX: u64 = 1 << 16;

/// How to measure.
pub struct Options {
    /// How long each point of a curve takes, after a fifth of that to warm up.
    pub duration: Duration,
    /// How often each is measured; the best round counts.
    pub rounds: u32,
}

/// Measures both curves.
///
/// # Errors
/// When the system refuses memory, threads or rings.
pub fn run(options: &Options) -> io::Result<Run> {
    let mut run = Run::begin("overload");
    let work = Work::calibrated();
    let cores = two_cores();
    let measure = |name: &str, load: &Load| -> io::Result<Row> {
        // Whatever disturbs a round makes it worse.
        let mut best: Option<Row> = None;
        for _ in 0..options.rounds.max(1) {
            let row = point(work, cores, load)?.row(name, load.duration);
            if best.as_ref().is_none_or(|best| row.per_second > best.per_second) {
                best = Some(row);
            }
        }
        best.ok_or_else(|| io::Error::other("no round"))
    };
    let capacity = measure("capacity", &Load { on: true, rate: None, duration: options.duration })?;
    let rate = capacity.per_second;
    run.rows.push(capacity);
    for (name, on) in [("on", true), ("off", false)] {
        let mut rows = Vec::new();
        for load in LOADS {
            let asked = Load { on, rate: Some(rate * load), duration: options.duration };
            rows.push(measure(&format!("{name}, {load} x"), &asked)?);
        }
        let peak = rows.iter().max_by(|one, other| one.per_second.total_cmp(&other.per_second)).cloned();
        run.rows.extend(rows.into_iter().map(|row| match &peak {
            Some(peak) => row.rate_beside(peak),
            None => row,
        }));
    }
    run.notes.push(format!(
        "{SESSIONS} sessions, {} µs of work a call, answers count within {} ms; open loop; the ratio is to the best of the curve",
        WORK.as_micros(),
        DEADLINE.as_millis()
    ));
    run.notes.push(format!(
        "on: the host refuses after {} ms, {WAITERS} callers of a session wait for a slot; off: no limits; the best of {} rounds",
        REFUSE_AFTER.as_millis(),
        options.rounds
    ));
    if cores.is_none() {
        run.notes.push("one core only: the generator took its share of what was measured".into());
    }
    Ok(run)
}

/// One point of a curve.
struct Load {
    on: bool,
    /// Calls a second; `None`: as many as are answered.
    rate: Option<f64>,
    duration: Duration,
}

/// What became of the calls that were due in the measured time.
struct Tally {
    measures_from: Instant,
    offered: Cell<u64>,
    refused: Cell<u64>,
    under_way: Cell<u64>,
    latencies: std::cell::RefCell<Histogram<u64>>,
}

struct Point {
    offered: u64,
    refused: u64,
    latencies: Histogram<u64>,
}

impl Point {
    fn row(&self, name: &str, duration: Duration) -> Row {
        let seconds = duration.as_secs_f64();
        let mut row = Row::new(name, &self.latencies, seconds, 0);
        row.offered_per_second = Some(self.offered as f64 / seconds);
        row.refused_per_second = Some(self.refused as f64 / seconds);
        row
    }
}

fn point(work: Work, cores: Option<(usize, usize)>, load: &Load) -> io::Result<Point> {
    let offers: Vec<Offer> = (0..SESSIONS).map(|_| Offer::new(Shape::default())).collect::<io::Result<_>>()?;
    let segments = offers.iter().map(|offer| offer.fd().try_clone_to_owned()).collect::<io::Result<_>>()?;
    let limit = load.on.then_some(REFUSE_AFTER);
    let (host, theirs) = start_host(segments, work, limit, cores.map(|(_, other)| other))?;
    let before = pin(cores.map(|(one, _)| one));
    let runtime = Runtime::new(RuntimeOptions { waiting: Waiting::Spin, ..RuntimeOptions::default() })?;
    let measured = runtime.block_on(async {
        let mut clients = Vec::new();
        for (offer, (id, segment)) in offers.into_iter().zip((1..).zip(theirs)) {
            let session = offer.open(segment, SessionId(id), Epoch(1)).map_err(io::Error::other)?;
            session.limit_waiters(if load.on { WAITERS } else { usize::MAX });
            clients.push((session.clone(), Rc::new(Client::from_connection(Connection::fixed(session)))));
        }
        Ok::<_, io::Error>(generate(&clients, load).await)
    });
    drop(runtime);
    crate::ipc::unpin(before);
    host.join().map_err(|_| io::Error::other("the host's thread panicked"))??;
    measured
}

/// Makes the calls, and closes the sessions.
async fn generate(clients: &[(ClientSession, Rc<Client>)], load: &Load) -> Point {
    let start = Instant::now();
    let measures_from = start + load.duration / 5;
    let end = measures_from + load.duration;
    let tally = Rc::new(Tally {
        measures_from,
        offered: Cell::new(0),
        refused: Cell::new(0),
        under_way: Cell::new(0),
        latencies: histogram().into(),
    });
    match load.rate {
        None => {
            for (_, client) in clients.iter().flat_map(|client| std::iter::repeat_n(client, DEPTH)) {
                let (client, tally) = (client.clone(), tally.clone());
                runtime::spawn(async move {
                    while Instant::now() < end {
                        call(&client, &tally, Instant::now()).await;
                    }
                });
            }
            while Instant::now() < end {
                runtime::yield_now().await;
            }
        }
        Some(rate) => {
            let mut made = 0u64;
            for (_, client) in clients.iter().cycle() {
                let due = start + Duration::from_secs_f64(made as f64 / rate);
                if due >= end {
                    break;
                }
                while Instant::now() < due || tally.under_way.get() >= CALLS_MAX {
                    runtime::yield_now().await;
                }
                made += 1;
                let (client, tally) = (client.clone(), tally.clone());
                runtime::spawn(async move { call(&client, &tally, due).await });
                if made.is_multiple_of(32) {
                    // One that is behind must not stop looking at the answers.
                    runtime::yield_now().await;
                }
            }
        }
    }
    while tally.under_way.get() > 0 {
        runtime::yield_now().await;
    }
    clients.iter().for_each(|(session, _)| session.close());
    Point { offered: tally.offered.get(), refused: tally.refused.get(), latencies: tally.latencies.borrow().clone() }
}

/// One call that was due at `due`.
async fn call(client: &Client, tally: &Tally, due: Instant) {
    let count = |counter: &Cell<u64>| counter.set(counter.get() + 1);
    count(&tally.under_way);
    let result = client.null(client.root()).deadline(DEADLINE).await;
    tally.under_way.set(tally.under_way.get() - 1);
    if due < tally.measures_from {
        return;
    }
    count(&tally.offered);
    let took = due.elapsed();
    match result {
        Ok(()) if took <= DEADLINE => {
            tally.latencies.borrow_mut().saturating_record(took.as_nanos() as u64);
        }
        Err(CallError::Failed { cause: Cause::Busy { .. }, .. }) => count(&tally.refused),
        _ => {}
    }
}

type HostThread = JoinHandle<io::Result<()>>;

/// Starts the host's thread, which ends when the client has closed all sessions. Gives the host's segments.
fn start_host(
    segments: Vec<OwnedFd>,
    work: Work,
    limit: Option<Duration>,
    core: Option<usize>,
) -> io::Result<(HostThread, Vec<OwnedFd>)> {
    let (ours, theirs) = mpsc::channel();
    let thread = thread::spawn(move || {
        pin(core);
        let runtime = Runtime::new(RuntimeOptions { waiting: Waiting::Spin, ..RuntimeOptions::default() })?;
        runtime.block_on(async {
            let worker =
                Rc::new(Dispatcher(Worker { work, open: Rc::new(Cell::new(segments.len())), over: Rc::default() }));
            let mut sessions = Vec::new();
            for (id, segment) in (1..).zip(segments) {
                let root = NewCap::new(TheThing, Rights::READ).to_grant();
                let session =
                    HostSession::start(segment, root, worker.clone(), info(id), None).map_err(io::Error::other)?;
                session.refuse_after(limit);
                let fd = session.fd().ok_or_else(|| io::Error::other("no segment"))?.try_clone_to_owned()?;
                ours.send(fd).map_err(io::Error::other)?;
                sessions.push(session);
            }
            drop(ours);
            worker.0.over.wait().await;
            Ok(())
        })
    });
    let segments = theirs.iter().take(SESSIONS).collect();
    Ok((thread, segments))
}

fn info(id: u64) -> SessionInfo {
    SessionInfo {
        id: SessionId(id),
        epoch: Epoch(1),
        client: Incarnation(id),
        client_name: "bench".into(),
        attenuation: serde_json::Value::Null,
    }
}

/// Works for each call.
struct Worker {
    work: Work,
    /// Sessions that are still open; `over` is raised when none is.
    open: Rc<Cell<usize>>,
    over: Rc<Signal>,
}

impl Handler for Worker {
    type Thing = TheThing;

    fn null(&self, _: &Call, _: Granted<TheThing>) -> Result<(), CallError<NullError>> {
        self.work.perform();
        Ok(())
    }

    fn echo(&self, _: &Call, _: Granted<TheThing>, bytes: &[u8]) -> Result<Vec<u8>, CallError<NullError>> {
        Ok(bytes.to_vec())
    }

    fn count(&self, _: &Call, _: Granted<TheThing>) -> Result<u64, CallError<NullError>> {
        Ok(0)
    }

    async fn lend(&self, _: &Call, _: Granted<TheThing>, _: u32) -> Result<Lend, CallError<NullError>> {
        Err(CallError::Failed { cause: Cause::Refused, executed: Executed::No })
    }

    async fn work(&self, _: &Call, _: Granted<TheThing>, rounds: u32) -> Result<u64, CallError<NullError>> {
        Ok(compute(rounds.into()))
    }

    fn closed(&self, _: &SessionInfo) {
        self.open.set(self.open.get() - 1);
        if self.open.get() == 0 {
            self.over.raise();
        }
    }
}

/// So many steps of arithmetic take [`WORK`] on this machine when nothing else runs.
#[derive(Clone, Copy)]
struct Work {
    steps: u64,
}

impl Work {
    fn calibrated() -> Work {
        const STEPS: u64 = 100_000;
        // The shortest of many: the others were disturbed.
        let once = || {
            let begin = Instant::now();
            Work { steps: STEPS }.perform();
            begin.elapsed()
        };
        let shortest = (0..100).map(|_| once()).min().unwrap_or(WORK).max(Duration::from_nanos(1));
        Work { steps: (STEPS as f64 * WORK.as_secs_f64() / shortest.as_secs_f64()) as u64 }
    }

    fn perform(self) {
        black_box(compute(self.steps));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_curves_are_measured_and_every_call_is_accounted_for() {
        let run = run(&Options { duration: Duration::from_millis(100), rounds: 1 }).expect("measured");
        let names: Vec<&str> = run.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names.len(), 1 + 2 * LOADS.len(), "{names:?}");
        for row in &run.rows {
            let offered = row.offered_per_second.expect("counted");
            assert!(row.per_second + row.refused_per_second.expect("counted") <= offered * 1.001, "{row:?}");
        }
        let (on, off) = ("on, 10 x", "off, 10 x");
        let find = |name: &str| run.rows.iter().find(|row| row.name == name).expect("measured");
        assert!(find(on).refused_per_second > Some(0.0), "too much is refused: {:?}", find(on));
        assert_eq!(find(off).refused_per_second, Some(0.0), "nothing is refused: {:?}", find(off));
        let plot = plot::svg(&run);
        assert_eq!(plot.matches("<polyline").count(), 2, "{plot}");
    }
}
