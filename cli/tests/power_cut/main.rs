//! What if the power is cut while everybody dies, or right after? All that had been synced is there, with its right bytes; what
//! had not is there as it was at some moment, or not at all; and the volume is clean.
//!
//! A system runs under load while its driver, file server, network server, httpd and supervisor are killed. Its driver keeps a
//! record (`drivers/src/block/record`), from which follows what a disk that drops what was not flushed may hold after a cut at any
//! moment. At the end the keeper is killed, and with it all. Then the power is cut, right then and at moments before: after
//! flushes, between them, in the middle of writes.
//!
//! `SEED=7` chooses other moments of everything, `KILLS=500 RATE=30` kills more, `CUTS=1000` looks at more cuts.

#[path = "../common/mod.rs"]
mod common;
mod history;
mod left;
mod load;

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::power::{self, RECORD, RECORDED};
use common::{Over, Random, System, number};
use drivers::block::{Replay, Step};
use history::{History, Put};
use kernel_ipc::component::Context;
use kernel_ipc::runtime::{self, Options, Runtime};
use load::Load;
use serde_json::Value;

const DISK: [&str; 2] = ["--set", "disk.size=128MiB"];
/// Bytes and number of the files that are put.
const PUT: usize = 1_400_000;
const PUTS: usize = 16;

/// A system that lived under load until it was cut off.
struct Played {
    system: System,
    history: History,
    /// Where in the record the load began.
    began: u64,
    seed: u64,
}

impl Played {
    fn replay(&self) -> Replay {
        Replay::open(&self.system.file(RECORD)).expect("a record")
    }
}

/// Lets `atoll chaos` kill while workers work; then ends all at once.
fn play(seed: u64, kills: u64) -> Played {
    let seed = number("SEED", seed);
    let (kills, rate) = (number("KILLS", kills).to_string(), number("RATE", 8).to_string());
    println!("SEED={seed} KILLS={kills} RATE={rate}");
    let system = System::start(&[&RECORDED[..], &DISK].concat());
    system.ok(&["fs", "mkdir", &format!("/{}", left::PUTS)]);
    system.ok(&["fs", "sync"]);
    let over = AtomicBool::new(false);
    let (mut history, began, puts) = std::thread::scope(|scope| {
        let putting = scope.spawn(|| keep_putting(&system, seed, &over));
        let _over = Over(&over);
        let runtime = Runtime::new(Options::default()).expect("io_uring");
        let (history, began) = runtime.block_on(async {
            let context = Context::guest(system.state(), "atoll").expect("the system takes guests");
            let load = Load::start(context, system.file(RECORD), seed).await;
            let began = power::position(&system);
            let arguments =
                ["chaos", "--json", "--kinds", "kill", "--workers", "2", "--count", &kills, "--rate", &rate];
            let mut chaos = system.command(&arguments);
            let mut chaos = chaos.args(["--seed", &seed.to_string()]).stdout(Stdio::piped()).spawn().expect("it runs");
            while chaos.try_wait().expect("it is ours").is_none() {
                runtime::sleep(Duration::from_millis(20)).await;
            }
            let output = chaos.wait_with_output().expect("it is ours");
            let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            println!("restarts {}", report["restarts"]);
            assert_eq!((&report["failed"], &report["wrong"]), (&0.into(), &Value::Array(Vec::new())), "{report}");
            for name in ["disk", "fs", "net", "httpd", "supervisor"] {
                assert!(report["restarts"][name].as_u64() > Some(0), "{report}");
            }
            (load.end().await, began)
        });
        over.store(true, Relaxed);
        (history, began, putting.join().expect("files are put"))
    });
    history.puts = puts;
    power::cut_off(&system);
    assert!(history.wrong.is_empty(), "{:#?}", history.wrong);
    Played { system, history, began, seed }
}

/// Puts files of more than one extent, and syncs each.
fn keep_putting(system: &System, seed: u64, over: &AtomicBool) -> Vec<Put> {
    let (mut random, mut puts) = (Random(seed * 100 + 98), Vec::new());
    while !over.load(Relaxed) && puts.len() < PUTS {
        let (name, content) = (format!("put-{}", puts.len()), random.bytes(PUT));
        let source = system.file("source");
        std::fs::write(&source, &content).expect("room for a file");
        let began = power::position(system);
        system.ok(&["fs", "put", source.to_str().expect("UTF-8"), &format!("/{}/{name}", left::PUTS)]);
        system.ok(&["fs", "sync"]);
        puts.push(Put { name, content, began, synced: power::position(system) });
        std::thread::sleep(Duration::from_millis(random.below(300)));
    }
    puts
}

/// What was seen, so that a test that exercises nothing is noticed.
#[derive(Debug, Default)]
struct Seen {
    flushes: u64,
    runs: u64,
    /// Changes, or pieces of them, that a dead run of the driver had under way.
    found: u64,
    cuts: u64,
    /// Cuts that lost something which had been answered and not synced.
    lost: u64,
}

#[test]
fn a_power_cut_amid_deaths_leaves_all_that_was_synced_and_nothing_else_than_there_was() {
    let played = play(1, 40);
    let Played { history, began, .. } = &played;
    let (mut seen, mut steps) = (Seen::default(), 0);
    let mut replay = played.replay();
    while let Some(step) = power::step(&mut replay) {
        steps += u64::from(replay.position() >= *began);
        seen.flushes += u64::from(step == Step::Flushed);
        seen.runs += u64::from(step == Step::Run);
        seen.found += u64::from(step == Step::Found);
    }
    let (mut random, cuts) = (Random(played.seed * 100 + 97), number("CUTS", 100));
    let mut look = |replay: &Replay, random: &mut Random| {
        let left = power::cut(replay, random);
        let judged = left::look(&left, replay.blocks()).and_then(|found| history.judge(replay.position(), &found));
        let lost = judged.unwrap_or_else(|wrong| panic!("VIOLATION, SEED={}: {wrong}", played.seed));
        seen.cuts += 1;
        seen.lost += u64::from(lost > 0);
        left
    };
    let mut replay = played.replay();
    assert!(power::go_to(&mut replay, *began), "the record goes on behind the beginning");
    while let Some(step) = power::step(&mut replay) {
        // Three times as often right after a flush.
        let chance = if step == Step::Flushed { 3 * cuts } else { cuts };
        if random.below(steps) < chance {
            look(&replay, &mut random);
        }
    }
    // Right after all deaths; and a new system goes on from there.
    for _ in 0..3 {
        let left = look(&replay, &mut random);
        let system = power::start_on(&left, replay.blocks(), &[]);
        system.ok(&["fs", "check"]);
        history.judge(replay.position(), &left::read(&system)).unwrap_or_else(|wrong| panic!("VIOLATION: {wrong}"));
        system.ok(&["down"]);
        system.ok(&["fs", "check", "--image", system.file("disk.img").to_str().expect("UTF-8")]);
    }
    println!(
        "{} changes, {} syncs, {} puts, {} MiB of record: {seen:?}",
        history.changes(),
        history.syncs.len(),
        history.puts.len(),
        replay.position() >> 20
    );
    assert!(history.changes() > 200 && history.syncs.len() > 5 && !history.puts.is_empty(), "there was no load");
    assert!(
        seen.flushes > 0 && seen.runs > 1 && seen.cuts > cuts / 2 && seen.lost > 0,
        "the cuts show little: {seen:?}"
    );
}

#[test]
fn a_device_that_does_not_flush_is_noticed() {
    let played = play(2, 25);
    let (mut random, mut noticed, mut tried) = (Random(played.seed), 0, 0);
    let mut honest = played.replay();
    for sync in &played.history.syncs {
        // Only one in which something became durable.
        if sync.began < honest.position() || !power::go_to(&mut honest, sync.began) {
            continue;
        }
        let mut broken = honest.clone();
        broken.ignore_flushes(true);
        if !power::go_to(&mut broken, sync.position) {
            continue;
        }
        let left = power::cut(&broken, &mut random);
        let judged = left::look(&left, broken.blocks());
        let judged = judged.and_then(|found| played.history.judge(sync.position, &found));
        tried += 1;
        noticed += u32::from(judged.is_err());
    }
    println!("a device that ignores the flushes of one sync was noticed in {noticed} of {tried} cuts");
    assert!(tried > 5 && noticed * 2 > tried, "it was noticed in {noticed} of {tried} cuts only");
}
