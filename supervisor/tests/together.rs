//! Components that are restarted together, as real processes: who is, in which order, and what their clients feel.
//!
//! - This program is its own keeper, supervisor and components: see [`main`]. Each component uses what the manifest gives it
//!   and writes its starts and orderly ends to the file `order`.
//! - A file `NAME.fails` in the state directory holds the epochs at which a component fails before it is ready; at those in
//!   `NAME.waits` it never comes to be ready.
//! - Run one test with `cargo test -p supervisor --test together NAME`.

mod common;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::marker::PhantomData;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use common::{Node, exists, kill, ps, until};
use kernel_ipc::component::{self, Client, Context};
use kernel_ipc::interface::Description;
use kernel_ipc::runtime::{Options as RuntimeOptions, Runtime, sleep};
use kernel_ipc::session::{Call, Grant, Request, Response, Service};
use kernel_ipc::{CallError, Rights};
use protocol::control::{self, ComponentStatus, State};
use protocol::{block, fs, net};
use supervisor::up::Progress;

// ---- The components ----

/// Appends a number to a list that survives, or answers with that list; over one interface of three.
struct Server<I> {
    list: RefCell<Vec<u64>>,
    interface: PhantomData<I>,
}

trait Served: 'static {
    const INTERFACE: &'static Description;
    const SURVIVES: bool;
}

struct Block;
struct Fs;
struct Net;

impl Served for Block {
    const INTERFACE: &'static Description = &block::DESCRIPTION;
    const SURVIVES: bool = false;
}

impl Served for Fs {
    const INTERFACE: &'static Description = &fs::DESCRIPTION;
    const SURVIVES: bool = true;
}

impl Served for Net {
    const INTERFACE: &'static Description = &net::DESCRIPTION;
    const SURVIVES: bool = true;
}

const MKDIR: u16 = 3;
const READDIR: u16 = 14;

impl<I: Served> Service for Server<I> {
    const INTERFACE: &'static Description = I::INTERFACE;
    const SURVIVES: bool = I::SURVIVES;

    async fn serve(&self, call: &mut Call) -> Response {
        let n = number(call.payload());
        let mut list = self.list.borrow_mut();
        match call.operation() {
            MKDIR => {
                list.push(n);
                call.effect(n.to_le_bytes().to_vec());
                Response { payload: (list.len() as u64 - 1).to_le_bytes().as_slice().into(), ..Response::default() }
            }
            _ => {
                let page = list.iter().skip(n as usize).take(400).flat_map(|n| n.to_le_bytes());
                Response { payload: page.collect::<Vec<u8>>().into(), ..Response::default() }
            }
        }
    }
}

fn number(payload: &[u8]) -> u64 {
    payload.get(..8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

async fn serve(cx: Context) -> Result<(), component::Error> {
    let name = cx.name().to_owned();
    let epoch = cx.epoch().get();
    let is_listed = |file: &str| {
        let epochs = std::fs::read_to_string(format!("{name}.{file}")).unwrap_or_default();
        epochs.split_whitespace().any(|listed| listed == "all" || listed == epoch.to_string())
    };
    note(&format!("{name} starts"));
    if is_listed("fails") {
        return Err("as it was told".into());
    }
    if is_listed("waits") {
        std::future::pending::<()>().await;
    }
    let uses: &[(&str, &str)] = match name.as_str() {
        "fs" => &[("disk", block::DESCRIPTION.name)],
        "net" => &[("pages", block::DESCRIPTION.name)],
        "httpd" => &[("root", fs::DESCRIPTION.name), ("net", net::DESCRIPTION.name)],
        _ => &[],
    };
    let mut connections = Vec::new();
    for (used, interface) in uses {
        let connection = cx.connection(used, interface).await?;
        connection.session().await?;
        connections.push(connection);
    }
    match name.as_str() {
        "disk" => provide::<Block>(&cx, "disk").await?,
        "fs" => provide::<Fs>(&cx, "root").await?,
        "net" => provide::<Net>(&cx, "net").await?,
        _ => {}
    }
    note(&format!("{name} ready"));
    cx.ready();
    cx.stopped().await;
    note(&format!("{name} ends"));
    Ok(())
}

async fn provide<I: Served>(cx: &Context, endpoint: &str) -> Result<(), component::Error> {
    let mut list = Vec::new();
    if I::SURVIVES {
        list.extend(cx.survive(1 << 20).await?.effects.iter().map(|record| number(&record.effect)));
    }
    let server = Server::<I> { list: RefCell::new(list), interface: PhantomData };
    cx.provide(endpoint, Rc::new(server), async |_| {
        Ok(Grant { object: [0; 2], kind: 1, rights: Rights::from_bits_retain(u32::MAX), badge: 0 })
    })?;
    Ok(())
}

fn note(line: &str) {
    let mut order = std::fs::OpenOptions::new().create(true).append(true).open("order").expect("the state directory");
    // In one write: components that start beside each other append to the same file.
    order.write_all(format!("{line}\n").as_bytes()).expect("room for a line");
}

// ---- The tests' side ----

/// The usual four, each of which may have a line more.
fn start(more: &[(&str, &str)], files: &[(&str, &str)]) -> Node {
    start_telling(more, files, |_| {})
}

/// The same; tells the state directory before it starts.
fn start_telling(more: &[(&str, &str)], files: &[(&str, &str)], tell: impl FnOnce(std::path::PathBuf)) -> Node {
    let line = |name: &str| more.iter().find(|(of, _)| *of == name).map_or("", |(_, line)| line);
    let manifest = format!(
        r#"
atoll = 1
[component.disk]
run = "builtin:block-file"
provides.disk = "atoll.block/1"
config = {{ path = "disk.img" }}
{}
[component.fs]
run = "builtin:fs-server"
uses.disk = {{ from = "disk.disk", rights = ["read", "write", "flush", "map"] }}
provides.root = "atoll.fs/1"
{}
[component.net]
run = "builtin:net-host"
uses.pages = {{ from = "disk.disk", rights = ["map"] }}
provides.net = "atoll.net/1"
{}
[component.httpd]
run = "builtin:httpd"
config = {{ listen = "127.0.0.1:0" }}
uses.root = {{ from = "fs.root", rights = ["lookup", "read"], path = "/www" }}
uses.net = {{ from = "net.net", rights = ["listen"], tcp = "config.listen" }}
{}
"#,
        line("disk"),
        line("fs"),
        line("net"),
        line("httpd")
    );
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("state")).unwrap();
    for (file, text) in files {
        std::fs::write(directory.path().join("state").join(file), text).unwrap();
    }
    tell(directory.path().join("state"));
    Node::of(directory, &manifest)
}

const REST: (&str, &str) = ("disk", "restart = \"rest-for-one\"");

/// What was started and ended since this was asked last.
fn order(node: &Node) -> Vec<String> {
    let path = node.state().join("order");
    let lines = std::fs::read_to_string(&path).unwrap_or_default();
    let _ = std::fs::remove_file(path);
    lines.lines().map(str::to_owned).collect()
}

/// Who was ended with whom, as the supervisor did it.
fn taken_along(node: &Node) -> Vec<String> {
    let log = node.log("supervisor");
    let lines = log.lines().filter_map(|line| line.split_once("supervisor: ")).map(|(_, said)| said);
    lines.filter(|said| said.contains(" ended with ")).map(str::to_owned).collect()
}

fn find<'s>(listed: &'s [ComponentStatus], name: &str) -> &'s ComponentStatus {
    listed.iter().find(|one| one.name == name).unwrap()
}

fn epochs(listed: &[ComponentStatus]) -> Vec<u64> {
    listed.iter().map(|one| one.epoch).collect()
}

/// Waits until all serve, those named with these epochs; how they stand then.
async fn serving(cx: &Context, expected: [u64; 4]) -> Vec<ComponentStatus> {
    let mut listed = Vec::new();
    until(&format!("epochs {expected:?}"), async || {
        listed = ps(cx).await;
        epochs(&listed) == expected && listed.iter().all(|one| one.state == State::Ready)
    })
    .await;
    listed
}

/// A client of a component that survives, which calls all the time.
struct Caller {
    session: kernel_ipc::session::ClientSession,
    stop: Rc<Cell<bool>>,
    calls: Rc<Cell<u64>>,
    task: kernel_ipc::runtime::JoinHandle<()>,
}

async fn call(session: &kernel_ipc::session::ClientSession, operation: u16, n: u64) -> Vec<u8> {
    let payload = n.to_le_bytes();
    let retry = fs::DESCRIPTION.operation(operation).unwrap().retry;
    let handle = session.root();
    let (capabilities, leases) = (&[], &[]);
    let request = Request { operation, handle, payload: &payload, capabilities, leases, deadline: None, retry };
    session.call(request).await.expect("its clients feel only time").payload.to_vec()
}

impl Caller {
    async fn start(cx: &Context) -> Caller {
        let session = cx.connection("fs.root", fs::Client::INTERFACE).await.unwrap().session().await.unwrap();
        let (stop, calls) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let task = kernel_ipc::runtime::spawn({
            let (session, stop, calls) = (session.clone(), stop.clone(), calls.clone());
            async move {
                while !stop.get() {
                    let n = calls.get();
                    assert_eq!(number(&call(&session, MKDIR, n).await), n, "each call has its effect once");
                    calls.set(n + 1);
                    sleep(Duration::from_millis(1)).await;
                }
            }
        });
        Caller { session, stop, calls, task }
    }

    async fn end(self) {
        let before = self.calls.get();
        until("some calls", async || self.calls.get() > before + 5).await;
        self.stop.set(true);
        self.task.await.unwrap();
        let mut made = Vec::new();
        loop {
            let page = call(&self.session, READDIR, made.len() as u64).await;
            if page.is_empty() {
                break;
            }
            made.extend(page.chunks_exact(8).map(number));
        }
        assert!(made.iter().copied().eq(0..self.calls.get()), "{made:?}");
    }
}

// ---- The tests ----

fn those_that_use_it_are_restarted_after_it_and_their_clients_feel_only_time() {
    let mut node = start(&[REST], &[]);
    node.assert_up();
    order(&node);
    node.guest(async |cx| {
        let caller = Caller::start(&cx).await;
        for round in 1..=6 {
            let disk = find(&ps(&cx).await, "disk").pid;
            kill(disk as i32, "KILL");
            let listed = serving(&cx, [round + 1; 4]).await;
            assert!(find(&listed, "disk").trouble.contains("killed by SIGKILL"), "{listed:?}");
            for name in ["fs", "net", "httpd"] {
                assert_eq!(find(&listed, name).trouble, "restarted with disk");
            }
            let along = taken_along(&node).split_off(3 * (round as usize - 1));
            assert_eq!(along, ["httpd ended with disk", "net ended with disk", "fs ended with disk"]);
            let order = order(&node);
            let at = |line: &str| order.iter().position(|known| known == line).unwrap_or_else(|| panic!("{order:?}"));
            assert_eq!(at("disk starts"), 0, "{order:?}");
            assert!(at("disk ready") < at("fs starts") && at("disk ready") < at("net starts"), "{order:?}");
            assert!(at("fs ready") < at("httpd starts") && at("net ready") < at("httpd starts"), "{order:?}");
        }
        caller.end().await;
    });
    let system = std::fs::read_to_string(node.state().join("system.log")).unwrap();
    assert!(system.contains("fs: atoll: restarted with disk\n"), "{system}");
    node.down();
}

/// Being taken along is no death of one's own, nor is what it uses touched by the death of one that is used by nobody.
fn being_taken_along_is_not_counted() {
    let mut node = start(&[REST], &[]);
    node.assert_up();
    node.guest(async |cx| {
        for round in 1..=4 {
            kill(find(&ps(&cx).await, "disk").pid as i32, "ABRT");
            let listed = serving(&cx, [round + 1; 4]).await;
            assert!(find(&listed, "disk").trouble.contains("killed by SIGABRT"), "{listed:?}");
        }
        // The fifth of the disk's own would be its last. These are other ones'.
        for round in 1..=4 {
            kill(find(&ps(&cx).await, "httpd").pid as i32, "ABRT");
            serving(&cx, [5, 5, 5, round + 5]).await;
        }
    });
    node.down();
}

fn a_group_is_restarted_whoever_of_it_dies() {
    let mut node = start(&[("fs", "group = \"one\""), ("net", "group = \"one\"")], &[]);
    node.assert_up();
    node.guest(async |cx| {
        let caller = Caller::start(&cx).await;
        for (round, (dies, other)) in (1..).zip([("fs", "net"), ("net", "fs"), ("fs", "net"), ("net", "fs")]) {
            kill(find(&ps(&cx).await, dies).pid as i32, "KILL");
            let listed = serving(&cx, [1, round + 1, round + 1, 1]).await;
            assert_eq!(find(&listed, other).trouble, format!("restarted with {dies}"));
            assert!(find(&listed, dies).trouble.contains("killed by SIGKILL"), "{listed:?}");
        }
        // Both at once: for each other they are restarted once, or not at all.
        let listed = ps(&cx).await;
        for name in ["fs", "net"] {
            kill(find(&listed, name).pid as i32, "KILL");
        }
        serving(&cx, [1, 6, 6, 1]).await;
        caller.end().await;
    });
    node.down();
}

fn a_member_that_dies_while_its_group_is_restarted_takes_along_those_that_had_started() {
    let group = [("disk", "group = \"one\""), ("fs", "group = \"one\"")];
    // The second run of fs fails when the disk's second run serves already.
    let mut node = start(&group, &[("fs.fails", "2")]);
    node.assert_up();
    node.guest(async |cx| {
        kill(find(&ps(&cx).await, "disk").pid as i32, "KILL");
        let listed = serving(&cx, [3, 3, 1, 1]).await;
        assert_eq!(find(&listed, "disk").trouble, "restarted with fs");
        assert!(find(&listed, "fs").trouble.contains("as it was told"), "{listed:?}");
    });
    node.down();
    // The second run of the disk fails when fs waits for it, and has not been started.
    let mut node = start(&group, &[("disk.fails", "2")]);
    node.assert_up();
    node.guest(async |cx| {
        let caller = Caller::start(&cx).await;
        kill(find(&ps(&cx).await, "fs").pid as i32, "KILL");
        let listed = serving(&cx, [3, 2, 1, 1]).await;
        assert!(find(&listed, "disk").trouble.contains("as it was told"), "{listed:?}");
        assert!(find(&listed, "fs").trouble.contains("killed by SIGKILL"), "{listed:?}");
        caller.end().await;
    });
    node.down();
}

fn an_operator_restarts_them_in_order() {
    let mut node = start(&[REST], &[]);
    node.assert_up();
    order(&node);
    node.guest(async |cx| {
        let caller = Caller::start(&cx).await;
        let control: control::Client = cx.connect("control").await.unwrap();
        control.restart(control.root(), "disk").await.unwrap();
        let listed = serving(&cx, [2; 4]).await;
        assert_eq!(find(&listed, "fs").trouble, "restarted with disk");
        caller.end().await;
    });
    let restarted = order(&node);
    assert_eq!(restarted[..3], ["disk ends", "disk starts", "disk ready"], "it was stopped in order");
    assert_eq!(taken_along(&node), ["httpd ended with disk", "net ended with disk", "fs ended with disk"]);
    assert!(supervisor::crash::numbers(&node.state()).is_empty(), "nothing has crashed");
    node.down();
}

/// Those that use what is given up wait for it: what they know, they keep.
fn one_that_is_given_up_is_waited_for() {
    let mut node = start(&[REST], &[]);
    node.assert_up();
    std::fs::write(node.state().join("disk.fails"), "all").unwrap();
    node.guest(async |cx| {
        let caller = Caller::start(&cx).await;
        kill(find(&ps(&cx).await, "disk").pid as i32, "KILL");
        until("its end", async || find(&ps(&cx).await, "disk").state == State::Quarantined).await;
        let listed = ps(&cx).await;
        for name in ["fs", "net", "httpd"] {
            let one = find(&listed, name);
            assert_eq!((one.state, one.epoch, one.trouble.as_str()), (State::Restarting, 1, "restarted with disk"));
        }
        std::fs::remove_file(node.state().join("disk.fails")).unwrap();
        let control: control::Client = cx.connect("control").await.unwrap();
        control.restart(control.root(), "disk").await.unwrap();
        serving(&cx, [7, 2, 2, 2]).await;
        caller.end().await;
    });
    node.down();
}

/// Before the node is up: whoever is being started meanwhile is started once more, and the start goes on.
fn one_that_dies_while_another_starts_takes_it_along() {
    let killer = |state: std::path::PathBuf| {
        let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
        runtime.block_on(until("fs to start", async || {
            std::fs::read_to_string(state.join("order")).is_ok_and(|order| order.contains("fs starts"))
        }));
        let disk = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let is_disk = std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name == "disk\n");
            let is_ours = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == state);
            (is_disk && is_ours).then(|| entry.file_name().into_string().unwrap().parse().unwrap())
        });
        kill(disk.expect("the disk runs"), "KILL");
    };
    let (send, receive) = std::sync::mpsc::channel();
    let killer = std::thread::spawn(move || killer(receive.recv().unwrap()));
    let mut node = start_telling(&[REST], &[("fs.waits", "1")], |state| send.send(state).unwrap());
    killer.join().unwrap();
    node.assert_up();
    assert_eq!(epochs(&node.ps()), [2, 2, 1, 1]);
    assert!(node.progress.contains(&Progress::Ready { component: "fs".into() }));
    node.down();
}

/// At any moment of it: what was begun is gone on with, in order.
fn the_supervisor_dies_while_they_are_restarted() {
    let mut node = start(&[REST], &[]);
    node.assert_up();
    node.guest(async |cx| {
        let caller = Caller::start(&cx).await;
        let control: control::Client = cx.connect("control").await.unwrap();
        for round in 0..24u64 {
            let before = ps(&cx).await;
            let supervisor = supervisor(&control).await;
            let restart = (round % 3 == 0).then(|| {
                let control = control.clone();
                kernel_ipc::runtime::spawn(async move {
                    // A wish may die with its supervisor. Another one is told.
                    while let Err(CallError::Failed { .. }) = control.restart(control.root(), "disk").await {}
                })
            });
            if restart.is_none() {
                kill(find(&before, "disk").pid as i32, "KILL");
            }
            sleep(Duration::from_micros(round * 700)).await;
            kill(supervisor, "KILL");
            until("its end", async || !exists(supervisor)).await;
            if let Some(restart) = restart {
                restart.await.unwrap();
            }
            until("all to serve again", async || {
                let now = ps(&cx).await;
                now.iter().zip(&before).all(|(now, before)| now.epoch > before.epoch && now.state == State::Ready)
            })
            .await;
        }
        caller.end().await;
    });
    node.down();
}

async fn supervisor(control: &control::Client) -> i32 {
    loop {
        match control.supervisor(control.root()).await {
            Err(CallError::Failed { .. }) => {}
            status => return status.unwrap().pid as i32,
        }
    }
}

common::tests! {
    those_that_use_it_are_restarted_after_it_and_their_clients_feel_only_time,
    being_taken_along_is_not_counted,
    a_group_is_restarted_whoever_of_it_dies,
    a_member_that_dies_while_its_group_is_restarted_takes_along_those_that_had_started,
    an_operator_restarts_them_in_order,
    one_that_is_given_up_is_waited_for,
    one_that_dies_while_another_starts_takes_it_along,
    the_supervisor_dies_while_they_are_restarted,
}

fn main() -> ExitCode {
    common::main(TESTS, |_| component::run(serve))
}
