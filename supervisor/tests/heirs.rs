//! What a component was lent goes on to its next run, whenever it dies.
//!
//! - `block-file` lends one block and keeps it; `fs-server` borrows it in its first run, survives, and says in each run what it
//!   holds. Its second run waits for the test before it says that it is ready.
//! - Its processes are this very program: see [`main`].

mod common;

use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{Node, children, exists, kill};
use kernel_ipc::component::{self, Context};
use kernel_ipc::interface::{Granted, Kind, Lease, Object};
use kernel_ipc::lease::{Lend, Region};
use kernel_ipc::runtime::sleep;
use kernel_ipc::session::{Call, Grant, Response, Service};
use kernel_ipc::{CallError, LeaseName, Rights};
use protocol::block::{self, DeviceInfo};
use protocol::fs;

// ---- The components ----

struct Disk(Region);

struct Device;

impl Object for Device {
    type Kind = block::Device;
    fn to_words(&self) -> [u64; 2] {
        [0; 2]
    }
    fn from_words(_: [u64; 2]) -> Self {
        Device
    }
}

impl block::Handler for Disk {
    type Device = Device;

    async fn info(&self, _: &Call, _: Granted<Device>) -> Result<DeviceInfo, CallError<block::InfoError>> {
        unreachable!("nobody asks")
    }

    async fn read(&self, _: &Call, _: Granted<Device>, _: u64, _: u32) -> Result<Lend, CallError<block::ReadError>> {
        Ok(Lend { region: self.0.id(), offset: 0, length: 4096, source: None, keep: Rc::new(()) })
    }

    async fn write(
        &self,
        _: &Call,
        _: Granted<Device>,
        _: u64,
        _: kernel_ipc::interface::LeasePart,
    ) -> Result<(), CallError<block::WriteError>> {
        unreachable!("nobody writes")
    }

    async fn flush(&self, _: &Call, _: Granted<Device>) -> Result<(), CallError<block::FlushError>> {
        unreachable!("nobody flushes")
    }

    async fn discard(&self, _: &Call, _: Granted<Device>, _: u64, _: u32) -> Result<(), CallError<block::WriteError>> {
        unreachable!("nobody discards")
    }

    async fn write_zeroes(
        &self,
        _: &Call,
        _: Granted<Device>,
        _: u64,
        _: u32,
    ) -> Result<(), CallError<block::WriteError>> {
        unreachable!("nobody writes zeroes")
    }
}

async fn disk(cx: Context) -> Result<(), component::Error> {
    let region = Region::create("test", cx.new_region_id(), 4096)?;
    cx.publish_region(&region).await?;
    cx.provide("disk", Rc::new(block::Dispatcher(Disk(region))), async |_| {
        Ok(Grant { object: [0; 2], kind: block::Device::NUMBER, rights: Rights::from_bits_retain(u32::MAX), badge: 0 })
    })?;
    cx.ready();
    cx.stopped().await;
    Ok(())
}

/// Nobody calls it.
struct Files;

impl Service for Files {
    const INTERFACE: &'static kernel_ipc::interface::Description = &fs::DESCRIPTION;
    const SURVIVES: bool = true;

    async fn serve(&self, _: &mut Call) -> Response {
        Response::default()
    }
}

async fn files(cx: Context) -> Result<(), component::Error> {
    cx.survive(4096).await?;
    let disk: block::Client = cx.connect("disk").await?;
    let run = cx.epoch().get();
    let mut held: Vec<LeaseName> = Vec::new();
    if run == 1 {
        let lease = disk.read(disk.root(), 0, 1).await.map_err(|error| format!("{error:?}"))?;
        held.push(lease.name());
        // Dropped, it would go back.
        std::mem::forget(lease);
    } else {
        // The table is shown a moment after the session is open.
        for _ in 0..100 {
            held = cx.holder().borrow().held();
            if !held.is_empty() {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        held.iter().for_each(|name| std::mem::forget(Lease::inherited(disk.root().session(), *name)));
    }
    cx.provide("root", Rc::new(Files), async |_| {
        Ok(Grant { object: [0; 2], kind: 1, rights: Rights::from_bits_retain(u32::MAX), badge: 0 })
    })?;
    std::fs::write(format!("held-{run}"), format!("{held:?}"))?;
    if run == 2 {
        while !Path::new("go").exists() {
            sleep(Duration::from_millis(1)).await;
        }
    }
    cx.ready();
    if run == 2 {
        // In a turn of its own: what was said is in the control socket by then.
        sleep(Duration::from_millis(1)).await;
        std::fs::write("said", "")?;
    }
    cx.stopped().await;
    Ok(())
}

// ---- The tests' side ----

const MANIFEST: &str = r#"
atoll = 1
[system]
name = "test"
[component.disk]
run = "builtin:block-file"
provides.disk = "atoll.block/1"
config = { path = "none", size = "1MiB", create = true }
[component.fs]
run = "builtin:fs-server"
uses.disk = { from = "disk.disk", rights = ["read", "write", "flush", "map"] }
provides.root = "atoll.fs/1"
"#;

fn supervisor(node: &Node) -> i32 {
    let is_supervisor = |&pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "atoll-superv\n") && exists(pid)
    };
    children(node.keeper_pid()).into_iter().find(is_supervisor).expect("a supervisor")
}

fn run_of_files(node: &Node) -> i32 {
    node.ps().iter().find(|component| component.name == "fs").expect("a component of the manifest").pid as i32
}

fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The supervisor hears at once that a run is ready and that it is dead. That run is not its own ancestor, whose leases go
/// back because it is ready: they are its next run's.
fn a_run_that_dies_as_soon_as_it_is_ready_has_heirs_too() {
    let mut node = Node::of(tempfile::tempdir().unwrap(), MANIFEST);
    node.assert_up();
    let file = |name: &str| node.state().join(name);
    let said = |name: &str| std::fs::read_to_string(file(name)).ok();
    let first = said("held-1").expect("the first run has said what it holds");
    assert_ne!(first, "[]");
    kill(run_of_files(&node), "KILL");
    wait_for("the second run", || said("held-2").is_some());
    assert_eq!(said("held-2").unwrap(), first, "inherited");

    let (second, supervisor) = (run_of_files(&node), supervisor(&node));
    kill(supervisor, "STOP");
    std::fs::write(file("go"), "").unwrap();
    wait_for("what it says", || said("said").is_some());
    kill(second, "KILL");
    wait_for("its end", || !exists(second));
    // The keeper says so a moment later.
    std::thread::sleep(Duration::from_millis(100));
    kill(supervisor, "CONT");
    wait_for("the third run", || said("held-3").is_some());
    assert_eq!(said("held-3").unwrap(), first, "inherited once more");
    node.down();
}

common::tests! { a_run_that_dies_as_soon_as_it_is_ready_has_heirs_too, }

fn main() -> ExitCode {
    common::main(TESTS, |name| match name {
        "block-file" => component::run(disk),
        "fs-server" => component::run(files),
        other => panic!("{other:?}"),
    })
}
