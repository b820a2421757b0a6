//! The proof of survival: a system whose processes, the keeper's apart, are killed again and again, while every effect and every
//! byte is compared with a model: at moments of a seed (here), and at each step of each protocol ([`steps`]).
//!
//! `cargo test` kills a few. The whole is
//!
//! ```sh
//! KILLS=10000 cargo test --release -p atoll --test proof -- --nocapture --test-threads 1
//! PASSINGS=1,2,17 cargo test -p atoll --test proof steps -- --nocapture
//! ```
//!
//! `SEED=7` chooses other moments, `RATE=35` so many kills a second, `ONLY=net,fs` kills only these. What it found: `docs/proof.md`.
//!
//! - **Effects**: the workers of `atoll chaos` create, append, rename, unlink, list and read back, each beside a model.
//! - **Bytes**: slow [`readers`]. The file server's cache holds a part of one file, so ranges of the region are used again at once;
//!   all pages are sent without a copy, so that the kernel goes on reading them while their senders and lenders die.
//! - **Sinks**: loopback, and another namespace behind an `ifb` device, where what is sent waits its turn.
//! - At the end the volume is checked, running and at rest.
//! - **Power**: the driver keeps a record of its writes and flushes. What a cut of the power would have left, amid the kills and right
//!   after the last, is the disk of another system: its volume is clean, and the files, which had been synced, are what they were.

#[path = "../common/mod.rs"]
mod common;
mod guests;
mod readers;
mod steps;

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::network::Network;
use common::power::{self, RECORD, RECORDED};
use common::{Over, Random, System, number};
use drivers::block::Replay;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use readers::{BYTES, Seen};
use serde_json::Value;

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

/// What a system of the proof is started with.
fn sets() -> Vec<&'static str> {
    let zero_copy: &[&str] = if nix::unistd::geteuid().is_root() { &ZERO_COPY } else { &[] };
    [&SETS[..], &RECORDED, zero_copy].concat()
}

fn proof(network: Option<&Network>, sink: &str) {
    let (kills, rate, seed) = (number("KILLS", 30), number("RATE", 12), number("SEED", 1));
    let address = network.map_or("127.0.0.1", |_| common::network::SERVER);
    let listen = format!("httpd.listen={address}:0");
    let listen = ["--set", &listen];
    let system = System::start(&[&sets()[..], &listen].concat());
    let synced = readers::put_files(&system);
    println!("{sink}: SEED={seed} KILLS={kills} RATE={rate}");
    let seen = Seen::default();
    let start = Instant::now();
    let report = watch(&system, network.map(Network::client), &seen, [kills, rate, seed]);
    let killed = killed(&report);
    println!("{sink}: {killed} kills in {:.0} s: {}", start.elapsed().as_secs_f64(), told(&report, &seen));
    println!("{sink}: restarts {}", report["restarts"]);
    judge(&report, &seen, killed, 2 + kills / 200);
    assert!(killed >= kills, "{report}");
    check(&system, synced, &listen);
}

/// What was done meanwhile, for people.
fn told(report: &Value, seen: &Seen) -> String {
    format!(
        "{} calls, {} repeated, {} from a ledger; {} downloads, {} MiB, {} broken; {} requests, {} broken",
        report["calls"],
        report["repeated"],
        report["from_ledger"],
        seen.downloads.load(Relaxed),
        seen.bytes.load(Relaxed) >> 20,
        seen.broken(),
        report["requests"],
        report["broken_connections"],
    )
}

/// Panics if anything was not as the models say. Known, and no violation up to `resets`: who is killed in the microseconds in
/// which it accepts a connection resets it.
fn judge(report: &Value, seen: &Seen, killed: u64, resets: u64) {
    let wrong = seen.wrong();
    assert!(wrong.is_empty(), "VIOLATION after {killed} kills: {}", wrong.join("\n"));
    assert!(report["wrong"] == Value::Array(Vec::new()), "VIOLATION after {killed} kills: {}", report["wrong"]);
    assert!(report["failed"] == 0, "VIOLATION after {killed} kills: {}", report["failures"]);
    let broken = seen.broken() + report["broken_connections"].as_u64().expect("a number");
    assert!(broken <= resets, "VIOLATION after {killed} kills: {broken} connections were reset");
    assert!(seen.downloads.load(Relaxed) > 0, "nothing was downloaded");
}

/// Checks the volume, running and at rest, and after cuts of the power since the files were `synced`.
fn check(system: &System, synced: u64, listen: &[&str]) {
    let over = power::position(system);
    system.wait_until_ready();
    system.ok(&["fs", "check"]);
    let down = system.atoll(&["down"]);
    assert!(down.status.success(), "{}", common::said(&down));
    system.ok(&["fs", "check", "--image", system.file("disk.img").to_str().expect("UTF-8")]);
    cut_power(system, synced, over, listen);
}

/// Cuts the power twice amid the kills, and when the last was over: each time another system starts on what is left.
fn cut_power(system: &System, synced: u64, over: u64, listen: &[&str]) {
    let mut random = Random(number("SEED", 1));
    let mut replay = Replay::open(&system.file(RECORD)).expect("a record");
    let mut moments = [(); 2].map(|()| synced + random.below(over - synced));
    moments.sort_unstable();
    for moment in moments.into_iter().chain([over]) {
        assert!(power::go_to(&mut replay, moment), "the record ends before {moment}");
        let next = power::start_on(&power::cut(&replay, &mut random), replay.blocks(), listen);
        next.ok(&["fs", "check"]);
        let wrong = readers::other_files(&next);
        assert!(wrong.is_empty(), "VIOLATION: after a cut of the power at {moment} of the record, {wrong:?}");
        next.ok(&["down"]);
    }
    println!("the power was cut at {moments:?} and at {over} of the record");
}

fn killed(report: &Value) -> u64 {
    let rows = report["disturbances"].as_array().expect("a list");
    rows.iter().map(|row| row["count"].as_u64().expect("a number")).sum()
}

/// Lets `atoll chaos` kill while readers read; what it reported. It ends at the first wrong byte.
fn watch(system: &System, client: Option<&File>, seen: &Seen, [kills, rate, seed]: [u64; 3]) -> Value {
    let listen = system.listen().parse().expect("an address");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        seen.start(scope, listen, client, seed, &over);
        // Also when this thread panics, or the readers would go on for ever.
        let _over = Over(&over);
        let [kills, rate, seed] = [kills, rate, seed].map(|number| number.to_string());
        let arguments = ["chaos", "--json", "--kinds", "kill", "--count", &kills, "--rate", &rate, "--seed", &seed];
        let mut chaos = system.command(&arguments);
        for name in std::env::var("ONLY").iter().flat_map(|names| names.split(',')) {
            chaos.args(["--only", name]);
        }
        reported(start(chaos), || !seen.wrong().is_empty())
    })
}

fn start(mut chaos: Command) -> Child {
    chaos.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs")
}

/// What `atoll chaos` reports when it has ended, or is interrupted because it `is_enough`.
fn reported(mut chaos: Child, is_enough: impl Fn() -> bool) -> Value {
    while chaos.try_wait().expect("it is ours").is_none() {
        if is_enough() {
            let _ = kill(Pid::from_raw(i32::try_from(chaos.id()).expect("a pid")), Signal::SIGINT);
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = chaos.wait_with_output().expect("it is ours");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("VIOLATION: chaos: {}", common::said(&output)))
}
