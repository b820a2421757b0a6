//! The first five minutes: what `atoll init` and `atoll new component` write, a new user can start as it is.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{System, said};

/// Runs `atoll ARGUMENTS` in a directory, on the state directory there that is the default.
fn atoll(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
    command.args(arguments).current_dir(directory).env_remove("ATOLL_STATE").env("NO_COLOR", "1");
    command.stdin(Stdio::null()).output().expect("the binary runs")
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_manifest_of_init_starts_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("mine");
    let said_of_it = ok(&atoll(directory.path(), &["init", "mine"]));
    assert!(said_of_it.ends_with("start it: cd mine && atoll up\n"), "{said_of_it}");
    let manifest = fs::read_to_string(place.join("atoll.toml")).expect("it was written");
    // Whatever else runs on this machine.
    fs::write(place.join("atoll.toml"), manifest.replace("127.0.0.1:8080", "127.0.0.1:0")).expect("it can be changed");
    let system = System::on(place.join("atoll-state"));
    let up = ok(&atoll(&place, &["up", "--detach"]));
    assert!(up.contains("\nthis is the system of ./atoll.toml\n"), "{up}");
    assert_eq!(system.get("/").status, 200);
    assert!(ok(&atoll(&place, &["explain", "restart"])).contains("httpd"));
    ok(&atoll(&place, &["down"]));
    // What is there is what is meant, also if it is wrong.
    fs::write(place.join("atoll.toml"), "atoll = 2\n").expect("it can be changed");
    assert_eq!(atoll(&place, &["up"]).status.code(), Some(1));
}

#[test]
fn init_and_new_leave_alone_what_is_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept = directory.path().join("atoll.toml");
    fs::write(&kept, "mine").expect("a file");
    let refused = atoll(directory.path(), &["init"]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && error.contains("is there already"), "{}", said(&refused));
    assert_eq!(fs::read_to_string(&kept).expect("it is there"), "mine");
    // Not even through a link to nowhere.
    fs::remove_file(&kept).and_then(|()| std::os::unix::fs::symlink("nowhere", &kept)).expect("a link");
    assert_eq!(atoll(directory.path(), &["init"]).status.code(), Some(1));
    assert!(!directory.path().join("nowhere").exists());

    fs::create_dir(directory.path().join("taken")).expect("a directory");
    assert_eq!(atoll(directory.path(), &["new", "component", "taken"]).status.code(), Some(1));
    assert_eq!(fs::read_dir(directory.path().join("taken")).expect("a directory").count(), 0);
    for (kit, name) in [("/nowhere", "one"), (".", "two")] {
        let refused = atoll(directory.path(), &["new", "component", name, "--kit", kit]);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && error.contains("no checkout of Atoll"), "{}", said(&refused));
        assert!(!directory.path().join(name).exists(), "nothing is made that cannot be built");
    }
}

#[test]
fn a_new_component_builds_and_runs() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    if Command::new(&cargo).arg("--version").stdout(Stdio::null()).status().is_err() {
        return println!("skipped: no cargo");
    }
    let directory = tempfile::tempdir().expect("a directory");
    ok(&atoll(directory.path(), &["new", "component", "tally"]));
    let place = directory.path().join("tally");
    // What it is built with is kept from one run of this test to the next. Nothing is to be downloaded.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("new-component");
    let mut build = Command::new(&cargo);
    build.args(["build", "--offline", "--release"]).current_dir(&place).env("CARGO_TARGET_DIR", &target);
    // The profile that it says is for whoever runs it; here it is to be built soon.
    build.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let built = build.stdin(Stdio::null()).output().expect("cargo runs");
    assert!(built.status.success(), "{}", said(&built));
    assert!(!String::from_utf8_lossy(&built.stderr).contains("warning"), "{}", said(&built));
    std::os::unix::fs::symlink(&target, place.join("target")).expect("a link");

    ok(&atoll(&place, &["check", "atoll.toml"]));
    let system = System::on(place.join("atoll-state"));
    ok(&atoll(&place, &["up", "--detach"]));
    let client = Command::new(place.join("target/release/tally-client"))
        .args(["atoll-state", "2"])
        .current_dir(&place)
        .output()
        .expect("the client runs");
    assert_eq!(ok(&client), "42\n");
    assert_eq!(system.ok(&["call", "tally", "add", r#"{"n": 1}"#]).trim(), "43");
    ok(&atoll(&place, &["down"]));
}
