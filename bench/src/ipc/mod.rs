//! Null calls beside raw ping-pong of the same mode, on the same processors, in the same run.
//!
//! * A null call goes through everything that a real one does: generated client, slot, descriptor, capability look-up,
//!   rights, dispatcher, handler, and back. Client and host are two processes that share nothing but the session's two
//!   segments.
//! * The floor is probed right before what is compared with it: one word each way between the same two processes.
//! * Places: each on a core of its own ("apart"), both on one core ("together"), or wherever the kernel puts them
//!   ("anywhere").
//! * One clock reading is part of every sample; its own cost is measured and taken off.

pub mod component;
mod crowd;
mod floor;
pub mod host;
mod lent;
pub(crate) mod null;
pub mod places;
pub mod reactors;

use std::io;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kernel_ipc::CallError;
use kernel_ipc::interface::{Connect, Connection};
use kernel_ipc::lease::Holder;
use kernel_ipc::logbook::{self, Logbook};
use kernel_ipc::runtime::{self, Options as RuntimeOptions, Runtime, Waiting};
use kernel_ipc::session::{ClientSession, HostSession, Offer, in_process};
use kernel_ipc::wire::Shape;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use self::floor::RawMode;
use self::host::{EPOCH, Host, SESSION, Task, TaskKind, thread_cpu};
use self::null::{Client, Dispatcher, Nothing, NullError};
use crate::report::{Row, Run, histogram};

/// What to measure.
pub struct Options {
    /// How long each row takes, warming up not counted.
    pub duration: Duration,
    /// Only the rows whose name contains this, and their floors.
    pub only: Option<String>,
    /// Starts the other process, which must call [`host::main`].
    pub host: Command,
}

/// Where client and host run.
struct Place {
    name: &'static str,
    client: Option<usize>,
    host: Option<usize>,
}

/// Null calls of one kind.
#[derive(Clone, Copy)]
struct Calls {
    waiting: Waiting,
    depth: u16,
    /// Payload each way.
    bytes: usize,
    /// Of the class `cached`.
    cached: bool,
}

/// Results from here on are lent, and smaller ones come in the reply.
const LENT_FROM: usize = 8192;

/// How client and host are joined in one thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Near {
    /// Through segments, as between processes.
    Shared,
    /// As `Shared`, and both ends write into a logbook, as in a node.
    Logged,
    /// As `Logged`, and every call is traced.
    Traced,
    /// Over the link that a server inside its client has.
    InProcess,
    /// As `Shared`, with calls that may not run twice; the host would forget them.
    NoLedger,
    /// The host keeps the answers.
    Ledger,
    /// The host keeps the answers and what the calls did.
    Effect,
}

impl Calls {
    fn name(&self, place: &Place) -> String {
        let what = match self.bytes {
            0 => "null call".into(),
            bytes => format!("{bytes}-byte call"),
        };
        let waiting = match self.waiting {
            Waiting::Spin => "spin",
            Waiting::Adaptive => "adaptive",
            Waiting::Block => "block",
        };
        match self.depth {
            1 => format!("{what}, {waiting}, {}", place.name),
            depth => format!("{what}, {waiting}, {}, {depth} outstanding", place.name),
        }
    }
}

/// Measures all rows.
///
/// # Errors
/// When the system refuses memory, processes or rings.
pub fn run(options: Options) -> io::Result<Run> {
    let Options { duration, only, host: command } = options;
    let mut run = Run::begin("ipc");
    run.notes.push(format!("{} ns for the clock were taken off each sample", clock_cost()));
    run.notes.push("system calls are the host's, for each call; processor time is both sides' for each call".into());
    let wanted = |name: &str| only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let host = Host::start(command)?;

    let first = |waiting| Calls { waiting, depth: 1, bytes: 0, cached: false };
    let sizes = |waiting| [0, 64, 4096 - 96].map(|bytes| Calls { bytes, ..first(waiting) }).to_vec();
    let deep = |waiting| [8, 32, 64].map(|depth| Calls { depth, ..first(waiting) }).to_vec();
    for place in places() {
        let apart = place.client != place.host;
        let raw = if apart { RawMode::Spin } else { RawMode::Yield };
        let mut groups = vec![(Some(RawMode::Futex), vec![first(Waiting::Block)])];
        match place.name {
            "apart" => {
                groups.insert(0, (Some(raw), sizes(Waiting::Spin)));
                groups[1].1 = sizes(Waiting::Block);
                groups.push((None, vec![first(Waiting::Adaptive)]));
                groups.extend([Waiting::Spin, Waiting::Adaptive, Waiting::Block].map(|waiting| (None, deep(waiting))));
            }
            "together" => groups.insert(0, (Some(raw), vec![first(Waiting::Spin), first(Waiting::Adaptive)])),
            _ => groups.push((None, [vec![first(Waiting::Adaptive)], deep(Waiting::Adaptive)].concat())),
        }
        for (mode, rows) in groups {
            let rows: Vec<Calls> = rows.into_iter().filter(|calls| wanted(&calls.name(&place))).collect();
            if rows.is_empty() {
                continue;
            }
            let floor = mode.map(|mode| floor::measure(&host, mode, &place, duration)).transpose()?;
            for calls in rows {
                let row = measure(&host, &calls, &place, duration)?;
                run.rows.push(match &floor {
                    Some(floor) => row.median_beside(floor),
                    None => row,
                });
            }
            run.rows.extend(floor);
        }
    }
    if let Some(apart) = places().iter().find(|place| place.name == "apart")
        && wanted("1000 sessions")
    {
        let single = run.rows.iter().find(|row| row.name == "null call, spin, apart").cloned();
        crowd::add(&mut run, &host, apart, single.as_ref(), duration)?;
    }
    for (name, near) in [
        ("null call, both ends in one thread", Near::Shared),
        ("null call, both ends in one thread, with a logbook", Near::Logged),
        ("null call, both ends in one thread, traced", Near::Traced),
        ("null call, in process", Near::InProcess),
    ] {
        if wanted(name) {
            let (latencies, seconds) = one_thread(near, duration)?;
            run.rows.push(Row::new(name, &latencies, seconds, 0));
        }
    }
    let ledgers = [
        ("cached call, both ends in one thread, no ledger", Near::NoLedger),
        ("cached call, both ends in one thread, ledger", Near::Ledger),
        ("cached call, both ends in one thread, ledger and effect", Near::Effect),
    ];
    run.rows.extend(in_turns(&ledgers.map(|(name, near)| (name, near, wanted(name))), duration)?);
    // Floors first, as a reader looks for them.
    run.rows.sort_by_key(|row| !row.name.starts_with("raw"));
    Ok(run)
}

/// What this machine can offer.
fn places() -> Vec<Place> {
    match two_cores() {
        Some((one, other)) => vec![
            Place { name: "apart", client: Some(one), host: Some(other) },
            Place { name: "together", client: Some(one), host: Some(one) },
            Place { name: "anywhere", client: None, host: None },
        ],
        None => vec![Place { name: "together", client: None, host: None }],
    }
}

/// Calls of the host in the other process.
fn measure(host: &Host, calls: &Calls, place: &Place, duration: Duration) -> io::Result<Row> {
    measure_task(host, TaskKind::Calls(calls.waiting), calls, place, duration)
}

/// The same for a host that does more than that.
fn measure_task(host: &Host, kind: TaskKind, calls: &Calls, place: &Place, duration: Duration) -> io::Result<Row> {
    let shape = Shape { slots: calls.depth.clamp(16, 64), ..Shape::default() };
    let offer = Offer::new(shape)?;
    let task = Task { core: place.host, kind };
    let mut descriptors = host.begin_all(task, &[offer.fd()])?.into_iter();
    let mut next = || descriptors.next().ok_or_else(|| io::Error::other("the host opened no session"));
    let (segment, table, region) = (next()?, next()?, next()?);
    let holder = lent::holder(table, region)?;
    let before = pin(place.client);
    let runtime = Runtime::new(RuntimeOptions { waiting: calls.waiting, ..RuntimeOptions::default() })?;
    let measured = runtime.block_on(async {
        let session = offer.open(segment, SESSION, EPOCH).map_err(io::Error::other)?;
        let client = Rc::new(Client::from_connection(Connection::fixed(session)));
        let cpu = thread_cpu();
        let (latencies, seconds) = many(&client, calls, Some(&holder), duration).await?;
        Ok::<_, io::Error>((latencies, seconds, thread_cpu() - cpu))
    });
    drop(runtime);
    unpin(before);
    let (latencies, seconds, cpu) = measured?;
    let account = host.end()?;
    let moved = latencies.len() * 2 * calls.bytes as u64;
    let mut row = Row::new(calls.name(place), &latencies, seconds, moved);
    let each = |total: u64| Some(total as f64 / account.calls.max(1) as f64);
    row.cpu_ns = each(cpu + account.cpu_ns);
    row.system_calls = each(account.system_calls);
    Ok(row)
}

/// Both ends of a session in this thread, joined like this.
///
/// # Errors
/// When the system refuses memory.
///
/// # Panics
/// Outside a runtime.
pub fn near(near: Near) -> io::Result<(ClientSession, HostSession)> {
    let mut service = Nothing::default();
    if near == Near::InProcess {
        return Ok(in_process(Shape::default(), host::root(), Rc::new(Dispatcher(service)), host::info(), None));
    }
    service.effects = (near == Near::Effect).then(host::ring).transpose()?;
    let offer = Offer::new(Shape::default())?;
    let segment = offer.fd().try_clone_to_owned()?;
    let survives = matches!(near, Near::Ledger | Near::Effect);
    let host = if survives { host::open_surviving(segment, service) } else { host::open(segment, service) }?;
    let fd = host.fd().ok_or_else(|| io::Error::other("no segment"))?.try_clone_to_owned()?;
    let session = match survives {
        true => offer.open_surviving(fd, SESSION, EPOCH),
        false => offer.open(fd, SESSION, EPOCH),
    };
    Ok((session.map_err(io::Error::other)?, host))
}

/// Turns of each row that stands beside others.
const TURNS: u32 = 10;

/// Those rows that are wanted, each for `duration` in all, a part of it after the other: what slows the machine down for a second slows
/// down all of them.
fn in_turns(rows: &[(&'static str, Near, bool)], duration: Duration) -> io::Result<Vec<Row>> {
    let wanted = || rows.iter().filter(|(_, _, wanted)| *wanted);
    let mut sums: Vec<_> = wanted().map(|_| (histogram(), 0.0)).collect();
    for _ in 0..TURNS {
        for ((_, near, _), (latencies, seconds)) in wanted().zip(&mut sums) {
            let (theirs, took) = one_thread(*near, duration / TURNS)?;
            latencies.add(theirs).map_err(io::Error::other)?;
            *seconds += took;
        }
    }
    Ok(wanted().zip(&sums).map(|((name, ..), (latencies, seconds))| Row::new(*name, latencies, *seconds, 0)).collect())
}

/// Calls of a host in this very thread: nobody waits, no line moves between cores.
fn one_thread(near: Near, duration: Duration) -> io::Result<(Histogram<u64>, f64)> {
    let runtime = Runtime::new(RuntimeOptions { waiting: Waiting::Spin, ..RuntimeOptions::default() })?;
    runtime.block_on(async {
        let (session, host) = self::near(near)?;
        let mut traced: Option<Rc<Logbook>> = None;
        if matches!(near, Near::Logged | Near::Traced) {
            let book = Logbook::open(host::memory(logbook::BYTES)?, EPOCH)?;
            host.log_to(&book, "null");
            session.log_to(&book, "bench.null", Client::INTERFACE);
            book.trace(if near == Near::Traced { 1 } else { 0 });
            traced = Some(book);
        }
        let client = Rc::new(Client::from_connection(Connection::fixed(session)));
        let cached = !matches!(near, Near::Shared | Near::Logged | Near::Traced | Near::InProcess);
        let calls = Calls { waiting: Waiting::Spin, depth: 1, bytes: 0, cached };
        let measured = many(&client, &calls, None, duration).await?;
        if let Some(book) = traced {
            book.trace(0);
        }
        Ok(measured)
    })
}

/// Keeps calls outstanding for `duration`, after a tenth of it to warm up.
/// `holder` reads what is lent, if calls are so large.
async fn many(
    client: &Rc<Client>,
    calls: &Calls,
    holder: Option<&Rc<Holder>>,
    duration: Duration,
) -> io::Result<(Histogram<u64>, f64)> {
    let begin = Instant::now() + duration / 10;
    let end = begin + duration;
    let mut latencies = histogram();
    if calls.depth == 1 {
        // In the main task, as a program that makes one call after the other does.
        latencies = caller(client.clone(), *calls, holder.cloned(), begin, end).await.map_err(io::Error::other)?;
        return Ok((latencies, begin.elapsed().as_secs_f64()));
    }
    let callers: Vec<_> =
        (0..calls.depth).map(|_| runtime::spawn(caller(client.clone(), *calls, holder.cloned(), begin, end))).collect();
    for caller in callers {
        let theirs = caller.await.map_err(|_| io::Error::other("a caller was cancelled"))?;
        latencies.add(theirs.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    Ok((latencies, begin.elapsed().as_secs_f64()))
}

async fn caller(
    client: Rc<Client>,
    calls: Calls,
    holder: Option<Rc<Holder>>,
    begin: Instant,
    end: Instant,
) -> Result<Histogram<u64>, CallError<NullError>> {
    let clock = clock_cost();
    let root = client.root();
    let bytes = calls.bytes;
    let mut payload = vec![7u8; bytes];
    let mut latencies = histogram();
    let mut last = Instant::now();
    // At least one, however busy the machine is.
    while last < end || latencies.is_empty() {
        match bytes {
            0 if calls.cached => drop(client.count(root).await?),
            0 => client.null(root).await?,
            LENT_FROM.. => {
                let lease = client.lend(root, u32::try_from(bytes).unwrap_or(u32::MAX)).await?;
                let holder = holder.as_ref().expect("calls so large are made with one");
                holder.read(&lease.name(), 0, &mut payload).expect("it is held");
            }
            _ => assert_eq!(client.echo(root, &payload).await?.len(), bytes),
        }
        let now = Instant::now();
        if last >= begin {
            record(&mut latencies, now - last, clock);
        }
        last = now;
    }
    Ok(latencies)
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
    while last < begin + duration || latencies.is_empty() {
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
pub(crate) fn two_cores() -> Option<(usize, usize)> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
    Some((cores.next()?, cores.next()?))
}

/// Keeps this thread on a core. Gives what it was allowed before.
pub(crate) fn pin(core: Option<usize>) -> Option<CpuSet> {
    let before = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut only = CpuSet::new();
    only.set(core?).ok()?;
    sched_setaffinity(Pid::from_raw(0), &only).ok()?;
    Some(before)
}

pub(crate) fn unpin(before: Option<CpuSet>) {
    if let Some(before) = before {
        let _ = sched_setaffinity(Pid::from_raw(0), &before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host's program, when this test program is started as one.
    #[test]
    fn host_process() {
        if std::env::var_os("ATOLL_BENCH_HOST").is_some() {
            let _ = host::main();
            std::process::exit(0);
        }
    }

    pub(super) fn options() -> Options {
        let mut host = Command::new(std::env::current_exe().expect("own program"));
        host.args(["--exact", "ipc::tests::host_process", "--nocapture"]).env("ATOLL_BENCH_HOST", "1");
        Options { duration: Duration::from_millis(20), only: None, host }
    }

    #[test]
    fn every_row_is_measured_and_those_with_a_floor_are_compared() {
        let run = run(options()).expect("measured");
        let names: Vec<&str> = run.rows.iter().map(|row| row.name.as_str()).collect();
        for name in ["raw ping-pong, futex, together", "null call, block, together", "null call, in process"] {
            let row = run.rows.iter().find(|row| row.name == name);
            let row = row.unwrap_or_else(|| panic!("{name} is missing from {names:?}"));
            assert!(row.count > 0 && row.p50_ns > 0, "{row:?}");
        }
        let block = run.rows.iter().find(|row| row.name == "null call, block, together").expect("seen above");
        assert!(block.ratio.is_some() && block.cpu_ns > Some(0.0), "{block:?}");
        assert!(block.system_calls > Some(0.9), "a host that blocks is woken and wakes: {block:?}");
    }
}
