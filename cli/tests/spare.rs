//! What of the process that waits to be a component's next run?

mod common;

use common::{System, arguments, kill_now, spare, wait_for, working_in};

/// One that waits, and not one that has been given something to do since.
fn wait_for_a_spare(system: &System) -> i32 {
    let keeper = system.keeper();
    wait_for("a spare", || spare(keeper).is_some());
    spare(keeper).expect("nobody needs it")
}

fn die_and_come_back(system: &System, name: &str) -> i32 {
    let before = system.pid(name);
    kill_now(before);
    wait_for("its next run", || {
        let now = system.component(name);
        now["state"] == "ready" && now["pid"] != before
    });
    system.pid(name)
}

#[test]
fn the_next_run_of_a_component_begins_in_the_process_that_waits() {
    let system = System::start(&[]);
    for (name, program) in [("httpd", "httpd"), ("fs", "fs-server"), ("disk", "block-file"), ("net", "net-host")] {
        let waits = wait_for_a_spare(&system);
        assert_eq!(die_and_come_back(&system, name), waits, "{name}");
        assert_eq!(arguments(waits), ["atoll", "serve", program]);
        let descriptor = |number| std::fs::read_link(format!("/proc/{waits}/fd/{number}")).expect("it is open");
        assert_eq!(descriptor(0).to_str(), Some("/dev/null"));
        assert!(descriptor(2).to_string_lossy().starts_with("pipe:"), "what it says goes to its log");
    }
    assert_eq!(system.get("/").status, 200);
    let waits = wait_for_a_spare(&system);
    assert!(system.ok(&["down"]).contains("the disk is clean"));
    wait_for("the end of all processes", || working_in(system.state()).is_empty());
    assert_eq!(arguments(waits), [""; 0]);
}

#[test]
fn without_one_a_process_is_made() {
    let system = System::start(&[]);
    for _ in 0..5 {
        let waits = wait_for_a_spare(&system);
        kill_now(waits);
        assert_ne!(die_and_come_back(&system, "httpd"), waits);
        assert_eq!(system.get("/").status, 200);
    }
}
