//! Power cuts at any moment of random histories: what is found afterwards is a prefix of the acknowledged history that
//! contains everything before the last completed sync, and the volume is clean.
//!
//! `SEED=123 cargo test -p fs-server power_cut` replays one history, `COUNT=5000 cargo test …` runs more of them.
//!
//! - Some actors work at once, each in a directory of its own, so each has a history in order; beside them somebody syncs.
//! - The cut drops, keeps or tears what was not flushed, each block on its own. The next mount may be cut too, and after it
//!   the histories go on.
//! - *Prefix*: if the effect of an operation is there, so are those of all that had been acknowledged before it began. An
//!   operation that was in progress is there, or not, or in part as its interface allows: a write up to a multiple of 1 MiB,
//!   a truncation the zeros after the new end within its block.

mod support;

use fs_server::device::Environment;
use fs_server::simulated::{Behaviour, Random, SimulatedDevice, SimulatedEnvironment};
use fs_server::{Error, FormatOptions, Structure};
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use support::{Disk, Model, Operation, apply, format, mount, names, snapshot};

const ACTORS: u8 = 3;
/// Blocks of the volume, and bytes that an actor's files have at most: of three actors they fill half of it, so that blocks
/// are used again soon. One history in eight has files of more than one extent.
const SMALL: (u64, usize) = (400, 100_000);
const LARGE: (u64, usize) = (2400, 1_400_000);
const CHUNK: u64 = 1 << 20;

/// An operation that changes something.
struct Entry {
    operation: Operation,
    start: u64,
    acknowledged: Option<u64>,
    after: Model,
}

#[derive(Default)]
struct Log {
    tick: u64,
    /// What each actor found at the beginning, and its operations since.
    actors: Vec<(Model, Vec<Entry>)>,
    /// When completed syncs began.
    syncs: Vec<u64>,
    wrong: Option<String>,
}

impl Log {
    fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }
}

/// How the state of one actor can have come about: so many operations, and perhaps a part of the next.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    whole: usize,
    part: bool,
}

fn operation(random: &mut Random, actor: u8) -> Operation {
    let path = |random: &mut Random| {
        let depth = 1 + random.below(3).min(random.below(3));
        let mut path = vec![actor];
        path.extend((0..depth).map(|_| random.below(3) as u8));
        path
    };
    let at = path(random);
    let offset = match random.below(4) {
        0 => 0,
        1 => random.below(10_000),
        2 => CHUNK - random.below(9_000),
        _ => random.below(40) * 4096,
    };
    let length = match random.below(6) {
        0 => 4096,
        1 => random.below(300_000) as usize + 1,
        _ => random.below(9000) as usize + 1,
    };
    let fill = random.word() as u8;
    match random.below(18) {
        0..4 => Operation::Create(at),
        4..6 => Operation::Mkdir(at),
        6..10 => Operation::Write(at, offset, length, fill),
        10..12 => Operation::Append(at, length, fill),
        12..14 => Operation::Truncate(at, random.below(3) * random.below(60_000)),
        14 => Operation::Unlink(at),
        15 => Operation::Rmdir(at),
        _ => Operation::Rename(at, path(random)),
    }
}

fn bytes(model: &Model) -> usize {
    match model {
        Model::File(bytes) => bytes.len(),
        Model::Directory(entries) => entries.values().map(bytes).sum(),
    }
}

async fn pause(mut turns: u64) {
    poll_fn(|cx| {
        if turns == 0 {
            return Poll::Ready(());
        }
        turns -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn act(volume: Disk, log: Rc<RefCell<Log>>, actor: u8, max_bytes: usize, mut random: Random) {
    loop {
        // What needs no device would go on without end in one step.
        pause(1 + random.below(8)).await;
        let operation = operation(&mut random, actor);
        let index = usize::from(actor);
        let (expected, changes) = {
            let mut log = log.borrow_mut();
            let start = log.tick();
            let (first, entries) = &mut log.actors[index];
            let before = entries.last().map_or(&*first, |entry| &entry.after);
            let mut after = before.clone();
            let expected = after.apply(&operation);
            if bytes(&after) > max_bytes {
                continue;
            }
            let changes = &after != before;
            if changes {
                entries.push(Entry { operation: operation.clone(), start, acknowledged: None, after });
            }
            (expected, changes)
        };
        let got = apply(&volume, &operation).await;
        let mut log = log.borrow_mut();
        if got != expected {
            log.wrong.get_or_insert(format!("{operation:?} gave {got:?} instead of {expected:?}"));
            return;
        }
        let now = log.tick();
        if let Some(entry) = log.actors[index].1.last_mut().filter(|_| changes) {
            entry.acknowledged = Some(now);
        }
    }
}

async fn keep_syncing(volume: Disk, log: Rc<RefCell<Log>>, mut random: Random) {
    loop {
        pause(random.below(200)).await;
        let start = log.borrow_mut().tick();
        let result = volume.sync().await;
        let mut log = log.borrow_mut();
        match result {
            Ok(()) => log.syncs.push(start),
            Err(error) => drop(log.wrong.get_or_insert(format!("sync gave {error}"))),
        }
    }
}

/// What an operation that was in progress may have left: never more than its interface says.
fn parts(before: &Model, operation: &Operation) -> Vec<Model> {
    let mut parts = Vec::new();
    let size = |path: &[u8]| match before.clone().get(&names(path)) {
        Ok(Model::File(bytes)) => bytes.len() as u64,
        _ => 0,
    };
    match operation {
        Operation::Write(path, offset, length, fill) => {
            for boundary in (0..=offset + *length as u64).step_by(CHUNK as usize).filter(|boundary| boundary > offset) {
                let whole = support::pattern(*length, *fill);
                let mut part = before.clone();
                if let Ok(Model::File(bytes)) = part.get(&names(path)) {
                    let (from, to) = (*offset as usize, boundary as usize);
                    bytes.resize(bytes.len().max(to), 0);
                    bytes[from..to].copy_from_slice(&whole[..to - from]);
                }
                parts.push(part);
            }
        }
        Operation::Append(path, length, fill) => {
            let offset = size(path);
            let write = Operation::Write(path.clone(), offset, *length, *fill);
            parts = self::parts(before, &write);
        }
        Operation::Truncate(path, to) if *to < size(path) => {
            let end = to.next_multiple_of(4096).min(size(path));
            let mut part = before.clone();
            if let Ok(Model::File(bytes)) = part.get(&names(path)) {
                bytes[*to as usize..end as usize].fill(0);
            }
            parts.push(part);
        }
        _ => {}
    }
    parts
}

fn describe(model: &Model, depth: usize) -> String {
    match model {
        Model::File(bytes) => format!("{} bytes, sum {:08x}\n", bytes.len(), fs_server::device::crc32c(bytes)),
        Model::Directory(entries) => entries.iter().fold("\n".to_owned(), |text, (name, below)| {
            let below = describe(below, depth + 1);
            format!("{text}{}{}: {below}", "  ".repeat(depth), name.escape_ascii())
        }),
    }
}

/// Says why `found` is not what a power cut may leave of a history.
fn judge(log: &Log, found: &Model) -> Result<(), String> {
    let last_sync = log.syncs.iter().copied().max().unwrap_or(0);
    let mut candidates: Vec<Vec<Candidate>> = Vec::new();
    for (actor, (first, entries)) in log.actors.iter().enumerate() {
        let name = names(&[actor as u8]).remove(0);
        let only = |model: &Model| match model {
            Model::Directory(entries) => entries.get(&name).cloned(),
            Model::File(_) => None,
        };
        let found = only(found);
        let least = entries.iter().filter(|entry| entry.acknowledged.is_some_and(|at| at < last_sync)).count();
        let mut mine = Vec::new();
        for whole in least..=entries.len() {
            let state = if whole == 0 { first } else { &entries[whole - 1].after };
            if only(state) == found {
                mine.push(Candidate { whole, part: false });
            }
            let Some(next) = entries.get(whole) else { continue };
            if parts(state, &next.operation).iter().any(|part| only(part) == found) {
                mine.push(Candidate { whole, part: true });
            }
        }
        if mine.is_empty() {
            let had: String = (least..=entries.len())
                .map(|whole| match whole.checked_sub(1).map(|last| &entries[last]) {
                    Some(Entry { operation, after, acknowledged, .. }) => {
                        let end = if acknowledged.is_some() { "" } else { " (in progress)" };
                        let after = only(after).map_or(String::new(), |after| describe(&after, 1));
                        format!("\n{whole}. {operation:?}{end}{after}")
                    }
                    None => String::new(),
                })
                .collect();
            return Err(format!(
                "actor {actor}: its directory is in no state that it had since operation {least} of {}:{had}\nfound {}",
                entries.len(),
                found.as_ref().map_or(String::new(), |found| describe(found, 1))
            ));
        }
        candidates.push(mine);
    }
    let mut choice = vec![0; candidates.len()];
    loop {
        let chosen: Vec<Candidate> = choice.iter().zip(&candidates).map(|(&index, all)| all[index]).collect();
        if is_prefix(log, &chosen) {
            return Ok(());
        }
        let Some(next) = (0..choice.len()).find(|&actor| choice[actor] + 1 < candidates[actor].len()) else {
            return Err(format!("no prefix of the history: {candidates:?}"));
        };
        choice[..next].fill(0);
        choice[next] += 1;
    }
}

/// No operation is there that began after another was acknowledged that is not.
fn is_prefix(log: &Log, chosen: &[Candidate]) -> bool {
    let mut latest_start = 0;
    let mut earliest_missing = u64::MAX;
    for (candidate, (_, entries)) in chosen.iter().zip(&log.actors) {
        let begun = candidate.whole + usize::from(candidate.part);
        latest_start = entries[..begun].iter().map(|entry| entry.start).fold(latest_start, u64::max);
        let missing = entries[candidate.whole..].iter().filter_map(|entry| entry.acknowledged);
        earliest_missing = missing.fold(earliest_missing, u64::min);
    }
    latest_start < earliest_missing
}

fn string(error: Error) -> String {
    error.to_string()
}

/// What was seen on the way, so that a test that exercises nothing is noticed.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    operations: usize,
    syncs: usize,
    lost: usize,
}

/// Runs one history with three cuts, or with one after so many steps.
fn history(seed: u64, flush_works: bool, cut_after: Option<u64>, seen: &mut Seen) -> Result<(), String> {
    let mut random = Random::new(seed);
    let environment = SimulatedEnvironment::new(random.word());
    let behaviour = Behaviour { yields: true, flush_works, records: true, ..Behaviour::default() };
    let (blocks, max_bytes) = if random.one_in(8) { LARGE } else { SMALL };
    let mut device = SimulatedDevice::new(blocks, random.word(), Behaviour { flush_works: true, ..behaviour });
    let node_copies = 1 + random.below(2) as u8;
    let mut volume = format(&environment, &device, FormatOptions { node_copies, name_hash_bits: 64 });
    let mut model = Model::empty();
    for actor in 0..ACTORS {
        let operation = Operation::Mkdir(vec![actor]);
        model.apply(&operation).map_err(string)?;
        environment.run(apply(&volume, &operation)).map_err(string)?;
    }
    environment.run(volume.sync()).map_err(string)?;
    device.behave(behaviour);
    for _ in 0..if cut_after.is_some() { 1 } else { 3 } {
        let log = Rc::new(RefCell::new(Log::default()));
        for actor in 0..ACTORS {
            log.borrow_mut().actors.push((model.clone(), Vec::new()));
            let actor = act(volume.clone(), Rc::clone(&log), actor, max_bytes, Random::new(random.word()));
            environment.spawn(Box::pin(actor));
        }
        let syncing = keep_syncing(volume.clone(), Rc::clone(&log), Random::new(random.word()));
        environment.spawn(Box::pin(syncing));
        let steps = cut_after.unwrap_or(random.below(1500));
        environment.run_for(steps, std::future::pending::<()>());

        device = device.cut_power(random.word());
        environment.crash();
        drop(volume);
        environment.crash();
        let log = log.take();
        if let Some(wrong) = log.wrong {
            return Err(wrong);
        }

        // Nothing but the pack, which is written after all else was flushed, may be found half written.
        let report = environment.run(fs_server::check(&device, &mut |_| ())).map_err(string)?;
        let torn = |problem: &&fs_server::Problem| problem.structure == Structure::CheckpointPack;
        if report.problems.iter().filter(torn).count() as u64 != report.damaged_copies
            || report.problem_count != report.damaged_copies
        {
            return Err(format!("before the mount: {:#?}", report.lines()));
        }
        if random.one_in(3) {
            let steps = random.below(40);
            environment.run_for(
                steps,
                fs_server::Volume::mount(device.clone(), environment.clone(), support::small_options()),
            );
            device = device.cut_power(random.word());
            environment.crash();
        }
        volume = mount(&environment, &device).map_err(string)?;
        let found = environment.run(snapshot(&volume, volume.root())).map_err(string)?;
        let report = environment.run(volume.check(&mut |_| ())).map_err(string)?;
        if !report.is_clean() {
            return Err(format!("{:#?}", report.lines()));
        }
        judge(&log, &found)?;
        let last = log.actors.iter().map(|(first, entries)| entries.last().map_or(first, |entry| &entry.after));
        seen.lost += usize::from(last.zip(0..ACTORS).any(|(last, actor)| {
            let name = names(&[actor]);
            last.clone().get(&name).ok() != found.clone().get(&name).ok()
        }));
        seen.operations += log.actors.iter().map(|(_, entries)| entries.len()).sum::<usize>();
        seen.syncs += log.syncs.len();
        model = found;
    }
    Ok(())
}

#[test]
fn power_cut_leaves_a_prefix_of_the_history_with_all_that_was_synced() {
    let mut seen = Seen::default();
    if let Ok(seed) = std::env::var("SEED") {
        let seed = seed.parse().expect("SEED is a number");
        history(seed, true, None, &mut seen).unwrap_or_else(|why| panic!("{why}"));
        println!("seed {seed}: {seen:?}");
        return;
    }
    let count = std::env::var("COUNT").map_or(120, |count| count.parse().expect("COUNT is a number"));
    for seed in 0..count {
        if let Err(why) = history(seed, true, None, &mut seen) {
            panic!("SEED={seed} cargo test -p fs-server power_cut\n{why}");
        }
    }
    println!("{seen:?}");
    assert!(seen.operations > 10_000 && seen.syncs > 500 && seen.lost > 100, "the histories do little: {seen:?}");
}

/// Between any two steps that the device sees.
#[test]
fn power_cut_at_each_step_of_a_history() {
    for seed in [1, 2] {
        for steps in 0..500 {
            if let Err(why) = history(seed, true, Some(steps), &mut Seen::default()) {
                panic!("seed {seed}, cut after {steps} steps: {why}");
            }
        }
    }
}

#[test]
fn power_cut_without_flushes_is_noticed() {
    let noticed = (0..20).filter(|&seed| history(seed, false, None, &mut Seen::default()).is_err()).count();
    assert!(noticed > 10, "a device that ignores flushes was noticed in {noticed} of 20 histories only");
}

/// What the lives of one process after the other have done.
#[derive(Default)]
struct Lives {
    /// After each change that was asked for.
    states: Vec<Model>,
    /// The first of them that a cut may leave.
    least: usize,
    wrong: Option<String>,
}

/// Changes files of one block or two, and syncs now and then.
async fn live(volume: Disk, lives: Rc<RefCell<Lives>>, mut random: Random) {
    loop {
        pause(1 + random.below(4)).await;
        let asked = lives.borrow().states.len() - 1;
        if random.one_in(5) {
            let result = volume.sync().await;
            let mut lives = lives.borrow_mut();
            match result {
                Ok(()) => lives.least = asked,
                Err(error) => drop(lives.wrong.get_or_insert(format!("sync gave {error}"))),
            }
            continue;
        }
        let path = vec![random.below(6) as u8];
        let operation = match random.below(6) {
            0 | 1 => Operation::Create(path),
            2..5 => {
                Operation::Write(path, 4096 * random.below(3), 1 + random.below(8000) as usize, random.word() as u8)
            }
            _ => Operation::Unlink(path),
        };
        let mut after = lives.borrow().states[asked].clone();
        if after.apply(&operation).is_ok() {
            lives.borrow_mut().states.push(after);
            if let Err(error) = apply(&volume, &operation).await {
                lives.borrow_mut().wrong.get_or_insert(format!("{operation:?} gave {error}"));
            }
        }
    }
}

/// The process dies a few times before the power is cut. What is found each time; how many changes were lost in the end.
fn deaths_before_a_cut(seed: u64) -> Result<usize, String> {
    let mut random = Random::new(seed);
    let environment = SimulatedEnvironment::new(random.word());
    let behaviour = Behaviour { yields: true, records: true, ..Behaviour::default() };
    let mut device = SimulatedDevice::new(SMALL.0, random.word(), behaviour);
    let node_copies = 1 + random.below(2) as u8;
    let mut volume = format(&environment, &device, FormatOptions { node_copies, name_hash_bits: 64 });
    let lives = Rc::new(RefCell::new(Lives { states: vec![Model::empty()], ..Lives::default() }));
    for life in 0..4 {
        environment.spawn(Box::pin(live(volume.clone(), Rc::clone(&lives), Random::new(random.word()))));
        environment.run_for(random.below(400), std::future::pending::<()>());
        environment.crash();
        drop(volume);
        environment.crash();
        let is_last = life == 3;
        if is_last {
            device = device.cut_power(random.word());
        }
        let report = environment.run(fs_server::check(&device, &mut |_| ())).map_err(string)?;
        let torn = |problem: &&fs_server::Problem| problem.structure == Structure::CheckpointPack;
        if report.problems.iter().filter(torn).count() as u64 != report.problem_count {
            return Err(format!("life {life}: {:#?}", report.lines()));
        }
        volume = mount(&environment, &device).map_err(string)?;
        let found = environment.run(snapshot(&volume, volume.root())).map_err(string)?;
        let mut lives = lives.borrow_mut();
        if let Some(wrong) = lives.wrong.take() {
            return Err(wrong);
        }
        let least = lives.least;
        let Some(at) = (least..lives.states.len()).find(|at| lives.states[*at] == found) else {
            let was = lives.states.iter().position(|state| *state == found);
            return Err(format!("life {life}: as after change {was:?}, not {least} to {}", lives.states.len() - 1));
        };
        if is_last {
            return Ok(lives.states.len() - 1 - at);
        }
        lives.states.truncate(at + 1);
    }
    unreachable!("the last life returns")
}

#[test]
fn power_cut_after_deaths_of_the_process_alone() {
    let mut lost = 0;
    for seed in 0..300 {
        lost += deaths_before_a_cut(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(lost > 100, "the cuts lose little: {lost}");
}
