//! How a system starts and ends: in order, by signals, by violence; and what the command line says of it.

mod common;

use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use common::{System, is_alive, kill_now, said, signal, wait_for, working_in};
use nix::sys::signal::Signal;

/// `atoll up` in the foreground, in a process group of its own as a shell starts it, once everything is ready.
fn foreground(system: &System) -> Child {
    let mut command = system.up_command(&[]);
    let up = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    wait_for("the system to be up", || {
        let ps = system.atoll(&["ps", "--json"]);
        ps.status.success() && String::from_utf8_lossy(&ps.stdout).matches("\"ready\"").count() == 4
    });
    up
}

fn nothing_is_left(system: &System) {
    wait_for("every process to be gone", || !working_in(system.state()).into_iter().any(is_alive));
    let ps = system.atoll(&["ps"]);
    assert_eq!(ps.status.code(), Some(3), "{}", said(&ps));
}

fn check_image(system: &System) {
    system.ok(&["fs", "check", "--image", system.file("disk.img").to_str().expect("UTF-8")]);
}

#[test]
fn a_signal_to_the_foreground_ends_everything_in_order() {
    for by in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let system = System::empty();
        let up = foreground(&system);
        // To the whole group, as a terminal does it.
        signal(-i32::try_from(up.id()).expect("a pid"), by);
        let output = up.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{by}: {}", said(&output));
        assert!(said(&output).contains("stopped, the disk is clean"), "{by}: {}", said(&output));
        nothing_is_left(&system);
        check_image(&system);
    }
}

#[test]
fn a_signal_to_the_foreground_ends_everything_in_order_whoever_supervises_then() {
    let system = System::empty();
    let up = foreground(&system);
    for round in 0..3 {
        kill_now(system.supervisor()["pid"].as_i64().expect("a pid") as i32);
        assert_eq!(system.supervisor()["restarts"], round + 1);
    }
    // And once more when it is to end.
    let last = system.supervisor()["pid"].as_i64().expect("a pid") as i32;
    signal(i32::try_from(up.id()).expect("a pid"), Signal::SIGINT);
    // It may have ended by now.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(last), Signal::SIGKILL);
    let output = up.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}{}", said(&output), system.supervisor_log());
    assert!(said(&output).contains("stopped, the disk is clean"), "{}", said(&output));
    nothing_is_left(&system);
    check_image(&system);
    // The manifest of the node that ran is one for the next.
    let kept = system.file("manifest");
    let kept = kept.to_str().expect("UTF-8");
    system.up(&[kept]);
    assert_eq!(system.ps().len(), 4);
    assert!(std::fs::metadata(kept).expect("it is there").len() > 100);
}

/// The keeper does not wait for a supervisor that does not take up the wish.
#[test]
fn a_signal_to_the_foreground_ends_everything_also_when_the_supervisor_hangs() {
    let system = System::empty();
    let up = foreground(&system);
    let keeper = system.keeper();
    let supervisor = common::children(keeper).into_iter().find(|&pid| common::field(pid, "Name") == "atoll-superv");
    signal(supervisor.expect("a supervisor"), Signal::SIGSTOP);
    for _ in 0..2 {
        signal(i32::try_from(up.id()).expect("a pid"), Signal::SIGINT);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let output = up.wait_with_output().expect("it ends");
    assert!(!output.status.success(), "{}", said(&output));
    nothing_is_left(&system);
    check_image(&system);
}

#[test]
fn killing_the_foreground_ends_everything_in_order() {
    let system = System::empty();
    let up = foreground(&system);
    system.ok(&["fs", "mkdir", "/not-synced"]);
    kill_now(i32::try_from(up.id()).expect("a pid"));
    up.wait_with_output().expect("it ends");
    nothing_is_left(&system);
    check_image(&system);
    // In order: also what nobody has synced is there.
    system.up(&[]);
    system.ok(&["fs", "stat", "/not-synced"]);
}

#[test]
fn killing_the_keeper_leaves_nothing_and_the_foreground_says_so() {
    let system = System::empty();
    let up = foreground(&system);
    system.ok(&["fs", "mkdir", "/synced"]);
    system.ok(&["fs", "sync"]);
    kill_now(system.keeper());
    let output = up.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("the keeper died"), "{}", said(&output));
    nothing_is_left(&system);
    check_image(&system);
    system.up(&[]);
    system.ok(&["fs", "stat", "/synced"]);
}

#[test]
fn a_supervisor_that_crashes_again_and_again_ends_the_node_in_order_and_the_end_is_told() {
    let system = System::start(&[]);
    system.ok(&["fs", "mkdir", "/not-synced"]);
    let keeper = system.keeper();
    for _ in 0..5 {
        let mut victim = None;
        common::wait_for("a supervisor", || {
            let of = |pid: &i32| {
                common::field(*pid, "Name") == "atoll-superv" && common::field(*pid, "State").starts_with(['S', 'R'])
            };
            victim = common::children(keeper).into_iter().find(of);
            victim.is_some()
        });
        signal(victim.expect("just found"), Signal::SIGABRT);
        common::wait_for("its end", || !common::children(keeper).contains(&victim.expect("just found")));
    }
    nothing_is_left(&system);
    check_image(&system);
    system.up(&[]);
    system.ok(&["fs", "stat", "/not-synced"]);
}

#[test]
fn after_everything_was_killed_it_starts_again_with_what_was_synced() {
    let system = System::start(&[]);
    system.ok(&["fs", "mkdir", "/www/synced"]);
    system.ok(&["fs", "sync"]);
    let all = system.processes();
    assert_eq!(all.len(), 7);
    all.iter().copied().for_each(kill_now);
    wait_for("all to be dead", || !all.iter().any(|&pid| is_alive(pid)));
    // The socket is still there, and nobody listens.
    assert!(system.file("atoll.sock").exists());
    let ps = system.atoll(&["ps"]);
    assert_eq!(ps.status.code(), Some(3), "{}", said(&ps));
    check_image(&system);
    system.up(&[]);
    system.ok(&["fs", "stat", "/www/synced"]);
    assert_eq!(system.get("/").status, 200);
    system.ok(&["down"]);
    nothing_is_left(&system);
}

#[test]
fn a_second_up_on_the_same_state_is_refused_and_harms_nothing() {
    let system = System::start(&[]);
    for detach in [&["--detach"][..], &[]] {
        let second = system.up_command(detach).output().expect("the binary runs");
        assert_eq!(second.status.code(), Some(1));
        assert!(said(&second).contains("a system runs on"), "{}", said(&second));
    }
    assert_eq!(system.get("/").status, 200);
    assert_eq!(system.processes().len(), 7);
    system.ok(&["down"]);
}

#[test]
fn a_port_that_is_taken_fails_the_start_with_the_reason_and_leaves_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let set = format!("httpd.listen={}", taken.local_addr().expect("bound"));
    let system = System::empty();
    let up = system.up_command(&["--set", &set, "--detach"]).output().expect("the binary runs");
    assert_eq!(up.status.code(), Some(1));
    for words in ["component httpd", "cannot listen on 127.0.0.1:", "another program listens there"] {
        assert!(said(&up).contains(words), "{}", said(&up));
    }
    nothing_is_left(&system);
    check_image(&system);
    drop(taken);
    system.up(&["--set", &set]);
    assert_eq!(format!("httpd.listen={}", system.listen()), set);
}

#[test]
fn a_disk_that_is_none_fails_the_start_with_the_components_own_words() {
    let system = System::empty();
    let up =
        system.up_command(&["--set", "disk.path=/proc/self/status", "--detach"]).output().expect("the binary runs");
    assert_eq!(up.status.code(), Some(1));
    assert!(said(&up).contains("component disk") && said(&up).contains("/proc/self/status"), "{}", said(&up));
    nothing_is_left(&system);
}

/// A component is killed while the system waits for another one to stop: it cannot end in order any more.
#[test]
fn down_says_who_did_not_end_in_order() {
    let system = System::start(&[]);
    let (disk, net) = (system.pid("disk"), system.pid("net"));
    system.ok(&["fs", "mkdir", "/www/not-synced"]);
    signal(net, Signal::SIGSTOP);
    let down =
        system.command(&["down"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    wait_for("net's turn to stop", || !is_alive_named(&system, "httpd"));
    kill_now(disk);
    signal(net, Signal::SIGCONT);
    let down = down.wait_with_output().expect("it ends");
    assert_eq!(down.status.code(), Some(1), "{}", said(&down));
    assert!(!said(&down).contains("the disk is clean"), "{}", said(&down));
    assert!(said(&down).contains("disk was down: killed by SIGKILL"), "{}", said(&down));
    assert!(said(&down).contains("fs: exited with code 1"), "{}", said(&down));
    nothing_is_left(&system);
    check_image(&system);
}

/// Whether a process of this name works in the system's directory.
fn is_alive_named(system: &System, name: &str) -> bool {
    working_in(system.state()).into_iter().any(|pid| is_alive(pid) && common::field(pid, "Name") == name)
}

#[test]
fn a_hung_component_delays_ps_by_its_share_and_is_shown() {
    let system = System::start(&[]);
    let pid = system.pid("net");
    signal(pid, Signal::SIGSTOP);
    let ps = system.ps();
    assert_eq!(ps.len(), 4);
    signal(pid, Signal::SIGCONT);
    assert_eq!(system.get("/").status, 200);
    system.ok(&["down"]);
}

#[test]
fn a_dead_system_still_tells_its_logs() {
    let system = System::start(&[]);
    kill_now(system.pid("fs"));
    wait_for("the death to be noticed", || system.component("fs")["epoch"] == 2);
    system.wait_until_ready();
    let living = system.ok(&["logs", "fs"]);
    assert!(living.contains("atoll: killed by SIGKILL"), "{living}");
    system.ok(&["down"]);
    assert!(system.ok(&["logs", "fs"]).starts_with(&living));
    assert!(system.ok(&["logs"]).contains("fs: atoll: killed by SIGKILL"));
    let json: serde_json::Value = serde_json::from_str(&system.ok(&["logs", "--json"])).expect("JSON");
    assert!(json["lines"].as_array().is_some_and(|lines| !lines.is_empty()));
    assert_eq!(system.atoll(&["logs", "nobody"]).status.code(), Some(1));
    assert_eq!(System::empty().atoll(&["logs"]).status.code(), Some(3));
}
