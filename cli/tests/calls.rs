//! `atoll call` and `atoll interface` against a running system: any operation of any endpoint, by what its host says.

mod common;

use std::io::Write;
use std::process::{Output, Stdio};

use common::{System, said};
use serde_json::{Value, json};

/// Calls, and gives what `--json` shows of each.
fn calls(system: &System, arguments: &[&str]) -> Vec<Value> {
    let shown = system.ok(&[&["--json", "call"], arguments].concat());
    let shown: Value = serde_json::from_str(&shown).expect("--json is JSON");
    shown["calls"].as_array().expect("a list").clone()
}

fn result(system: &System, arguments: &[&str]) -> Value {
    calls(system, arguments).last().expect("a call")["result"].clone()
}

fn refused(system: &System, arguments: &[&str]) -> (i32, String) {
    let output: Output = system.atoll(&[&["call"], arguments].concat());
    let code = output.status.code().unwrap_or_else(|| panic!("{}", said(&output)));
    (code, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_endpoint_of_the_system_is_called_by_what_it_says_it_is() {
    let system = System::start(&[]);

    // Each host says what this program says, which was built with it.
    for (endpoint, name) in [("fs.root", "fs"), ("disk.disk", "block"), ("net.net", "net"), ("disk", "block")] {
        let by_host = system.ok(&["interface", "show", endpoint, "--json"]);
        assert_eq!(by_host, system.ok(&["interface", "show", name, "--json"]), "{endpoint}");
    }

    assert_eq!(result(&system, &["disk.disk", "info"])["block_size"], 4096);
    assert_eq!(result(&system, &["control", "supervisor"])["restarts"], 0);
    let not_allowed = refused(&system, &["net", "listen", r#"{"address": "127.0.0.1:0"}"#]);
    let said = "error: net.net listen: NotAllowed (error net-2): the capability does not allow this address\n";
    assert_eq!(not_allowed, (1, said.into()));

    // What one call gives, the next ones name; what is written comes out again, text or not.
    let bytes = r#"append {"node": "$1", "data": {"base64": "AP/+"}}"#;
    let made = calls(
        &system,
        &[
            "fs",
            "create",
            r#"{"name": "note", "want": ["read", "write"]}"#,
            "--then",
            r#"write {"node": "$1", "offset": 0, "data": "text"}"#,
            "--then",
            r#"read {"node": "$1", "offset": 0, "len": 100}"#,
            "--then",
            bytes,
            "--then",
            r#"read {"node": "$1", "offset": 4, "len": 100}"#,
            "--then",
            r#"read {"node": "$1", "offset": 7, "len": 100}"#,
            "--data",
        ],
    );
    assert_eq!(made[0]["result"][0], json!({ "capability": "$1", "kind": "Node" }));
    let results: Vec<&Value> = made.iter().skip(1).map(|call| &call["result"]).collect();
    assert_eq!(
        results,
        [
            &Value::Null,
            &json!({ "lease": "$2", "bytes": 4, "data": "text" }),
            &json!(4),
            &json!({ "lease": "$3", "bytes": 3, "data": { "base64": "AP/+" } }),
            &Value::Null,
        ]
    );
    let listed = result(&system, &["fs", r#"readdir {"cursor": 0, "max": 100}"#]);
    let names: Vec<&Value> = listed["bytes"].as_array().expect("entries").iter().map(|entry| &entry["name"]).collect();
    assert!(names.contains(&&json!("note")), "{listed}");

    // A capability is of one command line only.
    let (code, error) = refused(&system, &["fs.root", "stat", r#"{"node": "$1"}"#]);
    assert_eq!(code, 2);
    assert!(error.contains("node: expected a capability of kind Node that an earlier call gave"), "{error}");
}

#[test]
fn what_fails_says_why_and_whether_it_ran() {
    let system = System::start(&[]);
    let (code, error) = refused(&system, &["fs.root", "lookup", r#"{"path": "no/such"}"#]);
    assert_eq!((code, error.as_str()), (1, "error: fs.root lookup: NotFound (error fs-1): no such name\n"));

    // A rule that the description only tells: the host refuses.
    let (code, error) = refused(&system, &["fs.root", "lookup", r#"{"path": "../secret"}"#]);
    assert_eq!(code, 1);
    assert!(error.contains("BadArguments") && error.contains("nothing was done"), "{error}");
    assert!(error.contains("path is names joined by '/'"), "{error}");

    for (arguments, expected) in [
        (&["fs.root", "nosuch"][..], "atoll.fs/1 has no operation nosuch"),
        (&["fs.root", "lookup", "{}"], "fs.root lookup: path: expected a Path"),
        (&["fs.root", "lookup", r#"{"path": 7}"#], "path: expected bytes, as text or as {\"base64\": …}, found 7"),
        (&["fs.root", "lookup", r#"{"path": ""#], "the arguments of lookup are no JSON"),
        (
            &["disk.disk", "read", r#"{"block": 0, "count": -1}"#],
            "count: expected a number from 0 to 4294967295, found -1",
        ),
        (&["control", "signal", r#"{"component": "fs", "signal": "Tickle"}"#], "\"Stop\", \"Continue\" or \"Abort\""),
        // Nothing of a sequence is done when a later call has no operation.
        (&["fs.root", "mkdir", r#"{"name": "new"}"#, "--then", "nosuch"], "has no operation nosuch"),
    ] {
        let (code, error) = refused(&system, arguments);
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    let (code, error) = refused(&system, &["nosuch", "stat"]);
    assert_eq!(code, 1);
    assert!(error.contains("there is no endpoint nosuch"), "{error}");
    let (code, error) = refused(&system, &["fs.root", "lookup", r#"{"path": "new"}"#]);
    assert!(code == 1 && error.contains("NotFound"), "{error}");

    // The facts, for programs: what was done before, and why the last one failed.
    let output =
        system.atoll(&["--json", "call", "fs", "statfs", "--then", r#"lookup {"path": "no"}"#, "--then", "statfs"]);
    assert_eq!(output.status.code(), Some(1));
    let shown: Value = serde_json::from_slice(&output.stdout).expect("--json is JSON");
    let calls = shown["calls"].as_array().expect("a list");
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[1]["error"]["name"], "NotFound");
}

#[test]
fn a_call_that_no_answer_comes_to_ends_at_its_deadline() {
    let system = System::start(&[]);
    // Without LISTEN's address nothing ever happens to this session: the call stands.
    let (code, error) = refused(&system, &["net", "next_events", r#"{"cursor": 0, "max": 1}"#, "--deadline", "1"]);
    assert_eq!(code, 1);
    assert!(error.contains("there was no answer in time"), "{error}");
}

#[test]
fn arguments_come_from_standard_input_too() {
    let system = System::start(&[]);
    let mut command = system.command(&["call", "fs.root", "lookup", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary runs");
    let stdin = child.stdin.take();
    stdin.expect("a pipe").write_all(br#"{"path": "www/index.html"}"#).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let stat: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    assert_eq!(stat["kind"], "File");
}

#[test]
fn a_change_that_breaks_somebody_is_told_with_exit_code_1() {
    let system = System::empty();
    let shown = system.ok(&["interface", "show", "block", "--json"]);
    let mut before: Value = serde_json::from_str(&shown).expect("--json is JSON");
    let check = |before: &Value| {
        let file = system.file("before.json");
        std::fs::write(&file, before.to_string()).expect("a file");
        let file = file.to_str().expect("a path").to_owned();
        let output = system.atoll(&["interface", "check", "--against", &file]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(check(&before), (Some(0), "atoll.block/1: as released\n".into()));

    // Before there was write_zeroes: nobody is broken.
    before["operations"].as_array_mut().expect("a list").pop();
    let (code, text) = check(&before);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("atoll.block/1: 1 change, breaks nobody\n  operation 6 write_zeroes: is new;"), "{text}");

    // When a count had 8 bytes: everybody is.
    before["operations"][1]["arguments"][1]["type"] = json!("u64");
    let (code, text) = check(&before);
    assert_eq!(code, Some(1), "{text}");
    let line = "operation 2 read, argument count: u64 has become u32; \
                breaks clients of before, and clients of now on hosts of before";
    assert!(text.contains(line), "{text}");

    // What it is compared with must be the same interface.
    let file = system.file("before.json");
    let other = system.atoll(&["interface", "check", "fs", "--against", file.to_str().expect("a path")]);
    assert_eq!(other.status.code(), Some(1));
    assert!(said(&other).contains("it describes atoll.block/1, which is another one"), "{}", said(&other));
}

#[test]
fn what_a_crash_was_asked_is_shown_as_it_was_meant() {
    let system = System::empty();
    let payload: Vec<u8> = [&3u32.to_le_bytes()[..], b"a/b"].concat();
    let request = json!({ "object": [1, 0], "on_root": true, "payload": payload });
    let call = json!({
        "client": "httpd", "endpoint": "fs.root", "interface": "atoll.fs/1", "operation": 8, "name": "lookup",
        "seq": 1, "crashes": 2, "quarantined": true, "request": request,
    });
    let crash = json!({
        "crash": 1, "unix_seconds": 0, "component": "fs", "epoch": 2, "how": "killed by SIGABRT",
        "last_lines": [], "calls": [call],
    });
    let crashes = system.state().join("crashes");
    std::fs::create_dir_all(&crashes).expect("a directory");
    std::fs::write(crashes.join("1.json"), crash.to_string()).expect("a file");
    let shown = system.ok(&["crash", "show", "1"]);
    assert!(shown.contains("\n  asked for lookup {\"path\":\"a/b\"}\n"), "{shown}");
}
