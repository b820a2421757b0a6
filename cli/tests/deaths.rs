//! What if a component dies? It comes back with a new epoch, its clients find it, and the system serves on at its address.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Over, System, get, keep_asking, kill_now, said, wait_for};

const COMPONENTS: [&str; 4] = ["disk", "fs", "net", "httpd"];

/// A file that is not one extent, so that a torn answer cannot look right.
fn content() -> Vec<u8> {
    (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A system with a synced file in `/www`.
fn start() -> System {
    let system = System::start(&[]);
    let file = system.file("source.bin");
    std::fs::write(&file, content()).expect("a file to put");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/file.bin"]);
    system.ok(&["fs", "sync"]);
    system
}

fn epoch(system: &System, name: &str) -> u64 {
    system.component(name)["epoch"].as_u64().expect("a number")
}

/// Waits until the file is served whole, which may take a moment: whoever was accepted by a run that died is reset.
fn serves(listen: &str) {
    wait_for("the file to be served", || {
        get(listen, "/file.bin").is_ok_and(|reply| reply.status == 200 && reply.body == content())
    });
}

/// Ends in order, with a clean disk.
fn ends_well(system: &System) {
    let down = system.atoll(&["down"]);
    assert!(down.status.success(), "{}{}", said(&down), system.supervisor_log());
    let image = system.file("disk.img");
    system.ok(&["fs", "check", "--image", image.to_str().expect("UTF-8")]);
}

#[test]
fn each_component_comes_back_with_a_new_epoch_at_the_same_address() {
    let system = start();
    let listen = system.listen();
    for name in COMPONENTS {
        let (pid, others) = (system.pid(name), COMPONENTS.map(|other| epoch(&system, other)));
        kill_now(pid);
        wait_for("the next incarnation", || epoch(&system, name) > 1);
        assert_eq!(system.listen(), listen, "after the death of {name}");
        let after = system.component(name);
        assert_eq!((after["epoch"].as_u64(), after["restarts"].as_u64()), (Some(2), Some(1)), "{after}");
        assert_ne!(system.pid(name), pid);
        assert_eq!(after["trouble"], "killed by SIGKILL");
        for (other, before) in COMPONENTS.iter().zip(others).filter(|(other, _)| **other != name) {
            assert_eq!(epoch(&system, other), before, "{other} was not touched by the death of {name}");
        }
        serves(&listen);
    }
    ends_well(&system);
}

#[test]
fn every_pair_may_die_at_once_in_either_order() {
    let system = start();
    let listen = system.listen();
    for first in COMPONENTS {
        for second in COMPONENTS.into_iter().filter(|second| *second != first) {
            let before = [epoch(&system, first), epoch(&system, second)];
            let pids = [system.pid(first), system.pid(second)];
            pids.into_iter().for_each(kill_now);
            wait_for("both next incarnations", || {
                epoch(&system, first) > before[0] && epoch(&system, second) > before[1]
            });
            assert_eq!(system.listen(), listen, "after the death of {first} and {second}");
            serves(&listen);
            system.ok(&["fs", "ls", "/www"]);
        }
    }
    ends_well(&system);
}

#[test]
fn all_may_die_at_once() {
    let system = start();
    let listen = system.listen();
    for round in 1..=3 {
        COMPONENTS.map(|name| system.pid(name)).into_iter().for_each(kill_now);
        wait_for("all next incarnations", || COMPONENTS.iter().all(|name| epoch(&system, name) > round));
        assert_eq!(system.listen(), listen);
        serves(&listen);
    }
    ends_well(&system);
}

#[test]
fn under_load_an_answer_is_right_or_an_error_whoever_dies() {
    let system = start();
    let listen = system.listen();
    let (stop, right) = (AtomicBool::new(false), AtomicU64::new(0));
    // Refused and cut off is what a client may see of a death; wrong is not.
    let pause = |_| std::thread::sleep(Duration::from_millis(5));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| keep_asking(&listen, &content(), &stop, &right, pause));
        }
        // Stopped also if this thread panics, so that the panic is seen.
        let stopper = Over(&stop);
        for round in 1..=5 {
            for name in COMPONENTS {
                system.wait_until_ready();
                let before = right.load(Ordering::Relaxed);
                kill_now(system.pid(name));
                wait_for("answers after a death", || right.load(Ordering::Relaxed) > before + 4);
                wait_for("the next incarnation", || epoch(&system, name) == round + 1);
            }
        }
        drop(stopper);
    });
    assert_eq!(system.listen(), listen);
    serves(&listen);
    ends_well(&system);
}

/// These two survive: whoever asks meanwhile waits, and hears of nothing.
#[test]
fn under_load_every_answer_is_right_when_driver_or_file_server_dies() {
    let system = start();
    let listen = system.listen();
    let (stop, right) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let content = content();
                while !stop.load(Ordering::Relaxed) {
                    let reply = get(&listen, "/file.bin").expect("nobody is refused or cut off");
                    assert_eq!(reply.status, 200);
                    assert!(reply.body == content, "a wrong answer");
                    right.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let stopper = Over(&stop);
        for round in 1..=10 {
            for name in ["disk", "fs"] {
                let before = right.load(Ordering::Relaxed);
                kill_now(system.pid(name));
                wait_for("the next incarnation", || epoch(&system, name) == round + 1);
                wait_for("answers after a death", || right.load(Ordering::Relaxed) > before + 4);
                system.wait_until_ready();
            }
        }
        drop(stopper);
    });
    for name in ["net", "httpd"] {
        assert_eq!(epoch(&system, name), 1, "{name} was not touched");
    }
    ends_well(&system);
}

/// Writes over memory of this name that a process has open: what a stray store of it might have done.
fn damage(pid: i32, name: &str, offset: u64, bytes: &[u8]) {
    let mut found = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().starts_with(&format!("/memfd:{name} ")) {
            let memory = std::fs::File::options().write(true).open(entry.path()).expect("it is ours");
            std::os::unix::fs::FileExt::write_all_at(&memory, bytes, offset).expect("inside");
            found += 1;
        }
    }
    assert_eq!(found, 1, "{name} of process {pid}");
}

/// An impossible state in the ledger of leases, a lease of another region, or one of a range that is lent already.
#[test]
fn a_driver_whose_ledger_makes_no_sense_says_so_and_begins_anew() {
    let entry = |index: u64| 4096 + 128 * index;
    for (offset, word) in [(entry(0), 9), (entry(0) + 16, 12_345), (entry(0) + 24, 1 << 40)] {
        let system = start();
        let listen = system.listen();
        // Something of it is in fs's cache, and so lent.
        serves(&listen);
        let (pid, before) = (system.pid("disk"), epoch(&system, "disk"));
        damage(pid, "atoll-leases", offset, &u64::to_le_bytes(word));
        kill_now(pid);
        wait_for("a run that begins anew", || epoch(&system, "disk") >= before + 2);
        system.wait_until_ready();
        serves(&listen);
        let log = system.ok(&["logs", "disk"]);
        assert!(log.contains("what was not durable is lost, and sessions end"), "{log}");
        assert_eq!(epoch(&system, "fs"), 1, "fs-server goes on with the next one");
        // From then on it survives as before.
        kill_now(system.pid("disk"));
        wait_for("the next run", || epoch(&system, "disk") >= before + 3);
        serves(&listen);
        system.wait_until_ready();
        assert_eq!(epoch(&system, "disk"), before + 3);
        ends_well(&system);
    }
}

/// SIGABRT is a death of the component's own making, whoever sent it.
#[test]
fn a_component_that_crashes_again_and_again_is_given_up_and_ps_says_why() {
    let system = start();
    let listen = system.listen();
    for death in 1..=5 {
        system.wait_until_ready();
        common::signal(system.pid("fs"), nix::sys::signal::Signal::SIGABRT);
        wait_for("the death to be noticed", || {
            let fs = system.component("fs");
            fs["state"] == "quarantined" || fs["restarts"].as_u64() == Some(death)
        });
    }
    wait_for("fs to be given up", || system.component("fs")["state"] == "quarantined");
    let fs = system.component("fs");
    assert_eq!(fs["trouble"], "killed by SIGABRT; given up, because it died too often");
    assert!(fs["pid"].is_null());
    // The others live, and say that they cannot serve.
    assert_eq!(get(&listen, "/file.bin").expect("httpd answers").status, 503);
    let list = system.atoll(&["fs", "ls", "/"]);
    assert_eq!(list.status.code(), Some(1));
    assert!(said(&list).contains("fs failed: killed by SIGABRT"), "{}", said(&list));
    // Its last checkpoint was not made, and the end says so.
    let down = system.atoll(&["down"]);
    assert_eq!(down.status.code(), Some(1));
    assert!(said(&down).contains("fs was down: killed by SIGABRT"), "{}", said(&down));
    // What was synced is there.
    system.up(&[]);
    serves(&system.listen());
    ends_well(&system);
}

/// What crashed is kept and can be looked at, also when the system is down; a kill from outside is no crash.
#[test]
fn crashes_are_listed_and_shown() {
    let system = start();
    let crashes = || -> serde_json::Value {
        let listed = system.ok(&["crash", "list", "--json"]);
        serde_json::from_str::<serde_json::Value>(&listed).expect("JSON")["crashes"].clone()
    };
    assert_eq!(crashes(), serde_json::json!([]));
    for (signal, restarts) in [(nix::sys::signal::Signal::SIGKILL, 1), (nix::sys::signal::Signal::SIGABRT, 2)] {
        system.wait_until_ready();
        common::signal(system.pid("fs"), signal);
        wait_for("the next run", || system.component("fs")["restarts"] == restarts);
    }
    system.wait_until_ready();
    ends_well(&system);
    let listed = crashes();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!((&listed[0]["component"], &listed[0]["epoch"]), (&"fs".into(), &2.into()), "{listed}");
    let shown = system.ok(&["crash", "show", "1"]);
    assert!(shown.starts_with("fs of epoch 2, ") && shown.contains("killed by SIGABRT"), "{shown}");
    assert!(system.ok(&["crash", "list"]).lines().count() == 2);
    let failed = system.atoll(&["crash", "show", "7"]);
    assert!(said(&failed).contains("crash 7"), "{}", said(&failed));
    assert_eq!(failed.status.code(), Some(1));
}
