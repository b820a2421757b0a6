//! What if the file server or the disk's driver is killed while it is used, or both are? Their clients see time and nothing
//! else: no call fails, none runs twice, nothing that was acknowledged is gone, synced or not, and what is being sent goes on.

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use common::http::Session;
use common::{Over, Random, System, kill_now};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Kills processes of these components at random moments while `work` goes on, one or several at once, also before the next
/// run is ready; gives how often. `SEED=123 cargo test` chooses other moments.
fn killing(system: &System, victims: &[&str], seed: u64, work: impl FnOnce(&AtomicU64)) -> u64 {
    let (over, kills) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
            println!("SEED={seed}");
            let mut numbers = Random(seed);
            while !over.load(Ordering::Relaxed) {
                let pause = if numbers.below(4) == 0 { numbers.below(15) } else { 20 + numbers.below(150) };
                std::thread::sleep(Duration::from_millis(pause));
                let components = system.ps();
                // At least one of them; which others is up to the numbers.
                let first = numbers.below(victims.len() as u64) as usize;
                for (index, victim) in victims.iter().enumerate() {
                    let found = components.iter().find(|one| one["name"] == *victim);
                    let pid = match *victim {
                        "supervisor" => system.supervisor()["pid"].as_i64(),
                        _ => found.and_then(|one| one["pid"].as_i64()).filter(|pid| *pid > 0),
                    };
                    // Between two runs there is none to be killed.
                    if let Some(pid) = pid.filter(|_| index == first || numbers.below(2) == 0) {
                        // It may have been killed by us a moment ago, as `ps` did not know yet.
                        if kill(Pid::from_raw(pid as i32), Signal::SIGKILL).is_ok() {
                            kills.fetch_add(1, Ordering::Relaxed);
                        }
                        std::thread::sleep(Duration::from_micros(numbers.below(2) * numbers.below(30_000)));
                    }
                }
            }
        });
        // Also when `work` panics, or its thread would go on for ever.
        let _over = Over(&over);
        work(&kills);
    });
    kills.load(Ordering::Relaxed)
}

fn is_sound(system: &System) {
    system.wait_until_ready();
    system.ok(&["fs", "check"]);
}

/// Downloads `/file.bin`, slowly enough for some deaths, and compares. On one connection, but for so many resets: after one
/// the rest is asked for.
fn download(system: &System, content: &[u8], pause: Duration, resets: usize) {
    let mut body = Vec::with_capacity(content.len());
    for connection in 0..=resets {
        match rest(system, &mut body, content.len(), pause) {
            Ok(()) => break,
            Err(error) if connection < resets => println!("reset after {} bytes: {error}", body.len()),
            Err(error) => panic!("the connection goes on: {error}"),
        }
    }
    let wrong = body.iter().zip(content).position(|(ours, theirs)| ours != theirs);
    assert_eq!((body.len(), wrong), (content.len(), None), "the first wrong byte");
}

/// What is left of the file, on one connection.
fn rest(system: &System, body: &mut Vec<u8>, size: usize, pause: Duration) -> std::io::Result<()> {
    let mut session = Session::new(&system.listen());
    let (range, status) = match body.len() {
        0 => (String::new(), "HTTP/1.1 200 "),
        from => (format!("Range: bytes={from}-\r\n"), "HTTP/1.1 206 "),
    };
    let request = format!("GET /file.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{range}\r\n");
    session.write(request.as_bytes());
    let (mut answer, mut piece) = (session.rest(), vec![0; 256 << 10]);
    let mut head = Vec::new();
    let from = body.len();
    loop {
        let length = answer.read(&mut piece)?;
        if length == 0 {
            break;
        }
        match head.ends_with(b"\r\n\r\n") {
            true => body.extend_from_slice(&piece[..length]),
            false => {
                head.extend_from_slice(&piece[..length]);
                let end = head.windows(4).position(|four| four == b"\r\n\r\n");
                if let Some(end) = end.map(|at| at + 4) {
                    body.extend(head.drain(end..));
                }
            }
        }
        std::thread::sleep(pause);
    }
    assert!(head.starts_with(status.as_bytes()), "{}", String::from_utf8_lossy(&head));
    assert_eq!(body.len(), size, "an orderly end before the whole is there, from {from} on");
    Ok(())
}

/// A file of so many bytes in `/www`.
fn with_file(system: &System, bytes: usize) -> Vec<u8> {
    let content = Random(9).bytes(bytes);
    let file = system.file("source.bin");
    std::fs::write(&file, &content).expect("a file to put");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/file.bin"]);
    content
}

/// Makes so many files in directories of `source`.
fn tree(source: &Path, count: u64, seed: u64) -> Vec<PathBuf> {
    let mut numbers = Random(seed);
    let make = |index| {
        let path = source.join(format!("d{}/e{}/file-{index}", index % 7, index % 3));
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("room");
        let length = numbers.below(60_000) as usize;
        std::fs::write(&path, numbers.bytes(length)).expect("room");
        path
    };
    (0..count).map(make).collect()
}

/// Puts trees, moves one file of each directory and removes another, until `is_enough`; then everything is as it should be.
fn change_trees(system: &System, seed: u64, is_enough: impl Fn() -> bool) {
    let (source, back) = (system.file("tree"), system.file("back"));
    let files = tree(&source, 200, seed);
    let (source_path, back_path) = (source.to_str().expect("UTF-8"), back.to_str().expect("UTF-8"));
    let place = |file: &Path, round: u32| {
        let below = file.strip_prefix(&source).expect("below").to_str().expect("UTF-8");
        format!("/trees/{round}/{below}")
    };
    let is_moved = |index: usize| index % 20 == 3;
    let is_removed = |index: usize| index % 20 == 5;
    system.ok(&["fs", "mkdir", "/trees"]);
    let mut rounds = 0;
    while rounds < 2 || (rounds < 8 && !is_enough()) {
        system.ok(&["fs", "put", "-r", source_path, &format!("/trees/{rounds}")]);
        for (index, file) in files.iter().enumerate() {
            let from = place(file, rounds);
            if is_moved(index) {
                system.ok(&["fs", "mv", &from, &format!("{from}.moved")]);
            } else if is_removed(index) {
                system.ok(&["fs", "rm", &from]);
            }
        }
        rounds += 1;
    }
    for round in 0..rounds {
        system.ok(&["fs", "get", "-r", &format!("/trees/{round}"), back_path]);
        for (index, file) in files.iter().enumerate() {
            let ours = back.join(file.strip_prefix(&source).expect("below"));
            if is_moved(index) || is_removed(index) {
                assert!(!ours.exists(), "{ours:?}");
            }
            if is_removed(index) {
                continue;
            }
            let mut ours = ours.into_os_string();
            if is_moved(index) {
                ours.push(".moved");
            }
            assert!(std::fs::read(&ours).expect("it came back") == std::fs::read(file).expect("a file"), "{file:?}");
        }
        std::fs::remove_dir_all(&back).expect("ours");
    }
}

#[test]
fn what_was_acknowledged_and_not_synced_is_there_after_a_kill() {
    let system = System::start(&[]);
    let file = system.file("source.bin");
    let content = Random(5).bytes(300_000);
    std::fs::write(&file, &content).expect("a file to put");
    let file = file.to_str().expect("UTF-8");
    for round in 0..5 {
        let names = ["kept", "moved", "gone"].map(|name| format!("/www/{name}-{round}"));
        let directory = format!("/d-{round}");
        system.ok(&["fs", "mkdir", &directory]);
        for name in &names {
            system.ok(&["fs", "put", file, name]);
        }
        system.ok(&["fs", "mv", &names[1], &format!("{directory}/here")]);
        system.ok(&["fs", "rm", &names[2]]);
        let stat = || -> Value {
            let said = system.ok(&["fs", "stat", "--json", &names[0]]);
            serde_json::from_str(&said).expect("JSON")
        };
        let before = stat();
        kill_now(system.pid("fs"));
        let read = system.atoll(&["fs", "cat", &names[0]]);
        assert!(
            read.stdout == content,
            "round {round}: {} bytes, {}",
            read.stdout.len(),
            String::from_utf8_lossy(&read.stderr)
        );
        assert!(system.atoll(&["fs", "cat", &format!("{directory}/here")]).stdout == content, "round {round}");
        assert!(!system.atoll(&["fs", "stat", &names[1]]).status.success());
        assert!(!system.atoll(&["fs", "stat", &names[2]]).status.success());
        let after = stat();
        for field in ["inode", "version", "modified_ns", "size", "links"] {
            assert_eq!(after[field], before[field], "{field}, round {round}");
        }
    }
    is_sound(&system);
}

#[test]
fn a_tree_is_put_whole_while_the_file_server_is_killed() {
    let system = System::start(&[]);
    let (source, back) = (system.file("tree"), system.file("back"));
    let files = tree(&source, 600, 7);
    let (source_path, back_path) = (source.to_str().expect("UTF-8"), back.to_str().expect("UTF-8"));
    let mut rounds = 0;
    let kills = killing(&system, &["fs"], 1, |kills| {
        // On a fast machine a tree takes less time than a death.
        while rounds < 3 || (rounds < 30 && kills.load(Ordering::Relaxed) < 4) {
            let round = rounds;
            rounds += 1;
            system.ok(&["fs", "put", "-r", source_path, &format!("/www/tree-{round}")]);
        }
    });
    assert!(kills > 3, "{kills} kills");
    for round in 0..rounds {
        system.ok(&["fs", "get", "-r", &format!("/www/tree-{round}"), back_path]);
        for file in &files {
            let ours = back.join(file.strip_prefix(&source).expect("below"));
            assert!(std::fs::read(&ours).expect("it came back") == std::fs::read(file).expect("a file"), "{file:?}");
        }
        std::fs::remove_dir_all(&back).expect("ours");
    }
    is_sound(&system);
}

#[test]
fn a_download_goes_on_while_the_file_server_is_killed() {
    let system = System::start(&[]);
    let content = with_file(&system, 96 << 20);
    let kills = killing(&system, &["fs"], 2, |_| download(&system, &content, Duration::from_millis(3), 0));
    assert!(kills > 3, "{kills} kills");
    is_sound(&system);
}

#[test]
fn a_download_and_changes_go_on_while_the_driver_is_killed() {
    goes_on_without(&["disk"], 3, 0);
}

#[test]
fn a_download_and_changes_go_on_while_driver_and_file_server_are_killed() {
    goes_on_without(&["disk", "fs"], 4, 0);
}

#[test]
fn a_download_and_changes_go_on_while_the_supervisor_is_killed_and_nothing_else_restarts() {
    goes_on_without(&["supervisor"], 5, 0);
}

#[test]
fn a_download_and_changes_go_on_while_everybody_behind_them_is_killed() {
    // Seldom, when all die within milliseconds of each other again and again, a connection is reset: no byte is wrong then.
    goes_on_without(&["supervisor", "fs", "disk", "net", "httpd"], 6, 5);
}

/// One connection's slow download of a file that is larger than the cache and all that sockets hold, and changes, while these
/// are killed.
fn goes_on_without(victims: &[&str], seed: u64, resets: usize) {
    let system = System::start(&["--set", "disk.size=512MiB"]);
    let content = with_file(&system, 160 << 20);
    let over = AtomicBool::new(false);
    let kills = killing(&system, victims, seed, |kills| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _over = Over(&over);
                download(&system, &content, Duration::from_millis(5), resets);
            });
            change_trees(&system, seed, || over.load(Ordering::Relaxed) && kills.load(Ordering::Relaxed) > 10);
        });
    });
    assert!(kills > 10, "{kills} kills");
    for component in system.ps() {
        let name = component["name"].as_str().expect("a name");
        assert!(victims.contains(&name) || component["restarts"] == 0, "{name} was not touched: {component}");
    }
    is_sound(&system);
    // What the last runs wrote is on the disk, and nothing else.
    let down = system.atoll(&["down"]);
    assert!(down.status.success(), "{}", common::said(&down));
    let image = system.file("disk.img");
    system.ok(&["fs", "check", "--image", image.to_str().expect("UTF-8")]);
}

/// The cache is fs's, and lies in the driver's memory.
#[test]
fn the_cache_is_warm_after_the_drivers_death() {
    let system = System::start(&[]);
    let content = with_file(&system, 8 << 20);
    download(&system, &content, Duration::ZERO, 0);
    let leased = |system: &System| system.component("disk")["leased"].as_u64().expect("a number");
    for _ in 0..3 {
        kill_now(system.pid("disk"));
        download(&system, &content, Duration::ZERO, 0);
        system.wait_until_ready();
        assert_eq!(leased(&system), 0, "nothing was read from the disk again");
    }
    is_sound(&system);
}
