//! What if a component gets another program while it is used, and what if that is none, or somebody dies meanwhile? Its clients see
//! time and nothing else, and what has served before goes on until the new program serves.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Over, Random, System, WATCHDOG, get, said, wait_for};
use kernel_ipc::Rights;
use kernel_ipc::broker::{Channel, PROTOCOL, ToComponent, ToSupervisor};
use kernel_ipc::component::Context;
use kernel_ipc::runtime::{Options, Runtime};
use kernel_ipc::steps::Steps;
use protocol::control;
use protocol::fs::{self, Name};
use serde_json::Value;

/// `atoll`, under another name and in another file: another program.
fn copied(system: &System, name: &str) -> PathBuf {
    let path = system.file(name);
    std::fs::copy(env!("CARGO_BIN_EXE_atoll"), &path).expect("room for a program");
    path.canonicalize().expect("it is there")
}

/// This program, under a name by which it knows what it pretends to be (`serves_a_supervisor_as_its_name_says`).
fn pretender(system: &System, name: &str) -> PathBuf {
    let path = system.file(name);
    std::fs::copy(std::env::current_exe().expect("a program"), &path).expect("room for a program");
    path.canonicalize().expect("it is there")
}

/// Which program the component's process is of.
fn program(system: &System, component: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{}/exe", system.pid(component))).expect("it lives")
}

/// What `atoll upgrade --json` says, and whether it succeeded.
fn upgrade(system: &System, component: &str, program: &Path) -> (bool, Value) {
    let output = system.atoll(&["upgrade", component, program.to_str().expect("UTF-8"), "--json"]);
    let facts = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    (output.status.success(), facts)
}

fn upgrade_well(system: &System, component: &str, program: &Path) -> Value {
    let (is_done, facts) = upgrade(system, component, program);
    assert!(is_done && facts["outcome"] == "done", "{facts}");
    facts
}

fn as_guest<T>(system: &System, work: impl AsyncFnOnce(Context) -> T) -> T {
    let runtime = Runtime::new(Options::default()).expect("a ring");
    runtime.block_on(async { work(Context::guest(system.state(), "client").expect("a guest")).await })
}

/// A client that has files open and adds a number to one after the other: each call has to happen once, and none may fail. Goes on
/// until it `is_over`.
fn append_numbers(system: &System, made: &AtomicU64, is_over: impl Fn() -> bool) {
    const FILES: u64 = 200;
    as_guest(system, async |context| {
        let client: fs::Client = context.connect("fs.root").await.expect("an endpoint");
        let mut files = Vec::new();
        for file in 0..FILES {
            let name = format!("open-{file}");
            let want = Rights::from_bits_retain(u32::MAX);
            let name = Name::new(&name).expect("a name");
            files.push(client.create(client.root(), name, want).await.expect("a file").0);
        }
        let mut count = 0u64;
        while !is_over() {
            let file = &files[(count % FILES) as usize];
            let at = client.append(file, &count.to_le_bytes()).await.expect("no call fails");
            assert_eq!(at, count / FILES * 8, "each number was added once");
            count += 1;
            made.store(count, Ordering::Relaxed);
        }
        for (index, file) in (0..FILES).zip(&files) {
            let size = client.stat(file).await.expect("it is open").size;
            assert_eq!(size, count.saturating_sub(index).div_ceil(FILES) * 8, "file {index} of {count} numbers");
        }
    });
}

fn is_sound(system: &System) {
    system.wait_until_ready();
    system.ok(&["fs", "check"]);
}

#[test]
fn a_busy_file_system_is_upgraded_twenty_times_and_nobody_fails() {
    let system = System::start(&["--set", "disk.size=512MiB"]);
    let programs = [copied(&system, "atoll-a"), copied(&system, "atoll-b")];
    let content = Random(4).bytes(24 << 20);
    let source = system.file("source.bin");
    std::fs::write(&source, &content).expect("room");
    let source = source.to_str().expect("UTF-8");
    system.ok(&["fs", "put", source, "/www/file.bin"]);
    let listen = system.listen();
    let before = system.ps();
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::Relaxed);
    let (downloads, numbers) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| append_numbers(&system, &numbers, is_over));
        scope.spawn(|| {
            while !is_over() {
                let reply = get(&listen, "/file.bin").expect("a connection that is not reset");
                assert!(reply.status == 200 && reply.body == content, "a download is whole");
                downloads.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            for round in 0u64.. {
                if is_over() {
                    break;
                }
                let name = format!("/www/again-{}", round % 4);
                system.ok(&["fs", "put", source, &name]);
                system.ok(&["fs", "mv", &name, &format!("{name}.moved")]);
                system.ok(&["fs", "rm", &format!("{name}.moved")]);
            }
        });
        let _over = Over(&over);
        for round in 0..20u64 {
            let calls = numbers.load(Ordering::Relaxed);
            wait_for("the client to be busy", || numbers.load(Ordering::Relaxed) > calls + 20);
            let next = &programs[(round % 2) as usize];
            let facts = upgrade_well(&system, "fs", next);
            println!("{facts}");
            assert_eq!(facts["epoch"], round + 2);
            assert!(facts["longest_stall_us"].as_u64().is_some_and(|stall| stall > 0), "{facts}");
            assert_eq!(program(&system, "fs"), *next);
        }
        wait_for("a download", || downloads.load(Ordering::Relaxed) > 0);
    });
    for (before, after) in before.iter().zip(system.ps()).filter(|(before, _)| before["name"] != "fs") {
        assert_eq!((&before["pid"], &before["epoch"]), (&after["pid"], &after["epoch"]), "{}", before["name"]);
    }
    let fs = system.component("fs");
    assert!(fs.get("trouble").is_none(), "{fs}");
    // Whoever follows is of the same program.
    common::kill_now(system.pid("fs"));
    wait_for("its next run", || system.component("fs")["epoch"] == 22);
    is_sound(&system);
    assert_eq!(program(&system, "fs"), programs[1]);
    assert!(system.ok(&["down"]).contains("the disk is clean"));
}

#[test]
fn every_component_can_be_upgraded_and_says_for_whom_it_was_felt() {
    let system = System::start(&[]);
    let next = copied(&system, "atoll-next");
    std::fs::write(system.file("source.bin"), Random(8).bytes(1 << 20)).expect("room");
    system.ok(&["fs", "put", system.file("source.bin").to_str().expect("UTF-8"), "/www/file.bin"]);
    let listen = system.listen();
    for name in ["disk", "fs", "net", "httpd"] {
        let facts = upgrade_well(&system, name, &next);
        assert_eq!(facts["longest_stall_us"].is_null(), name == "httpd", "{facts}");
        assert_eq!(program(&system, name), next);
        assert_eq!(system.listen(), listen);
        assert_eq!(get(&listen, "/file.bin").expect("it is served").body.len(), 1 << 20);
        // To the same one, and without its name to the one that is asked.
        assert_eq!(upgrade_well(&system, name, &next)["epoch"], 3);
        let line = system.ok(&["upgrade", name]);
        assert!(line.contains("epoch 4: checked in "), "{line}");
        assert_eq!(program(&system, name), Path::new(env!("CARGO_BIN_EXE_atoll")));
    }
    is_sound(&system);
}

#[test]
fn a_program_that_cannot_go_on_is_refused_and_nothing_is_touched() {
    let system = System::start(&[]);
    let before = system.component("fs");
    let plain = system.file("plain.txt");
    std::fs::write(&plain, "no program").expect("room");
    for (program, outcome, words) in [
        (system.file("absent"), "no-program", "No such file or directory"),
        (system.state().to_path_buf(), "no-program", "it is no file"),
        (plain, "no-program", "it is not executable"),
        (PathBuf::from("/bin/true"), "unfit", "exited with code 0"),
        (PathBuf::from("/bin/false"), "unfit", "exited with code 1"),
        (pretender(&system, "speaks-another-protocol"), "unfit", "it speaks protocol 8, this node"),
        (pretender(&system, "takes-other-ledgers"), "unfit", "the ledger of a session is in version 2"),
        (pretender(&system, "ends-in-its-check"), "unfit", "my last words"),
        (pretender(&system, "talks-nonsense"), "unfit", "it did not say"),
    ] {
        let (is_done, facts) = upgrade(&system, "fs", &program);
        assert!(!is_done && facts["outcome"] == outcome, "{facts}");
        let why = facts["why"].as_str().expect("it says why");
        assert!(why.contains(words), "{}: {why}", program.display());
    }
    let after = system.component("fs");
    for what in ["pid", "epoch", "restarts"] {
        assert_eq!(before[what], after[what], "{what}");
    }
    let output = system.atoll(&["upgrade", "absent"]);
    assert!(said(&output).contains("no such component"), "{}", said(&output));
    let output = system.atoll(&["upgrade", "fs", "/bin/false"]);
    let words = "error: fs: the program cannot go on from the run that serves: exited with code 1";
    assert!(output.status.code() == Some(1) && said(&output).contains(words), "{}", said(&output));
    is_sound(&system);
    let keeper = system.keeper();
    let strangers =
        || common::children(keeper).into_iter().filter(|pid| common::field(*pid, "Name").contains("-")).count();
    wait_for("the end of all that were refused", || strangers() <= 1);
}

#[test]
fn a_program_that_is_never_ready_gives_way_to_the_one_before_it() {
    let system = System::start(&[]);
    let before = program(&system, "fs");
    let (over, numbers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| append_numbers(&system, &numbers, || over.load(Ordering::Relaxed)));
        let _over = Over(&over);
        for name in ["ends-when-it-is-welcomed", "forgets-all", "begins-anew", "breaks-a-rule"] {
            let (is_done, facts) = upgrade(&system, "fs", &pretender(&system, name));
            assert!(!is_done && facts["outcome"] == "rolled-back", "{name}: {facts}");
            assert_eq!(program(&system, "fs"), before, "{name}");
            assert_eq!(system.component("fs")["state"], "ready", "{name}");
        }
        over.store(true, Ordering::Relaxed);
        client.join().expect("no call failed");
        assert!(numbers.load(Ordering::Relaxed) > 0);
    });
    assert!(system.component("fs").get("trouble").is_none());
    assert_eq!(
        system.ok(&["crash", "list", "--json"]).matches("\"number\"").count(),
        0,
        "nobody counts that as a crash"
    );
    is_sound(&system);
    // And it is not in the way of one that serves.
    upgrade_well(&system, "fs", &copied(&system, "atoll-next"));
    is_sound(&system);
}

#[test]
fn what_keeps_nothing_is_not_upgraded_in_use() {
    let system = System::empty();
    let manifest = "atoll = 1\n[system]\nname = \"x\"\n[component.null]\nrun = \"builtin:null\"\nprovides.null = \"atoll.null/1\"\n";
    let path = system.file("null.toml");
    std::fs::write(&path, manifest).expect("room");
    let up = system.command(&["up", path.to_str().expect("UTF-8"), "--detach"]).output().expect("the binary runs");
    assert!(up.status.success(), "{}", said(&up));
    let (is_done, facts) = upgrade(&system, "null", Path::new(env!("CARGO_BIN_EXE_atoll")));
    assert!(!is_done && facts["outcome"] == "keeps-nothing" && facts["epoch"] == 1, "{facts}");
}

/// Kills a component's run: which program the next one is of.
fn program_after_a_death(system: &System, component: &str) -> PathBuf {
    let epoch = system.component(component)["epoch"].as_u64();
    common::kill_now(system.pid(component));
    wait_for("its next run", || {
        let after = system.component(component);
        after["epoch"].as_u64() > epoch && after["state"] == "ready"
    });
    program(system, component)
}

#[test]
fn an_upgrade_that_comes_to_nothing_leaves_all_later_runs_to_the_supervisors_program() {
    let system = System::empty();
    let own = copied(&system, "atoll-own");
    let mut up = Command::new(&own);
    up.args(system.up_command(&[]).get_args()).arg("--detach").env("ATOLL_STATE", system.state());
    let output = up.output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    // From now on what runs is not what is found there.
    std::fs::rename(copied(&system, "atoll-new"), &own).expect("the same directory");
    system.ok(&["supervisor", "restart"]);
    let before = PathBuf::from(format!("{} (deleted)", own.display()));
    for component in ["fs", "disk"] {
        assert_eq!(program(&system, component), before, "{component} goes on");
    }
    let (_, facts) = upgrade(&system, "fs", Path::new("/bin/false"));
    assert_eq!(facts["outcome"], "unfit", "{facts}");
    assert_eq!(program_after_a_death(&system, "fs"), own);
    let (_, facts) = upgrade(&system, "disk", &pretender(&system, "ends-when-it-is-welcomed"));
    assert_eq!(facts["outcome"], "rolled-back", "{facts}");
    assert_eq!(program(&system, "disk"), before, "of what has served");
    assert_eq!(program_after_a_death(&system, "disk"), own);
    is_sound(&system);
}

#[test]
fn an_upgrade_that_is_ready_is_committed_also_if_its_record_is_found_before_that_of_the_last_one() {
    let system = System::empty();
    let steps = Steps::create(system.state(), [("supervisor", "restart/ready")]).expect("room");
    system.up(&[]);
    let programs = [copied(&system, "atoll-a"), copied(&system, "atoll-b")];
    // The first places of the keeper's records are these sessions', and free when the second program's record is put.
    as_guest(&system, async |context| {
        let mut clients = Vec::new();
        for _ in 0..128 {
            let client: fs::Client = context.connect("fs.root").await.expect("an endpoint");
            client.stat(client.root()).await.expect("it is open");
            clients.push(client);
        }
        upgrade_well(&system, "disk", &programs[0]);
    });
    steps.dies(0, 1).expect("the file is there");
    as_guest(&system, async |context| {
        let client: control::Client = context.connect("control").await.expect("an endpoint");
        let asked = client.upgrade(client.root(), "disk", programs[1].to_str().expect("UTF-8")).await;
        asked.expect_err("its supervisor has died, and the next one is not asked");
    });
    wait_for("its next run", || system.component("disk")["state"] == "ready");
    assert_eq!(steps.count(0).expect("the file is there").1, 1);
    assert_eq!(program(&system, "disk"), programs[1]);
    assert_eq!(program_after_a_death(&system, "disk"), programs[1]);
    is_sound(&system);
}

/// Where somebody dies, and what comes of the upgrade.
const DEATHS: [(&str, &str, &str); 18] = [
    ("fs", "upgrade/examined", "unfit"),
    ("fs", "upgrade/asked", "done"),
    ("fs", "upgrade/drained", "done"),
    ("supervisor", "upgrade/started", "done"),
    ("supervisor", "upgrade/recorded", "done"),
    ("supervisor", "upgrade/known", "done"),
    ("supervisor", "upgrade/promoted", "done"),
    ("supervisor", "upgrade/ended", "done"),
    ("supervisor", "upgrade/committed", "done"),
    ("supervisor", "restart/heard", "done"),
    ("supervisor", "restart/lives", "done"),
    ("supervisor", "restart/greeted", "done"),
    ("supervisor", "restart/ready", "done"),
    ("fs", "restart/greeted", "rolled-back"),
    ("fs", "restart/inherited", "rolled-back"),
    ("fs", "restart/followed", "rolled-back"),
    ("fs", "restart/mounted", "rolled-back"),
    ("fs", "restart/serving", "rolled-back"),
];

#[test]
fn whoever_dies_during_an_upgrade_no_call_fails_and_the_component_goes_on() {
    let system = System::empty();
    let steps = Steps::create(system.state(), DEATHS.iter().map(|(process, step, _)| (*process, *step))).expect("room");
    system.up(&[]);
    let programs = [copied(&system, "atoll-a"), copied(&system, "atoll-b")];
    let (over, numbers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| append_numbers(&system, &numbers, || over.load(Ordering::Relaxed)));
        let _over = Over(&over);
        upgrade_well(&system, "fs", &programs[1]);
        let mut serves = 1;
        for (row, (process, step, outcome)) in DEATHS.iter().enumerate() {
            let next = 1 - serves;
            steps.dies(row, 1).expect("the file is there");
            let (_, facts) = upgrade(&system, "fs", &programs[next]);
            println!("{process} at {step}: {facts}");
            assert_eq!(steps.count(row).expect("the file is there").1, 1, "{process} died at {step}");
            assert_eq!(facts["outcome"], *outcome, "{process} at {step}: {facts}");
            serves = if *outcome == "done" { next } else { serves };
            system.wait_until_ready();
            assert_eq!(program(&system, "fs"), programs[serves], "{process} at {step}");
            // All later runs are of the same one.
            assert_eq!(program_after_a_death(&system, "fs"), programs[serves], "after {process} at {step}");
        }
        over.store(true, Ordering::Relaxed);
        client.join().expect("no call failed");
        assert!(numbers.load(Ordering::Relaxed) > 0);
    });
    is_sound(&system);
    assert!(system.ok(&["down"]).contains("the disk is clean"));
}

/// No test, unless a supervisor has started this program as that of a component (`atoll serve fs-server`, of which the harness takes
/// the words for parts of the names of tests): then it is what the program is called.
#[test]
fn serves_a_supervisor_as_its_name_says() {
    if std::env::args().nth(1).as_deref() != Some("serve") {
        return;
    }
    let exe = std::env::current_exe().expect("a program");
    let name = exe.file_name().expect("a name").to_str().expect("UTF-8");
    let channel = Channel::new(kernel_ipc::sys::descriptors::control_socket().expect("a supervisor's process"));
    let say = |message: &ToSupervisor| channel.send_blocking(message, &[]).expect("the supervisor hears");
    let hear = || match channel.receive_blocking::<ToComponent>() {
        Ok((message, _)) => message,
        // It is not wanted.
        Err(_) => std::process::exit(0),
    };
    let protocol = if name == "speaks-another-protocol" { 8 } else { PROTOCOL };
    say(&ToSupervisor::Hello { protocol, program: String::new() });
    let asked = hear();
    assert!(matches!(&asked, ToComponent::Examine { left, .. } if !left.is_empty()), "{asked:?}");
    match name {
        "takes-other-ledgers" => {
            let ToComponent::Examine { left, .. } = asked else { unreachable!() };
            let version = |header: &[u8; 16]| u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
            let session = left.iter().find(|(_, header)| header.starts_with(b"ATOLL-L1")).expect("httpd has one");
            let reason = format!("the ledger of a session is in version {}", version(&session.1));
            return say(&ToSupervisor::Failed { reason });
        }
        "ends-in-its-check" => {
            // Not by a macro, which the harness would capture.
            std::io::stderr().write_all(b"my last words\n").expect("the log hears");
            std::process::exit(3);
        }
        "talks-nonsense" => return say(&ToSupervisor::Ready),
        _ => say(&ToSupervisor::Fits),
    }
    assert!(matches!(hear(), ToComponent::Welcome(_)));
    match name {
        "forgets-all" => say(&ToSupervisor::Forget),
        "begins-anew" => say(&ToSupervisor::Keep { name: "records".into(), bytes: 1 << 20 }),
        "breaks-a-rule" => say(&ToSupervisor::Ready),
        _ => std::process::exit(3),
    }
    std::thread::sleep(WATCHDOG + Duration::from_secs(1));
}
