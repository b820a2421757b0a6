//! Bad input gets a clear error that names what is wrong, a non-zero exit, and nothing is lost.
//!
//! What is wrong in manifests is in `supervisor/tests/manifests`, every message with its line and column; bad paths and files
//! are in `files.rs`, bad requests in `http.rs`.

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use common::{Random, System, said};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// It failed with code 1 and says all of `words` on standard error.
fn failed(output: &Output, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    for word in words {
        assert!(error.contains(word), "it does not say {word:?}: {}", said(output));
    }
    assert!(!error.contains("panicked"), "{error}");
}

fn up(system: &System, arguments: &[&str]) -> Output {
    system.up_command(&[&["--detach"], arguments].concat()).output().expect("it runs")
}

/// Nothing runs there, and nothing of a failed start is left.
fn nothing_runs(system: &System) {
    assert_eq!(system.atoll(&["ps"]).status.code(), Some(3));
    assert_eq!(common::working_in(system.state()), [0; 0], "a process is left");
}

#[test]
fn a_bad_manifest_starts_nothing_and_is_pointed_at() {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../supervisor/tests/manifests");
    for (name, words) in [
        ("missing-component", &["there is no component `files`", "missing-component.toml:20:22"][..]),
        ("wrong-interface-version", &["atoll.block/2", "wrong-interface-version.toml:6:17", "it has atoll.block/1"]),
        ("rights-not-offered", &["does not offer the right `lookup`", "rights-not-offered.toml:10:78"]),
        ("cycle", &["in a cycle: a -> b -> c -> a", "cycle.toml:4:22"]),
        ("not-toml", &["this is not TOML", "not-toml.toml:3:12"]),
        ("climbing-path", &["`..` is not allowed", "climbing-path.toml:20:69"]),
    ] {
        let system = System::empty();
        let path = manifests.join(format!("{name}.toml"));
        failed(&system.atoll(&["up", "--detach", text(&path)]), words);
        failed(&system.atoll(&["check", text(&path)]), words);
        assert_eq!(fs::read_dir(system.state()).expect("it is there").count(), 0, "{name}: nothing was made");
    }
}

#[test]
fn every_manifest_that_comes_with_it_is_good() {
    let system = System::empty();
    let systems = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systems");
    let mut checked = 0;
    for entry in fs::read_dir(systems).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            assert!(system.ok(&["check", text(&path)]).contains("good"));
            checked += 1;
        }
    }
    assert!(checked > 0);
}

#[test]
fn a_port_in_use_ends_the_start_and_leaves_nothing_behind() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let system = System::empty();
    failed(
        &up(&system, &["--set", &format!("httpd.listen={address}")]),
        &["component httpd", &address, "another program listens there"],
    );
    nothing_runs(&system);
    drop(taken);
    system.up(&["--set", &format!("httpd.listen={address}")]);
    assert_eq!(system.get("/").status, 200);
}

#[test]
fn a_second_up_on_the_same_state_is_refused_and_the_first_goes_on() {
    let system = System::start(&[]);
    let pids = system.processes();
    failed(&up(&system, &[]), &["a system runs on", text(system.state()), "atoll down"]);
    assert_eq!(system.processes(), pids);
    assert_eq!(system.get("/").status, 200);
}

#[test]
fn a_state_that_cannot_be_is_named() {
    let system = System::empty();
    let file = system.file("file");
    fs::write(&file, "").expect("a file");
    for state in [text(&file).to_owned(), format!("{}/below", text(&file)), "/proc/nothing".into()] {
        failed(&system.atoll(&["up", "--detach", "--state", &state]), &[&state]);
    }
}

#[test]
fn a_state_of_a_strange_name_works_or_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let system = System::empty();
    // Longer than the path of a socket may be.
    let long = system.file(&"a long name, ".repeat(15));
    let up = ["--detach", "--set", "httpd.listen=127.0.0.1:0", "--set", "disk.size=16MiB"];
    let run = |state: &std::ffi::OsStr, arguments: &[&str]| {
        system.command(arguments).arg("--state").arg(state).output().expect("it runs")
    };
    let long = long.as_os_str();
    let started = run(long, &[&["up"][..], &up].concat());
    assert!(started.status.success(), "{}", said(&started));
    assert!(run(long, &["fs", "ls"]).status.success());
    assert!(run(long, &["down"]).status.success());
    let refused = run(std::ffi::OsStr::from_bytes(b"/tmp/\xff"), &[&["up"][..], &up].concat());
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not UTF-8"), "{}", said(&refused));
}

#[test]
fn the_system_of_another_user_is_told_apart_from_none() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: only root can be another user too");
    }
    use std::os::unix::process::CommandExt;
    let system = System::start(&[]);
    // The directory can be seen by everybody, and so can the binary's: a copy of it, because its own may not be. By a
    // process of its own: a test beside this one that forks while this process writes the file would keep it busy.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(system.state(), open).expect("it is ours");
    let binary = system.file("atoll");
    let copied = std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_atoll")).arg(&binary).status();
    assert!(copied.expect("cp runs").success());
    let mut other = std::process::Command::new(binary);
    let output = other.args(["ps", "--state", text(system.state())]).uid(65_534).gid(65_534).output().expect("it runs");
    failed(&output, &[text(system.state()), "another user"]);
}

#[test]
fn an_image_that_is_no_volume_is_refused_and_stays_as_it_is() {
    for content in [Random(3).bytes(8 << 20), b"a letter to my mother".to_vec(), vec![0xff; 1 << 20], Vec::new()] {
        let system = System::empty();
        let image = system.file("disk.img");
        fs::write(&image, &content).expect("an image");
        failed(&up(&system, &[]), &["component ", "disk"]);
        assert!(fs::read(&image).expect("it is there") == content, "{} bytes were changed", content.len());
        nothing_runs(&system);
        failed(&system.atoll(&["fs", "check", "--image", text(&image)]), &[text(&image), "no Atoll volume"]);
    }
    let system = System::empty();
    let nowhere = system.file("nowhere");
    failed(&system.atoll(&["fs", "check", "--image", text(&nowhere)]), &[text(&nowhere), "no such file"]);
    failed(&system.atoll(&["fs", "check", "--image", text(system.state())]), &[text(system.state()), "is a directory"]);
}

#[test]
fn a_truncated_image_is_refused_by_its_sizes_and_whole_again_when_it_is() {
    let system = System::start(&[]);
    let page = system.get("/").body;
    system.ok(&["down"]);
    let image = system.file("disk.img");
    let whole = fs::read(&image).expect("an image");
    for size in [whole.len() - 4096, whole.len() / 2, 100 << 10] {
        fs::write(&image, &whole[..size]).expect("an image");
        failed(&up(&system, &[]), &["truncated", "65536 blocks", &format!("{}", size / 4096)]);
        failed(&system.atoll(&["fs", "check", "--image", text(&image)]), &["truncated"]);
        assert_eq!(fs::metadata(&image).expect("it is there").len(), size as u64);
    }
    fs::write(&image, whole).expect("an image");
    system.up(&[]);
    assert!(system.get("/").body == page);
}

#[test]
fn a_flipped_byte_anywhere_never_gives_wrong_data() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_126);
    println!("SEED={seed}");
    let mut random = Random(seed);
    let system = System::start(&["--set", "disk.size=32MiB"]);
    let source = system.file("source");
    for number in 0..60u64 {
        let directory = source.join(format!("d{}", number % 5));
        fs::create_dir_all(&directory).expect("a directory");
        let size = if number % 20 == 0 { 1 << 20 } else { random.below(9000) as usize };
        fs::write(directory.join(format!("f{number}")), random.bytes(size)).expect("a file");
    }
    system.ok(&["fs", "put", "-r", text(&source), "/www/tree"]);
    system.ok(&["down"]);
    let image = system.file("disk.img");
    let whole = fs::read(&image).expect("an image");
    // Blocks with something in them. Half of the flips go to the first of them, where the structures begin.
    let in_use = |block: &usize| whole[block * 4096..][..4096].iter().any(|byte| *byte != 0);
    let used: Vec<usize> = (0..whole.len() / 4096).filter(in_use).collect();
    let (mut refused, mut damaged, mut unharmed) = (0, 0, 0);
    for round in 0..24 {
        let among = if round % 2 == 0 { used.len() } else { 12 };
        let block = used[random.below(among as u64) as usize];
        let at = block * 4096 + random.below(4096) as usize;
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << random.below(8);
        fs::write(&image, &flipped).expect("an image");
        let started = up(&system, &["--set", "disk.size=32MiB"]);
        if !started.status.success() {
            failed(&started, &["component fs", "block"]);
            nothing_runs(&system);
            refused += 1;
            continue;
        }
        let copy = system.file("copy");
        let _ = fs::remove_dir_all(&copy);
        let got = system.atoll(&["fs", "get", "-r", "/www/tree", text(&copy)]);
        let listen = system.listen();
        let mut missing = 0;
        for number in 0..60 {
            let name = format!("d{}/f{number}", number % 5);
            let expected = fs::read(source.join(&name)).expect("a file");
            match fs::read(copy.join(&name)) {
                Ok(found) => assert!(found == expected, "{name} is wrong after a flip at {at}"),
                Err(_) => missing += 1,
            }
            // By HTTP: the file, or no whole answer.
            if let Ok(reply) = common::get(&listen, &format!("/tree/{name}"))
                && reply.status == 200
            {
                assert!(reply.body == expected, "{name} is wrong by HTTP after a flip at {at}");
            }
        }
        if missing > 0 {
            failed(&got, &["is damaged", "block "]);
            damaged += 1;
        } else {
            assert!(got.status.success(), "{}", said(&got));
            unharmed += 1;
        }
        let _ = system.atoll(&["down"]);
    }
    println!("{refused} refused at the start, {damaged} with damaged files, {unharmed} unharmed");
    assert!(refused + damaged > 0, "no flip was noticed: they hit nothing");
}

#[test]
fn a_component_that_dies_at_its_start_is_named_with_its_reason() {
    let system = System::empty();
    failed(&up(&system, &["--set", "disk.path=/dev/null"]), &["component disk", "/dev/null"]);
    nothing_runs(&system);
}

#[test]
fn a_full_volume_refuses_the_write_and_goes_on() {
    let system = System::start(&["--set", "disk.size=32MiB"]);
    let (big, small) = (system.file("big"), system.file("small"));
    fs::write(&big, Random(5).bytes(48 << 20)).expect("a file");
    fs::write(&small, "small").expect("a file");
    system.ok(&["fs", "put", text(&small), "/www/small"]);
    failed(&system.atoll(&["fs", "put", text(&big), "/www/big"]), &["/www/big", "no room"]);
    assert_eq!(system.ok(&["fs", "ls", "/www"]), "index.html\nsmall\n", "nothing of it is left");
    // One that would replace another leaves that as it was.
    failed(&system.atoll(&["fs", "put", text(&big), "/www/small"]), &["/www/small", "no room"]);
    assert_eq!(system.get("/small").body, b"small");
    system.ok(&["fs", "put", text(&small), "/www/another"]);
    system.ok(&["fs", "sync"]);
    assert!(system.ok(&["fs", "check"]).contains("no problem"));
    assert!(system.ps().iter().all(|one| one["restarts"] == 0));
}
