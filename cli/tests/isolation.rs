//! What a component has: exactly the descriptors, mappings and limits that the manifest implies, also after deaths.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{System, field, kill_now, wait_for};

const COMPONENTS: [&str; 4] = ["disk", "fs", "net", "httpd"];

/// A system that has read and written through every session.
fn used() -> System {
    let system = System::start(&[]);
    let file = system.file("source.bin");
    std::fs::write(&file, vec![7; 3 << 20]).expect("a file to put");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/file.bin"]);
    system.ok(&["fs", "sync"]);
    assert_eq!(system.get("/file.bin").body.len(), 3 << 20);
    system
}

/// What the open descriptors of a process are, without inode numbers.
fn descriptors(pid: i32) -> Vec<String> {
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
    let targets = all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let mut names: Vec<String> = targets
        .map(|target| {
            let target = target.to_string_lossy().into_owned();
            let target = target.strip_suffix(" (deleted)").unwrap_or(&target);
            match target.split_once(":[") {
                Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
                _ => target.to_owned(),
            }
        })
        .collect();
    names.sort();
    names
}

/// The mappings of shared memory of a process: permissions and name.
fn shared_memory(pid: i32) -> BTreeSet<(String, String)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
    let lines = maps.lines().filter_map(|line| {
        let (permissions, name) = (line.split(' ').nth(1)?, line.split("/memfd:").nth(1)?);
        Some((permissions.to_owned(), name.trim_end_matches(" (deleted)").to_owned()))
    });
    lines.collect()
}

#[test]
fn a_component_has_only_the_descriptors_that_its_work_needs() {
    let system = used();
    let image = system.file("disk.img").canonicalize().expect("the image").display().to_string();
    let common = [
        "/dev/null",
        "pipe",
        "socket",
        "anon_inode:[signalfd]",
        "anon_inode:[io_uring]",
        "/memfd:status",
        "/memfd:atoll-c",
        "/memfd:atoll-s",
        "/memfd:atoll-logbook",
    ];
    let lends = ["/memfd:leases", "/memfd:atoll-table", "/memfd:pins"];
    // What its next run goes on from.
    let survives = ["/memfd:atoll-records", "/memfd:atoll-leases", "/memfd:atoll-session"];
    for (name, more) in [
        ("disk", [&lends[..], &survives, &["/memfd:atoll-under-way", "/memfd:disk", "/memfd:fs", &image]].concat()),
        ("fs", [&lends[..], &survives, &["/memfd:disk", "/memfd:fs"]].concat()),
        ("net", [&lends[..], &survives, &["/memfd:atoll-connections", "/memfd:disk"]].concat()),
        ("httpd", Vec::new()),
    ] {
        let found = descriptors(system.pid(name));
        for target in &found {
            let known = common.contains(&target.as_str()) || more.contains(&target.as_str());
            assert!(known, "{name} has {target}; all: {found:?}");
        }
        let count = |kind: &str| found.iter().filter(|target| *target == kind).count();
        // The output pipe as 1 and 2: the fence is the ring's alone. The control socket; net listens on another, and has
        // two berths for its connections, of a pair each.
        assert_eq!(count("pipe"), 2, "{name}: {found:?}");
        assert_eq!(count("socket"), if name == "net" { 6 } else { 1 }, "{name}: {found:?}");
    }
    // No page of the disk passes through those two.
    for pid in [system.keeper(), supervisor(&system)] {
        assert!(!descriptors(pid).contains(&image));
    }
}

fn supervisor(system: &System) -> i32 {
    let found = common::children(system.keeper()).into_iter().find(|&pid| field(pid, "Name") == "atoll-superv");
    found.expect("a supervisor")
}

#[test]
fn payload_is_mapped_read_only_and_not_at_all_by_httpd() {
    let system = used();
    let mapped = |name: &str| {
        let all = shared_memory(system.pid(name)).into_iter();
        // Sessions, lease tables and pins carry no payload.
        all.filter(|(_, name)| !name.starts_with("atoll-") && !["status", "leases", "pins"].contains(&name.as_str()))
            .collect::<BTreeSet<_>>()
    };
    let set = |of: &[(&str, &str)]| of.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<BTreeSet<_>>();
    assert_eq!(mapped("httpd"), set(&[]));
    assert_eq!(mapped("net"), set(&[("r--s", "disk")]));
    assert_eq!(mapped("fs"), set(&[("r--s", "disk"), ("rw-s", "fs")]));
    assert_eq!(mapped("disk"), set(&[("rw-s", "disk"), ("r--s", "fs")]));
}

/// Memory that a next run writes is not sealed against it; so whoever reads it has no descriptor that writes.
#[test]
fn memory_that_is_kept_is_written_by_its_owner_alone() {
    let system = used();
    kill_now(system.pid("disk"));
    wait_for("the next incarnation", || system.component("disk")["epoch"].as_u64() == Some(2));
    system.wait_until_ready();
    assert_eq!(system.get("/file.bin").body.len(), 3 << 20);
    let mut readers = 0;
    for name in COMPONENTS {
        let pid = system.pid(name);
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").flatten() {
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            if !["/memfd:disk", "/memfd:atoll-table"].iter().any(|kept| target.to_string_lossy().starts_with(kept)) {
                continue;
            }
            let number = entry.file_name().into_string().expect("a number");
            let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).expect("it is open");
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("its flags").trim();
            let flags = i32::from_str_radix(flags, 8).expect("octal");
            assert_eq!(flags & 0b11, 0, "{name} can write {target:?}");
            let mode = std::fs::metadata(entry.path()).expect("it is open");
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o400, "{target:?}");
            readers += 1;
        }
    }
    // The disk's own region and table, fs's table, and what fs and net map of them.
    assert!(readers >= 6, "{readers}");
}

#[test]
fn every_process_is_confined() {
    let system = used();
    let keeper = system.keeper();
    let all = system.processes();
    assert_eq!(all.len(), 7);
    for pid in all {
        let name = field(pid, "Name");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it lives");
        let limit = |name: &str| {
            let line = limits.lines().find(|line| line.starts_with(name)).expect("a limit");
            line.split_whitespace().rev().nth(2).expect("a soft limit").to_owned()
        };
        if pid != keeper {
            assert_eq!(field(pid, "NoNewPrivs"), "1", "{name}");
            assert_eq!(limit("Max core file size"), "0", "{name}");
            assert_eq!(field(pid, "PPid"), keeper.to_string(), "{name}");
            assert_eq!(field(pid, "NSsid"), pid.to_string(), "{name} has a session of its own");
        }
        // Nothing of the environment but what is for everybody.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("it lives");
        let ours = ["ATOLL_LOG", "RUST_BACKTRACE", "NO_COLOR"];
        for variable in environment.split(|&byte| byte == 0).filter(|variable| !variable.is_empty()) {
            let name_of = String::from_utf8_lossy(variable).split('=').next().unwrap_or_default().to_owned();
            assert!(pid == keeper || ours.contains(&name_of.as_str()), "{name} has {name_of}");
        }
    }
}

#[test]
fn deaths_leave_no_descriptor_and_no_mapping_behind() {
    let system = used();
    let listen = system.listen();
    let kill_each = || {
        for name in COMPONENTS {
            let before = system.component(name)["epoch"].as_u64();
            kill_now(system.pid(name));
            wait_for("the next incarnation", || system.component(name)["epoch"].as_u64() > before);
            system.wait_until_ready();
            wait_for("the file", || common::get(&listen, "/file.bin").is_ok_and(|reply| reply.body.len() == 3 << 20));
        }
    };
    let keeper = system.keeper();
    let held = || {
        // Without `ps`, whose guest would be counted; and when the last connections are gone.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let pids = common::children(keeper).into_iter().chain([keeper]);
        pids.map(|pid| (field(pid, "Name"), [descriptors(pid).len(), shared_memory(pid).len()]))
            .collect::<BTreeMap<_, _>>()
    };
    // Logs are opened at the first line.
    kill_each();
    let before = held();
    (0..3).for_each(|_| kill_each());
    wait_for("no more than before", || {
        let now = held();
        now.iter().all(|(name, now)| before.get(name).is_some_and(|before| now[0] <= before[0] && now[1] <= before[1]))
    });
}

/// The keeper holds memory for pairs of processes. What belongs to one that is gone must go, or the number of deaths and of
/// guests that a system can see would be bounded.
#[test]
fn a_system_outlives_any_number_of_its_components_and_guests() {
    let system = used();
    let listen = system.listen();
    let small = system.file("small");
    std::fs::write(&small, vec![1; 20_000]).expect("a file to put");
    let put = || system.ok(&["fs", "put", small.to_str().expect("UTF-8"), "/www/small"]);
    let kill_disk = || {
        let before = system.component("disk")["epoch"].as_u64();
        kill_now(system.pid("disk"));
        wait_for("the next incarnation", || system.component("disk")["epoch"].as_u64() > before);
        system.wait_until_ready();
    };
    put();
    kill_disk();
    let keeper = system.keeper();
    let held = || descriptors(keeper).len();
    // A while after the death, when there is a spare again and what is given back later has been.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let before = held();
    for _ in 0..70 {
        put();
        kill_disk();
    }
    assert_eq!(common::get(&listen, "/small").expect("an answer").body, vec![1; 20_000]);
    wait_for("the keeper to hold no more than before", || held() <= before);
    assert!(!system.supervisor_log().contains("cannot map"), "{}", system.supervisor_log());
}
