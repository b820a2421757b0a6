//! What if the manifest of a running system changes? What has changed is restarted, everything else goes on; and whatever dies
//! meanwhile, the system has one manifest or the other, whole.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Random, System, get, kill_now, said, wait_for};
use kernel_ipc::steps::{self, Steps};
use serde_json::{Value, json};

const WEB: &str = include_str!("../../systems/web.toml");
const NULL: &str = "\n[component.null]\nrun = \"builtin:null\"\nprovides.null = \"atoll.null/1\"\n";

/// A manifest in a directory of its own.
fn manifest(system: &System, directory: &str, text: &str) -> String {
    let directory = system.file(directory);
    fs::create_dir_all(&directory).expect("a directory");
    let path = directory.join("web.toml");
    fs::write(&path, text).expect("a file");
    path.to_str().expect("UTF-8").to_owned()
}

/// The built-in system as tests start it: a free port, a small disk.
fn web() -> String {
    WEB.replace("127.0.0.1:8080", "127.0.0.1:0").replace("4GiB", "256MiB")
}

fn start(manifest: &str, system: &System) {
    let output = system.command(&["up", "--detach", manifest]).output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// What `apply` says that becomes of each component.
fn changes(said: &Value) -> Vec<(String, String)> {
    let word = |change: &Value, key: &str| change[key].as_str().unwrap_or_default().to_owned();
    let all = said["changes"].as_array().expect("a list");
    all.iter().map(|change| (word(change, "component"), word(change, "change"))).collect()
}

fn is(component: &str, change: &str) -> (String, String) {
    (component.into(), change.into())
}

fn kept(system: &System) -> (String, PathBuf) {
    let text = |name: &str| fs::read_to_string(system.file(name)).expect("it is kept");
    (text("manifest"), text("manifest.base").into())
}

#[test]
fn what_has_changed_is_restarted_and_everything_else_goes_on() {
    let system = System::empty();
    let path = manifest(&system, "here", &web());
    start(&path, &system);
    let content = Random(7).bytes(5 << 20);
    let file = system.file("content");
    fs::write(&file, &content).expect("a file");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/file.bin"]);
    let pids = |names: &[&str]| names.iter().map(|name| system.pid(name)).collect::<Vec<_>>();
    let before = pids(&["disk", "fs", "net", "httpd"]);

    let shown = json(&system.ok(&["apply", &path, "--json"]));
    assert_eq!((&shown["applied"], &shown["components"]), (&json!(false), &Value::Null), "nothing changes: {shown}");

    // Another one elsewhere, in another order: nothing but the names says who is who.
    let changed = web().replace("config = { listen", "refuse_after_ms = 500\nconfig = { listen");
    let other = manifest(
        &system,
        "there",
        &changed.replace("[system]\nname = \"web\"", &format!("{NULL}[system]\nname = \"web\"")),
    );
    let dry = system.ok(&["apply", &other, "--dry-run"]);
    assert!(dry.contains("httpd      restarted  `refuse_after_ms` changed"), "{dry}");
    assert_eq!((pids(&["disk", "fs", "net", "httpd"]), kept(&system).0), (before.clone(), web()), "it was dry");
    let done = json(&system.ok(&["apply", &other, "--json"]));
    let mut said = changes(&done);
    said.sort();
    let unchanged = ["disk", "fs", "net"].map(|name| is(name, "unchanged"));
    assert_eq!(said[..2], [unchanged[0].clone(), unchanged[1].clone()]);
    assert_eq!(said[2..], [is("httpd", "restarted"), unchanged[2].clone(), is("null", "added")]);
    assert_eq!(pids(&["disk", "fs", "net"]), before[..3], "nobody else was touched");
    assert_ne!(system.pid("httpd"), before[3]);
    assert_eq!(kept(&system), (fs::read_to_string(&other).expect("a file"), system.file("there")));
    let null = system.component("null");
    assert_eq!((&null["state"], &null["restarts"]), (&json!("ready"), &json!(0)), "{null}");
    assert!(system.get("/file.bin").body == content);
    assert!(system.ok(&["apply", &other]).starts_with("nothing changes"));

    // The next supervisor has the same, and starts the same.
    let was = system.supervisor();
    kill_now(was["pid"].as_i64().expect("a pid") as i32);
    wait_for("another supervisor", || system.supervisor()["restarts"] != was["restarts"]);
    assert_eq!(pids(&["disk", "fs", "net"]), before[..3]);
    for name in ["null", "disk"] {
        let epoch = system.component(name)["epoch"].clone();
        kill_now(system.pid(name));
        wait_for("its next run", || system.component(name)["epoch"] != epoch);
    }
    system.wait_until_ready();
    assert!(system.get("/file.bin").body == content);

    // Back again, with a file system that begins anew: what it had is on the disk, and its user follows.
    let smaller = web().replace("64MiB", "32MiB");
    let path = manifest(&system, "here", &smaller);
    let disk = system.pid("disk");
    let done = json(&system.ok(&["apply", &path, "--json"]));
    let of = |name: &str| changes(&done).into_iter().find(|(of, _)| of == name).map(|(_, change)| change);
    let ended = ["fs", "httpd", "null", "disk"].map(|name| of(name).unwrap_or_default());
    assert_eq!(ended, ["restarted", "restarted", "removed", "unchanged"], "{done}");
    assert!(system.ps().iter().all(|one| one["name"] != "null"));
    assert_eq!(system.pid("disk"), disk);
    assert!(get(&system.listen(), "/file.bin").expect("an answer").body == content);
    // Whoever comes next is not taken for whoever had its place.
    let path = manifest(&system, "here", &(smaller + &NULL.replace("null]", "nothing]")));
    system.ok(&["apply", &path, "--yes"]);
    let nothing = system.component("nothing");
    assert_eq!((&nothing["state"], &nothing["restarts"]), (&json!("ready"), &json!(0)), "{nothing}");
    system.ok(&["call", "nothing.null", "null"]);
    assert!(system.ok(&["crash", "list", "--json"]).contains("[]"));
    assert_eq!(system.ok(&["down"]), "stopped, the disk is clean\n");
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_touched() {
    let system = System::empty();
    let path = manifest(&system, "here", &web());
    start(&path, &system);
    let before = system.ps();
    let cases = [
        (web().replace("fs.root", "files.root"), "there is no component `files`"),
        (web().replace("\"web\"", "\"other\""), "cannot be called other while it runs"),
        ("atoll = ".into(), "problem"),
    ];
    for (text, words) in cases {
        let path = manifest(&system, "there", &text);
        for arguments in [&["apply", &path][..], &["apply", &path, "--dry-run"], &["apply", &path, "--json"]] {
            let refused = system.atoll(arguments);
            assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
            assert!(said(&refused).contains(words), "{}", said(&refused));
        }
    }
    for nowhere in ["/nowhere", "/dev/null"] {
        assert_eq!(system.atoll(&["apply", nowhere]).status.code(), Some(1));
    }
    // One that has something to put in order before it can begin anew, and does not serve.
    let smaller = manifest(&system, "there", &web().replace("64MiB", "32MiB"));
    system.ok(&["stop", "fs"]);
    let refused = system.atoll(&["apply", &smaller]);
    assert!(said(&refused).contains("`atoll start fs`") && refused.status.code() == Some(1), "{}", said(&refused));
    system.ok(&["start", "fs"]);
    system.wait_until_ready();
    // Not the one of which the plan was.
    let path = manifest(&system, "there", &(web() + NULL));
    let call = json!({"manifest": path, "fingerprint": 1}).to_string();
    assert!(said(&system.atoll(&["call", "control", "apply", &call])).contains("Changed"));
    let same = |one: &Value| [one["name"].clone(), one["state"].clone()];
    assert_eq!(system.ps().iter().map(same).collect::<Vec<_>>(), before.iter().map(same).collect::<Vec<_>>());
    assert_eq!(kept(&system), (web(), system.file("here")));
    system.ok(&["down"]);
    assert_eq!(system.atoll(&["apply", &path]).status.code(), Some(3));
}

#[test]
fn a_program_that_does_not_come_to_serve_is_named_and_can_be_put_right() {
    let system = System::empty();
    let path = manifest(&system, "here", &web());
    start(&path, &system);
    let disk = system.pid("disk");
    let broken = web() + "\n[component.absent]\nrun = \"program:absent\"\n";
    let path = manifest(&system, "here", &broken);
    let failed = system.atoll(&["apply", &path]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(said(&failed).contains("absent does not serve"), "{}", said(&failed));
    assert_eq!((kept(&system).0, system.pid("disk")), (broken, disk));
    let path = manifest(&system, "here", &web());
    system.ok(&["apply", &path]);
    assert_eq!((system.ps().len(), system.pid("disk")), (4, disk));
}

/// Where a supervisor dies, and whether the new manifest is decided on by then.
const DEATHS: [(&str, bool); 6] = [
    ("apply/made", false),
    ("apply/decided", true),
    ("apply/ended", true),
    ("apply/ready", true),
    ("apply/half", true),
    ("adopt/reconciled", true),
];

#[test]
fn whenever_a_supervisor_dies_the_system_has_one_manifest_or_the_other() {
    if !steps::ARE_THERE {
        return println!("skipped: steps are in builds with debug assertions only");
    }
    let system = System::empty();
    let steps = Steps::create(system.state(), DEATHS.map(|(step, _)| ("supervisor", step))).expect("room");
    let small = web().replace("64MiB", "32MiB") + NULL;
    let both = [("here", web()), ("there", small)].map(|(place, text)| (manifest(&system, place, &text), place, text));
    start(&both[0].0, &system);
    let disk = system.pid("disk");
    let mut has = 0;
    for (row, (step, is_decided)) in DEATHS.into_iter().enumerate() {
        let (path, ..) = &both[1 - has];
        let plan =
            json(&system.ok(&["call", "control", "plan_apply", &json!({"manifest": path, "cursor": 0}).to_string()]));
        steps.dies(row, 1).expect("the file is there");
        // Not `atoll apply`, which asks the next supervisor again.
        let call = json!({"manifest": path, "fingerprint": plan["fingerprint"]}).to_string();
        system.atoll(&["call", "control", "apply", &call]);
        wait_for("the supervisor's death", || steps.count(row).expect("the file is there").1 == 1);
        if is_decided {
            has = 1 - has;
        }
        let (_, place, text) = &both[has];
        let names = if has == 0 { 4 } else { 5 };
        wait_for("the manifest that was decided on", || !system.file("applying").exists() && kept(&system).0 == *text);
        wait_for("its components, all of them ready", || {
            let all = system.ps();
            all.len() == names && all.iter().all(|one| one["state"] == "ready")
        });
        assert_eq!(kept(&system), (text.clone(), system.file(place)), "after {step}");
        assert_eq!(system.pid("disk"), disk, "after {step}");
        let left = ["applying", "applied"].map(|name| system.file(name).exists());
        assert_eq!(left, [false; 2], "after {step}");
        assert_eq!(system.get("/").status, 200, "after {step}");
        // It can be done again, also after one that has come to nothing.
        for (path, ..) in [&both[1 - has], &both[has]] {
            system.ok(&["apply", path, "--yes"]);
        }
    }
    assert_eq!(system.ok(&["down"]), "stopped, the disk is clean\n");
}

#[test]
fn a_manifest_is_applied_however_often_the_supervisor_is_killed() {
    let system = System::empty();
    let small = web().replace("64MiB", "32MiB") + NULL;
    let both = [("here", web()), ("there", small)].map(|(place, text)| (manifest(&system, place, &text), place, text));
    start(&both[0].0, &system);
    let disk = system.pid("disk");
    let mut random = Random(11);
    for turn in 1..=20 {
        let (path, place, text) = &both[turn % 2];
        let apply = system.command(&["apply", path, "--yes"]).stdout(std::process::Stdio::null()).spawn();
        let mut apply = apply.expect("it runs");
        std::thread::sleep(std::time::Duration::from_micros(random.below(60_000)));
        if let Some(supervisor) = system.process("supervisor") {
            // It may have left its seat just now.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGKILL);
        }
        assert!(apply.wait().expect("it ends").success(), "turn {turn}");
        assert_eq!(kept(&system), (text.clone(), system.file(place)), "turn {turn}");
        system.wait_until_ready();
        assert_eq!((system.ps().len(), system.pid("disk")), (4 + turn % 2, disk), "turn {turn}");
    }
    assert_eq!(system.get("/").status, 200);
}
