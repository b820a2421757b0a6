//! What if the file server is killed while it is used? Its clients see time and nothing else: no call fails, none runs
//! twice, and nothing that was acknowledged is gone, synced or not.

mod common;

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use common::http::Session;
use common::{Random, System, kill_now, wait_for};

/// Kills the file server at random moments while `work` goes on; gives how often.
fn killing(system: &System, seed: u64, work: impl FnOnce(&AtomicU64)) -> u64 {
    let (over, kills) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut numbers = Random(seed);
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20 + numbers.below(150)));
                // Between two runs there is none to be killed.
                if let Some(pid) = system.component("fs")["pid"].as_i64().filter(|pid| *pid > 0) {
                    kill_now(i32::try_from(pid).expect("a process"));
                    kills.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        // Also when `work` panics, or its thread would go on for ever.
        let _over = Over(&over);
        work(&kills);
    });
    kills.load(Ordering::Relaxed)
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn is_sound(system: &System) {
    wait_for("the file server to serve", || system.component("fs")["state"] == "ready");
    system.ok(&["fs", "check"]);
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
    let mut numbers = Random(7);
    let mut files = Vec::new();
    for index in 0..600u64 {
        let path = source.join(format!("d{}/e{}/file-{index}", index % 7, index % 3));
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("room");
        let length = numbers.below(60_000) as usize;
        std::fs::write(&path, numbers.bytes(length)).expect("room");
        files.push(path);
    }
    let (source_path, back_path) = (source.to_str().expect("UTF-8"), back.to_str().expect("UTF-8"));
    let mut rounds = 0;
    let kills = killing(&system, 1, |kills| {
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
    let content = Random(9).bytes(96 << 20);
    let file = system.file("source.bin");
    std::fs::write(&file, &content).expect("a file to put");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/file.bin"]);
    let kills = killing(&system, 2, |_| {
        let mut session = Session::new(&system.listen());
        session.write(b"GET /file.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut answer = Vec::new();
        let mut rest = session.rest();
        let mut piece = vec![0; 256 << 10];
        loop {
            let length = rest.read(&mut piece).expect("the connection goes on");
            if length == 0 {
                break;
            }
            answer.extend_from_slice(&piece[..length]);
            // Slowly enough for some deaths.
            std::thread::sleep(Duration::from_millis(3));
        }
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
        assert!(answer[head..] == content, "{} of {} bytes", answer.len() - head, content.len());
    });
    assert!(kills > 3, "{kills} kills");
    is_sound(&system);
}
