//! What if an operator stops a component, or freezes it? It stays so, whatever happens to the supervisor, and who uses it feels
//! nothing but time.

mod common;

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use common::{Random, System, get, kill_now, said, wait_for};
use kernel_ipc::component::Context;
use kernel_ipc::runtime::{self, Options, Runtime};
use protocol::fs;

/// Kills the supervisor, and waits until another one answers.
fn without_supervisor(system: &System) {
    let was = system.supervisor();
    kill_now(was["pid"].as_i64().expect("a pid") as i32);
    wait_for("another supervisor", || system.supervisor()["restarts"] != was["restarts"]);
}

fn put(system: &System, content: &[u8]) {
    let file = system.file("content");
    std::fs::write(&file, content).expect("a file");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/file.bin"]);
}

/// Asks for the file in a thread of its own; the answer comes when it comes.
fn download(listen: String) -> mpsc::Receiver<common::Reply> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(get(&listen, "/file.bin").expect("an answer")));
    receiver
}

/// Whether nothing comes for some turns of everybody: no answer may come, however long it takes.
fn is_silent(answer: &mpsc::Receiver<common::Reply>) -> bool {
    answer.recv_timeout(Duration::from_millis(300)).is_err()
}

#[test]
fn a_stopped_component_stays_down_over_supervisors_and_its_clients_wait_for_its_start() {
    let system = System::start(&[]);
    let content = Random(3).bytes(9 << 20);
    put(&system, &content);
    let (listen, before) = (system.listen(), system.component("fs"));
    let said = system.ok(&["stop", "fs"]);
    assert_eq!(said, "fs is down; `atoll start fs` starts it\n");
    let answer = download(listen);
    for _ in 0..2 {
        let fs = system.component("fs");
        assert_eq!((&fs["state"], &fs["pid"], &fs["epoch"]), (&"down".into(), &().into(), &before["epoch"]), "{fs}");
        assert_eq!(fs.get("trouble"), None, "it is nobody's fault");
        assert!(is_silent(&answer), "nobody serves the file");
        let refused = system.atoll(&["fs", "ls", "/"]);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && error.contains("`atoll start fs` starts it"), "{error}");
        assert_eq!(system.component("httpd")["state"], "ready");
        // Asked again it is no other thing.
        system.ok(&["stop", "fs"]);
        without_supervisor(&system);
    }
    let said = system.ok(&["start", "fs"]);
    assert_eq!(said, format!("fs is started, epoch {}\n", before["epoch"].as_u64().expect("a number") + 1));
    assert!(answer.recv().expect("an answer").body == content);
    assert_eq!(system.ok(&["start", "fs"]), said, "it runs");
    assert!(system.ok(&["crash", "list", "--json"]).contains("[]"), "that was no crash");
    // Also one of which its clients feel more: it ends in order.
    system.ok(&["stop", "httpd"]);
    assert_eq!(system.component("httpd")["state"], "down");
    system.ok(&["restart", "httpd"]);
    assert!(system.get("/file.bin").body == content);
    for verb in ["stop", "start", "freeze", "thaw"] {
        let refused = system.atoll(&[verb, "nobody"]);
        assert_eq!(refused.status.code(), Some(1), "{}", common::said(&refused));
    }
}

#[test]
fn what_a_stopped_component_has_answered_for_is_on_the_disk_when_the_system_is_down() {
    let system = System::start(&[]);
    let content = Random(4).bytes(3 << 20);
    put(&system, &content);
    system.ok(&["stop", "disk"]);
    system.ok(&["stop", "fs"]);
    assert_eq!(system.ok(&["down"]), "stopped, the disk is clean\n");
    system.up(&[]);
    assert!(system.get("/file.bin").body == content);
    assert!(system.ok(&["fs", "check"]).contains("no problem"));
}

/// The run that would put it in order is not there when the end is asked for, or is about to die.
#[test]
fn what_a_dead_component_has_answered_for_is_on_the_disk_when_the_system_is_down() {
    let system = System::start(&[]);
    for round in 0..6 {
        let content = Random(40 + round).bytes(2 << 20);
        put(&system, &content);
        match round {
            0 | 1 => kill_now(system.pid("fs")),
            2 | 3 => kill_now(system.pid("disk")),
            4 => drop(system.ok(&["restart", "fs"])),
            _ => drop(system.ok(&["restart", "disk"])),
        }
        assert_eq!(system.ok(&["down"]), "stopped, the disk is clean\n", "{round}");
        system.up(&[]);
        assert!(system.get("/file.bin").body == content, "{round}");
    }
    assert!(system.ok(&["fs", "check"]).contains("no problem"));
}

/// Guests call on until the very end.
#[test]
fn what_is_answered_while_the_system_ends_is_on_the_disk() {
    let system = System::start(&[]);
    for round in 0..4 {
        let (begun, has_begun) = mpsc::channel();
        let state = system.state().to_owned();
        let writer = std::thread::spawn(move || make_directories(&state, round, &begun));
        has_begun.recv().expect("it begins");
        assert_eq!(system.ok(&["down"]), "stopped, the disk is clean\n", "{round}");
        let answered = writer.join().expect("it ends with the system");
        system.up(&[]);
        let there = system.ok(&["fs", "ls", "/"]);
        let there: HashSet<&str> = there.lines().filter_map(|line| line.split_whitespace().last()).collect();
        let is_there =
            |name: &&String| there.contains(name.trim_end_matches('/')) || there.contains(&*format!("{name}/"));
        let lost: Vec<&String> = answered.iter().filter(|name| !is_there(name)).collect();
        assert!(lost.is_empty(), "round {round}: {} of {} are lost: {lost:?}", lost.len(), answered.len());
    }
}

/// Makes directories, eight at a time, until the file system is gone; says when there are some. Those that were answered.
fn make_directories(state: &Path, round: u32, begun: &mpsc::Sender<()>) -> Vec<String> {
    let runtime = Runtime::new(Options::default()).expect("a ring");
    runtime.block_on(async {
        let context = Context::guest(state, "writer").expect("a guest");
        let fs: fs::Client = context.connect("fs.root").await.expect("a session");
        let answered = Rc::new(RefCell::new(Vec::new()));
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (fs, answered, begun) = (fs.clone(), answered.clone(), begun.clone());
                runtime::spawn(async move {
                    for number in 0.. {
                        let name = format!("r{round}w{writer}n{number}");
                        if fs.mkdir(fs.root(), fs::Name::new(&name).expect("a name")).await.is_err() {
                            break;
                        }
                        answered.borrow_mut().push(name);
                        if number == 20 {
                            let _ = begun.send(());
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            let _ = writer.await;
        }
        answered.take()
    })
}

#[test]
fn a_frozen_component_is_left_alone_until_it_is_thawed() {
    let system = System::start(&["--set", "disk.size=256MiB"]);
    let content = Random(5).bytes(70 << 20);
    put(&system, &content);
    let before = system.component("httpd");
    assert_eq!(system.ok(&["freeze", "httpd"]), "httpd is frozen; `atoll thaw httpd` lets it go on\n");
    let answer = download(before["listen"].as_str().expect("it listens").to_owned());
    for _ in 0..2 {
        assert!(is_silent(&answer), "it is frozen");
        let httpd = system.component("httpd");
        assert_eq!((&httpd["state"], &httpd["pid"]), (&"frozen".into(), &before["pid"]), "{httpd}");
        without_supervisor(&system);
    }
    let stopped_by_hand = system.atoll(&["freeze", "httpd", "--json"]);
    assert!(said(&stopped_by_hand).contains("\"frozen\""), "{}", said(&stopped_by_hand));
    system.ok(&["thaw", "httpd"]);
    assert!(answer.recv().expect("an answer").body == content);
    let after = system.component("httpd");
    assert_eq!((&after["state"], &after["epoch"]), (&"ready".into(), &before["epoch"]), "it is the same run");
    // It ends in order also when it is frozen, as a part of a restart and of the system's end; and one that is killed begins unfrozen.
    system.ok(&["freeze", "fs"]);
    kill_now(system.pid("fs"));
    system.wait_until_ready();
    system.ok(&["freeze", "httpd"]);
    system.ok(&["restart", "httpd"]);
    system.wait_until_ready();
    let content = Random(6).bytes(2 << 20);
    put(&system, &content);
    for name in ["disk", "fs"] {
        system.ok(&["freeze", name]);
    }
    assert_eq!(system.ok(&["down"]), "stopped, the disk is clean\n");
    system.up(&[]);
    assert!(system.get("/file.bin").body == content);
}

/// At each moment of it: what was acknowledged is on the disk, though the disk was down, and nothing runs on.
#[test]
fn an_end_that_was_promised_comes_whoever_is_its_supervisor() {
    for (turn, stopped) in [&["disk"][..], &["fs", "disk"], &["fs"]].into_iter().enumerate() {
        let system = System::start(&[]);
        let content = Random(7 + turn as u64).bytes(2 << 20);
        put(&system, &content);
        for name in stopped {
            system.ok(&["stop", name]);
        }
        let supervisor = system.supervisor()["pid"].as_i64().expect("a pid") as i32;
        let down =
            system.command(&["down"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        std::thread::sleep(Duration::from_millis(4 * turn as u64));
        kill_now(supervisor);
        let down = down.wait_with_output().expect("it ends");
        if !down.status.success() {
            // It may have been killed before it was asked.
            wait_for("another supervisor", || system.supervisor()["pid"].as_i64() != Some(i64::from(supervisor)));
            system.ok(&["down"]);
        }
        system.up(&[]);
        assert!(system.get("/file.bin").body == content, "{stopped:?}");
        assert!(system.ok(&["fs", "check"]).contains("no problem"));
    }
}
