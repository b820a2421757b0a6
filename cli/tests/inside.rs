//! What `atoll stat` and `atoll stuck` show of a running system, and of one whose components are dead or say nothing.

mod common;

use common::{System, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn stat(system: &System, arguments: &[&str]) -> Vec<Value> {
    let text = system.ok(&[&["stat", "--json"], arguments].concat());
    let all: Value = serde_json::from_str(&text).expect("JSON");
    all["components"].as_array().expect("a list").clone()
}

/// What one client has asked of one operation of a component, by the name of the figure.
fn figure(components: &[Value], [component, client, operation]: [&str; 3], figure: &str) -> u64 {
    let of = components.iter().find(|one| one["name"] == component).unwrap_or_else(|| panic!("{component}"));
    let rows = of["rows"].as_array().expect("a list");
    let row = rows.iter().find(|row| row["client"] == client && row["operation"] == operation);
    row.and_then(|row| row[figure].as_u64()).unwrap_or_default()
}

const FETCH: [&str; 3] = ["fs", "httpd", "fetch"];
const EVENTS: [&str; 3] = ["net", "httpd", "next_events"];

#[test]
fn stat_counts_calls_of_components_and_guests_over_all_runs_and_asks_nobody() {
    let system = System::start(&[]);
    assert_eq!(system.get("/").status, 200);
    let before = stat(&system, &[]);
    assert_eq!(figure(&before, FETCH, "calls"), 1);
    assert!(figure(&before, ["disk", "fs", "read"], "calls") > 0);
    wait_for("httpd to wait for events", || figure(&stat(&system, &["net"]), EVENTS, "in_progress") == 1);
    assert!(figure(&before, EVENTS, "max_ns") > 0);
    assert_eq!(figure(&before, ["fs", "guest atoll", "lookup"], "calls"), 0);
    assert!(!system.atoll(&["fs", "stat", "/nothing"]).status.success());
    let after = stat(&system, &["fs"]);
    assert_eq!(after.len(), 1);
    assert_eq!(figure(&after, ["fs", "guest atoll", "lookup"], "operation_errors"), 1);

    // Killed: what it has counted stays, and its next run counts on.
    let pid = system.pid("fs");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is ours");
    wait_for("another run of fs", || system.component("fs")["epoch"] == 2);
    assert!(figure(&stat(&system, &[]), FETCH, "calls") >= 1);
    wait_for("an answer", || system.get("/").status == 200);
    let killed = stat(&system, &["fs"]);
    assert!(figure(&killed, FETCH, "calls") >= 2);
    assert_eq!((&killed[0]["epoch"], &killed[0]["since_ns"]), (&Value::from(2), &after[0]["since_ns"]));

    // Stopped: it cannot answer, and need not. Neither does another supervisor lose anything.
    system.ok(&["supervisor", "restart"]);
    wait_for("httpd to wait for events", || figure(&stat(&system, &["net"]), EVENTS, "in_progress") == 1);
    kill(Pid::from_raw(system.pid("net")), Signal::SIGSTOP).expect("it is ours");
    assert_eq!(figure(&stat(&system, &["net"]), EVENTS, "in_progress"), 1);
    let shown = system.ok(&["stat", "net", "--sessions"]);
    assert!(shown.contains("next_events") && shown.contains("SESSION"), "{shown}");
    kill(Pid::from_raw(system.pid("net")), Signal::SIGCONT).expect("it is ours");

    let unknown = system.atoll(&["stat", "nobody"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nobody: no such component"));
}

#[test]
fn stuck_shows_a_guest_that_waits_for_one_that_waits_for_a_stopped_one() {
    let system = System::start(&[]);
    assert_eq!(system.ok(&["stuck"]), "nobody waits\n");
    wait_for("httpd to wait for events", || system.ok(&["stuck", "--standing"]).contains("net.net    next_events"));
    std::fs::write(system.file("file"), vec![7; 1 << 20]).expect("room");
    system.ok(&["fs", "put", system.file("file").to_str().expect("text"), "/www/file"]);
    let disk = Pid::from_raw(system.pid("disk"));
    kill(disk, Signal::SIGSTOP).expect("it is ours");
    let mut guest = system.command(&["fs", "sync"]).spawn().expect("the binary runs");
    let stuck = || -> Value { serde_json::from_str(&system.ok(&["stuck", "--json"])).expect("JSON") };
    let of = |seen: &Value, client: &str| {
        let waits = seen["waits"].as_array().expect("a list").clone();
        waits.into_iter().find(|wait| wait["client"] == client)
    };
    wait_for("both to wait", || {
        let seen = stuck();
        of(&seen, "guest atoll").is_some() && of(&seen, "fs").is_some()
    });
    let seen = stuck();
    let (guest_waits, fs_waits) = (of(&seen, "guest atoll").expect("seen"), of(&seen, "fs").expect("seen"));
    assert_eq!((&guest_waits["endpoint"], &guest_waits["operation"]), (&"fs.root".into(), &"sync".into()));
    assert_eq!((&fs_waits["host"], &fs_waits["there"]), (&"disk".into(), &"not received".into()));
    assert_eq!((&guest_waits["there"], &guest_waits["standing"]), (&"its handler waits".into(), &false.into()));
    assert_eq!((&seen["components"]["disk"], &seen["cycle"]), (&"stopped".into(), &Value::Null));
    let drawn = system.ok(&["stuck"]);
    assert!(drawn.contains("guest atoll -> fs.root sync, ") && drawn.contains("\n  fs -> disk.disk "), "{drawn}");
    assert!(drawn.contains("disk stopped\n") && drawn.contains("no cycle\n"), "{drawn}");
    kill(disk, Signal::SIGCONT).expect("it is ours");
    assert!(guest.wait().expect("it ends").success());
    assert_eq!(system.ok(&["stuck"]), "nobody waits\n");
}
