//! A whole system for a test: the real `atoll` binary, real processes, a state directory of its own.
//!
//! - [`System::start`] is `atoll up --detach` on a free port; [`System::ps`], [`System::pid`], [`System::listen`] say what
//!   runs; [`System::atoll`] and [`System::ok`] run a command line on it; [`System::get`] asks its web server.
//! - Everything waits for what it needs, without an upper bound of its own: [`wait_for`] has a watchdog only.
//! - A system that is dropped is taken down, and whatever is left of it killed by pid, also when the test has panicked.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod http;
pub mod lab;
pub mod network;
pub mod nodes;
pub mod power;
pub mod trees;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What ends a test that waits in vain. Not a bound on how fast anything is.
pub const WATCHDOG: Duration = Duration::from_secs(180);

/// What `up` is given unless the test gives it something else.
const SETS: [&str; 2] = ["httpd.listen=127.0.0.1:0", "disk.size=256MiB"];

/// A state directory, and the system on it.
pub struct System {
    state: PathBuf,
    /// Of its own, removed with it.
    _directory: Option<tempfile::TempDir>,
}

/// What a web server answered.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl System {
    /// A state directory with nothing on it.
    pub fn empty() -> System {
        let directory = tempfile::tempdir().expect("a directory for the state");
        System { state: directory.path().to_owned(), _directory: Some(directory) }
    }

    /// A state directory that is somebody else's.
    pub fn on(state: PathBuf) -> System {
        System { state, _directory: None }
    }

    /// `atoll up --detach`, and `arguments` (a manifest, more `--set`s); panics with what it said if it does not come up.
    pub fn start(arguments: &[&str]) -> System {
        let system = System::empty();
        system.up(arguments);
        system
    }

    /// The same on this state directory, also after `down`.
    pub fn up(&self, arguments: &[&str]) {
        let output = self.up_command(arguments).arg("--detach").output().expect("the binary runs");
        assert!(output.status.success(), "up: {}\n{}", said(&output), self.supervisor_log());
    }

    /// `atoll up` with the usual settings, not yet started.
    pub fn up_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&["up"]);
        command.args(arguments);
        for set in SETS {
            let key = set.split('=').next().unwrap_or_default();
            if !arguments.iter().any(|argument| argument.starts_with(key)) {
                command.args(["--set", set]);
            }
        }
        command
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.state().join(name)
    }

    /// `atoll ARGUMENTS` on this system, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
        command.args(arguments).env("ATOLL_STATE", self.state()).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// Runs a command line on this system.
    pub fn atoll(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary runs")
    }

    /// Runs one that must succeed; what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.atoll(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The components, as `atoll ps --json --io` shows them.
    pub fn ps(&self) -> Vec<Value> {
        let text = self.ok(&["ps", "--json", "--io"]);
        let all: Value = serde_json::from_str(&text).expect("JSON");
        all["components"].as_array().expect("a list").clone()
    }

    /// One of them.
    pub fn component(&self, name: &str) -> Value {
        let found = self.ps().into_iter().find(|one| one["name"] == name);
        found.unwrap_or_else(|| panic!("there is no component {name}"))
    }

    /// The process of a component that lives.
    pub fn pid(&self, name: &str) -> i32 {
        let pid = self.component(name)["pid"].as_i64().unwrap_or_else(|| panic!("{name} does not run"));
        i32::try_from(pid).expect("a pid")
    }

    /// Where httpd listens, once everything is ready.
    pub fn listen(&self) -> String {
        self.wait_until_ready();
        self.component("httpd")["listen"].as_str().expect("a ready httpd says where it listens").to_owned()
    }

    /// Waits until every component is ready.
    pub fn wait_until_ready(&self) {
        wait_for("every component to be ready", || self.ps().iter().all(|one| one["state"] == "ready"));
    }

    /// What `ps` says of the supervisor: `pid`, `restarts`.
    pub fn supervisor(&self) -> Value {
        let said = self.ok(&["ps", "--json"]);
        serde_json::from_str::<Value>(&said).expect("JSON")["supervisor"].clone()
    }

    /// The keeper's process: the parent of every component's.
    pub fn keeper(&self) -> i32 {
        let living = self.ps().into_iter().find_map(|one| one["pid"].as_i64()).expect("a component lives");
        field(i32::try_from(living).expect("a pid"), "PPid").parse().expect("a pid")
    }

    /// The process that calls itself so, as components do once they are greeted; found without asking anybody.
    pub fn process(&self, name: &str) -> Option<i32> {
        let name = if name == "supervisor" { "atoll-superv" } else { name };
        let is_it =
            |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        working_in(self.state()).into_iter().find(is_it)
    }

    /// The keeper and all of its children: the supervisor, the components and the spare, which is waited for.
    pub fn processes(&self) -> Vec<i32> {
        let keeper = self.keeper();
        wait_for("a spare", || spare(keeper).is_some());
        let mut all = vec![keeper];
        all.extend(children(keeper));
        all
    }

    /// GET of a path from httpd.
    pub fn get(&self, path: &str) -> Reply {
        get(&self.listen(), path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// What the supervisor said, for the message of a panic.
    pub fn supervisor_log(&self) -> String {
        std::fs::read_to_string(self.file("logs/supervisor.log")).unwrap_or_default()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let components = std::fs::read_to_string(self.file("system.log")).unwrap_or_default();
            for (whose, log) in [("the components'", components), ("the supervisor's", self.supervisor_log())] {
                let last: Vec<&str> = log.lines().rev().take(40).collect();
                eprintln!("{whose} last lines:");
                last.iter().rev().for_each(|line| eprintln!("  | {line}"));
            }
        }
        let _ = self.atoll(&["down"]);
        // By the directory that they work in: also those that no command line reaches any more. Twice, because a
        // supervisor may be starting something while it is killed.
        for _ in 0..2 {
            for process in working_in(self.state()) {
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
        }
    }
}

/// The processes whose working directory is this one; a node's all have its state directory.
pub fn working_in(directory: &Path) -> Vec<i32> {
    let wanted = directory.canonicalize().ok();
    processes().filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).ok() == wanted).collect()
}

fn processes() -> impl Iterator<Item = i32> {
    let all = std::fs::read_dir("/proc").expect("proc is mounted");
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The living children of a process.
pub fn children(parent: i32) -> Vec<i32> {
    let parent = parent.to_string();
    processes().filter(|&pid| is_alive(pid) && field(pid, "PPid") == parent).collect()
}

/// What `ps` shows of a process: its arguments.
pub fn arguments(pid: i32) -> Vec<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|&byte| byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The process that this keeper has in store for the next run of a component, if there is one now.
pub fn spare(keeper: i32) -> Option<i32> {
    children(keeper).into_iter().find(|&pid| arguments(pid).get(1).is_some_and(|word| word == "spare"))
}

/// Whether a process exists and is not only waiting to be reaped.
pub fn is_alive(pid: i32) -> bool {
    !matches!(field(pid, "State").chars().next(), None | Some('Z' | 'X'))
}

/// A field of `/proc/PID/status`; empty if there is no such process.
pub fn field(pid: i32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// Kills a process at once, as nobody expects it.
pub fn kill_now(pid: i32) {
    signal(pid, Signal::SIGKILL);
}

/// Sends a signal to a process that exists.
pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap_or_else(|errno| panic!("{signal} to {pid}: {errno}"));
}

/// Waits until it is so.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < WATCHDOG, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a command line printed and how it ended, for the message of a panic.
pub fn said(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}{err}", output.status)
}

/// Raises a flag when it goes, also in a panic: the threads that look at it end, and the panic is seen.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks for `/file.bin` until it is over and counts the right answers. Another answer says that the file is not to be had
/// now, and none is wrong; `broken` judges the connections that break.
pub fn keep_asking(
    listen: &str,
    content: &[u8],
    over: &AtomicBool,
    right: &AtomicU64,
    broken: impl Fn(std::io::Error),
) {
    while !over.load(Ordering::Relaxed) {
        match get(listen, "/file.bin") {
            Ok(reply) if reply.status == 200 => {
                assert!(reply.body == content, "a wrong answer");
                right.fetch_add(1, Ordering::Relaxed);
            }
            Ok(reply) => assert!([500, 503].contains(&reply.status), "{}", reply.status),
            Err(error) => broken(error),
        }
    }
}

/// A number that whoever runs a test may give in its environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Numbers that look random and are the same each time, for any seed.
pub struct Random(pub u64);

impl Random {
    /// The next of them (SplitMix64).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// One GET on a connection of its own.
pub fn get(address: &str, path: &str) -> std::io::Result<Reply> {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"))
}

/// Sends a request that ends its connection, and reads the whole answer.
pub fn ask(address: &str, request: &str) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(WATCHDOG))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the answer is cut short"))
}

/// `None`: it is no whole answer.
fn parse(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse::<u16>().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = bytes[end + 4..].to_vec();
    let length = headers.iter().find(|(name, _)| name == "content-length").map(|(_, value)| value.parse::<usize>());
    match length {
        Some(Ok(length)) if body.len() != length => None,
        _ => Some(Reply { status, headers, body }),
    }
}
