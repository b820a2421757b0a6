//! Whole nodes of small test components: start, sessions, deaths, restarts, end.
//!
//! - The keeper runs `/proc/self/exe`, so this program is its own keeper, supervisor and components: see [`main`].
//! - `block-file` is a disk that does on command what a component must not; `fs-server` uses it. Both write to a file in
//!   which order they were stopped.
//! - Run one test with `cargo test -p supervisor --test node NAME`.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{Node, children, exists, kill, ps, until};
use kernel_ipc::component::{self, Client, Context};
use kernel_ipc::interface::{Granted, Kind, Object};
use kernel_ipc::lease::{Lend, Region};
use kernel_ipc::runtime::{Options as RuntimeOptions, Runtime, sleep};
use kernel_ipc::session::{Call, Grant, Response, Service};
use kernel_ipc::{CallError, Cause, Executed, Rights};
use protocol::block::{self, DeviceInfo};
use protocol::control::{self, Signal, SignalError, State};
use protocol::fs;
use supervisor::up::{self, Options, Progress};

// ---- The components ----

struct Disk {
    cx: Context,
    region: Region,
}

/// So many lines are written without an end, and without a word.
const FOR_EVER: u64 = u64::MAX;
/// Before these lines come something is waited for that never comes.
const BLOCKED: u64 = u64::MAX - 1;
/// What to write zeroes on for a handler that keeps its thread for 20 ms.
const SLOW: u64 = u64::MAX - 2;

/// The only object.
struct Device;

impl Object for Device {
    type Kind = block::Device;
    fn to_words(&self) -> [u64; 2] {
        [7, 8]
    }
    fn from_words(_: [u64; 2]) -> Self {
        Device
    }
}

impl block::Handler for Disk {
    type Device = Device;

    async fn info(&self, _: &Call, _: Granted<Device>) -> Result<DeviceInfo, CallError<block::InfoError>> {
        let blocks = self.cx.epoch().get();
        Ok(DeviceInfo {
            block_size: 4096,
            max_transfer_blocks: 1,
            blocks,
            direct: false,
            read_only: false,
            blank: false,
        })
    }

    async fn read(
        &self,
        _: &Call,
        _: Granted<Device>,
        block: u64,
        _: u32,
    ) -> Result<Lend, CallError<block::ReadError>> {
        self.region.copy_in(0, &block.to_le_bytes()).expect("the region has a page");
        self.cx.counters().add_leased(4096);
        Ok(Lend { region: self.region.id(), offset: 0, length: 4096, source: None, keep: Rc::new(()) })
    }

    async fn write(
        &self,
        _: &Call,
        _: Granted<Device>,
        _: u64,
        _: kernel_ipc::interface::LeasePart,
    ) -> Result<(), CallError<block::WriteError>> {
        Ok(())
    }

    /// Never ends.
    async fn flush(&self, _: &Call, _: Granted<Device>) -> Result<(), CallError<block::FlushError>> {
        println!("flushing");
        std::future::pending().await
    }

    /// Ends this process.
    async fn discard(&self, _: &Call, _: Granted<Device>, _: u64, _: u32) -> Result<(), CallError<block::WriteError>> {
        std::process::exit(3)
    }

    async fn write_zeroes(
        &self,
        _: &Call,
        _: Granted<Device>,
        lines: u64,
        _: u32,
    ) -> Result<(), CallError<block::WriteError>> {
        // A bug, which shows once.
        while lines == FOR_EVER && self.cx.epoch().get() == 1 {
            std::hint::spin_loop();
        }
        if lines == BLOCKED && self.cx.epoch().get() <= 2 {
            // Another one: nobody ever writes into it.
            let (mut pipe, _kept) = std::io::pipe().expect("a pipe");
            let _ = std::io::Read::read(&mut pipe, &mut [0]);
        }
        if lines == SLOW {
            std::thread::sleep(Duration::from_millis(20));
        }
        let lines = if lines < SLOW { lines } else { 0 };
        for line in 0..lines {
            println!("line {line}");
        }
        Ok(())
    }
}

async fn disk(cx: Context) -> Result<(), component::Error> {
    #[derive(serde::Deserialize)]
    struct Config {
        path: String,
    }
    let config: Config = cx.config()?;
    println!("a disk called {}", config.path);
    eprintln!("on standard error");
    match config.path.as_str() {
        "fails" => return Err("there is no disk today".into()),
        "panics" => panic!("what a disk"),
        "kills-itself" => nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)?,
        "fails-later" if cx.epoch().get() > 1 => return Err("it worked once".into()),
        "tells-nothing" => std::future::pending().await,
        _ => {}
    }
    let region = Region::create("test", cx.new_region_id(), 4096)?;
    cx.publish_region(&region).await?;
    let service = Rc::new(block::Dispatcher(Disk { cx: cx.clone(), region }));
    cx.provide("disk", service, async |_| {
        Ok(Grant { object: [7, 8], kind: block::Device::NUMBER, rights: Rights::from_bits_retain(u32::MAX), badge: 0 })
    })?;
    cx.report("listen", "nowhere:1");
    cx.ready();
    cx.stopped().await;
    stopped("disk");
    Ok(())
}

/// Answers `statfs` with what its disk answers to `info`, and how often a mapped lease of the disk's had the right bytes.
///
/// It survives: `mkdir` appends the number in its payload to a list and answers with where it stands, `open` gives a
/// capability of a number, `stat` says which, `readdir` gives the list.
struct Files {
    cx: Context,
    disk: block::Client,
    reads: Cell<u64>,
    made: RefCell<Vec<u64>>,
}

/// A number that it cannot bear.
const CURSED: u64 = u64::MAX - 1;

const OPEN: u16 = 1;
const MKDIR: u16 = 3;
const STAT: u16 = 7;
const READDIR: u16 = 14;

fn number(payload: &[u8]) -> u64 {
    payload.try_into().map(u64::from_le_bytes).unwrap_or_default()
}

impl Service for Files {
    const INTERFACE: &'static kernel_ipc::interface::Description = &fs::DESCRIPTION;
    const SURVIVES: bool = true;

    async fn serve(&self, call: &mut Call) -> Response {
        let n = number(call.payload());
        match call.operation() {
            OPEN => {
                let grant = Grant { object: [n, 0], kind: 1, rights: Rights::from_bits_retain(u32::MAX), badge: 0 };
                return Response { grants: vec![grant], ..Response::default() };
            }
            // A bug.
            MKDIR if n == CURSED => std::process::abort(),
            MKDIR => {
                let at = self.made.borrow().len() as u64;
                self.made.borrow_mut().push(n);
                call.effect(n.to_le_bytes().to_vec());
                return Response { payload: at.to_le_bytes().as_slice().into(), ..Response::default() };
            }
            STAT => {
                let object = call.target().object[0].to_le_bytes();
                return Response { payload: object.as_slice().into(), ..Response::default() };
            }
            READDIR => {
                let made = self.made.borrow();
                let page = made.iter().skip(n as usize).take(400).flat_map(|n| n.to_le_bytes());
                return Response { payload: page.collect::<Vec<u8>>().into(), ..Response::default() };
            }
            _ => {}
        }
        let blocks = match self.disk.info(self.disk.root()).await {
            Ok(info) => info.blocks,
            Err(_) => 0,
        };
        if let Ok(lease) = self.disk.read(self.disk.root(), 99, 1).await {
            let mut bytes = [0; 8];
            match self.cx.holder().borrow().read(&lease.name(), 0, &mut bytes) {
                Ok(()) if u64::from_le_bytes(bytes) == 99 => self.reads.set(self.reads.get() + 1),
                other => println!("read {other:?} {bytes:?}"),
            }
        }
        let payload = [blocks, self.reads.get()].map(u64::to_le_bytes).concat();
        Response { payload: payload.into(), ..Response::default() }
    }
}

async fn files(cx: Context) -> Result<(), component::Error> {
    let disk: block::Client = cx.connect("disk").await?;
    let survived = cx.survive(16 << 20).await?;
    let made = survived.effects.iter().map(|record| number(&record.effect)).collect();
    let service = Rc::new(Files { cx: cx.clone(), disk, reads: Cell::new(0), made: RefCell::new(made) });
    cx.provide("root", service, async |_| {
        Ok(Grant { object: [0; 2], kind: 1, rights: Rights::from_bits_retain(u32::MAX), badge: 0 })
    })?;
    cx.ready();
    cx.stopped().await;
    stopped("fs");
    Ok(())
}

fn stopped(name: &str) {
    let mut order = std::fs::OpenOptions::new().create(true).append(true).open("order").expect("the state directory");
    // In one write: components that end beside each other append to the same file.
    order.write_all(format!("{name}\n").as_bytes()).expect("room for a line");
}

// ---- The tests' side ----

const MANIFEST: &str = r#"
atoll = 1
[system]
name = "test"
[component.disk]
run = "builtin:block-file"
provides.disk = "atoll.block/1"
config = { path = "PATH", size = "1MiB", create = true }
[component.fs]
run = "builtin:fs-server"
uses.disk = { from = "disk.disk", rights = ["read", "write", "flush", "map"] }
provides.root = "atoll.fs/1"
"#;

impl Node {
    fn start(path: &str) -> Node {
        Node::start_in(tempfile::tempdir().unwrap(), path)
    }

    fn start_in(directory: tempfile::TempDir, path: &str) -> Node {
        Node::of(directory, &MANIFEST.replace("PATH", path))
    }
}

/// What the fs component says of its disk: the disk's epoch, and how many reads were right.
async fn statfs(cx: &Context) -> (u64, u64) {
    let connection = cx.connection("fs.root", fs::Client::INTERFACE).await.unwrap();
    let session = connection.session().await.unwrap();
    let operation = fs::DESCRIPTION.operations.iter().find(|operation| operation.name == "statfs").unwrap();
    let reply = session
        .call(kernel_ipc::session::Request {
            operation: operation.number,
            handle: session.root(),
            payload: &[],
            capabilities: &[],
            leases: &[],
            deadline: Some(Duration::from_secs(20)),
            retry: operation.retry,
        })
        .await
        .unwrap();
    let word = |at: usize| u64::from_le_bytes(reply.payload[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

// ---- The tests ----

fn a_node_starts_in_order_serves_and_ends_in_order() {
    let mut node = Node::start("plain");
    node.assert_up();
    let step = |component: &str, ready: bool| match ready {
        false => Progress::Starting { component: component.into() },
        true => Progress::Ready { component: component.into() },
    };
    assert_eq!(node.progress[..4], [step("disk", false), step("disk", true), step("fs", false), step("fs", true)]);
    let listed = node.ps();
    let names: Vec<_> = listed.iter().map(|component| component.name.as_str()).collect();
    assert_eq!(names, ["disk", "fs"]);
    for component in &listed {
        assert_eq!((component.state, component.epoch, component.restarts), (State::Ready, 1, 0), "{component:?}");
        assert!(exists(component.pid as i32));
    }
    assert_eq!(listed[0].listen, "nowhere:1");
    assert_eq!(node.guest(async |cx| statfs(&cx).await), (1, 1));
    assert_eq!(node.ps()[0].leased_bytes, 4096);
    node.down();
    assert!(listed.iter().all(|component| !exists(component.pid as i32)));
    assert_eq!(std::fs::read_to_string(node.state().join("order")).unwrap(), "fs\ndisk\n");
    assert!(!node.state().join("atoll.sock").exists());
}

fn what_components_print_is_in_their_logs_with_time_stamps() {
    let mut node = Node::start("plain");
    node.assert_up();
    node.guest(async |cx| {
        let disk: block::Client = cx.connect("disk.disk").await.unwrap();
        disk.write_zeroes(disk.root(), 3000, 1).await.unwrap();
    });
    node.down();
    let log = node.log("disk");
    let stamped = |line: &str| line.get(10..11) == Some("T") && line.get(23..25) == Some("Z ");
    assert!(log.lines().all(stamped), "{log}");
    assert!(log.contains("Z a disk called plain\n") && log.contains("Z on standard error\n"), "{log}");
    let kept = log.matches("Z line ").count();
    assert!((900..3000).contains(&kept), "kept {kept} lines");
    assert!(log.contains("lines dropped"), "{log}");
}

fn a_component_that_fails_at_its_start_is_reported_with_its_last_words() {
    for (path, words) in [
        ("fails", "exited with code 1: there is no disk today"),
        ("panics", "exited with code 101: panicked at"),
        ("kills-itself", "killed by SIGKILL"),
    ] {
        let mut node = Node::start(path);
        let reason = node.failure().to_owned();
        assert!(reason.starts_with("component disk: ") && reason.contains(words), "{reason}");
        // A backtrace may have pushed it out of the last lines.
        assert!(path == "panics" || reason.contains(&format!("| a disk called {path}")), "{reason}");
        assert_eq!(node.wait(), Some(1));
    }
}

fn a_second_node_on_the_same_state_is_refused_and_harms_nothing() {
    let mut node = Node::start("plain");
    node.assert_up();
    let manifest = node.directory.path().join("test.toml");
    let options = Options { manifest: Some(&manifest), state: &node.state(), sets: &[], end_with_parent: true };
    let mut second = up::start(&options).unwrap();
    let Progress::Failed { reason } = second.next_step() else { panic!("a second node started") };
    assert!(reason.contains("a node already runs on"), "{reason}");
    assert_eq!(second.into_keeper().wait().unwrap().code(), Some(1));
    assert_eq!(node.guest(async |cx| statfs(&cx).await).0, 1);
    node.down();
    // And when the first has gone, the directory is free.
    let directory = std::mem::replace(&mut node.directory, tempfile::tempdir().unwrap());
    let mut third = Node::start_in(directory, "plain");
    third.assert_up();
    third.down();
}

fn a_killed_component_comes_back_with_a_new_epoch_and_its_clients_find_it() {
    let mut node = Node::start("plain");
    node.assert_up();
    node.guest(async |cx| {
        let disk: block::Client = cx.connect("disk.disk").await.unwrap();
        for round in 1..=3 {
            let listed = ps(&cx).await;
            assert_eq!((listed[0].epoch, listed[0].restarts), (round, round as u32 - 1));
            // Also through the component that uses it, with a lease of the new region.
            assert_eq!(statfs(&cx).await, (round, round));
            kill(listed[0].pid as i32, "KILL");
            until("the disk's end", async || !exists(listed[0].pid as i32)).await;
            // The same client; the call waits for the new incarnation.
            let mut info = disk.info(disk.root()).await;
            if matches!(info, Err(CallError::Failed { cause: Cause::PeerDied, .. })) {
                info = disk.info(disk.root()).await;
            }
            assert_eq!(info.unwrap().blocks, round + 1);
        }
        let listed = ps(&cx).await;
        assert!(listed[0].trouble.contains("killed by SIGKILL"), "{listed:?}");
        assert_eq!((listed[1].epoch, listed[1].restarts), (1, 0), "the other component was not touched");
    });
    node.down();
}

fn a_call_on_which_its_host_dies_says_that_nobody_knows_and_a_later_one_that_it_did_not_run() {
    let mut node = Node::start("plain");
    node.assert_up();
    node.guest(async |cx| {
        let disk: block::Client = cx.connect("disk.disk").await.unwrap();
        let lease = disk.read(disk.root(), 1, 1).await.unwrap();
        let session = disk.root().session();
        let call = async |session: kernel_ipc::session::ClientSession, operation: u16| {
            let (handle, retry) = (session.root(), kernel_ipc::interface::Retry::Idempotent);
            let request = kernel_ipc::session::Request {
                operation,
                handle,
                payload: &[],
                capabilities: &[],
                leases: &[],
                deadline: None,
                retry,
            };
            session.call(request).await
        };
        let number = |name: &str| block::DESCRIPTION.operations.iter().find(|known| known.name == name).unwrap().number;
        let pid = ps(&cx).await[0].pid as i32;
        let outstanding = kernel_ipc::runtime::spawn(call(session.clone(), number("flush")));
        until("the flush", async || node.log("disk").contains("Z flushing")).await;
        kill(pid, "KILL");
        let failure = outstanding.await.unwrap().unwrap_err();
        assert_eq!((failure.cause, failure.executed), (Cause::PeerDied, Executed::Unknown));
        // That session is over: nothing runs on it any more.
        let failure = call(session, number("info")).await.unwrap_err();
        assert_eq!(failure.executed, Executed::No);
        drop(lease); // Of the dead: gives nothing back, and does not wait.
        assert_eq!(disk.info(disk.root()).await.unwrap().blocks, 2);
    });
    node.down();
}

fn a_component_that_dies_of_its_own_making_again_and_again_is_given_up_until_the_operator_wants_it() {
    let mut node = Node::start("fails-later");
    node.assert_up();
    node.guest(async |cx| {
        let disk: block::Client = cx.connect("disk.disk").await.unwrap();
        let control: control::Client = cx.connect("control").await.unwrap();
        let _ = disk.discard(disk.root(), 0, 1).await;
        until("the end of its restarts", async || ps(&cx).await[0].state == State::Quarantined).await;
        let listed = ps(&cx).await;
        assert_eq!((listed[0].restarts, listed[0].pid), (4, 0), "{listed:?}");
        assert!(listed[0].trouble.contains("it worked once"), "{listed:?}");
        // Its clients are told, and the rest of the node lives.
        let failure = disk.info(disk.root()).await.unwrap_err();
        assert!(matches!(failure, CallError::Failed { executed: Executed::No, .. }), "{failure:?}");
        assert_eq!(statfs(&cx).await.0, 0);
        control.restart(control.root(), "disk").await.unwrap();
        until("another end", async || ps(&cx).await[0].state == State::Quarantined).await;
        assert_eq!(ps(&cx).await[0].restarts, 9);
    });
    // What it would have done at its end was not done.
    node.down_with(1);
}

fn request(handle: kernel_ipc::Handle, operation: u16, payload: &[u8]) -> kernel_ipc::session::Request<'_> {
    kernel_ipc::session::Request {
        operation,
        handle,
        payload,
        capabilities: &[],
        leases: &[],
        deadline: None,
        retry: fs::DESCRIPTION.operation(operation).unwrap().retry,
    }
}

fn clients_of_a_component_that_survives_feel_nothing_when_it_is_killed() {
    let mut node = Node::start("disk.img");
    node.assert_up();
    node.guest(async |cx| {
        let connection = cx.connection("fs.root", fs::Client::INTERFACE).await.unwrap();
        let session = connection.session().await.unwrap();
        let handle = session.call(request(session.root(), OPEN, &77u64.to_le_bytes())).await.unwrap().capabilities[0];
        let (stop, answers) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(HashMap::new())));
        let next = Rc::new(Cell::new(1u64));
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let (session, stop, answers, next) = (session.clone(), stop.clone(), answers.clone(), next.clone());
                kernel_ipc::runtime::spawn(async move {
                    while !stop.get() {
                        let n = next.replace(next.get() + 1);
                        let reply = session.call(request(session.root(), MKDIR, &n.to_le_bytes())).await.unwrap();
                        answers.borrow_mut().insert(n, number(&reply.payload));
                        sleep(Duration::from_millis(1)).await;
                    }
                })
            })
            .collect();
        for round in 0..12u64 {
            let fs = ps(&cx).await.into_iter().find(|one| one.name == "fs").unwrap();
            kill(fs.pid as i32, "KILL");
            // Sometimes before the next run is ready, sometimes after.
            sleep(Duration::from_millis(round * 13 % 60)).await;
            let object = session.call(request(handle, STAT, b"")).await.unwrap();
            assert_eq!(number(&object.payload), 77, "a handle is valid across deaths");
        }
        stop.set(true);
        for caller in callers {
            caller.await.unwrap();
        }
        let mut made = Vec::new();
        loop {
            let from = (made.len() as u64).to_le_bytes();
            let page = session.call(request(session.root(), READDIR, &from)).await.unwrap();
            if page.payload.is_empty() {
                break;
            }
            made.extend(page.payload.chunks_exact(8).map(number));
        }
        let answers = answers.take();
        assert!(made.len() > 50, "calls were made: {}", made.len());
        assert_eq!(made.len(), answers.len(), "as many effects as answers");
        for (at, n) in made.iter().enumerate() {
            assert_eq!(answers.get(n), Some(&(at as u64)), "the effect of {n} is where its answer says");
        }
        // What it was lent and what it lends go on as well: its disk's leases are found and read by the next run.
        assert!(statfs(&cx).await.1 > 0);
    });
    node.down();
}

/// A request that crashes its host is run twice, and no third time; everything else goes on.
fn a_request_that_crashes_its_host_twice_is_quarantined() {
    let mut node = Node::start("disk.img");
    node.assert_up();
    node.guest(async |cx| {
        let connection = cx.connection("fs.root", fs::Client::INTERFACE).await.unwrap();
        let session = connection.session().await.unwrap();
        let make = async |n: u64| session.call(request(session.root(), MKDIR, &n.to_le_bytes())).await;
        assert_eq!(number(&make(1).await.unwrap().payload), 0);
        let failure = make(CURSED).await.unwrap_err();
        // It is of the class whose answer is kept, and there is none.
        assert_eq!((failure.cause, failure.executed), (Cause::Poisoned { crash: 2 }, Executed::No));
        assert_eq!(number(&make(2).await.unwrap().payload), 1, "the slot goes on, and so does what was there");
        let listed = ps(&cx).await;
        let fs = listed.iter().find(|one| one.name == "fs").unwrap();
        assert_eq!((fs.state, fs.restarts), (State::Ready, 2), "{listed:?}");
        // A kill from outside is no crash.
        kill(fs.pid as i32, "KILL");
        assert_eq!(number(&make(3).await.unwrap().payload), 2);
    });
    assert_eq!(supervisor::crash::numbers(&node.state()), [1, 2]);
    let [first, second] = [1, 2].map(|number| supervisor::crash::read(&node.state(), number).unwrap());
    assert_eq!((first.component.as_str(), first.epoch, second.epoch), ("fs", 1, 2));
    assert!(first.how.contains("SIGABRT"), "{first:?}");
    let [one] = &first.calls[..] else { panic!("{first:?}") };
    assert_eq!((one.operation, one.crashes, one.quarantined, &one.request), (MKDIR, 1, false, &None));
    let [one] = &second.calls[..] else { panic!("{second:?}") };
    assert_eq!(
        (one.name.as_str(), one.client.as_str(), one.crashes, one.quarantined),
        ("mkdir", "guest test", 2, true)
    );
    let request = one.request.as_ref().expect("it was suspect");
    assert_eq!((request.on_root, number(&request.payload)), (true, CURSED));
    node.down();
}

fn the_operator_can_restart_a_healthy_component() {
    let mut node = Node::start("plain");
    node.assert_up();
    node.guest(async |cx| {
        let control: control::Client = cx.connect("control").await.unwrap();
        control.restart(control.root(), "disk").await.unwrap();
        assert_eq!(statfs(&cx).await.0, 2);
        assert_eq!(ps(&cx).await[0].state, State::Ready);
        let unknown = control.restart(control.root(), "nobody").await;
        assert!(matches!(unknown, Err(CallError::Operation(control::RestartError::NoSuchComponent))));
    });
    assert_eq!(std::fs::read_to_string(node.state().join("order")).unwrap(), "disk\n", "it was stopped in order");
    node.down();
}

/// The process that is the supervisor now.
fn supervisor(node: &Node) -> i32 {
    let is_supervisor = |&pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "atoll-superv\n") && exists(pid)
    };
    let start = Instant::now();
    loop {
        if let Some(pid) = children(node.keeper_pid()).iter().copied().find(is_supervisor) {
            return pid;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "there is no supervisor\n{}", node.log("supervisor"));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Who supervises now: its pid, and how many there were before it.
async fn supervised(cx: &Context) -> (i32, u32) {
    let control: control::Client = cx.connect("control").await.unwrap();
    loop {
        match control.supervisor(control.root()).await {
            Err(CallError::Failed { cause: Cause::PeerDied, .. }) => {}
            status => {
                let status = status.unwrap();
                return (status.pid as i32, status.restarts);
            }
        }
    }
}

/// What a seed comes to, again and again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Callers with calls outstanding on sessions that were open before, and others that open sessions all the time.
struct Load {
    stop: Rc<Cell<bool>>,
    answers: Rc<RefCell<HashMap<u64, u64>>>,
    session: kernel_ipc::session::ClientSession,
    opened: Rc<Cell<u64>>,
    tasks: Vec<kernel_ipc::runtime::JoinHandle<()>>,
}

impl Load {
    async fn start(cx: &Context) -> Load {
        let connection = cx.connection("fs.root", fs::Client::INTERFACE).await.unwrap();
        let session = connection.session().await.unwrap();
        let (stop, answers, opened) = (Rc::default(), Rc::default(), Rc::default());
        let mut load = Load { stop, answers, session, opened, tasks: Vec::new() };
        let next = Rc::new(Cell::new(1u64));
        for _ in 0..8 {
            let (session, stop, answers) = (load.session.clone(), load.stop.clone(), load.answers.clone());
            let next = next.clone();
            load.tasks.push(kernel_ipc::runtime::spawn(async move {
                while !stop.get() {
                    let n = next.replace(next.get() + 1);
                    let reply = session.call(request(session.root(), MKDIR, &n.to_le_bytes())).await.unwrap();
                    answers.borrow_mut().insert(n, number(&reply.payload));
                    sleep(Duration::from_millis(1)).await;
                }
            }));
        }
        for _ in 0..2 {
            let (cx, stop, opened) = (cx.clone(), load.stop.clone(), load.opened.clone());
            load.tasks.push(kernel_ipc::runtime::spawn(async move {
                while !stop.get() {
                    let connection = cx.connection("fs.root", fs::Client::INTERFACE).await.unwrap();
                    let session = connection.session().await.unwrap();
                    let handle = session.call(request(session.root(), OPEN, &5u64.to_le_bytes())).await.unwrap();
                    let object = session.call(request(handle.capabilities[0], STAT, b"")).await.unwrap();
                    assert_eq!(number(&object.payload), 5);
                    opened.set(opened.get() + 1);
                    sleep(Duration::from_millis(1)).await;
                }
            }));
        }
        load
    }

    /// Every call was answered, and did what its answer says, once.
    async fn end(self) {
        until("a load", async || self.answers.borrow().len() > 50 && self.opened.get() > 5).await;
        self.stop.set(true);
        for task in self.tasks {
            task.await.unwrap();
        }
        let mut made = Vec::new();
        loop {
            let from = (made.len() as u64).to_le_bytes();
            let page = self.session.call(request(self.session.root(), READDIR, &from)).await.unwrap();
            if page.payload.is_empty() {
                break;
            }
            made.extend(page.payload.chunks_exact(8).map(number));
        }
        let answers = self.answers.take();
        assert_eq!(made.len(), answers.len(), "as many effects as answers");
        for (at, n) in made.iter().enumerate() {
            assert_eq!(answers.get(n), Some(&(at as u64)), "the effect of {n} is where its answer says");
        }
    }
}

fn the_supervisor_is_killed_a_hundred_times_and_nothing_restarts_but_itself() {
    let mut node = Node::start("disk.img");
    node.assert_up();
    let before = node.ps();
    node.guest(async |cx| {
        let disk: block::Client = cx.connect("disk.disk").await.unwrap();
        let load = Load::start(&cx).await;
        let mut dice = Dice(7);
        for round in 0..100 {
            let victim = supervisor(&node);
            kill(victim, "KILL");
            until("its end", async || !exists(victim)).await;
            // Some are killed before they have taken over.
            sleep(Duration::from_millis(dice.below(120))).await;
            assert_eq!(disk.info(disk.root()).await.unwrap().blocks, 1, "round {round}");
            if round % 10 == 0 {
                assert_eq!(ps(&cx).await.len(), 2);
            }
        }
        load.end().await;
        assert_eq!(statfs(&cx).await.0, 1);
        assert_eq!(supervised(&cx).await.1, 100);
    });
    let after = node.ps();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((after.pid, after.epoch, after.restarts), (before.pid, before.epoch, before.restarts));
        assert_eq!((after.state, &after.trouble, &after.listen), (State::Ready, &before.trouble, &before.listen));
    }
    node.down();
    assert_eq!(std::fs::read_to_string(node.state().join("order")).unwrap(), "fs\ndisk\n");
}

/// Within moments of each other, in both orders; and each component is restarted as if nothing else had happened.
fn the_supervisor_dies_together_with_a_component() {
    let mut node = Node::start("disk.img");
    node.assert_up();
    node.guest(async |cx| {
        let load = Load::start(&cx).await;
        let mut dice = Dice(11);
        for _ in 0..30 {
            let fs = ps(&cx).await.into_iter().find(|one| one.name == "fs").unwrap();
            assert_eq!(u64::from(fs.restarts) + 1, fs.epoch, "{fs:?}");
            let victims = [fs.pid as i32, supervisor(&node)];
            let first = dice.below(2) as usize;
            kill(victims[first], "KILL");
            sleep(Duration::from_micros(dice.below(8000))).await;
            kill(victims[1 - first], "KILL");
            // Or the one after it: what was half started when the supervisor died is started once more.
            until("the next run", async || {
                let now = ps(&cx).await.into_iter().find(|one| one.name == "fs").unwrap();
                now.epoch > fs.epoch && now.state == State::Ready
            })
            .await;
        }
        load.end().await;
        // What it lends, and is lent, goes on as well.
        assert!(statfs(&cx).await.1 > 0);
        let disk = ps(&cx).await.into_iter().find(|one| one.name == "disk").unwrap();
        assert_eq!((disk.epoch, disk.restarts), (1, 0), "the other component was not touched");
    });
    node.down();
}

/// At any moment of a restart: before the fence, between fork and greeting, before it is ready.
fn the_supervisor_dies_while_a_component_starts() {
    let mut node = Node::start("disk.img");
    node.assert_up();
    node.guest(async |cx| {
        let load = Load::start(&cx).await;
        let mut dice = Dice(13);
        for _ in 0..30 {
            let before = ps(&cx).await;
            let victim = &before[dice.below(2) as usize];
            kill(victim.pid as i32, "KILL");
            for _ in 0..1 + dice.below(3) {
                sleep(Duration::from_micros(dice.below(15_000))).await;
                kill(supervisor(&node), "KILL");
            }
            until("both to be ready", async || {
                ps(&cx).await.iter().zip(&before).all(|(now, before)| {
                    let again = before.name == victim.name;
                    now.state == State::Ready && (now.epoch > before.epoch) == again
                })
            })
            .await;
        }
        load.end().await;
        assert!(statfs(&cx).await.1 > 0);
    });
    node.down();
}

fn the_supervisor_dies_while_the_node_starts_or_ends() {
    let mut dice = Dice(17);
    for round in 0..12 {
        let directory = tempfile::tempdir().unwrap();
        let manifest = directory.path().join("test.toml");
        std::fs::write(&manifest, MANIFEST.replace("PATH", "plain")).unwrap();
        let state = directory.path().join("state");
        let options = Options { manifest: Some(&manifest), state: &state, sets: &[], end_with_parent: true };
        let mut starting = up::start(&options).unwrap();
        let mut node = Node { directory, keeper: None, progress: Vec::new() };
        let keeper = starting.pid() as i32;
        let kill_one = |after: u64| {
            std::thread::sleep(Duration::from_micros(after));
            for pid in children(keeper) {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                if name == "atoll-superv\n" {
                    kill(pid, "KILL");
                }
            }
        };
        for _ in 0..3 {
            kill_one(dice.below(12_000));
        }
        loop {
            node.progress.push(starting.next_step());
            if matches!(node.progress.last(), Some(Progress::Up | Progress::Failed { .. })) {
                break;
            }
        }
        node.keeper = Some(starting.into_keeper());
        node.assert_up();
        // The manifest may be gone by now.
        std::fs::remove_file(&manifest).unwrap();
        assert_eq!(node.guest(async |cx| statfs(&cx).await.1), 1, "round {round}");
        kill(keeper, "TERM");
        for _ in 0..2 {
            kill_one(dice.below(5_000));
        }
        assert_eq!(node.wait(), Some(0), "round {round}\n{}", node.log("supervisor"));
        assert_eq!(std::fs::read_to_string(node.state().join("order")).unwrap(), "fs\ndisk\n");
        let ended = supervisor::ended::Ended::read(&node.state()).expect("how it ended");
        assert_eq!(ended.troubles, Vec::<String>::new());
    }
}

/// Guests whose supervisor dies while they are let in, and guests that go while there is none, leave nothing behind.
fn guests_come_and_go_while_supervisors_die() {
    let mut node = Node::start("plain");
    node.assert_up();
    let visit = || assert_eq!(node.guest(async |cx| statfs(&cx).await).0, 1);
    let held = || {
        let components = children(node.keeper_pid()).into_iter().chain([node.keeper_pid()]);
        components.map(|pid| descriptors(pid as u32).len()).sum::<usize>()
    };
    let quiet = |what: &str, is: &dyn Fn() -> bool| {
        let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
        runtime.block_on(until(what, async || is()));
    };
    visit();
    kill(supervisor(&node), "KILL");
    visit();
    std::thread::sleep(Duration::from_millis(300));
    let before = held();
    let mut dice = Dice(19);
    for round in 0..40 {
        let victim = supervisor(&node);
        let killer = std::thread::spawn({
            let after = dice.below(6_000);
            move || {
                std::thread::sleep(Duration::from_micros(after));
                kill(victim, "KILL");
            }
        });
        visit();
        killer.join().unwrap();
        if round % 8 == 0 {
            // Somebody who goes while nobody looks.
            let guest = raw_guest(&node, "short");
            kill(supervisor(&node), "KILL");
            drop(guest);
        }
    }
    visit();
    quiet("the same descriptors as before", &|| held() == before);
    let listed = node.ps();
    assert!(listed.iter().all(|one| (one.epoch, one.restarts) == (1, 0)), "{listed:?}");
    node.down();
}

fn an_operator_puts_another_supervisor_in_its_place() {
    let mut node = Node::start("plain");
    node.assert_up();
    node.guest(async |cx| {
        let load = Load::start(&cx).await;
        for round in 0..20 {
            let (pid, restarts) = supervised(&cx).await;
            assert_eq!(restarts, round);
            let control: control::Client = cx.connect("control").await.unwrap();
            let leaves = control.replace_supervisor(control.root()).await.unwrap();
            assert_eq!((leaves.pid as i32, leaves.restarts), (pid, restarts));
            until("another one", async || supervised(&cx).await.1 > round).await;
            assert!(!exists(pid));
        }
        load.end().await;
    });
    assert!(node.ps().iter().all(|one| one.epoch == 1));
    node.down();
}

/// By its own making, as a bug does it.
fn a_supervisor_that_dies_again_and_again_ends_the_node_in_order() {
    let mut node = Node::start("plain");
    node.assert_up();
    for _ in 0..5 {
        let victim = supervisor(&node);
        kill(victim, "ABRT");
        let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
        runtime.block_on(until("its end", async || !exists(victim)));
    }
    assert_eq!(node.wait(), Some(1));
    assert_eq!(std::fs::read_to_string(node.state().join("order")).unwrap(), "fs\ndisk\n");
    let ended = supervisor::ended::Ended::read(&node.state()).expect("how it ended");
    assert!(ended.troubles[0].contains("died too often"), "{ended:?}");
}

/// Whatever a guest says that it serves, uses and knows: it is told that nothing of it is so, and nobody else hears of it.
fn a_guest_that_lies_in_its_account_harms_nobody() {
    use kernel_ipc::broker::{Account, ChannelError, ToComponent, ToSupervisor};
    let mut node = Node::start("disk.img");
    node.assert_up();
    node.guest(async |cx| {
        let load = Load::start(&cx).await;
        let (session, me) = (load.session.id(), cx.incarnation());
        let host = cx.host_of(&load.session).unwrap();
        for lies in 0..4 {
            let liar = raw_guest(&node, "liar");
            kill(supervisor(&node), "KILL");
            let turn = loop {
                if let (ToComponent::Adopt { turn }, _) = liar.next().await.unwrap() {
                    break turn;
                }
            };
            let mut account = Account { turn, last: true, ..Account::default() };
            match lies {
                0 => account.uses = vec![(session, host)],
                1 => account.hosts = vec![(session, me), (kernel_ipc::SessionId(1), host)],
                2 => {
                    account.uses = vec![(session, me), (kernel_ipc::SessionId(u64::MAX), kernel_ipc::Incarnation(0))];
                    account.lenders = vec![(kernel_ipc::LenderId(5), kernel_ipc::Epoch(1))];
                    account.regions = vec![(kernel_ipc::LenderId(5), kernel_ipc::RegionId(5))];
                    account.mappers = vec![me, host];
                    account.holders = vec![me, host];
                }
                // Of another supervisor: void, and waited for in vain.
                _ => account.turn += 1,
            }
            liar.send_blocking(&ToSupervisor::Account(Box::new(account.clone())), &[]).unwrap();
            // It is answered, or not; asked again it is shown out.
            liar.send_blocking(&ToSupervisor::Account(Box::new(account)), &[]).unwrap();
            if lies < 3 {
                while !matches!(liar.next::<ToComponent>().await, Err(ChannelError::Closed)) {}
            }
            assert_eq!(number(&load.session.call(request(load.session.root(), STAT, b"")).await.unwrap().payload), 0);
            assert_eq!(cx.host_of(&load.session), Some(host));
        }
        load.end().await;
        assert!(statfs(&cx).await.1 > 0);
    });
    assert!(node.ps().iter().all(|one| (one.epoch, one.restarts) == (1, 0)));
    node.down();
}

/// It accounts for itself when it goes on; the others are served meanwhile.
fn a_component_that_is_stopped_is_adopted_when_it_goes_on() {
    let mut node = Node::start("plain");
    node.assert_up();
    let reads = node.guest(async |cx| statfs(&cx).await).1;
    let fs = node.ps()[1].pid as i32;
    kill(fs, "STOP");
    kill(supervisor(&node), "KILL");
    node.guest(async |cx| {
        let disk: block::Client = cx.connect("disk.disk").await.unwrap();
        assert_eq!(disk.info(disk.root()).await.unwrap().blocks, 1, "others are served");
    });
    kill(fs, "CONT");
    assert_eq!(node.guest(async |cx| statfs(&cx).await), (1, reads + 1));
    assert_eq!(node.ps()[1].pid as i32, fs);
    node.down();
}

fn the_keepers_death_ends_every_process() {
    let mut node = Node::start("plain");
    node.assert_up();
    let pids = children(node.keeper_pid());
    kill(node.keeper_pid(), "KILL");
    node.wait();
    let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
    runtime.block_on(until("their end", async || pids.iter().all(|&pid| !exists(pid))));
}

fn a_signal_to_the_keeper_ends_the_node_in_order() {
    for signal in ["TERM", "INT"] {
        let mut node = Node::start("plain");
        node.assert_up();
        kill(node.keeper_pid(), signal);
        assert_eq!(node.wait(), Some(0));
        assert_eq!(std::fs::read_to_string(node.state().join("order")).unwrap(), "fs\ndisk\n");
    }
}

/// What a component's process holds: nothing but what it was given and what its runtime made.
fn a_component_has_exactly_the_descriptors_that_the_manifest_implies() {
    let mut node = Node::start("plain");
    node.assert_up();
    assert_eq!(node.guest(async |cx| statfs(&cx).await).0, 1);
    let disk = node.ps()[0].pid;
    let fs = node.ps()[1].pid;
    let mut of_disk = descriptors(disk);
    of_disk.sort();
    // /dev/null, the log twice, control socket, SIGTERM, the ring and its wake-up; memory is mapped, not held.
    for kind in of_disk.iter().chain(&descriptors(fs)) {
        let known = [
            "/dev/null",
            "pipe:",
            "socket:",
            "anon_inode:[signalfd]",
            "anon_inode:[io_uring]",
            "anon_inode:[eventfd]",
            "/memfd:",
        ];
        assert!(known.iter().any(|known| kind.starts_with(known)), "{of_disk:?}");
    }
    let count = |kind: &str| of_disk.iter().filter(|known| known.starts_with(kind)).count();
    assert_eq!(
        (count("/dev/null"), count("pipe:"), count("socket:"), count("anon_inode:[signalfd]")),
        (1, 2, 1, 1),
        "{of_disk:?}"
    );
    node.down();
}

fn descriptors(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // One may be closed while they are listed.
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// Sessions come and go; nothing of them stays in the supervisor or in the hosts.
fn guests_that_come_and_go_leave_nothing_behind() {
    let mut node = Node::start("plain");
    node.assert_up();
    let pids = {
        let mut pids = children(node.keeper_pid());
        pids.push(node.keeper_pid());
        pids
    };
    let visit = || assert_eq!(node.guest(async |cx| statfs(&cx).await).0, 1);
    let held = || pids.iter().map(|&pid| descriptors(pid as u32).len()).collect::<Vec<_>>();
    visit();
    node.ps();
    let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
    let before = runtime.block_on(async {
        sleep(Duration::from_millis(200)).await;
        held()
    });
    drop(runtime);
    (0..50).for_each(|_| visit());
    let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
    runtime.block_on(until("the same descriptors as before", async || held() == before));
    drop(runtime);
    node.down();
}

/// A guest that says something else than a greeting is shown out; the others are served.
fn a_guest_that_speaks_garbage_ends_only_itself() {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};
    use std::os::fd::AsRawFd;
    let mut node = Node::start("plain");
    node.assert_up();
    for garbage in [
        &b"hello"[..],
        b"{\"message\":\"ready\"}",
        b"{\"message\":\"hello\",\"protocol\":99,\"program\":\"x\"}",
        &[0xff; 60_000],
    ] {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(&node.state().join("atoll.sock")).unwrap()).unwrap();
        send(socket.as_raw_fd(), garbage, MsgFlags::empty()).unwrap();
        assert_eq!(node.guest(async |cx| statfs(&cx).await).0, 1);
    }
    node.guest(async |cx| {
        let unknown = cx.connection("disk.nothing", "atoll.block/1").await.err().unwrap();
        assert!(unknown.to_string().contains("no such session"), "{unknown}");
        let version = cx.connection("disk.disk", "atoll.block/2").await.err().unwrap();
        assert!(version.to_string().contains("speaks atoll.block/1"), "{version}");
    });
    node.down();
}

/// Each session that is being opened costs the supervisor a descriptor and a task; a hung host must not let a guest
/// collect them without end.
fn a_guest_that_opens_without_end_is_shown_out() {
    use kernel_ipc::broker::{ChannelError, ToSupervisor};
    use std::os::fd::AsFd;
    let mut node = Node::start("plain");
    node.assert_up();
    let disk = node.ps()[0].pid as i32;
    kill(disk, "STOP");
    let channel = raw_guest(&node, "flood");
    let segment = std::fs::File::open("/dev/null").unwrap();
    let refused = (0..10_000).find_map(|request| {
        let open = ToSupervisor::Open {
            request,
            endpoint: "disk.disk".into(),
            interface: "atoll.block/1".into(),
            resumes: None,
        };
        channel.send_blocking(&open, &[segment.as_fd()]).err()
    });
    assert!(matches!(refused, Some(ChannelError::Closed)), "{refused:?}");
    kill(disk, "CONT");
    // Nobody else has suffered: it is the same disk that serves.
    assert_eq!(node.guest(async |cx| statfs(&cx).await).0, 1);
    assert_eq!(node.ps()[0].pid as i32, disk);
    node.down();
}

/// Who has all components traced again and again makes the supervisor keep nothing for one that does not read.
fn a_guest_that_says_trace_without_end_fills_no_outbox() {
    use kernel_ipc::SessionId;
    use kernel_ipc::broker::{ToComponent, ToSupervisor};
    let mut node = Node::start("plain");
    node.assert_up();
    let disk = node.ps()[0].pid as i32;
    let supervisor = supervisor(&node);
    let kilobytes = || {
        let status = std::fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let channel = raw_guest(&node, "tracer");
    // What was said before this is answered has arrived.
    let arrived = || {
        let look = ToSupervisor::LookAtSession { request: 1, after: SessionId(u64::MAX), from: 0 };
        channel.send_blocking(&look, &[]).unwrap();
        assert!(matches!(channel.receive_blocking::<ToComponent>().unwrap().0, ToComponent::Session { .. }));
    };
    kill(disk, "STOP");
    arrived();
    let before = kilobytes();
    for every in 0..200_000 {
        channel.send_blocking(&ToSupervisor::Trace { every, for_ms: 1000 }, &[]).unwrap();
    }
    arrived();
    let grown = kilobytes().saturating_sub(before);
    assert!(grown < 8 << 10, "the supervisor has grown by {grown} kB");
    kill(disk, "CONT");
    assert_eq!(node.guest(async |cx| statfs(&cx).await).0, 1);
    node.down();
}

/// A guest's control socket, greeted.
fn raw_guest(node: &Node, program: &str) -> kernel_ipc::broker::Channel {
    use kernel_ipc::broker::{Channel, PROTOCOL, ToComponent, ToSupervisor};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(socket.as_raw_fd(), &UnixAddr::new(&node.state().join("atoll.sock")).unwrap()).unwrap();
    let channel = Channel::new(socket);
    channel.send_blocking(&ToSupervisor::Hello { protocol: PROTOCOL, program: program.into() }, &[]).unwrap();
    assert!(matches!(channel.receive_blocking::<ToComponent>().unwrap().0, ToComponent::Welcome(_)));
    channel
}

/// Waits until the processes hold as many descriptors as before.
fn as_before(pids: &[i32], before: &[usize]) {
    let held = || pids.iter().map(|&pid| descriptors(pid as u32).len()).collect::<Vec<_>>();
    let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
    runtime.block_on(until("the same descriptors as before", async || held() == before));
}

/// All that guests at their limit want of a host that does not read is more than its socket takes. They wait; it is not
/// killed for it, and what they wanted is nobody's when it goes on.
fn a_host_that_is_stopped_is_not_killed_for_what_guests_want_of_it() {
    use kernel_ipc::broker::ToSupervisor;
    use std::os::fd::AsFd;
    let mut node = Node::start("plain");
    node.assert_up();
    let disk = node.ps()[0].pid as i32;
    let mut pids = children(node.keeper_pid());
    pids.push(node.keeper_pid());
    let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
    runtime.block_on(sleep(Duration::from_millis(200)));
    drop(runtime);
    let before: Vec<usize> = pids.iter().map(|&pid| descriptors(pid as u32).len()).collect();
    kill(disk, "STOP");
    let segment = std::fs::File::open("/dev/null").unwrap();
    for _ in 0..3 {
        let guests: Vec<_> = (0..10).map(|_| raw_guest(&node, "eager")).collect();
        for (guest, request) in guests.iter().flat_map(|guest| (0..60).map(move |request| (guest, request))) {
            let (endpoint, interface) = ("disk.disk".into(), "atoll.block/1".into());
            let open = ToSupervisor::Open { request, endpoint, interface, resumes: None };
            guest.send_blocking(&open, &[segment.as_fd()]).unwrap();
        }
    }
    kill(disk, "CONT");
    assert_eq!(node.guest(async |cx| statfs(&cx).await).0, 1);
    assert_eq!(node.ps()[0].pid as i32, disk, "it is the same disk that serves");
    as_before(&pids, &before);
    node.down();
}

/// More sessions than a guest may have at a time, one after the other: each is given back when it is dropped, not when the
/// guest goes.
fn a_session_that_is_dropped_ends_at_once_on_both_sides() {
    let mut node = Node::start("plain");
    node.assert_up();
    let mut pids = children(node.keeper_pid());
    pids.push(node.keeper_pid());
    node.guest(async |cx| {
        drop(cx.connection("disk.disk", block::Client::INTERFACE).await.unwrap());
        drop(cx.connection("fs.root", fs::Client::INTERFACE).await.unwrap());
        sleep(Duration::from_millis(200)).await;
        let held = || pids.iter().map(|&pid| descriptors(pid as u32).len()).collect::<Vec<_>>();
        let before = held();
        for _ in 0..1100 {
            drop(cx.connection("disk.disk", block::Client::INTERFACE).await.unwrap());
            drop(cx.connection("fs.root", fs::Client::INTERFACE).await.unwrap());
        }
        until("the same descriptors as before", async || held() == before).await;
    });
    node.down();
}

/// One that is stopped is shown as that, lives, and goes on.
fn stopped_is_not_dead() {
    let mut node = Node::start("plain");
    node.assert_up();
    node.guest(async |cx| {
        let control: control::Client = cx.connect("control").await.unwrap();
        let before = ps(&cx).await;
        for round in 0..3 {
            assert_eq!(control.signal(control.root(), "disk", Signal::Stop).await.unwrap(), 1);
            until("the stop", async || ps(&cx).await[0].state == State::Stopped).await;
            assert_eq!(ps(&cx).await[1].state, State::Ready);
            control.signal(control.root(), "disk", Signal::Continue).await.unwrap();
            until("its going on", async || ps(&cx).await[0].state == State::Ready).await;
            assert_eq!(statfs(&cx).await, (1, round + 1));
        }
        let after = ps(&cx).await;
        assert_eq!((after[0].pid, after[0].restarts, &after[0].trouble), (before[0].pid, 0, &String::new()));
        let failed = control.signal(control.root(), "nobody", Signal::Kill).await;
        assert_eq!(failed, Err(CallError::Operation(SignalError::NoSuchComponent)));
    });
    node.down();
}

/// One that loops is shown as hung, and started again; its clients are served then.
fn hung_is_restarted() {
    let mut node = Node::start("plain");
    node.assert_up();
    node.guest(async |cx| {
        let disk: block::Client = cx.connect("disk.disk").await.unwrap();
        let looping = kernel_ipc::runtime::spawn({
            let disk = disk.clone();
            async move { disk.write_zeroes(disk.root(), FOR_EVER, 1).await }
        });
        until("the hang to be noticed", async || ps(&cx).await[0].state == State::Hung).await;
        until("the next run", async || ps(&cx).await[0].epoch == 2).await;
        // The call may run twice, so its client made it again.
        assert_eq!(looping.await.unwrap(), Ok(()));
        assert_eq!(disk.info(disk.root()).await.unwrap().blocks, 2);
        let listed = ps(&cx).await;
        assert_eq!((listed[0].restarts, listed[1].restarts), (1, 0));
        assert!(listed[0].trouble.contains("hung"), "{listed:?}");
    });
    node.down();
}

/// One that waits in a handler for what never comes is shown as blocked, and started again; whoever waits for it is not. Also
/// if the supervisor dies meanwhile.
fn blocked_is_restarted() {
    let manifest =
        MANIFEST.replace("PATH", "plain").replace("[component.fs]", "hung_after_seconds = 3\n[component.fs]");
    let mut node = Node::of(tempfile::tempdir().unwrap(), &manifest);
    node.assert_up();
    node.guest(async |cx| {
        let disk: block::Client = cx.connect("disk.disk").await.unwrap();
        let blocked = kernel_ipc::runtime::spawn({
            let disk = disk.clone();
            async move { disk.write_zeroes(disk.root(), BLOCKED, 1).await }
        });
        let waiting = kernel_ipc::runtime::spawn({
            let cx = cx.clone();
            async move { statfs(&cx).await }
        });
        for epoch in 1..=2 {
            until("the hang to be noticed", async || {
                let listed = ps(&cx).await;
                assert_eq!(listed[1].state, State::Ready, "it waits for another one");
                (listed[0].epoch, listed[0].state) == (epoch, State::Blocked)
            })
            .await;
            if epoch == 1 {
                until("the next run", async || ps(&cx).await[0].epoch == 2).await;
                sleep(Duration::from_millis(200)).await;
                kill(supervisor(&node), "KILL");
            }
        }
        // Its client made the call once more, and no third time.
        let failure = blocked.await.unwrap().unwrap_err();
        assert!(matches!(failure, CallError::Failed { cause: Cause::PeerDied, .. }), "{failure:?}");
        waiting.await.unwrap();
        assert_eq!(statfs(&cx).await.0, 3);
        let listed = ps(&cx).await;
        assert!(listed[0].trouble.contains("hung: it waited in a handler for 3 s"), "{listed:?}");
        assert_eq!((listed[0].restarts, listed[1].restarts), (2, 0));
    });
    node.down();
}

/// What has waited for longer than the manifest allows is refused, and did not run; what was begun is answered.
fn refuses_when_busy() {
    let manifest = MANIFEST.replace("PATH", "plain").replace("[component.fs]", "refuse_after_ms = 10\n[component.fs]");
    let mut node = Node::of(tempfile::tempdir().unwrap(), &manifest);
    node.assert_up();
    node.guest(async |cx| {
        let disk: block::Client = cx.connect("disk.disk").await.unwrap();
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let disk = disk.clone();
                kernel_ipc::runtime::spawn(async move { disk.write_zeroes(disk.root(), SLOW, 1).await })
            })
            .collect();
        let mut refused = 0;
        for call in calls {
            match call.await.unwrap() {
                Ok(()) => {}
                Err(CallError::Failed { cause: Cause::Busy { retry_after_us }, executed: Executed::No }) => {
                    assert!(retry_after_us >= 10_000, "{retry_after_us}");
                    refused += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        // A turn begins eight; a host that woke up for the first of them has had another turn before.
        assert!((64 - 2 * 8..64).contains(&refused), "{refused}");
        assert_eq!(disk.write_zeroes(disk.root(), SLOW, 1).await, Ok(()));
    });
    node.down();
}

/// The disk's new run comes while its only mapper is stopped: others are served meanwhile, and the mapper finds what the
/// disk lends when it goes on.
fn one_that_was_stopped_is_introduced_when_it_goes_on() {
    let mut node = Node::start("plain");
    node.assert_up();
    let reads = node.guest(async |cx| statfs(&cx).await).1;
    let status = node.ps();
    let (disk, fs) = (status[0].pid as i32, status[1].pid as i32);
    kill(fs, "STOP");
    kill(disk, "KILL");
    node.guest(async |cx| {
        until("the disk's next run", async || ps(&cx).await[0].state == State::Ready).await;
        let disk: block::Client = cx.connect("disk.disk").await.unwrap();
        assert_eq!(disk.info(disk.root()).await.unwrap().blocks, 2, "others are served");
    });
    kill(fs, "CONT");
    assert_eq!(node.guest(async |cx| statfs(&cx).await), (2, reads + 1), "it can read what the disk lends");
    assert_eq!(node.ps()[1].pid as i32, fs);
    node.down();
}

/// However often one asks.
fn a_supervisor_that_hangs_does_not_keep_the_node_from_ending() {
    let mut node = Node::start("plain");
    node.assert_up();
    let pids = children(node.keeper_pid());
    let components: Vec<i32> = node.ps().iter().map(|component| component.pid as i32).collect();
    let supervisor = pids.iter().copied().find(|pid| !components.contains(pid)).unwrap();
    kill(supervisor, "STOP");
    (0..1000).for_each(|_| kill(node.keeper_pid(), "TERM"));
    assert_eq!(node.wait(), Some(1));
    assert!(pids.iter().all(|&pid| !exists(pid)));
    assert_eq!(std::fs::read_to_string(node.state().join("order")).unwrap(), "fs\ndisk\n", "in order");
}

fn the_log_of_a_component_can_be_read_through_the_control_endpoint() {
    let mut node = Node::start("plain");
    node.assert_up();
    node.guest(async |cx| {
        let control: control::Client = cx.connect("control").await.unwrap();
        let page = control.logs(control.root(), "disk", 0, 100_000).await.unwrap();
        assert!(String::from_utf8(page.text).unwrap().contains("a disk called plain"));
        assert!(page.end);
        let beyond = control.logs(control.root(), "disk", page.next + 1, 100).await;
        assert!(matches!(beyond, Err(CallError::Operation(control::LogsError::BadCursor))));
        let nobody = control.logs(control.root(), "nobody", 0, 100).await;
        assert!(matches!(nobody, Err(CallError::Operation(control::LogsError::NoSuchComponent))));
    });
    node.down();
}

common::tests! {
    a_node_starts_in_order_serves_and_ends_in_order,
    what_components_print_is_in_their_logs_with_time_stamps,
    a_component_that_fails_at_its_start_is_reported_with_its_last_words,
    a_second_node_on_the_same_state_is_refused_and_harms_nothing,
    a_killed_component_comes_back_with_a_new_epoch_and_its_clients_find_it,
    a_call_on_which_its_host_dies_says_that_nobody_knows_and_a_later_one_that_it_did_not_run,
    a_component_that_dies_of_its_own_making_again_and_again_is_given_up_until_the_operator_wants_it,
    clients_of_a_component_that_survives_feel_nothing_when_it_is_killed,
    a_request_that_crashes_its_host_twice_is_quarantined,
    the_operator_can_restart_a_healthy_component,
    the_supervisor_is_killed_a_hundred_times_and_nothing_restarts_but_itself,
    the_supervisor_dies_together_with_a_component,
    the_supervisor_dies_while_a_component_starts,
    the_supervisor_dies_while_the_node_starts_or_ends,
    guests_come_and_go_while_supervisors_die,
    an_operator_puts_another_supervisor_in_its_place,
    a_supervisor_that_dies_again_and_again_ends_the_node_in_order,
    a_guest_that_lies_in_its_account_harms_nobody,
    a_component_that_is_stopped_is_adopted_when_it_goes_on,
    the_keepers_death_ends_every_process,
    a_signal_to_the_keeper_ends_the_node_in_order,
    a_component_has_exactly_the_descriptors_that_the_manifest_implies,
    guests_that_come_and_go_leave_nothing_behind,
    a_guest_that_speaks_garbage_ends_only_itself,
    a_guest_that_opens_without_end_is_shown_out,
    a_guest_that_says_trace_without_end_fills_no_outbox,
    a_host_that_is_stopped_is_not_killed_for_what_guests_want_of_it,
    a_session_that_is_dropped_ends_at_once_on_both_sides,
    one_that_was_stopped_is_introduced_when_it_goes_on,
    stopped_is_not_dead,
    hung_is_restarted,
    blocked_is_restarted,
    refuses_when_busy,
    a_supervisor_that_hangs_does_not_keep_the_node_from_ending,
    the_log_of_a_component_can_be_read_through_the_control_endpoint,
}

fn main() -> ExitCode {
    common::main(TESTS, |name| match name {
        "block-file" => component::run(disk),
        "fs-server" => component::run(files),
        other => panic!("{other:?}"),
    })
}
