//! The same client and the same server, in one thread, in two processes of one machine, and over a socket.
//!
//! * One row for each place, way of waiting, placing on cores, size and depth ([`points`]); its fields are the format of every
//!   comparison of placements ([`PlaceRow`]).
//! * Each row stands beside the raw floor of its place, measured right before: a call of a function, one word each way through
//!   shared memory, a TCP ping-pong of as many bytes as the frames have. All in the same run, waiting in the same way on the
//!   same cores; the floor of `adaptive` is the better one of spinning and blocking.
//! * A row with several calls outstanding stands beside the floor of one.

mod cluster;
pub mod plot;
mod tcp;

use cluster::Cluster;
pub(super) use cluster::Identity;
pub(super) use tcp::answer;

use std::hint::black_box;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kernel_ipc::interface::{Connect, Connection};
use kernel_ipc::link::socket::{self, dial, dial::Remote};
use kernel_ipc::runtime::{Options as RuntimeOptions, Runtime, Waiting};
use kernel_ipc::session::in_process;
use kernel_ipc::wire::{DESCRIPTOR_BYTES, INLINE_BYTES, Shape};
use serde::{Deserialize, Serialize};

use super::floor::{self, RawMode};
use super::host::{self, Host, Task, TaskKind, thread_cpu};
use super::lent::{self, Store};
use super::null::{Client, Dispatcher, Nothing};
use super::{Calls, LENT_FROM, Options, Place as Cores, many, pin, two_cores, unpin};
use crate::report::{Machine, Row, histogram};

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// In its client's thread.
    InProcess,
    /// In another process of this machine.
    Shm,
    /// At the other end of a TCP connection that nothing protects; here, of loopback.
    Socket,
    /// The same over TLS, between two nodes of one authority.
    SocketEncrypted,
}

impl Placement {
    /// All of them.
    pub const ALL: [Placement; 4] =
        [Placement::InProcess, Placement::Shm, Placement::Socket, Placement::SocketEncrypted];

    /// What people read.
    pub fn label(self) -> &'static str {
        match self {
            Placement::InProcess => "in process",
            Placement::Shm => "shared memory",
            Placement::Socket => socket::IN_THE_CLEAR,
            Placement::SocketEncrypted => socket::ENCRYPTED,
        }
    }

    /// What its floor is.
    pub fn floor_label(self) -> &'static str {
        match self {
            Placement::InProcess => "function call",
            Placement::Shm => "one word each way",
            Placement::Socket | Placement::SocketEncrypted => "TCP ping-pong",
        }
    }

    fn is_beyond_a_socket(self) -> bool {
        matches!(self, Placement::Socket | Placement::SocketEncrypted)
    }
}

/// On which cores client and server are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pin {
    /// Wherever the kernel puts them.
    None,
    /// On one.
    Same,
    /// On one each.
    Apart,
}

impl Pin {
    /// As in the format.
    pub fn name(self) -> &'static str {
        match self {
            Pin::None => "none",
            Pin::Same => "same",
            Pin::Apart => "apart",
        }
    }
}

/// One line of the comparison. The format of every later one: fields are added, never changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlaceRow {
    /// Where the server is.
    pub place: Placement,
    /// How both sides wait.
    pub wait: Waiting,
    /// On which cores they are.
    pub pin: Pin,
    /// Payload bytes each way.
    pub size: usize,
    /// Calls outstanding.
    pub depth: u16,
    /// Median, nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile, nanoseconds.
    pub p99_ns: u64,
    /// 99.9th percentile, nanoseconds.
    pub p999_ns: u64,
    /// Calls a second.
    pub calls_per_s: f64,
    /// Processor time of both sides for each, nanoseconds.
    pub cpu_ns_per_call: f64,
    /// Median of the raw exchange beside it, nanoseconds.
    pub floor_p50_ns: u64,
}

impl PlaceRow {
    /// Its median in times of the floor's.
    pub fn ratio(&self) -> f64 {
        self.p50_ns as f64 / self.floor_p50_ns.max(1) as f64
    }
}

/// One run of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Seconds since the Unix epoch at its begin.
    pub unix_seconds: u64,
    /// Where.
    pub machine: Machine,
    /// What was found.
    pub rows: Vec<PlaceRow>,
    /// What a reader must know to judge it, a sentence each.
    pub notes: Vec<String>,
}

/// One measurement.
#[derive(Clone, Copy)]
struct Point {
    wait: Waiting,
    pin: Pin,
    size: usize,
    depth: u16,
}

/// The largest payload that every window holds.
const LARGE: usize = 4096 - 96;
/// Results that are lent.
const LENT: [usize; 2] = [64 << 10, lent::BYTES];
const WAITS: [Waiting; 3] = [Waiting::Spin, Waiting::Adaptive, Waiting::Block];

/// What is measured of a placement.
fn points(place: Placement) -> Vec<Point> {
    let point = |wait, pin, size, depth| Point { wait, pin, size, depth };
    if place == Placement::InProcess {
        // Nobody waits.
        let of = |size, depth| point(Waiting::Spin, Pin::None, size, depth);
        return vec![of(0, 1), of(64, 1), of(LARGE, 1), of(LENT[0], 1), of(LENT[1], 1), of(0, 8), of(0, 64)];
    }
    if two_cores().is_none() {
        return WAITS.map(|wait| point(wait, Pin::None, 0, 1)).to_vec();
    }
    let mut points = Vec::new();
    for pin in [Pin::Apart, Pin::Same] {
        points.extend(WAITS.map(|wait| point(wait, pin, 0, 1)));
    }
    for size in [64, LARGE, LENT[0], LENT[1]] {
        points.extend(WAITS.map(|wait| point(wait, Pin::Apart, size, 1)));
    }
    points.push(point(Waiting::Adaptive, Pin::None, 0, 1));
    for depth in [8, 64] {
        points.extend(WAITS.map(|wait| point(wait, Pin::Apart, 0, depth)));
        points.push(point(Waiting::Adaptive, Pin::None, 0, depth));
        points.extend(WAITS.map(|wait| point(wait, Pin::Apart, 64, depth)));
    }
    points
}

/// Measures the placements, each beside its floor.
///
/// # Errors
/// When the system refuses memory, processes, sockets or rings.
pub fn run(options: Options, places: &[Placement]) -> io::Result<Comparison> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut comparison = Comparison {
        unix_seconds: since.map_or(0, |since| since.as_secs()),
        machine: Machine::here(),
        rows: Vec::new(),
        notes: vec![
            "each row beside the raw floor of its place in this run; several outstanding calls beside the floor of one"
                .into(),
        ],
    };
    if places.contains(&Placement::Socket) {
        comparison
            .notes
            .push(format!("{}: loopback of this machine, not encrypted, nobody authenticated", socket::IN_THE_CLEAR));
    }
    let host = Host::start(options.host)?;
    let mut floors = Floors { host: &host, duration: options.duration, known: Vec::new() };
    for place in places {
        for point in points(*place) {
            let floor_p50_ns = floors.of(*place, &point)?;
            let row = match place {
                Placement::InProcess => near(&point, options.duration)?,
                Placement::Shm => super::measure(&host, &point.calls(), &point.cores(), options.duration)?,
                Placement::Socket => over_socket(&host, &point, None, options.duration)?,
                Placement::SocketEncrypted => over_socket(&host, &point, Some(Cluster::new()?), options.duration)?,
            };
            comparison.rows.push(PlaceRow {
                place: *place,
                wait: point.wait,
                pin: point.pin,
                size: point.size,
                depth: point.depth,
                p50_ns: row.p50_ns,
                p99_ns: row.p99_ns,
                p999_ns: row.p999_ns,
                calls_per_s: row.per_second,
                cpu_ns_per_call: row.cpu_ns.unwrap_or(0.0),
                floor_p50_ns,
            });
        }
    }
    Ok(comparison)
}

impl Point {
    fn calls(&self) -> Calls {
        Calls { waiting: self.wait, depth: self.depth, bytes: self.size, cached: false }
    }

    fn cores(&self) -> Cores {
        let (client, host) = match (self.pin, two_cores()) {
            (Pin::Apart, Some((one, other))) => (Some(one), Some(other)),
            (Pin::Same, Some((one, _))) => (Some(one), Some(one)),
            _ => (None, None),
        };
        Cores { name: self.pin.name(), client, host }
    }

    /// Bytes of a call and of its answer on the wire, as good as: a payload in a reply takes as much each way, a result that
    /// is lent only comes.
    fn frame_bytes(&self) -> (usize, usize) {
        let header = socket::frame::HEADER_BYTES + DESCRIPTOR_BYTES;
        match self.size {
            0..=INLINE_BYTES => (header, header),
            LENT_FROM.. => (header, header + self.size),
            size => (header + size, header + size),
        }
    }
}

/// What a floor depends on: place, way of waiting, cores, bytes there and back.
type FloorKey = (Placement, Option<RawMode>, Pin, (usize, usize));

/// Floors, each measured once.
struct Floors<'a> {
    host: &'a Host,
    duration: Duration,
    known: Vec<(FloorKey, u64)>,
}

impl Floors<'_> {
    fn of(&mut self, place: Placement, point: &Point) -> io::Result<u64> {
        if place == Placement::InProcess {
            return self.once((place, None, Pin::None, (0, 0)), |floors| Ok(function_call(floors.duration).p50_ns));
        }
        let busy = if point.pin == Pin::Apart { RawMode::Spin } else { RawMode::Yield };
        let modes: &[RawMode] = match point.wait {
            Waiting::Spin => &[busy],
            Waiting::Block => &[RawMode::Futex],
            Waiting::Adaptive => &[busy, RawMode::Futex],
        };
        let mut least = u64::MAX;
        for mode in modes {
            let bytes = if place.is_beyond_a_socket() { point.frame_bytes() } else { (0, 0) };
            let floor = self.once((place, Some(*mode), point.pin, bytes), |floors| {
                let cores = point.cores();
                let row = match place.is_beyond_a_socket() {
                    true => tcp::measure(floors.host, *mode, bytes, &cores, floors.duration)?,
                    false => floor::measure(floors.host, *mode, &cores, floors.duration)?,
                };
                Ok(row.p50_ns)
            })?;
            least = least.min(floor);
        }
        Ok(least)
    }

    fn once(&mut self, key: FloorKey, measure: impl FnOnce(&Self) -> io::Result<u64>) -> io::Result<u64> {
        if let Some((_, floor)) = self.known.iter().find(|(known, _)| *known == key) {
            return Ok(*floor);
        }
        let floor = measure(self)?;
        self.known.push((key, floor));
        Ok(floor)
    }
}

/// A call of a function that the compiler cannot see through.
fn function_call(duration: Duration) -> Row {
    /// So many at a time, because the clock takes longer than one.
    const BATCH: u64 = 1000;
    fn called(argument: u64) -> u64 {
        argument.wrapping_add(1)
    }
    let called: fn(u64) -> u64 = black_box(called);
    let mut latencies = histogram();
    let (begin, mut last) = (Instant::now(), Instant::now());
    while last < begin + duration {
        for number in 0..BATCH {
            black_box(called(black_box(number)));
        }
        let now = Instant::now();
        latencies.saturating_record(((now - last).as_nanos() as u64 / BATCH).max(1));
        last = now;
    }
    Row::new("function call", &latencies, (last - begin).as_secs_f64(), 0)
}

/// Calls of a server in this very thread.
fn near(point: &Point, duration: Duration) -> io::Result<Row> {
    let runtime = Runtime::new(RuntimeOptions { waiting: point.wait, ..RuntimeOptions::default() })?;
    runtime.block_on(async {
        let store = Store::new()?;
        let (lender, holder) = (store.lender(), store.holder()?);
        let nothing = Nothing { store: Some(store), ..Nothing::default() };
        let served = Rc::clone(&nothing.served);
        let service = Rc::new(Dispatcher(nothing));
        let shape = Shape { slots: point.depth.clamp(16, 64), ..Shape::default() };
        let (session, _host) = in_process(shape, host::root(), service, host::info(), Some(lender));
        let client = Rc::new(Client::from_connection(Connection::fixed(session)));
        let cpu = thread_cpu();
        let (latencies, seconds) = many(&client, &point.calls(), Some(&holder), duration).await?;
        let mut row = Row::new("in process", &latencies, seconds, 0);
        // Those of the warm-up are among them, unlike in the histogram.
        row.cpu_ns = Some((thread_cpu() - cpu) as f64 / served.get().max(1) as f64);
        Ok(row)
    })
}

/// Calls of the host in the other process, over loopback; encrypted between two nodes of `cluster`.
fn over_socket(host: &Host, point: &Point, cluster: Option<Cluster>, duration: Duration) -> io::Result<Row> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let cores = point.cores();
    let task = Task { core: cores.host, kind: TaskKind::Socket(point.wait) };
    let identity = cluster.as_ref().map(|cluster| cluster.host.to_memory()).transpose()?;
    let passed: Vec<_> = [listener.as_fd()].into_iter().chain(identity.as_ref().map(AsFd::as_fd)).collect();
    host.begin_all(task, &passed)?;
    drop(listener);
    let remote = match &cluster {
        None => Remote::from(address),
        Some(cluster) => Remote::node(address, Cluster::host_name(), cluster.client.keys()?),
    };
    let label = cluster.map_or(socket::IN_THE_CLEAR, |_| socket::ENCRYPTED);
    let before = pin(cores.client);
    let runtime = Runtime::new(RuntimeOptions { waiting: point.wait, ..RuntimeOptions::default() })?;
    let measured = runtime.block_on(async {
        let shape = Shape { slots: point.depth.clamp(16, 64), ..Shape::default() };
        let (landing, holder) = lent::landing()?;
        let session = dial::connect_landing(remote, Client::INTERFACE, shape, dial::Options::default(), landing);
        let session = session.await.map_err(io::Error::other)?;
        let client = Rc::new(Client::from_connection(Connection::fixed(session)));
        let cpu = thread_cpu();
        let (latencies, seconds) = many(&client, &point.calls(), Some(&holder), duration).await?;
        Ok::<_, io::Error>((latencies, seconds, thread_cpu() - cpu))
    });
    drop(runtime);
    unpin(before);
    let (latencies, seconds, cpu) = measured?;
    let account = host.end()?;
    let mut row = Row::new(label, &latencies, seconds, 0);
    row.cpu_ns = Some((cpu + account.cpu_ns) as f64 / account.calls.max(1) as f64);
    row.system_calls = Some(account.system_calls as f64 / account.calls.max(1) as f64);
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_placement_is_measured_beside_its_floor() {
        let options = Options { duration: Duration::from_millis(10), ..super::super::tests::options() };
        let comparison = run(options, &Placement::ALL).expect("measured");
        for place in Placement::ALL {
            let rows: Vec<_> = comparison.rows.iter().filter(|row| row.place == place).collect();
            assert!(rows.len() >= 3, "{place:?}");
            for row in rows {
                assert!(row.p50_ns > 0 && row.p50_ns <= row.p99_ns && row.p99_ns <= row.p999_ns, "{row:?}");
                assert!(row.calls_per_s > 0.0 && row.cpu_ns_per_call > 0.0 && row.floor_p50_ns > 0, "{row:?}");
            }
        }
        let text = serde_json::to_value(&comparison.rows).expect("JSON");
        let first = text.get(0).and_then(|row| row.as_object()).expect("a row");
        let mut fields: Vec<&str> = first.keys().map(String::as_str).collect();
        fields.sort_unstable();
        let format = "calls_per_s cpu_ns_per_call depth floor_p50_ns p50_ns p999_ns p99_ns pin place size wait";
        assert_eq!(fields, format.split(' ').collect::<Vec<_>>());
        let drawn = plot::svg(&comparison);
        assert!(drawn.starts_with("<svg") && drawn.contains(socket::IN_THE_CLEAR), "{drawn}");
    }

    #[test]
    fn names_are_those_of_the_format() {
        let name = |value: serde_json::Value| value.as_str().map(str::to_owned).unwrap_or_default();
        let places = Placement::ALL.map(|place| name(serde_json::json!(place)));
        assert_eq!(places, ["in-process", "shm", "socket", "socket-encrypted"]);
        assert_eq!(WAITS.map(|wait| name(serde_json::json!(wait))), ["spin", "adaptive", "block"]);
        assert_eq!(
            [Pin::None, Pin::Same, Pin::Apart].map(|pin| name(serde_json::json!(pin))),
            ["none", "same", "apart"]
        );
    }
}
