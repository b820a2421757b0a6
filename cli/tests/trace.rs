//! What `atoll trace` and `atoll capabilities` show of a running system, also over the deaths of its components.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use common::{System, kill_now, signal, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

/// `atoll trace` over a command that ends when it is told to.
struct Tracing(Child);

impl Tracing {
    /// Everything is traced from now on.
    fn begin(system: &System, arguments: &[&str]) -> Tracing {
        let arguments = [&["trace", "--json"], arguments, &["--", "cat"]].concat();
        let mut command = system.command(&arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the binary runs");
        // What the command prints is no part of the JSON.
        child.stdin.as_mut().expect("a pipe").write_all(b"hello\n").expect("it reads");
        let mut said = [0; 6];
        child.stderr.as_mut().expect("a pipe").read_exact(&mut said).expect("it answers");
        assert_eq!(&said, b"hello\n");
        Tracing(child)
    }

    fn end(mut self) -> Trace {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Trace(serde_json::from_slice(&output.stdout).expect("JSON"))
    }
}

/// In Chrome's format.
struct Trace(Value);

impl Trace {
    fn events(&self, phase: &str) -> Vec<&Value> {
        let events = self.0["traceEvents"].as_array().expect("a list");
        events.iter().filter(|event| event["ph"] == phase).collect()
    }

    /// The slices of a component with this name, of one kind.
    fn slices(&self, component: &str, kind: &str, name: &str) -> Vec<&Value> {
        let process = self.events("M").into_iter().find(|event| event["args"]["name"] == component);
        let pid = &process.unwrap_or_else(|| panic!("{component}"))["pid"];
        let slices = self.events("X").into_iter();
        slices.filter(|slice| slice["pid"] == *pid && slice["cat"] == kind && slice["name"] == name).collect()
    }
}

/// Whether a slice lies in another one.
fn is_within(inner: &Value, outer: &Value) -> bool {
    let times = |slice: &Value| {
        let begin = slice["ts"].as_f64().expect("a time");
        (begin, begin + slice["dur"].as_f64().expect("a time"))
    };
    let ((begin, end), (from, to)) = (times(inner), times(outer));
    // They are printed to a nanosecond, with the error of such a number.
    from - 0.01 <= begin && end <= to + 0.01
}

/// A system that serves a page of 100,000 bytes, which is on its disk and nowhere else.
fn with_a_page_on_the_disk() -> System {
    let system = System::start(&[]);
    std::fs::write(system.file("page"), vec![7; 100_000]).expect("room");
    system.ok(&["fs", "put", system.file("page").to_str().expect("text"), "/www/page"]);
    system.ok(&["fs", "sync"]);
    // Its cache is gone with it.
    kill_now(system.pid("fs"));
    wait_for("an answer", || system.get("/").status == 200);
    system
}

#[test]
fn the_way_of_a_request_is_seen_from_the_network_down_to_the_disk() {
    let system = with_a_page_on_the_disk();

    let tracing = Tracing::begin(&system, &[]);
    assert_eq!(system.get("/page").body.len(), 100_000);
    system.ok(&["fs", "stat", "/www/page"]);
    assert!(!system.atoll(&["fs", "stat", "/nothing"]).status.success());
    let trace = tracing.end();

    let works = trace.slices("httpd", "work", "GET /page");
    assert_eq!(works.len(), 1);
    let of_work = |slices: Vec<Value>| -> Vec<Value> {
        slices.into_iter().filter(|slice| slice["args"]["trace"] == works[0]["args"]["trace"]).collect()
    };
    let cloned = |slices: Vec<&Value>| -> Vec<Value> { slices.into_iter().cloned().collect() };
    let opens = of_work(cloned(trace.events("X"))).into_iter().filter(|slice| {
        let name = slice["name"].as_str().unwrap_or_default();
        slice["cat"] == "call" && (name.starts_with("fs.root") || name == "net.net send")
    });
    let opens: Vec<Value> = opens.collect();
    assert!(opens.len() >= 2 && opens.iter().all(|call| is_within(call, works[0])), "{opens:?}");
    let reads = of_work(cloned(trace.slices("fs", "call", "disk.disk read")));
    let served = of_work(cloned(trace.slices("disk", "served", "read")));
    assert!(!reads.is_empty() && reads.len() == served.len(), "{reads:?} {served:?}");
    for read in &reads {
        assert!(served.iter().any(|served| is_within(served, read)));
        assert!(opens.iter().any(|call| is_within(read, call)));
    }
    // An arrow for each, from slice to slice.
    assert_eq!(trace.events("s").len(), trace.events("f").len());
    assert!(trace.events("s").len() >= opens.len() + reads.len());
    // A guest writes no logbook: its call begins at the host, which knows how it ended.
    let lookups = trace.slices("fs", "served", "lookup");
    let ends: Vec<&Value> = lookups.iter().map(|slice| &slice["args"]["end"]).collect();
    assert!(ends.contains(&&Value::from("done")) && ends.contains(&&Value::from("NotFound")), "{ends:?}");
    assert!(lookups.iter().all(|slice| slice["args"]["client"] == "guest atoll"));
    // What waits by design is left out.
    assert!(trace.slices("httpd", "call", "net.net next_events").is_empty());

    // For people; and only what has to do with one component; and nothing is traced any more.
    let atoll = env!("CARGO_BIN_EXE_atoll");
    let state = system.state().to_str().expect("text");
    let of = |component| system.ok(&["trace", component, "--", atoll, "fs", "stat", "/www/page", "--state", state]);
    // Behind what the command has printed.
    let (of_httpd, of_fs) = (of("httpd"), of("fs"));
    assert!(of_httpd.starts_with("path ") && of_httpd.ends_with("\nno traces\n"), "{of_httpd}");
    assert!(of_fs.contains("guest atoll") && of_fs.contains("fs.root lookup"), "{of_fs}");
    let shown = system.ok(&[
        "trace",
        "--standing",
        "--output",
        system.file("trace").to_str().expect("text"),
        "--",
        "sleep",
        "0.1",
    ]);
    assert!(shown.contains("trace"), "{shown}");
    let written = std::fs::read(system.file("trace")).expect("it was written");
    assert!(serde_json::from_slice::<Value>(&written).expect("JSON")["traceEvents"].is_array());
    assert!(!system.atoll(&["trace", "--", "false"]).status.success());
    let unknown = system.atoll(&["trace", "nobody", "--for", "1ms"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nobody: no such component"));
}

#[test]
fn a_call_is_followed_over_the_death_of_the_run_that_served_it() {
    let system = with_a_page_on_the_disk();
    let run = system.component("fs")["epoch"].as_u64().expect("a number");

    let tracing = Tracing::begin(&system, &[]);
    let (disk, address) = (system.pid("disk"), system.listen());
    signal(disk, Signal::SIGSTOP);
    let download = std::thread::spawn(move || common::get(&address, "/page").expect("an answer"));
    // In its handler, which waits for the disk.
    wait_for("fs to wait", || system.ok(&["stuck", "--json", "--older", "0"]).contains("\"host\": \"disk\""));
    kill_now(system.pid("fs"));
    signal(disk, Signal::SIGCONT);
    let reply = download.join().expect("it ends");
    assert_eq!((reply.status, reply.body.len()), (200, 100_000));
    let trace = tracing.end();

    let works = trace.slices("httpd", "work", "GET /page");
    let key = &works.first().expect("it was traced")["args"]["trace"];
    let of_key = |slice: &&Value| slice["args"]["trace"] == *key;
    let calls: Vec<&Value> = trace.events("X").into_iter().filter(of_key).filter(|one| one["cat"] == "call").collect();
    let died = format!("; run {run} of fs died");
    let over: Vec<&&Value> =
        calls.iter().filter(|call| call["args"]["end"].as_str().is_some_and(|end| end.ends_with(&died))).collect();
    assert_eq!(over.len(), 1, "{calls:?}");
    assert_eq!(over[0]["args"]["end"], format!("done{died}"));
    // The one that died over it, and the one that answered.
    let name = over[0]["name"].as_str().expect("text").trim_start_matches("fs.root ");
    let served: Vec<&Value> = trace.slices("fs", "served", name).into_iter().filter(of_key).collect();
    let runs: Vec<(u64, &str)> = served
        .iter()
        .map(|slice| (slice["args"]["run"].as_u64().expect("a number"), slice["args"]["end"].as_str().expect("text")))
        .collect();
    assert_eq!(runs, [(run, "died"), (run + 1, "done")]);
    // And what it had asked of the disk.
    let lost = format!("run {run} of fs died");
    assert!(
        calls.iter().any(|call| call["args"]["end"].as_str().is_some_and(|end| end.starts_with(&lost))),
        "{calls:?}"
    );
}

fn capabilities(system: &System, arguments: &[&str]) -> Vec<Value> {
    let text = system.ok(&[&["capabilities", "--json"], arguments].concat());
    let all: Value = serde_json::from_str(&text).expect("JSON");
    all["endpoints"].as_array().expect("a list").clone()
}

/// What somebody holds on an endpoint.
fn held(endpoints: &[Value], endpoint: &str, holder: &str) -> Vec<Value> {
    let of = endpoints.iter().find(|one| one["endpoint"] == endpoint).unwrap_or_else(|| panic!("{endpoint}"));
    let held = of["capabilities"].as_array().expect("a list");
    held.iter().filter(|one| one["holder"] == holder).cloned().collect()
}

#[test]
fn who_holds_what_is_seen_without_asking_anybody_and_stays_so_over_a_death() {
    let system = System::start(&[]);
    std::fs::write(system.file("large"), vec![7; 64 << 20]).expect("room");
    system.ok(&["fs", "put", system.file("large").to_str().expect("text"), "/www/large"]);
    let of_httpd = || held(&capabilities(&system, &[]), "fs.root", "httpd");
    assert_eq!(of_httpd().len(), 1);

    // Somebody who reads slowly: httpd holds the file meanwhile.
    let mut client = TcpStream::connect(system.listen()).expect("it listens");
    client.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").expect("it reads");
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line).expect("an answer");
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    wait_for("httpd to hold the file", || of_httpd().len() == 2);
    let before = of_httpd();
    let (root, file) = (&before[0], &before[1]);
    assert_eq!((&root["parent"], &root["depth"], &root["state"]), (&Value::Null, &0.into(), &"live".into()));
    assert_eq!((&file["depth"], &file["kind"], &file["revoked"]), (&1.into(), &"Node".into(), &false.into()));
    let name = |of: &Value| [of["session"].clone(), of["index"].clone(), of["generation"].clone()];
    assert_eq!(name(&file["parent"]), name(root));
    assert!(file["rights"].as_array().is_some_and(|rights| rights.contains(&"read".into())), "{file}");
    let shown = system.ok(&["capabilities", "httpd"]);
    assert!(shown.contains("fs.root atoll.fs/1\n") && shown.contains("\n  Node "), "{shown}");
    // What httpd holds on fs has nothing to do with the disk.
    let endpoints = capabilities(&system, &["disk"]);
    assert_eq!(endpoints.iter().map(|one| one["endpoint"].clone()).collect::<Vec<_>>(), ["disk.disk"]);

    // Stopped, it cannot answer, and need not; dead, it is the next run's.
    let fs = system.pid("fs");
    signal(fs, Signal::SIGSTOP);
    assert_eq!(of_httpd(), before);
    kill_now(fs);
    wait_for("another run of fs", || system.component("fs")["epoch"] == 2);
    system.wait_until_ready();
    let names = |held: &[Value]| held.iter().map(name).collect::<Vec<_>>();
    assert_eq!(names(&of_httpd()), names(&before));
    // Another supervisor knows as much.
    system.ok(&["supervisor", "restart"]);
    assert_eq!(names(&of_httpd()), names(&before));
    drop(client);
    wait_for("the file to be given back", || of_httpd().len() == 1);

    let unknown = system.atoll(&["capabilities", "nobody"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nobody: no such component"));
}
