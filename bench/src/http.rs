//! Requests a second over loopback: a server under test beside a floor that only answers from memory.
//!
//! * The loader keeps `connections` keep-alive connections busy with one request each, from one thread, by epoll.
//! * The floor is a thread of this process that sends the same bytes without looking at anything: no parser, no
//!   file system, one copy into the socket. Nothing that speaks HTTP through sockets does much better.
//! * Both are bounded by time; a server that stops answering ends the run with an error.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::report::{Row, histogram};

/// What to load a server with.
#[derive(Clone, Debug)]
pub struct Load {
    /// Connections that are kept busy.
    pub connections: usize,
    /// How long, after a tenth of it for warming up.
    pub duration: Duration,
    /// A response that takes longer than this ends the run.
    pub patience: Duration,
}

impl Default for Load {
    fn default() -> Load {
        Load { connections: 64, duration: Duration::from_secs(3), patience: Duration::from_secs(10) }
    }
}

/// Asks `server` for `path` over and over, and checks the status and length of every answer.
///
/// # Errors
/// A connection that cannot be made or breaks, an answer other than 200 with `length` bytes, or no answer in time.
pub fn measure(name: &str, server: SocketAddr, path: &str, length: u64, load: &Load) -> io::Result<Row> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\n\r\n").into_bytes();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut connections = Vec::with_capacity(load.connections);
    for index in 0..load.connections {
        let mut connection = Connection::open(server, length)?;
        epoll.add(&connection.stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        connection.ask(&request)?;
        connections.push(connection);
    }
    let mut latencies = histogram();
    let mut events = vec![EpollEvent::empty(); load.connections.max(1)];
    let mut buffer = vec![0; 256 << 10];
    let begin = Instant::now();
    let counted_from = begin + load.duration / 10;
    let end = counted_from + load.duration;
    let mut last_answer = begin;
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::from(100u8))?;
        let now = Instant::now();
        if now >= end {
            break;
        }
        if now > last_answer + load.patience {
            return Err(io::Error::new(ErrorKind::TimedOut, "the server stopped answering"));
        }
        for event in events.iter().take(count) {
            let Some(connection) = usize::try_from(event.data()).ok().and_then(|index| connections.get_mut(index))
            else {
                continue;
            };
            if !connection.receive(&mut buffer)? {
                continue;
            }
            last_answer = Instant::now();
            if connection.asked >= counted_from {
                latencies.saturating_record((last_answer - connection.asked).as_nanos() as u64);
            }
            connection.ask(&request)?;
        }
    }
    let seconds = Instant::now().duration_since(counted_from).as_secs_f64();
    Ok(Row::new(name, &latencies, seconds, latencies.len() * length))
}

/// One keep-alive connection and the answer that it is receiving.
struct Connection {
    stream: TcpStream,
    asked: Instant,
    /// The head so far; empty again once it is complete.
    head: Vec<u8>,
    /// Body bytes still to come, once the head is complete.
    body: Option<u64>,
    length: u64,
}

impl Connection {
    fn open(server: SocketAddr, length: u64) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, asked: Instant::now(), head: Vec::new(), body: None, length })
    }

    /// Sends the next request. It is short and nothing else is outstanding, so the socket always takes it whole.
    fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.asked = Instant::now();
        self.stream.write_all(request)
    }

    /// Takes what has come. True when an answer is complete.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            let count = match self.stream.read(buffer) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed a connection")),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.take(&buffer[..count])? {
                return Ok(true);
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let mut body = bytes;
        if self.body.is_none() {
            let searched = self.head.len().saturating_sub(3);
            self.head.extend_from_slice(bytes);
            let Some(end) = find_end(&self.head[searched..]).map(|end| end + searched) else {
                return match self.head.len() {
                    0..=65_536 => Ok(false),
                    _ => Err(bad("the head of an answer does not end")),
                };
            };
            let declared = content_length(&self.head[..end])?;
            if declared != self.length {
                return Err(bad(&format!("an answer has {declared} bytes instead of {}", self.length)));
            }
            body = &bytes[bytes.len() - (self.head.len() - end)..];
            self.head.clear();
            self.body = Some(declared);
        }
        let left = self.body.unwrap_or_default();
        let Some(left) = left.checked_sub(body.len() as u64) else {
            return Err(bad("an answer is longer than it says"));
        };
        self.body = (left > 0).then_some(left);
        // `None` again means that the next byte begins a head.
        Ok(left == 0)
    }
}

/// Where the body begins.
fn find_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn content_length(head: &[u8]) -> io::Result<u64> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(bad(&format!("the server answered: {status}")));
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| bad("an answer has no Content-Length"))
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

/// A server of one answer, from memory: what the sockets themselves cost. Stops when dropped.
#[derive(Debug)]
pub struct Floor {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Floor {
    /// Serves `length` bytes to every request, on a free port of loopback.
    ///
    /// # Errors
    /// What the kernel says to a new listener.
    pub fn start(length: usize) -> io::Result<Floor> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + length, b'x');
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("floor".into()).spawn(move || {
            // An error ends the floor; the loader then reports a closed connection.
            let _ = serve(&listener, &answer, &stopped);
        })?;
        Ok(Floor { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // Relaxed: the thread looks at it every 100 ms, and nothing else depends on it.
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One client of the floor: how many answers it is owed, and how far the current one is sent.
struct Owed {
    stream: TcpStream,
    answers: usize,
    sent: usize,
    /// The last bytes received, in case an end of head is split.
    tail: Vec<u8>,
}

fn serve(listener: &TcpListener, answer: &[u8], stop: &AtomicBool) -> io::Result<()> {
    const LISTENER: u64 = u64::MAX;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut clients: Vec<Option<Owed>> = Vec::new();
    let mut events = vec![EpollEvent::empty(); 256];
    let mut buffer = vec![0; 16 << 10];
    while !stop.load(Ordering::Relaxed) {
        let count = epoll.wait(&mut events, EpollTimeout::from(100u8))?;
        for event in events.iter().take(count) {
            if event.data() == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
                    epoll.add(&stream, EpollEvent::new(flags, clients.len() as u64))?;
                    clients.push(Some(Owed { stream, answers: 0, sent: 0, tail: Vec::new() }));
                }
                continue;
            }
            let Some(slot) = usize::try_from(event.data()).ok().and_then(|index| clients.get_mut(index)) else {
                continue;
            };
            if let Some(owed) = slot
                && owed.proceed(answer, &mut buffer).is_err()
            {
                *slot = None;
            }
        }
    }
    Ok(())
}

impl Owed {
    fn proceed(&mut self, answer: &[u8], buffer: &mut [u8]) -> io::Result<()> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.count(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        while self.answers > 0 {
            match self.stream.write(&answer[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            if self.sent == answer.len() {
                self.sent = 0;
                self.answers -= 1;
            }
        }
        Ok(())
    }

    fn count(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        while let Some(end) = find_end(&self.tail) {
            self.tail.drain(..end);
            self.answers += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_counts_what_the_floor_answers() {
        let floor = Floor::start(1000).expect("a floor");
        let load = Load { connections: 4, duration: Duration::from_millis(100), ..Load::default() };
        let row = measure("floor", floor.address(), "/", 1000, &load).expect("it answers");
        assert!(row.count > 0);
        assert!(row.p50_ns > 0 && row.p50_ns <= row.p99_ns);
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        let floor = Floor::start(1000).expect("a floor");
        let load = Load { connections: 1, duration: Duration::from_millis(100), ..Load::default() };
        let error = measure("floor", floor.address(), "/", 999, &load).expect_err("999 is not 1000");
        assert!(error.to_string().contains("1000 bytes instead of 999"), "{error}");
    }

    #[test]
    fn an_empty_body_is_complete_with_its_head() {
        let floor = Floor::start(0).expect("a floor");
        let load = Load { connections: 2, duration: Duration::from_millis(50), ..Load::default() };
        assert!(measure("floor", floor.address(), "/", 0, &load).expect("it answers").count > 0);
    }

    #[test]
    fn a_head_may_come_byte_by_byte() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let mut connection = Connection::open(listener.local_addr().expect("bound"), 3).expect("connected");
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
        let complete: Vec<bool> = answer.chunks(1).map(|byte| connection.take(byte).expect("good")).collect();
        assert_eq!(complete.iter().position(|complete| *complete), Some(answer.len() - 1));
    }
}
