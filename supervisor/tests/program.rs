//! Programs of one's own as components: started from the manifest, with interfaces that only the manifest describes, by rights, again
//! after a death and by the next supervisor.
//!
//! The programs are this very test program under other names: `counter` is the example of the book, `reader` uses it and may only read.

mod common;
#[path = "../../kernel-ipc/examples/counter/main.rs"]
mod counter;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::rc::Rc;

use common::{Node, children, exists, kill, ps, until};
use counter::interface::{self, ADD, CounterError, Dispatcher, Handler, Number, READ};
use kernel_ipc::component::{self, Context, ContextError};
use kernel_ipc::interface::{Granted, NewCap, Object};
use kernel_ipc::runtime::{Options, Runtime};
use kernel_ipc::session::{Call, SessionInfo};
use kernel_ipc::{CallError, Cause};
use protocol::control::{ComponentStatus, State};
use supervisor::manifest::{Manifest, Origin, Run};

// ---- A client of the counter, which is a component ----

#[derive(Object)]
#[kind(Number)]
struct Seen;

/// Passes on what it is asked.
struct Reader(interface::Client);

impl Handler for Reader {
    type Number = Seen;

    async fn add(&self, _: &Call, _: Granted<Seen>, n: u64) -> Result<u64, CallError<CounterError>> {
        self.0.add(self.0.root(), n).await
    }

    async fn value(&self, _: &Call, _: Granted<Seen>) -> Result<u64, CallError<CounterError>> {
        self.0.value(self.0.root()).await
    }
}

async fn read(cx: Context) -> Result<(), component::Error> {
    let reader = Reader(cx.connect("source").await?);
    let root = async |_: &SessionInfo| Ok(NewCap::new(Seen, READ | ADD).to_grant());
    cx.provide("seen", Rc::new(Dispatcher(reader)), root)?;
    cx.ready();
    cx.stopped().await;
    Ok(())
}

/// Tries to be a guest of its own node, also by a child, and is ready if it is not let in.
async fn spy(cx: Context) -> Result<(), component::Error> {
    let state = cx.state_dir().to_path_buf();
    let itself = Context::guest(&state, "spy").map(drop);
    let child = Command::new(std::env::current_exe()?).arg0("spy-child").arg(&state).status()?;
    if !matches!(itself, Err(ContextError::Rejected(_))) || child.code() != Some(REJECTED) {
        return Err(format!("it was let in: {itself:?}, {child:?}").into());
    }
    cx.ready();
    cx.stopped().await;
    Ok(())
}

/// What the child of a spy ends with that is not let in.
const REJECTED: i32 = 7;

fn spy_child() -> ExitCode {
    let state = std::env::args().nth(1).expect("its parent says it");
    let tried = Runtime::new(Options::default()).unwrap().block_on(async { Context::guest(Path::new(&state), "spy") });
    match tried {
        Err(ContextError::Rejected(_)) => ExitCode::from(REJECTED as u8),
        _ => ExitCode::SUCCESS,
    }
}

// ---- The tests ----

const SYSTEM: &str = r#"
atoll = 1
[interface."example.counter/1"]
rights = { read = 0, add = 8 }
[component.counter]
run = "program:programs/counter"
provides.counter = "example.counter/1"
config = { start = 40 }
[component.reader]
run = "program:programs/reader"
uses.source = { from = "counter.counter", rights = ["read"] }
provides.seen = "example.counter/1"
"#;

/// A node of these programs, which are beside its manifest.
fn start(manifest: &str) -> Node {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("programs")).unwrap();
    for name in ["counter", "reader", "spy"] {
        std::fs::copy(std::env::current_exe().unwrap(), directory.path().join("programs").join(name)).unwrap();
    }
    let manifest = manifest.replace("DIRECTORY", directory.path().to_str().unwrap());
    Node::of(directory, &manifest)
}

/// Kills the supervisor, and waits for its end.
async fn without_supervisor(node: &Node) {
    let is_supervisor = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("atoll-superv"))
    };
    let supervisor = children(node.keeper_pid()).into_iter().find(is_supervisor).unwrap();
    kill(supervisor, "KILL");
    until("the supervisor's end", async || !exists(supervisor)).await;
}

async fn client(cx: &Context, endpoint: &str) -> interface::Client {
    cx.connect(endpoint).await.unwrap()
}

async fn status(cx: &Context, name: &str) -> ComponentStatus {
    ps(cx).await.into_iter().find(|status| status.name == name).unwrap()
}

/// Kills a component, and waits until its next run serves.
async fn die(cx: &Context, name: &str) {
    let before = status(cx, name).await;
    kill(before.pid as i32, "KILL");
    until("its next run", async || {
        let now = status(cx, name).await;
        now.epoch > before.epoch && now.state == State::Ready
    })
    .await;
}

fn a_program_of_ones_own_is_a_component_like_any_other() {
    let mut node = start(SYSTEM);
    node.assert_up();
    node.guest(async |cx| {
        let counter = client(&cx, "counter.counter").await;
        assert_eq!(counter.add(counter.root(), 2).await, Ok(42), "it has its configuration");
        assert_eq!(counter.add(counter.root(), u64::MAX).await, Err(CounterError::TooLarge.into()));
        let process = std::fs::read_link(format!("/proc/{}/exe", status(&cx, "counter").await.pid)).unwrap();
        assert!(process.ends_with("programs/counter"), "{process:?}");
        die(&cx, "counter").await;
        assert_eq!(counter.value(counter.root()).await, Ok(40), "another run of the same program, and the same client");
    });
    node.down();
}

fn what_it_may_do_is_what_the_manifest_says() {
    let mut node = start(SYSTEM);
    node.assert_up();
    node.guest(async |cx| {
        let seen = client(&cx, "reader.seen").await;
        assert_eq!(seen.value(seen.root()).await, Ok(40));
        let refused = seen.add(seen.root(), 1).await;
        assert!(matches!(refused, Err(CallError::Failed { cause: Cause::RightsMissing, .. })), "{refused:?}");
        assert_eq!(seen.value(seen.root()).await, Ok(40));
    });
    node.down();
}

fn the_next_supervisor_finds_the_programs_and_can_start_them() {
    let mut node = start(SYSTEM);
    node.assert_up();
    // The manifest may be another one by then, or none: the node keeps its own, and where it was.
    std::fs::remove_file(node.directory.path().join("test.toml")).unwrap();
    node.guest(async |cx| {
        let counter = client(&cx, "counter.counter").await;
        assert_eq!(counter.add(counter.root(), 1).await, Ok(41));
        without_supervisor(&node).await;
        let again = Context::guest(&node.state(), "again").unwrap();
        assert_eq!(counter.value(counter.root()).await, Ok(41), "nobody else has felt it");
        die(&again, "counter").await;
        let counter = client(&again, "counter.counter").await;
        assert_eq!(counter.value(counter.root()).await, Ok(40));
    });
    node.down();
}

/// A node that was started before there was such a file has no program that it could be wrong about.
fn a_supervisor_that_does_not_know_where_the_manifest_was_goes_on_all_the_same() {
    let mut node = start(&SYSTEM.replace("program:", "program:DIRECTORY/"));
    node.assert_up();
    node.guest(async |cx| {
        let counter = client(&cx, "counter.counter").await;
        assert_eq!(counter.add(counter.root(), 1).await, Ok(41));
        std::fs::remove_file(node.state().join("manifest.base")).unwrap();
        without_supervisor(&node).await;
        let again = Context::guest(&node.state(), "again").unwrap();
        assert_eq!(status(&again, "counter").await.state, State::Ready);
        assert_eq!(counter.value(counter.root()).await, Ok(41));
    });
    node.down();
}

fn a_kept_manifest_can_be_started_again() {
    let mut node = start(SYSTEM);
    node.assert_up();
    node.down();
    let kept = node.state().join("manifest");
    let checked = Manifest::load(Origin::Path(&kept), &[]).unwrap();
    let programs = node.directory.path().join("programs");
    let counter = Run::Program(programs.join("counter"));
    assert_eq!(checked.components.iter().find(|component| component.name == "counter").unwrap().run, counter);
}

fn what_a_program_prints_is_a_manifest() {
    let node = start(SYSTEM);
    let counter = node.directory.path().join("programs/counter");
    let printed = std::process::Command::new(&counter).arg("--manifest").output().unwrap();
    let text = String::from_utf8(printed.stdout).unwrap();
    let checked = Manifest::load(Origin::Text { name: "printed", text: &text }, &["counter.start=5".into()]).unwrap();
    assert_eq!(checked.components[0].run, Run::Program(counter));
    assert_eq!(checked.components[0].config, serde_json::json!({ "start": 5 }), "numbers are numbers");
}

fn a_component_is_no_guest_of_its_node() {
    let mut node = start("atoll = 1\n[component.spy]\nrun = \"program:programs/spy\"\n");
    node.assert_up();
    node.down();
}

fn a_program_that_is_not_there_is_named() {
    let node = start(&SYSTEM.replace("programs/reader", "programs/absent"));
    let failure = node.failure();
    assert!(failure.contains("component reader") && failure.contains("programs/absent: No such file"), "{failure}");
}

fn a_program_that_is_no_component_is_not_waited_for() {
    let node = start(&SYSTEM.replace("programs/reader", "/bin/true"));
    let failure = node.failure();
    assert!(failure.contains("component reader: exited with code 0"), "{failure}");
}

fn the_page_shows_the_example_as_it_is() {
    let page = include_str!("../../docs/components.md");
    let shown = [
        include_str!("../../kernel-ipc/examples/counter/interface.rs"),
        include_str!("../../kernel-ipc/examples/counter/main.rs"),
        include_str!("../../kernel-ipc/examples/count.rs"),
    ];
    for listing in shown {
        assert!(page.contains(&format!("```rust\n{listing}```")), "docs/components.md does not have\n{listing}");
    }
}

common::tests! {
    a_program_of_ones_own_is_a_component_like_any_other,
    what_it_may_do_is_what_the_manifest_says,
    the_next_supervisor_finds_the_programs_and_can_start_them,
    a_supervisor_that_does_not_know_where_the_manifest_was_goes_on_all_the_same,
    a_kept_manifest_can_be_started_again,
    what_a_program_prints_is_a_manifest,
    a_component_is_no_guest_of_its_node,
    a_program_that_is_not_there_is_named,
    a_program_that_is_no_component_is_not_waited_for,
    the_page_shows_the_example_as_it_is,
}

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    match Path::new(&name).file_name().and_then(|name| name.to_str()).unwrap_or_default() {
        "counter" => counter::main(),
        "reader" => component::run(read),
        "spy" => component::run(spy),
        "spy-child" => spy_child(),
        _ => common::main(TESTS, |name| panic!("there is no built-in {name}")),
    }
}
