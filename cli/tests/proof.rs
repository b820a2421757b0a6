//! The proof of survival: a system whose processes, the keeper's apart, are killed again and again at moments of a seed, while every
//! effect and every byte is compared with a model.
//!
//! `cargo test` kills a few. The whole is
//!
//! ```sh
//! KILLS=10000 cargo test --release -p atoll --test proof -- --nocapture --test-threads 1
//! ```
//!
//! `SEED=7` chooses other moments, `RATE=35` so many kills a second, `ONLY=net,fs` kills only these. What it found: `docs/proof.md`.
//!
//! - **Effects**: the workers of `atoll chaos` create, append, rename, unlink, list and read back, each beside a model.
//! - **Bytes**: slow readers download files in which each word says where it belongs, so a wrong one tells whose it is. The
//!   file server's cache holds a part of one file, so ranges of the region are used again at once; all pages are sent without a
//!   copy, so that the kernel goes on reading them while their senders and lenders die.
//! - **Sinks**: loopback, and another namespace behind an `ifb` device, where what is sent waits its turn.
//! - At the end the volume is checked, running and at rest.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::network::{self, Network};
use common::{Over, Random, System, WATCHDOG};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};
use nix::unistd::Pid;
use serde_json::Value;

/// Files that are downloaded, and the bytes of each.
const FILES: u64 = 8;
const BYTES: u64 = 6 << 20;
/// Readers at a time.
const READERS: u64 = 4;
/// The smallest cache that holds what is on its way to the readers, and little else.
const SETS: [&str; 4] = ["--set", "fs.cache=4MiB", "--set", "disk.region=64MiB"];
/// Sends without a copy on any path. The kernel charges their pages to the memory-lock limit, which only root is free of: others
/// would see resets where net-server would have copied.
const ZERO_COPY: [&str; 2] = ["--set", "net.always_zero_copy=true"];

#[test]
fn whoever_dies_on_loopback() {
    proof(None, "loopback");
}

#[test]
fn whoever_dies_behind_an_ifb_device() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can make a network with an ifb device");
        return;
    }
    // A namespace belongs to a thread, and this one ends with the test.
    let network = Network::enter_server().unwrap_or_else(|error| panic!("no network: {error}"));
    proof(Some(&network), "ifb");
    println!("ifb: {} MiB went through it", network.sent() >> 20);
    assert!(network.sent() > BYTES, "all that was downloaded");
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn proof(network: Option<&Network>, sink: &str) {
    let (kills, rate, seed) = (number("KILLS", 30), number("RATE", 12), number("SEED", 1));
    let address = network.map_or("127.0.0.1", |_| network::SERVER);
    let listen = format!("httpd.listen={address}:0");
    let zero_copy: &[&str] = if nix::unistd::geteuid().is_root() { &ZERO_COPY } else { &[] };
    let system = System::start(&[&SETS[..], zero_copy, &["--set", &listen]].concat());
    for file in 0..FILES {
        let source = system.file("source.bin");
        std::fs::write(&source, content(file)).expect("room for a file");
        system.ok(&["fs", "put", source.to_str().expect("UTF-8"), &format!("/www/{file}.bin")]);
    }
    println!("{sink}: SEED={seed} KILLS={kills} RATE={rate}");
    let seen = Seen::default();
    let start = Instant::now();
    let report = watch(&system, network.map(Network::client), &seen, [kills, rate, seed]);
    let count = |name: &str| report[name].as_u64().expect("a number");
    let killed = killed(&report);
    println!(
        "{sink}: {killed} kills in {:.0} s: {} calls, {} repeated, {} from a ledger; {} downloads, {} MiB, {} broken; {} \
         requests, {} broken",
        start.elapsed().as_secs_f64(),
        count("calls"),
        count("repeated"),
        count("from_ledger"),
        seen.downloads.load(Relaxed),
        seen.bytes.load(Relaxed) >> 20,
        seen.broken.lock().expect("nobody panics with it").len(),
        count("requests"),
        count("broken_connections"),
    );
    println!("{sink}: restarts {}", report["restarts"]);
    let wrong = seen.wrong.lock().expect("nobody panics with it").clone();
    assert!(wrong.is_empty(), "VIOLATION after {killed} kills: {}", wrong.join("\n"));
    assert!(report["wrong"] == Value::Array(Vec::new()), "VIOLATION after {killed} kills: {}", report["wrong"]);
    assert!(count("failed") == 0, "VIOLATION after {killed} kills: {}", report["failures"]);
    assert!(killed >= kills, "{report}");
    // Known: who is killed in the microseconds in which it is accepted is reset.
    let broken = seen.broken.lock().expect("nobody panics with it").len() as u64 + count("broken_connections");
    assert!(broken <= 2 + kills / 200, "VIOLATION after {killed} kills: {broken} connections were reset");
    assert!(seen.downloads.load(Relaxed) > 0, "nothing was downloaded");
    system.wait_until_ready();
    system.ok(&["fs", "check"]);
    let down = system.atoll(&["down"]);
    assert!(down.status.success(), "{}", common::said(&down));
    system.ok(&["fs", "check", "--image", system.file("disk.img").to_str().expect("UTF-8")]);
}

fn killed(report: &Value) -> u64 {
    let rows = report["disturbances"].as_array().expect("a list");
    rows.iter().map(|row| row["count"].as_u64().expect("a number")).sum()
}

/// Lets `atoll chaos` kill while readers read; what it reported. It ends at the first wrong byte.
fn watch(system: &System, client: Option<&File>, seen: &Seen, [kills, rate, seed]: [u64; 3]) -> Value {
    let listen: SocketAddr = system.listen().parse().expect("an address");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let over = &over;
            scope.spawn(move || {
                if let Some(namespace) = client {
                    network::enter(namespace);
                }
                let mut numbers = Random(seed * 1000 + reader + 1);
                while !over.load(Relaxed) {
                    seen.download(listen, &mut numbers);
                }
            });
        }
        // Also when this thread panics, or the readers would go on for ever.
        let _over = Over(&over);
        let [kills, rate, seed] = [kills, rate, seed].map(|number| number.to_string());
        let arguments = ["chaos", "--json", "--kinds", "kill", "--count", &kills, "--rate", &rate, "--seed", &seed];
        let mut chaos = system.command(&arguments);
        for name in std::env::var("ONLY").iter().flat_map(|names| names.split(',')) {
            chaos.args(["--only", name]);
        }
        let chaos = chaos.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let output = end(chaos, || !seen.wrong.lock().expect("nobody panics with it").is_empty());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("VIOLATION: chaos: {}", common::said(&output)))
    })
}

/// Waits for the end of a process, and interrupts it when it is to end before.
fn end(mut child: Child, is_enough: impl Fn() -> bool) -> std::process::Output {
    while child.try_wait().expect("it is ours").is_none() {
        if is_enough() {
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT);
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.wait_with_output().expect("it is ours")
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
struct Seen {
    downloads: AtomicU64,
    bytes: AtomicU64,
    /// Connections that were reset, refused, or not answered with the file: no violation where the README says so.
    broken: Mutex<Vec<String>>,
    wrong: Mutex<Vec<String>>,
}

/// How a download ended that did not end well.
enum Trouble {
    /// The connection, after so many bytes.
    Broken(String),
    Wrong(String),
}

impl Seen {
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
                return Err(Trouble::Broken("no answer".to_owned()));
            }
        }
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(Trouble::Broken(head.lines().next().unwrap_or_default().to_owned()));
        }
        let mut piece = [0; 16 << 10];
        while got < BYTES {
            stream.read_exact(&mut piece).map_err(broken(got))?;
            for (at, found) in (got..).step_by(8).zip(piece.chunks_exact(8)) {
                if found != word(file, at) {
                    return Err(Trouble::Wrong(format!("at {at}: {}", whose(found))));
                }
            }
            got += piece.len() as u64;
            self.bytes.fetch_add(piece.len() as u64, Relaxed);
            std::thread::sleep(pause);
        }
        match stream.read(&mut piece).map_err(broken(got))? {
            0 => Ok(()),
            more => Err(Trouble::Wrong(format!("{more} bytes more than it has"))),
        }
    }
}

/// Where a word belongs that was found elsewhere.
fn whose(word: &[u8]) -> String {
    let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
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
