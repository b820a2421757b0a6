//! Every command line: its exit codes, and what it prints to a pipe and to a terminal.

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use common::{System, said};

/// A command line of each verb that has something to do, and one that can do nothing.
const NEED_A_SYSTEM: [&[&str]; 18] = [
    &["down"],
    &["ps"],
    &["ps", "--io"],
    &["stat"],
    &["stuck"],
    &["stat", "fs", "--sessions"],
    &["fs", "ls", "/www"],
    &["fs", "cat", "/www/index.html"],
    &["fs", "put", "/proc/self/status", "/www/status"],
    &["fs", "get", "/www/index.html", "-"],
    &["fs", "mkdir", "/new"],
    &["fs", "mv", "/new", "/newer"],
    &["fs", "rm", "-r", "/newer"],
    &["fs", "stat", "/www"],
    &["fs", "df"],
    &["fs", "sync"],
    &["call", "fs", "statfs"],
    &["interface", "show", "disk.disk"],
];

fn code(system: &System, arguments: &[&str]) -> i32 {
    let output = system.atoll(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code().unwrap_or_else(|| panic!("{arguments:?}: {}", said(&output)));
    assert_eq!(code == 0, error.is_empty(), "{arguments:?}: an error is said, and nothing else: {}", said(&output));
    code
}

#[test]
fn every_verb_ends_with_0_on_a_system_and_with_3_without_one() {
    let system = System::start(&[]);
    for arguments in NEED_A_SYSTEM.iter().skip(1) {
        assert_eq!(code(&system, arguments), 0, "{arguments:?}");
    }
    assert_eq!(code(&system, &["fs", "check"]), 0);
    assert_eq!(code(&system, &["logs"]), 0);
    assert_eq!(code(&system, NEED_A_SYSTEM[0]), 0);
    for arguments in NEED_A_SYSTEM.iter().chain(&[&["fs", "check"][..], &["ps", "--json"]]) {
        assert_eq!(code(&system, arguments), 3, "{arguments:?}");
    }
    assert_eq!(code(&System::empty(), &["logs"]), 3);
}

#[test]
fn every_verb_ends_with_2_when_it_is_used_wrongly() {
    let system = System::empty();
    for line in [
        "",
        "nonsense",
        "up one two",
        "up --set",
        "up --nonsense",
        "down now",
        "ps all",
        "logs one two",
        "check",
        "fs",
        "fs nonsense",
        "fs ls one two",
        "fs cat",
        "fs put one",
        "fs get one",
        "fs rm",
        "fs mkdir",
        "fs mv one",
        "fs stat one two",
        "fs df all",
        "fs sync now",
        "fs check --image",
        "interface nonsense",
        "interface show",
        "interface check --against",
        "call",
        "call fs.root",
        "call fs.root stat { }",
        "call fs.root stat {} --deadline 0",
        "bench",
        "bench nonsense",
        "bench http --seconds 0",
        "completions",
        "completions nonsense",
        "--state",
        "fs rm /..",
        "fs ls ''",
    ] {
        let arguments: Vec<&str> = line.split_whitespace().map(|word| word.trim_matches('\'')).collect();
        assert_eq!(code(&system, &arguments), 2, "{line:?}");
    }
}

#[test]
fn completions_are_there_for_every_shell() {
    let system = System::empty();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = system.ok(&["completions", shell]);
        assert!(script.contains("atoll") && script.contains("mkdir"), "{shell}");
        assert!(!script.contains("keeper"), "{shell}: what `up` starts is nobody's to type");
    }
    let Ok(mut bash) = Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn() else {
        return println!("skipped: no bash");
    };
    let script = system.ok(&["completions", "bash"]);
    bash.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("it reads");
    let output = bash.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
}

#[test]
fn a_pipe_gets_no_colours_and_no_progress() {
    let system = System::empty();
    let plain = |arguments: &[&str]| {
        // Without NO_COLOR: that it is no terminal must be enough.
        let mut command = system.command(arguments);
        let output = command.env_remove("NO_COLOR").env("TERM", "xterm-256color").output().expect("it runs");
        let printed = [output.stdout.as_slice(), &output.stderr].concat();
        assert!(!printed.contains(&0x1b) && !printed.contains(&b'\r'), "{arguments:?}: {}", said(&output));
    };
    plain(&["up", "--detach", "--set", "httpd.listen=127.0.0.1:0", "--set", "disk.size=128MiB"]);
    let file = system.file("file");
    std::fs::write(&file, vec![1; 30 << 20]).expect("a file");
    let file = file.to_str().expect("UTF-8");
    for arguments in [
        &["ps"][..],
        &["fs", "put", file, "/www/file"],
        &["fs", "get", "/www/file", file],
        &["fs", "ls", "-l", "/www"],
        &["fs", "check"],
        &["fs", "df"],
        &["fs", "cat", "/nowhere"],
        &["check", "/nowhere"],
        &["nonsense"],
        &["--help"],
        &["down"],
    ] {
        plain(arguments);
    }
}

#[test]
fn a_reader_of_logs_or_files_may_go_away() {
    let system = System::start(&[]);
    let file = system.file("file");
    std::fs::write(&file, vec![b'x'; 5 << 20]).expect("a file");
    system.ok(&["fs", "put", file.to_str().expect("UTF-8"), "/www/file"]);
    for arguments in [&["fs", "cat", "/www/file"][..], &["ps"], &["fs", "ls", "/www"], &["ps", "--json"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let child = system.command(arguments).stdout(writer).stderr(Stdio::piped()).spawn().expect("it runs");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(141), &b""[..]), "{arguments:?}");
    }
    // As `| head -1` does it.
    let mut child = system.command(&["fs", "cat", "/www/file"]).stdout(Stdio::piped()).spawn().expect("it runs");
    child.stdout.take().expect("a pipe").read_exact(&mut [0; 10]).expect("ten bytes");
    assert_eq!(child.wait().expect("it ends").code(), Some(141));
    assert_eq!(system.get("/").status, 200);
}

/// Runs `atoll ARGUMENTS` on a terminal of its own with script(1); gives what the terminal got. `type_when`: a word, and
/// what is typed when it has appeared.
fn on_a_terminal(system: &System, arguments: &str, no_color: &str, type_when: Option<(&str, &[u8])>) -> Option<String> {
    let line = format!("stty columns 90; exec {} {arguments}", env!("CARGO_BIN_EXE_atoll"));
    let mut command = Command::new("script");
    command.args(["-qefc", &line, "/dev/null"]).env("ATOLL_STATE", system.state()).env("TERM", "xterm-256color");
    command.env("NO_COLOR", no_color).env("SHELL", "/bin/sh").stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        println!("skipped: no script(1)");
        return None;
    };
    let mut keyboard = child.stdin.take().expect("a pipe");
    let mut screen = child.stdout.take().expect("a pipe");
    let mut seen = Vec::new();
    let mut typed = type_when.is_none();
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = screen.read(&mut bytes) {
        seen.extend_from_slice(&bytes[..count]);
        if let Some((word, keys)) = type_when
            && !typed
            && String::from_utf8_lossy(&seen).contains(word)
        {
            keyboard.write_all(keys).expect("it reads");
            typed = true;
        }
    }
    let status = child.wait().expect("it ends");
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(status.success(), "{status}: {seen}");
    Some(seen)
}

#[test]
fn a_person_at_a_terminal_sees_what_runs_and_ends_it_with_ctrl_c() {
    let system = System::empty();
    let up = "up --set httpd.listen=127.0.0.1:0 --set disk.size=256MiB";
    let Some(seen) = on_a_terminal(&system, up, "", Some(("Ctrl-C stops it", b"\x03"))) else { return };
    for part in ["\x1b[1mNAME ", "httpd  ready", "httpd serves \x1b[36mhttp://127.0.0.1:", "stopping in order"] {
        assert!(seen.contains(part), "no {part:?} in {seen}");
    }
    assert!(seen.trim_end().ends_with("\x1b[32mstopped, the disk is clean\x1b[0m"), "{seen}");
    assert_eq!(system.atoll(&["ps"]).status.code(), Some(3));

    system.up(&[]);
    let plain = on_a_terminal(&system, "ps", "1", None).expect("as before");
    assert!(!plain.contains('\x1b') && plain.contains("httpd       ready"), "{plain}");
}

#[test]
fn a_copy_that_takes_long_shows_its_progress_within_the_terminal() {
    let system = System::start(&[]);
    let fifo = system.file("fifo");
    let target = system.file("target");
    std::fs::create_dir(&target).expect("a directory");
    // Standard input that comes slowly, so that the bar must appear however fast the machine is.
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let line = format!("fs put - /www/slow <{}", fifo.display());
    let writer = std::thread::spawn(move || {
        let mut pipe = std::fs::OpenOptions::new().write(true).open(fifo).expect("somebody reads");
        for _ in 0..8 {
            pipe.write_all(&vec![b'x'; 1 << 20]).expect("it reads");
            std::thread::sleep(std::time::Duration::from_millis(60));
        }
    });
    let Some(seen) = on_a_terminal(&system, &line, "", None) else {
        // Nobody else opens the other end.
        return;
    };
    writer.join().expect("it wrote");
    assert!(seen.contains("8.00 MiB") && seen.contains("\x1b[2K"), "{seen:?}");
    for shown in seen.split(['\r', '\n']) {
        let shown: String = shown.replace("\x1b[2K", "");
        assert!(shown.chars().count() <= 90, "wider than the terminal: {shown:?}");
    }
    assert_eq!(system.get("/slow").body.len(), 8 << 20);
}
