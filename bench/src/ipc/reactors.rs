//! Several clients of a component on one reactor, and of the same component on several: side by side in one run.
//!
//! * Both components are `builtin:null` in one node; the one that is not called sleeps. Each client is a thread with a runtime
//!   and a session of its own.
//! * The rounds of both are in turns, so that what else the machine does meets both.
//! * Clients and reactors share the machine's cores. Null calls cost a client as much as the server; so there are calls too
//!   that make the server compute, for which the clients mostly sleep.

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kernel_ipc::CallError;
use kernel_ipc::component::Context;
use kernel_ipc::runtime::{self, Options as RuntimeOptions, Runtime};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::host::thread_cpu;
use super::null::{Client, NullError};
use super::{clock_cost, record};
use crate::report::{Row, Run, histogram};

/// What to measure.
pub struct Options {
    /// How long each row takes in all, warming up not counted.
    pub duration: Duration,
    /// How many clients there are.
    pub clients: u32,
    /// The state directory of the node.
    pub state: PathBuf,
    /// The two components, that with one reactor first.
    pub components: [Server; 2],
}

/// A component that serves `atoll.null/1` on its endpoint `null`.
pub struct Server {
    /// Its name in the manifest.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// How many reactors it has.
    pub reactors: u32,
}

/// In so many turns a row is measured.
const TURNS: u32 = 4;
/// Rounds of a call that makes the server compute: some 20 µs.
const ROUNDS: u32 = 20_000;

/// What clients call.
#[derive(Clone, Copy)]
struct Load {
    what: &'static str,
    outstanding: u16,
    /// 0: null calls.
    rounds: u32,
}

const LOADS: [Load; 4] = [
    Load { what: "null call", outstanding: 1, rounds: 0 },
    Load { what: "null call", outstanding: 64, rounds: 0 },
    Load { what: "20 µs of work", outstanding: 1, rounds: ROUNDS },
    Load { what: "20 µs of work", outstanding: 64, rounds: ROUNDS },
];

/// What a row has so far.
struct Sum {
    latencies: Histogram<u64>,
    seconds: f64,
    cpu_ns: u64,
}

/// Measures all rows.
///
/// # Errors
/// When the system refuses memory, threads or rings, or the node goes away.
pub fn run(options: &Options) -> io::Result<Run> {
    let mut run = Run::begin("ipc-reactors");
    let (clients, cores) = (options.clients, run.machine.cores);
    run.notes.push(format!("{clients} clients and the server's reactors share {cores} cores"));
    run.notes.push("processor time is both sides' for each call".into());
    let turn = options.duration / TURNS;
    for load in LOADS {
        let empty = || Sum { latencies: histogram(), seconds: 0.0, cpu_ns: 0 };
        let mut sums = [empty(), empty()];
        for _ in 0..TURNS {
            for (server, sum) in options.components.iter().zip(&mut sums) {
                measure(options, server, load, turn, sum)?;
            }
        }
        let row = |server: &Server, sum: &Sum| {
            let Load { what, outstanding, .. } = load;
            let reactors =
                if server.reactors == 1 { "1 reactor".into() } else { format!("{} reactors", server.reactors) };
            let name = format!("{what}, {clients} clients, {outstanding} outstanding, {reactors}");
            let mut row = Row::new(name, &sum.latencies, sum.seconds, 0);
            row.cpu_ns = Some(sum.cpu_ns as f64 / row.count.max(1) as f64);
            row
        };
        let [one, several] = &options.components;
        let floor = row(one, &sums[0]);
        let several = row(several, &sums[1]).rate_beside(&floor);
        run.rows.extend([floor, several]);
    }
    Ok(run)
}

/// All clients at once.
fn measure(options: &Options, server: &Server, load: Load, duration: Duration, sum: &mut Sum) -> io::Result<()> {
    let ready = Arc::new(Barrier::new(options.clients as usize + 1));
    let threads: Vec<_> = (0..options.clients)
        .map(|_| {
            let (state, endpoint, ready) = (options.state.clone(), format!("{}.null", server.name), ready.clone());
            std::thread::spawn(move || client(&state, &endpoint, load, duration, &ready))
        })
        .collect();
    ready.wait();
    let (begin, before) = (Instant::now(), process_cpu(server.pid)?);
    let mut cpu = 0;
    for thread in threads {
        let (latencies, used) = thread.join().map_err(|_| io::Error::other("a client panicked"))??;
        sum.latencies.add(latencies).map_err(io::Error::other)?;
        cpu += used;
    }
    sum.seconds += begin.elapsed().as_secs_f64();
    sum.cpu_ns += cpu + process_cpu(server.pid)? - before;
    Ok(())
}

/// A client's thread: its latencies, and the processor time that it has used for them.
fn client(
    state: &std::path::Path,
    endpoint: &str,
    load: Load,
    duration: Duration,
    ready: &Barrier,
) -> io::Result<(Histogram<u64>, u64)> {
    let opened = Runtime::new(RuntimeOptions::default()).and_then(|runtime| {
        let client = runtime.block_on(async {
            let context = Context::guest(state, "bench").map_err(|error| io::Error::other(error.to_string()))?;
            context.connect::<Client>(endpoint).await.map_err(|error| io::Error::other(error.to_string()))
        });
        Ok((runtime, client?))
    });
    // Whatever has become of it: the others wait.
    ready.wait();
    let (runtime, client) = opened?;
    let client = Rc::new(client);
    let before = thread_cpu();
    let end = Instant::now() + duration;
    let latencies = runtime.block_on(async {
        let callers = (0..load.outstanding).map(|_| runtime::spawn(caller(client.clone(), load.rounds, end)));
        let mut latencies = histogram();
        for caller in callers.collect::<Vec<_>>() {
            let theirs = caller.await.map_err(|_| io::Error::other("a caller was cancelled"))?;
            latencies.add(theirs.map_err(io::Error::other)?).map_err(io::Error::other)?;
        }
        Ok::<_, io::Error>(latencies)
    })?;
    Ok((latencies, thread_cpu() - before))
}

async fn caller(client: Rc<Client>, rounds: u32, end: Instant) -> Result<Histogram<u64>, CallError<NullError>> {
    let clock = clock_cost();
    let mut latencies = histogram();
    let mut last = Instant::now();
    while last < end {
        match rounds {
            0 => client.null(client.root()).await?,
            rounds => drop(client.work(client.root(), rounds).await?),
        }
        let now = Instant::now();
        record(&mut latencies, now - last, clock);
        last = now;
    }
    Ok(latencies)
}

/// Processor time of a process, nanoseconds.
fn process_cpu(pid: u32) -> io::Result<u64> {
    let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
    let time = ClockId::pid_cpu_clock_id(pid)?.now()?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
