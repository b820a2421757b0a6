//! Does `atoll chaos` do what it says, and say what happened?

mod common;

use common::{System, said};
use serde_json::Value;

#[test]
fn chaos_disturbs_and_finds_every_effect_once() {
    let system = System::start(&[]);
    let before = system.component("fs");
    let report: Value =
        serde_json::from_str(&system.ok(&["chaos", "--json", "--only", "fs", "--seconds", "4", "--rate", "4"]))
            .expect("JSON");
    let disturbances = report["disturbances"].as_array().expect("a list");
    let count = |kind: &str| -> u64 {
        let of_kind = disturbances.iter().filter(|row| row["kind"] == kind);
        of_kind.map(|row| row["count"].as_u64().expect("a number")).sum()
    };
    assert!(count("kill") > 0 && count("kill") + count("stop") + count("delay") > 4, "{report}");
    assert!(disturbances.iter().all(|row| row["component"] == "fs"), "{report}");
    assert_eq!((&report["failed"], &report["wrong"]), (&Value::from(0), &Value::Array(Vec::new())), "{report}");
    assert!(report["calls"].as_u64() > Some(100), "{report}");
    assert_eq!(report["restarts"]["fs"], count("kill"), "{report}");
    assert_eq!(report["restarts"]["disk"], 0, "{report}");
    let after = system.component("fs");
    assert_eq!(after["epoch"].as_u64(), before["epoch"].as_u64().map(|epoch| epoch + count("kill")));
    assert_eq!(after["state"], "ready", "whoever was stopped goes on");
    assert_eq!(system.ok(&["fs", "ls", "/"]), "www/\n", "it clears up");
    system.ok(&["fs", "check"]);
}

/// Every process but the keeper, the supervisor among them.
#[test]
fn chaos_finds_every_effect_once_whoever_dies() {
    let system = System::start(&[]);
    let arguments = ["chaos", "--json", "--kinds", "kill", "--seconds", "6", "--rate", "5", "--seed", "5"];
    let report: Value = serde_json::from_str(&system.ok(&arguments)).expect("JSON");
    let killed: Vec<&str> =
        report["disturbances"].as_array().expect("a list").iter().filter_map(|row| row["component"].as_str()).collect();
    for name in ["disk", "fs", "net", "httpd", "supervisor"] {
        assert!(killed.contains(&name), "{report}");
        assert!(report["restarts"][name].as_u64() > Some(0), "{report}");
    }
    assert_eq!((&report["failed"], &report["wrong"]), (&Value::from(0), &Value::Array(Vec::new())), "{report}");
    system.wait_until_ready();
    system.ok(&["fs", "check"]);
}

#[test]
fn chaos_for_nobody_or_nothing_is_refused() {
    let system = System::start(&[]);
    let refused = system.atoll(&["chaos", "--only", "nobody"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("nobody: no such component"), "{}", said(&refused));
    assert_eq!(system.atoll(&["chaos", "--kinds", "tickle"]).status.code(), Some(2));
    assert_eq!(system.atoll(&["chaos", "--rate", "0.001"]).status.code(), Some(2));
    let endless = system.atoll(&["chaos", "--rate", "0", "--count", "1"]);
    assert_eq!(endless.status.code(), Some(2));
    assert!(said(&endless).contains("--count would never be reached"), "{}", said(&endless));
}

#[test]
fn the_demo_shows_copies_and_downloads_that_are_equal_while_every_server_dies() {
    let system = System::empty();
    let shown: Value =
        serde_json::from_str(&system.ok(&["demo", "crash", "--seconds", "4", "--size", "8", "--json"])).expect("JSON");
    for server in ["disk", "fs", "net"] {
        assert!(shown["deaths"][server].as_u64() > Some(0), "{shown}");
    }
    assert!(shown["copies"].as_u64() > Some(0) && shown["downloads"].as_u64() > Some(0), "{shown}");
    assert_eq!(shown["troubles"], Value::Array(Vec::new()), "{shown}");
}
