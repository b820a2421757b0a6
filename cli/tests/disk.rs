//! What a whole system does when the disk's driver has too little memory, dies, or finds its host full.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Random, System, kill_now, said, wait_for};

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// Makes `count` files of up to `most` bytes in a new directory. Returns it, with what is in it.
fn tree(system: &System, name: &str, count: u64, most: u64, seed: u64) -> (PathBuf, BTreeMap<String, Vec<u8>>) {
    let directory = system.file(name);
    let mut random = Random(seed);
    let mut files = BTreeMap::new();
    for number in 0..count {
        let below = format!("{}/{number}", number % 5);
        fs::create_dir_all(directory.join(&below).parent().expect("it has one")).expect("a directory");
        let size = random.below(most) as usize;
        let bytes = random.bytes(size);
        fs::write(directory.join(&below), &bytes).expect("a file");
        files.insert(below, bytes);
    }
    (directory, files)
}

fn is_equal(directory: &Path, files: &BTreeMap<String, Vec<u8>>) -> bool {
    let right = |(name, bytes): (&String, &Vec<u8>)| fs::read(directory.join(name)).is_ok_and(|read| read == *bytes);
    files.iter().all(right)
}

fn start(system: &System, arguments: &[&str]) -> Child {
    let mut command = system.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs")
}

#[test]
fn a_tree_of_more_files_than_the_driver_has_memory_for_comes_back() {
    // The cache believes in more memory than there is.
    let system = System::start(&["--set", "disk.region=4MiB", "--set", "fs.cache=8MiB"]);
    let (source, mut files) = tree(&system, "source", 600, 60_000, 5);
    let large = Random(6).bytes(5 << 20);
    fs::write(source.join("large"), &large).expect("a file");
    files.insert("large".into(), large);
    system.ok(&["fs", "put", "-r", text(&source), "/www/tree"]);
    for round in 0..3 {
        let copy = system.file(&format!("copy-{round}"));
        system.ok(&["fs", "get", "-r", "/www/tree", text(&copy)]);
        assert!(is_equal(&copy, &files), "round {round}");
    }
    for (name, bytes) in files.iter().take(50) {
        let reply = system.get(&format!("/tree/{name}"));
        assert!(reply.status == 200 && reply.body == *bytes, "{name}");
    }
}

#[test]
fn the_drivers_death_is_not_seen_in_any_file() {
    let system = System::start(&[]);
    let (source, files) = tree(&system, "source", 300, 100_000, 8);
    system.ok(&["fs", "put", "-r", text(&source), "/www/old"]);
    let mut random = Random(9);
    let mut interrupted = 0;
    for round in 0..6 {
        let new = format!("/www/new-{round}");
        let copy = system.file(&format!("copy-{round}"));
        let mut writing = start(&system, &["fs", "put", "-r", text(&source), &new]);
        let mut reading = start(&system, &["fs", "get", "-r", "/www/old", text(&copy)]);
        std::thread::sleep(Duration::from_millis(random.below(60)));
        let still = |child: &mut Child| child.try_wait().expect("it is ours").is_none();
        interrupted += u32::from(still(&mut writing) || still(&mut reading));
        kill_now(system.pid("disk"));
        for child in [writing, reading] {
            let output = child.wait_with_output().expect("it ends");
            assert!(output.status.success(), "round {round}: {}", said(&output));
        }
        assert!(is_equal(&copy, &files), "round {round}: what was read meanwhile");
        let copy = system.file(&format!("again-{round}"));
        system.ok(&["fs", "get", "-r", &new, text(&copy)]);
        assert!(is_equal(&copy, &files), "round {round}: what was written meanwhile");
        let (name, bytes) = files.iter().nth(round).expect("there are more");
        assert!(system.get(&format!("/new-{round}/{name}")).body == *bytes, "round {round}: by HTTP");
    }
    assert!(interrupted > 0, "the driver never died in the middle of anything");
    assert_eq!(system.component("fs")["restarts"], 0, "the file system lived on");
    system.ok(&["down"]);
    system.ok(&["fs", "check", "--image", text(&system.file("disk.img"))]);
}

/// Limits what the host gives the driver: a file size that the image's end lies beyond.
fn limit(system: &System, limit: &str) -> bool {
    let pid = system.pid("disk").to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={limit}:unlimited")]).output();
    limited.is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_host_fails_the_write_and_everything_else_goes_on() {
    let system = System::start(&["--set", "disk.size=256MiB"]);
    let (source, files) = tree(&system, "source", 60, 100_000, 10);
    system.ok(&["fs", "put", "-r", text(&source), "/www/old"]);
    system.ok(&["fs", "sync"]);
    let large = system.file("large");
    fs::write(&large, Random(11).bytes(24 << 20)).expect("a file");
    // Data lies at the front of the image: 24 MiB do not fit below this any more, though the volume has room.
    if !limit(&system, &(16 << 20).to_string()) {
        println!("skipped: no prlimit command");
        return;
    }
    let output = system.atoll(&["fs", "put", text(&large), "/www/large"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("no room left"), "{}", said(&output));
    assert!(!system.atoll(&["fs", "stat", "/www/large"]).status.success(), "half of a file stayed");
    let copy = system.file("copy");
    system.ok(&["fs", "get", "-r", "/www/old", text(&copy)]);
    assert!(is_equal(&copy, &files));
    let (name, bytes) = files.first_key_value().expect("there are some");
    assert!(system.get(&format!("/old/{name}")).body == *bytes);
    assert!(limit(&system, "unlimited"));
    system.ok(&["fs", "put", text(&large), "/www/large"]);
    system.ok(&["fs", "sync"]);
    assert!(fs::read(&large).expect("a file") == system.get("/large").body);
    wait_for("everything to be ready", || system.component("disk")["state"] == "ready");
    assert_eq!(system.component("disk")["restarts"], 0);
    system.ok(&["down"]);
    system.ok(&["fs", "check", "--image", text(&system.file("disk.img"))]);
    system.up(&[]);
    assert!(fs::read(&large).expect("a file") == system.get("/large").body);
}
