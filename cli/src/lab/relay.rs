//! The fault relay: it passes on the connections between two nodes, with delays, at a rate, and cuts them.
//!
//! * It works on streams, so it needs no privilege: each node is called at an address where the relay listens, and listens itself at
//!   another one. A *gate* is that of one node: a thread, in the network that the node is in.
//! * Of a connection and way at most [`UNDER_WAY`] bytes are under way; whoever sends more waits, as for a window of TCP.
//! * A cut ends every connection; what was under way is lost. Times are decided by [`super::schedule`].

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::schedule::{Faults, Way};

/// Bytes of one connection and way that are under way at most. In a round trip that is twice as much: the 4 MiB that a TCP connection has
/// by default (`net.ipv4.tcp_wmem`).
const UNDER_WAY: usize = 2 << 20;
/// Read at a time.
const PIECE: usize = 64 << 10;

/// A relay between two nodes. Dropped, it ends all connections.
pub struct Relay {
    shared: Arc<Shared>,
    gates: Vec<OpenGate>,
    /// Dropped, it ends the cuts.
    cutter: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

struct Shared {
    faults: Faults,
    start: Instant,
    /// Whether it does anything but pass on.
    is_bad: AtomicBool,
    /// To the nodes, by their gates.
    ways: [Mutex<Way>; 2],
    open: Mutex<Vec<Weak<Connection>>>,
    connections: AtomicU64,
    cut: AtomicU64,
    bytes: AtomicU64,
}

/// What a relay has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Connections that it has passed on.
    pub connections: u64,
    /// Of those, how many it has cut.
    pub cut: u64,
    /// Bytes that it has passed on, both ways.
    pub bytes: u64,
}

/// Where a node is called and where it listens, port by port.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Where the relay listens.
    pub called: Vec<SocketAddr>,
    /// To where it passes on, in the same order.
    pub own: Vec<SocketAddr>,
}

impl Relay {
    /// A relay that passes everything on as it comes, until it [is bad](Relay::be_bad).
    pub fn new(faults: Faults) -> Relay {
        let ways = [0, 1].map(|_| Mutex::new(Way::new(&faults)));
        let (start, counts) = (Instant::now(), [0; 3].map(AtomicU64::new));
        let [connections, cut, bytes] = counts;
        let (is_bad, open) = (AtomicBool::new(false), Mutex::default());
        let shared = Shared { faults, start, is_bad, ways, open, connections, cut, bytes };
        Relay { shared: Arc::new(shared), gates: Vec::new(), cutter: None }
    }

    /// What opens its gates.
    pub fn opener(&self) -> Opener {
        Opener(self.shared.clone())
    }

    /// Adds an open gate.
    pub fn add(&mut self, gate: OpenGate) {
        self.gates.push(gate);
    }

    /// From now on there are faults.
    pub fn be_bad(&mut self) {
        self.shared.is_bad.store(true, Ordering::SeqCst);
        let (end, ended) = mpsc::channel();
        let (shared, begin) = (self.shared.clone(), Instant::now());
        let cutter = std::thread::spawn(move || {
            for at in shared.faults.cuts() {
                if ended.recv_timeout(at.saturating_sub(begin.elapsed())) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                shared.cut_all();
            }
        });
        self.cutter = Some((end, cutter));
    }

    /// From now on everything passes as it comes.
    pub fn be_good(&mut self) {
        self.shared.is_bad.store(false, Ordering::SeqCst);
        if let Some((end, cutter)) = self.cutter.take() {
            drop(end);
            let _ = cutter.join();
        }
    }

    /// What it has done.
    pub fn counts(&self) -> Counts {
        let [connections, cut, bytes] =
            [&self.shared.connections, &self.shared.cut, &self.shared.bytes].map(|count| count.load(Ordering::Relaxed));
        Counts { connections, cut, bytes }
    }
}

/// A gate's thread, and what ends it when it is dropped.
pub type OpenGate = (PipeWriter, JoinHandle<()>);

/// Opens gates of a relay.
pub struct Opener(Arc<Shared>);

impl Opener {
    /// Opens the gate of one of the nodes (0, 1); to be called in the network that it is in.
    ///
    /// # Errors
    /// An address cannot be listened on; names it.
    pub fn open(self, node: usize, gate: &Gate) -> io::Result<OpenGate> {
        let listen = |address: &SocketAddr| {
            TcpListener::bind(address).map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
        };
        let listeners = gate.called.iter().map(listen).collect::<io::Result<Vec<_>>>()?;
        let (ended, end) = io::pipe()?;
        let own = gate.own.clone();
        // A thread begins in the network of the one that starts it.
        let thread = std::thread::spawn(move || accept(&self.0, node, &listeners, &own, &ended));
        Ok((end, thread))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.be_good();
        for (end, gate) in self.gates.drain(..) {
            drop(end);
            let _ = gate.join();
        }
        self.shared.take_open().for_each(|connection| connection.end());
    }
}

impl Shared {
    /// Ends every connection, and counts that as done to it.
    fn cut_all(&self) {
        for connection in self.take_open().filter(|connection| connection.stop()) {
            self.cut.fetch_add(1, Ordering::Relaxed);
            connection.shut();
        }
    }

    fn take_open(&self) -> impl Iterator<Item = Arc<Connection>> + use<> {
        std::mem::take(&mut *lock(&self.open)).into_iter().filter_map(|connection| connection.upgrade())
    }

    /// When what is read now for that node arrives, from the start.
    fn arrival(&self, node: usize, bytes: usize) -> Duration {
        let now = self.start.elapsed();
        match self.is_bad.load(Ordering::Relaxed) {
            true => lock(&self.ways[node]).arrival(now, bytes),
            false => now,
        }
    }
}

/// One connection: two sockets, and what is under way each way.
struct Connection {
    client: TcpStream,
    host: TcpStream,
    queues: [Queue; 2],
}

impl Connection {
    /// Ends it both ways; what is under way is lost.
    fn end(&self) {
        self.stop();
        self.shut();
    }

    /// Nothing passes any more, which nobody knows yet. False: that was so.
    fn stop(&self) -> bool {
        self.queues.each_ref().map(Queue::end).contains(&true)
    }

    fn shut(&self) {
        for socket in [&self.client, &self.host] {
            // It may be gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Takes connections to a node until the pipe's other end is dropped.
fn accept(shared: &Arc<Shared>, node: usize, listeners: &[TcpListener], own: &[SocketAddr], ended: &PipeReader) {
    let sources = listeners.iter().map(AsFd::as_fd).chain([ended.as_fd()]);
    let mut sources: Vec<PollFd> = sources.map(|source| PollFd::new(source, PollFlags::POLLIN)).collect();
    loop {
        if poll(&mut sources, PollTimeout::NONE).is_err() {
            continue;
        }
        let has_come = |source: &PollFd| source.any().unwrap_or(false);
        if sources.last().is_some_and(has_come) {
            return;
        }
        for ((listener, own), _) in listeners.iter().zip(own).zip(&sources).filter(|(_, source)| has_come(source)) {
            // Who is gone again, or whose host does not listen, sees an end.
            if let Ok((client, _)) = listener.accept()
                && let Err(error) = pass_on(shared, node, client, *own)
            {
                tracing::debug!("{own}: {error}");
            }
        }
    }
}

fn pass_on(shared: &Arc<Shared>, node: usize, client: TcpStream, own: SocketAddr) -> io::Result<()> {
    let host = TcpStream::connect(own)?;
    for socket in [&client, &host] {
        socket.set_nodelay(true)?;
    }
    let connection = Arc::new(Connection { client, host, queues: Default::default() });
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let mut open = lock(&shared.open);
    open.retain(|other| other.strong_count() > 0);
    open.push(Arc::downgrade(&connection));
    drop(open);
    for towards_host in [true, false] {
        let to = if towards_host { node } else { 1 - node };
        let [reading, writing] = [0, 1].map(|_| (shared.clone(), connection.clone()));
        spawn(move || read(&reading.0, &reading.1, towards_host, to))?;
        spawn(move || write(&writing.0, &writing.1, towards_host))?;
    }
    Ok(())
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().stack_size(256 << 10).spawn(work).map(drop)
}

/// Reads one way of a connection until it ends.
fn read(shared: &Shared, connection: &Connection, towards_host: bool, to: usize) {
    let mut from = if towards_host { &connection.client } else { &connection.host };
    let queue = &connection.queues[usize::from(towards_host)];
    let mut buffer = vec![0; PIECE];
    loop {
        let Ok(length) = from.read(&mut buffer) else {
            connection.end();
            return;
        };
        let at = shared.arrival(to, length);
        // As large as it is, and no larger: there may be many small ones under way.
        if !queue.push(Piece { at, bytes: buffer[..length].to_vec() }) || length == 0 {
            return;
        }
    }
}

/// Writes one way of a connection, each piece when it arrives, until it ends.
fn write(shared: &Shared, connection: &Connection, towards_host: bool) {
    let mut to = if towards_host { &connection.host } else { &connection.client };
    let queue = &connection.queues[usize::from(towards_host)];
    while let Some(piece) = queue.pop(shared.start) {
        if piece.bytes.is_empty() {
            // The other way may go on. If it has ended too, so has the connection.
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if to.write_all(&piece.bytes).is_err() {
            connection.end();
            return;
        }
        shared.bytes.fetch_add(piece.bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Bytes that are under way; none: the end.
struct Piece {
    /// When they arrive, from the start.
    at: Duration,
    bytes: Vec<u8>,
}

/// What is under way, one way.
#[derive(Default)]
struct Queue {
    inner: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Piece>,
    bytes: usize,
    is_over: bool,
}

impl Queue {
    /// Waits for room. False: it is over.
    fn push(&self, piece: Piece) -> bool {
        let mut inner = lock(&self.inner);
        while inner.bytes >= UNDER_WAY && !inner.is_over {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.bytes += piece.bytes.len();
        inner.pieces.push_back(piece);
        self.changed.notify_all();
        !inner.is_over
    }

    /// Waits until the next piece has arrived. `None`: it is over.
    fn pop(&self, start: Instant) -> Option<Piece> {
        let mut inner = lock(&self.inner);
        while !inner.is_over {
            let left = inner.pieces.front().map(|piece| piece.at.saturating_sub(start.elapsed()));
            inner = match left {
                Some(Duration::ZERO) => {
                    let piece = inner.pieces.pop_front()?;
                    inner.bytes -= piece.bytes.len();
                    self.changed.notify_all();
                    return Some(piece);
                }
                Some(left) => {
                    self.changed.wait_timeout(inner, left).map_or_else(|error| error.into_inner().0, |waited| waited.0)
                }
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
        }
        None
    }

    /// Nothing passes any more. False: that was so.
    fn end(&self) -> bool {
        let mut inner = lock(&self.inner);
        let was_over = std::mem::replace(&mut inner.is_over, true);
        inner.pieces.clear();
        self.changed.notify_all();
        !was_over
    }
}

/// A thread that has panicked while it held this has changed nothing by halves.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A relay, where it is called, and a host behind it.
    fn relay(faults: Faults) -> (Relay, SocketAddr, TcpListener) {
        let host = TcpListener::bind("127.0.0.1:0").expect("loopback");
        // Free a moment ago.
        let called = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("loopback");
        let mut relay = Relay::new(faults);
        let own = host.local_addr().expect("an address");
        let gate = relay.opener().open(0, &Gate { called: vec![called], own: vec![own] }).expect("it is free");
        relay.add(gate);
        relay.be_bad();
        (relay, called, host)
    }

    const NONE: Faults = Faults { delay: Duration::ZERO, rate: None, cut_every: None, seed: 1 };

    #[test]
    fn everything_passes_both_ways_in_order_and_so_does_the_end() {
        let (relay, called, host) = relay(Faults { delay: 5 * MS, ..NONE });
        let sent: Vec<u8> = (0..9_000_000_u32).map(|number| (number / 7) as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut socket, _) = host.accept().expect("it is called");
                let mut bytes = Vec::new();
                socket.read_to_end(&mut bytes).expect("until the end");
                bytes.reverse();
                socket.write_all(&bytes).expect("the other way goes on");
            });
            let mut client = TcpStream::connect(called).expect("it listens");
            client.write_all(&sent).expect("it is taken");
            client.shutdown(Shutdown::Write).expect("an end");
            let mut back = Vec::new();
            client.read_to_end(&mut back).expect("until the end");
            assert!(back.iter().eq(sent.iter().rev()), "other bytes: {} of {}", back.len(), sent.len());
        });
        assert_eq!(relay.counts(), Counts { connections: 1, cut: 0, bytes: 2 * sent.len() as u64 });
    }

    #[test]
    fn an_answer_takes_a_round_trip_and_many_bytes_the_time_that_the_rate_says() {
        let (_relay, called, host) = relay(Faults { delay: 20 * MS, rate: Some(1_000_000), ..NONE });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut socket, _) = host.accept().expect("it is called");
                let mut byte = [0];
                socket.read_exact(&mut byte).expect("a byte");
                socket.write_all(&vec![1; 100_000]).expect("it is taken");
            });
            let mut client = TcpStream::connect(called).expect("it listens");
            let begin = Instant::now();
            client.write_all(&[1]).expect("it is taken");
            let mut first = [0];
            client.read_exact(&mut first).expect("an answer");
            assert!(begin.elapsed() >= 40 * MS, "{:?}", begin.elapsed());
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).expect("until the end");
            // 100,000 bytes at a million a second; both ends of that are those of a round trip.
            assert!(begin.elapsed() >= 140 * MS, "{:?}", begin.elapsed());
        });
    }

    #[test]
    fn a_cut_ends_connections_and_new_ones_are_taken() {
        let (mut relay, called, host) = relay(Faults { cut_every: Some(20 * MS), ..NONE });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..6 {
                    let (mut socket, _) = host.accept().expect("it is called");
                    let mut byte = [0];
                    while socket.read(&mut byte).is_ok_and(|length| length > 0) {}
                }
            });
            let mut ends = Vec::new();
            for _ in 0..5 {
                let mut client = TcpStream::connect(called).expect("it listens");
                ends.push(client.read_to_end(&mut Vec::new()));
            }
            let cut = relay.counts().cut;
            relay.be_good();
            let before = relay.counts().cut;
            let mut client = TcpStream::connect(called).expect("it listens");
            std::thread::sleep(100 * MS);
            let written = client.write_all(&[1]);
            drop(client);
            // Last: who panics sooner is waited for by the host.
            assert!(ends.iter().all(|end| matches!(end, Ok(0))), "{ends:?}");
            assert!(cut >= 5, "{cut}");
            assert!(written.is_ok() && relay.counts().cut == before, "{written:?}");
        });
    }
}
