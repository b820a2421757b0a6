//! `atoll fs`, verb by verb, on a running system: what people expect of `ls`, `cp`, `mv` and `rm`, and what they hear when
//! it cannot be done. Each refusal names the path and changes nothing.

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use common::{System, said};
use serde_json::{Value, json};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The command line fails with `code` and says all of `words`; nothing on standard output.
fn refused(system: &System, arguments: &[&str], code: i32, words: &[&str]) {
    let output = system.atoll(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", said(&output));
    assert!(error.starts_with("error: "), "{arguments:?}: {error}");
    for word in words {
        assert!(error.contains(word), "{arguments:?} does not say {word:?}: {error}");
    }
}

fn facts(system: &System, arguments: &[&str]) -> Value {
    let printed = system.ok(arguments);
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {printed}"))
}

#[test]
fn a_day_with_files() {
    let system = System::start(&[]);
    let file = system.file("notes.txt");
    fs::write(&file, "some notes\n").expect("a file");
    system.ok(&["fs", "mkdir", "/a", "/a/b"]);
    system.ok(&["fs", "mkdir", "-p", "/a/b", "/p/q/r"]);
    system.ok(&["fs", "put", text(&file), "/a"]);
    system.ok(&["fs", "put", text(&file), "/a/b/other.txt"]);
    assert_eq!(system.ok(&["fs", "ls", "/a"]), "b/\nnotes.txt\n");
    assert_eq!(system.ok(&["fs", "ls", "a/notes.txt"]), "notes.txt\n");
    assert_eq!(system.ok(&["fs", "cat", "/a/notes.txt", "/a/b/other.txt"]), "some notes\nsome notes\n");
    system.ok(&["fs", "mv", "/a/notes.txt", "/p/q/r"]);
    system.ok(&["fs", "mv", "/a/b/other.txt", "/p/q/r/notes.txt"]);
    system.ok(&["fs", "mv", "/p/q", "/q"]);
    assert_eq!(system.ok(&["fs", "ls", "/q/r"]), "notes.txt\n");
    system.ok(&["fs", "rm", "/q/r/notes.txt"]);
    system.ok(&["fs", "rm", "-r", "/q", "/a", "/p"]);
    assert_eq!(system.ok(&["fs", "ls"]), "www/\n");
    system.ok(&["fs", "sync"]);
    assert!(system.ok(&["fs", "check"]).contains("no problem"));
    assert!(system.ok(&["fs", "stat", "/www/index.html"]).contains("kind      file\n"));
    assert!(system.ok(&["fs", "df"]).contains(" USE%  NODES\n"));
    assert!(system.ok(&["fs", "ls", "-l", "/www"]).contains("KiB"));
}

#[test]
fn standard_input_and_output_are_files_too() {
    use std::io::Write;
    let system = System::start(&[]);
    let content: Vec<u8> = (0..3_500_000u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    let mut put = system.command(&["fs", "put", "-", "/www/piped"]);
    let mut child = put.stdin(std::process::Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("a pipe").write_all(&content).expect("it reads");
    assert!(child.wait().expect("it ends").success());
    assert!(system.atoll(&["fs", "get", "/www/piped", "-"]).stdout == content);
    assert!(system.get("/piped").body == content);
    refused(&system, &["fs", "put", "-", "/www"], 2, &["/www", "standard input needs the name of a file"]);
}

#[test]
fn every_verb_that_has_facts_gives_them_as_json() {
    let system = System::empty();
    let up = system.up_command(&["--detach", "--json"]).output().expect("it runs");
    let up: Value = serde_json::from_slice(&up.stdout).expect("JSON");
    let names = |facts: &Value| -> Vec<String> {
        let all = facts["components"].as_array().expect("a list");
        all.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&up), ["disk", "fs", "net", "httpd"]);
    let ps = facts(&system, &["ps", "--json"]);
    assert_eq!(ps["components"], up["components"]);
    assert_eq!(ps["supervisor"]["restarts"], 0);
    assert!(ps["supervisor"]["pid"].as_u64().is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()), "{ps}");
    for one in ps["components"].as_array().expect("a list") {
        assert!(one["pid"].as_u64().is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()), "{one}");
        assert_eq!((&one["state"], &one["epoch"], &one["restarts"]), (&json!("ready"), &json!(1), &json!(0)));
        assert_eq!(one["place"], "process");
        assert_eq!(one["listen"].is_string(), one["name"] == "httpd", "{one}");
    }
    assert!(ps["components"][3]["listen"].as_str().expect("an address").starts_with("127.0.0.1:"));

    let file = system.file("file");
    fs::write(&file, vec![7; 10_000]).expect("a file");
    let put = facts(&system, &["fs", "put", text(&file), "/www/file", "--json"]);
    assert_eq!((&put["files"], &put["bytes"]), (&json!(1), &json!(10_000)));
    let got = facts(&system, &["--json", "fs", "get", "/www/file", text(&system.file("copy"))]);
    assert_eq!((&got["files"], &got["bytes"], got["seconds"].is_f64()), (&json!(1), &json!(10_000), true));
    let ls = facts(&system, &["fs", "ls", "/www", "--json"]);
    assert_eq!((&ls[0]["name"], &ls[0]["kind"], ls[0]["inode"].is_u64()), (&json!("file"), &json!("file"), true));
    let long = facts(&system, &["fs", "ls", "-l", "/www", "--json"]);
    assert_eq!((&long[0]["size"], long[0]["modified_ns"].is_u64()), (&json!(10_000), true));
    let stat = facts(&system, &["fs", "stat", "www/file", "--json"]);
    assert_eq!((&stat["path"], &stat["size"], &stat["blocks"]), (&json!("/www/file"), &json!(10_000), &json!(3)));
    assert_eq!((&stat["kind"], &stat["links"]), (&json!("file"), &json!(1)));
    let df = facts(&system, &["fs", "df", "--json"]);
    let number = |name: &str| df[name].as_u64().unwrap_or_else(|| panic!("no {name}: {df}"));
    assert_eq!(number("total_bytes"), number("blocks") * 4096);
    assert_eq!(number("used_bytes") + number("free_bytes"), number("total_bytes"));
    assert_eq!((number("block_size"), number("total_bytes")), (4096, 256 << 20));
    let check = facts(&system, &["fs", "check", "--json"]);
    assert_eq!((check["checked_blocks"].is_u64(), &check["problems"]), (true, &json!([])));
    assert!(facts(&system, &["logs", "--json"])["lines"].is_array());
    for io in ps_io(&system) {
        assert!(["leased", "verified", "copied"].iter().all(|name| io[*name].is_u64()), "{io}");
    }
    for quiet in [&["fs", "sync"][..], &["fs", "mkdir", "/d"], &["fs", "mv", "/d", "/e"], &["fs", "rm", "-r", "/e"]] {
        assert_eq!(system.ok(&[quiet, &["--json"]].concat()), "", "{quiet:?} has no facts");
    }
    let down = facts(&system, &["down", "--json"]);
    assert_eq!(down, json!({"stopped": true, "clean": true, "troubles": []}));
    let image = system.file("disk.img");
    let check = facts(&system, &["fs", "check", "--image", text(&image), "--json"]);
    assert_eq!(check["problems"], json!([]));
}

fn ps_io(system: &System) -> Vec<Value> {
    facts(system, &["ps", "--io", "--json"])["components"].as_array().expect("a list").clone()
}

#[test]
fn what_is_served_is_leased_and_not_copied() {
    let system = System::start(&[]);
    let file = system.file("file");
    fs::write(&file, vec![7; 8 << 20]).expect("a file");
    system.ok(&["fs", "put", text(&file), "/www/file"]);
    let counted = |name: &str, what: &str| -> u64 {
        let all = ps_io(&system);
        let one = all.iter().find(|one| one["name"] == name).expect("it runs");
        one[what].as_u64().expect("a number")
    };
    let before = ["fs", "net", "httpd"].map(|name| counted(name, "copied"));
    let leased = counted("net", "leased");
    assert_eq!(system.get("/file").body.len(), 8 << 20);
    assert!(counted("net", "leased") >= leased + (8 << 20), "the network sends leases");
    let after = ["fs", "net", "httpd"].map(|name| counted(name, "copied"));
    for (before, after) in before.iter().zip(after) {
        assert!(after - before < 10_000, "only heads are copied: {before} to {after}");
    }
    // httpd could not copy any of it: it maps no memory with payload, only its sessions, its logbook and the status page.
    let shared = |name: &str| -> std::collections::BTreeSet<String> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", system.pid(name))).expect("its maps");
        maps.lines()
            .filter_map(|line| Some(line.split_once("/memfd:")?.1.trim_end_matches(" (deleted)").to_owned()))
            .collect()
    };
    assert_eq!(shared("httpd").iter().collect::<Vec<_>>(), ["atoll-c", "atoll-logbook", "atoll-s", "status"]);
    assert!(shared("net").contains("disk"), "the network server gives the driver's pages to the kernel");
}

#[test]
fn a_refusal_names_the_path_and_changes_nothing() {
    let system = System::start(&[]);
    let (file, directory) = (system.file("file"), system.file("directory"));
    fs::write(&file, "new").expect("a file");
    fs::create_dir_all(directory.join("below")).expect("a directory");
    fs::write(directory.join("below/file"), "x").expect("a file");
    let (file, directory) = (text(&file).to_owned(), text(&directory).to_owned());
    system.ok(&["fs", "mkdir", "/full", "/full/below", "/other"]);
    system.ok(&["fs", "put", &file, "/full/below/file"]);
    system.ok(&["fs", "put", &file, "/file"]);
    let picture = |system: &System| {
        ["/", "/www", "/full", "/full/below", "/other"].map(|path| system.ok(&["fs", "ls", path])).concat()
    };
    let before = picture(&system);
    let no_such = "no such file or directory";

    refused(&system, &["fs", "put", &directory, "/www"], 1, &[&directory, "it is a directory", "-r"]);
    refused(&system, &["fs", "put", "/nowhere/x", "/www"], 1, &["cannot read /nowhere/x here", no_such]);
    refused(&system, &["fs", "put", &file, "/nowhere/x"], 1, &["/nowhere", no_such]);
    refused(&system, &["fs", "put", &file, "/file/x"], 1, &["/file", "not a directory"]);
    refused(&system, &["fs", "put", &file, &file, "/nowhere"], 1, &["/nowhere", "not a directory"]);
    refused(&system, &["fs", "put", "-r", &directory, "/file"], 1, &["/file", "is a file"]);
    refused(&system, &["fs", "put", "/dev/null", "/www/null"], 1, &["/dev/null", "not a regular file"]);
    refused(&system, &["fs", "ls", "/nowhere"], 1, &["/nowhere", no_such]);
    refused(&system, &["fs", "stat", "/nowhere"], 1, &["/nowhere", no_such]);
    refused(&system, &["fs", "cat", "/full"], 1, &["/full", "it is a directory"]);
    refused(&system, &["fs", "cat", "/nowhere"], 1, &["/nowhere", no_such]);
    refused(&system, &["fs", "rm", "/full"], 1, &["/full", "it is a directory", "-r"]);
    refused(&system, &["fs", "rm", "/nowhere"], 1, &["/nowhere", no_such]);
    refused(&system, &["fs", "rm", "-r", "/"], 2, &["the root cannot be removed"]);
    refused(&system, &["fs", "mkdir", "/full"], 1, &["/full", "it exists already"]);
    refused(&system, &["fs", "mkdir", "/nowhere/x"], 1, &["/nowhere", no_such]);
    refused(&system, &["fs", "mkdir", "-p", "/file/x"], 1, &["/file", "not a directory"]);
    refused(&system, &["fs", "mv", "/nowhere", "/x"], 1, &["/nowhere", no_such]);
    refused(&system, &["fs", "mv", "/other", "/file"], 1, &["/file", "a directory cannot replace a file"]);
    refused(&system, &["fs", "mv", "/full", "/full/below"], 2, &["/full", "into itself"]);
    refused(&system, &["fs", "mv", "/", "/other"], 2, &["the root cannot be moved"]);
    for climbing in ["/www/../file", "/..", "../file", "/./file"] {
        refused(&system, &["fs", "rm", climbing], 2, &[climbing, "`.` and `..`"]);
    }
    refused(&system, &["fs", "rm", ""], 2, &["an empty path"]);
    refused(&system, &["logs", "nobody"], 1, &["nobody", "no such component"]);
    assert_eq!(picture(&system), before);
    assert_eq!(system.ok(&["fs", "cat", "/full/below/file"]), "new");
}

#[test]
fn get_refuses_to_write_where_it_cannot_and_leaves_what_is_there() {
    let system = System::start(&[]);
    let there = system.file("there");
    fs::create_dir_all(there.join("www/index.html")).expect("a directory");
    fs::write(system.file("plain"), "mine").expect("a file");
    let (there, plain) = (text(&there).to_owned(), text(&system.file("plain")).to_owned());
    let no_such = "no such file or directory";
    refused(&system, &["fs", "get", "/www", &there], 1, &["/www", "it is a directory", "-r"]);
    refused(&system, &["fs", "get", "/nowhere", &there], 1, &["/nowhere", no_such]);
    refused(&system, &["fs", "get", "/www/index.html", "/nowhere/x"], 1, &["cannot write /nowhere/x here", no_such]);
    refused(&system, &["fs", "get", "/www/index.html", "/proc/x"], 1, &["cannot write /proc/x here"]);
    refused(&system, &["fs", "get", "-r", "/www", &plain], 1, &[&plain, "not a directory"]);
    refused(&system, &["fs", "get", "-r", "/www", &there], 1, &["www/index.html", "it is a directory"]);
    refused(&system, &["fs", "get", "/www/index.html", "/www", &plain], 1, &[&plain, "not a directory"]);
    assert_eq!(fs::read_to_string(&plain).expect("it is there"), "mine");
    let left: Vec<_> = fs::read_dir(system.file("there/www")).expect("a directory").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    // Onto a file that exists: it is replaced, as by `cp`.
    system.ok(&["fs", "get", "/www/index.html", &plain]);
    assert!(fs::read_to_string(&plain).expect("it is there").contains("Atoll"));
}

#[test]
fn names_are_any_bytes_but_slash_up_to_255() {
    let system = System::start(&[]);
    let file = system.file("file");
    fs::write(&file, "content").expect("a file");
    let long = "n".repeat(255);
    let odd = std::ffi::OsStr::from_bytes(b"/www/\xff\n\x1b[31m");
    system.ok(&["fs", "put", text(&file), &format!("/www/{long}")]);
    assert_eq!(system.ok(&["fs", "cat", &format!("/www/{long}")]), "content");
    let put = system.command(&["fs", "put", text(&file)]).arg(odd).output().expect("it runs");
    assert!(put.status.success(), "{}", said(&put));
    let cat = system.command(&["fs", "cat"]).arg(odd).output().expect("it runs");
    assert_eq!(cat.stdout, b"content", "{}", said(&cat));
    assert_eq!(system.ok(&["fs", "ls", "/www"]), format!("index.html\n{long}\n\\xff\\n\\u{{1b}}[31m\n"));
    refused(&system, &["fs", "put", text(&file), &format!("/www/{long}n")], 2, &["too long", "255"]);
    refused(&system, &["fs", "mkdir", &"/d".repeat(4000)], 2, &["too long"]);
    let rm = system.command(&["fs", "rm"]).arg(odd).output().expect("it runs");
    assert!(rm.status.success(), "{}", said(&rm));
}

#[test]
fn entries_that_are_no_files_are_named_and_everything_else_is_copied() {
    let system = System::start(&[]);
    let source = system.file("source");
    fs::create_dir(&source).expect("a directory");
    fs::write(source.join("good"), "good").expect("a file");
    nix::unistd::mkfifo(&source.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    std::os::unix::fs::symlink("good", source.join("link")).expect("a link");
    std::os::unix::fs::symlink("nowhere", source.join("dangling")).expect("a link");
    std::os::unix::fs::symlink("/", source.join("root")).expect("a link");
    let output = system.atoll(&["fs", "put", "-r", text(&source), "/www/copy"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    for name in ["pipe", "dangling", "root"] {
        assert!(error.contains(&format!("skipped: {}/{name} is", text(&source))), "{error}");
    }
    assert!(error.contains("3 entries were skipped"), "{error}");
    assert_eq!(system.ok(&["fs", "ls", "/www/copy"]), "good\nlink\n");
    assert_eq!(system.ok(&["fs", "cat", "/www/copy/link"]), "good");
}

#[test]
fn a_file_that_changes_while_it_is_put_harms_nothing() {
    use std::io::Write;
    let system = System::start(&[]);
    let file = system.file("growing");
    fs::write(&file, vec![b'a'; 20 << 20]).expect("a file");
    let growing = std::sync::atomic::AtomicBool::new(true);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut open = fs::OpenOptions::new().append(true).open(&file).expect("it is there");
            // Bounded: the file may not fill the volume.
            for _ in 0..400 {
                if !growing.load(relaxed) {
                    return;
                }
                open.write_all(&[b'b'; 50_000]).expect("it grows");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let put = system.atoll(&["fs", "put", text(&file), "/www/file"]);
        growing.store(false, relaxed);
        assert!(put.status.success(), "{}", said(&put));
    });
    let body = system.get("/file").body;
    let (begin, rest) = body.split_at(20 << 20);
    assert!(begin.iter().all(|byte| *byte == b'a') && rest.iter().all(|byte| *byte == b'b'));
    assert!(system.ok(&["fs", "check"]).contains("no problem"));
}

#[test]
fn an_interrupted_copy_leaves_no_half_of_a_file() {
    use std::io::{Read, Write};
    let system = System::start(&[]);
    let mut put = system.command(&["fs", "put", "-", "/www/half"]);
    let put = put.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut put = put.spawn().expect("it runs");
    let mut pipe = put.stdin.take().expect("a pipe");
    pipe.write_all(&[7; 3 << 20]).expect("it reads");
    common::wait_for("the file to be begun", || system.ok(&["fs", "ls", "/www"]).contains("half"));
    common::signal(i32::try_from(put.id()).expect("a pid"), nix::sys::signal::Signal::SIGINT);
    put.stderr.take().expect("a pipe").read_exact(&mut [0; 6]).expect("it says that it is ending");
    drop(pipe);
    assert_eq!(put.wait().expect("it ends").code(), Some(1));
    assert_eq!(system.ok(&["fs", "ls", "/www"]), "index.html\n");

    let (file, copy) = (system.file("file"), system.file("copy"));
    fs::write(&file, vec![1; 100 << 20]).expect("a file");
    fs::create_dir(&copy).expect("a directory");
    system.ok(&["fs", "put", text(&file), "/www/file"]);
    let mut get = system.command(&["fs", "get", "/www/file", text(&copy)]).spawn().expect("it runs");
    let there = || fs::read_dir(&copy).expect("a directory").count();
    common::wait_for("the copy to begin", || there() > 0);
    common::signal(i32::try_from(get.id()).expect("a pid"), nix::sys::signal::Signal::SIGINT);
    // It may have been complete before.
    let whole = get.wait().expect("it ends").success();
    let left: Vec<_> = fs::read_dir(&copy).expect("a directory").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, if whole { vec!["file"] } else { Vec::new() });
    // What it had leased is given back.
    system.ok(&["fs", "get", "/www/file", text(&copy)]);
    assert_eq!(fs::metadata(copy.join("file")).expect("it is there").len(), 100 << 20);
}
