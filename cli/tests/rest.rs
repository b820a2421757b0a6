//! A system at rest sleeps: nothing polls, nothing wakes on a timer.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{System, get, wait_for};

/// How often each thread of these processes has gone to sleep by itself, by process and thread.
fn sleeps(processes: &[i32]) -> BTreeMap<(i32, String), u64> {
    let mut all = BTreeMap::new();
    for &pid in processes {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives").flatten() {
            let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            if status.starts_with("Name:\tiou-wrk-") {
                continue; // The kernel's: the last worker of a ring looks for work every five seconds.
            }
            let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let name = status.lines().next().unwrap_or_default().replace("Name:\t", "");
            let thread = format!("{name} {}", thread.file_name().to_string_lossy());
            all.insert((pid, thread), count.and_then(|count| count.trim().parse().ok()).unwrap_or(0));
        }
    }
    all
}

/// Who woke between two moments.
fn woken(before: &BTreeMap<(i32, String), u64>, after: &BTreeMap<(i32, String), u64>) -> Vec<String> {
    let changed = after.iter().filter(|(thread, count)| before.get(*thread) != Some(*count));
    changed.map(|((_, thread), count)| format!("{thread}: {count}")).collect()
}

#[test]
fn after_work_nothing_wakes() {
    let system = System::start(&[]);
    let file = system.file("source.bin");
    std::fs::write(&file, vec![7; 5 << 20]).expect("a file to put");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/file.bin"]);
    let listen = system.listen();
    for _ in 0..8 {
        assert_eq!(get(&listen, "/file.bin").expect("an answer").status, 200);
    }
    let processes = system.processes();
    assert_eq!(processes.len(), 7);
    // Timers that work has left behind end within half a minute (deadlines of its calls, the checkpoint after a change);
    // whatever polls never lets ten seconds pass.
    let quiet = || {
        let before = sleeps(&processes);
        std::thread::sleep(Duration::from_secs(10));
        let woken = woken(&before, &sleeps(&processes));
        eprintln!("woken: {woken:?}");
        woken.is_empty()
    };
    wait_for("ten quiet seconds", quiet);
    assert_eq!(get(&listen, "/file.bin").expect("an answer").status, 200);
}
