//! Slow readers: they download files in which each word says where it belongs, so a wrong one tells whose it is.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::Scope;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};

use crate::common::{Random, System, WATCHDOG, network, power};

/// Files that are downloaded, and the bytes of each.
const FILES: u64 = 8;
pub const BYTES: u64 = 6 << 20;
/// Readers at a time.
const READERS: u64 = 4;

/// Puts the files where the web server finds them, and syncs them; where in the record that was over.
pub fn put_files(system: &System) -> u64 {
    for file in 0..FILES {
        let source = system.file("source.bin");
        std::fs::write(&source, content(file)).expect("room for a file");
        system.ok(&["fs", "put", source.to_str().expect("UTF-8"), &format!("/www/{file}.bin")]);
    }
    system.ok(&["fs", "sync"]);
    power::position(system)
}

/// The files that are not what was put.
pub fn other_files(system: &System) -> Vec<u64> {
    let is_right = |file: &u64| system.atoll(&["fs", "cat", &format!("/www/{file}.bin")]).stdout == content(*file);
    (0..FILES).filter(|file| !is_right(file)).collect()
}

/// The word at a place of a file says which file and place it is.
fn word(file: u64, at: u64) -> [u8; 8] {
    ((file + 1) << 40 | at).to_le_bytes()
}

fn content(file: u64) -> Vec<u8> {
    (0..BYTES).step_by(8).flat_map(|at| word(file, at)).collect()
}

/// What the readers saw.
#[derive(Default)]
pub struct Seen {
    pub downloads: AtomicU64,
    pub bytes: AtomicU64,
    /// Connections that were reset, refused, or not answered with the file: no violation where the README says so.
    pub broken: Mutex<Vec<String>>,
    pub wrong: Mutex<Vec<String>>,
}

/// How a download ended that did not end well.
#[derive(Debug)]
enum Trouble {
    /// The connection, after so many bytes.
    Broken(String),
    Wrong(String),
}

impl Seen {
    /// Starts readers that go on until it is `over`, in the namespace of `client` if there is one.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        listen: SocketAddr,
        client: Option<&'scope File>,
        seed: u64,
        over: &'scope AtomicBool,
    ) {
        for reader in 0..READERS {
            scope.spawn(move || {
                if let Some(namespace) = client {
                    network::enter(namespace);
                }
                let mut numbers = Random(seed * 1000 + reader + 1);
                while !over.load(Relaxed) {
                    self.download(listen, &mut numbers);
                }
            });
        }
    }

    /// What was wrong, if anything was.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().expect("nobody panics with it").clone()
    }

    /// How many connections broke.
    pub fn broken(&self) -> u64 {
        self.broken.lock().expect("nobody panics with it").len() as u64
    }

    /// Downloads one file, faster or slower, and compares it as it comes.
    fn download(&self, listen: SocketAddr, numbers: &mut Random) {
        let file = numbers.below(FILES);
        let pause = Duration::from_micros([0, 500, 3_000, 8_000][numbers.below(4) as usize]);
        let (list, trouble) = match self.read(listen, file, pause) {
            Ok(()) => {
                self.downloads.fetch_add(1, Relaxed);
                return;
            }
            Err(Trouble::Broken(what)) => (&self.broken, what),
            Err(Trouble::Wrong(what)) => (&self.wrong, what),
        };
        println!("{file}.bin: {trouble}");
        list.lock().expect("nobody panics with it").push(format!("{file}.bin: {trouble}"));
    }

    fn read(&self, listen: SocketAddr, file: u64, pause: Duration) -> Result<(), Trouble> {
        let mut got = 0;
        let broken = |got: u64| move |error| Trouble::Broken(format!("after {got} bytes: {error}"));
        let mut stream = slow(listen).map_err(broken(0))?;
        let request = format!("GET /{file}.bin HTTP/1.1\r\nHost: proof\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(broken(0))?;
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).map_err(broken(0))? == 0 {
                let trouble = if head.is_empty() { Trouble::Broken } else { Trouble::Wrong };
                return Err(trouble(format!("it ends after the head {head:?}")));
            }
        }
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(Trouble::Broken(head.lines().next().unwrap_or_default().to_owned()));
        }
        let mut piece = [0; 16 << 10];
        let mut wrong = Wrong::default();
        while got < BYTES {
            let more = stream.read_exact(&mut piece);
            if more.is_err() && !wrong.0.is_empty() {
                break;
            }
            more.map_err(|error| match error.kind() {
                // Its sender has ended it in order, as if that were all: nothing tells its reader that it is not.
                ErrorKind::UnexpectedEof => Trouble::Wrong(format!("it ends in the 16 KiB after {got} bytes")),
                _ => broken(got)(error),
            })?;
            for (at, found) in (got..).step_by(8).zip(piece.chunks_exact(8)) {
                if found != word(file, at) {
                    wrong.add(at, found);
                }
            }
            got += piece.len() as u64;
            self.bytes.fetch_add(piece.len() as u64, Relaxed);
            std::thread::sleep(pause);
        }
        if !wrong.0.is_empty() {
            return Err(Trouble::Wrong(wrong.told()));
        }
        match stream.read(&mut piece).map_err(broken(got))? {
            0 => Ok(()),
            more => Err(Trouble::Wrong(format!("{more} bytes more than it has"))),
        }
    }
}

/// Wrong words of a download, in runs: where the first one stands, what it is, and how many bytes go on like it. How long they
/// are tells a chunk that is another's from pages that were written over while they were sent.
#[derive(Default)]
struct Wrong(Vec<(u64, u64, u64)>);

impl Wrong {
    fn add(&mut self, at: u64, found: &[u8]) {
        let found = u64::from_le_bytes(found.try_into().expect("eight bytes"));
        match self.0.last_mut() {
            Some((from, first, bytes)) if *from + *bytes == at && *first + *bytes == found => *bytes += 8,
            _ => self.0.push((at, found, 8)),
        }
    }

    fn told(&self) -> String {
        let run = |(at, word, bytes): &(u64, u64, u64)| format!("at {at}: {bytes} bytes of {}", whose(*word));
        let mut runs: Vec<String> = self.0.iter().take(20).map(run).collect();
        if self.0.len() > runs.len() {
            runs.push(format!("and {} runs more", self.0.len() - runs.len()));
        }
        runs.join("; ")
    }
}

/// Where a word belongs that was found elsewhere.
fn whose(word: u64) -> String {
    match (word >> 40, word & ((1 << 40) - 1)) {
        (file @ 1..=FILES, at) if at < BYTES => format!("what {}.bin has at {at}", file - 1),
        _ => format!("{word:#018x}"),
    }
}

/// A connection with little room at this end, so that most of what is sent waits at the other.
fn slow(listen: SocketAddr) -> std::io::Result<TcpStream> {
    let SocketAddr::V4(listen) = listen else { panic!("{listen} is not of version 4") };
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::RcvBuf, &(32 << 10))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(listen))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(WATCHDOG))?;
    Ok(stream)
}

/// What a reader says of a server that sends `bytes` and then ends the connection.
fn read_from(bytes: &[u8], with_a_reset: bool) -> Result<(), Trouble> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("an address");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut client, _) = listener.accept().expect("a reader");
            let mut request = BufReader::new(client.try_clone().expect("dup"));
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                request.read_line(&mut line).expect("a request");
            }
            // Who has seen enough leaves.
            let _ = client.write_all(bytes);
            if with_a_reset {
                let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(&client, sockopt::Linger, &at_once).expect("an option");
            }
        });
        Seen::default().read(address, 0, Duration::ZERO)
    })
}

#[test]
fn an_answer_that_ends_early_in_order_is_wrong_and_one_that_is_reset_is_not() {
    let head = b"HTTP/1.1 200 OK\r\n\r\n";
    let whole = [&head[..], &content(0)].concat();
    assert!(matches!(read_from(&whole, false), Ok(())));
    for end in [head.len() - 1, head.len(), whole.len() / 2, whole.len() - 1] {
        let early = read_from(&whole[..end], false);
        assert!(matches!(early, Err(Trouble::Wrong(_))), "{end}: {early:?}");
    }
    let reset = read_from(&whole[..whole.len() / 2], true);
    assert!(matches!(reset, Err(Trouble::Broken(_))), "{reset:?}");
    let silent = read_from(b"", false);
    assert!(matches!(silent, Err(Trouble::Broken(_))), "{silent:?}");
    let other = read_from(&[&head[..], &content(1)].concat(), false);
    assert!(matches!(other, Err(Trouble::Wrong(_))), "{other:?}");
}
