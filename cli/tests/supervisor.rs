//! What if an operator wants another supervisor, or the program has changed meanwhile?

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use common::{Over, Random, System, field, kill_now, said};
use serde_json::Value;

#[test]
fn another_supervisor_takes_over_while_files_are_put_and_nothing_else_restarts() {
    let system = System::start(&[]);
    let before = system.ps();
    let file = system.file("source.bin");
    let content = Random(3).bytes(8 << 20);
    std::fs::write(&file, &content).expect("a file to put");
    let file = file.to_str().expect("UTF-8");
    std::thread::scope(|scope| {
        let put = scope.spawn(|| {
            for n in 0..10 {
                system.ok(&["fs", "put", file, &format!("/www/{n}")]);
            }
        });
        for restarts in 0..20u64 {
            let was = system.supervisor();
            assert_eq!(was["restarts"], restarts);
            let line = system.ok(&["supervisor", "restart"]);
            assert!(line.ends_with(&format!("has taken over from {}\n", was["pid"])), "{line}");
        }
        put.join().expect("every file was put");
    });
    let told: Value = serde_json::from_str(&system.ok(&["supervisor", "restart", "--json"])).expect("JSON");
    assert_eq!(told["restarts"], 21);
    assert_eq!(told["pid"], system.supervisor()["pid"]);
    let table = system.ok(&["ps"]);
    assert!(table.lines().any(|line| line.starts_with("supervisor") && line.contains("21")), "{table}");
    for n in 0..10 {
        assert!(system.get(&format!("/{n}")).body == content, "file {n}");
    }
    for (before, after) in before.iter().zip(system.ps()) {
        for what in ["pid", "epoch", "restarts", "listen"] {
            assert_eq!(before[what], after[what], "{}: {what}", before["name"]);
        }
    }
    assert!(system.ok(&["down"]).contains("the disk is clean"));
}

/// Also if it dies before it has answered, or while it lets somebody in.
#[test]
fn what_an_operator_asks_is_answered_whoever_dies_meanwhile() {
    let system = System::start(&[]);
    let (over, deaths) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Random(5);
            while !over.load(Relaxed) {
                kill_now(system.supervisor()["pid"].as_i64().expect("a pid") as i32);
                deaths.fetch_add(1, Relaxed);
                std::thread::sleep(Duration::from_millis(dice.below(60)));
            }
        });
        let _over = Over(&over);
        // However fast the machine is.
        while deaths.load(Relaxed) < 12 {
            assert!(system.ok(&["ps"]).contains("httpd"));
            system.ok(&["logs"]);
            system.ok(&["restart", "httpd"]);
            assert!(system.ok(&["call", "control", "ps", "{\"cursor\": 0}"]).contains("httpd"));
            system.ok(&["interface", "show", "control"]);
        }
    });
    assert!(system.ok(&["down"]).contains("the disk is clean"));
}

/// The binary that the running supervisor is, as device and inode.
fn program_of(pid: &Value) -> (u64, u64) {
    let exe = std::fs::metadata(format!("/proc/{pid}/exe")).expect("it lives");
    (exe.dev(), exe.ino())
}

#[test]
fn a_program_that_has_changed_is_what_the_next_supervisor_runs_unless_it_does_not_work() {
    let system = System::empty();
    let program = system.file("program");
    let ours = env!("CARGO_BIN_EXE_atoll");
    // By a name of its own first, so that nobody executes what is still being written.
    let put = |make: &dyn Fn(&std::path::Path)| {
        let new = system.file("new");
        make(&new);
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).expect("ours");
        std::fs::rename(&new, &program).expect("the same directory");
        let found = std::fs::metadata(&program).expect("just put");
        (found.dev(), found.ino())
    };
    let copied = |new: &std::path::Path| {
        assert!(Command::new("cp").arg(ours).arg(new).status().expect("cp").success());
    };
    let first = put(&copied);
    let state = system.state().join("s");
    let run = |arguments: &[&str]| {
        let output = Command::new(&program).env("ATOLL_STATE", &state).args(arguments).output().expect("it runs");
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    run(&["up", "--detach", "--set", "httpd.listen=127.0.0.1:0", "--set", "disk.size=64MiB"]);
    let restart = |run: &dyn Fn(&[&str]) -> String| -> Value {
        serde_json::from_str(&run(&["supervisor", "restart", "--json"])).expect("JSON")
    };
    let told = restart(&run);
    assert_eq!(program_of(&told["pid"]), first);
    let second = put(&copied);
    assert_ne!(second, first);
    let told = restart(&run);
    assert_eq!(program_of(&told["pid"]), second, "the new program");
    // One that does not work is tried once.
    put(&|new| std::fs::write(new, b"no program").expect("room"));
    let with_ours = |arguments: &[&str]| {
        let output = Command::new(ours).env("ATOLL_STATE", &state).args(arguments).output().expect("it runs");
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let told = restart(&with_ours);
    assert_eq!(program_of(&told["pid"]), first, "the keeper's own");
    let listed: Value = serde_json::from_str(&with_ours(&["ps", "--json"])).expect("JSON");
    for component in listed["components"].as_array().expect("a list") {
        assert_eq!(component["epoch"], 1, "{component}");
        assert_eq!(field(component["pid"].as_i64().expect("a pid") as i32, "State").chars().next(), Some('S'));
    }
    with_ours(&["down"]);
}
