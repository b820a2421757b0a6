//! What the tests of whole nodes share: a node, its processes, and a harness whose program is every process of the node.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::PathBuf;
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use kernel_ipc::component::Context;
use kernel_ipc::runtime::{Options as RuntimeOptions, Runtime, sleep, timeout};
use kernel_ipc::{CallError, Cause};
use protocol::control::{self, ComponentStatus};
use supervisor::up::{self, Options, Progress};

pub struct Node {
    pub directory: tempfile::TempDir,
    pub keeper: Option<Child>,
    pub progress: Vec<Progress>,
}

impl Node {
    /// One of this manifest, which has started or failed.
    pub fn of(directory: tempfile::TempDir, manifest_text: &str) -> Node {
        let manifest = directory.path().join("test.toml");
        std::fs::write(&manifest, manifest_text).unwrap();
        let state = directory.path().join("state");
        let options = Options { manifest: Some(&manifest), state: &state, sets: &[], end_with_parent: true };
        let mut starting = up::start(&options).unwrap();
        let mut progress = Vec::new();
        loop {
            progress.push(starting.next_step());
            if matches!(progress.last(), Some(Progress::Up | Progress::Failed { .. })) {
                break;
            }
        }
        Node { directory, keeper: Some(starting.into_keeper()), progress }
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub fn failure(&self) -> &str {
        match self.progress.last() {
            Some(Progress::Failed { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    pub fn assert_up(&self) {
        assert_eq!(self.progress.last(), Some(&Progress::Up), "{:?}\n{}", self.progress, self.log("supervisor"));
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.state().join("logs").join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Waits for the keeper's end.
    pub fn wait(&mut self) -> Option<i32> {
        self.keeper.take().unwrap().wait().unwrap().code()
    }

    pub fn keeper_pid(&self) -> i32 {
        self.keeper.as_ref().unwrap().id() as i32
    }

    /// Runs a guest's program in a runtime of its own.
    pub fn guest<T>(&self, program: impl AsyncFnOnce(Context) -> T) -> T {
        let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
        runtime.block_on(async {
            let cx = Context::guest(&self.state(), "test").unwrap();
            let result = timeout(Duration::from_secs(60), program(cx)).await;
            result.expect("a guest's program ends within a minute")
        })
    }

    pub fn ps(&self) -> Vec<ComponentStatus> {
        self.guest(async |cx| ps(&cx).await)
    }

    pub fn down(&mut self) {
        self.down_with(0);
    }

    /// The node ends with this code: 1 if not everything was in order.
    pub fn down_with(&mut self, code: i32) {
        self.guest(async |cx| {
            let control: control::Client = cx.connect("control").await.unwrap();
            control.down(control.root()).await.unwrap();
        });
        assert_eq!(self.wait(), Some(code));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            kill(keeper.id() as i32, "TERM");
            let _ = keeper.wait();
        }
        if std::thread::panicking() {
            for name in ["supervisor", "disk", "fs", "net", "httpd"] {
                eprintln!("--- {name}.log\n{}", self.log(name));
            }
        }
    }
}

pub async fn ps(cx: &Context) -> Vec<ComponentStatus> {
    let control: control::Client = cx.connect("control").await.unwrap();
    loop {
        match control.ps(control.root(), 0).await {
            // Another supervisor is asked.
            Err(CallError::Failed { cause: Cause::PeerDied, .. }) => {}
            page => return page.unwrap().components,
        }
    }
}

pub fn kill(pid: i32, signal: &str) {
    assert!(pid > 0, "that would be a whole group");
    let signal: nix::sys::signal::Signal = format!("SIG{signal}").parse().unwrap();
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

pub fn exists(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Waits for something that has to come.
pub async fn until(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !happened().await {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} did not come");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Names the tests of a program: `TESTS`.
macro_rules! tests {
    ($($name:ident,)*) => {
        const TESTS: &[(&str, fn())] = &[$((stringify!($name), $name as fn())),*];
    };
}
pub(crate) use tests;

/// What this program is: the keeper, the supervisor or a component of a node, if it was started as that, or else the tests.
pub fn main(tests: &[(&str, fn())], component: impl FnOnce(&str) -> ExitCode) -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    match arguments.peek().map(String::as_str) {
        Some("keeper") => return up::keeper_main(arguments.skip(1)),
        Some("supervisor") => return up::supervisor_main(arguments.skip(1)),
        Some("serve") => return component(&arguments.nth(1).unwrap_or_default()),
        Some("spare") => {
            let wanted = supervisor::spare::wait().expect("a keeper has started it");
            return wanted.map_or(ExitCode::SUCCESS, |arguments| component(&arguments[1]));
        }
        _ => {}
    }
    // As the usual harness: names are filters, `--list` lists, other options are of no interest here.
    let mut filters: Vec<String> = arguments.collect();
    if filters.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    filters.retain(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let mut failed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        let outcome = std::panic::catch_unwind(test);
        println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        failed += u32::from(outcome.is_err());
    }
    println!("\ntest result: {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
